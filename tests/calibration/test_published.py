"""Published calibrations: read strictly, found again by our methods, written and read back."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, RotateBy, Site, Store, UserError, calibrate
from ss_lens.calibration.global_direction import AtSite, Consensus
from ss_lens.calibration.published.files import FILES, read_files
from ss_lens.calibration.published.module_names import modules_of_sites, sites_of_modules
from ss_lens.calibration.published.reference import (
    compare_with_reference,
)
from ss_lens.models.sites import available_streams
from tests.conftest import ARCHITECTURES, made_activations, shared_file
from tests.oracles import HuggingFaceOracle

# model: (direction site, modules, steered, |b1·b2| of the stored basis)
REFERENCES = {
    "Llama-3.2-1B-Instruct": ("L12.ln1_out", 32, 18, 0.0038),
    "Qwen2.5-1.5B-Instruct": ("L22.ln1_out", 56, 22, 0.0017),
    "gemma-2-2b-it": ("L20.ln1_out", 104, 40, 0.0032),
}

NORMS = ("input_layernorm", "post_attention_layernorm")

MODULES = [f"model.layers.{layer}.{norm}" for layer in range(3) for norm in NORMS]

WIDTH = 8


@pytest.fixture(params=REFERENCES)
def published(request: pytest.FixtureRequest) -> Path:
    """The folder of one published calibration."""
    return shared_file(f"reference/{request.param}/plane.pt").parent


def stored(folder: Path, name: str) -> Any:
    return torch.load(folder / f"{name}.pt", weights_only=True, map_location="cpu")


def unit_rows(folder: Path) -> np.ndarray:
    """The published candidates, normalised; zero ones stay zero."""
    rows = torch.stack([*stored(folder, "directions")["candidates"].values()]).double().numpy()
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def second_axis(rows: np.ndarray, b1: np.ndarray) -> np.ndarray:
    """First eigenvector of the covariance, largest entry positive, orthonormal to ``b1``."""
    centred = rows - rows.mean(axis=0)
    # Of the small matrix of inner products: X Xᵀ u = λ u makes Xᵀ u an eigenvector of Xᵀ X.
    component = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, -1]
    component *= np.sign(component[np.abs(component).argmax()])
    rest = component - (component @ b1) * b1
    return rest / np.linalg.norm(rest)


# --- agreement with the published calibrations ---------------------------------------------------


def test_the_published_direction_and_plane_are_found_again(published: Path) -> None:
    site, modules, steered, overlap = REFERENCES[published.name]
    found = compare_with_reference(published)
    assert found.same_site
    assert str(found.published_site) == str(found.direction_site) == site
    assert found.b1_cosine >= 0.9999
    assert found.b2_cosine >= 0.9998
    assert found.b2_cosine_zero_kept >= 0.9999
    assert found.b2_cosine_zero_kept > found.b2_cosine
    assert found.n_sites == found.n_modules == modules
    assert found.n_steered == steered
    assert found.whole_blocks
    assert found.overlap == pytest.approx(overlap, abs=1e-4)
    assert 1e-4 < found.norm_deviation < 4e-3


def test_the_agreement_is_what_numpy_measures(published: Path) -> None:
    found = compare_with_reference(published)
    rows = unit_rows(published)
    with_zero = rows @ rows.T
    chosen = (with_zero.sum(axis=1)).argmax()
    assert (
        stored(published, "directions")["selected_layer"]
        == list(stored(published, "directions")["candidates"])[chosen]
    )
    basis = torch.stack(stored(published, "plane")["basis"]).double().numpy()
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    b1 = rows[chosen]
    expected = {
        "b1_cosine": basis[0] @ b1,
        "b2_cosine": basis[1] @ second_axis(rows[rows.any(axis=1)], b1),
        "b2_cosine_zero_kept": basis[1] @ second_axis(rows, b1),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-7), name


def test_the_published_plane_with_its_signs_exchanged_disagrees(published: Path) -> None:
    """Negative control: the cosines are signed and tell the two vectors from each other."""
    made = Calibration.from_reference(published)
    basis = torch.stack(stored(published, "plane")["basis"]).double()
    ours = made.plane.basis.double()
    assert float(-basis[1] @ ours[1]) < -0.99
    assert abs(float(basis[0] @ ours[1])) < 0.01


def test_published_projections_are_the_candidates_in_plane_coordinates(published: Path) -> None:
    """They are no class means: each is the candidate along the two stored vectors, in bfloat16."""
    found = read_files(published)
    torch.testing.assert_close(found.in_plane, found.candidates @ found.basis.T, rtol=0, atol=4e-3)


# --- what is read --------------------------------------------------------------------------------


def test_a_published_calibration_is_read_as_one_of_ours(published: Path) -> None:
    made = Calibration.from_reference(published)
    site, modules, steered, _ = REFERENCES[published.name]
    directions, plane = stored(published, "directions"), stored(published, "plane")
    assert str(made.direction_site) == site
    assert made.sites == tuple(sorted(made.sites)) == made.spec.sites
    assert len(made.sites) == modules
    assert made.candidates.excluded == (Site(0, "ln1_out"),)
    for row, vector in zip(made.directions, directions["candidates"].values(), strict=True):
        expected = vector.double()
        expected = expected / expected.norm() if expected.any() else expected
        torch.testing.assert_close(row, expected.float())
    mask = plane["extra_info"]["layer_steering_mask"]
    table = made.selection.table
    assert dict(zip(table["module"], table["selected"], strict=True)) == mask
    assert made.selected.tolist() == table["selected"].tolist() == list(mask.values())
    assert [*zip(table["b1"], table["b2"], strict=True)] == [*plane["projections"].values()]
    assert table["site"].tolist() == [str(s) for s in made.sites]
    assert len(made.selected_sites) == steered
    gram = made.plane.basis.double() @ made.plane.basis.double().T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-6)
    meta = json.loads((published / "metadata.json").read_text())
    assert made.spec.model.name == published.name
    assert made.spec.model.d_model == meta["hidden_dim"]
    assert made.spec.model.n_layers == 1 + max(s.layer for s in made.sites) < meta["n_layers"]
    assert made.spec.model.dtype == "bfloat16"
    assert made.spec.model.fingerprint is None
    assert made.spec.dataset_name == "published (416 + 416 prompts)"


def test_the_lengths_of_normalised_candidates_are_unknown(published: Path) -> None:
    lengths = Calibration.from_reference(published).candidates.lengths
    assert lengths[0] == 0  # excluded: the means agree
    assert lengths[1:].isnan().all()


def test_the_report_is_the_agreement_in_numbers(published: Path) -> None:
    found, report = compare_with_reference(published), Calibration.from_reference(published).report
    assert all(isinstance(value, float) for value in report.values())
    assert report["published_same_site"] == report["published_whole_blocks"] == 1.0
    assert report["published_b2_cosine"] == found.b2_cosine
    assert report["published_n_steered"] == found.n_steered


def test_a_published_calibration_is_saved_and_loaded_as_any(
    published: Path, tmp_path: Path
) -> None:
    made = Calibration.from_reference(published)
    made.save(tmp_path / "calibration")
    again = Calibration.load(tmp_path / "calibration")
    assert again.spec == made.spec
    assert again.recipe == made.recipe
    assert again.report == made.report
    assert again.direction_site == made.direction_site
    assert again.selected_sites == made.selected_sites
    for name in ("directions", "lengths", "valid"):
        torch.testing.assert_close(
            getattr(again.candidates, name),
            getattr(made.candidates, name),
            rtol=0,
            atol=0,
            equal_nan=True,
        )
    assert torch.equal(again.plane.basis, made.plane.basis)
    assert again.selection.table.equals(made.selection.table)


def test_a_published_calibration_fits_models_of_its_shape_only(
    published: Path, tiny_llama: TransformerBridge
) -> None:
    with pytest.raises(UserError, match=r"the calibration is for \d\d layers of width \d{4}, the"):
        Calibration.from_reference(published).check_fits(tiny_llama)


# --- module names --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_site_has_the_name_of_the_module_that_returns_its_activation(
    architecture: str, tiny_folders: dict[str, Path], tiny_models: dict[str, TransformerBridge]
) -> None:
    oracle = HuggingFaceOracle(tiny_folders[architecture])
    streams = [s for s in available_streams(tiny_models[architecture]) if s.startswith("ln")]
    assert len(streams) == (4 if "gemma" in architecture else 2)
    sites = tuple(Site(layer, stream) for layer in range(3) for stream in streams)
    names = modules_of_sites(sites, architecture)
    for site, name in zip(sites, names, strict=True):
        assert oracle.place(site) == (oracle.model.get_submodule(name), "output")
    assert sites_of_modules(names) == sites


def test_post_attention_layernorm_is_another_site_on_gemma() -> None:
    names = [f"model.layers.4.{norm}" for norm in NORMS]
    assert sites_of_modules(names) == (Site(4, "ln1_out"), Site(4, "ln2_out"))
    gemma = sites_of_modules([*names, "model.layers.4.pre_feedforward_layernorm"])
    assert gemma == (Site(4, "ln1_out"), Site(4, "ln1_post_out"), Site(4, "ln2_out"))


def test_gemma_is_known_by_its_name_where_its_own_sites_are_not_calibrated() -> None:
    sites = (Site(0, "ln1_out"), Site(0, "ln2_out"))
    assert modules_of_sites(sites, "google/gemma-2-2b-it") == (
        "model.layers.0.input_layernorm",
        "model.layers.0.pre_feedforward_layernorm",
    )
    assert modules_of_sites(sites, "/models/gemma/llama")[1].endswith(NORMS[1])
    assert modules_of_sites(sites, "gpt2") == ("transformer.h.0.ln_1", "transformer.h.0.ln_2")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.self_attn",
        "model.layers.03.input_layernorm",
        "model.layers.-1.input_layernorm",
        "model.layers.3.ln_1",
        "model.norm",
        "lm_head",
        "",
    ],
)
def test_a_module_at_no_known_site_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"module '{name}' is at no known site; expected names li"):
        sites_of_modules([MODULES[0], name])


def test_a_stream_without_a_module_and_an_ambiguous_one_are_rejected() -> None:
    with pytest.raises(UserError, match=r"L2\.resid_post is on the residual stream.*norm outputs"):
        modules_of_sites((Site(1, "ln1_out"), Site(2, "resid_post")), "llama")
    with pytest.raises(UserError, match=r"ln1_post_out without ln2_out .* be read back as that"):
        modules_of_sites((Site(1, "ln1_out"), Site(1, "ln1_post_out")), "gemma")


# --- writing -------------------------------------------------------------------------------------


def tiny_calibration(
    model: TransformerBridge, data: ContrastiveDataset, store: Store, **options: Any
) -> Calibration:
    streams = [s for s in available_streams(model) if s.startswith("ln")]
    acts = ss_lens.capture(model, data, streams=streams, store=store)
    return calibrate(acts, **{"streams": streams, **options})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_calibration_is_read_as_it_was_written(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    store: Store,
    tmp_path: Path,
) -> None:
    model = tiny_models[architecture]
    made = tiny_calibration(model, tiny_data, store)
    made.to_reference(tmp_path / "written")
    again = Calibration.from_reference(str(tmp_path / "written"))
    assert again.sites == made.sites
    assert again.selected_sites == made.selected_sites
    assert again.direction_site == made.direction_site
    assert again.candidates.excluded == made.candidates.excluded == (Site(0, "ln1_out"),)
    torch.testing.assert_close(again.directions, made.directions, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.plane.basis, made.plane.basis, rtol=0, atol=1e-6)
    mine, theirs = made.spec.model, again.spec.model
    assert (theirs.name, theirs.n_layers, theirs.d_model) == (mine.name, mine.n_layers, 32)
    assert theirs.dtype == "float32"
    assert (again.spec.n_positive, again.spec.n_negative) == (12, 12)
    again.check_fits(model)
    ids = torch.arange(8, 20).unsqueeze(0)
    logits = []
    for calibration in (made, again):
        with torch.inference_mode(), ss_lens.steer(model, calibration, RotateBy(75)):
            logits.append(model(ids))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)


def test_a_calibration_of_some_layers_keeps_how_many_the_model_has(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store, tmp_path: Path
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data, layers=[0, 1], store=store)
    calibrate(acts, rule="uniform").to_reference(tmp_path / "written")
    again = Calibration.from_reference(tmp_path / "written")
    assert {site.layer for site in again.sites} == {0, 1}
    again.check_fits(tiny_llama)


def made_up(streams: tuple[str, ...] = ("ln1_out", "ln2_out"), **options: Any) -> Calibration:
    generator = torch.Generator().manual_seed(0)
    sites = tuple(Site(layer, s) for layer in range(3) for s in streams)  # type: ignore[arg-type]

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gap = noise(16) + 0.5 * noise(len(sites), 16)
    acts = made_activations(noise(9, len(sites), 16) + gap, noise(7, len(sites), 16) - gap, sites)
    return calibrate(acts, **{"streams": streams, "rule": "uniform", **options})


def test_what_is_written_has_the_published_layout(published: Path, tmp_path: Path) -> None:
    """Same files, keys and kinds as the authors', and nothing that torch would have to execute."""
    Calibration.from_reference(published).to_reference(tmp_path / "written")
    assert sorted(os.listdir(tmp_path)) == ["written"]
    assert sorted(os.listdir(tmp_path / "written")) == sorted(FILES)

    def shape_of(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape_of(entry) for key, entry in value.items()}
        if isinstance(value, tuple | list):
            return type(value), [shape_of(entry) for entry in value]
        return tuple(value.shape) if isinstance(value, Tensor) else type(value)

    for name in ("directions", "plane"):
        assert shape_of(stored(tmp_path / "written", name)) == shape_of(stored(published, name))
    mine, theirs = (
        json.loads((folder / "metadata.json").read_text())
        for folder in (tmp_path / "written", published)
    )
    assert mine.keys() - theirs.keys() == {"model", "n_blocks"}
    for key in theirs.keys() - {"session_id"}:
        assert mine[key] == theirs[key]
    assert compare_with_reference(tmp_path / "written").b2_cosine == pytest.approx(1, abs=1e-6)


