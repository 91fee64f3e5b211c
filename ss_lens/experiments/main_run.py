"""The main job: the dial and its controls, an angle from dev, answers to test; a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.capture import capture
from ss_lens.activations.site_map import site_map
from ss_lens.activations.store import Store
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.site_selection import as_rule
from ss_lens.core.checks import (
    check_at_least,
    check_flag,
    check_is,
    check_numbers,
    check_path,
    check_whole,
)
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_can_be_made, read_json, sha256_of_file
from ss_lens.core.progress import progress_bar
from ss_lens.core.replace import holds_nothing, remove_leftovers
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.core.shown import card, in_lines
from ss_lens.datasets.contrastive import ContrastiveDataset, check_part
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.config import Grid, Split, SweepConfig
from ss_lens.experiments.dial.answers import scored_answers
from ss_lens.experiments.dial.scan import (
    CHOICE_COLUMNS,
    COLLAPSE,
    DIAL_COLUMNS,
    PROMPT_CLASSES,
    choose_angles,
    chosen_angles,
    controls,
    dial_table,
    method,
    one_pass,
    scan_controls,
    scan_method,
)
from ss_lens.experiments.dial.verdict import verdict
from ss_lens.experiments.dial.ways import METHOD
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.experiments.inputs import Workbench
from ss_lens.experiments.summaries import degrees, first_rows
from ss_lens.geometry.strengths import reduced
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, check_context, tokenize
from ss_lens.scoring.coherence import collapse
from ss_lens.scoring.registry import ROW, all_columns
from ss_lens.stats.intervals import wilson_interval

FORMAT = 3
EARLIER = (1, 2)
"""Formats of earlier versions, which kept the answers at all angles and no dial (1: no digests
either). Their runs are read, and not resumed."""
UNSEALED = 1
EIGHT_ANGLES = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
PROMPTS_PER_CHUNK = 12
"""So many prompts at all chosen angles are answered together, and kept when they are finished."""
COHERENCE = ("compression_ratio", "repetition", "non_latin_share")
BY_CLASS = ("refusal_score", "opening_mass", "perplexity", "collapsed")
EARLIER_TABLES = ("responses.csv", "scores.csv")
TABLES = (*EARLIER_TABLES, "dial.csv", "choices.csv")


@dataclass(frozen=True)
class RunConfig:
    """What the main job does; ``dev`` and ``test`` are prompts per class.

    Angles are taken modulo 360, and 0, the unsteered model, is always measured. ``rule`` is the
    text of a selection rule, which :func:`as_rule` reads; ``chat`` is what else enters the chat
    template. ``draws`` is the number of random planes of each kind. Answers to positive prompts
    are kept in full with ``keep_answers``, and as their first six words without.
    """

    angles_deg: tuple[float | int, ...] = EIGHT_ANGLES
    rule: str = "site"
    dev: int = 16
    test: int = 24
    seed: int = 0
    max_new_tokens: int = 48
    chat: ChatFormat = DEFAULT_FORMAT
    draws: int = 8
    keep_answers: bool = False

    def __post_init__(self) -> None:
        as_rule(self.rule)
        check_is("rule", self.rule, (str,), "the text of a rule, such as 'site'")
        check_part("dev", self.dev)
        check_part("test", self.test)
        check_is("seed", self.seed, (Integral,), "a whole number such as 0")
        check_is("chat", self.chat, (ChatFormat,), "a ChatFormat(system=...)")
        check_numbers("angles_deg", self.angles_deg)
        check_at_least("max_new_tokens", self.max_new_tokens)
        check_whole("draws", self.draws, at_least=1)
        check_flag("keep_answers", self.keep_answers)
        angles = tuple(map(reduced, self.angles_deg))
        if len(set(angles)) < len(angles):
            raise UserError(
                f"an angle of {self.angles_deg} is given twice (0 and 360 are one); keep one."
            )
        object.__setattr__(self, "angles_deg", angles)

    def sweep(self, model: str, dataset: str) -> SweepConfig:
        """The sweep whose inputs and method the main job has: ``RotateBy``, one rule.

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


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished main job, as its run directory holds it.

    A run of an earlier version has the answers at all of its angles in full, and no ``dial``,
    ``choices`` or ``verdict``.

    Attributes:
        calibration: fitted on the train part.
        activations: the store's keys of the ``train`` and ``test`` activations.
        responses: one row per test prompt and angle, 0 (unsteered) and those that were chosen: the
            ``response``, whether it was ``shortened``, whether it ``collapsed``, and all scores.
        scores: one row per angle, from :func:`score_by_angle`.
        dial: one row per way of steering (and draw), class and angle, on the dev part:
            ``refusal_score`` and ``opening_mass``, means over ``n`` prompts.
        choices: which angles were tried on dev for each sense, and which were chosen; see
            :func:`ss_lens.experiments.dial.scan.choose_angles`.
        verdict: what turned, in words.
    """

    config: RunConfig
    calibration: Calibration
    activations: dict[str, str]
    responses: pd.DataFrame
    scores: pd.DataFrame
    dial: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*DIAL_COLUMNS]))
    choices: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*CHOICE_COLUMNS]))
    verdict: str = ""

    def __repr__(self) -> str:
        return in_lines(self._title, self._facts)

    def _repr_html_(self) -> str:
        made, columns = self.calibration, ("angle_deg", "refusal_positive", "refusal_negative")
        picture = site_map(
            made.sites,
            filled=made.selected_sites,
            ring=made.direction_site,
            crossed=made.candidates.excluded,
        )
        scores = first_rows(self.scores.filter([*columns]), ())
        return card(self._title, self._facts, picture, scores)

    @property
    def _title(self) -> str:
        spec = self.calibration.spec
        return f"Run on {spec.model.name!r} with {spec.dataset_name!r}"

    @property
    def _facts(self) -> dict[str, str]:
        config, made = self.config, self.calibration
        return {
            "verdict": self.verdict or "none; a run of an earlier version",
            "prompts": f"{made.spec.n_positive} + {made.spec.n_negative} to calibrate on, "
            f"{config.dev} dev and {config.test} test per class",
            "steers": f"{len(made.selected_sites)} of {len(made.sites)} sites",
            "dial": degrees(config.angles_deg),
            "answers": f"{len(self.responses)}, at {degrees(self.responses['angle_deg'].tolist())}",
        }


def run_main_job(
    model: TransformerBridge,
    dataset: ContrastiveDataset,
    run_dir: Path | str,
    config: RunConfig | None = None,
    *,
    store: Store | None = None,
) -> Run:
    """Calibrate on the train part of ``dataset`` and measure Selective Steering on its test part.

    On the dev part the method's refusal score is measured at all angles, beside all sites, Standard
    Angular Steering and random planes, uniform and of equal energy; an angle is chosen for each
    sense, weaker and stronger refusal, among those at which few answers collapse. At these and
    unsteered, the test prompts are answered. What is finished is kept in ``run_dir``, so a run that
    was stopped resumes where it stopped, and a repeated run does no work.

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
    names = str(model.cfg.model_name), dataset.name
    bench = Workbench.holding(config.sweep(*names), store, model, dataset)
    parts = dataset.split(dev=config.dev, test=config.test, seed=config.seed)
    for prompts in (getattr(p, c) for p in (parts.dev, parts.test) for c in PROMPT_CLASSES):
        check_context(model, tokenize(model, prompts, config.chat), prompts, config.max_new_tokens)
    arm = method(*names, config.rule)
    first = bench.setting(CellGroup(arm, "test", "positive", (0.0,)))
    shown = capture(model, parts.test, store=store, chat=config.chat)  # for the figures
    keys = {"train": str(first.identity["train"]), "test": shown.spec.key}
    _claim(folder, {**asked, "activations": keys})
    first.calibration.save(folder / "calibration", overwrite=True)
    cells = CellStore.claim(folder / "answers")
    scanned = scan_method(bench, cells, arm, sorted({0.0, *config.angles_deg}))
    sites = ",".join(map(str, first.calibration.selected_sites))
    choices = choose_angles(bench, cells, arm, scanned, shorten=not config.keep_answers)
    beside = scan_controls(bench, cells, controls(arm, sites, config.draws), scanned, choices)
    dial = dial_table([scanned, beside])
    angles = sorted({0.0, *chosen_angles(choices).values()})
    responses = _responses(bench, cells, arm, angles, config)
    scores = score_by_angle(responses)
    for name, table in zip(TABLES, (responses, scores, dial, choices), strict=True):
        with atomic_path(folder / name) as temporary:
            table.to_csv(temporary, index=False)
    digests = {name: sha256_of_file(folder / name) for name in TABLES}
    said = verdict(scores, dial, choices)
    write_sealed_json(folder / "tables.json", {**digests, "verdict": said})
    return Run(config, first.calibration, keys, responses, scores, dial, choices, said)


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
    identity = run_identity(folder)
    sealed, current = identity["format"] != UNSEALED, identity["format"] == FORMAT
    if not is_finished(folder):
        raise UserError(f"the run at {folder} is not finished; start `ss-lens run` on it again.")
    told = _check_tables(folder, TABLES if current else EARLIER_TABLES) if sealed else {}
    undefined = [name for name, column in all_columns().items() if column.undefined]
    # An answer may be empty or read "NA": only the scores have missing values.
    responses = pd.read_csv(
        folder / "responses.csv",
        keep_default_na=False,
        na_values={column: [""] for column in undefined},
    )
    others = [pd.read_csv(folder / name) for name in (TABLES if current else EARLIER_TABLES)[1:]]
    tables = [
        t.assign(angle_deg=t["angle_deg"].astype(float).map(reduced)) for t in (responses, *others)
    ]
    config = RunConfig.from_json(identity["config"])
    calibration = Calibration.load(folder / "calibration")
    run = Run(config, calibration, identity["activations"], tables[0], tables[1])
    if not current:
        return run
    return replace(run, dial=tables[2], choices=tables[3], verdict=told["verdict"])


