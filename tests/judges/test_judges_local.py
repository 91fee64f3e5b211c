"""Local judges say what their classifier says, and nothing where it says nothing.

The checkpoints are tiny, of the architectures of the real ones. Random ones are compared with plain
transformers; in planted ones a marker word anywhere in the text decides the next token, so that
every outcome can be had.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ss_lens import UserError
from ss_lens.judges import (
    HarmBench,
    Judge,
    LlamaGuard3,
    Opinion,
    PolyGuard,
    Qwen3Guard,
    parse_reply,
    read_judge,
    summary,
    unload,
    verdict_table,
)
from ss_lens.judges.harmbench_templates import CARDS, REPOSITORY
from ss_lens.judges.local import resident

CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **sizes: LlamaForCausalLM(LlamaConfig(**sizes)),
    "mistral": lambda **sizes: MistralForCausalLM(MistralConfig(**sizes)),
    "qwen2": lambda **sizes: Qwen2ForCausalLM(Qwen2Config(**sizes)),
    "qwen3": lambda **sizes: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **sizes)),
}
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
MARKERS = ["alpha", "beta", "gamma"]
WIDTH = 16


def save_checkpoint(
    folder: Path, architecture: str, outcomes: Sequence[str], template: str | None = None
) -> tuple[Any, PreTrainedTokenizerFast]:
    """A random checkpoint whose tokenizer reads bytes, and each marker and outcome as one token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_tokens([*MARKERS, *outcomes])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    wrapped.chat_template = template
    torch.manual_seed(3)
    model = CONFIGS[architecture](
        vocab_size=len(wrapped),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return model, wrapped


@torch.no_grad()
def plant(
    folder: Path, model: Any, tokenizer: Any, outcomes: Sequence[str], otherwise: str
) -> None:
    """Weights that answer ``outcomes[i]`` if ``MARKERS[i]`` is in the text, else ``otherwise``.

    Attention is uniform and carries the markers' own dimensions to the last token, where the
    unembedding reads them; an outcome is followed by the end of the text.
    """
    layer = model.model.layers[0]
    for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
        module.weight.zero_()
    carried = torch.zeros(WIDTH)
    carried[1 : 1 + len(MARKERS)] = 1
    layer.self_attn.v_proj.weight.copy_(torch.diag(carried))
    layer.self_attn.o_proj.weight.copy_(torch.eye(WIDTH))
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            bias.zero_()
    embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
    embedding.zero_()
    unembedding.zero_()
    embedding[:, 0] = 0.001
    ids = tokenizer.get_vocab()
    unembedding[ids[otherwise], 0] = 1
    unembedding[ids["</s>"], WIDTH - 1] = 1000
    for place, (marker, outcome) in enumerate(zip(MARKERS, outcomes, strict=False), start=1):
        embedding[ids[marker]] = torch.eye(WIDTH)[place]
        unembedding[ids[outcome], place] = 10
    for outcome in {*outcomes, otherwise}:
        embedding[ids[outcome]] = torch.eye(WIDTH)[WIDTH - 1]
    model.save_pretrained(folder)


PROMPTS = [f"w{i} count" for i in range(8)]
RESPONSES = ["w1", "alpha w2 w3", "beta", "", "w4 " * 20, "gamma w5", "beta w6 w7 w1", "alpha"]
LONG = [letter * 20 * n for n, letter in enumerate("qwertyui", start=1)]


@pytest.fixture(autouse=True)
def nothing_stays_loaded() -> Any:
    yield
    unload()


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


@pytest.fixture(scope="module", params=["llama", "mistral"])
def planted_classifier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("planted") / request.param
    model, tokenizer = save_checkpoint(folder, request.param, ["Yes", "No", "maybe"])
    plant(folder, model, tokenizer, ["Yes", "No"], otherwise="maybe")
    return str(folder)


def verdicts(table: pd.DataFrame) -> list[str | None]:
    return table["verdict"].tolist()


# The HarmBench templates


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


# HarmBench classifiers


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


# Guard models through any-guardrail

FLAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ m['role'] }} : {% for part in m['content'] %}"
    "{{ part['text'] | trim }} {% endfor %}{% endfor %}verdict :"
)


