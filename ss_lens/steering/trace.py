"""The token-level trace: what steering did to each token at each site, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ss_lens.core.errors import UserError
from ss_lens.geometry.plane import Plane, in_plane
from ss_lens.models.sites import Site
from ss_lens.steering.positions import PassTokens

_MEASURES = (
    "angle_before_deg",
    "angle_after_deg",
    "norm_before",
    "norm_after",
    "in_plane_norm_before",
    "in_plane_norm_after",
)


@dataclass(frozen=True, eq=False)
class _Record:
    """One edit at one site in one pass; the tokens of a pass are shared by its records."""

    forward_pass: int
    site: Site
    edit: int
    tokens: dict[str, np.ndarray]
    changed: Bool[np.ndarray, "token"]
    measures: Float[np.ndarray, "6 token"]


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a gate found at the end of the prompts of one pass."""

    forward_pass: int
    site: Site
    rows: tuple[int, ...]
    projection: Float[np.ndarray, "row"]
    threshold: float
    is_open: Bool[np.ndarray, "row"]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What the sites weighed of the prompts of one pass, and which were chosen."""

    forward_pass: int
    rows: tuple[int, ...]
    sites: tuple[Site, ...]
    weights: Float[np.ndarray, "row site"]
    is_steered: Bool[np.ndarray, "row site"]


class Trace:
    """Records, inside ``steer(..., trace=trace)``, every token that reaches a steered site.

    Values are computed in float64 on the CPU and kept until the trace is dropped: 49 bytes for each
    token, site and edit, so 1000 tokens at 50 sites take 2.5 MB here and several times that as a
    table. Tracing copies each steered activation to the CPU twice; without a trace nothing runs.

    A trace may be used in several blocks one after the other; its passes go on counting.
    """

    def __init__(self) -> None:
        self._records: list[_Record] = []
        self._asked: list[_Asked] = []
        self._chosen: list[_Chosen] = []
        self._tokens: PassTokens | None = None
        self._of_pass: dict[str, np.ndarray] = {}
        self._passes = 0
        self._in_use = False

    def __repr__(self) -> str:
        sites = {record.site for record in self._records}
        tokens = sum(len(record.changed) for record in self._records)
        return f"Trace({self._passes} passes, {len(sites)} sites, {tokens} tokens recorded)"

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Held by steering while its block runs.

        Raises:
            UserError: another block records into this trace.
        """
        if self._in_use:
            raise UserError(
                "this trace is recording another steer(...) block already; give each its own."
            )
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False
            self._tokens = None

    def record(
        self,
        tokens: PassTokens,
        site: Site,
        edit: int,
        plane: Plane,
        before: Float[Tensor, "row token d_model"],
        after: Float[Tensor, "row token d_model"],
    ) -> None:
        """Keep what one edit did at one site; padding is left out."""
        if tokens is not self._tokens:
            self._begin(tokens)
        old, new = (h[tokens.is_token].detach().cpu() for h in (before, after))
        measures = [_measured(h.double(), plane) for h in (old, new)]
        self._records.append(
            _Record(
                self._passes - 1,
                site,
                edit,
                self._of_pass,
                (old != new).any(dim=-1).numpy(),
                torch.stack(measures, dim=1).flatten(0, 1).numpy(),
            )
        )

    def record_gate(
        self,
        tokens: PassTokens,
        site: Site,
        projection: Float[Tensor, "row"],
        threshold: float,
        is_open: Bool[Tensor, "row"],
    ) -> None:
        """Keep what a gate decided at the end of the prompts of a pass."""
        if tokens is not self._tokens:
            self._begin(tokens)
        found, opened = projection.detach().double().cpu().numpy(), is_open.cpu().numpy()
        self._asked.append(_Asked(self._passes - 1, site, tokens.rows, found, threshold, opened))

    def record_sites(
        self,
        tokens: PassTokens,
        sites: tuple[Site, ...],
        weights: Float[Tensor, "row site"],
        is_steered: Bool[Tensor, "row site"],
    ) -> None:
        """Keep at which sites the prompts of a pass are steered."""
        if tokens is not self._tokens:
            self._begin(tokens)
        weighed, chosen = weights.detach().double().cpu().numpy(), is_steered.cpu().numpy()
        self._chosen.append(_Chosen(self._passes - 1, tokens.rows, sites, weighed, chosen))

    def _begin(self, tokens: PassTokens) -> None:
        rows = torch.tensor(tokens.rows, device=tokens.index.device)
        each = {
            "row": rows.unsqueeze(1).expand_as(tokens.index),
            "position": tokens.index,
            "is_prompt": tokens.is_prompt,
        }
        self._of_pass = {name: v[tokens.is_token].cpu().numpy() for name, v in each.items()}
        self._tokens = tokens
        self._passes += 1

    def frame(self) -> pd.DataFrame:
        """One row per forward pass, site, edit, sequence and token, in the order of computation.

        Columns:
            ``forward_pass``: counted from 0.
            ``site``: for example ``L12.ln1_out``.
            ``edit``: which calibration of :func:`ss_lens.steer_all`, counted from 0; at a
            shared site, a later edit's "before" is an earlier one's "after".
            ``row``: which of the prompts given to :func:`ss_lens.generate`; the batch row, where
            the model was called directly.
            ``position``: place of the token in its sequence, from 0, without padding.
            ``is_prompt``: as :mod:`ss_lens.steering.positions` defines it.
            ``changed``: whether any component of the activation was.
            ``angle_before_deg``, ``angle_after_deg``: in-plane phase in [0, 360), ``b1`` being 0
            and ``b2`` 90; NaN where the in-plane part is zero.
            ``norm_before``, ``norm_after``, ``in_plane_norm_before``, ``in_plane_norm_after``: of
            the whole activation and of its in-plane part, in units of the activation.
        """
        records = self._records

        def joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
            return np.concatenate([np.empty(0, dtype), *parts])

        sizes = [len(r.changed) for r in records]
        columns = {
            "forward_pass": np.repeat(np.array([r.forward_pass for r in records], int), sizes),
            "site": np.repeat(np.array([str(r.site) for r in records], object), sizes),
            "edit": np.repeat(np.array([r.edit for r in records], int), sizes),
            "row": joined([r.tokens["row"] for r in records], int),
            "position": joined([r.tokens["position"] for r in records], int),
            "is_prompt": joined([r.tokens["is_prompt"] for r in records], bool),
            "changed": joined([r.changed for r in records], bool),
        }
        columns |= {
            name: joined([r.measures[i] for r in records], float)
            for i, name in enumerate(_MEASURES)
        }
        return pd.DataFrame(columns).astype({"site": "str"})

    def gates(self) -> pd.DataFrame:
        """One row per prompt that a gate read (``steer(..., when=gate)``), in that order.

        Columns:
            ``forward_pass``, ``row``: as in :meth:`frame`.
            ``site``, ``threshold``: the gate's.
            ``projection``: what it read, in units of the activation.
            ``is_open``: whether the prompt and its answer are steered.
        """
        rows = [
            (one.forward_pass, row, str(one.site), projection, one.threshold, is_open)
            for one in self._asked
            for row, projection, is_open in zip(
                one.rows, one.projection.tolist(), one.is_open.tolist(), strict=True
            )
        ]
        columns = ["forward_pass", "row", "site", "projection", "threshold", "is_open"]
        kinds = {
            **{"forward_pass": int, "row": int, "site": "str"},
            **{"projection": float, "threshold": float, "is_open": bool},
        }
        return pd.DataFrame(rows, columns=columns).astype(kinds)

    def sites(self) -> pd.DataFrame:
        """One row per prompt and site that was weighed (``steer(..., sites=...)``), in that order.

        Columns:
            ``forward_pass``, ``row``: as in :meth:`frame`.
            ``site``: one of those that are chosen from.
            ``weight``: see :class:`ss_lens.PromptSites`, in nats.
            ``is_steered``: whether the prompt and its answer are steered there.
        """
        rows = [
            (one.forward_pass, row, str(site), one.weights[i, j], one.is_steered[i, j])
            for one in self._chosen
            for i, row in enumerate(one.rows)
            for j, site in enumerate(one.sites)
        ]
        columns = ["forward_pass", "row", "site", "weight", "is_steered"]
        kinds = {"forward_pass": int, "row": int, "site": "str", "weight": float}
        return pd.DataFrame(rows, columns=columns).astype({**kinds, "is_steered": bool})


def moved(trace: pd.DataFrame) -> np.ndarray:
    """How far each activation was moved in the plane, as a part of its length.

    Args:
        trace: :meth:`Trace.frame`.
    """
    before, after = (
        trace[f"in_plane_norm_{when}"].to_numpy(float)
        # Without an in-plane part there is no phase, and none is needed.
        * np.exp(1j * np.deg2rad(trace[f"angle_{when}_deg"].fillna(0.0).to_numpy(float)))
        for when in ("before", "after")
    )
    return np.abs(after - before) / trace["norm_before"].to_numpy(float)


def _measured(h: Float[Tensor, "token d_model"], plane: Plane) -> Float[Tensor, "3 token"]:
    """Phase in degrees, norm, in-plane norm."""
    x, y = in_plane(h, plane).unbind(-1)
    radius = torch.hypot(x, y)
    # A phase just below zero rounds to 360 at the first remainder.
    phase = torch.rad2deg(torch.atan2(y, x)).remainder(360).remainder(360)
    return torch.stack((phase.where(radius > 0, torch.nan), h.norm(dim=-1), radius))
