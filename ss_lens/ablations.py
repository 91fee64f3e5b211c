"""The ablation table: the full method against variants that each lack one part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from ss_lens.angle_choice import AngleCriterion
from ss_lens.arms import ARM_COLUMNS, Arm
from ss_lens.cell_store import read_table, write_table
from ss_lens.checks import check_whole
from ss_lens.comparisons import compare
from ss_lens.errors import UserError
from ss_lens.files import atomic_path, read_json, write_json
from ss_lens.scoring.coherence import collapse
from ss_lens.store import Store
from ss_lens.sweep_config import SEED, Grid, Split, SweepConfig
from ss_lens.sweeps import SweepResult, run_sweep

FULL = "full method"
OWN, SAME = "own angle", "the full method's angle"
METRICS = (
    *("refusal_score", "refused", "perplexity", "repetition", "compression_ratio"),
    *("kl_mean", "collapsed"),
)
EIGHT_ANGLES = tuple(float(angle) for angle in range(0, 360, 45))
CRITERION = AngleCriterion(
    score="refusal_score",
    goal="minimise",
    max_perplexity=20,
    max_repetition=0.3,
    max_collapsed=0.1,
)
"""Least refusal of harmful prompts among the angles with coherent answers."""
FORMAT = 1

_SAME_SITES = "the full method's sites"
VARIANTS: Mapping[str, Mapping[str, str]] = {
    FULL: {},
    "set_angle, norm not kept": {"operator": "SetAngle"},
    "rotate_to (SAS)": {"operator": "RotateTo"},
    "rotate_to_if_aligned (AAS)": {"operator": "RotateToIfAligned"},
    "all sites": {"selection": "uniform"},
    "rotate_to, all sites": {"operator": "RotateTo", "selection": "uniform"},
    "random sites": {"selection": f"RandomSites(seed={SEED})"},
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
        draws: how many seeds of each variant that is drawn.
        workers: processes that share the work.
    """

    model: str
    dataset: str = "refusal"
    angles_deg: tuple[float | int, ...] = EIGHT_ANGLES
    dev: int = 16
    test: int = 24
    seed: int = 0
    draws: int = 5
    max_new_tokens: int = 48
    device: str = "auto"
    dtype: str = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        check_whole("draws", self.draws, at_least=1)
        check_whole("workers", self.workers, at_least=1)
        _ = self.sweep([self.grid(FULL)])  # rejects what a sweep rejects

    def grid(self, variant: str, sites: str = "site", angle: float | None = None) -> Grid:
        """The variant's part of the sweep; ``sites`` are the full method's, as a selection."""
        fields: dict[str, Any] = {"labels": True, **VARIANTS[variant]}
        if fields.get("selection") == _SAME_SITES:
            fields["selection"] = sites
        drawn = fields["labels"] == "shuffled" or any(SEED in str(text) for text in fields.values())
        fields["seed"] = tuple(range(self.draws)) if drawn else 0
        fields["angles_deg"] = self.angles_deg if angle is None else angle
        return Grid(model=(self.model,), dataset=(self.dataset,), **fields)

    def sweep(self, grids: list[Grid], *, choose: bool = True) -> SweepConfig:
        """The grids measured: on dev and at the chosen angles on test, or on test alone."""
        return SweepConfig(
            grid=tuple(grids),
            split=Split(dev=self.dev, test=self.test, seed=self.seed),
            parts=("dev",) if choose else ("test",),
            choose=CRITERION if choose else None,
            max_new_tokens=self.max_new_tokens,
            device=self.device,
            dtype=self.dtype,
            cluster="local" if self.workers > 1 else None,
            workers=self.workers,
        )


@dataclass(frozen=True, eq=False)
class AblationResult:
    """A finished ablation.

    Attributes:
        table: :func:`ss_lens.comparisons.compare` on test, with ``at`` in front: each variant at
            its ``own angle``, chosen on dev, and at ``the full method's angle``. Besides its
            columns ``angles_deg`` and ``n_sites``, one number per draw, separated by commas.
        dev: the dev rows of the sweep that the angles were chosen on, with their ``variant``.
        problems: a row per draw that has no answers, and why: not calibrated, or no admissible
            angle.
    """

    config: AblationConfig
    table: pd.DataFrame
    dev: pd.DataFrame
    problems: pd.DataFrame


