"""The specification that identifies activations: everything that they depend on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_json
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.models.identity import ModelIdentity, last_part
from ss_lens.models.sites import Site

Position = int | Literal["mean", "prompt_mean"]
"""Which tokens of the templated prompt are read.

A negative index counts from the end: −1 is the last token, after the template's closing tokens.
``"mean"`` averages over all tokens, those of the template and the beginning-of-text token included.
``"prompt_mean"`` averages over the tokens of the prompt's own text only.
"""

_KINDS = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "bool": (bool,),
}
"""What JSON holds for a field of each annotation."""


@dataclass(frozen=True, repr=False)
class CaptureSpec:
    """Everything that the activations depend on; :attr:`key` names them in the store.

    ``tokens_digest`` is over the templated token ids, so it stands for template, system prompt and
    tokenizer. The names of model and dataset are for people and do not enter the key; nor does
    ``paired`` (equal index means partners), which says how activations may be read, ``chat``, whose
    effect the token ids hold, or ``prompt_digests``, for which ``dataset_digest`` stands.

    Attributes:
        prompt_digests: of each prompt, the positive ones first, so that prompts which two sets
            share can be found; empty where they are unknown, as in what was stored before.

    Raises:
        UserError: no site, a negative number of prompts, or digests for
            another number of prompts.
    """

    model: ModelIdentity
    dataset_name: str
    dataset_digest: str
    n_positive: int
    n_negative: int
    tokens_digest: str
    sites: tuple[Site, ...]
    position: Position
    versions: tuple[tuple[str, str], ...]
    paired: bool = False
    chat: ChatFormat = DEFAULT_FORMAT
    prompt_digests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.n_positive, self.n_negative) < 0 or not self.sites or self.model.d_model < 1:
            raise UserError(
                f"activations of {self.n_positive} + {self.n_negative} prompts at "
                f"{len(self.sites)} sites of width {self.model.d_model} cannot be."
            )
        if len(self.prompt_digests) not in (0, self.n_prompts):
            raise UserError(
                f"there are {len(self.prompt_digests)} digests for {self.n_prompts} prompts; give "
                "one for each, or none."
            )

    def __repr__(self) -> str:
        return f"CaptureSpec({self.summary})"

    @property
    def summary(self) -> str:
        """What identifies the activations, in one line."""
        return (
            f"{self.dataset_name!r} on {self.model.name!r}, {self.n_positive} + {self.n_negative} "
            f"prompts, {len(self.sites)} sites {range_of(self.sites)}, position {self.position}, "
            f"key={self.key[:12]}"
        )

    @property
    def n_prompts(self) -> int:
        return self.n_positive + self.n_negative

    @cached_property
    def key(self) -> str:
        """SHA-256 of all fields but the names, ``paired``, ``chat`` and ``prompt_digests``."""
        named = self.as_json()
        del named["dataset_name"], named["model"]["name"], named["model"]["revision"]
        del named["paired"], named["chat"], named["prompt_digests"]
        return sha256_of_json(named)

    def published(self) -> CaptureSpec:
        """The same with model and dataset named for others, without folders of this machine."""
        named = os.path.isabs(os.path.expanduser(self.dataset_name))
        dataset = last_part(self.dataset_name) if named else self.dataset_name
        return replace(self, model=self.model.published(), dataset_name=dataset)

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "sites": [str(site) for site in self.sites],
            "versions": dict(self.versions),
            "chat": self.chat.as_json(),
            "prompt_digests": [*self.prompt_digests],
        }

    @classmethod
    def from_json(cls, values: Any) -> CaptureSpec:
        """The specification that :meth:`as_json` wrote.

        Raises:
            UserError: it is not of that form.
        """
        named = _named(values, cls)
        versions = named["versions"]
        texts = [named["sites"], named.get("prompt_digests", [])]
        if not all(isinstance(part, list) for part in texts) or not isinstance(versions, dict):
            raise UserError("a specification must have lists of sites and digests, and versions.")
        if not all(isinstance(text, str) for part in (*texts, versions.values()) for text in part):
            raise UserError("the sites, digests and versions of a specification must be texts.")
        position = named["position"]
        if position not in ("mean", "prompt_mean") and type(position) is not int:
            raise UserError(f"position of a CaptureSpec is {position!r:.40}, which it cannot be.")
        model = ModelIdentity(**_named(named["model"], ModelIdentity))
        return cls(
            **{
                **named,
                "model": model,
                "sites": tuple(Site.parse(text) for text in named["sites"]),
                "versions": tuple(sorted(versions.items())),
                "chat": ChatFormat.from_json(named.get("chat", {})),
                "prompt_digests": tuple(texts[1]),
            }
        )

    def shared_prompts(self, other: CaptureSpec) -> list[int]:
        """The indices of the prompts that are among those of ``other``, in either class."""
        theirs = {*other.prompt_digests}
        return [i for i, digest in enumerate(self.prompt_digests) if digest in theirs]

    def label(self, prompt: int) -> str:
        """A prompt by its class and its index there: ``positive prompt 3``."""
        if prompt < self.n_positive:
            return f"positive prompt {prompt}"
        return f"negative prompt {prompt - self.n_positive}"


def prompt_digest(prompt: Any) -> str:
    """What identifies a prompt (a text, or turns) among others: 16 hexadecimal digits."""
    return sha256_of_json(prompt)[:16]


def range_of(sites: Sequence[Site]) -> str:
    """The first and the last of some sites."""
    return f"{sites[0]} … {sites[-1]}" if len(sites) > 1 else str(sites[0])


def _named(values: Any, kind: type) -> dict[str, Any]:
    """JSON values by the fields of a frozen dataclass, of the types that it says.

    Fields that have a default may be absent.
    """
    known = {one.name: one for one in fields(kind)}
    needed = {
        name
        for name, one in known.items()
        if one.default is MISSING and one.default_factory is MISSING
    }
    if not isinstance(values, dict) or not needed <= {*values} <= {*known}:
        raise UserError(
            f"a {kind.__name__} has the fields {', '.join(known)}; got "
            f"{', '.join(map(str, values)) if isinstance(values, dict) else repr(values)[:40]}."
        )
    for name, value in values.items():
        kinds = _KINDS.get(str(known[name].type), (object,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and int in kinds):
            raise UserError(f"{name} of a {kind.__name__} is {value!r:.40}, which it cannot be.")
    return dict(values)
