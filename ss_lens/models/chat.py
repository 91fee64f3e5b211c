"""Prompts to token ids: the chat template, what may be set of it, and the limits of the context.

A prompt is a text (the user's turn) or a list of turns. :class:`ChatFormat` is what else enters the
template; it is the keyword ``chat=`` of :func:`tokenize`, :func:`ss_lens.capture`,
:func:`ss_lens.generate` and :func:`ss_lens.sweep_angles`.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as Date
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from ss_lens.core.checks import described
from ss_lens.core.errors import UserError
from ss_lens.models import templates
from ss_lens.models.templates import Turn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Tokens = tuple[int, ...]
Prompt = str | Sequence[Turn]
"""The user's turn, or the turns of a conversation that ends before the assistant's next one."""
Scalar = str | bool | int | float | None

DATE = "2024-07-26"
"""What templates take for today: the date that Llama 3's template falls back to."""

RESERVED = frozenset(
    {
        *("self", "conversation", "messages", "tools", "documents", "chat_template"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "sanitize_control_tokens", "strftime_now"),
    }
)
"""Names that would set something else than a variable of the template."""

_told_about_plain_text: WeakSet[Any] = WeakSet()


@dataclass(frozen=True)
class ChatFormat:
    """What enters the chat template beside the prompt.

    Attributes:
        system: the system prompt; ``None`` leaves what the template itself says.
        date: what the template takes for today, as ``YYYY-MM-DD``, so that tokens do not change
            from day to day.
        template_arguments: name → value of what else the template reads, for instance
            ``{"enable_thinking": False}``; kept as sorted pairs.

    Raises:
        UserError: a blank system prompt, no date, or an argument that is not text, a number, a
            truth value or ``None``.
    """

    system: str | None = None
    date: str = DATE
    template_arguments: Mapping[str, Scalar] | tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        if self.system is not None:
            _check_text(self.system, "the system prompt", "leave it out, or write one.")
        try:
            valid = Date.fromisoformat(self.date).isoformat() == self.date
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise UserError(f"date must be written like {DATE}; got {described(self.date)}.")
        try:
            pairs = tuple(sorted(dict(self.template_arguments).items()))
        except (TypeError, ValueError):
            raise UserError(
                "template_arguments must map names to values, like {'enable_thinking': False}; "
                f"got {described(self.template_arguments)}."
            ) from None
        for name, value in pairs:
            _check_argument(name, value)
        object.__setattr__(self, "template_arguments", pairs)

    def as_json(self) -> dict[str, Any]:
        return {
            "system": self.system,
            "date": self.date,
            "template_arguments": dict(self.template_arguments),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ChatFormat:
        """The format that :meth:`as_json` wrote; a field that is absent has its default."""
        if not isinstance(fields, Mapping) or not set(fields) <= set(cls().as_json()):
            raise UserError(
                f"a chat format has system, date and template_arguments; got {fields!r:.80}."
            )
        given = fields.get("template_arguments")
        if isinstance(given, list) and all(isinstance(pair, list) for pair in given):
            return cls(**{**fields, "template_arguments": tuple(map(tuple, given))})
        return cls(**fields)


DEFAULT_FORMAT = ChatFormat()


def tokenize(
    model: TransformerBridge, prompts: Sequence[Prompt], chat: ChatFormat = DEFAULT_FORMAT
) -> list[Tokens]:
    """Tokenise each prompt in the model's chat template, up to the assistant's turn.

    A model without a chat template gets plain text, tokenised as TransformerLens does (with a BOS
    token where the tokenizer has one); a warning says so once per model.

    Raises:
        UserError: a prompt that is blank, or neither valid text nor turns; one text in place of a
            list; a format or turns that the template does not take.
    """
    texts = _texts(model, prompts, chat)
    return [tuple(ids) for ids in _encoded(model, texts)["input_ids"]] if texts else []


def prompt_spans(
    model: TransformerBridge, prompts: Sequence[Prompt], chat: ChatFormat = DEFAULT_FORMAT
) -> list[tuple[int, int]]:
    """Where the text of each prompt lies among the tokens that :func:`tokenize` gives.

    Of a conversation it is the text of the last turn. A token that holds a part of the text counts,
    white space around the text does not.

    Returns:
        The first token of each and the one after its last.

    Raises:
        UserError: as :func:`tokenize`; a template that changes or repeats the text, or a tokenizer
            that does not say where its tokens lie.
    """
    texts, name = _texts(model, prompts, chat), str(model.cfg.model_name)
    if not texts:
        return []
    if not model.tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {name} does not say where its tokens lie, so a prompt's own tokens "
            'are unknown; use position="mean" or a negative index.'
        )
    frames = _texts(model, [_with_last(prompt, _MARK) for prompt in prompts], chat)
    offsets = _encoded(model, texts, return_offsets_mapping=True)["offset_mapping"]
    spans = []
    for index, (prompt, text, frame) in enumerate(zip(prompts, texts, frames, strict=True)):
        own, (before, *after) = text_of(prompt).strip(), frame.split(_MARK)
        inner = text[len(before) : len(text) - len("".join(after))]
        start = len(before) + len(inner) - len(inner.lstrip())
        stop = start + len(own)
        inside = [i for i, (a, b) in enumerate(offsets[index]) if a < stop and b > max(a, start)]
        framed = len(after) == 1 and text == before + inner + after[0]
        if not framed or inner.strip() != own or not inside:
            raise UserError(
                f"the chat template of {name} changes or repeats the text of prompt {index} "
                f"({own[:40]!r}), so its own tokens cannot be distinguished; use "
                'position="mean" or a negative index.'
            )
        spans.append((inside[0], inside[-1] + 1))
    return spans


