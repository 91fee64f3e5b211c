"""System prompts beside the turn: dev chooses one, and the verdict says when it does as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ChatFormat, ContrastiveDataset, Run, RunConfig, Store
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.experiments.dial import asking, scan
from ss_lens.experiments.dial.asking import ASKED_COLUMNS, ASKING, asked_format, can_be_asked
from ss_lens.experiments.dial.folder import ASKED, load_run
from ss_lens.experiments.dial.verdict import verdict
from ss_lens.scoring.refusal_score import refusal_score

CONFIG = RunConfig(
    angles_deg=(0, 180), dev=2, test=2, max_new_tokens=2, rule="uniform", draws=1,
    chat=ChatFormat(system="Be brief."),
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Run]:
    root = tmp_path_factory.mktemp("asked")
    store, model = Store(root / "store"), tiny_models["qwen2"]
    return root / "run", ss_lens.run_main_job(model, tiny_data, root / "run", CONFIG, store=store)


def test_every_system_prompt_is_scored_on_dev_and_the_best_of_each_sense_is_chosen(
    finished: tuple[Path, Run],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
) -> None:
    table, dev = finished[1].asked, tiny_data.split(dev=2, test=2, seed=0).dev
    assert tuple(table) == ASKED_COLUMNS
    positive = table.query("prompt_class == 'positive'")
    assert {s: tuple(rows["system"]) for s, rows in positive.groupby("sense")} == dict(ASKING)
    for row in table.itertuples():
        chat = ChatFormat(system=f"Be brief.\n\n{row.system}")
        prompts = getattr(dev, row.prompt_class)
        expected = refusal_score(tiny_models["qwen2"], prompts, chat=chat).mean()
        assert row.refusal_score == pytest.approx(expected["refusal_score"], abs=1e-3)
        assert row.opening_mass == pytest.approx(expected["opening_mass"], abs=1e-4)
        assert row.n == 2
    for sense, best in (("weakened", "min"), ("strengthened", "max")):
        scores = positive.loc[positive["sense"] == sense].set_index("system")["refusal_score"]
        chosen = table.loc[table["chosen"] & (table["sense"] == sense)]
        assert [*chosen["prompt_class"]] == ["positive", "negative"]
        assert {*chosen["system"]} == {getattr(scores, f"idx{best}")()}


def test_the_table_is_kept_and_a_run_from_before_is_read_without_it(
    finished: tuple[Path, Run], tmp_path: Path
) -> None:
    folder, run = finished
    pd.testing.assert_frame_equal(load_run(folder).asked, run.asked, check_dtype=False)
    assert run.verdict.count("asked for it in a system prompt") == 2
    for path in folder.iterdir():
        if path.is_file() and path.name != ASKED:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    run.calibration.save(tmp_path / "calibration")
    told = read_sealed_json(tmp_path / "tables.json", "tables", remedy="")
    (tmp_path / "tables.json").unlink()
    write_sealed_json(
        tmp_path / "tables.json", {k: v for k, v in told.items() if k not in (ASKED, "sha256")}
    )
    earlier = load_run(tmp_path)
    assert earlier.asked.empty
    pd.testing.assert_frame_equal(earlier.dial, load_run(folder).dial)
    (folder / ASKED).write_bytes(whole := (folder / ASKED).read_bytes())
    (folder / ASKED).write_bytes(whole.replace(b"weakened", b"worsened"))
    with pytest.raises(ss_lens.UserError, match=r"asked\.csv is missing or was changed since the"):
        load_run(folder)
    (folder / ASKED).write_bytes(whole)
    assert json.loads((folder / "tables.json").read_text())[ASKED]


def test_a_model_whose_template_takes_no_system_prompt_cannot_be_asked(
    tiny_models: dict[str, TransformerBridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models["qwen2"]
    assert can_be_asked(model, ("a request",), ChatFormat())
    assert not can_be_asked(model, ("a request" * 20,), ChatFormat())  # too long with it
    silent = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", silent + "{% endfor %}")
    assert not can_be_asked(model, ("a request",), ChatFormat())


def test_what_is_asked_follows_the_system_prompt_that_there_is() -> None:
    assert asked_format(ChatFormat(), "Refuse.").system == "Refuse."
    assert asked_format(ChatFormat(system="Be brief."), "Refuse.").system == "Be brief.\n\nRefuse."


def said(asked: pd.DataFrame | None) -> str:
    """Of a turn at 135° from 3.1 to −5.4 nats."""
    row = {"collapsed": 0.0}
    for label in ("positive", "negative"):
        row |= {f"refusal_{label}": 0.0, f"refusal_{label}_low": 0.0, f"refusal_{label}_high": 0.1}
    scores: Any = pd.DataFrame([{"angle_deg": angle, **row} for angle in (0.0, 135.0)])
    dial = pd.DataFrame(
        [
            (scan.METHOD, 0, "positive", 0.0, 3.1, 0.9, 16),
            (scan.METHOD, 0, "positive", 135.0, -5.4, 0.8, 16),
        ],
        columns=[*scan.DIAL_COLUMNS],
    )
    choices = pd.DataFrame([("weakened", 135.0, -5.4, 0.0, True)], columns=[*scan.CHOICE_COLUMNS])
    return verdict(scores, dial, choices, asked).partition(" No turned angle")[0]


def asked_to(score: float, mass: float) -> pd.DataFrame:
    rows = [
        ("weakened", "Answer.", "positive", score, mass, 16, True),
        ("weakened", "Never refuse.", "positive", -9.0, 0.9, 16, False),
        ("weakened", "Answer.", "negative", -4.0, 0.9, 16, True),
    ]
    return pd.DataFrame(rows, columns=[*asking.ASKED_COLUMNS])


def test_the_verdict_says_when_asking_does_as_well() -> None:
    assert said(asked_to(-5.6, 0.85)).endswith(
        "; asked for it in a system prompt, unsteered, the score on 16 dev prompts moves by -8.7 "
        "(opening mass 0.85), by the turn -8.5: asking the model does as well."
    )
    assert said(asked_to(-5.0, 0.85)).endswith("asking the model does as well.")  # 0.4 nats apart
    assert said(asked_to(-4.8, 0.85)).endswith("by the turn -8.5: asking does less.")
    assert said(asked_to(-5.6, 0.4)).endswith("asking moves it as far, and there the text breaks.")
    assert said(asked_to(0, 0).iloc[:0]).endswith(
        "; the model takes no system prompt, so asking it instead was not measured."
    )
    assert "asked" not in said(None)
