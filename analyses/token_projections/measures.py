"""Every token of a prompt and its answer in the coordinates of the plane, at chosen sites."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from analyses.reading import all_tokens
from analyses.token_projections.conditions import CONDITIONS, STEERED
from ss_lens import Calibration, ContrastiveDataset, Plane, Site, UserError, steer
from ss_lens.core.checks import check_at_least, check_is
from ss_lens.core.progress import progress_bar
from ss_lens.generation.loop import continue_tokens
from ss_lens.geometry.operators import Operator
from ss_lens.geometry.plane import in_plane
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, check_context, tokenize
from ss_lens.models.sites import sites_of

CLASSES = ("positive", "negative")
ANSWER_TOKENS = 8
"""About as many as the words of an answer to a harmful request that a run keeps."""


def measure(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    data: ContrastiveDataset,
    sites: Sequence[Site] | None = None,
    *,
    max_new_tokens: int = ANSWER_TOKENS,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """Coordinates of every token's activation in the plane, steered and unsteered.

    The unsteered model reads the prompt and its own greedy answer, the steered one the prompt and
    the answer that it gives steered. What is measured is what each goes on with: at a steered site,
    the activation after the edit. The table holds the answers' tokens.

    Args:
        model: the model that the calibration was made on.
        calibration: plane and sites.
        operator: with one strength for all rows.
        data: the prompts.
        sites: where to look, steered or not; ``None`` is :func:`usual_sites`.
        max_new_tokens: where an answer is cut off.
        chat: system prompt, date and further arguments of the template.

    Returns:
        One row per class, prompt, condition (``unsteered`` or ``steered``), site and token:
        ``prompt_class``, ``prompt_index``, ``condition``, ``site``, ``steered_site``, ``position``,
        ``token``, ``is_prompt``; the coordinates ``p1`` and ``p2`` in units of the activation, its
        ``norm``, both coordinates as parts of it, ``cos_1`` and ``cos_2``; ``in_plane_norm`` and
        ``angle_deg`` in [0, 360), missing where the in-plane part is zero.

    Raises:
        UserError: as :func:`ss_lens.steer`, a site that the model has not, a strength per row, or a
            prompt that does not fit into the context with its answer.
    """
    check_is(
        "operator", operator, (Operator,), "an operator such as ss_lens.RotateBy(angle_deg=90)"
    )
    check_at_least("max_new_tokens", max_new_tokens)
    if operator.rows is not None:
        raise UserError(
            f"tokens are read one prompt at a time, and {operator!r} has a strength for each of "
            f"{operator.rows} rows; give one strength."
        )
    chosen = usual_sites(calibration) if sites is None else tuple(sites)
    for site in chosen:
        check_is("sites", site, (Site,), "a list of sites such as [ss_lens.Site(12, 'ln1_out')]")
        sites_of(model, (site.stream,), (site.layer,))  # raises where there is none
    prompts = [(label, i, text) for label in CLASSES for i, text in enumerate(getattr(data, label))]
    texts = [text for _, _, text in prompts]
    tokens = tokenize(model, texts, chat)
    check_context(model, tokens, texts, max_new_tokens)
    tables = []
    steps = len(prompts) * len(CONDITIONS)
    with progress_bar(steps * max_new_tokens, "token projections", "token") as bar:
        for (label, index, _), ids in zip(prompts, tokens, strict=True):
            for condition in CONDITIONS:
                block = (
                    steer(model, calibration, operator) if condition == STEERED else nullcontext()
                )
                with block:
                    (answer,) = continue_tokens(
                        model,
                        [ids],
                        max_new_tokens=max_new_tokens,
                        batch_size=1,
                        temperature=0,
                        seed=0,
                        bar=bar,
                    )
                    whole = (*ids, *answer)
                    h = all_tokens(model, whole, len(ids), chosen)
                decoded = [model.tokenizer.decode([token]) for token in whole]
                for place, site in enumerate(chosen):
                    found = pd.DataFrame(
                        {
                            **{"prompt_class": label, "prompt_index": index},
                            **{"condition": condition, "site": str(site)},
                            "steered_site": site in calibration.selected_sites,
                            **{"position": range(len(whole)), "token": decoded},
                            "is_prompt": [i < len(ids) for i in range(len(whole))],
                        }
                    )
                    tables.append(found.join(coordinates(h[:, place], calibration.plane)))
    return pd.concat(tables, ignore_index=True)


def usual_sites(calibration: Calibration) -> tuple[Site, ...]:
    """The first and the last steered site, and the direction's between them."""
    steered, direction = calibration.selected_sites, calibration.direction_site
    return tuple(sorted({steered[0], steered[-1], direction or steered[len(steered) // 2]}))


def coordinates(h: Float[Tensor, "token d_model"], plane: Plane) -> pd.DataFrame:
    """In-plane coordinates of activations, in float64: absolute, as parts of the norm, as an angle.

    >>> plane = Plane(torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]))
    >>> found = coordinates(torch.tensor([[0.0, 3.0, 4.0]]), plane).iloc[0]
    >>> float(found["p2"]), float(found["cos_2"]), float(found["angle_deg"])
    (3.0, 0.6, 90.0)
    """
    p = in_plane(h.double(), plane)
    norm, radius = h.double().norm(dim=-1), torch.hypot(*p.unbind(-1))
    # An angle just below zero rounds to 360 at the first remainder.
    angle = torch.rad2deg(torch.atan2(p[:, 1], p[:, 0])).remainder(360).remainder(360)
    columns = {
        **{"p1": p[:, 0], "p2": p[:, 1], "norm": norm},
        **{"cos_1": p[:, 0] / norm, "cos_2": p[:, 1] / norm},
        "in_plane_norm": radius,
        "angle_deg": angle.where(radius > 0, torch.nan),
    }
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()})
