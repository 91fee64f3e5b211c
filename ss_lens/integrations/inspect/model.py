"""One model in Inspect: conversations to tokens, and calls that wait for one another to answers."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_whole
from ss_lens.core.errors import UserError
from ss_lens.generation.loop import check_temperature, continue_tokens
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, Tokens, check_context, tokenize
from ss_lens.steering.steer import steer

DEFAULT_MAX_TOKENS = 512
MAX_BATCH = 16

_UNSUPPORTED = (
    *("top_p", "top_k", "frequency_penalty", "presence_penalty", "logit_bias", "best_of"),
    *("num_choices", "logprobs", "top_logprobs", "prompt_logprobs", "response_schema"),
    *("extra_body", "reasoning_tokens"),
)
"""Settings that would change the answer and that nothing here obeys."""

_locks: WeakKeyDictionary[TransformerBridge, threading.Lock] = WeakKeyDictionary()


@dataclass(eq=False)
class _Request:
    tokens: Tokens
    max_new_tokens: int
    temperature: float
    seed: int
    answer: list[int] | None = None


def conversation_tokens(
    model: TransformerBridge, messages: Sequence[ChatMessage], chat: ChatFormat = DEFAULT_FORMAT
) -> Tokens:
    """A conversation through the model's chat template, up to the assistant's next turn.

    Raises:
        UserError: a message that is not text, or a conversation that the template (or a model
            without one) cannot render.
    """
    turns = [{"role": message.role, "content": _text(message)} for message in messages]
    return tokenize(model, [turns], chat)[0]


def _text(message: ChatMessage) -> str:
    parts = [] if isinstance(message.content, str) else message.content
    kinds = {part.type for part in parts} - {"text"}
    if isinstance(message, ChatMessageAssistant) and message.tool_calls:
        kinds.add("tool calls")
    if message.role == "tool":
        kinds.add("tool results")
    if kinds:
        raise UserError(
            f"ss_lens models read text only; a message of the {message.role} holds "
            f"{', '.join(sorted(kinds))}. Use a task of text."
        )
    return message.text


class SteeredModel(ModelAPI):
    """Answers of a model under one operator: greedy unless a temperature is asked for.

    Calls wait for one another; greedy ones that wait together are answered in one batch, which does
    not change the answers. Sampled ones run alone, so that an answer depends on its prompt and seed
    only. Without a seed one is drawn, and told in the output's metadata.
    """

    def __init__(
        self,
        model_name: str,
        config: GenerateConfig,
        model: TransformerBridge,
        calibration: Calibration | None,
        operator: Operator | None,
        chat: ChatFormat = DEFAULT_FORMAT,
    ) -> None:
        super().__init__(model_name=model_name, config=config)
        self._model = model
        self._calibration = calibration
        self._operator = operator
        self._chat = chat
        self._lock = _locks.setdefault(model, threading.Lock())
        self._waiting: list[_Request] = []

    def max_connections(self) -> int:
        return MAX_BATCH

    def collapse_user_messages(self) -> bool:
        return True  # many chat templates insist that the roles take turns

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer a conversation, in at most ``max_tokens`` (512, or what the context leaves).

        Raises:
            UserError: tools, media or settings that are not supported here, a conversation that
                the model's template rejects, or one that does not fit into the context.
        """
        if tools:
            raise UserError(
                f"ss_lens models call no tools; got {', '.join(tool.name for tool in tools)}. Use "
                "a task without tools."
            )
        unsupported = [name for name in _UNSUPPORTED if getattr(config, name) is not None]
        if unsupported:
            raise UserError(
                "ss_lens models obey temperature, seed, max_tokens and stop_seqs, not "
                f"{', '.join(unsupported)}; leave those out."
            )
        temperature = config.temperature or 0.0
        check_temperature(temperature)
        seed = secrets.randbits(32) if config.seed is None else config.seed
        tokens = conversation_tokens(self._model, input, self._chat)
        wanted = config.max_tokens
        if wanted is None:
            wanted = max(1, min(DEFAULT_MAX_TOKENS, self._model.cfg.n_ctx - len(tokens)))
        check_whole("max_tokens", wanted, at_least=1)
        check_context(self._model, [tokens], [input[-1].text], wanted)
        started = time.monotonic()
        request = _Request(tokens, wanted, temperature, seed)
        ids = await anyio.to_thread.run_sync(self._answer, request)
        text = self._model.tokenizer.decode(ids, skip_special_tokens=True)
        stop: StopReason = "max_tokens" if len(ids) == wanted else "stop"
        ends = [text.index(end) for end in config.stop_seqs or () if end in text]
        if ends:
            text, stop = text[: min(ends)], "stop"
        message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=stop)],
            usage=ModelUsage(
                input_tokens=len(tokens),
                output_tokens=len(ids),
                total_tokens=len(tokens) + len(ids),
            ),
            time=time.monotonic() - started,
            metadata={"seed": seed} if temperature > 0 else None,
        )

    def _answer(self, request: _Request) -> list[int]:
        """Wait for the model, and answer ``request`` unless a batch has taken it along."""
        self._waiting.append(request)
        with self._lock:
            if request.answer is None:
                batch = self._batch_of(request)
                try:
                    self._run(batch)
                finally:  # a batch that failed is not tried again: its other requests run alone
                    for done in batch:
                        if done in self._waiting:
                            self._waiting.remove(done)
        assert request.answer is not None
        return request.answer

    def _batch_of(self, request: _Request) -> list[_Request]:
        if request.temperature > 0:
            return [request]
        fellows = [
            other
            for other in self._waiting
            if other is not request
            and other.temperature == 0
            and other.max_new_tokens == request.max_new_tokens
        ]
        return [request, *fellows[: MAX_BATCH - 1]]

    def _run(self, requests: Sequence[_Request]) -> None:
        first, steering = requests[0], nullcontext()
        if self._calibration is not None and self._operator is not None:
            steering = steer(self._model, self._calibration, self._operator)
        with steering:
            answers = continue_tokens(
                self._model,
                [request.tokens for request in requests],
                max_new_tokens=first.max_new_tokens,
                batch_size=len(requests),
                temperature=first.temperature,
                seed=first.seed,
                bar=tqdm(disable=True),
            )
        for request, ids in zip(requests, answers, strict=True):
            request.answer = ids
