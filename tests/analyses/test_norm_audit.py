"""The norm audit finds what is put in: errors of known size, known phases, a planted violation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import iv
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses import norm_audit, style
from analyses.norm_audit import __main__ as command
from analyses.norm_audit.bent_bases import (
    DENSE,
    PUBLISHED_GRAM,
    apply_as_published,
    apply_with_basis,
    bases,
    orthonormal_basis,
)
from analyses.norm_audit.conclusions import findings
from analyses.norm_audit.conditions import BASES, BENT, EXACT, ROUNDED
from analyses.norm_audit.measures import audited, measure, resultant_length
from ss_lens import Activations, Calibration, Plane, Site, UserError
from ss_lens.geometry.operators import Ablate, Operator, RotateBy, RotateTo
from tests.conftest import made_activations, shared_file

D_MODEL = 48
SITES = tuple(Site(layer, stream) for layer in range(3) for stream in ("ln1_out", "ln2_out"))
STEERED = SITES[2:]
CONDITIONS = 3 + 2 * 4  # orthonormal: three dtypes; the others: also all of it in bfloat16
OPERATORS = audited()
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)


def random_activations(seed: int = 0, scale: float = 1.0) -> Activations:
    """Two classes with different means, of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(2, 20, len(SITES), D_MODEL, generator=generator)
    h = h * (1 + 9 * torch.rand(2, 20, len(SITES), 1, generator=generator))
    offset = torch.randn(len(SITES), D_MODEL, generator=generator)
    return made_activations(scale * (h[0] + 3 * offset), scale * (h[1] - 3 * offset), SITES)


@pytest.fixture(scope="module")
def acts() -> Activations:
    return random_activations()


@pytest.fixture(scope="module")
def calibration(acts: Activations) -> Calibration:
    rule = f"Explicit(sites='{','.join(map(str, STEERED))}')"
    return ss_lens.calibrate(acts, rule=rule)


@pytest.fixture(scope="module")
def table(acts: Activations, calibration: Calibration) -> pd.DataFrame:
    return measure(acts, calibration)


@pytest.fixture(scope="module")
def exact(calibration: Calibration) -> Tensor:
    return orthonormal_basis(calibration.plane)


def steered_rows(acts: Activations) -> np.ndarray:
    index = [SITES.index(site) for site in STEERED]
    rows = torch.cat((acts.positive, acts.negative))[:, index]
    return rows.reshape(-1, D_MODEL).double().numpy()


def row_of(
    table: pd.DataFrame,
    operator: str,
    basis: str = EXACT,
    dtype: str = "float64",
    arithmetic: str | None = None,
) -> pd.Series:
    rows = table.query(
        "operator == @operator and basis == @basis and dtype == @dtype and arithmetic == @wanted",
        local_dict={
            "operator": operator,
            "basis": basis,
            "dtype": dtype,
            "wanted": arithmetic or ("float32" if dtype == "bfloat16" else dtype),
        },
    )
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_table_has_a_row_per_operator_and_condition(table: pd.DataFrame) -> None:
    not_published = sum(not isinstance(operator, DENSE) for operator in OPERATORS)
    assert len(table) == len(OPERATORS) * CONDITIONS - 2 * not_published
    assert {*table["basis"]} == {*BASES}
    assert (table["n"] == 2 * 20 * len(STEERED)).all()
    assert not table.isna().any(axis=None)
    for what in ("norm", "outside"):
        assert (table[f"{what}_median"] <= table[f"{what}_q95"]).all()
        assert (table[f"{what}_q95"] <= table[f"{what}_max"]).all()
    all_bfloat16 = table.query("arithmetic == 'bfloat16'")
    assert {*all_bfloat16["operator"]} == {kind.__name__ for kind in DENSE}
    assert EXACT not in {*all_bfloat16["basis"]}


@pytest.mark.parametrize(
    "operator",
    ["RotateBy", "RotateScale", "RotateTo", "RotateToIfAligned", "RotateToward", "Reflect"],
)
def test_a_rotation_keeps_the_norm_exactly_in_exact_arithmetic(
    table: pd.DataFrame, operator: str
) -> None:
    assert row_of(table, operator).norm_max < 1e-14
    assert 1e-9 < row_of(table, operator, dtype="float32").norm_max < 1e-6
    assert 1e-4 < row_of(table, operator, dtype="bfloat16").norm_max < 1e-2


def test_only_the_rotation_out_of_the_plane_leaves_it(table: pd.DataFrame) -> None:
    for operator in {*table["operator"]}:
        outside = row_of(table, operator).outside_max
        assert outside > 0.01 if operator == "RotateToward" else outside < 1e-14


