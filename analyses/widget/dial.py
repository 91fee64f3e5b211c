"""The widgets: a dial on a model, and the same dial on a stored sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from analyses.widget.live import ANGLES, POSITIONS, Asked, Live, Scored, operators
from analyses.widget.runner import Runner
from analyses.widget.stored import Stored
from ss_lens import Calibration, SweepResult, UserError
from ss_lens.core.checks import check_texts
from ss_lens.scoring.refusal_score import refusal_score

if find_spec("anywidget") is None:
    raise UserError(
        "the dial in a notebook needs anywidget, which is not installed; "
        'pip install "ss_lens[widget]".'
    )
import anywidget
import traitlets

_HERE = Path(__file__).parent


class _Dial(anywidget.AnyWidget):
    """What both dials share: the front end, and the state that it shows.

    Texts travel as messages and never as synchronised state, which notebooks may save.
    """

    _esm = _HERE / "dial.js"
    _css = _HERE / "dial.css"
    setup = traitlets.Dict().tag(sync=True)

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup=setup)
        self.shown: dict[str, Any] = {}
        self.on_msg(self._hear)

    def __repr__(self) -> str:
        """What stands in the place of the dial where no kernel runs."""
        return f"{type(self).__name__}: {self.setup['title']} (turn it in a running notebook)"

    def ask(self, content: Mapping[str, Any]) -> None:
        """Answer at the position that the front end is at."""
        raise NotImplementedError

    def _hear(self, widget: object, content: dict[str, Any], buffers: object) -> None:
        kind = content.get("kind")
        if kind == "ready" and self.shown:
            self.send(self.shown)
        elif kind == "ask":
            self.ask(content)

    def _begin(self, content: Mapping[str, Any], state: str) -> None:
        self.shown = {"run": content.get("run"), "state": state}
        self.send(self.shown)

    def _show(self, **changed: Any) -> None:
        self.shown = {**self.shown, **changed}
        self.send(self.shown)


class LiveDial(_Dial):
    """Turn θ and read the answer while the model writes it.

    The model runs in a thread of its own, so that the kernel hears the stop button; no other cell
    may use the model meanwhile, and is told so. An answer that was stopped leaves no hook behind.

    Args:
        model: from :func:`ss_lens.load_model`.
        calibrations: by the name of their selection of sites, for instance
            ``{"chosen sites": calibration, "all sites": calibrate(acts, rule="uniform")}``.
        prompts: examples to start from; others can be typed.
        max_new_tokens: where an answer is cut off.
        score: what is measured of a prompt: a function of model and prompts that returns a table
            with one row per prompt, whose first column is shown.

    Attributes:
        shown: what the dial shows, also without a front end.

    Raises:
        UserError: no prompt or calibration, or a calibration for another model.
    """

    def __init__(
        self,
        model: TransformerBridge,
        calibrations: Mapping[str, Calibration],
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 48,
        score: Scored = refusal_score,
    ) -> None:
        self._runner = Runner()  # first: a widget that was refused is closed too
        self._live = Live(model, calibrations, max_new_tokens, score)
        check_texts("prompts", prompts)
        if not prompts:
            raise UserError("prompts is empty; give at least one to start from.")
        super().__init__(
            {
                "mode": "live",
                "title": f"{Path(str(model.cfg.model_name)).name}, as it answers",
                "angles": [*ANGLES],
                "prompts": [{"text": prompt} for prompt in prompts],
                "controls": [
                    _control("operator", [*operators()]),
                    _control("selection", [*calibrations]),
                    _control("positions", [*POSITIONS]),
                ],
                "without_angle": [n for n, kind in operators().items() if kind.strength is None],
            }
        )

    def ask(self, content: Mapping[str, Any]) -> None:
        """Answer at a position of the dial, after the answer before it has been stopped.

        Args:
            content: ``prompt``, ``angle_deg``, and ``choices`` of ``operator``, ``selection`` and
                ``positions``; what is left out is as in a fresh dial.
        """
        self._runner.stop()
        self._begin(content, "running")
        try:
            chosen = {
                "selection": next(iter(self._live.calibrations)),
                **content.get("choices", {}),
            }
            asked = Asked(content.get("prompt", ""), content.get("angle_deg", 0.0), **chosen)
        except UserError as error:
            self._show(state="failed", error=str(error))
            return

        def answer(stopped: Any) -> None:
            ended = {"state": "failed", "error": "the answer failed; the traceback is in the log."}
            try:
                self._live.answer(asked, lambda changed: self._show(**changed), stopped)
                ended = {"state": "stopped" if stopped() else "done"}
            except UserError as error:
                ended = {"state": "failed", "error": str(error)}
            finally:
                self._show(**ended)

        self._runner.start(answer)

    def stop(self) -> None:
        """Stop the answer that is being written, and wait until it has ended."""
        self._runner.stop()

    def wait(self) -> None:
        """Wait for the answer; an interrupt (Ctrl-C, the kernel's stop button) stops it."""
        self._runner.wait()

    def close(self) -> None:
        """Close the widget; what it runs ends by itself, at its next token."""
        self._runner.ask_to_stop()
        super().close()

    def _hear(self, widget: object, content: dict[str, Any], buffers: object) -> None:
        if content.get("kind") == "stop":
            self._runner.ask_to_stop()
        else:
            super()._hear(widget, content, buffers)


class StoredDial(_Dial):
    """The same dial over answers that a sweep has stored; no model is needed.

    Args:
        sweep: :func:`ss_lens.load_sweep`, or a table such as :func:`ss_lens.sweep_angles` returns.

    Raises:
        UserError: a table without prompts, angles and answers.
    """

    def __init__(self, sweep: SweepResult | pd.DataFrame) -> None:
        self._stored = Stored.of(sweep)
        prompts = self._stored.prompts
        labels = prompts["prompt_class"] if "prompt_class" in prompts else [""] * len(prompts)
        super().__init__(
            {
                "mode": "stored",
                "title": f"{len(self._stored.rows)} stored answers",
                "angles": self._stored.angles_deg,
                "prompts": [
                    {"text": text, "class": label}
                    for text, label in zip(prompts["prompt"], labels, strict=True)
                ],
                "controls": [_control(name, v) for name, v in self._stored.choices.items()],
                "without_angle": [],
            }
        )

    def ask(self, content: Mapping[str, Any]) -> None:
        """Show the answer at a position of the dial.

        Args:
            content: ``place`` of the prompt, ``angle_deg``, and ``choices``.
        """
        self._begin(content, "running")
        try:
            place, angle = int(content.get("place", 0)), float(content.get("angle_deg", 0.0))
            found = self._stored.look_up(place, angle, content.get("choices", {}))
        except UserError as error:
            self._show(state="failed", error=str(error))
            return
        self._show(state="done", **found)


def _control(name: str, options: list[str]) -> dict[str, Any]:
    return {"name": name, "options": options}
