"""Contrastive datasets: what is embedded, what files may hold, and every mistake in them."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, strategies as st

from ss_lens import ContrastiveDataset, UserError, load_dataset
from ss_lens.datasets.contrastive import EMBEDDED
from tests.conftest import shared_file

PROMPTS = {"positive": ("how to a", "how to b"), "negative": ("how to c", "how to d")}
ROWS = [{"prompt": p, "class": label} for label, ps in PROMPTS.items() for p in ps]
SMALL = ContrastiveDataset("small", PROMPTS["positive"], PROMPTS["negative"])
NUMBERED = ContrastiveDataset(
    "numbered", tuple(f"p{i}" for i in range(40)), tuple(f"n{i}" for i in range(40))
)

HARM = re.compile(
    r"(?:attack|blackmail|blood|bomb|bribe|cheat|crim|danger|drug|explos|fake|forg|fraud|gun|hack|"
    r"hate|illegal|kill|knife|murder|poison|police|prison|protect|safe|secre|secur|smuggl|spy|steal|"
    r"stole|terror|threat|toxi|violen|weapon)"
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of text, of bytes, or of rows as JSON lines."""

    def write(name: str, content: str | bytes | Sequence[dict]) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, "utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
        return path

    return write


# --- the embedded datasets -----------------------------------------------------------------------

every_embedded = pytest.mark.parametrize("name", EMBEDDED)


@every_embedded
def test_embedded_datasets_are_large_enough_and_clean(name: str) -> None:
    data = load_dataset(name)
    prompts = (*data.positive, *data.negative)
    assert min(len(data.positive), len(data.negative)) >= 96
    assert len({p.casefold() for p in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.isascii()
        assert prompt == " ".join(prompt.split())
        assert 15 <= len(prompt) <= 100


@pytest.mark.parametrize("name", ["refusal", "sentiment"])
def test_embedded_classes_are_pairs_of_one_form(name: str) -> None:
    """Equal index is one topic: the classes differ in the behaviour, not in style."""
    data = load_dataset(name)
    assert len(data.positive) == len(data.negative)
    assert data.paired
    pairs = list(zip(data.positive, data.negative, strict=True))
    for one, other in pairs:
        assert abs(len(one.split()) - len(other.split())) <= 1
        assert abs(len(one) - len(other)) <= 8
        assert one[-1] == other[-1]
    same_opening = mean(one.split()[0] == other.split()[0] for one, other in pairs)
    assert same_opening >= {"refusal": 1, "sentiment": 0.95}[name]


@every_embedded
def test_embedded_classes_agree_in_length_and_punctuation(name: str) -> None:
    data = load_dataset(name)

    def profile(prompts: Sequence[str]) -> list[float]:
        return [
            mean(len(p.split()) for p in prompts),
            mean(len(p) for p in prompts),
            mean(sum(c in string.punctuation for c in p) for p in prompts),
            mean(sum(c.isupper() for c in p) for p in prompts),
        ]

    near = 0.12 if name == "refusal-everyday" else 0.03
    assert profile(data.positive) == pytest.approx(profile(data.negative), rel=near)


def test_everyday_tasks_are_as_long_as_the_harmful_requests() -> None:
    """Everyday tasks differ in form and topic; length alone must not tell the classes apart."""
    data = load_dataset("refusal-everyday")
    assert data.paired
    words = [mean(len(p.split()) for p in ps) for ps in (data.positive, data.negative)]
    letters = [mean(map(len, ps)) for ps in (data.positive, data.negative)]
    assert words[0] == pytest.approx(words[1], abs=0.25)
    assert letters[0] == pytest.approx(letters[1], rel=0.04)
    for one, other in zip(data.positive, data.negative, strict=True):
        assert abs(len(one.split()) - len(other.split())) <= 6


def test_everyday_tasks_name_nothing_harmful() -> None:
    data = load_dataset("refusal-everyday")
    assert not [p for p in data.negative if any(map(HARM.match, p.casefold().split()))]
    assert sum(any(map(HARM.match, p.casefold().split())) for p in data.positive) > 60


def test_the_matched_requests_are_among_those_against_everyday_tasks() -> None:
    matched, whole = load_dataset("refusal"), load_dataset("refusal-everyday")
    assert set(matched.positive) < set(whole.positive)
    assert not set(matched.negative) & set(whole.negative)


def test_refusal_covers_the_categories_evenly() -> None:
    path = Path(__file__).parents[2] / "ss_lens" / "datasets" / "embedded" / "refusal.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row["category"], row["class"]] = counts.get((row["category"], row["class"]), 0) + 1
    categories = {category for category, _ in counts}
    assert len(categories) >= 6
    for category in categories:
        assert counts[category, "positive"] == counts[category, "negative"] >= 8


@every_embedded
def test_embedded_datasets_share_nothing_with_the_published_ones(name: str) -> None:
    data = load_dataset(name)
    ours = {p.casefold().strip(" .?!") for p in (*data.positive, *data.negative)}
    files = ("advbench_train", "advbench_test", "alpaca_416")
    theirs: set[str] = set()
    for file in files:
        lines = shared_file(f"data/{file}.jsonl").read_text("utf-8").split("\n")
        theirs |= {json.loads(line)["prompt"].casefold().strip(" .?!") for line in lines if line}
    assert len(theirs) > 900
    assert not ours & theirs


def test_the_two_embedded_datasets_are_different() -> None:
    assert len({load_dataset(name).digest for name in EMBEDDED}) == len(EMBEDDED)


# --- the value -----------------------------------------------------------------------------------


def test_digest_is_of_the_contents_and_not_of_the_name() -> None:
    again = ContrastiveDataset("other", SMALL.positive, SMALL.negative)
    assert again.digest == SMALL.digest
    assert len(again.digest) == 64


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        (PROMPTS["positive"][::-1], PROMPTS["negative"]),
        (PROMPTS["negative"], PROMPTS["positive"]),
        (("how to a", "how to b "), PROMPTS["negative"]),
        (("how to a",), PROMPTS["negative"]),
        (("how to a", "how to b", "how to c"), ("how to d",)),
    ],
    ids=["order", "classes swapped", "a space", "one fewer", "moved across"],
)
def test_digest_depends_on_content_order_and_class(
    positive: tuple[str, ...], negative: tuple[str, ...]
) -> None:
    assert ContrastiveDataset("small", positive, negative).digest != SMALL.digest


