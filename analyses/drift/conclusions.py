"""What drift comes to, in sentences made from its tables."""

from __future__ import annotations

import pandas as pd

from analyses import null_bands, style
from analyses.drift.geometry import BETWEEN, WITHIN
from analyses.grouped import groups


def findings(geometry: pd.DataFrame, dial: pd.DataFrame) -> list[str]:
    """How far planes and sites are apart, and what a foreign calibration turns."""
    said = []
    inside = geometry.loc[geometry["kind"] == WITHIN].set_index("first")["angle_1_deg"].to_dict()
    for row in geometry.loc[geometry["kind"] == BETWEEN].to_dict("records"):
        halves = [f"{inside[n]:.0f}°" for n in (row["first"], row["second"]) if n in inside]
        beside = f" (halves of one source: {' and '.join(halves)})" if halves else ""
        said.append(
            f"{row['first']} and {row['second']}: principal angles {row['angle_1_deg']:.0f}° and "
            f"{row['angle_2_deg']:.0f}°{beside}, directions {row['b1_angle_deg']:.0f}° apart; "
            f"random planes come no nearer than {row['random_1_deg']:.0f}° in 95 % of draws; "
            f"{row['n_both']} sites in common of {row['n_first']} and {row['n_second']}."
        )
    random = null_bands.null_rows(dial)
    for (source,), rows in groups(dial.loc[~random], ["measured_on"]):
        own = rows.loc[rows["calibrated_on"] == source]
        reference = (own if len(own) else rows).sort_values("change").iloc[0]
        at_angle = rows.loc[rows["angle_deg"] == reference["angle_deg"]]
        parts = [
            f"{row['calibrated_on']} {row['change']:+.2f} [{row['change_low']:+.2f}, "
            f"{row['change_high']:+.2f}]{' (low opening mass)' * _says_little(row)}"
            for row in at_angle.to_dict("records")
        ]
        text = (
            f"On {reference['n']} prompts of {source}, at {reference['angle_deg']:g}°, the score "
            f"changes by (nats, by source of the calibration): {'; '.join(parts)}."
        )
        nulls = dial.loc[random & (dial["measured_on"] == source)]
        for row in nulls.loc[nulls["angle_deg"] == reference["angle_deg"]].to_dict("records"):
            text += (
                f" {row['draws']} random planes of equal energy change it by {row['change']:+.2f}, "
                f"95 % of them by {row['change_low']:+.2f} to {row['change_high']:+.2f}."
            )
        said.append(text)
    return said


def _says_little(row: dict) -> bool:
    return row["opening_mass"] < style.LOW_MASS
