"""Prompts to tokens: what a chat format sets, what templates may do, which texts are refused."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

import ss_lens
from ss_lens import ChatFormat, ContrastiveDataset, Store, UserError
from ss_lens.activations.activations import CaptureSpec
from ss_lens.models import templates
from ss_lens.models.chat import RESERVED, tokenize, tokens_digest
from tests.conftest import TEMPLATE

DATED = (
    "{% set today = strftime_now('%d %b %Y') %}{% for m in messages %}{{ m['role'] }} "
    "{{ m['content'] }} {{ today }} </s> {% endfor %}assistant"
)
THINKING = "{{ messages[-1]['content'] }}{% if enable_thinking is false %} w9{% endif %} assistant"

SetTemplate = Callable[[str | None], TransformerBridge]


@pytest.fixture
def with_template(tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> SetTemplate:
    """The tiny Llama under another chat template."""

    def change(template: str | None) -> TransformerBridge:
        monkeypatch.setattr(tiny_llama.tokenizer, "chat_template", template)
        return tiny_llama

    return change


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch, tiny_llama: TransformerBridge) -> list[str]:
    """Texts as they leave the template; tiny tokenizers know few words."""
    seen: list[str] = []
    render = templates.render

    def spy(*args: Any, **options: Any) -> list[str]:
        texts = render(*args, **options)
        seen.extend(texts)
        return texts

    monkeypatch.setattr(templates, "render", spy)
    return seen


# --- the date ------------------------------------------------------------------------------------


def test_a_template_with_the_date_gives_the_same_tokens_on_every_day(
    with_template: SetTemplate, rendered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.utils.chat_template_utils as clock

    model = with_template(DATED)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Tomorrow:
            return cls(2031, 5, 6)

    today = tokenize(model, ["w9"])
    monkeypatch.setattr(clock, "datetime", Tomorrow)
    assert tokenize(model, ["w9"]) == today
    assert rendered == ["user w9 26 Jul 2024 </s> assistant"] * 2


def test_another_date_is_another_text_and_another_capture(
    with_template: SetTemplate, rendered: list[str], tiny_data: ContrastiveDataset, store: Store
) -> None:
    # The tiny tokenizer knows no date, so the template turns it into words that it knows.
    model = with_template("{{ messages[0].content }} w{{ strftime_now('%d')|int + 10 }} assistant")
    data = tiny_data.head(2)
    specs = [
        ss_lens.capture(model, data, store=store, chat=ChatFormat(date=f"2024-07-{day}")).spec
        for day in ("01", "02")
    ]
    assert len({spec.key for spec in specs}) == 2
    assert specs[1].chat.date == "2024-07-02"
    assert CaptureSpec.from_json(json.loads(json.dumps(specs[1].as_json()))) == specs[1]


@given(st.dates(date(1970, 1, 1), date(2100, 1, 1)))
def test_the_date_is_written_as_the_clock_would_write_it(day: date) -> None:
    """Every directive, against the C locale's own ``strftime``."""
    midnight = datetime.combine(day, datetime.min.time())
    for code, text in templates._directives(day).items():
        assert text == midnight.strftime(f"%{code}"), code


def test_a_percent_sign_and_the_start_of_the_template_are_kept(
    with_template: SetTemplate, rendered: list[str]
) -> None:
    template = "\n  {{ strftime_now('%d%% %%d %B') }} {{ messages[0].content }}"
    tokenize(with_template(template), ["w9"])
    assert rendered == ["\n  26% %d July w9"]


