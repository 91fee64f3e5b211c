"""A language model behind an OpenAI-compatible endpoint as judge, by a rubric that can be read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from ss_lens.core.checks import check_at_least
from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_json
from ss_lens.judges.asking import Endpoint, Service, ask_all
from ss_lens.judges.limits import Ledger, Stopped
from ss_lens.judges.replies import parse_reply
from ss_lens.judges.rubric import fill, read_rubric
from ss_lens.judges.verdict_cache import VerdictCache
from ss_lens.judges.verdicts import check_pairs, verdict_table

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class EndpointJudge:
    """A language model that judges by a rubric, over the chat-completions interface of OpenAI.

    Every reply is kept on disk (``$SS_LENS_HOME/verdicts``) under the hash of the fields above
    ``api_key_env``, the rubric's text, the prompt and the response, and is not asked for again,
    also when it could not be parsed. What comes after ``api_key_env`` changes no verdict and is
    neither compared nor printed.

    Attributes:
        model: as the server names it.
        base_url: where the server is, ``/v1`` included.
        rubric: ``refusal``, or the path of a text with ``{prompt}`` and ``{response}`` in it.
        temperature: 0 is greedy; ``None`` leaves it to the server, where that takes no other.
        max_tokens: the longest reply. A model that thinks before it answers needs more.
        json_mode: ask the server for a JSON object (``response_format``).
        api_key_env: the environment variable with the key, which is read from nowhere else;
            ``None`` for a server without keys.
        token_limit: the name under which ``max_tokens`` is sent. OpenAI's newer models want
            ``max_completion_tokens``.
        concurrency: requests under way at once.
        timeout_s: seconds that a request may take, from connecting to the last byte of its reply.
        max_attempts: requests for one verdict before giving up (statuses 408, 409, 425, 429 and
            5xx, timeouts, lost connections and what is no chat completion are tried again).
        backoff_s: seconds before the second attempt; doubled for each further one, less a random
            part of up to a half. A longer ``Retry-After`` of the server is kept, by all requests.
        max_wait_s: the longest wait; a server that asks for more ends the judging.
        max_requests: budget of one call, retries included, unless it gets a ledger.
        max_total_tokens: likewise; requests that are under way may exceed it.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    rubric: str = "refusal"
    temperature: float | int | None = 0
    max_tokens: int = 512
    json_mode: bool = False
    api_key_env: str | None = field(default="OPENAI_API_KEY", repr=False, compare=False)
    token_limit: str = field(default="max_tokens", repr=False, compare=False)
    concurrency: int = field(default=4, repr=False, compare=False)
    timeout_s: float | int = field(default=60, repr=False, compare=False)
    max_attempts: int = field(default=6, repr=False, compare=False)
    backoff_s: float | int = field(default=1, repr=False, compare=False)
    max_wait_s: float | int = field(default=120, repr=False, compare=False)
    max_requests: int | None = field(default=None, repr=False, compare=False)
    max_total_tokens: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if "@" in url.netloc or url.query or url.fragment:
            # Not repeated in the message: it may hold a key, and repr(judge) is stored.
            raise UserError(
                "base_url must hold no user, password, query or fragment; give the address alone, "
                "and put the key into the environment."
            )
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(
                f"base_url must begin with https:// or http:// and name a server; got "
                f"{self.base_url!r}."
            )
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise UserError(
                "api_key_env must be the name of an environment variable, in capitals, like "
                "OPENAI_API_KEY (what was given is not repeated here, in case it is a key)."
            )
        if self.token_limit not in TOKEN_LIMITS:
            raise UserError(
                f"unknown token_limit {self.token_limit!r}; use {' or '.join(TOKEN_LIMITS)}."
            )
        for name in ("max_tokens", "concurrency", "max_attempts"):
            check_at_least(name, getattr(self, name))
        for name in ("max_requests", "max_total_tokens", "backoff_s", "max_wait_s"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name} must not be negative; got {value}.")
        if not self.timeout_s > 0:
            raise UserError(f"timeout_s must be above 0; got {self.timeout_s}.")
        if self.temperature is not None and not self.temperature >= 0:
            raise UserError(f"temperature must not be negative; got {self.temperature}.")

    def identity(self) -> dict[str, Any]:
        """What a verdict depends on besides prompt and response, as JSON values.

        Raises:
            UserError: the rubric cannot be read.
        """
        return {
            "model": self.model,
            "base_url": self.base_url,
            "rubric_sha256": sha256_of_json(read_rubric(self.rubric)),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "json_mode": self.json_mode,
        }

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], *, ledger: Ledger | None = None
    ) -> pd.DataFrame:
        """Judge each response to its prompt, asking only for verdicts that are not kept yet.

        Args:
            prompts: the users' turns.
            responses: the answers, one for each.
            ledger: what has been spent before and counts towards the budget; it is added to.

        Returns:
            The columns of :func:`ss_lens.judges.verdict_table`; ``score`` is what the judge gave.

        Raises:
            UserError: the budget is used up, or the server refuses, stays silent or does not answer
                sensibly for ``max_attempts`` requests. The message says how many answers are
                judged; their verdicts are kept, and the same call resumes there.
        """
        check_pairs(prompts, responses)
        rubric, identity, cache = read_rubric(self.rubric), self.identity(), VerdictCache()
        keys = [
            cache.key(identity, prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        kept = {key: cache.read(key) for key in dict.fromkeys(keys)}
        replies = {key: reply for key, reply in kept.items() if reply is not None}
        questions = {
            key: fill(rubric, prompt, response)
            for key, prompt, response in zip(keys, prompts, responses, strict=True)
            if key not in replies
        }
        if questions:
            endpoint = Endpoint(self._service(), self._key(), ledger or Ledger())
            try:
                replies |= ask_all(endpoint, questions, cache, identity, self.concurrency)
            except Stopped as stopped:
                judged = sum(cache.read(key) is not None for key in keys)
                raise UserError(
                    f"{stopped.reason}; {judged} of {len(keys)} answers are judged, and their "
                    f"verdicts are kept in {cache.root}: {stopped.remedy}, then run the same again."
                ) from None
        return verdict_table([parse_reply(replies[key].text) for key in keys])

    def check_ready(self) -> None:
        """Raise where the rubric, the key or the client's package is missing; asks nothing."""
        read_rubric(self.rubric)
        Endpoint(self._service(), self._key(), Ledger()).close()

    def _service(self) -> Service:
        options: dict[str, Any] = {self.token_limit: self.max_tokens}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.json_mode:
            options["response_format"] = {"type": "json_object"}
        return Service(
            model=self.model,
            base_url=self.base_url,
            options=options,
            key_name=self.api_key_env,
            timeout_s=float(self.timeout_s),
            max_attempts=self.max_attempts,
            backoff_s=float(self.backoff_s),
            max_wait_s=float(self.max_wait_s),
            max_requests=self.max_requests,
            max_total_tokens=self.max_total_tokens,
        )

    def _key(self) -> str:
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UserError(
                f"the environment variable {self.api_key_env} is not set; put the key of the "
                "judge's server there, or say api_key_env=None if that needs none."
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise UserError(
                f"the environment variable {self.api_key_env} does not hold a key: it has spaces "
                "or characters outside ASCII."
            )
        return key
