"""A steered model in Inspect says what ss_lens.generate says, in evaluations and in calls."""

from __future__ import annotations

import asyncio
import gc
import importlib
import runpy
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai", reason="inspect-ai, which needs Python 3.11, is not here")
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    Model,
    get_model,
)
from inspect_ai.scorer import match
from inspect_ai.tool import ToolInfo
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Add, Calibration, ContrastiveDataset, RotateBy, RotateTo, Store, UserError
from ss_lens.geometry.operators import RotateScale
from ss_lens.integrations.inspect import model as inspect_model
from ss_lens.integrations.inspect.model import conversation_tokens
from ss_lens.integrations.inspect.provider import read_operator, steered_model
from tests.conftest import ARCHITECTURES

# Both are inspect-ai's own: a deprecated argument of tenacity, and streams that it leaves open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is dep:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]

PROMPTS = ["w9 w70 w33", "w12", "w50 w51 w52 w53 w54 w55", "w100 w8", "w77 w78 w79"]
NEW = 6
FEW = GenerateConfig(max_tokens=NEW)


@pytest.fixture(scope="session")
def saved(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    acts = ss_lens.capture(tiny_models["llama"], tiny_data, store=Store(folder / "store"))
    ss_lens.calibrate(acts, rule="uniform").save(folder / "calibration")
    return folder / "calibration"


@pytest.fixture
def calibration(saved: Path) -> Calibration:
    return Calibration.load(saved)


@pytest.fixture
def opened(tiny_folders: dict[str, Path], saved: Path) -> Model:
    """The tiny Llama at 120°, by the arguments that the command line passes."""
    return get_model(
        f"ss_lens/{tiny_folders['llama']}",
        calibration=str(saved),
        angle_deg=120,
        operator="RotateBy",
    )


def answers(model: Model, messages: list[list[ChatMessage]], config: GenerateConfig) -> list[str]:
    async def ask() -> list[str]:
        outputs = await asyncio.gather(*(model.generate(m, config=config) for m in messages))
        return [output.completion for output in outputs]

    return asyncio.run(ask())


def users(prompts: list[str]) -> list[list[ChatMessage]]:
    return [[ChatMessageUser(content=prompt)] for prompt in prompts]


def run(model: Model | str, targets: list[str], tmp_path: Path, **given: object) -> EvalLog:
    samples = [Sample(input=p, target=t) for p, t in zip(PROMPTS, targets, strict=True)]
    task = Task(dataset=MemoryDataset(samples), scorer=match(location="exact"), name="tiny")
    (log,) = eval(
        task, model=model, max_tokens=NEW, display="none", log_dir=str(tmp_path / "logs"), **given
    )
    gc.collect()  # the open streams, here and not in somebody else's test
    assert log.status == "success", log.error
    return log


def said(log: EvalLog) -> list[str]:
    samples = sorted(log.samples or [], key=lambda sample: int(sample.id))
    return [sample.output.completion for sample in samples]


def test_an_evaluation_of_a_steered_model_scores_what_generate_says(
    tiny_llama: TransformerBridge,
    tiny_folders: dict[str, Path],
    calibration: Calibration,
    saved: Path,
    tmp_path: Path,
) -> None:
    with ss_lens.steer(tiny_llama, calibration, RotateBy(120)):
        steered = ss_lens.generate(tiny_llama, PROMPTS, max_new_tokens=NEW)
    unsteered = ss_lens.generate(tiny_llama, PROMPTS, max_new_tokens=NEW)
    assert all(a != b for a, b in zip(steered, unsteered, strict=True))
    name = f"ss_lens/{tiny_folders['llama']}"
    arguments = {"calibration": str(saved), "angle_deg": 120}
    log = run(name, steered, tmp_path, model_args=arguments)
    assert said(log) == steered
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == 1
    assert log.eval.model == name
    assert log.eval.model_args == arguments
    plain = run(name, steered, tmp_path)
    assert said(plain) == unsteered
    assert plain.results is not None
    assert plain.results.scores[0].metrics["accuracy"].value == 0


def test_a_loaded_model_runs_as_it_is_and_the_log_tells_the_operator(
    tiny_llama: TransformerBridge, calibration: Calibration, tmp_path: Path
) -> None:
    with ss_lens.steer(tiny_llama, calibration, RotateTo(70)):
        expected = ss_lens.generate(tiny_llama, PROMPTS, max_new_tokens=NEW)
    model = steered_model(tiny_llama, calibration, RotateTo(70))
    log = run(model, expected, tmp_path)
    assert said(log) == expected
    assert log.eval.model_args == {
        "operator": "RotateTo(angle_deg=70.0)",
        "activations": calibration.spec.key,
    }
    assert said(run(steered_model(tiny_llama), expected, tmp_path)) == ss_lens.generate(
        tiny_llama, PROMPTS, max_new_tokens=NEW
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_simultaneous_calls_share_batches_and_say_what_single_ones_do(
    architecture: str, tiny_models: dict[str, TransformerBridge]
) -> None:
    model = tiny_models[architecture]
    rows: list[int] = []

    def count(module: object, args: tuple, kwargs: dict) -> None:
        rows.append((args[0] if args else kwargs["input_ids"]).shape[0])

    handle = model.original_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        texts = answers(steered_model(model), users(PROMPTS * 2), FEW)
    finally:
        handle.remove()
    assert max(rows) > 1
    assert texts == ss_lens.generate(model, PROMPTS * 2, max_new_tokens=NEW)


def test_models_of_one_bridge_at_two_angles_do_not_steer_each_other(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    models = [
        steered_model(tiny_llama, calibration, RotateBy(angle), FEW) for angle in (60, 120, 180)
    ]

    async def ask() -> list[str]:
        asked = (model.generate(prompt) for prompt in PROMPTS for model in models)
        return [output.completion for output in await asyncio.gather(*asked)]

    got = asyncio.run(ask())
    for place, angle in enumerate((60, 120, 180)):
        with ss_lens.steer(tiny_llama, calibration, RotateBy(angle)):
            expected = ss_lens.generate(tiny_llama, PROMPTS, max_new_tokens=NEW)
        assert got[place::3] == expected


def test_a_sample_depends_on_its_seed_and_prompt_alone(tiny_llama: TransformerBridge) -> None:
    model = steered_model(tiny_llama)
    config = GenerateConfig(max_tokens=NEW, temperature=1.5, seed=7)
    expected = [
        ss_lens.generate(tiny_llama, [p], max_new_tokens=NEW, temperature=1.5, seed=7)[0]
        for p in PROMPTS
    ]
    assert answers(model, users(PROMPTS), config) == expected
    assert answers(model, users(PROMPTS[::-1]), config) == expected[::-1]
    assert expected != ss_lens.generate(tiny_llama, PROMPTS, max_new_tokens=NEW)


def test_without_a_seed_samples_differ_and_tell_theirs(tiny_llama: TransformerBridge) -> None:
    model = steered_model(tiny_llama)
    config = GenerateConfig(max_tokens=20, temperature=2.0)

    async def twice() -> list:
        return [await model.generate("w9 w70", config=config) for _ in range(2)]

    outputs = asyncio.run(twice())
    assert outputs[0].completion != outputs[1].completion
    for output in outputs:
        again = ss_lens.generate(
            tiny_llama, ["w9 w70"], max_new_tokens=20, temperature=2.0, seed=output.metadata["seed"]
        )
        assert [output.completion] == again


def test_usage_and_the_reason_to_stop_are_told(tiny_llama: TransformerBridge) -> None:
    model = steered_model(tiny_llama)

    def ask(**given: object) -> object:
        return asyncio.run(model.generate("w9 w70 w33", config=GenerateConfig(**given)))

    output = ask(max_tokens=NEW)
    assert output.stop_reason == "max_tokens"
    words = output.completion.split()
    assert len(words) == NEW
    tokens = conversation_tokens(tiny_llama, users(["w9 w70 w33"])[0])
    usage = output.usage
    assert (usage.input_tokens, usage.output_tokens) == (len(tokens), NEW)
    assert usage.total_tokens == len(tokens) + NEW
    cut = ask(max_tokens=NEW, stop_seqs=[words[3], "never"])
    assert cut.stop_reason == "stop"
    assert cut.completion == output.completion[: output.completion.index(words[3])]
    longest = ask()
    assert longest.usage.total_tokens <= tiny_llama.cfg.n_ctx
    assert longest.completion.startswith(output.completion)


def test_a_conversation_goes_through_the_chat_template(tiny_llama: TransformerBridge) -> None:
    turns: list[ChatMessage] = [
        ChatMessageSystem(content="w20 w21"),
        ChatMessageUser(content="w9"),
        ChatMessageAssistant(content="w30"),
        ChatMessageUser(content="w10 w11"),
    ]
    tokens = conversation_tokens(tiny_llama, turns)
    expected = (
        "<s> system be helpful </s> system w20 w21 </s> user w9 </s> assistant w30 </s> "
        "user w10 w11 </s> assistant"
    )
    ids = tiny_llama.tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert list(tokens) == ids
    (text,) = answers(steered_model(tiny_llama), [turns], FEW)
    assert len(text.split()) <= NEW


def test_a_conversation_that_the_template_rejects_is_an_error(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[ChatMessage] = [
        ChatMessageSystem(content="w20"),
        ChatMessageUser(content="w9"),
    ]
    strict = "{{ raise_exception('no system turn here') }}"
    monkeypatch.setattr(tiny_llama.tokenizer, "chat_template", strict)
    with pytest.raises(UserError, match="rejects the turns system, user: no system turn here"):
        conversation_tokens(tiny_llama, turns)
    monkeypatch.setattr(tiny_llama.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="no chat template, so it takes one user's turn"):
        conversation_tokens(tiny_llama, turns)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (
            ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")]),
            "holds image",
        ),
        (ChatMessageTool(content="w9"), "holds tool results"),
    ],
)
def test_what_is_not_text_is_an_error(
    message: ChatMessage, what: str, tiny_llama: TransformerBridge
) -> None:
    with pytest.raises(UserError, match=what):
        conversation_tokens(tiny_llama, [message])


def test_settings_and_tools_that_nothing_obeys_are_errors(tiny_llama: TransformerBridge) -> None:
    model = steered_model(tiny_llama)

    def ask(prompt: str = "w9", tools: tuple = (), **given: object) -> None:
        asyncio.run(model.generate(prompt, tools=list(tools), config=GenerateConfig(**given)))

    with pytest.raises(UserError, match="not top_p, num_choices; leave those out"):
        ask(top_p=0.9, num_choices=2)
    with pytest.raises(UserError, match="call no tools; got look_up"):
        ask(tools=(ToolInfo(name="look_up", description="looks things up"),))
    with pytest.raises(UserError, match="temperature must be 0 or a positive number; got -1"):
        ask(temperature=-1)
    with pytest.raises(UserError, match=r"the context of .* is 64"):
        ask(max_tokens=64)
    with pytest.raises(UserError, match=r"the context of .* is 64"):
        ask(prompt="w9 " * 70)


def test_a_failed_call_leaves_the_others_running(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch breaks; whoever waited for it is answered by the next one."""
    continued, calls = inspect_model.continue_tokens, []

    def fails_once(*given: object, **options: object) -> list:
        calls.append(given)
        if len(calls) == 1:
            raise MemoryError("once")
        return continued(*given, **options)

    monkeypatch.setattr(inspect_model, "continue_tokens", fails_once)
    model = steered_model(tiny_llama, config=FEW)

    async def ask() -> list:
        return await asyncio.gather(*map(model.generate, PROMPTS), return_exceptions=True)

    outputs = asyncio.run(ask())
    failed = [output for output in outputs if isinstance(output, MemoryError)]
    assert len(failed) == 1
    expected = ss_lens.generate(tiny_llama, PROMPTS, max_new_tokens=NEW)
    for output, text in zip(outputs, expected, strict=True):
        assert output is failed[0] or output.completion == text


def test_a_model_is_loaded_once_for_all_its_angles(
    opened: Model, tiny_folders: dict[str, Path], saved: Path
) -> None:
    other = get_model(f"ss_lens/{tiny_folders['llama']}", calibration=str(saved), angle_deg=60)
    assert other is not opened
    assert other.api._model is opened.api._model
    assert other.api._lock is opened.api._lock
    assert opened.api._operator == RotateBy(120)


@pytest.mark.parametrize(
    ("operator", "angle_deg", "expected"),
    [
        (None, None, None),
        (None, 120, RotateBy(120)),
        ("RotateTo", 30.5, RotateTo(30.5)),
        ("RotateTo(angle_deg=30)", None, RotateTo(30)),
        ("Add(alpha=3)", None, Add(3)),
        (["RotateScale(angle_deg=10", " scale=2)"], None, RotateScale(10, 2)),
        (RotateBy(5), None, RotateBy(5)),
    ],
)
def test_operators_are_read_from_model_arguments(
    operator: object, angle_deg: object, expected: object
) -> None:
    assert read_operator(operator, angle_deg) == expected


@pytest.mark.parametrize(
    ("operator", "angle_deg", "message"),
    [
        ("RotateBy(angle_deg=3)", 5, "angle_deg=5 is given beside RotateBy"),
        (RotateBy(3), 5, "angle_deg=5 is given beside RotateBy"),
        ("Add", 5, "unknown operator with an angle 'Add'"),
        ("RotateBy", None, "operator 'RotateBy' does not fit"),
        ("RotateBy(angle_deg=(1, 2))", None, "a strength per batch row"),
    ],
)
def test_operators_that_cannot_be_read_are_errors(
    operator: object, angle_deg: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_operator(operator, angle_deg)


def test_arguments_that_do_not_go_together_are_errors(
    tiny_models: dict[str, TransformerBridge], calibration: Calibration
) -> None:
    llama, gemma = tiny_models["llama"], tiny_models["gemma2"]
    with pytest.raises(UserError, match="a calibration is given without an operator"):
        steered_model(llama, calibration)
    with pytest.raises(UserError, match="an operator or an angle_deg is given without a calib"):
        steered_model(llama, operator=RotateBy(3))
    with pytest.raises(UserError, match="Calibrate again on this model"):
        steered_model(gemma, calibration, RotateBy(3))
    with pytest.raises(UserError, match="take no base_url"):
        get_model("ss_lens/smollm2-135m", base_url="http://localhost", memoize=False)
    with pytest.raises(UserError, match="unknown model 'smolm2-135m'; did you mean"):
        get_model("ss_lens/smolm2-135m", memoize=False)


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ss_lens.integrations.inspect.provider")
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(UserError, match=r'pip install "ss_lens\[inspect\]"'):
        importlib.import_module("ss_lens.integrations.inspect.provider")


def test_inspect_finds_the_provider_by_its_entry_point_without_loading_torch() -> None:
    (entry,) = entry_points(group="inspect_ai", name="ss_lens")
    assert entry.value == "ss_lens.integrations.inspect.entry"
    code = "import sys, ss_lens.integrations.inspect.entry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_of_inspect_runs_a_steered_model(
    tiny_llama: TransformerBridge,
    tiny_folders: dict[str, Path],
    calibration: Calibration,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ss_lens.steer(tiny_llama, calibration, RotateBy(120)):
        (expected,) = ss_lens.generate(tiny_llama, PROMPTS[:1], max_new_tokens=NEW)
    (tmp_path / "quiz.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "from inspect_ai.scorer import match\n\n"
        "@task\ndef quiz():\n"
        f"    sample = Sample(input={PROMPTS[0]!r}, target={expected!r})\n"
        "    return Task(dataset=[sample], scorer=match(location='exact'))\n"
    )
    command = [
        *("inspect", "eval", "quiz.py", "--display", "none", "--log-dir", "logs"),
        *("--model", f"ss_lens/{tiny_folders['llama']}", "--max-tokens", str(NEW)),
        *("-M", "angle_deg=120", "-M", f"calibration={saved}", "-M", "operator=RotateBy"),
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("inspect_ai", run_name="__main__")
    gc.collect()
    assert not end.value.code
    (log,) = (tmp_path / "logs").glob("*.eval")
    results = read_eval_log(log).results
    assert results is not None
    assert results.scores[0].metrics["accuracy"].value == 1
