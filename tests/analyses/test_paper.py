"""The page of results: its verdicts follow their rules, and it is what its tables say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analyses.paper import published
from analyses.paper.__main__ import parts_of
from analyses.paper.page import page, page_of
from analyses.paper.verdicts import Tables, verdicts
from ss_lens import Store, UserError
from ss_lens.experiments.paper.plan import FULL, MATCHED_NULL, NULLS, PUBLISHED, UNSTEERED
from ss_lens.experiments.paper.tables import METRICS

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PAGES = sorted(path.parent.name for path in RESULTS.glob("*/facts.csv"))
VARIANTS = (*PUBLISHED, UNSTEERED, "all sites", "norm not kept", "random second axis")


def made(**changes: dict[str, float]) -> dict[str, pd.DataFrame]:
    """Tables in which everything is as the paper says; ``changes`` are of rows by their name."""
    rows = []
    for variant in VARIANTS:
        for prompt_class in ("positive", "negative"):
            for metric in METRICS:
                row: dict[str, float | str] = {
                    "variant": variant,
                    "prompt_class": prompt_class,
                    "metric": metric,
                    "n": 24,
                    "n_pairs": 24,
                    "mean": 0.04,
                    "low": 0.01,
                    "high": 0.09,
                    "difference": 0.5,
                    "difference_low": 0.3,
                    "difference_high": 0.7,
                    "angle_deg": "135",
                    "operator": "RotateBy",
                    "n_sites": 24,
                    "admissible": "True",
                }
                if metric == "answered":
                    row |= {"difference": -0.5, "difference_low": -0.7, "difference_high": -0.3}
                if metric == "refusal_score":
                    row |= {"difference_low": 0.9, "difference_high": 1.4}
                key = f"{variant}|{metric}"
                rows.append({**row, **changes.get(key, {})})
    table = pd.DataFrame(rows)
    ranks = {
        "method": -5.0,
        "unsteered": 3.0,
        "draws": 99,
        "draw_mean": 3.0,
        "draw_low": 2.0,
        "draw_high": 3.5,
        **{"draws_as_low": 0, "p_value": 0.01, "draws_as_low_whole": 0, "p_value_whole": 0.01},
        **{"unsteered_mass": 0.9, "method_mass": 0.8, "draw_mass_low": 0.1, "draw_mass_high": 0.9},
    }
    nulls = [{"null": name, **ranks, **changes.get(name, {})} for name in NULLS]
    facts = {
        **{"model": "m", "n_layers": "28", "n_train": "96", "dev": "16", "test": "24"},
        **{"max_new_tokens": "32", "angles_deg": "0 45", "norm_change_RotateTo": "2e-07"},
        **{"cos_b1_wrapped": "0.6", "shared_sites_wrapped": "12"},
    }
    kept = {"variant": FULL, "n": 80, "retention": 1.0, "retention_low": 0.95}
    return {
        "methods": table,
        "ablations": table,
        "null_ranks": pd.DataFrame(nulls),
        "selection": pd.DataFrame([{"rule": "site", "blocks": "14, 16–26", "problem": ""}]),
        "capability": pd.DataFrame([{**kept, "retention_high": 1.1}]),
        "judges": pd.DataFrame(columns=["judge", "variant", "rate"]),
        "facts": pd.DataFrame({"fact": [*facts], "value": [*facts.values()]}),
    }


def outcome(tables: Tables, claim: str) -> str:
    (found,) = [verdict.outcome for verdict in verdicts(tables) if claim in verdict.claim]
    return found


def test_where_all_is_as_the_paper_says_only_the_norm_of_sas_is_refuted() -> None:
    outcomes = {verdict.claim: verdict.outcome for verdict in verdicts(made())}
    refuted = [claim for claim, found in outcomes.items() if found == "refuted"]
    assert refuted == ["Standard Angular Steering violates the norm (Proposition 1)"]
    assert {*outcomes.values()} == {"confirmed", "refuted"}


@pytest.mark.parametrize(
    ("row", "values", "claim", "expected"),
    [
        ("unsteered|refused", {"difference_low": -0.1}, "removes the refusal", "undecided"),
        (
            "unsteered|refused",
            {"difference_low": -0.1, "difference_high": 0.1},
            "removes the refusal",
            "refuted",
        ),
        (
            "SAS|answered",
            {"difference_low": -0.02, "difference_high": 0.2},
            "than SAS",
            "refuted",
        ),
        (
            "SAS|answered",
            {"difference_low": -0.2, "difference_high": 0.2},
            "than SAS",
            "undecided",
        ),
        ("random planes, uniform", {"p_value": 0.5}, "in which plane", "refuted"),
        ("random planes, uniform", {"p_value": 0.2}, "in which plane", "undecided"),
        (MATCHED_NULL, {"p_value": 0.6}, "At equal energy", "confirmed"),
        (MATCHED_NULL, {"p_value": 0.6, "p_value_whole": 0.2}, "At equal energy", "undecided"),
        (MATCHED_NULL, {"p_value": 0.6, "p_value_whole": 0.5}, "At equal energy", "refuted"),
        (f"{FULL}|collapsed", {"mean": 0.3, "low": 0.15}, "does not collapse", "refuted"),
        (f"{FULL}|perplexity_steered", {"low": 1.9, "high": 2.3}, "violation", "undecided"),
        (
            "random second axis|refusal_score",
            {"difference_low": -0.3, "difference_high": 0.4},
            "PC1",
            "refuted",
        ),
    ],
)
def test_a_verdict_follows_its_rule(
    row: str, values: dict[str, float], claim: str, expected: str
) -> None:
    assert outcome(made(**{row: values}), claim) == expected


def test_pairs_that_all_agree_decide_nothing_by_their_number_alone() -> None:
    alike = {"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0}
    assert outcome(made(**{"SAS|answered": {**alike, "n_pairs": 24}}), "than SAS") == "undecided"
    assert outcome(made(**{"SAS|answered": {**alike, "n_pairs": 104}}), "than SAS") == "refuted"


def test_a_page_shows_every_method_the_papers_row_and_no_number_of_its_own() -> None:
    text = page(made())
    for name, row in published.ROWS.items():
        assert f"| {name} |" in text
        assert len(row) == len(published.COLUMNS)
    assert "Not measured" not in text
    empty = made()
    empty["capability"] = empty["capability"].iloc[:0]
    assert outcome(empty, "Capability") == "not measured"


@pytest.mark.parametrize("name", PAGES)
def test_a_committed_page_is_what_its_tables_say(name: str) -> None:
    assert (RESULTS / f"{name}.md").read_text("utf-8") == page_of(RESULTS, name)


def test_a_damaged_list_of_activations_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "paper.json").write_text('{"activations": {"train"')
    with pytest.raises(
        UserError, match=r"paper\.json\) at .* is damaged .*run `ss-lens paper` again"
    ):
        parts_of(tmp_path, Store(tmp_path / "store"))
