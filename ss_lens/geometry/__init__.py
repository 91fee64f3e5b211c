"""Planes in activation space and what is done in them: pure mathematics on tensors, no models."""

from ss_lens.geometry.maps import (
    ablate,
    add,
    reflect,
    rotate_by,
    rotate_scale,
    rotate_to,
    rotate_to_if_aligned,
    rotate_toward,
    set_angle,
)
from ss_lens.geometry.plane import Plane, in_plane

__all__ = [
    "Plane",
    "ablate",
    "add",
    "in_plane",
    "reflect",
    "rotate_by",
    "rotate_scale",
    "rotate_to",
    "rotate_to_if_aligned",
    "rotate_toward",
    "set_angle",
]
