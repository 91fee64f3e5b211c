"""The card of an export: what it is, how to run it, how exact it is and what it is for."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ss_lens.exports.kinds import BANK_FILE, DIAL, GGUF_FILE, name_of
from ss_lens.exports.linear_map import Kind
from ss_lens.exports.parity import Parity
from ss_lens.exports.subject import Base
from ss_lens.geometry.operators import Operator
from ss_lens.models.identity import is_hub_id

_WHAT = {
    "lora": "A PEFT adapter of rank 2 that steers the base as `{operators}` does.",
    "merged": "The base with `{operators}` folded into its weights ({dtype}).",
    "gguf-lora": "A llama.cpp adapter of rank 2 that steers the base as `{operators}` does.",
    "dial": "Two adapters of rank 2 without an angle. With the scales cos θ − 1 and sin θ they "
    "steer the base as `RotateBy(θ)` does, at any θ.",
    "bank": "One PEFT adapter of rank 2 per angle: {operators}.",
}


def card(
    kind: Kind,
    base: Base,
    operators: Sequence[Operator],
    sites: Sequence[str],
    parities: Sequence[Parity],
    *,
    gguf: bool,
) -> str:
    """The text of ``README.md``, with the front matter that the Hub reads.

    Args:
        kind: of the export.
        base: what it belongs to.
        operators: what it does.
        sites: where.
        parities: how exact it is.
        gguf: whether there are files for llama.cpp.
    """
    named = ", ".join(map(str, operators))
    licence = base.licence or "not stated by its files; ask its publisher"
    local = "" if base.is_found_by_name else " (the folder or file of whoever exported it)"
    revision = f" at {base.revision}" if base.revision else ""
    adapter = f", with the adapter {base.adapter} merged into it" if base.adapter else ""
    return f"""---
{_front_matter(kind, base)}
---

# A steered model: {kind}

