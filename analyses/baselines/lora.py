"""A LoRA adapter trained on the calibration prompts to open answers as wanted.

What is trained is the score itself: the log-odds of openings at the first answer token of one class
of prompts, so no answer to a harmful request is needed or written. On the other class the
predictions along the model's own answers are held where they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.baselines.subject import Subject
from ss_lens import ContrastiveDataset, UserError
from ss_lens.activations.capture import check_unhooked
from ss_lens.core.progress import progress_bar
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from ss_lens.models.loading.devices import device_of
from ss_lens.scoring.continuations import Continuation, answers

Factors = tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]


@dataclass(frozen=True)
class Training:
    """How the adapter is trained; the organism's recipe with fewer steps.

    Attributes:
        targets: the linear maps that get factors, by the last part of their names.
        batch: prompts of each class per step.
        retain: weight of the divergence on the other class.
        kept_prompts: prompts of that class that it is held on.
        kept_tokens: of their answers.
    """

    rank: int = 8
    steps: int = 60
    lr: float = 1e-3
    batch: int = 4
    retain: float = 3.0
    kept_prompts: int = 32
    kept_tokens: int = 16
    seed: int = 0
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank updates of linear maps (arXiv 2106.09685), with a dial: W + strength · B A."""

    model: TransformerBridge
    factors: Mapping[str, Factors]

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """Run the model with the updates; 0 is the model itself."""
        modules = _linear_maps(self.model, ())
        hooks = []
        try:
            for name, (a, b) in self.factors.items():
                added = partial(_added, a=a, b=b, strength=strength)
                hooks.append(modules[name].register_forward_hook(added))
            yield
        finally:
            for hook in hooks:
                hook.remove()


def train(
    model: TransformerBridge,
    subject: Subject,
    data: ContrastiveDataset,
    how: Training,
) -> Adapter:
    """Train an adapter that moves the score of the prompts whose behaviour is to change.

    Args:
        model: without hooks; its weights stay as they are.
        subject: whose openings become less or more likely.
        data: whose prompts of one class are moved, and of the other held.
        how: rank, steps and so on.

    Raises:
        UserError: the model carries hooks, or has no linear maps of these names.
    """
    check_unhooked(model, "the adapter would be trained on top of them")
    openings = subject.tokens(model)
    generator = torch.Generator().manual_seed(how.seed)
    adapter = Adapter(model, _fresh(model, how, generator))
    wanted = [Continuation(ids, ()) for ids in tokenize(model, getattr(data, subject.label))]
    kept = getattr(data, subject.other)[: how.kept_prompts]
    own = ss_lens.generate(model, kept, max_new_tokens=how.kept_tokens)
    held = [given for given in answers(model, kept, own) if given.scored]
    trained = [factor for pair in adapter.factors.values() for factor in pair]
    optimizer = torch.optim.AdamW(trained, lr=how.lr, weight_decay=0.0)
    draws = [_order(len(texts), how, generator) for texts in (wanted, held)]
    with progress_bar(how.steps, "train", "step") as bar:
        for step in range(how.steps):
            for group in optimizer.param_groups:
                group["lr"] = how.lr * _pace(step, how.steps)
            optimizer.zero_grad()
            here = [wanted[row] for row in draws[0][step]]
            with adapter.at(1.0):
                logp = torch.cat(_logits(model, here)).float().log_softmax(dim=-1)
            shows, lacks = (logp[:, ids].logsumexp(dim=-1) for ids in openings)
            F.softplus(subject.sign * (shows - lacks)).mean().backward()
            if held:
                (how.retain * _drift(adapter, [held[row] for row in draws[1][step]])).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            bar.update()
    return Adapter(model, {n: (a.detach(), b.detach()) for n, (a, b) in adapter.factors.items()})


def _drift(adapter: Adapter, given: Sequence[Continuation]) -> Tensor:
    """KL(plain ‖ adapted) along answers, the mean over their tokens."""
    with torch.no_grad():
        plain = torch.cat(_logits(adapter.model, given)).float().log_softmax(dim=-1)
    with adapter.at(1.0):
        now = torch.cat(_logits(adapter.model, given)).float().log_softmax(dim=-1)
    return F.kl_div(now, plain, reduction="batchmean", log_target=True)


def _logits(model: TransformerBridge, given: Sequence[Continuation]) -> list[Tensor]:
    """Of each continuation the logits at its predictions, through which gradients flow."""
    (batch,) = forward.batches(
        [continuation.read for continuation in given],
        [range(len(given))],
        side="left",
        pad_id=forward.pad_id_of(model),
        device=device_of(model),
    )
    counts = [continuation.predictions for continuation in given]
    whole = forward.run_all(model, batch.ids, batch.mask, keep=max(counts))
    return [row[-count:] for row, count in zip(whole, counts, strict=True)]


def _fresh(
    model: TransformerBridge, how: Training, generator: torch.Generator
) -> dict[str, Factors]:
    """Random A and B = 0, so that training starts at the model itself."""
    maps = _linear_maps(model, how.targets)
    if not maps:
        raise UserError(
            f"{model.cfg.model_name} has no linear maps called {', '.join(how.targets)}, which the "
            "adapter would be of; name those of this architecture."
        )
    made: dict[str, Factors] = {}
    for name, module in maps.items():
        rank, weight = min(how.rank, module.in_features), module.weight
        a = torch.randn(rank, module.in_features, generator=generator).to(weight.device)
        a /= math.sqrt(module.in_features)
        b = torch.zeros(module.out_features, rank, device=weight.device)
        made[name] = (a.requires_grad_(), b.requires_grad_())
    return made


def _linear_maps(model: TransformerBridge, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear maps with one of these words in their names; all without any."""
    found: Any = model.original_model.named_modules()
    return {
        name: module
        for name, module in found
        if isinstance(module, nn.Linear) and (not targets or {*targets} & {*name.split(".")})
    }


def _added(
    module: nn.Module,
    given: tuple[Tensor, ...],
    out: Tensor,
    *,
    a: Tensor,
    b: Tensor,
    strength: float,
) -> Tensor:
    if strength == 0:
        return out
    return out + (strength * (given[0].float() @ a.T) @ b.T).to(out.dtype)


def _order(n: int, how: Training, generator: torch.Generator) -> list[list[int]]:
    """The rows of each step: epoch after epoch, each in an order of its own."""
    rows: list[int] = []
    size = min(how.batch, n)
    while n and len(rows) < how.steps * size:
        rows += torch.randperm(n, generator=generator).tolist()
    return [rows[step * size : (step + 1) * size] for step in range(how.steps)]


def _pace(step: int, steps: int) -> float:
    """A short linear warm-up, then a cosine down to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