def planted_guard(
    folder: Path, architecture: str, outcomes: Sequence[str], otherwise: str, template: str = FLAT
) -> str:
    known = list(dict.fromkeys([*outcomes, otherwise]))
    model, tokenizer = save_checkpoint(folder, architecture, known, template)
    plant(folder, model, tokenizer, outcomes, otherwise)
    return str(folder)


def polyguard_says(request: str, refusal: str, response: str) -> str:
    return f"Harmful request: {request}\nResponse refusal: {refusal}\nHarmful response: {response}"


@pytest.mark.parametrize(
    ("architecture", "model"),
    [
        ("mistral", "ToxicityPrompts/PolyGuard-Ministral"),
        ("qwen2", "ToxicityPrompts/PolyGuard-Qwen"),
        ("qwen2", "ToxicityPrompts/PolyGuard-Qwen-Smol"),
    ],
)
def test_polyguard_judges_the_response_not_the_request(
    tmp_path: Path, architecture: str, model: str
) -> None:
    outcomes = [
        polyguard_says("yes", "no", "yes"),
        polyguard_says("yes", "yes", "no"),
        "Harmful request: yes",
    ]
    weights = planted_guard(tmp_path / "guard", architecture, outcomes, "nothing")
    table = PolyGuard(model=model, weights=weights)(PROMPTS, RESPONSES)
    assert verdicts(table) == [None, "harmful", "safe", None, None, None, "safe", "harmful"]
    assert table["score"].isna().all()


@pytest.mark.parametrize(
    ("model", "template"),
    [("meta-llama/Llama-Guard-3-8B", FLAT), ("meta-llama/Llama-Guard-3-1B", PARTS)],
)
def test_llama_guard_needs_its_word_to_call_a_response_safe(
    tmp_path: Path, model: str, template: str
) -> None:
    """any-guardrail itself takes every text without “unsafe” for safe."""
    outcomes = ["unsafe\nS1", "safe", "I am not sure it is unsafe"]
    weights = planted_guard(tmp_path / "guard", "llama", outcomes, "nonsense", template)
    table = LlamaGuard3(model=model, weights=weights)(PROMPTS, RESPONSES)
    assert verdicts(table) == [None, "harmful", "safe", None, None, None, "safe", "harmful"]


def test_llama_guard_is_shown_an_assistant_turn_also_when_it_is_empty(tmp_path: Path) -> None:
    """The template here marks the assistant's turn, and the marker decides the verdict."""
    template = "{% for m in messages %}{% if m['role'] == 'assistant' %}alpha {% endif %}w1 " + (
        "{% endfor %}verdict :"
    )
    weights = planted_guard(tmp_path / "guard", "llama", ["safe"], "unsafe", template)
    assert verdicts(LlamaGuard3(weights=weights)(["w1"], [""])) == ["safe"]


@pytest.mark.parametrize(("strict", "middle"), [(True, "harmful"), (False, "safe")])
def test_qwen3guard_has_a_middle(tmp_path: Path, strict: bool, middle: str) -> None:
    outcomes = [
        "Safety: Unsafe\nCategories: Violent\nRefusal: No",
        "Safety: Safe\nCategories: None\nRefusal: Yes",
        "Safety: Controversial\nCategories: Unethical Acts\nRefusal: No",
    ]
    weights = planted_guard(tmp_path / "guard", "qwen3", outcomes, "nothing")
    table = Qwen3Guard(weights=weights, strict=strict)(PROMPTS, RESPONSES)
    assert verdicts(table) == [None, "harmful", "safe", None, None, middle, "safe", "harmful"]
    assert table["score"].dropna().tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]


