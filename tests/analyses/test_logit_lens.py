"""The logit lens ends in the model's own prediction, and steering shows from its first site on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_lens as theirs
from transformers import AutoModelForCausalLM

import ss_lens
from analyses import style
from analyses.logit_lens import figures, measures
from analyses.logit_lens.measures import log_probabilities, measure, opening_scores
from analyses.reading import last_tokens
from ss_lens import Calibration, ContrastiveDataset, RotateBy, Site, Store, UserError, steer
from ss_lens.models.chat import tokenize
from ss_lens.scoring.refusal_score import refusal_score
from tests.analyses.steered import at_layers
from tests.conftest import ARCHITECTURES


@pytest.fixture
def model(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    """The model whose tokenizer tells refusal openings apart."""
    return tiny_models["qwen2"]


@pytest.fixture
def calibration(model: TransformerBridge, tiny_data: ContrastiveDataset) -> Calibration:
    return ss_lens.calibrate(ss_lens.capture(model, tiny_data), rule="uniform")


@pytest.fixture
def few(tiny_data: ContrastiveDataset) -> ContrastiveDataset:
    return tiny_data.head(3)


def streams(n_layers: int = 3) -> tuple[Site, ...]:
    return (Site(0, "resid_pre"), *(Site(i, "resid_post") for i in range(n_layers)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_is_the_models_own_prediction(
    architecture: str, tiny_models: dict[str, TransformerBridge], tiny_data: ContrastiveDataset
) -> None:
    """Gemma's soft cap and GPT-2's bias included."""
    model, prompts = (
        tiny_models[architecture],
        tokenize(tiny_models[architecture], tiny_data.positive[:3]),
    )
    h = last_tokens(model, prompts, streams(), 2, lambda _: None)
    found = log_probabilities(model, h[:, -1])
    for row, ids in zip(found, prompts, strict=True):
        with torch.inference_mode():
            own = model(torch.tensor([ids]), return_type="logits")[0, -1]
        torch.testing.assert_close(row, own.float().log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_every_layer_equals_plain_hugging_face_and_transformerlens_lens(
    model: TransformerBridge, tiny_folders: dict[str, Path], few: ContrastiveDataset
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_folders["qwen2"]).eval()
    for ids in tokenize(model, few.positive):
        h = last_tokens(model, [ids], streams(), 1, lambda _: None)[0]
        with torch.inference_mode():
            hidden = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
            # the last of these has passed the final norm already
            own = [plain.lm_head(plain.model.norm(state[0, -1])) for state in hidden[:-1]]
            own.append(plain.lm_head(hidden[-1][0, -1]))
        expected = torch.stack(own).log_softmax(-1)
        torch.testing.assert_close(log_probabilities(model, h), expected, rtol=1e-4, atol=1e-4)
        lens = theirs(model, torch.tensor([ids]), return_type="log_probs", vocab=range(264))
        assert len(lens.labels) == 4
        torch.testing.assert_close(
            lens.values.reshape(4, -1, 264)[:, -1].cpu(), expected, rtol=1e-4, atol=1e-4
        )


def test_the_score_of_the_last_layer_is_the_refusal_score_steered_and_unsteered(
    model: TransformerBridge, calibration: Calibration, few: ContrastiveDataset
) -> None:
    table = measure(model, calibration, few, (75,), n_resamples=20)
    last = table[table["layer"] == 2].set_index(["prompt_class", "angle_deg"])
    for label in ("positive", "negative"):
        own = refusal_score(model, getattr(few, label)).mean()
        with steer(model, calibration, RotateBy(75)):
            turned = refusal_score(model, getattr(few, label)).mean()
        for angle, expected in ((math.nan, own), (75.0, turned)):
            row = last.loc[label][np.isnan(last.loc[label].index) == np.isnan(angle)].iloc[0]
            for column in ("refusal_score", "opening_mass"):
                assert row[column] == pytest.approx(expected[column], abs=1e-4)


def test_nothing_changes_below_the_first_steered_site_nor_at_the_identity(
    model: TransformerBridge, calibration: Calibration, few: ContrastiveDataset
) -> None:
    late = at_layers(calibration, [1])
    table = measure(model, late, few, (0, 120), n_resamples=20)
    scores = table.assign(angle=table["angle_deg"].fillna(-1)).pivot(
        index=["prompt_class", "layer"], columns="angle", values="refusal_score"
    )
    assert (scores[-1] == scores[0]).all()
    below, above = scores.query("layer < 1"), scores.query("layer >= 1")
    assert (below[-1] == below[120]).all()
    assert (above[-1] != above[120]).all()
    steers = table.drop_duplicates("layer").set_index("layer")["steers"]
    assert steers.to_dict() == {-1: 0, 0: 0, 1: 2, 2: 0}


def test_openings_have_log_odds_in_closed_form() -> None:
    p = torch.tensor([[0.3, 0.2, 0.1, 0.4], [0.05, 0.05, 0.9, 0.0]])
    score, mass = opening_scores(p.log(), ([0, 1], [2]))
    torch.testing.assert_close(score, (p[:, 0] + p[:, 1]).double().div(p[:, 2]).log())
    torch.testing.assert_close(mass, p[:, :3].double().sum(dim=1))
    swapped, _ = opening_scores(p.log(), ([2], [0, 1]))
    torch.testing.assert_close(swapped, -score)


def test_the_likeliest_tokens_are_those_of_the_mean_probability(model: TransformerBridge) -> None:
    p = torch.full((2, 264), 1e-9)
    p[0, 40], p[0, 41], p[1, 42], p[1, 41] = 0.6, 0.4, 0.7, 0.3
    named = measures.likeliest(model, p.log(), top=3)
    assert [named["top_1"], named["top_2"], named["top_3"]] == [
        model.tokenizer.decode([i]) for i in (41, 42, 40)
    ] or named["p_1"] == pytest.approx(named["p_2"])
    assert [named["p_1"], named["p_3"]] == pytest.approx([0.35, 0.3])


def test_the_result_does_not_depend_on_the_batch_size(
    model: TransformerBridge, calibration: Calibration, few: ContrastiveDataset
) -> None:
    one, three = (
        measure(model, calibration, few, (90,), n_resamples=20, batch_size=size) for size in (1, 3)
    )
    columns = ["refusal_score", "opening_mass", "p_1"]
    pd.testing.assert_frame_equal(one[columns], three[columns], rtol=1e-4, atol=1e-5)


def test_one_prompt_has_no_interval_and_is_drawn_without_a_band(
    model: TransformerBridge, calibration: Calibration, tiny_data: ContrastiveDataset
) -> None:
    table = measure(model, calibration, tiny_data.head(1), (90,), n_resamples=20)
    assert table[["low", "high"]].isna().all().all()
    drawn = figures.figure(table)
    assert not [trace for trace in drawn.data if trace.fill == "toself"]


def test_bad_input_is_refused_before_the_model_runs(
    model: TransformerBridge,
    tiny_llama: TransformerBridge,
    calibration: Calibration,
    few: ContrastiveDataset,
    store: Store,
) -> None:
    with pytest.raises(UserError, match="angle 90 is given twice"):
        measure(model, calibration, few, (90, 450))
    with pytest.raises(UserError, match="top must be at least 1; got 0"):
        measure(model, calibration, few, top=0)
    with pytest.raises(UserError, match="the calibration "):
        measure(tiny_llama, calibration, few)
    other = ss_lens.calibrate(ss_lens.capture(tiny_llama, few, store=store), rule="uniform")
    with pytest.raises(UserError, match="does not tell refusal openings from compliance"):
        measure(tiny_llama, other, few)


def lens_table(angles: tuple[float, ...] = (math.nan, 90.0, 180.0)) -> pd.DataFrame:
    rows = [
        {
            "prompt_class": label, "angle_deg": angle, "layer": layer, "steers": int(layer > 3),
            "refusal_score": score, "low": score - 0.5, "high": score + 0.5,
            "opening_mass": 0.1 * (layer + 2), "top_1": "<b>I</b>", "p_1": 0.5, "n": 4,
        }
        for label in ("positive", "negative")
        for i, angle in enumerate(angles)
        for layer in range(-1, 7)
        for score in [(3 - 2 * i) * (layer + 1) / 7]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_each_angle_has_a_curve_in_every_panel_and_one_line_in_the_legend() -> None:
    drawn = figures.figure(lens_table())
    curves = [t for t in drawn.data if t.fill != "toself" and t.meta != style.EXPLAINS]
    assert len(curves) == 3 * 2 * 2
    assert [trace.name for trace in curves if trace.showlegend] == ["unsteered", "90°", "180°"]
    assert len({(trace.line.color, trace.line.dash) for trace in curves}) == 3
    shaded = [shape for shape in drawn.layout.shapes if shape.type == "rect"]
    assert len(shaded) == 3 * 2 * 2  # blocks, panels, classes


def test_tokens_are_coloured_on_one_symmetric_scale_and_shown_as_text() -> None:
    drawn = figures.token_figure(lens_table())
    axis = drawn.layout.coloraxis
    assert axis.cmin == -axis.cmax
    assert axis.cmax == pytest.approx(3.0)
    for trace in drawn.data:
        assert trace.coloraxis == "coloraxis"
        assert np.shape(trace.z) == (8, 3)
        assert {*np.ravel(trace.text)} == {"&lt;b&gt;I&lt;/b&gt;"}
