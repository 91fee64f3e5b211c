"""Which site each normalisation module of transformers is, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ss_lens.core.errors import UserError
from ss_lens.models.sites import Site, Stream

_GEMMA: dict[str, Stream] = {
    "input_layernorm": "ln1_out",
    "post_attention_layernorm": "ln1_post_out",
    "pre_feedforward_layernorm": "ln2_out",
    "post_feedforward_layernorm": "ln2_post_out",
}
_LLAMA: dict[str, Stream] = {"input_layernorm": "ln1_out", "post_attention_layernorm": "ln2_out"}
_GPT2: dict[str, Stream] = {"ln_1": "ln1_out", "ln_2": "ln2_out"}
_NAME = re.compile(r"(model\.layers|transformer\.h)\.(0|[1-9]\d{0,3})\.(\w+)")


def sites_of_modules(names: Iterable[str]) -> tuple[Site, ...]:
    """The site whose activation each norm returns, in the order of ``names``.

    Gemma calls the norm *after* attention what Llama and Qwen call the norm before the MLP; it is
    recognised by the norms around the MLP that only it has.

    >>> [str(site) for site in sites_of_modules(["model.layers.3.post_attention_layernorm"])]
    ['L3.ln2_out']

    Raises:
        UserError: a name that is not one of the known norms.
    """
    names = tuple(names)
    is_gemma = any(name.endswith("_feedforward_layernorm") for name in names)
    streams = {"model.layers": _GEMMA if is_gemma else _LLAMA, "transformer.h": _GPT2}
    sites = []
    for name in names:
        match = _NAME.fullmatch(name)
        stream = streams[match[1]].get(match[3]) if match else None
        if match is None or stream is None:
            raise UserError(
                f"module {name!r} is at no known site; expected names like "
                f"model.layers.12.input_layernorm (norms {', '.join(_GEMMA)}) or "
                f"transformer.h.12.ln_1 (norms {', '.join(_GPT2)})."
            )
        sites.append(Site(int(match[2]), stream))
    return tuple(sites)


def modules_of_sites(sites: Iterable[Site], model_name: str) -> tuple[str, ...]:
    """The module of each norm-output site, in the order of ``sites``.

    A site does not say which architecture it belongs to: names are Gemma's where a site exists on
    Gemma only or the model's name says so, GPT-2's where its name says so, else those that Llama,
    Qwen, Mistral and SmolLM share.

    Raises:
        UserError: a site on the residual stream, or sites that would be read back as others.
    """
    sites = tuple(sites)
    if stray := [site for site in sites if not site.is_norm_output]:
        raise UserError(
            f"{stray[0]} is on the residual stream, which no module name stands for; calibrate on "
            "norm outputs, streams=('ln1_out', 'ln2_out')."
        )
    prefix, streams, called = "model.layers", _LLAMA, model_name.lower().rpartition("/")[2]
    if "gemma" in called or any(s.stream.endswith("post_out") for s in sites):
        streams = _GEMMA
    elif "gpt2" in called:
        prefix, streams = "transformer.h", _GPT2
    norms = {stream: norm for norm, stream in streams.items()}
    names = tuple(f"{prefix}.{site.layer}.{norms[site.stream]}" for site in sites)
    if sites_of_modules(names) != sites:
        raise UserError(
            "ln1_post_out without ln2_out or ln2_post_out would be written under the name that "
            "Llama gives to ln2_out, and so be read back as that; calibrate on ln2_out too."
        )
    return names
