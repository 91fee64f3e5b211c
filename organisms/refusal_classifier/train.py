"""Train the refusal classifier, measure it where prompts and models were left out, and write it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from jaxtyping import Float
from sklearn.metrics import cohen_kappa_score

import ss_lens.scoring.refusal_classifier as package
from organisms.refusal_classifier.fitting import (
    WRITTEN,
    WRITTEN_BY,
    Choice,
    Labelled,
    choose,
    fit,
    labelled,
    left_out,
    read_labels,
    read_written,
    sharpen,
)
from ss_lens.core.files import sha256_of_file, sha256_of_json, write_json
from ss_lens.scoring.refusal import opens_with_refusal
from ss_lens.scoring.refusal_classifier.classify import FEATURES, LABELS
from ss_lens.scoring.refusal_classifier.phrases import FAMILIES

COEFFICIENTS = Path(package.__file__).with_name("coefficients.json")
DECIMALS = 4
N_RESAMPLES = 2000
_NONE = LABELS.index("none")


def predictions(data: Labelled) -> tuple[Float[np.ndarray, "row label"], list[Choice]]:
    """The probabilities of each row by a fit without its model and request, and what was chosen.

    Penalty and sharpness are chosen anew within what each fit may see.
    """
    probabilities = np.zeros((len(data.labels), len(LABELS)))
    chosen = []
    for fitted, tested in left_out(data):
        chosen.append(choose(fitted))
        said = fit(fitted, chosen[-1].penalty).predict_proba(data.features[tested])
        probabilities[tested] = sharpen(said, chosen[-1].sharpness)
    return probabilities, chosen


def kappa(labels: np.ndarray, refused: np.ndarray, partial: bool) -> float:
    """Cohen's κ of refused or not; partial refusals count as refusals, or are left out."""
    kept = np.full(len(labels), True) if partial else labels != LABELS.index("partial")
    return float(cohen_kappa_score(labels[kept] != _NONE, refused[kept]))


def agreement(table: pd.DataFrame, labels: np.ndarray, refused: np.ndarray) -> dict[str, Any]:
    """κ per model and over XSTest's models, without and with partial refusals, with intervals."""
    people = (table.model != WRITTEN_BY).to_numpy()
    groups = {name: (table.model == name).to_numpy() for name in dict.fromkeys(table.model)}
    return {
        name: {
            kind: round(kappa(labels[rows], refused[rows], kind == "with_partial"), 3)
            for kind in ("full_or_none", "with_partial")
        }
        | _intervals(table[rows], labels[rows], refused[rows])
        for name, rows in (groups | {"people": people}).items()
    }


def _intervals(
    table: pd.DataFrame, labels: np.ndarray, refused: np.ndarray
) -> dict[str, list[float]]:
    """95 % percentile intervals of κ over resampled requests."""
    rng = np.random.default_rng(0)
    codes, requests = pd.factorize(table.prompt)
    rows_of = [np.flatnonzero(codes == code) for code in range(len(requests))]
    draws = []
    for _ in range(N_RESAMPLES):
        rows = np.concatenate([rows_of[i] for i in rng.integers(len(requests), size=len(requests))])
        draws.append([kappa(labels[rows], refused[rows], partial) for partial in (False, True)])
    bounds = np.nanquantile(draws, [0.025, 0.975], axis=0).round(3).T.tolist()
    return {"full_or_none_interval": bounds[0], "with_partial_interval": bounds[1]}


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """How far the probability of a refusal, full or partial, is to be believed."""
    said, true = 1 - probabilities[:, _NONE], labels != _NONE
    bins = pd.cut(pd.Series(said), np.linspace(0, 1, 6), include_lowest=True, labels=False)
    return {
        "brier": round(float(((said - true) ** 2).mean()), 4),
        "brier_of_the_base_rate": round(float(true.mean() * (1 - true.mean())), 4),
        "bins": [
            {
                "answers": int((bins == place).sum()),
                "said": round(float(said[bins == place].mean()), 3),
                "refused": round(float(true[bins == place].mean()), 3),
            }
            for place in sorted(bins.unique())
        ],
    }


def train(table: pd.DataFrame, with_prompts: bool) -> dict[str, Any]:
    """The coefficients fitted on all rows, and what was measured on rows left out."""
    data = labelled(table, with_prompts)
    probabilities, chosen = predictions(data)
    people = (table.model != WRITTEN_BY).to_numpy()
    said = probabilities.argmax(axis=1)
    choice = choose(data)
    model = fit(data, choice.penalty)
    intercepts, coefficients = (
        (choice.sharpness * values).round(DECIMALS).tolist()
        for values in (model.intercept_, model.coef_.T)
    )
    names = FEATURES["answers_and_prompts" if with_prompts else "answers"]
    confusion = pd.crosstab(data.labels[people], said[people]).reindex(
        index=range(3), columns=range(3), fill_value=0
    )
    return {
        "penalty": choice.penalty,
        "sharpness": round(choice.sharpness, DECIMALS),
        "intercepts": intercepts,
        "coefficients": dict(zip(names, coefficients, strict=True)),
        "measured": {
            "penalties": sorted(choice.penalty for choice in chosen),
            "kappa": agreement(table, data.labels, said != _NONE),
            "confusion": dict(zip(LABELS, confusion.to_numpy().tolist(), strict=True)),
            "calibration": calibration(data.labels[people], probabilities[people]),
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the labels, train both models, and write coefficients and measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="XSTest's human labels (.csv)")
    parser.add_argument("--out", type=Path, default=COEFFICIENTS)
    given = parser.parse_args(arguments)
    table = pd.concat([read_labels(given.labels), read_written()], ignore_index=True)
    places = np.array([LABELS.index(label) for label in table.label])
    phrases = np.array([opens_with_refusal(answer) for answer in table.answer])
    write_json(
        given.out,
        {
            "labels": LABELS,
            "families_sha256": sha256_of_json(FAMILIES),
            "answers": train(table, with_prompts=False),
            "answers_and_prompts": train(table, with_prompts=True),
            "phrases": {"kappa": agreement(table, places, phrases)},
            "trained_on": {
                "human_labels": int((table.model != WRITTEN_BY).sum()),
                "human_labels_sha256": sha256_of_file(given.labels),
                "written": int((table.model == WRITTEN_BY).sum()),
                "written_sha256": sha256_of_file(WRITTEN),
                "scikit-learn": sklearn.__version__,
            },
        },
    )


if __name__ == "__main__":
    main()
