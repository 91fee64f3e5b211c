"""The whole model with an operator folded into it: a folder of transformers, and a GGUF file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import gguf
import torch
from gguf import GGMLQuantizationType, quants
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ss_lens.core.errors import UserError, first_line
from ss_lens.core.replace import outside
from ss_lens.core.resources import check_disk, check_memory
from ss_lens.exports.gguf_lora import check_architecture, row_order, stem_of
from ss_lens.exports.plain import logits_of, plain_copy
from ss_lens.exports.subject import Subject
from ss_lens.geometry.operators import Operator
from ss_lens.models.gguf.header import read_header
from ss_lens.models.gguf.weights import is_mapped, load_weights
from ss_lens.models.integrity import check_complete, check_finite, load_errors
from ss_lens.models.load import loaded_from, without_bars
from ss_lens.models.loading.devices import device_of

Form = Literal["f16", "q8_0"]
"""How a GGUF file keeps the weights that change."""
FORMS: tuple[Form, ...] = get_args(Form)
SHARD, MERGED_GGUF = "2GB", "model.gguf"
ELSEWHERE = "choose an --out on another disk"
Judged = tuple[Callable[[Tensor], Tensor], str]
"""Token ids of one prompt → logits, and the dtype of what computes them."""
Files = AbstractContextManager[Judged]
"""A context in which logits come from files."""


def write_merged(folder: Path, subject: Subject, operator: Operator, dtype: torch.dtype) -> None:
    """Write the model with the operator folded into the readers' weights, in shards."""
    plain = subject.plain
    needed = sum(p.numel() for p in plain.parameters()) * dtype.itemsize
    check_disk(needed, folder, "the merged model", instead=ELSEWHERE)
    check_memory(
        needed, "merging the weights", "close what else is running, or use dtype='bfloat16'"
    )
    changed: dict[str, Tensor] = {}
    for name, matrix, bias in subject.folded(operator):
        stored = matrix.T if isinstance(plain.get_submodule(name), Conv1D) else matrix
        changed[f"{name}.weight"] = stored.to(dtype).contiguous()
        if bias is not None:
            changed[f"{name}.bias"] = bias.to(dtype)
    merged = plain_copy(subject.model, changed, dtype)
    check_finite(f"{subject.base.name} under {operator} in {dtype}", merged)
    try:
        with without_bars():
            merged.save_pretrained(folder, max_shard_size=SHARD)
    except SafetensorError as error:  # how its writer reports a full disk
        raise UserError(
            f"the merged model cannot be written to {outside(folder)} ({first_line(error)}); free "
            "some space, or choose a folder on another disk."
        ) from error
    loaded_from(subject.model).tokenizer().save_pretrained(folder)


@contextmanager
def merged_in(folder: Path, subject: Subject) -> Iterator[Judged]:
    """The merged folder as plain transformers loads it."""
    trusted = loaded_from(subject.model).trust_remote_code
    with load_errors(str(folder), str(folder), "another export"), without_bars():
        merged = cast(
            Any,
            AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", attn_implementation="eager", trust_remote_code=trusted
            ),
        )
    yield partial(logits_of, merged.to(device_of(subject.model)).eval()), dtype_of(merged)


def check_gguf_source(model: TransformerBridge) -> None:
    """Raise unless the model's own weights lie in a GGUF file that can be written again."""
    loaded = loaded_from(model)
    path = loaded.source.gguf
    remedy = "Leave gguf out, and convert the merged folder with llama.cpp's convert_hf_to_gguf.py."
    if path is None or loaded.adapter is not None:
        why = "came from no GGUF file" if path is None else "has an adapter merged into it"
        raise UserError(
            f"no GGUF file can be written for {str(model.cfg.model_name)!r}: it {why}, expected a "
            f"base whose vocabulary and other weights can be copied from one. {remedy}"
        )
    check_architecture(cast(Any, model.original_model).config)
    header = read_header(path)
    if not is_mapped(header):
        raise UserError(
            f"no GGUF file can be written for {str(path)!r}: its architecture "
            f"{header.architecture!r} is not read back here, expected llama, qwen2, qwen3, gemma2 "
            f"or gemma3. {remedy}"
        )


def write_merged_gguf(path: Path, subject: Subject, operator: Operator, form: Form) -> None:
    """Write the base's GGUF file with the readers' weights changed; all else is copied.

    The changed weights are kept in ``form``, their biases in float32.
    """
    source = loaded_from(subject.model).source.gguf
    assert source is not None, "checked by check_gguf_source"
    config, kind = subject.plain.config, GGMLQuantizationType[form.upper()]
    reader = gguf.GGUFReader(source)
    needed = source.stat().st_size * 2
    check_disk(needed, path.parent, "the merged GGUF file", instead=ELSEWHERE)
    changed: dict[str, tuple[Any, GGMLQuantizationType]] = {}
    for name, matrix, bias in subject.folded(operator):
        rows = row_order(name, len(matrix), config)
        array = matrix[rows].float().cpu().numpy()
        changed[f"{stem_of(name, config)}.weight"] = quants.quantize(array, kind), kind
        if bias is not None:
            shifted = bias[rows].float().cpu().numpy()
            changed[f"{stem_of(name, config)}.bias"] = shifted, GGMLQuantizationType.F32
    writer = gguf.GGUFWriter(path, read_header(source).architecture)
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue  # the writer's own
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    stored = [
        (tensor.name, *changed.pop(tensor.name, (tensor.data, tensor.tensor_type)))
        for tensor in reader.tensors
    ]
    assert not changed, changed.keys()
    for name, data, held in stored:
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, data, _ in stored:
        writer.write_tensor_data(data)
    writer.close()


@contextmanager
def merged_in_gguf(path: Path, subject: Subject) -> Iterator[Judged]:
    """The merged GGUF file, dequantised; its dtype is that of the weights that were changed."""
    header = read_header(path)
    name = f"{stem_of(subject.readers[0], subject.plain.config)}.weight"
    (kind,) = (tensor.kind for tensor in header.tensors if tensor.name == name)
    config = copy.deepcopy(subject.plain.config)
    with load_errors(str(path), str(path), "another export"), without_bars():
        merged, found = load_weights(header, config, subject.model.cfg.dtype)
    check_complete(str(path), found)
    plain = cast(Any, merged).to(device_of(subject.model)).eval()
    yield partial(logits_of, plain), GGMLQuantizationType(kind).name.lower()


def dtype_of(plain: PreTrainedModel) -> str:
    """The dtype of a model, as text."""
    return str(plain.dtype).removeprefix("torch.")
