"""Ask an endpoint many questions at once: retries, the budget, and nothing lost on the way."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.judges.limits import (
    Failure,
    Interrupted,
    Ledger,
    Pace,
    Stopped,
    failure_of_status,
)
from ss_lens.judges.verdict_cache import Reply, VerdictCache


@dataclass(frozen=True)
class Service:
    """What a server is sent with each question, and how patiently it is asked.

    Attributes:
        model: as the server names it.
        base_url: where the server is.
        options: of each request, besides the model and the question.
        key_name: the environment variable that holds the key, for messages.
        timeout_s: seconds that a request may take, from connecting to the last byte of its reply.
        max_attempts: requests for one reply.
        backoff_s: seconds before the second attempt.
        max_wait_s: the longest wait.
        max_requests: budget of requests, retries included.
        max_total_tokens: budget of tokens.
    """

    model: str
    base_url: str
    options: Mapping[str, Any]
    key_name: str | None
    timeout_s: float
    max_attempts: int
    backoff_s: float
    max_wait_s: float
    max_requests: int | None
    max_total_tokens: int | None


class Endpoint:
    """The connections to a service, as one call of a judge uses them."""

    def __init__(self, service: Service, key: str, ledger: Ledger) -> None:
        try:
            import openai
        except ImportError:
            raise UserError(
                'a judge behind an endpoint needs the extra "judges": '
                'pip install "ss_lens[judges]".'
            ) from None
        self.service = service
        self.ledger = ledger
        self.pace = Pace()
        from ss_lens.judges import transport

        self._openai = openai
        self._transport = transport
        # Its own retries could neither be counted nor interrupted.
        self._client = openai.OpenAI(
            api_key=key,
            base_url=service.base_url,
            timeout=service.timeout_s,
            max_retries=0,
            http_client=transport.BoundedClient(service.timeout_s),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def account(self, reply: Reply) -> None:
        """Count the tokens of a reply, once it is safe on disk.

        Raises:
            Stopped: there is a budget of tokens, and the server does not count them.
        """
        if reply.tokens is not None:
            self.ledger.add_tokens(reply.tokens)
        elif self.service.max_total_tokens is not None:
            raise Stopped(
                "the server does not say how many tokens it used, so max_total_tokens cannot be "
                "kept",
                "use max_requests in its place",
            )

    def ask(self, question: str) -> Reply:
        """The reply to one question, after as many attempts as it takes.

        Raises:
            Stopped: the budget is used up, or the server has failed for good.
            Interrupted: the call is ending.
        """
        service, failure = self.service, Failure("")
        for attempt in range(service.max_attempts):
            self.pace.wait(self._backoff(attempt))
            self.ledger.open_request(service.max_requests, service.max_total_tokens)
            outcome = self._attempt(question)
            if isinstance(outcome, Reply):
                return outcome
            failure = outcome
            if failure.rest is not None:
                if failure.rest > service.max_wait_s:
                    raise Stopped(
                        f"{failure.reason} and asks to wait {failure.rest:.0f} s, more than "
                        f"max_wait_s={service.max_wait_s:g}",
                        "wait so long or raise max_wait_s",
                    )
                self.pace.rest(failure.rest)
        raise Stopped(
            f"{failure.reason}, at the last of {service.max_attempts} attempts",
            "see that the server is well, or lower concurrency",
        )

    def _backoff(self, attempt: int) -> float:
        if attempt == 0:
            return 0.0
        longest = min(self.service.backoff_s * 2.0 ** (attempt - 1), self.service.max_wait_s)
        return longest * random.SystemRandom().uniform(0.5, 1.0)

    def _attempt(self, question: str) -> Reply | Failure:
        openai = self._openai
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.service.model,
                messages=[{"role": "user", "content": question}],
                **self.service.options,
            )
        except openai.APITimeoutError:
            return Failure(f"the server did not answer within {self.service.timeout_s:g} s")
        except openai.APIConnectionError as error:
            return self._failure_of_connection(error.__cause__)
        except openai.APIStatusError as error:
            status, headers, body = error.status_code, error.response.headers, error.body
        else:
            return _read_completion(raw.text)
        return failure_of_status(status, headers, body, self.service.key_name)

    def _failure_of_connection(self, cause: BaseException | None) -> Failure:
        if isinstance(cause, self._transport.Elsewhere):
            raise Stopped(
                f"the server redirects to {cause.origin}, which was not asked",
                "give that address in base_url if the texts may go there",
            )
        if isinstance(cause, self._transport.TooLong):
            longest = self._transport.MAX_REPLY_BYTES
            return Failure(f"the server's reply exceeds {longest:,} bytes")
        return Failure("there is no connection to the server")


def ask_all(
    endpoint: Endpoint,
    questions: Mapping[str, str],
    cache: VerdictCache,
    identity: dict[str, Any],
    concurrency: int,
) -> dict[str, Reply]:
    """The reply to each question, each put on disk as soon as it is there.

    Raises:
        Stopped: the first that stopped a request; requests under way were waited for and kept.
    """

    stop = endpoint.pace.stop

    def ask(key: str) -> Reply:
        endpoint.pace.wait()
        try:
            with cache.asking(key):
                reply = cache.read(key)  # another process may have asked it meanwhile
                if reply is None:
                    reply = endpoint.ask(questions[key])
                    cache.write(key, identity, reply)
                    endpoint.account(reply)
        except BaseException:  # at once, before this thread takes the next question
            stop.set()
            raise
        return reply

    with (
        progress_bar(len(questions), "judge", "answer") as bar,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        waiting = {pool.submit(ask, key): key for key in questions}
        try:
            for finished in as_completed(waiting):
                if isinstance(finished.exception(), Interrupted):
                    continue  # told to stop by another, whose own error is still to come
                finished.result()
                bar.update(1)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            endpoint.close()
    return {key: finished.result() for finished, key in waiting.items()}


def _read_completion(text: str) -> Reply | Failure:
    """The reply in the body of a chat completion; a model that said nothing said an empty text.

    A lone surrogate, which JSON can hold and UTF-8 cannot, becomes the replacement character.
    """
    try:
        body = json.loads(text)
        content = body["choices"][0]["message"].get("content")
        tokens = (body.get("usage") or {}).get("total_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Failure("the server answered with something else than a chat completion")
    said = content if isinstance(content, str) else ""
    said = said.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
    return Reply(said, tokens if counted else None)
