"""Sections of a YAML file as frozen values; whatever is wrong with one is said in a sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ss_lens.core.checks import first_repeated
from ss_lens.core.errors import UserError, first_line


class Section(BaseModel):
    """A mapping in a configuration file.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing one, or a bad value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    section: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        _check_keys(values, self.section, set())
        try:
            super().__init__(**values)
        except ValidationError as error:
            found, known = error.errors(), [*type(self).model_fields]
            # A misspelt key is reported without the key that is missing for it.
            found = [one for one in found if one["type"] == "extra_forbidden"] or found
            told = dict.fromkeys(_problem(one, self.section, known) for one in found)
            raise UserError(" ".join(told)) from error


def read_yaml(path: Path | str, what: str) -> dict[str, Any]:
    """The mapping in a YAML file, by its safe loader; ``what`` names the file in errors.

    Raises:
        UserError: absent, no YAML, a repeated key, or no mapping.
    """
    try:
        values = yaml.load(Path(path).read_text("utf-8"), _UniqueKeys)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"there is no {what} {path}; check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "save it as UTF-8."
        ) from error
    except OSError as error:  # no permission, a loop of links, a name that is too long
        raise UserError(
            f"the {what} {str(path)[:80]} cannot be read ({error.strerror}); check the path."
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # a scalar like 2001-99-99 is a ValueError
        where = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as YAML: {where}.") from error
    except RecursionError:
        raise UserError(f"{path} cannot be read as YAML: it is nested too deep.") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(
            f"{path} is no {what}: it must hold keys with values, and holds "
            f"{'nothing' if values is None else repr(values)[:60]}."
        )
    return values


def unknown_key(key: str, section: str, known: Iterable[str]) -> str:
    """What to say of a key that is not among ``known``."""
    known = [*known]
    near = difflib.get_close_matches(key, known, n=1)
    return (
        f"unknown key {key!r} in {section}{f'; did you mean {near[0]!r}?' if near else '.'} "
        f"Valid keys: {', '.join(known)}."
    )


class _UniqueKeys(yaml.SafeLoader):
    """As ``yaml.safe_load``, which keeps the last of two equal keys and drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if (twice := first_repeated(keys)) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} appears twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _check_keys(value: Any, place: str, above: set[int]) -> None:
    """Raise at a key that is no text, as ``8:`` and ``.inf:`` are not; pydantic cannot take one."""
    if id(value) in above or not isinstance(value, Mapping | list | tuple):
        return  # an alias of YAML may hold itself
    above = {*above, id(value)}
    for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(value, Mapping) and not isinstance(key, str):
            raise UserError(
                f"the key {key!r:.40} in {place} is not a text; name a key of that section, or put "
                "the key in quotes."
            )
        _check_keys(one, f"{place}.{key}" if isinstance(value, Mapping) else place, above)


def _problem(one: Any, section: str, known: list[str]) -> str:
    """One of pydantic's findings, as what is wrong where and what is right."""
    first, *rest = one["loc"] or ("",)
    place = str(first) + "".join(f"[{part}]" for part in rest if isinstance(part, int))
    cause = one.get("ctx", {}).get("error")
    if one["type"] == "extra_forbidden":
        return unknown_key(place, section, known)
    if one["type"] == "missing":
        return f"{section} lacks {place}; its keys are {', '.join(known)}."
    if isinstance(cause, UserError):
        return f"{place}: {cause}" if place else str(cause)
    if one["type"] == "string_type" and isinstance(one["input"], bool):
        return (
            f"{place} of {section} is {one['input']}, as YAML reads yes, no, on and off, expected "
            "a text; put it in quotes."
        )
    message = first_line(cause) if cause else one["msg"]
    quoted = ""
    if one["type"] == "string_type" and isinstance(one["input"], int | float | date):
        quoted = ", so put it in quotes"
    return f"{place} is {one['input']!r}; {message[0].lower()}{message[1:]}{quoted}."
