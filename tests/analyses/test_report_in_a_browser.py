"""In headless Chromium: the dial turns by mouse and keys, texts follow, nothing leaves the page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analyses.report import write_report
from analyses.report.contents import PLAIN_CLASSES
from analyses.report.page import page
from tests.analyses.made_reports import HOSTILE, made_contents, made_sweep

Open = Callable[..., Any]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open HTML text or a file; afterwards nothing was requested and nothing complained."""
    complaints: list[str] = []
    contexts = []

    def opened(what: str | Path, *, width: int = 1280, dark: bool = False) -> Any:
        path = what if isinstance(what, Path) else tmp_path / "report.html"
        if isinstance(what, str):
            path.write_text(what, "utf-8")
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "request",
            lambda asked: asked.url == path.as_uri() or complaints.append(f"asked {asked.url}"),
        )
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready=yes]", timeout=20_000)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def _theta(tab: Any) -> str:
    return tab.locator("#dial .theta").text_content()


def test_the_dial_turns_by_keys_around_the_whole_circle(show: Open) -> None:
    tab = show(page(made_contents()))
    slider = tab.locator("#theta")
    assert _theta(tab) == "180°"
    slider.focus()
    seen = []
    for _ in range(4):
        slider.press("ArrowRight")
        seen.append(_theta(tab))
    assert seen == ["270°", "0°", "90°", "180°"]
    slider.press("ArrowLeft")
    assert _theta(tab) == "90°"
    assert slider.get_attribute("aria-valuetext").startswith("90°, refusal score")
    slider.press("Home")
    slider.press("ArrowLeft")
    assert _theta(tab) == "270°"


def test_the_dial_turns_by_dragging_and_snaps_to_measured_angles(show: Open) -> None:
    tab = show(page(made_contents()))
    box = tab.locator("#dial").bounding_box()
    x, y, radius = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"] / 3
    tab.mouse.move(x + radius, y + 20)  # a little after 90°
    tab.mouse.down()
    assert _theta(tab) == "90°"
    tab.mouse.move(x + 12, y - radius, steps=8)
    assert _theta(tab) == "0°"
    tab.mouse.up()
    tab.mouse.move(x, y + radius)
    assert _theta(tab) == "0°"  # let go
    assert tab.evaluate("document.activeElement.id") == "theta"


def test_values_at_the_angle_and_the_control_band_are_read_off(show: Open) -> None:
    tab = show(page(made_contents()))
    rows = tab.locator("#legend tbody tr")
    tab.locator("#theta").focus()
    assert "−2.00" in rows.nth(0).inner_text()
    assert "−4.00" in rows.nth(0).inner_text()  # from unsteered
    tab.locator("#theta").press("ArrowLeft")
    assert "0.00" in rows.nth(0).inner_text()
    control = rows.nth(2).inner_text()
    assert "+1.50" in control
    assert "[+1.00, +1.75]" in control
    assert "8 draws" in control
    assert "−0.50" in control
    assert tab.locator("#curves .range").count() == 1  # of the score; the mass has no range
    rows.nth(2).locator("input").uncheck()
    assert tab.locator("#curves .range").count() == 0


def test_texts_follow_the_dial_and_say_where_there_are_none(show: Open) -> None:
    tab = show(page(made_contents()))
    harmless = tab.locator("#answers details").nth(0)
    assert "3 harmless prompts" in harmless.inner_text()
    assert "at 180 words" in harmless.inner_text()
    assert "own words" in harmless.inner_text()
    tab.locator("#theta").focus()
    tab.locator("#theta").press("ArrowRight")
    assert tab.locator("#answers details").count() == 0
    said = tab.locator("#answers-said")
    assert "No answers were written at 270°, only scores." in said.inner_text()
    said.locator("button").first.click()
    assert _theta(tab) in ("0°", "180°")
    tab.locator("#back").click()
    tab.locator("#on").click()
    assert tab.locator("#answers details").count() == 2


def test_at_zero_the_models_own_answers_stand_alone(show: Open) -> None:
    tab = show(page(made_contents()))
    tab.locator("#jumps button", has_text="0°").first.click()
    assert _theta(tab) == "0°"
    assert "nothing is steered" in tab.locator("#answers-said").inner_text()
    assert "at 180 words" not in tab.locator("#answers").inner_text()


def test_answers_to_harmful_prompts_are_folded_away_until_opened(show: Open) -> None:
    tab = show(page(made_contents()))
    harmful = tab.locator("#answers details").nth(1)
    assert not harmful.locator(".answer").count()
    assert "refused 3 → 0" in harmful.inner_text()
    harmful.locator("summary").click()
    harmful.locator(".answer").nth(5).wait_for()
    assert harmful.locator(".answer").count() == 6
    assert "first words only" in harmful.inner_text()
    table = tab.locator("#samples")
    tab.locator("#by-class").select_option(label="harmful")
    assert "words" not in table.inner_text()
    assert "folded away" in table.inner_text()
    tab.locator("#show-folded").check()
    assert "at 180 words" in table.inner_text()


