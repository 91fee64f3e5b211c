"""Peak memory of a capture beyond its stored result, at 200 and at 2,000 prompts.

Each size runs in a process of its own: ``python -m benchmarks.memory``.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile

import ss_lens


def measure(n_prompts: int) -> None:
    """Print the megabytes by which the peak rose, without the result's own size."""
    from ss_lens import Store

    model = ss_lens.load_model("smollm2-135m")
    warm = ss_lens.load_dataset("refusal").head(4)
    words = ("bread", "tea", "rain", "tin", "wool", "iron", "sand", "milk", "salt", "rope")
    numbers = [" ".join(words[int(digit)] for digit in f"{i:04d}") for i in range(n_prompts)]
    half = n_prompts // 2
    data = ss_lens.ContrastiveDataset(
        "memory",
        tuple(f"Tell me about {text}." for text in numbers[:half]),
        tuple(f"Write about {text}." for text in numbers[half:]),
    )
    with tempfile.TemporaryDirectory() as folder:
        ss_lens.capture(model, warm, store=Store(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        acts = ss_lens.capture(model, data, store=Store(folder))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = (acts.positive.nbytes + acts.negative.nbytes) / 1e6
    print(
        f"{n_prompts} prompts: peak rose by {(after - before) / 1e3:.0f} MB, result {result:.0f} MB"
    )


def main() -> None:
    for n_prompts in (200, 2000):
        code = f"from benchmarks.memory import measure; measure({n_prompts})"
        subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()
