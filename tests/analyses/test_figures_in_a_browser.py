"""In headless Chromium: a page with a figure is whole at the width of a telephone and of a desk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analyses import ablations, angle_response, output
from analyses.run_figures import cosine_heatmap, dial, norm_growth, sign_agreement
from tests.analyses.test_printed import (
    cosine_table,
    curve_table,
    dial_table,
    norm_table,
    response_table,
    sign_table,
)

FIGURES = {
    "dial": lambda: dial.figure(dial_table(), "a word " * 30),
    "sign_agreement": lambda: sign_agreement.figure(sign_table(), "here"),
    "norm_growth": lambda: norm_growth.figure(norm_table(), "here"),
    "cosine_heatmap": lambda: cosine_heatmap.figure(cosine_table(), "here"),
    "polar": lambda: ablations.polar(curve_table(12, 8), "here"),
    "angle_response": lambda: angle_response.figure(response_table(), "here"),
}
BOXES = """() => {
  const box = (e) => { const b = e.getBoundingClientRect();
                       return {left: b.left, right: b.right, top: b.top, bottom: b.bottom}; };
  const all = (names) => [...document.querySelectorAll(names)].map(box);
  return {page: [document.documentElement.scrollWidth, document.documentElement.scrollHeight],
          plot: box(document.querySelector("main > div")),
          holder: box(document.querySelector("main")),
          panels: all(".xtick text, .ytick text, .xtitle, .angularaxistick text"),
          legend: all(".legend .bg"), entries: all(".legend text"),
          texts: all(".xtitle, .ytitle, .annotation text")};
}"""


@pytest.mark.parametrize("name", [*FIGURES])
def test_nothing_is_cut_off_and_no_legend_lies_over_a_panel(
    name: str, browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.html"
    output.write(FIGURES[name](), path)
    for width in (390, 1280):
        complaints: list[str] = []
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.on("pageerror", lambda error, found=complaints: found.append(str(error)))
        tab.on(
            "request",
            lambda asked, found=complaints: asked.url == path.as_uri() or found.append(asked.url),
        )
        tab.goto(path.as_uri())
        tab.wait_for_selector(".main-svg")
        tab.wait_for_timeout(800)  # the height follows the legend's rows
        seen = tab.evaluate(BOXES)
        tab.close()
        assert not complaints
        assert seen["page"][0] <= width  # panels that need more scroll within the page
        plot, holder = seen["plot"], seen["holder"]
        assert holder["bottom"] >= plot["bottom"] - 1
        for box in (*seen["entries"], *seen["texts"], *seen["legend"]):
            assert box["left"] >= plot["left"] - 1, (name, width, box)
            assert box["right"] <= plot["right"] + 1, (name, width, box)
            assert box["top"] >= plot["top"] - 1, (name, width, box)
            assert box["bottom"] <= plot["bottom"] + 1, (name, width, box)
        assert seen["panels"], name
        for legend in seen["legend"]:
            assert all(legend["top"] >= panel["bottom"] for panel in seen["panels"])
