"""Write what vLLM is tested with: a base, a bank of two angles and 0°, and our answers at each.

``python -m benchmarks.bank_texts --out FOLDER``, then ``benchmarks/vllm_bank.py FOLDER`` in an
environment of vLLM: ``make vllm`` does both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ss_lens
from ss_lens import RotateBy
from ss_lens.models.chat import tokenize
from ss_lens.models.sources import SMOLLM2_135M

ANGLES = (0.0, 30.0, 330.0)


def write(out: Path, model_name: str, prompts: int, new_tokens: int) -> None:
    """The folders ``base`` and ``bank``, and ``asked.json`` with one answer per request."""
    model = ss_lens.load_model(model_name, device="cpu", dtype="float32")
    data = ss_lens.load_dataset("sentiment").split(dev=8, test=prompts, seed=0)
    acts = ss_lens.capture(model, data.train.head(32))
    calibration = ss_lens.calibrate(acts, rule="uniform")
    asked = list(data.test.negative)
    options = {"prompts": asked[:2], "max_new_tokens": 4}
    ss_lens.export(calibration, model, RotateBy(0), kind="merged", out=out / "base", **options)
    ss_lens.export(calibration, model, RotateBy(ANGLES), kind="bank", out=out / "bank", **options)
    rows = []
    for angle in ANGLES:
        with ss_lens.steer(model, calibration, RotateBy(angle)):
            texts = ss_lens.generate(model, asked, max_new_tokens=new_tokens)
        rows += [
            {"adapter": f"angle-{angle:g}", "ids": [*ids], "text": text}
            for ids, text in zip(tokenize(model, asked), texts, strict=True)
        ]
    told = {"max_new_tokens": new_tokens, "requests": rows}
    (out / "asked.json").write_text(json.dumps(told), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--model", default=SMOLLM2_135M.name)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of an answer")
    given = parser.parse_args()
    write(given.out, given.model, given.prompts, given.tokens)


if __name__ == "__main__":
    main()