{_WHAT[kind].format(operators=named, dtype=parities[0].dtype)}
Made by [ss_lens](https://arxiv.org/abs/2601.19375) (Selective Steering). `steering.json` says the
same for programs, with the digest of every file; `calibration/` holds the plane and the sites.

- **Base:** {base.name}{local}{revision}{adapter}; loaded in {base.dtype}, fingerprint
  {base.fingerprint[:16]}, SHA-256 of its weights {base.sha256 or "not one file"}
- **Licence of the base:** {licence}. It holds for this export as well.
- **Steered sites ({len(sites)}):** {", ".join(sites)}, at every token

## How to run it
{_usage(kind, base, operators, gguf)}

## How exact it is
Beside `ss_lens.steer(...)`, on prompts and on the steered model's greedy answers to them. A
deviation is the largest difference of two logits as a share of the prompt's largest logit; under
"steering" is how far the steering itself moves them. KL is in nats per token.

{_table(parities)}

`ss-lens export --verify THIS_FOLDER {base.name}` measures it again.

## What it is for
Research on how a behaviour is represented, and the strengthening of refusal. An angle that weakens
refusal makes a model that answers what it was trained to decline: study it in a closed setting, and
do not serve or publish it.
"""


def _front_matter(kind: Kind, base: Base) -> str:
    fields: dict[str, object] = {"base_model": base.name} if is_hub_id(base.name) else {}
    fields["tags"] = ["selective-steering", "ss_lens"]
    if base.licence:
        fields["license"] = base.licence
    fields["library_name"] = {"merged": "transformers", "gguf-lora": "llama.cpp"}.get(kind, "peft")
    return "\n".join(
        f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()
    )


def _table(parities: Sequence[Parity]) -> str:
    cells = [_cells(parity) for parity in parities]
    rows = [[*cells[0]], ["---"] * len(cells[0]), *([*row.values()] for row in cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(parity: Parity) -> dict[str, str]:
    return {
        "operator": f"`{parity.operator}`",
        "dtype": parity.dtype,
        "prompts": str(parity.n_prompts),
        "tokens": str(parity.n_positions),
        "deviation": f"{parity.relative:.1e}",
        "allowed": f"{parity.tolerance:.0e}",
        "steering": f"{parity.steered_relative:.1e}",
        "KL": f"{parity.kl_mean:.1e} (largest {parity.kl_max:.1e})",
        "same likeliest token": f"{parity.same_top:.2%}",
        "same answers": f"{parity.equal_answers} of {parity.n_prompts}{_partings(parity)}",
    }


def _partings(parity: Parity) -> str:
    shown = ", ".join(f"{prompt} at token {token}" for prompt, token in parity.partings[:4])
    more = f" and {len(parity.partings) - 4} more" if len(parity.partings) > 4 else ""
    return f" (prompt {shown}{more})" if shown else ""


def _usage(kind: Kind, base: Base, operators: Sequence[Operator], gguf: bool) -> str:
    python, shell = _usage_of(kind, base, operators)
    blocks = [f"```python\n{python}\n```"] if python else []
    if shell and (gguf or kind != "dial"):
        blocks.append(f"```bash\n{shell}\n```")
    if kind == "merged" and gguf:
        blocks.append(
            "```bash\nllama-server -m THIS_FOLDER/model.gguf\n"
            "echo 'FROM THIS_FOLDER/model.gguf' > Modelfile && ollama create steered -f Modelfile\n"
            "```"
        )
    if kind == "dial" and gguf:
        blocks.append(
            "llama.cpp's server takes a scale per adapter and request: "
            '`"lora": [{"id": 0, "scale": cos θ − 1}, {"id": 1, "scale": sin θ}]`, always with '
            '`"cache_prompt": false`, since it would reuse keys and values of other scales.'
        )
    elif kind == "dial":
        blocks.append(
            "There is no GGUF file: how llama.cpp orders this model's weights is unknown."
        )
    if base.adapter:
        blocks.append(
            f"An adapter is merged into {base.name}, so there are no weights under this name for "
            "others to load. Write them with `ss-lens export … --as merged --angle 0`, and use "
            "that folder as the base."
        )
    return "\n\n".join(blocks)


def _usage_of(kind: Kind, base: Base, operators: Sequence[Operator]) -> tuple[str, str]:
    """Python and shell."""
    load = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({base.name!r})"""
    if kind == "lora":
        return (
            f'{load}\nmodel = PeftModel.from_pretrained(base, "THIS_FOLDER")',
            f"vllm serve {base.name} --enable-lora --max-lora-rank 8 \\\n"
            "  --lora-modules steered=THIS_FOLDER",
        )
    if kind == "merged":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            "vllm serve THIS_FOLDER",
        )
    if kind == "gguf-lora":
        return "", f"llama-server -m BASE.gguf --lora THIS_FOLDER/{GGUF_FILE}"
    if kind == "bank":
        names = [name_of(operator) for operator in operators]  # type: ignore[arg-type]
        modules = " ".join(f"{name}=THIS_FOLDER/{name}" for name in names)
        return (
            f'{load}\nmodel = PeftModel.from_pretrained(base, "THIS_FOLDER/{names[0]}")',
            f"vllm serve {base.name} --enable-lora --max-lora-rank 8 \\\n"
            f"  --lora-modules {modules}  # a request picks one as its model; {BANK_FILE} has them",
        )
    first, second = DIAL
    return (
        f"""import math
from peft.tuners.lora import LoraLayer
{load}
model = PeftModel.from_pretrained(base, "THIS_FOLDER/{first}", adapter_name="{first}")
model.load_adapter("THIS_FOLDER/{second}", adapter_name="{second}")
model.base_model.set_adapter(["{first}", "{second}"])

def turn(angle_deg):
    angle = math.radians(angle_deg)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("{first}", math.cos(angle) - 1)
            module.set_scale("{second}", math.sin(angle))""",
        f"llama-server -m BASE.gguf --lora-init-without-apply \\\n"
        f"  --lora THIS_FOLDER/{first}.gguf --lora THIS_FOLDER/{second}.gguf",
    )
