"""The paper as one command: a preset over the sweep engine, with the controls that the paper lacks.

What the cells of ``small`` cost on a model of 1.5 B on 2 cores, as planned (:data:`STAGES`):

======================  ==========================================================  =======
stage                   cells                                                       minutes
======================  ==========================================================  =======
capture                 192 + 32 prompts; the template variant once more            3
scan on dev             one pass at 8 angles: 7 methods, 14 controls; 10 rules at 4  14
answers on dev          32 per method and try, 16 per control, 32 tokens            14
answers on test         48 per method, 24 per control, 32 tokens, perplexities      30
nulls                   99 planes of each kind, 99 site sets, a pass of 24 prompts  36
capability              80 items for 6 models, where lm-eval is installed           10
======================  ==========================================================  =======
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ss_lens.activations.activations import Activations
from ss_lens.activations.capture import capture
from ss_lens.activations.store import Store
from ss_lens.calibration.calibration import Calibration, calibrate
from ss_lens.calibration.site_selection import Explicit
from ss_lens.core.checks import check_is, check_path
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.core.files import atomic_path, check_can_be_made, make_folder, write_json
from ss_lens.core.replace import holds_nothing, remove_leftovers
from ss_lens.datasets.contrastive import ContrastiveDataset, load_dataset
from ss_lens.experiments.choose_angle import choose_angle
from ss_lens.experiments.config import Part, PromptClass
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.experiments.inputs import Workbench
from ss_lens.experiments.paper.plan import (
    CENTRED,
    CRITERION,
    FULL,
    NULLS,
    PUBLISHED,
    PUBLISHED_WRAP,
    SELECTIONS,
    UNIFORM_PLANE,
    UNSTEERED,
    PaperConfig,
    Variant,
    full_method,
    matched_plane,
    variants,
)
from ss_lens.experiments.paper.tables import Chosen, Measured, judged_answers, rows_of, write_tables
from ss_lens.experiments.sweep import SweepResult, run_sweep
from ss_lens.geometry.operators import RotateBy, RotateTo, RotateToIfAligned, SetAngle
from ss_lens.scoring.registry import ANSWERS

STAGES: Mapping[str, float] = {
    "capture and the method's sites": 5,
    "scan of the angles on dev": 14,
    "answers on dev": 14,
    "answers on test": 30,
    "random planes and site sets": 36,
    "capability": 10,
}
"""Stages in their order and the minutes that are planned for each."""
ON_DEV = (ANSWERS, "refusal_score")
ON_TEST = (ANSWERS, "perplexity", "perplexity_steered", "refusal_score")
OF_ABLATIONS = (ANSWERS, "perplexity", "refusal_score")
ONE_PASS = ("refusal_score",)
BOTH: tuple[PromptClass, ...] = ("positive", "negative")
HARMFUL: tuple[PromptClass, ...] = ("positive",)
PLAIN, WRAPPED = "data.jsonl", "data_wrapped.jsonl"
Cells = Mapping[Arm, tuple[float, ...]]
logger = logging.getLogger(__name__)


def run_paper(
    config: PaperConfig,
    dataset: ContrastiveDataset,
    folder: Path | str,
    *,
    store: Store | None = None,
) -> Path:
    """Measure everything and write the tables; stopped at any moment, the same call resumes.

    Angles and strengths are chosen on dev alone, and everything else is reported on test. Prompts
    and answers stay in ``folder``; its tables hold numbers only.

    Args:
        config: the model and how much.
        dataset: of which the first prompts of each class are taken, as many as the size needs.
        folder: new, empty, or of an earlier run on the same prompts.
        store: of activations; ``None`` is the user's store.

    Returns:
        The folder of the tables.

    Raises:
        UserError: a dataset that cannot be split so, a folder with something else in it, a model
            without discriminative sites, or what :func:`ss_lens.run_sweep` raises.
    """
    check_is("config", config, (PaperConfig,), "a PaperConfig(model=...)")
    check_is("dataset", dataset, (ContrastiveDataset,), "a dataset from load_dataset(...)")
    check_path("folder", folder)
    work = _Work.prepared(config, dataset, Path(folder), Store() if store is None else store)
    clock = _Clock()
    with clock.stage("capture and the method's sites"):
        plan = work.planned()
    with clock.stage("scan of the angles on dev"):
        scan, others = work.scan(plan)
    with clock.stage("answers on dev"):
        chosen = work.choose(plan, scan)
    with clock.stage("answers on test"):
        tested = work.test(chosen)
    (full,) = (made for made in chosen if made.variant.name == FULL and made.table == "methods")
    with clock.stage("random planes and site sets"):
        nulls = work.nulls(full)
    with clock.stage("capability"):
        items = work.capability(chosen)
    judged = judged_answers(config, chosen, tested)
    measured = Measured(scan, others, chosen, tested, nulls, items, judged, work.facts())
    return write_tables(config, measured, work.folder)


@dataclass(frozen=True, eq=False)
class _Work:
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
    ) -> _Work:
        size = config.size
        if size.train is not None:
            dataset = dataset.head(size.train + size.dev + size.test)
        dataset.split(dev=size.dev, test=size.test, seed=config.seed)
        check_can_be_made(folder)
        negative = tuple(PUBLISHED_WRAP.replace("{prompt}", text) for text in dataset.negative)
        wrapped = ContrastiveDataset(f"{dataset.name} wrapped", dataset.positive, negative)
        texts = {WRAPPED: _lines(wrapped), PLAIN: _lines(dataset)}  # in the order of writing
        _check_same(folder, texts)
        make_folder(folder)
        remove_leftovers(folder)
        for name, text in texts.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, "utf-8")
        plain, changed = str(folder / PLAIN), str(folder / WRAPPED)
        first = full_method(config, plain)
        bench = Workbench(config.sweep({first: (0.0,)}, "dev", ONE_PASS, BOTH), store)
        return cls(config, folder, store, plain, changed, bench)

    def sweep(
        self,
        cells: Cells,
        part: Part,
        scores: tuple[str, ...],
        prompt_class: tuple[PromptClass, ...] = BOTH,
    ) -> SweepResult:
        config = self.config.sweep(cells, part, scores, prompt_class)
        bench = self.bench if config.cluster is None else None
        return run_sweep(config, self.folder / "sweep", store=self.store, bench=bench)

    @property
    def full(self) -> Arm:
        return full_method(self.config, self.dataset)

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
        methods = _union(variant for variant in plan if variant.table == "methods")
        self.sweep(methods, "dev", ONE_PASS)
        found = self.sweep(_union(plan), "dev", ONE_PASS, HARMFUL)
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

    def choose(self, plan: tuple[Variant, ...], scan: SweepResult) -> tuple[Chosen, ...]:
        """Each variant's best cell on dev whose answers have not collapsed.

        Where none of the first ``tries`` is, it is the best one, and the tables say so.
        """
        ranked = {variant: _ranked(variant, scan) for variant in plan}
        pending = {variant: cells for variant, cells in ranked.items() if cells}
        chosen: dict[Variant, Chosen] = {}
        tried: dict[Variant, list[Chosen]] = {variant: [] for variant in pending}
        tries = self.config.size.tries
        for rank in range(max(variant.most_tries(tries) for variant in pending)):
            at = {
                variant: cells[rank]
                for variant, cells in pending.items()
                if rank < min(len(cells), variant.most_tries(tries)) and variant not in chosen
            }
            if not at:
                break
            answered = self.answered_on_dev(at)
            for variant, (arm, angle, _) in at.items():
                rows = rows_of(answered, arm, angle)
                choice = choose_angle(rows, CRITERION)
                numbers = choice.dev.to_dict("records")[0]
                found = Chosen(variant, arm, angle, choice.angle_deg is not None, numbers)
                tried[variant].append(found)
                if found.admissible:
                    chosen[variant] = found
        return tuple(chosen.get(variant) or tried[variant][0] for variant in pending)

    def answered_on_dev(self, at: Mapping[Variant, tuple[Arm, float, float]]) -> pd.DataFrame:
        """Of the methods to both classes; of the ablations to harmful prompts, as on test."""
        parts = []
        for table, prompt_class in (("methods", BOTH), ("ablations", HARMFUL)):
            pairs = [cell[:2] for variant, cell in at.items() if variant.table == table]
            if pairs:
                parts.append(self.sweep(_cells(pairs), "dev", ON_DEV, prompt_class).table)
        # An arm may stand in both tables.
        return pd.concat(parts, ignore_index=True).drop_duplicates(
            [*asdict(self.full), "angle_deg", "prompt_class", "prompt_index"], ignore_index=True
        )

    def test(self, chosen: tuple[Chosen, ...]) -> SweepResult:
        """The methods on both classes, the ablations on harmful prompts alone."""
        methods = _cells((made.arm, made.angle_deg) for made in chosen if made.table == "methods")
        others = _cells(
            (made.arm, made.angle_deg)
            for made in chosen
            if made.angle_deg not in methods.get(made.arm, ())
        )
        found = self.sweep(methods, "test", ON_TEST)
        if not others:
            return found
        more = self.sweep(others, "test", OF_ABLATIONS, HARMFUL)
        return replace(
            found,
            table=pd.concat([found.table, more.table], ignore_index=True),
            groups=pd.concat([found.groups, more.groups], ignore_index=True),
        )

    def nulls(self, full: Chosen) -> dict[str, SweepResult]:
        """Random planes at the method's sites and random site sets in its plane, at its angle."""
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
            at = dict.fromkeys(arms, (full.angle_deg,))
            found[name] = self.sweep(at, "test", ONE_PASS, HARMFUL)
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

    def facts(self) -> dict[str, Any]:
        """What the calibrations with and without the published template have in common."""
        plain, wrapped = (
            self.bench.setting(
                CellGroup(full_method(self.config, data), "dev", "positive", (0.0,))
            ).calibration
            for data in (self.dataset, self.wrapped)
        )
        cosines = plain.plane.basis.double() @ wrapped.plane.basis.double().T
        both = set(plain.selected_sites) & set(wrapped.selected_sites)
        split = load_dataset(self.dataset).split(
            dev=self.config.size.dev, test=self.config.size.test, seed=self.config.seed
        )
        model = self.bench.setting(CellGroup(self.full, "test", "positive", (0.0,))).model
        shown = capture(model, split.test, store=self.store)  # for the figures
        train = self.bench.activations(self.full, "train")
        write_json(
            self.folder / "paper.json",
            {
                "config": self.config.as_json(),
                "activations": {"train": train.spec.key, "test": shown.spec.key},
            },
        )
        return {
            "n_train": train.spec.n_positive,
            "n_layers": train.spec.model.n_layers,
            "n_calibrated_sites": len(plain.sites),
            "cos_b1_wrapped": float(cosines[0, 0]),
            "shared_sites_wrapped": len(both),
            "cos_largest_wrapped": float(cosines.svd().S[0]),
            **_norm_changes(train, plain),
        }