def score_by_angle(responses: pd.DataFrame) -> pd.DataFrame:
    """One row per angle: refusal rate of each class with its 95 % Wilson interval, and coherence.

    ``compression_ratio``, ``repetition`` and ``non_latin_share`` are means over the answers to the
    positive class; answers too short for a score are left out of its mean. Where the responses have
    them there are also, of each class, ``refusal_score``, ``opening_mass``, ``perplexity``,
    ``collapsed`` and the means over its texts, as ``refusal_score_positive`` and so on, and
    ``collapsed`` of both.
    """
    rows = []
    for angle, group in responses.groupby("angle_deg", sort=True):
        row: dict[str, float] = {"angle_deg": cast(float, angle)}
        for label in PROMPT_CLASSES:
            refused = group.loc[group["prompt_class"] == label, "refused"]
            row[f"refusal_{label}"] = float(refused.mean())
            low, high = wilson_interval(int(refused.sum()), len(refused))
            row[f"refusal_{label}_low"], row[f"refusal_{label}_high"] = low, high
            row[f"n_{label}"] = len(refused)
            of_class = group[group["prompt_class"] == label]
            if "collapsed" in group:
                for column in (*BY_CLASS, *COHERENCE):
                    row[f"{column}_{label}"] = float(of_class[column].mean())
        if "collapsed" in group:
            row["collapsed"] = float(group["collapsed"].mean())
        positive = group[group["prompt_class"] == "positive"]
        for column in COHERENCE:
            row[column] = float(positive[column].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def is_finished(run_dir: Path) -> bool:
    """Whether a run has its tables, the last of which is written when all the rest is.

    Raises:
        UserError: what :func:`run_identity` says.
    """
    sealed = run_identity(run_dir)["format"] != UNSEALED
    return (run_dir / ("tables.json" if sealed else EARLIER_TABLES[-1])).exists()


def run_identity(run_dir: Path) -> dict[str, Any]:
    """What a run says of itself, finished or not.

    Returns:
        ``format``, ``config``, ``dataset`` (name and digest), ``ss_lens`` (the version),
        ``activations`` (keys of ``train`` and ``test``), ``started``.

    Raises:
        UserError: there is no run, it is damaged, or of a format that this version does not read.
    """
    found = read_json(run_dir / "run.json", "run (run.json)")
    known = found.get("format") if isinstance(found, dict) else None
    if known not in (FORMAT, *EARLIER):
        raise UserError(
            f"the run at {run_dir} has format {known}, this version reads {FORMAT}; run it again."
        )
    return _identity(run_dir / "run.json")


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
    if known.get("format") in EARLIER:
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


def _check_tables(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What ``tables.json`` says, once the tables are those that it was written beside."""
    remedy = "start `ss-lens run` on it again, which makes them from the answers that it keeps"
    told = read_sealed_json(folder / "tables.json", "list of tables (tables.json)", remedy=remedy)
    for name in names:
        path = folder / name
        if not path.exists() or sha256_of_file(path) != told.get(name):
            raise UserError(
                f"{path} is missing or was changed since the run (its checksum differs); {remedy}."
            )
    return told


def _responses(
    bench: Workbench, cells: CellStore, arm: Arm, angles_deg: Sequence[float], config: RunConfig
) -> pd.DataFrame:
    """The answers to the test prompts with all scores, computed a few prompts at a time."""
    groups = [CellGroup(arm, "test", label, tuple(angles_deg)) for label in PROMPT_CLASSES]
    sizes, tables = [len(bench.setting(group).prompts) for group in groups], []
    with progress_bar(sum(sizes), "answer", "prompt") as bar:
        for group, n_prompts in zip(groups, sizes, strict=True):
            label = group.prompt_class
            shorten = label == "positive" and not config.keep_answers
            for start in range(0, n_prompts, PROMPTS_PER_CHUNK):
                setting = bench.setting(group, slice(start, start + PROMPTS_PER_CHUNK))
                rows = scored_answers(setting, angles_deg, cells, shorten=shorten, perplexity=True)
                rows = rows.assign(prompt_index=rows["prompt_index"] + start)
                rows.insert(len(ROW) + 1, "prompt_class", label)
                tables.append(rows)
                bar.update(len(setting.prompts))
    table = pd.concat(tables, ignore_index=True)
    table["collapsed"] = collapse(table, COLLAPSE)["collapsed"]
    named = [({"way": METHOD, "draw": 0}, group) for group in groups]
    passes = one_pass(bench, cells, named)[[*ROW, "prompt_class", *BY_CLASS[:2]]]
    return table.merge(passes, on=[*ROW, "prompt_class"], validate="1:1")
