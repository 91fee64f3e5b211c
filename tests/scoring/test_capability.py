"""Benchmark scores equal those of plain hooks, with lm-eval's own tasks and with files of ours."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from importlib import resources
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, RotateBy, Store, UserError
from ss_lens.models.chat import DEFAULT_FORMAT
from ss_lens.models.loading.fingerprint import identify
from ss_lens.scoring import benchmarks, capability
from ss_lens.scoring.capability import accuracy, retention
from ss_lens.stats.intervals import wilson_interval
from tests.conftest import ARCHITECTURES
from tests.oracles import HuggingFaceOracle, dense_rotation, everywhere

ANGLE = 130


def items(n: int = 16, seed: int = 0) -> list[dict]:
    """Questions in the tiny tokenizer's words, with options of one or two."""
    random = np.random.default_rng(seed)

    def words(k: int) -> str:
        return " ".join(f"w{i}" for i in random.integers(8, 128, k))

    return [
        {
            "question": words(1 + i % 4),
            "options": [words(1 + j % 2) for j in range(4)],
            "answer": i % 4,
        }
        for i in range(n)
    ]


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def task(tmp_path: Path) -> str:
    return written(tmp_path / "quiz.jsonl", items())


@pytest.fixture(scope="session")
def calibrations(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Calibration]:
    store = Store(tmp_path_factory.mktemp("store"))
    return {
        name: ss_lens.calibrate(ss_lens.capture(model, tiny_data, store=store), rule="uniform")
        for name, model in tiny_models.items()
    }


def log_likelihood(
    model: TransformerBridge, oracle: HuggingFaceOracle, prompt: str, answer: str, edits: dict
) -> float:
    before = model.tokenizer(prompt)["input_ids"]
    whole = model.tokenizer(f"{prompt} {answer}")["input_ids"]
    assert whole[: len(before)] == before
    logp = torch.log_softmax(oracle.logits(torch.tensor([whole]), edits).double(), dim=-1)
    places = range(len(before), len(whole))
    return float(sum(logp[place - 1, whole[place]] for place in places))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_those_of_plain_hooks(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
    calibrations: dict[str, Calibration],
    task: str,
) -> None:
    model, oracle = tiny_models[architecture], HuggingFaceOracle(tiny_folders[architecture])
    calibration = calibrations[architecture]
    edits = everywhere(dense_rotation(calibration.plane, ANGLE), calibration.selected_sites)
    before = capability.capability(model, [task])
    after = capability.capability(
        model, [task], calibration=calibration, operator=RotateBy(ANGLE), batch_size=5
    )
    for table, at in ((before, {}), (after, edits)):
        expected = [
            np.argmax(
                [
                    log_likelihood(model, oracle, f"Question: {row['question']}\nAnswer:", o, at)
                    for o in row["options"]
                ]
            )
            == row["answer"]
            for row in items()
        ]
        assert table["score"].tolist() == expected
        assert set(table["task"]) == {"quiz"}
        assert set(table["metric"]) == {"acc"}
        assert table["item"].tolist() == list(range(16))
    assert before["score"].tolist() != after["score"].tolist()


def test_steered_loglikelihoods_equal_those_of_plain_hooks_and_differ_from_unsteered(
    tiny_llama: TransformerBridge, tiny_folders: dict[str, Path], calibrations: dict
) -> None:
    from lm_eval.api.instance import Instance

    oracle, calibration = HuggingFaceOracle(tiny_folders["llama"]), calibrations["llama"]
    texts = [
        (f"w{i} w{i + 1} w{i + 2}", f"w{i + 40} w{i + 9}"[: 3 + 4 * (i % 2)]) for i in range(8, 20)
    ]
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=(prompt, f" {answer}"), idx=0)
        for prompt, answer in texts
    ]
    lm = capability._harness(tiny_llama, batch_size=5)
    plain = [value for value, _ in lm.loglikelihood(asked)]
    with ss_lens.steer(tiny_llama, calibration, RotateBy(ANGLE)):
        steered = [value for value, _ in lm.loglikelihood(asked)]
    edits = everywhere(dense_rotation(calibration.plane, ANGLE), calibration.selected_sites)
    for got, at in ((plain, {}), (steered, edits)):
        expected = [log_likelihood(tiny_llama, oracle, p, a, at) for p, a in texts]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert min(abs(a - b) for a, b in zip(plain, steered, strict=True)) > 1e-2


