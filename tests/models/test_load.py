"""Loading models: from folders and the Hub, on a device, in a dtype, with or without damage."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ss_lens
from ss_lens import UserError
from ss_lens.models.loading.devices import dtype_named
from ss_lens.models.loading.fingerprint import identify
from tests.conftest import ARCHITECTURES
from tests.gguf_files import logits_of
from tests.oracles import HuggingFaceOracle, relative_error

SECRET = "hf_" + "NeverToBeSeenAnywhere42"


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
    ("device", "avx512", "amx", "dtype"),
    [
        ("cpu", False, False, torch.float32),
        ("cpu", True, False, torch.bfloat16),
        ("cpu", False, True, torch.bfloat16),
        ("cuda", False, False, torch.bfloat16),
    ],
)
def test_fast_is_bfloat16_only_where_it_is_multiplied_natively(
    device: str, avx512: bool, amx: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert dtype_named("fast", device) is dtype


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "smolm2-135m"}, "unknown model 'smolm2-135m'; did you mean 'smollm2-135m'"),
        ({"name": "qwen2.5-1b"}, "did you mean 'qwen2.5-1.5b'"),
        ({"name": "zzzz"}, r"unknown model 'zzzz'\. Expected one of smollm2-135m.*a Hub id like"),
        ({"name": "/nowhere/at/all"}, "unknown model '/nowhere/at/all'"),
        ({"name": "./nowhere"}, r"unknown model '\./nowhere'\. Expected .*a local folder"),
        ({"name": "/nowhere/model.gguf"}, r"there is no file /nowhere/model\.gguf"),
        ({"device": "abacus"}, "device 'abacus' is not available here; use auto, cpu, cuda"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; use auto, fast, float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_what_can(
    asked: dict[str, str], message: str, tiny_folders: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message):
        ss_lens.load_model(**{"name": str(tiny_folders["llama"]), **asked})


@pytest.mark.parametrize("asked", [{"device": "abacus"}, {"dtype": "float8"}])
def test_device_and_dtype_are_refused_before_a_model_is_fetched(
    asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ss_lens.models.loading.places.fetch", None)
    with pytest.raises(UserError, match=r"abacus|float8"):
        ss_lens.load_model(**asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_that_names_the_alternatives(
    tiny_folders: dict[str, Path],
) -> None:
    with pytest.raises(UserError, match="device 'cuda' is not available here; use auto, cpu"):
        ss_lens.load_model(tiny_folders["llama"], device="cuda")


def test_a_folder_without_a_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    message = f"model '{tmp_path}' could not be loaded: the folder holds no config.json. Name a"
    with pytest.raises(UserError, match=message):
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


# --- what is refused of files --------------------------------------------------------------------

Edit = Callable[[dict[str, torch.Tensor]], object]


def edited(folder: Path, to: Path, edit: Edit | None = None, **settings: object) -> Path:
    """A copy of a model folder with other weights, or with other settings."""
    shutil.copytree(folder, to)
    if edit is not None:
        tensors = load_file(to / "model.safetensors")
        edit(tensors)
        save_file(tensors, to / "model.safetensors", {"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **settings}))
    return to


LAST = "model.layers.2.mlp.down_proj.weight"
UNFIT: dict[str, tuple[Edit | None, dict[str, object], str]] = {
    "a tensor missing": (lambda t: t.pop(LAST), {}, f"lacks '{LAST}', which would be random"),
    "all tensors missing": (
        lambda t: [t.pop(key) for key in list(t)[1:]], {}, r"lacks '.*' and \d+ more",
    ),
    "more layers than weights": (
        None, {"num_hidden_layers": 4}, r"lacks 'model\.layers\.3\..*' and 8 more",
    ),
    "fewer layers than weights": (
        None, {"num_hidden_layers": 2}, r"has 'model\.layers\.2\..*' and 8 more, for which",
    ),
    "a foreign tensor": (
        lambda t: t.update({"model.extra.weight": torch.ones(3)}), {}, "has 'model.extra.weight'",
    ),
    "another shape": (
        lambda t: t.update({LAST: torch.ones(3, 3)}), {}, "could not be loaded: RuntimeError",
    ),
    "NaN": (
        lambda t: t[LAST][3].fill_(float("nan")), {}, f"'{LAST}' holds NaN or infinity in float32",
    ),
    "infinity": (
        lambda t: t["model.norm.weight"][3].fill_(float("inf")), {}, "'model.norm.weight' holds",
    ),
    "both infinities": (
        lambda t: t[LAST][0].copy_(torch.tensor([float("inf"), -float("inf")] * 24)), {}, "holds",
    ),
    "no number": (None, {"hidden_size": "many"}, "could not be loaded"),
    "no heads": (None, {"num_attention_heads": 0}, "could not be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit_or_are_not_finite_are_refused(
    case: str, tiny_folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit, settings, message = UNFIT[case]
    folder = edited(tiny_folders["llama"], tmp_path / "broken", edit, **settings)
    with pytest.raises(UserError, match=message) as caught:
        ss_lens.load_model(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the report of transformers says the same at length


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2"])
def test_tied_weights_and_known_buffers_are_not_missed(
    architecture: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """The file has no output weights; old GPT-2 files carry causal masks beside them."""

    def add_buffers(tensors: dict[str, torch.Tensor]) -> None:
        assert "lm_head.weight" not in tensors
        if architecture == "gpt2":
            tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)

    folder = edited(tiny_folders[architecture], tmp_path / "old", add_buffers)
    assert ss_lens.load_model(folder).cfg.n_layers == 3


def test_a_sum_that_overflows_is_not_taken_for_infinity(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    def fill(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"].fill_(60000)

    folder = edited(tiny_folders["llama"], tmp_path / "large", fill)
    ss_lens.load_model(folder, dtype="float16")
    with pytest.raises(UserError, match=r"in float16.*load in bfloat16 or float32"):
        ss_lens.load_model(
            edited(folder, tmp_path / "over", lambda t: t["lm_head.weight"].mul_(2)),
            dtype="float16",
        )


@pytest.mark.parametrize("damage", ["{", "[]", '{"model": {"type": "BPE"}}', "\x00", "truncated"])
def test_a_damaged_tokenizer_is_an_error_that_names_the_model(
    damage: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = edited(tiny_folders["llama"], tmp_path / "broken")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text()[:400] if damage == "truncated" else damage)
    with pytest.raises(UserError, match=f"model '{folder}' could not be loaded") as caught:
        ss_lens.load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_revision_of_what_has_none_is_refused(tiny_folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"revision='main' is for models on the Hub, and .* is not"):
        ss_lens.load_model(tiny_folders["llama"], revision="main")


def test_names_that_no_path_can_have_are_one_clear_line(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for name in ("n" * 300, str(loop), "a\0b", "~nobody-of-that-name/model"):
        with pytest.raises(UserError, match=r"the model .* cannot be looked up \(.*check the name"):
            ss_lens.load_model(name)


def test_quantised_weights_without_their_package_are_not_called_damaged(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    message = "needs a package that is not here, as quantised weights do: install it, or name a"
    with pytest.raises(UserError, match=message) as caught:
        ss_lens.load_model(folder)
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)
