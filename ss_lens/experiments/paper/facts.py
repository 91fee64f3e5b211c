"""Numbers of a paper run that stand alone, and the activations that its figures are drawn from."""

from __future__ import annotations

from typing import Any

from ss_lens.activations.activations import Activations
from ss_lens.activations.capture import capture
from ss_lens.calibration.calibration import Calibration
from ss_lens.datasets.contrastive import load_dataset
from ss_lens.experiments.grid import CellGroup
from ss_lens.experiments.paper.plan import full_method
from ss_lens.experiments.paper.stages import Work
from ss_lens.geometry.operators import RotateBy, RotateTo, RotateToIfAligned, SetAngle


def facts(work: Work) -> dict[str, Any]:
    """What the calibrations with and without the published template have in common."""
    plain, wrapped = (
        work.bench.setting(
            CellGroup(full_method(work.config, data), "dev", "positive", (0.0,))
        ).calibration
        for data in (work.dataset, work.wrapped)
    )
    cosines = plain.plane.basis.double() @ wrapped.plane.basis.double().T
    both = set(plain.selected_sites) & set(wrapped.selected_sites)
    train = work.bench.activations(work.full, "train")
    return {
        "n_train": train.spec.n_positive,
        "n_layers": train.spec.model.n_layers,
        "computed_in": train.spec.model.dtype,
        "n_calibrated_sites": len(plain.sites),
        "cos_b1_wrapped": float(cosines[0, 0]),
        "shared_sites_wrapped": len(both),
        "cos_largest_wrapped": float(cosines.svd().S[0]),
        **_norm_changes(train, plain),
    }


def activations_of(work: Work) -> dict[str, str]:
    """The store's keys of the train and test activations, captured where they are not there."""
    config = work.config
    split = load_dataset(work.dataset).split(
        dev=config.size.dev, test=config.size.test, seed=config.seed
    )
    model = work.bench.setting(CellGroup(work.full, "test", "positive", (0.0,))).model
    shown = capture(model, split.test, store=work.store)
    return {"train": work.bench.activations(work.full, "train").spec.key, "test": shown.spec.key}


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
