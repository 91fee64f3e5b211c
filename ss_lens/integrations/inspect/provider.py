"""Steered models in Inspect: ``inspect eval task.py --model ss_lens/NAME -M angle_deg=120 …``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import date as Date
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import is_finite
from ss_lens.core.errors import UserError
from ss_lens.core.values import read_value
from ss_lens.geometry.operators import AngularOperator, Operator
from ss_lens.models.chat import DATE, DEFAULT_FORMAT, ChatFormat
from ss_lens.models.load import load_model

if find_spec("inspect_ai") is None:
    raise UserError(
        "Inspect evaluations need inspect-ai, which is not installed; "
        'pip install "ss_lens[inspect]" on Python 3.11 or newer.'
    )
from inspect_ai.model import GenerateConfig, Model, get_model

from ss_lens.integrations.inspect.model import SteeredModel

MODEL_ARGUMENTS = (
    *("calibration", "operator", "angle_deg", "device", "dtype", "revision"),
    *("system", "date", "template_arguments"),
)


def open_model(
    model_name: str,
    base_url: str | None = None,
    api_key: str | None = None,
    config: GenerateConfig | None = None,
    *,
    calibration: str | Calibration | None = None,
    operator: str | list[str] | Operator | None = None,
    angle_deg: float | int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    system: str | list[str] | None = None,
    date: str | Date | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    loaded: TransformerBridge | None = None,
    **others: object,
) -> SteeredModel:
    """What Inspect calls for ``get_model("ss_lens/NAME", …)``; the keywords are model arguments.

    Args:
        model_name: as :func:`ss_lens.load_model` takes it: ``ss_lens/smollm2-135m``, or
            ``ss_lens//absolute/path``.
        base_url: none; the model runs in this process.
        api_key: none.
        config: how to generate, where a call does not say.
        calibration: a folder that :meth:`ss_lens.Calibration.save` wrote; without one the model is
            not steered.
        operator: one with its strength, like ``Add(alpha=3)``, or the name of one that has an
            angle; ``RotateBy`` where only an angle is given. (From the command line a text with
            commas arrives in pieces.)
        angle_deg: the angle, in degrees, of an operator that is given by its name.
        device: as in :func:`ss_lens.load_model`.
        dtype: as in :func:`ss_lens.load_model`.
        revision: as in :func:`ss_lens.load_model`.
        system: the system prompt of conversations that bring none.
        date: what the chat template takes for today; fixed where it is not given.
        template_arguments: what else the template reads, like ``{"enable_thinking": False}``.
        loaded: a model that is loaded already; see :func:`steered_model`.
        others: none; a misspelt name is refused here.

    Raises:
        UserError: an unknown argument, one of the wrong type, arguments that do not go together, a
            calibration of another model, or what loading raises.
    """
    for name, value in (("base_url", base_url), ("api_key", api_key)):
        if value is not None:
            raise UserError(f"ss_lens models run in this process and take no {name}; leave it out.")
    if others:
        raise UserError(_unknown(next(iter(others))))
    for name, value in (("device", device), ("dtype", dtype), ("revision", revision)):
        if not isinstance(value, str) and not (name == "revision" and value is None):
            raise UserError(f"{name} must be a text; got {value!r}. Put it in quotes.")
    if not isinstance(calibration, str | Calibration | None):
        raise UserError(
            f"calibration must be the folder of a saved calibration; got {calibration!r}."
        )
    chosen, chat = read_operator(operator, angle_deg), _chat(system, date, template_arguments)
    if (calibration is None) != (chosen is None):
        given, missing = ("a calibration", "an operator or an angle_deg")
        if calibration is None:
            given, missing = missing, given
        raise UserError(f"{given} is given without {missing}; give both to steer, or neither.")
    if isinstance(calibration, str):
        calibration = Calibration.load(Path(calibration).expanduser())
    model = _load(model_name, device, dtype, revision) if loaded is None else loaded
    if calibration is not None:
        calibration.check_fits(model)
    return SteeredModel(model_name, config or GenerateConfig(), model, calibration, chosen, chat)


def steered_model(
    model: TransformerBridge,
    calibration: Calibration | None = None,
    operator: Operator | None = None,
    config: GenerateConfig | None = None,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> Model:
    """An Inspect model of one that is loaded already, for ``inspect_ai.eval(task, model=…)``.

    Inspect remembers models by their arguments as JSON, which cannot tell two loaded models or
    calibrations apart; so nothing is remembered here, and the log holds the operator as text.

    Raises:
        UserError: a calibration without an operator or of another model.
    """
    made = get_model(
        f"ss_lens/{model.cfg.model_name}",
        config=config,
        memoize=False,
        loaded=model,
        calibration=calibration,
        operator=operator,
        system=chat.system,
        date=chat.date,
        template_arguments=dict(chat.template_arguments),
    )
    made.model_args = {}
    if calibration is not None:
        made.model_args = {"operator": repr(operator), "activations": calibration.spec.key}
    if chat != DEFAULT_FORMAT:
        made.model_args |= {"chat": chat.as_json()}
    return made


def read_operator(
    operator: str | list[str] | Operator | None, angle_deg: float | int | None = None
) -> Operator | None:
    """The operator that the model arguments name; ``None`` where they name none.

    Raises:
        UserError: unknown, without a strength or with two, or with one per batch row.
    """
    if isinstance(operator, list):
        operator = ",".join(operator)
    if angle_deg is not None:
        if not isinstance(angle_deg, float | int) or isinstance(angle_deg, bool):
            raise UserError(f"angle_deg is one number of degrees; got {angle_deg!r}.")
        if not is_finite(angle_deg):
            raise UserError(f"angle_deg must be finite; got {angle_deg!r}. Give degrees, like 120.")
        name = "RotateBy" if operator is None else operator
        if not isinstance(name, str) or "(" in name:
            raise UserError(
                f"angle_deg={angle_deg} is given beside {name}; write the angle into the operator, "
                "like SetAngle(angle_deg=120, magnitude=4), or give its name alone."
            )
        made = read_value(
            f"{name}(angle_deg={angle_deg!r})", AngularOperator.kinds(), "operator with an angle"
        )
    elif isinstance(operator, str):
        made = read_value(operator, Operator.kinds(), "operator")
    elif operator is None:
        return None
    else:
        made = operator
    if made.rows is not None:
        raise UserError(
            f"{made!r} has a strength per batch row, but Inspect's calls come in any order; give "
            "one strength, and one model for each."
        )
    return made


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, MODEL_ARGUMENTS, n=1)
    return (
        f"unknown model argument {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} "
        f"ss_lens models take {', '.join(MODEL_ARGUMENTS)}."
    )


def _chat(
    system: str | list[str] | None,
    date: str | Date | None,
    template_arguments: Mapping[str, Any] | None,
) -> ChatFormat:
    """The chat format; the command line splits texts at commas, and reads dates as dates."""
    if isinstance(system, list):
        system = ",".join(map(str, system))
    if isinstance(date, Date):
        date = date.isoformat()
    return ChatFormat(system, DATE if date is None else date, template_arguments or {})


@lru_cache(maxsize=1)
def _load(name: str, device: str, dtype: str, revision: str | None) -> TransformerBridge:
    """One copy in memory, whatever angles it is opened at."""
    return load_model(name, device=device, dtype=dtype, revision=revision)
