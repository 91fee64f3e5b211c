"""Directions from a dictionary of features: which row is taken, and what is no dictionary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ss_lens import Activations, Site, UserError
from ss_lens.calibration.dictionary import Dictionary
from ss_lens.calibration.directions import (
    difference_of_means,
)
from tests.conftest import made_activations

SITES = tuple(Site(layer, "ln1_out") for layer in range(4))

D = 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activations(positive: Tensor, negative: Tensor, paired: bool = True) -> Activations:
    acts = made_activations(positive, negative, SITES[: positive.shape[1]])
    return replace(acts, spec=replace(acts.spec, paired=paired))


def classes(seed: int = 0, n: int = 20, sites: int = 2, gap: float = 1.5) -> Activations:
    """Two overlapping clouds, far from the origin and longer along some axes than along others."""
    spread = torch.linspace(0.5, 2.0, D)
    apart = gap * noise(sites, D, seed=3 * seed)
    positive = 4 + noise(n, sites, D, seed=3 * seed + 1) * spread + apart
    negative = 4 + noise(n, sites, D, seed=3 * seed + 2) * spread - apart
    return activations(positive, negative)


def at(acts: Activations, site: int) -> tuple[np.ndarray, np.ndarray]:
    return acts.positive[:, site].double().numpy(), acts.negative[:, site].double().numpy()


def assert_parallel(got: Tensor, expected: np.ndarray, atol: float = 1e-5) -> None:
    """``got`` is ``expected`` made a unit vector; the sign counts."""
    unit = expected / np.sqrt((expected**2).sum())
    np.testing.assert_allclose(got.double().numpy(), unit, rtol=0, atol=atol)


def signed(vector: np.ndarray, acts: Activations, site: int) -> np.ndarray:
    positive, negative = at(acts, site)
    return vector * np.sign(vector @ (positive.mean(axis=0) - negative.mean(axis=0)))


# --- dictionaries --------------------------------------------------------------------------------


Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(**tensors: Tensor) -> str:
        path = tmp_path / "sae_weights.safetensors"
        save_file({k.replace("__", "."): v.contiguous() for k, v in tensors.items()}, path)
        return str(path)

    return save


@pytest.mark.parametrize("layout", ["W_dec", "decoder__weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dictionary_gives_the_decoder_row_of_the_feature_at_its_site(
    layout: str, dtype: torch.dtype, save: Save
) -> None:
    acts, decoder = classes(sites=3), noise(50, D).to(dtype)
    path = save(**{layout: decoder if layout == "W_dec" else decoder.T, "b_dec": torch.zeros(D)})
    found = Dictionary(path=path, site="L1.ln1_out", feature=7).candidates(acts)
    assert_parallel(found.directions[1], signed(decoder[7].double().numpy(), acts, 1))
    assert found.excluded == (SITES[0], SITES[2])
    assert torch.equal(found.directions[[0, 2]], torch.zeros(2, D))
    expected = difference_of_means(acts).lengths
    torch.testing.assert_close(found.lengths, expected * torch.tensor([0.0, 1.0, 0.0]))


def test_a_feature_of_the_negative_class_is_turned_round(save: Save) -> None:
    acts = classes()
    gap = difference_of_means(acts).directions[1]
    found = Dictionary(save(W_dec=torch.stack((-3 * gap, gap))), "L1.ln1_out", feature=0)
    torch.testing.assert_close(found.candidates(acts).directions[1], gap, rtol=0, atol=1e-6)


def test_without_a_feature_the_one_nearest_to_the_difference_of_means_is_taken(save: Save) -> None:
    """By cosine: neither a long row, nor an opposite one, nor a dead one wins."""
    acts = classes()
    gap = difference_of_means(acts).directions[1]
    decoder = noise(50, D, seed=99)
    decoder[3], decoder[30], decoder[31] = -gap, 0.01 * (gap + 0.05 * noise(D, seed=98)), 0.0
    decoder[32] = 100 * (gap + 0.5 * noise(D, seed=97))
    automatic = Dictionary(save(W_dec=decoder), "L1.ln1_out")
    cosines = [float(row @ gap / max(float(row.norm()), 1e-9)) for row in decoder]
    assert int(np.argmax(cosines)) == 30
    assert automatic.resolved(acts) == replace(automatic, feature=30)
    assert_parallel(automatic.candidates(acts).directions[1], decoder[30].double().numpy())


def test_a_dictionary_takes_a_path_and_prints_it_as_text(tmp_path: Path) -> None:
    made = Dictionary(path=tmp_path / "x.safetensors", site="L1.ln1_out")
    assert (
        repr(made)
        == f"Dictionary(path='{tmp_path}/x.safetensors', site='L1.ln1_out', feature=None)"
    )


BAD_DECODERS: dict[str, tuple[dict[str, Tensor], str]] = {
    "keys": (
        {"W_enc": torch.ones(D, 5), "b": torch.ones(5)},
        r"neither 'W_dec' nor 'decoder\.weight'; it has W_enc, b\. Rename",
    ),
    "empty": ({}, r"neither 'W_dec' nor 'decoder\.weight'; it has no tensor"),
    "width": (
        {"W_dec": torch.ones(5, D + 1)},
        rf"has shape \(5, {D + 1}\); expected \[features, {D}",
    ),
    "axes": ({"W_dec": torch.ones(D, 5)}, r"trained on another model, or its axes are swapped"),
    "axes of a layer": ({"decoder__weight": torch.ones(5, D)}, r"or its axes are swapped"),
    "one axis": ({"decoder__weight": torch.ones(D)}, rf"has shape \({D},\); expected"),
    "three axes": ({"W_dec": torch.ones(1, 5, D)}, rf"has shape \(1, 5, {D}\); expected"),
    "nan": ({"W_dec": torch.full((5, D), torch.nan)}, r"holds NaN or infinity; fetch it again"),
}


@pytest.mark.parametrize("case", BAD_DECODERS)
def test_a_file_that_holds_no_fitting_decoder_is_rejected(case: str, save: Save) -> None:
    tensors, message = BAD_DECODERS[case]
    with pytest.raises(UserError, match=message):
        Dictionary(save(**tensors), "L0.ln1_out", feature=0).candidates(classes())


def test_a_missing_a_broken_and_a_pickled_dictionary_file_are_rejected(
    tmp_path: Path, save: Save
) -> None:
    acts = classes()
    for place in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(
            UserError, match=rf"there is no dictionary file {place}; give the \.saf"
        ):
            Dictionary(place, "L0.ln1_out").candidates(acts)
    whole = Path(save(W_dec=torch.ones(5, D))).read_bytes()
    torch.save({"W_dec": torch.ones(5, D)}, tmp_path / "pickled.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("pickled", "cut", "empty"):
        with pytest.raises(
            UserError, match=rf"{name}\.safetensors is not a whole safetensors file"
        ):
            Dictionary(tmp_path / f"{name}.safetensors", "L0.ln1_out").candidates(acts)


@pytest.mark.parametrize("feature", [-1, 5, 10**9])
def test_a_feature_out_of_range_is_rejected(feature: int, save: Save) -> None:
    with pytest.raises(
        UserError, match=rf"feature {feature} is out of range .* of 5 features; valid: 0–4"
    ):
        Dictionary(save(W_dec=torch.ones(5, D)), "L0.ln1_out", feature).candidates(classes())


def test_a_dead_feature_and_features_that_all_point_away_are_rejected(save: Save) -> None:
    acts = classes()
    path = save(W_dec=torch.zeros(5, D))
    with pytest.raises(UserError, match="feature 2 of the dictionary has a zero decoder row"):
        Dictionary(path, "L0.ln1_out", feature=2).candidates(acts)
    for decoder in (torch.zeros(5, D), -difference_of_means(acts).directions):
        with pytest.raises(UserError, match=r"none of the \d features of the dictionary points al"):
            Dictionary(save(W_dec=decoder), "L0.ln1_out").candidates(acts)


def test_a_site_that_is_not_captured_or_has_no_direction_is_rejected(save: Save) -> None:
    acts = classes()
    path = save(W_dec=torch.ones(5, D))
    with pytest.raises(
        UserError,
        match=r"is of L1\.resid_post, which is not among .*\(L0\.ln1_out … L1\.ln1_out\).*streams="
        r"\('resid_post',\)",
    ):
        Dictionary(path, "L1.resid_post").candidates(acts)
    flat = activations(
        torch.stack((acts.positive[:, 0], torch.ones(20, D)), dim=1),
        torch.stack((acts.negative[:, 0], torch.ones(20, D)), dim=1),
    )
    for action in (
        Dictionary(path, "L1.ln1_out").candidates,
        Dictionary(path, "L1.ln1_out").resolved,
    ):
        with pytest.raises(UserError, match=r"the class means agree at L1\.ln1_out"):
            action(flat)
    with pytest.raises(UserError, match="'12' is not a site"):
        Dictionary(path, "12")