def test_the_model_and_its_tokenizer_stay_as_they_were(
    tiny_models: dict[str, TransformerBridge], task: str
) -> None:
    model = tiny_models["gpt2"]  # whose output weights are tied to its input
    tokenizer = model.tokenizer
    kept = tokenizer.pad_token
    tokenizer.pad_token = None
    try:
        before = identify(model), tokenizer.padding_side
        capability.capability(model, [task], limit=1)
        assert (identify(model), tokenizer.padding_side, tokenizer.pad_token) == (*before, None)
    finally:
        tokenizer.pad_token = kept


def test_a_surrounding_steer_counts_and_so_does_the_limit(
    tiny_llama: TransformerBridge, calibrations: dict, task: str
) -> None:
    given = {"calibration": calibrations["llama"], "operator": RotateBy(ANGLE)}
    whole = capability.capability(tiny_llama, [task], **given)
    with ss_lens.steer(tiny_llama, calibrations["llama"], RotateBy(ANGLE)):
        around = capability.capability(tiny_llama, [task], limit=7)
    pd.testing.assert_frame_equal(around, whole.head(7))


def test_the_chat_template_is_used_where_it_is_asked_for(
    tiny_llama: TransformerBridge, task: str
) -> None:
    seen: list[str] = []

    def remember(module: object, args: tuple, kwargs: dict) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        seen.append(tiny_llama.tokenizer.decode(ids[0]))

    handle = tiny_llama.original_model.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        capability.capability(tiny_llama, [task], limit=1)
        capability.capability(tiny_llama, [task], limit=1, chat_template=True)
    finally:
        handle.remove()
    plain, templated = seen[0], seen[-1]
    assert "assistant" not in plain
    assert "user <unk> w" in templated
    assert templated.count("<s>") == 1


