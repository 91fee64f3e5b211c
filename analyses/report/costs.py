"""What a turn costs: the text it breaks, and how far it moves the prompts that it should not."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.report.contents import Contents

FORCE, TEXT = "refusal_score", "opening_mass"


def against_text(contents: Contents) -> pd.DataFrame | None:
    """Refusal score beside opening mass for each curve of harmful prompts, at each angle.

    Returns:
        ``series``, ``angle_deg``, ``x`` (the score), ``y`` (the opening mass), and ``on_front``,
        whether no other point has both a lower score and at least its mass (or the same score and
        more mass). ``None`` where the two were not measured.
    """
    if not {FORCE, TEXT} <= {measure.column for measure in contents.measures}:
        return None
    harmful = [one.name for one in contents.series if one.prompt_class == "positive"]
    rows = contents.curves.loc[contents.curves["series"].isin(harmful)]
    rows = rows.filter(["series", "angle_deg", FORCE, TEXT]).dropna()
    if rows.empty:
        return None
    points = rows.rename(columns={FORCE: "x", TEXT: "y"}).reset_index(drop=True)
    return points.assign(on_front=on_front(points["x"].to_numpy(), points["y"].to_numpy()))


def on_front(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which points no other beats: none is as good in both, and better in one.

    >>> on_front(np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.5, 0.9, 0.4, 0.9])).tolist()
    [True, True, False, False]
    """
    as_good = (low[None] <= low[:, None]) & (high[None] >= high[:, None])
    better = (low[None] < low[:, None]) | (high[None] > high[:, None])
    return ~np.any(as_good & better, axis=1)


def entanglement(contents: Contents) -> pd.DataFrame | None:
    """The method's leading measure on harmful prompts (``x``) and on harmless ones (``y``).

    Returns:
        One row per ``angle_deg`` at which both were measured; ``None`` without any.
    """
    roles = {one.role: one.name for one in reversed(contents.series)}
    if not contents.measures or not {"method", "harmless"} <= roles.keys():
        return None
    column = contents.measures[0].column
    sides = [
        contents.curves.loc[contents.curves["series"] == roles[role], ["angle_deg", column]]
        for role in ("method", "harmless")
    ]
    both = sides[0].merge(sides[1], on="angle_deg", suffixes=("_x", "_y"), validate="1:1").dropna()
    if both.empty:
        return None
    return both.rename(columns={f"{column}_x": "x", f"{column}_y": "y"}).sort_values("angle_deg")
