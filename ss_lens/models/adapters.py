"""Low-rank adapters: read a PEFT folder, check that it belongs to the base, merge it exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import read_json

EMBEDDED_ADAPTERS = {"smollm2-135m-refusal": "refusal_adapter"}
"""Adapters that the package carries, by the name of the model that they make."""

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
}
"""What plain LoRA looks like; any other setting would make another merge than the one below."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter (arXiv 2106.09685): each module's weight W becomes W + scale · B A.

    Attributes:
        folder: where it was read from.
        base: the name, Hub id or folder of the model that it was trained on.
        base_sha256: checksum of that model's weight file, where the adapter records it.
        scale: alpha / rank.
        factors: module name → (A ``[rank, in]``, B ``[out, rank]``).
    """

    folder: Path
    base: str
    base_sha256: str | None
    scale: float
    factors: dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]


def adapter_folder(name: str) -> Path | None:
    """The adapter that ``name`` means: an embedded one, or a folder that PEFT wrote."""
    if name in EMBEDDED_ADAPTERS:
        return Path(str(resources.files("ss_lens.models"))) / "embedded" / EMBEDDED_ADAPTERS[name]
    path = Path(name).expanduser()
    return path if (path / CONFIG).is_file() else None


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter folder.

    Raises:
        UserError: not plain LoRA, or its files are missing or damaged.
    """
    config = read_json(folder / CONFIG, "adapter configuration")
    for key, allowed in _PLAIN.items():
        if config.get(key) not in allowed:
            raise UserError(
                f"the adapter at {folder} has {key}={config.get(key)!r}, expected "
                f"{allowed[0]!r}: only plain LoRA can be merged here. Merge it with PEFT and load "
                "the merged folder."
            )
    tensors, metadata = _read_weights(folder)
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, half = key.removeprefix("base_model.model.").rpartition(".lora_")
        halves.setdefault(module, {})[half.removesuffix(".weight")] = tensor
    rank = config.get("r")
    for module, pair in halves.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            raise UserError(
                f"the adapter at {folder} is damaged: module {module!r} holds "
                f"{', '.join(f'{k} {tuple(v.shape)}' for k, v in sorted(pair.items()))}, expected "
                f"A [{rank}, in] and B [out, {rank}]. Fetch it again."
            )
    return Adapter(
        folder,
        str(config["base_model_name_or_path"]),
        metadata.get("base_sha256"),
        config["lora_alpha"] / rank,
        {module: (pair["A"], pair["B"]) for module, pair in halves.items()},
    )


def merge(model: nn.Module, adapter: Adapter) -> None:
    """Add the adapter to the model's weights, in place.

    The product is taken in float64. Factors in half precision have 11 significant bits, so it and
    its sum over the rank are exact there, and the merged weights are the same on every machine,
    bit for bit; so is the fingerprint that calibrations are checked by.

    Raises:
        UserError: the model lacks a module of the adapter, or has it in another shape.
    """
    for module, a, b, weight in _targets(model, adapter):
        change = adapter.scale * (b.double() @ a.double()).to(weight.device)
        assert change.shape == weight.shape, module
        with torch.no_grad():
            weight.copy_(weight.double() + change)


def check_base(adapter: Adapter, base_sha256: str | None) -> None:
    """Raise a :class:`UserError` when the base's weight file is not the one of the training."""
    if adapter.base_sha256 and base_sha256 and adapter.base_sha256 != base_sha256:
        raise UserError(
            f"the adapter at {adapter.folder} was trained on other weights of {adapter.base!r} "
            f"(SHA-256 {adapter.base_sha256[:12]}) than those here ({base_sha256[:12]}). Train it "
            "again on these, or fetch the base that it names."
        )


def _targets(model: nn.Module, adapter: Adapter) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Module name, A, B and the weight to change; everything is checked before the first one."""
    found = []
    for module, (a, b) in adapter.factors.items():
        try:
            weight = model.get_parameter(f"{module}.weight")
        except AttributeError:
            raise _other_base(adapter, f"it has no module {module!r}") from None
        wanted = (b.shape[0], a.shape[1])
        if tuple(weight.shape) != wanted:
            raise _other_base(adapter, f"{module!r} is {tuple(weight.shape)}, expected {wanted}")
        found.append((module, a, b, weight))
    return found


def _other_base(adapter: Adapter, difference: str) -> UserError:
    return UserError(
        f"the adapter at {adapter.folder} belongs to another base model ({adapter.base!r}): in the "
        f"one loaded here {difference}. Load the adapter with the base that it was trained on."
    )


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(
            f"the adapter's weights {path} are missing or damaged ({first_line(error)}). Fetch the "
            "adapter (for an embedded one: install ss_lens) again."
        ) from error
