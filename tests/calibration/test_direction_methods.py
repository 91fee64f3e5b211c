"""Every way to find candidate directions and to choose among them, against independent oracles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import sklearn.covariance
import torch
from hypothesis import given, settings, strategies as st
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ss_lens import Activations, Site, UserError
from ss_lens.calibration import separation
from ss_lens.calibration.candidates import Candidates
from ss_lens.calibration.dictionary import Dictionary
from ss_lens.calibration.directions import (
    CentredPCA,
    DifferenceOfMeans,
    DirectionMethod,
    Fisher,
    Logistic,
    PairedPCA,
    difference_of_means,
)
from ss_lens.calibration.global_direction import (
    AtSite,
    BestSeparation,
    Consensus,
    GlobalChoice,
    MaxMeanCosine,
)
from ss_lens.core.values import read_value
from tests.conftest import made_activations

SITES = tuple(Site(layer, "ln1_out") for layer in range(4))

D = 8

METHODS: tuple[Any, ...] = (
    DifferenceOfMeans(),
    PairedPCA(),
    CentredPCA(),
    Fisher(),
    Fisher(shrinkage="oas"),
    Logistic(),
    Logistic(c=0.01),
)

every_method = pytest.mark.parametrize("method", METHODS, ids=repr)

few = settings(max_examples=8)


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


# --- what every method has in common -------------------------------------------------------------


@every_method
@given(seed=st.integers(0, 1000))
@few
def test_directions_are_of_length_one_and_point_to_the_positive_class(
    method: DirectionMethod, seed: int
) -> None:
    acts = classes(seed)
    found = method.candidates(acts)
    torch.testing.assert_close(found.directions.norm(dim=-1), torch.ones(2))
    gap = acts.positive.mean(dim=0) - acts.negative.mean(dim=0)
    assert ((found.directions * gap).sum(dim=-1) > 0).all()
    torch.testing.assert_close(found.lengths, gap.norm(dim=-1))
    assert found.valid.all()
    assert found.sites == acts.sites


@every_method
@given(seed=st.integers(0, 1000))
@few
def test_a_change_of_basis_changes_the_direction_alike(method: DirectionMethod, seed: int) -> None:
    acts = classes(seed)
    turn = torch.linalg.qr(noise(D, D, seed=seed + 7).double()).Q.float()
    turned = replace(acts, positive=acts.positive @ turn, negative=acts.negative @ turn)
    one, other = method.candidates(acts), method.candidates(turned)
    torch.testing.assert_close(other.directions, one.directions @ turn, rtol=0, atol=1e-4)


@every_method
@given(seed=st.integers(0, 1000))
@few
def test_the_order_of_the_prompts_does_not_matter(method: DirectionMethod, seed: int) -> None:
    """Partners move together, since they are told by their order."""
    acts = classes(seed)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    shuffled = replace(acts, positive=acts.positive[order], negative=acts.negative[order])
    one, other = (method.candidates(a).directions for a in (acts, shuffled))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@every_method
def test_swapping_the_classes_flips_the_sign(method: DirectionMethod) -> None:
    acts = classes()
    swapped = replace(acts, positive=acts.negative, negative=acts.positive)
    one, other = (method.candidates(a).directions for a in (acts, swapped))
    torch.testing.assert_close(one, -other, rtol=0, atol=1e-5)


@every_method
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_neither_the_origin_nor_the_unit_matters(method: DirectionMethod, scale: float) -> None:
    acts = classes()
    moved = replace(
        acts, positive=scale * (acts.positive + 2), negative=scale * (acts.negative + 2)
    )
    one, other = (method.candidates(a) for a in (acts, moved))
    torch.testing.assert_close(one.directions, other.directions, rtol=0, atol=1e-5)
    torch.testing.assert_close(scale * one.lengths, other.lengths, rtol=1e-4, atol=0)


@every_method
def test_a_site_where_the_means_agree_is_excluded_by_every_method(method: DirectionMethod) -> None:
    acts = classes(sites=3)
    positive, negative = acts.positive.clone(), acts.negative.clone()
    positive[:, 1], negative[:, 1] = 5.0, 5.0
    found = method.candidates(activations(positive, negative))
    assert found.excluded == (SITES[1],)
    assert torch.equal(found.directions[1], torch.zeros(D))
    assert found.lengths[1] == 0
    others = method.candidates(activations(positive[:, [0, 2]], negative[:, [0, 2]]))
    torch.testing.assert_close(found.directions[[0, 2]], others.directions)


@every_method
def test_identical_classes_have_no_direction_by_any_method(method: DirectionMethod) -> None:
    cloud = noise(10, 2, D)
    with pytest.raises(UserError, match="the same mean activation at every site"):
        method.candidates(activations(cloud, cloud.flip(0)))


def test_methods_and_choices_print_as_what_reads_back() -> None:
    values = (*METHODS, Dictionary(path="a b/c.safetensors", site="L3.resid_post", feature=7))
    for value in values:
        assert read_value(repr(value), get_args(DirectionMethod), "method") == value
    assert {type(value) for value in values} == set(get_args(DirectionMethod))
    choices = (MaxMeanCosine(), AtSite(site="L1.ln1_out"), BestSeparation(), Consensus())
    for value in choices:
        assert read_value(repr(value), get_args(GlobalChoice), "choice") == value
    assert {type(value) for value in choices} == set(get_args(GlobalChoice))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sites": SITES[:1]},
            r"2 directions, 2 marks, 1 sites and 2 lengths do not belong togeth",
        ),
        ({"directions": torch.eye(D)[:2] * 1.01}, r"L0\.ln1_out has length 1\.01; expected 1: div"),
        ({"valid": torch.tensor([True, False])}, r"L1\.ln1_out has length 1; expected 0, since"),
        ({"directions": torch.zeros(2, D)}, r"L0\.ln1_out has length 0; expected 1"),
        ({"directions": torch.full((2, D), torch.nan)}, r"L0\.ln1_out has length nan; expected 1"),
    ],
)
def test_candidates_that_are_no_unit_vectors_are_rejected(
    changes: dict[str, Any], message: str
) -> None:
    good = Candidates(torch.eye(D)[:2], torch.ones(2, dtype=torch.bool), SITES[:2], torch.ones(2))
    with pytest.raises(UserError, match=message):
        replace(good, **changes)


# --- principal components ------------------------------------------------------------------------


@given(st.integers(0, 1000))
@few
def test_paired_pca_is_the_first_singular_vector_of_the_differences(seed: int) -> None:
    acts = classes(seed)
    found = PairedPCA().candidates(acts).directions
    for site in range(2):
        positive, negative = at(acts, site)
        oracle = np.linalg.svd(positive - negative)[2][0]
        assert_parallel(found[site], signed(oracle, acts, site))


def test_paired_pca_is_scikit_learns_pca_of_pairs_taken_in_both_orders() -> None:
    acts = classes()
    positive, negative = at(acts, 0)
    both = np.concatenate((positive - negative, negative - positive))
    oracle = PCA(n_components=1).fit(both).components_[0]
    assert_parallel(PairedPCA().candidates(acts).directions[0], signed(oracle, acts, 0))


def test_paired_pca_sees_through_what_partners_share_and_centred_pca_does_not() -> None:
    """A topic that both partners have varies far more than the classes differ."""
    topic = 10 * noise(40, 1, 1) * torch.eye(D)[0]
    apart = torch.eye(D)[1] + 0.1 * noise(40, 1, D, seed=1)
    acts = activations(topic + apart, topic - apart)
    assert PairedPCA().candidates(acts).directions[0, 1] > 0.99
    assert abs(float(CentredPCA().candidates(acts).directions[0, 1])) < 0.1


def test_paired_pca_depends_on_the_partners() -> None:
    """Negative control of the invariance above: here only one class is shuffled."""
    acts = classes(n=6, gap=0.5)
    other = replace(acts, positive=acts.positive.flip(0))
    one, two = (PairedPCA().candidates(a).directions for a in (acts, other))
    assert (one - two).abs().max() > 0.05


def test_a_single_pair_gives_its_difference() -> None:
    acts = classes(n=1)
    expected = difference_of_means(acts).directions
    for method in (PairedPCA(), CentredPCA()):
        torch.testing.assert_close(method.candidates(acts).directions, expected)


@given(st.integers(0, 1000))
@few
def test_centred_pca_is_scikit_learns_where_the_classes_are_of_one_size(seed: int) -> None:
    acts = classes(seed)
    found = CentredPCA().candidates(acts).directions
    for site in range(2):
        oracle = PCA(n_components=1).fit(np.concatenate(at(acts, site))).components_[0]
        assert_parallel(found[site], signed(oracle, acts, site))


def test_centred_pca_is_about_the_midpoint_however_many_prompts_each_class_has() -> None:
    acts = activations(1 + noise(3, 1, D), noise(60, 1, D, seed=1), paired=False)
    positive, negative = at(acts, 0)
    rows = np.concatenate((positive, negative)) - (positive.mean(0) + negative.mean(0)) / 2
    oracle = np.linalg.eigh(rows.T @ rows)[1][:, -1]
    assert_parallel(CentredPCA().candidates(acts).directions[0], signed(oracle, acts, 0))
    pooled = PCA(n_components=1).fit(np.concatenate((positive, negative))).components_[0]
    assert abs(pooled @ oracle) < 0.99


def test_paired_pca_of_unpaired_data_names_the_two_remedies() -> None:
    acts = classes(n=5)
    unpaired = replace(acts, spec=replace(acts.spec, paired=False))
    message = (
        r"needs partners; the 5 positive and 5 negative prompts of 'made-up' are not marked as "
        r"paired\. .*load_dataset\(\.\.\., paired=True\) and capture again; else use CentredPCA\(\)"
    )
    with pytest.raises(UserError, match=message):
        PairedPCA().candidates(unpaired)
    with pytest.raises(UserError, match="needs partners; the 4 positive and 5 negative prompts"):
        PairedPCA().candidates(activations(acts.positive[1:], acts.negative))


def test_two_equally_strong_components_are_an_error_that_names_the_site() -> None:
    rows = torch.eye(D)[:2].unsqueeze(1)
    with pytest.raises(
        UserError, match=r"PairedPCA\(\) at L0\.ln1_out is not determined: .* equally strong \(2\)"
    ):
        PairedPCA().candidates(activations(rows, -rows))


def test_a_component_that_says_nothing_of_the_classes_has_no_sign() -> None:
    """Partners differ by (1, ±10): most of it cancels in the mean, and it is what PCA finds."""
    apart = torch.tensor([[1.0, 10.0], [1.0, -10.0]]).unsqueeze(1)
    with pytest.raises(
        UserError, match=r"of PairedPCA\(\) at L0\.ln1_out is perpendicular to the difference of"
    ):
        PairedPCA().candidates(activations(apart, 0 * apart))


# --- the Fisher discriminant ---------------------------------------------------------------------


@pytest.mark.parametrize(("shrinkage", "name"), [("ledoit_wolf", "LedoitWolf"), ("oas", "OAS")])
@pytest.mark.parametrize("sizes", [(20, 20), (30, 9), (3, 2)])
def test_fisher_is_scikit_learns_discriminant_at_the_same_shrinkage(
    shrinkage: str, name: str, sizes: tuple[int, int]
) -> None:
    acts = classes(n=30)
    acts = activations(acts.positive[: sizes[0]], acts.negative[: sizes[1]], paired=False)
    found = Fisher(shrinkage=shrinkage).candidates(acts).directions
    for site in range(2):
        positive, negative = at(acts, site)
        within = np.concatenate((positive - positive.mean(0), negative - negative.mean(0)))
        estimator = getattr(sklearn.covariance, name)(assume_centered=True).fit(within)
        for solver in ("lsqr", "eigen"):
            oracle = LinearDiscriminantAnalysis(solver=solver, shrinkage=estimator.shrinkage_)
            labels = [1] * sizes[0] + [0] * sizes[1]
            oracle.fit(np.concatenate((positive, negative)), labels)
            assert_parallel(found[site], oracle.coef_[0])


def test_fisher_has_its_closed_form_for_gaussians_in_two_dimensions() -> None:
    """Σ = diag(9, 1) and δ = (3, 1): the direction is Σ⁻¹δ ∝ (1, 3), not δ ∝ (3, 1)."""
    cloud = noise(20_000, 1, 2).double()
    cloud = cloud - cloud.mean(dim=0)
    factor = torch.linalg.cholesky(cloud[:, 0].T @ cloud[:, 0] / len(cloud))
    white = torch.linalg.solve_triangular(factor, cloud[:, 0].T, upper=False).T.unsqueeze(1)
    spread, apart = torch.tensor([3.0, 1.0]), torch.tensor([1.5, 0.5])
    acts = activations((white * spread + apart).float(), (white * spread - apart).float())
    for shrinkage in ("ledoit_wolf", "oas"):
        got = Fisher(shrinkage=shrinkage).candidates(acts).directions[0]
        assert_parallel(got, np.array([1.0, 3.0]), atol=2e-3)  # what the shrinkage leaves
    assert_parallel(difference_of_means(acts).directions[0], np.array([3.0, 1.0]))


def test_fisher_works_with_fewer_prompts_than_dimensions() -> None:
    positive, negative = noise(6, 1, 64) + 1, noise(6, 1, 64, seed=1)
    found = Fisher().candidates(activations(positive, negative))
    assert float(found.directions.norm()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
@pytest.mark.parametrize(
    "acts",
    [classes(n=1), activations(torch.ones(5, 1, D), -torch.ones(5, 1, D))],
    ids=["one prompt per class", "constant"],
)
def test_a_singular_covariance_is_an_error_that_names_the_site_and_the_remedy(
    shrinkage: str, acts: Activations
) -> None:
    message = (
        rf"covariance at L0\.ln1_out is singular even after {shrinkage} shrinkage \(\d \+ \d "
        rf"prompts, width {D}\).*Use more prompts.*DifferenceOfMeans\(\)"
    )
    with pytest.raises(UserError, match=message):
        Fisher(shrinkage=shrinkage).candidates(acts)


@pytest.mark.parametrize("seed", [0, 1, 25, 50])
def test_a_covariance_of_rank_one_that_is_not_shrunk_is_singular_to_rounding(seed: int) -> None:
    """All prompts differ from their class mean by one and the same ±v, so nothing is shrunk.

    For the seeds but 1 a Cholesky factor exists nevertheless, whose last pivot is rounding.
    """
    v = (2**20 * noise(1, 1, 2, seed=seed)).round() / 2**20  # exact in every sum below
    around = torch.cat((v, -v))
    with pytest.raises(UserError, match="is singular even after ledoit_wolf shrinkage"):
        Fisher().candidates(activations(around + 4, around - 4))


def test_an_unknown_shrinkage_is_rejected() -> None:
    with pytest.raises(UserError, match="shrinkage must be one of ledoit_wolf, oas; got 'auto'"):
        Fisher(shrinkage="auto")


# --- logistic regression -------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.01, 1.0, 30])
@pytest.mark.parametrize("sizes", [(20, 20), (20, 7)])
def test_logistic_is_scikit_learns_by_another_solver_on_the_raw_activations(
    c: float | int, sizes: tuple[int, int]
) -> None:
    """Dividing the activations by σ is the same as dividing C by σ²."""
    acts = classes()
    acts = activations(acts.positive[: sizes[0]], acts.negative[: sizes[1]], paired=False)
    found = Logistic(c=c).candidates(acts).directions
    for site in range(2):
        rows = np.concatenate(at(acts, site))
        variance = rows.var(axis=0).mean()
        oracle = LogisticRegression(C=c / variance, solver="newton-cholesky", tol=1e-10)
        oracle.fit(rows, [1] * sizes[0] + [0] * sizes[1])
        assert_parallel(found[site], oracle.coef_[0], atol=2e-5)


def test_logistic_tends_to_the_difference_of_means_as_c_tends_to_zero() -> None:
    acts = classes()
    found, limit = (m.candidates(acts).directions for m in (Logistic(c=1e-7), DifferenceOfMeans()))
    torch.testing.assert_close(found, limit, rtol=0, atol=1e-5)
    assert (Logistic(c=1).candidates(acts).directions - limit).abs().max() > 0.05


def test_logistic_looks_past_a_direction_that_varies_but_does_not_separate() -> None:
    apart = torch.tensor([1.5, 0.5, *[0.0] * (D - 2)])
    spread = torch.tensor([6.0, 0.1, *[1.0] * (D - 2)])
    positive, negative = (
        noise(200, 1, D, seed=i) * spread + s * apart for i, s in ((1, 1), (2, -1))
    )
    acts = activations(positive, negative)
    assert Logistic().candidates(acts).directions[0, 1] > 0.9
    assert difference_of_means(acts).directions[0, 1] < 0.5


def test_a_regression_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separation, "MAX_ITERATIONS", 1)
    with pytest.raises(
        UserError, match=r"at L0\.ln1_out did not converge in 1 iterations with c=1\.0; use a small"
    ):
        Logistic().candidates(classes())


@pytest.mark.parametrize("c", [0, -1.0, float("inf"), float("nan")])
def test_a_bad_c_is_rejected(c: float | int) -> None:
    with pytest.raises(UserError, match=rf"c must be a positive, finite number; got {c}"):
        Logistic(c=c)
