"""Gated against ungated steering, prompt by prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.gating import figure, findings, measure
from analyses.prompt_sources import read_sources, spread
from ss_lens import Calibration, ContrastiveDataset, Gate, RotateBy, UserError, steer
from ss_lens.scoring.divergence import kl_divergence
from ss_lens.scoring.refusal_score import refusal_score

OPERATOR = RotateBy(130)


@pytest.fixture
def model(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    """The model whose tokenizer tells refusal openings apart."""
    return tiny_models["qwen2"]


@pytest.fixture
def calibration(model: TransformerBridge, tiny_data: ContrastiveDataset) -> Calibration:
    acts = ss_lens.capture(model, tiny_data)
    return ss_lens.calibrate(acts, rule=ss_lens.Explicit(sites="L1.ln1_out,L2.ln2_out"))


@pytest.fixture
def sources(tiny_data: ContrastiveDataset) -> dict[str, tuple[str, ...]]:
    return {"first": tiny_data.positive[:4], "second": tiny_data.negative[:3]}


def gate_at(calibration: Calibration, threshold: float) -> Gate:
    site = calibration.selected_sites[0]
    return Gate(site, calibration.directions[calibration.sites.index(site)], threshold)


def test_a_closed_gate_changes_nothing_and_an_open_one_as_much_as_none(
    model: TransformerBridge, calibration: Calibration, sources: dict[str, tuple[str, ...]]
) -> None:
    columns = ["source", "refusal_score", "opening_mass", "change", "kl", "low", "kl_high"]
    for threshold, like, share in ((torch.inf, "unsteered", 0.0), (-torch.inf, "ungated", 1.0)):
        table = measure(model, calibration, OPERATOR, gate_at(calibration, threshold), sources)
        gated, other = (
            table[table["condition"] == condition][columns].reset_index(drop=True)
            for condition in ("gated", like)
        )
        pd.testing.assert_frame_equal(gated, other)
        assert (table[table["condition"] == "gated"]["steered"] == share).all()
    ungated = table[table["condition"] == "ungated"]
    assert (ungated["kl"] > 1e-4).all()
    assert (ungated["change"].abs() > 1e-4).all()


def test_what_a_gate_leaves_is_what_steering_does_to_the_prompts_that_open_it(
    model: TransformerBridge, calibration: Calibration, sources: dict[str, tuple[str, ...]]
) -> None:
    prompts = [prompt for group in sources.values() for prompt in group]
    site = calibration.selected_sites[0]
    acts = ss_lens.capture(model, ContrastiveDataset("all", tuple(prompts), ("w",)))
    found = acts.at(site)[0] @ calibration.directions[calibration.sites.index(site)]
    low, high = found.sort().values[2:4].tolist()
    opened = (found > (low + high) / 2).numpy()
    gate = gate_at(calibration, (low + high) / 2)
    table = measure(model, calibration, OPERATOR, gate, sources, max_new_tokens=5)
    plain = refusal_score(model, prompts)["refusal_score"].to_numpy()
    with steer(model, calibration, OPERATOR):
        steered = refusal_score(model, prompts)["refusal_score"].to_numpy()
    answers = ss_lens.generate(model, prompts, max_new_tokens=5)
    with steer(model, calibration, OPERATOR, when=gate):
        assert ss_lens.generate(model, prompts, max_new_tokens=5) != answers
    kl = kl_divergence(model, calibration, OPERATOR, prompts, answers)["kl_mean"].to_numpy()
    of = np.repeat([*sources], [len(group) for group in sources.values()])
    for name in sources:
        row = table[(table["source"] == name) & (table["condition"] == "gated")].iloc[0]
        here = of == name
        change = np.where(opened, steered - plain, 0.0)[here]
        assert row["steered"] == pytest.approx(opened[here].mean())
        assert row["change"] == pytest.approx(change.mean(), abs=1e-4)
        assert row["kl"] == pytest.approx(np.nanmean(np.where(opened, kl, 0.0)[here]), abs=1e-5)
        assert row["n"] == here.sum()


def test_findings_and_figure_name_each_source_and_its_share(
    model: TransformerBridge, calibration: Calibration, sources: dict[str, tuple[str, ...]]
) -> None:
    table = measure(model, calibration, OPERATOR, gate_at(calibration, torch.inf), sources)
    said = findings(table)
    assert [text.split(" (")[0] for text in said] == ["first", "second"]
    assert "the gate opens for 0% [0%, 49%]" in said[0]
    assert "changes by +0.00 [+0.00, +0.00] nats gated" in said[0]
    assert ("the score says little there" in said[0]) == (table["opening_mass"].min() < 0.5)
    drawn = figure(table, "a model")
    assert {trace.name for trace in drawn.data} >= {"ungated", "gated"}
    assert "first<br>(open: 0%)" in drawn.layout.yaxis.ticktext
    apart = {trace.name: {*trace.y} for trace in drawn.data}
    assert not apart["ungated"] & apart["gated"]  # the two stand beside each other


def test_bad_sources_are_refused_in_one_line(
    model: TransformerBridge, calibration: Calibration, tmp_path: Path
) -> None:
    gate = gate_at(calibration, 0.0)
    for wrong in ({}, {"none": ()}):
        with pytest.raises(UserError, match="prompts of one source or more, none of them empty"):
            measure(model, calibration, OPERATOR, gate, wrong)
    with pytest.raises(UserError, match="holds 2 strengths, one per batch row"):
        measure(model, calibration, replace(OPERATOR, angle_deg=(1.0, 2.0)), gate, {"a": ("w",)})
    path = tmp_path / "some.csv"
    path.write_text("prompt,label\nfirst,safe\nsecond,unsafe\nthird,safe\n")
    assert read_sources([f"a={path}:label=safe"]) == {"a": ("first", "third")}
    assert read_sources([f"a={path}"], most=2) == {"a": ("first", "second")}
    assert spread([*"abcdef"], 3) == ["a", "c", "e"]
    lines = tmp_path / "some.txt"
    lines.write_text("one\n\ntwo\n")
    assert read_sources([f"b={lines}"]) == {"b": ("one", "two")}
    for given, message in (
        (["a"], "is written NAME=FILE or NAME=FILE:COLUMN=VALUE; got 'a'"),
        ([f"a={path}:label"], "is written NAME=FILE"),
        ([f"a={path}", f"a={path}"], "the source 'a' is given twice"),
        ([f"a={path}:label=odd"], "holds no such prompt"),
        ([f"a={path}:kind=odd"], "has no column 'kind'; it has prompt, label"),
        ([f"b={lines}:kind=odd"], "is plain text and has no column"),
        (["a=some.yaml"], "prompts are read from .* files; got 'some.yaml'"),
    ):
        with pytest.raises(UserError, match=message):
            read_sources(given)
