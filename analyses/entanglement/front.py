"""The Pareto front of the effect against its costs, and how surely an angle lies on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from analyses.entanglement.measures import CAPABILITY, KL_ROW, OWN, REQUESTS
from ss_lens import UserError
from ss_lens.core.checks import check_one_of
from ss_lens.stats.bootstrap import derive_rng, percentile_interval

N_DRAWS = 2000
COSTS = (KL_ROW, CAPABILITY)


def front(
    items: pd.DataFrame, effect: str, goal: str, *, n_draws: int = N_DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Effect, divergence and capability of each angle; which angles no other one dominates.

    An angle dominates another where it is as good in all of effect, divergence and capability and
    better in one. Items are resampled within each row, all angles together, so that their shares
    of being on the front tell how far the front is decided by the choice of prompts.

    Args:
        items: from :func:`analyses.entanglement.measure`.
        effect: the source of requests whose change is the effect.
        goal: whether it should ``raise`` or ``lower`` the score.
        n_draws: bootstrap draws over items.
        seed: of the bootstrap.

    Returns:
        One row per plane and angle: ``effect``, the mean change with the sign that is positive in
        the direction of the goal, ``kl``, and ``capability``, the change of the share of right
        answers (NaN for random planes and where it was not measured), each with ``_low`` and
        ``_high`` (percentile bootstrap); ``on_front`` and ``front_share``, of the draws (NaN for
        random planes); ``beyond_nulls``: whether the effect exceeds that of every random plane at
        this angle (NaN without any).

    Raises:
        UserError: an unknown goal, or a source that was not measured.
    """
    check_one_of("goal", goal, ("raise", "lower"))
    sources = [*dict.fromkeys(items.loc[items["kind"] == REQUESTS, "row"])]
    if effect not in sources:
        raise UserError(
            f"the effect is measured on one of the sources {', '.join(sources)}; got {effect!r}."
        )
    sign = {"raise": 1.0, "lower": -1.0}[goal]
    along = items.loc[(items["row"] == KL_ROW) & items["angle_deg"].notna(), "value"]
    if not along.notna().any():
        raise UserError(
            "no divergence is known, since the unsteered model's answers are empty, and there is "
            "no front without it; expected some text. Take other prompts for free=."
        )
    rng = derive_rng(seed, "front")
    costs = [name for name in COSTS if name in set(items["row"])]
    drawn_items = {
        name: rng.integers(n, size=(n_draws, n))
        for name in (effect, *costs)
        if (n := int(_changes(items, name, OWN).shape[1]))
    }
    rows, means, draws = [], {}, {}
    for plane in dict.fromkeys(items["plane"]):
        for name in (effect, *costs):
            table = _changes(items, name, str(plane))
            if table.empty:
                continue
            values = table.to_numpy(dtype=float) * (sign if name == effect else 1.0)
            means[plane, name] = dict(zip(table.index, np.nanmean(values, axis=1), strict=True))
            drawn = _means(values, drawn_items[name])
            draws[plane, name] = dict(zip(table.index, drawn, strict=True))
    for plane in dict.fromkeys(items["plane"]):
        for angle in means[plane, effect]:
            row: dict[str, object] = {"plane": plane, "angle_deg": angle}
            for label, name in (("effect", effect), ("kl", KL_ROW), ("capability", CAPABILITY)):
                found = means.get((plane, name), {}).get(angle, math.nan)
                low, high = math.nan, math.nan
                if (plane, name) in draws:
                    low, high = map(float, percentile_interval(draws[plane, name][angle]))
                row |= {label: float(found), f"{label}_low": low, f"{label}_high": high}
            rows.append(row)
    table = pd.DataFrame(rows)
    return _with_front(table, means, draws, (effect, *costs))


def undominated(gains: Float[np.ndarray, "point objective"]) -> Bool[np.ndarray, "point"]:
    """Which points no other point dominates; larger is better in every objective.

    >>> undominated(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])).tolist()
    [True, True, False, True]
    """
    at_least = (gains[:, None] >= gains[None]).all(axis=2)
    better = (gains[:, None] > gains[None]).any(axis=2)
    return np.asarray(~(at_least & better).any(axis=0))


def _changes(items: pd.DataFrame, row: str, plane: str) -> pd.DataFrame:
    """Changes from the unsteered model, ``[angle, item]``; without items of no value somewhere."""
    here = (items["row"] == row) & (items["plane"] == plane) & items["angle_deg"].notna()
    chosen = items.loc[here]
    wide = chosen.pivot(index="angle_deg", columns="item", values="value")
    own = items.loc[(items["row"] == row) & (items["plane"] == OWN) & items["angle_deg"].isna()]
    changes = wide - own.set_index("item")["value"].reindex(wide.columns)
    return changes.dropna(axis="columns")


def _means(
    values: Float[np.ndarray, "angle item"], drawn: np.ndarray
) -> list[Float[np.ndarray, "draw"]]:
    """Of each angle, the means over resampled items; an undefined item does not count."""
    return [np.nanmean(row[drawn], axis=1) for row in values]


def _with_front(
    table: pd.DataFrame,
    means: dict[tuple[object, str], dict[float, float]],
    draws: dict[tuple[object, str], dict[float, np.ndarray]],
    names: Sequence[str],
) -> pd.DataFrame:
    own = table["plane"] == OWN
    angles = table.loc[own, "angle_deg"].tolist()
    signs = {KL_ROW: -1.0}
    gains = np.array([[signs.get(n, 1.0) * means[OWN, n][a] for n in names] for a in angles])
    resampled = np.array([[signs.get(n, 1.0) * draws[OWN, n][a] for n in names] for a in angles])
    shares = np.mean([undominated(one) for one in np.moveaxis(resampled, 2, 0)], axis=0)
    table = table.assign(on_front=False, front_share=math.nan, beyond_nulls=None)
    table.loc[own, "on_front"] = undominated(gains)
    table.loc[own, "front_share"] = shares
    nulls = table[~own].groupby("angle_deg")["effect"].agg("max")
    if len(nulls):
        highest = table.loc[own, "angle_deg"].map(nulls)
        table.loc[own, "beyond_nulls"] = (table.loc[own, "effect"] > highest).to_numpy()
    return table
