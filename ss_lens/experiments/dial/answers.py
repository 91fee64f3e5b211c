"""Answers that are scored as soon as they are written, and kept in full only where they may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ss_lens.experiments.answers import first_words, tell_once, with_texts_scored
from ss_lens.experiments.cells import CellStore, at_angles_in_order, unfinished_angles
from ss_lens.experiments.inputs import Setting
from ss_lens.experiments.worker import measured
from ss_lens.scoring.behaviours.shown import shown_of_some
from ss_lens.scoring.registry import ANSWERS, ROW, texts_version


def scored_answers(
    setting: Setting,
    angles_deg: Sequence[float],
    cells: CellStore,
    *,
    shorten: bool,
    perplexity: bool,
) -> pd.DataFrame:
    """The answers at these angles with all scores of their text, computed where ``cells`` has none.

    What is stored are scores and texts together, so that nothing is computed from a shortened text.

    Args:
        setting: the prompts and how they are steered.
        angles_deg: in degrees.
        cells: where finished cells are, and come.
        shorten: whether of each answer only the first six words are kept.
        perplexity: whether that under the unsteered model is measured too. What the behaviour of
            the setting reads of the answers is measured always.

    Returns:
        One row per prompt and angle: the columns of :data:`ROW`, ``response``, ``shortened``
        (whether that is not the whole answer), and those of the scores.
    """
    how: dict[str, Any] = {"shortened": shorten, "perplexity": perplexity}
    if cells.key({**setting.identity, "scored answers": how}) in cells.keys():  # noqa: SIM118
        what = "answers that an earlier version scored, by phrases, are written again"
        tell_once(cells.folder, what)
    how["version"] = texts_version()
    with cells.group({**setting.identity, "scored answers": how}, wait=True) as key:
        assert key is not None
        found = cells.read(key, ANSWERS)
        if missing := unfinished_angles(found, angles_deg, len(setting.prompts)):
            cells.commit(key, ANSWERS, _answered(setting, missing, shorten, perplexity))
            found = cells.read(key, ANSWERS)
    return at_angles_in_order(found, angles_deg)


def _answered(
    setting: Setting, angles_deg: Sequence[float], shorten: bool, perplexity: bool
) -> pd.DataFrame:
    none = pd.DataFrame(columns=[*ROW, "response"])
    answers = measured(ANSWERS, setting, angles_deg, none, ())
    table = with_texts_scored(answers)
    if setting.behaviour is not None and setting.behaviour.reader is not None:
        texts = (answers[name].tolist() for name in ("prompt", "response"))
        read = shown_of_some(setting.behaviour.reader, *texts)
        table = table.assign(**{name: read[name].to_numpy() for name in read})
    if perplexity:
        table = table.merge(
            measured("perplexity", setting, angles_deg, answers, ()), on=[*ROW], validate="1:1"
        )
    whole = table["response"]
    # Refusals too: one that opens like a refusal may go on to answer.
    kept = whole.map(first_words) if shorten else whole
    table = table.assign(response=kept)
    table.insert(len(ROW) + 1, "shortened", (kept != whole).tolist())
    return table
