"""A finished ablation: what it holds, how it shows itself, and its files."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import pandas as pd

from ss_lens.core.checks import check_path
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_replaceable, read_json
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.core.shown import card, in_lines, listed
from ss_lens.experiments.ablations import variants
from ss_lens.experiments.ablations.config import AblationConfig
from ss_lens.experiments.ablations.variants import FULL
from ss_lens.experiments.cells import CellStore, read_table, write_table
from ss_lens.experiments.summaries import degrees, first_rows, judges
from ss_lens.judges.agreement.known import refused_by
from ss_lens.scoring.refusal import BY_PHRASES

logger = logging.getLogger(__name__)
FORMAT = 2
EARLIER = 1
"""The format of results in which ``refused`` is by phrases; they are read."""


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
        n_variants = self.table["variant"].nunique()
        return f"Ablation on {self.config.model!r}: {n_variants} variants compared with {FULL!r}"

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


_TABLES = ("table", "scan", "choices", "problems")
FILES = frozenset({"ablations.json", *(f"{name}.parquet" for name in _TABLES)})


def save(result: AblationResult, place: Path) -> None:
    """Write the files of a result into ``place``, all at once."""
    measures = result.config.measures
    asked = variants.CRITERION if measures.is_refusal else variants.criterion(measures)
    said = {"format": FORMAT, "config": result.config.as_json(), "criterion": asdict(asked)}
    if result.shown_by:
        said["shown_by"] = result.shown_by
    with CellStore(place.parent).exclusive():
        check_replaceable(place, FILES, "result of an ablation")
        with atomic_path(place) as temporary:
            temporary.mkdir()
            digests = {
                name: write_table(temporary / f"{name}.parquet", getattr(result, name))
                for name in _TABLES
            }
            write_sealed_json(temporary / "ablations.json", {**said, "tables": digests})