def test_digest_is_stable_across_versions() -> None:
    assert SMALL.digest.startswith("3b01093b4c7f")


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ((), ("b",), r"'x' has no positive prompt; both classes need at least one"),
        (("a",), (), r"'x' has no negative prompt"),
        (("a", " \n"), ("b",), r"positive prompt 1 of dataset 'x' is blank; remove it"),
        (("a",), ("",), r"negative prompt 0 of dataset 'x' is blank"),
        (("a", "b", "a"), ("c",), r"positive prompt 'a' of dataset 'x' appears twice.*keep one"),
        (("a", "b"), ("c", "b"), r"prompt 'b' of dataset 'x' is in both classes; remove it"),
        (("a" * 99,), ("a" * 99,), r"prompt 'a{57}\.\.\.' of"),
    ],
)
def test_a_bad_dataset_is_rejected(
    positive: tuple[str, ...], negative: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ContrastiveDataset("x", positive, negative)


def test_classes_that_are_paired_must_be_of_one_size() -> None:
    assert ContrastiveDataset("x", ("a", "b"), ("c", "d"), paired=True).paired
    with pytest.raises(
        UserError,
        match=r"'x' is said to be paired but has 2 positive and 1 negative prompts; give each .*"
        r"partner, or say paired=False",
    ):
        ContrastiveDataset("x", ("a", "b"), ("c",), paired=True)


def test_being_paired_shows_and_does_not_change_the_digest() -> None:
    paired = ContrastiveDataset("small", SMALL.positive, SMALL.negative, paired=True)
    assert paired.digest == SMALL.digest
    assert paired != SMALL
    assert "2 negative, paired, digest=" in repr(paired)
    assert "paired" not in repr(SMALL)


@pytest.mark.parametrize("paired", [True, False])
def test_head_and_split_keep_whether_the_data_are_paired(paired: bool) -> None:
    data = ContrastiveDataset("x", NUMBERED.positive, NUMBERED.negative, paired)
    parts = (data.head(3), *data.split(dev=8, test=0.25, seed=0))
    assert {part.paired for part in parts} == {paired}


def test_head_takes_the_first_of_each_class() -> None:
    assert NUMBERED.head(2).positive == ("p0", "p1")
    assert NUMBERED.head(99) == NUMBERED
    with pytest.raises(UserError, match="at least one prompt per class; got 0"):
        NUMBERED.head(0)


# --- splitting -----------------------------------------------------------------------------------


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 1000))
def test_split_is_disjoint_covering_and_keeps_pairs_together(
    dev: int, test: int, seed: int
) -> None:
    parts = NUMBERED.split(dev=dev, test=test, seed=seed)
    sizes = [len(part.positive) for part in parts]
    assert sizes == [40 - dev - test, dev, test]
    assert sorted(p for part in parts for p in part.positive) == sorted(NUMBERED.positive)
    for part in parts:
        assert [p[1:] for p in part.positive] == [n[1:] for n in part.negative]
    assert [part.name for part in parts] == ["numbered/train", "numbered/dev", "numbered/test"]


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    def digests(seed: int) -> list[str]:
        return [part.digest for part in NUMBERED.split(dev=8, test=8, seed=seed)]

    assert digests(0) == digests(0)
    assert digests(0) != digests(1)
    renamed = ContrastiveDataset("renamed", NUMBERED.positive, NUMBERED.negative)
    assert [part.digest for part in renamed.split(dev=8, test=8, seed=0)] == digests(0)


def test_split_shuffles() -> None:
    assert NUMBERED.split(dev=8, test=8, seed=0).dev.positive != NUMBERED.positive[:8]


def test_split_takes_shares_of_each_class() -> None:
    unequal = ContrastiveDataset("unequal", NUMBERED.positive, NUMBERED.negative[:20])
    parts = unequal.split(dev=0.25, test=0.1, seed=0)
    assert [(len(p.positive), len(p.negative)) for p in parts] == [(26, 13), (10, 5), (4, 2)]
    assert {n for part in parts for n in part.negative} == set(unequal.negative)


@pytest.mark.parametrize(
    ("dev", "test"), [(0, 5), (5, 0), (20, 20), (39, 2), (-1, 5), (0.01, 0.5), (0.5, 0.5), (1.5, 1)]
)
def test_a_split_with_an_empty_part_is_rejected(dev: int | float, test: int | float) -> None:
    with pytest.raises(
        UserError, match=rf"cannot split the 40 positive prompts .* dev={dev}, test={test} and a"
    ):
        NUMBERED.split(dev=dev, test=test, seed=0)
