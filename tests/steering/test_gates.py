"""Gated steering against unpadded, uncached models that are edited or not, prompt by prompt."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import (
    Activations,
    AllPositions,
    Calibration,
    Gate,
    GeneratedOnly,
    LastPrompt,
    PromptOnly,
    RotateBy,
    RotateTo,
    Site,
    Trace,
    UserError,
    generate,
    steer,
    sweep_angles,
)
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.steering.positions import Positions
from tests.conftest import made_activations
from tests.fitting import Fitted, padded
from tests.oracles import HuggingFaceOracle, dense_rotation, everywhere
from tests.steering.rows import ANGLE, LENGTH, PROMPTS, TINY, hooks_on, streamed_in_turns

HARDLY_APART = pytest.mark.filterwarnings("ignore:the gate at .* separates the classes badly")
"""The tiny models do not tell the classes of their prompts apart, and a gate on them says so."""
LATER = ss_lens.Explicit(sites="L0.ln2_out,L1.ln1_out,L2.ln2_out")


def direction_of(width: int = 32) -> Tensor:
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(5))
    return drawn / drawn.norm()


def projections(oracle: HuggingFaceOracle, site: Site, prompts: Sequence[str]) -> list[float]:
    """Of the last token of each prompt, alone and unsteered."""
    read = [oracle.activations(oracle.ids(prompt), [site])[-1, 0] for prompt in prompts]
    return [float(h @ direction_of()) for h in read]


def gate_between(
    oracle: HuggingFaceOracle, site: Site, prompts: Sequence[str] = PROMPTS
) -> tuple[Gate, list[bool]]:
    """A gate that opens for about half of the prompts, far from all of them, and for which."""
    found = projections(oracle, site, prompts)
    gaps = [(high - low, (low + high) / 2) for low, high in itertools.pairwise(sorted(found))]
    _, threshold = max(gaps[1:-1])
    is_open = [value > threshold for value in found]
    assert {*is_open} == {True, False}
    return Gate(site, direction_of(), threshold), is_open


# --- What a gate does ----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("at", ["L0.resid_mid", "L0.ln2_out"])
def test_gated_answers_equal_plain_hooks_on_those_prompts_that_open_the_gate(
    architecture: str,
    at: str,
    tiny_models: dict[str, TransformerBridge],
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    model, oracle = tiny_models[architecture], oracles[architecture]
    calibration = fitted(architecture, "ln2_out")
    gate, is_open = gate_between(oracle, Site.parse(at))
    edits = everywhere(dense_rotation(calibration.plane, ANGLE), calibration.selected_sites)
    expected = [
        oracle.greedy(prompt, LENGTH, edits if opened else None)
        for prompt, opened in zip(PROMPTS, is_open, strict=True)
    ]
    trace = Trace()
    with steer(model, calibration, RotateBy(ANGLE), when=gate, trace=trace):
        got = generate(model, PROMPTS, max_new_tokens=LENGTH, batch_size=3)
    assert got == expected
    assert got != generate(model, PROMPTS, max_new_tokens=LENGTH)
    asked = trace.gates().sort_values("row")
    assert asked["row"].tolist() == [*range(len(PROMPTS))]
    assert asked["is_open"].tolist() == is_open
    found = projections(oracle, gate.site, PROMPTS)
    assert asked["projection"].tolist() == pytest.approx(found, rel=1e-4, abs=1e-4)
    assert {*asked["site"]} == {at}
    changed = trace.frame().groupby("row")["changed"].agg("any")
    assert changed.tolist() == is_open


def test_a_gate_at_the_stream_that_is_edited_reads_it_before_the_edit(
    tiny_llama: TransformerBridge, oracles: dict[str, HuggingFaceOracle], fitted: Fitted
) -> None:
    for stream in ("resid_mid", "resid_post"):
        gate, is_open = gate_between(oracles["llama"], Site(0, stream))
        trace = Trace()
        with steer(tiny_llama, fitted("llama", stream), RotateBy(180), when=gate, trace=trace):
            refusal = tiny_llama(oracles["llama"].ids(PROMPTS[0]))
        assert refusal.isfinite().all()
        assert trace.gates()["is_open"].tolist() == is_open[:1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_of_a_batch_are_gated_each_by_its_own_end(
    side: str,
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    oracle, calibration = oracles["llama"], fitted("llama", "ln2_out")
    gate, is_open = gate_between(oracle, Site(0, "resid_mid"))
    rows = [oracle.ids(prompt) for prompt in PROMPTS]
    ids, mask = padded(rows, side)
    with torch.inference_mode():
        plain = tiny_llama(ids, attention_mask=mask)
        with steer(tiny_llama, calibration, RotateBy(ANGLE)):
            steered = tiny_llama(ids, attention_mask=mask)
        with steer(tiny_llama, calibration, RotateBy(ANGLE), when=gate):
            gated = tiny_llama(ids, attention_mask=mask)
    for row, opened in enumerate(is_open):
        real = mask[row].bool()
        assert torch.equal(gated[row][real], (steered if opened else plain)[row][real])
        assert not torch.equal(gated[row][real], (plain if opened else steered)[row][real])


@pytest.mark.parametrize("operator", [RotateBy(ANGLE), RotateTo(20)], ids=repr)
def test_a_gate_that_never_opens_changes_no_bit_and_one_that_always_does_is_none(
    operator: RotateBy, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, site = fitted("llama", "ln2_out"), Site(0, "resid_mid")
    tokens = tokenize(tiny_llama, [PROMPTS[0]])[0]
    ids = torch.tensor([tokens, tokens])
    never, always = (Gate(site, direction_of(), sign * torch.inf) for sign in (1, -1))
    with torch.inference_mode():
        plain = tiny_llama(ids)
        with steer(tiny_llama, calibration, operator, when=never):
            assert torch.equal(tiny_llama(ids), plain)
            unsteered = generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH)
        assert unsteered == generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH)
        with steer(tiny_llama, calibration, operator):
            steered = tiny_llama(ids)
        with steer(tiny_llama, calibration, operator, when=always):
            assert torch.equal(tiny_llama(ids), steered)
    assert not torch.equal(steered, plain)


def test_scores_inside_a_gated_block_are_the_steered_ones_of_the_open_prompts(
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shared beginning of prompts must not run before the gate has read their ends."""
    monkeypatch.setattr("ss_lens.scoring.refusal_score.REFUSAL_OPENINGS", ("w9", "w10"))
    monkeypatch.setattr("ss_lens.scoring.refusal_score.COMPLIANCE_OPENINGS", ("w11", "w12"))
    calibration = fitted("llama", "ln2_out")
    gate, is_open = gate_between(oracles["llama"], Site(0, "resid_mid"))
    plain = refusal_score(tiny_llama, PROMPTS)["refusal_score"]
    with steer(tiny_llama, calibration, RotateBy(ANGLE)):
        steered = refusal_score(tiny_llama, PROMPTS)["refusal_score"]
    with steer(tiny_llama, calibration, RotateBy(ANGLE), when=gate):
        gated = refusal_score(tiny_llama, PROMPTS)["refusal_score"]
    expected = steered.where(is_open, plain)
    assert gated.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert (plain - steered).abs().min() > 1e-3