def test_a_spec_without_a_format_is_one_of_the_default_format(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    """Stores from before formats were kept still answer, under the same keys."""
    spec = ss_lens.capture(tiny_llama, tiny_data.head(2), store=store).spec
    fields = spec.as_json()
    del fields["chat"]
    old = CaptureSpec.from_json(fields)
    assert old == spec
    assert old.key == spec.key


# --- system prompt, turns, arguments -------------------------------------------------------------


def test_a_system_prompt_precedes_every_prompt(
    tiny_llama: TransformerBridge, rendered: list[str]
) -> None:
    tokenize(tiny_llama, ["w1", "w2"], ChatFormat(system="w9 w10"))
    assert rendered == [
        f"<s> system be helpful </s> system w9 w10 </s> user {w} </s> assistant"
        for w in ("w1", "w2")
    ]


def test_a_conversation_is_rendered_turn_by_turn_and_one_turn_is_its_text(
    tiny_llama: TransformerBridge, rendered: list[str]
) -> None:
    turns = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    tokenize(tiny_llama, [turns])
    assert rendered == ["<s> system be helpful </s> user w1 </s> assistant w2 </s> user w3 </s> "
                        "assistant"]  # fmt: skip
    assert tokenize(tiny_llama, [turns[-1:]]) == tokenize(tiny_llama, ["w3"])


def test_template_arguments_reach_the_template(
    with_template: SetTemplate, rendered: list[str]
) -> None:
    model = with_template(THINKING)
    for arguments in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        tokenize(model, ["w1"], ChatFormat(template_arguments=arguments))
    assert rendered == ["w1 assistant", "w1 assistant", "w1 w9 assistant"]


def test_capture_generate_and_sweeps_take_the_format(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    chat = ChatFormat(system="w90 w91 w92")
    plain = ss_lens.capture(tiny_llama, tiny_data, store=store)
    with_system = ss_lens.capture(tiny_llama, tiny_data, store=store, chat=chat)
    assert (plain.positive - with_system.positive).abs().max() > 0.01
    assert with_system.spec.chat == chat
    prompts = [*tiny_data.positive[:2], [{"role": "user", "content": tiny_data.negative[0]}]]
    answers = ss_lens.generate(tiny_llama, prompts, max_new_tokens=8, chat=chat)
    assert answers != ss_lens.generate(tiny_llama, prompts, max_new_tokens=8)
    table = ss_lens.sweep_angles(
        tiny_llama,
        ss_lens.calibrate(with_system, rule=ss_lens.Uniform()),
        ss_lens.RotateBy,
        prompts,
        [0],
        max_new_tokens=8,
        chat=chat,
    )
    assert list(table["response"]) == answers


def test_a_format_is_a_value_and_survives_json() -> None:
    arguments = {"enable_thinking": False, "effort": "low"}
    chat = ChatFormat("be brief", "2025-01-02", arguments)
    assert chat == ChatFormat("be brief", "2025-01-02", tuple(reversed(arguments.items())))
    assert len({chat, ChatFormat.from_json(json.loads(json.dumps(chat.as_json())))}) == 1
    assert ChatFormat.from_json({}) == ChatFormat()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"system": " "}, "the system prompt is blank; leave it out, or write one"),
        ({"system": 5}, r"the system prompt is 5 \(int\), expected text"),
        ({"date": "26 Jul 2024"}, "date must be written like 2024-07-26; got '26 Jul 2024'"),
        ({"date": 20240726}, "date must be written like 2024-07-26; got 20240726"),
        ({"date": "20240726"}, "date must be written like 2024-07-26"),
        ({"template_arguments": "enable_thinking"}, "must map names to values, like"),
        ({"template_arguments": {"tools": None}}, "cannot be called 'tools'; use a name that the"),
        ({"template_arguments": {"a b": 1}}, "cannot be called 'a b'"),
        ({"template_arguments": {"x": [1]}}, r"argument x is \[1\]; use a text, a finite number"),
        ({"template_arguments": {"x": float("inf")}}, "argument x is inf"),
        ({"template_arguments": {"x": "\ud800"}}, "argument x is not valid Unicode"),
    ],
)
def test_a_bad_format_is_refused_when_it_is_made(
    fields: dict[str, Any], message: str, unchecked_types: None
) -> None:
    with pytest.raises(UserError, match=message):
        ChatFormat(**fields)


def test_names_that_transformers_takes_for_itself_are_reserved() -> None:
    theirs = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert set(theirs) - {"kwargs"} <= RESERVED


