"""Prompts to token ids: the chat template, and the limits of the context."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from weakref import WeakSet

from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.errors import UserError

Tokens = tuple[int, ...]

_told_about_plain_text: WeakSet[TransformerBridge] = WeakSet()


def tokenize(model: TransformerBridge, prompts: Sequence[str]) -> list[Tokens]:
    """Each prompt as the user's turn of the model's chat template, up to the assistant's turn.

    A model without a chat template gets plain text, tokenised as TransformerLens does (with a BOS
    token where the tokenizer has one); this is said once per model, as a warning.

    Raises:
        UserError: a prompt is blank, or one text is given for a list.
    """
    if isinstance(prompts, str):
        raise UserError(f"prompts must be a list; got one text. Write [{prompts[:40]!r}].")
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise UserError(f"prompt {index} is blank; every prompt needs some text.")
    if not prompts:
        return []
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None:
        if model not in _told_about_plain_text:
            _told_about_plain_text.add(model)
            warnings.warn(
                f"{model.cfg.model_name} has no chat template; prompts are used as plain text.",
                stacklevel=2,
            )
        return [tuple(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    # The template already holds BOS; TransformerLens' tokenizer would add a second one.
    return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def check_context(
    model: TransformerBridge, tokens: Sequence[Tokens], prompts: Sequence[str], new_tokens: int = 0
) -> None:
    """Raise a :class:`UserError` for the first prompt that does not fit into the context."""
    limit = model.cfg.n_ctx
    for index, (ids, prompt) in enumerate(zip(tokens, prompts, strict=True)):
        if len(ids) + new_tokens > limit:
            wanted = f"{len(ids)} tokens" + (f" and {new_tokens} new ones" if new_tokens else "")
            raise UserError(
                f"prompt {index} ({prompt[:40]!r}…) has {wanted}; the context of "
                f"{model.cfg.model_name} is {limit}. Shorten it."
            )


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
