"""Asking, showing, training, adding, ablating, rotating: the ways that are compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.baselines.candidates import Candidate, Way
from analyses.baselines.lora import Training, train
from analyses.baselines.subject import Subject
from analyses.budget.families import check_step
from ss_lens import Activations, Calibration, ContrastiveDataset, UserError
from ss_lens.experiments.dial.asking import asked_format
from ss_lens.geometry.operators import Ablate, Add, Operator, RotateBy, RotateTo
from ss_lens.models.chat import DEFAULT_FORMAT
from ss_lens.models.templates import Turn

ROTATING, UNSTEERED = "rotating", "unsteered"
ANSWERING = "Sure, here is what you asked for."
REFUSING = "I'm sorry, but I can't help with that."
"""What examples of refusal answer. They hold no instruction, whatever the request."""
SHOWN_TOKENS = 24
"""Of the model's own answers, in examples of other behaviours."""
SHOTS = (2, 4, 8)
"""Examples that dev chooses from, half of them of each class."""
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Strengths of the adapter that dev chooses from; it was trained at 1."""
UNITS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Shifts that dev chooses from, in mean coordinates along the direction at the steered sites."""


def all_ways(
    model: TransformerBridge,
    data: ContrastiveDataset,
    acts: Activations,
    subject: Subject,
    *,
    systems: Sequence[str] = (),
    training: Training | None = None,
    step: int = 15,
) -> dict[str, Way]:
    """Every way, made from the training part alone.

    Args:
        model: without hooks.
        data: the prompts that steering is calibrated on, that examples are taken from and that the
            adapter is trained on.
        acts: their activations.
        subject: the behaviour, and whether it is to become less or more.
        systems: system prompts; those of the behaviour where there is none.
        training: of the adapter.
        step: degrees between angles.

    Raises:
        UserError: a step below 1 or above 90, no system prompt, or what calibration and training
            raise.
    """
    check_step(step)
    asked = tuple(systems) or subject.asking
    if not asked:
        raise UserError(
            f"the behaviour {subject.behaviour.name!r} has no system prompt that asks for it to be "
            f"{subject.sense}, expected one to compare with; give --system, or asking in its file."
        )
    began = time.perf_counter()
    chosen = ss_lens.calibrate(acts)
    everywhere = ss_lens.calibrate(acts, rule="uniform")
    calibrated = time.perf_counter() - began
    began = time.perf_counter()
    adapter = train(model, subject, data, training or Training())
    trained = time.perf_counter() - began
    unit = _mean_coordinate(acts, chosen) * -subject.sign
    steered = partial(_steered, model)
    return {
        UNSTEERED: Way((Candidate("as it is"),)),
        "asking": Way(
            tuple(Candidate(text, chat=asked_format(DEFAULT_FORMAT, text)) for text in asked)
        ),
        "showing": Way(
            tuple(
                Candidate(f"{n} examples", shots=examples(model, data, subject, n)) for n in SHOTS
            )
        ),
        "training": Way(
            at=lambda share: Candidate(f"LoRA × {share:.3g}", partial(adapter.at, share)),
            strengths=(0.0, *SHARES),
            preparation_s=trained,
        ),
        "adding": Way(
            at=lambda units: steered(Add(units * unit), chosen),
            strengths=(0.0, *UNITS),
            preparation_s=calibrated,
        ),
        "ablating": Way(
            (
                steered(Ablate(), chosen, ", discriminative sites"),
                steered(Ablate(), everywhere, ", all sites"),
            ),
            preparation_s=calibrated,
        ),
        ROTATING: Way(
            at=lambda angle: steered(RotateBy(angle), chosen),
            strengths=tuple(map(float, (*range(0, 360, step), 360))),
            preparation_s=calibrated,
            circle=True,
        ),
        "rotating to": Way(
            at=lambda angle: steered(RotateTo(angle), chosen, " (absolute)"),
            strengths=tuple(map(float, (*range(0, 360, step), 360))),
            preparation_s=calibrated,
        ),
    }


def examples(
    model: TransformerBridge, data: ContrastiveDataset, subject: Subject, n: int
) -> tuple[Turn, ...]:
    """Turns of ``n`` prompts of ``data``, answered as is wanted.

    Of refusal one class after the other, with fixed answers. Of another behaviour the prompts are
    those that are to be answered otherwise, with the model's own answers to their partners of the
    other class; without partners those prompts themselves, which show how answers are to be.
    """
    if not subject.measures.is_refusal:
        wanted = getattr(data, subject.other)[:n]
        asked = getattr(data, subject.label)[:n] if data.paired else wanted
        own = ss_lens.generate(model, wanted, max_new_tokens=SHOWN_TOKENS)
        return tuple(
            {"role": role, "content": text}
            for prompt, answer in zip(asked, own, strict=True)
            for role, text in (("user", prompt), ("assistant", answer))
        )
    answer = ANSWERING if subject.goal == "weaken" else REFUSING
    wanted = {"positive": answer, "negative": ANSWERING}
    turns: list[Turn] = []
    for place in range(n):
        label = ("positive", "negative")[place % 2]
        prompts = getattr(data, label)
        turns += [
            {"role": "user", "content": prompts[place // 2 % len(prompts)]},
            {"role": "assistant", "content": wanted[label]},
        ]
    return tuple(turns)


def _steered(
    model: TransformerBridge, operator: Operator, calibration: Calibration, where: str = ""
) -> Candidate:
    return Candidate(_told(operator) + where, partial(ss_lens.steer, model, calibration, operator))


def _told(operator: Operator) -> str:
    if isinstance(operator, RotateBy | RotateTo):
        return f"{operator.angle_deg:.4g}°"
    if isinstance(operator, Add):
        return f"α = {operator.alpha:.3g}"
    return type(operator).__name__


def _mean_coordinate(acts: Activations, calibration: Calibration) -> float:
    """Mean \\|h · b1\\| over the prompts and the steered sites, in units of the activation."""
    h = torch.cat([side for site in calibration.selected_sites for side in acts.at(site)])
    return float((h @ calibration.plane.b1).abs().mean())
