"""The ratios themselves: each measure returns figures of one subject."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor, nn

import ss_lens
from benchmarks.subjects import STREAMS, Subject
from benchmarks.timing import Figure, Side, alternating, finish
from ss_lens import Calibration, RotateBy, RotateTo, Store
from ss_lens.geometry.plane import Plane
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from ss_lens.scoring.divergence import kl_divergence
from ss_lens.scoring.perplexity import answer_perplexity
from ss_lens.scoring.refusal_score import refusal_score, sweep_refusal_score
from ss_lens.steering.positions import AllPositions, LastPrompt, Positions, PromptOnly

SLIGHT = 1e-6
"""Degrees: the hooks do all their work, and texts, and so their lengths, stay the same."""
ANGLES = tuple(45.0 * place for place in range(8))


def capture_ratios(subject: Subject, rounds: int) -> list[Figure]:
    """Capture of all norm outputs against a bare forward, and the published procedure."""
    plain, tokens = subject.untouched(), tokenize(subject.model, subject.prompts)
    norms = [module for name, module in plain.named_modules() if name.endswith("layernorm")]
    pad = forward.pad_id_of(subject.model)

    @torch.inference_mode()
    def bare() -> None:
        """Full prompts in padded batches, without unembedding."""
        groups = forward.equal_groups(forward.order_by_length(tokens), 16)
        for batch in forward.batches(
            tokens, groups, side="right", pad_id=pad, device=subject.device
        ):
            plain.get_submodule("model")(
                input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
            )

    @torch.no_grad()
    def published() -> None:
        """One prompt at a time with a hook on every norm and the logits of every position."""
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            kept.append(out[:, -1].detach())

        handles = [norm.register_forward_hook(keep) for norm in norms]
        for ids in tokens:
            plain(input_ids=torch.tensor([ids], device=subject.device))
        for handle in handles:
            handle.remove()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ss_lens.capture(subject.model, subject.data, streams=STREAMS, store=Store(folder))

    sides = {"ours": ours, "bare": bare, "published": published}
    times = alternating(sides, rounds, subject.device)
    what = "capture of all norm outputs"
    return [
        Figure.ratio(f"{what} / bare batched forward", times, "bare", goal=0.55),
        Figure.ratio(f"{what} / published procedure", times, "published", goal=0.25),
    ]


def score_ratios(subject: Subject, few: Calibration, rounds: int) -> list[Figure]:
    """Score passes against the same without sharing, and a sweep against single passes."""
    model, prompts = subject.model, subject.prompts
    answers = [*prompts[1:], prompts[0]]
    turn = RotateBy(90)
    scores: dict[str, Side] = {
        "refusal_score": lambda: refusal_score(model, prompts),
        "perplexity": lambda: answer_perplexity(model, prompts, answers),
        "kl": lambda: kl_divergence(model, few, turn, prompts, answers),
    }
    figures = []
    for name, score in scores.items():
        sides = {"shared": score, "unshared": _without_sharing(score)}
        times = alternating(sides, rounds, subject.device)
        goal = 0.65 if name == "refusal_score" else None
        what = f"{name} of {len(prompts)} prompts / without sharing"
        figures.append(Figure.ratio(what, times, "unshared", goal))

    def singles() -> None:
        for angle in ANGLES:
            with ss_lens.steer(model, few, RotateBy(angle)):
                refusal_score(model, prompts)

    sides = {
        "sweep": lambda: sweep_refusal_score(model, few, RotateBy, prompts, ANGLES),
        "singles": singles,
        "unshared": _without_sharing(singles),
    }
    times = alternating(sides, rounds, subject.device)
    first = min(few.selected_sites)
    what = f"score sweep of {len(ANGLES)} angles from {first} on / {len(ANGLES)}"
    figures.append(Figure.ratio(f"{what} passes without sharing", times, "unshared", 0.5))
    figures.append(Figure.ratio(f"{what} passes", times, "singles"))
    return figures


def _without_sharing(side: Side) -> Side:
    def unshared() -> None:
        with mock.patch("ss_lens.generation.shared_start.shared_tokens", return_value=()):
            side()

    return unshared


def steering_ratios(
    subject: Subject,
    calibrations: dict[str, Calibration],
    rounds: int,
    rows: int,
    width: int,
    steps: int,
) -> list[Figure]:
    """Steered against unsteered prefill and decoding, at some and at all sites."""
    model = subject.model
    ids = torch.randint(len(model.tokenizer), (rows, width), device=subject.device)
    mask = torch.ones_like(ids)
    longer = torch.cat((mask, mask.new_ones(rows, steps)), dim=1)
    with torch.inference_mode():
        _, after = forward.run(model, ids, mask, keep_cache=True)

    def prefill() -> None:
        forward.run(model, ids, mask, keep_cache=True)

    def decode() -> None:
        cache = copy.deepcopy(after)
        for step in range(1, steps + 1):
            logits, cache = forward.run(model, ids[:, :1], longer[:, : width + step], cache)
            logits.argmax(dim=-1)

    figures = []
    for name, work, goal in (("prefill", prefill, None), ("decoding", decode, 1.03)):
        sides: dict[str, Side] = {}
        for sites, calibration in calibrations.items():
            sides[sites] = _steered(subject, calibration, work)
        sides["unsteered"] = torch.inference_mode()(work)
        times = alternating(sides, rounds, subject.device)
        for place, sites in enumerate(calibrations):
            figures.append(
                Figure(
                    f"{name} steered at {sites} / unsteered ({rows} rows of {width})",
                    times[sites] / times["unsteered"],
                    goal=goal if place == 0 else None,
                    seconds=times[sites],
                )
            )
    return figures


def _steered(subject: Subject, calibration: Calibration, work: Side) -> Side:
    @torch.inference_mode()
    def steered() -> None:
        with ss_lens.steer(subject.model, calibration, RotateBy(SLIGHT)):
            work()

    return steered


def operator_ratio(subject: Subject, rounds: int) -> Figure:
    """One rotation against reading and writing the activation once."""
    on_cuda = subject.on_cuda
    shape = (8, 8192 if on_cuda else 512, subject.model.cfg.d_model)
    with torch.inference_mode():
        torch.manual_seed(0)
        plane = Plane.from_span(*torch.randn(2, shape[-1]).unbind()).to(subject.device)
        h = torch.randn(shape, device=subject.device, dtype=subject.model.cfg.dtype)
        operator = RotateBy(50)
        repeats = 20 if on_cuda else 1  # one pass is too short for a clock of the host

        def repeated(work: Side) -> Side:
            return lambda: [work() for _ in range(repeats)] and None

        sides = {
            "operator": repeated(lambda: operator.apply(h, plane)),
            "once": repeated(lambda: h * 1.0000001),
        }
        times = alternating(sides, rounds, subject.device)
    return Figure.ratio(f"RotateBy on {list(shape)} / one read and write", times, "once")


def sweep_ratio(subject: Subject, few: Calibration, angles: int, rounds: int) -> Figure:
    """Answers at many angles in one sweep against one run after the other."""
    model, prompts, new = subject.model, subject.prompts[:8], 16
    degrees = [360.0 * place / angles for place in range(angles)]

    def sweep() -> None:
        ss_lens.sweep_angles(model, few, RotateBy, prompts, degrees, max_new_tokens=new)

    def runs() -> None:
        for angle in degrees:
            with ss_lens.steer(model, few, RotateBy(angle)):
                ss_lens.generate(model, prompts, max_new_tokens=new)

    times = alternating({"sweep": sweep, "runs": runs}, rounds, subject.device)
    what = f"{angles} angles of {len(prompts)} prompts / {angles} runs ({new} new tokens)"
    return Figure.ratio(what, times, "runs", goal=0.6)


def peak_memory(subject: Subject, what: str, work: Side) -> Figure:
    """By how much the peak of the device's memory lies above what was held before."""
    finish(subject.device)
    torch.cuda.reset_peak_memory_stats(subject.device)
    before = torch.cuda.memory_allocated(subject.device)
    work()
    finish(subject.device)
    peak = torch.cuda.max_memory_allocated(subject.device) - before
    return Figure(f"peak memory of {what}, beside the weights", peak / 2**30, "GiB")


