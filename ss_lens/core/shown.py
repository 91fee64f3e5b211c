"""How values show themselves: a few lines of text, and a card of HTML in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

LINE, PARAGRAPH = 150, 1500
"""Characters of a line of text, and of a value in a card, before it is cut."""


def in_lines(title: str, facts: Mapping[str, str]) -> str:
    """The text of ``repr``: a title, and one short line per fact."""
    width = max(map(len, facts), default=0) + 1
    lines = [title, *(f"  {f'{name}:':<{width}} {value}" for name, value in facts.items())]
    return "\n".join(map(shortened, lines))


def shortened(text: str, length: int = LINE) -> str:
    """The text in one line, cut where it is longer."""
    line = text.replace("\n", " ").rstrip()
    return line if len(line) <= length else f"{line[: length - 1]}…"


def listed(names: Sequence[object], most: int = 4) -> str:
    """The first few names, and how many more there are.

    >>> listed([1, 2, 3], most=2)
    '1, 2 and 1 more'
    """
    rest = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {rest} more" if rest > 0 else "")


def card(title: str, facts: Mapping[str, str], *parts: str) -> str:
    """HTML that needs nothing from elsewhere and takes its colours from the page around it.

    Args:
        title: as text.
        facts: names and values, as text.
        parts: HTML below them: pictures and tables.
    """
    rows = "".join(
        f'<tr><th scope="row" style="{_HEAD}">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(shortened(value, PARAGRAPH))}</td></tr>'
        for name, value in facts.items()
    )
    table = f'<table style="{_TABLE}"><tbody>{rows}</tbody></table>' if rows else ""
    heading = f'<div style="font-weight:600;padding:0 0 4px 0">{escape(shortened(title))}</div>'
    return f'<div style="max-width:100%;overflow-x:auto">{heading}{table}{"".join(parts)}</div>'


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "", length: int = 80
) -> str:
    """An HTML table of texts and numbers, each escaped and cut at ``length`` characters."""
    head = "".join(f'<th scope="col" style="{_HEAD}">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{_CELL}">{_cell(value, length)}</td>' for value in row)
        + "</tr>"
        for row in rows
    )
    told = f'<caption style="{_CAPTION}">{escape(caption)}</caption>' if caption else ""
    return (
        f'<table style="{_TABLE};margin-top:8px">{told}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _cell(value: object, length: int) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return escape(shortened(text, length))


_CELL = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;border:0"
_HEAD = f"{_CELL};font-weight:600;white-space:nowrap"
_TABLE = "border-collapse:collapse;border:0;margin:0;background:none;color:inherit"
_CAPTION = "text-align:left;padding:0 0 2px 0;color:inherit;caption-side:top"
