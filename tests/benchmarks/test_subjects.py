"""The benchmarks measure the model that they say they measure, and count what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import measures, speed, subjects
from benchmarks.subjects import SHAPES, Subject
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from tests.oracles import relative_error

SMALL = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "layer_types": None,
}


def small(shape: str) -> Subject:
    """A named shape with its own rotary embedding and tying, but of small sizes."""
    config = SHAPES[shape].to_dict()
    kind = type(SHAPES[shape])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, shape, kind(**{**config, **SMALL}))
        return subjects.random_weights(shape, "cpu", "float32", 4)


@pytest.mark.parametrize("shape", ["llama-3.1-8b", "qwen2.5-1.5b"])
def test_the_untouched_twin_computes_what_the_bridge_computes(shape: str) -> None:
    subject = small(shape)
    ids = torch.tensor([tokenize(subject.model, subject.prompts[:1])[0]])
    with torch.inference_mode():
        expected, _ = forward.run(subject.model, ids, torch.ones_like(ids))
        plain = subject.untouched()
        found = plain(input_ids=ids).logits[:, -1]
    assert relative_error(found, expected) < 1e-4
    kept = {weight.data_ptr() for weight in subject.model.original_model.parameters()}
    assert {weight.data_ptr() for weight in plain.parameters()} <= kept  # no second copy


def test_named_shapes_have_the_published_number_of_weights() -> None:
    """Counted without building them: 8.03 and 1.54 thousand million."""
    for shape, expected in (("llama-3.1-8b", 8.03e9), ("qwen2.5-1.5b", 1.54e9)):
        c = SHAPES[shape]
        head = c.hidden_size // c.num_attention_heads
        width = head * (c.num_attention_heads + c.num_key_value_heads) * 2
        block = c.hidden_size * (width + 3 * c.intermediate_size)
        tables = (1 if c.tie_word_embeddings else 2) * c.vocab_size * c.hidden_size
        assert c.num_hidden_layers * block + tables == pytest.approx(expected, rel=5e-3)


def test_the_benchmark_runs_on_random_weights_and_appends_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "speed.md"
    out.parent.mkdir()
    out.write_text("# Before\n")
    for name, value in {"per_class": 3, "rows": 2, "steps": 2}.items():
        monkeypatch.setitem(speed.ON_CPU, name, value)
    monkeypatch.setattr(measures, "ANGLES", (0.0, 90.0))
    arguments = ["speed", "--shape", "tiny", "--rounds", "1", "--angles", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    speed.main()
    text = out.read_text()
    assert text.startswith("# Before\n## random tiny\n")
    assert text.count("| decoding steered at 28 sites / unsteered") == 1
    printed = capsys.readouterr().out
    for ratio in ("capture of all norm outputs", "refusal_score", "perplexity", "kl", "2 angles"):
        assert f"  {ratio} " in printed, ratio
