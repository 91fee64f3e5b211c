"""Perplexity equals plain Hugging Face arithmetic and lm-eval, and does not catch a loop."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import ss_lens
from ss_lens import ContrastiveDataset, RotateBy, Store, UserError
from ss_lens.scoring import continuations
from ss_lens.scoring.coherence import CollapseRule, coherence_table
from ss_lens.scoring.perplexity import (
    PAPER_PERPLEXITY_LIMIT,
    answer_perplexity,
    perplexity_violations,
    text_perplexity,
)
from tests.conftest import ARCHITECTURES
from tests.oracles import HuggingFaceOracle

PROMPTS = ["w9 w10 w11", "w12", "w40 w9 w9 w9 w77", "w13 w14"]
ANSWERS = ["w20 w21 w22 w23 w24 w25", "w30", "", "w41 w42"]


def words(n: int, seed: int = 0) -> str:
    ids = torch.randint(8, 128, (n,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in ids.tolist())


def expected_nll(oracle: HuggingFaceOracle, prompt: str, answer: str) -> tuple[float, int]:
    """One sequence, unpadded, in float64."""
    context = oracle.ids(prompt)
    scored = oracle.tokenizer(answer, add_special_tokens=False, return_tensors="pt").input_ids
    whole = torch.cat((context, scored), dim=1)
    logp = oracle.logits(whole).double().log_softmax(dim=-1)
    total = 0.0
    for place in range(context.shape[1], whole.shape[1]):
        total -= float(logp[place - 1, whole[0, place]])
    return total, scored.shape[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answer_perplexity_equals_one_unpadded_answer_at_a_time(
    architecture: str, tiny_models: dict[str, TransformerBridge], tiny_folders: dict[str, Path]
) -> None:
    model, oracle = tiny_models[architecture], HuggingFaceOracle(tiny_folders[architecture])
    table = answer_perplexity(model, PROMPTS, ANSWERS)
    assert list(table) == ["perplexity", "mean_nll", "n_tokens"]
    for row, prompt, answer in zip(table.itertuples(), PROMPTS, ANSWERS, strict=True):
        if not answer:
            continue
        total, n = expected_nll(oracle, prompt, answer)
        assert row.n_tokens == n
        assert row.mean_nll == pytest.approx(total / n, abs=2e-5)
        assert row.perplexity == pytest.approx(math.exp(total / n), rel=2e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("logits_at_once", [2**26, 3 * 128, 1])
def test_answer_perplexity_is_invariant_to_batches_and_order(
    batch_size: int,
    logits_at_once: int,
    tiny_llama: TransformerBridge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = answer_perplexity(tiny_llama, PROMPTS, ANSWERS)
    monkeypatch.setattr(continuations, "LOGITS_AT_ONCE", logits_at_once)
    split = answer_perplexity(tiny_llama, PROMPTS[::-1], ANSWERS[::-1], batch_size=batch_size)
    pd.testing.assert_frame_equal(split[::-1].reset_index(drop=True), whole, rtol=1e-5)


def test_the_logits_held_at_once_are_bounded(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, run_all = [], continuations.forward.run_all

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        logits = run_all(*args, **kwargs)
        held.append(logits.numel())
        return logits

    monkeypatch.setattr(continuations.forward, "run_all", counted)
    monkeypatch.setattr(continuations, "LOGITS_AT_ONCE", 10 * 128)
    answers = [words(n) for n in (1, 2, 3, 4, 5, 6, 20)]
    answer_perplexity(tiny_llama, ["w9"] * len(answers), answers)
    assert max(held[:-1]) <= 10 * 128
    assert held[-1] == 20 * 128  # one row is the least


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(
    tiny_folders: dict[str, Path],
) -> None:
    model = ss_lens.load_model(tiny_folders["llama"])
    with torch.no_grad():
        model.original_model.get_output_embeddings().weight.zero_()
    assert answer_perplexity(model, ["w9"], ["w10 w11"])["perplexity"].tolist() == pytest.approx(
        [128], rel=1e-6
    )
    assert text_perplexity(model, [words(150)])["perplexity"].tolist() == pytest.approx([128])


def test_an_empty_answer_has_no_perplexity_and_keeps_its_row(
    tiny_llama: TransformerBridge,
) -> None:
    table = answer_perplexity(tiny_llama, PROMPTS, ANSWERS)
    assert table["n_tokens"].tolist() == [6, 1, 0, 2]
    assert table["perplexity"].isna().tolist() == [False, False, True, False]
    nothing = answer_perplexity(tiny_llama, [], [])
    assert list(nothing) == list(table)
    assert nothing.empty
    assert answer_perplexity(tiny_llama, ["w9"], [""])["mean_nll"].isna().all()


def test_a_steered_model_is_not_asked_about_its_own_text(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    calibration = ss_lens.calibrate(ss_lens.capture(tiny_llama, tiny_data, store=store))
    unsteered = answer_perplexity(tiny_llama, PROMPTS, ANSWERS)
    with ss_lens.steer(tiny_llama, calibration, RotateBy(90)):
        with pytest.raises(UserError, match=r"carries hooks .* finds its own loops fluent"):
            answer_perplexity(tiny_llama, PROMPTS, ANSWERS)
        with pytest.raises(UserError, match=r"carries hooks .* Do it outside of steer"):
            text_perplexity(tiny_llama, ["w9"])
    with ss_lens.steer(tiny_llama, calibration, RotateBy(0)):
        inside = answer_perplexity(tiny_llama, PROMPTS, ANSWERS)
    pd.testing.assert_frame_equal(inside, unsteered)


def test_what_cannot_be_scored_is_an_error(tiny_llama: TransformerBridge) -> None:
    with pytest.raises(UserError, match="got 2 prompts and 1 responses; give one response per"):
        answer_perplexity(tiny_llama, ["w9", "w10"], ["w11"])
    with pytest.raises(UserError, match=r"responses must be a list; got one text. Write \['w11'\]"):
        answer_perplexity(tiny_llama, ["w9"], "w11")
    with pytest.raises(UserError, match=r"together with its response; the context of .* 64"):
        answer_perplexity(tiny_llama, ["w9"], [words(60)])
    with pytest.raises(UserError, match="batch_size must be at least 1; got 0"):
        answer_perplexity(tiny_llama, ["w9"], ["w11"], batch_size=0)
    with pytest.raises(UserError, match="texts must be a list"):
        text_perplexity(tiny_llama, "w9")
    for length in (0, 65):
        with pytest.raises(UserError, match=f"max_length is {length}; expected 1 to 64"):
            text_perplexity(tiny_llama, ["w9"], max_length=length)


def test_log_probabilities_that_are_not_finite_are_an_error(tiny_folders: dict[str, Path]) -> None:
    model = ss_lens.load_model(tiny_folders["llama"])
    with torch.no_grad():
        model.original_model.get_output_embeddings().weight[20] = torch.nan
    with pytest.raises(UserError, match="log-probability of 'w11' is not finite"):
        answer_perplexity(model, ["w9"], ["w11"])


def test_a_violation_is_a_perplexity_above_the_papers_limit() -> None:
    assert PAPER_PERPLEXITY_LIMIT == 2.0
    assert perplexity_violations([1.5, 2.0, 2.5, math.nan, math.inf]).tolist() == [
        False,
        False,
        True,
        False,
        True,
    ]
    assert perplexity_violations([3.0], limit=5).tolist() == [False]


# --- against lm-eval -----------------------------------------------------------------------------

LENGTHS = (1, 2, 40, 63, 64, 65, 127, 128, 129, 200)


def lm_eval_loglikelihoods(
    folder: Path, texts: list[str], tokenizer: object = None, **settings: object
) -> list[float]:
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval is missing")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    judge = huggingface.HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        tokenizer=tokenizer or AutoTokenizer.from_pretrained(folder),
        batch_size=2,
        **settings,
    )
    requests = [
        instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
        for text in texts
    ]
    return judge.loglikelihood_rolling(requests, disable_tqdm=True)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("max_length", [None, 10])
def test_text_perplexity_equals_lm_evals_rolling_loglikelihood(
    architecture: str,
    max_length: int | None,
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
) -> None:
    texts = [words(n, seed=n) for n in LENGTHS]
    expected = lm_eval_loglikelihoods(tiny_folders[architecture], texts, max_length=max_length)
    table = text_perplexity(tiny_models[architecture], texts, max_length=max_length, batch_size=3)
    assert table["n_tokens"].tolist() == list(LENGTHS)
    np.testing.assert_allclose(-table["mean_nll"] * table["n_tokens"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        table["perplexity"], np.exp(-np.array(expected) / LENGTHS), rtol=1e-4
    )


def test_the_bos_that_a_tokenizer_adds_is_not_text(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "with-bos"
    AutoModelForCausalLM.from_pretrained(tiny_folders["llama"]).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["llama"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    text = words(30)
    assert len(tokenizer(text)["input_ids"]) == 31
    table = text_perplexity(ss_lens.load_model(folder), [text])
    ours = -float(table["mean_nll"][0]) * 30
    (told,) = lm_eval_loglikelihoods(folder, [text], tokenizer, add_bos_token=False)
    (by_default,) = lm_eval_loglikelihoods(folder, [text], tokenizer)
    assert ours == pytest.approx(told, rel=1e-5)
    assert abs(by_default - told) > 0.1  # it also predicts a BOS after the BOS


def test_an_empty_text_has_no_perplexity(tiny_llama: TransformerBridge) -> None:
    table = text_perplexity(tiny_llama, ["", words(70)])
    assert table["n_tokens"].tolist() == [0, 70]
    assert table["perplexity"].isna().tolist() == [True, False]
    assert text_perplexity(tiny_llama, []).empty


# --- collapse, on the real model -----------------------------------------------------------------

COLLAPSED = {
    "loop": "I'm " * 40,
    "short loop": "I'm I'm I'm",
    "empty": "",
    "mash": "хлеб 빵을 réfrigérateur 保存 ψωμί ขนมปัง brot لحفظ नान Küche パンは 冷凍 đông ekmek "
    "包み khubz",
    "salad": "Keep table seven of running, purple the nevertheless bread at under sang quickly "
    "window or if seventeen glass because moon salted the.",
}
NORMAL = (
    "Keep it in a paper bag or a bread box at room temperature, away from sunlight. It stays soft "
    "for two or three days; after that, slice it and freeze what is left, and toast the slices as "
    "you need them."
)


@pytest.mark.default_model
def test_the_combined_view_catches_every_collapse_and_perplexity_alone_prefers_the_loop() -> None:
    model = ss_lens.load_model("smollm2-135m")
    texts = {**COLLAPSED, "normal": NORMAL}
    prompts = ["How do I keep bread fresh for longer?"] * len(texts)
    perplexity = answer_perplexity(model, prompts, list(texts.values()))
    rule = CollapseRule(
        max_perplexity=300, max_compression_ratio=4, max_repetition=0.5, max_non_latin_share=0.2
    )
    table = coherence_table(list(texts.values()), perplexity, rule)
    table.index = pd.Index(list(texts))

    assert table.index[~table["collapsed"]].tolist() == ["normal"]
    first_reason = {
        name: reasons.split(";")[0].split(" ")[0] for name, reasons in table["reasons"].items()
    }
    assert first_reason == {
        "loop": "loop",
        "short loop": "loop",
        "empty": "empty",
        "mash": "non_latin_share",
        "salad": "perplexity",
        "normal": "",
    }
    assert table["reasons"]["loop"].split("; ")[1].startswith("compression_ratio")
    assert "repetition" in table["undefined"]["short loop"]

    # Perplexity alone finds the loop the most fluent of all, by far, and has no word on silence.
    alone = table["perplexity"]
    assert alone.idxmin() == "loop"
    assert alone["loop"] < 2 < 10 < alone["normal"]
    assert not perplexity_violations(alone)["loop"]
    assert perplexity_violations(alone)["normal"]
    assert math.isnan(alone["empty"])
