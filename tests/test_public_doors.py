"""Every public door refuses every wrong type in one line, and nothing passes for nothing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, RotateBy, RunConfig, Store, UserError
from ss_lens.experiments.choose_angle import AngleCriterion

Door = tuple[Callable[..., object], Mapping[str, Any]]

pytestmark = pytest.mark.usefixtures("unchecked_types")


class Odd:
    """Of no type that any argument takes."""


def steered(**arguments: Any) -> None:
    with ss_lens.steer(**arguments):
        pass


def steered_by_all(**arguments: Any) -> None:
    with ss_lens.steer_all(**arguments):
        pass


@pytest.fixture(scope="module")
def doors(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Door]:
    """Each door, with arguments that open it."""
    here = tmp_path_factory.mktemp("doors")
    model, store = tiny_models["llama"], Store(here / "store")
    acts = ss_lens.capture(model, tiny_data, store=store)
    cal = ss_lens.calibrate(acts, rule="uniform")
    key, prompts = acts.spec.key, [*tiny_data.positive[:2]]
    limits = {"max_perplexity": None, "max_repetition": None}
    criterion = AngleCriterion(score="refused", goal="minimise", **limits)
    run = RunConfig(angles_deg=(0,), rule="uniform", dev=2, test=2, max_new_tokens=1)
    sweep = run.sweep("model", "refusal")
    shared = {"model": model, "positions": ss_lens.AllPositions()}
    edit = {"calibration": cal, "operator": RotateBy(90)}
    answered = {"prompts": prompts, "max_new_tokens": 1, "chat": ss_lens.ChatFormat()}
    placed = {"folder": here / "new", "store": store}
    columns = {"prompt_column": "prompt", "class_column": "class"}
    return {
        "steer": (steered, {**shared, **edit, "when": None, "trace": None}),
        "steer_all": (
            steered_by_all,
            {
                **shared,
                **{"edits": [(cal, RotateBy(90))], "max_overlap": 0.1},
                **{"when": None, "trace": None},
            },
        ),
        "calibrate": (ss_lens.calibrate, {"acts": acts, **_defaults(ss_lens.calibrate)}),
        "capture": (
            ss_lens.capture,
            {**_defaults(ss_lens.capture), "model": model, "dataset": tiny_data, "store": store},
        ),
        "generate": (
            ss_lens.generate,
            {**_defaults(ss_lens.generate), "model": model, **answered},
        ),
        "stream": (
            ss_lens.stream,
            {
                **_defaults(ss_lens.stream),
                "model": model,
                "prompt": prompts[0],
                "max_new_tokens": 1,
            },
        ),
        "sweep_angles": (
            ss_lens.sweep_angles,
            {
                **_defaults(ss_lens.sweep_angles),
                **shared,
                **answered,
                **{"calibration": cal, "operator": RotateBy, "angles_deg": [0]},
            },
        ),
        "export": (
            ss_lens.export,
            {
                **{"calibration": cal, "model": model, "operator": RotateBy(90), "kind": "lora"},
                **{"out": here / "export", "dtype": "auto", "prompts": prompts[:1], "gguf": None},
                "max_new_tokens": 1,
            },
        ),
        "verify_export": (
            ss_lens.verify_export,
            {"folder": here, "model": model, "prompts": prompts[:1]},
        ),
        "choose_angle": (
            ss_lens.choose_angle,
            {"table": pd.DataFrame({"part": []}), "criterion": criterion},
        ),
        "AngleCriterion": (
            AngleCriterion,
            {**_defaults(AngleCriterion), "score": "refused", "goal": "minimise", **limits},
        ),
        "run_main_job": (
            ss_lens.run_main_job,
            {
                "model": model,
                "dataset": tiny_data,
                "run_dir": here / "run",
                "config": run,
                "store": store,
            },
        ),
        "RunConfig": (RunConfig, _defaults(RunConfig)),
        "run_sweep": (ss_lens.run_sweep, {"config": sweep, **placed}),
        "run_ablations": (
            ss_lens.run_ablations,
            {"config": ss_lens.AblationConfig(model="absent"), **placed},
        ),
        "load_dataset": (
            ss_lens.load_dataset,
            {"positive": ["a"], "negative": ["b"], **columns, "class_values": {}, "paired": False},
        ),
        "load_dataset by name": (ss_lens.load_dataset, {"source": "refusal", **columns}),
        "ContrastiveDataset": (
            ContrastiveDataset,
            {"name": "a", "positive": ("a",), "negative": ("b",), "paired": False},
        ),
        "split": (tiny_data.split, {"dev": 2, "test": 2, "seed": 0}),
        "load_model": (ss_lens.load_model, {**_defaults(ss_lens.load_model), "name": "absent"}),
        "Store": (Store, {"root": here}),
        "Store.load": (store.load, {"key": key}),
        "Store.verify": (store.verify, {"key": key}),
        "Store.resolve": (store.resolve, {"prefix": key}),
        "load_run": (ss_lens.load_run, {"run_dir": here}),
        "load_sweep": (ss_lens.load_sweep, {"folder": here}),
        "load_sweep_config": (ss_lens.load_sweep_config, {"path": here}),
        "load_ablations": (ss_lens.load_ablations, {"folder": here}),
        "Calibration.load": (Calibration.load, {"folder": here}),
        "Calibration.save": (cal.save, {"folder": here / "cal", "overwrite": False}),
        "Calibration.from_reference": (Calibration.from_reference, {"folder": here}),
        "Calibration.to_reference": (cal.to_reference, {"folder": here / "reference"}),
        "restricted_to": (acts.restricted_to, {"streams": ["ln1_out"]}),
        "at": (acts.at, {"site": acts.sites[0]}),
        "Evidence": (ss_lens.Evidence, {"train": acts, "held_out": None, "neutral": None}),
        "Site": (ss_lens.Site, {"layer": 0, "stream": "ln1_out"}),
        "Plane": (ss_lens.Plane, {"b1": cal.plane.b1, "b2": cal.plane.b2}),
        "ChatFormat": (ss_lens.ChatFormat, _defaults(ss_lens.ChatFormat)),
        "RotateBy": (RotateBy, {"angle_deg": 90}),
        "SetAngle": (ss_lens.SetAngle, {"angle_deg": 90, "magnitude": 1.0}),
        "Consensus": (ss_lens.Consensus, {"weighted": True}),
        "Discriminative": (ss_lens.Discriminative, _defaults(ss_lens.Discriminative)),
        "LastPrompt": (ss_lens.LastPrompt, {"k": 1}),
    }


def _defaults(door: Callable[..., object]) -> dict[str, Any]:
    parameters = inspect.signature(door).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


NAMES = (
    *("steer", "steer_all", "calibrate", "capture", "generate", "stream", "sweep_angles"),
    *(
        "choose_angle",
        "AngleCriterion",
        "run_main_job",
        "RunConfig",
        "run_sweep",
        "run_ablations",
        "load_dataset",
    ),
    *("load_dataset by name", "ContrastiveDataset", "split", "load_model", "Store", "Store.load"),
    *("Store.verify", "Store.resolve", "load_run", "load_sweep", "load_sweep_config"),
    *("load_ablations", "Calibration.load", "Calibration.save", "Calibration.from_reference"),
    *("Calibration.to_reference", "restricted_to", "at", "Evidence", "Site", "Plane"),
    *("ChatFormat", "RotateBy", "SetAngle", "Consensus", "Discriminative", "LastPrompt"),
    *("export", "verify_export"),
)
NEVER: tuple[Any, ...] = (
    *(Odd(), Odd, b"x", 3 + 1j, lambda: 1, torch.zeros(2, 3), pd.DataFrame({"a": [1]})),
    *({Odd()}, [Odd()], {"a": Odd()}, math.nan),
)
"""What no argument takes."""
ODD: tuple[Any, ...] = (
    *(0, 5, -1, 2.5, math.inf, True, "", "xyz", "\ud800", "x\0y", [], [5], [["x"]], {}, ()),
    *(np.zeros(3), np.float64(3.5), torch.zeros(3), RotateBy, RotateBy(90), 10**30, None),
)
"""What some arguments take: the others say so in one line."""


@pytest.mark.parametrize("name", NAMES)
def test_no_door_takes_what_it_cannot_use(
    doors: dict[str, Door], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    door, arguments = doors[name]
    for argument in arguments:
        for value in NEVER:
            with pytest.raises(UserError) as refused:
                door(**{**arguments, argument: value})
            said = str(refused.value)
            assert "\n" not in said, said
            assert len(said) < 500, said


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what is taken
@pytest.mark.parametrize("name", [name for name in NAMES if name != "run_main_job"])
def test_a_door_opens_or_says_why_not(
    doors: dict[str, Door], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    door, arguments = doors[name]
    for argument in arguments:
        for value in ODD:
            with suppress(UserError):
                door(**{**arguments, argument: value})


def test_an_empty_list_is_no_default_store_or_configuration(doors: dict[str, Door]) -> None:
    """What is false is not taken for ``None``."""
    for name, argument in (
        *(("capture", "store"), ("run_main_job", "store"), ("run_main_job", "config")),
        *(("run_sweep", "store"), ("run_ablations", "store")),
    ):
        door, arguments = doors[name]
        with pytest.raises(UserError, match=rf"{argument} must be .*; got \[\]"):
            door(**{**arguments, argument: []})
