"""A model as judge gives the probabilities of two words as the beginning of its reply."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import ss_lens
from ss_lens import ContrastiveDataset, Store, UserError
from ss_lens.judges import RubricJudge, check_ready, outcomes_of, read_judge, summary
from ss_lens.judges.rubric import OF_WORDS, fill, read_rubric
from ss_lens.judges.words import verdict_tokens

RUBRIC = "w31 {prompt} w32 {answer} w33"
PROMPTS = ["w8 w9 w10", "w11", "w12 w13", "w14 w15 w16 w17", "w18"]
ANSWERS = ["w60", "w61 w62 w63", "", "w64 w65", "w66 w67 w68 w69 w70"]


@pytest.fixture
def judge(tiny_folders: dict[str, Path]) -> RubricJudge:
    return RubricJudge(str(tiny_folders["llama"]), RUBRIC, "w20", "w30", batch_size=2)


def test_it_gives_the_probabilities_of_a_plain_pass(
    judge: RubricJudge, tiny_folders: dict[str, Path]
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["llama"])
    found = judge(PROMPTS, ANSWERS)
    yes, no = tokenizer.convert_tokens_to_ids(["w20", "w30"])
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        turn = [{"role": "user", "content": f"w31 {prompt} w32 {answer} w33"}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            shares = plain(ids).logits[0, -1].softmax(dim=-1)
        mass = float(shares[yes] + shares[no])
        score = float(shares[yes]) / mass
        assert found["mass"][row] == pytest.approx(mass, rel=1e-3)
        assert found["score"][row] == pytest.approx(score, rel=1e-3)
        assert found["verdict"][row] == ("w20" if score >= 0.5 else "w30")
    assert found["parse_ok"].all()
    assert found["score"].nunique() == len(PROMPTS)


def test_batches_change_nothing(judge: RubricJudge) -> None:
    alone = [judge([p], [a])["score"][0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert judge(PROMPTS, ANSWERS)["score"].tolist() == pytest.approx(alone, rel=1e-3)
    assert judge([], []).empty


def test_it_stays_unsteered_while_the_same_model_is_steered(
    judge: RubricJudge,
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    before, model = judge(PROMPTS, ANSWERS), tiny_models["llama"]
    calibration = ss_lens.calibrate(ss_lens.capture(model, tiny_data, store=store), rule="uniform")
    with ss_lens.steer(model, calibration, ss_lens.RotateBy(angle_deg=180)):
        steered = ss_lens.generate(model, PROMPTS, max_new_tokens=4)
        during = judge(PROMPTS, ANSWERS)
    assert steered != ss_lens.generate(model, PROMPTS, max_new_tokens=4)
    assert (during == before).to_numpy().all()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "llama",
            ("yes", "no"),
            r"the verdict 'yes' has no token in the tokenizer of .*Write for inst",
        ),
        ("llama", ("w20", "w20 w21"), r"'w20' and 'w20 w21' begin with the same token 'w20' in "),
        ("qwen2", ("ja", "jein"), r"'ja' and 'jein' begin with the same token 'j' in the tokeniz"),
    ],
)
def test_words_that_tokens_do_not_tell_apart_are_refused(
    name: str, words: tuple[str, str], message: str, tiny_folders: dict[str, Path]
) -> None:
    judge = RubricJudge(str(tiny_folders[name]), RUBRIC, *words)
    with pytest.raises(UserError, match=message) as caught:
        judge(PROMPTS, ANSWERS)
    assert "\n" not in str(caught.value)


def test_what_keeps_it_from_judging_shows_before_its_weights_are_loaded(
    judge: RubricJudge, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(verdict_tokens, "load_model", never)
    judge.check_ready()
    folder = str(tiny_folders["qwen2"])
    for wrong, message in (
        (RubricJudge(folder, RUBRIC, "ja", "jein"), "begin with the same token 'j'"),
        (RubricJudge(folder, "{prompt} alone"), r"has no \{answer\}"),
        (RubricJudge("smollm", RUBRIC), "unknown model 'smollm'"),
    ):
        with pytest.raises(UserError, match=message):
            check_ready(wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positive": "Yes", "negative": "yes "}, "both verdicts of the judge are 'Yes'; expected"),
        ({"negative": " "}, "negative is blank; expected a word such as 'yes'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"batch_size": 0}, "batch_size"),
        ({"rubric": 3}, "rubric must be a name, a text or a path"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused_when_it_is_made(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        RubricJudge("no model is loaded", **fields)


def test_a_rubric_needs_places_for_both_texts() -> None:
    for rubric, missing in (("{prompt} alone", "{answer}"), ("refused or not", "cannot be read")):
        with pytest.raises(UserError, match=missing.replace("{", r"\{")):
            RubricJudge("no model is loaded", rubric)(["a"], ["b"])


def test_the_packaged_rubric_asks_for_the_default_words() -> None:
    text = read_rubric("refused", OF_WORDS)
    assert text.rstrip().endswith("Reply with one word, yes or no.")
    filled = fill(text, "{answer}", "{prompt}")
    assert filled.index("{answer}") < filled.index("{prompt}")


def test_it_is_read_from_its_text_and_its_verdicts_are_summed(judge: RubricJudge) -> None:
    assert read_judge(repr(judge)) == judge
    assert outcomes_of(judge) == ("w20", "w30")
    found = summary(judge(PROMPTS, ANSWERS), outcomes=outcomes_of(judge))
    assert found["outcome"].tolist() == ["w20", "w30", "unparsed"]
    assert found["count"].sum() == len(PROMPTS)
    assert RubricJudge("other") in {RubricJudge("other")}
