"""What prompts start with runs once for a score, and the score is that of whole passes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, RotateBy, RotateTo, Store, Trace
from ss_lens.calibration.site_selection import Explicit
from ss_lens.generation import shared_start
from ss_lens.generation.shared_start import SharedStart, shared_tokens
from ss_lens.geometry.operators import Operator
from ss_lens.models.block import kept_apart
from ss_lens.models.chat import shared_prefix_length, tokenize
from ss_lens.scoring import continuations, refusal_score as scoring
from ss_lens.scoring.continuations import Continuation
from ss_lens.scoring.divergence import kl_divergence
from ss_lens.scoring.perplexity import score
from ss_lens.steering.positions import ALL_POSITIONS, LastPrompt, Positions
from tests.conftest import ARCHITECTURES
from tests.generation.conftest import EVERY

Subject = tuple[TransformerBridge, Calibration]
LONG = "w60 w61 w62 w63 w64 w65 w66 w67 w68 w69 w70 w71"
# What they share is longer than the tiny Gemmas' windows; one is given twice.
PROMPTS = [f"{LONG} {rest}" for rest in ("w9", "w10 w11 w12 w13", "w14 w15", "w9", "w16 w17")]
ANSWERS = ["w20 w21 w22", "w20", "w23 w24 w25 w26 w27", "", "w28 w29"]
TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}


@pytest.fixture(autouse=True)
def openings_in_tiny_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "REFUSAL_OPENINGS", ("w20", "2"))
    monkeypatch.setattr(scoring, "COMPLIANCE_OPENINGS", ("w30", "3"))


@contextmanager
def whole_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, every pass runs all of its tokens."""
    with monkeypatch.context() as patch:
        patch.setattr(shared_start, "shared_tokens", lambda model, prompts: ())
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that no token was selected, which a score of prompts cannot avoid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextmanager
def counted_tokens(model: TransformerBridge) -> Iterator[list[tuple[int, int]]]:
    """``(rows, tokens)`` of each pass."""
    seen: list[tuple[int, int]] = []

    def see(module: object, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(tuple(args[0].shape if args else kwargs["input_ids"].shape))

    handle = model.original_model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def calibrations(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Calibration]:
    store = Store(tmp_path_factory.mktemp("store"))
    rule = Explicit(sites="L1.ln1_out,L1.ln2_out,L2.ln1_out")
    return {
        name: ss_lens.calibrate(ss_lens.capture(model, tiny_data, store=store), rule=rule)
        for name, model in tiny_models.items()
    }


@pytest.fixture(params=ARCHITECTURES)
def subject(
    request: pytest.FixtureRequest,
    tiny_models: dict[str, TransformerBridge],
    calibrations: dict[str, Calibration],
) -> Subject:
    return tiny_models[request.param], calibrations[request.param]


def steered(
    subject: Subject, operator: Operator | None, positions: Positions = ALL_POSITIONS
) -> AbstractContextManager[object]:
    if operator is None:
        return nullcontext()
    return ss_lens.steer(*subject, operator, positions=positions)


def arms() -> list[tuple[Operator | None, Positions]]:
    """Unsteered; a linear and another operator at all positions; one at each other choice."""
    everywhere = [(None, ALL_POSITIONS), (RotateBy(75), ALL_POSITIONS)]
    return [*everywhere, *((RotateTo(200), positions) for positions in EVERY)]


# --- The scores are those of whole passes --------------------------------------------------------


@pytest.mark.parametrize(("operator", "positions"), arms(), ids=repr)
@pytest.mark.parametrize("batch_size", [2, 48])
def test_the_refusal_score_is_that_of_whole_passes(
    batch_size: int,
    operator: Operator | None,
    positions: Positions,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = subject[0]

    def found() -> pd.DataFrame:
        with quiet(), steered(subject, operator, positions):
            return scoring.refusal_score(model, PROMPTS, batch_size=batch_size)

    with whole_passes(monkeypatch), counted_tokens(model) as whole:
        expected = found()
    with counted_tokens(model) as seen:
        np.testing.assert_allclose(found(), expected, **TOLERANCE)
    keep = positions.k if isinstance(positions, LastPrompt) else 1
    shared = shared_prefix_length(tokenize(model, PROMPTS), keep)
    assert seen[0] == (1, shared)
    after = [(rows, tokens - shared) for rows, tokens in whole]
    assert seen[1:] == after


@pytest.mark.parametrize(("operator", "positions"), arms(), ids=repr)
def test_perplexity_is_that_of_whole_passes(
    operator: Operator | None,
    positions: Positions,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The internal score also runs steered, as the paper's own perplexity does."""
    model = subject[0]
    given = continuations.answers(model, PROMPTS, ANSWERS)

    def found() -> pd.DataFrame:
        with quiet(), steered(subject, operator, positions):
            return score(model, given, batch_size=2)

    with whole_passes(monkeypatch):
        expected = found()
    with counted_tokens(model) as seen:
        np.testing.assert_allclose(found(), expected, **TOLERANCE)
    assert [rows for rows, _ in seen] == [1, 2, 2]


@pytest.mark.parametrize("positions", EVERY, ids=repr)
def test_the_divergence_is_that_of_whole_passes(
    positions: Positions, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> pd.DataFrame:
        return kl_divergence(
            *subject, RotateBy(75), PROMPTS, ANSWERS, positions=positions, batch_size=2
        )

    with whole_passes(monkeypatch):
        expected = found()
    with counted_tokens(subject[0]) as seen:
        np.testing.assert_allclose(found(), expected, rtol=2e-3, atol=2e-5)
    assert [rows for rows, _ in seen].count(1) >= 2  # one start unsteered, one steered
    assert expected["kl_mean"].max() > 2e-4  # of the last tokens of a prompt, little is felt


def test_nested_blocks_share_what_every_one_of_them_allows(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject[0]

    def found() -> pd.DataFrame:
        with steered(subject, RotateBy(30)), steered(subject, RotateTo(80), LastPrompt(3)):
            assert kept_apart(model) == 3
            return scoring.refusal_score(model, PROMPTS)

    with whole_passes(monkeypatch):
        expected = found()
    np.testing.assert_allclose(found(), expected, **TOLERANCE)
    assert kept_apart(model) == 1


# --- Where nothing is shared ---------------------------------------------------------------------


def test_nothing_is_shared_under_hooks_that_may_tell_rows_or_passes_apart(
    tiny_llama: TransformerBridge, calibrations: dict[str, Calibration]
) -> None:
    calibration, tokens = calibrations["llama"], tokenize(tiny_llama, PROMPTS)
    by_row = RotateBy([10.0 * row for row in range(len(PROMPTS))])
    user = tiny_llama.hooks(fwd_hooks=[("blocks.0.hook_in", lambda h, hook: None)])
    arms: list[AbstractContextManager[object]] = [
        user,
        ss_lens.steer(tiny_llama, calibration, by_row),
        ss_lens.steer(tiny_llama, calibration, RotateBy(20), trace=Trace()),
    ]
    for arm in arms:
        with arm:
            assert shared_tokens(tiny_llama, tokens) == ()
            with ss_lens.steer(tiny_llama, calibration, RotateBy(20)):
                assert shared_tokens(tiny_llama, tokens) == ()
    assert len(shared_tokens(tiny_llama, tokens)) > len(LONG.split())


def test_one_strength_per_row_still_scores_row_by_row(
    tiny_llama: TransformerBridge, calibrations: dict[str, Calibration]
) -> None:
    prompts, angles = ["w9 w10", "w11 w12"], (30.0, 120.0)
    with ss_lens.steer(tiny_llama, calibrations["llama"], RotateBy(angles)):
        found = scoring.refusal_score(tiny_llama, prompts)["refusal_score"]
    for prompt, angle, value in zip(prompts, angles, found, strict=True):
        with ss_lens.steer(tiny_llama, calibrations["llama"], RotateBy(angle)):
            alone = scoring.refusal_score(tiny_llama, [prompt])["refusal_score"]
        np.testing.assert_allclose(value, alone[0], **TOLERANCE)


def test_a_model_with_a_layer_that_keeps_no_keys_shares_nothing(
    tiny_models: dict[str, TransformerBridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models["gemma2"]
    tokens = tokenize(model, PROMPTS)
    assert shared_tokens(model, tokens)
    kinds = ["full_attention", "conv", "full_attention"]
    monkeypatch.setattr(model.original_model.config, "layer_types", kinds)
    assert shared_tokens(model, tokens) == ()


@pytest.mark.parametrize("prompts", [[], [(1, 4, 9, 9)], [(1, 4, 9), (1, 4, 8)]], ids=len)
def test_what_saves_less_than_a_pass_costs_is_not_shared(
    prompts: list[tuple[int, ...]], tiny_llama: TransformerBridge
) -> None:
    assert shared_tokens(tiny_llama, prompts) == ()
    assert SharedStart.of(tiny_llama, prompts).prefix is None


def test_the_start_ends_within_the_prompts_where_answers_begin_alike(
    tiny_llama: TransformerBridge,
) -> None:
    """What follows a prompt is answer, which positions tell from it."""
    given = [Continuation((1, *range(8, 40)), (9, 10, 11)) for _ in range(3)]
    start = continuations.start_of(tiny_llama, given, range(3))
    assert start.prefix is not None
    assert start.prefix.length == 32
