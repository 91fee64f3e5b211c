"""Published files of another layout, damaged, or holding code are refused and never run."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from ss_lens import Calibration, UserError
from ss_lens.calibration.published.files import FILES, read_files
from ss_lens.calibration.published.reference import (
    compare_with_reference,
)
from tests.conftest import shared_file

# model: (direction site, modules, steered, |b1·b2| of the stored basis)
REFERENCES = {
    "Llama-3.2-1B-Instruct": ("L12.ln1_out", 32, 18, 0.0038),
    "Qwen2.5-1.5B-Instruct": ("L22.ln1_out", 56, 22, 0.0017),
    "gemma-2-2b-it": ("L20.ln1_out", 104, 40, 0.0032),
}

NORMS = ("input_layernorm", "post_attention_layernorm")

MODULES = [f"model.layers.{layer}.{norm}" for layer in range(3) for norm in NORMS]

WIDTH = 8


@pytest.fixture(params=REFERENCES)
def published(request: pytest.FixtureRequest) -> Path:
    """The folder of one published calibration."""
    return shared_file(f"reference/{request.param}/plane.pt").parent


def stored(folder: Path, name: str) -> Any:
    return torch.load(folder / f"{name}.pt", weights_only=True, map_location="cpu")


# --- files of another layout, damaged, or holding code -------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small calibration in the published layout, written by hand."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(len(MODULES), WIDTH, generator=generator) + 2 * torch.eye(WIDTH)[0]
    rows = torch.nn.functional.normalize(rows, dim=1)
    rows[0] = 0
    place = tmp_path / "reference"
    place.mkdir()
    torch.save(
        {
            "candidates": dict(zip(MODULES, rows.bfloat16(), strict=True)),
            "selected_direction": rows[2].bfloat16(),
            "selected_layer": MODULES[2],
            "metadata": {"session_id": "monday"},
        },
        place / "directions.pt",
    )
    torch.save(
        {
            "basis": (rows[2].bfloat16(), rows[3].bfloat16()),
            "projections": dict.fromkeys(MODULES, (0.5, -0.25)),
            "extra_info": {"layer_steering_mask": {m: i > 3 for i, m in enumerate(MODULES)}},
            "metadata": {"session_id": "monday"},
        },
        place / "plane.pt",
    )
    meta = {
        "session_id": "monday",
        "n_layers": len(MODULES),
        "hidden_dim": WIDTH,
        "harmful_samples": 5,
        "harmless_samples": 4,
    }
    (place / "metadata.json").write_text(json.dumps(meta))
    return place


def edited(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change the content of one file; ``change`` edits in place or returns a replacement."""
    path = folder / name
    if name == "metadata.json":
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))
        return
    content = stored(folder, path.stem)
    changed = change(content)
    torch.save(content if changed is None else changed, path)


