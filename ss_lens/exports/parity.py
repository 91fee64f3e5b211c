"""How far an exported model is from the steered one: logits, KL and greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.generation.loop import continue_tokens, stop_ids
from ss_lens.geometry.operators import Operator
from ss_lens.models import forward
from ss_lens.models.chat import Tokens
from ss_lens.models.loading.devices import device_of
from ss_lens.steering.steer import steer

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "f16": 2e-2, "q8_0": 1e-1}
"""Largest deviation of a logit, as a share of the largest logit of the prompt, by dtype;
``f16`` and ``q8_0`` are those of a GGUF file.

In half precision it is the rounding of weights and activations that an export and hooks do in
another order; it says nothing about the export's algebra, for which float32 is exact enough.
"""
BATCH_SIZE = 16
Logits = Callable[[Tensor], Tensor]
"""Token ids of one prompt → logits ``[token, vocab]``."""


@dataclass(frozen=True)
class Parity:
    """An exported model beside ``steer(...)``, on prompts and the steered model's answers to them.

    Attributes:
        operator: what was exported, as it prints.
        dtype: of the exported model.
        n_prompts: how many prompts were read.
        n_positions: how many tokens, of prompts and answers.
        max_difference: the largest difference of two logits.
        mean_difference: the mean over all logits.
        relative: the largest difference as a share of the prompt's largest logit; at most
            ``tolerance``.
        steered_relative: the same between the steered and the unsteered model, to compare with.
        kl_mean: KL(steered ‖ exported), in nats per token.
        kl_max: at the worst token.
        same_top: the share of tokens after which both find the same token likeliest.
        equal_answers: how many greedy answers are the same.
        partings: of the others, the prompt and the token of the answer at which they part.
        max_new_tokens: where answers were cut off.
        tolerance: what ``relative`` was held against.
    """

    operator: str
    dtype: str
    n_prompts: int
    n_positions: int
    max_difference: float
    mean_difference: float
    relative: float
    steered_relative: float
    kl_mean: float
    kl_max: float
    same_top: float
    equal_answers: int
    partings: tuple[tuple[int, int], ...]
    max_new_tokens: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance (NaN is not)."""
        return self.relative <= self.tolerance

    def check(self, kind: str) -> None:
        """Raise where the deviation exceeds the tolerance."""
        if not self.holds:
            raise UserError(
                f"the export ({kind}, {self.operator}, {self.dtype}) is not the steered model: its "
                f"logits deviate by {self.relative:.1e} of the largest, allowed is "
                f"{self.tolerance:.0e}; {self.equal_answers} of {self.n_prompts} greedy answers "
                f"are equal. Export again from the model that was calibrated, in float32 if this "
                "is half precision."
            )


def as_json(reports: Iterable[Parity]) -> list[dict[str, Any]]:
    return [{**asdict(one), "partings": [[*pair] for pair in one.partings]} for one in reports]


def as_table(reports: Sequence[Parity]) -> pd.DataFrame:
    """One row per operator."""
    return pd.DataFrame([asdict(one) for one in reports])


@dataclass
class _Sums:
    """What is added up over prompts."""

    positions: int = 0
    logits: int = 0
    largest: float = 0.0
    total: float = 0.0
    relative: float = 0.0
    steered: float = 0.0
    kl: float = 0.0
    worst: float = 0.0
    agreeing: int = 0
    partings: list[tuple[int, int]] = field(default_factory=list)


def measure(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    exported: Logits,
    tokens: Sequence[Tokens],
    *,
    dtype: str,
    max_new_tokens: int,
) -> Parity:
    """Compare the logits of ``exported`` with those of the steered model.

    Both read each prompt with the steered model's greedy answer behind it. Where the exported model
    finds another token likeliest, its own greedy answer parts from there on.

    Args:
        model: without hooks.
        calibration: as in :func:`ss_lens.steer`.
        operator: with one strength.
        exported: the model to judge.
        tokens: whole prompts, template included.
        dtype: of ``exported``.
        max_new_tokens: where answers are cut off.
    """
    judged = {"": (exported, dtype)}
    return compare(model, calibration, operator, judged, tokens, max_new_tokens=max_new_tokens)[""]


