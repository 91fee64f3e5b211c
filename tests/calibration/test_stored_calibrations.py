"""A stored calibration is read as it was written, or refused in one line."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ss_lens import Activations, Calibration, CentredPCA, Site, TopK, UserError, calibrate
from ss_lens.calibration.selection import Selection
from ss_lens.core.sealed import SEAL
from tests.conftest import made_activations

SITES = tuple(Site(layer, s) for layer in range(3) for s in ("ln1_out", "ln2_out"))


def activations(seed: int = 0, n: int = 8, spread: float = 0.5) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    gap = torch.randn(16, generator=generator)
    gap = gap + 0.5 * torch.randn(len(SITES), 16, generator=generator)
    cloud = spread * torch.randn(n, len(SITES), 16, generator=generator)
    return made_activations(cloud + gap, cloud - gap, SITES)


@pytest.fixture
def made() -> Calibration:
    return calibrate(activations())


@pytest.fixture
def saved(made: Calibration, tmp_path: Path) -> Path:
    made.save(tmp_path / "calibration")
    return tmp_path / "calibration"


def same(a: Calibration, b: Calibration) -> bool:
    return (
        torch.equal(a.directions, b.directions)
        and torch.equal(a.plane.basis, b.plane.basis)
        and torch.equal(a.selected, b.selected)
        and torch.equal(a.direction.vector, b.direction.vector)
        and a.selection.table.equals(b.selection.table)
        and (a.spec, a.recipe, a.direction_site, a.report)
        == (b.spec, b.recipe, b.direction_site, b.report)
    )


def edit(folder: Path, change: Callable[[dict[str, Any]], None], *, unseal: bool = False) -> None:
    path = folder / "calibration.json"
    content = json.loads(path.read_text())
    change(content)
    if unseal:
        del content[SEAL]
    path.write_text(json.dumps(content))


# --- damaged and edited --------------------------------------------------------------------------


def test_no_flipped_bit_of_either_file_is_served(made: Calibration, saved: Path) -> None:
    generator = random.Random(0)
    refused = []
    for path in sorted(saved.iterdir()):
        whole = path.read_bytes()
        for bit in generator.sample(range(8 * len(whole)), 100):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            try:
                assert same(Calibration.load(saved), made), bit
            except UserError as error:
                refused.append(str(error))
        path.write_bytes(whole)
    assert len(refused) > 150
    assert not any("\n" in line for line in refused)


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "permuted sites": lambda c: c["spec"]["sites"].reverse(),
    "another number": lambda c: c["selection"]["margin"].__setitem__(0, 0.5),
    "another site": lambda c: c.update(direction_site="L1.ln2_out"),
    "another rule": lambda c: c["recipe"].update(rule="Uniform()"),
    "another width": lambda c: c["spec"]["model"].update(d_model=17),
    "a key more": lambda c: c.update(note="mine"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_calibration_is_refused(saved: Path, name: str) -> None:
    edit(saved, EDITS[name])
    with pytest.raises(
        UserError, match=r"is damaged \(its checksum differs, or it was edited\); c"
    ):
        Calibration.load(saved)


def test_a_calibration_from_before_there_was_a_digest_is_read(
    made: Calibration, saved: Path
) -> None:
    edit(saved, lambda content: None, unseal=True)
    assert same(Calibration.load(saved), made)


UNSEALED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "permuted sites": (
        lambda c: c["spec"]["sites"].reverse(),
        r"selection\.site is a list; expected the sites of spec, in their order",
    ),
    "both permuted": (
        lambda c: (c["spec"]["sites"].reverse(), c["selection"]["site"].reverse()),
        r"the direction of a calibration must be the candidate of its site; got another at L",
    ),
    "selected that are not": (
        lambda c: c["selection"]["selected"].reverse() or c["selection"]["selected"].append(1),
        r"selection\.selected is a list; expected a list of 6 values",
    ),
    "another width": (
        lambda c: c["spec"]["model"].update(d_model=17),
        r"directions is torch\.float32 of shape \(6, 16\); expected .* of shape \(6, 17\)",
    ),
    "a spec of text": (lambda c: c.update(spec="none"), r"of another layout: .* Calibrate again"),
    "a selection of text": (
        lambda c: c.update(selection="none"),
        r"selection is none; expected a dictionary by name",
    ),
    "a report of numbers": (
        lambda c: c.update(plane_report=[1]),
        r"plane_report is a list; expected a dictionary by name",
    ),
    "a report of text": (
        lambda c: c.update(plane_report={"a": "b"}),
        r"plane_report\.a is b; expected a number",
    ),
    "a rule of numbers": (
        lambda c: c["recipe"].update(rule=5),
        r"recipe\.rule is 5; expected text",
    ),
    "no recipe": (lambda c: c.update(recipe=None), r"recipe\.direction is missing; expected it"),
}


@pytest.mark.parametrize("name", UNSEALED)
def test_the_parts_of_an_unsealed_calibration_must_belong_together(saved: Path, name: str) -> None:
    change, message = UNSEALED[name]
    edit(saved, change, unseal=True)
    with pytest.raises(UserError, match=message):
        Calibration.load(saved)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"text"', "[" * 100_000, '{"format": 2}'])
def test_json_of_another_shape_or_depth_is_one_line(saved: Path, text: str) -> None:
    (saved / "calibration.json").write_text(text)
    with pytest.raises(UserError, match=r"the calibration at .*; calibrate again\.$"):
        Calibration.load(saved)


# --- numbers that JSON has no word for -----------------------------------------------------------


def test_infinite_numbers_are_stored_as_json(tmp_path: Path) -> None:
    """Cohen's d is infinite where neither class varies."""
    held_out = activations(seed=1, spread=0.0)
    other = replace(held_out.spec, dataset_digest="another")
    held_out = Activations(held_out.positive, held_out.negative, other)
    made = calibrate(activations(), held_out=held_out, rule=TopK(k=2))
    assert np.isinf(made.selection.table["cohens_d"]).any()
    made.save(tmp_path / "c")

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    json.loads((tmp_path / "c" / "calibration.json").read_text(), parse_constant=refuse)
    assert same(Calibration.load(tmp_path / "c"), made)


