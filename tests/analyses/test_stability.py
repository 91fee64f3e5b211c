"""Resampled calibrations equal calibrations of resampled prompts, and tell signal from chance."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.linalg import subspace_angles
from sklearn.metrics import roc_auc_score
from torch import Tensor

import ss_lens
from analyses import stability
from analyses.stability import __main__ as command, resampling
from analyses.stability.conclusions import findings
from analyses.stability.figures import plane_figure, site_figure
from analyses.stability.measures import Stability, principal_angles_deg
from analyses.stability.recalibration import means_along, recalibrate
from analyses.stability.resampling import Resamples
from ss_lens import Activations, Plane, Site, UserError
from tests.conftest import made_activations

SITES = tuple(Site(layer, stream) for layer in range(4) for stream in ("ln1_out", "ln2_out"))


def planted(
    n_positive: int = 40,
    n_negative: int = 40,
    *,
    distance: float = 2.0,
    offset: float = 0.0,
    d_model: int = 24,
    paired: bool = False,
    seed: int = 0,
) -> Activations:
    """Classes ``distance`` apart along a direction that turns slowly with depth, in white noise.

    ``offset`` moves both along it, so that they lie on the same side of zero.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.eye(d_model)[:2]
    angles = torch.linspace(0, 0.8, len(SITES)).unsqueeze(1)
    along = torch.cos(angles) * first + torch.sin(angles) * second

    def prompts(n: int, centre: float) -> Tensor:
        noise = torch.randn(n, len(SITES), d_model, generator=generator) / math.sqrt(d_model)
        return noise + (offset + centre) * along

    acts = made_activations(
        prompts(n_positive, distance / 2), prompts(n_negative, -distance / 2), SITES
    )
    return Activations(acts.positive, acts.negative, replace(acts.spec, paired=paired))


def gathered(acts: Activations, drawn: Resamples, i: int) -> Activations:
    """The prompts of one draw, each as often as it was drawn."""
    rows = torch.cat((acts.positive, acts.negative))
    positive, negative = (
        rows.repeat_interleave(counts[i], dim=0) for counts in (drawn.positive, drawn.negative)
    )
    return made_activations(positive, negative, acts.sites)


def silent(n: int) -> None:
    """Nobody watches the progress."""


@pytest.fixture(scope="module")
def strong() -> Stability:
    return stability.measure(planted(), n_resamples=60)


@pytest.fixture(scope="module")
def noise() -> Stability:
    return stability.measure(planted(distance=0.0), n_resamples=60)


# --- the recalibration ---


def test_recalibrating_on_all_prompts_once_is_calibrating() -> None:
    acts = planted(distance=0.3)
    found = recalibrate(acts, resampling.everything(acts.spec), silent)
    expected = ss_lens.calibrate(acts)
    assert found.planes[0].basis.equal(expected.plane.basis)
    assert acts.sites[found.direction_sites[0] or 0] == expected.direction_site
    assert found.selected[0].equal(expected.selected)
    scores = expected.direction.scores
    assert float(found.agreement[0]) == pytest.approx(float(scores.nanmean()), abs=1e-6)


@pytest.mark.parametrize("kind", ["bootstrap", "subsample", "shuffled"])
@pytest.mark.parametrize("paired", [False, True])
def test_a_draw_is_the_calibration_of_its_prompts(kind: str, paired: bool) -> None:
    acts = planted(12, 12 if paired else 9, distance=0.6, paired=paired)
    generator = torch.Generator().manual_seed(3)
    size = (7,) if kind == "subsample" else ()
    drawn = getattr(resampling, kind)(acts.spec, *size, 66, generator)  # more than one chunk
    found = recalibrate(acts, drawn, silent)
    compared = 0
    for i in range(0, 66, 3):
        if not found.selected[i].any():
            with pytest.raises(UserError, match="no discriminative site"):
                ss_lens.calibrate(gathered(acts, drawn, i))
            continue
        expected = ss_lens.calibrate(gathered(acts, drawn, i))
        torch.testing.assert_close(found.planes[i].basis, expected.plane.basis, atol=1e-5, rtol=0)
        assert acts.sites[found.direction_sites[i] or 0] == expected.direction_site
        assert found.selected[i].equal(expected.selected)
        table = expected.selection.table
        for label in ("positive", "negative"):
            means = getattr(found.means, label)[i].numpy()
            np.testing.assert_allclose(means, table[label], atol=1e-5)
        compared += 1
    assert compared > 8


