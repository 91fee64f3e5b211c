"""The logit lens: what each layer's stream would say if the model ended there, steered or not.

The stream after a block passes the model's own final norm and unembedding (nostalgebraist 2020,
"interpreting GPT: the logit lens"). Early layers are not made to be read so: where the openings
hold little of the probability, their ratio says little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_readout

from analyses.reading import last_tokens
from ss_lens import Calibration, ContrastiveDataset, Site, steer
from ss_lens.core.checks import check_at_least
from ss_lens.core.progress import progress_bar
from ss_lens.generation.angle_batch import checked_angles
from ss_lens.generation.loop import check_logits
from ss_lens.geometry.operators import AngularOperator, RotateBy
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, check_context, tokenize
from ss_lens.models.sites import n_layers_of
from ss_lens.scoring.refusal_score import opening_tokens
from ss_lens.stats.bootstrap import bca_mean_interval, derive_rng

CLASSES = ("positive", "negative")
ANGLES = (90.0, 180.0)
TOP = 5
BATCH_SIZE = 16
EMBEDDINGS = -1
"""The layer of what enters block 0."""


def measure(
    model: TransformerBridge,
    calibration: Calibration,
    data: ContrastiveDataset,
    angles_deg: Sequence[float | int] = ANGLES,
    *,
    operator: type[AngularOperator] = RotateBy,
    top: int = TOP,
    n_resamples: int = 2000,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """Refusal against compliance and the likeliest tokens, by layer, at the last prompt token.

    Args:
        model: the model that the calibration was made on.
        calibration: plane and sites.
        data: prompts that the calibration has not seen.
        angles_deg: at which the model is steered, besides unsteered.
        operator: the class.
        top: how many tokens to name.
        n_resamples: bootstrap draws over prompts.
        seed: of the bootstrap.
        batch_size: prompts per forward pass; changes the speed, not the result.
        chat: system prompt, date and further arguments of the template.

    Returns:
        One row per class, angle (missing for the unsteered model, which comes first) and layer (−1
        for what enters block 0, else what leaves that block; the last is the model's own
        prediction): ``prompt_class``, ``angle_deg``, ``layer``; ``steers``, how many steered sites
        lie in that block; the mean ``refusal_score`` in nats with its 95 % BCa interval (``low``,
        ``high``) and the mean ``opening_mass``, as :func:`ss_lens.scoring.refusal_score
        .refusal_score` defines them; ``top_1``, ``p_1``, … the tokens with the highest mean
        probability; ``n`` prompts.

    Raises:
        UserError: as :func:`ss_lens.steer`, a repeated angle, a prompt beyond the context, or a
            tokenizer that does not distinguish the openings.
    """
    check_at_least("top", top)
    check_at_least("batch_size", batch_size)
    calibration.check_fits(model)
    angles = (math.nan, *checked_angles(operator, angles_deg))
    openings = opening_tokens(model)
    prompts = {label: list(getattr(data, label)) for label in CLASSES}
    tokens = {label: tokenize(model, texts, chat) for label, texts in prompts.items()}
    for label in CLASSES:
        check_context(model, tokens[label], prompts[label])
    steered = [site.layer for site in calibration.selected_sites]
    sites = (Site(0, "resid_pre"), *(Site(i, "resid_post") for i in range(n_layers_of(model))))
    rows = []
    total = len(angles) * sum(map(len, tokens.values()))
    with progress_bar(total, "logit lens", "prompt") as bar:
        for label in CLASSES:
            for angle in angles:
                with _steered(model, calibration, operator, angle):
                    h = last_tokens(model, tokens[label], sites, batch_size, bar.update)
                for layer in range(EMBEDDINGS, len(sites) - 1):
                    logp = log_probabilities(model, h[:, layer + 1])
                    score, mass = opening_scores(logp, openings)
                    rng = derive_rng(seed, "logit_lens", label)
                    low, high = bca_mean_interval(score.numpy(), rng, n_resamples)
                    rows.append(
                        {
                            "prompt_class": label,
                            "angle_deg": angle,
                            "layer": layer,
                            "steers": steered.count(layer),
                            "refusal_score": float(score.mean()),
                            "low": float(low),
                            "high": float(high),
                            "opening_mass": float(mass.mean()),
                            **likeliest(model, logp, top),
                            "n": len(logp),
                        }
                    )
    return pd.DataFrame(rows)


@torch.inference_mode()
def log_probabilities(
    model: TransformerBridge, h: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    """What the final norm and the unembedding make of a stream, as log-probabilities.

    Raises:
        UserError: they are not finite.
    """
    found = logit_readout(model, h, return_type="log_probs").values.float().cpu()
    check_logits(model, found)
    return found


def opening_scores(
    logp: Float[Tensor, "row vocab"], openings: tuple[Sequence[int], Sequence[int]]
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
    """Log-odds of refusing against complying openings, and the probability of either, in float64.

    >>> from math import log
    >>> logp = torch.tensor([[log(0.5), log(0.1), log(0.4)]])
    >>> score, mass = opening_scores(logp, ([0], [1]))
    >>> round(score.item(), 4) == round(log(5), 4), round(mass.item(), 4)
    (True, 0.6)
    """
    refuse, comply = (logp.double()[:, list(ids)].logsumexp(dim=-1) for ids in openings)
    return refuse - comply, refuse.exp() + comply.exp()


def likeliest(
    model: TransformerBridge, logp: Float[Tensor, "row vocab"], top: int
) -> dict[str, str | float]:
    """The tokens with the highest mean probability over rows: ``top_1``, ``p_1`` and so on."""
    mean = logp.double().exp().mean(dim=0)
    found = mean.topk(min(top, len(mean)))
    named: dict[str, str | float] = {}
    for place, (index, p) in enumerate(
        zip(found.indices.tolist(), found.values.tolist(), strict=True), start=1
    ):
        named |= {f"top_{place}": model.tokenizer.decode([index]), f"p_{place}": p}
    return named


def _steered(
    model: TransformerBridge,
    calibration: Calibration,
    operator: type[AngularOperator],
    angle: float,
) -> AbstractContextManager[object]:
    if np.isnan(angle):
        return nullcontext()
    return steer(model, calibration, operator(angle_deg=angle))
