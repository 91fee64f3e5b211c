"""The plain Hugging Face model behind a bridge, without the bridge and without a second copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ss_lens.core.errors import UserError
from ss_lens.exports.linear_map import LowRank
from ss_lens.models.integrity import check_complete
from ss_lens.models.load import without_bars

_WRAPPED = "_original_component"


def clean_name(name: str) -> str:
    """The name that a module or weight of a booted model has in the Hugging Face model."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED)


def plain_copy(
    model: TransformerBridge,
    changed: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The model without its bridge: no component is wrapped, and nothing is hooked.

    Booting changes a Hugging Face model for good, so a new one is made from its configuration. The
    weights are the bridge's own, in the same memory, so they are never to be changed in place; a
    cast to another ``dtype`` makes new ones.

    Args:
        model: as :func:`ss_lens.load_model` gives it.
        changed: weights by their name that take the place of the bridge's.
        dtype: of the copy; by default the model's own.

    Raises:
        UserError: no Hugging Face model, or one whose weights are quantised.
    """
    original, name = cast(Any, model.original_model), str(model.cfg.model_name)
    if not isinstance(original, PreTrainedModel):
        raise UserError(
            f"the model {name!r} is a {type(original).__name__}, expected a Hugging Face model: "
            "others have no format to be exported to. Use a model from ss_lens.load_model(...)."
        )
    config: Any = copy.deepcopy(original.config)
    settings = getattr(config, "quantization_config", None)
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if settings is not None and method != "gguf":
        raise UserError(
            f"the weights of {name!r} are quantised ({method or type(settings).__name__}), "
            "expected float32, bfloat16 or float16: the change would be lost in their steps. Load "
            "the model unquantised."
        )
    if settings is not None:
        del config.quantization_config  # the weights of a GGUF file were dequantised as it was read
    with torch.device("meta"):
        wanted = type(original)(config).state_dict().keys()
    held = {
        clean: tensor
        for key, tensor in (
            *original.named_parameters(remove_duplicate=False),
            *original.named_buffers(remove_duplicate=False),
        )
        if (clean := clean_name(key)) in wanted
    }
    with without_bars():
        plain, found = cast(
            Any,
            type(original).from_pretrained(
                None,
                config=config,
                state_dict={**held, **(changed or {})},
                dtype=dtype or model.cfg.dtype,
                output_loading_info=True,
            ),
        )
    check_complete(name, found)
    plain.generation_config = copy.deepcopy(original.generation_config)
    return plain.to(original.device).eval().requires_grad_(False)


def matrix_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """The weight of a linear module as ``[out, in]``; GPT-2's ``Conv1D`` stores the transpose."""
    weight = cast(Tensor, module.weight)
    return weight.T if isinstance(module, Conv1D) else weight


@torch.inference_mode()
def logits_of(plain: PreTrainedModel, ids: Int[Tensor, "token"]) -> Float[Tensor, "token vocab"]:
    """The logits at every token of one prompt, in at least float32."""
    return cast(Any, plain)(input_ids=ids[None], use_cache=False).logits[0].float()


@contextmanager
def adapted(
    plain: PreTrainedModel, *adapters: tuple[Mapping[str, LowRank], float]
) -> Iterator[PreTrainedModel]:
    """Add the factors of each adapter times its scale to the linear modules they are named for.

    As PEFT does: the product is taken in float32 and the module's own dtype returns.
    """
    with ExitStack() as stack:
        for factors, scale in adapters:
            for name, change in factors.items():
                module = plain.get_submodule(name)
                a, b = (half.to(plain.device, torch.float32) for half in (change.a, change.b))

                def add(
                    module: nn.Module,
                    args: tuple,
                    output: Tensor,
                    a: Tensor = a,
                    b: Tensor = b,
                    scale: float = scale,
                ) -> Tensor:
                    added = (args[0].float() @ a.T) @ b.T * scale
                    return (output + added).to(output.dtype)

                stack.callback(module.register_forward_hook(add).remove)
        yield plain
