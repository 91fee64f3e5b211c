"""Stored answers: whole, or cut to their first words once all is computed from them.

Beside a cut answer stands the digest of the whole one, and its scores are kept. So whatever was
computed from the whole answer stays valid, and what needs its text again finds that it is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Set
from functools import lru_cache
from pathlib import Path

import pandas as pd

from ss_lens.core.errors import UserError
from ss_lens.core.files import read_json
from ss_lens.experiments.cells import CellStore, digest_of_text
from ss_lens.scoring.registry import ANSWERS, TEXTS, columns_of, measured_names, parts_of

OF = "of"
"""The column of stored cells that holds the digest of the answer that they were computed from, or
that they are the first words of."""
KEPT_WORDS, KEPT_CHARACTERS = 6, 40
"""So much is kept of an answer to a positive prompt."""
_PLACE = ["prompt_index", OF]
"""What identifies a kept score; the prompts of a group are fixed."""
logger = logging.getLogger(__name__)


def first_words(text: str) -> str:
    """The first six words of an answer, and a mark where it goes on.

    Text without spaces, like Chinese, is cut after 40 characters.

    >>> first_words("one two three four five six seven")
    'one two three four five six …'
    """
    words = text.split()
    start = " ".join(words[:KEPT_WORDS])
    whole = len(words) <= KEPT_WORDS and len(text) <= KEPT_CHARACTERS
    return text if whole else f"{start[:KEPT_CHARACTERS].rstrip()} …"


def with_texts_scored(table: pd.DataFrame) -> pd.DataFrame:
    """A table of whole answers with the columns of every score of their text."""
    parts = [table]
    for score in parts_of(ANSWERS):
        parts.append(score.of_texts(table).filter(score.column_names).set_axis(table.index))
    return pd.concat(parts, axis=1)


def are_cut(answers: pd.DataFrame) -> pd.Series:
    """Which of the rows hold the first words alone."""
    return answers[OF].notna() if OF in answers else pd.Series(False, index=answers.index)


def digests_of(answers: pd.DataFrame) -> list[str]:
    """Of each whole answer."""
    if "response" not in answers:
        return []
    texts, cut = answers["response"].tolist(), are_cut(answers).tolist()
    kept = answers[OF].tolist() if OF in answers else texts
    digests = zip(texts, kept, cut, strict=True)
    return [of if is_cut else digest_of_text(text) for text, of, is_cut in digests]


def read_answers(cells: CellStore, key: str) -> pd.DataFrame:
    """The stored answers of a group; cut ones whose scores are gone count as absent."""
    rows = cells.read(key, ANSWERS)
    cut = are_cut(rows)
    if not cut.any():
        return rows
    kept = _kept_scores(cells, key)
    if kept.empty:
        tell_once(
            cells.folder,
            "cut answers whose scores are missing or of an earlier version, which counted refusals "
            "by phrases, are written again",
        )
    known = pd.MultiIndex.from_frame(_placed(rows).filter(_PLACE)).isin(kept.index)
    return rows.loc[~cut | known].reset_index(drop=True)


def scored(cells: CellStore, key: str, answers: pd.DataFrame) -> pd.DataFrame:
    """Answers of :func:`read_answers` with the scores of their texts: computed, or those kept."""
    cut = are_cut(answers)
    plain = answers.drop(columns=OF, errors="ignore")
    if not cut.any():
        return with_texts_scored(plain)
    places = pd.MultiIndex.from_frame(answers.loc[cut].filter(_PLACE))
    kept = _kept_scores(cells, key).loc[places]
    parts = [pd.concat([plain.loc[cut], kept.set_axis(plain.index[cut])], axis=1)]
    if not cut.all():
        parts.append(with_texts_scored(plain.loc[~cut]))
    return pd.concat(parts).loc[answers.index]


def cut_answers(cells: CellStore, tokens: Set[str]) -> None:
    """Cut all answers to the prompts of these digests, and keep the scores of the whole ones.

    Args:
        cells: of a folder that no other process is writing to.
        tokens: digests of tokenised prompts, as the identity of a group has them. A group whose
            identity is damaged is cut too, without scores where it does not name its prompts.
    """
    for key in _answering(cells, tokens):
        with cells.held(key):
            for rows in cells.batches(key, ANSWERS):
                if not rows.empty and OF not in rows:
                    _cut(cells, key, rows)


def forget_cut_answers(cells: CellStore, tokens: Set[str]) -> None:
    """Remove all cut answers to these prompts, so that they are written again."""
    for key in _answering(cells, tokens):
        with cells.held(key):
            forget_cut(cells, key)


def forget_cut(cells: CellStore, key: str) -> None:
    """Remove the cut answers of a group, so that they are written again."""
    cells.discard(key, ANSWERS, lambda rows: OF in rows)


@lru_cache(maxsize=64)
def tell_once(folder: Path, what: str) -> None:
    """Log a line about a folder, once in a process."""
    logger.info("%s: %s", folder, what)


def _cut(cells: CellStore, key: str, rows: pd.DataFrame) -> None:
    texts, placed = rows["response"], _placed(rows)
    digests = [*map(digest_of_text, texts)]
    if "prompt" not in placed:
        prompts = _prompts_of(cells, key, len(rows))
        placed = placed if prompts is None else placed.assign(prompt=prompts)
    if "prompt" in placed:  # else there is nothing to score them by; they count as absent
        whole = with_texts_scored(placed).drop(columns=["prompt", "response"])
        cells.commit(key, TEXTS, whole.assign(of=digests))
    cells.commit(key, ANSWERS, rows.assign(response=texts.map(first_words), of=digests))


def _placed(rows: pd.DataFrame) -> pd.DataFrame:
    """Stored answers with the place of their prompts.

    Those of the unsteered model name no prompts: it is in their order that they belong to them.
    """
    return rows if "prompt_index" in rows else rows.assign(prompt_index=range(len(rows)))


def _prompts_of(cells: CellStore, key: str, n: int) -> list[str] | None:
    """The ``n`` prompts of an unsteered group, from another group on the same."""
    tokens = _tokens_of(cells, key)
    for other in _answering(cells, {tokens} if isinstance(tokens, str) else set()):
        if _tokens_of(cells, other) is None:
            continue
        for score in measured_names():
            rows = cells.read(other, score)
            if "prompt" in rows:
                prompts = rows.drop_duplicates("prompt_index").sort_values(by="prompt_index")
                if prompts["prompt_index"].tolist() == [*range(n)]:
                    return prompts["prompt"].tolist()
    return None


def _kept_scores(cells: CellStore, key: str) -> pd.DataFrame:
    """The scores of the whole answers, by prompt and digest; none where some score is not there."""
    rows, columns = cells.read(key, TEXTS), [*columns_of(ANSWERS)]
    if not {*_PLACE, *columns} <= {*rows.columns}:
        return pd.DataFrame(columns=[*_PLACE, *columns]).set_index(_PLACE)
    return rows.drop_duplicates(_PLACE).set_index(_PLACE).filter(columns)


def _answering(cells: CellStore, tokens: Set[str]) -> list[str]:
    return [key for key in cells.keys() if _tokens_of(cells, key) in {*tokens, None}]  # noqa: SIM118


def _tokens_of(cells: CellStore, key: str) -> object:
    try:
        found = read_json(cells.folder / "cells" / key / "identity.json", "identity of a group")
    except UserError:
        return None
    return found.get("tokens") if isinstance(found, dict) else None
