"""Datasets from files, from lists and from the Hub: what may be given, and every mistake in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ss_lens import ContrastiveDataset, UserError, load_dataset

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
        "a.jsonl", [NEGATIVE, {"prompt": None, "class": "positive"}],
        r"the prompt in row 2 of a\.jsonl is null; write a text or remove the row",
    ),
    "short csv row": ("a.csv", "prompt,class\nx\n", r"row 1 of a\.csv has no column 'class'"),
    "long csv row": ("a.csv", "class,prompt\npositive,Hello, world\nnegative,z\n", r"row 1 of"),
    "long csv row without the column": ("a.csv", "text,class\nx,positive,more\n", r"row 1 of"),
    "blank prompt": (
        "a.jsonl", [NEGATIVE, {"prompt": " \t", "class": "positive"}],
        r"row 2 of a\.jsonl has a blank prompt; fill it in or remove the row",
    ),
    "prompt is a number": (
        "a.jsonl",
        [{"prompt": 5, "class": "positive"}],
        r"row 1 of a\.jsonl is 5, which is not a text",
    ),
    "unknown class": (
        "a.jsonl", [NEGATIVE, {"prompt": "x", "class": "Neutral"}],
        r"row 2 of a\.jsonl has class 'neutral'; expected one of positive, harmful.*class_values=",
    ),
    "one class only": ("a.jsonl", [NEGATIVE], r"'a\.jsonl' has no positive prompt"),
    "both classes": (
        "a.jsonl", [NEGATIVE, {"prompt": "z", "class": "positive"}], r"'z' of .* in both classes",
    ),
    "repeated prompt": ("a.jsonl", [*ROWS, ROWS[0]], r"'how to a' of .* appears twice"),
    "repeated header": (
        "a.csv", "prompt,class,prompt\nx,positive,y\n",
        r"column 'prompt' appears twice in the header of .*a\.csv; rename or remove one",
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
        UserError,
        match=r"neither an embedded dataset \(refusal, refusal-everyday, sentiment\) nor a \.jsonl",
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


# --- lists, plain text, and what a disk may hold -------------------------------------------------


def test_lists_of_prompts_are_a_dataset() -> None:
    data = load_dataset(positive=list(PROMPTS["positive"]), negative=PROMPTS["negative"])
    assert data.digest == SMALL.digest
    assert data.name == "list-vs-list"
    assert load_dataset(positive=["a"], negative=["b"], paired=True).paired


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_text_file_is_one_class_with_a_prompt_per_line(ending: str, write: Write) -> None:
    lines = ["\ufeffhow to a", "", "how to b", "  ", ""]
    one = write("bad.txt", ending.join(lines).encode())
    data = load_dataset(positive=one, negative=PROMPTS["negative"])
    assert data.digest == SMALL.digest
    assert data.name == "bad.txt-vs-list"
    with pytest.raises(UserError, match=r"bad\.txt' holds one class.*give it as positive= or neg"):
        load_dataset(one)
    with pytest.raises(UserError, match=r"there is no file .*gone\.txt; check the path"):
        load_dataset(positive=one.with_name("gone.txt"), negative=one)


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        ([], "has no positive prompt"),
        (
            ["a", None],
            r"positive prompt 1 of dataset 'list-vs-list' is None, which is not a text; remove",
        ),
        (["a", 5], "positive prompt 1 .* is 5, which is not a text"),
        (["\ud800x"], r"positive prompt 0 .* is not valid Unicode \(character 0 is '\\ud800'\)"),
        (5, "positive must be a list of prompts; got 5"),
        (b"a", r"positive must be a list of prompts; got one text\. Write \[prompt\]"),
    ],
)
def test_a_list_that_holds_no_prompts_is_refused(
    positive: Any, message: str, unchecked_types: None
) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(positive=positive, negative=["b"])


def test_one_text_is_not_taken_for_a_list_of_letters(unchecked_types: None) -> None:
    with pytest.raises(UserError, match="positive must be a list of prompts; got one text"):
        ContrastiveDataset("x", "abc", "de")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("source", [5, ["a"], {"a": 1}])
def test_a_source_is_a_name_or_a_path(source: Any, unchecked_types: None) -> None:
    with pytest.raises(UserError, match="source must be a name or a path, or lists as positive="):
        load_dataset(source)


def test_a_surrogate_in_a_file_is_named_by_its_row(write: Write) -> None:
    path = write("a.jsonl", '{"prompt": "x\\udc80", "class": "positive"}\n')
    with pytest.raises(UserError, match=r"prompt in row 1 of a\.jsonl is not valid Unicode"):
        load_dataset(path)


def test_cells_of_any_length_are_read(write: Write) -> None:
    before = csv.field_size_limit()
    data = load_dataset(write("a.csv", f"prompt,class,notes\na,positive,{'x' * 200_000}\nb,0,y\n"))
    assert (data.positive, data.negative) == (("a",), ("b",))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "[" * 100_000),
        ("a.jsonl", '{"prompt":' * 100_000),
        ("a.jsonl", '{"prompt": ' + "9" * 5000 + ', "class": "positive"}'),
        ("a.csv", 'prompt,class\n"a\x00b,positive\n'),
    ],
)
def test_odd_contents_are_one_clear_line(name: str, content: str, write: Write) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset(write(name, content))
    assert "\n" not in str(caught.value)


def test_paths_that_lead_nowhere_are_one_clear_line(tmp_path: Path) -> None:
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    (tmp_path / "file").write_text("x")
    long = "n" * 300
    for path in (loop, tmp_path / f"{long}.jsonl", tmp_path / "a\0b.csv", tmp_path / "file/a.csv"):
        for given_ in ({"source": path}, {"positive": path, "negative": ["b"]}):
            with pytest.raises(UserError, match=r"check the path") as caught:
                load_dataset(**given_)
            assert len(str(caught.value)) < 300
    with pytest.raises(UserError, match="neither an embedded dataset"):
        load_dataset(f"{long}.txt")


def test_class_values_of_a_file_can_be_written_instead_of_mapped(write: Write) -> None:
    path = write("a.jsonl", [NEGATIVE, {"prompt": "x", "class": None}])
    with pytest.raises(
        UserError, match=r"has class 'null'.*Write one of these, or map the values in Python"
    ):
        load_dataset(path)


@pytest.mark.parametrize("dev", ["8", float("nan"), None])
def test_a_part_of_a_split_is_a_number(dev: Any, unchecked_types: None) -> None:
    with pytest.raises(UserError, match=r"dev must be prompts per class .* or a share"):
        SMALL.split(dev=dev, test=1, seed=0)
