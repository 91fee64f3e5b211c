"""llama.cpp's own server on a model that is also loaded here: its file, its start, its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.request import Request, urlopen

import gguf
import numpy as np
import xllamacpp

Scales = list[dict[str, float]]
PATIENCE = 3600.0
"""Seconds to wait for an answer."""


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


def turned(angle_deg: float) -> Scales:
    """What a request sends to turn a dial: a scale for each of its two adapters."""
    angle = math.radians(angle_deg)
    return [{"id": 0, "scale": math.cos(angle) - 1}, {"id": 1, "scale": math.sin(angle)}]


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its tokens, and the log-probabilities of the likeliest at each of them."""

    tokens: tuple[int, ...]
    likeliest: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...]


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

    def ask(
        self,
        ids: Sequence[int],
        scales: Scales,
        *,
        new: int,
        listed: int,
        whole_length: bool = False,
    ) -> Answer:
        """The greedy answer to a prompt.

        Args:
            ids: whole prompt, template included.
            scales: of the adapters.
            new: where the answer is cut off.
            listed: how many log-probabilities to send for each token.
            whole_length: go on after a stop token.
        """
        told = self._post(
            {
                **{"prompt": [*ids], "n_predict": new, "temperature": 0, "top_k": 1},
                **{"n_probs": listed, "lora": scales, "ignore_eos": whole_length},
                "cache_prompt": False,  # else keys and values of other scales would be used again
            }
        )
        places = told.get("completion_probabilities", [])
        rows = [{t["id"]: t["logprob"] for t in place["top_logprobs"]} for place in places]
        return Answer(
            tuple(place["id"] for place in places),
            tuple(max(row, key=row.__getitem__) for row in rows),
            tuple(rows),
        )

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        request = Request(
            f"{self.address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)
