"""What is known of a judge's agreement with people, kept where every use of it finds it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ss_lens.core.files import cache_root, sha256_of_json
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.judges import EndpointJudge, RubricJudge, read_judge
from ss_lens.judges.agreement.labels import Labelled
from ss_lens.judges.agreement.measure import ALL, CLASSIFIER, COUNTED, OPENING, RULES, Agreement
from ss_lens.scoring.refusal_classifier.classify import trained_on

_MACHINE = ("dtype", "device")
"""Fields of judges that hardly change a verdict; κ is known for all of their values."""


@dataclass(frozen=True)
class Known:
    """A judge's κ with people: of any refusal against compliance, with its 95 % interval.

    Attributes:
        judge: its name, or as :func:`ss_lens.judges.read_judge` reads it.
        n: answers.
        labels: whose labels, and how they were measured on.
    """

    judge: str
    kappa: float
    low: float
    high: float
    n: int
    labels: str

    def __str__(self) -> str:
        return (
            f"{self.judge}, κ with people {self.kappa:.2f} [{self.low:.2f}, {self.high:.2f}] on "
            f"{self.n} answers ({self.labels})"
        )


def known(judge: str) -> Known | None:
    """What was measured of a judge: by the user, else what comes with the package.

    Args:
        judge: :data:`CLASSIFIER`, :data:`OPENING`, :data:`PUBLISHED`, or a judge's text.
    """
    if judge == CLASSIFIER:
        fitted = trained_on()
        values = fitted.with_partial, fitted.low, fitted.high, fitted.n
        return Known(judge, *values, "XSTest, requests and models left out of the fit")
    key = _key(judge)
    path = _home() / f"{key}.json"
    if path.exists():
        found = read_sealed_json(path, "measured agreement", remedy="measure it again")
        return Known(**{field.name: found[field.name] for field in fields(Known)})
    packaged = _packaged().get(key)
    return None if packaged is None else Known(**{**packaged, "judge": judge})


def remember(agreement: Agreement, labelled: Labelled, judges: Sequence[str]) -> Path:
    """Keep the agreement of these judges where there is a κ with an interval; return the folder.

    The classifier's own is what was measured when it was fitted, and is not replaced.
    """
    table = agreement.kappas
    sample = len(labelled.table) < labelled.n_in_file
    for judge in judges:
        dtype = getattr(read_judge(judge), "dtype", "auto")
        how = ("a sample" if sample else "", "" if dtype == "auto" else f"in {dtype}")
        labels = ", ".join(part for part in (labelled.name, *how) if part)
        named = (table["judge"] == judge) & (table["counted"] == COUNTED[1])
        (row,) = table.loc[named & (table["model"] == ALL)].to_dict("records")
        values = {name: row[name] for name in ("kappa", "low", "high", "n")}
        if not all(map(math.isfinite, values.values())):
            continue
        record = asdict(Known(judge, **values, labels=labels))
        more = {"labels_sha256": labelled.sha256, "ss_lens": version("ss_lens")}
        _home().mkdir(parents=True, exist_ok=True)
        write_sealed_json(_home() / f"{_key(judge)}.json", {**record, **more})
    return _home()


def refused_by(by_phrases: bool) -> str:
    """Who says ``refused`` in a table of scores, and its measured agreement with people.

    Args:
        by_phrases: of :func:`ss_lens.scoring.refusal.counts_by_phrases`.
    """
    name = OPENING if by_phrases else CLASSIFIER
    found = known(name)
    return name if found is None else str(found)


def judged_by(judge: str) -> str:
    """A judge and its measured agreement with people, or that none was measured.

    Args:
        judge: as :func:`known` takes it.
    """
    found = known(judge)
    return f"{judge}, κ not measured" if found is None else str(found)


def _home() -> Path:
    return cache_root() / "judges"


def _key(judge: str) -> str:
    """A digest of all that a judge's verdicts depend on; of its rubric the text counts."""
    return sha256_of_json(_identity(judge))


def _identity(judge: str) -> dict[str, Any]:
    if judge in RULES:
        return {"rule": judge}
    value = read_judge(judge)
    if isinstance(value, RubricJudge | EndpointJudge):
        whole = value.identity()
    else:
        whole = {f.name: getattr(value, f.name) for f in fields(value) if f.compare}
    found = {name: given for name, given in whole.items() if name not in _MACHINE}
    return {"judge": type(value).__name__, **found}


@cache
def _packaged() -> dict[str, dict[str, Any]]:
    """Measured for the package, by key; see ``docs/how-to/judges.md``."""
    text = resources.files("ss_lens.judges.agreement").joinpath("measured.json").read_text("utf-8")
    return {_key(record["judge"]): record for record in json.loads(text)}
