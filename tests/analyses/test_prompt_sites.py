"""Sites chosen by prompt against fixed ones, prompt by prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.prompt_sites import figure, findings, measure
from analyses.site_effects.measures import at_sites
from ss_lens import Calibration, ContrastiveDataset, PromptSites, RotateBy, Trace, UserError, steer
from ss_lens.scoring.divergence import kl_divergence
from ss_lens.scoring.refusal_score import refusal_score

OPERATOR = RotateBy(130)
PAIRED = ("difference", "kl_difference")


@pytest.fixture
def model(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    """The model whose tokenizer tells refusal openings apart."""
    return tiny_models["qwen2"]


@pytest.fixture
def calibration(model: TransformerBridge, tiny_data: ContrastiveDataset) -> Calibration:
    acts = ss_lens.capture(model, tiny_data.split(dev=6, test=4, seed=0).train)
    rule = ss_lens.Explicit(sites="L0.ln2_out,L1.ln1_out,L1.ln2_out,L2.ln1_out,L2.ln2_out")
    return ss_lens.calibrate(acts, rule=rule)


@pytest.fixture
def sites(
    model: TransformerBridge, calibration: Calibration, tiny_data: ContrastiveDataset
) -> PromptSites:
    dev = ss_lens.capture(model, tiny_data.split(dev=6, test=4, seed=0).dev)
    return PromptSites.from_dev(calibration, dev, k=2)


@pytest.fixture
def sources(tiny_data: ContrastiveDataset) -> dict[str, tuple[str, ...]]:
    test = tiny_data.split(dev=6, test=4, seed=0).test
    return {"first": test.positive[:4], "second": test.negative[:3]}


def test_each_way_is_measured_as_steering_alone_says(
    model: TransformerBridge,
    calibration: Calibration,
    sites: PromptSites,
    sources: dict[str, tuple[str, ...]],
) -> None:
    table = measure(model, calibration, OPERATOR, sites, sources, max_new_tokens=5)
    found = table.set_index(["source", "condition"])
    assert found.xs("per prompt", level="condition")["n_sites"].eq(2).all()
    for name, some in sources.items():
        plain = refusal_score(model, some)["refusal_score"].to_numpy()
        texts = ss_lens.generate(model, some, max_new_tokens=5)
        trace = Trace()
        with steer(model, calibration, OPERATOR, sites=sites, trace=trace):
            refusal_score(model, some)
        steered = trace.sites().query("is_steered")
        own = {int(row): [*rows["site"]] for row, rows in steered.groupby("row")}
        fixed = at_sites(calibration, sites.by_prior)
        scores, costs = {}, {}
        for way in ("all sites", "fixed", "per prompt"):
            scores[way], costs[way] = [], []
            for row, (prompt, text) in enumerate(zip(some, texts, strict=True)):
                chosen = at_sites(calibration, [ss_lens.Site.parse(site) for site in own[row]])
                used = {"all sites": calibration, "fixed": fixed, "per prompt": chosen}[way]
                with steer(model, used, OPERATOR):
                    scores[way] += refusal_score(model, [prompt])["refusal_score"].tolist()
                kl = kl_divergence(model, used, OPERATOR, [prompt], [text])["kl_mean"]
                costs[way] += kl.tolist()
            row = found.loc[(name, way)]
            assert row["refusal_score"] == pytest.approx(np.mean(scores[way]), abs=1e-4)
            assert row["change"] == pytest.approx(np.mean(scores[way] - plain), abs=1e-4)
            assert row["kl"] == pytest.approx(np.nanmean(costs[way]), rel=1e-3, abs=1e-5)
        row = found.loc[(name, "per prompt")]
        difference = np.subtract(scores["per prompt"], scores["fixed"])
        assert row["difference"] == pytest.approx(difference.mean(), abs=1e-4)
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        both = {str(site) for site in sites.by_prior}
        assert row["shared"] == pytest.approx(np.mean([s in both for o in own.values() for s in o]))
        assert row["n"] == len(some)
        assert (found.loc[(name, "fixed")][[*PAIRED]] == 0).all()


def test_with_every_site_all_three_ways_are_one(
    model: TransformerBridge,
    calibration: Calibration,
    sites: PromptSites,
    sources: dict[str, tuple[str, ...]],
) -> None:
    every = replace(sites, k=len(sites.sites))
    table = measure(model, calibration, OPERATOR, every, sources)
    found = table.set_index(["source", "condition"])
    for name in sources:
        ways = found.loc[[(name, way) for way in ("all sites", "fixed", "per prompt")]]
        assert ways["change"].max() - ways["change"].min() == pytest.approx(0, abs=1e-4)
        assert found.loc[(name, "per prompt"), "shared"] == 1


def test_findings_and_figure_name_each_source_and_its_difference(
    model: TransformerBridge,
    calibration: Calibration,
    sites: PromptSites,
    sources: dict[str, tuple[str, ...]],
) -> None:
    table = measure(model, calibration, OPERATOR, sites, sources)
    said = findings(table)
    assert [text.split(" (")[0] for text in said] == ["first", "second"]
    row = table.set_index(["source", "condition"]).loc[("first", "per prompt")]
    assert f"a difference of {row['difference']:+.2f} [" in said[0]
    assert "at 2 sites the score changes by" in said[0]
    assert "All 5 sites change the score by" in said[0]
    apart = row["difference_low"] > 0 or row["difference_high"] < 0
    assert ("not told from zero" in said[0]) == (not apart)
    drawn = figure(table, "a model")
    names = {trace.name for trace in drawn.data}
    assert names >= {"all sites (5)", "fixed (2)", "per prompt (2)", "95 % interval"}
    assert any("per prompt − fixed" in str(label) for label in drawn.layout.yaxis.ticktext)


def test_bad_comparisons_of_sites_are_refused_in_one_line(
    model: TransformerBridge, calibration: Calibration, sites: PromptSites, unchecked_types: None
) -> None:
    for wrong in ({}, {"none": ()}):
        with pytest.raises(UserError, match="prompts of one source or more, none of them empty"):
            measure(model, calibration, OPERATOR, sites, wrong)
    with pytest.raises(UserError, match="holds 2 strengths, one per batch row"):
        measure(model, calibration, RotateBy((1.0, 2.0)), sites, {"a": ("w",)})
    with pytest.raises(UserError, match=r"sites must be sites from ss_lens\.PromptSites\.from_dev"):
        measure(model, calibration, OPERATOR, "two", {"a": ("w",)})
    bent = replace(sites, sites=sites.sites[:3], k=1, **_first_three(sites))
    with pytest.raises(UserError, match=r"sites to choose from are 3 .*expected the same"):
        measure(model, calibration, OPERATOR, bent, {"a": ("w9 w70",)})


def _first_three(sites: PromptSites) -> dict[str, torch.Tensor]:
    return {name: getattr(sites, name)[:3] for name in ("separation", "midpoint", "spread")}
