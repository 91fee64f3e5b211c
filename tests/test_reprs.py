"""Every value prints in a few lines without a tensor, and has a picture in a notebook."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, Plane, RunConfig, Site
from ss_lens.activations.site_map import FILL, RING, site_map
from ss_lens.core.shown import LINE
from ss_lens.experiments.ablations.config import AblationConfig
from ss_lens.experiments.ablations.result import AblationResult
from ss_lens.experiments.choose_angle import AngleChoice, AngleCriterion
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.dial.run import Run
from ss_lens.experiments.sweeps.result import ArmChoice, SweepResult
from ss_lens.geometry.operators import AngularOperator, Operator
from ss_lens.geometry.picture import carried
from tests.conftest import made_activations

SVG = "{http://www.w3.org/2000/svg}"
N_LAYERS = 28
SITES = tuple(Site(layer, s) for layer in range(N_LAYERS) for s in ("ln1_out", "ln2_out"))


def made_up() -> ss_lens.Activations:
    """Classes on opposite sides from block 14 on; none has a direction in block 0's first norm."""
    generator = torch.Generator().manual_seed(0)
    noise = [0.1 * torch.randn(6, len(SITES), 32, generator=generator) for _ in range(2)]
    side = torch.zeros(len(SITES), 32)
    side[:, 0] = torch.tensor([1.0 if site.layer >= 14 else 0.2 for site in SITES])
    offset = torch.zeros(32)
    offset[1] = 0.5
    shared = torch.where(torch.tensor([s.layer < 14 for s in SITES]).unsqueeze(1), side * 4, 0.0)
    positive, negative = noise[0] + side + shared + offset, noise[1] - side + shared + offset
    positive[:, 0] = negative[:, 0] = 1.0
    return made_activations(positive, negative, SITES)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    made = ss_lens.calibrate(made_up())
    assert 0 < len(made.selected_sites) < len(made.sites)
    assert made.candidates.excluded == (SITES[0],)
    return made


def scored(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_index": range(n),
            "prompt": "w1",
            "angle_deg": [float(i) for i in range(n)],
            "response": "w2 " * 200,
            "refusal_score": np.linspace(-1, 1, n),
        }
    )


def sweep() -> SweepResult:
    config = SweepConfig(grid={"model": "m", "dataset": "d", "angles_deg": [0, 90]})  # type: ignore[arg-type]
    arm = next(iter(config.grid[0].arms()))
    columns = {name: [str(value)] * 240 for name, value in vars(arm).items()}
    columns["operator"] = ["RotateBy"] * 120 + ["RotateTo"] * 120
    keys = pd.DataFrame({**columns, "part": "test", "prompt_class": "positive"})
    table = pd.concat([keys, scored(240)], axis=1)
    groups = keys.iloc[[0, 120]].assign(
        key="k", steered_sites="L0.ln1_out", n_sites=1, problem=None
    )
    return SweepResult(config, table, groups, (ArmChoice(arm, choice()),), scored(3))


def choice() -> AngleChoice:
    criterion = AngleCriterion(
        score="refusal_score", goal="minimise", max_perplexity=None, max_repetition=None
    )
    dev = pd.DataFrame(
        {"angle_deg": [0.0, 90.0], "score": [1.0, -1.0], "collapsed": 0.0, "admissible": True}
    )
    return AngleChoice(criterion, 90.0, dev, dev.iloc[:0])


def ablation() -> AblationResult:
    rows = [(f"variant {i}", m, 0.01 * i) for i in range(60) for m in ("refusal_score", "kl")]
    table = pd.DataFrame(rows, columns=["variant", "metric", "p_holm"]).assign(mean=1.0)
    empty = pd.DataFrame()
    return AblationResult(AblationConfig(model="m"), table, scored(400), empty, empty)


def run(calibration: Calibration) -> Run:
    responses = scored(96)
    scores = pd.DataFrame({"angle_deg": [0.0, 90.0], "refusal_positive": [1.0, 0.0]})
    return Run(RunConfig(), calibration, {}, responses, scores, verdict="it turned " * 60)


def values(calibration: Calibration) -> dict[str, object]:
    return {
        "calibration": calibration,
        "activations": made_up(),
        "dataset": ContrastiveDataset("d", tuple(f"p{i}" * 99 for i in range(440)), ("<b>&",)),
        "plane": calibration.plane,
        "sweep": sweep(),
        "ablation": ablation(),
        "run": run(calibration),
        "rotation": ss_lens.RotateBy(120),
        "rotation per row": ss_lens.RotateBy(tuple(range(200))),
        "published length": ss_lens.ActAdd(2.0),
    }


