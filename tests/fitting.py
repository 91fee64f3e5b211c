"""Calibrations of the tiny models that steer chosen streams, and padded batches of ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, Store
from ss_lens.calibration.site_selection import Explicit
from ss_lens.models.sites import available_streams, sites_of

Fitted = Callable[..., Calibration]
"""From the name of a tiny model and its streams to a calibration that steers them."""


def fitted_on(
    model: TransformerBridge, data: ContrastiveDataset, store: Store, *streams: str
) -> Calibration:
    """A calibration that steers every site of the given streams (default: the paper's two)."""
    streams = streams or ("ln1_out", "ln2_out")
    residual = streams[0].startswith("resid")
    alike = tuple(s for s in available_streams(model) if s.startswith("resid") == residual)
    acts = ss_lens.capture(model, data, streams=available_streams(model), store=store)
    chosen = sites_of(model, [s for s in alike if s in streams])
    rule = Explicit(sites=",".join(map(str, chosen)))
    return ss_lens.calibrate(acts, streams=alike, rule=rule)


def padded(rows: Sequence[Tensor], side: str, pad_id: int = 3) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[row, token]`` of unpadded rows ``[1, token]``."""
    width = max(row.shape[1] for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        n = row.shape[1]
        where = slice(0, n) if side == "right" else slice(width - n, width)
        ids[line, where] = row[0]
        mask[line, where] = 1
    return ids, mask
