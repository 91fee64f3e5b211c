"""The kinds of export: what each writes into its folder, and how it is read back to be judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ss_lens.core.errors import UserError
from ss_lens.core.files import write_json
from ss_lens.exports import gguf_lora, peft_folder
from ss_lens.exports.linear_map import Kind, LowRank, turns
from ss_lens.exports.merged import (
    MERGED_GGUF,
    Files,
    Form,
    dtype_of,
    merged_in,
    merged_in_gguf,
    write_merged,
    write_merged_gguf,
)
from ss_lens.exports.plain import adapted, logits_of
from ss_lens.exports.subject import Subject
from ss_lens.geometry.operators import Operator, RotateBy

DIAL = ("turn_p", "turn_j")
"""The two adapters of a dial: their scales are cos θ − 1 and sin θ."""
DIAL_CHECKED = tuple(RotateBy(angle) for angle in (45, 135, 225, 315))
"""The angles at which a dial is compared with ``steer(...)``; it is linear in its two scales."""
GGUF_FILE, BANK_FILE = "adapter.gguf", "bank.json"


def name_of(operator: RotateBy) -> str:
    """The name of one adapter of a bank: ``angle-135``."""
    return f"angle-{cast(float, operator.angle_deg):g}"


def write(
    kind: Kind,
    folder: Path,
    subject: Subject,
    operators: Sequence[Operator],
    dtype: torch.dtype,
    gguf: Form | None = None,
) -> None:
    """Write the files of an export into ``folder``, which exists and is empty.

    Args:
        kind: which files.
        folder: where to.
        subject: what is exported.
        operators: one, or one per adapter of a bank; a dial has none of its own.
        dtype: of merged weights.
        gguf: how a GGUF file of merged weights keeps those that change; ``None`` writes none.
    """
    config = subject.plain.config
    if kind == "lora":
        _write_peft(subject, folder, subject.factors_of(operators[0]))
    elif kind == "gguf-lora":
        gguf_lora.write_gguf_adapter(folder / GGUF_FILE, subject.factors_of(operators[0]), config)
    elif kind == "dial":
        for name, change in zip(DIAL, turns(subject.plane), strict=True):
            factors = subject.factors(change)
            _write_peft(subject, folder / name, factors)
            if config.model_type in gguf_lora.ARCHITECTURES:
                gguf_lora.write_gguf_adapter(folder / f"{name}.gguf", factors, config)
    elif kind == "bank":
        names = [name_of(cast(RotateBy, operator)) for operator in operators]
        for name, operator in zip(names, operators, strict=True):
            _write_peft(subject, folder / name, subject.factors_of(operator))
        modules = [{"name": n, "path": n, "base_model_name": subject.base.name} for n in names]
        write_json(folder / BANK_FILE, {"lora_modules": modules})
    else:
        write_merged(folder, subject, operators[0], dtype)
        if gguf is not None:
            write_merged_gguf(folder / MERGED_GGUF, subject, operators[0], gguf)


def _write_peft(subject: Subject, folder: Path, factors: Mapping[str, LowRank]) -> None:
    folder.mkdir(exist_ok=True)
    transposed = subject.stored_transposed
    peft_folder.write_adapter(folder, factors, subject.base, fan_in_fan_out=transposed)


def check_biases(subject: Subject, operator: Operator) -> None:
    """Raise where ``operator`` shifts by a constant and a reader has no bias to hold it."""
    if operator.is_linear:
        return
    without = [n for n in subject.readers if subject.plain.get_submodule(n).bias is None]
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        raise UserError(
            f"{operator} cannot be exported: it adds a constant to what {without[0]!r}{more} "
            "reads, which has no bias to hold it, expected a bias at every reader (as GPT-2 has). "
            "Use a linear operator such as RotateBy, or steer with hooks (ss_lens.steer)."
        )


def read_back(
    kind: Kind, folder: Path, subject: Subject, operators: Sequence[Operator]
) -> Iterator[tuple[Operator, Files]]:
    """What the files in ``folder`` do, beside the operators that they should equal.

    Raises:
        UserError: files are damaged, or are for other modules than the readers.
    """
    config = subject.plain.config
    if kind == "merged":
        yield operators[0], merged_in(folder, subject)
        if (path := folder / MERGED_GGUF).exists():
            yield operators[0], merged_in_gguf(path, subject)
    elif kind == "lora":
        yield operators[0], _with(subject, (_factors(folder, subject), 1.0))
    elif kind == "gguf-lora":
        read = gguf_lora.read_gguf_adapter(folder / GGUF_FILE, [*subject.readers], config)
        yield operators[0], _with(subject, (read, 1.0))
    elif kind == "bank":
        for operator in operators:
            path = folder / name_of(cast(RotateBy, operator))
            yield operator, _with(subject, (_factors(path, subject), 1.0))
    else:
        pair = [_factors(folder / name, subject) for name in DIAL]
        for name, factors in zip(DIAL, pair, strict=True):
            path = folder / f"{name}.gguf"
            if path.exists() and not peft_folder.is_equal(
                gguf_lora.read_gguf_adapter(path, [*subject.readers], config), factors
            ):
                raise UserError(
                    f"the adapters {path.name} and {name} of the dial at {folder} hold other "
                    "numbers, expected the same; export it again."
                )
        for operator in operators:
            angle = math.radians(cast(float, cast(RotateBy, operator).angle_deg))
            scales = (math.cos(angle) - 1, math.sin(angle))
            yield operator, _with(subject, *zip(pair, scales, strict=True))


def _factors(folder: Path, subject: Subject) -> dict[str, LowRank]:
    found = peft_folder.read_factors(folder)
    if set(found) != set(subject.readers):
        raise UserError(
            f"the adapter at {folder} changes {len(found)} modules, expected the "
            f"{len(subject.readers)} that read the steered sites; export it again."
        )
    return found


@contextmanager
def _with(
    subject: Subject, *adapters: tuple[Mapping[str, LowRank], float]
) -> Iterator[tuple[Callable[[Tensor], Tensor], str]]:
    with adapted(subject.plain, *adapters) as plain:
        yield partial(logits_of, plain), dtype_of(plain)