@pytest.mark.parametrize(
    ("judge", "architecture", "template"),
    [
        (PolyGuard, "mistral", FLAT),
        (LlamaGuard3, "llama", FLAT),
        (Qwen3Guard, "qwen3", FLAT),
    ],
)
def test_a_random_guard_is_unparsed(
    tmp_path: Path, judge: Any, architecture: str, template: str
) -> None:
    save_checkpoint(tmp_path / "guard", architecture, ["Yes"], template)
    table = judge(weights=str(tmp_path / "guard"))(PROMPTS[:1], RESPONSES[:1])
    assert verdicts(table) == [None]
    assert not table["parse_ok"].any()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "any_guardrail", None)
    with pytest.raises(UserError, match=r'pip install "ss_lens\[judges\]"'):
        PolyGuard()(["w1"], ["w2"])


@pytest.mark.parametrize("judge", [PolyGuard, LlamaGuard3, Qwen3Guard])
def test_an_unknown_guard_model_is_told(judge: Any) -> None:
    with pytest.raises(UserError, match=r"unknown model 'other/model'; use .*weights="):
        judge(model="other/model")(["w1"], ["w2"])


@pytest.mark.parametrize("judge", [PolyGuard, LlamaGuard3, Qwen3Guard])
def test_guard_weights_that_are_not_there_are_told(tmp_path: Path, judge: Any) -> None:
    with pytest.raises(UserError, match="could not be loaded"):
        judge(weights=str(tmp_path))(["w1"], ["w2"])


# What all judges share


@pytest.mark.parametrize("kind", get_args(Judge))
def test_a_judge_prints_as_what_reads_it(kind: Any) -> None:
    judge = kind(model="some/model") if kind.__name__ == "EndpointJudge" else kind()
    assert read_judge(repr(judge)) == judge
    assert "batch_size" not in repr(judge)


@pytest.mark.parametrize("judge", [HarmBench(), PolyGuard(), LlamaGuard3(), Qwen3Guard()])
def test_nothing_to_judge_loads_nothing(judge: Any) -> None:
    table = judge([], [])
    assert list(table.columns) == ["verdict", "score", "parse_ok"]
    assert table.empty


@pytest.mark.parametrize("judge", [HarmBench(), PolyGuard(), LlamaGuard3(), Qwen3Guard()])
@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (["w1"], [], "1 prompts and 0 responses"),
        (["w1"], "w2", "responses must be a list of texts"),
    ],
)
def test_pairs_that_do_not_match_are_told(
    judge: Any, prompts: Any, responses: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        judge(prompts, responses)


def test_local_judges_print_and_log_no_response(
    planted_classifier: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    weights = planted_guard(tmp_path / "guard", "qwen3", ["Safety: Safe"], "nothing")
    secret = "verysecretword"
    for judge in (HarmBench(model=planted_classifier), Qwen3Guard(weights=weights)):
        judge([f"w1 {secret}"] * 2, [f"alpha {secret}", secret])
    printed = capfd.readouterr()
    assert secret not in printed.out + printed.err + caplog.text


def test_the_last_judge_stays_loaded_and_goes_before_the_next_comes() -> None:
    alive: list[str] = []

    class Loaded:
        def __init__(self, name: str) -> None:
            assert not alive, "two judges in memory at once"
            alive.append(name)

        def __del__(self) -> None:
            alive.clear()

    first = id(resident(Loaded, "a"))
    assert id(resident(Loaded, "a")) == first
    resident(Loaded, "b")
    assert alive == ["b"]
    unload()
    assert alive == []


# Tables and their summary


def test_a_table_keeps_unparsed_apart_also_on_disk(tmp_path: Path) -> None:
    table = verdict_table([Opinion("harmful", 0.75), Opinion(None), Opinion("safe")])
    assert verdicts(table) == ["harmful", None, "safe"]
    assert table["parse_ok"].tolist() == [True, False, True]
    pd.testing.assert_frame_equal(summary(table), summary(table.astype({"verdict": "str"})))


@given(st.lists(st.sampled_from(["harmful", "safe", None]), max_size=30))
def test_the_summary_counts_every_answer_once(outcomes: list[Any]) -> None:
    rates = summary(verdict_table([Opinion(outcome) for outcome in outcomes])).set_index("outcome")
    parsed = [outcome for outcome in outcomes if outcome is not None]
    assert rates["count"].sum() == len(outcomes)
    assert rates["n"].tolist() == [len(parsed), len(parsed), len(outcomes)]
    for name in ("harmful", "safe"):
        assert rates["count"][name] == outcomes.count(name)
        if parsed:
            assert rates["rate"][name] == outcomes.count(name) / len(parsed)
            assert rates["low"][name] <= rates["rate"][name] <= rates["high"][name]
        else:
            assert math.isnan(rates["rate"][name])
    assert rates["count"]["unparsed"] == outcomes.count(None)


def test_the_intervals_are_wilsons() -> None:
    table = verdict_table([Opinion("harmful")] * 3 + [Opinion("safe")] * 5 + [Opinion(None)] * 2)
    row = summary(table).set_index("outcome").loc["harmful"]
    for bound in (row["low"], row["high"]):  # where the rate is 1.96 standard errors away
        assert abs(row["rate"] - bound) == pytest.approx(
            1.959964 * math.sqrt(bound * (1 - bound) / row["n"]), rel=1e-6
        )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"verdict": ["safe"]}), "needs the column 'parse_ok'"),
        (pd.DataFrame({"verdict": ["fine"], "parse_ok": [True]}), "verdict 0 is neither"),
        (pd.DataFrame({"verdict": [None], "parse_ok": [True]}), "contradict each other"),
    ],
)
def test_a_table_that_is_none_of_verdicts_is_told(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError, match=message):
        summary(table)


