"""Batched, left-padded generation, and many steering angles in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from ss_lens import forward
from ss_lens.calibration import Calibration
from ss_lens.errors import UserError
from ss_lens.forward import Batch, Origin
from ss_lens.models import device_of
from ss_lens.operators import AngularOperator
from ss_lens.positions import ALL_POSITIONS, Positions
from ss_lens.progress import progress_bar
from ss_lens.steering import steer
from ss_lens.tokens import check_context, tokenize

BATCH_ROWS = 48


def generate(
    model: TransformerBridge,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    temperature: float | int = 0,
    seed: int = 0,
) -> list[str]:
    """The model's answer to each prompt, through its chat template.

    Args:
        model: steered when called inside :func:`ss_lens.steer`.
        prompts: the users' turns.
        max_new_tokens: where an answer is cut off.
        batch_size: prompts per batch; changes the speed, not the result.
        temperature: 0 is greedy; above 0 samples from the softmax at that temperature. No setting
            of the checkpoint (repetition penalty, top-p) is applied.
        seed: of the sampling.

    Raises:
        UserError: a blank prompt, or one that does not fit into the context with its answer.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1; got {max_new_tokens}.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature must be 0 or a positive number; got {temperature}.")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}.")
    tokens = tokenize(model, prompts)
    check_context(model, tokens, prompts, max_new_tokens)
    answers = [""] * len(prompts)
    groups = forward.equal_groups(forward.order_by_length(tokens), batch_size)
    with progress_bar(len(groups) * max_new_tokens, "generate", "step") as bar:
        for batch in forward.batches(
            tokens,
            groups,
            side="left",
            pad_id=forward.pad_id_of(model),
            device=device_of(model),
        ):
            # One generator per prompt, so that a sample does not depend on its neighbours.
            generators = [derive_generator(seed, row) for row in batch.rows]
            new = _decode(model, batch, max_new_tokens, temperature, generators, bar)
            for row, ids in zip(batch.rows, new, strict=True):
                answers[row] = model.tokenizer.decode(ids, skip_special_tokens=True)
    return answers


def sweep_angles(
    model: TransformerBridge,
    calibration: Calibration,
    operator: type[AngularOperator],
    prompts: Sequence[str],
    angles_deg: Sequence[float | int] | np.ndarray,
    *,
    max_new_tokens: int = 64,
    batch_rows: int = BATCH_ROWS,
    positions: Positions = ALL_POSITIONS,
) -> pd.DataFrame:
    """Answers to every prompt at every angle, with one angle per batch row.

    Args:
        model: the model that the calibration was made on.
        calibration: plane and sites.
        operator: the class, for example :class:`ss_lens.RotateBy`.
        prompts: the users' turns.
        angles_deg: in degrees.
        max_new_tokens: where an answer is cut off.
        batch_rows: at most this many prompt–angle pairs run at once; bounds the memory.
        positions: which tokens are steered, as in :func:`ss_lens.steer`.

    Returns:
        Columns ``prompt_index``, ``prompt``, ``angle_deg``, ``response``; prompts in their order,
        each with the angles in theirs.

    Raises:
        UserError: no angle, an angle that is not finite, or anything :func:`generate` raises.
    """
    check_context(model, tokenize(model, prompts), prompts, max_new_tokens)

    def answer(chunk: list[str]) -> pd.DataFrame:
        texts = generate(model, chunk, max_new_tokens=max_new_tokens, batch_size=batch_rows)
        return pd.DataFrame({"response": texts})

    return over_angles(
        model, calibration, operator, prompts, angles_deg, answer, batch_rows, positions
    )


def over_angles(
    model: TransformerBridge,
    calibration: Calibration,
    operator: type[AngularOperator],
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
    if operator not in get_args(AngularOperator):
        raise UserError(
            f"{operator.__name__} has no angle; sweep one of "
            f"{', '.join(kind.__name__ for kind in get_args(AngularOperator))}."
        )
    if batch_rows < 1:
        raise UserError(f"batch_rows must be at least 1; got {batch_rows}.")
    # Rejects a bad angle before any work is done.
    angles = operator(angle_deg=np.asarray(angles_deg, dtype=float)).angle_deg
    assert isinstance(angles, tuple)
    if len(set(angles)) < len(angles):
        repeated = next(angle for angle in angles if angles.count(angle) > 1)
        raise UserError(f"angle {repeated:g} is given twice, and would be counted twice; keep one.")
    order = forward.order_by_length(tokenize(model, prompts))
    pairs = [(row, place) for row in order for place in range(len(angles))]
    if not pairs:
        return pd.concat([_places([], prompts, angles).drop(columns="place"), measure([])], axis=1)
    tables = []
    for start in range(0, len(pairs), batch_rows):
        chunk = pairs[start : start + batch_rows]
        rowwise = operator(angle_deg=tuple(angles[place] for _, place in chunk))
        with steer(model, calibration, rowwise, positions=positions):
            measured = measure([prompts[row] for row, _ in chunk])
        tables.append(pd.concat([_places(chunk, prompts, angles), measured], axis=1))
    table = pd.concat(tables).sort_values(["prompt_index", "place"], ignore_index=True)
    return table.drop(columns="place")


def _places(
    chunk: list[tuple[int, int]], prompts: Sequence[str], angles: tuple[float, ...]
) -> pd.DataFrame:
    rows = [(row, place, prompts[row], angles[place]) for row, place in chunk]
    return pd.DataFrame(rows, columns=["prompt_index", "place", "prompt", "angle_deg"])


def _stop_ids(model: TransformerBridge) -> Tensor:
    configured = cast(Any, model.original_model).generation_config.eos_token_id
    ids = {*(configured if isinstance(configured, list) else [configured])}
    ids = (ids | {model.tokenizer.eos_token_id}) - {None}
    return torch.tensor(sorted(ids), device=device_of(model))


@torch.inference_mode()
def _decode(
    model: TransformerBridge,
    batch: Batch,
    max_new_tokens: int,
    temperature: float | int,
    generators: Sequence[torch.Generator],
    bar: tqdm,
) -> list[list[int]]:
    """New token ids of each row, up to and without the first stop token."""
    stops = _stop_ids(model)
    ids, mask, cache = batch.ids, batch.mask, None
    running = torch.ones(len(batch.rows), dtype=torch.bool, device=ids.device)
    columns: list[Tensor] = []
    for _ in range(max_new_tokens):
        origin = Origin(batch.rows, batch.lengths, finished=~running)
        logits, cache = forward.run(model, ids, mask, cache, keep_cache=True, origin=origin)
        chosen = _choose(logits, temperature, generators)
        running = running & ~torch.isin(chosen, stops)
        # A finished row goes on being computed with the others; −1 marks that it is not an answer.
        columns.append(torch.where(running, chosen, -1))
        bar.update(1)
        if not running.any():
            break
        ids = chosen.unsqueeze(1)
        mask = torch.cat((mask, mask.new_ones(len(batch.rows), 1)), dim=1)
    bar.update(max_new_tokens - len(columns))
    return [[i for i in row if i >= 0] for row in torch.stack(columns, dim=1).tolist()]


def _choose(
    logits: Tensor, temperature: float | int, generators: Sequence[torch.Generator]
) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    drawn = [
        torch.multinomial(row, 1, generator=generator)
        for row, generator in zip(probabilities, generators, strict=True)
    ]
    return torch.cat(drawn).to(logits.device)
