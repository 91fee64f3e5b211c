"""Teacher-forced passes over given texts after given contexts, in padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.checks import check_at_least, check_texts
from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.generation.shared_start import SharedStart
from ss_lens.geometry.operators import Operator
from ss_lens.models import forward
from ss_lens.models.chat import (
    DEFAULT_FORMAT,
    ChatFormat,
    Prompt,
    Tokens,
    check_context,
    text_of,
    tokenize,
)
from ss_lens.models.forward import Batch
from ss_lens.models.loading.devices import device_of

BATCH_SIZE = 32
LOGITS_AT_ONCE = 2**26
"""At most so many logits are held per pass (256 MiB of float32), but at least those of one row."""

AT_ONCE = 128
"""Positions whose logits are turned into probabilities at once."""


@dataclass(frozen=True)
class Continuation:
    """Tokens to score and the tokens, at least one, that they follow."""

    context: Tokens
    scored: Tokens

    def __post_init__(self) -> None:
        assert self.context, "the first scored token must follow something"

    @property
    def read(self) -> Tokens:
        """What the model reads: all but the last scored token, whose successor is not scored."""
        return self.context + self.scored[:-1]

    @property
    def predictions(self) -> int:
        """At how many positions, counted from the end of ``read``, the predictions are wanted.

        One for an empty continuation: what the model expects to follow the context.
        """
        return max(1, len(self.scored))


@dataclass(frozen=True)
class Pass:
    """One left-padded forward pass, so that the wanted positions are the last columns."""

    batch: Batch
    continuations: tuple[Continuation, ...]

    def logits(
        self, model: TransformerBridge, start: SharedStart
    ) -> list[Float[Tensor, "prediction vocab"]]:
        """Of each row, the logits at its wanted positions; views of one tensor.

        ``start`` is that of :func:`start_of`.
        """
        contexts = [len(continuation.context) for continuation in self.continuations]
        wanted = [continuation.predictions for continuation in self.continuations]
        lengths = self.batch.mask.new_tensor(contexts)
        whole = start.logits(model, self.batch, lengths, keep=max(wanted))
        return [row[-n:] for row, n in zip(whole, wanted, strict=True)]


def answers(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    chat: ChatFormat = DEFAULT_FORMAT,
) -> list[Continuation]:
    """Tokenise each response as the assistant's turn after its prompt in the chat template.

    The text of the response is tokenised on its own, unchanged and without an end of turn: an
    answer that was cut off has none, and the text does not show it.

    Raises:
        UserError: a number of responses that is not that of the prompts, a blank prompt, or a
            prompt that exceeds the context together with its response.
    """
    check_texts("responses", responses)
    contexts = tokenize(model, prompts, chat)
    if len(responses) != len(contexts):
        raise UserError(
            f"got {len(contexts)} prompts and {len(responses)} responses; give one response per "
            "prompt, an empty text where there is none."
        )
    check_context(model, contexts, prompts)
    if not contexts:
        return []
    scored = model.tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    found = [Continuation(c, tuple(s)) for c, s in zip(contexts, scored, strict=True)]
    for index, continuation in enumerate(found):
        length, limit = len(continuation.context) + len(continuation.scored), model.cfg.n_ctx
        if length > limit:
            text = text_of(prompts[index])
            raise UserError(
                f"prompt {index} ({text[:40]!r}…) has {length} tokens together with its "
                f"response; the context of {model.cfg.model_name} is {limit}. Shorten the response."
            )
    return found


def start_of(
    model: TransformerBridge, continuations: Sequence[Continuation], rows: Sequence[int]
) -> SharedStart:
    """What the contexts of the given rows start with, run once under the hooks in force."""
    return SharedStart.of(model, [continuations[row].context for row in rows])


def passes(
    model: TransformerBridge,
    continuations: Sequence[Continuation],
    rows: Sequence[int],
    batch_size: int,
    what: str,
) -> Iterator[Pass]:
    """Yield the given rows in passes of similar length, with a progress bar named ``what``.

    A pass has at most ``batch_size`` rows and as many logits as :data:`LOGITS_AT_ONCE` allows.
    """
    check_at_least("batch_size", batch_size)
    read = [continuation.read for continuation in continuations]
    groups: list[list[int]] = []
    widest = 0
    for row in sorted(rows, key=lambda i: len(read[i])):
        widest = max(widest, continuations[row].predictions)
        held = (len(groups[-1]) + 1) * widest * model.cfg.d_vocab if groups else 0
        if not groups or len(groups[-1]) == batch_size or held > LOGITS_AT_ONCE:
            groups.append([])
            widest = continuations[row].predictions
        groups[-1].append(row)
    with progress_bar(len(rows), what, "text") as bar:
        for batch in forward.batches(
            read, groups, side="left", pad_id=forward.pad_id_of(model), device=device_of(model)
        ):
            yield Pass(batch, tuple(continuations[row] for row in batch.rows))
            bar.update(len(batch.rows))


def log_probabilities(logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    """Return log-probabilities in float64, or in float32 on MPS, which lacks float64."""
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.to(wide).log_softmax(dim=-1)


def check_one_strength(operator: Operator) -> None:
    """Raise for an operator with one strength per batch row: rows are batched by their length."""
    if operator.rows is not None:
        raise UserError(
            f"{type(operator).__name__} holds {operator.rows} strengths, one per batch row; give "
            "one number, and call once per strength."
        )
