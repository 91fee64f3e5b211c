"""A score is one module: whatever is derived from scores finds it there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ss_lens
import ss_lens.scoring
from ss_lens.scoring import registry

SHOUTING = """
import pandas as pd
from ss_lens.scoring.registry import Column, Score

SCORE = Score(
    name="shouting",
    columns=(Column("capitals", "capitals", better="lower"),),
    needs="texts",
    measure=lambda texts: pd.DataFrame({"capitals": [sum(map(str.isupper, t)) for t in texts]}),
)
"""


@pytest.fixture
def shouting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new module beside the others."""
    (tmp_path / "shouting.py").write_text(SHOUTING)
    monkeypatch.setattr(ss_lens.scoring, "__path__", [*ss_lens.scoring.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    registry.scores.cache_clear()
    yield
    sys.modules.pop("ss_lens.scoring.shouting")
    registry.scores.cache_clear()


def test_the_scores_are_those_of_the_room() -> None:
    names = [score.name for score in registry.scores()]
    scored = ["refusal_score", "refusal", "coherence", "perplexity", "perplexity_steered", "kl"]
    assert names == scored
    measured = ("refusal_score", "answers", "perplexity", "perplexity_steered", "kl")
    assert registry.measured_names() == measured
    on_request = [score.name for score in registry.scores() if score.on_request]
    assert on_request == ["perplexity_steered"]
    assert registry.columns_of("answers")[:2] == ("refused", "refused_published")
    assert registry.headings()["perplexity"] == "perplexity ↓"


def test_a_new_score_is_one_new_module(shouting: None) -> None:
    assert "capitals" in registry.columns_of("answers")
    assert registry.headings()["capitals"] == "capitals ↓"
    assert registry.measured_for("capitals") == "answers"
    criterion = ss_lens.AngleCriterion(
        score="capitals", goal="minimise", max_perplexity=None, max_repetition=None
    )
    assert criterion.score == "capitals"