class _Clock:
    """Says at each stage how much is left, by the pace of what was computed so far."""

    def __init__(self) -> None:
        self._spent = self._planned = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        names = [*STAGES]
        place = names.index(name)
        left = sum(STAGES[later] for later in names[place:])
        pace = self._spent / self._planned if self._planned else None
        told = "" if pace is None else f", about {left * pace / 60:.0f} min left"
        logger.info("paper: %s (%d of %d%s)", name, place + 1, len(names), told)
        began = time.monotonic()
        yield
        spent = time.monotonic() - began
        if spent > 0.02 * 60 * STAGES[name]:  # else it was there already
            self._spent, self._planned = self._spent + spent, self._planned + STAGES[name]


def _norm_changes(acts: Activations, calibration: Calibration) -> dict[str, float]:
    """The largest relative change of an activation's norm at the steered sites, by operator."""
    found = {}
    for kind in (RotateBy, RotateTo, RotateToIfAligned, SetAngle):
        largest = 0.0
        for site in calibration.selected_sites:
            for h in acts.at(site):
                after = kind(135.0).apply(h, calibration.plane).norm(dim=-1)
                largest = max(largest, float((after / h.norm(dim=-1) - 1).abs().max()))
        found[f"norm_change_{kind.__name__}"] = largest
    return found


