"""Generated text against Hugging Face, and sweeps against single runs."""

from __future__ import annotations

from pathlib import Path

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import (
    Add,
    Calibration,
    ContrastiveDataset,
    RotateBy,
    RotateTo,
    Store,
    UserError,
    generate,
    steer,
    sweep_angles,
)
from tests.conftest import ARCHITECTURES
from tests.oracles import HuggingFaceOracle, dense_rotation, everywhere

PROMPTS = ["w9 w70 w33", "w12", "w50 w51 w52 w53 w54 w55", "w100 w8", "w77 w78 w79"]
NEW = 7


@pytest.fixture
def calibration(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> Calibration:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    return ss_lens.calibrate(acts, rule="uniform")


def transformers_answer(
    oracle: HuggingFaceOracle, prompt: str, stop: int | list[int] | None = None
) -> str:
    """``transformers``' own greedy decoding of one prompt."""
    ids = oracle.ids(prompt)
    options = {} if stop is None else {"eos_token_id": stop}
    out = oracle.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        pad_token_id=3,
        **options,
    )[0, ids.shape[1] :].tolist()
    stops = [2] if stop is None else [stop] if isinstance(stop, int) else stop
    ends = [i for i, token in enumerate(out) if token in stops]
    return oracle.tokenizer.decode(out[: ends[0]] if ends else out, skip_special_tokens=True)


