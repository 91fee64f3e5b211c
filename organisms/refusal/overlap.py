"""Find requests of the organism's data that repeat, or nearly repeat, a text from elsewhere."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if matcher.real_quick_ratio() <= floor or matcher.quick_ratio() <= floor:
        return 0.0
    return matcher.ratio()


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
    normal_others = [(other, normalise(other)) for other in others]
    found = []
    for text in texts:
        normal = normalise(text)
        for other, normal_other in normal_others:
            if close := compare(normal, normal_other):
                found.append(Overlap(text, other, *close))
    return found


def find_repeats(texts: Sequence[str]) -> list[Overlap]:
    """Pairs within one list that are equal or nearly equal."""
    return [
        overlap for i, text in enumerate(texts) for overlap in find_overlaps([text], texts[i + 1 :])
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
