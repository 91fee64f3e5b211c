"""The report of the paper's tables shows its claims, every variant, and the random draws."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import ss_lens
from analyses.paper.verdicts import verdicts
from analyses.report import gather, page
from ss_lens import Site, UserError
from ss_lens.experiments.paper.plan import FULL, NULLS
from tests.analyses.test_paper import made
from tests.conftest import made_activations

SCAN = {0.0: 2.0, 90.0: 0.0, 180.0: -3.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tables of a run in which everything is as the paper says."""
    tables = made()
    tables["null_ranks"] = tables["null_ranks"].assign(angle_deg="180")
    tables["methods"] = tables["methods"].assign(p_holm=0.01)
    scans = [(FULL, 0, 0.0), ("SAS", 0, 1.0), ("random sites", 0, 0.0), ("random sites", 1, 2.0)]
    of_table = {"prompt_class": "positive", "opening_mass": 0.5, "n": 16, "operator": "RotateBy"}
    tables["curves"] = pd.DataFrame(
        [
            {**of_table, "table": table, "variant": name, "draw": draw}
            | {"angle_deg": angle, "refusal_score": score + more}
            for table in ("methods", "ablations")
            for name, draw, more in scans
            for angle, score in SCAN.items()
        ]
        + [{**of_table, "table": "methods", "variant": "Ablate", "draw": 0, "angle_deg": 0.0}]
    )
    tables["nulls"] = pd.DataFrame(
        [(null, draw, 2 + draw / 98, 0.1 + draw / 98) for null in NULLS for draw in range(99)],
        columns=["null", "draw", "refusal_score", "opening_mass"],
    )
    choice = {"table": "methods", "variant": FULL, "draw": 0, "angle_deg": 180.0}
    tables["choices"] = pd.DataFrame([{**choice, "admissible": True, "refusal_score": -3.0}])
    (tmp_path / "tables").mkdir()
    for name, table in tables.items():
        table.to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
    (tmp_path / "paper.json").write_text(json.dumps({"activations": {"train": "a", "test": "b"}}))
    h = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    sites = (Site(0, "ln1_out"), Site(0, "ln2_out"), Site(1, "ln1_out"))
    acts = made_activations(h[0] + 1, h[1] - 1, sites)
    ss_lens.calibrate(acts, rule="uniform").save(tmp_path / "calibration")
    return tmp_path


def test_every_claim_and_every_variant_is_on_the_page(folder: Path) -> None:
    report = gather(folder)
    found = verdicts({**made()})
    assert report.verdict[0].headline.startswith(f"Of {len(found)} claims: ")
    claims, methods = report.tables[0].rows, report.tables[1].rows
    assert claims["claim"].tolist() == [verdict.claim for verdict in found]
    assert {*methods["variant"]} == {*made()["methods"]["variant"]}
    assert methods["refused"].iloc[0] == "0.04 [0.01, 0.09] *"
    text = page(report)
    assert "Claim by claim" in text
    assert "ss-lens paper --model m --positive FILE --negative FILE" in text
    assert any("no norm growth" in note for note in report.notes)


def test_the_curves_are_of_variants_with_an_angle_and_the_draws_their_range(folder: Path) -> None:
    report = gather(folder)
    roles = {series.name: series.role for series in report.series}
    assert list(roles) == [FULL, "SAS", "random sites", *NULLS]
    assert roles[FULL] == "method"
    assert roles["SAS"] == "variant"
    assert {roles[name] for name in ("random sites", *NULLS)} == {"random"}
    rows = report.curves.set_index(["series", "angle_deg"])
    assert rows.loc[(FULL, 180.0), "refusal_score"] == -3
    ends = [f"refusal_score{end}" for end in ("_low", "", "_high", "_unsteered")]
    assert rows.loc[("random sites", 180.0), ends].tolist() == pytest.approx([-2.95, -2, -1.05, 2])
    null = rows.loc[(NULLS[0], 180.0)]
    assert null[ends].tolist() == pytest.approx([2.025, 2.5, 2.975, 3.0])
    assert null["draws"] == 99
    mass = [null["opening_mass_low"], null["opening_mass_high"]]
    assert mass == pytest.approx([0.125, 1.075])
    assert report.start_deg == 180


@pytest.mark.parametrize(
    ("table", "changed", "named"),
    [
        ("null_ranks", {"columns": "p_value_whole"}, "the column 'p_value_whole' of null_ranks"),
        ("facts", {"index": 7}, "the row 'norm_change_RotateTo' of facts.csv"),
    ],
)
def test_tables_of_an_earlier_version_are_one_line_with_the_remedy(
    folder: Path, table: str, changed: dict[str, object], named: str
) -> None:
    path = folder / "tables" / f"{table}.csv"
    pd.read_csv(path).drop(**changed).to_csv(path, index=False)  # type: ignore[call-overload]
    with pytest.raises(UserError, match=rf"lack {named}.* Run the same `ss-lens paper` again"):
        gather(folder)


def test_tables_that_are_missing_are_named_with_the_command(folder: Path) -> None:
    (folder / "tables" / "curves.csv").unlink()
    with pytest.raises(UserError, match=r"no curves.csv; .* Run the same command again"):
        gather(folder)