def test_a_plane_by_other_methods_is_written_and_found_to_differ_when_read(tmp_path: Path) -> None:
    made = made_up(choice=AtSite(site="L1.ln2_out"))
    made.to_reference(tmp_path / "written")
    assert made.direction_site == Site(1, "ln2_out")
    assert compare_with_reference(tmp_path / "written").published_site == Site(1, "ln2_out")
    with pytest.warns(UserWarning, match=r"direction at L1\.ln2_out\) is not the one that its"):
        again = Calibration.from_reference(tmp_path / "written")
    assert again.direction_site != Site(1, "ln2_out")
    assert again.report["published_same_site"] == 0.0


def test_what_the_layout_has_no_place_for_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is on the residual stream"):
        made_up(("resid_post",)).to_reference(tmp_path / "written")
    with pytest.raises(UserError, match=r"direction of Consensus\(.*is of no single site"):
        made_up(choice=Consensus()).to_reference(tmp_path / "written")
    assert os.listdir(tmp_path) == []


def test_writing_replaces_an_older_reference_and_nothing_else(tmp_path: Path) -> None:
    made = made_up()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis holds something that is not a published calib"):
        made.to_reference(tmp_path / "thesis")
    with pytest.raises(UserError, match=r"chapter1\.tex holds something"):
        made.to_reference(tmp_path / "thesis" / "chapter1.tex")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    made.to_reference(tmp_path / "written")
    made_up(rule="Half(which='first')").to_reference(tmp_path / "written")
    assert len(Calibration.from_reference(tmp_path / "written").selected_sites) == 4


