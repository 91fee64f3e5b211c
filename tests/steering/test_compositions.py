"""Several calibrations at once, and Activation Addition bound to its calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.linalg import subspace_angles
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import (
    Ablate,
    Add,
    Calibration,
    ContrastiveDataset,
    Plane,
    RotateBy,
    RotateTo,
    SetAngle,
    Site,
    Store,
    UserError,
    steer,
)
from ss_lens.calibration.directions import CentredPCA
from ss_lens.calibration.global_direction import Consensus
from ss_lens.calibration.planes import RandomPlane
from ss_lens.geometry.operators import ActAdd, Operator, Reflect, RotateToward
from ss_lens.steering.edits import overlap
from ss_lens.steering.steer import steer_all
from tests.fitting import Fitted
from tests.oracles import Edit, HuggingFaceOracle, dense_rotation, everywhere, relative_error

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


# --- Several calibrations ------------------------------------------------------------------------


def plane_at(overlap_with: Plane, cosine: float, seed: int = 0) -> Plane:
    """A plane whose smallest principal angle with another has this cosine, the other angle 90°."""
    generator = torch.Generator().manual_seed(seed)
    d = len(overlap_with.b1)
    noise = torch.randn(2, d, generator=generator, dtype=torch.float64)
    frame = torch.cat((overlap_with.basis.double(), noise))
    q = torch.linalg.qr(frame.T).Q.T
    tilted = cosine * overlap_with.b1.double() + (1 - cosine**2) ** 0.5 * q[2]
    return Plane(tilted.float(), q[3].float())


def tilted(calibration: Calibration, cosine: float) -> Calibration:
    return replace(calibration, plane=plane_at(calibration.plane, cosine))


def in_turn(*edits: Edit) -> Edit:
    def edit(h: Tensor) -> Tensor:
        for each in edits:
            h = each(h)
        return h

    return edit


@pytest.mark.parametrize("stream", ["ln2_out", "resid_mid", "resid_post"])
def test_edits_at_a_shared_site_apply_in_the_order_given(
    stream: str, tiny_llama: TransformerBridge, tiny_folders: dict[str, Path], fitted: Fitted
) -> None:
    first = fitted("llama", stream)
    second = tilted(first, 0.8)
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    ids = oracle.ids(PROMPT)
    pairs = [(first, RotateBy(80)), (second, RotateBy(-130))]
    dense = [dense_rotation(first.plane, 80), dense_rotation(second.plane, -130)]
    found = []
    for order in (1, -1):
        with steer_all(tiny_llama, pairs[::order], max_overlap=1):
            found.append(logits_of(tiny_llama, ids)[0])
        edits = everywhere(in_turn(*dense[::order]), first.selected_sites)
        assert relative_error(found[-1], oracle.logits(ids, edits)) < TOLERANCE
    assert relative_error(*found) > 0.01  # planes that overlap: the order decides


def test_calibrations_of_different_streams_act_at_their_own_sites(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path], fitted: Fitted
) -> None:
    first, second = fitted("llama", "resid_mid"), fitted("llama", "ln2_out")
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    ids = oracle.ids(PROMPT)
    with steer_all(tiny_llama, [(first, RotateBy(50)), (second, RotateBy(80))]):
        got = logits_of(tiny_llama, ids)[0]
    edits = everywhere(dense_rotation(first.plane, 50), first.selected_sites)
    edits |= everywhere(dense_rotation(second.plane, 80), second.selected_sites)
    assert relative_error(got, oracle.logits(ids, edits)) < TOLERANCE


def test_nested_blocks_equal_one_block_of_both(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    first = fitted("llama", "resid_mid")
    second = tilted(first, 0.5)
    ids = torch.tensor([[1, 9, 40, 6]])
    with steer_all(tiny_llama, [(first, RotateBy(50)), (second, RotateTo(80))], max_overlap=1):
        together = logits_of(tiny_llama, ids)
    with steer(tiny_llama, first, RotateBy(50)), steer(tiny_llama, second, RotateTo(80)):
        assert torch.equal(logits_of(tiny_llama, ids), together)
    with steer_all(tiny_llama, [(first, RotateBy(50))]):
        one = logits_of(tiny_llama, ids)
    with steer(tiny_llama, first, RotateBy(50)):
        assert torch.equal(logits_of(tiny_llama, ids), one)


def test_planes_that_overlap_beyond_the_tolerance_are_an_error_with_its_measure(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    other, before = tilted(calibration, 0.4321), hooks_on(tiny_llama)
    message = (
        r"planes of calibrations 0 and 1 overlap by 0\.432 \(cosine .*\) at L0\.ln1_out and 5 "
        r"more; at most 0\.1 is allowed, .* different sites, or accept .* max_overlap=0\.433"
    )
    pairs = [(calibration, RotateBy(90)), (other, RotateBy(90))]
    with pytest.raises(UserError, match=message), steer_all(tiny_llama, pairs):
        pass
    assert hooks_on(tiny_llama) == before
    with steer_all(tiny_llama, pairs, max_overlap=0.433):
        logits_of(tiny_llama, torch.tensor([[1, 9]]))


def test_only_edits_that_act_at_a_shared_site_are_compared(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    first = fitted("llama", "ln1_out")
    elsewhere = replace(fitted("llama", "ln2_out"), plane=first.plane)
    ids = torch.tensor([[1, 9]])
    for other in ((elsewhere, RotateBy(90)), (first, RotateBy(0)), (tilted(first, 0.09), Add(1))):
        with steer_all(tiny_llama, [(first, RotateBy(90)), other]):
            logits_of(tiny_llama, ids)
    with (
        pytest.raises(UserError, match=r"calibrations 0 and 2 overlap by 1\.000"),
        steer_all(
            tiny_llama, [(first, RotateBy(90)), (elsewhere, RotateBy(90)), (first, Ablate())]
        ),
    ):
        pass


def test_a_rotation_out_of_its_plane_stands_beside_no_other_edit(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    pairs = [(calibration, RotateToward(40)), (tilted(calibration, 0.0), RotateBy(90))]
    message = r"0 and 1 meet at L0\.ln1_out and 5 more, and RotateToward .* max_overlap=1\."
    with pytest.raises(UserError, match=message), steer_all(tiny_llama, pairs, max_overlap=0.99):
        pass
    with steer_all(tiny_llama, pairs, max_overlap=1):
        logits_of(tiny_llama, torch.tensor([[1, 9]]))


def test_a_composition_of_nothing_and_an_overlap_that_is_no_cosine_are_errors(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    with pytest.raises(UserError, match=r"no edit to apply; give at least one"):
        steer_all(tiny_llama, [])
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=rf"cosine between 0 and 1; got {wrong}"):
            steer_all(tiny_llama, [(calibration, RotateBy(9))], max_overlap=wrong)


@given(seed=st.integers(0, 10_000), d=st.integers(4, 40))
def test_overlap_is_the_cosine_of_the_smallest_principal_angle(seed: int, d: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (Plane.from_span(*torch.randn(2, d, generator=generator)) for _ in range(2))
    angles = subspace_angles(first.basis.double().numpy().T, second.basis.double().numpy().T)
    assert overlap(first, second) == pytest.approx(np.cos(angles.min()), abs=1e-6)
    assert overlap(first, first) == pytest.approx(1, abs=1e-6)


# Each with the Lipschitz constant that the docstring of ``steer_all`` states for its change.
OPERATORS: dict[str, Callable[[float], tuple[Operator, float]]] = {
    "rotate_by": lambda x: (RotateBy(x), 2 * abs(np.sin(np.radians(x) / 2))),
    "rotate_to": lambda x: (RotateTo(x), 2.0),
    "set_angle": lambda x: (SetAngle(x, magnitude=3.0), 1.0),
    "add": lambda x: (Add(x / 30), 0.0),
    "ablate": lambda x: (Ablate(), 1.0),
    "reflect": lambda x: (Reflect(), 2.0),
}

STRENGTHS = st.floats(-180, 180, allow_nan=False)


@given(
    names=st.tuples(st.sampled_from(sorted(OPERATORS)), st.sampled_from(sorted(OPERATORS))),
    strengths=st.tuples(STRENGTHS, STRENGTHS),
    cosine=st.floats(0, 1),
    seed=st.integers(0, 10_000),
    d=st.integers(5, 40),
)
def test_the_order_of_two_edits_matters_by_no_more_than_the_stated_bound(
    names: tuple[str, str],
    strengths: tuple[float, float],
    cosine: float,
    seed: int,
    d: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    plane = Plane.from_span(*torch.randn(2, d, generator=generator))
    other = plane_at(plane, cosine, seed)
    h = torch.randn(8, d, generator=generator, dtype=torch.float64) * 4
    a, slope_a = OPERATORS[names[0]](strengths[0])
    b, slope_b = OPERATORS[names[1]](strengths[1])

    def moved(operator: Operator, p: Plane) -> Tensor:
        return (operator.apply(h, p) - h).norm(dim=-1)

    ab, ba = a.apply(b.apply(h, other), plane), b.apply(a.apply(h, plane), other)
    bound = overlap(plane, other) * (slope_a * moved(b, other) + slope_b * moved(a, plane))
    # The planes' bases are rounded to float32.
    assert ((ab - ba).norm(dim=-1) <= bound * (1 + 1e-4) + 1e-4).all()


def test_the_bound_on_what_the_order_decides_is_reached() -> None:
    """Two half turns, the planes tilted: the bound is no looser than the claim."""
    plane = Plane(torch.eye(6)[0], torch.eye(6)[1])
    other = plane_at(plane, 0.1)
    half = RotateBy(180)
    h = plane.b1.double().unsqueeze(0)
    ab = half.apply(half.apply(h, other), plane)
    ba = half.apply(half.apply(h, plane), other)
    bound = 0.1 * 2 * (2 * 0.1 + 2)  # what each moves: twice the part of h in its plane
    assert 0.8 * bound < float((ab - ba).norm()) <= bound


# --- Activation Addition in its original form ----------------------------------------------------


@pytest.mark.parametrize("stream", ["resid_pre", "resid_mid", "ln2_out"])
def test_actadd_adds_the_unnormalised_mean_difference_at_one_site(
    stream: str,
    tiny_llama: TransformerBridge,
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    store: Store,
    fitted: Fitted,
) -> None:
    calibration = fitted("llama", stream)
    site = calibration.direction_site
    assert site is not None
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    means = [
        torch.stack([oracle.activations(oracle.ids(p), [site])[-1, 0] for p in prompts]).mean(dim=0)
        for prompts in (tiny_data.positive, tiny_data.negative)
    ]
    ids, difference = oracle.ids(PROMPT), means[0] - means[1]
    for coefficient in (1.5, -0.5):
        with steer(tiny_llama, calibration, ActAdd(coefficient)):
            got = logits_of(tiny_llama, ids)[0]
        edits: dict[Site, Edit] = {site: lambda h, c=coefficient: h + c * difference}
        assert relative_error(got, oracle.logits(ids, edits)) < TOLERANCE
        assert relative_error(got, oracle.logits(ids)) > 0.01


def test_actadd_by_zero_sets_no_hook(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    before = hooks_on(tiny_llama)
    with steer(tiny_llama, calibration, ActAdd(0)):
        assert hooks_on(tiny_llama) == before


def test_actadd_needs_a_calibration_whose_direction_is_one_sites_mean_difference(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    cases = {
        r"this calibration's direction is a consensus": {"choice": Consensus()},
        r"b1 is another direction; calibrate with direction=": {"direction": CentredPCA()},
        r"adds the mean difference of L\d\.\w+, and this": {"plane": RandomPlane(seed=0)},
    }
    for message, options in cases.items():
        calibration = ss_lens.calibrate(acts, rule="uniform", **options)
        with (
            pytest.raises(UserError, match=message),
            steer(tiny_llama, calibration, ActAdd(1)),
        ):
            pass
