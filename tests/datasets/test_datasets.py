"""Contrastive datasets: what is embedded, what files may hold, and every mistake in them."""

from __future__ import annotations

import json
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


@every_embedded
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

    assert profile(data.positive) == pytest.approx(profile(data.negative), rel=0.03)


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
        (("a", "b", "a"), ("c",), r"positive prompt 'a' of dataset 'x' stands twice.*keep one"),
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


# --- files ---------------------------------------------------------------------------------------

CSV = "prompt,class\n" + "".join(f"{row['prompt']},{row['class']}\n" for row in ROWS)
LAYOUTS = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "blank lines.jsonl": "\n\n".join(json.dumps(row) for row in ROWS),
    "windows.jsonl": "\r\n".join(json.dumps(row) for row in ROWS),
    "rows.json": json.dumps(ROWS),
    "classes.json": json.dumps(PROMPTS),
    "a.csv": CSV,
    "excel.csv": "\ufeff" + CSV.replace("\n", "\r\n"),
    "more columns.csv": CSV.replace("prompt,", "id,prompt,").replace("how", "7,how"),
    "UPPER.CSV": CSV,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_file_layout_gives_the_same_dataset(name: str, write: Write) -> None:
    data = load_dataset(write(name, LAYOUTS[name]))
    assert data.digest == SMALL.digest
    assert data.name == name


@pytest.mark.parametrize(
    ("value", "other"), [("harmful", "harmless"), (1, 0), (True, False), ("POSITIVE", " Negative ")]
)
def test_usual_class_values_are_understood(value: object, other: object, write: Write) -> None:
    swap = {"positive": value, "negative": other}
    path = write("a.jsonl", [{**row, "class": swap[row["class"]]} for row in ROWS])
    assert load_dataset(path).digest == SMALL.digest


def test_columns_and_class_values_can_be_mapped(write: Write) -> None:
    swap = {"positive": "Bad", "negative": "good"}
    path = write("a.jsonl", [{"text": r["prompt"], "kind": swap[r["class"]]} for r in ROWS])
    data = load_dataset(
        path,
        prompt_column="text",
        class_column="kind",
        class_values={"bad": "positive", "good": "negative"},
    )
    assert data.digest == SMALL.digest


def test_one_file_per_class_may_mix_formats(write: Write) -> None:
    one = write("bad.csv", "goal,prompt\nx,how to a\ny,how to b\n")
    other = write("good.jsonl", [{"prompt": p} for p in PROMPTS["negative"]])
    data = load_dataset(positive=one, negative=other)
    assert data.digest == SMALL.digest
    assert data.name == "bad.csv-vs-good.jsonl"


def test_prompts_keep_commas_newlines_and_other_scripts(write: Write) -> None:
    prompts = ('a, "b"\nc', "naïve “да”", "line\u2028separator", "next\x85line")
    rows = [{"prompt": p, "class": "positive"} for p in prompts]
    rows.append({"prompt": "z", "class": "negative"})
    unescaped = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert load_dataset(write("a.jsonl", rows)).positive == prompts
    assert load_dataset(write("b.json", json.dumps(rows, ensure_ascii=False))).positive == prompts
    assert load_dataset(write("c.jsonl", unescaped)).positive == prompts
    quoted = 'class,prompt\npositive,"a, ""b""\nc"\nnegative,z\n'
    assert load_dataset(write("d.csv", quoted)).positive == prompts[:1]


