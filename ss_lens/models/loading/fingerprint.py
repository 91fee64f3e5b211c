"""The identity of a loaded model: a fingerprint of its weights and of what computes with them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedConfig

from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.models.identity import ModelIdentity

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
