"""The guard models say what they say of the response, and nothing where they say nothing."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ss_lens import UserError
from ss_lens.judges import LlamaGuard3, PolyGuard, Qwen3Guard
from tests.judges.checkpoints import (
    FLAT,
    PARTS,
    PROMPTS,
    RESPONSES,
    planted_guard,
    save_checkpoint,
    verdicts,
)


def polyguard_says(request: str, refusal: str, response: str) -> str:
    return f"Harmful request: {request}\nResponse refusal: {refusal}\nHarmful response: {response}"


@pytest.mark.parametrize(
    ("architecture", "model"),
    [
        ("mistral", "ToxicityPrompts/PolyGuard-Ministral"),
        ("qwen2", "ToxicityPrompts/PolyGuard-Qwen"),
        ("qwen2", "ToxicityPrompts/PolyGuard-Qwen-Smol"),
    ],
)
def test_polyguard_judges_the_response_not_the_request(
    tmp_path: Path, architecture: str, model: str
) -> None:
    outcomes = [
        polyguard_says("yes", "no", "yes"),
        polyguard_says("yes", "yes", "no"),
        "Harmful request: yes",
    ]
    weights = planted_guard(tmp_path / "guard", architecture, outcomes, "nothing")
    table = PolyGuard(model=model, weights=weights)(PROMPTS, RESPONSES)
    assert verdicts(table) == [None, "harmful", "safe", None, None, None, "safe", "harmful"]
    assert table["score"].isna().all()


@pytest.mark.parametrize(
    ("model", "template"),
    [("meta-llama/Llama-Guard-3-8B", FLAT), ("meta-llama/Llama-Guard-3-1B", PARTS)],
)
def test_llama_guard_needs_its_word_to_call_a_response_safe(
    tmp_path: Path, model: str, template: str
) -> None:
    """any-guardrail itself takes every text without “unsafe” for safe."""
    outcomes = ["unsafe\nS1", "safe", "I am not sure it is unsafe"]
    weights = planted_guard(tmp_path / "guard", "llama", outcomes, "nonsense", template)
    table = LlamaGuard3(model=model, weights=weights)(PROMPTS, RESPONSES)
    assert verdicts(table) == [None, "harmful", "safe", None, None, None, "safe", "harmful"]


def test_llama_guard_is_shown_an_assistant_turn_also_when_it_is_empty(tmp_path: Path) -> None:
    """The template here marks the assistant's turn, and the marker decides the verdict."""
    template = "{% for m in messages %}{% if m['role'] == 'assistant' %}alpha {% endif %}w1 " + (
        "{% endfor %}verdict :"
    )
    weights = planted_guard(tmp_path / "guard", "llama", ["safe"], "unsafe", template)
    assert verdicts(LlamaGuard3(weights=weights)(["w1"], [""])) == ["safe"]


@pytest.mark.parametrize(("strict", "middle"), [(True, "harmful"), (False, "safe")])
def test_qwen3guard_has_a_middle(tmp_path: Path, strict: bool, middle: str) -> None:
    outcomes = [
        "Safety: Unsafe\nCategories: Violent\nRefusal: No",
        "Safety: Safe\nCategories: None\nRefusal: Yes",
        "Safety: Controversial\nCategories: Unethical Acts\nRefusal: No",
    ]
    weights = planted_guard(tmp_path / "guard", "qwen3", outcomes, "nothing")
    table = Qwen3Guard(weights=weights, strict=strict)(PROMPTS, RESPONSES)
    assert verdicts(table) == [None, "harmful", "safe", None, None, middle, "safe", "harmful"]
    assert table["score"].dropna().tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]


@pytest.mark.parametrize(
    ("judge", "architecture", "template"),
    [(PolyGuard, "mistral", FLAT), (LlamaGuard3, "llama", FLAT), (Qwen3Guard, "qwen3", FLAT)],
)
def test_a_random_guard_is_unparsed(
    tmp_path: Path, judge: Any, architecture: str, template: str
) -> None:
    save_checkpoint(tmp_path / "guard", architecture, ["Yes"], template)
    table = judge(weights=str(tmp_path / "guard"))(PROMPTS[:1], RESPONSES[:1])
    assert verdicts(table) == [None]
    assert not table["parse_ok"].any()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "any_guardrail", None)
    with pytest.raises(UserError, match=r'pip install "ss_lens\[judges\]"'):
        PolyGuard()(["w1"], ["w2"])


@pytest.mark.parametrize("judge", [PolyGuard, LlamaGuard3, Qwen3Guard])
def test_an_unknown_guard_model_is_told(judge: Any) -> None:
    with pytest.raises(UserError, match=r"unknown model 'other/model'; use .*weights="):
        judge(model="other/model")(["w1"], ["w2"])


@pytest.mark.parametrize("judge", [PolyGuard, LlamaGuard3, Qwen3Guard])
def test_guard_weights_that_are_not_there_are_told(tmp_path: Path, judge: Any) -> None:
    with pytest.raises(UserError, match="could not be loaded"):
        judge(weights=str(tmp_path))(["w1"], ["w2"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", "file lacks 'model.norm.weight', which would be random"),
        ("nan", "'model.norm.weight' holds NaN or infinity"),
    ],
)
def test_a_guard_with_incomplete_or_damaged_weights_is_refused(
    damage: str, message: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "damaged", "qwen3", ["Yes"], FLAT)
    path = tmp_path / "damaged" / "model.safetensors"
    tensors = load_file(path)
    if damage == "absent":
        del tensors["model.norm.weight"]
    else:
        tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        Qwen3Guard(weights=str(tmp_path / "damaged"))(PROMPTS[:1], RESPONSES[:1])
