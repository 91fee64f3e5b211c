"""The mean over a prompt's own tokens, against plain hooks and tokens counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ContrastiveDataset, Store, UserError
from ss_lens.models.chat import ChatFormat, prompt_spans, tokenize
from tests.oracles import HuggingFaceOracle, relative_error


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_mean_over_a_prompt_takes_its_own_tokens_and_no_other(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    """The tiny tokenizer has a token per word; before the prompt stand BOS, six more and a role."""
    model, oracle = tiny_models[architecture], HuggingFaceOracle(tiny_folders[architecture])
    acts = ss_lens.capture(model, tiny_data, position="prompt_mean", batch_size=5, store=store)
    expected = []
    for prompt in (*tiny_data.positive, *tiny_data.negative):
        ids, words = oracle.ids(prompt), prompt.split()
        own = oracle.tokenizer.convert_tokens_to_ids(words)
        first = next(i for i in range(ids.shape[1]) if ids[0, i : i + len(own)].tolist() == own)
        h = oracle.activations(ids, acts.sites)
        expected.append(h[first : first + len(own)].mean(dim=0))
    got = torch.cat((acts.positive, acts.negative))
    assert relative_error(got, torch.stack(expected)) < 1e-4


def test_prompts_that_begin_alike_are_averaged_over_what_they_share_too(
    tiny_llama: TransformerBridge, tmp_path: Path
) -> None:
    alike = ContrastiveDataset("alike", ("w8 w9 w10", "w8 w9 w11"), ("w8 w9 w12", "w8 w9"))
    together = ss_lens.capture(
        tiny_llama, alike, position="prompt_mean", store=Store(tmp_path / "1")
    )
    apart = ContrastiveDataset("apart", (*alike.positive, "w50"), alike.negative)
    other = ss_lens.capture(tiny_llama, apart, position="prompt_mean", store=Store(tmp_path / "2"))
    assert relative_error(together.positive, other.positive[:2]) < 1e-4
    assert relative_error(together.negative, other.negative) < 1e-4


def test_the_positions_have_different_keys_and_values(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    found = [
        ss_lens.capture(tiny_llama, tiny_data, position=position, store=store)
        for position in (-1, "mean", "prompt_mean")
    ]
    assert len({acts.spec.key for acts in found}) == 3
    assert relative_error(found[1].positive, found[2].positive) > 0.01


@pytest.mark.parametrize("chat", [ChatFormat(), ChatFormat(system="w70 w8")])
def test_a_span_holds_the_prompt_though_the_template_repeats_its_words(
    tiny_llama: TransformerBridge, chat: ChatFormat
) -> None:
    prompts = ["w8 w9", "user", "system be helpful", "w8", " w9 w8 "]
    spans = prompt_spans(tiny_llama, prompts, chat)
    for ids, (start, stop), prompt in zip(
        tokenize(tiny_llama, prompts, chat), spans, prompts, strict=True
    ):
        own = tiny_llama.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert list(ids[start:stop]) == own
        assert start >= 6


def test_a_span_of_bytes_counts_every_byte(tiny_models: dict[str, TransformerBridge]) -> None:
    prompts = ["né 哈", "abc"]
    (start, stop), (first, last) = prompt_spans(tiny_models["qwen2"], prompts)
    assert stop - start == len(prompts[0].encode())
    assert last - first == 3


def test_of_a_conversation_the_last_turn_is_the_prompt(tiny_llama: TransformerBridge) -> None:
    turns = [
        {"role": "user", "content": "w8 w9"},
        {"role": "assistant", "content": "w10"},
        {"role": "user", "content": "w8 w9"},
    ]
    ((start, stop),) = prompt_spans(tiny_llama, [turns])
    (ids,) = tokenize(tiny_llama, [turns])
    assert stop - start == 2
    assert stop == len(ids) - 2  # the end of the turn, and the assistant's role


def test_plain_text_leaves_out_the_beginning_of_text(tiny_folders: dict[str, Path]) -> None:
    model = ss_lens.load_model(tiny_folders["gpt2"])
    model.tokenizer.chat_template = None
    with pytest.warns(UserWarning, match="has no chat template"):
        spans = prompt_spans(model, ["w8 w9 w10"])
    (ids,) = tokenize(model, ["w8 w9 w10"])
    assert spans == [(len(ids) - 3, len(ids))]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }} {{ m['content'] }}{% endfor %}",
        "{% for m in messages %}user {% endfor %}",
    ],
)
def test_a_template_that_changes_repeats_or_drops_the_prompt_is_refused(
    template: str, tiny_folders: dict[str, Path], tiny_data: ContrastiveDataset, store: Store
) -> None:
    model = ss_lens.load_model(tiny_folders["llama"])
    model.tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"changes or repeats the text of prompt 0 .*position="):
        ss_lens.capture(model, tiny_data.head(2), position="prompt_mean", store=store)
