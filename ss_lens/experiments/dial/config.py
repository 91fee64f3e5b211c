"""What the main job does: angles, parts, chat, controls, and what is kept of the answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

from ss_lens.calibration.site_selection import as_rule
from ss_lens.core.checks import (
    check_at_least,
    check_flag,
    check_is,
    check_numbers,
    check_whole,
    first_repeated,
)
from ss_lens.core.errors import UserError
from ss_lens.datasets.contrastive import check_part
from ss_lens.experiments.config import Grid, Split, SweepConfig
from ss_lens.geometry.strengths import check_count, reduced
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat

EIGHT_ANGLES = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)


@dataclass(frozen=True)
class RunConfig:
    """What the main job does; ``dev`` and ``test`` are prompts per class.

    Angles are taken modulo 360, and 0, the unsteered model, is always measured. ``rule`` is the
    text of a selection rule, which :func:`as_rule` reads; ``chat`` is what else enters the chat
    template. ``draws`` is the number of random planes of each kind. Answers to positive prompts
    are kept in full with ``keep_answers``, and as their first six words without.
    """

    angles_deg: tuple[float | int, ...] = EIGHT_ANGLES
    rule: str = "site"
    dev: int = 16
    test: int = 24
    seed: int = 0
    max_new_tokens: int = 48
    chat: ChatFormat = DEFAULT_FORMAT
    draws: int = 8
    keep_answers: bool = False

    def __post_init__(self) -> None:
        as_rule(self.rule)
        check_is("rule", self.rule, (str,), "the text of a rule, such as 'site'")
        check_part("dev", self.dev)
        check_part("test", self.test)
        check_is("seed", self.seed, (Integral,), "a whole number such as 0")
        check_is("chat", self.chat, (ChatFormat,), "a ChatFormat(system=...)")
        check_numbers("angles_deg", self.angles_deg)
        check_at_least("max_new_tokens", self.max_new_tokens)
        check_whole("draws", self.draws, at_least=1)
        check_flag("keep_answers", self.keep_answers)
        check_count(self.angles_deg)
        angles = tuple(map(reduced, self.angles_deg))
        if (twice := first_repeated(angles)) is not None:
            raise UserError(
                f"the angle {twice:g} is given twice (0 and 360 are one), expected each once; keep "
                "one."
            )
        object.__setattr__(self, "angles_deg", angles)

    def sweep(self, model: str, dataset: str) -> SweepConfig:
        """The sweep whose inputs and method the main job has: ``RotateBy``, one rule.

        Args:
            model: what the grid calls the model.
            dataset: what it calls the dataset.
        """
        grid = Grid(
            model=(model,),
            dataset=(dataset,),
            selection=(self.rule,),
            angles_deg=self.angles_deg,
        )
        return SweepConfig(
            grid=(grid,),
            split=Split(dev=self.dev, test=self.test, seed=self.seed),
            max_new_tokens=self.max_new_tokens,
            chat=self.chat,
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values; ``chat`` where it is not the default."""
        values = {**asdict(self), "angles_deg": list(self.angles_deg)}
        del values["chat"]
        return values if self.chat == DEFAULT_FORMAT else {**values, "chat": self.chat.as_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunConfig:
        chat = ChatFormat.from_json(values.get("chat", {}))
        return cls(**{**values, "angles_deg": tuple(values["angles_deg"]), "chat": chat})
