"""Whoever reads finds the old or the new, whoever is killed leaves nothing that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ss_lens import UserError
from ss_lens.core import replace
from ss_lens.core.files import atomic_path, check_replaceable, read_json, write_json
from ss_lens.core.replace import WEEK, holds_nothing, remove_leftovers


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(target: Path, value: object) -> None:
    with atomic_path(target) as temporary:
        temporary.mkdir()
        write_json(temporary / "x.json", value)


def killed(script: str, *arguments: object) -> None:
    """Run a script that ends by killing itself."""
    code = "import os, sys\nfrom pathlib import Path\nfrom ss_lens.core import files, replace\n"
    command = [sys.executable, "-c", code + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


WITHOUT_EXCHANGE = pytest.mark.parametrize("exchange", [True, False])


@pytest.fixture
def as_the_system_can(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def choose(exchange: bool) -> None:
        if not exchange:
            monkeypatch.setattr(replace, "_renameat2", lambda: None)

    return choose


def test_a_folder_that_is_replaced_is_there_at_every_instant(tmp_path: Path) -> None:
    if replace._renameat2() is None:
        pytest.skip("this system cannot exchange two names in one step")
    target, absent, stop = tmp_path / "folder", [], threading.Event()
    save(target, 0)

    def watch() -> None:
        while not stop.is_set():
            try:
                os.stat(target / "x.json")
            except FileNotFoundError:
                absent.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(300):
        save(target, number)
    stop.set()
    watcher.join()
    assert absent == []
    assert names_in(tmp_path) == ["folder"]


@WITHOUT_EXCHANGE
def test_racing_writers_of_one_folder_all_succeed(
    exchange: bool, tmp_path: Path, as_the_system_can: Callable[[bool], None]
) -> None:
    as_the_system_can(exchange)
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            for number in range(40):
                save(tmp_path / "folder", [writer, number])
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert failures == []
    assert names_in(tmp_path) == ["folder"]
    assert read_json(tmp_path / "folder" / "x.json", "thing")[1] == 39


KILLED_BETWEEN_TWO_RENAMES = """
replace._renameat2 = lambda: None
rename = os.replace
def once(source, target):
    rename(source, target)
    os.kill(os.getpid(), 9)
