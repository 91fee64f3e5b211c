"""Site selection, against hand-written and NumPy oracles on activations with known projections."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from ss_lens import Activations, Plane, Site, UserError
from ss_lens.activations.activations import Evidence
from ss_lens.calibration.selection import RULES, Selection, SelectionRule
from ss_lens.calibration.separation import (
    ClassProjections,
)
from ss_lens.calibration.site_selection import (
    RULE_SHORTHANDS,
    Discriminative,
    EveryKth,
    Explicit,
    Half,
    RandomSites,
    TopK,
    Uniform,
    as_rule,
    rule_name,
)
from ss_lens.core.checks import check_one_of, check_whole
from tests.conftest import made_activations

SITES = tuple(Site(layer, s) for layer in range(3) for s in ("ln1_out", "ln2_out"))

PLANE = Plane(torch.eye(4)[0], torch.eye(4)[1])

EVERY_RULE: list[Any] = [
    *RULE_SHORTHANDS.values(),
    Discriminative(rule="block", margin=0.01),
    Discriminative(centred=True),
    RandomSites(seed=3),
    RandomSites(seed=3, count=2),
    Half(which="first"),
    Half(which="second"),
    TopK(k=2),
    EveryKth(k=2, offset=1),
    Explicit(sites="L0.ln1_out,L2.ln2_out"),
]


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


def selected(selection: Selection) -> list[str]:
    return selection.table["site"][selection.table["selected"]].tolist()


# --- what every rule returns ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_every_rule_returns_a_mask_and_one_row_per_site(rule: SelectionRule) -> None:
    got = rule.select(evidence_of(), PLANE)
    assert got.mask.dtype == torch.bool
    assert got.mask.any()
    assert got.table["site"].tolist() == [str(site) for site in SITES]
    assert got.table["selected"].tolist() == got.mask.tolist()
    assert list(got.table.columns)[-1] == "selected"


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_a_rule_is_its_text(rule: SelectionRule) -> None:
    assert as_rule(repr(rule)) == rule
    assert as_rule(rule_name(rule)) == rule
    assert as_rule(rule) is rule
    assert hash(as_rule(repr(rule))) == hash(rule)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_no_rule_depends_on_the_basis_of_the_space(rule: SelectionRule, seed: int) -> None:
    turn = torch.linalg.qr(noise(4, 4, seed=seed).double()).Q.float()

    def turned(acts: Activations | None) -> Activations:
        assert acts is not None
        return made_activations(acts.positive @ turn, acts.negative @ turn, acts.sites)

    here = evidence_of()
    there = Evidence(turned(here.train), turned(here.held_out), turned(here.neutral))
    plane = Plane.from_span(PLANE.b1 @ turn, PLANE.b2 @ turn)
    assert torch.equal(rule.select(here, PLANE).mask, rule.select(there, plane).mask)


def test_a_table_of_only_what_decided() -> None:
    columns = {
        Discriminative(): ["positive", "negative", "margin"],
        Discriminative(rule="block"): ["positive", "negative", "margin", "block_margin"],
        Discriminative(centred=True): ["positive", "negative", "neutral", "margin"],
        Uniform(): [],
        RandomSites(seed=0): ["order"],
        Half(which="first"): ["layer_rank"],
        TopK(k=1): ["positive", "negative", "auroc", "cohens_d"],
        EveryKth(k=2): ["layer_rank"],
        Explicit(sites="L0.ln1_out"): [],
    }
    for rule, decided_by in columns.items():
        table = rule.select(evidence_of(), PLANE).table
        assert list(table.columns) == ["site", *decided_by, "selected"], rule
    assert {type(rule) for rule in columns} == set(RULES)


def test_a_selection_of_nothing_cannot_be_made() -> None:
    with pytest.raises(UserError, match="no site is selected; a calibration needs at least one"):
        Selection(torch.tensor([False]), pd.DataFrame({"site": ["x"], "selected": [False]}))


def test_a_table_that_contradicts_its_mask_cannot_be_made() -> None:
    with pytest.raises(UserError, match="the selection's table differs from its mask"):
        Selection(torch.tensor([True]), pd.DataFrame({"site": ["x"], "selected": [False]}))


# --- discriminative sites ------------------------------------------------------------------------


#        block 0: neither        block 1: one of the two  block 2: both
MEANS = ((0.1, 0.2), (-0.3, -0.1), (0.2, -0.2), (0.3, 0.1), (0.5, -0.4), (-0.1, 0.3))

DISCRIMINATIVE = {
    "site": (False, False, True, False, True, True),
    "block": (False, False, False, False, True, True),
    "uniform": (True,) * 6,
}


@pytest.mark.parametrize("rule", DISCRIMINATIVE)
def test_each_shorthand_selects_its_sites(rule: str) -> None:
    got = as_rule(rule).select(with_means(*MEANS), PLANE)
    assert tuple(got.mask.tolist()) == DISCRIMINATIVE[rule]


def test_a_mean_of_zero_is_on_neither_side() -> None:
    got = Discriminative().select(with_means((0.0, -0.5), (0.2, -0.1)), PLANE)
    assert got.mask.tolist() == [False, True]


@given(
    st.lists(
        st.tuples(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32)),
        min_size=6,
        max_size=6,
    ),
    st.floats(0, 0.5),
)
def test_a_site_qualifies_where_the_signs_differ_and_both_means_exceed_the_margin(
    pairs: list[tuple[float, float]], margin: float
) -> None:
    p, n = torch.tensor(pairs).T
    got = ClassProjections(p, n).margin.double() > margin
    expected = [a * b < 0 and abs(a) > margin and abs(b) > margin for a, b in pairs]
    assert got.tolist() == expected


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.0, [2, 4, 5]), (0.05, [2, 4, 5]), (0.15, [2, 4]), (0.3, [4])],
)
def test_a_margin_removes_the_sites_within_it(margin: float, expected: list[int]) -> None:
    got = Discriminative(margin=margin).select(with_means(*MEANS), PLANE)
    assert got.mask.nonzero().flatten().tolist() == expected
    np.testing.assert_allclose(got.table["margin"], [-0.1, -0.1, 0.2, -0.1, 0.4, 0.1], atol=1e-6)


def test_a_block_is_as_good_as_its_worst_site() -> None:
    got = Discriminative(rule="block", margin=0.05).select(with_means(*MEANS), PLANE)
    assert selected(got) == ["L2.ln1_out", "L2.ln2_out"]
    expected = [-0.1, -0.1, -0.1, -0.1, 0.1, 0.1]
    np.testing.assert_allclose(got.table["block_margin"], expected, atol=1e-6)
    with pytest.raises(UserError, match="no discriminative block"):
        Discriminative(rule="block", margin=0.15).select(with_means(*MEANS), PLANE)


@given(st.integers(0, 1000))
def test_the_block_rule_selects_whole_blocks_and_never_more_than_the_site_rule(seed: int) -> None:
    evidence = evidence_of(gap=2, seed=seed)
    try:
        blocks = Discriminative(rule="block").select(evidence, PLANE).mask
    except UserError:
        return
    sites = Discriminative().select(evidence, PLANE).mask
    per_block = blocks.reshape(3, 2)
    assert torch.equal(per_block.any(dim=1), per_block.all(dim=1))
    assert torch.equal(blocks.reshape(3, 2).all(dim=1), sites.reshape(3, 2).all(dim=1))


def test_centred_means_are_measured_from_the_neutral_mean() -> None:
    neutral = ([0.5, 0.0], [0.1, 0.0]), ([0.3, 0.0], [0.3, 0.0])  # means 0.3 and 0 per site
    evidence = with_means((0.5, 0.1), (0.4, -0.1), neutral=neutral)
    assert Discriminative().select(evidence, PLANE).mask.tolist() == [False, True]
    got = Discriminative(centred=True, margin=0.15).select(evidence, PLANE)
    assert got.mask.tolist() == [True, False]
    np.testing.assert_allclose(got.table["neutral"], [0.3, 0.0], atol=1e-6)
    np.testing.assert_allclose(got.table["positive"], [0.5, 0.4], atol=1e-6)
    np.testing.assert_allclose(got.table["margin"], [0.2, 0.1], atol=1e-6)


def test_centring_on_the_origin_changes_nothing() -> None:
    at_zero = np.zeros((2, 6))
    evidence = with_means(*MEANS, neutral=(at_zero, at_zero))
    plain, centred = (Discriminative(centred=c).select(evidence, PLANE) for c in (False, True))
    assert torch.equal(plain.mask, centred.mask)


def test_centred_without_neutral_activations_says_who_needs_them() -> None:
    with pytest.raises(UserError, match=r"centred=True\) needs neutral activations; .*neutral="):
        Discriminative(centred=True).select(with_means(*MEANS), PLANE)


NOWHERE = ((0.5, 0.5), (0.2, 0.1), (0.9, 0.9), (0.1, 0.01), (-0.5, -0.2), (0.8, 0.8))


@pytest.mark.parametrize("rule", ["site", "block"])
def test_no_discriminative_site_lists_the_nearest_and_the_uniform_alternative(rule: str) -> None:
    nearest = (
        r"L1\.ln2_out \(\+0\.100, \+0\.010\); L0\.ln2_out .*; L2\.ln1_out \(-0\.500, -0\.200\)"
    )
    with pytest.raises(
        UserError,
        match=rf"no discriminative {rule}: .* opposite signs\. Nearest .*{nearest}\. "
        r"Use rule='uniform'",
    ):
        as_rule(rule).select(with_means(*NOWHERE), PLANE)
    assert as_rule("uniform").select(with_means(*NOWHERE), PLANE).mask.all()


def test_a_margin_that_removes_everything_is_named() -> None:
    with pytest.raises(
        UserError,
        match=r"no discriminative site: .* by more than margin=0\.45 each\. Nearest .*: "
        r"L2\.ln1_out \(\+0\.500, -0\.400\).* Use a smaller margin, rule='uniform'",
    ):
        Discriminative(margin=0.45).select(with_means(*MEANS), PLANE)


def test_nothing_centred_says_what_it_was_measured_from() -> None:
    evidence = with_means((0.5, -0.5), neutral=([[-0.9]], [[-0.9]]))
    with pytest.raises(UserError, match=r"from the neutral mean.*\(\+1\.400, \+0\.400\)"):
        Discriminative(centred=True).select(evidence, PLANE)


def test_a_block_that_is_only_half_discriminative_fails_by_block_and_not_by_site() -> None:
    half = with_means((0.5, -0.5), (0.5, 0.5))
    assert Discriminative().select(half, PLANE).mask.tolist() == [True, False]
    with pytest.raises(UserError, match="no discriminative block"):
        Discriminative(rule="block").select(half, PLANE)


@pytest.mark.parametrize("margin", [-0.1, 1.0, 1, math.nan, math.inf, True])
def test_a_margin_is_a_cosine(margin: Any) -> None:
    with pytest.raises(UserError, match="margin is a cosine from 0 to below 1; got"):
        Discriminative(margin=margin)


def test_the_arguments_of_a_rule_that_is_read_from_text_are_checked() -> None:
    """By the checks of the constructors, or under these tests by the type checker before them."""
    for text, argument in (
        ("Discriminative(rule='layer')", "rule"),
        ("Discriminative(centred='yes')", "centred"),
        ("Discriminative(margin='0.1')", "margin"),
        ("RandomSites(seed='0')", "seed"),
        ("Half(which='last')", "which"),
        ("TopK(k='2')", "k"),
        ("EveryKth(k=2.0)", "k"),
        ("Explicit(sites=3)", "sites"),
    ):
        with pytest.raises(UserError, match=argument):
            as_rule(text)


def test_a_choice_lists_what_it_may_be() -> None:
    check_one_of("which", "first", ("first", "second"))
    with pytest.raises(UserError, match="which must be one of first, second; got 'last'"):
        check_one_of("which", "last", ("first", "second"))


@pytest.mark.parametrize("value", [0, 2.0, "2", True, None])
def test_a_whole_number_is_no_other_kind_of_number(value: object) -> None:
    check_whole("k", 1, at_least=1)
    with pytest.raises(UserError, match=f"k must be a whole number from 1 on; got {value!r}"):
        check_whole("k", value, at_least=1)


# --- the k best by held-out separation -----------------------------------------------------------


def test_top_k_takes_the_highest_auroc_then_the_largest_effect_then_the_first_site() -> None:
    positive = [[0.5, 0.9, 0.5, -0.5, 0.5], [0.4, 0.8, -0.2, -0.4, 0.4]]
    negative = [[0.1, 0.1, 0.1, 0.5, 0.1], [0.0, 0.0, 0.0, 0.4, 0.0]]
    held_out = made_activations(at_cosines(positive), at_cosines(negative), SITES[:5])
    train = made_activations(at_cosines(negative), at_cosines(positive), SITES[:5])
    evidence = Evidence(train, held_out=held_out)
    for k, expected in enumerate(([1], [0, 1], [0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]), 1):
        got = TopK(k=k).select(evidence, PLANE)
        assert got.mask.nonzero().flatten().tolist() == expected
        np.testing.assert_allclose(got.table["auroc"], [1, 1, 0.5, 0, 1])
        np.testing.assert_allclose(got.table["positive"], np.mean(positive, axis=0), atol=1e-6)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_top_k_selects_exactly_k_and_none_worse_than_those_it_leaves(seed: int, k: int) -> None:
    got = TopK(k=k).select(evidence_of(seed=seed), PLANE)
    assert int(got.mask.sum()) == k
    chosen = got.table[got.table["selected"]]
    left = got.table[~got.table["selected"]]
    assert left.empty or chosen["auroc"].min() >= left["auroc"].max()


def test_top_k_ignores_the_training_prompts() -> None:
    one, other = evidence_of(seed=0), evidence_of(seed=9)
    mixed = Evidence(other.train, held_out=one.held_out)
    assert torch.equal(TopK(k=3).select(one, PLANE).mask, TopK(k=3).select(mixed, PLANE).mask)


def test_top_k_needs_held_out_activations_and_enough_sites() -> None:
    with pytest.raises(UserError, match=r"TopK\(k=2\) needs held_out activations"):
        TopK(k=2).select(with_means(*MEANS), PLANE)
    with pytest.raises(UserError, match=r"k=7 is more than the 6 calibrated sites; use 1–6"):
        TopK(k=7).select(evidence_of(), PLANE)
    with pytest.raises(UserError, match="k must be a whole number from 1 on; got 0"):
        TopK(k=0)


# --- rules as text -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["site", "block", "uniform"])
def test_a_shorthand_is_the_name_of_its_rule(name: str) -> None:
    assert rule_name(as_rule(name)) == name
    assert as_rule(repr(as_rule(name))) == as_rule(name)


def test_only_the_plain_rules_have_a_shorthand() -> None:
    assert rule_name(Discriminative(margin=0)) == "site"
    assert (
        rule_name(Discriminative(margin=0.1))
        == "Discriminative(rule='site', margin=0.1, centred=False)"
    )


@pytest.mark.parametrize("text", ["best", "Best(k=1)", "", "SITE"])
def test_an_unknown_rule_lists_shorthands_and_kinds(text: str) -> None:
    with pytest.raises(
        UserError,
        match=r"unknown rule '.*'; use one of site, block, uniform, or a value of Discriminative, "
        r"Uniform, .*Explicit like TopK\(k=8\)\.",
    ):
        as_rule(text)


def test_a_rule_that_does_not_fit_says_so() -> None:
    with pytest.raises(UserError, match=r"rule 'TopK\(n=3\)' does not fit"):
        as_rule("TopK(n=3)")
    with pytest.raises(UserError, match=r"rule 'TopK\(3\)' cannot be read"):
        as_rule("TopK(3)")
