"""The commands that look inside write a table and a page each, and refuse what they cannot do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import ss_lens
from analyses import output
from analyses.logit_lens import __main__ as logit_lens
from analyses.site_effects import __main__ as site_effects
from analyses.token_projections import __main__ as token_projections
from ss_lens import UserError, load_dataset

COMMANDS: dict[str, Callable[..., None]] = {
    "logit_lens": logit_lens.main,
    "site_effects": site_effects.main,
    "token_projections": token_projections.main,
}
WRITTEN = {
    "logit_lens": ("logit_lens", "logit_lens_tokens"),
    "site_effects": ("site_effects",),
    "token_projections": ("token_projections_positive_0", "token_projections_negative_0"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_its_tables_and_self_contained_pages(
    name: str,
    tiny_folders: dict[str, Path],
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The tiny model has no discriminative site.
    monkeypatch.setattr(ss_lens, "calibrate", partial(ss_lens.calibrate, rule="uniform"))
    less = {"draws": 1} if name == "site_effects" else {}
    COMMANDS[name](str(tiny_folders["qwen2"]), str(prompts_file), prompts=1, out=tmp_path, **less)
    printed = capsys.readouterr().out
    for stem in WRITTEN[name]:
        page = (tmp_path / f"{stem}.html").read_text("utf-8")
        assert not re.search(r'<script[^>]+src="http', page)
        assert len(pd.read_csv(tmp_path / f"{stem}.csv")) > 0
        assert str(tmp_path / f"{stem}.html") in printed
    assert ("- On 1 positive prompt all " in printed) == (name == "site_effects")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_takes(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"analyses.{name}", "--help"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in ("--model", "--angle", "--prompts", "--out"))


@pytest.mark.parametrize("prompts", [0, 25])
@pytest.mark.parametrize("name", COMMANDS)
def test_more_prompts_than_there_are_is_said_before_a_model_is_loaded(
    name: str, prompts: int
) -> None:
    with pytest.raises(UserError, match=rf"--prompts must be 1 to 24 per class; got {prompts}\."):
        COMMANDS[name]("no model", "refusal", prompts=prompts)


def test_held_out_prompts_are_the_first_of_the_test_part() -> None:
    parts = output.split("refusal")
    some = output.held_out(parts, 3)
    assert some.positive == parts.test.positive[:3]
    assert not {*some.positive} & {*parts.train.positive}
    assert len(load_dataset("refusal").positive) > 3


def test_a_site_that_is_none_and_an_angle_that_is_none_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="'12' is not a site; sites are written like"):
        token_projections.main("no model", site=["12"])
    with pytest.raises(UserError, match="angle 90 is given twice"):
        logit_lens.main("no model", angle=[90.0, 90.0])
