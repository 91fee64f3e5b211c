"""A HarmBench judge says what its classifier says, and nothing where it says nothing."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ss_lens import UserError
from ss_lens.judges import HarmBench, read_judge
from ss_lens.judges.harmbench import CARDS, REPOSITORY
from tests.judges.checkpoints import LONG, PROMPTS, RESPONSES, save_checkpoint, verdicts


@pytest.fixture(scope="module", params=["llama", "mistral"])
def random_classifier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Any]:
    folder = tmp_path_factory.mktemp("random") / request.param
    model, tokenizer = save_checkpoint(folder, request.param, ["Yes", "No", "maybe"])
    # Whatever the weights, the last two texts are told apart in the repository form: normed states
    # are of equal length, so their difference is at right angles to their sum.
    with torch.no_grad():
        states = []
        for prompt, response in zip(PROMPTS[-2:], LONG[-2:], strict=True):
            text = REPOSITORY.format(behavior=prompt, generation=response)
            encoded = tokenizer(text, return_tensors="pt")
            states.append(model.model(**encoded).last_hidden_state[0, -1])
        ids = tokenizer.get_vocab()
        model.lm_head.weight *= 0.001
        model.lm_head.weight[ids["Yes"]] = states[0] - states[1]
        model.lm_head.weight[ids["No"]] = states[1] - states[0]
    model.save_pretrained(folder)
    return str(folder), model.eval(), tokenizer


@pytest.mark.parametrize(
    ("template", "n_characters", "sha256"),
    [
        (REPOSITORY, 1359, "788f4f6aa1491c433c4da76c9140cfc30966cea3ff3875c4d0fcb336d92f60e0"),
        (CARDS["llama"], 897, "4016eb2e1758f37cfbf37f0e1540f15f26857e048c28e69796c23337ae0a285a"),
        (
            CARDS["mistral"],
            1342,
            "c1c47e30cc03e00197f1d12be25296fc3150969bb3ddb058bfd9f550e0d66f81",
        ),
    ],
)
def test_the_templates_are_the_published_texts(
    template: str, n_characters: int, sha256: str
) -> None:
    """Lengths were counted in published copies; the digests pin every character since."""
    assert len(template) == n_characters
    assert hashlib.sha256(template.encode()).hexdigest() == sha256


def test_the_llama_card_keeps_its_trailing_space_and_its_four_rules() -> None:
    assert "instances do not count. \n" in CARDS["llama"]
    assert CARDS["llama"].count("\n- ") == 4
    assert REPOSITORY.count("\n- ") == CARDS["mistral"].count("\n- ") == 7


def test_the_mistral_card_differs_from_the_repository_in_the_system_marks_only() -> None:
    bare = REPOSITORY.replace("<<SYS>>\n", "").replace("<</SYS>>\n", "")
    assert bare == CARDS["mistral"]


# The classifiers


@pytest.mark.parametrize("template", ["repository", "card"])
def test_harmbench_says_what_plain_transformers_says(
    random_classifier: tuple[str, Any, Any], template: Any
) -> None:
    """Oracle: one unpadded row at a time, greedy generation of one token."""
    folder, model, tokenizer = random_classifier
    text = REPOSITORY if template == "repository" else CARDS[Path(folder).name]
    table = HarmBench(model=folder, template=template, batch_size=3)(PROMPTS, LONG)
    ids = tokenizer.get_vocab()
    expected = []
    for prompt, response, score in zip(PROMPTS, LONG, table["score"], strict=True):
        encoded = tokenizer(text.format(behavior=prompt, generation=response), return_tensors="pt")
        new = model.generate(**encoded, max_new_tokens=1, do_sample=False)[0, -1]
        expected.append({"Yes": "harmful", "No": "safe"}.get(tokenizer.decode(new)))
        chances = model(**encoded).logits[0, -1].softmax(-1)
        yes, no = chances[ids["Yes"]].item(), chances[ids["No"]].item()
        assert (
            math.isnan(score)
            if expected[-1] is None
            else score == pytest.approx(yes / (yes + no), abs=1e-5)
        )
    assert verdicts(table) == expected
    if template == "repository":
        assert verdicts(table)[-2:] == ["harmful", "safe"]


def test_harmbench_verdicts_do_not_depend_on_the_batch(
    random_classifier: tuple[str, Any, Any],
) -> None:
    alone = HarmBench(model=random_classifier[0], batch_size=1)(PROMPTS, LONG)
    together = HarmBench(model=random_classifier[0], batch_size=8)(PROMPTS, LONG)
    assert verdicts(alone) == verdicts(together)
    assert alone["score"].to_numpy() == pytest.approx(
        together["score"].to_numpy(), abs=1e-5, nan_ok=True
    )


def test_harmbench_reads_yes_no_and_neither(planted_classifier: str) -> None:
    table = HarmBench(model=planted_classifier)(PROMPTS, RESPONSES)
    assert verdicts(table) == [None, "harmful", "safe", None, None, None, "safe", "harmful"]
    assert table["parse_ok"].tolist() == [verdict is not None for verdict in verdicts(table)]
    assert table["score"].isna().tolist() == (~table["parse_ok"]).tolist()
    assert (table["score"][table["verdict"] == "harmful"] > 0.5).all()
    assert (table["score"][table["verdict"] == "safe"] < 0.5).all()


def test_harmbench_reads_so_many_tokens_of_a_response(planted_classifier: str) -> None:
    responses = ["w alpha", "w1 alpha"]
    cut = HarmBench(model=planted_classifier, max_response_tokens=4)(PROMPTS[:2], responses)
    whole = HarmBench(model=planted_classifier, max_response_tokens=None)(PROMPTS[:2], responses)
    assert verdicts(cut) == ["harmful", None]  # the beginning of the text is one of the four
    assert verdicts(whole) == ["harmful", "harmful"]


def test_braces_in_a_response_are_text(planted_classifier: str) -> None:
    table = HarmBench(model=planted_classifier)(["{generation}"], ["alpha {behavior} {0} {"])
    assert verdicts(table) == ["harmful"]


def test_a_pair_that_exceeds_the_context_is_named(planted_classifier: str) -> None:
    with pytest.raises(UserError, match=r"prompt 1 with its response.*reads 2048"):
        HarmBench(model=planted_classifier)(["w1", "w1 " * 700], ["w2", "w2"])


def test_a_model_without_yes_and_no_is_no_classifier(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other", "llama", ["Yes"])
    with pytest.raises(UserError, match="is not a HarmBench classifier"):
        HarmBench(model=str(tmp_path / "other"))(["w1"], ["w2"])


def test_the_card_form_needs_an_architecture_that_has_a_card(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other", "qwen2", ["Yes", "No"])
    with pytest.raises(UserError, match="is a qwen2 model, and no HarmBench card"):
        HarmBench(model=str(tmp_path / "other"), template="card")(["w1"], ["w2"])


def test_a_classifier_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be loaded"):
        HarmBench(model=str(tmp_path))(["w1"], ["w2"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", "file lacks 'model.norm.weight', which would be random"),
        ("nan", "'model.norm.weight' holds NaN or infinity"),
    ],
)
def test_a_classifier_with_incomplete_or_damaged_weights_is_refused(
    damage: str, message: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "damaged", "llama", ["Yes", "No"])
    path = tmp_path / "damaged" / "model.safetensors"
    tensors = load_file(path)
    if damage == "absent":
        del tensors["model.norm.weight"]
    else:
        tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        HarmBench(model=str(tmp_path / "damaged"))(["w1"], ["w2"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"template": "paper"}, "unknown HarmBench template 'paper'"),
        ({"max_response_tokens": 0}, "max_response_tokens must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_wrong_settings_of_harmbench_are_told(wrong: dict[str, Any], message: str) -> None:
    text = f"HarmBench({', '.join(f'{name}={value!r}' for name, value in wrong.items())})"
    with pytest.raises(UserError, match=message):
        read_judge(text)
