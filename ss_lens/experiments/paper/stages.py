"""What a paper run measures beside its answers: sites, scans, random draws, capability."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from ss_lens.activations.store import Store
from ss_lens.calibration.calibration import calibrate
from ss_lens.calibration.site_selection import Explicit
from ss_lens.core.errors import NotApplicable
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.experiments.answers import forget_cut_answers
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.config import Part, PromptClass
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.experiments.inputs import Workbench, settled
from ss_lens.experiments.paper.folder import PLAIN, WRAPPED, claim
from ss_lens.experiments.paper.measured import Chosen, under_refusals_names
from ss_lens.experiments.paper.plan import (
    BOTH,
    CENTRED,
    HARMFUL,
    NULLS,
    ONE_PASS,
    PUBLISHED,
    SELECTIONS,
    UNIFORM_PLANE,
    UNSTEERED,
    PaperConfig,
    Variant,
    full_method,
    matched_plane,
    union,
    variants,
)
from ss_lens.experiments.sweeps.result import SweepResult
from ss_lens.experiments.sweeps.run import run_sweep

Cells = Mapping[Arm, tuple[float, ...]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Work:
    """What the stages share."""

    config: PaperConfig
    folder: Path
    store: Store
    dataset: str
    wrapped: str
    bench: Workbench

    @classmethod
    def prepared(
        cls, config: PaperConfig, dataset: ContrastiveDataset, folder: Path, store: Store
    ) -> Work:
        """With the folder claimed."""
        claim(config, dataset, folder)
        plain, changed = str(folder / PLAIN), str(folder / WRAPPED)
        first = full_method(config, plain)
        asked = config.sweep({first: (0.0,)}, "dev", ONE_PASS, BOTH)
        if asked.cluster is not None:  # what is calibrated here is steered by the workers
            asked = settled(asked, CellStore.claim(folder / "sweep"))
        bench = Workbench(asked, store)
        return cls(config, folder, store, plain, changed, bench)

    def sweep(
        self,
        cells: Cells,
        part: Part,
        scores: tuple[str, ...],
        prompt_class: tuple[PromptClass, ...] = BOTH,
        first_prompts: int | None = None,
    ) -> SweepResult:
        config = self.config.sweep(cells, part, scores, prompt_class, first_prompts)
        bench = self.bench if config.cluster is None else None
        found = run_sweep(config, self.folder / "sweep", store=self.store, bench=bench)
        return under_refusals_names(found, self.config.measures)

    @property
    def full(self) -> Arm:
        return full_method(self.config, self.dataset)

    @property
    def cells(self) -> CellStore:
        """Of all sweeps."""
        return CellStore(self.folder / "sweep")

    def harmful_tokens(self, parts: Sequence[Part] = ("dev", "test")) -> set[str]:
        """What identifies the harmful prompts of these parts among all cells."""
        groups = [CellGroup(self.full, part, "positive", (0.0,)) for part in parts]
        return {self.bench.setting(group).identity["tokens"] for group in groups}

    def have_whole_answers(self, parts: Sequence[Part]) -> None:
        """Let cut answers to harmful prompts be written again, where there are any."""
        if (self.folder / "sweep").exists():
            forget_cut_answers(self.cells, self.harmful_tokens(parts))

    def planned(self) -> tuple[Variant, ...]:
        """All variants; what the sizes of additions and the sites of controls refer to."""
        setting = self.bench.setting(CellGroup(self.full, "dev", "positive", (0.0,)))
        calibration, acts = setting.calibration, self.bench.activations(self.full, "train")
        calibration.save(self.folder / "calibration", overwrite=True)
        gaps = {
            str(site): float((positive.mean(dim=0) - negative.mean(dim=0)) @ calibration.plane.b1)
            for site in calibration.sites
            for positive, negative in [acts.at(site)]
        }
        steered = [str(site) for site in calibration.selected_sites]
        own = [gaps[site] for site in steered]
        return variants(
            self.config,
            self.dataset,
            Explicit(",".join(steered)).sites,
            sum(own) / len(own),
            sum(gaps.values()) / len(gaps),
        )

    def scan(self, plan: tuple[Variant, ...]) -> tuple[SweepResult, SweepResult]:
        """Refusal scores on dev at all angles: of the variants, and of rules and the template."""
        methods = union(variant for variant in plan if variant.table == "methods")
        self.sweep(methods, "dev", ONE_PASS)
        found = self.sweep(union(plan), "dev", ONE_PASS, HARMFUL)
        angles = self.config.rule_angles_deg
        model, dataset = self.config.model, self.dataset
        rules = [Arm(model=model, dataset=dataset, selection=rule) for rule in SELECTIONS]
        rules += [*self.centred(), full_method(self.config, self.wrapped)]
        cells = dict.fromkeys(rules, angles)
        return found, self.sweep(cells, "dev", ONE_PASS, HARMFUL)

    def centred(self) -> tuple[Arm, ...]:
        """The sites of ``centred=True`` with the prompts of both classes as the neutral ones."""
        acts = self.bench.activations(self.full, "train")
        try:
            made = calibrate(acts, rule=CENTRED, neutral=acts)
        except NotApplicable as error:
            logger.warning("not computed: %s, since %s", CENTRED, error)
            return ()
        sites = Explicit(",".join(map(str, made.selected_sites)))
        return (Arm(model=self.config.model, dataset=self.dataset, selection=repr(sites)),)

    def nulls(self, full: Chosen) -> dict[str, SweepResult]:
        """Random planes at the method's sites and random site sets in its plane, at its angle.

        Where the size says so, at others too.
        """
        setting = self.bench.setting(CellGroup(self.full, "test", "positive", (0.0,)))
        sites = Explicit(",".join(map(str, setting.calibration.selected_sites))).sites
        same, count = f"Explicit(sites={sites!r})", len(sites.split(","))
        places: tuple[dict[str, str], ...] = (
            {"selection": same, "plane": UNIFORM_PLANE},
            {"selection": same, "plane": matched_plane(sites)},
            {"selection": "RandomSites(seed={}, count=" + f"{count})"},
        )
        found = {}
        for name, texts in zip(NULLS, places, strict=True):
            arms = [
                replace(self.full, **{key: text.format(seed) for key, text in texts.items()})
                for seed in range(self.config.size.nulls)
            ]
            angles = dict.fromkeys((full.angle_deg, *self.config.size.null_angles_deg))
            at = dict.fromkeys(arms, tuple(angles))
            few = self.config.size.null_prompts
            found[name] = self.sweep(at, "test", ONE_PASS, HARMFUL, few)
        return found

    def capability(self, chosen: tuple[Chosen, ...]) -> dict[str, pd.DataFrame]:
        """The embedded items under each published method; nothing where lm-eval is missing."""
        from ss_lens.experiments.paper.capability import is_available, items

        if not is_available():
            logger.warning("capability is not measured: it needs the extra 'capability'")
            return {}
        methods = [made for made in chosen if made.variant.name in PUBLISHED]
        place = self.folder / "capability"
        found = {UNSTEERED: items(self.bench, self.full, None, place)}
        for made in methods:
            found[made.variant.name] = items(self.bench, made.arm, made.angle_deg, place)
        return found
