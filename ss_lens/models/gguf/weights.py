"""The weights of a GGUF file as a model's own tensors, dequantised piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from ss_lens.core.progress import progress_bar
from ss_lens.models.gguf.header import Header, StoredTensor

_PIECE = 1 << 17
"""Numbers that are dequantised at a time: their float32 temporaries stay in a core's cache."""
_MAPPED = frozenset({"llama", "qwen2", "qwen3", "gemma2", "gemma3"})
_PLAIN = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
}


def is_mapped(header: Header) -> bool:
    """Whether each tensor of the file is one of the model; others are left to transformers."""
    return header.architecture in _MAPPED


def load_weights(
    header: Header, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a GGUF file, and the loading information of transformers.

    Each tensor is read, dequantised and cast in pieces into memory that then is the model's own
    parameter: there is no second copy, and the file is not mapped. The numbers are those of the
    ``gguf`` package, bit for bit.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    total = sum(tensor.n_bytes for tensor in header.tensors)
    with progress_bar(total, f"reading {header.path.name}", "B") as bar:
        weights = dict(_tensors(header, skeleton, config, dtype, bar))
    return type(skeleton).from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )


def _tensors(
    header: Header,
    skeleton: nn.Module,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    bar: tqdm,
) -> Iterator[tuple[str, Tensor]]:
    """Names as transformers has them, and tensors in its layout."""
    settings = config.to_dict()
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=settings)
    names = _names(header, skeleton, processor)
    as_stored = type(processor).process is TensorProcessor.process
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        for tensor in header.tensors:
            if as_stored:
                if tensor.name in names:
                    yield names[tensor.name], dequantised(header, tensor, dtype, threads)
                bar.update(tensor.n_bytes)
                continue
            # Some layouts differ: rows are permuted, or a norm's gain is one less.
            made = processor.process(
                weights=dequantised(header, tensor, torch.float32, threads).numpy(),
                name=tensor.name,
                tensor_key_mapping=names,
                parsed_parameters={"config": settings},
            )
            if made.name in names:
                array = np.ascontiguousarray(made.weights)
                yield names[made.name], torch.from_numpy(array).to(dtype)
            bar.update(tensor.n_bytes)


def _names(header: Header, skeleton: nn.Module, processor: TensorProcessor) -> dict[str, str]:
    """From a tensor's name in the file to its name in the model.

    transformers looks every module up again by itself, for models whose own names lack a prefix.
    That takes seconds, and is left out where the whole model's names cover the file.
    """
    names = get_gguf_hf_weights_map(_Whole(skeleton), processor)
    if all(tensor.name in names for tensor in header.tensors):
        return names
    return get_gguf_hf_weights_map(skeleton, processor)


class _Whole:
    """A model as one module without children."""

    def __init__(self, model: Any) -> None:
        self.config, self.state_dict = model.config, model.state_dict

    def named_children(self) -> tuple[()]:
        return ()


def dequantised(
    header: Header, tensor: StoredTensor, dtype: torch.dtype, threads: ThreadPoolExecutor
) -> Tensor:
    """One tensor of the file in ``dtype``, in the file's layout."""
    kind = GGMLQuantizationType(tensor.kind)
    numbers, width = GGML_QUANT_SIZES[kind]
    out = torch.empty(prod(tensor.shape), dtype=dtype)
    blocks = max(1, _PIECE // numbers)
    total = tensor.n_bytes // width

    def piece(first: int) -> None:
        count = min(blocks, total - first)
        data = np.fromfile(
            header.path, np.uint8, count * width, offset=tensor.start + first * width
        )
        begin = first * numbers
        out[begin : begin + count * numbers] = torch.from_numpy(_values(data, kind, width))

    for _ in threads.map(piece, range(0, total, blocks)):
        pass
    return out.reshape(tensor.shape)


def _values(data: np.ndarray, kind: GGMLQuantizationType, width: int) -> np.ndarray:
    if kind in _PLAIN:
        return data.view(_PLAIN[kind]).astype(np.float32)
    if kind is GGMLQuantizationType.BF16:
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    quant = getattr(quants, kind.name, None)
    if quant is None:
        raise NotImplementedError(f"the format {kind.name} cannot be dequantised.")
    quant.init_grid()
    return quant.dequantize_blocks(data.reshape(-1, width)).reshape(-1)
