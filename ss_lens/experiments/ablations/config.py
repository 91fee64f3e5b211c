"""What an ablation measures, and the sweeps that it consists of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import behaviour_beside_refusal
from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.core.checks import check_is, check_whole
from ss_lens.experiments.ablations import variants
from ss_lens.experiments.ablations.variants import EIGHT_ANGLES, FULL, RANDOM_SITES, SAME_SITES
from ss_lens.experiments.config import SEED, Grid, Part, Split, SweepConfig, usual_scores
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.scoring.registry import ANSWERS, measured_for


@dataclass(frozen=True)
class AblationConfig:
    """What is ablated, and on how many prompts.

    Attributes:
        angles_deg: among which each variant's angle is chosen on dev.
        dev, test: prompts per class to choose on, and to report; the rest is calibrated on.
        seed: of the split, the intervals and the tests.
        draws: how many draws of random sites; of the other random controls half as many.
        workers: processes that share the work.
        chat: what else enters the chat template.
        behaviour: what is weakened in place of refusal: an embedded name or a YAML file. Its
            prompts are used where ``dataset`` is ``refusal``, the default.
    """

    model: str
    dataset: str = "refusal"
    angles_deg: tuple[float | int, ...] = EIGHT_ANGLES
    dev: int = 16
    test: int = 24
    seed: int = 0
    draws: int = 5
    max_new_tokens: int = 32
    device: str = "auto"
    dtype: str = "auto"
    workers: int = 1
    chat: ChatFormat = DEFAULT_FORMAT
    behaviour: str | None = None

    def __post_init__(self) -> None:
        if self.followed is not None and self.dataset == "refusal":
            object.__setattr__(self, "dataset", self.followed.dataset.name)
        check_whole("draws", self.draws, at_least=1)
        check_whole("workers", self.workers, at_least=1)
        check_is("chat", self.chat, (ChatFormat,), "a ChatFormat(system=...)")
        _ = self.sweep([self.grid(FULL)], "dev", self.scanned)  # rejects what a sweep rejects

    @cached_property
    def followed(self) -> Behaviour | None:
        """The behaviour; ``None`` for refusal."""
        return behaviour_beside_refusal(self.behaviour)

    @property
    def measures(self) -> Measures:
        """What the behaviour's columns are called."""
        return REFUSAL if self.followed is None else self.followed.measures

    @property
    def scanned(self) -> tuple[str, ...]:
        """What is measured at all angles on dev."""
        (score,) = {measured_for(self.measures.score)}
        return (ANSWERS, score) if self.measures.mass is None and score != ANSWERS else (score,)

    @property
    def chosen_by(self) -> tuple[str, ...]:
        """What is measured where an angle may be chosen."""
        limits = map(measured_for, variants.criterion(self.measures).rule.limits)
        return tuple(dict.fromkeys((*self.scanned, ANSWERS, *limits)))

    @property
    def tested(self) -> tuple[str, ...]:
        """What is measured on test."""
        return usual_scores(self.followed)

    def draws_of(self, variant: str) -> range:
        """The seeds of a variant; one where nothing is drawn."""
        fields = variants.VARIANTS[variant]
        if fields.get("labels") != "shuffled" and SEED not in "".join(fields.values()):
            return range(1)
        return range(self.draws if variant == RANDOM_SITES else max(1, self.draws // 2))

    def grid(
        self, variant: str, draw: int = 0, sites: str = "site", angle: float | None = None
    ) -> Grid:
        """One draw of a variant; ``sites`` are the full method's, as a selection."""
        fields: dict[str, Any] = {"labels": True, **variants.VARIANTS[variant]}
        if fields.get("selection") == SAME_SITES:
            fields["selection"] = sites
        fields["angles_deg"] = self.angles_deg if angle is None else angle
        return Grid(model=(self.model,), dataset=(self.dataset,), seed=(draw,), **fields)

    def sweep(self, grids: Iterable[Grid], part: Part, scores: tuple[str, ...]) -> SweepConfig:
        """The grids measured on one part."""
        return SweepConfig(
            grid=tuple(grids),
            split=Split(dev=self.dev, test=self.test, seed=self.seed),
            parts=(part,),
            scores=scores,
            max_new_tokens=self.max_new_tokens,
            device=self.device,
            dtype=self.dtype,
            cluster="local" if self.workers > 1 else None,
            workers=self.workers,
            chat=self.chat,
            behaviour=None if self.followed is None else self.behaviour,
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values; ``chat`` where it is not the default."""
        values = asdict(self)
        if self.followed is None:  # as before there were behaviours
            del values["behaviour"]
        del values["chat"]
        return values if self.chat == DEFAULT_FORMAT else {**values, "chat": self.chat.as_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> AblationConfig:
        chat = ChatFormat.from_json(values.get("chat", {}))
        return cls(**{**values, "angles_deg": tuple(values["angles_deg"]), "chat": chat})
