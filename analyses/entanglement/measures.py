"""Everything that is measured at an angle, item by item: requests, items, answers, divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.grouped import groups
from analyses.steerability.questions import Question, score_questions
from ss_lens import Calibration, UserError
from ss_lens.activations.capture import check_unhooked
from ss_lens.core.progress import progress_bar
from ss_lens.generation.angle_batch import Angled, at_angles, checked_angles, sweep_angles
from ss_lens.scoring.benchmarks import BASICS
from ss_lens.scoring.capability import capability
from ss_lens.scoring.coherence import is_loop, repetition
from ss_lens.scoring.divergence import sweep_kl_divergence
from ss_lens.scoring.refusal_score import refusal_score, sweep_refusal_score

OWN = "calibration"
"""The plane that is not a null draw."""
COLUMNS = ("row", "kind", "unit", "plane", "angle_deg", "item", "value")
REQUESTS, MASS, BEHAVIOUR, CAPABILITY, COHERENCE, DIVERGENCE = KINDS = (
    *("requests", "opening mass", "behaviour", "capability", "coherence", "divergence"),
)
UNITS = {
    **{REQUESTS: "nats", MASS: "share", BEHAVIOUR: "nats", CAPABILITY: "share"},
    **{COHERENCE: "share", DIVERGENCE: "nats per token"},
}
KL_ROW, LOOPS_ROW, REPETITION_ROW = "KL", "empty or looping", "repetition"


@dataclass(frozen=True, eq=False)
class Asked:
    """What is put to the model.

    Attributes:
        sources: requests by name: harmful ones, safe look-alikes, harmless ones.
        free: the source whose unsteered answers the divergence is taken along, and whose steered
            answers are judged for coherence; harmless instructions, for instance.
        questions: multiple-choice questions by the name of their behaviour.
        capability_items: how many of the embedded capability questions; 0 leaves them out.
        max_new_tokens: where answers are cut.

    Raises:
        UserError: no source, an empty one, or a ``free`` that is none of them.
    """

    sources: Mapping[str, Sequence[str]]
    free: str
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    capability_items: int = 40
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        sizes = {name: len(prompts) for name, prompts in self.sources.items()}
        if not sizes or 0 in sizes.values() or self.free not in sizes:
            raise UserError(
                f"entanglement is measured on sources of prompts, none of them empty, and free= "
                f"names one of them; got {sizes} and free={self.free!r}. Give prompts by name."
            )


def measure(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    asked: Asked,
    angles_deg: Sequence[float | int],
    *,
    nulls: Sequence[Calibration] = (),
    batch_size: int = 16,
) -> pd.DataFrame:
    """Values of every request, question, item and answer, unsteered and at each angle.

    Args:
        model: the model that the calibrations were made on, without hooks.
        calibration: plane and sites.
        operator: the class, for instance :class:`ss_lens.RotateBy`.
        asked: prompts that no calibration has seen.
        angles_deg: in degrees.
        nulls: calibrations with random planes, of which only requests and divergence are measured.
        batch_size: rows per forward pass; changes the speed, not the result.

    Returns:
        ``row``: what is measured: a source, ``… opening mass``, a behaviour, ``capability``,
        ``KL``, ``repetition``, ``empty or looping``; its ``kind`` and ``unit``; ``plane``:
        ``calibration`` or ``random 0``, …; ``angle_deg``, NaN where unsteered; ``item``, counted
        within the row; ``value``. Refusal scores are in nats (see
        :func:`ss_lens.scoring.refusal_score.refusal_score`), behaviours in nats of the matching
        answer over the other, divergences in nats per token along unsteered answers, and
        capability is 1 for a right answer.

    Raises:
        UserError: a model with hooks, or what steering and the scores raise.
    """
    check_unhooked(model, "there would be no unsteered model to compare with")
    angles = checked_angles(operator, angles_deg)
    parts = []
    free = asked.sources[asked.free]
    plain = ss_lens.generate(
        model, free, max_new_tokens=asked.max_new_tokens, batch_size=batch_size
    )

    def add(row: str, kind: str, plane: str, angle: float, values: Sequence[float]) -> None:
        found = pd.DataFrame({"item": range(len(values)), "value": np.asarray(values, float)})
        where = {"row": row, "kind": kind, "unit": UNITS[kind], "plane": plane}
        parts.append(found.assign(**where, angle_deg=angle)[[*COLUMNS]])

    def add_requests(plane: str, made: Calibration | None) -> None:
        for name, prompts in asked.sources.items():
            if made is None:
                scores = refusal_score(model, prompts, batch_size=batch_size)
                scores = scores.assign(angle_deg=np.nan)
            else:
                scores = sweep_refusal_score(
                    model, made, operator, prompts, angles, batch_rows=batch_size
                )
            for (angle,), rows in groups(scores, ["angle_deg"]):
                add(name, REQUESTS, plane, angle, rows["refusal_score"].tolist())
                add(f"{name}: opening mass", MASS, plane, angle, rows["opening_mass"].tolist())

    def add_divergence(plane: str, made: Calibration) -> None:
        table = sweep_kl_divergence(
            model, made, operator, free, plain, angles, batch_size=batch_size
        )
        for (angle,), rows in groups(table, ["angle_deg"]):
            add(KL_ROW, DIVERGENCE, plane, angle, rows["kl_mean"].tolist())

    def add_texts(angle: float, texts: Sequence[str]) -> None:
        loops = [float(not text.strip() or is_loop(text)) for text in texts]
        add(LOOPS_ROW, COHERENCE, OWN, angle, loops)
        add(REPETITION_ROW, COHERENCE, OWN, angle, [repetition(text) for text in texts])

    def add_capability(angle: float) -> None:
        steered = {}
        if not np.isnan(angle):
            steered = {"calibration": calibration, "operator": at_angles(operator, angle)}
        items = capability(
            model, (BASICS,), **steered, limit=asked.capability_items, batch_size=batch_size
        )
        add(CAPABILITY, CAPABILITY, OWN, angle, items["score"].tolist())

    steps = 4 + len(asked.questions) + len(nulls)
    steps += (1 + len(angles)) * bool(asked.capability_items)
    with progress_bar(steps, "entanglement", "part") as bar:
        add_requests(OWN, None)
        bar.update()
        add_requests(OWN, calibration)
        bar.update()
        add(KL_ROW, DIVERGENCE, OWN, np.nan, [0.0] * len(free))
        add_divergence(OWN, calibration)
        bar.update()
        add_texts(np.nan, plain)
        table = sweep_angles(
            *(model, calibration, operator, free, angles),
            max_new_tokens=asked.max_new_tokens,
            batch_rows=batch_size,
        )
        for (angle,), rows in groups(table, ["angle_deg"]):
            add_texts(angle, rows["response"].tolist())
        bar.update()
        for name, questions in asked.questions.items():
            for angle, rows in _questions(model, calibration, operator, questions, angles).items():
                add(name, BEHAVIOUR, OWN, angle, rows)
            bar.update()
        for angle in (np.nan, *angles) if asked.capability_items else ():
            add_capability(angle)
            bar.update()
        for place, null in enumerate(nulls):
            add_requests(f"random {place}", null)
            add_divergence(f"random {place}", null)
            bar.update()
    return pd.concat(parts, ignore_index=True)


def _questions(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    questions: Sequence[Question],
    angles: Sequence[float],
) -> dict[float, list[float]]:
    """Scores of the matching answers, unsteered (at NaN) and by angle."""
    still = score_questions(model, calibration, ss_lens.RotateBy, questions, [0.0])
    found = {np.nan: still["matching_score"].tolist()}
    turned = score_questions(model, calibration, operator, questions, angles)
    for (angle,), rows in groups(turned, ["angle_deg"]):
        found[angle] = rows["matching_score"].tolist()
    return found
