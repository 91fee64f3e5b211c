"""Files are wholly there or not there at all, also when the disk is full."""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ss_lens import UserError
from ss_lens.core.files import (
    atomic_path,
    cache_root,
    check_can_be_made,
    check_replaceable,
    disk_errors,
    read_json,
    sha256_of_file,
    sha256_of_json,
    write_json,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half_and_raise(target: Path, error: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_appears_under_its_name_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names_in(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_half_and_raise(tmp_path / "file.txt", error())
    assert names_in(tmp_path) == []


def test_what_was_there_is_kept_when_the_block_raises(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    (tmp_path / "file.txt").write_text("old")
    for name in ("folder", "file.txt"):
        with pytest.raises(RuntimeError):
            write_half_and_raise(tmp_path / name, RuntimeError())
    assert names_in(tmp_path) == ["file.txt", "folder"]
    assert (tmp_path / "folder" / "old").read_text() == "old"


def test_existing_files_and_folders_are_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    (tmp_path / "file.txt").write_text("old, and longer")
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    with atomic_path(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert names_in(tmp_path) == ["file.txt", "folder"]
    assert names_in(tmp_path / "folder") == ["new"]
    assert (tmp_path / "file.txt").read_text() == "new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_error_that_names_the_remedy(tmp_path: Path, code: int) -> None:
    with pytest.raises(UserError, match=f"no space left under {tmp_path}.*SS_LENS_HOME") as caught:
        write_half_and_raise(tmp_path / "file.txt", OSError(code, "no room"))
    assert isinstance(caught.value.__cause__, OSError)
    assert names_in(tmp_path) == []


def test_a_full_disk_below_a_folder_that_is_being_made_names_the_place_around_it(
    tmp_path: Path,
) -> None:
    """The user knows nothing of the hidden folder that is written first."""

    def fill() -> None:
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            write_half_and_raise(temporary / "file.txt", OSError(errno.ENOSPC, "no room"))

    with pytest.raises(UserError, match=f"no space left under {tmp_path}; what"):
        fill()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, code: int) -> None:
    with pytest.raises(UserError, match="cannot be written"), disk_errors(tmp_path):
        raise OSError(code, "forbidden")


def test_other_errors_of_the_system_pass_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cable") as caught, disk_errors(tmp_path):
        raise OSError(errno.EIO, "cable")
    assert not isinstance(caught.value, UserError)


FILL_THE_DISK = """
import sys
import torch
from ss_lens import CaptureSpec, Site, Store, UserError
from ss_lens.models.identity import ModelIdentity

spec = CaptureSpec(ModelIdentity("m", None, "f", 1, 4096, "float32"), "d", "d", 20, 20, "t",
                   (Site(0, "ln1_out"),), -1, ())
try:
    Store(sys.argv[1]).fetch(spec, [range(40)], lambda indices: torch.zeros(40, 1, 4096))
except UserError as error:
    print("UserError:", error)
"""


def test_a_really_full_disk_stops_a_capture_with_one_clear_error(tmp_path: Path) -> None:
    """On a file system of 128 kB, which a capture of 640 kB fills."""
    unshare = shutil.which("unshare")
    mount = f"mount -t tmpfs -o size=128k tmpfs {tmp_path}"
    if (
        unshare is None
        or subprocess.run(
            [unshare, "--map-root-user", "--mount", "sh", "-c", mount], capture_output=True
        ).returncode
    ):
        pytest.skip("a small file system cannot be mounted here without privileges")
    script = f'{mount} && exec "$0" -c "$1" {tmp_path}'
    done = subprocess.run(
        [unshare, "--map-root-user", "--mount", "sh", "-c", script, sys.executable, FILL_THE_DISK],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "UserError: no space left under" in done.stdout, done.stderr[-400:]
    assert "SS_LENS_HOME" in done.stdout


def test_json_is_read_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "naïve “да”"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "thing") == value
    assert "naïve “да”" in (tmp_path / "x.json").read_text("utf-8")


def test_json_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"there is no thing at {tmp_path}/x\.json; check the path"
    ):
        read_json(tmp_path / "x.json", "thing")
    for damage in (b'{"a": ', b"", b"\xff\xfe"):
        (tmp_path / "x.json").write_bytes(damage)
        with pytest.raises(UserError, match=r"the thing at .*x\.json is damaged \(.*\); make it"):
            read_json(tmp_path / "x.json", "thing")


def test_json_below_a_file_is_missing(tmp_path: Path) -> None:
    """Someone names the file where its folder is wanted."""
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="there is no thing at"):
        read_json(tmp_path / "x.json" / "x.json", "thing")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", value)
    assert names_in(tmp_path) == []


def test_a_lone_surrogate_is_written_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"reply": "a\ud83d b"})
    assert read_json(tmp_path / "x.json", "thing") == {"reply": "a\ud83d b"}
    assert sha256_of_json("\ud83d") != sha256_of_json("\ud83e")


def test_json_that_is_nested_too_deep_or_cannot_be_opened_is_one_clear_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"the thing at .* is damaged .*nested too deep"):
        read_json(tmp_path / "x.json", "thing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"the thing at .* cannot be read .*; check the path"):
            read_json(path, "thing")


def test_digests_are_sha256_and_ignore_the_order_of_keys(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1_000_000)
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    assert sha256_of_json({"b": 1, "a": "ä"}) == sha256_of_json({"a": "ä", "b": 1})
    assert (
        sha256_of_json({"b": 1, "a": "ä"}) == hashlib.sha256('{"a":"ä","b":1}'.encode()).hexdigest()
    )
    assert sha256_of_json([1, 2]) != sha256_of_json([2, 1])


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SS_LENS_HOME", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SS_LENS_HOME", "~/here")
    assert cache_root() == tmp_path / "here"
    monkeypatch.delenv("SS_LENS_HOME")
    assert cache_root().name == "ss_lens"


def test_a_folder_under_the_name_of_a_file_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    folder.mkdir()
    check_replaceable(folder, {"table.parquet"}, "result")
    (folder / "table.parquet").touch()
    check_replaceable(folder, {"table.parquet"}, "result")
    (folder / "table.parquet").unlink()
    (folder / "table.parquet").mkdir()
    (tmp_path / "nowhere").symlink_to("gone")
    for place in (folder, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds something that is not a result"):
            check_replaceable(place, {"table.parquet"}, "result")


def test_whether_a_folder_can_be_made_is_known_before_and_leaves_nothing(tmp_path: Path) -> None:
    check_can_be_made(tmp_path)
    check_can_be_made(tmp_path / "a" / "b")
    assert names_in(tmp_path) == []
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("file/x", "is a file or below one"),
        ("loop/x", "leads in a circle of symbolic links"),
        ("a/" + "x" * 300, "is longer than the disk allows"),
    ):
        with pytest.raises(UserError, match=message):
            check_can_be_made(tmp_path / name)
    assert names_in(tmp_path) == ["file", "loop"]
