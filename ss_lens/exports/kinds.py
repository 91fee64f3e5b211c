"""The kinds of export: what each writes into its folder, and how it is read back to be judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import write_json
from ss_lens.core.resources import check_disk, check_memory
from ss_lens.exports import gguf_lora, peft_folder
from ss_lens.exports.base import Base
from ss_lens.exports.linear_map import Kind, LinearMap, LowRank, turns
from ss_lens.exports.plain import adapted, logits_of, matrix_of, plain_copy
from ss_lens.geometry.operators import Operator, RotateBy
from ss_lens.geometry.plane import Plane
from ss_lens.models.integrity import check_finite, load_errors
from ss_lens.models.load import device_of, loaded_from, without_bars

DIAL = ("turn_p", "turn_j")
"""The two adapters of a dial: their scales are cos θ − 1 and sin θ."""
DIAL_CHECKED = tuple(RotateBy(angle) for angle in (45, 135, 225, 315))
"""The angles at which a dial is compared with ``steer(...)``; it is linear in its two scales."""
GGUF_FILE, BANK_FILE = "adapter.gguf", "bank.json"
SHARD = "2GB"


@dataclass(frozen=True, eq=False)
class Subject:
    """What is exported.

    Attributes:
        model: the bridge.
        plain: the same model without it, in the same memory.
        base: what is known of it.
        plane: where the operator acts.
        readers: the linear modules that are changed, by name.
    """

    model: TransformerBridge
    plain: PreTrainedModel
    base: Base
    plane: Plane
    readers: tuple[str, ...]

    def factors(self, change: LinearMap) -> dict[str, LowRank]:
        """The low-rank change of each reader."""
        return {
            name: change.factors(matrix_of(self.plain.get_submodule(name))) for name in self.readers
        }

    def factors_of(self, operator: Operator) -> dict[str, LowRank]:
        return self.factors(LinearMap.of(operator, self.plane))

    @property
    def stored_transposed(self) -> bool:
        """Whether the readers store the transpose of their matrix, as GPT-2's do."""
        return any(isinstance(self.plain.get_submodule(name), Conv1D) for name in self.readers)

    def write_peft(self, folder: Path, factors: Mapping[str, LowRank]) -> None:
        folder.mkdir(exist_ok=True)
        peft_folder.write_adapter(folder, factors, self.base, fan_in_fan_out=self.stored_transposed)


def name_of(operator: RotateBy) -> str:
    """The name of one adapter of a bank: ``angle-135``."""
    return f"angle-{cast(float, operator.angle_deg):g}"


def write(
    kind: Kind,
    folder: Path,
    subject: Subject,
    operators: Sequence[Operator],
    dtype: torch.dtype,
) -> None:
    """Write the files of an export into ``folder``, which exists and is empty.

    Args:
        kind: which files.
        folder: where to.
        subject: what is exported.
        operators: one, or one per adapter of a bank; a dial has none of its own.
        dtype: of merged weights.
    """
    config = subject.plain.config
    if kind == "lora":
        subject.write_peft(folder, subject.factors_of(operators[0]))
    elif kind == "gguf-lora":
        gguf_lora.write_gguf_adapter(folder / GGUF_FILE, subject.factors_of(operators[0]), config)
    elif kind == "dial":
        for name, change in zip(DIAL, turns(subject.plane), strict=True):
            factors = subject.factors(change)
            subject.write_peft(folder / name, factors)
            if config.model_type in gguf_lora.ARCHITECTURES:
                gguf_lora.write_gguf_adapter(folder / f"{name}.gguf", factors, config)
    elif kind == "bank":
        names = [name_of(cast(RotateBy, operator)) for operator in operators]
        for name, operator in zip(names, operators, strict=True):
            subject.write_peft(folder / name, subject.factors_of(operator))
        modules = [{"name": n, "path": n, "base_model_name": subject.base.name} for n in names]
        write_json(folder / BANK_FILE, {"lora_modules": modules})
    else:
        _write_merged(folder, subject, operators[0], dtype)


def _write_merged(folder: Path, subject: Subject, operator: Operator, dtype: torch.dtype) -> None:
    """Write the model with the operator folded into the readers' weights, in shards."""
    plain, change = subject.plain, LinearMap.of(operator, subject.plane)
    needed = sum(p.numel() for p in plain.parameters()) * dtype.itemsize
    check_disk(needed, folder, "the merged model")
    check_memory(
        needed, "merging the weights", "close what else is running, or use dtype='bfloat16'"
    )
    changed: dict[str, Tensor] = {}
    for name in subject.readers:
        module = plain.get_submodule(name)
        factors = change.factors(matrix_of(module))
        folded = matrix_of(module).double() + factors.b @ factors.a
        folded = folded.T if isinstance(module, Conv1D) else folded
        changed[f"{name}.weight"] = folded.to(dtype).contiguous()
        if change.shift.any():
            bias = cast(Tensor, module.bias).double() + change.bias(matrix_of(module))
            changed[f"{name}.bias"] = bias.to(dtype)
    merged = plain_copy(subject.model, changed, dtype)
    check_finite(f"{subject.base.name} under {operator} in {dtype}", merged)
    try:
        with without_bars():
            merged.save_pretrained(folder, max_shard_size=SHARD)
    except SafetensorError as error:  # how its writer reports a full disk
        raise UserError(
            f"the merged model cannot be written to {folder.parent} ({first_line(error)}); free "
            "some space, or choose a folder on another disk."
        ) from error
    loaded_from(subject.model).tokenizer().save_pretrained(folder)


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


Files = AbstractContextManager[tuple[Callable[[Tensor], Tensor], str]]
"""A context in which logits come from files, with the dtype of what computes them."""


def read_back(
    kind: Kind, folder: Path, subject: Subject, operators: Sequence[Operator]
) -> Iterator[tuple[Operator, Files]]:
    """What the files in ``folder`` do, beside the operators that they should equal.

    Raises:
        UserError: files are damaged, or are for other modules than the readers.
    """
    config = subject.plain.config
    if kind == "merged":
        yield operators[0], _merged(folder, subject)
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
        yield partial(logits_of, plain), _dtype_of(plain)


@contextmanager
def _merged(folder: Path, subject: Subject) -> Iterator[tuple[Callable[[Tensor], Tensor], str]]:
    """The merged folder as plain transformers loads it."""
    trusted = loaded_from(subject.model).trust_remote_code
    with load_errors(str(folder), str(folder), "another export"), without_bars():
        merged = cast(
            Any,
            AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", attn_implementation="eager", trust_remote_code=trusted
            ),
        )
    yield partial(logits_of, merged.to(device_of(subject.model)).eval()), _dtype_of(merged)


def _dtype_of(plain: PreTrainedModel) -> str:
    return str(plain.dtype).removeprefix("torch.")
