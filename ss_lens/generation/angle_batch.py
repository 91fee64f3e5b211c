"""Sweeps of one operator over many angles in one batch, which share what its rows share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_at_least, check_is, described, first_repeated
from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.generation import reuse as shared_work
from ss_lens.generation.loop import check_logits, continue_tokens, decode, greedy
from ss_lens.generation.lower_blocks import LowerBlocks
from ss_lens.generation.reuse import Reach, SharedPrefix
from ss_lens.geometry.operators import AngularOperator, Operator
from ss_lens.geometry.strengths import Strengths, check_count, reduced
from ss_lens.models import forward
from ss_lens.models.chat import (
    DEFAULT_FORMAT,
    ChatFormat,
    Prompt,
    Tokens,
    check_context,
    tokenize,
)
from ss_lens.models.forward import Batch
from ss_lens.models.loading.devices import device_of
from ss_lens.steering.gates import Gate, check_gate
from ss_lens.steering.positions import ALL_POSITIONS, Positions
from ss_lens.steering.steer import steer

BATCH_ROWS = 48

Angled = type[AngularOperator] | Operator
"""A class of operators with an angle, or one of its values, whose own angle is not used.

A value without an angle is taken as it is; it is swept at 0 degrees alone (:data:`NO_ANGLE`).
"""
NO_ANGLE = (0.0,)
"""The angles of an operator that has none: tables have to say one."""
Pair = tuple[int, int]
"""A prompt and an angle, by their places."""


def sweep_angles(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    prompts: Sequence[Prompt],
    angles_deg: Sequence[float | int] | np.ndarray,
    *,
    max_new_tokens: int = 64,
    batch_rows: int = BATCH_ROWS,
    positions: Positions = ALL_POSITIONS,
    chat: ChatFormat = DEFAULT_FORMAT,
    unsteered: bool = False,
    when: Gate | None = None,
) -> pd.DataFrame:
    """Answer every prompt at every angle, with one angle per batch row.

    The answers are those of one steered :func:`generate` after the other. What rows have in common
    is computed once: the tokens that all prompts start with, once per angle; the blocks below the
    first steered one, once per prompt of a batch; what ``positions`` leave unsteered of a prompt,
    at no angle. Rows whose answer is over leave the batch.

    Inside another ``steer(...)`` both edits act, the sweep's after the outer one, as in nested
    blocks. The outer edit may differ by row, so nothing is shared and no row leaves.

    Args:
        model: the model that the calibration was made on.
        calibration: plane and sites.
        operator: the class, for example :class:`ss_lens.RotateBy`.
        prompts: the users' turns, or lists of turns ``{"role": ..., "content": ...}``.
        angles_deg: in degrees.
        max_new_tokens: where an answer is cut off.
        batch_rows: at most this many prompt–angle pairs run at once, which bounds the memory. A
            pair takes its logits and, for each token of prompt and answer and once more for those
            that all prompts share, 2 · layers · key heads · head size numbers (46 kB on the default
            model). Beside these there are only the activations of one block at a time.
        positions: which tokens are steered, as in :func:`ss_lens.steer`.
        chat: system prompt, date and further arguments of the template.
        unsteered: whether each prompt's first row is the answer of the unsteered model, with
            ``angle_deg`` NaN. No angle of an operator such as :class:`ss_lens.RotateTo` stands for
            it, not even 0°.
        when: which prompts are steered, as in :func:`ss_lens.steer`; the others have the same
            answer at every angle.

    Returns:
        Columns ``prompt_index``, ``prompt``, ``angle_deg``, ``response``; prompts in their order,
        each with the angles in theirs.

    Raises:
        UserError: no angle, an angle that is not finite, unsteered rows of a model that already
            carries hooks, or anything :func:`generate` raises.
    """
    check_at_least("max_new_tokens", max_new_tokens)
    check_is("unsteered", unsteered, (bool,), "True or False")

    def answered(sweep: _Sweep, chunk: _Chunk, bar: tqdm) -> dict[str, Sequence[Any]]:
        return {"response": sweep.answers(chunk, max_new_tokens, bar)}

    sweep = _Sweep.of(
        *(model, calibration, operator, prompts, angles_deg, batch_rows, positions, chat),
        when=when,
    )
    if unsteered and shared_work.is_hooked(model):
        raise UserError(
            "unsteered=True needs a model without hooks, got one inside steer(...) or another hook "
            "context: its rows would be steered. Leave that block, or drop unsteered=True."
        )
    check_context(model, sweep.tokens, prompts, max_new_tokens)
    steered = sweep.table(answered, ("response",), steps=max_new_tokens)
    if not unsteered:
        return steered
    table = pd.concat([sweep.unsteered(max_new_tokens), steered])
    return table.sort_values("prompt_index", kind="stable", ignore_index=True)


def sweep_first_logits(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    prompts: Sequence[Prompt],
    angles_deg: Sequence[float | int] | np.ndarray,
    measure: Callable[[Float[Tensor, "row vocab"]], dict[str, Sequence[Any]]],
    columns: Sequence[str],
    batch_rows: int = BATCH_ROWS,
    positions: Positions = ALL_POSITIONS,
    chat: ChatFormat = DEFAULT_FORMAT,
    lower: LowerBlocks | None = None,
) -> pd.DataFrame:
    """Measure the logits that follow each prompt at each angle.

    Work is shared as in :func:`sweep_angles`, and with earlier sweeps through ``lower``.

    Args:
        measure: from logits to the values of each of ``columns``, one per row.
        columns: follow ``prompt_index``, ``prompt`` and ``angle_deg`` in the table.
        lower: of the model, from sweeps of other planes, operators and sites before this one.

    Raises:
        UserError: what :func:`sweep_angles` raises.
    """

    def measured(sweep: _Sweep, chunk: _Chunk, bar: tqdm) -> dict[str, Sequence[Any]]:
        bar.update(1)
        check_logits(model, chunk.logits)
        return measure(chunk.logits)

    sweep = _Sweep.of(
        model, calibration, operator, prompts, angles_deg, batch_rows, positions, chat, lower
    )
    check_context(model, sweep.tokens, prompts)
    return sweep.table(measured, columns, steps=1)


def checked_angles(
    operator: Angled, angles_deg: Sequence[float | int] | np.ndarray
) -> tuple[float, ...]:
    """Return the angles as floats; reject a bad sweep before any work is done.

    Raises:
        UserError: the operator has no angle and the angles are others than :data:`NO_ANGLE`, or
            the angles are empty, not finite, or repeat.
    """
    made = operator if isinstance(operator, type) else type(operator)
    if made not in AngularOperator.kinds():
        if isinstance(operator, Operator) and tuple(np.ravel(angles_deg)) == NO_ANGLE:
            return NO_ANGLE
        raise UserError(
            f"{made.__name__} has no angle; sweep one of "
            f"{', '.join(kind.__name__ for kind in AngularOperator.kinds())}."
        )
    degrees = cast("AngularOperator", at_angles(operator, angles_deg)).angle_deg
    if not isinstance(degrees, tuple):
        raise UserError(
            f"angles_deg must be a list of degrees such as [0, 60, 120]; got "
            f"{described(angles_deg)}."
        )
    check_count(degrees)
    if (repeated := first_repeated(degrees)) is not None:
        alike = [angle for angle in np.ravel(angles_deg) if reduced(angle) == repeated]
        turns = [f"{angle:g}" for angle in dict.fromkeys(alike)]
        same = f" ({' and '.join(turns)} are the same)" if len(turns) > 1 else ""
        raise UserError(
            f"angle {repeated:g} is given twice{same}, and would be counted twice; keep one."
        )
    return degrees


def at_angles(operator: Angled, angles_deg: Strengths) -> Operator:
    """The operator at other angles; what else it holds stays, and one without an angle as well."""
    if isinstance(operator, type):
        return operator(angle_deg=angles_deg)
    if not isinstance(operator, AngularOperator):
        return operator
    return replace(operator, angle_deg=angles_deg)


def _pairs(rows: Sequence[int], places: Sequence[int]) -> list[Pair]:
    return [(row, place) for row in rows for place in places]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Pairs that run as one batch, after their prompts."""

    places: Sequence[int]
    batch: Batch
    logits: Float[Tensor, "row vocab"]
    cache: Any


