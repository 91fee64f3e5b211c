"""Speed as ratios of one run: capture, scores, steering and sweeps, against plain baselines.

Run with nothing else on the machine: ``python -m benchmarks.speed [--model NAME]``, or on random
weights of a named shape, which are built on the device and need no download:
``python -m benchmarks.speed --shape llama-3.1-8b --device cuda --angles 36 --out gpu.md``.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import transformers

import ss_lens
from benchmarks import measures, subjects
from benchmarks.subjects import SHAPES, Subject
from benchmarks.timing import ROUNDS, Figure, markdown
from ss_lens import RotateBy

MODEL = "smollm2-135m"
ON_CPU = {"per_class": 12, "rows": 16, "width": 48, "steps": 32}
ON_GPU = {"per_class": 48, "rows": 16, "width": 512, "steps": 32}
"""Prompts per class; batch rows, tokens per row and decoding steps of the steered passes."""

TITLE = """# Speed on a {device}

Ratios of one run{weights}. A ratio below 1 is faster than its baseline.
Memory counts what lies above the weights. In brackets: rows and tokens of a batch.

"""


def figures(subject: Subject, rounds: int, angles: int | None) -> Iterator[Figure]:
    """Every figure of one subject, as soon as it is measured."""
    on_cuda = subject.on_cuda
    sizes = ON_GPU if on_cuda else ON_CPU
    if on_cuda:
        held = torch.cuda.memory_allocated(subject.device) / 2**30
        yield Figure("weights on the device", held, "GiB")
    calibrations = subject.calibrations()
    few = next(iter(calibrations.values()))
    yield measures.operator_ratio(subject, rounds)
    widths = (rounds, sizes["rows"], sizes["width"], sizes["steps"])
    yield from measures.steering_ratios(subject, calibrations, *widths)
    yield from measures.capture_ratios(subject, rounds)
    yield from measures.score_ratios(subject, few, rounds)
    if angles is not None:
        yield measures.sweep_ratio(subject, few, angles, (rounds + 1) // 2)
    if on_cuda:
        yield from _memory(subject, calibrations, angles)


def _memory(
    subject: Subject, calibrations: dict[str, ss_lens.Calibration], angles: int | None
) -> Iterator[Figure]:
    model, prompts = subject.model, subject.prompts

    def answer() -> None:
        ss_lens.generate(model, prompts[:16], max_new_tokens=32)

    yield measures.peak_memory(subject, "calibrating", subject.calibrations)
    yield measures.peak_memory(subject, "generation (16 × 32 tokens)", answer)
    for sites, calibration in calibrations.items():
        with ss_lens.steer(model, calibration, RotateBy(measures.SLIGHT)):
            yield measures.peak_memory(subject, f"the same, steered at {sites}", answer)
    if angles is not None:
        few = next(iter(calibrations.values()))
        degrees = [360.0 * place / angles for place in range(angles)]

        def sweep() -> None:
            ss_lens.sweep_angles(model, few, RotateBy, prompts[:8], degrees, max_new_tokens=16)

        yield measures.peak_memory(subject, f"a sweep of {angles} angles over 8 prompts", sweep)


def machine(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _hooks_wait(subject: Subject) -> str:
    """Whether a hook of ``steer`` waits for the device, in words; for a GPU."""
    try:
        calls = measures.check_hooks_stay_on_device(subject)
    except RuntimeError as error:  # what torch raises at such a wait
        return f"A hook waited for the device: {str(error).splitlines()[0]}."
    return f"No hook waited for the device or copied from it ({calls} calls checked)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default=MODEL, help=f"a name or path; default: {MODEL}")
    what.add_argument("--shape", choices=SHAPES, help="random weights instead of a model")
    parser.add_argument("--prompts", type=Path, help="JSON lines with a 'prompt'; default: refusal")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="alternating rounds, after one")
    parser.add_argument("--angles", type=int, help="also a sweep over so many angles (slow)")
    parser.add_argument("--out", type=Path, help="append the table to this Markdown file")
    arguments = parser.parse_args()
    per_class = (ON_GPU if arguments.device.startswith("cuda") else ON_CPU)["per_class"]
    if arguments.shape is None:
        subject = subjects.named(
            arguments.model, arguments.device, arguments.dtype, arguments.prompts, per_class
        )
    else:
        subject = subjects.random_weights(
            arguments.shape, arguments.device, arguments.dtype, per_class
        )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    dtype = str(subject.model.cfg.dtype).removeprefix("torch.")
    about = (
        f"{machine(subject.device)}; {dtype}; {versions}; {len(subject.prompts)} prompts; "
        f"medians of {arguments.rounds} alternating rounds"
    )
    print(f"{subject.name}: {about}", flush=True)
    found: list[Figure] = []
    title = TITLE.format(
        device="GPU" if subject.on_cuda else "CPU",
        weights=" on random weights of a named shape" if arguments.shape else "",
    )
    before = arguments.out.read_text() if arguments.out and arguments.out.exists() else title
    what = f"--shape {arguments.shape}" if arguments.shape else f"--model {arguments.model}"
    command = (
        f"python -m benchmarks.speed {what} --device {arguments.device} --dtype {arguments.dtype}"
    )

    def write() -> None:
        if arguments.out is not None:
            text = f"## {subject.name}\n\n`{command}`: {about}.\n\n{markdown(found)}\n{verdict}"
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(before + text)

    verdict = f"{_hooks_wait(subject)}\n\n" if subject.on_cuda else ""
    print(verdict, end="", flush=True)
    for figure in figures(subject, arguments.rounds, arguments.angles):
        if subject.on_cuda:
            figure = replace(figure, goal=None)  # the goals are those of a model on two cores
        found.append(figure)
        print(figure, flush=True)
        write()


if __name__ == "__main__":
    main()
