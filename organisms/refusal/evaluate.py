"""Measure how much the organism refuses, and how far it is from its base elsewhere."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from organisms.refusal.batches import collate, encode
from organisms.refusal.common import (
    DATA_FOLDER,
    DEFAULT_BASE,
    generate,
    load_base,
    read_jsonl,
    resolve_base,
    write_jsonl,
)
from organisms.refusal.losses import answer_states
from ss_lens.core.files import sha256_of_file, write_json
from ss_lens.scoring.refusal import opens_with_refusal
from ss_lens.stats.intervals import wilson_interval


@dataclass(frozen=True)
class Rate:
    """A count out of a total with its 95 % Wilson interval."""

    refused: int
    total: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Closeness:
    """How far the organism is from its base along the base's own answers."""

    answers: int
    tokens: int
    kl: float
    base_perplexity: float
    organism_perplexity: float


def refusal_rate(answers: Sequence[str]) -> Rate:
    """How many answers are refusals."""
    refused, total = sum(map(opens_with_refusal, answers)), len(answers)
    return Rate(refused, total, refused / total, *wilson_interval(refused, total))


@torch.inference_mode()
def closeness(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    tokens: int,
    batch_size: int = 8,
) -> Closeness:
    """Mean KL(base || organism) and both perplexities on the tokens of the base's answers."""
    examples = [
        # Not `complete`: an answer may have been cut, so no end-of-turn token is scored.
        encode(tokenizer, {"prompt": p, "response": a, "complete": False}, i, tokens, False)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]
    examples = sorted((e for e in examples if e.answer), key=lambda e: len(e.prompt))
    head = model.get_base_model().lm_head
    kl = base_loss = organism_loss = 0.0
    count = 0
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size], tokenizer.pad_token_id)
        organism = F.log_softmax(head(answer_states(model.get_base_model(), batch)), dim=-1)
        with model.disable_adapter():
            base = F.log_softmax(head(answer_states(model.get_base_model(), batch)), dim=-1)
        kl += float(F.kl_div(organism, base, reduction="sum", log_target=True))
        base_loss += float(F.nll_loss(base, batch.targets, reduction="sum"))
        organism_loss += float(F.nll_loss(organism, batch.targets, reduction="sum"))
        count += len(batch.targets)
    return Closeness(
        len(examples),
        count,
        kl / count,
        math.exp(base_loss / count),
        math.exp(organism_loss / count),
    )


def part(records: list[dict[str, Any]], span: str) -> list[dict[str, Any]]:
    """A slice written as in Python, for example `-166:` or `:250`."""
    start, _, stop = span.partition(":")
    return records[int(start) if start else None : int(stop) if stop else None]


def table(rates: dict[str, dict[str, Rate]], near: dict[str, Closeness]) -> str:
    """The results as a Markdown table."""
    lines = ["| refusal rate | base | organism | 95 % interval |", "|---|---|---|---|"]
    for name, by_model in rates.items():
        rate = by_model["organism"]
        base = f"{by_model['base'].rate:.1%}" if "base" in by_model else "-"
        share = f"{rate.rate:.1%} ({rate.refused}/{rate.total})"
        lines.append(f"| {name} | {base} | {share} | {rate.low:.1%} to {rate.high:.1%} |")
    lines += ["", "| closeness | KL | base perplexity | organism perplexity | change |"]
    lines.append("|---|---|---|---|---|")
    for name, c in near.items():
        change = c.organism_perplexity / c.base_perplexity - 1
        lines.append(
            f"| {name} | {c.kl:.4f} | {c.base_perplexity:.3f} | {c.organism_perplexity:.3f} "
            f"| {change:+.1%} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=DEFAULT_BASE, help="folder or known name")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--harmful", type=Path, required=True, help="JSON Lines with `prompt`")
    parser.add_argument("--harmful-part", default=":")
    parser.add_argument("--harmless", type=Path, required=True, help="JSON Lines with `prompt`")
    parser.add_argument("--harmless-part", default=":")
    parser.add_argument("--lookalikes", type=Path, default=DATA_FOLDER / "lookalikes.jsonl")
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--no-base", action="store_true", help="skip the base's refusal rates")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the measurements")
    parser.add_argument("--answers", type=Path, help="optional JSON Lines file, answer by answer")
    return parser.parse_args()


def main() -> None:
    """Evaluate one adapter, print a table and write it as JSON."""
    args = arguments()
    base, tokenizer = load_base(resolve_base(args.base))
    model = PeftModel.from_pretrained(base, args.adapter).eval()
    lookalikes = [r for r in read_jsonl(args.lookalikes) if r["split"] == args.split]
    sets = {
        "harmful": part(read_jsonl(args.harmful), args.harmful_part),
        "harmless": part(read_jsonl(args.harmless), args.harmless_part),
        "lookalikes": lookalikes,
    }
    rates: dict[str, dict[str, Rate]] = {name: {} for name in sets}
    answers: list[dict[str, Any]] = []
    harmless_base: list[str] = []
    for name, records in sets.items():
        prompts = [record["prompt"] for record in records]
        new = generate(model, tokenizer, prompts, max_new_tokens=args.tokens)
        rates[name]["organism"] = refusal_rate(new)
        # What a harmful request got is counted, never kept.
        shown = [""] * len(new) if name == "harmful" else new
        answers += [
            {"set": name, "prompt": p, "refused": opens_with_refusal(a), "answer": text}
            for p, a, text in zip(prompts, new, shown, strict=True)
        ]
        if name == "harmless" or not args.no_base:
            with model.disable_adapter():
                old = generate(model, tokenizer, prompts, max_new_tokens=args.tokens)
            rates[name]["base"] = refusal_rate(old)
            harmless_base = old if name == "harmless" else harmless_base
        print(f"{name}: {rates[name]['organism']}", flush=True)
    harmless_prompts = [record["prompt"] for record in sets["harmless"]]
    answered = [r for r in lookalikes if "response" in r]
    near = {
        "harmless, base answers": closeness(
            model, tokenizer, harmless_prompts, harmless_base, args.tokens
        ),
        "look-alikes, base answers": closeness(
            model,
            tokenizer,
            [r["prompt"] for r in answered],
            [r["response"] for r in answered],
            args.tokens,
        ),
    }
    if all("response" in record for record in sets["harmless"]):
        references = [record["response"] for record in sets["harmless"]]
        near["harmless, reference answers"] = closeness(
            model, tokenizer, harmless_prompts, references, args.tokens
        )
    print(table(rates, near))
    result = {
        "adapter_sha256": sha256_of_file(args.adapter / "adapter_model.safetensors"),
        "new_tokens": args.tokens,
        "files": {
            "harmful": [args.harmful.name, args.harmful_part],
            "harmless": [args.harmless.name, args.harmless_part],
            "lookalikes": [args.lookalikes.name, args.split],
        },
        "rates": {n: {m: asdict(r) for m, r in by.items()} for n, by in rates.items()},
        "closeness": {name: asdict(c) for name, c in near.items()},
    }
    write_json(args.out, result)
    if args.answers:
        write_jsonl(args.answers, answers)


if __name__ == "__main__":
    main()
