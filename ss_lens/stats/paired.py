"""Paired comparisons: what variants score on the prompts of a reference, and how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from transformer_lens.utilities.statistics import derive_generator, sign_flip_permutation_pvalue

from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.stats.bootstrap import derive_rng
from ss_lens.stats.intervals import mean_interval, wilson_interval

N_PERMUTATIONS = 10_000


def compare(
    cells: pd.DataFrame, metrics: Sequence[str], reference: str, *, seed: int = 0
) -> pd.DataFrame:
    """Return each metric's mean per variant and its paired difference from ``reference``.

    The unit is the prompt: where a variant has several draws, a prompt's value is its mean over
    them. A prompt whose value is undefined (NaN) on either side is left out of the pairs.

    Args:
        cells: one row per variant, draw, prompt class and prompt: ``variant``, ``draw``,
            ``prompt_class``, ``prompt_index`` and the metrics.
        metrics: columns of numbers or truth values.
        reference: the variant that the others are compared with.
        seed: of the bootstrap and the permutations.

    Returns:
        One row per variant, prompt class and metric: ``n`` prompts, their ``mean`` with its 95 %
        interval ``low``, ``high`` (Wilson for rates, else BCa bootstrap over prompts); ``draws``
        and the smallest and largest mean of a draw, ``draw_low`` and ``draw_high``; ``n_pairs``,
        the mean ``difference`` with ``difference_low`` and ``difference_high`` (BCa bootstrap over
        pairs), and the two-sided ``p_value`` of :func:`sign_flip_p_value`.
        ``p_holm`` corrects it for the number of variants that are compared on the same metric and
        class (Holm 1979). The reference's own comparison is NaN.

    Raises:
        UserError: the reference or a metric is absent, or a prompt occurs twice in a draw.
    """
    _check(cells, metrics, reference)
    rows = []
    places = cells[["variant", "prompt_class"]].drop_duplicates()
    with progress_bar(len(places) * len(metrics), "compare", "interval") as bar:
        for variant, prompt_class in zip(places["variant"], places["prompt_class"], strict=True):
            group = cells.query("variant == @variant and prompt_class == @prompt_class")
            others = cells.query("variant == @reference and prompt_class == @prompt_class")
            for metric in metrics:
                labels = {"variant": variant, "prompt_class": prompt_class, "metric": metric}
                where = (seed, variant, prompt_class, metric)
                row = {**labels, **_level(group, metric, where)}
                if variant != reference:
                    pair = _by_prompt(group, metric), _by_prompt(others, metric)
                    row |= _difference(*pair, where)
                rows.append(row)
                bar.update()
    table = pd.DataFrame(rows, columns=[*_COLUMNS])
    table["p_holm"] = table.groupby(["prompt_class", "metric"])["p_value"].transform(holm)
    return table


_COLUMNS = (
    *("variant", "prompt_class", "metric", "n", "mean", "low", "high"),
    *("draws", "draw_low", "draw_high"),
    *("n_pairs", "difference", "difference_low", "difference_high", "p_value"),
)


def sign_flip_p_value(differences: Float[np.ndarray, "pair"], generator: torch.Generator) -> float:
    """Return the two-sided p-value of a sign-flip permutation test that the mean is zero.

    Exact up to 12 pairs, else over 10,000 random patterns of signs; NaN without any pair.
    """
    if not len(differences):
        return math.nan
    effects = torch.tensor(differences, dtype=torch.float64)
    found = sign_flip_permutation_pvalue(
        effects, n_permutations=N_PERMUTATIONS, generator=generator
    )
    return float(found)


def holm(p_values: pd.Series) -> pd.Series:
    """Return p-values after Holm's step-down correction; NaN stays NaN and does not count.

    >>> holm(pd.Series([0.01, 0.04, 0.03])).round(6).tolist()
    [0.03, 0.06, 0.06]
    """
    known = p_values.dropna().sort_values()
    steps = known * np.arange(len(known), 0, -1)
    return steps.cummax().clip(upper=1.0).reindex(p_values.index)


def _check(cells: pd.DataFrame, metrics: Sequence[str], reference: str) -> None:
    needed = ("variant", "draw", "prompt_class", "prompt_index", *metrics)
    if missing := [name for name in needed if name not in cells]:
        raise UserError(
            f"the table has no column {', '.join(missing)}; it has {', '.join(cells.columns)}. "
            "Give the table of measurements with its metrics."
        )
    variants = [*dict.fromkeys(cells["variant"])]
    if reference not in variants:
        raise UserError(
            f"there is no variant {reference!r} to compare with; there are {', '.join(variants)}. "
            "Name one of these as the reference."
        )
    if cells.duplicated(["variant", "draw", "prompt_class", "prompt_index"]).any():
        raise UserError(
            "a prompt occurs twice in one draw of a variant and would count twice; give the rows "
            "of one angle per draw."
        )


def _by_prompt(group: pd.DataFrame, metric: str) -> pd.Series:
    """Means over draws; a prompt counts where any draw defines its value."""
    return group.astype({metric: float}).groupby("prompt_index")[metric].agg("mean").dropna()


def _level(group: pd.DataFrame, metric: str, where: tuple[Any, ...]) -> dict[str, Any]:
    draws = group["draw"].nunique()
    values = _by_prompt(group, metric)
    # Undefined values make a column of truth values one of objects; it is a rate all the same.
    if pd.api.types.is_bool_dtype(group[metric].dropna().infer_objects()):
        low, high = wilson_interval(float(values.sum()), len(values))
    else:
        low, high = mean_interval(values, derive_rng(*where))
    means = group.astype({metric: float}).groupby("draw")[metric].agg("mean")
    return {
        "n": len(values),
        "mean": values.mean(),
        "low": low,
        "high": high,
        "draws": draws,
        "draw_low": means.min(),
        "draw_high": means.max(),
    }


def _difference(values: pd.Series, reference: pd.Series, where: tuple[Any, ...]) -> dict[str, Any]:
    pairs = (values - reference).dropna()
    low, high = mean_interval(pairs, derive_rng(*where, "difference"))
    return {
        "n_pairs": len(pairs),
        "difference": pairs.mean(),
        "difference_low": low,
        "difference_high": high,
        "p_value": sign_flip_p_value(
            pairs.to_numpy(dtype=float), derive_generator(*where, "permutation")
        ),
    }