def test_answers_of_another_behaviour_say_whether_they_show_it_and_not_whether_they_refuse(
    show: Open,
) -> None:
    made = made_contents(classes=PLAIN_CLASSES)
    samples = made.samples.assign(
        shown=[1.0, 0.0] * 2 + [math.nan] * 2 + [0.0, 1.0] * 3, behaviour_score=1.5
    ).drop(columns="refusal_score")
    scores = {"shown": "shown", "refused": "refused", "behaviour_score": "score"}
    tab = show(page(replace(made, samples=samples, scores=scores)))
    negative = tab.locator("#answers details").first
    assert "shown 0 → 3" in negative.inner_text()
    chips = negative.locator(".chips").all_inner_texts()
    assert any("not shown" in text and "+1.50 nats" in text for text in chips)
    assert not any("refused" in text or "answered" in text for text in chips)
    cells = tab.locator("#samples tbody tr").first.inner_text()
    assert "yes" in cells


def test_hostile_texts_are_shown_as_they_are(show: Open) -> None:
    tab = show(page(made_contents(title="made up")))
    assert tab.title() == "made up · ss_lens"
    assert HOSTILE in tab.locator("#answers").inner_text()
    assert tab.locator("img").count() == 0


def test_samples_are_filtered_and_sorted(show: Open) -> None:
    tab = show(page(made_contents()))
    rows = tab.locator("#samples tbody tr")
    assert rows.count() == 12
    tab.locator("#by-text").fill("negative prompt 1")
    assert rows.count() == 2
    tab.locator("#by-text").fill("")
    tab.locator("#by-angle").select_option(label="180°")
    assert rows.count() == 6
    heading = tab.locator("#samples thead button", has_text="refusal score")
    heading.click()
    column = [cells.split("\t")[-1] for cells in rows.all_inner_texts()]
    assert column == ["−2.50", "−2.50", "−1.50", "−1.50", "−0.50", "−0.50"]
    heading.click()
    assert rows.first.inner_text().endswith("−0.50")
    assert heading.locator("..").get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows_the_page_at_any_width(show: Open, width: int, dark: bool) -> None:
    tab = show(page(made_contents()), width=width, dark=dark)
    tab.locator("#answers details").nth(1).locator("summary").click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_costs_show_where_the_dial_stands(show: Open) -> None:
    tab = show(page(made_contents()))
    rings = tab.locator("#entangled .cursor circle, #against-text .cursor circle")
    assert rings.count() == 2
    before = rings.last.get_attribute("cx")
    tab.locator("#theta").press("Home")
    assert rings.count() == 2
    assert rings.last.get_attribute("cx") != before


def test_the_map_of_sites_is_read_by_keys(show: Open) -> None:
    tab = show(page(made_contents()))
    said = tab.locator("#map-said")
    assert said.inner_text().startswith("L3.ln2_out, steered, gives the direction")
    tab.locator("#map svg").focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowUp")
    assert said.inner_text().startswith("L2.ln1_out, steered")
    tab.keyboard.press("ArrowLeft")
    assert said.inner_text().startswith("L1.ln1_out, not steered")
    assert "side not settled: harmful, harmless" in said.inner_text()
    tab.get_by_label("cosine of its direction with b1").check()
    tab.locator("#cosines").focus()
    tab.keyboard.press("ArrowLeft")
    assert "cosine" in tab.locator("#cosines-said").inner_text()


def test_one_prompt_and_two_hundred_angles_stay_usable(show: Open) -> None:
    angles = tuple(1.8 * place for place in range(200))
    tab = show(page(made_contents(angles, with_texts=angles, n_prompts=1)))
    slider = tab.locator("#theta")
    assert slider.get_attribute("max") == "199"
    slider.focus()
    slider.press("ArrowRight")
    assert _theta(tab) == "181.8°"
    assert "at 181.8 words" in tab.locator("#answers").inner_text()
    assert tab.locator("#dial .told").count() == 200


def test_a_sweep_of_ten_thousand_rows_opens_and_turns_within_a_second(
    show: Open, tmp_path: Path
) -> None:
    made = made_sweep(tmp_path / "sweep", n_angles=25, n_prompts=40, seeds=4)
    assert len(made.table) == 10_000
    path = write_report(tmp_path / "sweep")
    started = time.monotonic()
    tab = show(path)
    opened = time.monotonic() - started
    slider = tab.locator("#theta")
    slider.focus()
    started = time.monotonic()
    for _ in range(10):
        slider.press("ArrowRight")
    turned = (time.monotonic() - started) / 10
    # Ten times what a machine at rest takes, since tests run beside others.
    assert opened < 10
    assert turned < 1
    tab.locator("#by-text").fill("prompt 39")
    assert "of 252 " in tab.locator("#counted").inner_text()
