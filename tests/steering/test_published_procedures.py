"""The published steering procedures, as plain torch hooks, against ours on SmolLM2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import (
    Ablate,
    Add,
    Calibration,
    ContrastiveDataset,
    RotateBy,
    RotateTo,
    RotateToIfAligned,
    Store,
)
from ss_lens.geometry.operators import Operator
from ss_lens.models.fetching import fetch
from tests.oracles import Edit, HuggingFaceOracle, relative_error

pytestmark = pytest.mark.default_model
MODEL = "smollm2-135m"
TOLERANCE = 1e-4  # of the largest logit
N_BLOCKS = 30
EVERY_NORM = [
    f"model.layers.{block}.{norm}"
    for block in range(N_BLOCKS)
    for norm in ("input_layernorm", "post_attention_layernorm")
]

# Each procedure takes the two basis vectors and a strength (a length, or an angle in radians) and
# gives what a hook does to activations as rows: the equations of arXiv 2601.19375, with dense
# d × d matrices.
Procedure = Callable[[Tensor, Tensor, float], Edit]


def activation_addition(b1: Tensor, b2: Tensor, alpha: float) -> Edit:
    return lambda h: h + alpha * b1


def directional_ablation(b1: Tensor, b2: Tensor, _: float) -> Edit:
    return lambda h: h - (h @ b1).unsqueeze(-1) * b1


def standard_angular(b1: Tensor, b2: Tensor, theta: float) -> Edit:
    projection = torch.outer(b1, b1) + torch.outer(b2, b2)
    target = math.cos(theta) * b1 + math.sin(theta) * b2
    return lambda h: h - h @ projection + (h @ projection).norm(dim=-1, keepdim=True) * target


def adaptive_angular(b1: Tensor, b2: Tensor, theta: float) -> Edit:
    turned = standard_angular(b1, b2, theta)
    return lambda h: torch.where((h @ b1 > 0).unsqueeze(-1), turned(h), h)


def selective_rotation(b1: Tensor, b2: Tensor, theta: float) -> Edit:
    basis = torch.stack((b1, b2), dim=1)
    cos, sin = math.cos(theta), math.sin(theta)
    turn = torch.tensor([[cos, -sin], [sin, cos]])
    rotation = torch.eye(len(b1)) - basis @ basis.T + basis @ turn @ basis.T
    return lambda h: h @ rotation.T


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return ss_lens.load_model(MODEL)


@pytest.fixture(scope="module")
def plain() -> HuggingFaceOracle:
    return HuggingFaceOracle(fetch(MODEL))


@pytest.fixture(scope="module")
def data() -> ContrastiveDataset:
    return ss_lens.load_dataset("refusal").head(6)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def everywhere(model: TransformerBridge, data: ContrastiveDataset, kept: Store) -> Calibration:
    """Every norm is steered, as the published baselines do."""
    acts = ss_lens.capture(model, data.head(5), store=kept)
    return ss_lens.calibrate(acts, rule="uniform")


@pytest.fixture(scope="module")
def selective(model: TransformerBridge, data: ContrastiveDataset, kept: Store) -> Calibration:
    """The sites where the class means lie on opposite sides."""
    acts = ss_lens.capture(model, data.head(5), store=kept)
    return ss_lens.calibrate(acts, rule="site")


@contextmanager
def hooked(plain: HuggingFaceOracle, modules: Sequence[str], edit: Edit) -> Iterator[None]:
    handles = [
        plain.model.get_submodule(name).register_forward_hook(
            lambda module, args, output: edit(output)
        )
        for name in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compared(
    model: TransformerBridge,
    plain: HuggingFaceOracle,
    calibration: Calibration,
    modules: Sequence[str],
    operator: Operator,
    procedure: Edit,
    prompt: str,
) -> None:
    """Ours and theirs agree, and both are far from the model that is not steered."""
    ids = plain.ids(prompt)
    with hooked(plain, modules, procedure):
        expected = plain.logits(ids)
    with torch.inference_mode(), ss_lens.steer(model, calibration, operator):
        got = model(ids)[0]
        assert relative_error(got, expected) <= TOLERANCE
    with torch.inference_mode():
        assert relative_error(model(ids)[0], expected) > 1000 * TOLERANCE


BASELINES: dict[str, tuple[Operator, Procedure, float]] = {
    "Activation Addition": (Add(2.0), activation_addition, 2.0),
    "Directional Ablation": (Ablate(), directional_ablation, 0.0),
    "SAS to 200°": (RotateTo(200), standard_angular, math.radians(200)),
    "SAS to b1": (RotateTo(0), standard_angular, 0.0),
    "AAS to 200°": (RotateToIfAligned(200), adaptive_angular, math.radians(200)),
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_published_baseline_at_every_norm_gives_the_same_logits(
    name: str,
    model: TransformerBridge,
    plain: HuggingFaceOracle,
    everywhere: Calibration,
    data: ContrastiveDataset,
) -> None:
    operator, procedure, strength = BASELINES[name]
    assert len(everywhere.selected_sites) == len(EVERY_NORM)
    edit = procedure(everywhere.plane.b1, everywhere.plane.b2, strength)
    compared(model, plain, everywhere, EVERY_NORM, operator, edit, data.negative[5])


def test_selective_steering_at_the_selected_norms_gives_the_same_logits(
    model: TransformerBridge,
    plain: HuggingFaceOracle,
    selective: Calibration,
    data: ContrastiveDataset,
) -> None:
    norm_of = {"ln1_out": "input_layernorm", "ln2_out": "post_attention_layernorm"}
    modules = [f"model.layers.{s.layer}.{norm_of[s.stream]}" for s in selective.selected_sites]
    assert 0 < len(modules) < len(EVERY_NORM)
    edit = selective_rotation(selective.plane.b1, selective.plane.b2, math.radians(200))
    compared(model, plain, selective, modules, RotateBy(200), edit, data.positive[5])
