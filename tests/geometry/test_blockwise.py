"""Blocks of rows: they change the time that an edit takes, never its result or its gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ss_lens.geometry import blockwise, maps
from ss_lens.geometry.operators import Operator, RotateScale
from ss_lens.geometry.plane import Plane, in_plane
from tests.geometry.examples import APPLIED, in_rows

D = 24
ROWS = (10.0, -50.0, 170.0)
EVERY: tuple[Operator, ...] = (
    *APPLIED,
    *dict.fromkeys(in_rows(operator, ROWS) for operator in APPLIED if operator.strength),
    RotateScale(ROWS, scale=(0.5, 1, 2)),
)
every_operator = pytest.mark.parametrize("operator", EVERY, ids=repr)


@pytest.fixture
def plane() -> Plane:
    q, _ = torch.linalg.qr(normal(D, 2, seed=5))
    return Plane(q[:, 0].contiguous(), q[:, 1].contiguous())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Blocks of so many rows of ``D`` numbers."""
    return lambda rows: monkeypatch.setattr(blockwise, "BLOCK", rows * D)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@every_operator
@pytest.mark.parametrize("rows", [1, 4, 7, 20, 21, 22])
def test_blocks_do_not_change_the_result(
    operator: Operator, rows: int, plane: Plane, small_blocks: Callable[[int], None]
) -> None:
    h = normal(3, 7, D)
    whole = operator.apply(h, plane)
    small_blocks(rows)
    torch.testing.assert_close(operator.apply(h, plane), whole, rtol=0, atol=1e-13)


@every_operator
def test_a_gradient_flows_through_the_activation(
    operator: Operator, plane: Plane, small_blocks: Callable[[int], None]
) -> None:
    h = normal(3, 7, D).requires_grad_()
    (whole,) = torch.autograd.grad(operator.apply(h, plane).square().sum(), h)
    small_blocks(4)
    (blocked,) = torch.autograd.grad(operator.apply(h, plane).square().sum(), h)
    torch.testing.assert_close(blocked, whole, rtol=0, atol=1e-12)


@every_operator
def test_a_block_smaller_than_one_row_is_one_row(
    operator: Operator, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = normal(3, 7, D)
    whole = operator.apply(h, plane)
    monkeypatch.setattr(blockwise, "BLOCK", 1)
    torch.testing.assert_close(operator.apply(h, plane), whole, rtol=0, atol=1e-13)


@every_operator
def test_activations_may_lie_in_memory_in_any_order(
    operator: Operator, plane: Plane, small_blocks: Callable[[int], None]
) -> None:
    h = normal(D, 7, 3).permute(2, 1, 0)
    expected = operator.apply(h.contiguous(), plane)
    torch.testing.assert_close(operator.apply(h, plane), expected, rtol=0, atol=1e-13)
    small_blocks(4)
    torch.testing.assert_close(operator.apply(h, plane), expected, rtol=0, atol=1e-13)
    sliced = normal(3, 14, D)[:, ::2]
    expected = operator.apply(sliced.contiguous(), plane)
    torch.testing.assert_close(operator.apply(sliced, plane), expected, rtol=0, atol=1e-13)


@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_lower_the_precision(
    operator: Operator, dtype: torch.dtype, plane: Plane
) -> None:
    h = normal(3, 7, D, dtype=dtype)
    expected, coordinates = operator.apply(h, plane), in_plane(h, plane)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator.apply(h, plane), expected)
        assert torch.equal(in_plane(h, plane), coordinates)


@every_operator
def test_inference_mode_gives_the_same(operator: Operator, plane: Plane) -> None:
    h = normal(3, 7, D)
    expected = operator.apply(h, plane)
    with torch.inference_mode():
        assert torch.equal(operator.apply(h, plane), expected)


def test_strengths_per_row_are_repeated_for_every_vector_of_the_row(
    small_blocks: Callable[[int], None],
) -> None:
    def edit(vectors: Tensor, number: float, rows: Tensor) -> Tensor:
        return (number * rows)[:, None] + 0 * vectors

    strengths = 5.0, torch.tensor([1.0, 2.0])
    expected = torch.tensor([[5.0] * 3, [10.0] * 3])
    assert torch.equal(
        blockwise.edited(normal(2, 3, D).float(), edit, *strengths)[..., 0], expected
    )
    small_blocks(2)
    assert torch.equal(
        blockwise.edited(normal(2, 3, D).float(), edit, *strengths)[..., 0], expected
    )


@every_operator
def test_few_and_many_numbers_are_computed_alike(
    operator: Operator, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = normal(3, 7, D)
    small = operator.apply(h, plane)
    monkeypatch.setattr(maps, "SMALL", 0)
    torch.testing.assert_close(operator.apply(h, plane), small, rtol=0, atol=1e-13)
