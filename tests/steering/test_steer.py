"""Steered logits against dense edits in plain PyTorch hooks, compositions, the life of hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import (
    Calibration,
    ContrastiveDataset,
    RotateBy,
    Site,
    Store,
    UserError,
    steer,
)
from tests.conftest import ARCHITECTURES
from tests.fitting import Fitted
from tests.oracles import HuggingFaceOracle, dense_rotation, everywhere, relative_error

TOLERANCE = 1e-4

PROMPT = "w9 w70 w33"


@pytest.fixture
def calibration(fitted: Fitted) -> Calibration:
    return fitted("llama")


@torch.inference_mode()
def logits_of(model: TransformerBridge, ids: Tensor) -> Tensor:
    return model(ids)


def hooks_on(model: TransformerBridge) -> int:
    """Hooks on all hook points, TransformerLens' and PyTorch's own."""
    return sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.hook_dict.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["norm outputs", "resid_pre", "resid_mid", "resid_post"])
def test_steered_logits_equal_a_dense_rotation_in_plain_hooks(
    architecture: str,
    kind: str,
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
    fitted: Fitted,
) -> None:
    model, oracle = tiny_models[architecture], HuggingFaceOracle(tiny_folders[architecture])
    norms = tuple(s for s in oracle.streams() if s.startswith("ln"))
    calibration = fitted(architecture, *(norms if kind == "norm outputs" else (kind,)))
    ids = oracle.ids(PROMPT)
    for angle in (25.0, 180.0, -100.0):
        with steer(model, calibration, RotateBy(angle)):
            got = logits_of(model, ids)[0]
        edits = everywhere(dense_rotation(calibration.plane, angle), calibration.selected_sites)
        assert relative_error(got, oracle.logits(ids, edits)) < TOLERANCE
        assert relative_error(got, oracle.logits(ids)) > 0.01  # the rotation did something
    assert len(calibration.selected_sites) == 3 * (len(norms) if kind == "norm outputs" else 1)


def test_steering_only_some_sites_touches_no_other(
    tiny_llama: TransformerBridge,
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    calibration = ss_lens.calibrate(acts, rule="site")
    assert 0 < len(calibration.selected_sites) < len(calibration.sites)
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    ids = oracle.ids(PROMPT)
    edits = everywhere(dense_rotation(calibration.plane, 140), calibration.selected_sites)
    with steer(tiny_llama, calibration, RotateBy(140)):
        got = logits_of(tiny_llama, ids)[0]
    assert relative_error(got, oracle.logits(ids, edits)) < TOLERANCE


@pytest.mark.parametrize("angle", [0, 360, -720.0])
def test_a_full_turn_sets_no_hook_and_gives_bit_identical_logits(
    angle: float, tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    ids = torch.tensor([[1, 9, 40, 6]])
    expected, before = logits_of(tiny_llama, ids), hooks_on(tiny_llama)
    with steer(tiny_llama, calibration, RotateBy(angle)):
        assert hooks_on(tiny_llama) == before
        assert torch.equal(logits_of(tiny_llama, ids), expected)


@pytest.mark.parametrize("stream", ["ln1_out", "resid_mid"])
def test_hooks_are_gone_after_the_block_and_after_an_exception_in_it(
    stream: str, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration = fitted("llama", stream)
    ids = torch.tensor([[1, 9, 40, 6]])
    expected, before = logits_of(tiny_llama, ids), hooks_on(tiny_llama)
    with steer(tiny_llama, calibration, RotateBy(90)):
        assert hooks_on(tiny_llama) > before
        assert not torch.equal(logits_of(tiny_llama, ids), expected)
    assert hooks_on(tiny_llama) == before
    for error in (RuntimeError("in the body"), KeyboardInterrupt()):
        with pytest.raises(type(error)), steer(tiny_llama, calibration, RotateBy(90)):
            raise error
        assert hooks_on(tiny_llama) == before
    assert torch.equal(logits_of(tiny_llama, ids), expected)


def test_hooks_are_gone_after_an_exception_inside_the_forward_pass(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration = fitted("llama", "resid_mid")
    ids = torch.tensor([[1, 9, 40, 6]])
    expected, before = logits_of(tiny_llama, ids), hooks_on(tiny_llama)

    def stop(module: torch.nn.Module, args: tuple) -> None:
        handle.remove()
        raise KeyboardInterrupt

    handle = tiny_llama.original_model.model.layers[1].self_attn.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt), steer(tiny_llama, calibration, RotateBy(90)):
        logits_of(tiny_llama, ids)
    assert hooks_on(tiny_llama) == before
    assert torch.equal(logits_of(tiny_llama, ids), expected)


def test_steering_keeps_the_hooks_of_the_caller(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    seen: list[int] = []
    hook = ("blocks.0.ln1.hook_out", lambda h, hook: seen.append(h.shape[1]))
    with tiny_llama.hooks(fwd_hooks=[hook]):
        with steer(tiny_llama, calibration, RotateBy(90)):
            logits_of(tiny_llama, torch.tensor([[1, 9]]))
        logits_of(tiny_llama, torch.tensor([[1, 9, 40]]))
    assert seen == [2, 3]


@pytest.mark.parametrize("stream", ["ln2_out", "resid_mid", "resid_post"])
def test_one_angle_per_row_equals_a_loop_over_rows(
    stream: str, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration = fitted("llama", stream)
    ids = torch.tensor([[1, 9, 40, 6], [1, 70, 11, 6], [1, 9, 40, 6]])
    angles = [0.0, 75.0, 200.0]
    with steer(tiny_llama, calibration, RotateBy(angles)):
        together = logits_of(tiny_llama, ids)
    for row, angle in enumerate(angles):
        with steer(tiny_llama, calibration, RotateBy(angle)):
            alone = logits_of(tiny_llama, ids[row : row + 1])
        assert relative_error(together[row], alone[0]) < TOLERANCE


def test_a_number_of_angles_that_is_not_the_number_of_rows_is_an_error(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    before = hooks_on(tiny_llama)
    with (
        pytest.raises(UserError, match=r"3 strengths for activations of shape \(2, 4, 32\)"),
        steer(tiny_llama, calibration, RotateBy([0, 60, 120])),
    ):
        logits_of(tiny_llama, torch.tensor([[1, 9, 40, 6], [1, 70, 11, 6]]))
    assert hooks_on(tiny_llama) == before


def test_nested_steering_adds_its_angles_and_ends_separately(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    ids = torch.tensor([[1, 9, 40, 6]])
    with steer(tiny_llama, calibration, RotateBy(70)):
        seventy = logits_of(tiny_llama, ids)
    with steer(tiny_llama, calibration, RotateBy(30)):
        with steer(tiny_llama, calibration, RotateBy(40)):
            both = logits_of(tiny_llama, ids)
        with steer(tiny_llama, calibration, RotateBy(40)):
            again = logits_of(tiny_llama, ids)
        outer = logits_of(tiny_llama, ids)
    with steer(tiny_llama, calibration, RotateBy(30)):
        thirty = logits_of(tiny_llama, ids)
    assert relative_error(both, seventy) < TOLERANCE
    assert torch.equal(both, again)
    assert torch.equal(outer, thirty)


@pytest.mark.parametrize(
    ("outer", "inner"), [("resid_pre", "resid_mid"), ("resid_mid", "resid_pre"), ("resid_mid",) * 2]
)
def test_nested_steering_of_different_streams_composes_in_either_order(
    outer: str,
    inner: str,
    tiny_llama: TransformerBridge,
    tiny_folders: dict[str, Path],
    fitted: Fitted,
) -> None:
    first, second = fitted("llama", outer), fitted("llama", inner)
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    ids = oracle.ids(PROMPT)
    edits = everywhere(dense_rotation(first.plane, 50), first.selected_sites)
    if outer == inner:
        edits = everywhere(dense_rotation(first.plane, 130), first.selected_sites)
    else:
        edits |= everywhere(dense_rotation(second.plane, 80), second.selected_sites)
    with steer(tiny_llama, first, RotateBy(50)), steer(tiny_llama, second, RotateBy(80)):
        got = logits_of(tiny_llama, ids)[0]
    assert relative_error(got, oracle.logits(ids, edits)) < TOLERANCE


def test_steering_leaves_cached_activations_of_earlier_streams_uncorrupted(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    """Edits are out of place: a cache taken before the edited hook keeps what it saw."""
    calibration = fitted("llama", "resid_post")
    ids = torch.tensor([[1, 9, 40, 6]])
    with torch.inference_mode():
        _, clean = tiny_llama.run_with_cache(ids)
        with steer(tiny_llama, calibration, RotateBy(90)):
            _, steered = tiny_llama.run_with_cache(ids)
    assert torch.equal(clean["blocks.0.hook_mlp_out"], steered["blocks.0.hook_mlp_out"])
    edited = dense_rotation(calibration.plane, 90)(clean["blocks.0.hook_resid_post"])
    assert relative_error(steered["blocks.1.hook_resid_pre"], edited) < TOLERANCE


def test_a_calibration_fits_only_the_model_it_was_made_on(
    tiny_models: dict[str, TransformerBridge], tiny_folders: dict[str, Path], fitted: Fitted
) -> None:
    other_weights = ss_lens.load_model(tiny_folders["llama"])
    other_weights.original_model.model.layers[0].mlp.down_proj.weight.mul_(2)
    cases = {
        r"was made on '.*tiny-llama' \(weights \w{12}\), this is '.*tiny-gemma2'": tiny_models[
            "gemma2"
        ],
        r"was made on '.*tiny-llama' \(weights \w{12}\), this is '.*tiny-llama'": other_weights,
        r"was made in float32, the model is in bfloat16 .*dtype='float32'": ss_lens.load_model(
            tiny_folders["llama"], dtype="bfloat16"
        ),
    }
    for message, model in cases.items():
        before = hooks_on(model)
        with (
            pytest.raises(UserError, match=message + ".*Calibrate again on this model"),
            steer(model, fitted("llama"), RotateBy(90)),
        ):
            pass
        assert hooks_on(model) == before


def test_a_calibration_of_another_width_says_both_sizes(
    tmp_path: Path, tiny_folders: dict[str, Path], fitted: Fitted
) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    sizes = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    narrow = LlamaForCausalLM(
        LlamaConfig(vocab_size=128, hidden_size=16, num_hidden_layers=2, **sizes)
    )
    narrow.save_pretrained(tmp_path / "narrow")
    AutoTokenizer.from_pretrained(tiny_folders["llama"]).save_pretrained(tmp_path / "narrow")
    model = ss_lens.load_model(tmp_path / "narrow")
    with (
        pytest.raises(
            UserError, match=r"is for 3 layers of width 32, the model '.*narrow' has 2 of width 16"
        ),
        steer(model, fitted("llama"), RotateBy(90)),
    ):
        pass


def test_a_forward_pass_that_stops_before_a_steered_site_is_warned_about(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    ids = torch.tensor([[1, 9, 40, 6]])
    with (
        pytest.warns(UserWarning, match=r"never reached L1\.ln1_out, L1\.ln2_out, L2\.ln1_out"),
        steer(tiny_llama, calibration, RotateBy(90)),
    ):
        tiny_llama(ids, stop_at_layer=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(tiny_llama, calibration, RotateBy(90)):
            pass  # a block that runs nothing is no mistake


def test_a_saved_calibration_steers_as_the_one_that_was_saved(
    tiny_llama: TransformerBridge, calibration: Calibration, tmp_path: Path
) -> None:
    calibration.save(tmp_path / "calibration")
    loaded = Calibration.load(tmp_path / "calibration")
    assert loaded.selected_sites == calibration.selected_sites
    assert (
        loaded.direction_site
        == calibration.direction_site
        == Site.parse(str(loaded.direction_site))
    )
    ids = torch.tensor([[1, 9, 40, 6]])
    found = []
    for each in (calibration, loaded):
        with steer(tiny_llama, each, RotateBy(90)):
            found.append(logits_of(tiny_llama, ids))
    assert torch.equal(*found)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_steering_in_bfloat16_returns_the_dtype_and_keeps_the_norm(
    architecture: str, tiny_folders: dict[str, Path], tiny_data: ContrastiveDataset, store: Store
) -> None:
    model = ss_lens.load_model(tiny_folders[architecture], dtype="bfloat16")
    acts = ss_lens.capture(model, tiny_data.head(6), store=store)
    calibration = ss_lens.calibrate(acts, rule="uniform")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(h: Tensor, hook: object) -> None:
            seen[name] = h

        return hook

    name = "blocks.0.ln1.hook_out"
    with (
        model.hooks(fwd_hooks=[(name, keep("before"))]),
        steer(model, calibration, RotateBy(90)),
        model.hooks(fwd_hooks=[(name, keep("after"))]),
    ):
        logits_of(model, torch.tensor([[1, 9, 40, 6]]))
    assert seen["after"].dtype == torch.bfloat16
    before, after = seen["before"].double().norm(dim=-1), seen["after"].double().norm(dim=-1)
    assert not torch.equal(seen["before"], seen["after"])
    assert ((after - before).abs() / before).max() < 5e-3
