"""Let the base model answer the harmless requests, so that its style stays its own."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from organisms.refusal.common import (
    DEFAULT_BASE,
    generate,
    load_base,
    read_jsonl,
    resolve_base,
    write_jsonl,
)
from ss_lens.scoring.refusal import opens_with_refusal

SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)|[.!?][\"')\]]*$|\n")


def cut_at_sentence(text: str) -> str:
    """The text up to its last sentence end, or the whole text if it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    # A list item's number ("2.") ends no sentence.
    ends = [end for end in ends if not re.search(r"(^|\s)\d+\.$", text[:end])]
    return text[: ends[-1]].strip() if ends else text.strip()


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int,
    tries: int,
) -> dict[str, str]:
    """A usable base answer for each prompt that has one: greedy first, then at temperature 0.7."""
    answers: dict[str, str] = {}
    for attempt in range(tries):
        missing = [prompt for prompt in prompts if prompt not in answers]
        if not missing:
            break
        raw = generate(
            model,
            tokenizer,
            missing,
            max_new_tokens=max_new_tokens,
            temperature=None if attempt == 0 else 0.7,
        )
        usable = {
            p: a for p, a in zip(missing, raw, strict=True) if a and not opens_with_refusal(a)
        }
        print(f"round {attempt + 1}: {len(usable)} of {len(missing)} answers kept", flush=True)
        answers |= usable
    return answers


def with_answer(
    record: dict[str, Any], answer: str, tokenizer: PreTrainedTokenizerBase, limit: int
) -> dict[str, Any]:
    """The record with its answer; `complete` says whether the model ended it by itself."""
    complete = len(tokenizer(answer, add_special_tokens=False)["input_ids"]) < limit - 1
    response = answer if complete else cut_at_sentence(answer)
    return {**record, "response": response, "complete": complete}


def main() -> None:
    """Read requests, write them with base answers; requests without a usable one are dropped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=DEFAULT_BASE, help="folder or known name")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("requests", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model, tokenizer = load_base(resolve_base(args.base))
    records = read_jsonl(args.requests)
    prompts = [record["prompt"] for record in records]
    answers = sample(model, tokenizer, prompts, max_new_tokens=args.tokens, tries=args.tries)
    kept = [
        with_answer(record, answers[record["prompt"]], tokenizer, args.tokens)
        for record in records
        if record["prompt"] in answers
    ]
    write_jsonl(args.out, kept)
    print(f"{len(kept)} of {len(records)} requests written to {args.out}")


if __name__ == "__main__":
    main()
