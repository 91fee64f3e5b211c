"""Where the files of a model are: a folder, an id on the Hub, a GGUF file, beside an adapter."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ss_lens.core.checks import described
from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import sha256_of_file
from ss_lens.models import adapters
from ss_lens.models.delivery.kept import GGUF
from ss_lens.models.fetching import fetch, weights_digest
from ss_lens.models.identity import is_hub_id, last_part
from ss_lens.models.integrity import check_gguf
from ss_lens.models.sources import MODELS, Hub, unknown_model


@dataclass(frozen=True)
class Source:
    """Where a model is read from.

    Attributes:
        place: a folder, or an id on the Hub; of its configuration and its tokenizer.
        gguf: the file that holds the weights, where that is a GGUF file.
        described: whether the folder has its configuration and tokenizer beside it.
        revision: on the Hub.
    """

    place: str
    gguf: Path | None = None
    described: bool = True
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder that holds weights, configuration and tokenizer, where it is on this disk."""
        path = Path(self.place)
        return path if self.described and path.is_dir() else None

    def arguments(self) -> dict[str, Any]:
        gguf_file = None if self.described or self.gguf is None else self.gguf.name
        given = {"gguf_file": gguf_file, "revision": self.revision}
        return {key: value for key, value in given.items() if value is not None}


def check_name(name: str) -> None:
    """Raise for a name that no path can have, before anything is looked up under it."""
    try:
        Path(name).expanduser().stat()
    except FileNotFoundError:
        return
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, ~nobody, NUL
        if isinstance(error, NotADirectoryError):
            return
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise UserError(
            f"the model {described(name)} cannot be looked up ({reason}); check the name or path."
        ) from error


def resolve(name: str, revision: str | None) -> Source:
    """The source of a model that is no adapter, fetched where it is not there yet.

    Raises:
        UserError: an unknown name, an unavailable model, or a revision of what is not on the Hub.
    """
    source = _place_of(name, revision)
    if revision is not None and source.revision is None:
        raise UserError(
            f"revision={revision!r} is for models on the Hub, and {name!r} is not one; leave it "
            "out."
        )
    return source


def _place_of(name: str, revision: str | None) -> Source:
    if name in MODELS:
        first = MODELS[name].sources[0]
        if isinstance(first, Hub):
            return Source(first.repository, revision=revision)
        return _in_folder(fetch(name))
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        check_gguf(path)
        return Source(str(path.parent), gguf=path, described=False)
    if path.is_dir():
        return _in_folder(path)
    if is_hub_id(name):
        return Source(name, revision=revision)
    raise unknown_model(name)


def _in_folder(folder: Path) -> Source:
    """A local folder; one that was fetched may keep its weights as a GGUF file."""
    kept = folder / GGUF
    fetched = (folder / "source.json").is_file() and kept.is_file()
    return Source(str(folder), gguf=kept if fetched else None)


def base_of(adapter: adapters.Adapter, revision: str | None) -> Source:
    """The source of the model that an adapter is merged into.

    Raises:
        UserError: it is missing, an adapter itself, or another than the adapter was made for.
    """
    base = _base_beside(adapter) or adapter.base
    if adapters.adapter_folder(base):
        raise UserError(
            f"the adapter at {adapter.folder} is for {adapter.base!r}, which is an adapter itself, "
            "expected a base with weights of its own. Write that base as one model (ss-lens export "
            "--as merged --angle 0), and name its folder as base_model_name_or_path in "
            f"{adapters.CONFIG}."
        )
    try:
        source = resolve(base, revision or adapter.revision)
    except UserError as error:
        alone = base == last_part(base) and base not in MODELS
        beside = f" Put {base!r}, or a link to it, beside the adapter's folder." if alone else ""
        raise type(error)(  # also where it is Unavailable, which a caller may fall back on
            f"the base model of the adapter at {adapter.folder} is missing: {error}{beside}"
        ) from error
    if source.folder:
        adapters.check_base(adapter, weights_digest(source.folder))
    elif source.gguf and adapter.base_sha256:
        adapters.check_base(adapter, sha256_of_file(source.gguf))
    return source


def _base_beside(adapter: adapters.Adapter) -> str | None:
    """The base beside the adapter's folder, where the adapter has no more than its name.

    An export names a local base so. A registered name and a path in the working folder go first.
    """
    name = adapter.base
    if name != last_part(name) or name in MODELS or Path(name).exists():
        return None
    beside = Path(os.path.abspath(adapter.folder)).parent / name
    return str(beside) if beside.exists() else None