def _ranked(variant: Variant, scan: SweepResult) -> list[tuple[Arm, float, float]]:
    """Arms and angles from the lowest mean refusal score of harmful dev prompts on."""
    found = []
    for arm, angles in variant.cells.items():
        rows = rows_of(scan.table, arm).query("prompt_class == 'positive'")
        means = rows.groupby("angle_deg")["refusal_score"].agg("mean").to_dict()
        found += [(arm, angle, means[angle]) for angle in angles if angle in means]
    return sorted(found, key=lambda cell: (cell[2], min(cell[1], -cell[1] % 360), cell[1]))


def _cells(pairs: Any) -> dict[Arm, tuple[float, ...]]:
    found: dict[Arm, dict[float, None]] = {}
    for arm, angle in pairs:
        found.setdefault(arm, {})[angle] = None
    return {arm: tuple(angles) for arm, angles in found.items()}


def _union(plan: Any) -> dict[Arm, tuple[float, ...]]:
    return _cells(
        (arm, angle)
        for variant in plan
        for arm, angles in variant.cells.items()
        for angle in angles
    )


def _check_same(folder: Path, texts: Mapping[str, str]) -> None:
    """Refuse a folder that holds something else than a run on the same prompts."""
    if holds_nothing(folder):
        return
    if not (folder / WRAPPED).is_file():
        raise UserError(f"{folder} is not empty and holds no paper run; choose another --out.")
    for name, text in texts.items():
        path = folder / name
        if path.is_file() and path.read_bytes() != text.encode():
            raise UserError(
                f"{folder} holds a paper run on other prompts ({name} differs: another dataset, or "
                "another size of it); choose another --out, or remove that folder."
            )


def _lines(data: ContrastiveDataset) -> str:
    rows = [{"prompt": text, "class": label} for label in BOTH for text in getattr(data, label)]
    return "".join(json.dumps(row) + "\n" for row in rows)
