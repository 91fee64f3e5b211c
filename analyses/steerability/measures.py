"""The slope of a score over the strength of steering, prompt by prompt.

Source: Tan et al., "Analyzing the Generalization and Reliability of Steering Vectors"
(arXiv 2407.12404), who call the slope a prompt's steerability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from analyses.grouped import groups
from ss_lens import UserError
from ss_lens.core.checks import check_one_of
from ss_lens.stats.bootstrap import bca_interval, derive_rng
from ss_lens.stats.intervals import mean_interval

Goal = Literal["raise", "lower"]
PROMPT = "prompt_index"


def measure(
    scores: pd.DataFrame,
    goal: str,
    *,
    score: str = "refusal_score",
    strength: str = "angle_deg",
    by: Sequence[str] = (),
) -> pd.DataFrame:
    """Least-squares slope of each prompt's score over the strengths.

    A slope says something where the score is about linear. The score of a rotation is not, over the
    full circle: give the angles from 0° to the turning point, and look at ``linearity``.

    Args:
        scores: one row per prompt and strength, as of a sweep; every prompt at the same strengths.
        goal: whether more strength should ``raise`` or ``lower`` the score.
        score: its column.
        strength: its column.
        by: columns of what is measured apart: datasets, classes, system prompts.

    Returns:
        One row per prompt: the columns of ``by``, ``prompt_index``, ``prompt`` where it is given,
        ``slope`` per unit of strength, ``change``, the fitted change from the lowest to the highest
        strength, ``toward``, the same with the sign that is positive in the direction of the goal,
        ``wrong_way``, whether that is negative, ``linearity``, the R² of the fit (NaN where the
        score does not change at all), ``at_lowest``, the fitted score at the lowest strength, and
        ``n_strengths``.

    Raises:
        UserError: an unknown goal or column, one strength or one prompt alone, a prompt that lacks
            a strength or has it twice, or a score that is not finite.
    """
    check_one_of("goal", goal, ("raise", "lower"))
    needed = (*by, PROMPT, strength, score)
    if missing := [name for name in needed if name not in scores]:
        raise UserError(
            f"the scores have no column {', '.join(missing)}; they have "
            f"{', '.join(map(str, scores.columns))}. Give a row per prompt and strength."
        )
    sign, parts = {"raise": 1.0, "lower": -1.0}[goal], []
    for place, rows in groups(scores, by):
        wide, strengths = _wide(rows, strength, score)
        slope, start, linearity = _fitted(wide.to_numpy(dtype=float), strengths)
        change = slope * (strengths[-1] - strengths[0])
        part = pd.DataFrame(dict(zip(by, place, strict=True)), index=wide.index)
        part[PROMPT] = wide.index
        if "prompt" in rows:
            part["prompt"] = rows.drop_duplicates(PROMPT).set_index(PROMPT)["prompt"]
        parts.append(
            part.assign(
                slope=slope,
                change=change,
                toward=sign * change,
                wrong_way=sign * change < 0,
                linearity=linearity,
                at_lowest=start,
                n_strengths=len(strengths),
            )
        )
    return pd.concat(parts, ignore_index=True)


def summarise(slopes: pd.DataFrame, *, by: Sequence[str] = (), seed: int = 0) -> pd.DataFrame:
    """Mean, spread and share of the wrong way of the slopes of :func:`measure`.

    Args:
        slopes: one row per prompt.
        by: columns of what is summarised apart.
        seed: of the bootstrap over prompts.

    Returns:
        One row per group of ``by``: ``n`` prompts; the mean ``toward`` with its BCa interval
        ``low``, ``high``; the standard deviation ``spread`` with ``spread_low``, ``spread_high``
        (NaN for two prompts);
        the share ``wrong_way`` with its Wilson interval ``wrong_low``, ``wrong_high``; the median
        ``linearity``.

    Raises:
        UserError: a group of one prompt, which has no spread.
    """
    rows = []
    for place, group in groups(slopes, by):
        if len(group) < 2:
            raise UserError(
                f"the spread over prompts needs at least 2 of them; got {len(group)}"
                f"{f' of {place}' if by else ''}. Measure more prompts."
            )
        values = group["toward"].to_numpy(dtype=float)
        low, high = mean_interval(group["toward"], derive_rng(seed, "steerability", *place))
        spread_low, spread_high = _spread_interval(values, derive_rng(seed, "spread", *place))
        wrong = mean_interval(group["wrong_way"].astype(bool), derive_rng(seed))
        rows.append(
            {
                **dict(zip(by, place, strict=True)),
                **{"n": len(group), "toward": float(values.mean()), "low": low, "high": high},
                "spread": float(_deviation(values)),
                **{"spread_low": spread_low, "spread_high": spread_high},
                "wrong_way": float(group["wrong_way"].mean()),
                **{"wrong_low": wrong[0], "wrong_high": wrong[1]},
                "linearity": float(group["linearity"].median()),
            }
        )
    return pd.DataFrame(rows)


def _spread_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """BCa leaves out each value in turn, and a single one has no deviation."""
    if len(values) < 3:
        return math.nan, math.nan
    found = bca_interval([values], _deviation, rng)
    return float(found.low), float(found.high)


def _deviation(values: np.ndarray, axis: int = -1) -> Any:
    return np.std(values, axis=axis, ddof=1)


def _wide(
    rows: pd.DataFrame, strength: str, score: str
) -> tuple[pd.DataFrame, Float[np.ndarray, "strength"]]:
    """Scores by prompt and ascending strength."""
    if rows.duplicated([PROMPT, strength]).any():
        raise UserError(
            f"a prompt has the same {strength} twice, so it is not told which score is meant; give "
            "the rows of one arm, or name what differs in by=[...]."
        )
    table = rows.pivot(index=PROMPT, columns=strength, values=score).sort_index(axis=1)
    if table.shape[1] < 2 or len(table) < 2:
        raise UserError(
            f"steerability is a slope over strengths and its spread over prompts; got "
            f"{table.shape[1]} strengths of {len(table)} prompts, expected at least 2 of each. "
            "Measure more."
        )
    undefined = int((~np.isfinite(table.to_numpy(dtype=float))).sum())
    if undefined:
        raise UserError(
            f"{undefined} of {table.size} scores are missing, NaN or infinite, so their prompts "
            f"have no slope; expected {score} at every {strength}. Measure them, or drop these "
            "prompts and say how many."
        )
    return table, table.columns.to_numpy(dtype=float)


def _fitted(
    scores: Float[np.ndarray, "prompt strength"], strengths: Float[np.ndarray, "strength"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope, fitted score at the lowest strength, and R² of each row's straight line."""
    x = strengths - strengths.mean()
    y = scores - scores[:, :1]  # so that scores without a change are exactly that
    y -= y.mean(axis=1, keepdims=True)
    slope = y @ x / (x @ x)
    total = (y**2).sum(axis=1)
    left = ((y - slope[:, None] * x) ** 2).sum(axis=1)
    linearity = np.where(total > 0, 1 - left / np.where(total > 0, total, 1.0), np.nan)
    return slope, scores.mean(axis=1) + slope * x[0], linearity
