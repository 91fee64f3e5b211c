"""Time of every operator at one site, in passes over the activation, beside the dense forms.

Run with nothing else on the machine: ``python -m benchmarks.operators``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.speed import ROUNDS, alternating
from ss_lens.geometry.operators import (
    Ablate,
    ActAdd,
    Add,
    Operator,
    Reflect,
    RotateBy,
    RotateScale,
    RotateTo,
    RotateToIfAligned,
    RotateToward,
    SetAngle,
)
from ss_lens.geometry.plane import Plane

SHAPE = (8, 512, 4096)
ANGLE_DEG = 50.0
ROWS_DEG = tuple(45.0 * row for row in range(SHAPE[0]))
PER_ROW = "one angle per row"
OPERATORS: dict[str, Operator] = {
    "RotateBy": RotateBy(ANGLE_DEG),
    f"RotateBy, {PER_ROW}": RotateBy(ROWS_DEG),
    "RotateScale": RotateScale(ANGLE_DEG, scale=1.5),
    "RotateTo": RotateTo(ANGLE_DEG),
    "RotateToIfAligned": RotateToIfAligned(ANGLE_DEG),
    "RotateToward": RotateToward(ANGLE_DEG),
    f"RotateToward, {PER_ROW}": RotateToward(ROWS_DEG),
    "SetAngle": SetAngle(ANGLE_DEG, magnitude=3.0),
    "Add": Add(2.0),
    "ActAdd, bound to a length": ActAdd(2.0).bound(length=3.0),
    "Ablate": Ablate(),
    "Reflect": Reflect(),
}


def dense_forms(plane: Plane) -> dict[str, Callable[[Tensor], Tensor]]:
    """The rotations as they are published: with matrices of ``d_model × d_model``."""
    b1, b2 = plane.b1, plane.b2
    theta = torch.deg2rad(torch.tensor(ANGLE_DEG))
    cos, sin = torch.cos(theta), torch.sin(theta)
    projection = torch.outer(b1, b1) + torch.outer(b2, b2)
    turn = torch.outer(b2, b1) - torch.outer(b1, b2)
    rotation = torch.eye(len(b1)) + (cos - 1) * projection + sin * turn
    target = cos * b1 + sin * b2

    def projected(h: Tensor) -> Tensor:
        inside = h @ projection
        return h - inside + inside.norm(dim=-1, keepdim=True) * target

    return {
        "dense rotation (RotateBy)": lambda h: h @ rotation.T,
        "dense projection (RotateTo)": projected,
    }


@torch.inference_mode()
def ratios(dtype: torch.dtype, *, dense: bool) -> dict[str, float]:
    """Median time of each side over that of reading and writing the activation once."""
    torch.manual_seed(0)
    plane = Plane.from_span(*torch.randn(2, SHAPE[-1]).unbind())
    h = torch.randn(SHAPE).to(dtype)
    sides: dict[str, Callable[[], object]] = {"once": lambda: h * 1.0000001}
    for name, operator in OPERATORS.items():
        sides[name] = lambda operator=operator: operator.apply(h, plane)
    if dense:
        for name, form in dense_forms(plane).items():
            sides[name] = lambda form=form: form(h)
    times = alternating(sides)
    once = times.pop("once")
    print(f"h * 1.0000001 on {list(SHAPE)} {dtype}: {1e3 * once:.1f} ms")
    return {name: seconds / once for name, seconds in times.items()}


def main() -> None:
    print(f"{torch.get_num_threads()} threads, medians of {ROUNDS} alternating rounds")
    for dtype, goal in ((torch.float32, "  (goal ≤ 2)"), (torch.bfloat16, "")):
        for name, ratio in ratios(dtype, dense=dtype == torch.float32).items():
            print(f"  {name:<32} / once  {ratio:6.2f}{goal if name in OPERATORS else ''}")


if __name__ == "__main__":
    main()
