"""Do length and surface form tell the classes apart as well as the activations do?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analyses.confounds.folds import assign_folds, auroc_within_folds, bootstrap_counts
from analyses.confounds.out_of_fold import (
    activation_scores,
    best_site,
    direction_site,
    surface_scores,
)
from ss_lens import Activations, ContrastiveDataset, UserError
from ss_lens.calibration.calibration import CALIBRATION_STREAMS
from ss_lens.core.progress import progress_bar
from ss_lens.models.sites import Stream


def measure(
    dataset: ContrastiveDataset,
    acts: Activations | None = None,
    *,
    token_counts: Sequence[int] | None = None,
    n_folds: int = 5,
    n_resamples: int = 2000,
    streams: Sequence[Stream] = CALIBRATION_STREAMS,
    seed: int = 0,
) -> pd.DataFrame:
    """How well unseen prompts can be told apart: by their texts, and by their activations.

    All is fitted on every fold but one and scored on that one. The surface classifiers are logistic
    regressions on standardised lengths (characters, words, tokens where given), on character
    n-grams (1 to 4, within words, TF-IDF), and on both. The activations are read by projection onto
    the difference of the class means at one site: that which is best by cross-validation within the
    training folds, and that of the global direction, which is what the default calibration reads.

    Args:
        dataset: of a paired one, partners are always in the same fold.
        acts: of exactly these prompts; without them only the texts are measured.
        token_counts: tokens of each prompt, the positive ones first.
        n_folds: at least 3.
        n_resamples: bootstrap draws over prompts (over pairs where paired), classifiers fixed.
        streams: as in :func:`ss_lens.calibrate`.
        seed: of folds and draws.

    Returns:
        One row per ``reading``: ``kind`` (``surface`` or ``activations``), ``auroc`` with its 95 %
        interval (``low``, ``high``; see :func:`analyses.confounds.folds.auroc_within_folds`),
        ``sites`` with the number of folds that chose them, ``n_positive``, ``n_negative``,
        ``n_folds``.

    Raises:
        UserError: activations of other prompts, another number of token counts, fewer than 3 folds,
            or more than a class has prompts.
    """
    _check(dataset, acts, token_counts)
    folds = assign_folds(dataset, n_folds, seed)
    draws = bootstrap_counts(dataset, n_resamples, seed)
    lengths = _lengths(dataset, token_counts)
    texts = pd.DataFrame({"text": [*dataset.positive, *dataset.negative]})
    surfaces = {
        "length": lengths,
        "character n-grams": texts,
        "length and n-grams": texts.join(lengths),
    }
    choices = {
        "activations, best site": best_site,
        "activations, direction site": direction_site,
    }
    rows = []
    with progress_bar(len(surfaces) + len(choices), "fitting", "reading") as bar:
        for reading, features in surfaces.items():
            area = auroc_within_folds(surface_scores(features, folds), folds, draws)
            rows.append((reading, "surface", *area, ""))
            bar.update()
        for reading, choose in choices.items() if acts is not None else ():
            assert acts is not None
            scores, chosen = activation_scores(acts.restricted_to(streams), folds, choose)
            sites = ", ".join(f"{site} ({n})" for site, n in chosen.most_common())
            rows.append((reading, "activations", *auroc_within_folds(scores, folds, draws), sites))
            bar.update()
    table = pd.DataFrame(rows, columns=["reading", "kind", "auroc", "low", "high", "sites"])
    return table.assign(
        n_positive=len(dataset.positive), n_negative=len(dataset.negative), n_folds=n_folds
    )


def _check(
    dataset: ContrastiveDataset, acts: Activations | None, token_counts: Sequence[int] | None
) -> None:
    n = len(dataset.positive) + len(dataset.negative)
    if acts is not None and acts.spec.dataset_digest != dataset.digest:
        raise UserError(
            f"the activations are of {acts.spec.dataset_name!r} and not of the prompts of "
            f"{dataset.name!r}; capture these."
        )
    if token_counts is not None and len(token_counts) != n:
        raise UserError(
            f"{len(token_counts)} token counts do not fit {n} prompts; give one for each, the "
            "positive prompts first."
        )


def _lengths(dataset: ContrastiveDataset, token_counts: Sequence[int] | None) -> pd.DataFrame:
    texts = [*dataset.positive, *dataset.negative]
    lengths = {
        "characters": [len(text) for text in texts],
        "words": [len(text.split()) for text in texts],
    }
    if token_counts is not None:
        lengths["tokens"] = list(token_counts)
    return pd.DataFrame(lengths)
