"""Calibrations: saved and loaded whole, never mixed, and rejected when damaged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Activations, Calibration, ContrastiveDataset, Site, Store, UserError, calibrate
from ss_lens.activations.activations import Evidence
from ss_lens.calibration.directions import CentredPCA, Fisher
from ss_lens.calibration.global_direction import AtSite, BestSeparation, Consensus
from ss_lens.calibration.planes import NextBest, RandomPlane, RandomSecond
from ss_lens.calibration.recipe import Recipe
from ss_lens.calibration.site_selection import EveryKth, RandomSites, TopK, as_rule
from ss_lens.models.sites import STREAMS
from tests.conftest import made_activations

SITES = tuple(Site(layer, s) for layer in range(3) for s in STREAMS)


@pytest.fixture
def acts() -> Activations:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gap = noise(16) + 0.5 * noise(len(SITES), 16)
    gap[1] = 0  # L0.ln1_out: no direction
    cloud = noise(12, len(SITES), 16)
    cloud[:, 1] = cloud[0, 1]
    return made_activations(cloud + gap, cloud - gap, SITES)


@pytest.fixture
def held_out(acts: Activations) -> Activations:
    generator = torch.Generator().manual_seed(1)

    def shaken(h: Tensor) -> Tensor:
        return h + 0.1 * torch.randn(h.shape, generator=generator)

    return made_activations(shaken(acts.positive), shaken(acts.negative), SITES)


@pytest.fixture
def saved(acts: Activations, tmp_path: Path) -> Path:
    calibrate(acts).save(tmp_path / "calibration")
    return tmp_path / "calibration"


def tensors_of(made: Calibration) -> dict[str, Tensor]:
    return {
        "directions": made.directions,
        "valid": made.candidates.valid,
        "lengths": made.candidates.lengths,
        "direction": made.direction.vector,
        "scores": made.direction.scores,
        "basis": made.plane.basis,
        "selected": made.selected,
    }


def assert_same(again: Calibration, made: Calibration) -> None:
    for name, tensor in tensors_of(made).items():
        torch.testing.assert_close(
            tensors_of(again)[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name
        )
    assert again.spec == made.spec
    assert again.spec.key == made.spec.key
    assert again.direction_site == made.direction_site
    assert again.recipe == made.recipe
    assert again.report == made.report
    assert again.selected_sites == made.selected_sites
    pd.testing.assert_frame_equal(again.selection.table, made.selection.table)


@pytest.mark.parametrize("rule", ["site", "block", "uniform"])
def test_a_calibration_is_loaded_as_it_was_saved(
    acts: Activations, tmp_path: Path, rule: str
) -> None:
    made = calibrate(acts, rule=rule)
    made.save(tmp_path / "deep" / "calibration")
    again = Calibration.load(str(tmp_path / "deep" / "calibration"))
    assert_same(again, made)
    assert again.rule == as_rule(rule)
    assert again.candidates.excluded == made.candidates.excluded == (Site(0, "ln1_out"),)


@pytest.mark.parametrize(
    "change",
    [
        {"direction": Fisher(shrinkage="oas")},
        {"direction": CentredPCA()},
        {"choice": Consensus()},
        {"choice": AtSite(site="L2.ln2_out")},
        {"choice": BestSeparation()},
        {"plane": RandomSecond(seed=3)},
        {"plane": RandomPlane(seed=1), "rule": "uniform"},
        {"plane": NextBest()},
        {"rule": TopK(k=2)},
        {"rule": RandomSites(seed=0)},
        {"rule": EveryKth(k=2)},
    ],
    ids=str,
)
def test_an_ablation_is_one_changed_argument_and_is_kept_with_what_decided_it(
    change: dict[str, Any], acts: Activations, held_out: Activations, tmp_path: Path
) -> None:
    made = calibrate(acts, held_out=held_out, **change)
    for name, value in change.items():
        assert getattr(made.recipe, name) == (as_rule(value) if name == "rule" else value)
    plain = calibrate(acts)
    assert made.recipe != plain.recipe
    made.save(tmp_path / "calibration")
    assert_same(Calibration.load(tmp_path / "calibration"), made)
    assert made.selection.table["selected"].tolist() == made.selected.tolist()


def test_a_choice_that_needs_held_out_prompts_says_so(acts: Activations) -> None:
    with pytest.raises(
        UserError, match=r"TopK\(k=2\) needs held_out activations; .*calibrate\(\.\.\., held_out="
    ):
        calibrate(acts, rule=TopK(k=2))


def test_held_out_activations_of_other_sites_or_models_are_never_mixed(
    acts: Activations, held_out: Activations
) -> None:
    with pytest.raises(UserError, match=r"held_out activations differ .* in their sites"):
        Evidence(acts, held_out.restricted_to(["ln1_out"]))
    stranger = replace(acts.spec, model=replace(acts.spec.model, fingerprint="e" * 64))
    other = Activations(acts.positive, acts.negative, stranger)
    with pytest.raises(UserError, match=r"neutral activations differ .* in their model"):
        Evidence(acts, neutral=other)


def test_the_prompts_that_are_fitted_on_are_never_taken_for_held_out(acts: Activations) -> None:
    with pytest.raises(UserError, match=r"held_out activations are of the very prompts .*dataset"):
        calibrate(acts, held_out=acts)


def test_saving_leaves_two_files_and_replaces_an_older_calibration(
    acts: Activations, saved: Path
) -> None:
    calibrate(acts, rule="uniform").save(saved, overwrite=True)
    assert Calibration.load(saved).rule == as_rule("uniform")
    assert sorted(os.listdir(saved)) == ["calibration.json", "calibration.safetensors"]
    assert os.listdir(saved.parent) == ["calibration"]


def test_saving_over_a_folder_of_something_else_is_refused_and_loses_nothing(
    acts: Activations, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis"):
        calibrate(acts).save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_a_calibration_holds_no_pickle(saved: Path) -> None:
    assert (saved / "calibration.safetensors").read_bytes()[8:9] == b"{"
    assert json.loads((saved / "calibration.json").read_text())["format"] == 2


def damage_flip(folder: Path) -> None:
    path = folder / "calibration.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def damage_truncate(folder: Path) -> None:
    path = folder / "calibration.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def damage_format(folder: Path) -> None:
    path = folder / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def damage_json(folder: Path) -> None:
    path = folder / "calibration.json"
    path.write_text(path.read_text()[:-40])


DAMAGES = {
    "one bit": (damage_flip, r"calibration\.safetensors is missing or damaged.*calibrate again"),
    "truncated": (damage_truncate, r"calibration\.safetensors is missing or damaged"),
    "emptied": (lambda f: (f / "calibration.safetensors").write_bytes(b""), r"or damaged"),
    "tensors gone": (lambda f: (f / "calibration.safetensors").unlink(), r"is missing or damaged"),
    "json gone": (
        lambda f: (f / "calibration.json").unlink(),
        r"there is no calibration at .*json",
    ),
    "json truncated": (damage_json, r"the calibration at .*calibration\.json is damaged"),
    "other format": (damage_format, r"has format 99, this version reads 2; calibrate again"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_calibration_is_rejected(saved: Path, damage: str) -> None:
    spoil, message = DAMAGES[damage]
    spoil(saved)
    with pytest.raises(UserError, match=message):
        Calibration.load(saved)


def test_a_missing_calibration_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no calibration at .*nowhere.*; check the path"):
        Calibration.load(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_named(saved: Path) -> None:
    with pytest.raises(UserError, match="there is no calibration at"):
        Calibration.load(saved / "calibration.json")


# --- streams -------------------------------------------------------------------------------------


def test_the_default_streams_are_the_norm_outputs(acts: Activations) -> None:
    made = calibrate(acts)
    assert {site.stream for site in made.sites} == {"ln1_out", "ln2_out"}
    assert made.spec.sites == made.sites
    torch.testing.assert_close(
        made.directions, calibrate(acts.restricted_to(["ln1_out", "ln2_out"])).directions
    )


def test_residual_streams_calibrate_on_their_own(acts: Activations) -> None:
    made = calibrate(acts, streams=("resid_post", "resid_mid"))
    assert {site.stream for site in made.sites} == {"resid_mid", "resid_post"}
    assert made.candidates.excluded == ()


def test_streams_of_different_kinds_are_never_mixed(acts: Activations) -> None:
    with pytest.raises(
        UserError, match=r"ln1_out, resid_post mix norm outputs with residual.*separately"
    ):
        calibrate(acts, streams=("ln1_out", "resid_post"))


def test_no_stream_is_rejected(acts: Activations) -> None:
    with pytest.raises(UserError, match="stream"):
        calibrate(acts, streams=())


def test_restriction_keeps_values_and_order(acts: Activations) -> None:
    kept = acts.restricted_to(["resid_post", "ln1_out"])
    indices = [i for i, site in enumerate(SITES) if site.stream in ("ln1_out", "resid_post")]
    assert kept.sites == tuple(SITES[i] for i in indices)
    assert torch.equal(kept.positive, acts.positive[:, indices])
    assert torch.equal(kept.negative, acts.negative[:, indices])
    assert kept.spec.key != acts.spec.key
    assert acts.restricted_to(STREAMS) is acts


def test_a_stream_that_was_not_captured_is_rejected_with_those_that_were(
    acts: Activations,
) -> None:
    part = acts.restricted_to(STREAMS[1:])
    listed = ", ".join(STREAMS[1:])
    with pytest.raises(
        UserError, match=rf"'resid_pre' is not among the captured ones \({listed}\); capture it"
    ):
        part.restricted_to(["resid_pre"])


def test_activations_at_a_site_that_was_not_captured_are_rejected(acts: Activations) -> None:
    positive, negative = acts.at(Site(2, "ln2_out"))
    index = SITES.index(Site(2, "ln2_out"))
    assert torch.equal(positive, acts.positive[:, index])
    assert torch.equal(negative, acts.negative[:, index])
    with pytest.raises(
        UserError, match=r"L9\.ln1_out was not captured; captured are L0\.resid_pre"
    ):
        acts.at(Site(9, "ln1_out"))


def test_activations_must_match_their_specification(acts: Activations) -> None:
    with pytest.raises(UserError, match=r"11 \+ 12 prompts at 21 sites do not match .*\(12 \+ 12"):
        Activations(acts.positive[:11], acts.negative, acts.spec)
    with pytest.raises(UserError, match=r"at 20 sites do not match"):
        Activations(acts.positive[:, :20], acts.negative[:, :20], acts.spec)


# --- the model it belongs to ---------------------------------------------------------------------


def test_a_calibration_fits_its_own_model_only(
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    store: Store,
    acts: Activations,
) -> None:
    llama = tiny_models["llama"]
    made = calibrate(ss_lens.capture(llama, tiny_data, store=store), rule="uniform")
    made.check_fits(llama)
    with pytest.raises(UserError, match=r"was made on '.*tiny-llama' \(weights .*Calibrate again"):
        made.check_fits(tiny_models["gpt2"])
    halved = ss_lens.load_model(tiny_folders["llama"], dtype="bfloat16")
    with pytest.raises(
        UserError, match=r"was made in float32, the model is in bfloat16 \(load_mod"
    ):
        made.check_fits(halved)
    with pytest.raises(
        UserError, match=r"is for 3 layers of width 16, the model '.*' has 3 of wid"
    ):
        calibrate(acts).check_fits(llama)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("part", "value", "got"),
    [
        ("direction", "DifferenceOfMeans", "'DifferenceOfMeans'"),
        ("direction", None, "None"),
        ("choice", Consensus, "the class Consensus itself"),
        ("plane", 5, "5"),
        ("rule", "site", "'site'"),
    ],
)
def test_a_recipe_takes_methods_and_nothing_else(part: str, value: object, got: str) -> None:
    with pytest.raises(UserError, match=rf"{part} must be a method such as .*; got {got}"):
        Recipe(**{part: value})  # type: ignore[arg-type]
