"""Check shapes at every call, and that each public function of tensors was called at all.

A plugin of the second, smaller run of ``make test``: ``pytest -p tests.shapes
--jaxtyping-packages=ss_lens,analyses,tests.shapes.checked``. The checks are beartype's, as they
would be with ``beartype.beartype`` in place of ``tests.shapes.checked``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import wraps
from typing import Any, get_args

import beartype
import pytest
from jaxtyping import AbstractArray

PACKAGES = ("ss_lens", "analyses")
ABSTRACT = {"ss_lens.geometry.operators.Operator.apply"}
"""What has no body to call; its implementations are called."""
_typed: set[str] = set()
_called: set[str] = set()


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let beartype check a function; where its signature names shapes, note that it was called."""
    strict = beartype.beartype(function)
    name = f"{function.__module__}.{function.__qualname__}"
    shaped = any(map(_names_a_shape, function.__annotations__.values()))
    if name in ABSTRACT or not (_is_public(name) and shaped):
        return strict
    _typed.add(name)

    @wraps(strict)
    def noted(*arguments: Any, **named: Any) -> Any:
        _called.add(name)
        return strict(*arguments, **named)

    return noted


def _is_public(name: str) -> bool:
    parts = name.split(".")
    hidden = (part.startswith("_") and not part.startswith("__") for part in parts)
    return parts[0] in PACKAGES and "<locals>" not in parts and not any(hidden)


def _names_a_shape(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(map(_names_a_shape, get_args(annotation)))


def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist has seen."""
    _typed.update(node.workeroutput["typed"])
    _called.update(node.workeroutput["called"])


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that has passed but left a public function of tensors without a call."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput.update(typed=sorted(_typed), called=sorted(_called))
        return
    if exitstatus != pytest.ExitCode.OK:
        return
    for package in PACKAGES:  # so that a module that no test imports is not overlooked
        folder = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(folder, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    if _typed - _called:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many public functions of tensors were checked, and name the others."""
    missing = sorted(_typed - _called)
    terminalreporter.write_line(
        f"{len(_typed) - len(missing)} of {len(_typed)} public functions of tensors checked"
    )
    for name in missing:
        terminalreporter.write_line(f"not called in this run: {name}", red=True)
