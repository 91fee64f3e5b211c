"""The token-level trace against activations that plain Hugging Face hooks saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import (
    Ablate,
    Calibration,
    Plane,
    RotateBy,
    RotateToIfAligned,
    Site,
    UserError,
    generate,
    steer,
)
from ss_lens.geometry.operators import Operator
from ss_lens.steering.positions import GeneratedOnly, LastPrompt, PassTokens, PromptOnly
from ss_lens.steering.steer import steer_all
from ss_lens.steering.trace import Trace
from tests.fitting import Fitted, padded
from tests.oracles import Edit, HuggingFaceOracle, dense_rotation, relative_error

ANGLE = 130.0
PROMPTS = ("w9 w70 w33", "w12", "w50 w51 w52 w53 w54 w55")
COLUMNS = {
    "forward_pass": "int64",
    "site": "text",
    "edit": "int64",
    "row": "int64",
    "position": "int64",
    "is_prompt": "bool",
    "changed": "bool",
    "angle_before_deg": "float64",
    "angle_after_deg": "float64",
    "norm_before": "float64",
    "norm_after": "float64",
    "in_plane_norm_before": "float64",
    "in_plane_norm_after": "float64",
}


@pytest.fixture
def calibration(fitted: Fitted) -> Calibration:
    return fitted("llama")


IDS = torch.tensor([[1, 9, 40, 6]])


@torch.inference_mode()
def logits_of(model: TransformerBridge, ids: Tensor = IDS) -> Tensor:
    return model(ids)


def traced(
    model: TransformerBridge, calibration: Calibration, operator: Operator, ids: Tensor = IDS
) -> pd.DataFrame:
    trace = Trace()
    with steer(model, calibration, operator, trace=trace):
        logits_of(model, ids)
    return trace.frame()


def phase(h: np.ndarray, plane: Plane) -> np.ndarray:
    """By complex numbers, from the two projections."""
    b1, b2 = (b.double().numpy() for b in (plane.b1, plane.b2))
    return np.angle(h @ b1 + 1j * (h @ b2), deg=True) % 360


def kinds(table: pd.DataFrame) -> dict[str, str]:
    """The dtypes, with pandas 2's name for text and pandas 3's as one."""
    found = table.dtypes.astype(str).to_dict()
    return {name: "text" if kind in ("str", "object") else kind for name, kind in found.items()}


def close(got: pd.Series, expected: np.ndarray | pd.Series, rtol: float) -> bool:
    return np.allclose(got.to_numpy(), np.asarray(expected), rtol=rtol, atol=0)


def in_plane_norm(h: np.ndarray, plane: Plane) -> np.ndarray:
    return np.linalg.norm(h @ plane.basis.double().numpy().T, axis=-1)


def recorded(edit: Edit, chosen: range, into: list[tuple[np.ndarray, np.ndarray]]) -> Edit:
    """``edit`` on the chosen tokens of ``[1, token, d_model]``; keeps what came and what went."""

    def hook(h: Tensor) -> Tensor:
        new = torch.cat(
            [edit(token) if i in chosen else token for i, token in enumerate(h.split(1, dim=1))],
            dim=1,
        )
        into.append((h[0].double().numpy(), new[0].double().numpy()))
        return new

    return hook


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("stream", ["ln2_out", "resid_mid"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_row_equals_what_plain_hooks_saw_in_the_unpadded_prompt(
    architecture: str,
    stream: str,
    side: str,
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
    fitted: Fitted,
) -> None:
    model, oracle = tiny_models[architecture], HuggingFaceOracle(tiny_folders[architecture])
    calibration, trace = fitted(architecture, stream), Trace()
    plane, prompts = calibration.plane, [oracle.ids(prompt) for prompt in PROMPTS]
    ids, mask = padded(prompts, side)
    with (
        torch.inference_mode(),
        steer(model, calibration, RotateBy(ANGLE), positions=LastPrompt(3), trace=trace),
    ):
        model(ids, attention_mask=mask)
    table = trace.frame()
    assert len(table) == 3 * sum(prompt.shape[1] for prompt in prompts)
    for row, prompt in enumerate(prompts):
        n = prompt.shape[1]
        seen: dict[Site, list] = {site: [] for site in calibration.selected_sites}
        edit = dense_rotation(plane, ANGLE)
        oracle.logits(
            prompt, {site: recorded(edit, range(n - 3, n), into) for site, into in seen.items()}
        )
        for site, ((before, after),) in seen.items():
            part = table[(table["row"] == row) & (table["site"] == str(site))]
            assert part["position"].tolist() == list(range(n))
            assert part["changed"].tolist() == [i >= n - 3 for i in range(n)]
            assert part["is_prompt"].all()
            for name, h in (("before", before), ("after", after)):
                turn = (part[f"angle_{name}_deg"] - phase(h, plane) + 180) % 360 - 180
                assert np.abs(turn).max() < 0.05
                assert close(part[f"norm_{name}"], np.linalg.norm(h, axis=-1), 1e-4)
                assert close(part[f"in_plane_norm_{name}"], in_plane_norm(h, plane), 1e-3)


@pytest.mark.parametrize("angle", [40.0, -75.0, 180.0])
def test_rotating_adds_its_angle_to_the_phase_and_keeps_both_norms(
    angle: float, tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    table = traced(tiny_llama, calibration, RotateBy(angle))
    turn = (table["angle_after_deg"] - table["angle_before_deg"] - angle + 180) % 360 - 180
    assert np.abs(turn).max() < 1e-3
    assert close(table["norm_after"], table["norm_before"], 1e-6)
    assert close(table["in_plane_norm_after"], table["in_plane_norm_before"], 1e-5)
    assert table["changed"].all()
    for name in ("angle_before_deg", "angle_after_deg"):
        assert table[name].between(0, 360, inclusive="left").all()


def test_changed_says_what_the_operator_did_and_not_what_was_selected(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    table = traced(tiny_llama, calibration, RotateToIfAligned(ANGLE))
    aligned = ~table["angle_before_deg"].between(90, 270)
    assert 0 < aligned.sum() < len(table)
    assert (table["changed"] == aligned).all()


def test_tracing_changes_no_logit(tiny_llama: TransformerBridge, calibration: Calibration) -> None:
    for operator in (RotateBy(ANGLE), Ablate()):
        with steer(tiny_llama, calibration, operator):
            expected = logits_of(tiny_llama)
        with steer(tiny_llama, calibration, operator, trace=Trace()):
            assert torch.equal(logits_of(tiny_llama), expected)


@pytest.mark.parametrize("stream", ["ln2_out", "resid_mid"])
def test_the_trace_of_an_identity_records_and_changes_nothing(
    stream: str, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, expected, trace = fitted("llama", stream), logits_of(tiny_llama), Trace()
    with steer(tiny_llama, calibration, RotateBy(360), trace=trace):
        assert torch.equal(logits_of(tiny_llama), expected)
    table = trace.frame()
    assert len(table) == 4 * len(calibration.selected_sites)
    assert not table["changed"].any()
    assert (table["angle_before_deg"] == table["angle_after_deg"]).all()
    assert (table["norm_before"] == table["norm_after"]).all()


def test_rows_are_the_prompts_given_and_positions_count_over_the_cache(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path], calibration: Calibration
) -> None:
    """Batches are sorted by length, and finished rows are computed on; the trace shows neither."""
    oracle, trace, new = HuggingFaceOracle(tiny_folders["llama"]), Trace(), 6
    with steer(tiny_llama, calibration, RotateBy(ANGLE), positions=GeneratedOnly(), trace=trace):
        generate(tiny_llama, PROMPTS, max_new_tokens=new, batch_size=2)
    table = trace.frame()
    assert sorted(table["row"].unique()) == [0, 1, 2]
    assert table["forward_pass"].max() + 1 <= 2 * new  # two batches
    for row, prompt in enumerate(PROMPTS):
        n = oracle.ids(prompt).shape[1]
        for _, part in table[table["row"] == row].groupby("site"):
            assert part["position"].tolist() == list(range(len(part)))
            assert part["is_prompt"].tolist() == [i < n for i in range(len(part))]
            assert n < len(part) <= n + new - 1  # the last new token is not read
    assert (table["changed"] == ~table["is_prompt"]).all()


def test_a_finished_row_leaves_the_trace_while_the_others_go_on(
    tiny_llama: TransformerBridge, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([[5, 5], [2, 6], [7, 7], [8, 2]])  # 2 ends an answer
    monkeypatch.setattr(
        "ss_lens.generation.loop.greedy", lambda *arguments: torch.tensor(next(drawn))
    )
    trace = Trace()
    with steer(tiny_llama, calibration, RotateBy(ANGLE), trace=trace):
        texts = generate(tiny_llama, ["w9", "w70"], max_new_tokens=9)
    table = trace.frame()
    answer = table[~table["is_prompt"]].groupby("row")["position"].nunique()
    assert answer.tolist() == [1, 3]
    assert [len(tiny_llama.tokenizer.tokenize(text)) for text in texts] == [1, 3]


def test_the_edits_of_a_composition_follow_one_another(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    trace = Trace()
    pairs = [(calibration, RotateBy(50)), (calibration, RotateBy(30))]
    with steer_all(tiny_llama, pairs, max_overlap=1, positions=PromptOnly(), trace=trace):
        logits_of(tiny_llama)
    table = trace.frame()
    first, second = (table[table["edit"] == i].reset_index() for i in (0, 1))
    assert len(first) == len(second) == 4 * len(calibration.selected_sites)
    assert (first["angle_after_deg"] == second["angle_before_deg"]).all()
    assert (first["norm_after"] == second["norm_before"]).all()


def test_a_trace_is_empty_before_anything_ran(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    trace = Trace()
    assert trace.frame().empty
    with steer(tiny_llama, calibration, RotateBy(ANGLE), trace=trace):
        pass
    assert trace.frame().empty
    assert kinds(trace.frame()) == COLUMNS
    with steer(tiny_llama, calibration, RotateBy(ANGLE), trace=trace):
        logits_of(tiny_llama)
    assert kinds(trace.frame()) == COLUMNS


def test_a_trace_goes_on_counting_in_a_second_block(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    trace = Trace()
    for angle in (30, 60):
        with steer(tiny_llama, calibration, RotateBy(angle), trace=trace):
            logits_of(tiny_llama)
            logits_of(tiny_llama, IDS[:, :2])
    sizes = trace.frame().groupby("forward_pass").size()
    assert sizes.tolist() == [n * len(calibration.selected_sites) for n in (4, 2, 4, 2)]


def test_nested_blocks_need_a_trace_each(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    trace, message = Trace(), r"recording another steer\(\.\.\.\) block already; give each its own"
    with steer(tiny_llama, calibration, RotateBy(30), trace=trace):
        with (
            pytest.raises(UserError, match=message),
            steer(tiny_llama, calibration, RotateBy(30), trace=trace),
        ):
            pass
        with steer(tiny_llama, calibration, RotateBy(30), trace=Trace()):
            pass
    with steer(tiny_llama, calibration, RotateBy(30), trace=trace):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_phases_lie_in_a_full_turn_and_a_zero_part_has_none(dtype: torch.dtype) -> None:
    plane = Plane(torch.eye(3)[0], torch.eye(3)[1])
    h = torch.tensor([[[1, 0, 0], [0, 2, 1], [-3, 0, 0], [0, -1, 0], [1, -1e-20, 0], [0, 0, 5]]])
    whole = torch.ones(1, 6, dtype=torch.bool)
    tokens = PassTokens((7,), torch.arange(6).unsqueeze(0), whole, torch.tensor([6]))
    trace = Trace()
    trace.record(tokens, Site(0, "ln1_out"), 0, plane, h.to(dtype), h.to(dtype))
    table = trace.frame()
    assert np.array_equal(table["angle_after_deg"], [0, 90, 180, 270, 0, np.nan], equal_nan=True)
    assert table["norm_after"].tolist() == pytest.approx([1, 5**0.5, 3, 1, 1, 5])
    assert table["in_plane_norm_after"].tolist() == [1, 2, 3, 1, 1, 0]
    assert table["row"].unique().tolist() == [7]
    assert not table["changed"].any()


def test_the_trace_takes_the_memory_that_it_states(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    trace = Trace()
    with steer(tiny_llama, calibration, RotateBy(ANGLE), trace=trace):
        logits_of(tiny_llama)
    held = sum(r.changed.nbytes + r.measures.nbytes for r in trace._records)
    assert held == 49 * len(trace.frame())


def test_steered_logits_agree_with_the_oracle_while_traced(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path], calibration: Calibration
) -> None:
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    edit = dense_rotation(calibration.plane, ANGLE)
    with steer(tiny_llama, calibration, RotateBy(ANGLE), trace=Trace()):
        got = logits_of(tiny_llama)[0]
    expected = oracle.logits(IDS, dict.fromkeys(calibration.selected_sites, edit))
    assert relative_error(got, expected) < 1e-4
