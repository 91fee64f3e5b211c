"""llama.cpp's own server on a model that is also loaded here: its file and its start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import xllamacpp

from ss_lens.integrations.llama_cpp import Answer, Scales, ask


def write_dequantised(source: Path, path: Path, form: Literal["f32", "f16"]) -> None:
    """Copy a GGUF file with every matrix in floats: the server then computes what is loaded here.

    Where weights are quantised, llama.cpp rounds activations to 8 bits as well. Other tensors, such
    as norms, are in float32 either way.
    """
    reader, kind = gguf.GGUFReader(source), gguf.GGMLQuantizationType[form.upper()]
    forms = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
    writer = gguf.GGUFWriter(path, reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    own = (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE)
    for field in reader.fields.values():
        if field.name in own or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(forms[form])
    for tensor in reader.tensors:
        kept = np.dtype(np.float16 if form == "f16" and len(tensor.shape) > 1 else np.float32)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        writer.add_tensor_info(tensor.name, shape, kept, math.prod(shape) * kept.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.write_tensor_data(gguf.quantize(array, kind) if array.ndim > 1 else array)
    writer.close()


class Server:
    """A running server, with four requests at once; it ends with this object."""

    def __init__(
        self, model: Path, adapters: Sequence[Path], *, context: int, threads: int, exact: bool
    ) -> None:
        """Start it.

        Args:
            model: a GGUF file.
            adapters: of llama.cpp; none is applied unless a request asks for it.
            context: tokens of a prompt and its answer.
            threads: of the CPU.
            exact: keys and values in float32, and no attention in half precision.
        """
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(model)
        given = []
        for path in adapters:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(path), 0.0
            given.append(adapter)
        parameters.lora_adapters, parameters.lora_init_without_apply = given, True
        parameters.port, parameters.n_parallel, parameters.n_ctx = 0, 4, 4 * context
        parameters.n_gpu_layers, parameters.warmup, parameters.verbosity = 0, False, 0
        for pool in (parameters.cpuparams, parameters.cpuparams_batch):
            pool.n_threads = threads
        if exact:
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.flash_attn_type = off
        self._server = xllamacpp.Server(parameters)

    @property
    def address(self) -> str:
        return self._server.listening_address

    def ask(self, ids: Sequence[int], scales: Scales, **how: Any) -> Answer:
        """As :func:`ss_lens.integrations.llama_cpp.ask`."""
        return ask(self.address, ids, scales, **how)
