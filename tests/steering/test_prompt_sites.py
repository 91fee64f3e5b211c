"""Per-prompt sites against unpadded, uncached models edited at sites that are chosen by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import (
    ActAdd,
    AllPositions,
    Calibration,
    Gate,
    GeneratedOnly,
    LastPrompt,
    PromptOnly,
    PromptSites,
    RotateBy,
    RotateTo,
    Site,
    Trace,
    UserError,
    generate,
    steer,
    sweep_angles,
)
from ss_lens.calibration.selection import Selection
from ss_lens.datasets.contrastive import DatasetSplit
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.steering.positions import Positions
from tests.fitting import Fitted, padded
from tests.oracles import HuggingFaceOracle, dense_rotation, everywhere
from tests.steering.rows import ANGLE, LENGTH, PROMPTS, TINY, hooks_on, streamed_in_turns


def read(oracle: HuggingFaceOracle, sites: Sequence[Site], direction: Tensor) -> np.ndarray:
    """Projections ``[prompt, site]`` at the last token of each prompt, alone and unsteered."""
    found = [oracle.activations(oracle.ids(prompt), sites)[-1] for prompt in PROMPTS]
    return np.array([(h @ direction).tolist() for h in found])


def by_hand(
    oracle: HuggingFaceOracle, calibration: Calibration, k: int
) -> tuple[PromptSites, list[list[Site]], np.ndarray]:
    """Per-prompt sites with made-up priors, what they must choose, and the weights."""
    sites, direction = calibration.selected_sites, calibration.plane.b1
    x = read(oracle, sites, direction)
    drawn = np.random.default_rng(4)
    separation = drawn.uniform(-2, 2, len(sites))
    midpoint = np.median(x, axis=0) + drawn.normal(0, 0.3, len(sites)) * x.std(axis=0)
    spread = x.std(axis=0) + 0.05
    weights = np.abs(separation * (x - midpoint) / spread)
    ranked = np.argsort(-weights, axis=1)
    ordered = np.sort(weights, axis=1)[:, ::-1]
    if k < len(sites):
        assert (ordered[:, k - 1] - ordered[:, k] > 1e-4).all()  # rounding decides nothing
    chosen = [sorted(sites[i] for i in row[:k]) for row in ranked]
    numbers = (torch.tensor(v, dtype=torch.float32) for v in (separation, midpoint, spread))
    return PromptSites(k, sites, direction, *numbers), chosen, weights


def only_at(calibration: Calibration, sites: Sequence[Site]) -> Calibration:
    """The calibration, steering at these sites alone."""
    mask = torch.tensor([site in sites for site in calibration.sites])
    table = calibration.selection.table.assign(selected=mask.numpy())
    return replace(calibration, selection=Selection(mask, table))


# --- What they do --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("streams", [("ln1_out", "ln2_out"), ("resid_mid", "resid_post")], ids=str)
def test_each_answer_equals_plain_hooks_at_the_sites_that_its_prompt_chooses(
    architecture: str,
    streams: tuple[str, ...],
    tiny_models: dict[str, TransformerBridge],
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    model, oracle = tiny_models[architecture], oracles[architecture]
    calibration = fitted(architecture, *streams)
    sites, chosen, weights = by_hand(oracle, calibration, k=2)
    assert len({tuple(one) for one in chosen}) > 1
    edit = dense_rotation(calibration.plane, ANGLE)
    expected = [
        oracle.greedy(prompt, LENGTH, everywhere(edit, own))
        for prompt, own in zip(PROMPTS, chosen, strict=True)
    ]
    trace = Trace()
    with steer(model, calibration, RotateBy(ANGLE), sites=sites, trace=trace):
        got = generate(model, PROMPTS, max_new_tokens=LENGTH, batch_size=3)
    assert got == expected
    assert got != generate(model, PROMPTS, max_new_tokens=LENGTH)
    table = trace.sites()
    for row, own in enumerate(chosen):
        of_row = table[table["row"] == row]
        assert of_row.loc[of_row["is_steered"], "site"].tolist() == [str(site) for site in own]
        assert of_row["weight"].tolist() == pytest.approx(weights[row], rel=1e-3, abs=1e-3)
    frame = trace.frame()
    changed = frame[frame["changed"]].groupby("row")["site"].agg(lambda found: {*found})
    assert changed.tolist() == [{str(site) for site in own} for own in chosen]
    assert table["forward_pass"].isin(frame["forward_pass"]).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_of_a_batch_are_steered_each_at_its_own_sites(
    side: str,
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    oracle, calibration = oracles["llama"], fitted("llama")
    sites, chosen, _ = by_hand(oracle, calibration, k=2)
    rows = [oracle.ids(prompt) for prompt in PROMPTS]
    ids, mask = padded(rows, side)
    edit = dense_rotation(calibration.plane, ANGLE)
    with (
        torch.inference_mode(),
        steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites),
    ):
        got = tiny_llama(ids, attention_mask=mask, position_ids=forward.position_ids(mask))
    for row, own in enumerate(chosen):
        real = mask[row].bool()
        expected = oracle.logits(rows[row], everywhere(edit, own))
        assert torch.allclose(got[row][real], expected, atol=2e-4)


def test_with_every_site_it_is_plain_steering_bit_for_bit(
    tiny_llama: TransformerBridge, oracles: dict[str, HuggingFaceOracle], fitted: Fitted
) -> None:
    calibration = fitted("llama")
    sites, _, _ = by_hand(oracles["llama"], calibration, k=len(calibration.selected_sites))
    tokens = tokenize(tiny_llama, [PROMPTS[0]])[0]
    ids = torch.tensor([tokens, tokens])
    with torch.inference_mode():
        for operator in (RotateBy(ANGLE), RotateTo(20), RotateBy((10.0, 200.0))):
            with steer(tiny_llama, calibration, operator):
                expected = tiny_llama(ids)
            with steer(tiny_llama, calibration, operator, sites=sites):
                assert torch.equal(tiny_llama(ids), expected)
        with steer(tiny_llama, calibration, RotateBy(0), sites=sites):
            assert torch.equal(tiny_llama(ids), tiny_llama(ids))


def test_one_site_for_all_prompts_is_steering_at_that_site(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    """A prior that is zero elsewhere leaves the prompt no choice."""
    calibration = fitted("llama")
    n = len(calibration.selected_sites)
    prior = torch.zeros(n)
    prior[3] = 2.0
    sites = PromptSites(
        *(1, calibration.selected_sites, calibration.plane.b1, prior),
        *(torch.full((n,), -100.0), torch.ones(n)),
    )
    assert sites.by_prior == (calibration.selected_sites[3],)
    with steer(tiny_llama, only_at(calibration, sites.by_prior), RotateBy(ANGLE)):
        expected = generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH)
    with steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites):
        assert generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH) == expected


@pytest.mark.parametrize(
    "positions", [AllPositions(), PromptOnly(), LastPrompt(2), GeneratedOnly()], ids=str
)
def test_sites_are_chosen_alike_wherever_tokens_are_steered(
    positions: Positions,
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    calibration = fitted("llama")
    sites, chosen, _ = by_hand(oracles["llama"], calibration, k=3)
    expected = []
    for prompt, own in zip(PROMPTS, chosen, strict=True):
        alone = only_at(calibration, own)
        with steer(tiny_llama, alone, RotateBy(ANGLE), positions=positions):
            expected += generate(tiny_llama, [prompt], max_new_tokens=LENGTH)
    with steer(tiny_llama, calibration, RotateBy(ANGLE), positions=positions, sites=sites):
        assert generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH) == expected


def test_scores_inside_the_block_are_of_each_prompts_sites(
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shared beginning of prompts must not run before their ends have been read."""
    monkeypatch.setattr("ss_lens.scoring.refusal_score.REFUSAL_OPENINGS", ("w9", "w10"))
    monkeypatch.setattr("ss_lens.scoring.refusal_score.COMPLIANCE_OPENINGS", ("w11", "w12"))
    calibration = fitted("llama")
    sites, chosen, _ = by_hand(oracles["llama"], calibration, k=2)
    expected = []
    for prompt, own in zip(PROMPTS, chosen, strict=True):
        with steer(tiny_llama, only_at(calibration, own), RotateBy(ANGLE)):
            expected += refusal_score(tiny_llama, [prompt])["refusal_score"].tolist()
    with steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites):
        got = refusal_score(tiny_llama, PROMPTS)["refusal_score"]
    assert got.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_gate_closes_rows_and_sites_are_chosen_in_those_it_opens(
    tiny_llama: TransformerBridge, oracles: dict[str, HuggingFaceOracle], fitted: Fitted
) -> None:
    oracle, calibration = oracles["llama"], fitted("llama", "ln2_out")
    sites, chosen, _ = by_hand(oracle, calibration, k=2)
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(5))
    first, direction = calibration.selected_sites[0], drawn / drawn.norm()
    found = read(oracle, [first], direction)[:, 0]
    threshold = float(np.sort(found)[2:4].mean())
    gate = Gate(first, direction, threshold)
    edit = dense_rotation(calibration.plane, ANGLE)
    expected = [
        oracle.greedy(prompt, LENGTH, everywhere(edit, own) if value > threshold else None)
        for prompt, own, value in zip(PROMPTS, chosen, found, strict=True)
    ]
    trace = Trace()
    with steer(tiny_llama, calibration, RotateBy(ANGLE), when=gate, sites=sites, trace=trace):
        assert generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH, batch_size=4) == expected
    assert sorted(trace.gates()["row"]) == [*range(len(PROMPTS))]  # each is asked once


