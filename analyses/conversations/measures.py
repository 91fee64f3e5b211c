"""Conversations of several turns under steering, probed after each turn with the same requests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.grouped import groups
from analyses.reading import last_tokens
from ss_lens import AllPositions, Calibration, GeneratedOnly, Site, UserError, steer
from ss_lens.activations.capture import check_unhooked
from ss_lens.core.checks import check_texts
from ss_lens.core.progress import progress_bar
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, Prompt, tokenize
from ss_lens.scoring.coherence import repetition
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.stats.bootstrap import derive_rng
from ss_lens.stats.intervals import mean_interval

OFF, ALWAYS, ANSWERS = CONDITIONS = ("off", "always on", "on the answer only")
ANSWER_TOKENS = 32


def measure(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    script: Sequence[str],
    probes: Sequence[str],
    *,
    site: Site | None = None,
    max_new_tokens: int = ANSWER_TOKENS,
    batch_size: int = 16,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """The score and the norm at the end of each probe, after each turn of a conversation.

    The model answers the turns of ``script`` one after the other, and reads its own answers as part
    of what follows. After each answer every probe is asked as the next turn, and measured without
    being answered or kept.

    Args:
        model: the model that the calibration was made on, without hooks.
        calibration: plane and sites.
        operator: with one strength for all rows.
        script: the user's turns.
        probes: requests whose refusal score is measured after each turn.
        site: where the norm is read; default the last block's ``resid_post``.
        max_new_tokens: where each answer is cut.
        batch_size: rows per forward pass; changes the speed, not the result.
        chat: system prompt, date and further arguments of the template.

    Returns:
        One row per ``condition`` (``off``; ``always on``; ``on the answer only``, which steers what
        is generated and, where earlier answers are read again, nothing), ``turn`` and ``probe``:
        turn 0 is before the conversation. ``refusal_score`` in nats and ``opening_mass``; ``norm``
        of the activation at the probe's last token; ``n_tokens`` of the conversation with the
        probe; ``repetition`` of the turn's answer (NaN at turn 0 and where it is too short).

    Raises:
        UserError: no turn or no probe, a conversation that exceeds the context, a model with hooks,
            or what :func:`ss_lens.steer` raises.
    """
    for name, texts in (("script", script), ("probes", probes)):
        check_texts(name, texts)
        if not texts:
            raise UserError(f"{name} is empty; give at least one turn of the user.")
    check_unhooked(model, "there would be no unsteered model to compare with")
    read_at = site or Site(model.cfg.n_layers - 1, "resid_post")
    rows = []
    with progress_bar(len(CONDITIONS) * (1 + len(script)), "conversations", "turn") as bar:
        for condition in CONDITIONS:
            history: list[dict[str, str]] = []
            for turn in range(1 + len(script)):
                answer = ""
                with _steered(model, calibration, operator, condition):
                    if turn > 0:
                        history.append({"role": "user", "content": script[turn - 1]})
                        (answer,) = ss_lens.generate(
                            model, [history], max_new_tokens=max_new_tokens, chat=chat
                        )
                        said = answer if answer.strip() else ""  # an answer may be empty
                        history.append({"role": "assistant", "content": said})
                # What is generated comes after the probe: nothing of it is steered there.
                while_probed = OFF if condition == ANSWERS else condition
                asked = [[*history, {"role": "user", "content": probe}] for probe in probes]
                with _steered(model, calibration, operator, while_probed):
                    table = _probed(model, asked, read_at, batch_size, chat)
                where = {"condition": condition, "turn": turn, "probe": range(len(probes))}
                rows.append(table.assign(**where, repetition=repetition(answer)))
                bar.update()
    columns = ["condition", "turn", "probe"]
    found = pd.concat(rows, ignore_index=True)
    return found.reindex(columns=[*columns, *(name for name in found if name not in columns)])


def summarise(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Means over probes after each turn, and how far they have moved since before the first.

    Args:
        table: from :func:`measure`.
        seed: of the bootstrap over probes.

    Returns:
        One row per ``condition`` and ``turn``: ``refusal_score`` with its BCa interval ``low``,
        ``high``; ``moved``, its paired change since turn 0, with ``moved_low``, ``moved_high``;
        ``norm``, and ``norm_ratio``, the mean ratio to the unsteered conversation's norm at the
        same turn and probe, with ``norm_low``, ``norm_high``; the mean ``opening_mass``,
        ``repetition``, ``n_tokens`` and the number ``n`` of probes.
    """
    wide = table.set_index(["condition", "turn", "probe"]).sort_index()
    rows = []
    for (condition, turn), part in groups(table, ["condition", "turn"]):
        here = wide.loc[(condition, turn)]
        moved = here["refusal_score"] - wide.loc[(condition, 0)]["refusal_score"]
        ratio = here["norm"] / wide.loc[(OFF, turn)]["norm"]
        row: dict[str, object] = {"condition": condition, "turn": turn}
        for name, values, prefix in (
            ("refusal_score", here["refusal_score"], ""),
            ("moved", moved, "moved_"),
            ("norm_ratio", ratio, "norm_"),
        ):
            low, high = mean_interval(values, derive_rng(seed, "conversations", name))
            row |= {name: float(values.mean()), f"{prefix}low": low, f"{prefix}high": high}
        for name in ("norm", "opening_mass", "repetition", "n_tokens"):
            row[name] = float(part[name].mean())
        rows.append({**row, "n": len(part)})
    return pd.DataFrame(rows)


def _steered(
    model: TransformerBridge, calibration: Calibration, operator: Operator, condition: str
) -> AbstractContextManager[object]:
    if condition == OFF:
        return nullcontext()
    positions = GeneratedOnly() if condition == ANSWERS else AllPositions()
    return steer(model, calibration, operator, positions=positions)


def _probed(
    model: TransformerBridge,
    asked: Sequence[Prompt],
    site: Site,
    batch_size: int,
    chat: ChatFormat,
) -> pd.DataFrame:
    scores = refusal_score(model, asked, batch_size=batch_size, chat=chat)
    tokens = tokenize(model, asked, chat)
    read = last_tokens(model, tokens, [site], batch_size, lambda _: None)
    return scores.assign(norm=read[:, 0].norm(dim=-1).tolist(), n_tokens=[*map(len, tokens)])
