"""What an export leaves on disk, what it says of itself, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ss_lens
from ss_lens import Calibration, RotateBy, UserError
from ss_lens.core.files import sha256_of_file
from ss_lens.core.sealed import write_sealed_json
from ss_lens.exports.export import plane_digest
from ss_lens.exports.linear_map import Kind
from ss_lens.exports.peft_folder import read_factors
from ss_lens.models import adapters
from ss_lens.models.loading.fingerprint import identify
from tests.exports.conftest import PROMPTS, Readied, Ready, snapshot

FILES = {
    "lora": {"adapter_config.json", "adapter_model.safetensors"},
    "merged": {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
               "tokenizer_config.json", "chat_template.jinja"},
    "gguf-lora": {"adapter.gguf"},
    "dial": {"turn_p.gguf", "turn_j.gguf", "turn_p/adapter_config.json",
             "turn_p/adapter_model.safetensors", "turn_j/adapter_config.json",
             "turn_j/adapter_model.safetensors"},
    "bank": {"bank.json", "angle-0/adapter_config.json", "angle-0/adapter_model.safetensors",
             "angle-22.5/adapter_config.json", "angle-22.5/adapter_model.safetensors"},
}  # fmt: skip
ALWAYS = {
    *("README.md", "steering.json"),
    *("calibration/calibration.json", "calibration/calibration.safetensors"),
}
OPERATORS: dict[str, Any] = {"dial": RotateBy, "bank": RotateBy([0, 22.5])}


def exported(ready: Ready, out: Path, kind: Any = "lora", **options: Any) -> ss_lens.Export:
    operator = options.pop("operator", OPERATORS.get(kind, RotateBy(135)))
    calibration = options.pop("calibration", ready.calibration)
    options = {"prompts": PROMPTS, "max_new_tokens": 2, **options}
    return ss_lens.export(calibration, ready.model, operator, kind=kind, out=out, **options)


def refused(match: str, ready: Ready, out: Path, **options: Any) -> str:
    """The one line of an export that is refused; nothing new is left beside ``out``."""
    before = snapshot(out.parent) if out.parent.is_dir() else {}
    with pytest.raises(UserError, match=match) as caught:
        exported(ready, out, **options)
    assert "\n" not in str(caught.value)
    assert (snapshot(out.parent) if out.parent.is_dir() else {}) == before
    return str(caught.value)


@pytest.mark.parametrize("kind", FILES)
def test_an_export_holds_its_files_and_what_describes_them(
    kind: Kind, llama: Ready, tmp_path: Path
) -> None:
    made = exported(llama, tmp_path / "out", kind)
    assert set(snapshot(tmp_path)) == {f"out/{name}" for name in FILES[kind] | ALWAYS}
    told = json.loads((tmp_path / "out" / "steering.json").read_text())
    assert told["kind"] == made.kind == kind
    assert told["operators"] == [str(operator) for operator in made.operators]
    assert told["plane_sha256"] == plane_digest(llama.calibration)
    assert told["sites"] == [str(site) for site in llama.calibration.selected_sites]
    assert told["readers"]["L1.ln2_out"] == [
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up")
    ]
    assert told["base"] == {
        "name": llama.folder.name,
        "revision": None,
        "sha256": sha256_of_file(llama.folder / "model.safetensors"),
        "fingerprint": identify(llama.model).fingerprint,
        "dtype": "float32",
        "licence": None,
        "adapter": None,
    }
    assert set(told["versions"]) >= {"ss_lens", "torch", "transformers"}
    assert set(told["files"]) == (FILES[kind] | ALWAYS) - {"README.md", "steering.json"}
    (report, *_) = told["parity"]
    assert report["n_prompts"] == len(PROMPTS)
    assert report["relative"] < report["tolerance"] == 1e-4
    spec = llama.calibration.spec
    named = dataclasses.replace(spec.model, name=llama.folder.name)
    kept = Calibration.load(tmp_path / "out" / "calibration").spec
    assert kept == dataclasses.replace(spec, model=named)


@pytest.mark.parametrize("kind", FILES)
def test_the_card_says_how_to_run_it_how_exact_it_is_and_what_for(
    kind: Kind, llama: Ready, tmp_path: Path
) -> None:
    exported(llama, tmp_path / "out", kind)
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith('---\ntags: ["selective-steering", "ss_lens"]\nlibrary_name: ')
    assert f"**Base:** {llama.folder.name} (the folder or file of whoever exported it);" in text
    for part in (
        f"# A steered model: {kind}",
        *("Licence of the base:** not stated by its files", "L0.ln1_out, L0.ln2_out"),
        *("| operator | dtype | prompts |", "| float32 | 4 | ", "4 of 4 |"),
        *("ss-lens export --verify THIS_FOLDER", "strengthening of refusal"),
    ):
        assert part in text
    runs = {
        "lora": ("PeftModel.from_pretrained(base", "--max-lora-rank 8"),
        "merged": ("AutoTokenizer.from_pretrained", "vllm serve THIS_FOLDER"),
        "gguf-lora": ("--lora THIS_FOLDER/adapter.gguf",),
        "dial": ("set_scale", '"cache_prompt": false', "turn_j.gguf"),
        "bank": ("angle-0=THIS_FOLDER/angle-0 angle-22.5=THIS_FOLDER/angle-22.5",),
    }
    assert all(part in text for part in runs[kind])


def test_a_licence_is_read_from_the_models_own_card(
    tiny_folders: dict[str, Path], tmp_path: Path, ready: Readied
) -> None:
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "model")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n")
    model = ss_lens.load_model(folder)
    made = ready("llama")
    ss_lens.export(
        made.calibration, model, RotateBy(20), kind="lora", out=tmp_path / "out",
        prompts=PROMPTS, max_new_tokens=1,
    )  # fmt: skip
    text = (tmp_path / "out" / "README.md").read_text()
    assert 'license: "apache-2.0"' in text
    assert "**Licence of the base:** apache-2.0. It holds" in text


def test_an_adapter_loads_as_a_model_of_its_own(llama: Ready, tmp_path: Path) -> None:
    exported(llama, tmp_path / "out")
    (tmp_path / llama.folder.name).symlink_to(llama.folder)
    steered = ss_lens.load_model(tmp_path / "out")
    ids = torch.arange(8, 20)[None]
    with torch.inference_mode():
        got = steered(ids)
    torch.testing.assert_close(got, llama.steered(RotateBy(135), ids), rtol=0, atol=1e-4)


def test_an_adapter_names_its_base_by_digest_and_every_module_in_full(
    llama: Ready, tmp_path: Path
) -> None:
    exported(llama, tmp_path / "out")
    read = adapters.read_adapter(tmp_path / "out")
    assert read.base == llama.folder.name
    assert read.base_sha256 == sha256_of_file(llama.folder / "model.safetensors")
    assert read.scale == 1.0
    assert len(read.factors) == 15
    assert set(read.factors) == set(llama.subject.readers)
    for a, _ in read.factors.values():
        assert torch.equal(a, llama.calibration.plane.basis)


def test_the_turns_of_a_dial_add_up_to_a_fixed_angle(llama: Ready, tmp_path: Path) -> None:
    exported(llama, tmp_path / "dial", "dial")
    exported(llama, tmp_path / "lora", operator=RotateBy(77))
    first, second = (read_factors(tmp_path / "dial" / name) for name in ("turn_p", "turn_j"))
    fixed = read_factors(tmp_path / "lora")
    theta = math.radians(77)
    for name, change in fixed.items():
        assert torch.equal(first[name].a, change.a)
        assert torch.equal(second[name].a, change.a)
        summed = (math.cos(theta) - 1) * first[name].b + math.sin(theta) * second[name].b
        torch.testing.assert_close(summed, change.b, rtol=0, atol=1e-6)


def test_a_bank_lists_its_adapters_for_vllm(llama: Ready, tmp_path: Path) -> None:
    exported(llama, tmp_path / "out", "bank")
    listed = json.loads((tmp_path / "out" / "bank.json").read_text())["lora_modules"]
    assert [one["name"] for one in listed] == ["angle-0", "angle-22.5"]
    for one in listed:
        assert one["base_model_name"] == llama.folder.name
        assert (tmp_path / "out" / one["path"] / "adapter_config.json").is_file()


def test_the_tokenizer_of_a_merged_model_is_the_bases_own(llama: Ready, tmp_path: Path) -> None:
    """TransformerLens may change the tokenizer that it works with; that one is not written."""
    exported(llama, tmp_path / "out", "merged")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_text() == (llama.folder / name).read_text()
    told = json.loads((llama.folder / "tokenizer_config.json").read_text())
    kept = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert {**kept, **told} == kept  # transformers adds where it was read from


def test_a_merged_model_is_written_in_shards(
    llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ss_lens.exports.merged.SHARD", "40KB")
    exported(llama, tmp_path / "out", "merged")
    assert len([*(tmp_path / "out").glob("model-*.safetensors")]) > 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("kind", FILES)
def test_a_whole_export_is_verified(kind: Kind, llama: Ready, tmp_path: Path) -> None:
    made = exported(llama, tmp_path / "out", kind)
    (tmp_path / "out" / "README.md").write_text("# my own words\n")
    again = ss_lens.verify_export(tmp_path / "out", llama.model, prompts=PROMPTS)
    assert (again.kind, again.operators) == (made.kind, made.operators)
    assert again.parity.equals(made.parity)


def changed_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "trained on": (changed_weights, r"adapter_model.safetensors differs from what was exported"),
    "cut": (lambda f: os.truncate(f / "adapter_model.safetensors", 100), "differs from what"),
    "gone": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "plane": (lambda f: os.truncate(f / "calibration/calibration.json", 10), "differs from what"),
    "edited": (
        lambda f: (f / "steering.json").write_text(
            (f / "steering.json").read_text().replace("135.0", "90.0")
        ),
        r"steering.json is damaged \(its checksum differs, or it was edited\); export it again",
    ),
    "no JSON": (lambda f: (f / "steering.json").write_text("{"), "is damaged"),
    "no description": (
        lambda f: (f / "steering.json").unlink(),
        "adapter without steering.json, so it was trained or comes from elsewhere",
    ),
    "nothing": (shutil.rmtree, "there is no export at"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_export_is_one_line(damage: str, llama: Ready, tmp_path: Path) -> None:
    exported(llama, tmp_path / "out")
    change, message = DAMAGE[damage]
    change(tmp_path / "out")
    with pytest.raises(UserError, match=message) as caught:
        ss_lens.verify_export(tmp_path / "out", llama.model, prompts=PROMPTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "onnx"}, "kind in steering.json is 'onnx', expected one of lora, merged"),
        ({"operators": []}, "operators in steering.json is .* expected a list of operators"),
        ({"operators": None}, "operators in steering.json is None"),
        ({"operators": [3]}, "operators in steering.json is"),
        ({"operators": ["Frob()"]}, "unknown operator 'Frob"),
        ({"files": None}, "files in steering.json is None, expected the SHA-256 of each file"),
        ({"files": {}}, "files in steering.json is"),
        ({"max_new_tokens": "x"}, "max_new_tokens in steering.json is 'x', expected a whole"),
        ({"max_new_tokens": True}, "max_new_tokens in steering.json is True"),
        ({"format": 9}, "has format 9, this version reads 1; export it again"),
    ],
    ids=str,
)
def test_a_description_of_another_layout_is_one_line(
    changed: dict[str, Any], message: str, llama: Ready, tmp_path: Path
) -> None:
    """Whole and sealed, as another program or version might write it."""
    exported(llama, tmp_path / "out")
    path = tmp_path / "out" / "steering.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    write_sealed_json(path, {**content, **changed})
    with pytest.raises(UserError, match=message) as caught:
        ss_lens.verify_export(tmp_path / "out", llama.model, prompts=PROMPTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", FILES)
def test_each_file_of_an_export_is_held_to_its_digest(
    kind: Kind, llama: Ready, tmp_path: Path
) -> None:
    """Cut or gone; the card alone may be edited."""
    whole = exported(llama, tmp_path / "whole", kind).folder
    for name in sorted((FILES[kind] | ALWAYS) - {"README.md"}):
        for damage in (Path.unlink, lambda path: os.truncate(path, path.stat().st_size // 2)):
            out = shutil.copytree(whole, tmp_path / "out")
            damage(out / name)
            with pytest.raises(UserError, match="steering.json" if name in ALWAYS else name):
                ss_lens.verify_export(out, llama.model, prompts=PROMPTS)
            shutil.rmtree(out)


def test_an_adapter_that_was_trained_is_no_export(llama: Ready) -> None:
    trained = adapters.adapter_folder("smollm2-135m-refusal")
    assert trained is not None
    with pytest.raises(UserError, match="was trained or comes from elsewhere, expected an export"):
        ss_lens.verify_export(trained, llama.model)


def test_an_export_of_another_model_is_refused(
    llama: Ready, ready: Readied, tmp_path: Path
) -> None:
    """Nobody who has an export can calibrate it again; the model it was made from is named."""
    exported(llama, tmp_path / "out")
    remedy = r"Give the model that the export was made from: 'tiny-llama' in float32\.$"
    with pytest.raises(UserError, match="the calibration was made on .*" + remedy) as caught:
        ss_lens.verify_export(tmp_path / "out", ready("gemma2").model, prompts=PROMPTS)
    assert "Calibrate" not in str(caught.value)
    half = ss_lens.load_model(llama.folder, dtype="bfloat16")
    with pytest.raises(UserError, match="was made in float32, the model is in bf.*" + remedy):
        ss_lens.verify_export(tmp_path / "out", half, prompts=PROMPTS)


def test_a_calibration_of_another_model_is_refused(
    llama: Ready, ready: Readied, tmp_path: Path
) -> None:
    foreign = ready("gemma2").calibration
    refused("the calibration was made on", llama, tmp_path / "out", calibration=foreign)


def test_a_calibration_of_another_width_is_refused(
    llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that names no weights, as published ones do."""
    model = dataclasses.replace(llama.calibration.spec.model, d_model=64, fingerprint=None)
    spec = dataclasses.replace(llama.calibration.spec, model=model)
    wider = dataclasses.replace(llama.calibration, spec=spec)
    message = "is for 3 layers of width 64, the model .* has 3 of width 32"
    refused(message, llama, tmp_path / "out", calibration=wider)


