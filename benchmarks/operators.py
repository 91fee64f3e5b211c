"""Time of every operator at one site, in passes over the activation, beside the dense forms.

Run with nothing else on the machine: ``python -m benchmarks.operators``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import ROUNDS, alternating
from ss_lens.geometry.operators import (
    AngularOperator,
    Operator,
    RotateBy,
    RotateScale,
    RotateToward,
    SetAngle,
)
from ss_lens.geometry.plane import Plane

SHAPE = (8, 512, 4096)
ANGLE_DEG = 50.0
ROWS_DEG = tuple(45.0 * row for row in range(SHAPE[0]))
PER_ROW = "one angle per row"
SETTINGS: dict[type[Operator], dict[str, float]] = {
    RotateScale: {"scale": 1.5},
    SetAngle: {"magnitude": 3.0},
}
"""Beside the strength, which is an angle of :data:`ANGLE_DEG` or 2."""


def timed() -> dict[str, Operator]:
    """Every operator, and two of them with one angle per row."""
    found: dict[str, Operator] = {}
    for kind in Operator.kinds():
        given = dict(SETTINGS.get(kind, {}))
        if kind.strength is not None:
            given[kind.strength] = ANGLE_DEG if issubclass(kind, AngularOperator) else 2.0
        found[kind.__name__] = kind(**given).bound(length=3.0)
    for kind in (RotateBy, RotateToward):
        found[f"{kind.__name__}, {PER_ROW}"] = kind(ROWS_DEG)
    return found


OPERATORS = timed()


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
