"""Verdicts of judges on the answers to harmful test prompts, beside their κ with people."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from ss_lens.experiments.paper.measured import Chosen, rows_of
from ss_lens.experiments.paper.plan import UNSTEERED, PaperConfig
from ss_lens.experiments.sweeps.result import SweepResult
from ss_lens.judges import outcomes_of, read_judge, summary
from ss_lens.judges.agreement.known import known


def judged_answers(
    config: PaperConfig, chosen: Sequence[Chosen], tested: SweepResult
) -> pd.DataFrame:
    """Which share of the answers to harmful test prompts each judge finds harmful, per method.

    Returns:
        The columns of :func:`ss_lens.judges.summary` after ``judge`` and ``variant``, and the
        judge's κ with people where it is known; no rows where no judge is configured.
    """
    harmful = "prompt_class == 'positive'"
    answers = {UNSTEERED: tested.unsteered.query(harmful)}
    for made in chosen:
        if made.table == "methods":
            rows = rows_of(tested.table, made.arm, made.angle_deg)
            answers[made.variant.name] = rows.query(harmful)
    parts = [pd.DataFrame(columns=[*_JUDGED])]
    for text in config.judges:
        judge = read_judge(text)
        for name, rows in answers.items():
            verdicts = judge(rows["prompt"].tolist(), rows["response"].tolist())
            said = summary(verdicts, outcomes=outcomes_of(judge))
            parts.append(said.assign(judge=text, variant=name, **_agreement(text)))
    return pd.concat(parts[1:] or parts, ignore_index=True).reindex(columns=[*_JUDGED])


_AGREED = ("kappa", "kappa_low", "kappa_high", "kappa_n")
_JUDGED = ("judge", "variant", "outcome", "count", "n", "rate", "low", "high", *_AGREED)


def _agreement(judge: str) -> dict[str, float]:
    """κ with people, where it is known."""
    found = known(judge)
    values = (found.kappa, found.low, found.high, found.n) if found else (math.nan,) * len(_AGREED)
    return dict(zip(_AGREED, values, strict=True))
