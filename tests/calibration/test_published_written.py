"""A calibration written here as the authors made theirs, in bfloat16, is found again.

It proves on a small scale, without the published files, what ``test_published`` proves on them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from analyses.norm_audit.bent_bases import ROUNDED, bases, orthonormal_basis
from ss_lens import Calibration, Plane, Site, UserError
from ss_lens.calibration.published.reference import compare_with_reference

N_LAYERS, WIDTH = 14, 1536
NORMS = ("input_layernorm", "post_attention_layernorm")
MODULES = [f"model.layers.{layer}.{norm}" for layer in range(N_LAYERS) for norm in NORMS]
STEERED = [name for name in MODULES if int(name.split(".")[2]) >= 6]


def authors_procedure(candidates: Tensor) -> tuple[int, Tensor]:
    """Eqs. 6–8 of arXiv 2601.19375 in bfloat16: the chosen candidate and the basis.

    The zero candidate of the first norm stays in the mean of the principal component.
    """
    cosines = candidates @ candidates.T
    chosen = int(cosines.float().sum(dim=1).argmax())
    b1 = candidates[chosen]
    centred = (candidates - candidates.mean(dim=0)).float()
    component = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    component = (component * component[component.abs().argmax()].sign()).bfloat16()
    b2 = component - (component @ b1) * b1
    return chosen, torch.stack((b1, b2 / b2.norm()))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates that lean more and more from one axis to another with depth, as real ones do."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(MODULES) + 2, WIDTH, generator=generator) / WIDTH**0.5
    depth = torch.linspace(-1, 1, len(MODULES)).unsqueeze(1)
    rows = noise[0] + depth * noise[1] + 0.6 * noise[2:]
    rows = torch.nn.functional.normalize(rows, dim=1).bfloat16()
    rows[0] = 0  # the prompts end in the same tokens of the template
    chosen, basis = authors_procedure(rows)
    folder = tmp_path_factory.mktemp("reference") / "written"
    folder.mkdir()
    torch.save(
        {
            "candidates": dict(zip(MODULES, rows, strict=True)),
            "selected_direction": rows[chosen],
            "selected_layer": MODULES[chosen],
            "metadata": {"session_id": "written"},
        },
        folder / "directions.pt",
    )
    torch.save(
        {
            "basis": basis.unbind(),
            "projections": {
                name: (float(row @ basis[0]), float(row @ basis[1]))
                for name, row in zip(MODULES, rows, strict=True)
            },
            "plane_type": "selective",
            "extra_info": {
                "target_layers": MODULES,
                "layer_steering_mask": {name: name in STEERED for name in MODULES},
            },
            "metadata": {"n_projections": len(MODULES), "session_id": "written"},
        },
        folder / "plane.pt",
    )
    (folder / "metadata.json").write_text(
        json.dumps(
            {
                "session_id": "written",
                "selected_layer": MODULES[chosen],
                "plane_type": "selective",
                "n_layers": len(MODULES),
                "harmful_samples": 5,
                "harmless_samples": 7,
                "hidden_dim": WIDTH,
            }
        )
    )
    return folder


def test_the_written_direction_and_plane_are_found_again(written: Path) -> None:
    found = compare_with_reference(written)
    assert found.same_site
    assert found.b1_cosine >= 0.999999
    assert found.b2_cosine >= 0.9998
    assert found.b2_cosine_zero_kept >= 0.99998
    assert found.b2_cosine_zero_kept > found.b2_cosine
    assert found.n_sites == found.n_modules == len(MODULES)
    assert found.n_steered == len(STEERED)
    assert found.whole_blocks


def test_the_written_calibration_is_read_as_one_of_ours(written: Path, tmp_path: Path) -> None:
    made = Calibration.from_reference(written)
    assert made.candidates.excluded == (Site(0, "ln1_out"),)
    assert [f"model.layers.{s.layer}" for s in made.selected_sites] == [
        name.rpartition(".")[0] for name in STEERED
    ]
    assert (made.spec.n_positive, made.spec.n_negative) == (5, 7)
    made.to_reference(tmp_path / "again")
    again = Calibration.from_reference(tmp_path / "again")
    assert torch.equal(again.plane.basis, made.plane.basis)
    assert again.selected_sites == made.selected_sites


def test_gram_schmidt_in_bfloat16_bends_a_basis_more_than_rounding_does(written: Path) -> None:
    """What breaks norms: ``Plane`` refuses such a basis, and its nearest plane is the same."""
    stored = torch.load(written / "plane.pt", weights_only=True)["basis"]
    b1, b2 = (vector.float() for vector in stored)
    near = Plane.from_span(b1, b2)
    rounded = bases(orthonormal_basis(near))[ROUNDED].double()
    assert abs(rounded[0] @ rounded[1]) < 2e-4 < abs(b1.double() @ b2.double())
    gram = torch.stack((b1, b2)).double() @ torch.stack((b1, b2)).double().T
    assert 6e-4 < (gram - torch.eye(2)).abs().max() < 8e-3
    with pytest.raises(UserError, match="not orthonormal: it deviates by"):
        Plane(b1, b2)
    assert abs(float(near.b2 @ b2)) > 0.99