def putting(*keys: str | int, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def dropping(*keys: str) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def test_files_by_hand_are_read(folder: Path) -> None:
    """Positive control of the rejections below."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the basis above is arbitrary
        made = Calibration.from_reference(folder)
    assert [str(s) for s in made.selected_sites] == ["L2.ln1_out", "L2.ln2_out"]
    assert made.spec.dataset_name == "published (5 + 4 prompts)"
    assert made.spec.model.name == "reference"


def test_candidates_that_are_not_normalised_have_lengths(folder: Path) -> None:
    def stretched(content: Any) -> None:
        for i, name in enumerate(MODULES):
            content["candidates"][name] = content["candidates"][name].float() * (i + 1)

    edited(folder, "directions.pt", stretched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lengths = Calibration.from_reference(folder).candidates.lengths
    expected = torch.tensor([0.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    torch.testing.assert_close(lengths, expected, rtol=5e-3, atol=0)


def test_candidates_in_eight_bits_are_read(folder: Path) -> None:
    def narrowed(content: Any) -> None:
        for name, vector in content["candidates"].items():
            content["candidates"][name] = vector.to(torch.float8_e4m3fn)

    before = read_files(folder)
    edited(folder, "directions.pt", narrowed)
    after = read_files(folder)
    torch.testing.assert_close(after.candidates, before.candidates, rtol=0.07, atol=0.01)
    assert after.dtype == "float8_e4m3fn"


def test_modules_in_any_order_are_put_in_order_of_depth(folder: Path) -> None:
    before = read_files(folder)

    def turned(content: Any) -> None:
        content["candidates"] = dict(reversed(content["candidates"].items()))

    edited(folder, "directions.pt", turned)
    after = read_files(folder)
    assert after.sites == before.sites
    for name in ("candidates", "in_plane", "mask", "basis"):
        assert torch.equal(getattr(after, name), getattr(before, name))


D, P, M = "directions.pt", "plane.pt", "metadata.json"

M3 = MODULES[3]

MASK = ("extra_info", "layer_steering_mask")

LAYOUTS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a tensor": (
        D,
        lambda c: torch.zeros(3),
        r"whole is a Tensor; expected a dictionary\. Use",
    ),
    "no candidates": (D, dropping("candidates"), r"candidates is missing; expected it to be there"),
    "empty candidates": (D, putting("candidates", value={}), r"candidates is empty"),
    "candidates in a list": (D, putting("candidates", value=[1]), r"candidates is a list; expec"),
    "numbered candidates": (D, putting("candidates", value={1: 2}), r"a dictionary by name"),
    "text for a vector": (D, putting("candidates", M3, value="x"), rf"{M3} is x; expected a tenso"),
    "another width": (
        D,
        putting("candidates", M3, value=torch.zeros(7)),
        rf"candidates\.{M3} is torch.float32 of shape \(7,\); expected floating .* \(8,\)",
    ),
    "whole numbers": (
        D,
        putting("candidates", M3, value=torch.ones(WIDTH, dtype=torch.long)),
        r"is torch.int64 of shape \(8,\)",
    ),
    "a sparse vector": (
        D,
        putting("candidates", M3, value=torch.ones(WIDTH).to_sparse()),
        "is a Tensor; expected a tensor",
    ),
    "a vector without values": (
        D,
        putting("candidates", M3, value=torch.ones(WIDTH, device="meta")),
        r"expected a tensor|is truncated, damaged",
    ),
    "NaN": (
        D,
        putting("candidates", M3, value=torch.full((WIDTH,), torch.nan)),
        rf"{M3} is NaN or infinite; expected finite numbers",
    ),
    "an unknown module": (
        D,
        putting("candidates", "model.layers.1.mlp", value=torch.ones(WIDTH)),
        r"module 'model\.layers\.1\.mlp' is at no known site",
    ),
    "another choice": (D, putting("selected_layer", value="x"), r"selected_layer is x; expected t"),
    "no choice": (D, putting("selected_layer", value=12), r"selected_layer is 12; expected text"),
    "another run": (
        P,
        putting("metadata", "session_id", value="tuesday"),
        r"plane\.pt is of another layout: metadata\.session_id is tuesday; expected monday, as in",
    ),
    "no basis": (P, dropping("basis"), "basis is missing"),
    "one axis": (
        P,
        putting("basis", value=(torch.ones(WIDTH),)),
        r"basis is a tuple; expect",
    ),
    "a stacked basis": (P, putting("basis", value=torch.eye(2, WIDTH)), r"basis is a Tensor; exp"),
    "a wider basis": (
        P,
        putting("basis", value=(torch.ones(WIDTH), torch.ones(9))),
        r"basis\.1 is torch\.float32 of shape \(9,\)",
    ),
    "an infinite basis": (
        P,
        putting("basis", value=(torch.ones(WIDTH), torch.full((WIDTH,), torch.inf))),
        r"basis\.1 is NaN or infinite",
    ),
    "a basis of zeros": (
        P,
        putting("basis", value=(torch.ones(WIDTH), torch.zeros(WIDTH))),
        r"basis is zero in one of its vectors; expected two directions",
    ),
    "no mask": (P, dropping(*MASK), r"extra_info\.layer_steering_mask is missing"),
    "a mask of fewer": (P, dropping(*MASK, M3), rf"mask\.{M3} is missing; expected the same modul"),
    "a mask of more": (
        P,
        putting(*MASK, "model.layers.9.input_layernorm", value=True),
        r"mask\.model\.layers\.9\.input_layernorm is there; expected the same modules everywhere",
    ),
    "a mask of numbers": (P, putting(*MASK, M3, value=1), rf"{M3} is 1; expected True or False"),
    "an empty selection": (
        P,
        putting(*MASK, value=dict.fromkeys(MODULES, False)),
        r"layer_steering_mask is off everywhere; expected a module to steer",
    ),
    "no projections": (P, dropping("projections"), "projections is missing"),
    "projections of fewer": (P, dropping("projections", M3), rf"projections\.{M3} is missing"),
    "half a projection": (P, putting("projections", M3, value=(0.1,)), rf"{M3}\.1 is missing"),
    "a projection in words": (P, putting("projections", M3, value=("a", 1)), rf"{M3}\.0 is a; exp"),
    "an infinite projection": (
        P,
        putting("projections", M3, value=(0.1, float("inf"))),
        rf"{M3}\.1 is inf; expected a finite number",
    ),
    "an enormous projection": (
        P,
        putting("projections", M3, value=(10**400, 0.0)),
        rf"{M3}\.0 is a int; expected a finite number",
    ),
    "metadata in a list": (M, lambda c: [c], r"the whole is a list; expected a dictionary"),
    "no width": (
        M,
        dropping("hidden_dim"),
        r"metadata\.json is of another layout: hidden_dim",
    ),
    "a width in words": (M, putting("hidden_dim", value="8"), "hidden_dim is 8; expected a whole"),
    "negative counts": (M, putting("harmful_samples", value=-1), "harmful_samples is -1; expected"),
    "another number": (
        M,
        putting("n_layers", value=5),
        r"n_layers is 5; expected 6, the numb",
    ),
    "too few blocks": (
        M,
        putting("n_blocks", value=2),
        r"n_blocks is 2; expected .* from 3",
    ),
    "a nameless model": (M, putting("model", value=None), r"model is None; expected text"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_another_layout_is_rejected_by_what_differs(folder: Path, case: str) -> None:
    name, change, message = LAYOUTS[case]
    edited(folder, name, change)
    with pytest.raises(UserError, match=message):
        Calibration.from_reference(folder)


def test_candidates_that_are_all_zero_span_no_plane(folder: Path) -> None:
    zeros = dict.fromkeys(MODULES, torch.zeros(WIDTH))
    edited(folder, D, putting("candidates", value=zeros))
    with pytest.raises(UserError, match="at least 3 sites with a direction, got 0"):
        Calibration.from_reference(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"there is no file .*{name}; a published calibration is"):
        Calibration.from_reference(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nowhere/metadata\.json; a published"):
        Calibration.from_reference(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [D, P])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_rejected(folder: Path, name: str, kept: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=rf"{name} is truncated, damaged or not .* Get it again"):
        Calibration.from_reference(folder)


def test_truncated_metadata_are_rejected(folder: Path) -> None:
    (folder / M).write_text((folder / M).read_text()[:-5])
    with pytest.raises(UserError, match=r"metadata\.json is damaged"):
        Calibration.from_reference(folder)


def test_one_flipped_bit_in_a_vector_is_rejected(folder: Path) -> None:
    data = bytearray((folder / D).read_bytes())
    vector = stored(folder, "directions")["candidates"][M3]
    place = bytes(data).index(bytes(vector.view(torch.uint8).tolist()))
    data[place] ^= 1
    (folder / D).write_bytes(data)
    assert not torch.equal(stored(folder, "directions")["candidates"][M3], vector)  # torch reads on
    with pytest.raises(UserError, match=r"damaged .*\(the checksum of .* differs\)"):
        Calibration.from_reference(folder)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.target, "w")


CODE: dict[str, Callable[[Path, Payload], None]] = {
    "alone": lambda path, payload: torch.save(payload, path),
    "among the tensors": lambda path, payload: torch.save({**_content(path), "x": payload}, path),
    "old format": lambda path, payload: torch.save(
        payload, path, _use_new_zipfile_serialization=False
    ),
    "plain pickle": lambda path, payload: path.write_bytes(pickle.dumps(payload)),
}


def _content(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", [D, P])
@pytest.mark.parametrize("kind", CODE)
def test_code_in_a_file_is_not_executed(folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    target = tmp_path / "created by the payload"
    CODE[kind](folder / name, Payload(target))
    for attempt in (Calibration.from_reference, compare_with_reference):
        with pytest.raises(UserError, match=rf"{name} .*nothing of it was executed"):
            attempt(folder)
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))  # it is live: whoever trusts the file runs it
    assert target.exists()


def test_code_is_named_as_such(folder: Path, tmp_path: Path) -> None:
    CODE["among the tensors"](folder / P, Payload(tmp_path / "created"))
    with pytest.raises(UserError, match=r"holds something other than tensors, .* such as code; "):
        Calibration.from_reference(folder)


def test_a_torchscript_program_is_not_loaded(folder: Path) -> None:
    with zipfile.ZipFile(folder / D, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(UserError, match=r"such as code; nothing of it was executed"):
        Calibration.from_reference(folder)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1))
def test_a_garbled_pickle_is_read_or_rejected_and_nothing_else(
    folder: Path, changes: list[tuple[int, int]]
) -> None:
    """Whatever stands in the pickle, with checksums that fit it, no other error comes out."""
    original = (folder / P).read_bytes()
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in members if name.endswith("/data.pkl"))
    data = bytearray(members[pickled])
    for place, value in changes:
        data[place % len(data)] = value
    with zipfile.ZipFile(folder / P, "w") as archive:
        for name, content in {**members, pickled: bytes(data)}.items():
            archive.writestr(name, content)
    try:
        read_files(folder)
    except UserError:
        pass
    finally:
        (folder / P).write_bytes(original)
