"""Load a language model as a TransformerLens bridge, and say exactly which one it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from ss_lens.core.checks import check_flag, check_is, described
from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import sha256_of_file
from ss_lens.core.progress import progress_bar
from ss_lens.core.resources import check_memory, in_gb
from ss_lens.models import adapters
from ss_lens.models.delivery.kept import GGUF
from ss_lens.models.fetching import fetch, weights_digest
from ss_lens.models.gguf.header import read_header
from ss_lens.models.gguf.weights import is_mapped, load_weights
from ss_lens.models.identity import ModelIdentity, is_hub_id, last_part
from ss_lens.models.integrity import (
    check_complete,
    check_finite,
    check_folder,
    check_gguf,
    check_gguf_layers,
    load_errors,
    stored_numbers,
)
from ss_lens.models.sources import DEFAULT_MODEL, MODELS, Hub, embedded_in, unknown_model

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where a model is read from.

    Attributes:
        place: a folder, or an id on the Hub; of its configuration and its tokenizer.
        gguf: the file that holds the weights, where that is a GGUF file.
        described: whether the folder has its configuration and tokenizer beside it.
        revision: on the Hub.
    """

    place: str
    gguf: Path | None = None
    described: bool = True
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder that holds weights, configuration and tokenizer, where it is on this disk."""
        path = Path(self.place)
        return path if self.described and path.is_dir() else None

    def arguments(self) -> dict[str, Any]:
        gguf_file = None if self.described or self.gguf is None else self.gguf.name
        given = {"gguf_file": gguf_file, "revision": self.revision}
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
    check_is("dtype", dtype, (str,), f"a text: auto, fast, {', '.join(_DTYPES)}")
    check_is("revision", revision, (str, type(None)), "a commit, branch or tag, or None")
    check_flag("trust_remote_code", trust_remote_code)
    _check_name(str(name))
    chosen_device = device_named(device)
    chosen_dtype = dtype_named(dtype, chosen_device)
    folder = adapters.adapter_folder(str(name))
    adapter = adapters.read_adapter(folder) if folder else None
    _check_registered(str(name) if adapter is None else adapter.base, chosen_dtype)
    source = _resolve(str(name), revision) if adapter is None else _base_of(adapter, revision)
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
    _check_name(name)
    folder = adapters.adapter_folder(name)
    adapter = adapters.read_adapter(folder) if folder else None
    source = _resolve(name, revision) if adapter is None else _base_of(adapter, revision)
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


def _check_name(name: str) -> None:
    """Raise for a name that no path can have, before anything is looked up under it."""
    try:
        Path(name).expanduser().stat()
    except FileNotFoundError:
        return
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, ~nobody, NUL
        if isinstance(error, NotADirectoryError):
            return
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise UserError(
            f"the model {described(name)} cannot be looked up ({reason}); check the name or path."
        ) from error


def _resolve(name: str, revision: str | None) -> Source:
    source = _place_of(name, revision)
    if revision is not None and source.revision is None:
        raise UserError(
            f"revision={revision!r} is for models on the Hub, and {name!r} is not one; leave it "
            "out."
        )
    return source


def _place_of(name: str, revision: str | None) -> Source:
    if name in MODELS:
        first = MODELS[name].sources[0]
        if isinstance(first, Hub):
            return Source(first.repository, revision=revision)
        return _in_folder(fetch(name))
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        check_gguf(path)
        return Source(str(path.parent), gguf=path, described=False)
    if path.is_dir():
        return _in_folder(path)
    if is_hub_id(name):
        return Source(name, revision=revision)
    raise unknown_model(name)


def _in_folder(folder: Path) -> Source:
    """A local folder; one that was fetched may keep its weights as a GGUF file."""
    kept = folder / GGUF
    fetched = (folder / "source.json").is_file() and kept.is_file()
    return Source(str(folder), gguf=kept if fetched else None)


def _base_of(adapter: adapters.Adapter, revision: str | None) -> Source:
    base = _base_beside(adapter) or adapter.base
    if adapters.adapter_folder(base):
        raise UserError(
            f"the adapter at {adapter.folder} is for {adapter.base!r}, which is an adapter itself, "
            "expected a base with weights of its own. Write that base as one model (ss-lens export "
            "--as merged --angle 0), and name its folder as base_model_name_or_path in "
            f"{adapters.CONFIG}."
        )
    try:
        source = _resolve(base, revision or adapter.revision)
    except UserError as error:
        alone = base == last_part(base) and base not in MODELS
        beside = f" Put {base!r}, or a link to it, beside the adapter's folder." if alone else ""
        raise type(error)(  # also where it is Unavailable, which a caller may fall back on
            f"the base model of the adapter at {adapter.folder} is missing: {error}{beside}"
        ) from error
    if source.folder:
        adapters.check_base(adapter, weights_digest(source.folder))
    elif source.gguf and adapter.base_sha256:
        adapters.check_base(adapter, sha256_of_file(source.gguf))
    return source


def _base_beside(adapter: adapters.Adapter) -> str | None:
    """The base beside the adapter's folder, where the adapter has no more than its name.

    An export names a local base so. A registered name and a path in the working folder go first.
    """
    name = adapter.base
    if name != last_part(name) or name in MODELS or Path(name).exists():
        return None
    beside = Path(os.path.abspath(adapter.folder)).parent / name
    return str(beside) if beside.exists() else None


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
    if dtype not in _DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; use auto, fast, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; elsewhere it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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


def device_of(model: TransformerBridge) -> torch.device:
    """Where the model computes."""
    return torch.device(model.cfg.device or "cpu")


_fingerprints: WeakKeyDictionary[TransformerBridge, tuple[Any, str]] = WeakKeyDictionary()


def identify(model: TransformerBridge) -> ModelIdentity:
    """The identity of a loaded model; its fingerprint covers every parameter and every setting.

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
    state = tuple((w.data_ptr(), w._version) for _, w in model.original_model.named_parameters())
    remembered = _fingerprints.get(model)
    if remembered is None or remembered[0] != state:
        settings = computing_settings(cast(Any, model.original_model).config.to_dict())
        remembered = (state, _digest(model, json.dumps(settings, sort_keys=True, default=str)))
        _fingerprints[model] = remembered
    return ModelIdentity(
        name=str(model.cfg.model_name),
        revision=getattr(model.original_model.config, "_commit_hash", None),
        fingerprint=remembered[1],
        n_layers=model.cfg.n_layers,
        d_model=model.cfg.d_model,
        dtype=str(model.cfg.dtype).removeprefix("torch."),
    )


