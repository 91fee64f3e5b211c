"""Readiness to show a behaviour: log-odds between openings or choices, without generation."""

from __future__ import annotations

import pandas as pd

from ss_lens.core.errors import UserError
from ss_lens.generation.angle_batch import sweep_first_logits
from ss_lens.scoring.behaviours.openings import column_names, first_tokens, log_odds, resolved
from ss_lens.scoring.registry import ROW, Column, Score, ScoreInput


def _measured(given: ScoreInput) -> pd.DataFrame:
    openings = given.openings
    if openings is None:
        raise UserError(
            "behaviour_score got no openings or choices, expected those of a behaviour; name one "
            "with behaviour: FILE.yaml that has them, or leave the score out."
        )
    openings.oriented(given.prompts)
    table = sweep_first_logits(
        given.model,
        given.calibration,
        given.operator,
        given.prompts,
        given.angles_deg,
        log_odds([first_tokens(given.model, pair) for pair in openings.pairs]),
        column_names(len(openings.pairs)),
        given.batch_rows,
        chat=given.chat,
        lower=given.lower,
    )
    found = resolved(table, table["prompt"].tolist(), openings)
    return table[[*ROW]].assign(behaviour_score=found["score"], behaviour_mass=found["mass"])


SCORE = Score(
    name="behaviour_score",
    columns=(Column("behaviour_score", "score"), Column("behaviour_mass")),
    needs="prompts",
    measure=_measured,
    place=2,
    on_request=True,
)