Measure = Callable[["_Sweep", _Chunk, tqdm], dict[str, Sequence[Any]]]


@dataclass(frozen=True, eq=False)
class _Sweep:
    """One operator, with an angle per batch row, in every part of a generation."""

    model: TransformerBridge
    calibration: Calibration
    operator: Angled
    angles_deg: tuple[float, ...]
    batch_rows: int
    positions: Positions
    prompts: Sequence[Prompt]
    tokens: Sequence[Tokens]
    reach: Reach
    lower: LowerBlocks | None = None
    when: Gate | None = None

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        calibration: Calibration,
        operator: Angled,
        prompts: Sequence[Prompt],
        angles_deg: Sequence[float | int] | np.ndarray,
        batch_rows: int,
        positions: Positions,
        chat: ChatFormat,
        lower: LowerBlocks | None = None,
        when: Gate | None = None,
    ) -> _Sweep:
        check_at_least("batch_rows", batch_rows)
        check_is("model", model, (TransformerBridge,), "a model from ss_lens.load_model(...)")
        made = "a calibration from ss_lens.calibrate(...) or Calibration.load(...)"
        check_is("calibration", calibration, (Calibration,), made)
        calibration.check_fits(model)  # which steering does not where it reaches no token
        check_gate(when)
        angles = checked_angles(operator, angles_deg)
        reach = Reach.of(model, calibration.selected_sites, positions, when)
        tokens = tokenize(model, prompts, chat)
        return cls(
            *(model, calibration, operator, angles, batch_rows, positions),
            *(prompts, tokens, reach, lower, when),
        )

    def table(self, measure: Measure, columns: Sequence[str], steps: int) -> pd.DataFrame:
        """``measure`` on every chunk, ``steps`` of progress each; rows ordered as asked."""
        batch_rows = self.batch_rows
        # The prefix has a row for each angle, so at most as many angles are at work as rows.
        groups = forward.equal_groups(range(len(self.angles_deg)), batch_rows)
        order = forward.order_by_length(self.tokens)
        plan = [(group, forward.equal_groups(_pairs(order, group), batch_rows)) for group in groups]
        tables = [self._places([]).assign(**{name: [] for name in columns})]
        chunks = sum(len(of_group) for _, of_group in plan)
        with torch.inference_mode(), progress_bar(steps * chunks, "sweep", "step") as bar:
            for group, of_group in plan:
                prefix = self._prefix(group)
                for pairs in of_group:
                    chunk = self._after_prompts(pairs, group, prefix)
                    tables.append(self._places(pairs).assign(**measure(self, chunk, bar)))
        table = pd.concat(tables[1:] or tables)
        table = table.sort_values(["prompt_index", "place"], ignore_index=True)
        return table.drop(columns="place")

    def answers(self, chunk: _Chunk, max_new_tokens: int, bar: tqdm) -> list[str]:
        """One text for each row."""

        def steered(lines: Sequence[int]) -> AbstractContextManager[object]:
            return self._steered([chunk.places[line] for line in lines], self.reach.answer)

        new = decode(
            self.model,
            chunk.batch,
            (chunk.logits, chunk.cache),
            max_new_tokens,
            greedy,
            bar,
            steered,
            leave=self.reach.shares,
        )
        return [self._text(ids) for ids in new]

    def unsteered(self, max_new_tokens: int) -> pd.DataFrame:
        """The rows of the table that no edit makes, one per prompt."""
        steps = math.ceil(len(self.tokens) / self.batch_rows) * max_new_tokens
        with progress_bar(steps, "unsteered", "step") as bar:
            new = continue_tokens(
                self.model,
                self.tokens,
                max_new_tokens=max_new_tokens,
                batch_size=self.batch_rows,
                temperature=0,
                seed=0,
                bar=bar,
            )
        return pd.DataFrame(
            {
                "prompt_index": range(len(self.prompts)),
                "prompt": [*self.prompts],
                "angle_deg": math.nan,
                "response": [self._text(ids) for ids in new],
            }
        )

    def _prefix(self, places: Sequence[int]) -> SharedPrefix | None:
        """What all prompts start with, at these angles."""
        ids = self.reach.prefix_of(self.tokens)
        with self._steered(places, self.reach.prefix < self.reach.blocks):
            return shared_work.run_prefix(self.model, ids, len(places), self.reach)

    def _after_prompts(
        self, pairs: Sequence[Pair], group: Sequence[int], prefix: SharedPrefix | None
    ) -> _Chunk:
        """``group`` holds the places of the prefix's angles."""
        places = [place for _, place in pairs]
        (batch,) = forward.batches(
            [self.tokens[row] for row, _ in pairs],
            [range(len(pairs))],
            side="left",
            pad_id=forward.pad_id_of(self.model),
            device=device_of(self.model),
        )
        strengths = batch.ids.new_tensor([group.index(place) for place in places])
        with self._steered(places, self.reach.prompt < self.reach.blocks):
            after = shared_work.run_prompts(
                self.model, batch, prefix, strengths, self.reach, self.lower
            )
        return _Chunk(places, batch, *after)

    def _text(self, ids: Sequence[int]) -> str:
        return self.model.tokenizer.decode(ids, skip_special_tokens=True)

    def _places(self, pairs: Sequence[Pair]) -> pd.DataFrame:
        rows = [(row, place, self.prompts[row], self.angles_deg[place]) for row, place in pairs]
        return pd.DataFrame(rows, columns=["prompt_index", "place", "prompt", "angle_deg"])

    def _steered(self, places: Sequence[int], reached: bool) -> AbstractContextManager[object]:
        if not reached:
            return nullcontext()
        rowwise = at_angles(self.operator, tuple(self.angles_deg[place] for place in places))
        return steer(
            self.model, self.calibration, rowwise, positions=self.positions, when=self.when
        )