def test_a_choice_belongs_to_the_cache_of_its_prompt_however_answers_take_turns(
    tiny_llama: TransformerBridge, oracles: dict[str, HuggingFaceOracle], fitted: Fitted
) -> None:
    calibration = fitted("llama")
    sites, chosen, _ = by_hand(oracles["llama"], calibration, k=2)
    other = next(i for i, own in enumerate(chosen) if own != chosen[0])
    pair = [PROMPTS[0], PROMPTS[other]]
    with steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites):
        alone = [
            [grown.text for grown in ss_lens.stream(tiny_llama, one, max_new_tokens=LENGTH)]
            for one in pair
        ]
        together = streamed_in_turns(tiny_llama, pair)
    assert together == alone


# --- What cannot act together --------------------------------------------------------------------


def test_passes_that_cannot_be_read_whole_and_alone_are_refused(
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
    tiny_data: ss_lens.ContrastiveDataset,
) -> None:
    calibration = fitted("llama")
    sites, _, _ = by_hand(oracles["llama"], calibration, k=2)
    ids = torch.tensor([[1, 9, 40, 6]])
    before = hooks_on(tiny_llama)
    with torch.inference_mode():
        _, cache = forward.run(tiny_llama, ids, torch.ones_like(ids), keep_cache=True)
        message = r"the prompts that this pass continues \(1 rows\) were not read"
        with (
            pytest.raises(UserError, match=message),
            steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites),
        ):
            forward.run(tiny_llama, ids[:, :1], ids.new_ones(1, 5), cache, keep_cache=True)
        message = "this pass holds the end of 0 of 1 prompts, and the sites .*Run them so"
        with (
            pytest.raises(UserError, match=message),
            steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites),
        ):
            forward.compute_prefix(tiny_llama, (1, 9, 40))
    message = r"hooks beside those of steer\(..., sites=...\) act .* expected none"
    with (
        pytest.raises(UserError, match=message),
        steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites),
    ):
        sweep_angles(tiny_llama, calibration, RotateBy, PROMPTS[:1], [40.0], max_new_tokens=1)
    with (
        pytest.raises(UserError, match=message),
        steer(tiny_llama, calibration, RotateBy(20)),
        steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites),
    ):
        generate(tiny_llama, PROMPTS[:1], max_new_tokens=1)
    assert hooks_on(tiny_llama) == before


