"""The curves of a sweep: means over prompts by angle, the seeds of one arm as its draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analyses.report.contents import Measure, Role, Series
from ss_lens.stats.bootstrap import CONFIDENCE
from ss_lens.stats.intervals import wilson_interval

_KEYS = ["curve", "prompt_class", "angle_deg"]
_ORDER: tuple[Role, ...] = ("method", "harmless", "variant", "random")


def curves(
    table: pd.DataFrame,
    unsteered: pd.DataFrame,
    measures: Sequence[Measure],
    classes: Mapping[str, str],
) -> tuple[tuple[Series, ...], pd.DataFrame]:
    """One curve per arm and class: the mean over prompts, and over the seeds of what is drawn.

    The range is 2.5 % to 97.5 % of the seeds, or of a rate without seeds its 95 % Wilson interval.

    Args:
        table: of the sweep, with ``curve``, the name of the arm without its seed.
        unsteered: of the sweep.
        measures: columns of the table.
        classes: what the two are called.
    """
    columns = [measure.column for measure in measures]
    rates = [name for name in columns if _is_truth(table, name)]
    whole = _as_numbers(table, columns)
    how = dict.fromkeys(columns, "mean")
    seeds = whole.groupby([*_KEYS, "seed"], dropna=False, sort=False).agg(how).reset_index()
    groups = seeds.groupby(_KEYS, sort=False)
    found = groups.agg(how).reset_index()
    tail = (1 - CONFIDENCE) / 2
    least, most = (groups[columns].quantile(end).reset_index() for end in (tail, 1 - tail))
    found["draws"] = groups.size().to_numpy()
    found["n"] = whole.groupby(_KEYS, sort=False)["prompt_index"].nunique().to_numpy()
    still = unsteered.reindex(columns=["prompt_class", *columns])  # KL has no value there
    start = _as_numbers(still, columns).groupby("prompt_class").agg(how)
    for name in columns:
        single = found["draws"] == 1
        low, high = least[name].mask(single), most[name].mask(single)
        if name in rates:
            pairs = [_wilson(*pair) for pair in zip(found[name], found["n"], strict=True)]
            low = low.fillna(pd.Series([pair[0] for pair in pairs]))
            high = high.fillna(pd.Series([pair[1] for pair in pairs]))
        found[f"{name}_low"], found[f"{name}_high"] = low, high
        found[f"{name}_unsteered"] = found["prompt_class"].map(start[name])
    several = found["prompt_class"].nunique() > 1
    names = {
        (curve, label): f"{curve}, {classes[label]}" if several else curve
        for curve, label in _pairs(found)
    }
    found["series"] = [names[pair] for pair in _pairs(found)]
    drawn = {pair for pair, n in zip(_pairs(found), found["draws"], strict=True) if n > 1}
    method = _method(table)
    series = [
        Series(name, _role(*pair, pair in drawn, method), pair[1]) for pair, name in names.items()
    ]
    return tuple(sorted(series, key=lambda one: _ORDER.index(one.role))), found


def _pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    return [*zip(table["curve"].tolist(), table["prompt_class"].tolist(), strict=True)]


def _is_truth(table: pd.DataFrame, name: str) -> bool:
    return all(isinstance(value, bool | np.bool_) for value in table[name])


def _as_numbers(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Without values that are infinite or no numbers, so that means leave them out."""
    values = {
        name: pd.Series(table[name]).to_numpy(dtype=float, na_value=np.nan) for name in columns
    }
    finite = {name: np.where(np.isfinite(v), v, np.nan) for name, v in values.items()}
    return table.assign(**finite)


def _wilson(rate: float, n: int) -> tuple[float, float]:
    return wilson_interval(rate * n, n) if np.isfinite(rate) else (np.nan, np.nan)


def _method(table: pd.DataFrame) -> str:
    """The curve of Selective Steering, or the first where the sweep has none."""
    own = table["operator"].eq("RotateBy") & table["plane"].eq("PC1()") & table["labels"].eq("true")
    selected = own & table["selection"].str.startswith("Discriminative")
    for rows in (selected, own):
        if rows.any():
            return str(table.loc[rows, "curve"].iloc[0])
    return str(table["curve"].iloc[0])


def _role(curve: str, label: str, drawn: bool, method: str) -> Role:
    if curve == method:
        return "method" if label == "positive" else "harmless"
    return "random" if drawn or "Random" in curve or "shuffled" in curve else "variant"
