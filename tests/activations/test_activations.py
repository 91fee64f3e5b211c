"""What activations say of themselves, and which may be combined."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Activations, CaptureSpec, ContrastiveDataset, Evidence, Site, Store, UserError
from ss_lens.models.sites import Stream
from tests.conftest import made_activations

SITES = (Site(0, "ln1_out"), Site(1, "ln2_out"))


@pytest.fixture
def acts() -> Activations:
    return made_activations(torch.zeros(3, 2, 8), torch.ones(2, 2, 8), SITES)


def test_activations_and_their_specification_print_as_one_short_line(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    for text in (repr(acts), repr(acts.spec)):
        assert "\n" not in text
        assert len(text) < 240
        assert "12 + 12 prompts, 9 sites L0.ln1_out … L2.resid_post, position -1" in text
        assert f"key={acts.spec.key[:12]}" in text
    assert repr(acts).startswith("Activations('tiny' on ")
    assert repr(acts.spec).startswith("CaptureSpec('tiny' on ")


def test_held_out_activations_that_share_prompts_with_the_training_ones_are_refused(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    positive, negative = tiny_data.positive, tiny_data.negative
    train = ContrastiveDataset("train", positive[:6], negative[:6])
    shared = ContrastiveDataset("shared", positive[6:], (*negative[5:9], positive[2]))
    apart = ContrastiveDataset("apart", positive[6:], negative[6:])
    fitted, mixed, other = (
        ss_lens.capture(tiny_llama, data, store=store) for data in (train, shared, apart)
    )
    with pytest.raises(
        UserError,
        match=r"^2 of the 11 held_out prompts are among those that are fitted on, for instance "
        r"negative prompt 0 of 'shared' \(counted from 0\); remove them",
    ):
        Evidence(fitted, held_out=mixed)
    with pytest.raises(UserError, match="2 of the 11 held_out prompts"):
        ss_lens.calibrate(fitted, held_out=mixed, streams=("ln1_out",))
    assert Evidence(fitted, held_out=other).held_out is other
    assert Evidence(fitted, neutral=mixed).neutral is mixed


def test_prompts_of_activations_from_before_are_unknown(acts: Activations) -> None:
    """They are compared as whole datasets only, as before."""
    other = replace(acts.spec, dataset_digest="other", prompt_digests=())
    held_out = Activations(acts.positive, acts.negative, other)
    assert Evidence(acts, held_out=held_out).held_out is held_out


def test_the_digests_of_prompts_do_not_change_the_key(acts: Activations) -> None:
    digests = tuple(f"{i:016x}" for i in range(5))
    assert replace(acts.spec, prompt_digests=digests).key == acts.spec.key


def test_a_specification_is_read_back_as_it_was_written(acts: Activations) -> None:
    spec = replace(acts.spec, prompt_digests=tuple("abcde"), position="mean", paired=True)
    assert CaptureSpec.from_json(json.loads(json.dumps(spec.as_json()))) == spec
    older = spec.as_json()
    for name in ("paired", "chat", "prompt_digests"):
        del older[name]
    assert CaptureSpec.from_json(older) == replace(spec, paired=False, prompt_digests=())


CHANGES: dict[str, Any] = {
    "dataset_name": 5,
    "n_positive": -1,
    "n_negative": True,
    "sites": ["L0.nowhere"],
    "position": None,
    "versions": ["torch"],
    "paired": "no",
    "prompt_digests": ["one"],
    "model": {"name": "m"},
    "chat": {"date": "today"},
    "unknown": 1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_specification_of_another_form_is_one_clear_error(name: str, acts: Activations) -> None:
    with pytest.raises(UserError) as caught:
        CaptureSpec.from_json({**acts.spec.as_json(), name: CHANGES[name]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "spec", {}, 5])
def test_what_is_no_specification_is_one_clear_error(value: object) -> None:
    with pytest.raises(UserError, match="a CaptureSpec has the fields model, dataset_name"):
        CaptureSpec.from_json(value)


def test_restricted_activations_know_what_they_were_restricted_from_as_long_as_it_is_held() -> None:
    streams: tuple[Stream, ...] = ("ln1_out", "resid_post")
    sites = tuple(Site(layer, stream) for layer in range(2) for stream in streams)
    whole = made_activations(torch.ones(2, 4, 3), torch.zeros(2, 4, 3), sites)
    part = whole.restricted_to(["ln1_out"])
    assert part.whole is whole is whole.whole
    assert part.restricted_to(["ln1_out"]) is part
    del whole
    gc.collect()
    assert part.whole is part
