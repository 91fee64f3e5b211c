"""A dataset that gives its classes away by its surface is caught, and one that does not is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_auc_score

from analyses import confounds
from analyses.confounds import __main__ as command
from analyses.confounds.conclusions import reached
from analyses.confounds.folds import PerPrompt, assign_folds, auroc_within_folds, bootstrap_counts
from analyses.confounds.out_of_fold import (
    activation_scores,
    best_site,
    direction_site,
    surface_scores,
)
from ss_lens import Activations, ContrastiveDataset, Site, UserError
from tests.conftest import made_activations

SITES = tuple(Site(layer, stream) for layer in range(3) for stream in ("ln1_out", "ln2_out"))
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def written(
    rng: np.random.Generator, n_words: Callable[[], int], word_length: int = 5
) -> tuple[str, ...]:
    """60 prompts of random words."""
    return tuple(
        " ".join("".join(rng.choice(LETTERS, word_length)) for _ in range(n_words()))
        for _ in range(60)
    )


@pytest.fixture(scope="module")
def unequal() -> ContrastiveDataset:
    """Random text; the positive prompts are longer, with some overlap."""
    rng = np.random.default_rng(0)
    longer, shorter = (written(rng, lambda n=n: int(rng.integers(n, n + 6))) for n in (9, 5))
    return ContrastiveDataset("unequal", longer, shorter)


@pytest.fixture(scope="module")
def equal() -> ContrastiveDataset:
    """Random text of one length in both classes."""
    rng = np.random.default_rng(1)
    return ContrastiveDataset("equal", written(rng, lambda: 6), written(rng, lambda: 6))


def activations(
    dataset: ContrastiveDataset,
    distance: float,
    at: Sequence[int] = range(len(SITES)),
    seed: int = 0,
) -> Activations:
    """White noise of unit length; the classes lie ``distance`` apart at the sites ``at``."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.zeros(len(SITES), 32)
    shift[list(at), 0] = distance / 2
    positive, negative = (
        torch.randn(len(prompts), len(SITES), 32, generator=generator) / math.sqrt(32)
        + side * shift
        for prompts, side in ((dataset.positive, 1), (dataset.negative, -1))
    )
    acts = made_activations(positive, negative, SITES)
    spec = replace(acts.spec, dataset_digest=dataset.digest, paired=dataset.paired)
    return Activations(positive, negative, spec)


def areas(table: pd.DataFrame) -> dict[str, float]:
    return dict(zip(table["reading"], table["auroc"], strict=True))


# --- what is caught ---


def test_classes_that_differ_in_length_alone_are_caught(unequal: ContrastiveDataset) -> None:
    table = confounds.measure(unequal, activations(unequal, 0.4), n_resamples=500)
    assert areas(table)["length"] > 0.85
    assert ("length", "activations, best site") in reached(table)
    first = confounds.findings(table)[0]
    assert first.startswith("WARNING: the surface of the prompts separates the classes as well")
    assert "length reaches activations, direction site" in first
    marked = [t.marker.color for t in confounds.figure(table).data if not t.meta]
    assert marked[0] != marked[-1]


def test_random_text_of_one_length_is_not_caught(equal: ContrastiveDataset) -> None:
    table = confounds.measure(equal, activations(equal, 1.5), n_resamples=500)
    found = areas(table)
    assert found["length"] == 0.5  # one length: nothing to go by
    assert abs(found["character n-grams"] - 0.5) < 0.15
    assert found["activations, best site"] > 0.95
    assert reached(table) == []
    said = confounds.findings(table)
    assert said[-1] == "No surface classifier's interval reaches the activations."
    assert not any("WARNING" in line for line in said)


def test_a_surface_just_below_the_activations_is_caught_by_its_interval() -> None:
    rows = [("length", "surface", 0.8, 0.7, 0.9), ("activations, best site", "activations")]
    for area, caught in ((0.9, True), (0.91, False)):
        table = pd.DataFrame(
            [(*rows[0], ""), (*rows[1], area, area, area, "L0.ln1_out (5)")],
            columns=["reading", "kind", "auroc", "low", "high", "sites"],
        )
        assert bool(reached(table)) is caught


