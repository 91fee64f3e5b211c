"""Time of capture and of steered generation, against plain baselines measured beside them.

Run with nothing else on the machine: ``python -m benchmarks.speed [--prompts FILE.jsonl]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import ss_lens
from ss_lens import Store
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from ss_lens.models.fetching import fetch

ROUNDS = 5


def alternating(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each side, the sides taking turns so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(ROUNDS + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if round_number > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, help="JSON lines with a 'prompt'; default: refusal")
    arguments = parser.parse_args()
    data = ss_lens.load_dataset("refusal")
    if arguments.prompts:
        rows = [json.loads(line)["prompt"] for line in arguments.prompts.read_text().splitlines()]
        data = ss_lens.ContrastiveDataset("benchmark", tuple(rows[:32]), tuple(rows[32:64]))
    data = data.head(32)
    prompts = (*data.positive, *data.negative)

    bridge = ss_lens.load_model("smollm2-135m")
    untouched = AutoModelForCausalLM.from_pretrained(fetch("smollm2-135m")).eval()
    tokens = tokenize(bridge, prompts)
    norms = [module for name, module in untouched.named_modules() if name.endswith("layernorm")]

    @torch.inference_mode()
    def bare() -> None:
        """Full prompts through the untouched model in padded batches, without unembedding."""
        groups = forward.equal_groups(forward.order_by_length(tokens), 16)
        for batch in forward.batches(tokens, groups, side="right", pad_id=0, device="cpu"):
            untouched.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)

    @torch.no_grad()
    def published() -> None:
        """One prompt at a time with a hook on every norm and the logits of every position."""
        kept: list[torch.Tensor] = []
        handles = [
            norm.register_forward_hook(lambda _m, _i, out: kept.append(out[:, -1].detach()))
            for norm in norms
        ]
        for ids in tokens:
            untouched(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ss_lens.capture(bridge, data, streams=("ln1_out", "ln2_out"), store=Store(folder))

    times = alternating({"ours": ours, "bare": bare, "published": published})
    print(f"{torch.get_num_threads()} threads, {len(prompts)} prompts, medians of {ROUNDS} rounds")
    print(f"capture of all norm outputs {times['ours']:.2f} s")
    print(f"  / bare batched forward     {times['ours'] / times['bare']:.3f}  (goal ≤ 0.60)")
    print(f"  / published procedure      {times['ours'] / times['published']:.3f}  (goal ≤ 0.25)")

    with tempfile.TemporaryDirectory() as folder:
        acts = ss_lens.capture(bridge, ss_lens.load_dataset("refusal"), store=Store(folder))
    calibration = ss_lens.calibrate(acts)
    asked = list(prompts[:16])

    def unsteered() -> None:
        ss_lens.generate(bridge, asked, max_new_tokens=32)

    def steered() -> None:
        # 1e-6 degrees: the hooks do all their work and the texts, so the lengths, stay the same.
        with ss_lens.steer(bridge, calibration, ss_lens.RotateBy(1e-6)):
            ss_lens.generate(bridge, asked, max_new_tokens=32)

    times = alternating({"steered": steered, "unsteered": unsteered})
    print(f"steered generation at {len(calibration.selected_sites)} sites {times['steered']:.2f} s")
    print(
        f"  / unsteered                {times['steered'] / times['unsteered']:.3f}  (goal ≤ 1.05)"
    )


if __name__ == "__main__":
    main()
