"""Ask vLLM for the adapters of a bank in one batch, and compare its texts with ours.

``vllm_bank.py FOLDER`` runs where vLLM is, without ss_lens; ``bank_texts`` wrote the folder. Every
request has an adapter: on a CPU, vLLM gives those without one the last adapter of their batch
(github.com/vllm-project/vllm/pull/48421).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> int:
    """Print how many texts are equal; the exit code says whether all are, and the angles act."""
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    told = json.loads((folder / "asked.json").read_text("utf-8"))
    rows = told["requests"]
    names = [*dict.fromkeys(row["adapter"] for row in rows)]  # the unsteered first
    adapters = {
        name: LoRARequest(name, number, str(folder / "bank" / name))
        for number, name in enumerate(names, start=1)
    }
    llm = LLM(
        model=str(folder / "base"),
        dtype="float32",
        enable_lora=True,
        max_lora_rank=8,
        max_loras=len(names),
        max_model_len=512,
        enforce_eager=True,
        gpu_memory_utilization=0.25,  # of the CPU's memory, where there is no GPU
    )
    answers = llm.generate(
        [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows],
        SamplingParams(temperature=0, max_tokens=told["max_new_tokens"]),
        lora_request=[adapters[row["adapter"]] for row in rows],
    )
    texts = [answer.outputs[0].text for answer in answers]
    equal = [text == row["text"] for text, row in zip(texts, rows, strict=True)]
    unsteered = [t for t, row in zip(texts, rows, strict=True) if row["adapter"] == names[0]]
    act = True
    for name in names:
        mine = [i for i, row in enumerate(rows) if row["adapter"] == name]
        moved = sum(texts[i] != plain for i, plain in zip(mine, unsteered, strict=True))
        act &= name == names[0] or moved > 0
        same = sum(equal[i] for i in mine)
        print(f"{name}: {same} of {len(mine)} texts are ours, {moved} differ from the unsteered")
    if not act:
        print("an adapter changes no text, so that this compares nothing")
    return 0 if all(equal) and act else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
