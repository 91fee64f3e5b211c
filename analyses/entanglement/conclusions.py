"""What an entanglement report says, in sentences made from its tables."""

from __future__ import annotations

import math

import pandas as pd

from analyses import style
from analyses.entanglement.measures import MASS, OWN


def findings(matrix: pd.DataFrame, front: pd.DataFrame) -> list[str]:
    """The angles on the front with their costs, what moved there, and where scores say little."""
    said = []
    own = front.loc[front["plane"] == OWN]
    for row in own.loc[own["on_front"]].sort_values("kl").to_dict("records"):
        angle = row["angle_deg"]
        moved = matrix.loc[
            (matrix["plane"] == OWN)
            & (matrix["angle_deg"] == angle)
            & ((matrix["change_low"] > 0) | (matrix["change_high"] < 0))
        ]
        names = ", ".join(
            f"{one['row']} {one['change']:+.2f}"
            for one in moved.to_dict("records")
            if one["kind"] != MASS
        )
        capability = row["capability"]
        cost = "" if math.isnan(capability) else f", capability {capability:+.0%}"
        null = {True: "beyond", False: "within", None: "without"}[row["beyond_nulls"]]
        said.append(
            f"{angle:g}° is on the front ({row['front_share']:.0%} of draws): effect "
            f"{row['effect']:+.2f} nats [{row['effect_low']:+.2f}, {row['effect_high']:+.2f}], "
            f"{null} the random planes, at KL {row['kl']:.3f}{cost}. Beyond doubt there moved: "
            f"{names or 'nothing'}."
        )
    low = matrix.loc[(matrix["kind"] == MASS) & (matrix["mean"] < style.LOW_MASS)]
    low = low.loc[low["plane"] == OWN]
    if len(low):
        named = ", ".join(
            f"{row['row'].removesuffix(': opening mass')} {_at(row['angle_deg'])}"
            for row in low.to_dict("records")
        )
        said.append(f"The opening mass is below {style.LOW_MASS:g}, so scores say little: {named}.")
    return said


def _at(angle: float) -> str:
    return "unsteered" if math.isnan(angle) else f"at {angle:g}°"