# --- The answer ----------------------------------------------------------------------------------


def test_a_late_gate_serves_where_only_the_answer_is_steered(
    tiny_llama: TransformerBridge, oracles: dict[str, HuggingFaceOracle], fitted: Fitted
) -> None:
    calibration, late = fitted("llama", "ln2_out"), Site(2, "resid_post")
    gate, is_open = gate_between(oracles["llama"], late)
    positions = GeneratedOnly()
    with steer(tiny_llama, calibration, RotateBy(ANGLE), positions=positions):
        steered = generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH)
    plain = generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH)
    with steer(tiny_llama, calibration, RotateBy(ANGLE), positions=positions, when=gate):
        gated = generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH)
    texts = zip(steered, plain, is_open, strict=True)
    assert gated == [one if opened else other for one, other, opened in texts]
    message = (
        r"the gate reads L2\.resid_post, and steering begins before it, at L0\.ln2_out.*"
        r"expected a gate at L0\.ln2_out or before"
    )
    before = hooks_on(tiny_llama)
    for wrong in (AllPositions(), PromptOnly(), LastPrompt(1)):
        with (
            pytest.raises(UserError, match=message),
            steer(tiny_llama, calibration, RotateBy(ANGLE), positions=wrong, when=gate),
        ):
            pass
    assert hooks_on(tiny_llama) == before


