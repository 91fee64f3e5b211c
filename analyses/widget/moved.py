"""How far steering moved each token: a summary of the trace of one answer."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ss_lens.steering.trace import moved


@dataclass(frozen=True)
class Moved:
    """What steering did to the tokens of one prompt and its answer.

    Lengths are in the plane of the calibration and relative to the activation's own:
    :math:`\\|p' - p\\| / \\|h\\|`.

    Attributes:
        sites: how many were steered.
        tokens: how many were read there.
        changed: the share of their activations, over tokens and sites, that changed.
        mean: how far the changed ones were moved, on average; 0 where none changed.
        largest: how far the one that moved most was.
        norm_change: the largest relative change of a norm.
    """

    sites: int
    tokens: int
    changed: float
    mean: float
    largest: float
    norm_change: float

    @property
    def in_words(self) -> str:
        """One sentence."""
        if self.tokens == 0:
            return "No token was read."
        where = f"{self.tokens} tokens at {self.sites} sites"
        if self.changed == 0:
            return f"Nothing was moved: {where} were left as they were."
        return (
            f"{self.changed:.0%} of the activations of {where} were moved, by {self.mean:.2f} of "
            f"their length on average and {self.largest:.2f} at most; norms changed by at most "
            f"{self.norm_change:.1g}."
        )


def summary(trace: pd.DataFrame) -> Moved:
    """Summarise a trace of one sequence.

    Args:
        trace: :meth:`ss_lens.Trace.frame`.
    """
    distance = moved(trace)[trace["changed"].to_numpy(bool)]
    norms = (trace["norm_after"] / trace["norm_before"] - 1).abs()
    return Moved(
        sites=int(trace["site"].nunique()),
        tokens=int(trace["position"].nunique()),
        changed=float(trace["changed"].mean()) if len(trace) else 0.0,
        mean=float(distance.mean()) if len(distance) else 0.0,
        largest=float(distance.max()) if len(distance) else 0.0,
        norm_change=float(norms.max()) if len(norms) else 0.0,
    )


def per_token(trace: pd.DataFrame) -> pd.DataFrame:
    """One row per token, in order: ``position``, ``is_prompt``, and ``moved``, the mean over sites.

    Args:
        trace: :meth:`ss_lens.Trace.frame`, of one sequence.
    """
    rows = trace.assign(moved=moved(trace)).groupby("position", sort=True)
    return rows.agg(is_prompt=("is_prompt", "first"), moved=("moved", "mean")).reset_index()