NAMES = (
    *("calibration", "activations", "dataset", "plane", "sweep", "ablation", "run", "rotation"),
    *("rotation per row", "published length"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_prints_in_at_most_ten_lines_without_a_tensor(
    name: str, calibration: Calibration
) -> None:
    value = values(calibration)[name]
    lines = repr(value).splitlines()
    assert 1 <= len(lines) <= 10
    if not isinstance(value, Operator):  # whose text is read back
        assert all(len(line) <= max(LINE, 240) for line in lines)
    assert "tensor(" not in repr(value)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_well_formed_self_contained_and_small(
    name: str, calibration: Calibration
) -> None:
    html = values(calibration)[name]._repr_html_()  # type: ignore[attr-defined]
    ElementTree.fromstring(html)
    assert "<script" not in html
    assert html.count("http") == html.count('xmlns="http://www.w3.org/2000/svg"')
    assert "tensor(" not in html
    assert len(html) < 60_000
    own = r"(?:fill|stroke|color|background)[:=]\W*(?:black|white|#000|#fff)"
    assert not re.search(own, html)  # letters and lines have the colours of the page


PARTS: dict[str, Callable[[Calibration], object]] = {
    "candidates": lambda made: made.candidates,
    "direction": lambda made: made.direction,
    "selection": lambda made: made.selection,
    "choice": lambda made: choice(),
    "arm's choice": lambda made: sweep().choices[0],
    "trace": lambda made: ss_lens.Trace(),
    "store": lambda made: ss_lens.Store("somewhere"),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_parts_of_a_value_print_in_one_line(part: str, calibration: Calibration) -> None:
    text = repr(PARTS[part](calibration))
    assert "\n" not in text
    assert len(text) < 400
    assert "tensor(" not in text
    assert " object at " not in text


def squares(svg: str) -> list[ElementTree.Element]:
    """The marks of sites, without the key."""
    return ElementTree.fromstring(svg).findall(f"{SVG}g")


def test_the_map_has_a_square_per_site_filled_where_selected_and_a_ring_at_the_direction(
    calibration: Calibration,
) -> None:
    html = calibration._repr_html_()
    marks = squares(html[html.index("<svg") : html.index("</svg>") + 6])
    named = {str(mark.findtext(f"{SVG}title")).split(":")[0]: mark for mark in marks}
    assert {*named} == {str(site) for site in calibration.sites}
    filled = {n for n, m in named.items() if m.find(f"{SVG}rect[@fill='{FILL}']") is not None}
    ringed = {n for n, m in named.items() if m.find(f"{SVG}circle[@stroke='{RING}']") is not None}
    crossed = {n for n, m in named.items() if m.find(f"{SVG}path") is not None}
    assert filled == {str(site) for site in calibration.selected_sites}
    assert ringed == {str(calibration.direction_site)}
    assert crossed == {"L0.ln1_out"}


def test_the_squares_of_a_block_stand_in_one_column_and_those_of_a_stream_in_one_row() -> None:
    sites = (Site(3, "ln1_out"), Site(3, "resid_post"), Site(7, "ln1_out"))
    places = {}
    for mark in squares(site_map(sites)):
        rect = mark.find(f"{SVG}rect")
        assert rect is not None
        place = float(rect.get("x", 0)), float(rect.get("y", 0))
        places[str(mark.findtext(f"{SVG}title")).split(":")[0]] = place
    a, b, c = (places[str(site)] for site in sites)
    assert a[0] == b[0] < c[0]
    assert a[1] == c[1] < b[1]


def test_a_consensus_has_no_ring_and_no_site_without_a_direction_no_cross() -> None:
    svg = site_map(SITES, filled=SITES[:3])
    assert RING not in svg
    assert "direction" not in svg
    assert f'aria-label="3 of {len(SITES)} sites are steered"' in svg


def test_two_planes_are_told_apart_and_one_plane_is_not() -> None:
    rows = torch.eye(4)
    first, same, other = Plane(rows[0], rows[1]), Plane(rows[0], rows[1]), Plane(rows[1], rows[0])
    assert repr(first) == repr(same) != repr(other)
    assert "b1[0] = +1.000, b2[1] = +1.000" in repr(first)


def test_the_picture_of_an_operator_shows_where_it_carries_points() -> None:
    before, after = (np.array(part) for part in carried(ss_lens.RotateBy(90).apply))
    np.testing.assert_allclose(after, np.stack((-before[:, 1], before[:, 0]), axis=1), atol=1e-6)
    before, after = (np.array(part) for part in carried(ss_lens.Add(alpha=40).apply))
    np.testing.assert_allclose(after - before, [[40, 0]] * len(before), atol=1e-4)
    np.testing.assert_allclose(np.hypot(*before.T), 20, rtol=1e-6)
    _, after = carried(ss_lens.RotateTo(0).apply)
    np.testing.assert_allclose(after, [[1, 0]] * len(after), atol=1e-6)


@pytest.mark.parametrize("kind", Operator.kinds(), ids=lambda kind: kind.__name__)
def test_every_operator_has_a_card(kind: type[Operator]) -> None:
    strength = {} if kind.strength is None else {kind.strength: 30.0}
    operator = kind(**strength)
    html = operator._repr_html_()
    ElementTree.fromstring(html)
    assert ("<svg" in html) == (not operator.needs_length)
    if issubclass(kind, AngularOperator):
        assert "30.0" in html


def test_the_first_requests_of_a_dataset_are_shown_escaped(tmp_path: Path) -> None:
    data = ContrastiveDataset("a<b", ("<i>one</i>", "two", "three", "four"), ("five",))
    html = data._repr_html_()
    assert "&lt;i&gt;one&lt;/i&gt;" in html
    assert "three" in html
    assert "four" not in html
    assert "a&lt;b" in html
