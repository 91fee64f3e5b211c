"""The pages on serving an export: each block of Python runs, and steers as ``steer(...)`` does."""

from __future__ import annotations

import asyncio
import json
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, RotateBy, Store
from ss_lens.cli.main import main
from tests.documents.pages import blocks
from tests.documents.readme import ROOT
from tests.fitting import fitted_on
from tests.gguf_files import tiny_gguf as tiny_gguf
from tests.oracles import relative_error

CLIENT = ROOT / "docs" / "examples" / "turn_dial.py"
ASKED: dict[str, Any] = {"prompts": ["w9 w70"], "max_new_tokens": 1}
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries on the other side


def python_of(page: str) -> list[str]:
    return [b.text for b in blocks() if b.page == f"docs/how-to/{page}" and b.language == "python"]


def run(block: str, names: dict[str, Any]) -> None:
    exec(compile(block, "a page", "exec"), names)


def test_every_block_of_the_page_on_peft_steers(
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiny_folders["llama"], tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    model = ss_lens.load_model("base")
    calibration = fitted_on(model, tiny_data, Store(tmp_path / "store"))
    for kind, operator in (("lora", RotateBy(30)), ("merged", RotateBy(30)), ("dial", RotateBy)):
        out = f"runs/{kind}"
        ss_lens.export(calibration, model, operator, kind=kind, out=out, **ASKED)  # type: ignore[arg-type]
    one, dial, merged = python_of("serve-peft.md")
    ids = torch.arange(8, 20)[None]
    for block, name, angle in ((one, "model", 30), (dial, "model", 200), (merged, "merged", 30)):
        names: dict[str, Any] = {}
        run(block, names)
        with torch.inference_mode():
            got = names[name].eval()(input_ids=ids).logits
            with ss_lens.steer(model, calibration, RotateBy(angle)):
                expected = model(ids)
        assert relative_error(got, expected) < 1e-4


def test_every_export_of_the_serving_pages_runs(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, on a GGUF file; compared on one prompt, as its context is short."""
    shutil.copy(tiny_gguf[0], tmp_path / "base.gguf")
    monkeypatch.chdir(tmp_path)
    data = ContrastiveDataset("t", ("a", "ab", "abc"), ("Z", "ZY", "ZYX"))
    calibration = fitted_on(ss_lens.load_model("base.gguf"), data, Store(tmp_path / "store"))
    calibration.save("runs/sentiment/calibration")
    asked = {"prompts": ["ab"], "max_new_tokens": 1}
    monkeypatch.setattr(ss_lens, "export", partial(ss_lens.export, **asked), raising=False)
    shown = [b for b in blocks() if b.language == "bash" and "/serve-" in b.page]
    lines = [line for block in shown for line in block.commands if "--server" not in line]
    kinds = {"dial", "lora", "bank", "merged", "gguf-lora"}
    assert {line.partition("--as ")[2].split()[0] for line in lines} == kinds
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code, line
    assert (tmp_path / "runs" / "merged" / "model.gguf").is_file()
    assert (tmp_path / "runs" / "adapter" / "adapter.gguf").is_file()


class Dial:
    """A server that the page started on a tiny model, and what else the page names."""

    def __init__(self, model: Any, calibration: Calibration, names: dict[str, Any]) -> None:
        self.model, self.calibration, self.names = model, calibration, names
        names["address"] = names["server"].listening_address

    def steered(self, angle: float) -> str:
        """The beginning of our own answer, in a context that holds no more."""
        with ss_lens.steer(self.model, self.calibration, RotateBy(angle)):
            return ss_lens.generate(self.model, ["ab"], max_new_tokens=16)[0]


@pytest.fixture(scope="module")
def dial(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dial]:
    pytest.importorskip("xllamacpp", reason="xllamacpp, which holds llama.cpp, is not here")
    folder = tmp_path_factory.mktemp("llama_cpp")
    shutil.copy(tiny_gguf[0], folder / "base.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = ss_lens.load_model("base.gguf")
        data = ContrastiveDataset("t", ("a", "ab", "abc"), ("Z", "ZY", "ZYX"))
        calibration = fitted_on(model, data, Store(folder / "store"))
        asked = {"prompts": ["ab"], "max_new_tokens": 1}
        ss_lens.export(calibration, model, RotateBy, kind="dial", out="runs/dial", **asked)
        names: dict[str, Any] = {}
        run(python_of("serve-llama-cpp.md")[0], names)
        yield Dial(model, calibration, names)
        names.clear()


def test_the_page_shows_the_client_as_it_is() -> None:
    assert python_of("serve-llama-cpp.md")[1] == CLIENT.read_text("utf-8")
    code = CLIENT.read_text("utf-8").partition("address")[2].splitlines()
    assert len(code) <= 10


def test_the_client_turns_a_running_server_once_around(
    dial: Dial, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["turn_dial.py", dial.names["address"], "ab"])
    runpy.run_path(str(CLIENT), run_name="__main__")
    told = dict(
        line.split("° ", 1) for line in capsys.readouterr().out.splitlines() if "° " in line
    )
    answers = {int(angle): text for angle, text in told.items()}
    assert [*answers] == [*range(0, 361, 45)]
    assert answers[0] == answers[360]
    assert len({*answers.values()}) > 4
    for angle, text in answers.items():
        assert text.startswith(dial.steered(angle).split("\ufffd")[0]), angle


def test_a_client_of_openai_steers(dial: Dial, capsys: pytest.CaptureFixture[str]) -> None:
    block = python_of("serve-llama-cpp.md")[2].replace("How was the film?", "ab")
    run(block, dial.names)
    assert capsys.readouterr().out.rstrip("\n")


def test_inspect_takes_the_server_as_a_model(dial: Dial) -> None:
    run(python_of("serve-llama-cpp.md")[3], dial.names)
    told = asyncio.run(dial.names["model"].generate("ab"))
    assert told.completion
    assert told.usage.output_tokens > 0


def test_lm_eval_takes_the_server_for_tasks_that_generate(dial: Dial) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr

    run(python_of("serve-llama-cpp.md")[4], dial.names)
    turns = JsonChatStr(json.dumps([{"role": "user", "content": "ab"}]))
    asked = Instance("generate_until", {}, (turns, {"until": ["\n\n"], "max_gen_toks": 8}), 0)
    (text,) = dial.names["model"].generate_until([asked], disable_tqdm=True)
    assert isinstance(text, str)
