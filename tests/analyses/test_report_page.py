"""The page says what its contents hold, escapes all of it, and needs neither torch nor network."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analyses.report.contents import SAMPLE_COLUMNS, Contents, Series
from analyses.report.costs import against_text, entanglement
from analyses.report.packed import as_json, number, packed
from analyses.report.page import page
from ss_lens import UserError
from tests.analyses.made_reports import HOSTILE, made_contents


def _data(text: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(found)


def test_the_page_has_title_language_and_viewport_and_loads_nothing() -> None:
    text = page(made_contents(title="a model · a dataset"))
    assert text.startswith("<!doctype html>")
    assert '<html lang="en">' in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "<title>a model · a dataset · ss_lens</title>" in text
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", text)
    assert "@import" not in text
    assert "url(" not in text


def test_texts_of_a_run_cannot_become_markup_or_end_the_script() -> None:
    text = page(made_contents())
    assert HOSTILE not in text
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert any(HOSTILE in string for string in _data(text)["samples"]["strings"])


@pytest.mark.parametrize("hostile", ["</script>", "<!--", "&amp;", "\u2028", "\ud800", '"\\'])
def test_any_text_survives_the_way_into_the_page(hostile: str) -> None:
    text = as_json({"text": hostile})
    assert not set(text) & set("<>&\u2028\ud800")
    assert json.loads(text) == {"text": hostile}


def test_numbers_that_are_not_finite_become_gaps() -> None:
    assert [number(value) for value in (math.nan, math.inf, -math.inf, None, pd.NA)] == [None] * 5
    contents = made_contents()
    broken = contents.curves.assign(refusal_score=np.nan)
    found = packed(replace(contents, curves=broken))
    assert found["series"][0]["values"]["refusal_score"]["mean"] == [None] * 4
    assert "NaN" not in page(replace(contents, curves=broken)).replace("isNaN", "")


def test_each_answer_knows_the_unsteered_one_to_the_same_prompt() -> None:
    samples = packed(made_contents(n_prompts=2))["samples"]
    text = [samples["strings"][code] for code in samples["text"]]
    for row, base in enumerate(samples["base"]):
        assert samples["prompt"][row] == samples["prompt"][base]
        assert samples["cls"][row] == samples["cls"][base]
        assert text[base].startswith("own words")
    assert samples["theta"] == [-1, 2] * 4
    assert len(samples["strings"]) == len(set(samples["strings"]))


def test_the_front_holds_what_no_other_point_beats_and_harmless_prompts_their_place() -> None:
    contents = made_contents()
    points = against_text(contents)
    assert points is not None
    # All have the same opening mass, so the lowest score alone, 2 cos 180°, is on the front.
    assert points.loc[points["on_front"], ["series", "angle_deg", "x"]].to_numpy().tolist() == [
        ["method", 180.0, -2.0]
    ]
    assert "harmless" not in {*points["series"]}
    both = entanglement(contents)
    assert both is not None
    np.testing.assert_allclose(both["x"], [2, 0, -2, 0], atol=1e-9)
    assert both["y"].tolist() == [-3] * 4
    # Negative controls: no such measure, no harmless prompts.
    score_alone = replace(contents, measures=contents.measures[:1])
    assert against_text(score_alone) is None
    curves = contents.curves.loc[contents.curves["series"] == "method"]
    assert entanglement(replace(contents, series=contents.series[:1], curves=curves)) is None


def test_the_page_weighs_little_beside_its_data() -> None:
    empty = Contents(title="nothing", subtitle="")
    assert len(page(empty).encode()) < 100_000
    contents = made_contents()
    assert len(page(contents).encode()) - len(as_json(packed(contents)).encode()) < 100_000


def test_a_report_without_results_shows_notes_and_commands_and_no_empty_dial() -> None:
    whole = made_contents()
    text = page(Contents(title="t", subtitle="s", notes=("not finished",), commands=whole.commands))
    assert "not finished" in text
    assert "ss-lens report" in text
    for absent in ('id="dial"', 'id="samples"', 'id="map"', 'id="verdict"'):
        assert absent not in text


def test_pages_are_drawn_without_torch() -> None:
    code = "import sys, analyses.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_contents_refuse_curves_without_a_name_and_samples_without_columns() -> None:
    with pytest.raises(UserError, match=r"the curves are of .* name each curve once"):
        made_contents(series=(Series("another", "method", "positive"),))
    with pytest.raises(UserError, match="the samples lack the columns response"):
        made_contents(samples=pd.DataFrame(columns=[*SAMPLE_COLUMNS[:-1]]))
