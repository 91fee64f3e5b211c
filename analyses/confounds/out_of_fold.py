"""Scores of unseen prompts, from the surface of their texts and from their activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from analyses.confounds.folds import PerPrompt
from ss_lens import Activations, Site
from ss_lens.calibration.candidates import Candidates, global_direction
from ss_lens.calibration.directions import DifferenceOfMeans
from ss_lens.calibration.separation import auroc, cohens_d, projections

Scores = Float[np.ndarray, "prompt"]
"""One number per prompt, the positive prompts first."""
ChooseSite = Callable[[Candidates, Activations, PerPrompt], int]
"""Candidates of some prompts, their activations and their folds → index of a site."""


def surface_scores(features: pd.DataFrame, folds: PerPrompt) -> Scores:
    """Out-of-fold log-odds of logistic regressions.

    Args:
        features: one row per prompt, the positive ones first. A column ``text`` is read as
            character n-grams (1 to 4, within words, TF-IDF), the others as standardised numbers.
        folds: of the prompts.
    """
    fold, label = np.concatenate(folds), np.repeat([1, 0], [len(part) for part in folds])
    scores = np.empty(len(features))
    for held_out in np.unique(fold):
        seen, unseen = fold != held_out, fold == held_out
        classifier = _classifier(list(features)).fit(features[seen], label[seen])
        scores[unseen] = classifier.decision_function(features[unseen])
    return scores


def activation_scores(
    acts: Activations, folds: PerPrompt, choose: ChooseSite
) -> tuple[Scores, Counter[Site]]:
    """Out-of-fold projections onto the difference of class means at one site per fold.

    Args:
        acts: of the prompts.
        folds: of the prompts.
        choose: the site, from the training folds alone.

    Returns:
        The projections of the unit-normalised activations, and how many folds chose each site.
    """
    classes = (acts.positive, acts.negative)
    scores = tuple(np.empty(len(part)) for part in folds)
    chosen: Counter[Site] = Counter()
    for held_out in np.unique(folds[0]).tolist():
        train, rest = _without(acts, folds, held_out)
        candidates = DifferenceOfMeans().candidates(train)
        index = choose(candidates, train, rest)
        chosen[acts.sites[index]] += 1
        direction = candidates.directions[index].double()
        for h, fold, into in zip(classes, folds, scores, strict=True):
            unseen = h[fold == held_out][:, [index]].double()
            into[fold == held_out] = projections(unseen, direction).squeeze(1).numpy()
    return np.concatenate(scores), chosen


def direction_site(candidates: Candidates, acts: Activations, folds: PerPrompt) -> int:
    """The site that the default calibration takes its direction from."""
    return global_direction(candidates)


def best_site(candidates: Candidates, acts: Activations, folds: PerPrompt) -> int:
    """The site whose own direction separates best when fitted on all of these folds but one.

    By the mean area under the ROC curve; ties (several sites may reach 1) go to the larger mean
    Cohen's d, then to the first site.
    """
    areas, gaps = [], []
    for held_out in np.unique(folds[0]).tolist():
        directions = DifferenceOfMeans().candidates(_without(acts, folds, held_out)[0]).directions
        unseen = (acts.positive[folds[0] == held_out], acts.negative[folds[1] == held_out])
        positive, negative = (
            torch.einsum("psd,sd->ps", h, directions) / h.norm(dim=-1) for h in unseen
        )
        areas.append(auroc(positive, negative))
        gaps.append(cohens_d(positive, negative))
    area, gap = (torch.stack(values).mean(dim=0).tolist() for values in (areas, gaps))
    return max(range(len(acts.sites)), key=lambda i: (area[i], gap[i], -i))


def _classifier(columns: list[str]) -> Pipeline:
    # Capitals are surface too, so they are not lowered.
    ngrams = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), lowercase=False)
    numbers = [name for name in columns if name != "text"]
    parts = [("text", ngrams, "text")] if "text" in columns else []
    parts += [("numbers", StandardScaler(), numbers)] if numbers else []
    return make_pipeline(ColumnTransformer(parts), LogisticRegression(max_iter=1000))


def _without(acts: Activations, folds: PerPrompt, held_out: int) -> tuple[Activations, PerPrompt]:
    """The prompts of the other folds, and their folds."""
    positive, negative = (part != held_out for part in folds)
    spec = replace(
        acts.spec,
        n_positive=int(positive.sum()),
        n_negative=int(negative.sum()),
        prompt_digests=(),
    )
    kept = Activations(acts.positive[positive], acts.negative[negative], spec)
    return kept, (folds[0][positive], folds[1][negative])
