"""Cross-validation that keeps partners together, and how well its folds were told apart."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ss_lens import ContrastiveDataset, UserError
from ss_lens.stats.bootstrap import percentile_interval, resampled_counts

PerPrompt = tuple[Int[np.ndarray, "_positive_prompt"], Int[np.ndarray, "_negative_prompt"]]
"""A number for each prompt of the positive class, and for each of the negative one."""
Draws = tuple[Int[np.ndarray, "draw positive_prompt"], Int[np.ndarray, "draw negative_prompt"]]


def assign_folds(dataset: ContrastiveDataset, n_folds: int, seed: int) -> PerPrompt:
    """The fold of each prompt, from 0; each class is spread evenly over all.

    Partners of a paired dataset share a fold: what they have in common would be learnt from the one
    and, with the label turned round, expected of the other.

    Raises:
        UserError: fewer than 3 folds, or more than a class has prompts.
    """
    n_positive, n_negative = len(dataset.positive), len(dataset.negative)
    if not 3 <= n_folds <= min(n_positive, n_negative):
        raise UserError(
            f"{n_folds} folds do not fit {n_positive} positive and {n_negative} negative prompts; "
            "use at least 3 folds and at most the number of prompts of each class."
        )
    rng = np.random.default_rng(seed)
    positive = rng.permutation(n_positive) % n_folds
    return positive, positive if dataset.paired else rng.permutation(n_negative) % n_folds


def bootstrap_counts(dataset: ContrastiveDataset, n_draws: int, seed: int) -> Draws:
    """How often each prompt is drawn: each class on its own, partners together."""
    # A stream of its own, so that the draws do not repeat what decided the folds.
    rng = np.random.default_rng([seed, 1])

    def drawn(n: int) -> Int[np.ndarray, "draw n"]:
        return resampled_counts(np.ones(n, dtype=int), n_draws, rng)

    positive = drawn(len(dataset.positive))
    return positive, positive if dataset.paired else drawn(len(dataset.negative))


def auroc_within_folds(
    scores: Float[np.ndarray, "prompt"], folds: PerPrompt, draws: Draws
) -> tuple[float, float, float]:
    """Area under the ROC curve within the folds, and its 95 % percentile interval over the draws.

    The share of pairs of a positive and a negative prompt of the same fold in which the positive
    one scores higher, ties counting half: scores of two folds come from two classifiers and cannot
    be compared (pooling them is biased: Forman and Scholz 2010, doi:10.1145/1882471.1882479).

    Args:
        scores: of the positive prompts, then of the negative ones.
        folds: from :func:`assign_folds`.
        draws: from :func:`bootstrap_counts`; a draw without any such pair is left out,
            which BCa cannot do.
    """
    positive, negative = np.split(scores, [len(folds[0])])
    together = (folds[0][:, None] == folds[1]).astype(float)
    wins = np.where(positive[:, None] == negative, 0.5, positive[:, None] > negative) * together
    won, all_pairs = (((draws[0] @ pairs) * draws[1]).sum(axis=1) for pairs in (wins, together))
    low, high = percentile_interval(won[all_pairs > 0] / all_pairs[all_pairs > 0])
    return float(wins.sum() / together.sum()), float(low), float(high)
