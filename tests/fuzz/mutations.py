"""Seeded damage to files: flips, truncations, edits and swaps, each described in words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**63, 10**400, 1e308, "", "x", "../../x", "\x00", "L3.ln1_out", [], {},
    [[]],
)  # fmt: skip
ODD_TEXTS = ("", "\n", '"', ": ", "- ", "[", "\ud800", "\x00", "9" * 400, ".inf", "{{ x", ",")


def files_of(folder: Path) -> list[Path]:
    """The visible files below ``folder``, in a fixed order."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def damage(folder: Path, draw: random.Random) -> str:
    """Damage one file below ``folder`` (or two) and say how."""
    paths = files_of(folder)
    path = draw.choice(paths)
    ways: list[Callable[[Path, random.Random], str]] = [_flip] * 4 + [
        _flip_several, _truncate, _extend, _delete, _zero,
    ]  # fmt: skip
    if path.suffix in (".json", ".jsonl"):
        ways += [_edit_json] * 5
    if path.suffix in (".yaml", ".csv", ".txt", ".jsonl", ".jinja"):
        ways += [_edit_text] * 4
    if len(paths) > 1:
        other = draw.choice([one for one in paths if one != path])
        ways.append(lambda first, _: _swap(first, other))
    return f"{draw.choice(ways)(path, draw)} in {path.relative_to(folder)}"


def _flip(path: Path, draw: random.Random, times: int = 1) -> str:
    data = bytearray(path.read_bytes())
    places = [draw.randrange(8 * len(data)) for _ in range(times if data else 0)]
    for place in places:
        data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"bits {places} flipped"


def _flip_several(path: Path, draw: random.Random) -> str:
    return _flip(path, draw, draw.randint(2, 12))


def _truncate(path: Path, draw: random.Random) -> str:
    data = path.read_bytes()
    length = draw.randrange(max(1, len(data)))
    path.write_bytes(data[:length])
    return f"cut to {length} bytes"


def _extend(path: Path, draw: random.Random) -> str:
    extra = draw.randbytes(draw.randint(1, 64))
    path.write_bytes(path.read_bytes() + extra)
    return f"{extra!r} appended"


def _delete(path: Path, draw: random.Random) -> str:
    path.unlink()
    return "removed"


def _zero(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes())
    start = draw.randrange(max(1, len(data)))
    length = min(draw.choice((1, 16, 512)), len(data) - start)
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    return f"{length} bytes from {start} on set to zero"


def _swap(first: Path, second: Path) -> str:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return f"exchanged with {second.name}"


def _edit_text(path: Path, draw: random.Random) -> str:
    text = path.read_text("utf-8", errors="surrogateescape")
    start = draw.randrange(max(1, len(text)))
    stop = start + draw.randint(0, 12)
    new = draw.choice(ODD_TEXTS)
    path.write_bytes((text[:start] + new + text[stop:]).encode("utf-8", errors="surrogatepass"))
    return f"characters {start}–{stop} replaced by {new!r:.20}"


def _edit_json(path: Path, draw: random.Random) -> str:
    lines = path.read_text("utf-8").split("\n") if path.suffix == ".jsonl" else None
    place = draw.randrange(len(lines)) if lines else 0
    text = lines[place] if lines else path.read_text("utf-8")
    try:
        value = json.loads(text)
    except ValueError:
        return _flip(path, draw)
    value, how = _edited(value, draw)
    text = json.dumps(value)
    if lines:
        lines[place] = text
        text = "\n".join(lines)
    path.write_text(text, "utf-8")
    return how


def _edited(value: Any, draw: random.Random) -> tuple[Any, str]:
    """A JSON value with one change somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        if draw.random() < 0.75:
            changed, how = _edited(value[key], draw)
            return {**value, key: changed}, f"{key}: {how}"
        rest = {name: one for name, one in value.items() if name != key}
        if draw.random() < 0.5:
            return rest, f"{key} removed"
        return {**rest, key + "x": value[key]}, f"{key} renamed"
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        way = draw.randrange(4)
        if way == 0:
            changed, how = _edited(value[place], draw)
            return [*value[:place], changed, *value[place + 1 :]], f"[{place}]: {how}"
        if way == 1:
            return value[:place] + value[place + 1 :], f"[{place}] removed"
        if way == 2:
            return [*value, value[place]], f"[{place}] repeated"
        return draw.sample(value, len(value)), "permuted"
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.7:
        changed = value + draw.choice((-1, 1, 0.5, 1000))
        return changed, f"{value} became {changed}"
    if isinstance(value, str) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        changed = value[:place] + draw.choice("0aZ. \ud7ff") + value[place + 1 :]
        return changed, f"{value!r:.30} became {changed!r:.30}"
    odd = draw.choice(ODD_VALUES)
    return odd, f"{value!r:.30} became {odd!r:.30}"
