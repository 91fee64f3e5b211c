"""Tiny random models of five architectures, a private cache folder, and the default model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import huggingface_hub.constants
import jaxtyping
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import ss_lens
from ss_lens import Activations, CaptureSpec, ContrastiveDataset, Site, Store
from ss_lens.models.identity import ModelIdentity

torch.set_num_threads(1)
# A deadline per example fails on a busy machine, whatever the code does.
settings.register_profile("ss_lens", deadline=None, max_examples=50)
settings.register_profile("shapes", deadline=None, max_examples=10)  # the second run's
settings.load_profile("ss_lens")

SHARED = Path(__file__).resolve().parents[2] / "shared"
ARCHITECTURES = ("llama", "qwen2", "gemma2", "gemma3", "gpt2")
TEMPLATE = (
    "{{ bos_token }} system be helpful </s> {% for m in messages %}{{ m['role'] }} "
    "{{ m['content'] }} </s> {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
_SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**{**_SIZES, "vocab_size": 264, "max_position_embeddings": 256})
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES, head_dim=8, sliding_window=8)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_SIZES, head_dim=8, sliding_window=8)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=128,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
}


_SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "system", "user", "assistant", "helpful"]


def _tiny_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """Whole words; single bytes for Qwen2, whose loader insists on byte-level pre-tokenisation."""
    if architecture == "qwen2":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *letters])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        vocabulary = {
            word: i for i, word in enumerate([*_SPECIAL, *(f"w{i}" for i in range(8, 128))])
        }
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no worker is left with one at the end.

    What needs an aligned model of gigabytes runs only where ``-m aligned`` asks for it.
    """
    if "aligned" not in (config.option.markexpr or ""):
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("aligned")])
        items[:] = [item for item in items if not item.get_closest_marker("aligned")]

    def weight(tests: list[pytest.Item]) -> tuple[int, int, int]:
        marks = [mark.name for test in tests for mark in test.iter_markers()]
        return marks.count("slow"), marks.count("default_model"), len(tests)

    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    ordered = sorted(files.values(), key=weight, reverse=True)
    items[:] = [item for tests in ordered for item in tests]


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One local Hugging Face folder per architecture, with random weights and a chat template."""
    folders = {}
    for name, make in _MAKERS.items():
        folders[name] = tmp_path_factory.mktemp("models") / f"tiny-{name}"
        torch.manual_seed(0)
        model = make()
        # Wider than the default initialisation, so that activations differ visibly between prompts.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            else:
                torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
        model.save_pretrained(folders[name])
        _tiny_tokenizer(name).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def tiny_models(tiny_folders: dict[str, Path]) -> dict[str, TransformerBridge]:
    """The same models behind TransformerLens."""
    return {name: ss_lens.load_model(folder) for name, folder in tiny_folders.items()}


@pytest.fixture
def tiny_llama(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    return tiny_models["llama"]


@pytest.fixture(scope="session")
def tiny_data() -> ContrastiveDataset:
    """Prompts of different lengths in the tiny tokenizer's words, 12 per class."""
    generator = torch.Generator().manual_seed(1)

    def prompts(low: int, high: int) -> tuple[str, ...]:
        rows = []
        for i in range(12):
            ids = torch.randint(low, high, (2 + i % 5,), generator=generator).tolist()
            rows.append(" ".join(f"w{j}" for j in [low + i, *ids]))
        return tuple(rows)

    return ContrastiveDataset("tiny", prompts(8, 60), prompts(60, 120))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def default_model() -> TransformerBridge:
    """The real default model, kept in the user's cache between runs."""
    return ss_lens.load_model()


@pytest.fixture(autouse=True)
def private_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep every test's store out of the user's cache (the default model's folder stays shared)."""
    if "default_model" not in request.keywords:
        monkeypatch.setenv("SS_LENS_HOME", str(tmp_path / "home"))


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Switch jaxtyping's checks off, which would object to a wrong type before the code does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def made_activations(
    positive: torch.Tensor, negative: torch.Tensor, sites: tuple[Site, ...]
) -> Activations:
    """Activations with given values ``[prompt, site, d_model]``, of a model that does not exist."""
    identity = ModelIdentity(
        "made-up", None, "f" * 64, 1 + max(s.layer for s in sites), positive.shape[-1], "float32"
    )
    spec = CaptureSpec(
        model=identity,
        dataset_name="made-up",
        dataset_digest=sha256(positive.numpy().tobytes() + negative.numpy().tobytes()).hexdigest(),
        n_positive=len(positive),
        n_negative=len(negative),
        tokens_digest="t" * 64,
        sites=sites,
        position=-1,
        versions=(("torch", "0"),),
    )
    return Activations(positive, negative, spec)


def shared_file(relative: str) -> Path:
    """A file of the shared test data; the test is skipped where that is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"the shared test data {relative} are not here")
    return path


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # for subprocesses
huggingface_hub.constants.HF_HUB_OFFLINE = True  # read from the environment before this line