def test_a_report_that_is_not_finite_is_kept(made: Calibration, tmp_path: Path) -> None:
    report = {"a": math.inf, "b": -math.inf, "c": 1.5}
    replace(made, report={**report, "d": math.nan}).save(tmp_path / "c")
    again = Calibration.load(tmp_path / "c").report
    assert math.isnan(again.pop("d"))
    assert again == report


# --- saving over another -------------------------------------------------------------------------


def test_saving_the_same_again_changes_nothing(made: Calibration, saved: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in saved.iterdir()}
    made.save(saved)
    Calibration.load(saved).save(saved)
    assert {path: path.stat().st_mtime_ns for path in saved.iterdir()} == before


@pytest.mark.parametrize("damaged", [False, True])
def test_saving_over_another_calibration_needs_overwrite(
    made: Calibration, saved: Path, damaged: bool
) -> None:
    other = made if damaged else calibrate(activations(seed=3))
    if damaged:
        (saved / "calibration.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"holds another calibration, .*overwrite=True \(--overwrite"
    ):
        other.save(saved)
    other.save(saved, overwrite=True)
    assert same(Calibration.load(saved), other)


# --- what a calibration may be -------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_direction_that_is_not_finite_is_refused(made: Calibration, wrong: float) -> None:
    vector = made.direction.vector.clone()
    vector[0] = wrong
    with pytest.raises(UserError, match="the global direction holds NaN or infinity"):
        replace(made.direction, vector=vector)
    rows = made.directions.clone()
    rows[0, 0] = wrong
    with pytest.raises(UserError, match=r"the candidate at L0\.ln1_out has length (nan|inf)"):
        replace(made.candidates, directions=rows)


def test_a_selection_of_other_sites_is_refused(made: Calibration) -> None:
    table = made.selection.table.iloc[::-1].reset_index(drop=True)
    other = Selection(torch.tensor(table["selected"].tolist()), table)
    with pytest.raises(UserError, match="must be of the sites of its spec, in their order"):
        replace(made, selection=other)


def test_a_direction_of_another_length_is_refused(made: Calibration) -> None:
    longer = replace(made.direction, vector=2 * made.direction.vector)
    with pytest.raises(UserError, match="must have length 1; got 2"):
        replace(made, direction=longer)


def test_a_calibration_prints_in_a_few_lines(made: Calibration) -> None:
    lines = repr(made).splitlines()
    assert len(lines) < 12
    assert all(len(line) < 160 for line in lines)
    assert f"{len(made.selected_sites)} of 6 sites" in repr(made)
    assert str(made.direction_site) in repr(made)
    assert "tensor" not in repr(made)


# --- calibrating ---------------------------------------------------------------------------------

DOORS: dict[str, tuple[Callable[[Activations], object], str]] = {
    "a dataset": (
        lambda acts: calibrate("refusal"),  # type: ignore[arg-type]
        r"acts must be activations from ss_lens\.capture\(model, dataset\); got 'refusal'",
    ),
    "a number as rule": (
        lambda acts: calibrate(acts, rule=5),  # type: ignore[arg-type]
        r"rule must be 'site', 'block', 'uniform' or one such as TopK\(k=8\); got 5",
    ),
    "a rule's class": (
        lambda acts: calibrate(acts, rule=TopK),  # type: ignore[arg-type]
        r"got the class TopK itself, which is no value yet\. Write TopK\(k=\.\.\.\)",
    ),
    "a method's class": (
        lambda acts: calibrate(acts, direction=CentredPCA),  # type: ignore[arg-type]
        r"direction must be a method such as DifferenceOfMeans\(\), .*Write CentredPCA\(\)",
    ),
    "a plane as text": (
        lambda acts: calibrate(acts, plane="PC1"),  # type: ignore[arg-type]
        r"plane must be a method such as PC1\(\), or None; got 'PC1'",
    ),
    "a stream alone": (
        lambda acts: calibrate(acts, streams="ln1_out"),  # type: ignore[arg-type]
        r"streams must be a list of streams such as \['ln1_out', 'ln2_out'\]; got 'ln1_out'",
    ),
    "held-out prompts as text": (
        lambda acts: calibrate(acts, held_out="dev"),  # type: ignore[arg-type]
        r"held_out must be activations .*, or None; got 'dev'",
    ),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", DOORS)
def test_calibrate_refuses_an_argument_of_another_type(name: str) -> None:
    call, message = DOORS[name]
    with pytest.raises(UserError, match=message):
        call(activations())


def test_identical_candidates_have_no_principal_component() -> None:
    acts = activations()
    shape = acts.positive.shape
    alike = made_activations(
        acts.positive[:, :1].expand(shape), acts.negative[:, :1].expand(shape), SITES
    )
    with pytest.raises(UserError, match=r"the 6 candidates are identical.*RandomSecond\(seed=0\)"):
        calibrate(alike)


def test_one_prompt_per_class_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"rests on 1 \+ 1 prompts, .*Capture more prompts"):
        calibrate(activations(n=1))


def test_a_calibration_made_in_inference_mode_carries_gradients(tmp_path: Path) -> None:
    with torch.inference_mode():
        made = calibrate(activations())
        made.save(tmp_path / "c")
        again = Calibration.load(tmp_path / "c")
    for calibration in (made, again):
        scale = torch.ones(16, requires_grad=True)
        (calibration.plane.basis @ scale + calibration.directions @ scale[:, None]).sum().backward()
        assert scale.grad is not None