def test_what_ablation_does_to_the_norm_has_its_closed_form(
    acts: Activations, table: pd.DataFrame, exact: Tensor
) -> None:
    h = steered_rows(acts)
    cosines = h @ exact[0].numpy() / np.linalg.norm(h, axis=-1)
    expected = 1 - np.sqrt(1 - cosines**2)
    got = row_of(table, "Ablate")
    for column, q in (("norm_median", 0.5), ("norm_q95", 0.95), ("norm_max", 1.0)):
        assert got[column] == pytest.approx(np.quantile(expected, q), rel=1e-9)


def test_a_constant_radius_breaks_the_norm_as_far_as_the_radius_was_off(
    acts: Activations, table: pd.DataFrame, exact: Tensor
) -> None:
    h = steered_rows(acts)
    before = (h**2).sum(-1)
    radius = ((h @ exact.numpy().T) ** 2).sum(-1)
    expected = np.abs(np.sqrt((before - radius + 1) / before) - 1)
    assert row_of(table, "SetAngle").norm_max == pytest.approx(expected.max(), rel=1e-9)
    assert expected.max() > 1e-3


def test_relative_changes_do_not_depend_on_the_scale_of_the_activations(
    acts: Activations, calibration: Calibration, table: pd.DataFrame
) -> None:
    larger = made_activations(64 * acts.positive, 64 * acts.negative, SITES)
    scaled = measure(larger, calibration, [RotateBy(120), RotateTo(120)])
    for name in ("RotateBy", "RotateTo"):
        for basis, dtype in ((EXACT, "bfloat16"), (ROUNDED, "float64"), (BENT, "bfloat16")):
            got, expected = (row_of(t, name, basis, dtype) for t in (scaled, table))
            assert got.norm_max == pytest.approx(expected.norm_max, rel=1e-6)


@pytest.mark.parametrize("operator", ["RotateTo", "RotateBy"])
def test_a_bent_basis_breaks_the_norm_by_orders_of_magnitude(
    table: pd.DataFrame, operator: str
) -> None:
    kept, rounded, bent = (row_of(table, operator, basis) for basis in BASES)
    assert rounded.norm_max > 1e6 * kept.norm_max
    assert bent.norm_max > 3 * rounded.norm_max
    assert kept.basis_deviation < 1e-14 < rounded.basis_deviation < bent.basis_deviation
    # Half the Gram matrix's deviation, once before and once after, is all that it can do.
    for row in (rounded, bent):
        assert row.norm_max < 4 * row.basis_deviation


def test_the_bent_basis_has_the_gram_matrix_and_the_plane_it_should(exact: Tensor) -> None:
    made = bases(exact)
    gram = torch.tensor(PUBLISHED_GRAM, dtype=torch.float64)
    torch.testing.assert_close(made[BENT] @ made[BENT].T, gram, rtol=0, atol=1e-12)
    torch.testing.assert_close(made[BENT] @ exact.T @ exact, made[BENT], rtol=0, atol=1e-12)
    torch.testing.assert_close(made[EXACT] @ made[EXACT].T, torch.eye(2).double())
    assert made[ROUNDED].dtype == torch.bfloat16


def test_the_bent_basis_is_as_bent_as_the_published_one() -> None:
    path = shared_file("reference/Llama-3.2-1B-Instruct/plane.pt")
    published = torch.load(path, weights_only=True, map_location="cpu")["basis"]
    basis = torch.stack(published).double()
    torch.testing.assert_close(
        basis @ basis.T, torch.tensor(PUBLISHED_GRAM).double(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "model", ["Llama-3.2-1B-Instruct", "Qwen2.5-1.5B-Instruct", "gemma-2-2b-it"]
)
def test_published_bases_are_more_bent_than_rounding_explains(model: str) -> None:
    path = shared_file(f"reference/{model}/plane.pt")
    b1, b2 = torch.load(path, weights_only=True, map_location="cpu")["basis"]
    rounded = bases(orthonormal_basis(Plane.from_span(b1, b2)))[ROUNDED].double()
    assert abs(rounded[0] @ rounded[1]) < 5e-4
    assert 1.6e-3 < abs(b1.double() @ b2.double()) < 3.9e-3


@every_operator
def test_the_operators_own_map_with_an_orthonormal_basis_is_the_operator(
    acts: Activations, exact: Tensor, operator: Operator
) -> None:
    h = torch.from_numpy(steered_rows(acts))
    expected = operator.apply(h, Plane(exact[0], exact[1]))
    got = apply_with_basis(operator, h, exact)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "operator", [o for o in OPERATORS if isinstance(o, DENSE)], ids=lambda o: type(o).__name__
)
def test_the_published_form_is_the_operator_up_to_the_bend_of_the_basis(
    acts: Activations, exact: Tensor, operator: Operator
) -> None:
    h = torch.from_numpy(steered_rows(acts))
    made = bases(exact)
    for name, tolerance in ((EXACT, 1e-13), (ROUNDED, 1e-3), (BENT, 1e-2)):
        basis = made[name].double()
        difference = apply_as_published(operator, h, basis) - apply_with_basis(operator, h, basis)
        in_plane = (h @ exact.T).norm(dim=-1)
        assert (difference.norm(dim=-1) <= tolerance * in_plane).all()
    published = apply_as_published(operator, h.bfloat16(), made[ROUNDED])
    assert published.dtype == torch.bfloat16


