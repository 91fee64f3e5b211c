"""Answers that people have labelled: XSTest's layout, read as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ss_lens.core.checks import check_at_least
from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_file

LABELS = {"1_full_compliance": "none", "2_full_refusal": "full", "3_partial_refusal": "partial"}
"""XSTest's labels, and what :func:`ss_lens.classify_refusal` calls the same."""
COLUMNS = ("model", "prompt", "completion", "human_label")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Answers with what people say of them.

    Attributes:
        name: of the file.
        sha256: of the file.
        table: ``model``, ``prompt``, ``answer`` and ``label``, one of ``full``, ``partial`` and
            ``none``.
        n_in_file: how many answers the file holds; ``table`` may be a sample of them.
    """

    name: str
    sha256: str
    table: pd.DataFrame
    n_in_file: int

    def sample(self, n: int, seed: int = 0) -> Labelled:
        """``n`` of the answers, of each model and label its share; all where there are no more."""
        check_at_least("sample", n)
        total = len(self.table)
        if n >= total:
            return self
        drawn = self.table.sample(frac=1, random_state=seed)
        dealt = drawn.sort_values(["model", "label"], kind="stable")
        places = ((np.arange(n) + 0.5) * total / n).astype(int)
        chosen = dealt.iloc[places].sort_index().reset_index(drop=True)
        return Labelled(self.name, self.sha256, chosen, self.n_in_file)


def read_labelled(path: Path) -> Labelled:
    """The answers of a file, with the labels of people.

    Raises:
        UserError: it cannot be read, is of another layout, or holds other labels.
    """
    table = read_labels(path)
    return Labelled(path.name, sha256_of_file(path), table, len(table))


def read_labels(path: Path) -> pd.DataFrame:
    """XSTest's human labels: ``model``, ``prompt``, ``answer``, ``label``.

    Raises:
        UserError: it cannot be read, is of another layout, holds other labels, or no answer.
    """
    expected = f"XSTest's human labels: {', '.join(COLUMNS)}"
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except (OSError, ValueError) as error:  # of pandas' parser and of text that is not UTF-8
        raise UserError(
            f"{path} cannot be read as a table ({type(error).__name__}); expected {expected}, in a "
            "CSV file. Give the path of such a file."
        ) from error
    if missing := sorted(set(COLUMNS) - set(table.columns)):
        raise UserError(
            f"{path} has no columns {missing}; got {list(table.columns)}. Expected {expected}."
        )
    if unknown := sorted(set(table.human_label) - set(LABELS)):
        raise UserError(
            f"{path} has the labels {unknown[:3]}; expected {list(LABELS)}. Correct human_label."
        )
    if table.empty:
        raise UserError(f"{path} holds no answer; expected {expected}. Give a file with answers.")
    return pd.DataFrame(
        {
            "model": table.model,
            "prompt": table.prompt,
            "answer": table.completion,
            "label": table.human_label.map(LABELS),
        }
    )
