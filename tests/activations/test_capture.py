"""Captured activations against plain Hugging Face hooks, and what capture refuses."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ContrastiveDataset, Site, Store, UserError
from ss_lens.activations.activations import Activations
from ss_lens.models.sites import available_streams
from tests.conftest import ARCHITECTURES
from tests.oracles import HuggingFaceOracle, relative_error

capture_module = importlib.import_module("ss_lens.activations.capture")
TOLERANCE = 1e-4


def rows(acts: Activations) -> Tensor:
    return torch.cat((acts.positive, acts.negative))


def oracle_rows(
    oracle: HuggingFaceOracle,
    data: ContrastiveDataset,
    sites: tuple[Site, ...],
    position: int | Literal["mean"] = -1,
) -> Tensor:
    """``[prompt, site, d_model]``, each prompt alone."""
    found = []
    for prompt in (*data.positive, *data.negative):
        h = oracle.activations(oracle.ids(prompt), sites)
        found.append(h.mean(dim=0) if position == "mean" else h[position])
    return torch.stack(found)


def per_site_errors(got: Tensor, expected: Tensor, sites: tuple[Site, ...]) -> dict[str, float]:
    """Each site by its own scale, so that a large stream cannot hide a small one."""
    return {str(s): relative_error(got[:, i], expected[:, i]) for i, s in enumerate(sites)}


@pytest.fixture
def forward_calls(
    tiny_llama: TransformerBridge,
) -> Iterator[dict[str, list[tuple[int, int]]]]:
    """``[rows, columns]`` of every call of the embedding and of the unembedding."""
    calls: dict[str, list[tuple[int, int]]] = {"embed": [], "unembed": []}
    model = tiny_llama.original_model

    def recorder(name: str) -> Callable[[torch.nn.Module, tuple], None]:
        def record(module: torch.nn.Module, args: tuple) -> None:
            calls[name].append((args[0].shape[0], args[0].shape[1]))

        return record

    modules = {"embed": model.get_input_embeddings(), "unembed": model.get_output_embeddings()}
    handles = [m.register_forward_pre_hook(recorder(name)) for name, m in modules.items()]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("position", [-1, -2, -3, "mean"])
def test_capture_equals_plain_hooks_at_every_stream(
    architecture: str,
    position: int | Literal["mean"],
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    model, oracle = tiny_models[architecture], HuggingFaceOracle(tiny_folders[architecture])
    streams = available_streams(model)
    assert set(streams) == set(oracle.streams())
    acts = ss_lens.capture(
        model, tiny_data, streams=streams, position=position, batch_size=5, store=store
    )
    expected = oracle_rows(oracle, tiny_data, acts.sites, position)
    errors = per_site_errors(rows(acts), expected, acts.sites)
    assert len(acts.sites) == 3 * len(streams)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_capture_is_invariant_to_batch_size_and_prompt_order(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
) -> None:
    model = tiny_models[architecture]
    data = tiny_data.head(5)
    shuffled = ContrastiveDataset("shuffled", data.positive[::-1], data.negative[::-1])
    reference = ss_lens.capture(model, data, batch_size=1, store=Store(tmp_path / "1"))
    for batch_size in (3, 10):
        folder = tmp_path / f"{batch_size}"
        acts = ss_lens.capture(model, data, batch_size=batch_size, store=Store(folder))
        turned = ss_lens.capture(model, shuffled, batch_size=batch_size, store=Store(folder))
        assert relative_error(rows(acts), rows(reference)) < TOLERANCE
        assert relative_error(turned.positive.flip(0), reference.positive) < TOLERANCE
        assert relative_error(turned.negative.flip(0), reference.negative) < TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("position", [-1, "mean"])
def test_capture_is_invariant_to_prefix_sharing(
    architecture: str,
    position: int | Literal["mean"],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_models[architecture]
    asked = {"position": position, "streams": ("ln1_out", "resid_post")}
    shared = ss_lens.capture(model, tiny_data, **asked, store=Store(tmp_path / "shared"))
    skipped: list[int] = []
    original = capture_module.shared_prefix_length

    def share_nothing(tokens: list[tuple[int, ...]], keep: int = 1) -> int:
        skipped.append(original(tokens, keep))
        return 0

    monkeypatch.setattr(capture_module, "shared_prefix_length", share_nothing)
    whole = ss_lens.capture(model, tiny_data, **asked, store=Store(tmp_path / "whole"))
    assert relative_error(rows(shared), rows(whole)) < TOLERANCE
    assert skipped[0] >= 6  # so two different computations were compared


def test_position_inside_the_common_ending_ignores_the_common_beginning_only(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path], store: Store
) -> None:
    """Prompts that end alike: the prefix may not swallow the position that is read."""
    data = ContrastiveDataset("alike", ("w9", "w9 w9"), ("w9 w9 w9", "w9 w9 w9 w9"))
    acts = ss_lens.capture(tiny_llama, data, position=-9, store=store)
    expected = oracle_rows(HuggingFaceOracle(tiny_folders["llama"]), data, acts.sites, -9)
    assert relative_error(rows(acts), expected) < TOLERANCE


def test_captured_values_are_float32_on_the_cpu_also_from_a_bfloat16_model(
    tiny_folders: dict[str, Path], tiny_data: ContrastiveDataset, store: Store
) -> None:
    model = ss_lens.load_model(tiny_folders["llama"], dtype="bfloat16")
    data = tiny_data.head(4)
    acts = ss_lens.capture(model, data, streams=available_streams(model), store=store)
    assert acts.spec.model.dtype == "bfloat16"
    assert {acts.positive.dtype, acts.negative.dtype} == {torch.float32}
    assert acts.positive.device.type == "cpu"
    exact = HuggingFaceOracle(tiny_folders["llama"])
    exact.model.load_state_dict({k: v.bfloat16() for k, v in exact.model.state_dict().items()})
    rounded = HuggingFaceOracle(tiny_folders["llama"], torch.bfloat16)
    expected = oracle_rows(exact, data, acts.sites)
    ours = (rows(acts) - expected).norm() / expected.norm()
    theirs = (oracle_rows(rounded, data, acts.sites) - expected).norm() / expected.norm()
    assert 0 < ours < 1.5 * theirs  # rounding of bfloat16, and no more than plain hooks have


def test_the_shared_prefix_runs_once_and_the_unembedding_on_one_column(
    tiny_llama: TransformerBridge,
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    store: Store,
    forward_calls: dict[str, list[tuple[int, int]]],
) -> None:
    ss_lens.capture(tiny_llama, tiny_data, batch_size=8, store=store)
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    ids = [oracle.ids(p)[0].tolist() for p in (*tiny_data.positive, *tiny_data.negative)]
    template = oracle.ids("w8")[0].tolist().index(8)  # all prompts differ from their first word on
    longest = max(map(len, ids))
    first, *others = forward_calls["embed"]
    assert first == (1, template)
    assert sum(n for n, _ in others) == len(ids)
    assert max(width for _, width in others) == longest - template
    assert len(others) == 3
    assert {width for _, width in forward_calls["unembed"]} == {1}


def test_a_mean_over_the_prompt_never_runs_the_unembedding_on_more_than_one_column(
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    forward_calls: dict[str, list[tuple[int, int]]],
) -> None:
    ss_lens.capture(tiny_llama, tiny_data, position="mean", store=store)
    assert {width for _, width in forward_calls["unembed"]} == {1}


def test_layers_restrict_the_capture_to_their_sites(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    whole = ss_lens.capture(tiny_llama, tiny_data, store=Store(tmp_path / "whole"))
    part = ss_lens.capture(tiny_llama, tiny_data, layers=[2, 0], store=Store(tmp_path / "part"))
    assert {site.layer for site in part.sites} == {0, 2}
    for site in part.sites:
        assert relative_error(part.at(site)[0], whole.at(site)[0]) < TOLERANCE


def test_capture_leaves_no_hook_behind_and_keeps_those_of_the_caller(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    before = {name: len(p.fwd_hooks) for name, p in tiny_llama.hook_dict.items()}
    ss_lens.capture(tiny_llama, tiny_data.head(2), store=store)
    assert {name: len(p.fwd_hooks) for name, p in tiny_llama.hook_dict.items()} == before


def test_capture_inside_steer_is_never_served_as_unsteered(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    clean = ss_lens.capture(tiny_llama, tiny_data, store=Store(tmp_path / "clean"))
    calibration = ss_lens.calibrate(clean, rule="uniform")
    store = Store(tmp_path / "shared")
    with ss_lens.steer(tiny_llama, calibration, ss_lens.RotateBy(90)), suppress(UserError):
        ss_lens.capture(tiny_llama, tiny_data, store=store)  # may be refused
    after = ss_lens.capture(tiny_llama, tiny_data, store=store)
    assert relative_error(rows(after), rows(clean)) < TOLERANCE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"streams": ("ln1_post_out",)}, "'ln1_post_out' does not exist on this architecture; it"),
        ({"streams": ()}, "no stream was asked for; this model has resid_pre"),
        ({"layers": [3]}, "layer 3 is out of range for the 3-layer model.*; valid: 0–2"),
        ({"layers": [-1]}, "layer -1 is out of range for the 3-layer model.*; valid: 0–2"),
        ({"layers": []}, "no layer"),
        (
            {"position": 0},
            "position must be a negative token index, 'mean' or 'prompt_mean'; got 0",
        ),
        (
            {"position": 4},
            "position must be a negative token index, 'mean' or 'prompt_mean'; got 4",
        ),
        ({"position": -11}, "position -11 lies before the start of 'w[0-9 w]+', which has 1."),
        ({"position": True}, "position must be a negative .* got True"),
        ({"position": "first"}, "position must be a negative .* got 'first'"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_captured_is_named_with_what_can(
    wrong: dict[str, object],
    message: str,
    tiny_llama: TransformerBridge,
    store: Store,
) -> None:
    data = ContrastiveDataset("short", ("w8",), ("w9 w10",))
    if wrong.get("position") == -11:
        data = ContrastiveDataset("short", ("w8 w9",), ("w9 w10 w11",))
    with pytest.raises(UserError, match=message):
        ss_lens.capture(tiny_llama, data, store=store, **wrong)
    assert not store.root.exists()  # refused before any work


def test_a_prompt_that_fills_the_context_is_captured_and_one_token_more_is_an_error(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path], store: Store
) -> None:
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    template = oracle.ids("w8").shape[1] - 1
    full = " ".join(["w8"] * (64 - template))
    data = ContrastiveDataset("full", (full,), ("w9",))
    acts = ss_lens.capture(tiny_llama, data, store=store)
    assert relative_error(rows(acts), oracle_rows(oracle, data, acts.sites)) < TOLERANCE
    longer = ContrastiveDataset("longer", ("w9",), (full + " w8",))
    with pytest.raises(UserError, match=r"prompt 1 \('w8 w8 .*has 65 tokens; the context .* is 64"):
        ss_lens.capture(tiny_llama, longer, store=store)


def test_an_activation_that_is_not_finite_is_an_error_that_names_site_and_prompt(
    tiny_folders: dict[str, Path], store: Store
) -> None:
    """A poisoned word reaches the last token through the first attention, in its prompt only."""
    model = ss_lens.load_model(tiny_folders["llama"])
    model.original_model.get_input_embeddings().weight[77] = torch.nan
    data = ContrastiveDataset("poisoned", ("w8 w9", "w10"), ("w60 w77 w61", "w62 w63 w64"))
    with pytest.raises(UserError, match=r"L0\.ln2_out is not finite for the prompt 'w60 w77 w61'"):
        ss_lens.capture(model, data, store=store)
    with pytest.raises(UserError, match=r"L0\.ln1_out is not finite for the prompt 'w60 w77 w61'"):
        ss_lens.capture(model, data, position="mean", store=store)
    healthy = ContrastiveDataset("healthy", data.positive, ("w62 w63 w64",))
    assert rows(ss_lens.capture(model, healthy, store=store)).isfinite().all()


def test_a_model_without_chat_template_gets_plain_text_and_says_so_once(
    tiny_folders: dict[str, Path], tiny_data: ContrastiveDataset, store: Store
) -> None:
    model = ss_lens.load_model(tiny_folders["gpt2"])
    model.tokenizer.chat_template = None
    data = tiny_data.head(3)
    message = "has no chat template; prompts are used as plain text"
    with pytest.warns(UserWarning, match=message) as said:
        acts = ss_lens.capture(model, data, streams=("resid_post",), store=store)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ss_lens.generate(model, list(data.positive), max_new_tokens=1)
    oracle = HuggingFaceOracle(tiny_folders["gpt2"])
    expected = [
        oracle.activations(model.to_tokens(prompt), acts.sites)[-1]
        for prompt in (*data.positive, *data.negative)
    ]
    assert relative_error(rows(acts), torch.stack(expected)) < TOLERANCE


def test_classes_that_are_the_same_where_they_are_read_have_no_direction(
    tiny_llama: TransformerBridge, store: Store
) -> None:
    """Two texts of one token sequence (unknown words) cannot be told apart by the model."""
    data = ContrastiveDataset("same", ("alpha", "beta beta"), ("gamma", "delta delta"))
    acts = ss_lens.capture(tiny_llama, data, store=store)
    with pytest.raises(UserError, match="no direction anywhere; the classes must differ"):
        ss_lens.calibrate(acts)


def test_block_zero_input_has_no_direction_and_is_reported(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    """Every templated prompt ends in the same token, so before attention the classes agree."""
    calibration = ss_lens.calibrate(
        ss_lens.capture(tiny_llama, tiny_data, store=store), rule="uniform"
    )
    assert calibration.candidates.excluded == (Site(0, "ln1_out"),)
