"""Write a steered model as files that run without hooks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_is, check_one_of, check_path, described
from ss_lens.core.errors import UserError
from ss_lens.core.files import (
    atomic_path,
    check_can_be_made,
    check_replaceable,
    disk_errors,
    sha256_of_file,
)
from ss_lens.core.replace import holds_nothing
from ss_lens.core.sealed import write_sealed_json
from ss_lens.exports.card import card
from ss_lens.exports.gguf_lora import check_architecture
from ss_lens.exports.kinds import DIAL_CHECKED, check_biases, write
from ss_lens.exports.linear_map import Kind, check_affine, check_kind
from ss_lens.exports.merged import FORMS, Form, check_gguf_source
from ss_lens.exports.parity import as_json, as_table
from ss_lens.exports.readers import check_site
from ss_lens.exports.subject import Base
from ss_lens.exports.verify import (
    CALIBRATION,
    CARD,
    FORMAT,
    JSON,
    MODEL,
    Export,
    judge,
    subject_of,
    tokens_for,
)
from ss_lens.geometry.operators import Operator, RotateBy
from ss_lens.models.chat import Prompt
from ss_lens.models.loading.devices import dtype_named
from ss_lens.steering.edits import places
from ss_lens.steering.positions import ALL_POSITIONS, Positions

KINDS: tuple[Kind, ...] = get_args(Kind)
_LIBRARIES = ("ss_lens", "torch", "transformers", "transformer_lens", "safetensors", "gguf")


def export(
    calibration: Calibration,
    model: TransformerBridge,
    operator: Operator | type[RotateBy],
    *,
    kind: Kind,
    out: Path | str,
    dtype: str = "auto",
    gguf: Form | None = None,
    positions: Positions = ALL_POSITIONS,
    prompts: Sequence[Prompt] | None = None,
    max_new_tokens: int = 32,
) -> Export:
    """Write the steered model as files that run without hooks, and check that they are exact.

    A linear operator at a norm's output is a change of rank 2 of the weights that read it
    (:mod:`ss_lens.exports.linear_map`). All readers are found and proved to be all
    (:mod:`ss_lens.exports.readers`). What was written is read back and compared with
    :func:`ss_lens.steer` on prompts and answers; above the tolerance nothing is left.

    The folder also holds the calibration, a card (``README.md``) and ``steering.json``, from which
    :func:`verify_export` repeats the comparison. No path of this machine is in its files: a base
    that is a folder or a file is named by the last part of its path, beside the digest of its
    weights. Every token is steered.

    Args:
        calibration: made on ``model``, at norm outputs (``ln1_out``, ``ln2_out``).
        model: from :func:`ss_lens.load_model`; it stays as it is.
        operator: linear, and in the plane; for ``"bank"`` with one angle per adapter, for
            ``"dial"`` the class ``RotateBy`` itself.
        kind: ``"lora"``: a PEFT adapter. ``"merged"``: a model folder of transformers.
            ``"gguf-lora"``: an adapter of llama.cpp. ``"dial"``: two adapters, whose scales
            cos θ − 1 and sin θ set the angle at run time. ``"bank"``: an adapter per angle.
        out: a new or empty folder.
        dtype: of merged weights: ``float32``, ``bfloat16``, ``float16``; ``auto`` is the model's.
        gguf: write merged weights as a GGUF file too, for llama.cpp and Ollama: ``f16`` or ``q8_0``
            is how the changed weights are kept, the others stay as they are in the base's own file.
        positions: as in :func:`ss_lens.steer`; weights act at every token, so only all are exact.
        prompts: what is read for the comparison; by default 16 embedded harmless requests.
        max_new_tokens: where the compared answers are cut off.

    Raises:
        UserError: an operator, positions or a site that weights cannot hold, a reader that is not
            linear, quantised weights, a calibration of another model, a folder that holds
            something, no space, or files that deviate from the steered model by more than the
            tolerance.
    """
    check_is("model", model, (TransformerBridge,), MODEL)
    operators = check_request(calibration, operator, kind, out, dtype, gguf)
    _check_positions(positions)
    folder, sites = Path(out), places(calibration, operators[0])[0]
    bound = [places(calibration, one)[1] for one in operators]
    chosen = model.cfg.dtype if dtype == "auto" else dtype_named(dtype, "cpu")
    calibration.check_fits(model)
    if kind == "gguf-lora":
        check_architecture(cast(Any, model.original_model).config)
    if gguf is not None:
        check_gguf_source(model)
    tokens = tokens_for(model, calibration.spec.chat, prompts, max_new_tokens)
    base = Base.of(model)
    subject, readers = subject_of(model, calibration, base, operators[0], tokens[0])
    for one in bound:
        check_biases(subject, one)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write(kind, temporary, subject, bound, chosen, gguf)
        calibration.published().save(temporary / CALIBRATION)
        reports = judge(kind, temporary, subject, calibration, operators, tokens, max_new_tokens)
        named = [str(site) for site in sites]
        text = card(kind, base, operators, named, reports, gguf=any(temporary.glob("*.gguf")))
        (temporary / CARD).write_text(text, "utf-8")
        content = {
            "format": FORMAT,
            "kind": kind,
            "operators": [str(one) for one in operators],
            "plane_sha256": plane_digest(calibration),
            "sites": named,
            "readers": {str(site): [*names] for site, names in readers.items()},
            "base": base.as_json(),
            "max_new_tokens": max_new_tokens,
            "parity": as_json(reports),
            "versions": {name: version(name) for name in _LIBRARIES},
            "intended_use": "research on how a behaviour is represented; strengthening of refusal",
            "files": _digests(temporary),
        }
        write_sealed_json(temporary / JSON, content)
    return Export(folder, kind, operators, as_table(reports))


def check_request(
    calibration: Calibration,
    operator: Operator | type[RotateBy],
    kind: Kind,
    out: Path | str,
    dtype: str,
    gguf: Form | None,
) -> tuple[Operator, ...]:
    """Check what can be told without the model; the operators that the export is compared with.

    Raises:
        UserError: as :func:`export`.
    """
    check_is("calibration", calibration, (Calibration,), _CALIBRATION)
    check_one_of("kind", kind, KINDS)
    check_path("out", out)
    folder = Path(out)
    operators = _operators(operator, kind)
    for one in (places(calibration, operator)[1] for operator in operators):
        check_affine(one)
        check_kind(one, kind)
    for site in places(calibration, operators[0])[0]:
        check_site(site)
    check_is("dtype", dtype, (str,), "a text: auto, float32, bfloat16 or float16")
    if dtype != "auto" and kind != "merged":
        raise UserError(
            f"dtype={dtype!r} is given for {kind!r}, whose numbers are always float32; leave it "
            "out, or export kind='merged'."
        )
    if gguf is not None:
        check_one_of("gguf", gguf, FORMS)
    if gguf is not None and kind != "merged":
        raise UserError(
            f"gguf={gguf!r} is given for {kind!r}, expected kind='merged', whose weights it "
            "writes; leave it out."
        )
    if dtype != "auto":
        dtype_named(dtype, "cpu")
    with disk_errors(folder):
        if not holds_nothing(folder):
            raise UserError(
                f"{folder} holds something that an export would replace, expected a new or empty "
                "folder; choose another one, or remove it."
            )
    check_replaceable(folder, frozenset(), "export")  # also of names such as "."
    check_can_be_made(folder)
    return operators


def _check_positions(positions: Positions) -> None:
    check_is(
        "positions", positions, get_args(Positions), "positions such as ss_lens.AllPositions()"
    )
    if positions != ALL_POSITIONS:
        raise UserError(
            f"{positions} cannot be exported: it steers some tokens and leaves others, and weights "
            "are the same for every token, expected all of them. Leave positions out, or steer "
            "with hooks (ss_lens.steer)."
        )


_CALIBRATION = "a calibration from ss_lens.calibrate(...) or Calibration.load(...)"


def _operators(operator: object, kind: Kind) -> tuple[Operator, ...]:
    """The operators to compare with: one, those of a bank's angles, or a dial's."""
    if kind == "dial":
        if operator is not RotateBy:
            raise UserError(
                f"a dial holds every angle, so operator must be the class RotateBy itself; got "
                f"{described(operator)}. Write export(..., RotateBy, kind='dial')."
            )
        return DIAL_CHECKED
    check_is(
        "operator", operator, (Operator,), "an operator such as ss_lens.RotateBy(angle_deg=90)"
    )
    if kind != "bank":
        return (cast(Operator, operator),)
    angles = operator.angle_deg if isinstance(operator, RotateBy) else None
    if not isinstance(angles, tuple) or len(set(angles)) < len(angles):
        raise UserError(
            "a bank holds one adapter per angle, so operator must be RotateBy with a list of "
            f"different angles; got {described(operator) if angles is None else operator}. Write "
            "RotateBy(angle_deg=[0, 45, 90])."
        )
    return tuple(RotateBy(angle) for angle in angles)


def plane_digest(calibration: Calibration) -> str:
    """SHA-256 of the basis of the plane, as float32."""
    basis = calibration.plane.basis.detach().float().cpu().contiguous()
    return hashlib.sha256(basis.numpy().tobytes()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the card, which may be edited."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: sha256_of_file(path) for name, path in named.items() if name != CARD}
