"""Perplexity of answers under the steered model that wrote them, as arXiv 2601.19375 has it."""

from __future__ import annotations

import pandas as pd

from ss_lens.generation.angle_batch import at_angles
from ss_lens.scoring.continuations import answers
from ss_lens.scoring.perplexity import score
from ss_lens.scoring.registry import Column, Score, ScoreInput
from ss_lens.steering.steer import steer


def _of_steered(given: ScoreInput) -> pd.DataFrame:
    """Each answer read again at the angle that it was given at; loops score as fluent."""
    table = given.answers.reset_index(drop=True)
    found = pd.Series(index=table.index, dtype=float)
    for angle in map(float, table["angle_deg"].unique()):
        rows = table.query("angle_deg == @angle")
        texts = (rows["prompt"].tolist(), rows["response"].tolist())
        read = answers(given.model, *texts, given.chat)
        with steer(given.model, given.calibration, at_angles(given.operator, angle)):
            scored = score(given.model, read, given.batch_rows)
        found[rows.index] = scored["perplexity"].to_numpy()
    return pd.DataFrame({"perplexity_steered": found})


SCORE = Score(
    name="perplexity_steered",
    columns=(Column("perplexity_steered", better="lower", undefined=True),),
    needs="answers",
    measure=_of_steered,
    place=35,
    on_request=True,
)