def run_ablations(
    config: AblationConfig, folder: Path | str, *, store: Store | None = None
) -> AblationResult:
    """Measure all variants; stopped at any moment, the same call goes on from there.

    Every variant's angle is chosen on dev alone: least refusal of harmful prompts where at most a
    tenth of the answers has collapsed (:data:`CRITERION`). Test is measured at the chosen angle and
    at the full method's, and nowhere else.

    Args:
        config: what to measure.
        folder: of the sweep; the ablation's own files are in ``folder/ablations``.
        store: of activations; ``None`` is the user's store.

    Raises:
        UserError: the full method cannot be calibrated or has no admissible angle, or what
            :func:`ss_lens.sweeps.run_sweep` raises.
    """
    full = run_sweep(config.sweep([config.grid(FULL)]), folder, store=store)
    angle = full.choices[0].choice.angle_deg
    if angle is None:
        raise UserError(
            f"the full method has {full.choices[0].choice}; there is nothing to compare with. Give "
            "other angles."
        )
    sites = f"Explicit(sites={full.groups['steered_sites'].iloc[0]!r})"
    grids = {variant: config.grid(variant, sites) for variant in VARIANTS}
    own = run_sweep(config.sweep([*grids.values()]), folder, store=store)
    at_angle = [config.grid(variant, sites, angle) for variant in VARIANTS]
    same = run_sweep(config.sweep(at_angle, choose=False), folder, store=store)
    variant_of = {arm: name for name, grid in grids.items() for arm in grid.arms()}
    tables = []
    for at, swept in ((OWN, own), (SAME, same)):
        tables.append(_compared(swept, variant_of, config.seed))
        tables[-1].insert(0, "at", at)
    dev = _named(own.table.query("part == 'dev'"), variant_of)
    result = AblationResult(
        config, pd.concat(tables, ignore_index=True), dev, _problems(own, variant_of)
    )
    _save(result, Path(folder) / "ablations")
    return result


def load_ablations(folder: Path | str) -> AblationResult:
    """What :func:`run_ablations` finished in ``folder``.

    Raises:
        UserError: none there, not finished, damaged, or of another format.
    """
    place = Path(folder) / "ablations"
    values = read_json(place / "ablations.json", "ablation (ablations/ablations.json)")
    if values.get("format") != FORMAT:
        raise UserError(
            f"the ablation at {folder} has format {values.get('format')}, this version reads "
            f"{FORMAT}; run `ss-lens ablate` again."
        )
    tables = {name: read_table(place / f"{name}.parquet") for name in _TABLES}
    if any(table is None for table in tables.values()):
        raise UserError(
            f"the ablation at {place} is damaged; run `ss-lens ablate` again, which is quick."
        )
    fields = {**values["config"], "angles_deg": tuple(values["config"]["angles_deg"])}
    return AblationResult(AblationConfig(**fields), **cast("dict[str, pd.DataFrame]", tables))


_TABLES = ("table", "dev", "problems")


def _named(rows: pd.DataFrame, variant_of: Mapping[Arm, str]) -> pd.DataFrame:
    """The rows of a sweep with their ``variant`` and ``draw`` (its seed; 0 where none is)."""
    arms = pd.DataFrame([{**asdict(arm), "variant": name} for arm, name in variant_of.items()])
    arms = arms.astype({"seed": "Int64"})
    arms["draw"] = arms["seed"].fillna(0).astype(int)
    return rows.merge(arms, how="left", on=[*ARM_COLUMNS], validate="m:1")


def _compared(swept: SweepResult, variant_of: Mapping[Arm, str], seed: int) -> pd.DataFrame:
    """The paired comparison on test, with the angles and numbers of sites of each variant."""
    cells = _named(swept.table.query("part == 'test'"), variant_of)
    cells = cells.assign(collapsed=collapse(cells, CRITERION.rule)["collapsed"])
    groups = _named(swept.groups.query("part == 'test'"), variant_of)
    n_sites = groups.groupby(["variant", "draw"])["n_sites"].first()
    angles = cells.groupby(["variant", "draw"])["angle_deg"].first()
    table = compare(cells, METRICS, FULL, seed=seed)
    for name, values in (("n_sites", n_sites), ("angles_deg", angles)):
        texts: dict[str, list[str]] = {}
        for variant, value in zip(values.index.get_level_values("variant"), values, strict=True):
            texts.setdefault(variant, []).append(f"{value:g}")
        table.insert(1, name, [", ".join(texts[variant]) for variant in table["variant"]])
    return table


def _problems(swept: SweepResult, variant_of: Mapping[Arm, str]) -> pd.DataFrame:
    groups = _named(swept.groups, variant_of).drop_duplicates(["variant", "draw"])
    failed = groups.query("problem.notna()")
    rows = [*zip(failed["variant"], failed["draw"], failed["problem"], strict=True)]
    rows += [
        (variant_of[made.arm], made.arm.seed or 0, str(made.choice))
        for made in swept.choices
        if made.choice.angle_deg is None
    ]
    return pd.DataFrame(rows, columns=["variant", "draw", "problem"]).astype({"draw": int})


def _save(result: AblationResult, place: Path) -> None:
    with atomic_path(place) as temporary:
        temporary.mkdir()
        for name in _TABLES:
            write_table(temporary / f"{name}.parquet", getattr(result, name))
        write_json(
            temporary / "ablations.json", {"format": FORMAT, "config": asdict(result.config)}
        )