def test_a_full_disk_leaves_the_older_reference_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up().to_reference(tmp_path / "written")
    before = {name: (tmp_path / "written" / name).read_bytes() for name in FILES}

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match="no space left under"):
            made_up().to_reference(tmp_path / "written")
    assert {name: (tmp_path / "written" / name).read_bytes() for name in FILES} == before
    assert os.listdir(tmp_path) == ["written"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small calibration in the published layout, written by hand."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(len(MODULES), WIDTH, generator=generator) + 2 * torch.eye(WIDTH)[0]
    rows = torch.nn.functional.normalize(rows, dim=1)
    rows[0] = 0
    place = tmp_path / "reference"
    place.mkdir()
    torch.save(
        {
            "candidates": dict(zip(MODULES, rows.bfloat16(), strict=True)),
            "selected_direction": rows[2].bfloat16(),
            "selected_layer": MODULES[2],
            "metadata": {"session_id": "monday"},
        },
        place / "directions.pt",
    )
    torch.save(
        {
            "basis": (rows[2].bfloat16(), rows[3].bfloat16()),
            "projections": dict.fromkeys(MODULES, (0.5, -0.25)),
            "extra_info": {"layer_steering_mask": {m: i > 3 for i, m in enumerate(MODULES)}},
            "metadata": {"session_id": "monday"},
        },
        place / "plane.pt",
    )
    meta = {
        "session_id": "monday",
        "n_layers": len(MODULES),
        "hidden_dim": WIDTH,
        "harmful_samples": 5,
        "harmless_samples": 4,
    }
    (place / "metadata.json").write_text(json.dumps(meta))
    return place
