"""Exports in PEFT and in plain transformers are the steered model, on five architectures."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

import ss_lens
from ss_lens import Ablate, ActAdd, Add, Reflect, RotateBy, RotateScale, UserError
from ss_lens.calibration.global_direction import AtSite
from ss_lens.exports import peft_folder
from ss_lens.exports.kinds import DIAL, write
from ss_lens.exports.parity import TOLERANCES, Parity, measure
from ss_lens.exports.plain import logits_of
from ss_lens.geometry.operators import Operator
from tests.conftest import ARCHITECTURES
from tests.exports.conftest import ANGLES, PROMPTS, Readied, Ready, logits, plain, token_ids
from tests.fitting import fitted_on
from tests.oracles import relative_error

TOLERANCE = 1e-4


def with_adapter(ready: Ready, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(plain(ready.folder), folder).eval()


def assert_steered(model: Any, ready: Ready, operator: Operator) -> None:
    """Logits equal those of the steered bridge, and are not those of the model as it was."""
    for ids in token_ids(ready):
        expected = ready.steered(operator, ids)
        assert relative_error(logits(model, ids), expected) < TOLERANCE
        if not operator.is_identity:
            assert relative_error(ready.steered(RotateBy(0), ids), expected) > 100 * TOLERANCE


@torch.inference_mode()
def greedy(model: Any, ids: Tensor) -> list[int]:
    """32 new tokens, the likeliest each time, by transformers alone."""
    new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                         max_new_tokens=32, pad_token_id=3)  # fmt: skip
    return new[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_in_peft_is_the_steered_model_at_every_angle(
    architecture: str, ready: Readied, tmp_path: Path
) -> None:
    made = ready(architecture)
    for angle in ANGLES:
        folder = tmp_path / f"{angle:g}"
        folder.mkdir()
        write("lora", folder, made.subject, [RotateBy(angle)], torch.float32)
        assert_steered(with_adapter(made, folder), made, RotateBy(angle))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_in_plain_transformers_are_the_steered_model_at_every_angle(
    architecture: str, ready: Readied, tmp_path: Path
) -> None:
    made = ready(architecture)
    for angle in ANGLES:
        folder = tmp_path / f"{angle:g}"
        folder.mkdir()
        write("merged", folder, made.subject, [RotateBy(angle)], torch.float32)
        assert_steered(plain(folder), made, RotateBy(angle))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_dial_in_peft_is_the_steered_model_at_every_angle(
    architecture: str, ready: Readied, tmp_path: Path
) -> None:
    made = ready(architecture)
    write("dial", tmp_path, made.subject, [], torch.float32)
    model = peft.PeftModel.from_pretrained(
        plain(made.folder), tmp_path / DIAL[0], adapter_name=DIAL[0]
    )
    model.load_adapter(tmp_path / DIAL[1], adapter_name=DIAL[1])
    model.base_model.set_adapter([*DIAL])
    model.eval()
    for angle in ANGLES:
        theta = math.radians(angle)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(DIAL[0], math.cos(theta) - 1)
                module.set_scale(DIAL[1], math.sin(theta))
        assert_steered(model, made, RotateBy(angle))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("operator", [Ablate(), Reflect(), RotateScale(200, scale=1.4)], ids=str)
def test_every_linear_operator_is_exact(
    operator: Operator, architecture: str, ready: Readied, tmp_path: Path
) -> None:
    made = ready(architecture)
    for kind in ("lora", "merged"):
        folder = tmp_path / kind
        folder.mkdir()
        write(kind, folder, made.subject, [operator], torch.float32)
        model = plain(folder) if kind == "merged" else with_adapter(made, folder)
        assert_steered(model, made, operator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_are_those_of_the_steered_model(
    architecture: str, ready: Readied, tmp_path: Path
) -> None:
    made, operator = ready(architecture), RotateBy(135)
    with ss_lens.steer(made.model, made.calibration, operator):
        expected = ss_lens.generate(made.model, PROMPTS, max_new_tokens=32)
    models = []
    for kind in ("lora", "merged"):
        folder = tmp_path / kind
        folder.mkdir()
        write(kind, folder, made.subject, [operator], torch.float32)
        models.append(plain(folder) if kind == "merged" else with_adapter(made, folder))
    for model in models:
        answers = [
            made.model.tokenizer.decode(greedy(model, ids), skip_special_tokens=True)
            for ids in token_ids(made)
        ]
        assert answers == expected


def test_a_shift_is_exact_where_every_reader_has_a_bias(ready: Readied, tmp_path: Path) -> None:
    made = ready("gpt2")
    write("merged", tmp_path, made.subject, [Add(alpha=3)], torch.float32)
    assert_steered(plain(tmp_path), made, Add(alpha=3))


def test_a_mean_difference_is_exported_at_its_site(
    ready: Readied, tiny_data: ss_lens.ContrastiveDataset, tmp_path: Path
) -> None:
    made, site = ready("gpt2"), "L1.ln1_out"
    acts = ss_lens.capture(made.model, tiny_data, store=ss_lens.Store(tmp_path / "store"))
    calibration = ss_lens.calibrate(acts, choice=AtSite(site=site), rule="uniform")
    exported = ss_lens.export(
        calibration, made.model, ActAdd(2.0), kind="merged", out=tmp_path / "out",
        prompts=PROMPTS, max_new_tokens=2,
    )  # fmt: skip
    assert exported.parity["relative"].max() < TOLERANCE
    assert exported.parity["steered_relative"].min() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("architecture", "reader"),
    [("llama", r"'model.layers.0.self_attn.q_proj' and 14 more"),
     ("qwen2", r"'model.layers.0.mlp.gate_proj' and 5 more")],
)  # fmt: skip
def test_a_shift_is_refused_where_a_reader_has_no_bias(
    architecture: str, reader: str, ready: Readied, tmp_path: Path
) -> None:
    made = ready(architecture)
    with pytest.raises(UserError, match=rf"adds a constant to what {reader} reads.*no bias"):
        ss_lens.export(
            made.calibration, made.model, Add(alpha=3), kind="merged", out=tmp_path / "out",
            prompts=PROMPTS,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_qwen2_has_a_bias_at_every_reader_of_its_attention_norms(
    ready: Readied, tiny_data: ss_lens.ContrastiveDataset, tmp_path: Path
) -> None:
    made = ready("qwen2")
    calibration = fitted_on(made.model, tiny_data, ss_lens.Store(tmp_path / "store"), "ln1_out")
    exported = ss_lens.export(
        calibration, made.model, Add(alpha=-4), kind="merged", out=tmp_path / "out",
        prompts=PROMPTS, max_new_tokens=2,
    )  # fmt: skip
    assert exported.parity["relative"].max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merged_weights_in_half_precision_deviate_by_their_rounding(
    dtype: str, llama: Ready, tmp_path: Path
) -> None:
    exported = ss_lens.export(
        llama.calibration, llama.model, RotateBy(135), kind="merged", out=tmp_path / "out",
        dtype=dtype, prompts=PROMPTS, max_new_tokens=8,
    )  # fmt: skip
    (row,) = exported.parity.to_dict("records")
    assert str(plain(tmp_path / "out").dtype) == f"torch.{dtype}"
    assert row["dtype"] == dtype
    assert 1e-4 < row["relative"] < row["tolerance"] == TOLERANCES[dtype]
    assert row["steered_relative"] > 5 * row["relative"]


def test_the_model_stays_as_it_was(llama: Ready, tmp_path: Path) -> None:
    before = [p.clone() for p in llama.model.original_model.parameters()]
    write("merged", tmp_path, llama.subject, [RotateBy(90)], torch.float32)
    after = llama.model.original_model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def measured(made: Ready, tmp_path: Path, wrong: str) -> UserError:
    """The error of an export whose adapter was written wrongly."""
    with pytest.raises(UserError, match="is not the steered model") as caught:
        ss_lens.export(
            made.calibration, made.model, RotateBy(135), kind="lora", out=tmp_path / wrong,
            prompts=PROMPTS, max_new_tokens=4,
        )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == set()
    return caught.value


@pytest.mark.parametrize("wrong", ["sign", "angle", "one reader"])
def test_a_wrong_adapter_is_refused_and_nothing_is_left(
    wrong: str, llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: what is judged is what lies in the folder."""
    ordinary = peft_folder.write_adapter

    def damaged(folder: Path, factors: Any, base: Any, **options: Any) -> None:
        if wrong == "angle":
            factors = llama.subject.factors_of(RotateBy(134.9))
        ordinary(folder, factors, base, **options)
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        key = next(key for key in sorted(tensors) if "lora_B" in key)
        if wrong == "one reader":
            tensors[key] = torch.zeros_like(tensors[key])
        if wrong == "sign":
            tensors = {k: -v if "lora_B" in k else v for k, v in tensors.items()}
        save_file(tensors, path)

    monkeypatch.setattr(peft_folder, "write_adapter", damaged)
    error = measured(llama, tmp_path, wrong)
    assert "allowed is 1e-04" in str(error)
    assert "\n" not in str(error)


