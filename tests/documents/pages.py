"""The fenced blocks of the README and of the documentation, and what each promises.

A block of ``python`` or ``bash`` is run, unless its fence says ``not-run``; then it is checked: the
names and arguments of Python, the options of a command. A block of ``yaml`` is a sweep, unless its
fence says that it is ``part`` of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.documents.readme import ROOT

MARKS = {
    "python": ("", "not-run"),
    "bash": ("", "not-run"),
    "yaml": ("", "part", "behaviour", "behaviour-part"),
}
"""What may follow the language in a fence that a reader would copy from."""
FIRST = ("README.md", "docs/reference/commands.md")
"""Their commands run first, in their order: what they leave behind, other pages use."""
FENCE = re.compile(r"^```([\w-]*) ?([^\n]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what its fence says, and its text."""

    page: str
    language: str
    mark: str
    text: str

    @property
    def commands(self) -> tuple[str, ...]:
        """The lines of a shell block without their comments."""
        lines = (line.split("  #")[0].strip() for line in self.text.splitlines())
        return tuple(line for line in lines if line)


def pages() -> dict[str, str]:
    """Path in the repository → text, of the README and of every page of the site."""
    found = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")]
    names = [*FIRST, *sorted({*found} - {*FIRST})]
    return {name: (ROOT / name).read_text("utf-8") for name in names}


def blocks() -> Iterator[Block]:
    """All fenced blocks, page by page."""
    for page, text in pages().items():
        for language, mark, inside in FENCE.findall(text):
            yield Block(page, language, mark, inside)


def commands_to_run() -> tuple[str, ...]:
    """Every command that is run, once, in an order in which each finds what it needs."""
    shown = (block for block in blocks() if block.language == "bash" and not block.mark)
    return tuple(dict.fromkeys(line for block in shown for line in block.commands))


def commands_to_check() -> tuple[str, ...]:
    """Every other command: of blocks that are not run, and in the tables' code."""
    marked = (b for b in blocks() if b.language == "bash" and b.mark)
    written = [line for block in marked for line in block.commands]
    for text in pages().values():
        rows = [line for line in text.splitlines() if line.startswith("|")]
        coded = [code for row in rows for code in re.findall(r"`([^`]+)`", row)]
        written += [code for code in coded if code.startswith(("ss-lens ", "python -m ", "make "))]
    return tuple(dict.fromkeys(written))
