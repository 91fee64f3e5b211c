"""What the names of devices and dtypes mean on this machine."""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_named(device: str) -> str:
    """The device that a name means; ``auto`` is the first of cuda, mps and cpu that is present."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UserError(
            f"device {device!r} is not available here; use auto, cpu, cuda, cuda:N or mps."
        ) from error
    return device


def dtype_named(dtype: str, device: str) -> torch.dtype:
    """The dtype that a name means.

    ``auto`` is bfloat16 on a GPU, else float32. ``fast`` is bfloat16 also on a CPU that multiplies
    it natively (AVX512-BF16 or AMX); it takes half the memory.
    """
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype == "fast":
        return torch.bfloat16 if device != "cpu" or _multiplies_bfloat16() else torch.float32
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; use auto, fast, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; elsewhere it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def device_of(model: TransformerBridge) -> torch.device:
    """Where the model computes."""
    return torch.device(model.cfg.device or "cpu")
