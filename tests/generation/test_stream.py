"""An answer token by token: the answer of ``generate``, and nothing left behind where it stops."""

from __future__ import annotations

import itertools
import signal
import threading

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, RotateBy, Store, UserError
from tests.interrupts import hooks_on

PROMPTS = ["w9 w70 w33", "w12", "w50 w51 w52 w53 w54 w55"]
NEW = 7


@pytest.fixture
def calibration(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> Calibration:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    return ss_lens.calibrate(acts, rule="uniform")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_streamed_answer_ends_as_generated(
    prompt: str, temperature: float, tiny_llama: TransformerBridge
) -> None:
    sampled = {"max_new_tokens": NEW, "temperature": temperature, "seed": 5}
    grown = [*ss_lens.stream(tiny_llama, prompt, **sampled)]
    (whole,) = ss_lens.generate(tiny_llama, [prompt], **sampled)
    assert grown[-1].text == whole
    decoded = tiny_llama.tokenizer.decode([g.token for g in grown], skip_special_tokens=True)
    assert decoded == whole
    assert len(grown) <= NEW


def test_a_streamed_answer_is_steered_as_generated(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    texts = []
    for angle in (0, 90, 200):
        with ss_lens.steer(tiny_llama, calibration, RotateBy(angle)):
            *_, last = ss_lens.stream(tiny_llama, PROMPTS[0], max_new_tokens=NEW)
            assert last.text == ss_lens.generate(tiny_llama, PROMPTS[:1], max_new_tokens=NEW)[0]
        texts.append(last.text)
    assert len(set(texts)) > 1


def test_each_text_continues_the_one_before(tiny_llama: TransformerBridge) -> None:
    texts = [grown.text for grown in ss_lens.stream(tiny_llama, PROMPTS[2], max_new_tokens=NEW)]
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))


def test_an_answer_that_stops_at_once_yields_nothing(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = ss_lens.stream(tiny_llama, PROMPTS[0], max_new_tokens=1)
    monkeypatch.setattr("ss_lens.generation.loop.stop_ids", lambda model: [first.token])
    assert [*ss_lens.stream(tiny_llama, PROMPTS[0], max_new_tokens=NEW)] == []
    assert ss_lens.generate(tiny_llama, PROMPTS[:1], max_new_tokens=NEW) == [""]


def test_a_loop_left_early_leaves_no_hook_and_no_mode(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    with ss_lens.steer(tiny_llama, calibration, RotateBy(90)):
        for _ in ss_lens.stream(tiny_llama, PROMPTS[0], max_new_tokens=NEW):
            assert not torch.is_inference_mode_enabled()
            break
    assert hooks_on(tiny_llama) == 0
    assert not torch.is_inference_mode_enabled()


def test_a_loop_is_interrupted_between_tokens_and_leaves_no_hook(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    seen: list[str] = []

    def answer() -> None:
        with ss_lens.steer(tiny_llama, calibration, RotateBy(90)):
            for grown in ss_lens.stream(tiny_llama, PROMPTS[0], max_new_tokens=NEW):
                seen.append(grown.text)
                if len(seen) == 2:
                    signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        answer()
    assert len(seen) == 2
    assert hooks_on(tiny_llama) == 0


def test_a_stream_is_refused_where_another_thread_steers(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    refused: list[UserError] = []

    def answer() -> None:
        try:
            [*ss_lens.stream(tiny_llama, PROMPTS[0], max_new_tokens=1)]
        except UserError as error:
            refused.append(error)

    with ss_lens.steer(tiny_llama, calibration, RotateBy(90)):
        other = threading.Thread(target=answer)
        other.start()
        other.join()
        ss_lens.generate(tiny_llama, PROMPTS[:1], max_new_tokens=1)
    assert "another thread is steering this model" in str(refused[0])


@pytest.mark.usefixtures("unchecked_types")
def test_a_list_of_prompts_is_refused_at_the_call(tiny_llama: TransformerBridge) -> None:
    with pytest.raises(UserError):
        ss_lens.stream(tiny_llama, ["w9", "w12"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="max_new_tokens"):
        ss_lens.stream(tiny_llama, "w9", max_new_tokens=0)
