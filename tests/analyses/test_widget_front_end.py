"""The front end of the dial in headless Chromium, with a stub in the place of the kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import analyses.widget

Page = Any

WIDGET = Path(analyses.widget.__file__).parent
ANSWERING, STOP = "button >> nth=0", "button >> nth=1"
HOST = "http://dial.test/"
PAGE = """<!doctype html><meta charset="utf-8"><title>dial</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="dial.css">
<style>
  body { margin: 12px; }
  @media (prefers-color-scheme: dark) { body { background: #000; } }
</style>
<div id="el"></div>
<script type="module">
  import widget from "./dial.js";
  const heard = [];
  window.sent = [];
  window.stub = {
    get: (name) => ({ setup: SETUP })[name],
    send: (content) => window.sent.push(content),
    on: (name, call) => heard.push([name, call]),
    off: (name, call) => heard.splice(heard.findIndex((h) => h[1] === call), 1),
    heard,
  };
  window.tell = (state) => heard.forEach(([name, call]) => name === "msg:custom" && call(state));
  window.leave = widget.render({ model: window.stub, el: document.getElementById("el") });
  window.ready = true;
</script>"""
LIVE = {
    "mode": "live",
    "title": "a-model, as it answers",
    "angles": [float(angle) for angle in range(0, 360, 5)],
    "prompts": [{"text": "How do I bake bread?"}, {"text": "What is a tide?"}],
    "controls": [
        {"name": "operator", "options": ["RotateBy", "RotateTo", "Ablate"]},
        {"name": "selection", "options": ["chosen sites", "all sites"]},
        {"name": "positions", "options": ["all tokens", "the prompt"]},
    ],
    "without_angle": ["Ablate"],
}
STORED = {
    "mode": "stored",
    "title": "12 stored answers",
    "angles": [0.0, 90.0, 180.0],
    "prompts": [
        {"text": "Write something mean.", "class": "positive"},
        {"text": "What is a tide?", "class": "negative"},
    ],
    "controls": [],
    "without_angle": [],
}
ANSWER = {
    "state": "done",
    "score": {"name": "refusal score", "value": -2.5},
    "before": {"name": "refusal score", "value": 1.25},
    "text": "Mix flour, water, salt and yeast, knead the dough and let it rise for an hour.",
    "unsteered": "Baking bread takes <b>flour</b>, water, yeast, salt and some patience.",
    "moved": "100% of the activations of 9 tokens at 25 sites were moved, by 0.31 of their length.",
    "tokens": [
        {"text": text, "moved": moved, "is_prompt": place < 4}
        for place, (text, moved) in enumerate(
            (
                *(("How", 0.1), (" do", 0.2), (" I", 0.1), (" bake", 0.5), ("Mix", 0.9)),
                *((" flour", 1.0), (",", 0.4), (" water", 0.7), (" and\n", None)),
            )
        )
    ],
}


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens the dial with a set-up; no message to the console and no request may leave."""
    pages, wrong = [], []

    def serve(route: Any) -> None:
        name = route.request.url.removeprefix(HOST)
        if name in ("dial.js", "dial.css"):
            route.fulfill(path=WIDGET / name)
        elif name == "":
            route.fulfill(body=pages[-1].html, content_type="text/html")
        else:
            wrong.append(f"request {route.request.url}")
            route.abort()

    def open_with(setup: dict[str, Any], width: int = 900, scheme: str = "light") -> Page:
        page = browser.new_page(
            viewport={"width": width, "height": 640}, color_scheme=scheme, device_scale_factor=1
        )
        page.html = PAGE.replace("SETUP", json.dumps(setup))
        pages.append(page)
        page.on("console", lambda message: wrong.append(f"console {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error {error}"))
        page.route("**/*", serve)
        page.goto(HOST)
        page.wait_for_function("window.ready")
        return page

    yield open_with
    for page in pages:
        page.close()
    assert wrong == []


def sent(page: Page, count: int) -> list[dict[str, Any]]:
    """What was sent so far, once there are so many messages."""
    page.wait_for_function(f"window.sent.length >= {count}")
    return page.evaluate("window.sent")


def tell(page: Page, **state: Any) -> None:
    page.evaluate("state => window.tell(state)", state)


def test_the_dial_turns_by_keyboard_and_asks_once_for_the_angle_it_rests_at(opened: Any) -> None:
    page = opened(LIVE)
    assert sent(page, 1) == [{"kind": "ready"}]  # nothing runs before it is asked for
    page.focus("input[type=range]")
    for _ in range(18):
        page.keyboard.press("ArrowRight")
    assert page.inner_text(".ss-theta") == "θ = 90°"
    asked = sent(page, 2)[1]
    assert asked == {
        "kind": "ask",
        "run": 1,
        "angle_deg": 90,
        "prompt": "How do I bake bread?",
        "choices": {"operator": "RotateBy", "selection": "chosen sites", "positions": "all tokens"},
    }
    page.keyboard.press("End")
    assert sent(page, 3)[2]["angle_deg"] == 355
    assert len(sent(page, 3)) == 3


def test_the_dial_turns_by_mouse(opened: Any) -> None:
    page = opened(LIVE)
    box = page.locator("svg").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x + 40, y)
    page.mouse.down()
    page.mouse.move(x, y - 40)
    page.mouse.move(x - 40, y)
    page.mouse.up()
    assert page.inner_text(".ss-theta") == "θ = 180°"
    assert sent(page, 2)[1]["angle_deg"] == 180


def test_every_control_is_reached_and_set_by_the_keyboard(opened: Any) -> None:
    page = opened(LIVE)
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName.toLowerCase()"))
    assert reached == ["input", "select", "textarea", "select", "select", "select", "button"]
    page.keyboard.press("Enter")  # the button
    assert sent(page, 2)[1]["angle_deg"] == 0
    page.focus("textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("Hello?")
    page.keyboard.press("Enter")
    assert sent(page, 3)[2]["prompt"] == "Hello?"


def test_an_operator_without_an_angle_puts_the_dial_to_rest(opened: Any) -> None:
    page = opened(LIVE)
    page.select_option("select >> nth=1", label="Ablate")
    assert page.inner_text(".ss-theta") == "no angle"
    assert page.is_disabled("input[type=range]")
    assert sent(page, 2)[1]["choices"]["operator"] == "Ablate"


def test_tokens_appear_while_the_model_writes_and_the_stop_button_says_stop(opened: Any) -> None:
    page = opened(LIVE)
    assert page.is_disabled(STOP)
    page.click(ANSWERING)
    tell(page, run=1, state="running", text="Mix")
    assert page.inner_text(".ss-text >> nth=0") == "Mix"
    assert page.inner_text("[role=status]") == "answering …"
    page.click(STOP)
    assert sent(page, 3)[2] == {"kind": "stop"}
    tell(page, run=1, state="stopped", text="Mix")
    assert page.is_disabled(STOP)
    assert page.inner_text("[role=status]") == "stopped"


def test_what_is_told_of_a_position_that_was_left_is_not_shown(opened: Any) -> None:
    page = opened(LIVE)
    page.click(ANSWERING)
    page.click(ANSWERING)
    tell(page, run=2, state="running", text="new")
    tell(page, run=1, state="done", text="old")
    assert page.inner_text(".ss-text >> nth=0") == "new"


def test_score_trace_and_both_answers_are_shown_as_text(opened: Any) -> None:
    page = opened(LIVE)
    tell(page, run=0, **ANSWER)
    said = page.inner_text(".ss-dial")
    for part in ("-2.50", "1.25", ANSWER["text"], ANSWER["unsteered"], ANSWER["moved"]):
        assert part in said
    assert page.locator(".ss-text b").count() == 0  # never read as markup
    shades = page.eval_on_selector_all(
        ".ss-token", "all => all.map(t => t.style.getPropertyValue('--share'))"
    )
    assert shades == ["7%", "14%", "7%", "35%", "63%", "70%", "28%", "49%", "0%"]


def test_an_error_is_shown_as_it_was_told(opened: Any) -> None:
    page = opened(LIVE)
    tell(page, run=0, state="failed", error="prompt 0 is blank; write one.")
    assert page.inner_text("[role=status]") == "prompt 0 is blank; write one."


def test_a_stored_sweep_asks_at_once_and_folds_the_answers_to_the_positive_class(
    opened: Any,
) -> None:
    page = opened(STORED)
    assert sent(page, 1) == [{"kind": "ask", "run": 1, "angle_deg": 0, "choices": {}, "place": 0}]
    assert page.locator("textarea, button").count() == 0
    text = "one two three four five six seven eight"
    tell(page, run=1, state="done", text=text, fold=True, scores={"refused": 1})
    assert page.inner_text(".ss-text summary") == "one two three four five six …"
    assert "seven" not in page.inner_text(".ss-text >> nth=0")
    page.focus(".ss-text summary")
    page.keyboard.press("Enter")
    assert "seven" in page.inner_text(".ss-text >> nth=0")
    page.select_option("select", index=1)
    assert sent(page, 2)[1]["place"] == 1
    tell(page, run=2, state="done", text=text, fold=False)
    assert page.inner_text(".ss-text >> nth=0") == text
    page.focus("input[type=range]")
    page.keyboard.press("End")
    assert sent(page, 3)[2]["angle_deg"] == 180


def test_a_view_that_is_left_hears_nothing_more(opened: Any) -> None:
    page = opened(LIVE)
    page.evaluate("window.leave()")
    assert page.evaluate("window.stub.heard.length") == 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off(opened: Any, width: int, scheme: str, tmp_path: Path) -> None:
    page = opened(LIVE, width, scheme)
    page.focus("input[type=range]")
    for _ in range(27):
        page.keyboard.press("ArrowRight")
    tell(page, run=99, **ANSWER)
    page.screenshot(path=tmp_path / f"dial-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => {
          const box = document.querySelector(".ss-dial").getBoundingClientRect();
          return [...document.querySelectorAll(".ss-dial *")].filter((node) => {
            const b = node.getBoundingClientRect();
            return b.width && (b.left < box.left || b.right > box.right + 0.5);
          }).map((node) => node.className || node.tagName);
        }"""
    )
    assert outside == []
