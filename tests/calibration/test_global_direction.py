"""The global direction: each choice among the candidates, and what it was decided by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ss_lens import Activations, Site, UserError
from ss_lens.activations.activations import Evidence
from ss_lens.calibration.candidates import Candidates, global_direction, mean_cosine
from ss_lens.calibration.directions import (
    difference_of_means,
)
from ss_lens.calibration.global_direction import (
    AtSite,
    BestSeparation,
    Consensus,
    MaxMeanCosine,
)
from tests.conftest import made_activations

SITES = tuple(Site(layer, "ln1_out") for layer in range(4))

D = 8

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


# --- the global choices --------------------------------------------------------------------------


def candidates_of(vectors: Tensor, valid: Tensor | None = None) -> Candidates:
    valid = torch.ones(len(vectors), dtype=torch.bool) if valid is None else valid
    unit = torch.where(valid.unsqueeze(-1), vectors / vectors.norm(dim=-1, keepdim=True), 0)
    return Candidates(unit, valid, SITES[: len(vectors)], valid.float())


def evidence_for(made: Candidates, held_out: Activations | None = None) -> Evidence:
    return Evidence(classes(sites=len(made.sites)), held_out)


HOLED = candidates_of(noise(4, D) + torch.eye(D)[0], torch.tensor([False, True, True, True]))


def test_max_mean_cosine_is_the_default_choice_of_the_paper() -> None:
    chosen = MaxMeanCosine().choose(HOLED, evidence_for(HOLED))
    index = global_direction(HOLED)
    assert chosen.site == SITES[index]
    assert torch.equal(chosen.vector, HOLED.directions[index])
    torch.testing.assert_close(chosen.scores, mean_cosine(HOLED), equal_nan=True)
    assert chosen.scores.isnan().tolist() == [True, False, False, False]


def test_a_named_site_gives_its_candidate_and_the_cosines_to_it() -> None:
    chosen = AtSite(site="L2.ln1_out").choose(HOLED, evidence_for(HOLED))
    assert chosen.site == SITES[2]
    assert torch.equal(chosen.vector, HOLED.directions[2])
    assert chosen.scores.isnan().tolist() == [True, False, False, False]
    assert float(chosen.scores[2]) == pytest.approx(1)
    expected = HOLED.directions[1] @ HOLED.directions[2]
    assert float(chosen.scores[1]) == pytest.approx(float(expected), abs=1e-6)


def test_a_named_site_must_be_calibrated_and_not_excluded() -> None:
    evidence = evidence_for(HOLED)
    with pytest.raises(
        UserError, match=r"AtSite\(site='L9\.ln1_out'\) names a site that is not calibrated; calib"
        r"rated are L0\.ln1_out … L3\.ln1_out",
    ):  # fmt: skip
        AtSite(site="L9.ln1_out").choose(HOLED, evidence)
    with pytest.raises(UserError, match=r"without a direction; .*\(excluded: L0\.ln1_out\)"):
        AtSite(site="L0.ln1_out").choose(HOLED, evidence)
    with pytest.raises(UserError, match="'ln1_out' is not a site"):
        AtSite(site="ln1_out")


@given(st.integers(0, 1000))
@few
def test_best_separation_is_the_highest_roc_area_on_held_out_prompts(seed: int) -> None:
    train = classes(seed, sites=4, gap=0.2)
    held_out = classes(seed + 5000, n=9, sites=4, gap=0.4)
    made = difference_of_means(train)
    chosen = BestSeparation().choose(made, Evidence(train, held_out))
    areas = []
    for site in range(4):
        positive, negative = at(held_out, site)
        rows = np.concatenate((positive, negative))
        cosines = rows @ made.directions[site].double().numpy() / np.sqrt((rows**2).sum(axis=1))
        areas.append(roc_auc_score([1] * 9 + [0] * 9, cosines))
    np.testing.assert_allclose(chosen.scores, areas, atol=1e-6)
    assert chosen.site is not None
    index = SITES.index(chosen.site)
    assert areas[index] == pytest.approx(max(areas))
    assert torch.equal(chosen.vector, made.directions[index])


def held_out_along(*values: tuple[list[float], list[float]]) -> Activations:
    """Unit activations whose cosine to the first axis is given, per site and class."""

    def cloud(which: int) -> Tensor:
        cosines = torch.tensor([pair[which] for pair in values]).T
        rest = (1 - cosines**2).sqrt()
        zeros = torch.zeros(*cosines.shape, D - 2)
        return torch.cat((cosines.unsqueeze(-1), rest.unsqueeze(-1), zeros), dim=-1)

    return activations(cloud(0), cloud(1))


ALONG_FIRST = torch.eye(D)[0].repeat(4, 1)


def test_best_separation_breaks_ties_by_the_standardised_difference_of_means() -> None:
    held_out = held_out_along(
        ([0.5, 0.2], [0.1, -0.3]),  # apart, d = 1.8
        ([0.5, 0.4], [-0.3, -0.4]),  # apart, d = 11
        ([0.9, 0.8], [-0.9, 0.85]),  # overlapping
        ([0.9, 0.1], [-0.9, -0.1]),  # apart, d = 1.8
    )
    made = candidates_of(ALONG_FIRST)
    chosen = BestSeparation().choose(made, evidence_for(made, held_out))
    assert chosen.site == SITES[1]
    torch.testing.assert_close(chosen.scores, torch.tensor([1.0, 1.0, 0.75, 1.0]))


def test_best_separation_never_chooses_an_excluded_site_nor_reports_its_score() -> None:
    held_out = held_out_along(*[([0.5, 0.4], [-0.5, -0.4])] + [([-0.5, 0.1], [0.5, -0.1])] * 3)
    made = candidates_of(ALONG_FIRST, torch.tensor([False, True, True, True]))
    chosen = BestSeparation().choose(made, evidence_for(made, held_out))
    assert chosen.site == SITES[1]
    assert chosen.scores.isnan().tolist() == [True, False, False, False]


def test_best_separation_needs_held_out_prompts() -> None:
    with pytest.raises(UserError, match=r"BestSeparation\(\) needs held_out activations; capture"):
        BestSeparation().choose(HOLED, evidence_for(HOLED))


@given(st.integers(0, 1000), st.booleans())
@few
def test_consensus_is_the_first_right_singular_vector_of_the_candidates(
    seed: int, weighted: bool
) -> None:
    vectors = noise(4, D, seed=seed) + 1.5 * noise(D, seed=seed + 1)
    made = candidates_of(vectors, torch.tensor([True, True, False, True]))
    chosen = Consensus(weighted=weighted).choose(made, evidence_for(made))
    rows = made.directions[made.valid].double().numpy()
    weights = np.ones(3)
    if weighted:
        cosines = rows @ rows.T
        weights = np.clip((cosines.sum(axis=1) - 1) / 2, 0, None)
    oracle = np.linalg.svd(weights[:, None] * rows)[2][0]
    assert_parallel(chosen.vector, oracle * np.sign((rows @ oracle).mean()))
    assert chosen.site is None
    expected = (made.directions @ chosen.vector).masked_fill(~made.valid, torch.nan)
    torch.testing.assert_close(chosen.scores, expected, equal_nan=True)
    assert chosen.scores.nanmean() > 0


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("width", [3, D])  # LAPACK signs tall and wide matrices differently
def test_consensus_turns_with_the_candidates_and_flips_with_them(
    width: int, weighted: bool
) -> None:
    vectors = noise(4, width) + 1.5 * noise(width, seed=50)
    turn = torch.linalg.qr(noise(width, width, seed=51).double()).Q.float()
    for change in (turn, -turn, -torch.eye(width)):
        one, other = (
            Consensus(weighted=weighted).choose(made, evidence_for(made)).vector
            for made in (candidates_of(vectors), candidates_of(vectors @ change))
        )
        torch.testing.assert_close(other, one @ change, rtol=0, atol=1e-5)
        assert float(one @ vectors.mean(dim=0)) > 0


def test_a_candidate_that_contradicts_the_others_counts_for_nothing_when_weighted() -> None:
    agreeing = torch.eye(D)[0] + 0.2 * noise(3, D)
    made = candidates_of(torch.cat((agreeing, torch.eye(D)[1:2] - torch.eye(D)[0:1])))
    alone = candidates_of(agreeing)
    assert mean_cosine(made)[3] < 0
    weights = mean_cosine(made)[:3].unsqueeze(-1) * alone.directions
    oracle = np.linalg.svd(weights.double().numpy())[2][0]
    got = Consensus().choose(made, evidence_for(made)).vector
    assert_parallel(got, oracle * np.sign(oracle[0]))
    unweighted = Consensus(weighted=False).choose(made, evidence_for(made)).vector
    assert (got - unweighted).abs().max() > 0.05


def test_consensus_needs_two_candidates_that_do_not_cancel_out() -> None:
    def choose(choice: Consensus, *rows: Tensor) -> None:
        made = candidates_of(torch.stack(rows))
        choice.choose(made, evidence_for(made))

    x, y = torch.eye(D)[:2]
    with pytest.raises(UserError, match=r"needs at least 2 sites with a direction, got 1; capture"):
        choose(Consensus(), x)
    with pytest.raises(UserError, match="no candidate that agrees with the others on average"):
        choose(Consensus(), x, -x)
    with pytest.raises(UserError, match=r"Consensus\(weighted=False\) has no sign: .* both sides"):
        choose(Consensus(weighted=False), x, -x)
    with pytest.raises(UserError, match=r"Consensus\(weighted=False\) is not determined: .* equal"):
        choose(Consensus(weighted=False), x, y)
