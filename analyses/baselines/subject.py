"""What is moved and which way: the behaviour, and how its score and its answers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from analyses.budget.choosing import Goal
from ss_lens import Behaviour, UserError
from ss_lens.behaviours.measures import Measures, PromptClass, Sense
from ss_lens.behaviours.readers import RatedColumn
from ss_lens.experiments.answers import with_texts_scored
from ss_lens.experiments.dial.asking import ASKING
from ss_lens.experiments.dial.scan import COLLAPSE
from ss_lens.models.chat import ChatFormat, Prompt
from ss_lens.scoring.behaviours.openings import Openings, TokenSets, first_tokens
from ss_lens.scoring.coherence import collapse

SENSE_OF: Mapping[Goal, Sense] = {"weaken": "weakened", "strengthen": "strengthened"}


@dataclass(frozen=True, eq=False)
class Subject:
    """A behaviour that becomes less or more.

    Raises:
        UserError: a behaviour without openings, whose log-odds every way is chosen by.
    """

    behaviour: Behaviour
    goal: Goal = "weaken"

    def __post_init__(self) -> None:
        if not isinstance(self.behaviour.openings, Openings):
            raise UserError(
                f"the behaviour {self.behaviour.name!r} has no openings, expected some, since "
                "settings are chosen and the adapter is trained by their log-odds; give it "
                "openings, such as those of the embedded behaviours."
            )

    @property
    def measures(self) -> Measures:
        return self.behaviour.measures

    @property
    def sense(self) -> Sense:
        return SENSE_OF[self.goal]

    @property
    def label(self) -> PromptClass:
        """The class of prompts whose score is to move."""
        return self.measures.class_of(self.sense)

    @property
    def other(self) -> PromptClass:
        """The class that is to stay as it is."""
        return "negative" if self.label == "positive" else "positive"

    @property
    def sign(self) -> int:
        """1 where the best score is the lowest, else −1."""
        return 1 if self.goal == "weaken" else -1

    @property
    def asking(self) -> tuple[str, ...]:
        """System prompts that ask for it."""
        own = self.behaviour.asking.get(self.sense, ())
        return own or (ASKING[self.sense] if self.measures.is_refusal else ())

    def tokens(self, model: TransformerBridge) -> TokenSets:
        """First tokens of answers that show it, and of those that do not."""
        openings = self.behaviour.openings
        assert isinstance(openings, Openings)
        return first_tokens(model, openings.pairs[0])

    def scores(
        self, model: TransformerBridge, prompts: Sequence[Prompt], chat: ChatFormat
    ) -> pd.DataFrame:
        """``score`` in nats and ``opening_mass`` of each prompt, in one pass."""
        found = self.behaviour.score(model, prompts, chat=chat)
        names = {self.measures.score: "score", str(self.measures.mass): "opening_mass"}
        return found.rename(columns=names)

    def texts(
        self, prompts: Sequence[str], answers: Sequence[str], scores: pd.Series | None = None
    ) -> pd.DataFrame:
        """Of each answer, whether it shows the behaviour (``shown``) and whether it ``collapsed``.

        Args:
            prompts: the texts.
            answers: to them.
            scores: of one pass, by which it is shown where nothing reads answers; ``None`` leaves
                ``shown`` out.
        """
        rows = {"prompt_index": range(len(answers)), "prompt": [*prompts]}
        table = pd.DataFrame({**rows, "angle_deg": 0.0, "response": [*answers]})
        table = with_texts_scored(table)
        found = collapse(table, COLLAPSE)[["collapsed"]].astype(bool)
        if scores is None:
            return found
        if self.behaviour.reader is not None:
            # Truth values, so that their share is a rate; what cannot be read stays undefined.
            shown = self.behaviour.read(prompts, answers)["shown"].map({0.0: False, 1.0: True})
        elif isinstance(self.behaviour.shown, RatedColumn):
            shown = table[self.behaviour.shown.column].astype(bool)
        else:
            shown = scores > 0
        return found.assign(shown=shown.to_numpy())
