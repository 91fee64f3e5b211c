"""Steering: context managers that set hooks at the selected sites and always remove them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_is, described
from ss_lens.core.errors import UserError
from ss_lens.geometry.operators import Operator
from ss_lens.models.block import Block, Evenly
from ss_lens.models.loading.devices import device_of
from ss_lens.models.sites import Site
from ss_lens.steering.choosing import Choosing
from ss_lens.steering.edits import MAX_OVERLAP, Edit, check_overlaps, places
from ss_lens.steering.gates import Gate, check_gate
from ss_lens.steering.gating import Gating
from ss_lens.steering.hooks import Change, Hook, edit_hooks, reading_hooks
from ss_lens.steering.positions import (
    ALL_POSITIONS,
    AllPositions,
    GeneratedOnly,
    LastPrompt,
    Positions,
    Watch,
)
from ss_lens.steering.prompt_sites import PromptSites, check_prompt_sites
from ss_lens.steering.trace import Trace


def steer(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    *,
    positions: Positions = ALL_POSITIONS,
    when: Gate | None = None,
    sites: PromptSites | None = None,
    trace: Trace | None = None,
) -> AbstractContextManager[TransformerBridge]:
    """Apply ``operator`` in the calibration's plane, at its selected sites, inside the block.

    An operator that is the identity (``RotateBy(0)``) sets no hook, so the model computes bit for
    bit what it would without; with a trace, hooks record and change nothing. The hooks are gone
    after the block, also when it raises and after Ctrl-C. Blocks may be nested: the inner one acts
    on what the outer one leaves.

    A model belongs to one thread at a time. Its hooks are seen by all threads, so another thread
    that enters a block on the same model, or runs it meanwhile, gets an error instead of the
    answers of two operators at once.

    Args:
        model: the model that the calibration was made on.
        calibration: plane and sites.
        operator: what to do; with one strength per row, the batch inside must have as many rows.
            :class:`ActAdd` acts at the calibration's direction site alone.
        positions: which tokens; the others stay bit for bit as they arrive. ``PromptOnly()``,
            ``GeneratedOnly()`` and ``LastPrompt(k)`` tell prompt from answer as
            :mod:`ss_lens.steering.positions` says: a pass without a KV cache is prompt.
        when: steers only the rows whose prompt opens this gate, see :class:`ss_lens.Gate`; the
            others stay bit for bit as they arrive. Decided in the pass that holds the end of the
            prompts, and kept for the passes that continue its KV cache.
        sites: steers each row at those of the calibration's sites that suit its prompt, see
            :class:`ss_lens.PromptSites`; at the others it stays bit for bit as it arrives. Each
            pass over prompts runs twice: first to read them without the edit, by which the sites
            are chosen, and then steered. No other hook may act on the model meanwhile, so nothing
            is swept or captured inside the block.
        trace: records what happens to each token; see :class:`ss_lens.Trace`.

    Raises:
        UserError: an argument of another type; the calibration is for another model, width or
            dtype; a gate for another model, or one that reads behind the first steered site;
            per-prompt sites of another calibration, or with :class:`ActAdd`; another thread steers
            the model; inside the block, a pass of another thread, or one whose prompt or padding
            cannot be distinguished, where ``positions``, ``when``, ``sites`` or ``trace`` need it,
            or another hook where ``sites`` are chosen.
    """
    _check_model(model)
    _check_edit("", calibration, operator)
    check_prompt_sites(sites)
    if sites is not None:
        sites.check_fits(calibration)
        if operator.needs_length:
            raise UserError(
                f"{type(operator).__name__} acts at one site of the calibration, so there is none "
                "to choose by prompt; expected an operator that acts at all of them, such as "
                "Add. Take that, or leave sites= out."
            )
    return _block(model, [(calibration, operator)], MAX_OVERLAP, positions, when, sites, trace)


def steer_all(
    model: TransformerBridge,
    edits: Sequence[tuple[Calibration, Operator]],
    *,
    max_overlap: float | int = MAX_OVERLAP,
    positions: Positions = ALL_POSITIONS,
    when: Gate | None = None,
    trace: Trace | None = None,
) -> AbstractContextManager[TransformerBridge]:
    r"""Apply several operators, each in its calibration's plane and at its sites.

    At a site that several share, the edits apply in the order given. The order must not decide the
    result, so planes that meet at a site may overlap by at most ``max_overlap``: the largest
    singular value :math:`\sigma` of :math:`Q_1^\top Q_2`, the cosine of the smallest principal
    angle, 0 for orthogonal planes and 1 for planes with a common direction.

    An edit A that moves an activation by :math:`a` inside its plane changes the coordinates in the
    other plane by at most :math:`\sigma a`. So for edits that depend on nothing but the in-plane
    coordinates, there with Lipschitz constants :math:`\lambda`, that move :math:`h` by :math:`a`
    and :math:`b` when each acts alone,

    .. math:: \|AB(h) - BA(h)\| \le \sigma (\lambda_A b + \lambda_B a).

    Each operator gives its :math:`\lambda` as ``lipschitz``, for instance 0 for :class:`Add` and
    :math:`2|\sin(\theta/2)|` for :class:`RotateBy`; it is infinite for :class:`RotateToIfAligned`,
    which jumps at :math:`p_1 = 0`. Orthogonal planes commute. At the default, cos 84.3°, at most a
    tenth of what one edit moves reaches the other plane. An operator that leaves its plane
    (:class:`RotateToward`) is refused beside another edit unless ``max_overlap`` is 1.

    Args:
        model: the model that the calibrations were made on.
        edits: calibrations with their operators.
        max_overlap: between 0 and 1; 1 accepts the order given, whatever the planes.
        positions: as in :func:`steer`, for all edits.
        when: as in :func:`steer`, for all edits.
        trace: as in :func:`steer`; its column ``edit`` counts ``edits`` from 0.

    Raises:
        UserError: planes that overlap by more, no edit at all, or what :func:`steer` raises.
    """
    _check_model(model)
    check_is("edits", edits, (Sequence,), _PAIRS)
    if not edits:
        raise UserError("there is no edit to apply; give at least one (calibration, operator).")
    for place, pair in enumerate(edits):
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise UserError(f"edits[{place}] must be {_PAIR}; got {described(pair)}.")
        _check_edit(f"edits[{place}]: ", *pair)
    check_is("max_overlap", max_overlap, (float, int), "a cosine between 0 and 1, such as 0.1")
    if not 0 <= max_overlap <= 1:
        raise UserError(f"max_overlap is a cosine between 0 and 1; got {max_overlap}.")
    return _block(model, edits, float(max_overlap), positions, when, None, trace)


@dataclass(frozen=True, eq=False)
class _Followed:
    """Who follows the passes, so that an edit knows which tokens of which rows are its own."""

    watch: Watch | None
    gating: Gating | None
    choosing: Choosing | None
    trace: Trace | None

    @property
    def is_reading(self) -> bool:
        return self.choosing is not None and self.choosing.is_reading


def _block(
    model: TransformerBridge,
    edits: Sequence[tuple[Calibration, Operator]],
    max_overlap: float,
    positions: Positions,
    when: Gate | None,
    sites: PromptSites | None,
    trace: Trace | None,
) -> Block:
    """The block of :func:`steer` and :func:`steer_all`, whose own arguments are checked."""
    check_is("positions", positions, get_args(Positions), _POSITIONS)
    check_gate(when)
    check_is("trace", trace, (Trace, type(None)), "a ss_lens.Trace(), or None")
    bound: list[Edit] = []
    fired: set[Site] = set()
    plain = isinstance(positions, AllPositions) and (when, sites, trace) == (None, None, None)
    watch = None if plain else Watch(model.original_model, positions)
    gating = None if when is None or watch is None else Gating(when, watch, trace)
    choosing = None if sites is None or watch is None else Choosing(sites, model, watch, trace)
    followed = _Followed(watch, gating, choosing, trace)

    def place_hooks(block: Block, stack: ExitStack) -> None:
        bound.extend(_bound(model, edits, traced=trace is not None))
        check_overlaps(bound, max_overlap)
        hooks: list[Hook] = []
        if when is not None and gating is not None:
            when.check_fits(model)
            _check_order(when, bound, positions)
            if bound:
                hooks += reading_hooks(when.site, partial(_ask, gating, followed), block)
                stack.enter_context(gating.following(model.original_model))
        for edit in bound:
            for site in edit.sites:
                hooks += edit_hooks(site, _change(edit, site, fired, block, followed))
        if choosing is not None and hooks:
            choosing.n_hooks = len(hooks)
            stack.enter_context(choosing.following(model.original_model))
        if (when, sites, trace) == (None, None, None) and _is_even(bound):
            keep = positions.k if isinstance(positions, LastPrompt) else 1
            block.evenly = Evenly(len(hooks), keep)
        if trace is not None:
            stack.enter_context(trace.recording())
        if watch is not None and hooks:
            stack.enter_context(watch.watching())
        if hooks:
            stack.enter_context(model.hooks(fwd_hooks=hooks))

    warn = partial(_warn_of_silence, bound, fired, followed, positions)
    return Block(model, place_hooks, "steering", after=warn)


def _ask(gating: Gating, followed: _Followed, h: Tensor) -> None:
    """Show the gate a pass, unless it is the one that sites are read in."""
    if not followed.is_reading:
        gating.read(h)


def _is_even(bound: Sequence[Edit]) -> bool:
    return all(edit.operator.rows is None for edit in bound)


_PAIR = "a pair (calibration, operator)"
_PAIRS = "a list of pairs (calibration, operator)"
_POSITIONS = "AllPositions(), PromptOnly(), GeneratedOnly() or LastPrompt(k=1)"


def _check_model(model: TransformerBridge) -> None:
    check_is("model", model, (TransformerBridge,), "a model from ss_lens.load_model(...)")


def _check_edit(where: str, calibration: Calibration, operator: Operator) -> None:
    made = "a calibration from ss_lens.calibrate(...) or Calibration.load(...)"
    check_is(f"{where}calibration", calibration, (Calibration,), made)
    named = "an operator such as ss_lens.RotateBy(angle_deg=90)"
    check_is(f"{where}operator", operator, (Operator,), named)


def _check_order(gate: Gate, bound: Sequence[Edit], positions: Positions) -> None:
    """Raise where steering would begin before the gate has decided."""
    first = min((site for edit in bound for site in edit.sites), default=gate.site)
    if gate.site > first and not isinstance(positions, GeneratedOnly):
        raise UserError(
            f"the gate reads {gate.site}, and steering begins before it, at {first}, where nothing "
            f"is decided yet; expected a gate at {first} or before. Fit it there with "
            "Gate.from_dev(..., site=...), or steer the answer alone (positions=GeneratedOnly())."
        )


def _bound(
    model: TransformerBridge, pairs: Sequence[tuple[Calibration, Operator]], traced: bool
) -> list[Edit]:
    """The edits that act on this model, or all of them where each is to be traced."""
    bound = []
    for place, (calibration, asked) in enumerate(pairs):
        calibration.check_fits(model)
        sites, operator = places(calibration, asked)
        if traced or not operator.is_identity:
            plane = calibration.plane.to(device_of(model))
            bound.append(Edit(place, operator, plane, sites))
    return bound


def _warn_of_silence(
    bound: Sequence[Edit], fired: set[Site], followed: _Followed, positions: Positions
) -> None:
    silent = [str(site) for edit in bound for site in edit.sites if site not in fired]
    if fired and silent:
        warnings.warn(
            f"steering never reached {', '.join(dict.fromkeys(silent))}: the forward pass stopped "
            "before them.",
            stacklevel=3,
        )
    deciders = (followed.gating, followed.choosing)
    # For an answer that is yet to come.
    decided = any(one.keeps_any for one in deciders if one is not None)
    watch, choosing = followed.watch, followed.choosing
    if watch is not None and watch.passes and not watch.selected_any and not decided:
        passes = watch.passes - (0 if choosing is None else choosing.readings)
        warnings.warn(
            f"{positions!r} selected no token in {passes} forward passes, so nothing was "
            "steered; without a KV cache every token counts as prompt.",
            stacklevel=3,
        )


def _change(edit: Edit, site: Site, fired: set[Site], block: Block, followed: _Followed) -> Change:
    """What the hook at ``site`` does to the stream."""
    operator, plane = edit.operator, edit.plane
    watch, gating, choosing, trace = (
        *(followed.watch, followed.gating, followed.choosing, followed.trace),
    )

    def everywhere(h: Tensor) -> Tensor:
        block.check_thread()
        fired.add(site)
        return operator.apply(h, plane)

    if watch is None:
        return everywhere

    def selectively(h: Tensor) -> Tensor:
        block.check_thread()
        if choosing is not None and choosing.is_reading:
            choosing.read(site, h)
            return h
        fired.add(site)
        tokens, selected = watch.now
        if gating is not None:
            selected = gating.restricted(tokens, selected)
        if choosing is not None:
            selected = choosing.restricted(site, tokens, selected)
        new = h if selected is False or operator.is_identity else operator.apply(h, plane)
        if isinstance(selected, Tensor):
            new = torch.where(selected.unsqueeze(-1), new, h)
        if trace is not None:
            trace.record(tokens, site, edit.place, plane, h, new)
        return new

    return selectively