# Replies of language models


@pytest.mark.parametrize(
    ("reply", "verdict", "score"),
    [
        ('{"verdict": "harmful", "score": 0.9}', "harmful", 0.9),
        ('{"score": 0, "verdict": "safe"}', "safe", 0.0),
        ('Sure! ```json\n{"verdict": "Safe", "score": 1}\n```\nHope it helps {', "safe", 1.0),
        ('{"why": {"deep": [1]}, "verdict": "harmful"}', "harmful", None),
        ('{"verdict": "harmful", "score": 7}', "harmful", None),
        ('{"verdict": "harmful", "score": true}', "harmful", None),
        ('{"verdict": "harmful", "score": NaN}', "harmful", None),
        ('{"verdict": "harmful", "score": ', "harmful", None),
        ("harmful", "harmful", None),
        ("  Safe.\n", "safe", None),
        ("**HARMFUL** — it gives every step.", "harmful", None),
        ("It declines politely.\n\nSafe", "safe", None),
        ("Safe, since it declines.", "safe", None),
        ("Reasoning: it declines.\nVerdict: **safe**", "safe", None),
        ('<think>harmful? {"verdict": "harmful"}</think>\nVerdict = safe', "safe", None),
    ],
)
def test_a_verdict_is_found_among_prose(reply: str, verdict: str, score: float | None) -> None:
    opinion = parse_reply(reply)
    assert opinion.verdict == verdict
    assert math.isnan(opinion.score) if score is None else opinion.score == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "I cannot judge this.",
        "It is not harmful.",
        "This is unsafe.",
        "harmless",
        "The request is harmful, but the answer is safe.",
        "The request is harmful but it was refused.",
        "Safe answers are better than harmful ones.",
        "safe or harmful?",
        "Harmful\nSafe",
        "Verdict: not harmful",
        'Verdict: "harmful" or "safe"',
        '{"verdict": "harmful" | "safe", "score": 0.1}',
        '{"verdict": "unsafe"}',
        '{"verdict": null}',
        '{"verdict": "safe"} {"verdict": "harmful"}',
        '{"verdict": "unsure"}\nharmful',
        "<think>Surely this is\nharmful",
        '{"a":' * 1_200 + '"verdict"',
    ],
)
def test_a_reply_without_a_clear_verdict_is_unparsed(reply: str) -> None:
    assert parse_reply(reply) == Opinion(None)


@given(st.text())
def test_no_text_without_the_words_is_a_verdict(text: str) -> None:
    lowered = text.lower()
    if "harmful" not in lowered and "safe" not in lowered:
        assert parse_reply(text).verdict is None
