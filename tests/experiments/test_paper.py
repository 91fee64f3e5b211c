"""The paper's tables: operators without an angle in a sweep, and a whole run on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import ss_lens
from ss_lens import Store, UserError
from ss_lens.experiments.grid import Arm
from ss_lens.experiments.sweep import run_sweep
from ss_lens.scoring.perplexity import answer_perplexity
from ss_lens.scoring.published import published_perplexity
from tests.experiments.sweeping import Asked, with_grid


def test_an_operator_without_an_angle_is_one_cell_whatever_the_angles(asked: Asked) -> None:
    config = with_grid(asked, operator=["Ablate", "Add(alpha=-2)", "RotateTo"])
    angles = {group.arm.operator: group.angles_deg for group in config.groups()}
    assert angles == {
        "Ablate": (0.0,),
        "Add(alpha=-2.0)": (0.0,),
        "RotateTo": (0.0, 120.0),
    }


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("Add", r"operator 'Add' does not fit: .*'alpha'"),
        ("Add(alpha=(1, 2))", r"holds several strengths; give one number"),
        ("ActAdd(coefficient=1)", r"unknown operator 'ActAdd'"),
    ],
)
def test_an_operator_that_is_not_one_cell_is_refused(operator: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Arm(model="m", dataset="d", operator=operator)


def test_a_cell_without_an_angle_holds_the_answers_of_steering_with_its_operator(
    asked: Asked, tmp_path: Path
) -> None:
    scores = ["answers", "refusal_score", "perplexity", "perplexity_steered"]
    asked = {**asked, "scores": scores, "prompt_class": "positive"}
    table = run_sweep(
        with_grid(asked, operator=["Ablate", "Add(alpha=-20)"]),
        tmp_path / "sweep",
        store=Store(tmp_path / "store"),
    ).table
    model = ss_lens.load_model(asked["grid"]["model"])
    split = ss_lens.load_dataset(asked["grid"]["dataset"]).split(**asked["split"])
    acts = ss_lens.capture(model, split.train, store=Store(tmp_path / "store"))
    calibration = ss_lens.calibrate(acts, rule="uniform")
    for name, operator in (
        ("Ablate", ss_lens.Ablate()),
        ("Add(alpha=-20.0)", ss_lens.Add(alpha=-20)),
    ):
        rows = table[table["operator"] == name]
        prompts, answers = rows["prompt"].tolist(), rows["response"].tolist()
        with ss_lens.steer(model, calibration, operator):
            assert answers == ss_lens.generate(model, prompts, max_new_tokens=6)
        by_itself = published_perplexity(model, calibration, operator, prompts, answers)
        assert rows["perplexity_steered"].to_list() == pytest.approx(
            by_itself["perplexity"].to_list()
        )
        unsteered = answer_perplexity(model, prompts, answers)
        assert rows["perplexity"].to_list() == pytest.approx(unsteered["perplexity"].to_list())
        assert (rows["angle_deg"] == 0).all()


def test_the_perplexity_of_the_steered_model_is_measured_on_request_alone(asked: Asked) -> None:
    assert "perplexity_steered" not in with_grid(asked).scores
    named = with_grid({**asked, "scores": ["answers", "perplexity_steered"]})
    assert "perplexity_steered" in named.scores
