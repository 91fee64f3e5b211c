"""A sealed file that was changed in any way is refused; one from before seals is read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ss_lens import UserError
from ss_lens.core.sealed import read_sealed_json, write_sealed_json

CONTENT = {"format": 1, "angles": [0.0, 1 / 3, -1e-17], "name": "naïve", "deep": {"k": None}}


def test_a_sealed_file_is_read_back(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "x.json", CONTENT)
    assert read_sealed_json(tmp_path / "x.json", "thing") == CONTENT
    (tmp_path / "x.json").write_text(json.dumps(json.loads((tmp_path / "x.json").read_text())))
    assert read_sealed_json(tmp_path / "x.json", "thing") == CONTENT  # another layout, same content


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_sealed_json(path, CONTENT)
    whole = path.read_bytes()
    refused = []
    for bit in random.Random(0).sample(range(8 * len(whole)), 600):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert read_sealed_json(path, "thing", unsealed={*CONTENT}) == CONTENT
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 500
    assert all("the thing at" in line and "make it again" in line for line in refused)


def test_a_file_from_before_there_were_seals_is_read_where_its_keys_are_the_known_ones(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(CONTENT))
    assert read_sealed_json(path, "thing", unsealed={*CONTENT}) == CONTENT
    for unsealed in ({"format"}, set()):
        with pytest.raises(UserError, match="its checksum differs, or it was edited"):
            read_sealed_json(path, "thing", unsealed=unsealed)


@pytest.mark.parametrize("value", ["[]", "null", "5", '"text"'])
def test_what_is_no_object_is_damaged(tmp_path: Path, value: str) -> None:
    (tmp_path / "x.json").write_text(value)
    with pytest.raises(UserError, match=r"is damaged \(it holds no keys with values\); redo it\.$"):
        read_sealed_json(tmp_path / "x.json", "thing", remedy="redo it")