@pytest.mark.parametrize(
    ("template", "prompts", "chat", "message"),
    [
        (TEMPLATE, ["w1"], {"template_arguments": {"enable_thinking": False}},
         "does not read the argument 'enable_thinking', so it would have no effect"),
        (THINKING, ["w1"], {"system": "w9"}, "leaves out the system prompt"),
        (TEMPLATE, [[{"role": "system", "content": "w8"}, {"role": "user", "content": "w1"}]],
         {"system": "w9"}, "has the system prompt 'w8' and chat= gives another, 'w9'; keep one"),
        (None, ["w1"], {"system": "w9"}, "has no chat template.*one user's turn.*system, user"),
        (None, ["w1"], {"template_arguments": {"x": 1}}, "template arguments have no effect"),
    ],
)  # fmt: skip
def test_what_the_template_would_ignore_is_refused(
    template: str | None,
    prompts: list[Any],
    chat: dict[str, Any],
    message: str,
    with_template: SetTemplate,
) -> None:
    with pytest.raises(UserError, match=message):
        tokenize(with_template(template), prompts, ChatFormat(**chat))


def test_a_format_that_is_none_is_refused(
    tiny_llama: TransformerBridge, unchecked_types: None
) -> None:
    with pytest.raises(UserError, match="chat must be a ChatFormat; got 'be brief'"):
        ss_lens.generate(tiny_llama, ["w1"], chat="be brief")


# --- prompts that are none -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("w1", r"prompts must be a list; got one text\. Write \['w1'\]"),
        (None, r"prompts must be a list; got NoneType\. Write list\(prompts\) or \[prompt\]"),
        ([None], r"prompt 0 is None \(NoneType\), expected text; every prompt needs some text"),
        (["w1", 5], r"prompt 1 is 5 \(int\), expected text"),
        ([b"w1"], r"prompt 0 is b'w1' \(bytes\), expected text"),
        (["w1", " \n"], "prompt 1 is blank; every prompt needs some text"),
        (["w1", "a\udc80"], r"prompt 1 is not valid Unicode: character 1 is '\\udc80'"),
        ([{"role": "user", "content": "w1"}], "prompt 0 is one turn; a prompt is a text or a list"),
        ([[]], "prompt 0 has no turn"),
        ([["w1"]], "prompt 0 holds the turn 'w1'; a turn is written like"),
        ([[{"role": "user", "text": "w1"}]], "a turn is written like"),
        ([[{"role": "user", "content": None}]], r"the user's turn of prompt 0 is None"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_place(
    prompts: Any, message: str, tiny_llama: TransformerBridge, unchecked_types: None
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ss_lens.generate(tiny_llama, prompts)
    assert "\n" not in str(caught.value)


# --- templates that fail -------------------------------------------------------------------------

BROKEN = {
    "syntax": "{% for m in messages %}{{ m.content }}",
    "raises": "{{ raise_exception('System role not supported') }}",
    "type": "{{ messages[0].content + 1 }}",
    "undefined": "{{ messages[0].content.nothing.at.all }}",
    "division": "{{ 1 / 0 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "range": "{% for i in range(999999999) %}{% endfor %}",
    "sandbox": "{{ ''.__class__.__mro__ }}",
    "nesting": "{% for a in 'x' %}" * 30 + "{% endfor %}" * 30,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_template_that_fails_is_one_clear_line(kind: str, with_template: SetTemplate) -> None:
    with pytest.raises(UserError, match=r"chat template of .* rejects the turns user: ") as caught:
        tokenize(with_template(BROKEN[kind]), ["w1"])
    assert "\n" not in str(caught.value)


def test_a_template_that_does_not_end_is_stopped(
    with_template: SetTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "LIMIT_S", 0.3)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match=r"took more than 0\.3 s for prompt 0.*does not end"):
        tokenize(with_template(endless), ["w1"])
    for _ in range(100):  # its thread ends too
        if not any(thread.name == templates.THREAD for thread in threading.enumerate()):
            return
        time.sleep(0.1)
    raise AssertionError("the template is still being rendered")


def test_tokens_are_those_of_transformers_own_rendering(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["llama"])
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w9 w10"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert tokenize(tiny_llama, ["w9 w10"]) == [tuple(expected)]
    assert len(tokens_digest([tuple(expected)])) == 64


def test_a_format_is_made_without_torch() -> None:
    code = "import sys, ss_lens; ss_lens.ChatFormat(system='x'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
