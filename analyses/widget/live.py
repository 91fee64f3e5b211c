"""What the dial asks of a model: scores, the answer as it grows, and how far tokens were moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.widget import moved
from ss_lens import Calibration, Trace
from ss_lens.core.checks import check_at_least, check_is, check_one_of, check_texts, is_finite
from ss_lens.core.errors import UserError
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import tokenize
from ss_lens.steering.positions import Positions

Told = Callable[[dict[str, Any]], None]
"""Is given what changed of what the dial shows."""
Scored = Callable[[TransformerBridge, Sequence[str]], pd.DataFrame]
"""From a model, steered or not, and prompts to a row of numbers per prompt."""

POSITIONS: Mapping[str, Positions] = {
    "all tokens": ss_lens.AllPositions(),
    "the prompt": ss_lens.PromptOnly(),
    "the answer": ss_lens.GeneratedOnly(),
    "the prompt's last token": ss_lens.LastPrompt(1),
}
ANGLES = tuple(map(float, range(0, 360, 5)))


def operators() -> dict[str, type[Operator]]:
    """The operators that an angle alone sets, and those that nothing sets, by name."""
    return {
        kind.__name__: kind for kind in Operator.kinds() if kind.strength in ("angle_deg", None)
    }


@dataclass(frozen=True)
class Asked:
    """One position of the dial.

    Raises:
        UserError: no text, an angle that is not finite, or an unknown operator or position.
    """

    prompt: str
    angle_deg: float | int
    operator: str = "RotateBy"
    selection: str = ""
    positions: str = "all tokens"

    def __post_init__(self) -> None:
        check_is("prompt", self.prompt, (str,), "a text")
        check_texts("prompt", [self.prompt])
        check_is("angle_deg", self.angle_deg, (int, float), "a number of degrees")
        if not is_finite(self.angle_deg):
            raise UserError(f"angle_deg must be finite; got {self.angle_deg}. Turn the dial again.")
        check_one_of("operator", self.operator, tuple(operators()))
        check_one_of("positions", self.positions, tuple(POSITIONS))

    @property
    def value(self) -> Operator:
        """The operator at the angle."""
        kind = operators()[self.operator]
        set_by = {} if kind.strength is None else {kind.strength: float(self.angle_deg)}
        return kind(**set_by)


@dataclass(frozen=True, eq=False)
class Live:
    """A model and the calibrations that it may be steered by.

    Attributes:
        calibrations: by the name of their selection of sites.
        score: what is measured of a prompt; its first column is shown.

    Raises:
        UserError: no calibration, one for another model, or an argument of another type.
    """

    model: TransformerBridge
    calibrations: Mapping[str, Calibration]
    max_new_tokens: int
    score: Scored
    _unsteered: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_is("model", self.model, (TransformerBridge,), "a model from ss_lens.load_model(...)")
        check_at_least("max_new_tokens", self.max_new_tokens)
        expected = "a mapping from a name to a calibration, such as {'chosen sites': calibration}"
        check_is("calibrations", self.calibrations, (Mapping,), expected)
        if not self.calibrations:
            raise UserError(f"calibrations is empty; give {expected}.")
        for name, calibration in self.calibrations.items():
            made = "a calibration from ss_lens.calibrate(...) or Calibration.load(...)"
            check_is(f"calibrations[{name!r}]", calibration, (Calibration,), made)
            calibration.check_fits(self.model)

    def answer(self, asked: Asked, told: Told, stopped: Callable[[], bool]) -> None:
        """Measure and answer at one position of the dial; hooks are gone when this returns.

        Args:
            asked: the position.
            told: is given, one after the other: ``score`` and the score ``before`` steering; the
                ``text`` after each token; the ``tokens`` and what was ``moved``; the
                ``unsteered`` text.
            stopped: asked after each token; where it is true, the rest is left out.

        Raises:
            UserError: an unknown selection, or what steering and generation raise.
        """
        check_one_of("selection", asked.selection, tuple(self.calibrations))
        before = self._once("score", asked.prompt, self._score)
        with self._steered_start(asked):
            told({"before": before, "score": self._score(asked.prompt)})
        if stopped():
            return
        trace, ids = Trace(), []
        with self._steered(asked, trace):
            for grown in ss_lens.stream(
                self.model, asked.prompt, max_new_tokens=self.max_new_tokens
            ):
                ids.append(grown.token)
                told({"text": grown.text})
                if stopped():
                    break
        frame = trace.frame()
        told(
            {
                "tokens": self._tokens(asked.prompt, ids, frame),
                "moved": moved.summary(frame).in_words,
            }
        )
        if not stopped():
            told({"unsteered": self._once("text", asked.prompt, lambda p: self._plain(p, stopped))})

    def _steered(self, asked: Asked, trace: Trace | None) -> AbstractContextManager[object]:
        return ss_lens.steer(
            self.model,
            self.calibrations[asked.selection],
            asked.value,
            positions=POSITIONS[asked.positions],
            trace=trace,
        )

    def _steered_start(self, asked: Asked) -> AbstractContextManager[object]:
        """Around a pass over the prompt: where answers alone are steered, nothing is."""
        alone = POSITIONS[asked.positions] == ss_lens.GeneratedOnly()
        return nullcontext() if alone else self._steered(asked, None)

    def _score(self, prompt: str) -> dict[str, Any]:
        row = self.score(self.model, [prompt]).iloc[0]
        name = str(row.index[0])
        return {"name": name.replace("_", " "), "value": float(row[name])}

    def _plain(self, prompt: str, stopped: Callable[[], bool]) -> str | None:
        """The unsteered answer; nothing where it was stopped."""
        texts = [""]
        for grown in ss_lens.stream(self.model, prompt, max_new_tokens=self.max_new_tokens):
            if stopped():
                return None
            texts.append(grown.text)
        return texts[-1]

    def _once(self, what: str, prompt: str, make: Callable[[str], Any]) -> Any:
        """What ``make`` gave for the prompt, now or before."""
        if (what, prompt) not in self._unsteered:
            found = make(prompt)
            if found is None:
                return None
            self._unsteered[what, prompt] = found
        return self._unsteered[what, prompt]

    def _tokens(self, prompt: str, ids: Sequence[int], trace: pd.DataFrame) -> list[dict[str, Any]]:
        """The tokens of the prompt and the answer with how far each was moved.

        The last token of an answer is predicted, and read by nothing.
        """
        (of_prompt,) = tokenize(self.model, [prompt])
        rows = moved.per_token(trace)
        distance = dict(zip(rows["position"].tolist(), rows["moved"].tolist(), strict=True))
        return [
            {
                "text": self.model.tokenizer.decode([token]),
                "moved": distance.get(place),
                "is_prompt": place < len(of_prompt),
            }
            for place, token in enumerate((*of_prompt, *ids))
        ]
