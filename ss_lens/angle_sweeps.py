"""One operator at many angles in one batch, and what its rows have in common computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import forward, shared_work
from ss_lens.calibration import Calibration
from ss_lens.checks import check_at_least
from ss_lens.decoding import decode, greedy
from ss_lens.errors import UserError
from ss_lens.models import device_of
from ss_lens.operators import AngularOperator, Strengths
from ss_lens.positions import ALL_POSITIONS, Positions
from ss_lens.progress import progress_bar
from ss_lens.shared_work import Reach, SharedPrefix
from ss_lens.steering import steer
from ss_lens.tokens import Tokens, check_context, tokenize

BATCH_ROWS = 48

Angled = type[AngularOperator] | AngularOperator
"""An operator that has an angle, or one of its values, whose own angle is not used."""
Pair = tuple[int, int]
"""A prompt and an angle, by their places."""


def sweep_angles(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    prompts: Sequence[str],
    angles_deg: Sequence[float | int] | np.ndarray,
    *,
    max_new_tokens: int = 64,
    batch_rows: int = BATCH_ROWS,
    positions: Positions = ALL_POSITIONS,
) -> pd.DataFrame:
    """Answers to every prompt at every angle, with one angle per batch row.

    The answers are those of one steered :func:`generate` after the other. What rows have in common
    is computed once: the tokens that all prompts start with, once per angle; the blocks below the
    first steered one, once per prompt of a batch; what ``positions`` leave unsteered of a prompt,
    at no angle. Rows whose answer is over leave the batch. Inside of another ``steer(...)``, whose
    edit may differ by row, nothing is shared and no row leaves.

    Args:
        model: the model that the calibration was made on.
        calibration: plane and sites.
        operator: the class, for example :class:`ss_lens.RotateBy`.
        prompts: the users' turns.
        angles_deg: in degrees.
        max_new_tokens: where an answer is cut off.
        batch_rows: at most this many prompt–angle pairs run at once, which bounds the memory. A
            pair takes its logits and, for each token of prompt and answer and once more for those
            that all prompts share, 2 · layers · key heads · head size numbers (46 kB on the default
            model). Beside these there are only the activations of one block at a time.
        positions: which tokens are steered, as in :func:`ss_lens.steer`.

    Returns:
        Columns ``prompt_index``, ``prompt``, ``angle_deg``, ``response``; prompts in their order,
        each with the angles in theirs.

    Raises:
        UserError: no angle, an angle that is not finite, or anything :func:`generate` raises.
    """
    check_at_least("max_new_tokens", max_new_tokens)
    check_at_least("batch_rows", batch_rows)
    angles = checked_angles(operator, angles_deg)
    tokens = tokenize(model, prompts)
    check_context(model, tokens, prompts, max_new_tokens)
    reach = Reach.of(model, calibration.selected_sites, positions)
    sweep = _Sweep(model, calibration, operator, angles, positions, tokens, reach, max_new_tokens)
    # The prefix has a row for each angle, so at most as many angles are at work as rows.
    groups = forward.equal_groups(range(len(angles)), batch_rows)
    order = forward.order_by_length(tokens)
    plan = [(group, forward.equal_groups(_pairs(order, group), batch_rows)) for group in groups]
    tables = []
    steps = max_new_tokens * sum(len(chunks) for _, chunks in plan)
    with torch.inference_mode(), progress_bar(steps, "sweep", "step") as bar:
        for group, chunks in plan:
            prefix = sweep.prefix(group)
            for chunk in chunks:
                texts = sweep.answers(chunk, group, prefix, bar)
                tables.append(_places(chunk, prompts, angles).assign(response=texts))
    return _in_order(tables or [_places([], prompts, angles).assign(response=[])])


def over_angles(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    prompts: Sequence[str],
    angles_deg: Sequence[float | int] | np.ndarray,
    measure: Callable[[list[str]], pd.DataFrame],
    batch_rows: int = BATCH_ROWS,
    positions: Positions = ALL_POSITIONS,
) -> pd.DataFrame:
    """``measure`` on every prompt at every angle, ``batch_rows`` prompt–angle pairs at a time.

    ``measure`` gets prompts from the shortest to the longest, must run them as one batch in that
    order, and returns one row for each; its columns follow ``prompt_index``, ``prompt`` and
    ``angle_deg``.

    Raises:
        UserError: the operator has no angle, or the angles are empty or not finite.
    """
    check_at_least("batch_rows", batch_rows)
    angles = checked_angles(operator, angles_deg)
    pairs = _pairs(forward.order_by_length(tokenize(model, prompts)), range(len(angles)))
    if not pairs:
        return pd.concat([_places([], prompts, angles).drop(columns="place"), measure([])], axis=1)
    tables = []
    for chunk in forward.equal_groups(pairs, batch_rows):
        rowwise = at_angles(operator, tuple(angles[place] for _, place in chunk))
        with steer(model, calibration, rowwise, positions=positions):
            measured = measure([prompts[row] for row, _ in chunk])
        tables.append(pd.concat([_places(chunk, prompts, angles), measured], axis=1))
    return _in_order(tables)


def checked_angles(
    operator: Angled, angles_deg: Sequence[float | int] | np.ndarray
) -> tuple[float, ...]:
    """The angles as floats; rejects a bad sweep before any work is done.

    Raises:
        UserError: the operator has no angle, or the angles are empty, not finite, or repeat.
    """
    made = operator if isinstance(operator, type) else type(operator)
    if made not in get_args(AngularOperator):
        raise UserError(
            f"{made.__name__} has no angle; sweep one of "
            f"{', '.join(kind.__name__ for kind in get_args(AngularOperator))}."
        )
    angles = at_angles(operator, np.asarray(angles_deg, dtype=float)).angle_deg
    assert isinstance(angles, tuple)
    if len(set(angles)) < len(angles):
        repeated = next(angle for angle in angles if angles.count(angle) > 1)
        raise UserError(f"angle {repeated:g} is given twice, and would be counted twice; keep one.")
    return angles


def at_angles(operator: Angled, angles_deg: Strengths) -> AngularOperator:
    """The operator at other angles; what else it holds stays."""
    if isinstance(operator, type):
        return operator(angle_deg=angles_deg)
    return replace(operator, angle_deg=angles_deg)


def _pairs(rows: Sequence[int], places: Sequence[int]) -> list[Pair]:
    return [(row, place) for row in rows for place in places]


def _places(
    chunk: Sequence[Pair], prompts: Sequence[str], angles: tuple[float, ...]
) -> pd.DataFrame:
    rows = [(row, place, prompts[row], angles[place]) for row, place in chunk]
    return pd.DataFrame(rows, columns=["prompt_index", "place", "prompt", "angle_deg"])


def _in_order(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(tables).sort_values(["prompt_index", "place"], ignore_index=True)
    return table.drop(columns="place")


@dataclass(frozen=True, eq=False)
class _Sweep:
    """One operator's class, with a strength per batch row, in every part of a generation."""

    model: TransformerBridge
    calibration: Calibration
    operator: Angled
    angles_deg: tuple[float, ...]
    positions: Positions
    tokens: Sequence[Tokens]
    reach: Reach
    max_new_tokens: int

    def prefix(self, places: Sequence[int]) -> SharedPrefix | None:
        """What all prompts start with, at these angles."""
        ids = self.reach.prefix_of(self.tokens)
        with self._steered(places, self.reach.prefix < self.reach.blocks):
            return shared_work.run_prefix(self.model, ids, len(places), self.reach)

    def answers(
        self, chunk: Sequence[Pair], group: Sequence[int], prefix: SharedPrefix | None, bar: tqdm
    ) -> list[str]:
        """One text for each pair; ``group`` holds the places of the prefix's angles."""
        places = [place for _, place in chunk]
        (batch,) = forward.batches(
            [self.tokens[row] for row, _ in chunk],
            [range(len(chunk))],
            side="left",
            pad_id=forward.pad_id_of(self.model),
            device=device_of(self.model),
        )
        strengths = batch.ids.new_tensor([group.index(place) for place in places])
        with self._steered(places, self.reach.prompt < self.reach.blocks):
            after_prompt = shared_work.run_prompts(self.model, batch, prefix, strengths, self.reach)

        def steered(lines: Sequence[int]) -> AbstractContextManager[object]:
            return self._steered([places[line] for line in lines], self.reach.answer)

        new = decode(
            self.model,
            batch,
            after_prompt,
            self.max_new_tokens,
            greedy,
            bar,
            steered,
            leave=self.reach.shares,
        )
        return [self.model.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]

    def _steered(self, places: Sequence[int], reached: bool) -> AbstractContextManager[object]:
        if not reached:
            return nullcontext()
        rowwise = at_angles(self.operator, tuple(self.angles_deg[place] for place in places))
        return steer(self.model, self.calibration, rowwise, positions=self.positions)
