"""What a site does alone and in company equals hooks set by hand; the identity does nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

import ss_lens
from analyses import style
from analyses.site_effects import figures, findings, measures
from analyses.site_effects.conditions import ALL, KINDS, LEFT_OUT, ONLY, RANDOM
from analyses.site_effects.measures import at_sites, in_random_plane, measure
from ss_lens import Calibration, ContrastiveDataset, Plane, RotateBy, Site, UserError
from ss_lens.models.chat import tokenize
from ss_lens.scoring.refusal_score import opening_tokens
from tests.analyses.steered import at_layers


@pytest.fixture
def model(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    """The model whose tokenizer tells refusal openings apart."""
    return tiny_models["qwen2"]


@pytest.fixture
def calibration(model: TransformerBridge, tiny_data: ContrastiveDataset) -> Calibration:
    whole = ss_lens.calibrate(ss_lens.capture(model, tiny_data), rule="uniform")
    return at_layers(whole, [1, 2])


@pytest.fixture
def few(tiny_data: ContrastiveDataset) -> ContrastiveDataset:
    return tiny_data.head(3)


def effects(table: pd.DataFrame, kind: str, label: str = "positive") -> dict[str, float]:
    rows = table.query("kind == @kind and prompt_class == @label")
    return dict(zip(rows["site"], rows["effect"], strict=True))


@contextmanager
def dense(model: nn.Module, sites: list[Site], plane: Plane, angle_deg: float) -> Iterator[None]:
    """Plain hooks that multiply by the whole d × d rotation."""
    b1, b2, turn = plane.b1.double(), plane.b2.double(), np.deg2rad(angle_deg)
    inside = torch.outer(b1, b1) + torch.outer(b2, b2)
    across = torch.outer(b2, b1) - torch.outer(b1, b2)
    matrix = torch.eye(len(b1)).double() + (np.cos(turn) - 1) * inside + np.sin(turn) * across

    def rotate(module: nn.Module, given: object, h: Tensor) -> Tensor:
        return (h.double() @ matrix.T).to(h.dtype)

    norms = {"ln1_out": "input_layernorm", "ln2_out": "post_attention_layernorm"}
    handles = [
        getattr(model.model.layers[site.layer], norms[site.stream]).register_forward_hook(rotate)  # type: ignore[union-attr,index]
        for site in sites
    ]
    yield
    for handle in handles:
        handle.remove()


def test_effects_equal_dense_rotations_in_plain_hugging_face(
    model: TransformerBridge,
    calibration: Calibration,
    few: ContrastiveDataset,
    tiny_folders: dict[str, Path],
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_folders["qwen2"]).eval()
    openings = opening_tokens(model)

    def mean_score(sites: list[Site]) -> float:
        scores = []
        with dense(plain, sites, calibration.plane, 130), torch.inference_mode():
            for ids in tokenize(model, few.positive):
                logp = plain(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
                refuse, comply = (logp[list(side)].logsumexp(0) for side in openings)
                scores.append(float(refuse - comply))
        return float(np.mean(scores))

    table = measure(model, calibration, RotateBy(130), few, draws=0, n_resamples=20)
    sites = [*calibration.selected_sites]
    none, every = mean_score([]), mean_score(sites)
    assert effects(table, ALL)[""] == pytest.approx(every - none, abs=1e-3)
    assert abs(every - none) > 0.05
    for site in sites:
        rest = mean_score([other for other in sites if other != site])
        assert effects(table, ONLY)[str(site)] == pytest.approx(mean_score([site]) - none, abs=1e-3)
        assert effects(table, LEFT_OUT)[str(site)] == pytest.approx(every - rest, abs=1e-3)


def test_the_identity_has_effects_of_exactly_zero(
    model: TransformerBridge, calibration: Calibration, few: ContrastiveDataset
) -> None:
    table = measure(model, calibration, RotateBy(0), few, draws=1, n_resamples=20)
    assert {*table["kind"]} == {*KINDS}
    assert (table["effect"] == 0).all()
    assert (table[["low", "high"]] == 0).all().all()


def test_a_single_site_alone_is_the_whole_effect_and_what_it_adds(
    model: TransformerBridge, calibration: Calibration, few: ContrastiveDataset
) -> None:
    one = at_sites(calibration, [Site(1, "ln2_out")])
    table = measure(model, one, RotateBy(90), few, draws=0, n_resamples=20)
    whole = effects(table, ALL)[""]
    assert whole != 0
    assert effects(table, ONLY) == effects(table, LEFT_OUT) == {"L1.ln2_out": whole}


def test_a_plane_that_no_activation_reaches_does_nothing(
    model: TransformerBridge, calibration: Calibration, tiny_data: ContrastiveDataset
) -> None:
    """Of what the last norm passes on, the last token alone reaches the prediction."""
    site, data = Site(2, "ln2_out"), tiny_data.head(1)
    seen: list[Tensor] = []
    point = model.hook_dict[site.hook_name]
    with model.hooks(fwd_hooks=[(point.name, lambda h, hook: seen.append(h[0, -1:].double()))]):
        for ids in tokenize(model, [*data.positive, *data.negative]):
            model(torch.tensor([ids]))
    rows = torch.linalg.svd(torch.cat(seen), full_matrices=True).Vh
    outside = replace(
        at_sites(calibration, [site]), plane=Plane.from_span(rows[-1].float(), rows[-2].float())
    )
    table = measure(model, outside, RotateBy(120), data, draws=0, n_resamples=20)
    assert table["effect"].abs().max() < 1e-3
    inside = measure(
        model, at_sites(calibration, [site]), RotateBy(120), data, draws=0, n_resamples=20
    )
    assert inside["effect"].abs().max() > 1e-2


def test_random_planes_differ_between_sites_and_draws_and_repeat(calibration: Calibration) -> None:
    sites = [at_sites(calibration, [site]) for site in calibration.selected_sites[:2]]
    planes = [in_random_plane(one, 0, draw).plane for one in sites for draw in (0, 1)]
    for i, first in enumerate(planes):
        for second in planes[:i]:
            assert not torch.equal(first.b1, second.b1)
    again = in_random_plane(sites[0], 0, 0).plane
    assert torch.equal(again.basis, planes[0].basis)
    assert not torch.equal(in_random_plane(sites[0], 1, 0).plane.b1, again.b1)


def test_a_calibration_at_other_sites_keeps_all_but_its_selection(calibration: Calibration) -> None:
    one = at_sites(calibration, [calibration.sites[-1]])
    assert one.selected_sites == (calibration.sites[-1],)
    assert one.plane is calibration.plane
    assert one.spec is calibration.spec
    assert repr(one.rule) == f"Explicit(sites='{calibration.sites[-1]}')"


def test_the_order_of_rows_and_their_numbers(
    model: TransformerBridge, calibration: Calibration, few: ContrastiveDataset
) -> None:
    table = measure(model, calibration, RotateBy(90), few, draws=2, n_resamples=20)
    n_sites = len(calibration.selected_sites)
    counts = table[table["prompt_class"] == "negative"]["kind"].value_counts()
    assert counts.to_dict() == {ALL: 1, ONLY: n_sites, LEFT_OUT: n_sites, RANDOM: 2 * n_sites}
    assert (table["n"] == 3).all()
    assert (table["low"] <= table["high"]).all()
    assert table["layer"].isna().sum() == 2
    unsteered = {
        round(row["refusal_score"] - row["effect"], 9)
        for row in table.query("kind == @ONLY and prompt_class == 'positive'").to_dict("records")
    }
    assert len(unsteered) == 1


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (ss_lens.ActAdd(1.0), "an operator that acts at any site with one strength; got ActAdd"),
        (RotateBy((0, 90)), r"got RotateBy\(angle_deg=\(0.0, 90.0\)\). Use RotateBy"),
        ("RotateBy", "operator must be an operator such as"),
    ],
)
def test_an_operator_that_cannot_act_at_each_site_is_refused(
    model: TransformerBridge,
    calibration: Calibration,
    few: ContrastiveDataset,
    operator: object,
    message: str,
    unchecked_types: None,
) -> None:
    with pytest.raises(UserError, match=message):
        measure(model, calibration, operator, few)  # type: ignore[arg-type]


def made_up(draws: int = 2) -> pd.DataFrame:
    rows = []
    sites = [f"L{layer}.{stream}" for layer in range(4) for stream in ("ln1_out", "ln2_out")]
    for label, sign in (("positive", -1.0), ("negative", 0.1)):
        rows.append((ALL, "", 0, label, 6 * sign))
        for place, site in enumerate(sites):
            rows += [(ONLY, site, 0, label, sign * place), (LEFT_OUT, site, 0, label, sign * 0.5)]
            rows += [(RANDOM, site, draw, label, 0.01 * draw) for draw in range(draws)]
    table = pd.DataFrame(rows, columns=["kind", "site", "draw", "prompt_class", "effect"])
    sites_of_rows = table["site"].where(table["site"] != "", "L0.ln1_out").map(Site.parse)
    return table.assign(
        **{"layer": [s.layer for s in sites_of_rows], "stream": [s.stream for s in sites_of_rows]},
        **{"low": table["effect"] - 0.2, "high": table["effect"] + 0.3},
        **{"refusal_score": 0.0, "opening_mass": 0.9, "n": 5},
    )


def test_findings_say_the_whole_the_sum_the_largest_and_the_control() -> None:
    said = findings(made_up())
    assert len(said) == 6
    assert said[0].startswith(
        "On 5 positive prompts all 8 sites change the score by -6.00 nats [-6.20, -5.70]; alone, "
        "they change it by -28.00 in sum, most of all L3.ln2_out -7.00, L3.ln1_out -6.00, "
        "L2.ln2_out -5.00."
    )
    assert said[1] == "Each adds to the others between -0.50 and -0.50 nats, -4.00 in sum."
    assert "by +0.00 to +0.01 (16 of them); 7 of 8 sites lie outside" in said[2]
    assert len(findings(made_up(draws=0))) == 4
    one = findings(made_up().assign(n=1, low=math.nan, high=math.nan))
    assert one[0].startswith(
        "On 1 positive prompt all 8 sites change the score by -6.00 nats; alone, they"
    )


def test_the_figure_draws_every_effect_on_axes_that_are_symmetric_about_zero() -> None:
    table = made_up()
    drawn = figures.figure(table, "here")
    values = [trace for trace in drawn.data if trace.meta != style.EXPLAINS]
    shown = sum(len(trace.x) for trace in values)
    assert shown == len(table) - 2  # all sites together stand in the legend
    named = [trace.name for trace in drawn.data if trace.showlegend is not False]
    assert named == [
        "random planes",
        "positive prompts (all sites: −6.00 nats)",
        "negative prompts (all sites: +0.60 nats)",
        "95 % interval over prompts",
        "the interval includes 0",
    ]
    for axis in (drawn.layout.yaxis, drawn.layout.yaxis2):
        assert axis.range[0] == -axis.range[1] < 0
    alone, added = (t for t in values if t.name.startswith("positive"))
    assert alone.marker.symbol[:2] == ("circle-open", "circle")  # 0 and −1 nats
    assert {*added.marker.symbol} == {"circle"}
    x = alone.x
    assert all(a < b for a, b in pairwise(x))
    assert not [t for t in figures.figure(made_up(0)).data if t.name == "random planes"]


def test_progress_counts_the_conditions(
    model: TransformerBridge,
    calibration: Calibration,
    few: ContrastiveDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    totals: list[tuple[int, int]] = []

    class Bar:
        done = 0

        def __init__(self, total: int, what: str, unit: str) -> None:
            self.total = total

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            totals.append((self.total, self.done))

        def update(self) -> None:
            self.done += 1

    monkeypatch.setattr(measures, "progress_bar", Bar)
    measure(model, at_layers(calibration, [2]), RotateBy(90), few, draws=1, n_resamples=20)
    assert totals == [(8, 8)]
