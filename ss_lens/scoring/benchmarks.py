"""Benchmark tasks for lm-eval: the embedded one, a file of one's own, or any that lm-eval knows."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ss_lens.core.errors import UserError, first_line

BASICS = "basics"
"""The embedded task: 80 easy questions with four options, a quarter of each kind."""

TINY_BENCHMARKS = (
    "tinyArc",
    "tinyGSM8k",
    "tinyHellaswag",
    "tinyMMLU",
    "tinyTruthfulQA",
    "tinyWinogrande",
)
"""The 100-item tasks of arXiv 2402.14992; each is fetched from the Hub on first use."""

_YAML = (".yaml", ".yml")
_LAYOUT = '{"question": "…", "options": ["…", "…"], "answer": 0}'
_FEWSHOT_SEED = 1234  # lm-eval's own, so that its examples are the same


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Load lm-eval's task objects by name.

    Raises:
        UserError: lm-eval is not installed, or a task is unknown, unreadable or unavailable.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            "benchmarks run through lm-eval, which is not installed; "
            'pip install "ss_lens[capability]".'
        )
    tasks: dict[str, Any] = {}
    for name in names:
        for found, task in _load_one(name).items():
            if found in tasks:
                raise UserError(f"task {found!r} is named twice; keep one.")
            tasks[found] = task
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        # Only the scores of the items are read; some tasks aggregate in ways that need all items.
        task.aggregation().update(dict.fromkeys(task.aggregation(), lambda scores: math.nan))
    return tasks


def _load_one(name: str) -> dict[str, Any]:
    if name == BASICS:
        text = (
            resources.files("ss_lens.scoring").joinpath("capability_items.jsonl").read_text("utf-8")
        )
        return {name: _multiple_choice(name, text, name)}
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", *_YAML) and not path.is_file():
        raise UserError(f"there is no task file {path}; check the path.")
    if path.suffix == ".jsonl":
        return {path.stem: _multiple_choice(path.stem, path.read_text("utf-8"), str(path))}
    manager = _manager(name)
    if path.suffix not in _YAML and name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, n=1)
        raise UserError(
            f"lm-eval knows no task {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} "
            f"Offline there is {BASICS!r}, or a file of your own: .jsonl with lines like "
            f"{_LAYOUT}, or lm-eval's .yaml."
        )
    try:
        with _without_tiny_benchmarks_package():
            return manager.load([name])["tasks"]
    except (OSError, ValueError, KeyError, ModuleNotFoundError) as error:
        raise UserError(
            f"task {name!r} could not be loaded: {first_line(error)} Data from the Hub need a "
            f"network on first use; {BASICS!r} does not."
        ) from error


def _manager(name: str) -> Any:
    """lm-eval's loader, over as few task files as will do: reading all takes half a minute."""
    from lm_eval import tasks

    if name.endswith(_YAML):
        return tasks.TaskManager(include_defaults=False)
    if name in TINY_BENCHMARKS:
        folder = Path(tasks.__file__).parent / "tinyBenchmarks"
        return tasks.TaskManager(include_defaults=False, include_path=folder)
    return _whole_index()


@lru_cache(maxsize=1)
def _whole_index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextmanager
def _without_tiny_benchmarks_package() -> Iterator[None]:
    """Let the tiny benchmarks load without the package that their aggregation imports.

    It is on no package index and unpickles a downloaded file; the aggregation is not used here.
    """
    package, importer = "tinyBenchmarks", "lm_eval.tasks.tinyBenchmarks.agg_functions"
    if find_spec(package) is not None:
        yield
        return
    sys.modules[package] = ModuleType(package)
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.pop(importer, None)


def _multiple_choice(name: str, text: str, where: str) -> Any:
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    rows = [
        _question(line, f"line {number} of {where}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    if not rows:
        raise UserError(f"{where} holds no question; write lines like {_LAYOUT}.")
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(rows)}),
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "options",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1},
        }
    )


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error}); write it like {_LAYOUT}.") from error
    match row:
        case {
            "question": str(question),
            "options": [str(), str(), *_] as options,
            "answer": int(i),
        }:
            if all(isinstance(o, str) and o.strip() for o in options) and 0 <= i < len(options):
                return {"question": question, "options": options, "answer": i}
    raise UserError(
        f"{where} is not a question with two options or more, none of them blank, and the place of "
        f"the right one, counted from 0; expected {_LAYOUT}."
    )
