"""The benchmark of exports finds tiny models exact, on files and on llama.cpp's server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="xllamacpp, which holds llama.cpp, is not here")

from benchmarks import export
from benchmarks.export import Served, at_once, exact, on_a_server, server_speed, serving, speed
from ss_lens import ContrastiveDataset, RotateBy, Store
from ss_lens.exports.subject import Base
from ss_lens.exports.verify import subject_of
from ss_lens.models.chat import Tokens, tokenize
from tests.exports.conftest import Ready, kept_as_gguf
from tests.fitting import fitted_on

ANGLES = (45.0, 180.0)
NEW = 6


@pytest.fixture(scope="module")
def made(
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ready:
    folder = tmp_path_factory.mktemp("benchmark")
    model = kept_as_gguf(tiny_folders["qwen2"], "qwen2", folder / "kept")
    calibration = fitted_on(model, tiny_data, Store(folder / "store"))
    first = tokenize(model, ["w9"])[0]
    subject, _ = subject_of(model, calibration, Base.of(model), RotateBy(90), first)
    return Ready(folder / "kept", model, calibration, subject)


@pytest.fixture(scope="module")
def prompts(made: Ready) -> list[Tokens]:
    return tokenize(made.model, ["w9 w70 w33", "w100 w8", "w55 w56 w57 w58"])


@pytest.fixture(scope="module")
def served(made: Ready, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    scratch = tmp_path_factory.mktemp("scratch")
    with serving(made.subject, scratch, "f32", 64, exactly=True) as server:
        yield Served(server, made.subject, made.calibration, NEW)
    assert not [*scratch.iterdir()]


def test_files_equal_the_steered_model(made: Ready, prompts: list[Tokens], tmp_path: Path) -> None:
    rows = [*exact(made.subject, made.calibration, prompts, ANGLES, NEW, tmp_path)]
    assert [row["angle"] for row in rows] == [45, 45, 180, 180]
    for row in rows:
        assert row["deviation"] < 1e-4 < row["steering"]
        assert row["equal answers"] == len(prompts)
    assert not [*tmp_path.iterdir()]


def test_the_server_answers_as_the_steered_model_does(
    served: Served, prompts: list[Tokens]
) -> None:
    rows = [*on_a_server(served, prompts, ANGLES)]
    for row in rows:
        assert row["same likeliest token"] == 1
        assert row["log-probability, largest difference"] < 1e-3
        assert row["largest difference of a prompt"] < 1e-3
    assert abs(rows[0]["refusal score, server"] - rows[1]["refusal score, server"]) > 0.1


def test_a_server_at_another_angle_would_be_noticed(
    served: Served, prompts: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the scales of the opposite angle."""
    right = export.turned
    monkeypatch.setattr(export, "turned", lambda angle: right(-angle))
    (row,) = on_a_server(served, prompts, ANGLES[:1])
    assert row["log-probability, largest difference"] > 0.1


def test_requests_at_once_are_compared_with_the_same_alone(
    served: Served, prompts: list[Tokens]
) -> None:
    row = at_once(served, prompts, ANGLES)
    assert row["requests"] == row["equal answers"] == len(prompts) * len(ANGLES)
    assert row["refusal score, largest difference"] < 1e-3


def test_every_way_to_steer_is_timed(
    made: Ready, prompts: list[Tokens], served: Served, tmp_path: Path
) -> None:
    found = [*speed(made.subject, made.calibration, prompts, NEW, 1, tmp_path)]
    found.append(server_speed(served.server, prompts[:1], NEW, 1))
    assert [figure.what.split(" / ")[0] for figure in found] == [
        *("merged", "LoRA in PEFT", "TransformerLens, unsteered", "steer(...)", "steer(...)"),
        "llama.cpp, dial",
    ]
    assert all(figure.value > 0 for figure in found)


def test_rows_are_kept_as_tables_of_markdown(tmp_path: Path) -> None:
    table = export.Table("about", tmp_path / "out.md")
    for row in ({"a": 1, "b": 0.12345678}, {"a": 2, "b": 1e-9}, {"c": "x"}):
        table.add(row)
    assert (tmp_path / "out.md").read_text() == (
        "\n**about**\n\n"
        "\n| a | b |\n|---|---|\n| 1 | 0.1235 |\n| 2 | 1e-09 |\n"
        "\n| c |\n|---|\n| x |\n"
    )
