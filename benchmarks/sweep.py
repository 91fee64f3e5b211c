"""Time and memory of a sweep over angles, against one steered run after the other.

Run with nothing else on the machine: ``python -m benchmarks.sweep``. It takes half an hour or more;
``--angles 6`` gives a first impression.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from benchmarks.timing import ROUNDS, alternating
from ss_lens import Calibration
from ss_lens.generation.angle_batch import BATCH_ROWS
from ss_lens.models.chat import tokenize

NEW = 16
GOALS = {8: 0.6, 24: 0.9}


def prepared() -> tuple[TransformerBridge, Calibration, list[str]]:
    """The default model, its calibration from the user's store, and prompts."""
    model, data = ss_lens.load_model(), ss_lens.load_dataset("refusal")
    calibration = ss_lens.calibrate(ss_lens.capture(model, data))
    return model, calibration, list(data.positive[: max(GOALS)])


def sweep(
    model: TransformerBridge, calibration: Calibration, prompts: list[str], angles: list[float]
) -> None:
    ss_lens.sweep_angles(model, calibration, ss_lens.RotateBy, prompts, angles, max_new_tokens=NEW)


def print_times(n_angles: int) -> None:
    model, calibration, prompts = prepared()
    angles = [360.0 * place / n_angles for place in range(n_angles)]
    print(
        f"{torch.get_num_threads()} threads, medians of {ROUNDS} rounds; {n_angles} angles, {NEW} "
        f"new tokens; {min(calibration.selected_sites)} is the first of "
        f"{len(calibration.selected_sites)} steered sites in {model.cfg.n_layers} layers"
    )
    for n_prompts, goal in GOALS.items():
        asked = prompts[:n_prompts]

        def separate_runs(asked: list[str] = asked) -> None:
            for angle in angles:
                with ss_lens.steer(model, calibration, ss_lens.RotateBy(angle)):
                    ss_lens.generate(model, asked, max_new_tokens=NEW, batch_size=len(asked))

        def one_sweep(asked: list[str] = asked) -> None:
            sweep(model, calibration, asked, angles)

        times = alternating({"sweep": one_sweep, "runs": separate_runs})
        print(f"{n_prompts} prompts at {n_angles} angles in one sweep {times['sweep']:.1f} s")
        print(f"  / runs of one angle     {times['sweep'] / times['runs']:.3f}  (goal ≤ {goal})")


def print_memory(n_prompts: int, n_angles: int) -> None:
    """By how much the peak rose, beside the caches and logits that a sweep may hold."""
    model, calibration, prompts = prepared()
    asked = prompts[:n_prompts]
    sweep(model, calibration, asked[:1], [0.0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sweep(model, calibration, asked, [360.0 * place / n_angles for place in range(n_angles)])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = model.original_model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    longest = max(map(len, tokenize(model, asked)))
    # The prompt twice: as part of the batch, and as much of it as is the shared prefix.
    per_row = per_token * (2 * longest + NEW) + config.vocab_size
    print(
        f"{n_prompts} prompts at {n_angles} angles: peak rose by {(after - before) / 1e3:.0f} MB; "
        f"caches and logits of {BATCH_ROWS} rows are at most {4e-6 * BATCH_ROWS * per_row:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--angles", type=int, default=36)
    arguments = parser.parse_args()
    print_times(arguments.angles)
    for n_prompts in GOALS:
        # In a process of its own, whose peak nothing else has raised.
        code = f"from benchmarks.sweep import print_memory as p; p({n_prompts}, {arguments.angles})"
        subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()