os.replace = once
with files.atomic_path(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    (temporary / "x.json").write_text("2")
"""


@pytest.mark.parametrize("access", ["read", "write beside it", "write"])
def test_a_folder_whose_writer_was_killed_between_two_renames_is_found_again(
    access: str, tmp_path: Path
) -> None:
    target = tmp_path / "folder"
    save(target, 1)
    killed(KILLED_BETWEEN_TWO_RENAMES, target)
    assert not target.exists()
    if access == "write":
        save(target, 2)
    elif access == "write beside it":
        save(tmp_path / "other", 3)
    assert read_json(target / "x.json", "thing") == 2
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


KILLED_WHILE_WRITING = """
with files.atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_a_live_one(
    tmp_path: Path,
) -> None:
    killed(KILLED_WHILE_WRITING, tmp_path / "file.txt")
    assert len(names_in(tmp_path)) == 1
    with atomic_path(tmp_path / "live.txt") as temporary:
        temporary.write_text("live")
        write_json(tmp_path / "x.json", 1)
        assert temporary.exists()
        assert len(names_in(tmp_path)) == 2
    assert names_in(tmp_path) == ["live.txt", "x.json"]


def test_what_another_host_left_is_removed_after_a_week(tmp_path: Path) -> None:
    holder = tmp_path / ".file.txt.0000face-1-abcd_123"
    holder.mkdir()
    (holder / "file.txt").write_text("half")
    remove_leftovers(tmp_path)
    assert holder.exists()
    for path in (holder / "file.txt", holder):
        os.utime(path, (time.time() - WEEK - 60,) * 2)
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == []


def test_hidden_folders_of_others_are_never_removed(tmp_path: Path) -> None:
    for name in (".git", ".config.settings", ".a.deadbeef-1-short", ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text("")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".file.0000face-1-abcd_123").write_text("a file, no folder")
    before = names_in(tmp_path)
    remove_leftovers(tmp_path, all_of_them=True)
    assert names_in(tmp_path) == before


def test_a_folder_with_nothing_but_leftovers_holds_nothing(tmp_path: Path) -> None:
    assert holds_nothing(tmp_path / "absent")
    assert holds_nothing(tmp_path)
    killed(KILLED_WHILE_WRITING, tmp_path / "run.json")
    assert holds_nothing(tmp_path)
    (tmp_path / ".run.json.abcd_123").mkdir()  # as an earlier version left it
    assert holds_nothing(tmp_path)
    check_replaceable(tmp_path, {"run.json"}, "run")
    (tmp_path / "note.txt").write_text("mine")
    assert not holds_nothing(tmp_path)
    assert not holds_nothing(tmp_path / "note.txt")
    with pytest.raises(UserError, match="holds something that is not a run"):
        check_replaceable(tmp_path, {"run.json"}, "run")


def test_everything_is_on_disk_before_its_name_changes_and_is_synced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, place = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def placed(source: Path, target: Path) -> None:
        events.append(f"-> {Path(target).name}")
        place(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", placed)
    save(tmp_path / "folder", 1)
    assert events == ["-> x.json", "x.json", "folder", "-> folder", tmp_path.name]


def test_a_file_never_replaces_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    save(tmp_path / "folder", 1)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="is a folder, and a file would be put in its place"):
        write_json(tmp_path / "folder", 2)
    with pytest.raises(UserError, match="is a file, and a folder would be put in its place"):
        save(tmp_path / "file", 2)
    assert read_json(tmp_path / "folder" / "x.json", "thing") == 1
    assert (tmp_path / "file").read_text() == "kept"
    assert names_in(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("target", [".", "..", "deep/..", "/"])
def test_a_place_without_a_name_of_its_own_cannot_be_replaced(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"names a folder by its place.*name a new one, for"):
        write_json(Path(target), 1)
    with pytest.raises(UserError, match="names a folder by its place"):
        check_replaceable(Path(target), set(), "thing")


def test_a_device_or_pipe_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match="is a device, a pipe or a socket"):
            write_json(target, 1)
        with pytest.raises(UserError, match="is a device, a pipe or a socket"):
            check_replaceable(target, set(), "thing")
    assert names_in(tmp_path) == ["pipe"]


def test_a_place_where_nothing_can_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for target, message in (
        (tmp_path / "file" / "x", "is a file or below one; choose another folder"),
        (tmp_path / "file" / "deep" / "x", "is a file or below one; choose another folder"),
        (tmp_path / "loop" / "x", "leads nowhere; choose another folder"),
        (tmp_path / "loop" / "deep" / "x", "leads in a circle|leads nowhere"),
        (tmp_path / ("x" * 300), "longer than the disk allows; choose a shorter one"),
        (tmp_path / ("x" * 300) / "x", "longer than the disk allows; choose a shorter one"),
        (Path("/proc/x"), "nothing can be written to /proc; choose another folder"),
        (Path("/proc/deep/x"), "/proc/deep cannot be made .*; choose another folder"),
    ):
        with pytest.raises(UserError, match=message):
            write_json(target, 1)
    write_json(tmp_path / ("x" * 250), 1)  # the longest names still work
    assert names_in(tmp_path) == ["file", "loop", "x" * 250]


TOO_LARGE = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_json(Path(sys.argv[1]), "x" * 5000)
except files.UserError as error:
    assert "larger than allowed" in str(error) and "ulimit -f" in str(error), error
    os.kill(os.getpid(), 9)
"""


def test_a_file_over_the_limit_on_sizes_is_one_clear_error(tmp_path: Path) -> None:
    killed(TOO_LARGE, tmp_path / "x.json")
    assert names_in(tmp_path) == []
