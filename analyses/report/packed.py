"""The contents as one JSON value for the page: columns, with each text written once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from analyses.report.contents import UNSTEERED, Contents, Measure, Series
from analyses.report.costs import against_text, entanglement

DIGITS = 4
"""Significant digits of the numbers on the page."""


TRUTHS = ("shown",)
"""Scores that are stored as 0 and 1, since an answer may have none."""


def packed(contents: Contents) -> dict[str, Any]:
    """JSON values that the page's script draws; a number that is not finite becomes ``None``."""
    curves, samples = contents.curves, contents.samples
    steered = samples.loc[samples["arm"] != UNSTEERED]
    found = [*(curves["angle_deg"] if len(curves) else ()), *steered["angle_deg"]]
    angles = sorted({float(angle) for angle in found if not math.isnan(angle)})
    return {
        "angles": angles,
        "classes": [contents.classes[label] for label in ("positive", "negative")],
        "start": contents.start_deg if contents.start_deg in angles else (angles or [0.0])[0],
        "measures": [
            {"key": m.column, "label": m.label, "level": m.level, "rate": m.is_rate}
            for m in contents.measures
        ],
        "series": [_series(series, curves, contents.measures) for series in contents.series],
        "costs": {
            "text": _records(against_text(contents)),
            "both": _records(entanglement(contents)),
        },
        "samples": _samples(contents, angles),
        "moved": _moved(contents),
        "sites": _records(contents.sites),
        "cosines": _square(contents.cosines),
        "norms": _records(contents.norms),
    }


def as_json(value: Any) -> str:
    """JSON that is harmless inside a ``script`` element, whatever texts it holds.

    >>> as_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    # Half of a pair, which a broken answer may hold, is no UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def number(value: Any) -> float | int | None:
    """A number in :data:`DIGITS` significant digits; ``None`` where there is none.

    >>> number(0.123456), number(float("nan")), number(True)
    (0.1235, None, 1)
    """
    numeric = isinstance(value, int | float | np.number | np.bool_)
    if not numeric or not math.isfinite(value):
        return None
    rounded = float(f"{float(value):.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _numbers(values: Iterable[Any]) -> list[float | int | None]:
    return [number(value) for value in values]


def _series(series: Series, curves: pd.DataFrame, measures: Iterable[Measure]) -> dict[str, Any]:
    rows = curves.loc[curves["series"] == series.name].sort_values("angle_deg")
    values = {
        m.column: {
            "mean": _numbers(rows[m.column]),
            "low": _numbers(rows[f"{m.column}_low"]),
            "high": _numbers(rows[f"{m.column}_high"]),
            "unsteered": number(rows[f"{m.column}_unsteered"].iloc[0]),
        }
        for m in measures
    }
    return {
        "name": series.name,
        "role": series.role,
        "cls": series.prompt_class,
        "angles": [float(angle) for angle in rows["angle_deg"]],
        "n": _numbers(rows["n"]),
        "draws": _numbers(rows["draws"]),
        "values": values,
    }


def _samples(contents: Contents, angles: list[float]) -> dict[str, Any]:
    """Columns of indices; ``base`` is the row of the unsteered answer to the same prompt."""
    samples = contents.samples.reset_index(drop=True)
    place = {angle: index for index, angle in enumerate(angles)}
    strings: dict[str, int] = {}

    def coded(texts: Iterable[Any]) -> list[int]:
        return [strings.setdefault(str(text), len(strings)) for text in texts]

    found = {
        "arm": coded(samples["arm"]),
        "part": coded(samples["part"]),
        "cls": [int(label == "negative") for label in samples["prompt_class"]],
        "index": [int(index) for index in samples["prompt_index"]],
        "prompt": coded(samples["prompt"]),
        "theta": [-1 if math.isnan(a) else place[float(a)] for a in samples["angle_deg"]],
        "text": coded(samples["response"]),
        "cut": [int(bool(cut)) for cut in samples["shortened"]],
        "base": _bases(samples),
    }
    scores = [
        {"key": name, "label": label, "values": _column(samples[name])}
        for name, label in contents.scores.items()
    ]
    arms = [arm for arm in dict.fromkeys(samples["arm"]) if arm != UNSTEERED]
    return {
        **found,
        "arms": coded(arms),
        "still": [int(arm in contents.still) for arm in arms],
        "unsteered": coded([UNSTEERED])[0],
        "scores": scores,
        "strings": [*strings],
    }


_PLACE = ["arm", "part", "prompt_class", "prompt_index", "angle_deg"]


def _moved(contents: Contents) -> dict[str, list[Any]] | None:
    """Tokens and how far each was moved, by the row of the sample that they are of."""
    if contents.moved is None or contents.moved.empty:
        return None
    places = contents.samples.filter(_PLACE).assign(row=range(len(contents.samples)))
    rows = contents.moved.merge(places, on=_PLACE, validate="1:1")
    return {
        "row": [int(row) for row in rows["row"]],
        "prompt": [int(n) for n in rows["n_prompt"]],
        "tokens": [json.loads(tokens) for tokens in rows["tokens"]],
        "of": [[number(m / 1000) for m in json.loads(values)] for values in rows["moved"]],
    }


def _column(values: pd.Series) -> dict[str, Any]:
    """Truth values as 0 and 1, so that the page prints them as words."""
    are_bools = values.map(lambda value: isinstance(value, bool | np.bool_)).all()
    kind = "truth" if are_bools or values.name in TRUTHS else "mean"
    return {"kind": kind, "of": _numbers(values)}


def _bases(samples: pd.DataFrame) -> list[int]:
    keys = [*zip(samples["part"], samples["prompt_class"], samples["prompt_index"], strict=True)]
    unsteered = {key: row for row, key in enumerate(keys) if samples["arm"].iloc[row] == UNSTEERED}
    return [unsteered.get(key, -1) for key in keys]


def _records(table: pd.DataFrame | None) -> dict[str, list[Any]] | None:
    if table is None:
        return None
    kinds = {name: pd.api.types.is_numeric_dtype(table[name]) for name in table}
    return {
        str(name): _numbers(table[name]) if kinds[name] else [str(value) for value in table[name]]
        for name in table
    }


def _square(cosines: pd.DataFrame | None) -> dict[str, Any] | None:
    """The matrix in the order in which its sites appear."""
    if cosines is None:
        return None
    sites = [*dict.fromkeys(cosines["site"])]
    square = cosines.pivot(index="site", columns="other_site", values="cosine")
    rows = square.loc[sites, sites].to_numpy(float)
    return {"sites": sites, "of": [[None if np.isnan(x) else round(x, 3) for x in r] for r in rows]}
