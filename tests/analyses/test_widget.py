"""The dial in a notebook, without a browser: what it shows, how it stops, what it leaves behind."""

from __future__ import annotations

import json
import math
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.widget import LiveDial, StoredDial, moved
from analyses.widget.live import POSITIONS, Asked, Live, operators
from analyses.widget.runner import Runner
from analyses.widget.stored import Stored
from ss_lens import Calibration, ContrastiveDataset, RotateBy, Store, Trace, UserError
from ss_lens.scoring.refusal_score import refusal_score
from tests.interrupts import hooks_on

PROMPT = "w9 w70 w33"
NEW = 6


def length_score(model: TransformerBridge, prompts: list[str]) -> pd.DataFrame:
    """A score for a tokenizer that knows no openings: the largest logit after the prompt."""
    steered = [g.token for g in ss_lens.stream(model, prompts[0], max_new_tokens=1)]
    return pd.DataFrame({"first_token": [float(steered[0] if steered else -1)]})


@pytest.fixture
def calibrations(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> dict[str, Calibration]:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    every = ss_lens.calibrate(acts, rule="uniform")
    return {"all sites": every, "every other block": ss_lens.calibrate(acts, rule="EveryKth(k=2)")}


@pytest.fixture
def live(tiny_llama: TransformerBridge, calibrations: dict[str, Calibration]) -> Live:
    return Live(tiny_llama, calibrations, NEW, length_score)


@pytest.fixture
def dial(tiny_llama: TransformerBridge, calibrations: dict[str, Calibration]) -> Iterator[LiveDial]:
    made = LiveDial(tiny_llama, calibrations, [PROMPT], max_new_tokens=NEW, score=length_score)
    yield made
    made.close()


def asked(angle: float = 90, **chosen: str) -> Asked:
    return Asked(PROMPT, angle, **{"selection": "all sites", **chosen})


def answered(live: Live, position: Asked, stop_after: int | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {}
    texts: list[str] = []

    def tell(changed: dict[str, Any]) -> None:
        told.update(changed)
        texts.extend([changed["text"]] if "text" in changed else [])

    live.answer(position, tell, lambda: stop_after is not None and len(texts) >= stop_after)
    return {**told, "texts": texts}


# What is shown.


@pytest.mark.parametrize("operator", sorted(operators()))
def test_the_dial_shows_what_steering_and_generation_give(
    operator: str, live: Live, tiny_llama: TransformerBridge
) -> None:
    position = asked(operator=operator)
    shown = answered(live, position)
    with ss_lens.steer(tiny_llama, live.calibrations["all sites"], position.value):
        (text,) = ss_lens.generate(tiny_llama, [PROMPT], max_new_tokens=NEW)
    assert shown["text"] == text
    assert shown["unsteered"] == ss_lens.generate(tiny_llama, [PROMPT], max_new_tokens=NEW)[0]
    json.dumps(shown)


@pytest.mark.parametrize("positions", sorted(POSITIONS))
def test_each_position_of_the_dial_steers_those_tokens(positions: str, live: Live) -> None:
    shown = answered(live, asked(positions=positions))
    kept = {
        "all tokens": lambda t: True,
        "the prompt": lambda t: t["is_prompt"],
        "the answer": lambda t: not t["is_prompt"],
        "the prompt's last token": lambda t: t is last,
    }[positions]
    last = [token for token in shown["tokens"] if token["is_prompt"]][-1]
    read = [token for token in shown["tokens"] if token["moved"] is not None]
    assert len(read) == len(shown["tokens"]) - 1  # the last token of an answer is read by nothing
    assert [token["moved"] > 0 for token in read] == [kept(token) for token in read]


def test_at_zero_degrees_nothing_is_moved_and_the_answer_is_the_models_own(live: Live) -> None:
    shown = answered(live, asked(0))
    assert shown["moved"].startswith("Nothing was moved")
    assert shown["text"] == shown["unsteered"]
    assert shown["score"] == shown["before"]


def test_the_selection_decides_how_many_sites_move(live: Live) -> None:
    every = answered(live, asked())["moved"]
    other = answered(live, asked(selection="every other block"))["moved"]
    assert "at 6 sites" in every
    assert "at 4 sites" in other  # of blocks 0 and 2


def test_the_score_is_measured_under_steering_and_before_it(
    live: Live, tiny_llama: TransformerBridge
) -> None:
    shown = answered(live, asked())
    plain = length_score(tiny_llama, [PROMPT]).iloc[0, 0]
    with ss_lens.steer(tiny_llama, live.calibrations["all sites"], RotateBy(90)):
        steered = length_score(tiny_llama, [PROMPT]).iloc[0, 0]
    assert shown["before"] == {"name": "first token", "value": plain}
    assert shown["score"] == {"name": "first token", "value": steered}


def test_where_the_answer_alone_is_steered_the_score_of_the_prompt_stays(live: Live) -> None:
    shown = answered(live, asked(positions="the answer"))
    assert shown["score"] == shown["before"]


# How far tokens were moved.


def traced(before: list[complex], after: list[complex], norm: float = 2.0) -> pd.DataFrame:
    """One site, a token for each value; the plane's coordinates as complex numbers."""
    b, a = np.array(before), np.array(after)
    return pd.DataFrame(
        {
            "site": "L0.ln1_out",
            "position": range(len(b)),
            "is_prompt": [True] * (len(b) - 1) + [False],
            "changed": a != b,
            "angle_before_deg": np.where(b == 0, np.nan, np.rad2deg(np.angle(b)) % 360),
            "angle_after_deg": np.where(a == 0, np.nan, np.rad2deg(np.angle(a)) % 360),
            "norm_before": norm,
            "norm_after": np.sqrt(norm**2 - np.abs(b) ** 2 + np.abs(a) ** 2),
            "in_plane_norm_before": np.abs(b),
            "in_plane_norm_after": np.abs(a),
        }
    )


def test_half_a_turn_moves_a_token_by_twice_its_part_in_the_plane() -> None:
    found = moved.summary(traced([1 + 0j, 0.5j], [-1 + 0j, -0.5j]))
    assert found.changed == 1
    assert found.largest == pytest.approx(2 * 1 / 2)
    assert found.mean == pytest.approx((1.0 + 0.5) / 2)
    assert found.norm_change == pytest.approx(0, abs=1e-12)


def test_a_part_that_is_removed_moves_by_its_length_and_changes_the_norm() -> None:
    found = moved.summary(traced([1 + 0j], [0j], norm=2))
    assert found.mean == pytest.approx(0.5)
    assert found.norm_change == pytest.approx(1 - math.sqrt(3) / 2)


def test_a_token_without_a_part_in_the_plane_is_not_moved() -> None:
    found = moved.summary(traced([0j, 1 + 0j], [0j, 1j]))
    assert found.changed == 0.5
    assert moved.per_token(traced([0j, 1 + 0j], [0j, 1j]))["moved"].tolist() == pytest.approx(
        [0, math.sqrt(2) / 2]
    )


def test_an_empty_trace_says_so() -> None:
    found = moved.summary(Trace().frame())
    assert found.tokens == 0
    assert found.in_words == "No token was read."


# Stopping, and what is left behind.


def test_a_stopped_answer_is_the_beginning_of_the_whole_one(
    live: Live, tiny_llama: TransformerBridge
) -> None:
    whole = answered(live, asked())["texts"]
    stopped = answered(live, asked(), stop_after=2)
    assert stopped["texts"] == whole[:2]
    assert "unsteered" not in stopped or stopped["unsteered"] is not None
    assert hooks_on(tiny_llama) == 0


def test_no_hook_remains_after_an_answer(live: Live, tiny_llama: TransformerBridge) -> None:
    answered(live, asked())
    assert hooks_on(tiny_llama) == 0


def test_no_hook_remains_after_an_exception(live: Live, tiny_llama: TransformerBridge) -> None:
    def fail(changed: dict[str, Any]) -> None:
        if "text" in changed:
            assert hooks_on(tiny_llama) > 0
            raise RuntimeError("the page is gone")

    with pytest.raises(RuntimeError, match="the page is gone"):
        live.answer(asked(), fail, lambda: False)
    assert hooks_on(tiny_llama) == 0


def test_no_hook_remains_after_an_interrupt(live: Live, tiny_llama: TransformerBridge) -> None:
    def interrupt(changed: dict[str, Any]) -> None:
        if "text" in changed:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        live.answer(asked(), interrupt, lambda: False)
    assert hooks_on(tiny_llama) == 0


def test_the_stop_button_ends_a_running_answer(
    dial: LiveDial, tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, pressed = threading.Event(), threading.Event()
    show = dial._show

    def slow(**changed: Any) -> None:
        show(**changed)
        if "text" in changed:
            begun.set()
            assert pressed.wait(30)

    monkeypatch.setattr(dial, "_show", slow)
    dial.ask({"run": 1, "prompt": PROMPT, "angle_deg": 90.0})
    assert begun.wait(30)
    assert hooks_on(tiny_llama) > 0
    dial._hear(dial, {"kind": "stop"}, [])
    pressed.set()
    dial.wait()
    assert dial.shown["state"] == "stopped"
    assert len([t for t in dial.shown["tokens"] if not t["is_prompt"]]) == 1
    assert hooks_on(tiny_llama) == 0


def test_another_cell_that_uses_the_model_is_told_why_it_may_not(
    dial: LiveDial, tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    show = dial._show

    def slow(**changed: Any) -> None:
        show(**changed)
        if "text" in changed:
            begun.set()
            assert go_on.wait(30)

    monkeypatch.setattr(dial, "_show", slow)
    dial.ask({"prompt": PROMPT, "angle_deg": 90.0})
    assert begun.wait(30)
    with pytest.raises(UserError, match="another thread is steering this model"):
        ss_lens.generate(tiny_llama, [PROMPT], max_new_tokens=1)
    go_on.set()
    dial.wait()
    assert dial.shown["state"] == "done"


def test_an_interrupt_of_waiting_stops_the_answer(
    dial: LiveDial, tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = dial._show
    main = threading.main_thread().ident
    assert main is not None

    pressed: list[str] = []

    def interrupting(**changed: Any) -> None:
        show(**changed)
        if "text" in changed and not pressed:
            pressed.append(changed["text"])
            signal.pthread_kill(main, signal.SIGINT)

    monkeypatch.setattr(dial, "_show", interrupting)
    dial.ask({"prompt": PROMPT, "angle_deg": 90.0})
    with pytest.raises(KeyboardInterrupt):
        dial.wait()
    assert pressed
    assert hooks_on(tiny_llama) == 0


def test_a_new_position_ends_the_answer_before(dial: LiveDial) -> None:
    for run, angle in enumerate((45.0, 90.0, 200.0)):
        dial.ask({"run": run, "prompt": PROMPT, "angle_deg": angle})
    dial.wait()
    assert dial.shown["run"] == 2
    assert dial.shown["state"] == "done"


def test_a_mistake_of_the_user_is_shown_in_one_line(dial: LiveDial) -> None:
    for content, said in (
        ({"prompt": "  ", "angle_deg": 0.0}, "blank"),
        ({"prompt": PROMPT, "angle_deg": math.nan}, "finite"),
        ({"prompt": PROMPT, "choices": {"selection": "none such"}}, "selection must be one of"),
        ({"prompt": PROMPT, "choices": {"operator": "Add"}}, "operator must be one of"),
    ):
        dial.ask(content)
        dial.wait()
        assert dial.shown["state"] == "failed"
        assert said in dial.shown["error"]
        assert "\n" not in dial.shown["error"]


def test_a_failure_of_the_code_ends_the_answer_and_says_so(
    tiny_llama: TransformerBridge,
    calibrations: dict[str, Calibration],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(model: TransformerBridge, prompts: list[str]) -> pd.DataFrame:
        raise ZeroDivisionError

    logged: queue.Queue[threading.ExceptHookArgs] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", logged.put)
    dial = LiveDial(tiny_llama, calibrations, [PROMPT], max_new_tokens=1, score=broken)
    dial.ask({"prompt": PROMPT})
    dial.wait()
    assert logged.get(timeout=30).exc_type is ZeroDivisionError
    assert dial.shown["state"] == "failed"
    assert "traceback" in dial.shown["error"]
    assert hooks_on(tiny_llama) == 0


def test_the_saved_state_of_a_notebook_holds_no_answer(dial: LiveDial) -> None:
    dial.ask({"prompt": PROMPT, "angle_deg": 90.0})
    dial.wait()
    assert dial.shown["text"]
    assert dial.shown["text"] not in json.dumps(dial.get_state()["setup"])
    assert set(dial.get_state()) & {"shown", "text"} == set()


def test_a_dial_names_itself_where_no_kernel_runs(dial: LiveDial) -> None:
    assert repr(dial).startswith("LiveDial: tiny-llama, as it answers")
    assert repr(StoredDial(stored_table())).startswith("StoredDial: 20 stored answers")


def test_a_runner_runs_one_task_at_a_time() -> None:
    runner, running, most = Runner(), [0], [0]

    def task(stopped: Any) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        while not stopped():
            pass
        running[0] -= 1

    for _ in range(5):
        runner.start(task)
    runner.stop()
    assert (running[0], most[0]) == (0, 1)


# Refusals before anything slow.


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_arguments_are_refused(
    tiny_llama: TransformerBridge, calibrations: dict[str, Calibration]
) -> None:
    with pytest.raises(UserError, match="calibrations is empty"):
        LiveDial(tiny_llama, {}, [PROMPT])
    with pytest.raises(UserError, match="prompts is empty"):
        LiveDial(tiny_llama, calibrations, [])
    with pytest.raises(UserError, match="must be a mapping from a name"):
        LiveDial(tiny_llama, calibrations["all sites"], [PROMPT])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="max_new_tokens"):
        LiveDial(tiny_llama, calibrations, [PROMPT], max_new_tokens=0)


def test_the_score_is_that_of_refusal_unless_told(
    tiny_llama: TransformerBridge, calibrations: dict[str, Calibration]
) -> None:
    assert LiveDial(tiny_llama, calibrations, [PROMPT])._live.score is refusal_score


# A stored sweep, without a model.


def stored_table() -> pd.DataFrame:
    rows = [
        {
            "operator": operator, "seed": pd.NA, "part": "test", "prompt_class": label,
            "prompt_index": i, "prompt": f"{label} prompt {i}", "angle_deg": angle,
            "response": f"{operator} {label} {i} at {angle:g}", "refusal_score": angle / 100,
            "repetition": math.nan,
        }
        for operator in ("RotateBy", "RotateTo")
        for label in ("positive", "negative")
        for i in range(2)
        for angle in ((0.0, 90.0, 180.0) if operator == "RotateBy" else (0.0, 90.0))
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def test_a_stored_answer_is_that_of_its_arm_prompt_and_angle() -> None:
    stored = Stored.of(stored_table())
    assert stored.choices == {"operator": ["RotateBy", "RotateTo"]}
    assert stored.angles_deg == [0, 90, 180]
    for place, (label, i) in enumerate([("positive", 0), ("positive", 1), ("negative", 0)]):
        found = stored.look_up(place, 90.0, {"operator": "RotateTo"})
        assert found["text"] == f"RotateTo {label} {i} at 90"
        assert found["fold"] == (label == "positive")
        assert found["scores"] == {"refusal score": 0.9}
        assert found["unsteered"] is None


def test_an_angle_that_an_arm_lacks_is_named_with_those_it_has() -> None:
    stored = Stored.of(stored_table())
    with pytest.raises(UserError, match=r"no answer to this prompt at 180°.*measured: 0, 90°"):
        stored.look_up(0, 180.0, {"operator": "RotateTo"})


def test_unsteered_rows_are_shown_beside_the_steered_ones(
    tiny_llama: TransformerBridge, calibrations: dict[str, Calibration]
) -> None:
    table = ss_lens.sweep_angles(
        tiny_llama, calibrations["all sites"], RotateBy, [PROMPT, "w12"], [-90, 90],
        max_new_tokens=NEW, unsteered=True,
    )  # fmt: skip
    stored = Stored.of(table)
    found = stored.look_up(1, 270.0, {})
    texts = table.loc[table["prompt"] == "w12"].set_index("angle_deg")["response"]
    assert found["text"] == texts.loc[270.0]
    assert found["unsteered"] == ss_lens.generate(tiny_llama, ["w12"], max_new_tokens=NEW)[0]


def test_a_stored_dial_answers_the_front_end_from_the_table() -> None:
    dial = StoredDial(stored_table())
    assert [p["class"] for p in dial.setup["prompts"]] == ["positive"] * 2 + ["negative"] * 2
    dial._hear(
        dial,
        {
            "kind": "ask",
            "run": 3,
            "place": 2,
            "angle_deg": 180,
            "choices": {"operator": "RotateBy"},
        },
        [],
    )
    assert dial.shown["state"] == "done"
    assert dial.shown["run"] == 3
    assert dial.shown["text"] == "RotateBy negative 0 at 180"
    assert "RotateBy negative" not in json.dumps(dial.get_state()["setup"])


@pytest.mark.usefixtures("unchecked_types")
def test_a_stored_dial_says_what_a_table_lacks() -> None:
    with pytest.raises(UserError, match=r"no column response"):
        StoredDial(stored_table().drop(columns="response"))
    with pytest.raises(UserError, match=r"no steered row"):
        StoredDial(stored_table().iloc[:0])
    with pytest.raises(UserError, match=r"sweep must be load_sweep"):
        StoredDial("runs/sweep")  # type: ignore[arg-type]