def test_both_areas_equal_scikit_learn_on_the_prompts_in_and_out_of_the_draw() -> None:
    acts = planted(15, 11, distance=0.4)
    drawn = resampling.bootstrap(acts.spec, 12, torch.Generator().manual_seed(0))
    found = recalibrate(acts, drawn, silent)
    rows = torch.cat((acts.positive, acts.negative)).double().numpy()
    truth = np.repeat([1, 0], [15, 11])
    for i in range(12):
        site = found.direction_sites[i]
        assert site is not None
        scores = rows[:, site] @ found.planes[i].b1.double().numpy()
        scores /= np.linalg.norm(rows[:, site], axis=-1)
        weights = (drawn.positive + drawn.negative)[i].numpy()
        inside = roc_auc_score(truth, scores, sample_weight=weights)
        outside = roc_auc_score(truth[weights == 0], scores[weights == 0])
        assert float(found.auroc[i]) == pytest.approx(inside, abs=1e-6)
        assert float(found.held_out_auroc[i]) == pytest.approx(outside, abs=1e-6)


# --- the draws ---


@given(st.integers(2, 12), st.integers(2, 12), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=20)
def test_draws_keep_class_sizes_classes_and_partners(
    n: int, m: int, paired: bool, seed: int
) -> None:
    if paired:
        m = n
    spec = replace(planted(n, m).spec, paired=paired)
    generator = torch.Generator().manual_seed(seed)
    own = resampling.everything(spec)
    boot = resampling.bootstrap(spec, 5, generator)
    few = resampling.subsample(spec, 2, 5, generator)
    null = resampling.shuffled(spec, 5, generator)
    for drawn, sizes in ((boot, (n, m)), (few, (2, 2)), (null, (n, m))):
        assert (drawn.positive.sum(1) == sizes[0]).all()
        assert (drawn.negative.sum(1) == sizes[1]).all()
    for drawn in (boot, few):
        assert not (drawn.positive * (1 - own.positive)).any()
        assert not (drawn.negative * (1 - own.negative)).any()
        left = drawn.left_out(spec)
        assert ((left.positive + drawn.positive > 0) == (own.positive > 0)).all()
        assert not (left.positive * drawn.positive).any()
        if paired:
            assert drawn.positive[:, :n].equal(drawn.negative[:, n:])
    assert (few.positive <= 1).all()
    assert (null.positive + null.negative == 1).all()
    if paired:
        assert (null.positive[:, :n] + null.positive[:, n:] == 1).all()


