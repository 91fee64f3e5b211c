"""What is measured in the cells of a group: answers and their scores, many angles at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from ss_lens.experiments.config import Score
from ss_lens.experiments.inputs import Setting
from ss_lens.generation.angle_batch import sweep_angles
from ss_lens.generation.generate import generate
from ss_lens.scoring.coherence import coherence, is_loop
from ss_lens.scoring.divergence import sweep_kl_divergence
from ss_lens.scoring.perplexity import answer_perplexity
from ss_lens.scoring.refusal import contains_refusal, opens_with_refusal
from ss_lens.scoring.refusal_score import sweep_refusal_score

ROW = ("prompt_index", "prompt", "angle_deg")
"""What tells a row from the others of its cell group."""


def measured(
    score: Score,
    setting: Setting,
    angles_deg: Sequence[float],
    answers: pd.DataFrame,
    unsteered: Callable[[], Sequence[str]],
) -> pd.DataFrame:
    """One row per prompt and angle.

    Args:
        score: what to measure.
        setting: of the group.
        angles_deg: in degrees.
        answers: what was measured as ``answers``; the perplexity is of these.
        unsteered: gives the unsteered model's answers to the prompts; the divergence is on these.

    Returns:
        The columns of :data:`ROW`, and for

        - ``refusal_score``: ``refusal_score`` and ``opening_mass``;
        - ``answers``: ``response``; ``refused`` (:func:`opens_with_refusal`) and
          ``refused_published`` (:func:`contains_refusal`); the columns of :func:`coherence`;
          ``empty`` and ``loop``, which :func:`ss_lens.scoring.coherence.collapse` reads;
        - ``perplexity``: those of :func:`answer_perplexity`;
        - ``kl``: ``kl_mean`` and ``kl_first``.
    """
    if score == "refusal_score":
        return sweep_refusal_score(
            setting.model,
            setting.calibration,
            setting.operator,
            setting.prompts,
            angles_deg,
            batch_rows=setting.batch_rows,
        )
    if score == "answers":
        return _answers(setting, angles_deg)
    if score == "perplexity":
        rows = answers.query("angle_deg in @angles_deg").reset_index(drop=True)
        prompts, texts = rows["prompt"].tolist(), rows["response"].tolist()
        found = answer_perplexity(setting.model, prompts, texts, batch_size=setting.batch_rows)
        return pd.concat([rows.filter([*ROW]), found], axis=1)
    return sweep_kl_divergence(
        setting.model,
        setting.calibration,
        setting.operator,
        setting.prompts,
        [*unsteered()],
        angles_deg,
        batch_size=setting.batch_rows,
    )


def answered(setting: Setting) -> pd.DataFrame:
    """``response`` to each prompt, of the model as it is, steered or not."""
    texts = generate(
        setting.model,
        setting.prompts,
        max_new_tokens=setting.max_new_tokens,
        batch_size=setting.batch_rows,
    )
    return pd.DataFrame({"response": texts})


def _answers(setting: Setting, angles_deg: Sequence[float]) -> pd.DataFrame:
    table = sweep_angles(
        setting.model,
        setting.calibration,
        setting.operator,
        setting.prompts,
        angles_deg,
        max_new_tokens=setting.max_new_tokens,
        batch_rows=setting.batch_rows,
    )
    texts = table["response"].tolist()
    return pd.concat(
        [
            table,
            pd.DataFrame(
                {
                    "refused": [opens_with_refusal(text) for text in texts],
                    "refused_published": [contains_refusal(text) for text in texts],
                }
            ),
            coherence(texts),
            pd.DataFrame(
                {
                    "empty": [not text.strip() for text in texts],
                    "loop": [is_loop(text) for text in texts],
                }
            ),
        ],
        axis=1,
    )
