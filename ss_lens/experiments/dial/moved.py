"""Which tokens a turn moves, and how far: harmless prompts and their answers, read once more."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd
import torch

from ss_lens.experiments.cells import CellStore, at_angles_in_order, unfinished_angles
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.experiments.inputs import Setting, Workbench
from ss_lens.generation.angle_batch import at_angles
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from ss_lens.models.loading.devices import device_of
from ss_lens.scoring.registry import ANSWERS, ROW
from ss_lens.steering.steer import steer
from ss_lens.steering.trace import Trace, moved

PROMPTS = 4
"""Harmless test prompts that are read, the first ones: so few that the job takes no longer."""
ANSWER_TOKENS = 24
"""Of each answer, from its start."""
MOVED_COLUMNS = (*ROW, "n_prompt", "tokens", "moved")


def moved_tokens(
    bench: Workbench,
    cells: CellStore,
    arm: Arm,
    responses: pd.DataFrame,
    angles_deg: Sequence[float],
) -> pd.DataFrame:
    """How far each token is moved at the angles that were chosen, on the first harmless prompts.

    The prompt and the beginning of its answer are read in one pass, steered. The answer's text is
    tokenised again, which may divide it otherwise than it was written.

    Args:
        bench: with the model.
        cells: where what is finished is kept.
        arm: the method.
        responses: the answers to the test prompts, those to harmless ones in full.
        angles_deg: 0, the unsteered model, is left out.

    Returns:
        One row per prompt and angle: the columns of :data:`ROW`; ``n_prompt``, how many tokens are
        the prompt's; ``tokens``, their texts, and ``moved``, the mean over the steered sites of
        :math:`\\|h' - h\\| / \\|h\\|` in thousandths, both as JSON lists.
    """
    turned = tuple(angle for angle in angles_deg if angle)
    if not turned:
        return pd.DataFrame(columns=[*MOVED_COLUMNS])
    group = CellGroup(arm, "test", "negative", turned)
    setting = bench.setting(group, slice(PROMPTS))
    with cells.group({**setting.identity, "moved tokens": ANSWER_TOKENS}, wait=True) as key:
        assert key is not None
        found = cells.read(key, ANSWERS)
        if missing := unfinished_angles(found, turned, len(setting.prompts)):
            cells.commit(key, ANSWERS, _read(setting, responses, missing))
            found = cells.read(key, ANSWERS)
    return at_angles_in_order(found, turned).filter([*MOVED_COLUMNS])


@torch.inference_mode()
def _read(setting: Setting, responses: pd.DataFrame, angles_deg: Sequence[float]) -> pd.DataFrame:
    model, tokenizer = setting.model, setting.model.tokenizer
    harmless = responses.loc[responses["prompt_class"] == "negative"]
    answers = harmless.set_index(["prompt_index", "angle_deg"])["response"]
    starts = tokenize(model, setting.prompts, setting.chat)
    most = min(ANSWER_TOKENS, setting.max_new_tokens)
    rows, tokens = [], []
    for index, prompt in enumerate(setting.prompts):
        for angle in angles_deg:
            text = str(answers[index, angle])
            answer = tokenizer(text, add_special_tokens=False)["input_ids"]
            rows.append((index, prompt, angle, len(starts[index])))
            tokens.append((*starts[index], *answer[:most]))
    (batch,) = forward.batches(
        tokens,
        [range(len(tokens))],
        side="left",
        pad_id=forward.pad_id_of(model),
        device=device_of(model),
    )
    lengths = batch.ids.new_tensor([n_prompt for *_, n_prompt in rows])
    operator = at_angles(setting.operator, tuple(angle for _, _, angle, _ in rows))
    trace = Trace()
    with steer(model, setting.calibration, operator, trace=trace):
        origin = forward.Origin(batch.rows, lengths)
        forward.run_all(model, batch.ids, batch.mask, keep=1, origin=origin)
    traced = trace.frame()
    of_row = dict(iter(traced.assign(moved=moved(traced)).groupby("row")))
    table = pd.DataFrame(rows, columns=[*MOVED_COLUMNS[:4]])
    table["tokens"] = [json.dumps([tokenizer.decode([t]) for t in ids]) for ids in tokens]
    table["moved"] = [_means(of_row[row]) for row in range(len(tokens))]
    return table


def _means(rows: pd.DataFrame) -> str:
    """Of each token, in order, the mean over the sites in thousandths."""
    means = rows.groupby("position", sort=True).agg(moved=("moved", "mean"))["moved"]
    return json.dumps((means * 1000).round().astype(int).tolist())