@pytest.mark.parametrize(
    "fill",
    [
        lambda out: (out.mkdir(), (out / "notes.txt").write_text("mine")),
        lambda out: out.write_text("a file"),
        lambda out: (out / "sub").mkdir(parents=True),
    ],
    ids=["a note", "a file", "a folder"],
)
def test_a_folder_that_holds_something_is_kept(
    fill: Callable[[Path], object], llama: Ready, tmp_path: Path
) -> None:
    fill(tmp_path / "out")
    refused("holds something that an export would replace", llama, tmp_path / "out")


def test_an_empty_folder_is_filled_and_an_export_is_not_replaced(
    llama: Ready, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    exported(llama, tmp_path / "out")
    refused("holds something", llama, tmp_path / "out", operator=RotateBy(90))


def test_a_full_disk_leaves_nothing(
    llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ss_lens.exports.peft_folder.write_safetensors", full)
    refused("no space left under", llama, tmp_path / "out")


def test_a_disk_that_fills_up_under_a_merged_model_leaves_nothing(
    llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of transformers reports it in words of its own."""

    def full(self: Any, folder: Path, **_: Any) -> None:
        (folder / "config.json").write_text("{}")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    message = "the merged model cannot be written .*No space left.*free some space"
    refused(message, llama, tmp_path / "out", kind="merged")


def test_a_disk_that_is_too_small_for_a_merged_model_is_noticed_before(
    llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused("the merged model needs .* of disk", llama, tmp_path / "out", kind="merged")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "onnx"}, "kind must be one of lora, merged, gguf-lora, dial, bank; got 'onnx'"),
        ({"operator": ss_lens.RotateTo(90)}, r"RotateTo\(angle_deg=90.0\) cannot be exported"),
        ({"operator": RotateBy([0, 90])}, "has 2 strengths.*kind='bank'"),
        ({"operator": RotateBy}, "got the class RotateBy itself"),
        ({"operator": 135}, "operator must be an operator such as"),
        ({"kind": "dial", "operator": RotateBy(90)}, "must be the class RotateBy itself; got"),
        ({"kind": "bank", "operator": RotateBy(90)}, "RotateBy with a list of different angles"),
        ({"kind": "bank", "operator": RotateBy([0, 360])}, "list of different angles"),
        ({"kind": "bank", "operator": ss_lens.Ablate()}, "list of different angles"),
        ({"operator": ss_lens.Add(alpha=1)}, "as 'lora': it adds a constant"),
        ({"positions": ss_lens.PromptOnly()}, r"PromptOnly\(\) cannot be exported: it steers some"),
        ({"positions": ss_lens.LastPrompt(2)}, r"LastPrompt\(k=2\) cannot.*every token"),
        ({"positions": "all"}, "positions must be positions such as ss_lens.AllPositions"),
        ({"dtype": "float16"}, "is given for 'lora', whose numbers are always float32"),
        ({"kind": "merged", "dtype": "int8"}, "unknown dtype 'int8'"),
        ({"gguf": "f16"}, "gguf='f16' is given for 'lora', expected kind='merged'"),
        ({"kind": "merged", "gguf": "q4_k"}, "gguf must be one of f16, q8_0; got 'q4_k'"),
        ({"kind": "merged", "gguf": "f16"}, "it came from no GGUF file.*convert_hf_to_gguf.py"),
        ({"prompts": []}, "prompts is an empty list"),
        ({"prompts": "one text"}, "prompts must be a list"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 64}, "the context of .* is 64"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_input_is_one_line(
    options: dict[str, Any], message: str, llama: Ready, tmp_path: Path
) -> None:
    refused(message, llama, tmp_path / "out", **options)


@pytest.mark.parametrize("angle", [math.nan, math.inf])
def test_an_angle_that_is_not_finite_is_refused(angle: float) -> None:
    with pytest.raises(UserError, match="angle_deg must be finite"):
        RotateBy(angle)


def test_streams_that_no_weights_read_alone_are_refused(
    llama: Ready, tiny_data: ss_lens.ContrastiveDataset, tmp_path: Path
) -> None:
    store = ss_lens.Store(tmp_path / "store")
    acts = ss_lens.capture(llama.model, tiny_data, store=store)
    residual = ss_lens.calibrate(acts, streams=["resid_post"], rule="uniform")
    message = r"L0\.resid_post cannot be exported: everything after it reads the residual stream"
    refused(message, llama, tmp_path / "out", calibration=residual)


def test_a_model_that_is_being_steered_is_refused(llama: Ready, tmp_path: Path) -> None:
    with ss_lens.steer(llama.model, llama.calibration, RotateBy(10)):
        refused("the model carries hooks", llama, tmp_path / "out")


def test_a_model_that_was_booted_by_hand_is_refused(
    llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ss_lens.models.load._loaded", {})
    refused("was not loaded by ss_lens.load_model", llama, tmp_path / "out")


def test_an_adapter_on_an_adapter_is_one_line(llama: Ready, tmp_path: Path) -> None:
    """An export of a model that is base and adapter names it, and it has no weights to load."""
    exported(llama, tmp_path / "first")
    (tmp_path / llama.folder.name).symlink_to(llama.folder)
    again = ss_lens.load_model(tmp_path / "first")
    made = exported(
        Ready(tmp_path / "first", again, llama.calibration, llama.subject),
        tmp_path / "second",
        calibration=recalibrated(again, tmp_path),
    )
    text = (made.folder / "README.md").read_text()
    assert "An adapter is merged into first," in text
    with pytest.raises(UserError, match=r"is an adapter itself, expected a base.*--as merged"):
        ss_lens.load_model(made.folder)


def recalibrated(model: Any, tmp_path: Path) -> Calibration:
    data = ss_lens.load_dataset(
        positive=["w9 w10 w11", "w12 w13"], negative=["w90 w91 w92", "w93 w94"]
    )
    acts = ss_lens.capture(model, data, store=ss_lens.Store(tmp_path / "store"))
    return ss_lens.calibrate(acts, rule="uniform")
