"""A page of measurements says what its tables say: each sentence is made again from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import pytest

import ss_lens
from analyses import drift, entanglement, gating, steerability
from analyses.baselines.figures import brief
from analyses.printed.tables import markdown
from ss_lens.behaviours.measures import PromptClass
from tests.documents.readme import ROOT

RESULTS = ROOT / "docs" / "results"


def _read(*names: str) -> list[pd.DataFrame]:
    return [pd.read_csv(RESULTS / "reliability" / f"{name}.csv") for name in names]


def _steerability() -> Sequence[str]:
    summary, surface = _read("steerability_summary", "steerability_surface")
    return steerability.findings(summary, surface, None, by=["dataset"])


SENTENCES: dict[str, Callable[[], Sequence[str]]] = {
    "entanglement": lambda: entanglement.findings(*_read("entanglement", "entanglement_front")),
    "steerability": _steerability,
    "drift": lambda: drift.findings(*_read("drift_geometry", "drift")),
    "gating": lambda: gating.findings(*_read("gating")),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_each_sentence_of_an_analysis_is_on_the_page(name: str) -> None:
    page = (RESULTS / "reliability.md").read_text("utf-8")
    found = SENTENCES[name]()
    assert found
    for sentence in found:
        assert f"- {sentence}\n" in page


@pytest.mark.parametrize(
    ("behaviour", "moved"), [("refusal", "positive"), ("formality", "negative")]
)
def test_the_table_of_ways_is_on_the_page(behaviour: str, moved: PromptClass) -> None:
    table = pd.read_csv(RESULTS / "baselines" / f"{behaviour}.csv")
    rows = brief(table, ss_lens.load_behaviour(behaviour).measures, moved)
    page = (RESULTS / "baselines.md").read_text("utf-8")
    assert markdown([*rows.columns], rows.itertuples(index=False)).strip() in page
