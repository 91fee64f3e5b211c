"""What a reader must know before trusting the numbers: values and prompts that are missing."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from ss_lens.scoring.refusal import BY_PHRASES, counts_by_phrases


def about_values(table: pd.DataFrame, columns: Collection[str], where: str) -> list[str]:
    """One note on the numbers of ``columns`` that are not finite; none where all are."""
    counts = {
        name: sum(not _is_finite(value) for value in table[name])
        for name in columns
        if name in table
    }
    found = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
    if not found:
        return []
    return [
        f"Some scores in {where} are not numbers: {found} of {len(table)} rows. They are drawn as "
        "gaps and left out of means; load the model in float32 or bfloat16 and measure again."
    ]


def about_prompts(samples: pd.DataFrame, classes: Mapping[str, str]) -> list[str]:
    """One note on classes of a single prompt, of which nothing can be said with certainty."""
    single = [
        f"{part}, {classes[str(label)]}"
        for part, of_part in samples.groupby("part", sort=False)
        for label, rows in of_part.groupby("prompt_class", sort=False)
        if rows["prompt_index"].nunique() == 1
    ]
    if not single:
        return []
    return [
        f"There is one prompt only in: {'; '.join(single)}. Means are that prompt's value, and "
        "intervals say next to nothing; measure more prompts."
    ]


def about_versions(found: Mapping[str, str], expected: str) -> list[str]:
    """One note where parts were written by different versions of the package.

    Args:
        found: version by what was written with it.
        expected: the version that makes the report.
    """
    if set(found.values()) <= {expected}:
        return []
    said = ", ".join(f"{what} {version}" for what, version in found.items())
    return [
        f"Versions are mixed: {said}, this report {expected}. Numbers of one version are "
        "comparable; make them again with one version where they decide something."
    ]


def about_libraries(parts: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One note where the parts of one run were computed with different libraries."""
    names = sorted({name for versions in parts.values() for name in versions})
    differing = [
        f"{name} ({', '.join(f'{part}: {versions.get(name)}' for part, versions in parts.items())})"
        for name in names
        if len({versions.get(name) for versions in parts.values()}) > 1
    ]
    if not differing:
        return []
    return [
        f"Activations were captured with different libraries: {'; '.join(differing)}. Capture them "
        "again with one set of versions where small differences matter."
    ]


def about_refusals(table: pd.DataFrame) -> list[str]:
    """One note where ``refused`` is of an earlier version, which counted otherwise."""
    if not counts_by_phrases(table):
        return []
    return [f"This result {BY_PHRASES}. Make it again to have them by the classifier."]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float | np.number | np.bool_) and math.isfinite(value)


def joined(names: Sequence[str], most: int = 6) -> str:
    """Names in a line, the later ones counted.

    >>> joined(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