def compare(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    exported: Mapping[str, tuple[Logits, str]],
    tokens: Sequence[Tokens],
    *,
    max_new_tokens: int,
) -> dict[str, Parity]:
    """As :func:`measure`, for several exported models by name, each with its dtype."""
    steps = -(-len(tokens) // BATCH_SIZE) * max_new_tokens + len(tokens)
    stops = stop_ids(model)
    sums = {name: _Sums() for name in exported}
    with progress_bar(steps, f"check {operator}", "step") as bar:
        with steer(model, calibration, operator):
            answers = continue_tokens(
                model,
                tokens,
                max_new_tokens=max_new_tokens,
                batch_size=BATCH_SIZE,
                temperature=0,
                seed=0,
                bar=bar,
            )
        for index, (prompt, answer) in enumerate(zip(tokens, answers, strict=True)):
            ids = torch.tensor([*prompt, *answer], device=device_of(model))
            unsteered = _bridge_logits(model, ids)
            with steer(model, calibration, operator):
                steered = _bridge_logits(model, ids)
            for name, (logits, _) in exported.items():
                got = logits(ids).float().cpu()
                _add(sums[name], steered, unsteered, got)
                chosen = got[len(prompt) - 1 :].argmax(dim=-1).tolist()
                place = _parting(chosen, answer, stops, max_new_tokens)
                if place is not None:
                    sums[name].partings.append((index, place))
            bar.update(1)
    return {
        name: Parity(
            operator=str(operator),
            dtype=dtype,
            n_prompts=len(tokens),
            n_positions=sums[name].positions,
            max_difference=sums[name].largest,
            mean_difference=sums[name].total / sums[name].logits,
            relative=sums[name].relative,
            steered_relative=sums[name].steered,
            kl_mean=sums[name].kl / sums[name].positions,
            kl_max=sums[name].worst,
            same_top=sums[name].agreeing / sums[name].positions,
            equal_answers=len(tokens) - len(sums[name].partings),
            partings=tuple(sums[name].partings),
            max_new_tokens=max_new_tokens,
            tolerance=TOLERANCES[dtype],
        )
        for name, (_, dtype) in exported.items()
    }


@torch.inference_mode()
def _bridge_logits(model: TransformerBridge, ids: Int[Tensor, "token"]) -> Tensor:
    row = ids[None]
    return forward.run_all(model, row, torch.ones_like(row), keep=len(ids))[0].float().cpu()


def _add(
    sums: _Sums,
    steered: Float[Tensor, "token vocab"],
    unsteered: Float[Tensor, "token vocab"],
    got: Float[Tensor, "token vocab"],
) -> None:
    difference, scale = (got - steered).abs(), steered.abs().max()
    p, q = (logits.double().log_softmax(dim=-1) for logits in (steered, got))
    kl = (p.exp() * (p - q)).sum(dim=-1)
    sums.positions += len(steered)
    sums.logits += steered.numel()
    sums.total += float(difference.double().sum())
    sums.kl += float(kl.sum())
    sums.agreeing += int((got.argmax(dim=-1) == steered.argmax(dim=-1)).sum())
    sums.worst = _larger(sums.worst, kl.max())
    sums.largest = _larger(sums.largest, difference.max())
    sums.relative = _larger(sums.relative, difference.max() / scale)
    sums.steered = _larger(sums.steered, (unsteered - steered).abs().max() / scale)


def _larger(so_far: float, new: Tensor) -> float:
    """The larger of two, or NaN where one is: no comparison may hide it."""
    return float(torch.maximum(torch.tensor(so_far, dtype=torch.float64), new.double()))


def _parting(
    chosen: Sequence[int], answer: Sequence[int], stops: Sequence[int], most: int
) -> int | None:
    """Where the likeliest tokens part from the answer; behind a short one a stop is due."""
    for place, (mine, theirs) in enumerate(zip(chosen, answer, strict=False)):
        if mine != theirs:
            return place
    ended = len(answer) < most
    return len(answer) if ended and chosen[len(answer)] not in stops else None
