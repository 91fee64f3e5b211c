"""One task at a time in a thread of its own, which is asked to stop and then waited for.

A Jupyter kernel answers the front end in its main thread. A task there would make it deaf, so that
no press of a button could stop the task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Task = Callable[[Callable[[], bool]], None]
"""Is given a function that says whether it was asked to stop."""


class Runner:
    """Starts tasks; each is stopped and waited for before the next begins."""

    def __init__(self) -> None:
        self._asked_to_stop = threading.Event()
        # Not Thread.join: interrupted, it takes the thread for ended (before Python 3.13).
        self._ended = threading.Event()
        self._ended.set()

    def start(self, task: Task) -> None:
        """Run ``task``, after the one that runs has stopped."""
        self.stop()
        stop, ended = threading.Event(), threading.Event()
        self._asked_to_stop, self._ended = stop, ended

        def run() -> None:
            try:
                task(stop.is_set)
            finally:
                ended.set()

        threading.Thread(target=run, daemon=True).start()

    def ask_to_stop(self) -> None:
        """Ask the running task to stop, without waiting for it."""
        self._asked_to_stop.set()

    def stop(self) -> None:
        """Stop the running task and wait until it has ended."""
        self.ask_to_stop()
        self._ended.wait()

    def wait(self) -> None:
        """Wait until the running task has ended; Ctrl-C stops the task and is then raised."""
        try:
            self._ended.wait()
        except KeyboardInterrupt:
            self.stop()
            raise
