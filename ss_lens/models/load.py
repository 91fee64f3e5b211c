"""Load a language model as a TransformerLens bridge, and say exactly which one it is."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ss_lens.core.errors import UserError, first_line
from ss_lens.models import adapters
from ss_lens.models.sources import WHEEL_MODELS, fetch, weights_digest

DEFAULT_MODEL = "smollm2-135m-refusal"

PAPER_MODELS = {
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "gemma-2-2b": "google/gemma-2-2b-it",
    "gemma-2-9b": "google/gemma-2-9b-it",
}
"""Short names for the models of arXiv 2601.19375, all on the Hub."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelIdentity:
    """What must agree before activations or calibrations of two models may be combined."""

    name: str
    revision: str | None
    fingerprint: str | None
    n_layers: int
    d_model: int
    dtype: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Source:
    place: str
    gguf_file: str | None = None
    revision: str | None = None

    def arguments(self) -> dict[str, Any]:
        given = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {key: value for key, value in given.items() if value is not None}


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TransformerBridge:
    """Load a model and its tokenizer, in TransformerLens' raw mode, ready for hooks.

    Args:
        name: a registered name (``ss-lens models`` lists them), a Hub id, a local folder in the
            Hugging Face layout, or a ``.gguf`` file. A folder that holds a LoRA adapter is merged
            into the base model that it names.
        device: ``auto`` takes the first of cuda, mps and cpu that is present.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto`` is bfloat16 on a GPU, else
            float32.
        revision: a Hub commit, branch or tag.
        trust_remote_code: run code from the model's repository. Only for code that you have read.

    A Hub token is taken from where the Hub client keeps it (``hf auth login`` or ``HF_TOKEN``).

    Raises:
        UserError: the name, device or dtype is unknown, the model cannot be had, or an adapter is
            damaged or belongs to another base.
    """
    folder = adapters.adapter_folder(str(name))
    adapter = adapters.read_adapter(folder) if folder else None
    source = _resolve(str(name), revision) if adapter is None else _base_of(adapter, revision)
    chosen_device = device_named(device)
    chosen_dtype = dtype_named(dtype, chosen_device)
    with _load_errors(str(name)), without_bars():
        tokenizer = AutoTokenizer.from_pretrained(
            source.place, trust_remote_code=trust_remote_code, **source.arguments()
        )
        hf_model = AutoModelForCausalLM.from_pretrained(
            source.place,
            dtype=chosen_dtype,
            trust_remote_code=trust_remote_code,
            **source.arguments(),
        )
        if adapter is not None:
            adapters.merge(hf_model, adapter)
        model = TransformerBridge.boot_transformers(
            str(name),
            hf_model=cast(Any, hf_model).to(chosen_device).eval(),
            tokenizer=tokenizer,
            device=chosen_device,
            dtype=chosen_dtype,
        )
    model.original_model.requires_grad_(False)  # also what booting split off, GPT-2's Q, K and V
    return model


def _resolve(name: str, revision: str | None) -> _Source:
    if name in WHEEL_MODELS:
        return _Source(str(fetch(name)))
    if name in PAPER_MODELS:
        return _Source(PAPER_MODELS[name], revision=revision)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"there is no file {path}; check the path.")
        return _Source(str(path.parent), gguf_file=path.name)
    if path.is_dir():
        return _Source(str(path))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _Source(name, revision=revision)
    known = [*adapters.EMBEDDED_ADAPTERS, *WHEEL_MODELS, *PAPER_MODELS]
    near = difflib.get_close_matches(name, known, n=1)
    raise UserError(
        f"unknown model {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} Expected one of "
        f"{', '.join(known)}, a Hub id like Qwen/Qwen2.5-1.5B-Instruct, a local folder, or a .gguf "
        "file."
    )


def _base_of(adapter: adapters.Adapter, revision: str | None) -> _Source:
    try:
        source = _resolve(adapter.base, revision)
    except UserError as error:
        raise UserError(
            f"the base model of the adapter at {adapter.folder} is missing: {error}"
        ) from error
    if Path(source.place).is_dir():
        adapters.check_base(adapter, weights_digest(Path(source.place)))
    return source


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
    """The dtype that a name means; ``auto`` is bfloat16 on a GPU, else float32."""
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype not in _DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; use auto, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


@contextmanager
def _load_errors(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:  # says already what to do
        raise
    except (OSError, ValueError, SafetensorError) as error:  # of transformers and the Hub client
        raise UserError(
            f"model {name!r} could not be loaded: {first_line(error)} "
            "Check the name or path; the first load from the Hub needs a network, and a gated "
            f"model needs its terms accepted and `hf auth login`. {DEFAULT_MODEL} comes from the "
            "package index instead."
        ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the weight-loading bars (the Hub client's download bars are separate and stay)."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def device_of(model: TransformerBridge) -> torch.device:
    """Where the model computes."""
    return torch.device(model.cfg.device or "cpu")


_fingerprints: WeakKeyDictionary[TransformerBridge, tuple[Any, str]] = WeakKeyDictionary()


def identify(model: TransformerBridge) -> ModelIdentity:
    """The identity of a loaded model; its fingerprint covers configuration and every parameter.

    The fingerprint is remembered until a parameter is replaced or changed in place. An edit through
    ``.data`` is hidden from torch's version counter, and so from this.

    Raises:
        UserError: the model is in compatibility mode, whose folded norm gains change every
            activation.
    """
    if model.compatibility_mode:
        raise UserError(
            "the model is in TransformerLens' compatibility mode, which folds the norm gains into "
            "the weights and so changes every calibration; load it again and stay in raw mode."
        )
    weights = list(model.original_model.named_parameters())
    state = tuple((tensor.data_ptr(), tensor._version) for _, tensor in weights)
    remembered = _fingerprints.get(model)
    if remembered is None or remembered[0] != state:
        digest = hashlib.sha256(_configuration(model).encode())
        for name, tensor in weights:
            clean = name.replace("_original_component.", "")
            digest.update(f"{clean}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        remembered = (state, digest.hexdigest())
        _fingerprints[model] = remembered
    return ModelIdentity(
        name=str(model.cfg.model_name),
        revision=getattr(model.original_model.config, "_commit_hash", None),
        fingerprint=remembered[1],
        n_layers=model.cfg.n_layers,
        d_model=model.cfg.d_model,
        dtype=str(model.cfg.dtype).removeprefix("torch."),
    )


def _configuration(model: TransformerBridge) -> str:
    """What else the computation depends on: the settings that differ from the defaults."""
    settings = cast(Any, model.original_model).config.to_diff_dict()
    for irrelevant in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        settings.pop(irrelevant, None)
    return json.dumps(settings, sort_keys=True, default=str)
