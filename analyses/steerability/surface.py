"""How much of the differences between prompts does their surface explain?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from ss_lens import UserError
from ss_lens.stats.bootstrap import derive_rng, percentile_interval, resampled_counts

N_DRAWS = 2000
TOGETHER = "all together"


def surface_of(prompts: Sequence[str]) -> pd.DataFrame:
    """Length in words and in characters of each prompt, and whether it asks."""
    texts = pd.Series([*prompts], dtype=object)
    return pd.DataFrame(
        {
            "words": texts.str.split().str.len(),
            "characters": texts.str.len(),
            "is a question": texts.str.rstrip().str.endswith("?"),
        }
    )


def explained(
    values: Sequence[float | int] | np.ndarray | pd.Series,
    features: pd.DataFrame | Mapping[str, Sequence[float | int] | np.ndarray],
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of the variance of ``values`` that a linear fit on surface features explains.

    A fit on any feature explains something: on k unrelated ones 1/(n − 1) each, on average. So each
    share stands beside those of the same fit on permuted values.

    Args:
        values: one per prompt, as the column ``toward`` of :func:`analyses.steerability.measure`.
        features: numbers or truth values, a row per prompt; one that is constant is left out.
        n_draws: permutations, and bootstrap draws over prompts.
        seed: of both.

    Returns:
        One row per ``feature``, and one for ``all together`` where there are several: ``r2`` with
        its percentile bootstrap interval ``low``, ``high`` (biased upward as r2 is), ``chance``,
        the mean over permutations, ``chance_high``, their 95th percentile, the ``p_value`` (rank of
        r2 among them), and ``n``.

    Raises:
        UserError: another number of features than values, fewer than 3 prompts, no feature that
            varies, or values that are all the same or not finite.
    """
    y, table = np.asarray(values, dtype=float), pd.DataFrame(features).astype(float)
    if len(table) != len(y) or len(y) < 3:
        raise UserError(
            f"got {len(table)} rows of features and {len(y)} values; expected one per prompt, "
            "of at least 3 prompts."
        )
    if not np.isfinite(y).all() or not np.isfinite(table.to_numpy()).all() or np.ptp(y) == 0:
        raise UserError(
            "the variance of values that are all the same or not finite cannot be explained; "
            "expected finite numbers that differ, and finite features. Drop what is undefined."
        )
    varied = [str(name) for name in table if np.ptp(table[name].to_numpy()) > 0]
    if not varied:
        raise UserError(
            f"none of the features {', '.join(map(str, table)) or '(none)'} differs between "
            "prompts, so none can explain anything; give one that does."
        )
    sets = {name: [name] for name in varied}
    if len(varied) > 1:
        sets[TOGETHER] = varied
    rng = derive_rng(seed, "surface")
    permuted = np.stack([rng.permutation(y) for _ in range(n_draws)])
    counts = resampled_counts(np.ones(len(y), dtype=int), n_draws, rng)
    rows = []
    for label, names in sets.items():
        x = table[names].to_numpy()
        (found,), chance = _r2(x, y[None]), _r2(x, permuted)
        drawn = [_weighted_r2(x, y, weights) for weights in counts]
        low, high = percentile_interval(np.array([value for value in drawn if value is not None]))
        rows.append(
            {
                **{"feature": label, "r2": found, "low": float(low), "high": float(high)},
                **{"chance": chance.mean(), "chance_high": np.quantile(chance, 0.95)},
                "p_value": (1 + int((chance >= found - 1e-12).sum())) / (1 + n_draws),
                "n": len(y),
            }
        )
    return pd.DataFrame(rows)


def _r2(
    x: Float[np.ndarray, "prompt feature"], y: Float[np.ndarray, "draw prompt"]
) -> Float[np.ndarray, "draw"]:
    """R² of the least-squares fit of each row of ``y`` on ``x`` and a constant."""
    basis = _orthonormal(x - x.mean(axis=0))
    centred = y - y.mean(axis=1, keepdims=True)
    return ((centred @ basis) ** 2).sum(axis=1) / (centred**2).sum(axis=1)


def _weighted_r2(
    x: Float[np.ndarray, "prompt feature"],
    y: Float[np.ndarray, "prompt"],
    counts: np.ndarray,
) -> float | None:
    """R² in a resample, which may hold too few different prompts to have one."""
    chosen = np.repeat(np.arange(len(y)), counts)
    resampled = y[chosen]
    if np.ptp(resampled) == 0:
        return None
    return float(_r2(x[chosen], resampled[None])[0])


def _orthonormal(x: Float[np.ndarray, "prompt feature"]) -> Float[np.ndarray, "prompt rank"]:
    """Of the columns' span; features that repeat one another add nothing."""
    left, sizes, _ = np.linalg.svd(x / max(float(np.abs(x).max()), 1.0), full_matrices=False)
    return left[:, sizes > sizes.max(initial=0.0) * 1e-9] if sizes.any() else left[:, :0]
