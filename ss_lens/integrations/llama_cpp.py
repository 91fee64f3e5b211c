"""A running llama.cpp server with an export beside ``steer(...)``, by its log-probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_is, check_path, described as described_value
from ss_lens.core.errors import UserError, first_line
from ss_lens.core.progress import progress_bar
from ss_lens.core.values import read_value
from ss_lens.exports.kinds import DIAL, GGUF_FILE
from ss_lens.exports.merged import MERGED_GGUF
from ss_lens.exports.verify import MODEL, calibration_of, described, tokens_for
from ss_lens.generation.loop import stop_ids
from ss_lens.geometry.operators import Operator, RotateBy
from ss_lens.models import forward
from ss_lens.models.chat import Prompt, Tokens
from ss_lens.models.loading.devices import device_of
from ss_lens.steering.steer import steer

Scales = list[dict[str, float]]
SAME = 0.98
"""The share of tokens after which the server must find the token likeliest that we do."""
LISTED = 64
"""How many log-probabilities are compared at each token: those that the server finds likeliest."""
PATIENCE, FOR_FACTS = 3600.0, 30.0
"""Seconds to wait for an answer, and for what a server knows of itself."""


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its tokens, and the log-probabilities of the likeliest at each of them."""

    tokens: tuple[int, ...]
    likeliest: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...]


def turned(angle_deg: float) -> Scales:
    """What a request sends to turn a dial: a scale for each of its two adapters."""
    angle = math.radians(angle_deg)
    return [{"id": 0, "scale": math.cos(angle) - 1}, {"id": 1, "scale": math.sin(angle)}]


def ask(
    address: str,
    ids: Sequence[int],
    scales: Scales,
    *,
    new: int,
    listed: int,
    whole_length: bool = False,
) -> Answer:
    """The server's greedy answer to a prompt.

    Args:
        address: of the server, like ``http://127.0.0.1:8080``.
        ids: whole prompt, template included.
        scales: of its adapters.
        new: where the answer is cut off.
        listed: how many log-probabilities to send for each token.
        whole_length: go on after a stop token.

    Raises:
        UserError: no such server, or one that answers something else.
    """
    body = {
        **{"prompt": [*ids], "n_predict": new, "temperature": 0, "top_k": 1, "n_probs": listed},
        **{"lora": scales, "ignore_eos": whole_length},
        "cache_prompt": False,  # else keys and values of other scales would be used again
    }
    told = _told(address, "/completion", body)
    with _of_llama_cpp(address, "/completion", told):
        places = told.get("completion_probabilities", [])  # absent where the answer is empty
        rows = [
            {int(t["id"]): float(t["logprob"]) for t in place["top_logprobs"]} for place in places
        ]
        tokens = tuple(int(place["id"]) for place in places)
        return Answer(tokens, tuple(max(row, key=row.__getitem__) for row in rows), tuple(rows))


def verify_server(
    folder: Path | str,
    model: TransformerBridge,
    address: str,
    *,
    prompts: Sequence[Prompt] | None = None,
) -> pd.DataFrame:
    """Compare a running llama.cpp server that has an export with the steered model.

    Both read prompts with the server's greedy answers behind them. A server whose base is quantised
    deviates more than one whose base is in floats: llama.cpp rounds activations there.

    Args:
        folder: a dial, a ``gguf-lora`` or a merged model with its GGUF file, as
            :func:`ss_lens.export` wrote it and the server was started with.
        model: the base that it was made from.
        address: of the server, like ``http://127.0.0.1:8080``.
        prompts: as in :func:`ss_lens.export`.

    Returns:
        One row per operator: ``n_prompts``, ``n_positions``, ``max_difference`` of two
        log-probabilities among the server's likeliest, ``kl_mean`` and ``kl_max`` over these,
        ``same_top`` and ``equal_answers``.

    Raises:
        UserError: no server of llama.cpp, other adapters, another vocabulary, a damaged export, one
            for other programs, or another likeliest token after more than 2 % of the tokens.
    """
    check_path("folder", folder)
    check_is("model", model, (TransformerBridge,), MODEL)
    check_is("address", address, (str,), "an address such as 'http://127.0.0.1:8080'")
    path = Path(folder)
    content = described(path)
    kind, new = content["kind"], content["max_new_tokens"]
    _check_adapters(address, path, kind)
    operators = [read_value(t, Operator.kinds(), "operator") for t in content["operators"]]
    calibration = calibration_of(path, model)
    tokens = tokens_for(model, calibration.spec.chat, prompts, new)
    rows = []
    with progress_bar(len(operators) * len(tokens), "ask the server", "request") as bar:
        for operator in operators:
            measured = []
            for ids in tokens:
                answer = ask(address, ids, _scales(kind, operator), new=new, listed=LISTED)
                _check_vocabulary(address, model, answer)
                measured.append(compared(model, calibration, operator, ids, answer, new))
                bar.update(1)
            if not any(row["same"] for row in measured):
                raise UserError(
                    f"the server at {address} sent no token under {operator}, expected answers to "
                    f"{len(tokens)} prompts; serve the base that was calibrated, or give prompts "
                    "that it answers."
                )
            rows.append({"operator": str(operator), **_summed(measured)})
    table = pd.DataFrame(rows)
    worst = table.loc[table["same_top"].idxmin()]
    if not worst["same_top"] >= SAME:
        raise UserError(
            f"the server at {address} is not the steered model: under {worst['operator']} it finds "
            f"another token likeliest after {1 - worst['same_top']:.1%} of {worst['n_positions']} "
            f"tokens, allowed are {1 - SAME:.0%}. Serve the base that was calibrated, in f16 or "
            "f32, with the adapters of this export."
        )
    return table