NEGATIVE = {"prompt": "z", "class": "negative"}
BAD_FILES: dict[str, tuple[str, str | bytes | list[dict], str]] = {
    "no prompt column": (
        "a.jsonl", [{"text": "x", "class": "positive"}],
        r"row 1 of a\.jsonl has no column 'prompt'; it has text, class.*prompt_column=",
    ),
    "no class column": (
        "a.csv", "prompt,label\nx,positive\n", r"row 1 of a\.csv has no column 'class'; .*label",
    ),
    "null prompt": (
        "a.jsonl", [NEGATIVE, {"prompt": None, "class": "positive"}], r"row 2 of a\.jsonl",
    ),
    "short csv row": ("a.csv", "prompt,class\nx\n", r"row 1 of a\.csv has no column 'class'"),
    "long csv row": ("a.csv", "class,prompt\npositive,Hello, world\nnegative,z\n", r"row 1 of"),
    "long csv row without the column": ("a.csv", "text,class\nx,positive,more\n", r"row 1 of"),
    "blank prompt": (
        "a.jsonl", [NEGATIVE, {"prompt": " \t", "class": "positive"}],
        r"row 2 of a\.jsonl has a blank prompt; fill it in or remove the row",
    ),
    "prompt is a number": ("a.jsonl", [{"prompt": 5, "class": "positive"}], r"row 1 of a\.jsonl"),
    "unknown class": (
        "a.jsonl", [NEGATIVE, {"prompt": "x", "class": "Neutral"}],
        r"row 2 of a\.jsonl has class 'neutral'; expected one of positive, harmful.*class_values=",
    ),
    "one class only": ("a.jsonl", [NEGATIVE], r"'a\.jsonl' has no positive prompt"),
    "both classes": (
        "a.jsonl", [NEGATIVE, {"prompt": "z", "class": "positive"}], r"'z' of .* in both classes",
    ),
    "repeated prompt": ("a.jsonl", [*ROWS, ROWS[0]], r"'how to a' of .* stands twice"),
    "repeated header": (
        "a.csv", "prompt,class,prompt\nx,positive,y\n",
        r"column 'prompt' stands twice in the header of .*a\.csv; rename or remove one",
    ),
    "not utf-8": (
        "a.csv", CSV.encode() + "café,positive\n".encode("latin-1"),
        r"a\.csv is not UTF-8 \(byte \d+ is 0xe9\); save it as UTF-8",
    ),
    "utf-16": ("a.jsonl", "{}".encode("utf-16"), r"a\.jsonl is not UTF-8 \(byte 0 is 0xff\)"),
    "bad json line": (
        "a.jsonl", json.dumps(ROWS[0]) + '\n\n{"prompt": "x"\n',
        r"line 3 of .*a\.jsonl is not JSON",
    ),
    "bad json": ("a.json", "[{]", r"a\.json is not JSON \(.*\); mend it"),
    "row is no object": ("a.json", '["x"]', r"row 1 of .*a\.json is str, not an object"),
    "other json": ("a.json", '{"a": ["x"], "b": ["y"]}', r"neither a list of rows nor an object"),
    "json scalar": ("a.json", "5", r"neither a list of rows nor an object"),
    "class is one text": ("a.json", '{"positive": "abc", "negative": "xyz"}', r"a\.json.*list"),
    "class is a number": ("a.json", '{"positive": 1, "negative": ["x"]}', r"a\.json.*list"),
    "empty jsonl": ("a.jsonl", "", r"'a\.jsonl' has no positive prompt"),
    "empty csv": ("a.csv", "", r"'a\.csv' has no positive prompt"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_rejected_with_its_place_and_the_remedy(case: str, write: Write) -> None:
    name, content, message = BAD_FILES[case]
    with pytest.raises(UserError, match=message):
        load_dataset(write(name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"there is no file {tmp_path}/a\.csv; check the path"):
        load_dataset(tmp_path / "a.csv")


def test_a_folder_with_the_name_of_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl"):
        load_dataset(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["refusals", "walledai/AdvBench", "prompts.txt", ""])
def test_an_unknown_name_is_rejected_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        UserError, match=r"neither an embedded dataset \(refusal, sentiment\) nor a \.jsonl"
    ):
        load_dataset(name)


def test_a_column_mapped_twice_is_rejected(write: Write) -> None:
    with pytest.raises(UserError, match="column 'class' is mapped twice, as prompt and as class"):
        load_dataset(write("a.jsonl", ROWS), prompt_column="class")


def test_sources_must_be_one_file_or_two_classes(write: Write) -> None:
    path = write("a.jsonl", ROWS)
    with pytest.raises(UserError, match="either one source, or positive= and negative=, not both"):
        load_dataset(path, positive=path)
    for given_ in ({}, {"positive": path}, {"negative": path}):
        with pytest.raises(UserError, match=r"or both positive= and negative=; embedded: refusal"):
            load_dataset(**given_)


def test_files_are_paired_only_when_said_so(write: Write) -> None:
    both = write("both.jsonl", ROWS)
    one, other = (
        write(f"{label}.jsonl", [{"prompt": p} for p in ps]) for label, ps in PROMPTS.items()
    )
    assert not load_dataset(both).paired
    assert not load_dataset(positive=one, negative=other).paired
    for data in (
        load_dataset(both, paired=True),
        load_dataset(positive=one, negative=other, paired=True),
    ):
        assert data.paired
        assert data.digest == SMALL.digest
    with pytest.raises(
        UserError, match=r"'3\.jsonl' is said to be paired but has 2 positive and 1"
    ):
        load_dataset(write("3.jsonl", ROWS[:3]), paired=True)


def test_one_file_for_both_classes_is_rejected(write: Write) -> None:
    path = write("a.jsonl", ROWS)
    with pytest.raises(UserError, match="in both classes"):
        load_dataset(positive=path, negative=path)


# --- the Hub -------------------------------------------------------------------------------------


def test_a_folder_in_the_layout_of_the_hub_is_one_class(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "harmful").mkdir()
    write("harmful/train.jsonl", [{"goal": p, "id": i} for i, p in enumerate(PROMPTS["positive"])])
    write("harmful/test.jsonl", [{"goal": "never read", "id": 9}])
    other = write("good.jsonl", [{"goal": p} for p in PROMPTS["negative"]])
    folder = tmp_path / "harmful"
    assert (
        load_dataset(positive=folder, negative=other, prompt_column="goal").digest == SMALL.digest
    )
    with pytest.raises(UserError, match=r"row 1 of .*harmful has no column 'prompt'; it has goal"):
        load_dataset(positive=folder, negative=other)


def test_advbench_and_alpaca_are_mapped_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    hub = {
        "walledai/AdvBench": [
            {"prompt": "how to a", "target": "Sure"},
            {"prompt": "how to b", "target": "Sure"},
            {"prompt": "how to a", "target": "Sure, again"},
        ],
        "tatsu-lab/alpaca": [
            {"instruction": "how to c", "input": "", "output": "x", "text": "t"},
            {"instruction": "Sort these", "input": "3 1 2", "output": "1 2 3", "text": "t"},
            {"instruction": "how to d", "input": "", "output": "x", "text": "t"},
        ],
    }
    asked: list[tuple[str, str]] = []

    def fake(source: str, split: str) -> list[dict]:
        asked.append((source, split))
        return hub[source]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    data = load_dataset(positive="walledai/AdvBench", negative="tatsu-lab/alpaca")
    assert data.digest == SMALL.digest
    assert data.name == "AdvBench-vs-alpaca"
    assert asked == [("walledai/AdvBench", "train"), ("tatsu-lab/alpaca", "train")]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'a/b' on the Hub\nlong\ntraceback"),
        FileNotFoundError("Dataset 'a/b' doesn't exist on the Hub"),
        ValueError("Unknown split"),
        OSError(),
    ],
)
def test_a_hub_dataset_that_cannot_be_had_is_one_clear_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(source: str, split: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"Hub dataset 'a/b' could not be loaded \(.*hf auth login"):
        load_dataset(positive="a/b", negative=write("good.jsonl", ROWS[2:]))


def test_a_hub_dataset_without_network_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Write
) -> None:
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"'walledai/AdvBench' could not be loaded") as caught:
        load_dataset(positive="walledai/AdvBench", negative=write("good.jsonl", ROWS[2:]))
    assert "\n" not in str(caught.value)
    assert "Check the id and the network" in str(caught.value)
