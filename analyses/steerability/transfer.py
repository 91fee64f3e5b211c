"""Do the same prompts steer as well under another condition, and does the order of them last?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from analyses.steerability.measures import PROMPT
from ss_lens import UserError
from ss_lens.stats.bootstrap import bca_mean_interval, derive_rng, percentile_interval

N_DRAWS = 2000


def transfer(
    slopes: pd.DataFrame, condition: str, *, among: Sequence[str] = (), seed: int = 0
) -> pd.DataFrame:
    """Compare the slopes of the same prompts between each two conditions.

    Conditions are system prompts, or the datasets that calibrations were made on: whatever leaves
    the prompts as they are.

    Args:
        slopes: from :func:`analyses.steerability.measure`, with a column ``condition``.
        condition: the name of that column.
        among: further columns that identify a prompt beside ``prompt_index``.
        seed: of the bootstrap over prompts.

    Returns:
        One row per pair: ``first``, ``second``; ``n`` prompts in both; the means ``toward_first``
        and ``toward_second``; the mean paired ``difference``, second minus first, with its BCa
        interval ``difference_low``, ``difference_high``; Spearman's ``rank_correlation`` over
        prompts with its percentile bootstrap interval ``rank_low``, ``rank_high`` (NaN where a
        side does not vary).

    Raises:
        UserError: fewer than two conditions, a prompt twice in one, or fewer than 3 in common.
    """
    keys = [*among, PROMPT]
    names = [*dict.fromkeys(slopes[condition])] if condition in slopes else []
    if len(names) < 2:
        raise UserError(
            f"transfer is between two conditions or more; the column {condition!r} holds "
            f"{len(names)}. Measure the same prompts under another."
        )
    if slopes.duplicated([condition, *keys]).any():
        raise UserError(
            f"a prompt occurs twice under one {condition}; name what tells them apart in "
            "among=[...]."
        )
    wide = slopes.pivot(index=keys, columns=condition, values="toward")
    rows = []
    for first, second in combinations(names, 2):
        both = wide[[first, second]].dropna().to_numpy(dtype=float)
        if len(both) < 3:
            raise UserError(
                f"{first!r} and {second!r} have {len(both)} prompts in common; expected at least "
                "3. Measure the same prompts under both."
            )
        rng = derive_rng(seed, "transfer", first, second)
        difference = both[:, 1] - both[:, 0]
        low, high = bca_mean_interval(difference, rng)
        drawn = both[rng.integers(len(both), size=(N_DRAWS, len(both)))]
        ranks = np.array([_spearman(sample) for sample in drawn])
        rank_low, rank_high = percentile_interval(ranks[np.isfinite(ranks)])
        rows.append(
            {
                **{"first": first, "second": second, "n": len(both)},
                "toward_first": float(both[:, 0].mean()),
                "toward_second": float(both[:, 1].mean()),
                "difference": float(difference.mean()),
                **{"difference_low": float(low), "difference_high": float(high)},
                "rank_correlation": _spearman(both),
                **{"rank_low": float(rank_low), "rank_high": float(rank_high)},
            }
        )
    return pd.DataFrame(rows)


def _spearman(pairs: np.ndarray) -> float:
    """NaN where either side is constant, so that it has no ranks."""
    if (np.ptp(pairs, axis=0) == 0).any():
        return float("nan")
    ranked = stats.rankdata(pairs, axis=0)
    return float(np.corrcoef(ranked.T)[0, 1])