def test_no_hook_is_left_behind(
    tiny_llama: TransformerBridge, oracles: dict[str, HuggingFaceOracle], fitted: Fitted
) -> None:
    before, calibration = hooks_on(tiny_llama), fitted("llama")
    sites, _, _ = by_hand(oracles["llama"], calibration, k=2)

    def fail_with(error: BaseException) -> None:
        with steer(tiny_llama, calibration, RotateBy(ANGLE), sites=sites):
            assert hooks_on(tiny_llama) > before
            generate(tiny_llama, PROMPTS[:2], max_new_tokens=2)
            raise error

    for error in (RuntimeError("in the body"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail_with(error)
        assert hooks_on(tiny_llama) == before
    with steer(tiny_llama, calibration, RotateBy(0), sites=sites):
        assert hooks_on(tiny_llama) == before


# --- The prior -----------------------------------------------------------------------------------


@pytest.fixture
def parts(tiny_data: ss_lens.ContrastiveDataset) -> DatasetSplit:
    return tiny_data.split(dev=4, test=2, seed=0)


def test_the_prior_is_the_separation_of_dev_prompts_along_b1(
    tiny_llama: TransformerBridge, parts: DatasetSplit
) -> None:
    rule = ss_lens.Explicit(sites="L0.ln2_out,L1.ln1_out,L1.ln2_out,L2.ln2_out")
    calibration = ss_lens.calibrate(ss_lens.capture(tiny_llama, parts.train), rule=rule)
    dev = ss_lens.capture(tiny_llama, parts.dev)
    sites = PromptSites.from_dev(calibration, dev, k=2)
    assert "2 of 4 sites" in repr(sites)
    assert "4 + 4 dev prompts" in repr(sites)
    for place, site in enumerate(calibration.selected_sites):
        p, n = ((h @ calibration.plane.b1).double().numpy() for h in dev.at(site))
        pooled = np.sqrt((p.var(ddof=1) + n.var(ddof=1)) / 2)
        assert float(sites.spread[place]) == pytest.approx(pooled, rel=1e-4)
        assert float(sites.midpoint[place]) == pytest.approx((p.mean() + n.mean()) / 2, abs=1e-5)
        expected = (p.mean() - n.mean()) / pooled
        assert float(sites.separation[place]) == pytest.approx(expected, rel=1e-3)
    largest = sites.separation.abs().argsort(descending=True)[:2].sort().values
    assert sites.by_prior == tuple(calibration.selected_sites[i] for i in largest)


def test_a_weight_is_the_log_likelihood_ratio_of_two_normal_classes() -> None:
    site, direction = (Site(1, "ln1_out"),), torch.eye(3)[0]
    mean_p, mean_n, spread = 1.7, -0.4, 0.8
    numbers = [torch.tensor([v]) for v in ((mean_p - mean_n) / spread, 0.65, spread)]
    sites = PromptSites(1, site, direction, *numbers)
    for x in (-2.0, 0.1, 0.65, 3.0):
        ratio = ((x - mean_n) ** 2 - (x - mean_p) ** 2) / (2 * spread**2)
        got = sites.weights(torch.tensor([[[x, 5.0, -5.0]]]))
        assert float(got) == pytest.approx(abs(ratio), abs=1e-5)


def test_of_equal_weights_the_earlier_site_wins() -> None:
    sites = tuple(Site(layer, "ln1_out") for layer in range(3))
    one = PromptSites(2, sites, torch.eye(4)[0], *(torch.ones(3) for _ in range(3)))
    assert one.chosen(torch.ones(2, 3)).tolist() == [[True, True, False]] * 2
    assert one.by_prior == sites[:2]


def test_bad_per_prompt_sites_are_refused_in_one_line(
    tiny_models: dict[str, TransformerBridge],
    parts: DatasetSplit,
    fitted: Fitted,
    unchecked_types: None,
) -> None:
    model = tiny_models["llama"]
    rule = ss_lens.Explicit(sites="L0.ln2_out,L1.ln1_out,L2.ln2_out")
    train, dev = (ss_lens.capture(model, part) for part in (parts.train, parts.dev))
    calibration = ss_lens.calibrate(train, rule=rule)
    everywhere_ = ss_lens.calibrate(train, rule="uniform")
    other = ss_lens.capture(tiny_models["gemma3"], parts.dev)
    mean = ss_lens.capture(model, parts.dev, position="mean")
    few = ss_lens.capture(model, parts.dev.head(1))
    for given, k, message in (
        ((calibration, None), 2, "dev must be activations of held-out prompts.*got None"),
        ((calibration, train), 2, "12 of the 12 dev prompts are those .*fitted on"),
        ((calibration, other), 2, "dev activations are of .*with other weights"),
        ((calibration, mean), 2, "position 'mean', and the choice of sites reads the last"),
        ((calibration, few), 2, "2 dev prompts have no spread .* expected at least 3"),
        ((calibration, dev), 0, "k must be a whole number from 1 on; got 0"),
        ((calibration, dev), 4, "k=4 sites per prompt .* there are 3 .*expected at most 3"),
        ((everywhere_, dev), 2, "projections do not vary at L0.ln1_out"),
    ):
        with pytest.raises(UserError, match=message):
            PromptSites.from_dev(*given, k=k)
    made = PromptSites.from_dev(calibration, dev, k=2)
    with pytest.raises(UserError, match=r"must be a unit vector; got shape \(32,\) and length 2"):
        replace(made, direction=2 * made.direction)
    with pytest.raises(UserError, match=r"midpoint must hold one finite number for each of 3"):
        replace(made, midpoint=made.midpoint[:2])
    with pytest.raises(UserError, match=r"separation must hold .* with 1 not finite"):
        replace(made, separation=torch.tensor([1.0, torch.nan, 1.0]))
    wide = fitted("llama")
    for used, operator, given, message in (
        (wide, RotateBy(9), made, "sites to choose from are 3 .*expected the same"),
        (calibration, RotateBy(9), "two", "sites must be per-prompt sites from .*got 'two'"),
        (calibration, ActAdd(), made, "ActAdd acts at one site of the calibration"),
        (
            *(calibration, RotateBy(9)),
            replace(made, fit=replace(made.fit, model=other.spec.model)),
            "per-prompt sites were fitted on .* expected one model",
        ),
    ):
        with pytest.raises(UserError, match=message):
            steer(model, used, operator, sites=given)