def test_a_template_that_reads_the_clock_is_given_a_fixed_date(
    tiny_llama: TransformerBridge, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = tiny_llama.tokenizer.chat_template.replace("system be", "{{ strftime_now('w%d') }}")
    monkeypatch.setattr(tiny_llama.tokenizer, "chat_template", dated)
    seen: list[str] = []

    def remember(module: object, args: tuple, kwargs: dict) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        seen.append(tiny_llama.tokenizer.decode(ids[0]))

    handle = tiny_llama.original_model.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        capability.capability(tiny_llama, [task], limit=1, chat_template=True)
    finally:
        handle.remove()
    assert f"<s> w{DEFAULT_FORMAT.date[-2:]} helpful" in seen[-1]
    assert tiny_llama.tokenizer.chat_template == dated


def test_a_generating_task_of_lm_evals_own_format_runs_steered(
    tiny_llama: TransformerBridge,
    tiny_folders: dict[str, Path],
    calibrations: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    oracle, calibration = HuggingFaceOracle(tiny_folders["llama"]), calibrations["llama"]
    edits = everywhere(dense_rotation(calibration.plane, ANGLE), calibration.selected_sites)
    prompts = ["w9 w70 w33", "w12 w13", "w100 w8 w8"]

    def three_more(prompt: str) -> str:
        ids = torch.tensor([tiny_llama.tokenizer(prompt)["input_ids"]])
        start = ids.shape[1]
        for _ in range(3):
            ids = torch.cat((ids, oracle.logits(ids, edits)[-1].argmax().reshape(1, 1)), dim=1)
        return oracle.tokenizer.decode(ids[0, start:])

    targets = [three_more(prompt) for prompt in prompts]
    rows = [{"q": p, "a": t} for p, t in zip(prompts, targets, strict=True)]
    data = written(tmp_path / "data.jsonl", [*rows, {"q": prompts[0], "a": "w1"}])
    (tmp_path / "speak.yaml").write_text(
        f"task: speak\ndataset_path: json\ndataset_kwargs:\n  data_files: {data}\n"
        "test_split: train\noutput_type: generate_until\ndoc_to_text: '{{q}}'\n"
        "doc_to_target: '{{a}}'\ngeneration_kwargs:\n  until: ['never']\n  max_gen_toks: 3\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    )
    table = capability.capability(
        tiny_llama,
        [str(tmp_path / "speak.yaml")],
        calibration=calibration,
        operator=RotateBy(ANGLE),
    )
    assert table["score"].tolist() == [1, 1, 1, 0]
    unsteered = capability.capability(tiny_llama, [str(tmp_path / "speak.yaml")])
    assert unsteered["score"].sum() < 3


def test_a_tiny_benchmark_runs_without_the_package_of_its_aggregation(
    tiny_models: dict[str, TransformerBridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    def question(i: int) -> dict:
        texts = [f"w{i}", f"w{i + 1}", f"w{i + 2}"]
        choices = {"text": texts, "label": ["A", "B", "C"]}
        return {"question": f"w{i + 3}", "choices": choices, "answerKey": "ABC"[i % 3]}

    def load_dataset(path: str, name: str, **_: object) -> datasets.DatasetDict:
        assert (path, name) == ("tinyBenchmarks/tinyAI2_arc", "ARC-Challenge")
        rows = {"train": range(10, 40), "validation": range(50, 52), "test": range(60, 65)}
        return datasets.DatasetDict(
            {k: datasets.Dataset.from_list([question(i) for i in v]) for k, v in rows.items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = capability.capability(tiny_models["qwen2"], ["tinyArc"], limit=4)
    assert table["metric"].tolist() == ["acc_norm"] * 4
    assert not {"tinyBenchmarks", "lm_eval.tasks.tinyBenchmarks.agg_functions"} & set(sys.modules)


def test_a_task_that_needs_the_network_says_so(tiny_llama: TransformerBridge) -> None:
    with pytest.raises(
        UserError, match=r"'tinyMMLU' could not be loaded.*need a network on first use; 'basics'"
    ):
        capability.capability(tiny_llama, ["tinyMMLU"])


def test_a_task_file_of_lm_eval_that_does_not_fit_its_data_is_an_error(
    tiny_llama: TransformerBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = written(tmp_path / "data.jsonl", [{"q": "w9", "a": "w8"}])
    (tmp_path / "misfit.yaml").write_text(
        f"task: misfit\ndataset_path: json\ndataset_kwargs:\n  data_files: {data}\n"
        "test_split: validation\noutput_type: generate_until\ndoc_to_text: '{{q}}'\n"
        "doc_to_target: '{{a}}'\n"
    )
    with pytest.raises(UserError, match=r"misfit\.yaml' could not be loaded: 'validation'"):
        capability.capability(tiny_llama, [str(tmp_path / "misfit.yaml")])


def test_an_unknown_task_is_an_error_with_the_nearest_name(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = benchmarks._manager("tinyArc")
    assert set(benchmarks.TINY_BENCHMARKS) <= set(tiny.all_tasks)
    monkeypatch.setattr(benchmarks, "_whole_index", lambda: tiny)  # all of it takes too long here
    with pytest.raises(UserError, match="knows no task 'tinyArk'; did you mean 'tinyArc'"):
        capability.capability(tiny_llama, ["tinyArk"])


def test_a_missing_extra_names_the_command(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r'pip install "ss_lens\[capability\]"'):
        capability.capability(tiny_llama)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": "basics"}, r"must be a list; got one text. Write \['basics'\]"),
        ({"tasks": []}, "there is no task; name at least one"),
        ({"tasks": ["basics", "basics"]}, "'basics' is named twice"),
        ({"tasks": ["nowhere.jsonl"]}, "there is no task file nowhere.jsonl"),
        ({"tasks": ["nowhere.yaml"]}, "there is no task file nowhere.yaml"),
        ({"operator": RotateBy(10)}, "both a calibration and an operator"),
        ({"limit": 0}, "limit must be a whole number from 1 on"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 on"),
        (
            {"metric": "f1", "limit": 1},
            "metric 'f1' of task 'basics' is not a score.*metrics are acc",
        ),
    ],
)
def test_what_cannot_be_run_is_an_error(
    given: dict, message: str, tiny_models: dict[str, TransformerBridge]
) -> None:
    with pytest.raises(UserError, match=message):
        capability.capability(tiny_models["qwen2"], **given)


def test_strengths_per_row_are_an_error(tiny_llama: TransformerBridge, calibrations: dict) -> None:
    given = {"calibration": calibrations["llama"], "operator": RotateBy((10, 20))}
    with pytest.raises(UserError, match="each of 2 rows, but lm-eval forms its own batches"):
        capability.capability(tiny_llama, **given)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 of .* is not JSON"),
        ('{"question": "w9", "options": ["w8", "w9"]}', "line 1 of .* is not a question with two"),
        (
            '{"question": "w9", "options": ["w8"], "answer": 0}',
            "is not a question with two options",
        ),
        ('{"question": "w9", "options": ["w8", " "], "answer": 0}', "none of them blank"),
        ('{"question": "w9", "options": ["w8", "w9"], "answer": 2}', "counted from 0"),
        ("", "holds no question"),
    ],
)
def test_a_damaged_task_file_is_an_error(
    line: str, message: str, tiny_llama: TransformerBridge, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        capability.capability(tiny_llama, [str(tmp_path / "bad.jsonl")])


def table(scores: list[float], task: str = "quiz") -> pd.DataFrame:
    return pd.DataFrame(
        {"task": task, "item": range(len(scores)), "metric": "acc", "score": map(float, scores)}
    )


def test_accuracy_has_wilsons_interval_for_right_or_wrong_and_a_bootstrap_for_shares() -> None:
    shares = [0.2, 0.9, 0.5, 0.7] * 5
    both = accuracy(pd.concat([table([1, 0, 1, 1]), table(shares, "graded")]))
    right, graded = both.to_dict("records")
    assert (right["n"], right["accuracy"], right["interval"]) == (4, 0.75, "wilson")
    assert (right["low"], right["high"]) == wilson_interval(3, 4)
    assert (graded["task"], graded["interval"]) == ("graded", "bootstrap")
    half = 1.96 * np.std(shares) / math.sqrt(20)
    mean = np.mean(shares)
    assert [graded["low"], graded["high"]] == pytest.approx([mean - half, mean + half], abs=0.01)


def test_retention_equals_a_bootstrap_of_whole_items_written_out() -> None:
    random = np.random.default_rng(3)
    before = random.integers(0, 2, 40)
    after = np.where(random.random(40) < 0.25, 0, before)
    (row,) = retention(table(list(after)), table(list(before))).to_dict("records")
    assert row["retention"] == pytest.approx(after.sum() / before.sum())
    assert (row["n"], row["unsteered"], row["steered"]) == (40, before.mean(), after.mean())
    ratios = []
    for _ in range(4000):
        drawn = random.integers(0, 40, 40)
        ratios.append(after[drawn].sum() / before[drawn].sum())
    expected = np.quantile(ratios, (0.025, 0.975))
    assert [row["low"], row["high"]] == pytest.approx(expected, abs=0.03)
    loose = [
        after[random.integers(0, 40, 40)].sum() / before[random.integers(0, 40, 40)].sum()
        for _ in range(4000)
    ]
    assert row["high"] - row["low"] < 0.8 * np.subtract(*np.quantile(loose, (0.975, 0.025)))


@settings(max_examples=15)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(any))
def test_an_unchanged_model_retains_everything_with_certainty(scores: list[float]) -> None:
    (row,) = retention(table(scores), table(scores)).to_dict("records")
    assert [row["retention"], row["low"], row["high"]] == pytest.approx([1, 1, 1])


def test_an_undefined_score_is_an_error_and_no_average() -> None:
    holed = table([1, math.nan, 0.5])
    with pytest.raises(UserError, match="1 of 3 values are undefined"):
        accuracy(holed)
    with pytest.raises(UserError, match=r"1 of 3 items have an undefined score .* from both runs"):
        retention(table([1, 1, 1]), holed)


def test_retention_is_undefined_where_the_unsteered_model_scores_nothing() -> None:
    (row,) = retention(table([1, 0]), table([0, 0])).to_dict("records")
    assert row["steered"] == 0.5
    assert np.isnan([row["retention"], row["low"], row["high"]]).all()


@pytest.mark.parametrize("other", [table([1, 0]), table([1, 1, 1], "exam"), table([1, 1, 1, 1])])
def test_retention_of_other_items_is_an_error(other: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="do not hold the same items, each once"):
        retention(table([1, 1, 1]), other)
    with pytest.raises(UserError, match="do not hold the same items, each once"):
        retention(other, table([1, 1, 1]))


def test_retention_of_items_that_stand_twice_is_an_error() -> None:
    twice = pd.concat([table([1, 0]), table([1, 0])])
    with pytest.raises(UserError, match="each once"):
        retention(twice, table([1, 0]))


def test_the_embedded_items_are_many_distinct_and_balanced() -> None:
    text = resources.files("ss_lens.scoring").joinpath("capability_items.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) >= 60
    assert len({row["question"] for row in rows}) == len(rows)
    assert all(len(set(row["options"])) == 4 for row in rows)
    for counts in (Counter(r["answer"] for r in rows), Counter(r["subject"] for r in rows)):
        assert len(counts) == 4
        assert len(set(counts.values())) == 1


@pytest.mark.default_model
def test_a_small_real_model_answers_easy_questions_better_than_chance() -> None:
    model = ss_lens.load_model("smollm2-135m")
    assert capability.capability(model, limit=12)["score"].mean() > 0.5
