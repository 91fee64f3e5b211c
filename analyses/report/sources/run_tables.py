"""The small tables of a main job: scores at the chosen angles, and how these were chosen."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analyses.report.contents import Table
from ss_lens.behaviours.measures import REFUSAL, Measures

_COHERENCE = {
    "perplexity": "perplexity",
    "repetition": "repetition",
    "compression_ratio": "compression",
}


def score_table(scores: pd.DataFrame, measures: Measures = REFUSAL) -> Table:
    """One row per angle and class; refusal, or another behaviour, with its 95 % Wilson interval."""
    rows = []
    for row in scores.to_dict("records"):
        for label, word in measures.words.items():
            angle = "unsteered" if row["angle_deg"] == 0 else f"{row['angle_deg']:g}°"
            cells = {
                "angle": angle,
                "prompts": f"{word} ({row[f'n_{label}']:g})",
                f"{measures.shown} [95 %]": rate(row, label, measures.rate),
                "score (nats)" if measures.mass else "score": _signed(
                    row.get(f"{measures.score}_{label}")
                ),
                "opening mass": _text(row.get(f"opening_mass_{label}")),
                "collapsed": _text(row.get(f"collapsed_{label}")),
            }
            cells |= {word: _text(row.get(f"{name}_{label}")) for name, word in _COHERENCE.items()}
            rows.append(cells)
    return Table(
        "Answers to the test prompts",
        "At the angles that dev chose. Perplexity is under the unsteered model; it, repetition and "
        "compression are means over the answers that are long enough to have them.",
        pd.DataFrame(rows),
    )


def choice_table(choices: pd.DataFrame, measures: Measures = REFUSAL) -> tuple[Table, ...]:
    """The angles that were tried on dev for each sense; none in runs of earlier versions."""
    if choices.empty:
        return ()
    rows = [
        {
            "sense": row["sense"],
            "angle": f"{row['angle_deg']:g}°",
            "dev score (nats)" if measures.mass else "dev score": _signed(row["score"]),
            "collapsed": _text(row["collapsed"]),
            "chosen": "chosen" if row["chosen"] else "too much text collapsed",
            **({"of resamples": f"{row['share']:.0%}"} if "share" in row else {}),
        }
        for row in choices.to_dict("records")
    ]
    caption = "From the best score on dev on, until few enough of the dev answers collapse."
    if "share" in choices:
        caption += (
            " Of resamples: the share of the resamples of dev's prompts in which the angle has the "
            "best score of those that are not ruled out."
        )
    return (Table("Choice of the angles", caption, pd.DataFrame(rows)),)


def rate(row: dict[Any, Any], label: str, stem: str = "refusal") -> str:
    """The rate of a behaviour with its interval; a dash where no answer has a value."""
    values = [row[f"{stem}_{label}{end}"] for end in ("", "_low", "_high")]
    return "–" if any(map(math.isnan, values)) else "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def _text(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:+.1f}".replace("-", "−")
