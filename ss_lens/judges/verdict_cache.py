"""Replies of paid judges on disk, so that none is paid for twice and none is lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ss_lens.core.errors import UserError
from ss_lens.core.files import cache_root, disk_errors, sha256_of_json
from ss_lens.core.sealed import read_sealed_json, write_sealed_json

FORMAT = 1
KEYS = frozenset({"format", "judge", "reply", "tokens"})
"""Of a file from before files were sealed; a sealed one says its ``key``, too."""


@dataclass(frozen=True)
class Reply:
    """What a judge wrote, and the tokens it took where the server told."""

    text: str
    tokens: int | None

    def __post_init__(self) -> None:
        if not (isinstance(self.text, str) and isinstance(self.tokens, int | None)):
            raise TypeError("a reply is a text and a number of tokens or None")


class VerdictCache:
    """One JSON file per question, named by the hash of the judge, the prompt and the response.

    The file holds the judge's reply, so that an unparsed one can be read and a better parser costs
    nothing; prompt and response are in its name only. It appears under its name when it is whole.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_root() / "verdicts"

    @staticmethod
    def key(judge: dict[str, Any], prompt: str, response: str) -> str:
        """The address of a verdict; ``judge`` is whatever it depends on besides the texts."""
        return sha256_of_json(
            {"format": FORMAT, "judge": judge, "prompt": prompt, "response": response}
        )

    def read(self, key: str) -> Reply | None:
        """The reply, or ``None`` where there is none.

        A file that is damaged, or that answers another question, is reported and counts as none.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            content = read_sealed_json(path, "verdict", unsealed=KEYS)
            if content["format"] != FORMAT or content.get("key", key) != key:
                raise TypeError("the verdict of another question")
            return Reply(content["reply"], content["tokens"])
        except (UserError, KeyError, TypeError):
            warnings.warn(f"the verdict at {path} is damaged; it is asked for again.", stacklevel=2)
            return None

    def write(self, key: str, judge: dict[str, Any], reply: Reply) -> None:
        """Keep a reply.

        Raises:
            UserError: the disk is full or may not be written to.
        """
        content = {"format": FORMAT, "key": key, "judge": judge}
        write_sealed_json(self._path(key), {**content, "reply": reply.text, "tokens": reply.tokens})

    @contextmanager
    def asking(self, key: str) -> Iterator[None]:
        """Held while a question is asked; another process with the same question waits.

        There are 256 locks, so that they do not litter the disk.
        """
        folder = self._path(key).parent
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
        with lock:
            yield

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"