def is_identified_by(model: TransformerBridge, fingerprint: str) -> bool:
    """Whether ``fingerprint`` is this model's, in today's form or in that of version 0.1.

    The earlier form covered the settings that differ from the library's defaults, so it holds as
    long as the library is of the version that it was made with.
    """
    if fingerprint == identify(model).fingerprint:
        return True
    settings = cast(Any, model.original_model).config.to_diff_dict()
    for irrelevant in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        settings.pop(irrelevant, None)
    return fingerprint == _digest(model, json.dumps(settings, sort_keys=True, default=str))


def _digest(model: TransformerBridge, settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    parameters = [*model.original_model.named_parameters()]
    with progress_bar(sum(w.nbytes for _, w in parameters), "fingerprint", "B") as bar:
        for name, tensor in parameters:
            clean = name.replace("_original_component.", "")
            digest.update(f"{clean}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            bar.update(tensor.nbytes)
    return digest.hexdigest()


_BESIDE_THE_COMPUTATION = re.compile(
    r"_.*|.*_token_id|.*dropout.*|.*_pdrop|summary_.*|initializer_.*|use_cache|pretraining_tp|"
    r"output_router_logits|router_aux_loss_coef|gradient_checkpointing|torch_dtype|auto_map"
)
"""Settings of training, of generation, of classification heads, and names."""


def computing_settings(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """The settings that a forward pass depends on, whichever version of the library lists them.

    All are taken at their value, so that a default counts as if it were written down. What is off
    (``None``, ``False``, empty) counts as absent, since new settings of a library begin so.
    """
    general = PreTrainedConfig().to_dict().keys() - {"model_type"}
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = None if value.get("quant_method") == "gguf" else computing_settings(value)
        off = value is None or value is False or (isinstance(value, list | dict) and not value)
        if not off and key not in general and not _BESIDE_THE_COMPUTATION.fullmatch(str(key)):
            kept[str(key)] = value
    return kept
