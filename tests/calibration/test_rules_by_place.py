"""Sites drawn at random, by depth, or by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from ss_lens import Plane, Site, UserError
from ss_lens.activations.activations import Evidence
from ss_lens.calibration.selection import Selection
from ss_lens.calibration.site_selection import (
    EveryKth,
    Explicit,
    Half,
    RandomSites,
    as_rule,
)
from tests.conftest import made_activations

SITES = tuple(Site(layer, s) for layer in range(3) for s in ("ln1_out", "ln2_out"))

PLANE = Plane(torch.eye(4)[0], torch.eye(4)[1])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_cosines(cosines: Any) -> Tensor:
    """Activations ``[prompt, site, 4]`` of various lengths with these cosines to the first axis."""
    x = torch.as_tensor(np.atleast_2d(cosines)).float()
    rest = (1 - x**2).sqrt()
    unit = torch.stack((x, 0 * x, rest, 0 * x), dim=-1)
    return unit * (1 + torch.arange(len(x))).reshape(-1, 1, 1)


def with_means(*pairs: tuple[float, float], neutral: Any = None) -> Evidence:
    """One prompt per class whose projections are the given (positive, negative) per site."""
    positive, negative = np.array(pairs).T
    sites = SITES[: len(pairs)]
    train = made_activations(at_cosines(positive), at_cosines(negative), sites)
    if neutral is not None:
        neutral = made_activations(*(at_cosines(x) for x in neutral), sites)
    return Evidence(train, neutral=neutral)


def evidence_of(
    gap: float = 1.0, n: int = 12, sites: tuple[Site, ...] = SITES, seed: int = 0
) -> Evidence:
    """Noisy activations whose classes differ along the first axis at the later sites."""
    parts = []
    for s in (seed, seed + 1, seed + 2):
        cloud = noise(2 * n, len(sites), 4, seed=s)
        shift = gap * torch.linspace(0, 1, len(sites)).unsqueeze(-1) * torch.eye(4)[0]
        parts.append(made_activations(cloud[:n] + shift, cloud[n:] - shift, sites))
    return Evidence(*parts)


def restricted(n: int) -> tuple[Site, ...]:
    return tuple(Site(layer, s) for layer in range(n) for s in ("ln1_out", "ln2_out"))


def selected(selection: Selection) -> list[str]:
    return selection.table["site"][selection.table["selected"]].tolist()


#        block 0: neither        block 1: one of the two  block 2: both
MEANS = ((0.1, 0.2), (-0.3, -0.1), (0.2, -0.2), (0.3, 0.1), (0.5, -0.4), (-0.1, 0.3))


# --- random sites --------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_random_sites_are_as_many_as_asked_and_repeat_with_their_seed(seed: int, k: int) -> None:
    rule = RandomSites(seed=seed, count=k)
    evidence = with_means(*MEANS)
    got = rule.select(evidence, PLANE)
    assert int(got.mask.sum()) == k
    assert torch.equal(got.mask, rule.select(evidence, PLANE).mask)
    assert sorted(got.table["order"]) == list(range(6))
    assert set(np.random.default_rng(seed).permutation(6)[:k]) == set(np.flatnonzero(got.mask))


def test_random_sites_are_by_default_as_many_as_the_discriminative() -> None:
    evidence = with_means(*MEANS)
    for draw in RandomSites(seed=5).draws(20):
        assert int(draw.select(evidence, PLANE).mask.sum()) == 3


def test_every_site_is_drawn_equally_often() -> None:
    evidence = with_means(*MEANS)
    masks = [draw.select(evidence, PLANE).mask for draw in RandomSites(seed=0, count=2).draws(300)]
    counts = torch.stack(masks).sum(dim=0)
    assert (counts - 100).abs().max() < 35  # four standard deviations


def test_draws_have_consecutive_seeds_and_the_same_count() -> None:
    assert RandomSites(seed=7, count=2).draws(3) == tuple(
        RandomSites(seed=s, count=2) for s in (7, 8, 9)
    )
    with pytest.raises(UserError, match="n must be a whole number from 1 on; got 0"):
        RandomSites(seed=7).draws(0)


def test_a_random_selection_needs_a_seed() -> None:
    with pytest.raises(UserError, match=r"a random selection needs a seed, .*; pass seed=0"):
        RandomSites()
    with pytest.raises(UserError, match="a random selection needs a seed"):
        as_rule("RandomSites(count=3)")
    with pytest.raises(UserError, match="seed must be a whole number from 0 on; got -1"):
        RandomSites(seed=-1)


def test_a_random_selection_cannot_exceed_the_sites() -> None:
    with pytest.raises(UserError, match=r"count=7 is more than the 6 calibrated sites; use 1–6"):
        RandomSites(seed=0, count=7).select(with_means(*MEANS), PLANE)
    with pytest.raises(UserError, match="count must be a whole number from 1 on; got 0"):
        RandomSites(seed=0, count=0)


# --- by depth ------------------------------------------------------------------------------------


@given(st.integers(2, 9))
def test_the_halves_are_complementary_and_the_middle_layer_is_in_the_first(n: int) -> None:
    evidence = evidence_of(n=2, sites=restricted(n))
    first, second = (Half(which=w).select(evidence, PLANE).mask for w in ("first", "second"))
    assert torch.equal(first, ~second)
    assert int(first.sum()) == 2 * math.ceil(n / 2)
    assert torch.equal(first, first.sort(descending=True).values)


def test_halves_count_the_layers_that_are_calibrated() -> None:
    sites = tuple(Site(layer, "ln1_out") for layer in (4, 10, 11, 12))
    got = Half(which="second").select(evidence_of(sites=sites), PLANE)
    assert selected(got) == ["L11.ln1_out", "L12.ln1_out"]
    assert got.table["layer_rank"].tolist() == [0, 1, 2, 3]


def test_a_single_layer_has_no_second_half() -> None:
    evidence = evidence_of(sites=restricted(1))
    assert Half(which="first").select(evidence, PLANE).mask.all()
    with pytest.raises(UserError, match="only layer 0 is calibrated, so there is no second half"):
        Half(which="second").select(evidence, PLANE)


def test_a_half_must_be_named() -> None:
    with pytest.raises(UserError, match=r"'Half' does not fit: .*'which'"):
        as_rule("Half")


@given(st.integers(1, 9), st.integers(1, 5))
def test_every_kth_partitions_the_layers_by_its_offset(n: int, k: int) -> None:
    evidence = evidence_of(n=2, sites=restricted(n))
    offsets = range(min(k, n))
    masks = [EveryKth(k=k, offset=o).select(evidence, PLANE).mask for o in offsets]
    assert torch.equal(torch.stack(masks).sum(dim=0), torch.ones(2 * n, dtype=torch.long))
    for offset, mask in zip(offsets, masks, strict=True):
        expected = [layer % k == offset for layer in range(n) for _ in range(2)]
        assert mask.tolist() == expected


def test_every_kth_needs_an_offset_below_k_and_within_the_layers() -> None:
    with pytest.raises(UserError, match="offset must be below k=2; got 2"):
        EveryKth(k=2, offset=2)
    with pytest.raises(UserError, match=r"offset 5 is beyond the 3 calibrated layers; use 0–2"):
        EveryKth(k=9, offset=5).select(with_means(*MEANS), PLANE)
    with pytest.raises(UserError, match="k must be a whole number from 1 on; got 0"):
        EveryKth(k=0)


# --- named sites ---------------------------------------------------------------------------------


def test_explicit_sites_are_those_and_no_others() -> None:
    got = Explicit(sites="L2.ln1_out, L0.ln2_out").select(with_means(*MEANS), PLANE)
    assert selected(got) == ["L0.ln2_out", "L2.ln1_out"]


def test_equal_sets_of_sites_are_equal_values() -> None:
    assert Explicit(sites="L2.ln1_out,L0.ln2_out,L2.ln1_out") == Explicit.of(SITES[1], SITES[4])
    assert Explicit.of(*SITES[::-1]).sites.startswith("L0.ln1_out,L0.ln2_out,L1")


def test_an_unknown_site_is_named_with_the_calibrated_range() -> None:
    with pytest.raises(
        UserError,
        match=r"L3\.ln1_out is not a calibrated site; those are L0\.ln1_out … L2\.ln2_out "
        r"\(streams ln1_out, ln2_out\)",
    ):
        Explicit(sites="L3.ln1_out,L1.ln1_out").select(with_means(*MEANS), PLANE)


@pytest.mark.parametrize("text", ["", "  "])
def test_explicit_sites_cannot_be_empty(text: str) -> None:
    with pytest.raises(UserError, match=r"sites must be text like 'L3\.ln1_out,L5\.ln2_out'"):
        Explicit(sites=text)


def test_explicit_sites_must_be_written_as_sites() -> None:
    with pytest.raises(UserError, match="'layer 3' is not a site"):
        Explicit(sites="L1.ln1_out,layer 3")
    with pytest.raises(UserError, match="sites must be text"):
        Explicit.of()