@pytest.mark.usefixtures("unchecked_types")
def test_a_report_that_is_not_a_number_does_not_hold() -> None:
    fields = dict.fromkeys((field.name for field in dataclasses.fields(Parity)), 0)
    report = Parity(**{**fields, "operator": "RotateBy(1)", "relative": math.nan, "tolerance": 1})
    assert not report.holds
    with pytest.raises(UserError, match="deviate by nan"):
        report.check("lora")


def test_the_report_says_where_greedy_answers_part(llama: Ready) -> None:
    """Against the unsteered model: the answers part, and the deviation is the steering's own."""

    tokens = [tuple(ids[0].tolist()) for ids in token_ids(llama)]
    report = measure(
        llama.model, llama.calibration, RotateBy(135), partial(logits_of, llama.subject.plain),
        tokens, dtype="float32", max_new_tokens=8,
    )  # fmt: skip
    assert report.relative == pytest.approx(report.steered_relative, rel=1e-3)
    assert report.equal_answers == len(tokens) - len(report.partings) < len(tokens)
    with ss_lens.steer(llama.model, llama.calibration, RotateBy(135)):
        steered = ss_lens.generate(llama.model, PROMPTS, max_new_tokens=8)
    unsteered = ss_lens.generate(llama.model, PROMPTS, max_new_tokens=8)
    for prompt, token in report.partings:
        first, second = steered[prompt].split(), unsteered[prompt].split()
        assert first[:token] == second[:token]
        assert first[token : token + 1] != second[token : token + 1]
