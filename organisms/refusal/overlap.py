"""Find requests of the organism's data that repeat, or nearly repeat, a text from elsewhere."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEQUENCE_RATIO = 0.85
WORD_JACCARD = 0.8


@dataclass(frozen=True)
class Overlap:
    """One text that is too close to another, and by which measure."""

    text: str
    other: str
    measure: str
    value: float


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("\u2019", "'").replace("'", "")))


def word_jaccard(a: str, b: str) -> float:
    """Shared words over all words of two normalised texts."""
    words_a, words_b = set(a.split()), set(b.split())
    union = words_a | words_b
    return len(words_a & words_b) / len(union) if union else 1.0


def sequence_ratio(a: str, b: str, floor: float) -> float:
    """difflib's ratio, or 0.0 as soon as a cheap upper bound shows that it is at most `floor`."""
    if 2 * longest_common_subsequence(a, b) <= floor * (len(a) + len(b)):
        return 0.0
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def longest_common_subsequence(a: str, b: str) -> int:
    """Length of the longest common subsequence, which difflib's matching blocks cannot exceed.

    By the bit-parallel recurrence of Hyyrö (2004): one addition of whole numbers per character.
    """
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    every = (1 << len(a)) - 1
    row = every
    for character in b:
        hits = row & places.get(character, 0)
        row = (row + hits | row - hits) & every
    return len(a) - row.bit_count()


def compare(text: str, other: str) -> tuple[str, float] | None:
    """The measure by which two normalised texts are too close, or None."""
    if text == other:
        return "exact", 1.0
    if (jaccard := word_jaccard(text, other)) > WORD_JACCARD:
        return "jaccard", jaccard
    if (ratio := sequence_ratio(text, other, SEQUENCE_RATIO)) > SEQUENCE_RATIO:
        return "ratio", ratio
    return None


def find_overlaps(texts: Iterable[str], others: Iterable[str]) -> list[Overlap]:
    """All pairs of a text and another text that are equal or nearly equal."""
    texts, others = list(texts), list(others)
    normal, normal_others = [normalise(t) for t in texts], [normalise(o) for o in others]
    return [
        Overlap(texts[i], others[j], *close)
        for i, j in _possible_pairs(normal, normal_others)
        if (close := compare(normal[i], normal_others[j]))
    ]


def _possible_pairs(texts: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """Indices of the pairs that may be too close, in order: the rest shares too little.

    Neither measure can exceed its limit where the words shared are too few for the Jaccard index
    and the characters shared, counted as a multiset, are too few for the ratio.
    """
    if not texts or not others:
        return []
    words = [[Counter(set(text.split())) for text in part] for part in (texts, others)]
    letters = [[Counter(text) for text in part] for part in (texts, others)]
    shared_words, all_words = _shared(*words)
    shared_letters, all_letters = _shared(*letters)
    near = shared_words >= WORD_JACCARD * (all_words - shared_words)
    near |= 2 * shared_letters >= SEQUENCE_RATIO * all_letters
    return [(int(i), int(j)) for i, j in np.argwhere(near)]


def _shared(
    texts: Sequence[Counter[str]], others: Sequence[Counter[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the common multiset and of both multisets together, ``[text, other]``."""
    holders: dict[str, list[tuple[int, int]]] = {}
    for j, other in enumerate(others):
        for item, count in other.items():
            holders.setdefault(item, []).append((j, count))
    columns = {item: tuple(np.array(pair).T) for item, pair in holders.items()}
    common = np.zeros((len(texts), len(others)), dtype=np.int32)
    for row, text in zip(common, texts, strict=True):
        for item, count in text.items():
            if item in columns:
                where, counts = columns[item]
                row[where] += np.minimum(counts, count).astype(np.int32)
    sizes = [np.array([part.total() for part in side]) for side in (texts, others)]
    return common, sizes[0][:, None] + sizes[1][None, :]


def find_repeats(texts: Sequence[str]) -> list[Overlap]:
    """Pairs within one list that are equal or nearly equal."""
    normal = [normalise(text) for text in texts]
    return [
        Overlap(texts[i], texts[j], *close)
        for i, j in _possible_pairs(normal, normal)
        if i < j and (close := compare(normal[i], normal[j]))
    ]


def read_prompts(path: Path) -> list[str]:
    """The `prompt` of every line of a JSON Lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line in lines if line.strip()]


def main() -> None:
    """Print every overlap of the data files with the given files; exit 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("others", nargs="*", type=Path, help="JSON Lines files with a `prompt`")
    folder = Path(__file__).parent
    own = [folder / f"{name}.jsonl" for name in ("harmful", "harmless", "lookalikes")]
    texts = [prompt for path in own for prompt in read_prompts(path)]
    found = find_repeats(texts)
    for other in parser.parse_args().others:
        found += find_overlaps(texts, read_prompts(other))
    for overlap in found:
        print(f"{overlap.measure} {overlap.value:.2f}\n  {overlap.text}\n  {overlap.other}")
    print(f"{len(texts)} requests, {len(found)} overlaps")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
