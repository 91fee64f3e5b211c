"""The ablation table: the full method against variants that each lack one part of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pandas as pd

from ss_lens.activations.store import Store
from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import behaviour_beside_refusal
from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.core.checks import check_is, check_path, check_whole
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_replaceable, read_json
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.core.shown import card, in_lines, listed
from ss_lens.experiments.cells import CellStore, read_table, write_table
from ss_lens.experiments.choose_angle import AngleCriterion, choose_angle, rank_angles
from ss_lens.experiments.config import SEED, Grid, Part, Split, SweepConfig, usual_scores
from ss_lens.experiments.grid import ARM_COLUMNS
from ss_lens.experiments.summaries import degrees, first_rows, judges
from ss_lens.experiments.sweeps.result import SweepResult
from ss_lens.experiments.sweeps.run import run_sweep
from ss_lens.judges.agreement.known import refused_by
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.scoring.coherence import collapse
from ss_lens.scoring.refusal import BY_PHRASES
from ss_lens.scoring.registry import ANSWERS, headings, measured_for
from ss_lens.stats.choice_shares import scan_shares
from ss_lens.stats.paired import compare

logger = logging.getLogger(__name__)
FULL, RANDOM_SITES = "full method", "random sites"
HEADINGS: Mapping[str, str] = {**headings(), "collapsed": "collapsed ↓"}
"""What is compared, and how it is headed: the scores that have a label, and the collapsed share."""
METRICS = tuple(name for name in HEADINGS if name not in ("behaviour_score", "shown"))
"""What is compared where refusal is weakened."""
EIGHT_ANGLES = tuple(float(angle) for angle in range(0, 360, 45))


def criterion(measures: Measures) -> AngleCriterion:
    """The least of a behaviour on its positive prompts among the angles with coherent answers."""
    return AngleCriterion(
        score=measures.score,
        goal="minimise",
        max_perplexity=20,
        max_repetition=0.3,
        max_collapsed=0.1,
    )


CRITERION = criterion(REFUSAL)
"""Least refusal of harmful prompts."""
FORMAT = 2
EARLIER = 1
"""The format of results in which ``refused`` is by phrases; they are read."""

_SAME_SITES = "the full method's sites"
VARIANTS: Mapping[str, Mapping[str, str]] = {
    FULL: {},
    "set_angle, norm not kept": {"operator": "SetAngle"},
    "rotate_to (SAS)": {"operator": "RotateTo"},
    "rotate_to_if_aligned (AAS)": {"operator": "RotateToIfAligned"},
    "all sites": {"selection": "uniform"},
    "rotate_to, all sites": {"operator": "RotateTo", "selection": "uniform"},
    RANDOM_SITES: {"selection": f"RandomSites(seed={SEED})"},
    "first half": {"selection": "Half(which='first')"},
    "second half": {"selection": "Half(which='second')"},
    "random b2": {"plane": f"RandomSecond(seed={SEED})", "selection": _SAME_SITES},
    "random plane": {"plane": f"RandomPlane(seed={SEED})", "selection": _SAME_SITES},
    "shuffled labels": {"labels": "shuffled", "selection": _SAME_SITES},
    "shuffled labels, own sites": {"labels": "shuffled"},
}
"""What each variant changes of the full method; what it does not name stays, the sites too.

