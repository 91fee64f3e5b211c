"""What the effects of single sites come to, in sentences made from their table."""

from __future__ import annotations

import pandas as pd

from analyses.site_effects.conditions import ALL, CLASSES, LEFT_OUT, ONLY, RANDOM


def findings(table: pd.DataFrame) -> list[str]:
    """What the table of :func:`analyses.site_effects.measure` says."""
    return [said for label in CLASSES for said in _of_class(table, label)]


def _of_class(table: pd.DataFrame, label: str) -> list[str]:
    rows = table.query("prompt_class == @label")
    of_kind = {str(kind): part for kind, part in rows.groupby("kind")}
    whole, alone, left_out = of_kind[ALL].iloc[0], of_kind[ONLY], of_kind[LEFT_OUT]
    largest = [
        f"{row['site']} {row['effect']:+.2f}"
        for row in alone.reindex(alone["effect"].abs().nlargest(3).index).to_dict("records")
    ]
    many = "s" if whole["n"] > 1 else ""
    # One prompt has no interval.
    between = f" [{whole['low']:+.2f}, {whole['high']:+.2f}]" if many else ""
    said = [
        f"On {whole['n']} {label} prompt{many} all {len(alone)} sites change the score by "
        f"{whole['effect']:+.2f} nats{between}; alone, they "
        f"change it by {alone['effect'].sum():+.2f} in sum, most of all {', '.join(largest)}.",
        f"Each adds to the others between {left_out['effect'].min():+.2f} and "
        f"{left_out['effect'].max():+.2f} nats, {left_out['effect'].sum():+.2f} in sum.",
    ]
    if RANDOM in of_kind:
        control = of_kind[RANDOM]["effect"]
        outside = (alone["effect"] < control.min()) | (alone["effect"] > control.max())
        said.append(
            f"In random planes single sites change it by {control.min():+.2f} to "
            f"{control.max():+.2f} ({len(control)} of them); {outside.sum()} of {len(alone)} "
            "sites lie outside of that in the calibration's plane."
        )
    return said
