"""What the cells of a sweep take: models, splits, activations and calibrations, made once."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.activations import Activations, stacked
from ss_lens.activations.capture import capture
from ss_lens.activations.spec import prompt_digest
from ss_lens.activations.store import Store
from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import load_behaviour
from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.calibration.calibration import Calibration, calibrate
from ss_lens.datasets.contrastive import ContrastiveDataset, DatasetSplit, load_dataset
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.generation.loop import stop_ids
from ss_lens.generation.lower_blocks import LowerBlocks
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import ChatFormat, tokenize, tokens_digest
from ss_lens.models.load import load_model
from ss_lens.models.loading.devices import device_named, dtype_named

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Setting:
    """A cell group with all that it takes; its cells depend on ``identity`` and the angle alone.

    ``unsteered`` likewise identifies the unsteered model's answers to the same prompts. All
    settings of one model share ``lower``. Without a ``behaviour``, refusal is measured.
    """

    model: TransformerBridge
    calibration: Calibration
    operator: Operator
    prompts: tuple[str, ...]
    chat: ChatFormat
    max_new_tokens: int
    batch_rows: int
    identity: Mapping[str, Any]
    unsteered: Mapping[str, Any]
    lower: LowerBlocks
    behaviour: Behaviour | None = None


def settled(config: SweepConfig, cells: CellStore) -> SweepConfig:
    """The configuration with a dtype that does not depend on the machine.

    What several machines compute is of one precision: that of the first process which began in the
    folder. Where another machine would take another one, its log says so.

    Args:
        config: with the dtype that was asked for.
        cells: in the folder that the processes share.
    """
    if config.dtype not in ("auto", "fast"):
        return config
    named = dtype_named(config.dtype, device_named(config.device))
    here = str(named).removeprefix("torch.")
    dtype = cells.dtype(config.dtype, here)
    if dtype != here:
        logger.warning(
            "dtype %s is %s on this machine; it computes in %s all the same, as the first process "
            "of this folder did",
            config.dtype,
            here,
            dtype,
        )
    return config.model_copy(update={"dtype": dtype})


class Workbench:
    """Makes settings, and keeps one model at a time with what was made on it."""

    def __init__(
        self, config: SweepConfig, store: Store, behaviour: Behaviour | None = None
    ) -> None:
        if behaviour is None and config.behaviour is not None:
            behaviour = load_behaviour(config.behaviour)
        self._config, self._store, self.behaviour = config, store, behaviour
        self._model_name: str | None = None
        self._made: dict[Hashable, Any] = {}

    @property
    def measures(self) -> Measures:
        """What the behaviour's columns are called."""
        return REFUSAL if self.behaviour is None else self.behaviour.measures

    @classmethod
    def holding(
        cls,
        config: SweepConfig,
        store: Store,
        model: TransformerBridge,
        dataset: ContrastiveDataset,
        behaviour: Behaviour | None = None,
    ) -> Workbench:
        """One whose model and dataset are at hand, for a grid that names one of each."""
        bench = cls(config, store, behaviour)
        (grid,) = config.grid
        (bench._model_name,), (name,) = grid.model, grid.dataset
        bench._made = {"model": model, ("split", name): bench._split_of(dataset)}
        return bench

    def setting(self, group: CellGroup, prompts: slice = slice(None)) -> Setting:
        """All that ``group`` takes, on all of its prompts or some.

        Its identity holds no names of models, datasets or parts, but what they stand for: the keys
        of the activations, which cover weights, prompts and labels, and the tokens to steer.

        Raises:
            NotApplicable: the method finds nothing to steer by (no site is selected, for instance).
            UserError: the model, the dataset or a package is unavailable.
        """
        arm, config = group.arm, self._config
        if arm.model != self._model_name:
            self._made.clear()
            self._model_name = arm.model
        texts = getattr(getattr(self._split(arm.dataset), group.part), group.prompt_class)
        texts = texts[: group.first_prompts][prompts]
        scored: dict[str, str] = {}
        if (behaviour := self.behaviour) is not None:
            texts = behaviour.asked(texts)
            if behaviour.openings is not None:
                behaviour.openings.oriented(texts)  # other prompts than its questions have no score
            identity = behaviour.identity
            scored = {} if identity is None else {"behaviour": identity}
        train, held_out = (self.activations(arm, part) for part in ("train", "dev"))
        answered = {
            "tokens": tokens_digest(tokenize(self._model(), texts, config.chat)),
            "max_new_tokens": config.max_new_tokens,
            "stop_ids": stop_ids(self._model()),
        }
        spec = train.spec
        return Setting(
            model=self._model(),
            calibration=self._calibration(arm),
            operator=arm.operator_value,
            prompts=texts,
            chat=config.chat,
            max_new_tokens=config.max_new_tokens,
            batch_rows=config.batch_rows,
            identity={
                "train": spec.key,
                "held_out": held_out.spec.key,
                "operator": arm.operator,
                "selection": repr(arm.rule),
                "plane": arm.plane,
                **answered,
                **scored,
            },
            unsteered={
                "model": [spec.model.fingerprint, spec.model.dtype],
                "versions": dict(spec.versions),
                **answered,
                **scored,
            },
            lower=self._once("lower blocks", LowerBlocks),
            behaviour=behaviour,
        )

    def _once(self, what: Hashable, make: Callable[[], Any]) -> Any:
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    def _model(self) -> TransformerBridge:
        name, config = self._model_name, self._config
        assert name is not None

        def load() -> TransformerBridge:
            model = load_model(name, device=config.device, dtype=config.dtype)
            if self.behaviour is not None and self.measures.score in config.scores:
                self.behaviour.check_openings(model)  # before the slow part
            return model

        return self._once("model", load)

    def _split(self, dataset: str) -> DatasetSplit:
        own = None if self.behaviour is None else self.behaviour.dataset

        def make() -> DatasetSplit:
            if own is not None and own.name == dataset:
                return self._split_of(own)
            return self._split_of(load_dataset(dataset))

        return self._once(("split", dataset), make)

    def _split_of(self, dataset: ContrastiveDataset) -> DatasetSplit:
        split = self._config.split
        return dataset.split(dev=split.dev, test=split.test, seed=split.seed)

    def activations(self, arm: Arm, part: Literal["train", "dev"]) -> Activations:
        """What an arm of the model at hand is calibrated on, or chooses on."""

        def make() -> Activations:
            data = getattr(self._split(arm.dataset), part)
            acts = capture(self._model(), data, store=self._store, chat=self._config.chat)
            if arm.labels == "true":
                return acts
            assert arm.seed is not None
            return shuffled(acts, data, self._model(), arm.seed)

        drawn = arm.seed if arm.labels == "shuffled" else None
        return self._once(("activations", arm.dataset, part, arm.labels, drawn), make)

    def _calibration(self, arm: Arm) -> Calibration:
        train, held_out = (self.activations(arm, part) for part in ("train", "dev"))

        def make() -> Calibration:
            return calibrate(train, plane=arm.plane_method, rule=arm.rule, held_out=held_out)

        return self._once(
            ("calibration", train.spec.key, held_out.spec.key, arm.selection, arm.plane), make
        )


