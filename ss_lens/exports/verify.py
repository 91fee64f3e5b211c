"""Judge an export by its files: whether they are whole, and how far from the steered model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.capture import check_unhooked
from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_at_least, check_is, check_path, described as shown
from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_file
from ss_lens.core.sealed import read_sealed_json
from ss_lens.core.values import read_value
from ss_lens.datasets.contrastive import load_dataset
from ss_lens.exports.kinds import read_back
from ss_lens.exports.linear_map import Kind
from ss_lens.exports.parity import Parity, as_table, measure
from ss_lens.exports.plain import plain_copy
from ss_lens.exports.readers import find_readers, norm_names
from ss_lens.exports.subject import Base, Subject
from ss_lens.geometry.operators import Operator
from ss_lens.models.adapters import CONFIG
from ss_lens.models.chat import ChatFormat, Prompt, Tokens, check_context, tokenize
from ss_lens.models.sites import Site
from ss_lens.steering.edits import places

FORMAT = 1
JSON, CARD, CALIBRATION = "steering.json", "README.md", "calibration"
MODEL = "a model from ss_lens.load_model(...)"
N_PROMPTS = 16
"""How many of the embedded harmless requests are read where no prompts are given."""
_LOOK = 24
"""Tokens of the prompt that the readers are looked for with."""


@dataclass(frozen=True, eq=False)
class Export:
    """A steered model as files.

    Attributes:
        folder: where they are.
        kind: what they are.
        operators: what they do.
        parity: how far they are from ``steer(...)``, one row per operator.
    """

    folder: Path
    kind: Kind
    operators: tuple[Operator, ...]
    parity: pd.DataFrame


def verify_export(
    folder: Path | str,
    model: TransformerBridge,
    *,
    prompts: Sequence[Prompt] | None = None,
) -> Export:
    """Compare an export with the steered model again, from its files.

    Args:
        folder: what :func:`export` wrote.
        model: the base that it was made from.
        prompts: as in :func:`export`.

    Raises:
        UserError: no export, one whose files were damaged or changed, one of another model, or one
            that deviates from the steered model by more than the tolerance.
    """
    check_path("folder", folder)
    check_is("model", model, (TransformerBridge,), MODEL)
    path = Path(folder)
    content = described(path)
    kind, most = cast(Kind, content["kind"]), content["max_new_tokens"]
    operators = tuple(read_value(t, Operator.kinds(), "operator") for t in content["operators"])
    calibration = calibration_of(path, model)
    tokens = tokens_for(model, calibration.spec.chat, prompts, most)
    subject, _ = subject_of(model, calibration, Base.of(model), operators[0], tokens[0])
    reports = judge(kind, path, subject, calibration, operators, tokens, most)
    return Export(path, kind, operators, as_table(reports))


def calibration_of(folder: Path, model: TransformerBridge) -> Calibration:
    """The calibration of an export, once ``model`` is the one that it was made from.

    Raises:
        UserError: the calibration is damaged, or the model is another.
    """
    calibration = Calibration.load(folder / CALIBRATION)
    base = calibration.spec.model
    remedy = f"Give the model that the export was made from: {base.name!r} in {base.dtype}."
    calibration.check_fits(model, remedy=remedy)
    return calibration


def tokens_for(
    model: TransformerBridge,
    chat: ChatFormat,
    prompts: Sequence[Prompt] | None,
    max_new_tokens: int,
) -> list[Tokens]:
    check_at_least("max_new_tokens", max_new_tokens)
    check_unhooked(model, "the export would be compared with what they do as well")
    given = load_dataset("refusal").negative[:N_PROMPTS] if prompts is None else prompts
    tokens = tokenize(model, given, chat)
    if not tokens:
        raise UserError(
            "prompts is an empty list, expected at least one: the export is compared with the "
            "steered model on them. Leave it out to use the embedded ones."
        )
    check_context(model, tokens, given, max_new_tokens)
    return tokens


def subject_of(
    model: TransformerBridge,
    calibration: Calibration,
    base: Base,
    operator: Operator,
    prompt: Tokens,
) -> tuple[Subject, dict[Site, tuple[str, ...]]]:
    """The plain model, and who reads the steered sites."""
    sites, _ = places(calibration, operator)
    norms = norm_names(model, sites)
    plain = plain_copy(model)
    ids = torch.tensor(prompt[:_LOOK], device=plain.device)
    readers = find_readers(plain, norms, ids)
    names = tuple(dict.fromkeys(name for found in readers.values() for name in found))
    return Subject(model, plain, base, calibration.plane, names), readers


def judge(
    kind: Kind,
    folder: Path,
    subject: Subject,
    calibration: Calibration,
    operators: Sequence[Operator],
    tokens: Sequence[Tokens],
    max_new_tokens: int,
) -> list[Parity]:
    reports = []
    for operator, files in read_back(kind, folder, subject, operators):
        with files as (exported, dtype):
            report = measure(
                subject.model,
                calibration,
                operator,
                exported,
                tokens,
                dtype=dtype,
                max_new_tokens=max_new_tokens,
            )
        report.check(kind)
        reports.append(report)
    return reports


def described(folder: Path) -> dict[str, Any]:
    """``steering.json``, once every file is what it says.

    Raises:
        UserError: absent, damaged, or files that differ.
    """
    if (folder / CONFIG).exists() and not (folder / JSON).exists():
        raise UserError(
            f"{folder} holds an adapter without {JSON}, so it was trained or comes from elsewhere, "
            "expected an export of ss_lens: there is no steering to compare it with. Name a folder "
            "that ss-lens export wrote."
        )
    content = read_sealed_json(folder / JSON, "export", remedy="export it again")
    if content.get("format") != FORMAT:
        raise UserError(
            f"the export at {folder} has format {content.get('format')!r}, this version reads "
            f"{FORMAT}; export it again."
        )
    _check_layout(folder, content)
    for name, digest in content["files"].items():
        path = folder / name
        if not path.is_file() or sha256_of_file(path) != digest:
            state = "differs from what was exported" if path.is_file() else "is missing"
            raise UserError(
                f"the export at {folder} is damaged: {name} {state} (its SHA-256 is in {JSON}). "
                "Copy it again, or export it again."
            )
    return content


def _check_layout(folder: Path, content: Mapping[str, Any]) -> None:
    """Raise unless what is read of ``steering.json`` has the form that :func:`export` gives it."""
    operators, files, most = (content.get(k) for k in ("operators", "files", "max_new_tokens"))
    texts = isinstance(operators, list) and all(isinstance(text, str) for text in operators)
    for name, fits, expected in (
        ("kind", content.get("kind") in get_args(Kind), f"one of {', '.join(get_args(Kind))}"),
        ("operators", texts and bool(operators), "a list of operators"),
        ("files", isinstance(files, dict) and bool(files), "the SHA-256 of each file by its name"),
        ("max_new_tokens", type(most) is int and most > 0, "a whole number of at least 1"),
    ):
        if not fits:
            raise UserError(
                f"the export at {folder} is of another layout: {name} in {JSON} is "
                f"{shown(content.get(name))}, expected {expected}; export it again."
            )
