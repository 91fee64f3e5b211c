"""Model arguments in Inspect: misspelt ones are named, and what enters the template is obeyed."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="inspect-ai, which needs Python 3.11, is not here")
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    get_model,
)
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import UserError
from ss_lens.integrations.inspect import provider
from ss_lens.integrations.inspect.model import conversation_tokens
from ss_lens.integrations.inspect.provider import open_model, steered_model
from ss_lens.models.chat import ChatFormat

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is dep:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"angel_deg": 90}, "unknown model argument 'angel_deg'; did you mean 'angle_deg'"),
        ({"Calibration": "x"}, "unknown model argument 'Calibration'; did you mean 'calibration'"),
        ({"zzz": 1}, r"unknown model argument 'zzz'\. ss_lens models take calibration, operator"),
        ({"angle_deg": float("nan")}, "angle_deg must be finite; got nan"),
        ({"angle_deg": float("inf")}, "angle_deg must be finite; got inf"),
        ({"angle_deg": True}, "angle_deg is one number of degrees; got True"),
        ({"operator": "Add(alpha=1e999)", "calibration": "x"}, "finite"),
        ({"operator": "RotateBy(angle_deg=nan)"}, "cannot be read"),
        ({"calibration": 5, "angle_deg": 90}, "calibration must be the folder of a saved"),
        ({"revision": 12}, "revision must be a text; got 12"),
        ({"dtype": None}, "dtype must be a text; got None"),
        ({"date": "tomorrow"}, "date must be written like"),
        ({"date": 2024}, "date must be written like"),
        ({"system": " "}, "the system prompt is blank"),
        ({"template_arguments": "thinking"}, "template_arguments must map names to values"),
        ({"template_arguments": {"messages": 1}}, "cannot be called 'messages'"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr(provider, "_load", never)
    with pytest.raises(UserError, match=message) as caught:
        open_model("smollm2-135m", **arguments)
    assert "\n" not in str(caught.value)


def test_what_enters_the_template_reaches_the_answers(
    tiny_folders: dict[str, Path], tiny_llama: TransformerBridge
) -> None:
    """As the command line passes them: a text with commas in pieces, a date as a date."""
    chat = ChatFormat(system="w30,w31", date="2025-01-31")
    expected = ss_lens.generate(tiny_llama, ["w9 w70"], max_new_tokens=5, chat=chat)
    models = [
        get_model(
            f"ss_lens/{tiny_folders['llama']}",
            system=["w30", "w31"],
            date=datetime.date(2025, 1, 31),
        ),
        steered_model(tiny_llama, chat=chat),
    ]
    for model in models:
        output = asyncio.run(model.generate("w9 w70", config=GenerateConfig(max_tokens=5)))
        assert output.completion == expected[0]
    assert models[1].model_args == {"chat": chat.as_json()}


def test_a_task_that_brings_a_system_prompt_takes_no_second_one(
    tiny_llama: TransformerBridge,
) -> None:
    turns = [ChatMessageSystem(content="w9"), ChatMessageUser(content="w10")]
    with pytest.raises(UserError, match="chat= gives another"):
        conversation_tokens(tiny_llama, turns, ChatFormat(system="w30"))


def test_an_empty_answer_may_stand_in_a_conversation(tiny_llama: TransformerBridge) -> None:
    turns = [
        ChatMessageUser(content="w9"),
        ChatMessageAssistant(content=""),
        ChatMessageUser(content="w10"),
    ]
    assert len(conversation_tokens(tiny_llama, turns)) > 8
