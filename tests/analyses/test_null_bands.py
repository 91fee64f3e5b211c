"""Bands of random controls hold the middle of their draws, and figures say how many there are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses import ablations, angle_response, null_bands, style
from analyses.null_bands import around, bands, draws_of_paper, told
from analyses.printed import angle_curves, angle_response as printed_response
from ss_lens import ContrastiveDataset, Store, UserError
from ss_lens.experiments.ablations.variants import FULL
from ss_lens.scoring import refusal_score as scoring

KINDS = ("random planes, uniform", "random planes, equal energy")


def draws(angles: tuple[float, ...] = (90.0, 180.0, 270.0), n: int = 99) -> pd.DataFrame:
    rows = [
        (null, draw, angle, 3.0 - place * draw / 98 - angle / 360, 0.9)
        for place, null in enumerate(KINDS, start=1)
        for draw in range(n)
        for angle in angles
    ]
    names = ["null", "draw", "angle_deg", "refusal_score", "opening_mass"]
    return pd.DataFrame(rows, columns=names)


def scan() -> pd.DataFrame:
    rows = [
        (FULL, 0, label, angle, 2.0 - angle / 100, 0.9)
        for label in ("positive", "negative")
        for angle in (0.0, 90.0, 180.0, 270.0)
    ]
    names = ["variant", "draw", "prompt_class", "angle_deg", "refusal_score", "opening_mass"]
    return pd.DataFrame(rows, columns=names)


def test_a_band_reaches_from_the_lowest_fortieth_to_the_highest_of_the_draws() -> None:
    table = draws()
    found = bands(table).set_index(["null", "angle_deg"])
    assert (found["draws"] == 99).all()
    groups = table.groupby(["null", "angle_deg"], sort=False)
    for (_, row), (_, drawn) in zip(found.iterrows(), groups, strict=True):
        own = drawn["refusal_score"]
        assert row["refusal_score"] == pytest.approx(own.mean())
        ends = row["refusal_score_low"], row["refusal_score_high"]
        assert ends == pytest.approx(np.quantile(own, (0.025, 0.975)))
        assert ((own < ends[0]).sum(), (own > ends[1]).sum()) == (3, 3)


def test_draws_without_a_score_do_not_count_in_the_band() -> None:
    table = draws((90.0,))
    table.loc[table["draw"] == 0, "refusal_score"] = np.nan
    assert bands(table)["refusal_score_low"].notna().all()


def test_a_kind_at_one_angle_is_a_short_band_there() -> None:
    found = bands(draws((135.0,)))
    corners = around(found.query("null == @KINDS[0]"))
    assert corners["angle_deg"].tolist() == [130.0, 140.0]
    assert corners["refusal_score_low"].nunique() == 1
    several = around(bands(draws()).query("null == @KINDS[0]"))
    assert several["angle_deg"].tolist() == [90, 180, 270]


def test_draws_of_an_earlier_paper_run_stand_at_the_angle_of_their_rank() -> None:
    table = draws((135.0,))
    ranks = pd.DataFrame({"null": KINDS, "angle_deg": "135"})
    earlier = {"nulls": table.drop(columns="angle_deg"), "null_ranks": ranks}
    found = draws_of_paper(earlier)
    pd.testing.assert_frame_equal(found[table.columns], table)
    pd.testing.assert_frame_equal(draws_of_paper({"nulls": table, "null_ranks": ranks}), table)


def test_the_angle_figures_draw_the_band_and_say_its_number_of_draws() -> None:
    found = bands(draws())
    figure = ablations.polar(scan(), bands=found)
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert {told(null, 99) for null in KINDS} <= {*named}
    assert told(KINDS[0], 99) == "random planes, uniform: 2.5–97.5 % of 99 draws"
    made = [trace for trace in figure.data if trace.meta == style.EXPLAINS]
    assert [trace.fill for trace in made] == ["toself"] * 2
    low, high = figure.layout.polar.radialaxis.range
    for trace in made:
        assert low <= min(trace.r)
        assert max(trace.r) <= high
    flat = style.two_panels()
    null_bands.draw(flat, found, row=1, col=1)
    assert [trace.name for trace in flat.data] == [told(null, 99) for null in KINDS]


def test_the_angle_response_draws_controls_as_a_band_without_a_line() -> None:
    pytest.importorskip("matplotlib")
    own = [("rotate_by", angle, 2.0, 1.5, 2.5, 1) for angle in (0.0, 90.0, 180.0)]
    random = [(KINDS[1], angle, 2.5, 2.0, 3.0, 99) for angle in (0.0, 90.0, 180.0)]
    names = ["way", "angle_deg", "refusal_score", "low", "high", "draws"]
    table = pd.DataFrame([*own, *random], columns=names)
    table = table.assign(prompt_class="positive", opening_mass=0.9, unsteered=2.0, n=24)
    figure = angle_response.figure(table)
    lines = [trace.name for trace in figure.data if trace.mode == "lines+markers"]
    assert lines == ["rotate_by"]
    assert told(KINDS[1], 99) in [trace.name for trace in figure.data if trace.showlegend]
    printed = printed_response.figure(table)
    texts = [text.get_text() for legend in printed.legends for text in legend.get_texts()]
    assert any("2.5–97.5 % of 99 draws" in text.replace("\n", " ") for text in texts)


def test_random_planes_are_measured_at_every_angle(
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "REFUSAL_OPENINGS", ("w20", "w21"))
    monkeypatch.setattr(scoring, "COMPLIANCE_OPENINGS", ("w30", "w31"))
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    nulls = angle_response.random_ways(acts, 2)
    assert [*nulls] == [*KINDS]
    ways = {"rotate_by": nulls[KINDS[0]][0]}
    few = tiny_data.head(2)
    table = angle_response.measure(tiny_llama, ways, few, [0, 90], nulls=nulls, n_resamples=20)
    rows = table.set_index(["way", "prompt_class", "angle_deg"]).sort_index()
    assert (rows.loc[KINDS[0], "draws"] == 2).all()
    means = []
    for calibration, operator in nulls[KINDS[1]]:
        with ss_lens.steer(tiny_llama, calibration, operator(90)):
            found = scoring.refusal_score(tiny_llama, few.negative)["refusal_score"]
            means.append(found.mean())
    row = rows.loc[(KINDS[1], "negative", 90.0)]
    assert row["refusal_score"] == pytest.approx(np.mean(means), abs=1e-3)
    assert (row["low"], row["high"]) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=1e-3)
    for wrong in (1, -2):
        with pytest.raises(UserError, match=r"--draws must be 0, or 2 and more .*Write 99"):
            angle_response.main(draws=wrong)


def test_the_printed_curves_draw_it_too() -> None:
    pytest.importorskip("matplotlib")
    found = bands(draws())
    figure = angle_curves.figure(scan(), FULL, found)
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert any("2.5–97.5 % of 99 draws" in text.replace("\n", " ") for text in texts)
    assert len(figure.axes[0].collections) == 2
    short = angle_curves.brief(scan(), FULL, found)
    assert short["variant"].iloc[-1] == f"{KINDS[1]} (2.5–97.5 %)"
    assert short["draws"].iloc[-1] == 99
