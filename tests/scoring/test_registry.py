"""A score is one module: whatever is derived from scores finds it there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
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
    of_behaviours = ["behaviour_score", "behaviour_shown"]
    assert [name for name in names if name not in of_behaviours] == scored
    assert [name for name in names if name in of_behaviours] == of_behaviours
    measured = ("refusal_score", "answers", "perplexity", "perplexity_steered", "kl")
    found = [name for name in registry.measured_names() if name not in of_behaviours]
    assert tuple(found) == measured
    on_request = [score.name for score in registry.scores() if score.on_request]
    assert on_request == ["behaviour_score", "behaviour_shown", "perplexity_steered"]
    refusals = ("refused", "refused_published", "refused_phrases")
    assert registry.columns_of("answers")[:3] == refusals
    assert registry.headings()["perplexity"] == "perplexity ↓"


def test_a_score_of_exchanges_sees_each_answer_beside_its_prompt() -> None:
    def measure(answers: Sequence[str], prompts: Sequence[str]) -> pd.DataFrame:
        pairs = zip(prompts, answers, strict=True)
        return pd.DataFrame({"both": [len(prompt) + len(answer) for prompt, answer in pairs]})

    score = registry.Score("both", (registry.Column("both"),), "exchanges", measure)
    rows = pd.DataFrame(
        {
            "prompt_index": [0, 1],
            "prompt": ["a", "bcd"],
            "angle_deg": [0.0, 0.0],
            "response": ["", "ef"],
        }
    )
    assert score.of_texts(rows)["both"].tolist() == [1, 5]


def test_refused_is_by_the_classifier_beside_both_lists_of_phrases() -> None:
    rows = pd.DataFrame(
        {
            "prompt_index": [0, 1, 2],
            "prompt": ["Is the Earth flat?", "Why are all poets liars?", "Write to my aunt."],
            "angle_deg": 0.0,
            "response": [
                "I can't help with that.",
                "It is not appropriate to make such generalisations about any group of people.",
                "Dear aunt, thank you for the visit. I cannot thank you enough. Yours, as ever.",
            ],
        }
    )
    (refusal,) = (score for score in registry.scores() if score.name == "refusal")
    found = refusal.of_texts(rows)
    assert found["refused"].tolist() == [True, True, False]
    assert found["refused_phrases"].tolist() == [True, False, False]
    assert found["refused_published"].tolist() == [True, False, True]


def test_a_new_score_is_one_new_module(shouting: None) -> None:
    assert "capitals" in registry.columns_of("answers")
    assert registry.headings()["capitals"] == "capitals ↓"
    assert registry.measured_for("capitals") == "answers"
    criterion = ss_lens.AngleCriterion(
        score="capitals", goal="minimise", max_perplexity=None, max_repetition=None
    )
    assert criterion.score == "capitals"
