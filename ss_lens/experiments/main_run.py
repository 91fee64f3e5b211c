"""The main job: a sweep with a preset, scored per angle and kept as a run directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.capture import capture
from ss_lens.activations.store import Store
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.site_selection import as_rule
from ss_lens.core.checks import check_at_least, check_is, check_numbers, check_path
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_can_be_made, read_json, sha256_of_file
from ss_lens.core.progress import progress_bar
from ss_lens.core.replace import holds_nothing, remove_leftovers
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.datasets.contrastive import ContrastiveDataset, check_part
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.config import Grid, Split, SweepConfig
from ss_lens.experiments.grid import CellGroup
from ss_lens.experiments.inputs import Setting, Workbench
from ss_lens.experiments.sweep import group_rows
from ss_lens.experiments.worker import finish_setting
from ss_lens.geometry.strengths import reduced
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, check_context, tokenize
from ss_lens.scoring.registry import ANSWERS, all_columns
from ss_lens.stats.intervals import wilson_interval

FORMAT = 2
UNSEALED = 1
"""The format of earlier versions, which kept no digests; its runs are read, and not resumed."""
EIGHT_ANGLES = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
PROMPTS_PER_CHUNK = 6
"""So many prompts at all angles are computed together, and kept when they are finished."""
COHERENCE = ("compression_ratio", "repetition", "non_latin_share")
TABLES = ("responses.csv", "scores.csv")


@dataclass(frozen=True)
class RunConfig:
    """What the main job does; ``dev`` and ``test`` are prompts per class.

    Angles are taken modulo 360. ``rule`` is the text of a selection rule, which :func:`as_rule`
    reads; ``chat`` is what else enters the chat template.
    """

    angles_deg: tuple[float | int, ...] = EIGHT_ANGLES
    rule: str = "site"
    dev: int = 16
    test: int = 24
    seed: int = 0
    max_new_tokens: int = 48
    chat: ChatFormat = DEFAULT_FORMAT

    def __post_init__(self) -> None:
        as_rule(self.rule)
        check_is("rule", self.rule, (str,), "the text of a rule, such as 'site'")
        check_part("dev", self.dev)
        check_part("test", self.test)
        check_is("seed", self.seed, (Integral,), "a whole number such as 0")
        check_is("chat", self.chat, (ChatFormat,), "a ChatFormat(system=...)")
        check_numbers("angles_deg", self.angles_deg)
        check_at_least("max_new_tokens", self.max_new_tokens)
        angles = tuple(map(reduced, self.angles_deg))
        if len(set(angles)) < len(angles):
            raise UserError(
                f"an angle of {self.angles_deg} is given twice (0 and 360 are one); keep one."
            )
        object.__setattr__(self, "angles_deg", angles)

    def sweep(self, model: str, dataset: str) -> SweepConfig:
        """The sweep that the main job is: ``RotateBy``, one rule, the answers of the test part.

        Args:
            model: what the grid calls the model.
            dataset: what it calls the dataset.
        """
        grid = Grid(
            model=(model,),
            dataset=(dataset,),
            selection=(self.rule,),
            angles_deg=self.angles_deg,
        )
        return SweepConfig(
            grid=(grid,),
            split=Split(dev=self.dev, test=self.test, seed=self.seed),
            scores=(ANSWERS,),
            max_new_tokens=self.max_new_tokens,
            chat=self.chat,
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values; ``chat`` where it is not the default."""
        values = {**asdict(self), "angles_deg": list(self.angles_deg)}
        del values["chat"]
        return values if self.chat == DEFAULT_FORMAT else {**values, "chat": self.chat.as_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunConfig:
        chat = ChatFormat.from_json(values.get("chat", {}))
        return cls(**{**values, "angles_deg": tuple(values["angles_deg"]), "chat": chat})


@dataclass(frozen=True, eq=False)
class Run:
    """A finished main job, as its run directory holds it.

    Attributes:
        calibration: fitted on the train part.
        activations: the store's keys of the ``train`` and ``test`` activations.
        responses: one row per test prompt and angle, with the scores of its text.
        scores: one row per angle, from :func:`score_by_angle`.
    """

    config: RunConfig
    calibration: Calibration
    activations: dict[str, str]
    responses: pd.DataFrame
    scores: pd.DataFrame


def run_main_job(
    model: TransformerBridge,
    dataset: ContrastiveDataset,
    run_dir: Path | str,
    config: RunConfig | None = None,
    *,
    store: Store | None = None,
) -> Run:
    """Calibrate on the train part of ``dataset`` and measure Selective Steering on its test part.

    It is the sweep of :meth:`RunConfig.sweep`. The dev part serves rules that choose on held-out
    prompts, and is where an angle may be chosen. Answers are kept in ``run_dir`` a few prompts at a
    time, so a run that was stopped resumes where it stopped, and a repeated run does no work.

    Raises:
        UserError: whatever capture, calibration or generation object to, or a ``run_dir`` that
            holds something else.
    """
    check_is("model", model, (TransformerBridge,), "a model from ss_lens.load_model(...)")
    made = "a dataset from ss_lens.load_dataset(...)"
    check_is("dataset", dataset, (ContrastiveDataset,), made)
    check_path("run_dir", run_dir)
    check_is("config", config, (RunConfig, type(None)), "a RunConfig(...), or None")
    check_is("store", store, (Store, type(None)), "a ss_lens.Store(), or None")
    config = RunConfig() if config is None else config
    store = Store() if store is None else store
    folder = Path(run_dir)
    asked = check_run_dir(folder, dataset, config)  # before the slow part
    sweep = config.sweep(str(model.cfg.model_name), dataset.name)
    bench = Workbench.holding(sweep, store, model, dataset)
    test = dataset.split(dev=config.dev, test=config.test, seed=config.seed).test
    for prompts in (test.positive, test.negative):
        check_context(model, tokenize(model, prompts, config.chat), prompts, config.max_new_tokens)
    first = bench.setting(sweep.groups()[0])
    shown = capture(model, test, store=store, chat=config.chat)  # for the figures
    keys = {"train": str(first.identity["train"]), "test": shown.spec.key}
    _claim(folder, {**asked, "activations": keys})
    first.calibration.save(folder / "calibration", overwrite=True)
    cells = CellStore.claim(folder / "answers")
    tables = [_answers(group, bench, cells) for group in sweep.groups()]
    responses = pd.concat(tables, ignore_index=True)
    scores = score_by_angle(responses)
    for name, table in zip(TABLES, (responses, scores), strict=True):
        with atomic_path(folder / name) as temporary:
            table.to_csv(temporary, index=False)
    digests = {name: sha256_of_file(folder / name) for name in TABLES}
    write_sealed_json(folder / "tables.json", digests)
    return Run(config, first.calibration, keys, responses, scores)


def check_run_dir(run_dir: Path, dataset: ContrastiveDataset, config: RunConfig) -> dict[str, Any]:
    """Refuse, without a model, what :func:`run_main_job` would refuse; return what is asked for.

    Raises:
        UserError: the dataset cannot be split so, or ``run_dir`` holds something else.
    """
    dataset.split(dev=config.dev, test=config.test, seed=config.seed)
    asked = {
        "format": FORMAT,
        "config": config.as_json(),
        "dataset": {"name": dataset.name, "digest": dataset.digest},
        "ss_lens": version("ss_lens"),
    }
    check_can_be_made(run_dir)
    _check_same(run_dir, asked)
    return asked


def load_run(run_dir: Path | str) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is not one, is unfinished or damaged, or was written by another version's
            format.
    """
    check_path("run_dir", run_dir)
    folder = Path(run_dir)
    path = folder / "run.json"
    found = read_json(path, "run (run.json)")
    known = found.get("format") if isinstance(found, dict) else None
    if known not in (FORMAT, UNSEALED):
        raise UserError(
            f"the run at {folder} has format {known}, this version reads {FORMAT}; run it again."
        )
    identity = _identity(path)
    last = "tables.json" if identity["format"] == FORMAT else TABLES[-1]
    if not (folder / last).exists():
        raise UserError(f"the run at {folder} is not finished; start `ss-lens run` on it again.")
    if identity["format"] == FORMAT:
        _check_tables(folder)
    undefined = [name for name, column in all_columns().items() if column.undefined]
    # An answer may be empty or read "NA": only the scores have missing values.
    responses = pd.read_csv(
        folder / "responses.csv",
        keep_default_na=False,
        na_values={column: [""] for column in undefined},
    )
    tables = [responses, pd.read_csv(folder / "scores.csv")]
    responses, scores = (
        t.assign(angle_deg=t["angle_deg"].astype(float).map(reduced)) for t in tables
    )
    config = RunConfig.from_json(identity["config"])
    calibration = Calibration.load(folder / "calibration")
    return Run(config, calibration, identity["activations"], responses, scores)


def score_by_angle(responses: pd.DataFrame) -> pd.DataFrame:
    """One row per angle: refusal rate of each class with its 95 % Wilson interval, and coherence.

    ``compression_ratio``, ``repetition`` and ``non_latin_share`` are means over the answers to the
    positive class; answers too short for a score are left out of its mean.
    """
    rows = []
    for angle, group in responses.groupby("angle_deg", sort=True):
        row: dict[str, float] = {"angle_deg": cast(float, angle)}
        for label in ("positive", "negative"):
            refused = group.loc[group["prompt_class"] == label, "refused"]
            row[f"refusal_{label}"] = float(refused.mean())
            low, high = wilson_interval(int(refused.sum()), len(refused))
            row[f"refusal_{label}_low"], row[f"refusal_{label}_high"] = low, high
            row[f"n_{label}"] = len(refused)
        positive = group[group["prompt_class"] == "positive"]
        for column in COHERENCE:
            row[column] = float(positive[column].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _identity(path: Path) -> dict[str, Any]:
    """What ``run.json`` says of its run.

    Raises:
        UserError: damaged, or a file of another kind in its place.
    """
    keys = {"format", "config", "dataset", "activations", "ss_lens", "started"}
    remedy = "remove the run and make it again"
    identity = read_sealed_json(path, "run (run.json)", unsealed=keys, remedy=remedy)
    if identity.keys() != keys:
        raise UserError(f"{path} describes no run (another file is in its place); {remedy}.")
    return identity


def _check_same(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than the run that is asked for."""
    path = folder / "run.json"
    if not path.exists():
        if not holds_nothing(folder):
            raise UserError(f"{folder} is not empty and holds no run; choose another --out.")
        return
    known = _identity(path)
    if known.get("format") == UNSEALED:
        raise UserError(
            f"{folder} holds a run of an earlier version, which can be read and not resumed; "
            "choose another --out, or remove that folder."
        )
    if differing := sorted(key for key in asked if known.get(key) != asked[key]):
        raise UserError(
            f"{folder} holds a run that differs in {', '.join(differing)}; choose another "
            "--out, or remove that folder."
        )


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write ``run.json``, or make sure that the one there describes this very run."""
    _check_same(folder, identity)
    remove_leftovers(folder)
    if not (folder / "run.json").exists():
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_sealed_json(folder / "run.json", {**identity, "started": started})


def _check_tables(folder: Path) -> None:
    remedy = "start `ss-lens run` on it again, which makes them from the answers that it keeps"
    digests = read_sealed_json(
        folder / "tables.json", "list of tables (tables.json)", remedy=remedy
    )
    for name in TABLES:
        path = folder / name
        if not path.exists() or sha256_of_file(path) != digests.get(name):
            raise UserError(
                f"{path} is missing or was changed since the run (its checksum differs); {remedy}."
            )


def _answers(group: CellGroup, bench: Workbench, cells: CellStore) -> pd.DataFrame:
    """The answers of one class with the scores of their text, computed a few prompts at a time."""
    tables = []
    n_prompts = len(bench.setting(group).prompts)
    with progress_bar(n_prompts, "steer", "prompt") as bar:
        for start, setting in _chunks(group, bench, n_prompts):
            outcome = finish_setting((ANSWERS,), group, setting, cells, wait=True, baseline=False)
            assert outcome is not None
            rows = group_rows(group, outcome, (ANSWERS,), cells)
            tables.append(rows.assign(prompt_index=rows["prompt_index"] + start))
            bar.update(len(setting.prompts))
    table = pd.concat(tables, ignore_index=True)
    table.insert(4, "prompt_class", group.prompt_class)
    return table


def _chunks(group: CellGroup, bench: Workbench, n_prompts: int) -> Iterator[tuple[int, Setting]]:
    for start in range(0, n_prompts, PROMPTS_PER_CHUNK):
        yield start, bench.setting(group, slice(start, start + PROMPTS_PER_CHUNK))