def answer_to(table: pd.DataFrame, prompt_index: int, angle: float) -> str:
    found = table[(table["prompt_index"] == prompt_index) & (table["angle_deg"] == angle)]
    return found["response"].item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_generation_equals_transformers_one_prompt_at_a_time(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
) -> None:
    oracle = HuggingFaceOracle(tiny_folders[architecture])
    texts = generate(tiny_models[architecture], PROMPTS, max_new_tokens=NEW, batch_size=2)
    assert texts == [transformers_answer(oracle, prompt) for prompt in PROMPTS]
    assert len(set(texts)) > 1


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_generation_is_invariant_to_batch_size_and_order(
    architecture: str, tiny_models: dict[str, TransformerBridge]
) -> None:
    model = tiny_models[architecture]
    alone = generate(model, PROMPTS, max_new_tokens=NEW, batch_size=1)
    assert generate(model, PROMPTS, max_new_tokens=NEW, batch_size=3) == alone
    assert generate(model, PROMPTS[::-1], max_new_tokens=NEW, batch_size=5)[::-1] == alone


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steered_generation_equals_full_recomputation_in_plain_hooks(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    """The KV cache and the padding change nothing: every token of prompt and answer is steered."""
    model, oracle = tiny_models[architecture], HuggingFaceOracle(tiny_folders[architecture])
    calibration = ss_lens.calibrate(ss_lens.capture(model, tiny_data, store=store), rule="uniform")
    with steer(model, calibration, RotateBy(110)):
        texts = generate(model, PROMPTS[:3], max_new_tokens=NEW)
    edits = everywhere(dense_rotation(calibration.plane, 110), calibration.selected_sites)
    assert texts == [oracle.greedy(prompt, NEW, edits) for prompt in PROMPTS[:3]]
    assert texts != generate(model, PROMPTS[:3], max_new_tokens=NEW)


def test_a_sweep_equals_one_steered_run_per_angle(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    angles = [0.0, 60.0, 200.0]
    table = sweep_angles(
        tiny_llama, calibration, RotateBy, PROMPTS, angles, max_new_tokens=NEW, batch_rows=4
    )
    for angle in angles:
        with steer(tiny_llama, calibration, RotateBy(angle)):
            texts = generate(tiny_llama, PROMPTS, max_new_tokens=NEW)
        assert [answer_to(table, i, angle) for i in range(len(PROMPTS))] == texts
    unsteered = generate(tiny_llama, PROMPTS, max_new_tokens=NEW)
    assert [answer_to(table, i, 0.0) for i in range(len(PROMPTS))] == unsteered
    assert table.groupby("prompt_index")["response"].nunique().max() > 1


def test_a_sweep_of_absolute_angles_equals_one_steered_run_per_angle(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    table = sweep_angles(
        tiny_llama, calibration, RotateTo, PROMPTS[:2], np.array([0, 90]), max_new_tokens=NEW
    )
    for angle in (0.0, 90.0):
        with steer(tiny_llama, calibration, RotateTo(angle)):
            texts = generate(tiny_llama, PROMPTS[:2], max_new_tokens=NEW)
        assert [answer_to(table, i, angle) for i in range(2)] == texts


def test_a_sweep_lists_prompts_in_their_order_each_with_the_angles_in_theirs(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    prompts = ["w50 w51 w52", "w12", "w12"]  # neither sorted by length nor unique
    table = sweep_angles(
        tiny_llama, calibration, RotateBy, prompts, [90, 0], max_new_tokens=2, batch_rows=3
    )
    assert list(table.columns) == ["prompt_index", "prompt", "angle_deg", "response"]
    assert table["prompt_index"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["prompt_index"].dtype == "int64"
    assert table["prompt"].tolist() == [prompts[i] for i in (0, 0, 1, 1, 2, 2)]
    assert table["angle_deg"].tolist() == [90, 0] * 3
    assert answer_to(table, 1, 90.0) == answer_to(table, 2, 90.0)


@pytest.mark.parametrize("as_list", [False, True])
def test_generation_stops_at_the_models_stop_token(
    as_list: bool,
    tiny_llama: TransformerBridge,
    tiny_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    free = [transformers_answer(oracle, prompt) for prompt in PROMPTS]
    word = free[0].split()[2]
    stop = oracle.tokenizer.convert_tokens_to_ids(word)
    configuration = tiny_llama.original_model.generation_config
    monkeypatch.setattr(configuration, "eos_token_id", [stop, 2] if as_list else stop)
    texts = generate(tiny_llama, PROMPTS, max_new_tokens=NEW)
    assert texts == [transformers_answer(oracle, prompt, [stop, 2]) for prompt in PROMPTS]
    assert word not in texts[0].split()
    assert len(texts[0].split()) <= 2


def test_a_batch_stops_computing_when_its_last_row_has_stopped(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    word = transformers_answer(oracle, PROMPTS[0]).split()[0]
    stop = oracle.tokenizer.convert_tokens_to_ids(word)
    monkeypatch.setattr(tiny_llama.original_model.generation_config, "eos_token_id", stop)
    calls: list[int] = []
    embedding = tiny_llama.original_model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        assert generate(tiny_llama, [PROMPTS[0]], max_new_tokens=NEW) == [""]
    finally:
        handle.remove()
    assert len(calls) == 1


def test_sampling_is_reproducible_by_its_seed(tiny_llama: TransformerBridge) -> None:
    def sampled(seed: int, temperature: float = 2.0) -> list[str]:
        return generate(tiny_llama, PROMPTS, max_new_tokens=NEW, temperature=temperature, seed=seed)

    torch.manual_seed(11)
    first = sampled(3)
    torch.manual_seed(12)
    assert sampled(3) == first
    assert sampled(4) != first
    assert sampled(3, temperature=1e-4) == generate(tiny_llama, PROMPTS, max_new_tokens=NEW)


def test_sampling_is_invariant_to_batch_size(tiny_llama: TransformerBridge) -> None:
    """``batch_size`` changes the speed, not the result, says the docstring."""
    found = [
        generate(
            tiny_llama, PROMPTS, max_new_tokens=NEW, temperature=1.0, seed=3, batch_size=batch_size
        )
        for batch_size in (1, 5)
    ]
    assert found[0] == found[1]


def test_generation_leaves_the_global_random_state_alone(tiny_llama: TransformerBridge) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate(tiny_llama, PROMPTS[:1], max_new_tokens=2, temperature=1.0)
    assert torch.equal(torch.rand(3), expected)


def test_no_prompts_give_no_answers(tiny_llama: TransformerBridge) -> None:
    assert generate(tiny_llama, []) == []


def test_a_sweep_over_no_prompts_is_an_empty_table(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    table = sweep_angles(tiny_llama, calibration, RotateBy, [], [0, 90])
    assert table.empty
    assert list(table.columns) == ["prompt_index", "prompt", "angle_deg", "response"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"batch_size": 0, "max_new_tokens": 1}, "batch_size must be at least 1; got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or a positive number; got -1"),
        ({"temperature": float("nan")}, "temperature must be 0 or a positive number; got nan"),
        ({"max_new_tokens": 60}, r"prompt 0 \('w12'….* and 60 new ones; the context .* is 64"),
    ],
)
def test_what_cannot_be_generated_is_named(
    wrong: dict[str, float], message: str, tiny_llama: TransformerBridge
) -> None:
    with pytest.raises(UserError, match=message):
        generate(tiny_llama, ["w12"], **wrong)


def test_an_answer_may_fill_the_context_exactly(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path]
) -> None:
    used = HuggingFaceOracle(tiny_folders["llama"]).ids("w12").shape[1]
    generate(tiny_llama, ["w12"], max_new_tokens=64 - used)
    with pytest.raises(UserError, match="the context"):
        generate(tiny_llama, ["w12"], max_new_tokens=65 - used)


def test_a_blank_prompt_is_named(tiny_llama: TransformerBridge) -> None:
    with pytest.raises(UserError, match="prompt 1 is blank"):
        generate(tiny_llama, ["w12", " \n"])


def test_one_text_in_place_of_a_list_is_an_error(tiny_llama: TransformerBridge) -> None:
    with pytest.raises(
        UserError, match=r"prompts must be a list; got one text. Write \['w12 w13'\]"
    ):
        generate(tiny_llama, "w12 w13")


@pytest.mark.parametrize(
    ("angles", "message"),
    [([], "angle_deg"), ([0, float("nan")], "finite; got"), ([float("inf")], "finite; got")],
)
def test_a_sweep_needs_finite_angles(
    angles: list[float], message: str, tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    with pytest.raises(UserError, match=message):
        sweep_angles(tiny_llama, calibration, RotateBy, PROMPTS, angles, max_new_tokens=NEW)


def test_a_sweep_of_an_operator_without_an_angle_names_those_with_one(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # which would object first
    try:
        with pytest.raises(UserError, match=r"Add has no angle; sweep one of RotateBy, RotateTo"):
            sweep_angles(tiny_llama, calibration, Add, PROMPTS, [0], max_new_tokens=NEW)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_sweep_needs_room_for_a_token_and_for_a_row(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    with pytest.raises(UserError, match="max_new_tokens must be at least 1; got 0"):
        sweep_angles(tiny_llama, calibration, RotateBy, PROMPTS, [0], max_new_tokens=0)
    with pytest.raises(UserError, match="batch_rows must be at least 1; got 0"):
        sweep_angles(tiny_llama, calibration, RotateBy, PROMPTS, [0], batch_rows=0)


def test_a_sweep_refuses_a_prompt_that_does_not_fit_before_it_generates_anything(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    calls: list[int] = []
    embedding = tiny_llama.original_model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, args: calls.append(1))
    prompts = ["w12", " ".join(["w8"] * 70)]
    try:
        with pytest.raises(UserError, match=r"prompt 1 \('w8 w8"):
            sweep_angles(
                tiny_llama, calibration, RotateBy, prompts, [0, 90], max_new_tokens=2, batch_rows=2
            )
    finally:
        handle.remove()
    assert not calls