``set_angle`` is the ablation of the norm as the paper describes it, ``rotate_to`` (SAS) on the same
sites as it was done. Random sites are as many as the full method's.
"""


@dataclass(frozen=True)
class AblationConfig:
    """What is ablated, and on how many prompts.

    Attributes:
        angles_deg: among which each variant's angle is chosen on dev.
        dev, test: prompts per class to choose on, and to report; the rest is calibrated on.
        seed: of the split, the intervals and the tests.
        draws: how many draws of random sites; of the other random controls half as many.
        workers: processes that share the work.
        chat: what else enters the chat template.
        behaviour: what is weakened in place of refusal: an embedded name or a YAML file. Its
            prompts are used where ``dataset`` is ``refusal``, the default.
    """

    model: str
    dataset: str = "refusal"
    angles_deg: tuple[float | int, ...] = EIGHT_ANGLES
    dev: int = 16
    test: int = 24
    seed: int = 0
    draws: int = 5
    max_new_tokens: int = 32
    device: str = "auto"
    dtype: str = "auto"
    workers: int = 1
    chat: ChatFormat = DEFAULT_FORMAT
    behaviour: str | None = None

    def __post_init__(self) -> None:
        if self.followed is not None and self.dataset == "refusal":
            object.__setattr__(self, "dataset", self.followed.dataset.name)
        check_whole("draws", self.draws, at_least=1)
        check_whole("workers", self.workers, at_least=1)
        check_is("chat", self.chat, (ChatFormat,), "a ChatFormat(system=...)")
        _ = self.sweep([self.grid(FULL)], "dev", self.scanned)  # rejects what a sweep rejects

    @cached_property
    def followed(self) -> Behaviour | None:
        """The behaviour; ``None`` for refusal."""
        return behaviour_beside_refusal(self.behaviour)

    @property
    def measures(self) -> Measures:
        """What the behaviour's columns are called."""
        return REFUSAL if self.followed is None else self.followed.measures

    @property
    def scanned(self) -> tuple[str, ...]:
        """What is measured at all angles on dev."""
        (score,) = {measured_for(self.measures.score)}
        return (ANSWERS, score) if self.measures.mass is None and score != ANSWERS else (score,)

    @property
    def chosen_by(self) -> tuple[str, ...]:
        """What is measured where an angle may be chosen."""
        limits = map(measured_for, criterion(self.measures).rule.limits)
        return tuple(dict.fromkeys((*self.scanned, ANSWERS, *limits)))

    @property
    def tested(self) -> tuple[str, ...]:
        """What is measured on test."""
        return usual_scores(self.followed)

    def draws_of(self, variant: str) -> range:
        """The seeds of a variant; one where nothing is drawn."""
        fields = VARIANTS[variant]
        if fields.get("labels") != "shuffled" and SEED not in "".join(fields.values()):
            return range(1)
        return range(self.draws if variant == RANDOM_SITES else max(1, self.draws // 2))

    def grid(
        self, variant: str, draw: int = 0, sites: str = "site", angle: float | None = None
    ) -> Grid:
        """One draw of a variant; ``sites`` are the full method's, as a selection."""
        fields: dict[str, Any] = {"labels": True, **VARIANTS[variant]}
        if fields.get("selection") == _SAME_SITES:
            fields["selection"] = sites
        fields["angles_deg"] = self.angles_deg if angle is None else angle
        return Grid(model=(self.model,), dataset=(self.dataset,), seed=(draw,), **fields)

    def sweep(self, grids: Iterable[Grid], part: Part, scores: tuple[str, ...]) -> SweepConfig:
        """The grids measured on one part."""
        return SweepConfig(
            grid=tuple(grids),
            split=Split(dev=self.dev, test=self.test, seed=self.seed),
            parts=(part,),
            scores=scores,
            max_new_tokens=self.max_new_tokens,
            device=self.device,
            dtype=self.dtype,
            cluster="local" if self.workers > 1 else None,
            workers=self.workers,
            chat=self.chat,
            behaviour=None if self.followed is None else self.behaviour,
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values; ``chat`` where it is not the default."""
        values = asdict(self)
        if self.followed is None:  # as before there were behaviours
            del values["behaviour"]
        del values["chat"]
        return values if self.chat == DEFAULT_FORMAT else {**values, "chat": self.chat.as_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> AblationConfig:
        chat = ChatFormat.from_json(values.get("chat", {}))
        return cls(**{**values, "angles_deg": tuple(values["angles_deg"]), "chat": chat})


@dataclass(frozen=True, eq=False, repr=False)
class AblationResult:
    """A finished ablation.

    Attributes:
        table: :func:`ss_lens.stats.paired.compare` on test, each variant at its angles. Besides its
            columns ``angles_deg``, ``n_sites`` and ``shares`` (of ``choices``), one number per
            draw, separated by commas.
        scan: refusal scores of the dev prompts at every angle, with ``variant`` and ``draw``.
        choices: a row per variant, draw and angle that was tried on dev, from the best score on:
            ``score``, the share ``collapsed`` of the answers, whether it was ``chosen``, and
            ``share``: in which share of the resamples of dev's prompts it has the best score of
            the angles that are not ruled out by their answers.
        problems: a row per draw that has no answers, and why: not calibrated, or no admissible
            angle.
        refused_by: who says ``refused``, and its measured agreement with people.
        shown_by: the judge that says ``shown``, likewise; empty where no judge does.
    """

    config: AblationConfig
    table: pd.DataFrame
    scan: pd.DataFrame
    choices: pd.DataFrame
    problems: pd.DataFrame
    refused_by: str = field(default_factory=lambda: refused_by(by_phrases=False))
    shown_by: str = ""

    def __repr__(self) -> str:
        return in_lines(self._title, self._facts)

    def _repr_html_(self) -> str:
        return card(self._title, self._facts, first_rows(self.table, ()))

    @property
    def _title(self) -> str:
        variants = self.table["variant"].nunique()
        return f"Ablation on {self.config.model!r}: {variants} variants compared with {FULL!r}"

    @property
    def _facts(self) -> dict[str, str]:
        config = self.config
        differing = self.table.query("p_holm < 0.05").drop_duplicates(["variant", "metric"])
        pairs = [f"{row['variant']}: {row['metric']}" for row in differing.to_dict("records")]
        return {
            "prompts": f"{config.dataset!r}, {config.dev} dev and {config.test} test per class",
            "angles": degrees(config.angles_deg),
            "metrics": listed([*self.table["metric"].unique()], most=6),
            "differ (Holm)": listed(pairs) or "none",
            "without answers": f"{len(self.problems)} draws",
            **judges(self),
        }


def run_ablations(
    config: AblationConfig, folder: Path | str, *, store: Store | None = None
) -> AblationResult:
    """Measure all variants; stopped at any moment, the same call resumes.

    Every variant's angle is chosen on dev alone: the least refusal of harmful prompts (of another
    behaviour, the least of it on its positive ones) among the
    angles at which at most a tenth of the answers of both classes has collapsed
    (:data:`CRITERION`, as :func:`ss_lens.choose_angle` would). Refusal scores are
    measured at all angles, answers from the best angle on until one is admissible. Test is measured
    at the chosen angle and nowhere else.

    Args:
        config: what to measure.
        folder: of the sweep; the ablation's own files are in ``folder/ablations``.
        store: of activations; ``None`` is the user's store.

    Raises:
        UserError: the full method cannot be calibrated or has no admissible angle, or what
            :func:`ss_lens.run_sweep` raises.
    """

    def swept(grids: Mapping[Item, Grid], part: Part, scores: tuple[str, ...]) -> SweepResult:
        return run_sweep(config.sweep(grids.values(), part, scores), folder, store=store)

    check_is("config", config, (AblationConfig,), "an AblationConfig(model=...)")
    check_path("folder", folder)
    check_replaceable(Path(folder) / "ablations", _FILES, "result of an ablation")
    asked = CRITERION if config.measures.is_refusal else criterion(config.measures)
    full = swept({(FULL, 0): config.grid(FULL)}, "dev", config.scanned)
    sites = f"Explicit(sites={full.groups['steered_sites'].iloc[0]!r})"
    items = [(variant, draw) for variant in VARIANTS for draw in config.draws_of(variant)]
    grids = {item: config.grid(*item, sites) for item in items}
    scanned = swept(grids, "dev", config.scanned)
    scan = _named(scanned.table, grids)
    ranks = {item: rank_angles(rows, asked) for item, rows in _by_item(scan).items()}
    failed = _named(scanned.groups, grids).query("problem.notna()")
    problems = {(r["variant"], r["draw"]): r["problem"] for r in failed.to_dict("records")}
    tried: list[dict[str, Any]] = []
    pending, rank = set(ranks), 0
    while pending:
        at_rank = {item: config.grid(*item, sites, ranks[item][rank]) for item in sorted(pending)}
        answered = _named(swept(at_rank, "dev", config.chosen_by).table, at_rank)
        for item, rows in _by_item(answered).items():
            tried.append(_verdict(item, rows, asked))
            if tried[-1]["chosen"]:
                pending.remove(item)
        rank += 1
        for item in [item for item in pending if rank == len(ranks[item])]:
            pending.remove(item)
            problems[item] = f"no admissible angle of {rank}: at each too many answers collapse"
    choices = pd.DataFrame(tried)
    choices["share"] = _shares(choices, scan, asked)
    if (FULL, 0) in problems:
        raise UserError(
            f"the full method has {problems[FULL, 0]}; there is nothing to compare with. Give "
            "other angles."
        )
    chosen = {
        (r["variant"], r["draw"]): config.grid(r["variant"], r["draw"], sites, r["angle_deg"])
        for r in choices.query("chosen").to_dict("records")
    }
    chosen = {item: chosen[item] for item in items if item in chosen}
    tested = swept(chosen, "test", config.tested)
    table = _compared(tested, chosen, choices, config.seed)
    told = _problem_table(problems)
    result = AblationResult(config, table, scan, choices, told, shown_by=tested.shown_by)
    _save(result, Path(folder) / "ablations")
    return result


def load_ablations(folder: Path | str) -> AblationResult:
    """What :func:`run_ablations` finished in ``folder``.

    Raises:
        UserError: none there, not finished, damaged, or of another format.
    """
    check_path("folder", folder)
    place = Path(folder) / "ablations"
    path, what = place / "ablations.json", "ablation (ablations/ablations.json)"
    found = read_json(path, what)
    known = found.get("format") if isinstance(found, dict) else None
    if known == EARLIER:
        logger.info("the ablation at %s %s; run it again, which is quick", folder, BY_PHRASES)
    elif known != FORMAT:
        raise UserError(
            f"the ablation at {folder} has format {known}, this version reads {EARLIER} and "
            f"{FORMAT}; run `ss-lens ablate` again."
        )
    remedy = "run `ss-lens ablate` again, which is quick"
    unsealed = {"format", "config", "criterion"}  # earlier versions had no digests
    values = read_sealed_json(path, what, unsealed=unsealed, remedy=remedy)
    digests = values.get("tables", dict.fromkeys(_TABLES))
    tables = {name: read_table(place / f"{name}.parquet", digests[name]) for name in _TABLES}
    if any(table is None for table in tables.values()):
        raise UserError(
            f"the ablation at {place} is damaged; run `ss-lens ablate` again, which is quick."
        )
    config = AblationConfig.from_json(values["config"])
    said = {
        "refused_by": refused_by(by_phrases=known == EARLIER),
        "shown_by": values.get("shown_by", ""),  # earlier versions did not say
    }
    return AblationResult(config, **cast("dict[str, pd.DataFrame]", tables), **said)


Item = tuple[str, int]
"""A variant and the number of its draw."""
_TABLES = ("table", "scan", "choices", "problems")
_FILES = frozenset({"ablations.json", *(f"{name}.parquet" for name in _TABLES)})


def _named(rows: pd.DataFrame, grids: Mapping[Item, Grid]) -> pd.DataFrame:
    """The rows of a sweep with their ``variant`` and ``draw``."""
    arms = pd.DataFrame(
        [
            {**asdict(arm), "variant": variant, "draw": draw}
            for (variant, draw), grid in grids.items()
            for arm in grid.arms()
        ]
    )
    arms = arms.astype({"seed": "Int64"})
    return rows.merge(arms, how="left", on=[*ARM_COLUMNS], validate="m:1")


def _by_item(rows: pd.DataFrame) -> dict[Item, pd.DataFrame]:
    places = rows[["variant", "draw"]].drop_duplicates().itertuples(index=False, name=None)
    return {
        (variant, draw): rows.query("variant == @variant and draw == @draw")
        for variant, draw in places
    }


def _verdict(item: Item, rows: pd.DataFrame, asked: AngleCriterion) -> dict[str, Any]:
    """Whether :func:`choose_angle` takes an angle by dev's answers there."""
    choice = choose_angle(rows, asked)
    (tried,) = choice.dev.to_dict("records")
    return {
        "variant": item[0],
        "draw": item[1],
        "angle_deg": tried["angle_deg"],
        "score": tried["score"],
        "collapsed": tried["collapsed"],
        "chosen": choice.angle_deg is not None,
    }


def _shares(choices: pd.DataFrame, scan: pd.DataFrame, asked: AngleCriterion) -> list[float]:
    """Of each row, how often its angle is the variant's best; one that was ruled out is never."""
    found: dict[tuple[Item, float], float] = {}
    for item, rows in _by_item(choices).items():
        here = scan.query("variant == @item[0] and draw == @item[1]")
        shares = scan_shares(
            here,
            asked.score,
            asked.prompt_class,
            lowest=asked.goal == "minimise",
            barred=[*rows.loc[~rows["chosen"], "angle_deg"]],
        )
        found |= {(item, angle): share for angle, share in shares.items()}
    return [
        found.get(((row["variant"], row["draw"]), row["angle_deg"]), 0.0)
        for row in choices.to_dict("records")
    ]


def _compared(
    tested: SweepResult, grids: Mapping[Item, Grid], choices: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """The paired comparison on test, with the angles and numbers of sites of each variant."""
    cells = _named(tested.table, grids)
    cells = cells.assign(collapsed=collapse(cells, CRITERION.rule)["collapsed"])
    n_sites = _named(tested.groups, grids).groupby(["variant", "draw"])["n_sites"].first()
    angles = cells.groupby(["variant", "draw"])["angle_deg"].first()
    own = METRICS if "refusal_score" in cells else HEADINGS
    metrics = [name for name in own if name in cells]
    table = compare(cells, metrics, FULL, seed=seed)
    shares = (
        choices[choices["chosen"]].set_index(["variant", "draw"])["share"].reindex(angles.index)
    )
    for name, values in (("shares", shares), ("n_sites", n_sites), ("angles_deg", angles)):
        texts: dict[str, list[str]] = {}
        for variant, value in zip(values.index.get_level_values("variant"), values, strict=True):
            texts.setdefault(variant, []).append(f"{value:g}")
        table.insert(1, name, [", ".join(texts[variant]) for variant in table["variant"]])
    return table


def _problem_table(problems: Mapping[Item, str]) -> pd.DataFrame:
    rows = [(variant, draw, told) for (variant, draw), told in sorted(problems.items())]
    return pd.DataFrame(rows, columns=["variant", "draw", "problem"]).astype({"draw": int})


def _save(result: AblationResult, place: Path) -> None:
    measures = result.config.measures
    asked = CRITERION if measures.is_refusal else criterion(measures)
    said = {"format": FORMAT, "config": result.config.as_json(), "criterion": asdict(asked)}
    if result.shown_by:
        said["shown_by"] = result.shown_by
    with CellStore(place.parent).exclusive():
        check_replaceable(place, _FILES, "result of an ablation")
        with atomic_path(place) as temporary:
            temporary.mkdir()
            digests = {
                name: write_table(temporary / f"{name}.parquet", getattr(result, name))
                for name in _TABLES
            }
            write_sealed_json(temporary / "ablations.json", {**said, "tables": digests})
