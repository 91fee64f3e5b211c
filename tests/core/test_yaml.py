"""Configuration files: what cannot be read or is no text in its place is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from ss_lens import SweepConfig, UserError
from ss_lens.core.yaml import Section, read_yaml


class Part(Section):
    section: ClassVar[str] = "part"
    value: int = 0


class Whole(Section):
    section: ClassVar[str] = "whole"
    part: Part = Part()
    free: Any = None


def test_a_loop_of_links_and_a_name_that_is_too_long_are_one_clear_line(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    for path, reason in ((loop, "symbolic links"), (tmp_path / ("x" * 300), "name too long")):
        with pytest.raises(UserError) as caught:
            read_yaml(path, "configuration")
        message = str(caught.value)
        assert "\n" not in message
        assert reason in message
        assert message.startswith("the configuration /")
        assert message.endswith("check the path.")


@pytest.mark.parametrize("key", [8, float("inf"), None, True, (1, 2)])
def test_a_key_that_is_no_text_is_named_wherever_it_stands(key: object) -> None:
    for values, place in (
        ({"part": {key: 1}}, "whole.part"),
        ({"part": {"value": 1, key: None}}, "whole.part"),
        ({"free": [{"deep": {key: 1}}]}, "whole.free.deep"),
    ):
        with pytest.raises(UserError) as caught:
            Whole(**values)
        assert f"the key {key!r} in {place} is not a text" in str(caught.value)
    with pytest.raises(UserError, match=r"in the sweep\.grid\.angles_deg is not a text"):
        SweepConfig(grid={"model": "m", "angles_deg": {"step": 60, key: 1}})  # type: ignore[arg-type]


def test_an_alias_that_holds_itself_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "itself.yaml"
    path.write_text("part: &a {value: 3, more: *a}\n")
    with pytest.raises(UserError, match="unknown key 'more'"):
        Whole(**read_yaml(path, "configuration"))
