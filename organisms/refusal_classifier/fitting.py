"""Fit the refusal classifier, with the penalty chosen on prompts and models left out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from organisms.refusal.common import read_jsonl
from ss_lens.judges.agreement.labels import read_labels as read_labels
from ss_lens.scoring.refusal_classifier.classify import LABELS
from ss_lens.scoring.refusal_classifier.features import answer_features, prompt_features

WRITTEN = Path(__file__).with_name("written.jsonl")
WRITTEN_BY = "written"
N_FOLDS = 5
PENALTIES = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Inverse strengths of the quadratic penalty (scikit-learn's C), the strongest penalty first."""
SHARPNESS = (0.5, 4.0)


@dataclass(frozen=True)
class Choice:
    """The penalty, and the factor of the logits that makes up for what it shrinks."""

    penalty: float
    sharpness: float


@dataclass(frozen=True)
class Labelled:
    """Answers with labels: features, the label's place in :data:`LABELS`, who answered, the fold.

    Rows of one request are in one fold.
    """

    features: Float[np.ndarray, "row feature"]
    labels: np.ndarray
    models: np.ndarray
    folds: np.ndarray

    def take(self, rows: Bool[np.ndarray, "row"]) -> Labelled:
        """The rows where ``rows`` is true."""
        return Labelled(self.features[rows], self.labels[rows], self.models[rows], self.folds[rows])


def read_written() -> pd.DataFrame:
    """The answers that were written for training, in the same columns."""
    return pd.DataFrame(read_jsonl(WRITTEN)).assign(model=WRITTEN_BY)


def labelled(table: pd.DataFrame, with_prompts: bool) -> Labelled:
    """The table's features, of the answers alone or of answers and prompts."""
    answers, prompts = list(table.answer), list(table.prompt)
    columns = [answer_features(answers)]
    if with_prompts:
        columns.append(prompt_features(answers, prompts))
    return Labelled(
        np.hstack(columns),
        np.array([LABELS.index(label) for label in table.label]),
        table.model.to_numpy(dtype=object),
        np.array([zlib.crc32(prompt.encode()) % N_FOLDS for prompt in prompts]),
    )


def fit(data: Labelled, penalty: float) -> LogisticRegression:
    """A multinomial logistic regression; its classes are the places in :data:`LABELS`."""
    return LogisticRegression(C=penalty, max_iter=5000).fit(data.features, data.labels)


def left_out(data: Labelled) -> Iterator[tuple[Labelled, Bool[np.ndarray, "row"]]]:
    """For each model and fold: what may be fitted, and which rows of ``data`` are tested.

    What may be fitted holds no row of the model and none of the fold's requests.
    """
    for model in dict.fromkeys(data.models):
        for fold in range(N_FOLDS):
            tested = (data.models == model) & (data.folds == fold)
            fitted = (data.models != model) & (data.folds != fold)
            if tested.any():
                yield data.take(fitted), tested


def choose(data: Labelled) -> Choice:
    """The penalty and sharpness with the least log-loss on people's labels.

    Each answer is judged by a fit without its model and request; the written ones are only fitted.
    """
    judged = data.models != WRITTEN_BY
    splits = [(fitted, t) for fitted, t in left_out(data) if judged[t].all()]
    labels = data.labels[judged]

    def loss(sharpness: float, said: Float[np.ndarray, "row label"]) -> float:
        sharpened = sharpen(said, sharpness)
        return -float(np.log(sharpened[np.arange(len(labels)), labels]).mean())

    tried = []
    for penalty in PENALTIES:
        said = _left_out_probabilities(data, splits, penalty)[judged]
        found = minimize_scalar(loss, bounds=SHARPNESS, args=(said,))
        tried.append((found.fun, Choice(penalty, float(found.x))))
    return min(tried, key=lambda one: one[0])[1]


def sharpen(
    probabilities: Float[np.ndarray, "row label"], sharpness: float
) -> Float[np.ndarray, "row label"]:
    """Probabilities whose logits are multiplied by ``sharpness``; the largest stays the largest."""
    raised = probabilities**sharpness
    return raised / raised.sum(axis=1, keepdims=True)


def _left_out_probabilities(
    data: Labelled, splits: Sequence[tuple[Labelled, np.ndarray]], penalty: float
) -> Float[np.ndarray, "row label"]:
    probabilities = np.zeros((len(data.labels), len(LABELS)))
    for fitted, tested in splits:
        probabilities[tested] = fit(fitted, penalty).predict_proba(data.features[tested])
    return probabilities