def test_shuffling_gives_every_prompt_either_label() -> None:
    for paired in (False, True):
        spec = replace(planted(10, 10).spec, paired=paired)
        null = resampling.shuffled(spec, 2000, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(null.positive.double().mean(0), 0.5, atol=0.05)


# --- principal angles ---


@given(st.integers(0, 10**6), st.integers(4, 40))
def test_principal_angles_equal_scipys(seed: int, d_model: int) -> None:
    spans = torch.randn(2, 2, d_model, generator=torch.Generator().manual_seed(seed))
    a, b = (Plane.from_span(*span) for span in spans)
    expected = np.rad2deg(subspace_angles(a.basis.double().numpy().T, b.basis.double().numpy().T))
    np.testing.assert_allclose(principal_angles_deg(a, b), sorted(expected), atol=1e-4)


@pytest.mark.parametrize(("small", "large"), [(0, 0), (1e-5, 40), (25, 25), (30, 90), (90, 90)])
def test_principal_angles_of_known_planes_do_not_depend_on_the_basis(
    small: float, large: float
) -> None:
    e = torch.eye(6, dtype=torch.float64)
    s, t = math.radians(small), math.radians(large)
    first = Plane(e[0], e[1])
    u, v = math.cos(s) * e[0] + math.sin(s) * e[2], math.cos(t) * e[1] + math.sin(t) * e[3]
    turned = Plane(math.cos(1) * u + math.sin(1) * v, -math.sin(1) * u + math.cos(1) * v)
    for angles in (principal_angles_deg(first, turned), principal_angles_deg(turned, first)):
        np.testing.assert_allclose(angles, (small, large), atol=1e-7)


# --- what is found ---


def test_well_separated_classes_keep_their_sites_and_their_plane(strong: Stability) -> None:
    boot = strong.draws.query("kind == 'bootstrap'")
    sites = strong.sites.query("kind == 'bootstrap'")
    assert sites["selected"].all()
    assert sites["share_selected"].min() > 0.99
    assert boot["angle_2_deg"].median() < 15
    assert boot["b1_angle_deg"].median() < 15
    assert boot["held_out_auroc"].min() > 0.99
    assert sites["share_direction"].sum() == pytest.approx(1)


def test_more_prompts_bring_the_plane_nearer(strong: Stability) -> None:
    medians = (
        strong.draws.query("kind == 'subsample'").groupby("n_positive")["angle_2_deg"].median()
    )
    assert medians.index.tolist() == [8, 16, 32]
    assert medians.is_monotonic_decreasing


def test_pure_noise_strays_as_far_as_random_planes(noise: Stability) -> None:
    medians = noise.draws.groupby("kind")[["angle_1_deg", "angle_2_deg"]].median()
    random, null = medians.loc["random"], medians.loc["shuffled"]
    assert (null - random).abs().max() < 6
    held_out = noise.draws.query("kind == 'bootstrap'")["held_out_auroc"]
    assert held_out.mean() == pytest.approx(0.5, abs=0.1)
    # labels that mean nothing are as good as any others
    full = noise.draws.query("kind == 'full'").iloc[0]
    shuffled = noise.draws.query("kind == 'shuffled'")
    assert (shuffled["auroc"] >= full["auroc"]).mean() > 0.02


def test_shuffled_labels_do_worse_than_real_ones(strong: Stability) -> None:
    medians = strong.draws.groupby("kind")[["angle_2_deg", "auroc"]].median()
    assert medians.loc["shuffled", "angle_2_deg"] > 3 * medians.loc["bootstrap", "angle_2_deg"]
    assert medians.loc["shuffled", "auroc"] < medians.loc["bootstrap", "auroc"]


def test_the_full_sample_is_at_no_angle_to_itself(strong: Stability) -> None:
    full = strong.draws.query("kind == 'full'")
    assert len(full) == 1
    assert full[["angle_1_deg", "angle_2_deg", "b1_angle_deg"]].max(axis=None) < 1e-4
    assert full["n_selected"].iloc[0] == len(SITES)


def test_intervals_hold_the_full_samples_means(strong: Stability) -> None:
    sites = strong.sites.query("kind == 'bootstrap'")
    for label in ("positive", "negative"):
        for interval in ("own", "fixed"):
            low, high = sites[f"{label}_{interval}_low"], sites[f"{label}_{interval}_high"]
            assert (low <= high).all()
        assert sites[label].between(low, high).all()  # of the fixed direction: no bias


def test_means_along_one_direction_vary_as_the_standard_error_says() -> None:
    acts = planted(60, 50, distance=1.0)
    drawn = resampling.bootstrap(acts.spec, 2000, torch.Generator().manual_seed(0))
    b1 = ss_lens.calibrate(acts).plane.b1
    means = means_along(acts, drawn, b1)
    for label in ("positive", "negative"):
        h = getattr(acts, label).numpy()
        along = h @ b1.numpy() / np.linalg.norm(h, axis=-1)
        found = getattr(means, label).numpy()
        np.testing.assert_allclose(found.mean(axis=0), along.mean(axis=0), atol=0.003)
        expected = along.std(axis=0) / math.sqrt(len(h))
        np.testing.assert_allclose(found.std(axis=0), expected, rtol=0.1)


def test_the_same_seed_gives_the_same_tables() -> None:
    acts = planted(10, 10)
    first, again, other = (
        stability.measure(acts, n_resamples=5, sizes=(4,), seed=seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first.draws, again.draws)
    pd.testing.assert_frame_equal(first.sites, again.sites)
    assert not first.draws.equals(other.draws)


def test_partners_are_drawn_together_in_every_kind_of_draw() -> None:
    """Pairs far apart that differ by the same step: no draw of pairs changes the direction."""
    generator = torch.Generator().manual_seed(0)
    negative = 50 * torch.randn(20, len(SITES), 8, generator=generator)
    step = torch.randn(len(SITES), 8, generator=generator)
    acts = made_activations(negative + step, negative, SITES)
    paired = Activations(acts.positive, acts.negative, replace(acts.spec, paired=True))
    for given_acts, still in ((paired, True), (acts, False)):
        draws = stability.measure(given_acts, n_resamples=10, sizes=(5,)).draws
        resampled = draws.query("kind in ('bootstrap', 'subsample')")
        assert (float(resampled["angle_2_deg"].max()) < 0.1) is still


def test_a_draw_without_a_selected_site_counts_as_none() -> None:
    acts = planted(distance=0.5, offset=3.0)
    with pytest.raises(UserError, match="no discriminative site"):
        ss_lens.calibrate(acts)
    found = stability.measure(acts, n_resamples=10)
    real = found.draws.query("kind in ('full', 'bootstrap')")
    assert (real["n_selected"] == 0).all()
    assert not found.sites["selected"].any()
    assert findings(*found)[0].startswith("All prompts select 0 of 8 sites")


def test_other_errors_of_a_calibration_are_not_swallowed() -> None:
    acts = planted()
    few = made_activations(acts.positive[:, :2], acts.negative[:, :2], SITES[:2])
    with pytest.raises(UserError, match="at least 3 sites"):
        stability.measure(few, n_resamples=2)
    same = made_activations(acts.positive, acts.positive, SITES)
    with pytest.raises(UserError, match="same mean activation"):
        stability.measure(same, n_resamples=2)


def test_bad_requests_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"at least 2 prompts per class.*got 1 positive and 5"):
        stability.measure(planted(1, 5), n_resamples=2)
    with pytest.raises(UserError, match="n_resamples=1"):
        stability.measure(planted(5, 5), n_resamples=1)
    for size in (1, 9):
        with pytest.raises(UserError, match=f"subsample of {size}.*use a size from 2 to 8"):
            stability.measure(planted(8, 9), n_resamples=2, sizes=(size,))
    with pytest.raises(UserError, match="not among the captured"):
        stability.measure(planted(), n_resamples=2, streams=("resid_post",))


# --- what is shown ---


def test_figures_show_every_site_and_every_kind(strong: Stability) -> None:
    drawn = site_figure(strong.sites, "made up")
    bars = {trace.name: len(trace.x) for trace in drawn.data if trace.type == "bar"}
    assert bars == {"selected by all prompts": len(SITES), "not selected": 0}
    boxes = [trace for trace in plane_figure(strong.draws).data if trace.type == "box"]
    assert len(boxes) == 3
    larger = boxes[1]
    assert [name.replace("<br>", " ") for name in larger.x] == [
        "random planes",
        "shuffled labels",
        *(f"{n} per class" for n in (8, 16, 32)),
        "bootstrap of all",
    ]
    boot = strong.draws.query("kind == 'bootstrap'")["angle_2_deg"]
    assert larger.median[-1] == pytest.approx(boot.median())


def test_findings_quote_the_tables(strong: Stability, noise: Stability) -> None:
    said = "\n".join(findings(*strong))
    boot = strong.draws.query("kind == 'bootstrap'")
    assert "All prompts select 8 of 8 sites; 8 of them are selected in at least 95%" in said
    assert f"{boot['angle_2_deg'].median():.1f}°" in said
    assert f"AUROC of {strong.draws['auroc'].iloc[0]:.3f}" in said
    assert f"° with {16}" in said
    assert "Under shuffled labels" in "\n".join(findings(*noise))


def test_the_command_writes_two_tables_and_two_pages_and_prints_no_prompt(
    tiny_folders: dict[str, Path],
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command.main(model=str(tiny_folders["llama"]), dataset=str(prompts_file), draws=4, out=out)
    assert {path.name for path in out.iterdir()} == {
        f"stability_{name}.{suffix}" for name in ("sites", "planes") for suffix in ("csv", "html")
    }
    printed = capsys.readouterr().out
    assert "bootstrap draws" in printed
    assert "w60" not in printed
