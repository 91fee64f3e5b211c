"""Low-rank adapters: read a PEFT folder, check that it belongs to the base, merge it exactly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ss_lens.core.checks import described
from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import read_json
from ss_lens.models.integrity import is_finite
from ss_lens.models.lora_targets import LoraTargets
from ss_lens.models.sources import embedded_in

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
"""Where plain LoRA has a value; the other ways to begin (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, MiCA)
also change the base's own weights, whenever PEFT loads the adapter."""

_WITHOUT_EFFECT = frozenset(
    {
        *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules"),
        *("exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
        *("eva_config", "qalora_group_size", "runtime_config"),
    }
)
"""Settings that the product of the factors does not depend on, or that say which factors there are.

Any other setting must be off: PEFT grows variants of LoRA (DoRA, aLoRA, BD-LoRA, KaSA, ...), and
each is a setting of its own.
"""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter (arXiv 2106.09685): each module's weight W becomes W + scale · B A.

    Attributes:
        folder: where it was read from.
        base: the name, Hub id or folder of the model that it was trained on.
        revision: of the base on the Hub, where the adapter names one.
        base_sha256: checksum of that model's weight file, where the adapter records it.
        scale: alpha / rank.
        factors: module name → (A ``[rank, in]``, B ``[out, rank]``).
        targets: which modules its configuration gives factors to.
    """

    folder: Path
    base: str
    revision: str | None
    base_sha256: str | None
    scale: float
    factors: dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]
    targets: LoraTargets


def adapter_folder(name: str) -> Path | None:
    """The adapter that ``name`` means: an embedded one, or a folder that PEFT wrote."""
    if source := embedded_in(name):
        return Path(str(resources.files("ss_lens.models"))) / "embedded" / source.folder
    path = Path(name).expanduser()
    return path if (path / CONFIG).is_file() else None


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter folder.

    Raises:
        UserError: more than plain LoRA, or its files are missing or damaged.
    """
    config = read_json(folder / CONFIG, "adapter configuration", remedy="fetch the adapter again")
    rank, alpha, base, revision = _checked(config, folder)
    targets = LoraTargets.of(config)
    if targets is None:
        raise UserError(
            f"the adapter configuration at {folder / CONFIG} is damaged: its target_modules, "
            "exclude_modules, layers_to_transform or layers_pattern cannot be read. Fetch the "
            "adapter again."
        )
    tensors, metadata = _read_weights(folder)
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise UserError(
                f"the adapter at {folder} holds {key!r}, expected lora_A and lora_B of modules "
                "only: only plain LoRA can be merged here. Merge it with PEFT and load the merged "
                "folder."
            )
        if not tensor.is_floating_point() or not is_finite(tensor):
            raise UserError(
                f"the adapter at {folder} is damaged: {key!r} holds NaN, infinity or no floats "
                f"({str(tensor.dtype).removeprefix('torch.')}). Fetch it again, or train it again."
            )
        halves.setdefault(match[1], {})[match[2]] = tensor
    for module, pair in halves.items():
        if (
            set(pair) != {"A", "B"}
            or any(half.ndim != 2 for half in pair.values())
            or (pair["A"].shape[0], pair["B"].shape[1]) != (rank, rank)
        ):
            raise UserError(
                f"the adapter at {folder} is damaged: module {module!r} holds "
                f"{', '.join(f'{k} {tuple(v.shape)}' for k, v in sorted(pair.items()))}, expected "
                f"A [{rank}, in] and B [out, {rank}]. Fetch it again."
            )
    if not halves:
        raise UserError(f"the adapter at {folder} is damaged: it holds no tensor. Fetch it again.")
    return Adapter(
        folder,
        base,
        revision,
        metadata.get("base_sha256"),
        alpha / rank,
        {module: (pair["A"], pair["B"]) for module, pair in halves.items()},
        targets,
    )


def _checked(config: Any, folder: Path) -> tuple[int, float, str, str | None]:
    """Rank, alpha, base and its revision of a configuration that is one of plain LoRA."""
    if not isinstance(config, dict):
        raise UserError(
            f"the adapter configuration at {folder / CONFIG} is damaged (no object); fetch the "
            "adapter again."
        )
    for key in (*_PLAIN, *(config.keys() - _PLAIN.keys() - _WITHOUT_EFFECT)):
        value = config.get(key, None)
        off = value is None or value is False or value in ({}, [], "")
        if value in _PLAIN[key] if key in _PLAIN else off:
            continue
        wanted = _PLAIN[key][0] if key in _PLAIN else False if value is True else None
        raise UserError(
            f"the adapter at {folder} has {key}={described(value)}, expected {wanted!r}: only "
            "plain LoRA can be merged here. Merge it with PEFT and load the merged folder."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    for key, value, fits in (
        ("r", rank, isinstance(rank, int) and rank > 0),
        ("lora_alpha", alpha, isinstance(alpha, int | float) and abs(alpha) < 1e300),
        ("base_model_name_or_path", base, isinstance(base, str) and base),
        ("revision", revision, revision is None or isinstance(revision, str)),
    ):
        if not fits or isinstance(value, bool):
            raise UserError(
                f"the adapter configuration at {folder / CONFIG} is damaged: {key} is "
                f"{described(value)}. Fetch the adapter again."
            )
    return cast(int, rank), float(cast(float, alpha)), cast(str, base), cast(str | None, revision)


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
    found, modules = [], dict(model.named_modules())
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for module, (a, b) in adapter.factors.items():
        if module not in modules:
            raise _other_base(adapter, f"it has no module {module!r}")
        weight, wanted = getattr(modules[module], "weight", None), (b.shape[0], a.shape[1])
        if not adapter.targets.name(module):
            raise UserError(
                f"the adapter at {adapter.folder} is damaged: it has factors for {module!r}, which "
                "its configuration does not name, so PEFT would leave them out. Fetch it again."
            )
        if not isinstance(modules[module], nn.Linear) or not isinstance(weight, nn.Parameter):
            raise _not_plain(adapter, module, f"is a {type(modules[module]).__name__}, no Linear")
        if tuple(weight.shape) != wanted:
            raise _other_base(adapter, f"{module!r} is {tuple(weight.shape)}, expected {wanted}")
        if uses[id(weight)] > 1:
            raise _not_plain(adapter, module, "shares its weight with another module")
        found.append((module, a, b, weight))
    for name, module in modules.items():
        named = not adapter.targets.is_open and adapter.targets.name(name)
        if named and isinstance(module, nn.Linear) and name not in adapter.factors:
            raise UserError(
                f"the adapter at {adapter.folder} is damaged: it has no factors for {name!r}, "
                "which its target_modules name. Fetch it again."
            )
    return found


def _not_plain(adapter: Adapter, module: str, why: str) -> UserError:
    return UserError(
        f"the adapter at {adapter.folder} changes {module!r}, which {why}: only the weights of "
        "linear modules can be merged here. Merge it with PEFT and load the merged folder."
    )


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
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the adapter's weights {path} are missing or damaged ({first_line(error)}). Fetch the "
            "adapter (for an embedded one: install ss_lens) again."
        ) from error
