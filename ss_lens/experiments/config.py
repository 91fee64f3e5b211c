"""What a sweep spans: a grid, checked before any work is done, as a list of cell groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import load_behaviour
from ss_lens.core.checks import check_path, first_repeated
from ss_lens.core.errors import UserError
from ss_lens.core.yaml import Section, read_yaml, unknown_key
from ss_lens.experiments.choose_angle import AngleCriterion
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.generation.angle_batch import BATCH_ROWS
from ss_lens.geometry.strengths import MOST_ANGLES, check_count, reduced
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.scoring.registry import ANSWERS, columns_of, measured_names, parts_of

SEED = "{seed}"
"""Stands in the text of a selection or a plane for each of the grid's seeds."""

SCORES = measured_names()
"""All that can be measured, each after what it builds on."""
USUAL = tuple(name for name in SCORES if not parts_of(name)[0].on_request)
"""What is measured unless a configuration names something else."""
BEHAVIOURAL = ("behaviour_score", "behaviour_shown")
"""What cannot be measured without a behaviour."""
Part = Literal["dev", "test"]
PromptClass = Literal["positive", "negative"]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _some(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise UserError("this list is empty, and with it the sweep; name at least one.")
    if (twice := first_repeated(value)) is not None:
        raise UserError(f"{twice!r} appears twice; keep one.")
    return value


def _as_angles(value: Any) -> Any:
    return AngleRange(**value).angles if isinstance(value, Mapping) else _as_tuple(value)


def _on_circle(value: tuple[float, ...]) -> tuple[float, ...]:
    """0 and 360 are one cell, and −90 is 270."""
    check_count(value)
    if not all(map(math.isfinite, value)):
        raise UserError(f"angles must be finite, in degrees; got {value}.")
    written: dict[float, float] = {}
    for angle in value:
        place = reduced(angle)
        if written.get(place, angle) != angle:
            raise UserError(
                f"{written[place]:g} and {angle:g} are one angle, since 360 degrees are a whole "
                "turn; keep one."
            )
        written[place] = angle
    return tuple(map(reduced, value))


def _measured(value: str) -> str:
    if value not in SCORES:
        raise ValueError(f"input should be {', '.join(map(repr, SCORES))}")
    return value


def _chat(value: Any) -> Any:
    return ChatFormat.from_json(value) if isinstance(value, Mapping) else value


def _criterion(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    known = [field.name for field in fields(AngleCriterion)]
    for key in value:
        if key not in known:
            raise UserError(unknown_key(str(key), "choose", known))
    for field in fields(AngleCriterion):
        if field.default is MISSING and field.name not in value:
            raise UserError(f"{field.name} is missing; a limit that is null is not applied.")
    return AngleCriterion(**value)


T = TypeVar("T")
OneOrMore = Annotated[tuple[T, ...], BeforeValidator(_as_tuple), AfterValidator(_some)]


Finite = Annotated[float, Field(allow_inf_nan=False)]


class AngleRange(Section):
    """From ``start`` in steps of ``step`` up to but without ``stop``, in degrees."""

    section: ClassVar[str] = "angles_deg"
    start: Finite = 0.0
    stop: Finite = 360.0
    step: Annotated[Finite, Field(gt=0)]

    @property
    def angles(self) -> tuple[float, ...]:
        # Counted, since np.arange may reach the stop by rounding.
        steps = (self.stop - self.start) / self.step
        if steps > MOST_ANGLES:
            raise UserError(
                f"start {self.start:g}, stop {self.stop:g} and step {self.step:g} are {steps:.3g} "
                f"angles; at most {MOST_ANGLES:,} are swept. Use a larger step."
            )
        count = math.ceil(round(steps, 9))
        return tuple(self.start + self.step * place for place in range(count))


class Split(Section):
    """Prompts per class (a whole number) or shares of each class, and the seed of the split."""

    section: ClassVar[str] = "split"
    dev: int | float = 16
    test: int | float = 24
    seed: int = 0


class Grid(Section):
    """The product of its axes; each is one value or a list, angles also ``{step: 10}``.

    A selection or plane that is drawn says ``{seed}`` and is taken with every seed, and so are
    shuffled labels; what is not drawn is computed once.
    """

    section: ClassVar[str] = "grid"
    model: OneOrMore[str]
    dataset: OneOrMore[str] = ("refusal",)
    operator: OneOrMore[str] = ("RotateBy",)
    selection: OneOrMore[str] = ("site",)
    plane: OneOrMore[str] = ("PC1()",)
    labels: OneOrMore[Literal[True, "shuffled"]] = (True,)
    angles_deg: Annotated[
        tuple[float, ...],
        BeforeValidator(_as_angles),
        AfterValidator(_on_circle),
        AfterValidator(_some),
    ]
    seed: OneOrMore[int] = (0,)

    @model_validator(mode="after")
    def _is_readable(self) -> Grid:
        arms = [*self.arms()]
        if len(self.seed) > 1 and all(arm.seed is None for arm in arms):
            raise UserError(
                f"{len(self.seed)} seeds are given and nothing is drawn with them; write {SEED} "
                f"where a seed belongs, like RandomSites(seed={SEED}), or give one."
            )
        return self

    def arms(self) -> Iterator[Arm]:
        axes = (self.model, self.dataset, self.operator, self.selection, self.plane, self.labels)
        for model, dataset, operator, selection, plane, labels in itertools.product(*axes):
            drawn = labels == "shuffled" or SEED in selection + plane
            for seed in self.seed if drawn else (None,):
                yield Arm(
                    model=model,
                    dataset=dataset,
                    operator=operator,
                    selection=selection.replace(SEED, str(seed)),
                    plane=plane.replace(SEED, str(seed)),
                    labels="shuffled" if labels == "shuffled" else "true",
                    seed=seed,
                )


class SweepConfig(Section):
    """A grid, or several whose union is swept, and how their cells are measured.

    Attributes:
        behaviour: what the scores follow: an embedded name or a YAML file
            (:func:`ss_lens.load_behaviour`). A grid without a dataset takes its prompts, and a
            configuration without scores measures it in place of refusal.
        parts: what is steered. ``dev`` alone with ``choose`` measures test at the chosen angles,
            and no ``kl`` on dev, unless it is chosen by.
        scores: ``answers`` are generated, and scored by their text; ``perplexity`` is of these;
            ``kl`` is from the unsteered model, on its own answers.
        first_prompts: so many of each part and class are steered, the first ones; ``None`` is all.
        choose: how the angle of each arm is chosen on dev.
        chat: ``system`` prompt, ``date`` and ``template_arguments`` of the chat template.
        batch_rows: at most this many prompt–angle pairs run at once; bounds the memory.
        cluster: where cells are computed: here (``None``), in ``local`` processes, or by ``slurm``.
        workers: how many processes or Slurm jobs, which share the cells.
        cluster_parameters: of submitit's ``update_parameters``, like ``slurm_partition``.
    """

    section: ClassVar[str] = "the sweep"
    behaviour: str | None = None
    grid: OneOrMore[Grid]
    split: Split = Field(default_factory=Split)
    parts: OneOrMore[Part] = ("test",)
    prompt_class: OneOrMore[PromptClass] = get_args(PromptClass)
    scores: OneOrMore[Annotated[str, AfterValidator(_measured)]] = USUAL
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    first_prompts: Annotated[int, Field(ge=1)] | None = None
    choose: Annotated[AngleCriterion | None, BeforeValidator(_criterion)] = None
    chat: Annotated[ChatFormat, BeforeValidator(_chat)] = DEFAULT_FORMAT
    device: str = "auto"
    dtype: str = "auto"
    batch_rows: Annotated[int, Field(ge=1)] = BATCH_ROWS
    cluster: Literal["local", "slurm"] | None = None
    workers: Annotated[int, Field(ge=1)] = 1
    cluster_parameters: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _of_behaviour(cls, values: Any) -> Any:
        """What a behaviour stands for where the configuration leaves it open."""
        if not isinstance(values, Mapping) or not isinstance(values.get("behaviour"), str):
            return values
        grids = _as_tuple(values.get("grid"))
        open_grids = [g for g in grids if isinstance(g, Mapping) and "dataset" not in g]
        if "scores" in values and not open_grids:
            return values  # a stored result, whose behaviour may be gone
        behaviour = load_behaviour(values["behaviour"])
        own = {"dataset": behaviour.dataset.name}
        grids = tuple({**own, **g} if g in open_grids else g for g in grids)
        return {"scores": usual_scores(behaviour), **values, "grid": grids}

    @model_validator(mode="after")
    def _agrees(self) -> SweepConfig:
        for name in self.scores:
            if _needs(name) == "answers" and ANSWERS not in self.scores:
                raise UserError(f"{name} is of the answers; add answers to scores.")
        if self.cluster is None and (self.workers > 1 or self.cluster_parameters):
            raise UserError(
                "workers and cluster_parameters need a cluster; add cluster: local, or slurm."
            )
        if self.choose is None:
            return self
        if "dev" not in self.parts:
            raise UserError("choose needs the dev part to choose on; add dev to parts.")
        if ANSWERS not in self.scores:
            raise UserError("choose needs answers, whose coherence it limits; add them to scores.")
        known = [column for name in self.scores_of("test") for column in columns_of(name)]
        if self.choose.score not in known:
            raise UserError(
                f"choose has the score {self.choose.score!r}, which this sweep does not measure; "
                f"with scores {', '.join(self.scores)} it can be {', '.join(known)}."
            )
        if self.choose.max_perplexity is not None and "perplexity" not in self.scores:
            raise UserError("choose limits perplexity; add perplexity to scores.")
        if self.choose.max_negative_kl is not None and (
            "kl" not in self.scores or "negative" not in self.prompt_class
        ):
            raise UserError(
                "choose limits the KL on negative prompts; add kl to scores, and negative to "
                "prompt_class."
            )
        if self.choose.prompt_class not in self.prompt_class:
            raise UserError(
                f"choose averages over {self.choose.prompt_class} prompts; add them to "
                "prompt_class."
            )
        return self

    def scores_of(self, part: Part) -> tuple[str, ...]:
        """What is measured on a part, in the order of :data:`SCORES`.

        What needs the unsteered model's answers, half of the work, is left out on a dev part that
        only serves to choose the angle by something else.
        """
        choosing = self.choose is not None and part == "dev" and "test" not in self.parts

        def read(name: str) -> bool:
            wanted = {self.choose.score} if self.choose is not None else set[str]()
            if self.choose is not None and self.choose.max_negative_kl is not None:
                wanted.add("kl_mean")
            return _needs(name) != "unsteered answers" or bool(wanted & {*columns_of(name)})

        return tuple(
            name for name in SCORES if name in self.scores and (not choosing or read(name))
        )

    def groups(self) -> tuple[CellGroup, ...]:
        """What there is to measure; an arm that several grids name gets the angles of all."""
        angles: dict[Arm, dict[float, None]] = {}
        for grid in self.grid:
            for arm in grid.arms():
                angles.setdefault(arm, {}).update(dict.fromkeys(arm.angles_of(grid.angles_deg)))
        return tuple(
            CellGroup(arm, part, prompt_class, tuple(of_arm), self.first_prompts)
            for arm, of_arm in angles.items()
            for part in self.parts
            for prompt_class in self.prompt_class
        )


def check_behaviour(scores: Iterable[str], behaviour: Behaviour | None) -> None:
    """Raise where a score is of a behaviour, and none is given that has it.

    Raises:
        UserError: it names the score.
    """
    has = () if behaviour is None else behaviour.scored_by
    for name in scores:
        if name in BEHAVIOURAL and name not in has:
            told = "no behaviour is named" if behaviour is None else f"{behaviour.name!r} lacks"
            raise UserError(
                f"scores has {name}, which {told}, expected a behaviour that has it; name one with "
                "behaviour:, or leave the score out."
            )


def usual_scores(behaviour: Behaviour | None) -> tuple[str, ...]:
    """What is measured unless something else is named: :data:`USUAL`, with the behaviour's own."""
    if behaviour is None:
        return USUAL
    others = [name for name in USUAL if name != "refusal_score"]
    return tuple(name for name in SCORES if name in (*others, *behaviour.scored_by))


def _needs(name: str) -> str:
    return parts_of(name)[0].needs


def load_sweep_config(path: Path | str, *, behaviour: str | None = None) -> SweepConfig:
    """Read a YAML file.

    Args:
        path: of the file.
        behaviour: in place of the one that the file names.

    Raises:
        UserError: absent, not YAML, an unknown key (the nearest valid one is named), an empty axis,
            or a value that cannot be read; the message names file and key.
    """
    check_path("path", path)
    values = read_yaml(path, "sweep file")
    if behaviour is not None:
        values["behaviour"] = behaviour
    try:
        return SweepConfig(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