def of_phases(phases: np.ndarray, exact: Tensor, calibration: Calibration) -> Activations:
    """Activations with given in-plane phases, of all radii, on random complements."""
    generator = np.random.default_rng(3)
    basis = exact.numpy()
    h = generator.normal(size=(*phases.shape, D_MODEL)) * 0.3
    h -= h @ basis.T @ basis
    radius = generator.uniform(1, 5, size=phases.shape)
    h += radius[..., None] * (np.cos(phases)[..., None] * basis[0])
    h += radius[..., None] * (np.sin(phases)[..., None] * basis[1])
    positive, negative = torch.from_numpy(h).float().chunk(2)
    return made_activations(positive, negative, calibration.sites)


@pytest.mark.parametrize("kappa", [0.5, 4.0])
def test_rotate_by_keeps_the_spread_of_phases_and_rotate_to_collapses_it(
    exact: Tensor, calibration: Calibration, kappa: float
) -> None:
    drawn = np.random.default_rng(0).vonmises(1.0, kappa, size=(400, len(SITES)))
    table = measure(of_phases(drawn, exact, calibration), calibration)
    steered = drawn[:, [SITES.index(site) for site in STEERED]]
    expected = abs(np.exp(1j * steered).mean())
    assert expected == pytest.approx(iv(1, kappa) / iv(0, kappa), abs=0.05)
    for operator in ("RotateBy", "RotateScale", "Reflect"):
        row = row_of(table, operator)
        assert row.phase_before == pytest.approx(expected, abs=1e-6)
        assert row.phase_after == pytest.approx(row.phase_before, abs=1e-6)
    for operator in ("RotateTo", "SetAngle"):
        assert row_of(table, operator).phase_after == pytest.approx(1, abs=1e-12)
    ablated = np.sign(np.sin(steered)).mean()
    assert row_of(table, "Ablate").phase_after == pytest.approx(abs(ablated), abs=1e-6)


def test_phases_that_cancel_have_length_zero_and_the_plane_alone_counts() -> None:
    basis = torch.eye(5, dtype=torch.float64)[:2]
    angles = torch.arange(6) * (2 * math.pi / 6)
    h = torch.stack((angles.cos(), angles.sin(), *torch.ones(3, 6)), dim=1).double()
    assert resultant_length(h, basis) == pytest.approx(0, abs=1e-7)
    assert resultant_length(h[:1].expand(4, -1), basis) == pytest.approx(1)
    without = torch.cat((h[:1], torch.tensor([[0.0, 0, 1, 1, 1]]).double()))
    assert resultant_length(without, basis) == pytest.approx(1)


def test_the_findings_state_what_the_table_holds(table: pd.DataFrame) -> None:
    said = findings(table)
    assert len(said) == 9
    for number, verdict, sentence in ((1, "does not hold", said[0]), (2, "holds", said[1])):
        assert sentence.startswith(f"Proposition {number}")
        assert f"as mathematics: {verdict}." in sentence
    keep, change, outside = said[2].split(";")
    for name in ("RotateScale(", "RotateToIfAligned(", "RotateToward(", "Reflect("):
        assert name in keep
    for name in ("SetAngle(", "Ablate(", "Add("):
        assert name in change
    assert "RotateToward(" in outside
    assert "Ablate(" not in keep + outside
    ratios = [
        row_of(table, "RotateTo", r.basis, r.dtype, r.arithmetic).norm_max / r.norm_max
        for r in table.query("operator == 'RotateBy'").iloc[1:].itertuples()
    ]
    assert len(ratios) == CONDITIONS - 1
    assert f"{min(ratios):.2f} to {max(ratios):.2f} times" in said[-2]
    for sentence, basis in ((said[3], ROUNDED), (said[4], BENT)):
        mantissa, exponent = f"{row_of(table, 'RotateTo', basis).norm_max:.1e}".split("e")
        assert f"{basis} (off" in sentence
        assert f"rotate_to up to {mantissa}e{int(exponent)}," in sentence
    assert "rotate_by keeps it" in said[-1]
    assert "rotate_to collapses it" in said[-1]


