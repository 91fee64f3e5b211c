"""A sweep's file is read as it is meant, or refused with its name, the key and a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ss_lens import UserError
from ss_lens.experiments.choose_angle import AngleCriterion
from ss_lens.experiments.config import SweepConfig, load_sweep_config
from ss_lens.experiments.grid import Arm, CellGroup

GRID: dict[str, Any] = {"model": "m", "angles_deg": [0, 90]}
CHOOSE = {"score": "refused", "goal": "minimise", "max_perplexity": 9, "max_repetition": 0.2}
EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "sweep_small.yaml"


def made(**axes: Any) -> SweepConfig:
    return SweepConfig(grid={**GRID, **axes})


def arms(config: SweepConfig) -> list[Arm]:
    return [*dict.fromkeys(group.arm for group in config.groups())]


def test_a_grid_is_the_product_of_its_axes_in_order() -> None:
    config = made(operator=["RotateBy", "RotateTo"], selection=["site", "uniform"])
    assert [(arm.operator, arm.selection) for arm in arms(config)] == [
        ("RotateBy", "site"),
        ("RotateBy", "uniform"),
        ("RotateTo", "site"),
        ("RotateTo", "uniform"),
    ]
    groups = config.groups()
    assert [(g.part, g.prompt_class) for g in groups[:2]] == [
        ("test", "positive"),
        ("test", "negative"),
    ]
    assert all(group.angles_deg == (0.0, 90.0) for group in groups)


def test_one_value_is_a_list_of_one() -> None:
    assert made(selection="uniform", angles_deg=90) == made(selection=["uniform"], angles_deg=[90])


def test_seeds_multiply_what_is_drawn_and_nothing_else() -> None:
    config = made(
        selection=["site", "RandomSites(seed={seed})"], labels=[True, "shuffled"], seed=[3, 4]
    )
    assert [(arm.selection, arm.labels, arm.seed) for arm in arms(config)] == [
        ("site", "true", None),
        ("site", "shuffled", 3),
        ("site", "shuffled", 4),
        ("RandomSites(seed=3, count=None)", "true", 3),
        ("RandomSites(seed=4, count=None)", "true", 4),
        ("RandomSites(seed=3, count=None)", "shuffled", 3),
        ("RandomSites(seed=4, count=None)", "shuffled", 4),
    ]


def test_equal_choices_are_equal_however_written() -> None:
    first = made(operator="SetAngle(magnitude=4)", plane="PC1", selection="Uniform()")
    second = made(operator="SetAngle( magnitude = 4.0 )", plane="PC1()", selection="uniform")
    assert first.groups() == second.groups()
    (arm,) = arms(first)
    assert (arm.operator, arm.plane, arm.selection) == (
        "SetAngle(magnitude=4.0)",
        "PC1()",
        "uniform",
    )
    assert Arm(**vars(arm)) == arm
    assert arm.operator_value.magnitude == 4


def test_several_grids_are_a_union_and_an_arm_of_both_gets_the_angles_of_both() -> None:
    config = SweepConfig(
        grid=[GRID, {**GRID, "angles_deg": [90, 180]}, {**GRID, "selection": "uniform"}],
        prompt_class="positive",
    )
    assert [(g.arm.selection, g.angles_deg) for g in config.groups()] == [
        ("site", (0.0, 90.0, 180.0)),
        ("uniform", (0.0, 90.0)),
    ]


def test_a_range_of_angles_stops_before_its_end() -> None:
    assert made(angles_deg={"step": 90}).grid[0].angles_deg == (0.0, 90.0, 180.0, 270.0)
    assert made(angles_deg={"start": -10, "stop": 10, "step": 10}).grid[0].angles_deg == (
        350.0,
        0.0,
    )


def test_a_configuration_survives_json() -> None:
    config = SweepConfig(
        grid=[GRID], choose={**CHOOSE}, parts=["dev", "test"], split={"dev": 0.2, "test": 3}
    )
    assert SweepConfig(**json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert config.choose == AngleCriterion(**CHOOSE)
    group = config.groups()[0]
    assert CellGroup.from_json(json.loads(json.dumps(group.as_json()))) == group


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        made().max_new_tokens = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_the_example_is_read() -> None:
    config = load_sweep_config(EXAMPLE)
    assert {arm.labels for arm in arms(config)} == {"true", "shuffled"}
    assert config.choose is not None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"selektion": "site"}, r"grid\[0\]: unknown key 'selektion' in grid; did you mean 'sele"),
        ({"selection": []}, r"grid\[0\]: selection: this list is empty.*name at least one"),
        ({"angles_deg": []}, r"angles_deg: this list is empty"),
        ({"angles_deg": [0, 0.0]}, r"angles_deg: 0\.0 appears twice"),
        ({"angles_deg": [0, "x"]}, r"angles_deg\[1\] is 'x'; input should be a valid number"),
        ({"angles_deg": [True]}, r"angles_deg\[0\] is True; input should be a valid number"),
        ({"angles_deg": float("inf")}, r"angles must be finite, in degrees"),
        ({"angles_deg": [0, 360]}, r"0 and 360 are one angle, since 360 degrees are a whole turn"),
        (
            {"angles_deg": {"step": 1e-5}},
            r"are 3\.6e\+07 angles; at most 3,600 are swept. Use a",
        ),
        ({"angles_deg": {"step": 1, "stop": float("inf")}}, r"stop is inf; input should be a fini"),
        ({"angles_deg": {"stepp": 3}}, r"angles_deg: unknown key 'stepp' in angles_deg; did you"),
        ({"angles_deg": {"step": 0}}, r"step is 0; input should be greater than 0"),
        ({"angles_deg": {"start": 9, "stop": 0, "step": 1}}, r"angles_deg: this list is empty"),
        ({"selection": "sites"}, r"unknown rule 'sites'; use one of site, block, uniform"),
        ({"selection": "RandomSites()"}, r"random selection needs a seed"),
        ({"selection": "Discriminative(centred=True)"}, r"needs neutral prompts, which a sweep"),
        ({"operator": "RotateBye"}, r"unknown operator 'RotateBye'; did you mean RotateBy"),
        ({"operator": "Abate"}, r"unknown operator 'Abate'"),
        ({"operator": "RotateBy(angle_deg=9)"}, r"holds an angle; the angles of a sweep are angl"),
        ({"operator": "RotateScale(scale=(1, 2))"}, r"holds several strengths; give one number"),
        ({"operator": "SetAngle(size=1)"}, r"does not fit: .*'size'"),
        ({"plane": "PC2()"}, r"unknown plane 'PC2'; did you mean PC1"),
        ({"labels": "shuffel"}, r"labels\[0\] is 'shuffel'; input should be True or 'shuffled'"),
        ({"seed": [0, 1]}, r"2 seeds are given and nothing is drawn with them; write \{seed\}"),
        ({"seed": 0.5}, r"seed\[0\] is 0\.5; input should be a valid integer"),
        ({"model": 5}, r"model\[0\] is 5; input should be a valid string"),
    ],
)
def test_a_wrong_axis_is_an_error_that_names_it(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokns": 9}, r"^unknown key 'max_new_tokns' in the sweep; did you mean 'max_new"),
        ({"grid": []}, r"^grid: this list is empty"),
        ({"grid": {"model": "m"}}, r"grid\[0\]: grid lacks angles_deg; its keys are model, data"),
        ({"max_new_tokens": 0}, r"max_new_tokens is 0; input should be greater than or equal"),
        ({"parts": "train"}, r"parts\[0\] is 'train'; input should be 'dev' or 'test'"),
        ({"scores": "toxicity"}, r"scores\[0\] is 'toxicity'; input should be 'refusal_score'"),
        ({"scores": "perplexity"}, r"perplexity is of the answers; add answers to scores"),
        ({"split": {"dev": True}}, r"split: dev is True; input should be a valid"),
        ({"workers": 2}, r"workers and cluster_parameters need a cluster; add cluster: local"),
        ({"cluster": "slum"}, r"cluster is 'slum'; input should be 'local' or 'slurm'"),
        ({"choose": CHOOSE}, r"choose needs the dev part to choose on; add dev to parts"),
        ({"choose": {**CHOOSE, "scor": 1}}, r"choose: unknown key 'scor' in choose; did you mean"),
        ({"choose": {"score": "refused"}}, r"choose: goal is missing"),
        ({"choose": {**CHOOSE, "goal": "min"}}, r"choose: goal must be one of minimise, maximise"),
        (
            {"choose": CHOOSE, "parts": "dev", "scores": "answers"},
            r"choose limits perplexity; add perplexity to scores",
        ),
        (
            {"choose": CHOOSE, "parts": "dev", "scores": "refusal_score"},
            r"choose needs answers, whose coherence it limits",
        ),
        (
            {"choose": CHOOSE, "parts": "dev", "prompt_class": "negative"},
            r"choose averages over positive prompts; add them to prompt_class",
        ),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SweepConfig(**{"grid": GRID, **wrong})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {model: m, angle_deg: [0]}", r"unknown key 'angle_deg' .* mean 'angles_deg'"),
        ("grid: [unclosed", r"cannot be read as YAML: .*line 1"),
        ("- a\n- b", r"is no sweep file: it must hold keys with values, and holds \['a', 'b'\]"),
        ("", r"is no sweep file: .* holds nothing"),
        ("1: 2", r"is no sweep file"),
        (b"a: \xe9", r"sweep\.yaml is not UTF-8 \(byte 3 is 0xe9\); save it as UTF-8"),
        ("split: {dev: 2001-99-99}", r"cannot be read as YAML: month must be in 1..12"),
        ("a: " + "[" * 5000, r"cannot be read as YAML: it is nested too deep"),
        ("grid: {model: m, angles_deg: {step: 1, stop: .inf}}", r"stop is inf; input should be a"),
        ("grid: {model: m, angles_deg: {step: 0.00001}}", r"at most 3,600 are swept"),
        ("split: {dev: 1}\nsplit: {dev: 2}", r"the key 'split' appears twice"),
        ("a: !!python/object/apply:os.getcwd []", r"cannot be read as YAML: could not determine"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"sweep\.yaml") as caught:
        load_sweep_config(path)
    assert caught.match(message)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(UserError, match=r"there is no sweep file .*; check the path"):
            load_sweep_config(path)


def test_a_file_says_what_values_say(tmp_path: Path) -> None:
    values = {"grid": {**GRID, "labels": [True, "shuffled"], "seed": [1, 2]}, "parts": ["dev"]}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load_sweep_config(path) == SweepConfig(**values)
