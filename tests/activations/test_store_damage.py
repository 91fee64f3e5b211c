"""Whatever happens to the files of the store: right values, or an error; never wrong values."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Activations, ContrastiveDataset, Store, UserError
from tests.activations.stores import contents, forward_passes, rewrite_as_format_1, same, whole

pytestmark = pytest.mark.usefixtures("small_shards")


def test_a_manifest_from_before_pairs_were_marked_is_read_as_unpaired(
    ask: Callable[[], Activations], store: Store
) -> None:
    first = ask()
    manifest = store.root / first.spec.key / "manifest.json"
    rewrite_as_format_1(manifest.parent)
    fields = json.loads(manifest.read_text())
    del fields["spec"]["paired"]
    manifest.write_text(json.dumps(fields))
    with pytest.warns(UserWarning, match="stored by an earlier version"):
        assert store.load(first.spec.key).spec == replace(first.spec, prompt_digests=())


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 0x10
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip_a_byte,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_noticed_and_captured_again(
    damage: str, ask: Callable[[], Activations], tiny_llama: TransformerBridge, store: Store
) -> None:
    first = ask()
    key = first.spec.key
    DAMAGES[damage](store.root / key / "shard-00002.safetensors")
    assert store.verify(key) == ["shard-00002.safetensors is damaged"]
    with (
        pytest.warns(UserWarning, match=r"shard-00002\.safetensors .* is captured again"),
        forward_passes(tiny_llama) as calls,
    ):
        again = ask()
    assert calls == [1, 4]
    assert same(first, again)
    assert store.verify(key) == []


def test_loading_what_is_absent_incomplete_or_damaged_is_an_error_that_names_the_remedy(
    ask: Callable[[], Activations], store: Store
) -> None:
    with pytest.raises(UserError, match=r"no activations '00000000.*run `ss-lens capture`"):
        store.load("0" * 64)
    key = ask().spec.key
    shard = store.root / key / "shard-00001.safetensors"
    shard.unlink()
    with pytest.raises(UserError, match="missing or damaged; run the command that captured"):
        store.load(key)
    shard.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="missing or damaged; run the command that captured"):
        store.load(key)


def test_another_format_of_the_manifest_names_the_command_that_removes_it(
    ask: Callable[[], Activations], store: Store
) -> None:
    key = ask().spec.key
    manifest = store.root / key / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    message = (
        f"store format 99, this version reads 1 and 2; remove it with `ss-lens store rm {key[:12]}`"
    )
    for action in (ask, lambda: store.load(key)):
        with pytest.raises(UserError, match=message):
            action()
    assert store.resolve(key[:12]) == key  # so that the advice can be followed
    store.remove(key)
    assert not (store.root / key).exists()


def test_a_damaged_manifest_is_an_error_that_names_it(
    ask: Callable[[], Activations], store: Store
) -> None:
    key = ask().spec.key
    (store.root / key / "manifest.json").write_text('{"format": 1,')
    with pytest.raises(UserError, match=r"manifest of the store at .*manifest\.json is damaged"):
        store.load(key)


def edit(manifest: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(manifest.read_text())
    change(fields)
    manifest.write_text(json.dumps(fields))


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "two prompts exchanged": lambda f: f["shards"][0].__setitem__(
        slice(0, 2), f["shards"][0][1::-1]
    ),
    "two shards exchanged": lambda f: f["shards"].__setitem__(slice(0, 2), f["shards"][1::-1]),
    "a prompt named twice": lambda f: f["shards"][0].__setitem__(0, f["shards"][1][0]),
    "a prompt left out": lambda f: f["shards"][0].pop(),
    "a shard left out": lambda f: f["shards"].pop(),
    "a prompt that is not there": lambda f: f["shards"][0].__setitem__(0, -1),
    "no numbers": lambda f: f["shards"][0].__setitem__(0, "0"),
    "no plan": lambda f: f.pop("shards"),
    "sites in another order": lambda f: f["spec"]["sites"].reverse(),
    "fewer prompts": lambda f: f["spec"].update(n_positive=11),
    "another width": lambda f: f["spec"]["model"].update(d_model=16),
    "an unknown field": lambda f: f["spec"].update(colour="red"),
    "no specification": lambda f: f.update(spec=None),
    "another dataset's name": lambda f: f["spec"].update(dataset_name="other"),
    "marked as paired": lambda f: f["spec"].update(paired=True),
    "no seal": lambda f: f.pop("sha256"),
    "said to be of format 1": lambda f: (f.update(format=1), f.pop("sha256")),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_is_refused_and_written_again_by_the_next_capture(
    name: str, ask: Callable[[], Activations], tiny_llama: TransformerBridge, store: Store
) -> None:
    first = ask()
    key = first.spec.key
    edit(store.root / key / "manifest.json", EDITS[name])
    problems = store.verify(key)
    assert problems
    with pytest.raises(UserError, match="damaged") as caught:
        store.load(key)
    assert "\n" not in str(caught.value)
    if name != "said to be of format 1":
        assert f"`ss-lens store rm {key[:12]}`" in str(caught.value)
        with pytest.warns(UserWarning, match=r"is damaged .* captured again") as told:
            again = ask()
        assert len(told) == 1
    else:  # then it is the shards that are not of that format
        with pytest.warns(UserWarning, match=r"is damaged .* captured again"):
            again = ask()
    assert same(first, again)
    assert store.verify(key) == []
    with forward_passes(tiny_llama) as calls:
        assert same(ask(), first)
    assert calls == []


def test_no_flipped_bit_of_a_manifest_serves_another_value(
    ask: Callable[[], Activations], store: Store
) -> None:
    first = ask()
    key, draw = first.spec.key, random.Random(1)
    manifest = store.root / key / "manifest.json"
    intact, refused = manifest.read_bytes(), 0
    for _ in range(300):
        data = bytearray(intact)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        manifest.write_bytes(data)
        try:
            loaded = store.load(key)
        except UserError as error:
            refused += "`ss-lens store rm" in str(error)
            assert store.verify(key)
        else:
            assert same(loaded, first)
            assert loaded.spec == first.spec
    assert refused > 250
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(ask(), first)


def test_a_shard_is_read_only_as_the_part_of_the_set_that_it_was_written_for(
    ask: Callable[[], Activations],
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    first = ask()
    turned = ContrastiveDataset("turned", tiny_data.negative, tiny_data.positive)
    other = ss_lens.capture(tiny_llama, turned, store=store)
    here, there = (store.root / acts.spec.key for acts in (first, other))
    shards = [here / f"shard-0000{i}.safetensors" for i in (0, 1, 2)]
    content = shards[0].read_bytes()
    shards[0].write_bytes(shards[1].read_bytes())
    shards[1].write_bytes(content)
    shutil.copy(there / "shard-00002.safetensors", shards[2])
    assert store.verify(first.spec.key) == [f"{path.name} is damaged" for path in shards]
    with pytest.warns(UserWarning, match="is captured again"), forward_passes(tiny_llama) as calls:
        assert same(ask(), first)
    assert calls == [1, 4, 4, 4]


def test_one_damaged_manifest_hides_no_other_set(
    ask: Callable[[], Activations],
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    first = ask()
    second = ss_lens.capture(tiny_llama, tiny_data.head(3), store=store)
    (store.root / first.spec.key / "manifest.json").write_text('{"format": 2, "spec": []}')
    with pytest.warns(UserWarning, match=rf"not listed: .*store rm {first.spec.key[:12]}`"):
        entries = store.entries()
    assert [entry.key for entry in entries] == [second.spec.key]
    assert store.stored_keys() == sorted((first.spec.key, second.spec.key))
    assert store.verify(second.spec.key) == []
    (line,) = store.verify(first.spec.key)
    assert f"ss-lens store rm {first.spec.key[:12]}" in line
    store.remove(store.resolve(first.spec.key[:12]))
    assert store.stored_keys() == [second.spec.key]


def test_a_set_of_format_1_is_served_and_completed(
    ask: Callable[[], Activations], tiny_llama: TransformerBridge, store: Store
) -> None:
    first = ask()
    folder = store.root / first.spec.key
    rewrite_as_format_1(folder)
    with forward_passes(tiny_llama) as calls:
        assert same(ask(), first)
        with pytest.warns(UserWarning, match="without a checksum of which row is which prompt"):
            assert same(store.load(first.spec.key), first)
    assert calls == []
    assert [entry.shards_total for entry in store.entries()] == [6]
    (folder / "shard-00001.safetensors").unlink()
    with forward_passes(tiny_llama) as calls:
        assert same(ask(), first)
    assert calls == [1, 4]
    assert store.verify(first.spec.key) == []
    assert contents(folder) == whole()


@pytest.mark.parametrize("name", ["two prompts exchanged", "a prompt left out"])
def test_a_set_of_format_1_with_another_plan_is_captured_again_with_one_line(
    name: str, ask: Callable[[], Activations], store: Store
) -> None:
    first = ask()
    rewrite_as_format_1(store.root / first.spec.key)
    edit(store.root / first.spec.key / "manifest.json", EDITS[name])
    with pytest.warns(UserWarning, match="it is written again") as told:
        again = ask()
    assert len(told) == 1
    assert same(again, first)
    assert store.verify(first.spec.key) == []


def test_a_shard_of_another_shape_is_damaged(ask: Callable[[], Activations], store: Store) -> None:
    """Its header is not part of what format 1 has a digest of."""
    first = ask()
    folder = store.root / first.spec.key
    rewrite_as_format_1(folder)
    path = folder / "shard-00000.safetensors"
    sites, width = len(first.sites), first.spec.model.d_model
    assert sites != width
    old, new = f"[4,{sites},{width}]".encode(), f"[4,{width},{sites}]".encode()
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new.ljust(len(old))))
    assert store.verify(first.spec.key) == ["shard-00000.safetensors is damaged"]
    with pytest.raises(UserError, match="missing or damaged"):
        store.load(first.spec.key)
