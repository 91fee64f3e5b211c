"""Rows of prompts from files and from the Hugging Face Hub."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ss_lens.core.errors import UserError, first_line

Row = Mapping[str, Any]

SUFFIXES = (".jsonl", ".json", ".csv")
CLASS_SUFFIXES = (*SUFFIXES, ".txt")
"""What may hold one class: also plain text, one prompt per line."""
HUB_PROMPT_COLUMNS = {"walledai/AdvBench": "prompt", "tatsu-lab/alpaca": "instruction"}


def is_file(source: str | Path, suffixes: Sequence[str] = SUFFIXES) -> bool:
    """Whether ``source`` names a data file (by its suffix) rather than a Hub dataset."""
    return Path(source).suffix.lower() in suffixes


def read_rows(path: Path) -> Sequence[Row]:
    """All rows of a ``.jsonl``, ``.json`` or ``.csv`` file, as mappings from column to value."""
    text = _read_text(path)
    match path.suffix.lower():
        case ".csv":
            rows = _csv_rows(text, path)
        case ".jsonl":
            rows = [
                _json(line, f"line {number} of {path}")
                for number, line in enumerate(text.split("\n"), start=1)
                if line.strip()
            ]
        case _:
            rows = _json_rows(_json(text, str(path)), path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise UserError(
                f"row {number} of {path} is {type(row).__name__}, not an object; expected rows "
                'like {"prompt": "...", "class": "positive"}.'
            )
    return rows


def read_lines(path: Path) -> list[str]:
    """The prompts of a ``.txt`` file: its lines, without the blank ones."""
    return [line for line in _read_text(path).split("\n") if line.strip()]


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"there is no file {path}; check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "save it as UTF-8."
        ) from error
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or holds NUL
        shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:79]}…"
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise UserError(f"{shown!r} cannot be read ({reason}); check the path.") from error


def _csv_rows(text: str, path: Path) -> Sequence[Row]:
    limit = csv.field_size_limit(len(text) + 1)  # of the whole process; else 128 kB
    try:
        reader = csv.DictReader(io.StringIO(text))
        header = list(reader.fieldnames or ())
        rows: list[dict[Any, Any]] = list(reader)
    except csv.Error as error:
        raise UserError(f"{path} is not CSV ({error}); save it again as CSV.") from error
    finally:
        csv.field_size_limit(limit)
    if repeated := {name for name in header if header.count(name) > 1}:
        raise UserError(
            f"column {min(repeated)!r} appears twice in the header of {path}; rename or remove one."
        )
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise UserError(
                f"row {number} of {path} has more cells than the header; put texts that contain "
                "commas in double quotes."
            )
    # A row with fewer cells than the header lacks the columns at its end.
    return [{name: cell for name, cell in row.items() if cell is not None} for row in rows]


def _json_rows(value: Any, path: Path) -> list[Any]:
    if isinstance(value, Mapping) and set(value) == {"positive", "negative"}:
        if not all(isinstance(prompts, list) for prompts in value.values()):
            raise UserError(f"'positive' and 'negative' of {path} must each be a list of prompts.")
        return [
            {"prompt": prompt, "class": label}
            for label, prompts in value.items()
            for prompt in prompts
        ]
    if isinstance(value, list):
        return value
    raise UserError(
        f"{path} holds neither a list of rows nor an object with exactly 'positive' and 'negative'."
    )


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is not read: it is nested too deep; flatten it.") from None
    except ValueError as error:  # also a number of too many digits
        raise UserError(f"{where} is not JSON ({error}); mend it.") from error


def read_hub_rows(source: str, prompt_column: str) -> tuple[Sequence[Row], str]:
    """Rows of the ``train`` split of a Hub dataset (or a local folder in its layout).

    Returns the rows and the column that holds the prompt: the documented one for the datasets in
    ``HUB_PROMPT_COLUMNS``, else ``prompt_column``. Alpaca rows with an ``input`` are left out,
    because their instruction alone is not a whole request; repeated prompts are kept once.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError:
        raise UserError('Hub datasets need the extra "hub": pip install "ss_lens[hub]".') from None
    column = HUB_PROMPT_COLUMNS.get(source, prompt_column)
    try:
        table = datasets.load_dataset(source, split="train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(
            f"the Hub dataset {source!r} could not be loaded ({first_line(error)}). "
            "Check the id and the network; for a gated dataset accept its terms and log in with "
            "`hf auth login`. A file is named by its suffix (.jsonl, .json, .csv, .txt)."
        ) from error
    unique: dict[Any, Row] = {}
    for number, row in enumerate(table):
        assert isinstance(row, Mapping)
        if source != "tatsu-lab/alpaca" or not row.get("input"):
            prompt = row.get(column)
            unique.setdefault(prompt if isinstance(prompt, str) else number, row)
    return list(unique.values()), column
