"""Variants of a method in a report: their curves over the angles, and their levels on test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.ablations import turned
from analyses.paper.page import WITHOUT_ANGLE
from analyses.report.contents import DIAL_MEASURES, REFUSAL_CLASSES, Measure, Role, Table
from ss_lens.stats.bootstrap import CONFIDENCE

LEVEL = 0.05
"""Of the p-values after Holm."""


def curves(
    scan: pd.DataFrame, method: str, measures: Sequence[Measure] = DIAL_MEASURES
) -> list[pd.DataFrame]:
    """A table for each variant with more than one angle, of one class of prompts, each curve once.

    Args:
        scan: one row per variant, draw and angle: ``variant``, ``draw``, ``angle_deg``, ``n``, and
            the means over prompts of the dial's measures. Several draws have a range, 2.5 % to
            97.5 % of them.
        method: the variant whose values at 0 degrees are those of the unsteered model.
        measures: what is drawn.
    """
    columns = [measure.column for measure in measures]
    start = scan.loc[(scan["variant"] == method) & (scan["angle_deg"] == 0)]
    parts = []
    for name, rows in turned(scan, columns[0]).groupby("variant", sort=False):
        groups = rows.groupby("angle_deg")
        made = groups.agg(n=("n", "first"), draws=("draw", "size"))
        for column in columns:
            made[column] = groups[column].mean()
            tail = (1 - CONFIDENCE) / 2
            for suffix, share in (("low", tail), ("high", 1 - tail)):
                bound = groups[column].quantile(share)
                made[f"{column}_{suffix}"] = bound.where(made["draws"] > 1)
            own = start[column]
            made[f"{column}_unsteered"] = float(own.iloc[0]) if len(own) else np.nan
        parts.append(made.reset_index().assign(series=str(name)))
    return parts


def role(name: str, drawn: pd.DataFrame, method: str) -> Role:
    """What the curve of a variant is of, by its name and its draws."""
    if name == method:
        return "method"
    of_name = drawn.loc[drawn["series"] == name, "draws"]
    return "random" if (of_name > 1).any() or "random" in name or "shuffled" in name else "variant"


def levels(
    table: pd.DataFrame,
    title: str,
    shown: Mapping[str, str],
    method: str,
    classes: Mapping[str, str] = REFUSAL_CLASSES,
) -> Table:
    """A row per variant and class; a star where it differs from the method (Holm's p < 0.05).

    Args:
        table: one row per variant, class and metric, as :func:`ss_lens.stats.paired.compare` has
            them, with ``angle_deg``.
        title: of the section.
        shown: the headings of the metrics, in their order.
        method: what the others are compared with.
        classes: what the positive and the negative prompts are called.
    """
    rows, measured = [], {*table["metric"]}
    heads = {name: head for name, head in shown.items() if name in measured}
    pairs = zip(table["variant"].tolist(), table["prompt_class"].tolist(), strict=True)
    for variant, label in dict.fromkeys(pairs):
        here = table.loc[(table["variant"] == variant) & (table["prompt_class"] == label)]
        by_metric = {row["metric"]: row for row in here.to_dict("records")}
        first = here.iloc[0]
        rows.append(
            {
                "variant": variant,
                "prompts": f"{classes[label]} ({int(here['n'].max())})",
                "angle": _angle(first["angle_deg"], str(first.get("operator", ""))),
                **{head: _interval(by_metric.get(name)) for name, head in heads.items()},
            }
        )
    caption = f"On test, with 95 % intervals; * differs from {method} on the same prompts."
    return Table(title, caption, pd.DataFrame(rows))


def number(value: Any) -> str:
    """A number in three digits; anything else as its text, and a dash where there is nothing."""
    if is_missing(value):
        return "–"
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return f"{value:.3g}".replace("-", "−") if is_number else str(value)


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _angle(value: Any, operator: str) -> str:
    """One angle, or those of several draws (``270; 180``); of what has none, what it is."""
    if is_missing(value):
        return ""
    if operator.startswith(WITHOUT_ANGLE):
        return operator
    return "°; ".join(str(value).split("; ")) + "°"


def _interval(row: Mapping[Any, Any] | None) -> str:
    if row is None or is_missing(row["mean"]):
        return "–"
    star = " *" if row.get("p_holm", 1.0) < LEVEL else ""
    mean, low, high = (_level(row[name]) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]{star}"


def _level(value: float) -> str:
    """Two digits after the point, so that a row can be compared; fewer of what is large."""
    if is_missing(value):
        return "–"
    return (f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}").replace("-", "−")