@pytest.mark.parametrize("mark", ["!", "Please"])
def test_punctuation_and_capitals_are_surface(equal: ContrastiveDataset, mark: str) -> None:
    marked = tuple(f"{mark} {prompt}" for prompt in equal.positive)
    other = {"!": ".", "Please": "please"}[mark]
    plain = tuple(f"{other} {prompt}" for prompt in equal.negative)
    found = areas(confounds.measure(ContrastiveDataset("marked", marked, plain), n_resamples=50))
    assert found["character n-grams"] > 0.97
    assert found["length"] == 0.5


def test_token_counts_can_give_away_what_the_characters_do_not(equal: ContrastiveDataset) -> None:
    counts = [*range(60), *range(100, 160)]
    with_counts = confounds.measure(equal, token_counts=counts, n_resamples=50)
    assert areas(with_counts)["length"] == 1.0


# --- nothing leaks ---


@settings(max_examples=25)
@given(st.integers(3, 30), st.integers(3, 30), st.booleans(), st.integers(3, 6), st.integers(0, 99))
def test_folds_are_even_and_keep_partners_together(
    n: int, m: int, paired: bool, n_folds: int, seed: int
) -> None:
    if paired:
        m = n
    n_folds = min(n_folds, n, m)
    dataset = ContrastiveDataset(
        "made-up",
        tuple(f"p{i}" for i in range(n)),
        tuple(f"n{i}" for i in range(m)),
        paired,
    )
    positive, negative = assign_folds(dataset, n_folds, seed)
    for part, size in ((positive, n), (negative, m)):
        counts = np.bincount(part, minlength=n_folds)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1
    drawn = bootstrap_counts(dataset, 4, seed)
    assert [counts.sum(axis=1).tolist() for counts in drawn] == [[n] * 4, [m] * 4]
    if paired:
        assert (positive == negative).all()
        assert (drawn[0] == drawn[1]).all()


def test_partners_in_different_folds_would_teach_the_opposite() -> None:
    """Each pair has words of its own and the classes differ in nothing: chance, if none leaks."""
    rng = np.random.default_rng(0)
    stems = written(rng, lambda: 6)
    one, other = (tuple(f"{stem} {rng.choice(LETTERS)}" for stem in stems) for _ in range(2))
    paired = ContrastiveDataset("pairs", one, tuple(f"{text}." for text in other), paired=True)
    paired = replace(paired, positive=tuple(f"{text}." for text in one))
    apart = replace(paired, paired=False)
    together, leaking = (
        areas(confounds.measure(data, n_resamples=50))["character n-grams"]
        for data in (paired, apart)
    )
    assert abs(together - 0.5) < 0.12
    assert leaking < 0.2


@pytest.mark.parametrize("choose", [best_site, direction_site])
def test_noise_is_at_chance_however_the_site_is_chosen(choose: Callable[..., int]) -> None:
    """Fewer prompts than dimensions: on the training prompts every site separates perfectly."""
    found = []
    for seed in range(6):
        dataset = ContrastiveDataset("n", *(tuple(f"{c}{i}" for i in range(30)) for c in "pn"))
        acts = activations(dataset, 0.0, seed=seed)
        folds = assign_folds(dataset, 5, seed)
        scores, _ = activation_scores(acts, folds, choose)
        found.append(auroc_within_folds(scores, folds, bootstrap_counts(dataset, 10, 0))[0])
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)


def test_the_best_site_is_where_the_classes_differ(equal: ContrastiveDataset) -> None:
    acts, folds = activations(equal, 1.5, at=[4]), assign_folds(equal, 5, 0)
    _, chosen = activation_scores(acts, folds, best_site)
    assert chosen == {SITES[4]: 5}


def test_out_of_fold_projections_equal_a_loop_in_numpy(equal: ContrastiveDataset) -> None:
    acts, folds = activations(equal, 0.8), assign_folds(equal, 4, 2)
    scores, chosen = activation_scores(acts, folds, lambda candidates, train, rest: 3)
    assert chosen == {SITES[3]: 4}
    positive, negative = (h[:, 3].double().numpy() for h in (acts.positive, acts.negative))
    for i in range(0, 120, 7):
        own, j = (0, i) if i < 60 else (1, i - 60)
        seen = [folds[k] != folds[own][j] for k in (0, 1)]
        direction = positive[seen[0]].mean(0) - negative[seen[1]].mean(0)
        h = (positive, negative)[own][j]
        expected = h @ direction / np.linalg.norm(direction) / np.linalg.norm(h)
        assert scores[i] == pytest.approx(expected, abs=1e-6)


