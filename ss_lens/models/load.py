"""Load a language model as a TransformerLens bridge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ss_lens.core.checks import check_flag, check_is
from ss_lens.core.errors import UserError
from ss_lens.core.resources import check_memory, in_gb
from ss_lens.models import adapters
from ss_lens.models.gguf.header import read_header
from ss_lens.models.gguf.weights import is_mapped, load_weights
from ss_lens.models.integrity import (
    check_complete,
    check_finite,
    check_folder,
    check_gguf_layers,
    load_errors,
    stored_numbers,
)
from ss_lens.models.loading.devices import DTYPES, device_named, dtype_named
from ss_lens.models.loading.places import Source, base_of, check_name, resolve
from ss_lens.models.sources import DEFAULT_MODEL, MODELS, embedded_in


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
            into the base model that it names; where that is no more than a folder's or a file's
            name, it is looked for in the working folder, then beside the adapter.
        device: ``auto`` takes the first of cuda, mps and cpu that is present.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto`` is bfloat16 on a GPU, else
            float32; ``fast`` is bfloat16 also on a CPU that multiplies it natively.
        revision: a Hub commit, branch or tag.
        trust_remote_code: run code from the model's repository. Only for code that you have read.

    A Hub token is taken from where the Hub client keeps it (``hf auth login`` or ``HF_TOKEN``).

    Raises:
        UserError: the name, device or dtype is unknown; the model is unavailable, damaged or
            incomplete, or holds numbers that are not finite; an adapter is damaged, more than a
            plain LoRA, or belongs to another base.
    """
    check_is("name", name, (str, Path), "a name or a path, such as 'smollm2-135m-refusal'")
    check_is("device", device, (str,), "a text: auto, cpu, cuda, cuda:N or mps")
    check_is("dtype", dtype, (str,), f"a text: auto, fast, {', '.join(DTYPES)}")
    check_is("revision", revision, (str, type(None)), "a commit, branch or tag, or None")
    check_flag("trust_remote_code", trust_remote_code)
    check_name(str(name))
    chosen_device = device_named(device)
    chosen_dtype = dtype_named(dtype, chosen_device)
    folder = adapters.adapter_folder(str(name))
    adapter = adapters.read_adapter(folder) if folder else None
    _check_registered(str(name) if adapter is None else adapter.base, chosen_dtype)
    source = resolve(str(name), revision) if adapter is None else base_of(adapter, revision)
    if source.described:
        check_folder(Path(source.place))
    with load_errors(str(name), source.place, DEFAULT_MODEL), without_bars():
        header = None if source.gguf is None else read_header(source.gguf)
        stored = stored_numbers(Path(source.place)) if header is None else header.n_parameters
        if stored:
            _check_memory(str(name), stored, chosen_dtype)
        options = {"trust_remote_code": trust_remote_code, **source.arguments()}
        tokenizer = AutoTokenizer.from_pretrained(source.place, **options)
        if header is not None and is_mapped(header):
            config = AutoConfig.from_pretrained(source.place, **options)
            hf_model, found = cast(Any, load_weights(header, config, chosen_dtype))
        else:
            hf_model, found = cast(
                Any,
                AutoModelForCausalLM.from_pretrained(
                    source.place, dtype=chosen_dtype, output_loading_info=True, **options
                ),
            )
        check_complete(str(name), found)
        if header is not None:
            check_gguf_layers(header, hf_model.config.get_text_config().num_hidden_layers)
        if adapter is not None:
            adapters.merge(hf_model, adapter)
        check_finite(str(name), hf_model)
        model = TransformerBridge.boot_transformers(
            str(name),
            hf_model=hf_model.to(chosen_device).eval(),
            tokenizer=tokenizer,
            device=chosen_device,
            dtype=chosen_dtype,
        )
    model.original_model.requires_grad_(False)  # also what booting split off, GPT-2's Q, K and V
    _loaded[model] = Loaded(source, trust_remote_code, folder)
    return model


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """The tokenizer of a model, as its files have it, without the model.

    Raises:
        UserError: the name is unknown, or the model is unavailable.
    """
    check_name(name)
    folder = adapters.adapter_folder(name)
    adapter = adapters.read_adapter(folder) if folder else None
    source = resolve(name, revision) if adapter is None else base_of(adapter, revision)
    with load_errors(name, source.place, DEFAULT_MODEL), without_bars():
        return AutoTokenizer.from_pretrained(source.place, **source.arguments())


@dataclass(frozen=True, eq=False)
class Loaded:
    """How a model was loaded: its source, and the folder of the adapter that was merged into it."""

    source: Source
    trust_remote_code: bool
    adapter: Path | None

    def tokenizer(self) -> Any:
        """The tokenizer as its files have it; TransformerLens gives a model one that it changed."""
        return AutoTokenizer.from_pretrained(
            self.source.place,
            trust_remote_code=self.trust_remote_code,
            **self.source.arguments(),
        )


_loaded: WeakKeyDictionary[TransformerBridge, Loaded] = WeakKeyDictionary()


def loaded_from(model: TransformerBridge) -> Loaded:
    """How :func:`load_model` made ``model``.

    Raises:
        UserError: it was made in another way.
    """
    if model not in _loaded:
        raise UserError(
            f"the model {str(model.cfg.model_name)!r} was not loaded by ss_lens.load_model, so its "
            "files are unknown; load it with ss_lens.load_model(...)."
        )
    return _loaded[model]


def _check_registered(name: str, dtype: torch.dtype) -> None:
    """Raise where a registered model is too large for the memory, before it is fetched."""
    embedded = embedded_in(name)
    registered = MODELS.get(embedded.base if embedded else name)
    if registered and registered.file and registered.file.n_parameters:
        _check_memory(name, registered.file.n_parameters, dtype)


def _check_memory(name: str, n_parameters: int, dtype: torch.dtype) -> None:
    remedy = "close what else is running, or choose a smaller model"
    if dtype.itemsize > 2:
        half = in_gb(2 * n_parameters)
        remedy = f"load it in bfloat16 ({half}), {remedy}"
    check_memory(
        dtype.itemsize * n_parameters,
        f"model {name!r} in {str(dtype).removeprefix('torch.')}",
        remedy,
    )


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bars and the report of transformers (the Hub client's download bars stay)."""
    shown = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