def test_a_decision_belongs_to_the_cache_of_its_prompt_however_answers_take_turns(
    tiny_llama: TransformerBridge, oracles: dict[str, HuggingFaceOracle], fitted: Fitted
) -> None:
    calibration = fitted("llama", "ln2_out")
    gate, is_open = gate_between(oracles["llama"], Site(0, "resid_mid"))
    pair = [PROMPTS[is_open.index(True)], PROMPTS[is_open.index(False)]]
    with steer(tiny_llama, calibration, RotateBy(ANGLE), when=gate):
        alone = [
            [grown.text for grown in ss_lens.stream(tiny_llama, one, max_new_tokens=LENGTH)]
            for one in pair
        ]
        together = streamed_in_turns(tiny_llama, pair)
    assert together == alone


def test_an_answer_whose_prompt_the_gate_has_not_read_is_refused(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration = fitted("llama", "ln2_out")
    gate = Gate(Site(0, "resid_mid"), direction_of(), 0.0)
    ids = torch.tensor([[1, 9, 40, 6]])
    with torch.inference_mode():
        _, cache = forward.run(tiny_llama, ids, torch.ones_like(ids), keep_cache=True)
        message = r"the gate at L0\.resid_mid has not read the end of the prompts .*\(1 rows\)"
        with (
            pytest.raises(UserError, match=message),
            steer(tiny_llama, calibration, RotateBy(ANGLE), when=gate),
        ):
            forward.run(tiny_llama, ids[:, :1], ids.new_ones(1, 5), cache, keep_cache=True)
        message = "this pass holds the end of 0 of 1 prompts.*expected whole prompts in one pass"
        with (
            pytest.raises(UserError, match=message),
            steer(tiny_llama, calibration, RotateBy(ANGLE), when=gate),
        ):
            forward.compute_prefix(tiny_llama, (1, 9, 40))


@pytest.mark.parametrize(
    ("positions", "at"),
    [
        *((one, "L0.ln2_out") for one in (AllPositions(), PromptOnly(), LastPrompt(2))),
        *((one, "L1.ln1_out") for one in (AllPositions(), LastPrompt(1), GeneratedOnly())),
        (GeneratedOnly(), "L2.resid_post"),
    ],
    ids=str,
)
def test_a_gated_sweep_equals_one_gated_run_per_angle(
    positions: Positions,
    at: str,
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    uppermost: Calibration,
) -> None:
    gate, is_open = gate_between(oracles["llama"], Site.parse(at))
    angles = [20.0, 130.0, 200.0]
    shared = {"max_new_tokens": LENGTH, "positions": positions}
    table = sweep_angles(
        *(tiny_llama, uppermost, RotateTo, PROMPTS, angles), batch_rows=7, when=gate, **shared
    )
    for angle, rows in table.groupby("angle_deg"):
        operator = RotateTo(float(angle))
        with steer(tiny_llama, uppermost, operator, positions=positions, when=gate):
            expected = generate(tiny_llama, PROMPTS, max_new_tokens=LENGTH)
        assert rows.sort_values("prompt_index")["response"].tolist() == expected
    answers = table.groupby("prompt_index")["response"].nunique()
    assert (answers[[not opened for opened in is_open]] == 1).all()


@pytest.fixture
def uppermost(tiny_llama: TransformerBridge, tiny_data: ss_lens.ContrastiveDataset) -> Calibration:
    """Steers from the second block on, so that a sweep runs the first one once per prompt."""
    acts = ss_lens.capture(tiny_llama, tiny_data)
    return ss_lens.calibrate(acts, rule=ss_lens.Explicit(sites="L1.ln1_out,L1.ln2_out,L2.ln1_out"))


# --- The life of the hooks -----------------------------------------------------------------------


def test_no_hook_of_a_gate_is_left_behind(tiny_llama: TransformerBridge, fitted: Fitted) -> None:
    before, calibration = hooks_on(tiny_llama), fitted("llama", "resid_mid")
    gate = Gate(Site(0, "resid_mid"), direction_of(), 0.0)

    def fail_with(error: BaseException) -> None:
        with steer(tiny_llama, calibration, RotateBy(ANGLE), when=gate):
            assert hooks_on(tiny_llama) > before
            generate(tiny_llama, PROMPTS[:2], max_new_tokens=2)
            raise error

    for error in (RuntimeError("in the body"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail_with(error)
        assert hooks_on(tiny_llama) == before
    with steer(tiny_llama, calibration, RotateBy(0), when=gate):
        assert hooks_on(tiny_llama) == before


# --- The threshold -------------------------------------------------------------------------------


@pytest.fixture
def parts(tiny_data: ss_lens.ContrastiveDataset) -> ss_lens.datasets.contrastive.DatasetSplit:
    return tiny_data.split(dev=4, test=2, seed=0)


@HARDLY_APART
def test_a_threshold_from_dev_opens_for_a_stated_share_of_the_negative_prompts(
    tiny_llama: TransformerBridge, parts: ss_lens.datasets.contrastive.DatasetSplit
) -> None:
    calibration = ss_lens.calibrate(ss_lens.capture(tiny_llama, parts.train), rule=LATER)
    dev = ss_lens.capture(tiny_llama, parts.dev)
    first = calibration.selected_sites[0]
    for rate, opened in ((0.2, 0), (0.4, 1), (0.5, 1), (0.8, 3)):
        gate = Gate.from_dev(calibration, dev, false_positive_rate=rate)
        assert gate.fit is not None
        assert (gate.site, gate.fit.opened_negative) == (first, opened)
        assert f"false-positive rate at most {rate:g}" in repr(gate)
    later = Gate.from_dev(
        calibration, dev, false_positive_rate=0.2, site=calibration.selected_sites[-1]
    )
    assert later.site == calibration.selected_sites[-1]
    gate = Gate.from_dev(calibration, dev, false_positive_rate=0.4)
    trace = Trace()
    with steer(tiny_llama, calibration, RotateBy(90), when=gate, trace=trace):
        refused = generate(tiny_llama, parts.dev.negative, max_new_tokens=1)
    assert len(refused) == 4
    assert trace.gates()["is_open"].sum() in (1, 2)  # the threshold is itself one of them


def projected(positive: Sequence[float], negative: Sequence[float]) -> Activations:
    """Dev activations whose projections on the first axis are given, at one site."""
    axis = torch.eye(4)[0]
    sides = [torch.tensor(side).reshape(-1, 1, 1) * axis for side in (positive, negative)]
    return made_activations(*sides, (Site(0, "ln1_out"),))


@pytest.mark.parametrize(
    ("positive", "negative", "rate", "told"),
    [
        ([5.0] * 10, [0.0] * 9, 0.1, None),
        # Half of the positive prompts open it, and no negative one outranks them.
        ([5.0] * 5 + [1.0] * 5, [float(n) / 10 for n in range(8)] + [3.0], 0.1, None),
        ([5.0] * 4 + [1.0] * 6, [0.0] * 8 + [3.0], 0.1, (4, 10, "40%", "0.93")),
        # A high rate opens it for most, and yet it ranks the classes badly.
        ([2.0, 2.0, 2.0, 0.0], [1.0, 1.0, 3.0], 0.75, (3, 4, "75%", "0.50")),
    ],
)
def test_a_gate_that_separates_badly_on_dev_says_so_in_one_line(
    positive: list[float],
    negative: list[float],
    rate: float,
    told: tuple[int, int, str, str] | None,
) -> None:
    fitted_on = projected([4.0, 4.5, 5.0], [-1.0, -1.5, -0.5])
    along, other = ss_lens.AtSite("L0.ln1_out"), ss_lens.RandomSecond(seed=0)
    methods = {"choice": along, "plane": other, "rule": "uniform", "streams": ("ln1_out",)}
    calibration = ss_lens.calibrate(fitted_on, **methods)
    dev = projected(positive, negative)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gate = Gate.from_dev(calibration, dev, false_positive_rate=rate)
    assert gate.fit is not None
    if told is None:
        assert caught == []
        return
    (warning,) = caught
    opened, n, share, auc = told
    assert warning.category is UserWarning
    assert str(warning.message) == (
        f"the gate at L0.ln1_out separates the classes badly: on dev it opens for {opened} of {n} "
        f"positive prompts ({share}) at a false-positive rate of {rate:g}, with an AUC of {auc}; "
        "expected at least 50% and 0.8. Choose another site=, steer from a later site on, or state "
        "a higher rate."
    )
    assert f"{gate.fit.auc:.2f}" == auc


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (40, 0.1), (99, 0.25)])
def test_the_stated_rate_is_that_of_new_prompts(n: int, rate: float) -> None:
    """For uniform projections the rate of new ones is 1 − t, with mean rank / (n + 1)."""
    from ss_lens.steering.gates import _threshold

    generator = torch.Generator().manual_seed(3)
    found = [
        1 - _threshold(torch.rand(n, generator=generator), rate)
        for _ in range(4000)
    ]  # fmt: skip
    mean = sum(found) / len(found)
    assert mean == pytest.approx(int(rate * (n + 1)) / (n + 1), abs=0.004)
    assert mean <= rate + 0.004


@HARDLY_APART
def test_bad_gates_are_refused_in_one_line(
    tiny_models: dict[str, TransformerBridge],
    parts: ss_lens.datasets.contrastive.DatasetSplit,
    unchecked_types: None,
) -> None:
    model = tiny_models["llama"]
    train, dev = (ss_lens.capture(model, part) for part in (parts.train, parts.dev))
    calibration = ss_lens.calibrate(train, rule=LATER)
    other = ss_lens.capture(tiny_models["gemma3"], parts.dev)
    some = ss_lens.capture(model, parts.dev, layers=[2])
    mean = ss_lens.capture(model, parts.dev, position="mean")
    half = {"false_positive_rate": 0.5}
    first = Site(0, "ln2_out")
    for arguments, message in (
        ((calibration, None, half), "dev must be activations of held-out prompts.*got None"),
        ((calibration, train, half), "12 of the 12 dev prompts are those .*fitted on"),
        ((calibration, other, half), "dev activations are of .*with other weights"),
        ((calibration, some, half), r"were not captured at L0\.\w+; captured are L2"),
        ((calibration, mean, half), "captured at position 'mean', and a gate reads the last"),
        ((calibration, dev, {**half, "site": Site(0, "ln1_out")}), "found no direction at L0.ln1"),
        ((calibration, dev, {**half, "site": Site(9, "ln1_out")}), "has no site at L9"),
        ((calibration, dev, {"false_positive_rate": 0.05}), "4 negative .* expected at least 19"),
        ((calibration, dev, {"false_positive_rate": 0}), "must lie between 0 and 1; got 0"),
        ((calibration, dev, {"false_positive_rate": "x"}), "must be a share such as 0.05"),
    ):
        with pytest.raises(UserError, match=message):
            Gate.from_dev(*arguments[:2], **arguments[2])
    with pytest.raises(UserError, match=r"must be a unit vector; got shape \(32,\) and length 2"):
        Gate(first, 2 * direction_of(), 0.0)
    with pytest.raises(UserError, match="threshold of a gate must be a number; got nan"):
        Gate(first, direction_of(), torch.nan)
    for gate, message in (
        (Gate(first, direction_of(8), 0.0), "gate reads width 8 at L0.ln2_out.*of width 32"),
        (Gate(Site(7, "ln1_out"), direction_of(), 0.0), "gate reads width 32 at L7"),
        ("a gate", "when must be a gate from .*got 'a gate'"),
    ):
        with (
            pytest.raises(UserError, match=message),
            steer(model, calibration, RotateBy(ANGLE), when=gate),
        ):
            pass
    fitted_elsewhere = Gate.from_dev(
        ss_lens.calibrate(
            ss_lens.capture(tiny_models["gemma3"], parts.train), rule=LATER),
        *(other,),
        **half,
    )  # fmt: skip
    with (
        pytest.raises(UserError, match=r"the gate was fitted on .*this is"),
        steer(model, calibration, RotateBy(ANGLE), when=fitted_elsewhere),
    ):
        pass
    with pytest.raises(UserError, match="when must be a gate"):
        sweep_angles(model, calibration, RotateBy, PROMPTS, [0], when="a gate")