def test_a_classifier_never_sees_the_prompts_that_it_scores() -> None:
    """Changing the texts of one fold changes no score but by their own classifier's reading."""
    rng = np.random.default_rng(3)
    folds = (np.arange(60) % 3, np.arange(60) % 3)
    texts = pd.DataFrame({"text": [*written(rng, lambda: 5), *written(rng, lambda: 5)]})
    before = surface_scores(texts, folds)
    changed = texts.copy()
    changed.loc[0, "text"] = "something else altogether"  # of fold 0
    after = surface_scores(changed, folds)
    first = np.concatenate(folds) == 0
    first[0] = False
    np.testing.assert_array_equal(before[first], after[first])
    assert not np.isclose(before[~first], after[~first]).all()


# --- the area and its interval ---


def test_the_area_within_folds_equals_scikit_learns_weighted_by_pairs() -> None:
    rng = np.random.default_rng(5)
    folds: PerPrompt = (rng.integers(0, 3, 20), rng.integers(0, 3, 15))
    scores = rng.normal(size=35).round(1)  # with ties
    counts = (rng.integers(0, 3, (1, 20)), rng.integers(0, 3, (1, 15)))
    label, fold = np.repeat([1, 0], [20, 15]), np.concatenate(folds)

    def oracle(weight: np.ndarray) -> float:
        total, pairs = 0.0, 0.0
        for k in range(3):
            here = fold == k
            n_pairs = weight[here & (label == 1)].sum() * weight[here & (label == 0)].sum()
            area = roc_auc_score(label[here], scores[here], sample_weight=weight[here])
            total, pairs = total + n_pairs * area, pairs + n_pairs
        return total / pairs

    area, low, high = auroc_within_folds(scores, folds, counts)
    assert area == pytest.approx(oracle(np.ones(35)))
    assert low == high == pytest.approx(oracle(np.concatenate([counts[0][0], counts[1][0]])))


def test_intervals_hold_the_area_and_cover_the_known_one() -> None:
    true = 0.5 * (1 + math.erf(1 / 2))  # unit normals one standard deviation apart
    dataset = ContrastiveDataset("n", *(tuple(f"{c}{i}" for i in range(60)) for c in "pn"))
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=120) + np.repeat([1.0, 0.0], 60)
        folds, draws = assign_folds(dataset, 5, seed), bootstrap_counts(dataset, 300, seed)
        area, low, high = auroc_within_folds(scores, folds, draws)
        assert low < area < high
        covered += low <= true <= high
    assert covered >= 51  # of 60; 57 are expected


def test_the_same_seed_gives_the_same_table(equal: ContrastiveDataset) -> None:
    acts = activations(equal, 0.5)
    first, again, other = (
        confounds.measure(equal, acts, n_resamples=50, seed=seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


# --- requests ---


def test_without_activations_only_the_texts_are_measured(unequal: ContrastiveDataset) -> None:
    table = confounds.measure(unequal, n_resamples=50)
    assert set(table["kind"]) == {"surface"}
    said = "\n".join(confounds.findings(table))
    assert "Better than chance from the text alone: length" in said
    assert "WARNING" not in said


def test_bad_requests_say_what_to_do(
    equal: ContrastiveDataset, unequal: ContrastiveDataset
) -> None:
    with pytest.raises(UserError, match="not of the prompts of 'unequal'; capture these"):
        confounds.measure(unequal, activations(equal, 1.0))
    with pytest.raises(UserError, match="3 token counts do not fit 120 prompts"):
        confounds.measure(equal, token_counts=[1, 2, 3])
    for n_folds in (2, 61):
        with pytest.raises(UserError, match=f"{n_folds} folds do not fit 60 .* at least 3"):
            confounds.measure(equal, n_folds=n_folds)
    with pytest.raises(UserError, match="not among the captured"):
        confounds.measure(equal, activations(equal, 1.0), streams=("resid_post",))


def test_the_command_writes_a_table_and_a_page_and_prints_no_prompt(
    tiny_folders: dict[str, Path],
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command.main(model=str(tiny_folders["llama"]), dataset=str(prompts_file), out=out)
    assert {path.name for path in out.iterdir()} == {"confounds.csv", "confounds.html"}
    table = pd.read_csv(out / "confounds.csv")
    assert table["auroc"].between(table["low"], table["high"]).all()
    printed = capsys.readouterr().out
    assert "WARNING" in printed  # w60 against w61 is surface
    assert "w60" not in printed
