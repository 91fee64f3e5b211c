"""Chat templates as text: rendered on a fixed date, and stopped where they fail or never end."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import date as Date, datetime, time
from typing import Any

from jinja2 import TemplateError

from ss_lens.core.errors import UserError, first_line

Turn = Mapping[str, str]
"""``{"role": "user", "content": "..."}``; other roles are ``system`` and ``assistant``."""

LIMIT_S = 20.0
"""A template that needs longer for one prompt is taken to be endless."""

THREAD = "ss_lens chat template"

_FAILURES = (
    TemplateError,  # also what a template raises on purpose
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,  # also a recursion that is too deep
    SyntaxError,
    TypeError,
    ValueError,
)
"""What an expression in a template can raise."""

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
           "October", "November", "December")  # fmt: skip


def render(
    tokenizer: Any,
    conversations: Sequence[Sequence[Turn]],
    *,
    date: Date,
    arguments: Mapping[str, Any],
    model_name: str,
) -> list[str]:
    """Render each conversation up to the assistant's next turn.

    ``transformers`` lets a template read the clock (``strftime_now``); here it reads ``date``, in
    English. Templates run in the sandbox of ``transformers``.

    Raises:
        UserError: the template fails, or takes longer than :data:`LIMIT_S` for one conversation.
    """

    def one(turns: Sequence[Turn]) -> str:
        return tokenizer.apply_chat_template(
            list(map(dict, turns)),
            chat_template=on_date(date, tokenizer.get_chat_template()),
            add_generation_prompt=True,
            tokenize=False,
            **arguments,
        )

    texts, failure = _watched(one, conversations, model_name)
    if failure is None:
        return texts
    if not isinstance(failure, _FAILURES):
        raise failure
    roles = ", ".join(turn["role"] for turn in conversations[len(texts)])
    raise UserError(
        f"the chat template of {model_name} rejects the turns {roles}: {first_line(failure)} "
        "Give turns and template arguments that it takes, or mend the tokenizer's template."
    ) from failure


def on_date(date: Date, template: str) -> str:
    """The template with its clock stopped: ``strftime_now`` becomes a macro of the template."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f"|replace('%{k}', '{v}')" for k, v in _directives(date).items())
    macro = f"{{{{ format|replace('%%', '\\0'){replaced}|replace('\\0', '%') }}}}"
    # The block's own newline is trimmed, so the template begins as before.
    return f"{{% macro strftime_now(format) %}}{macro}{{% endmacro %}}\n{template}"


def _directives(date: Date) -> dict[str, str]:
    """What each directive of ``strftime`` stands for at midnight of ``date``, in the C locale."""
    midnight = datetime.combine(date, time())
    day, month = _DAYS[date.weekday()], _MONTHS[date.month - 1]
    words = {"A": day, "a": day[:3], "B": month, "b": month[:3], "h": month[:3], "p": "AM"}
    numbers = {code: midnight.strftime(f"%{code}") for code in "dfGHIjmMSuUVwWyY"}
    plain = {"-d": str(date.day), "-m": str(date.month), "e": f"{date.day:2}", "-I": "12"}
    clock, short = "00:00:00", date.strftime("%m/%d/%y")
    whole = {
        "F": date.isoformat(),
        "T": clock,
        "X": clock,
        "R": clock[:5],
        "D": short,
        "x": short,
        "c": f"{day[:3]} {month[:3]} {date.day:2} {clock} {date.year}",
    }
    return {**words, **numbers, **plain, **whole, "-H": "0", "-M": "0", "-S": "0", "Z": "", "z": ""}


class _Stopped(Exception):
    """Ends the thread of a template that does not end by itself."""


def _watched(
    one: Callable[[Sequence[Turn]], str], conversations: Sequence[Sequence[Turn]], model_name: str
) -> tuple[list[str], BaseException | None]:
    """The texts up to the first failure, rendered in a thread that ends where one takes long."""
    texts: list[str] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for turns in conversations:
                texts.append(one(turns))
        except BaseException as error:  # handed over to the caller, whatever it is
            failures.append(error)

    thread = threading.Thread(target=run, name=THREAD, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            before = len(texts)
            thread.join(LIMIT_S)
            if thread.is_alive() and len(texts) == before:
                raise UserError(
                    f"the chat template of {model_name} took more than {LIMIT_S:g} s for prompt "
                    f"{before}, expected milliseconds: it does not end. Mend the template in the "
                    "tokenizer's folder, or use another model."
                )
    finally:
        if thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stopped)
            )
    return texts, failures[0] if failures else None