def shuffled(
    acts: Activations, dataset: ContrastiveDataset, model: TransformerBridge, seed: int
) -> Activations:
    """The activations with the classes of their prompts drawn again: the control of the labels.

    Paired prompts swap classes within their pair with probability ½, so that they stay partners;
    others are permuted. The specification is that of the dataset with its prompts in this order.

    Args:
        acts: of ``dataset`` on ``model``.
        dataset: whose prompts stand in new classes.
        model: whose tokens identify the activations.
        seed: of the draw.
    """
    n_positive, prompts = len(dataset.positive), (*dataset.positive, *dataset.negative)
    order, generator = list(range(len(prompts))), random.Random(seed)
    if dataset.paired:
        for i in range(n_positive):
            if generator.random() < 0.5:
                order[i], order[i + n_positive] = order[i + n_positive], order[i]
    else:
        generator.shuffle(order)
    moved = tuple(prompts[i] for i in order)
    redrawn = ContrastiveDataset(
        f"{dataset.name} (labels shuffled, seed {seed})",
        moved[:n_positive],
        moved[n_positive:],
        dataset.paired,
    )
    spec = replace(
        acts.spec,
        dataset_name=redrawn.name,
        dataset_digest=redrawn.digest,
        tokens_digest=tokens_digest(tokenize(model, moved, acts.spec.chat)),
        prompt_digests=tuple(map(prompt_digest, moved)),
    )
    return stacked(torch.cat((acts.positive, acts.negative))[order], spec)