_MARK = "\ue000prompt\ue000"
"""Stands for a prompt, to find what a template puts around it."""


def _with_last(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another text for its last turn."""
    return text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]


def _encoded(model: TransformerBridge, texts: list[str], **options: bool) -> Any:
    # A template already holds BOS; TransformerLens' tokenizer would add a second one.
    plain = model.tokenizer.chat_template is None
    return model.tokenizer(texts, add_special_tokens=plain, **options)


def _texts(model: TransformerBridge, prompts: Sequence[Prompt], chat: ChatFormat) -> list[str]:
    """What the model reads for each prompt, before it is split into tokens."""
    if not isinstance(chat, ChatFormat):
        raise UserError(
            f"chat must be a ChatFormat; got {described(chat)}. Write ChatFormat(system=...)."
        )
    conversations = [_turns(one, i) for i, one in enumerate(_checked_list(prompts))]
    if not conversations:
        return []
    if chat.system is not None:
        conversations = [_with_system(turns, chat.system) for turns in conversations]
    tokenizer, name = model.tokenizer, str(model.cfg.model_name)
    if tokenizer.chat_template is None:
        return _plain_texts(model, conversations, chat)
    _check_read(tokenizer, chat, name)
    texts = templates.render(
        tokenizer,
        conversations,
        date=Date.fromisoformat(chat.date),
        arguments=dict(chat.template_arguments),
        model_name=name,
    )
    if chat.system is not None and chat.system.strip() not in texts[0]:
        raise UserError(
            f"the chat template of {name} leaves out the system prompt. Put it into the user's "
            "turn, or use a model that takes one."
        )
    return texts


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Raise a :class:`UserError` for the first prompt that is neither valid text nor turns."""
    for index, prompt in enumerate(_checked_list(prompts)):
        _turns(prompt, index)


def check_context(
    model: TransformerBridge,
    tokens: Sequence[Tokens],
    prompts: Sequence[Prompt],
    new_tokens: int = 0,
) -> None:
    """Raise a :class:`UserError` for the first prompt that does not fit into the context."""
    limit = model.cfg.n_ctx
    for index, (ids, prompt) in enumerate(zip(tokens, prompts, strict=True)):
        if len(ids) + new_tokens > limit:
            wanted = f"{len(ids)} tokens" + (f" and {new_tokens} new ones" if new_tokens else "")
            raise UserError(
                f"prompt {index} ({text_of(prompt)[:40]!r}…) has {wanted}; the context of "
                f"{model.cfg.model_name} is {limit}. Shorten it."
            )


def text_of(prompt: Prompt) -> str:
    """What a prompt says last, to name it by."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def tokens_digest(tokens: Sequence[Tokens]) -> str:
    """SHA-256 over all token ids: it changes with the prompts, the template and the tokenizer."""
    digest = hashlib.sha256()
    for ids in tokens:
        digest.update((",".join(map(str, ids)) + ";").encode())
    return digest.hexdigest()


def shared_prefix_length(tokens: Sequence[Tokens], keep: int = 1) -> int:
    """How many leading tokens all sequences share, leaving at least ``keep`` in each."""
    if not tokens:
        return 0
    limit = min(map(len, tokens)) - keep
    shortest, longest = min(tokens), max(tokens)  # in lexicographic order: enough to compare
    length = 0
    while length < limit and shortest[length] == longest[length]:
        length += 1
    return length


def _checked_list(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        raise UserError(f"prompts must be a list; got one text. Write [{prompts[:40]!r}].")
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise UserError(
            f"prompts must be a list; got {type(prompts).__name__}. Write list(prompts) or "
            "[prompt]."
        )
    return prompts


def _turns(prompt: Prompt, index: int) -> list[Turn]:
    """The prompt as checked turns."""
    what, remedy = f"prompt {index}", "every prompt needs some text."
    if isinstance(prompt, Mapping):
        raise UserError(
            f"{what} is one turn; a prompt is a text or a list of turns: write [[...]]."
        )
    if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes):
        _check_text(prompt, what, remedy)
        return [{"role": "user", "content": cast(str, prompt)}]
    for turn in prompt:
        if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
            raise UserError(
                f"{what} holds the turn {str(turn)[:60]!r}; a turn is written like "
                "{'role': 'user', 'content': 'text'}."
            )
        _check_text(turn["role"], f"the role of a turn of {what}", "use system, user or assistant.")
        said = turn["content"]
        if turn["role"] == "assistant" and said == "":
            continue  # an answer can be empty
        _check_text(said, f"the {turn['role']}'s turn of {what}", "each needs text.")
    if not prompt:
        raise UserError(f"{what} has no turn; {remedy}")
    return list(prompt)


def _check_text(text: object, what: str, remedy: str) -> None:
    if not isinstance(text, str):
        raise UserError(
            f"{what} is {described(text)} ({type(text).__name__}), expected text; {remedy}"
        )
    if not text.strip():
        raise UserError(f"{what} is blank; {remedy}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not valid Unicode: character {error.start} is {text[error.start]!r}, half "
            "of a surrogate pair. Decode the text as UTF-8, or remove that character."
        ) from error


def _check_argument(name: object, value: object) -> None:
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
        raise UserError(
            f"a template argument cannot be called {name!r}; use a name that the template reads "
            "and that ss_lens does not set itself, like enable_thinking."
        )
    if isinstance(value, str):
        _check_text(value + ".", f"the template argument {name}", "")
    elif not (value is None or isinstance(value, bool | int | float)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise UserError(
            f"the template argument {name} is {described(value)}; use a text, a finite number, "
            "True, False or None."
        )


def _check_read(tokenizer: Any, chat: ChatFormat, name: str) -> None:
    """Raise where the template does not mention an argument, which would have no effect."""
    template = str(tokenizer.chat_template)
    for argument in dict(chat.template_arguments):
        if argument not in template:
            raise UserError(
                f"the chat template of {name} does not read the argument {argument!r}, so it would "
                "have no effect; leave it out."
            )


def _with_system(turns: list[Turn], system: str) -> list[Turn]:
    if turns[0]["role"] == "system":
        raise UserError(
            f"a conversation has the system prompt {turns[0]['content'][:40]!r} and chat= gives "
            f"another, {system[:40]!r}; keep one."
        )
    return [{"role": "system", "content": system}, *turns]


def _plain_texts(
    model: TransformerBridge, conversations: Sequence[Sequence[Turn]], chat: ChatFormat
) -> list[str]:
    """The users' turns, where there is no template to put anything else into."""
    for turns in conversations:
        if [turn["role"] for turn in turns] != ["user"]:
            raise UserError(
                f"{model.cfg.model_name} has no chat template, so it takes one user's turn as "
                f"plain text; got {', '.join(turn['role'] for turn in turns)}."
            )
    if chat.template_arguments:
        raise UserError(
            f"{model.cfg.model_name} has no chat template, so template arguments have no effect; "
            f"leave out {', '.join(dict(chat.template_arguments))}."
        )
    if model not in _told_about_plain_text:
        _told_about_plain_text.add(model)
        warnings.warn(
            f"{model.cfg.model_name} has no chat template; prompts are used as plain text.",
            stacklevel=4,
        )
    return [turns[0]["content"] for turns in conversations]