def test_a_planted_violation_turns_the_findings_round(table: pd.DataFrame) -> None:
    planted = table.copy()
    here = (planted["basis"] == EXACT) & (planted["dtype"] == "float64")
    rotations = planted["operator"].isin(["RotateTo", "RotateBy"])
    planted.loc[here & rotations, ["norm_max", "phase_after"]] = [0.037, 0.5]
    said = findings(planted)
    assert "as mathematics: holds" in said[0]
    assert "3.7e-2" in said[0]
    assert "as mathematics: does not hold" in said[1]
    assert "rotate_by changes it" in said[-1]
    assert "rotate_to changes it" in said[-1]
    reflecting = planted["operator"] == "Reflect"
    planted.loc[here & reflecting, "norm_max"] = 0.2
    assert "Reflect() by up to 0.2" in findings(planted)[2].split(";")[1]


def test_the_findings_need_both_operators_of_the_propositions(
    acts: Activations, calibration: Calibration
) -> None:
    table = measure(acts, calibration, [RotateTo(30), Ablate()])
    with pytest.raises(UserError, match="RotateBy was not audited"):
        findings(table)


def test_another_models_activations_are_refused(
    calibration: Calibration, acts: Activations
) -> None:
    other = replace(acts.spec, model=replace(acts.spec.model, fingerprint="e" * 64, name="other"))
    strange = Activations(acts.positive, acts.negative, other)
    with pytest.raises(UserError, match="made on 'made-up', the activations are of 'other'"):
        measure(strange, calibration)


def test_an_activation_of_length_zero_is_refused(
    calibration: Calibration, acts: Activations
) -> None:
    positive = acts.positive.clone()
    positive[3, SITES.index(STEERED[0])] = 0
    with pytest.raises(UserError, match="length 0"):
        measure(Activations(positive, acts.negative, acts.spec), calibration)


def test_the_figure_shows_the_table(table: pd.DataFrame) -> None:
    figure = norm_audit.figure(table, "made up")
    traces = [trace for trace in figure.data if trace.meta != style.EXPLAINS]
    assert len(traces) == CONDITIONS + 2
    drawn = [x for trace in traces[:-2] for x in trace.x]
    assert len(drawn) == len(table)
    assert sorted(x for x in drawn if x > 1e-17) == sorted(
        table.loc[table["norm_median"] > 0, "norm_median"]
    )
    largest = [
        x + reach
        for trace in traces[:-2]
        for x, reach in zip(trace.x, trace.error_x.array, strict=True)
    ]
    np.testing.assert_allclose(sorted(largest), sorted(table["norm_max"]), rtol=1e-6, atol=1e-17)
    assert [trace.name for trace in figure.data if trace.showlegend and not trace.meta] == [
        "float64",
        "float32",
        "bfloat16, computed in float32",
        "all in bfloat16, as published",
    ]
    exact = table.query("basis == @EXACT and dtype == 'float64'")
    assert list(figure.data[-1].x) == list(exact["phase_after"])
    assert "made up" in figure.layout.title.text


def test_exact_zeros_are_drawn_at_the_axis_mark_zero(table: pd.DataFrame) -> None:
    zero = table.copy()
    here = (zero["basis"] == EXACT) & (zero["dtype"] == "float64") & (zero["operator"] == "Reflect")
    zero.loc[here, ["norm_median", "norm_q95", "norm_max"]] = 0.0
    figure = norm_audit.figure(zero)
    axis = figure.layout.xaxis
    assert axis.ticktext[0] == "0"
    trace = figure.data[0]
    at = [row[0] for row in trace.customdata].index("Reflect()")
    assert trace.x[at] == axis.tickvals[0]
    assert trace.marker.symbol == "circle"
    assert trace.error_x.array[at] == 0
    assert math.log10(trace.x[at]) > axis.range[0]


def test_the_command_writes_table_and_figure_and_prints_the_findings(
    tiny_llama: TransformerBridge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    acts: Activations,
) -> None:
    monkeypatch.setattr(ss_lens, "load_model", lambda name, **_: tiny_llama)
    monkeypatch.setattr(ss_lens, "capture", lambda model, data: acts)
    command.main("any", "refusal", tmp_path)
    written = pd.read_csv(tmp_path / "norm_audit.csv")
    assert len(written) == len(measure(acts, ss_lens.calibrate(acts)))
    assert (tmp_path / "norm_audit.html").exists()
    printed = capsys.readouterr().out
    assert all(f"- {finding}" in printed for finding in findings(written))


def test_every_operator_that_needs_no_length_is_audited() -> None:
    kinds = {kind for kind in Operator.kinds() if not kind.needs_length}
    assert {type(operator) for operator in audited()} == kinds
    assert {*DENSE} < kinds