# --- Hooks run on the device alone ---------------------------------------------------------------

WATCHED: tuple[Positions, ...] = (AllPositions(), PromptOnly(), LastPrompt(2))


def check_hooks_stay_on_device(subject: Subject) -> int:
    """Run steered passes in which a hook that waits for the device, or copies from it, raises.

    Hooks placed before and after those of ``steer`` at the same points switch torch's check on and
    off, so that it covers them and not the model around them. A first pass without the check lets
    the strengths of batch rows, which are kept from then on, reach the device.

    Returns:
        How many calls of hooks were checked. On a CPU there is nothing to wait for.
    """
    model = subject.model
    ids = torch.randint(len(model.tokenizer), (2, 12), device=subject.device)
    mask = torch.ones_like(ids)
    checked = 0

    def passes() -> None:
        _, cache = forward.run(model, ids, mask, keep_cache=True)
        forward.run(model, ids[:, :1], torch.cat((mask, mask[:, :1]), dim=1), cache)

    for calibration in subject.calibrations().values():
        names = [site.hook_name for site in calibration.selected_sites]
        for operator in (RotateBy(50), RotateTo(50), RotateBy((20, 50))):
            for positions in WATCHED:

                def edit(
                    calibration: Calibration = calibration,
                    operator: RotateBy | RotateTo = operator,
                    positions: Positions = positions,
                ) -> AbstractContextManager[object]:
                    return ss_lens.steer(model, calibration, operator, positions=positions)

                with torch.inference_mode():
                    with edit():
                        passes()
                    with _around(subject, names, edit):
                        passes()
                checked += 2 * len(names)
        if subject.on_cuda:
            _check_the_check(subject, names, passes)
    return checked


def _check_the_check(subject: Subject, names: Sequence[str], passes: Side) -> None:
    """A hook that reads a number on the host must raise, or the check would prove nothing."""

    def waits(h: Tensor, hook: object) -> None:
        float(h.sum())

    def edit() -> AbstractContextManager[object]:
        return subject.model.hooks(fwd_hooks=[(name, waits) for name in names])

    try:
        with torch.inference_mode(), _around(subject, names, edit):
            passes()
    except RuntimeError as error:
        if "synchron" not in str(error).lower():
            raise
    else:
        raise AssertionError("a hook waited for the device, and torch did not notice")


@contextmanager
def _around(
    subject: Subject, names: Sequence[str], edit: Callable[[], AbstractContextManager[object]]
) -> Iterator[None]:
    """Hooks of ``edit`` inside of which waiting for the device is an error."""
    model = subject.model

    def switch(mode: str) -> AbstractContextManager[object]:
        if not subject.on_cuda:
            return nullcontext()

        def hook(h: Tensor, hook: object) -> None:
            torch.cuda.set_sync_debug_mode(mode)

        return model.hooks(fwd_hooks=[(name, hook) for name in names])

    try:
        with switch("error"), edit(), switch("default"):
            yield
    finally:
        if subject.on_cuda:
            torch.cuda.set_sync_debug_mode("default")
