"""Independent oracles: an untouched Hugging Face model with plain PyTorch hooks, unpadded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ss_lens import Plane, Site

Edit = Callable[[Tensor], Tensor]

# (norm before attention, norm after it, norm before the MLP, norm after it)
_NORMS = {
    "gpt2": ("ln_1", None, "ln_2", None),
    "gemma": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "llama": ("input_layernorm", None, "post_attention_layernorm", None),
}


class HuggingFaceOracle:
    """One model folder, loaded by transformers alone and run one prompt at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        kind = self.model.config.model_type
        self.family = "gpt2" if kind == "gpt2" else "gemma" if "gemma" in kind else "llama"
        base = self.model.base_model
        self.blocks: Sequence[nn.Module] = base.h if self.family == "gpt2" else base.layers

    def ids(self, prompt: str) -> Tensor:
        """The templated prompt as ``[1, token]``."""
        encoded = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        return encoded["input_ids"]

    def streams(self) -> tuple[str, ...]:
        """Every stream that the architecture has, by hand."""
        gemma = ("ln1_post_out", "ln2_post_out") if self.family == "gemma" else ()
        return ("resid_pre", "ln1_out", "resid_mid", "ln2_out", "resid_post", *gemma)

    def norm(self, layer: int, which: int) -> nn.Module:
        name = _NORMS[self.family][which]
        assert name is not None
        return getattr(self.blocks[layer], name)

    def place(self, site: Site) -> tuple[nn.Module, str]:
        """The module whose input or output is the site's activation."""
        return {
            "resid_pre": lambda: (self.blocks[site.layer], "input"),
            "ln1_out": lambda: (self.norm(site.layer, 0), "output"),
            "ln1_post_out": lambda: (self.norm(site.layer, 1), "output"),
            "resid_mid": lambda: (self.norm(site.layer, 2), "input"),
            "ln2_out": lambda: (self.norm(site.layer, 2), "output"),
            "ln2_post_out": lambda: (self.norm(site.layer, 3), "output"),
            "resid_post": lambda: (self.blocks[site.layer], "output"),
        }[site.stream]()

    @torch.no_grad()
    def activations(self, ids: Tensor, sites: Sequence[Site]) -> Tensor:
        """``[token, site, d_model]`` of one unpadded prompt."""
        seen: dict[Site, Tensor] = {}
        handles = []
        for site in sites:
            module, end = self.place(site)

            def keep(module: nn.Module, args: tuple, output: object, site: Site = site) -> None:
                seen[site] = _first(output)[0]

            def keep_input(module: nn.Module, args: tuple, kwargs: dict, site: Site = site) -> None:
                seen[site] = (args[0] if args else kwargs["hidden_states"])[0]

            if end == "output":
                handles.append(module.register_forward_hook(keep))
            else:
                handles.append(module.register_forward_pre_hook(keep_input, with_kwargs=True))
        try:
            self.model(ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([seen[site] for site in sites], dim=1).float()

    @contextmanager
    def edited(self, edits: Mapping[Site, Edit]) -> Iterator[None]:
        """Replace the stream at each site by what its edit returns."""
        with ExitStack() as stack:
            for site, edit in edits.items():
                if site.stream == "resid_mid":
                    stack.enter_context(self._edited_mid(site.layer, edit))
                    continue
                module, end = self.place(site)
                handle = (
                    module.register_forward_hook(_output_hook(edit))
                    if end == "output"
                    else module.register_forward_pre_hook(_input_hook(edit), with_kwargs=True)
                )
                stack.callback(handle.remove)
            yield

    @contextmanager
    def _edited_mid(self, layer: int, edit: Edit) -> Iterator[None]:
        """The block's forward pass written out by hand, with an edit between its two halves."""
        block = self.blocks[layer]
        before, after, before_mlp, after_mlp = (
            getattr(block, name) if name else nn.Identity() for name in _NORMS[self.family]
        )
        attention = block.attn if self.family == "gpt2" else block.self_attn

        def forward(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
            added = _first(attention(before(hidden_states), *args, **kwargs))
            mid = edit(hidden_states + after(added))
            return mid + after_mlp(block.mlp(before_mlp(mid)))

        block.forward = forward
        try:
            yield
        finally:
            del block.forward

    @torch.no_grad()
    def logits(self, ids: Tensor, edits: Mapping[Site, Edit] | None = None) -> Tensor:
        """``[token, vocab]`` of one unpadded prompt."""
        with self.edited(edits or {}):
            return self.model(ids, use_cache=False).logits[0]

    def greedy(
        self, prompt: str, max_new_tokens: int, edits: Mapping[Site, Edit] | None = None
    ) -> str:
        """Greedy decoding that recomputes the whole sequence at every step."""
        ids = self.ids(prompt)
        start = ids.shape[1]
        for _ in range(max_new_tokens):
            chosen = self.logits(ids, edits)[-1].argmax()
            if int(chosen) == self.tokenizer.eos_token_id:
                break
            ids = torch.cat((ids, chosen.reshape(1, 1)), dim=1)
        return self.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def dense_rotation(plane: Plane, angle_deg: float) -> Edit:
    """The rotation as a dense float64 matrix."""
    b1, b2 = plane.b1.double(), plane.b2.double()
    theta = math.radians(angle_deg)
    matrix = (
        torch.eye(len(b1), dtype=torch.float64)
        + (math.cos(theta) - 1) * (torch.outer(b1, b1) + torch.outer(b2, b2))
        + math.sin(theta) * (torch.outer(b2, b1) - torch.outer(b1, b2))
    )
    return lambda h: (h.double() @ matrix.T).to(h.dtype)


def everywhere(edit: Edit, sites: Iterable[Site]) -> dict[Site, Edit]:
    return dict.fromkeys(sites, edit)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest deviation as a share of the largest expected value."""
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def _first(output: object) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def _output_hook(edit: Edit) -> Callable[..., object]:
    def hook(module: nn.Module, args: tuple, output: object) -> object:
        new = edit(_first(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def _input_hook(edit: Edit) -> Callable[..., tuple[tuple, dict]]:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return hook
