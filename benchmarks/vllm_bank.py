"""Ask vLLM for two adapters of a bank in one batch, and compare its texts with ours.

``vllm_bank.py FOLDER`` runs where vLLM is, without ss_lens; ``bank_texts`` wrote the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> int:
    """Print how many texts are equal; the exit code says whether all are."""
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    told = json.loads((folder / "asked.json").read_text("utf-8"))
    rows = told["requests"]
    names = sorted({row["adapter"] for row in rows})
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
    )
    answers = llm.generate(
        [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows],
        SamplingParams(temperature=0, max_tokens=told["max_new_tokens"]),
        lora_request=[adapters[row["adapter"]] for row in rows],
    )
    texts = [answer.outputs[0].text for answer in answers]
    equal = [text == row["text"] for text, row in zip(texts, rows, strict=True)]
    for name in names:
        mine = [same for same, row in zip(equal, rows, strict=True) if row["adapter"] == name]
        print(f"{name}: {sum(mine)} of {len(mine)} texts are ours")
    both = len({*texts}) > len(rows) // len(names)
    print("the angles answer differently" if both else "the angles answer alike: no adapter acts")
    return 0 if all(equal) and both else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
