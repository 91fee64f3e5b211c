"""Sites: their names, their order by depth, and which ones a model has."""

from __future__ import annotations

import itertools
import random

import pytest
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import Site, UserError
from ss_lens.models.sites import NORM_STREAMS, STREAMS, available_streams, n_layers_of, sites_of

ALL_SITES = [Site(layer, stream) for layer in (0, 2, 9, 10, 31) for stream in STREAMS]


class FakeModel:
    """Only the names of hook points; Llama's are without the two norms after attention and MLP."""

    def __init__(self, n_layers: int, gemma: bool = False) -> None:
        streams = [s for s in STREAMS if gemma or "post_out" not in s]
        names = [Site(layer, s).hook_name for layer in range(n_layers) for s in streams]
        self.hook_dict: dict = dict.fromkeys(["hook_embed", *names, "ln_final.hook_out"])


@pytest.mark.parametrize("site", ALL_SITES, ids=str)
def test_a_site_is_read_back_from_what_it_prints(site: Site) -> None:
    assert Site.parse(str(site)) == site


def test_names_and_hook_points_of_sites_are_distinct() -> None:
    assert len({str(site) for site in ALL_SITES}) == len(ALL_SITES)
    assert len({site.hook_name for site in ALL_SITES}) == len(ALL_SITES)
    assert str(Site(12, "ln1_out")) == "L12.ln1_out"


def test_sites_sort_in_the_order_in_which_a_token_meets_them() -> None:
    shuffled = random.Random(0).sample(ALL_SITES, len(ALL_SITES))
    assert sorted(shuffled) == ALL_SITES
    for earlier, later in itertools.combinations(ALL_SITES, 2):
        assert earlier < later
        assert later > earlier
        assert earlier != later


@pytest.mark.parametrize(
    "text", ["", "ln1_out", "L1", "L1.", "12.ln1_out", "L-1.ln1_out", "L1.ln1_out ", "L1.ln1.out"]
)
def test_text_that_is_no_site_is_rejected(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a site; sites are written like L12\.ln1_out"):
        Site.parse(text)


def test_an_unknown_stream_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown stream 'resid'; streams are resid_pre, ln1_out"):
        Site.parse("L1.resid")


def test_a_negative_layer_is_rejected() -> None:
    with pytest.raises(UserError, match=r"counted from 0; got -1"):
        Site(-1, "ln1_out")


def test_norm_outputs_and_residual_streams_are_told_apart() -> None:
    norms = {stream for stream in STREAMS if Site(0, stream).is_norm_output}
    assert norms == set(NORM_STREAMS) == {s for s in STREAMS if not s.startswith("resid")}


def test_layers_are_counted_as_numbers() -> None:
    assert n_layers_of(FakeModel(12)) == 12


def test_streams_follow_the_architecture() -> None:
    assert available_streams(FakeModel(2, gemma=True)) == STREAMS
    plain = available_streams(FakeModel(2))
    assert plain == ("resid_pre", "ln1_out", "resid_mid", "ln2_out", "resid_post")


def test_real_models_have_these_streams(tiny_models: dict[str, TransformerBridge]) -> None:
    for name, model in tiny_models.items():
        expected = {"gemma2": 7, "gemma3": 7}.get(name, 5)
        assert len(available_streams(model)) == expected
        assert n_layers_of(model) == 3


def test_sites_are_every_stream_of_every_layer_by_depth() -> None:
    got = sites_of(FakeModel(11), ("resid_post", "ln1_out"))
    assert got == tuple(Site(i, s) for i in range(11) for s in ("ln1_out", "resid_post"))


def test_layers_and_streams_given_twice_count_once() -> None:
    got = sites_of(FakeModel(4), ("ln1_out", "ln1_out"), layers=[3, 0, 3])
    assert got == (Site(0, "ln1_out"), Site(3, "ln1_out"))


@pytest.mark.parametrize("layer", [-1, 4, 99])
def test_a_layer_out_of_range_is_rejected_with_the_range(layer: int) -> None:
    with pytest.raises(
        UserError, match=rf"layer {layer} is out of range for the 4-layer model.*; valid: 0–3"
    ):
        sites_of(FakeModel(4), ("ln1_out",), layers=[0, layer])


def test_no_layer_is_rejected() -> None:
    with pytest.raises(UserError, match="layer"):
        sites_of(FakeModel(4), ("ln1_out",), layers=[])


def test_a_stream_of_another_architecture_is_rejected_with_what_there_is() -> None:
    with pytest.raises(
        UserError, match=r"'ln2_post_out' does not exist on this architecture; it has resid_pre"
    ):
        sites_of(FakeModel(4), ("ln1_out", "ln2_post_out"))


def test_no_stream_is_rejected() -> None:
    with pytest.raises(UserError, match=r"no stream was asked for; this model has resid_pre, "):
        sites_of(FakeModel(4), ())
