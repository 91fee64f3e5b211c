"""What an operator does in the plane, as a picture: where it carries the points of a circle."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ss_lens.geometry.plane import Plane

POINTS = 7
"""So many that no usual angle carries one onto another."""
_BEFORE, _AFTER = "#0072B2", "#D55E00"
_SIZE, _EDGE = 190, 24
Point = tuple[float, float]


def carried(apply: Callable[[Tensor, Plane], Tensor]) -> tuple[list[Point], list[Point]]:
    """Points on a circle around the origin of the plane, and where they are afterwards.

    The radius is 1; where some point moves by more than that, half of what it moves by, so that
    both can be seen.

    Args:
        apply: from activations and a plane to activations, as an operator has it.
    """
    plane = Plane(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    # No point lies on an axis, where some operators jump.
    turns = (torch.arange(POINTS) + 0.5) / POINTS * 2 * math.pi
    before = torch.stack((turns.cos(), turns.sin(), torch.zeros(POINTS)), dim=1)
    furthest = float((apply(before, plane) - before).norm(dim=1).max())
    before = before * max(1.0, furthest / 2)
    places = [[(x, y) for x, y, _ in h.tolist()] for h in (before, apply(before, plane))]
    return places[0], places[1]


def picture(apply: Callable[[Tensor, Plane], Tensor]) -> str:
    """An inline SVG with ``b1`` to the right and ``b2`` upwards; a line joins before and after."""
    before, after = carried(apply)
    reach = max(math.hypot(*point) for point in (*before, *after))
    middle, scale = _SIZE / 2, (_SIZE / 2 - _EDGE) / reach

    def placed(point: Point) -> tuple[str, str]:
        return f"{middle + scale * point[0]:.1f}", f"{middle - scale * point[1]:.1f}"

    length = math.hypot(*before[0])
    parts = [
        f'<circle cx="{middle}" cy="{middle}" r="{scale * length:.1f}" fill="none" '
        'stroke="currentColor" stroke-opacity="0.35"/>',
        f'<path d="M{_EDGE / 2} {middle}H{_SIZE - _EDGE / 2}M{middle} {_EDGE / 2}'
        f'V{_SIZE - _EDGE / 2}" stroke="currentColor" stroke-opacity="0.35"/>',
        f'<text x="{_SIZE - 14}" y="{middle - 5}">b1</text>',
        f'<text x="{middle + 5}" y="11">b2</text>',
    ]
    for start, end in zip(before, after, strict=True):
        (a, b), (c, d) = placed(start), placed(end)
        parts.append(
            f'<path d="M{a} {b}L{c} {d}" stroke="{_AFTER}" stroke-opacity="0.5"/>'
            f'<circle cx="{a}" cy="{b}" r="3.5" fill="none" stroke="{_BEFORE}" stroke-width="1.5"/>'
            f'<circle cx="{c}" cy="{d}" r="3" fill="{_AFTER}"/>'
        )
    told = f"Points of the plane at length {length:.3g}, before (rings) and after (dots)."
    return (
        f'<figure style="margin:8px 0 0 0"><svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{told}" viewBox="0 0 {_SIZE} {_SIZE}" width="{_SIZE}" height="{_SIZE}" '
        'style="max-width:100%;height:auto;display:block" fill="currentColor" '
        f'font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
        f'<figcaption style="font-size:smaller">{told}</figcaption></figure>'
    )
