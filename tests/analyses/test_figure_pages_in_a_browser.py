"""In headless Chromium, at 390 and 1280 pixels, a page cuts off neither legend nor scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from analyses import logit_lens, output, site_effects, token_projections
from tests.analyses.test_logit_lens import lens_table
from tests.analyses.test_site_effects import made_up as effects
from tests.analyses.test_token_projections import made_up as projections

FIGURES: dict[str, Callable[[], go.Figure]] = {
    "logit_lens": lambda: logit_lens.figure(lens_table(), "here"),
    "logit_lens_tokens": lambda: logit_lens.token_figure(lens_table(), "here"),
    "site_effects": lambda: site_effects.figure(effects(), "here"),
    "token_projections": lambda: token_projections.figure(projections(), "here"),
}
BOTTOMS = """() => {
  const bottom = (one) => one.getBoundingClientRect().bottom;
  const inside = [...document.querySelectorAll(".legend text, .colorbar text")].map(bottom);
  return [Math.max(0, ...inside), bottom(document.querySelector("main"))];
}"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", FIGURES)
def test_a_page_shows_all_of_its_legend_and_scale_and_asks_for_nothing(
    name: str, width: int, browser: Any, tmp_path: Path
) -> None:
    path, complaints = tmp_path / f"{name}.html", []
    output.write(FIGURES[name](), path)
    tab = browser.new_page(viewport={"width": width, "height": 800})
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request",
        lambda asked: asked.url == path.as_uri() or complaints.append(f"asked {asked.url}"),
    )
    tab.goto(path.as_uri())
    tab.wait_for_selector(".main-svg", timeout=20_000)
    tab.wait_for_timeout(500)  # the legend is laid out anew
    lowest, end = tab.evaluate(BOTTOMS)
    tab.close()
    assert 0 < lowest <= end
    assert complaints == []
