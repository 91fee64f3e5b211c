"""The divergence of steered predictions equals a sum over the vocabulary, one answer at a time."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import rel_entr
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import (
    Ablate,
    Add,
    Calibration,
    ChatFormat,
    ContrastiveDataset,
    RotateBy,
    Store,
    UserError,
    steer,
)
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from ss_lens.scoring import continuations
from ss_lens.scoring.divergence import Changed, changed_divergence, kl_divergence
from ss_lens.steering.positions import (
    AllPositions,
    GeneratedOnly,
    LastPrompt,
    Positions,
    PromptOnly,
)
from tests.oracles import HuggingFaceOracle, dense_rotation, everywhere

PROMPTS = ["w9 w10 w11", "w12", "w40 w9 w9 w9 w77", "w13 w14"]
ANSWERS = ["w20 w21 w22 w23 w24 w25", "w30", "", "w41 w42"]
ANGLE = 70.0


@pytest.fixture
def calibration(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> Calibration:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    return ss_lens.calibrate(acts, rule="uniform")


def test_the_divergence_equals_the_sum_over_the_vocabulary(
    tiny_llama: TransformerBridge, calibration: Calibration, tiny_folders: dict
) -> None:
    table = kl_divergence(tiny_llama, calibration, RotateBy(ANGLE), PROMPTS, ANSWERS)
    assert list(table) == ["kl_mean", "kl_first", "n_tokens"]
    assert table["n_tokens"].tolist() == [6, 1, 0, 2]
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    edits = everywhere(dense_rotation(calibration.plane, ANGLE), calibration.selected_sites)
    for row, prompt, answer in zip(table.itertuples(), PROMPTS, ANSWERS, strict=True):
        context = oracle.ids(prompt)
        scored = oracle.tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = torch.cat((context, torch.tensor([scored], dtype=torch.long)), dim=1)
        p, q = (
            torch.softmax(oracle.logits(ids, some).double(), dim=-1).numpy()
            for some in (None, edits)
        )
        start = context.shape[1] - 1
        kl = rel_entr(p, q).sum(axis=-1)[start : start + max(1, len(scored))]
        assert row.kl_first == pytest.approx(kl[0], rel=1e-3)
        assert kl[0] > 1e-3
        if scored:
            assert row.kl_mean == pytest.approx(kl.mean(), rel=1e-3)
        else:
            assert np.isnan(row.kl_mean)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("logits_at_once", [2**26, 1])
def test_the_divergence_is_invariant_to_batches_and_order(
    batch_size: int,
    logits_at_once: int,
    tiny_llama: TransformerBridge,
    calibration: Calibration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = kl_divergence(tiny_llama, calibration, Ablate(), PROMPTS, ANSWERS)
    monkeypatch.setattr(continuations, "LOGITS_AT_ONCE", logits_at_once)
    split = kl_divergence(
        tiny_llama, calibration, Ablate(), PROMPTS[::-1], ANSWERS[::-1], batch_size=batch_size
    )
    pd.testing.assert_frame_equal(split[::-1].reset_index(drop=True), whole, rtol=1e-4)


def test_no_steering_is_no_divergence_and_more_steering_is_more(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    def mean(operator: RotateBy | Add) -> float:
        table = kl_divergence(tiny_llama, calibration, operator, PROMPTS, ANSWERS)
        assert (table["kl_first"] >= 0).all()
        return float(table["kl_mean"].mean())

    assert mean(RotateBy(0)) == 0.0
    assert mean(Add(0)) == pytest.approx(0, abs=1e-9)
    assert 0 < mean(RotateBy(1)) < mean(RotateBy(5)) < mean(RotateBy(30))
    # Second order in a small angle, as a divergence is.
    assert mean(RotateBy(2)) / mean(RotateBy(1)) == pytest.approx(4, rel=0.1)


def test_only_steered_positions_diverge(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    def table(positions: Positions, answers: list[str] = ANSWERS) -> pd.DataFrame:
        return kl_divergence(
            tiny_llama, calibration, RotateBy(ANGLE), PROMPTS, answers, positions=positions
        )

    generated = table(GeneratedOnly())
    # The unsteered model chooses the first token; what follows a token that was read is steered.
    assert generated["kl_first"].tolist() == [0] * 4
    assert (generated["kl_mean"] > 0).tolist() == [True, False, False, True]
    assert generated["kl_mean"].tolist()[1] == 0
    assert table(GeneratedOnly(), [""] * 4)["kl_first"].tolist() == [0] * 4
    everything, prompt = table(AllPositions()), table(PromptOnly())
    np.testing.assert_allclose(prompt["kl_first"], everything["kl_first"], rtol=1e-5)
    assert prompt["kl_mean"][0] != pytest.approx(everything["kl_mean"][0], rel=1e-3)
    assert (table(LastPrompt(1))["kl_first"] > 0).all()


def test_steering_answers_alone_diverges_as_it_does_while_they_are_written(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    """Against cached decoding, one token at a time."""
    prompt, answer = PROMPTS[0], ANSWERS[0]
    got = kl_divergence(
        tiny_llama, calibration, RotateBy(ANGLE), [prompt], [answer], positions=GeneratedOnly()
    )
    context = list(tokenize(tiny_llama, [prompt])[0])
    scored = tiny_llama.tokenizer(answer, add_special_tokens=False)["input_ids"]

    def distributions() -> list[np.ndarray]:
        found, cache, ids, read = [], None, context, 0
        for token in scored:
            read += len(ids)
            logits, cache = forward.run(
                tiny_llama,
                torch.tensor([ids]),
                torch.ones(1, read, dtype=torch.long),
                cache,
                keep_cache=True,
            )
            found.append(torch.softmax(logits[0].double(), dim=-1).numpy())
            ids = [token]
        return found

    with torch.inference_mode():
        plain = distributions()
        with ss_lens.steer(tiny_llama, calibration, RotateBy(ANGLE), positions=GeneratedOnly()):
            steered = distributions()
    kl = [rel_entr(p, q).sum() for p, q in zip(plain, steered, strict=True)]
    assert kl[0] == 0
    assert float(got["kl_mean"][0]) == pytest.approx(np.mean(kl), rel=1e-3)


def test_what_has_no_divergence_is_an_error(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    with (
        ss_lens.steer(tiny_llama, calibration, RotateBy(90)),
        pytest.raises(UserError, match="there would be no unsteered model to compare with"),
    ):
        kl_divergence(tiny_llama, calibration, Ablate(), PROMPTS, ANSWERS)
    with pytest.raises(UserError, match="RotateBy holds 4 strengths, one per batch row; give one"):
        kl_divergence(tiny_llama, calibration, RotateBy([1, 2, 3, 4]), PROMPTS, ANSWERS)
    with pytest.raises(UserError, match="give one response per prompt"):
        kl_divergence(tiny_llama, calibration, Ablate(), PROMPTS, ANSWERS[:1])


def test_an_undefined_divergence_is_an_error_and_no_number(
    tiny_llama: TransformerBridge, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = forward.run_all

    def spoilt(model: TransformerBridge, *args: object, **options: object) -> torch.Tensor:
        logits = run(model, *args, **options).clone()
        logits[-1, -1, 3] = torch.nan
        return logits

    monkeypatch.setattr(forward, "run_all", spoilt)
    with pytest.raises(
        UserError, match=r"the divergence on .* is undefined \(NaN\) under RotateBy"
    ):
        kl_divergence(tiny_llama, calibration, RotateBy(ANGLE), PROMPTS, ANSWERS)


def test_a_token_that_the_model_rules_out_adds_nothing(
    tiny_llama: TransformerBridge, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = forward.run_all

    def masked(model: TransformerBridge, *args: object, **options: object) -> torch.Tensor:
        logits = run(model, *args, **options).clone()
        logits[..., 3] = -torch.inf
        return logits

    whole = kl_divergence(tiny_llama, calibration, RotateBy(ANGLE), PROMPTS, ANSWERS)
    monkeypatch.setattr(forward, "run_all", masked)
    without = kl_divergence(tiny_llama, calibration, RotateBy(ANGLE), PROMPTS, ANSWERS)
    np.testing.assert_allclose(without["kl_first"], whole["kl_first"], rtol=0.2)


def test_responses_that_are_no_texts_are_named(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # which would object first
    try:
        with pytest.raises(
            UserError, match="responses must be a list of texts; got nan at place 1"
        ):
            kl_divergence(tiny_llama, calibration, Ablate(), PROMPTS, ["w1", float("nan")])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_change_of_the_prompt_and_one_of_the_model_diverge_as_by_hand(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    """Predictions of the same answer, each model after its own prompt."""
    chat = ChatFormat(system="w40 w41 w42")
    shots = [{"role": "user", "content": "w50"}, {"role": "assistant", "content": "w51 w52"}]
    turned = [[*shots, {"role": "user", "content": prompt}] for prompt in PROMPTS]
    steered = partial(steer, tiny_llama, calibration, RotateBy(120))
    changes = [
        Changed("a system prompt", nullcontext, chat=chat),
        Changed("examples", nullcontext, prompts=turned),
        Changed("steering", steered),
        Changed("both", steered, chat=chat),
        Changed("nothing", nullcontext),
    ]
    found = changed_divergence(tiny_llama, changes, PROMPTS, ANSWERS)
    plain = kl_divergence(tiny_llama, calibration, RotateBy(120), PROMPTS, ANSWERS)
    pd.testing.assert_frame_equal(found[2], plain, atol=1e-5)
    assert (found[4]["kl_mean"].dropna() == 0).all()

    def logp(context: tuple[int, ...], answer: list[int]) -> torch.Tensor:
        ids = torch.tensor([[*context, *answer[:-1]]])
        with torch.inference_mode():
            logits = tiny_llama(ids, return_type="logits")[0, len(context) - 1 :]
        return logits.double().log_softmax(dim=-1)

    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        tokens = tiny_llama.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not tokens:
            assert math.isnan(found[0]["kl_mean"][row])
            continue
        before = logp(tokenize(tiny_llama, [prompt])[0], tokens)
        for table, after in (
            (found[0], logp(tokenize(tiny_llama, [prompt], chat)[0], tokens)),
            (found[1], logp(tokenize(tiny_llama, [turned[row]])[0], tokens)),
        ):
            expected = (before.exp() * (before - after)).sum(dim=-1)
            assert table["kl_mean"][row] == pytest.approx(float(expected.mean()), rel=1e-3)
            assert table["kl_first"][row] == pytest.approx(float(expected[0]), rel=1e-3)