@torch.inference_mode()
def compared(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    ids: Tokens,
    answer: Answer,
    new: int,
) -> dict[str, Any]:
    """One answer of the server beside our steered log-probabilities at the same tokens."""
    row = torch.tensor([[*ids, *answer.tokens]], device=device_of(model))
    with steer(model, calibration, operator):
        logits = forward.run_all(model, row, torch.ones_like(row), keep=len(answer.tokens) + 1)[0]
    logp = logits.double().log_softmax(dim=-1).cpu()
    mine = logp.argmax(dim=-1).tolist()
    stops, last = stop_ids(model), answer.tokens[-1:]
    ended = len(answer.tokens) == new or {*last, mine[len(answer.tokens)]} & {*stops}
    differences, kls = [], []
    for ours, sent in zip(logp, answer.logprobs, strict=False):
        p, q = ours[[*sent]], torch.tensor([*sent.values()], dtype=torch.float64)
        differences.append(float((p - q).abs().max()))
        kls.append(float((p.exp() * (p - q)).sum()))
    same = [a == b for a, b in zip(mine, answer.likeliest, strict=False)]
    return {
        "differences": differences,
        "kls": kls,
        "same": same,
        "equal": all(same) and bool(ended),
    }


def _summed(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    same = [one for row in measured for one in row["same"]]
    kls = [one for row in measured for one in row["kls"]]
    return {
        "n_prompts": len(measured),
        "n_positions": len(same),
        "max_difference": max(one for row in measured for one in row["differences"]),
        "kl_mean": sum(kls) / len(kls),
        "kl_max": max(kls),
        "same_top": sum(same) / len(same),
        "equal_answers": sum(row["equal"] for row in measured),
    }


def _scales(kind: str, operator: Operator) -> Scales:
    if kind == "dial":
        return turned(cast(float, cast(RotateBy, operator).angle_deg))
    return [{"id": 0, "scale": 1.0}] if kind == "gguf-lora" else []


def _check_adapters(address: str, folder: Path, kind: str) -> None:
    """Raise unless the server was started with the adapters of the export, in their order."""
    files = {"dial": [f"{turn}.gguf" for turn in DIAL], "gguf-lora": [GGUF_FILE], "merged": []}
    served = kind in files and (kind != "merged" or (folder / MERGED_GGUF).exists())
    if not served or not all((folder / name).exists() for name in files[kind]):
        raise UserError(
            f"the export at {folder} is of kind {kind!r} without a GGUF file, expected one for "
            "llama.cpp: a dial, a gguf-lora, or merged weights that were exported with gguf=. "
            "Verify it without a server."
        )
    told = _told(address, "/lora-adapters", None)
    with _of_llama_cpp(address, "/lora-adapters", told):
        found = [Path(one["path"]).name for one in told]
    if found != files[kind]:
        raise UserError(
            f"the server at {address} has the adapters {', '.join(found) or 'none'}, expected "
            f"{', '.join(files[kind]) or 'none'} in this order; start it with "
            f"{' '.join(f'--lora {folder / name}' for name in files[kind]) or 'no --lora'}."
        )


def _check_vocabulary(address: str, model: TransformerBridge, answer: Answer) -> None:
    """Raise where the server has tokens that the model has not."""
    last = max((token for row in answer.logprobs for token in row), default=0)
    if last >= model.cfg.d_vocab:
        raise UserError(
            f"the server at {address} serves another model: it has a token {last}, the vocabulary "
            f"of {model.cfg.model_name} ends at {model.cfg.d_vocab - 1}. Serve the base that was "
            "calibrated."
        )


@contextmanager
def _of_llama_cpp(address: str, path: str, told: object) -> Iterator[None]:
    """One line where what was told is not what llama.cpp's server tells."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the server at {address}{path} answers {described_value(told)}, expected what "
            "llama.cpp's server tells there; start llama-server with this export, and check the "
            "address."
        ) from error


def _told(address: str, path: str, body: dict[str, Any] | None) -> Any:
    """What the server answers to a question, or where ``body`` is ``None`` tells."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = Request(
            f"{address.rstrip('/')}{path}", data, {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=FOR_FACTS if body is None else PATIENCE) as answer:
            return json.load(answer)
    except (OSError, ValueError, HTTPException) as error:  # no address, no HTTP, no JSON
        said = error.read().decode("utf-8", "replace")[:200] if isinstance(error, HTTPError) else ""
        why = f"{first_line(error)} {said}".strip()
        raise UserError(
            f"no llama.cpp server answers at {address}{path} ({why}), expected one that was "
            "started with this export; start llama-server, and check the address."
        ) from error
