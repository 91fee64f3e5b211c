"""Prompts with the unsteered model's own answers: what the force of steering is measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.budget.families import Family
from ss_lens import ContrastiveDataset, UserError
from ss_lens.activations.capture import check_unhooked
from ss_lens.geometry.operators import AngularOperator, Operator
from ss_lens.scoring.continuations import answers
from ss_lens.scoring.divergence import kl_divergence, sweep_kl_divergence
from ss_lens.scoring.refusal_score import refusal_score


@dataclass(frozen=True, eq=False)
class Answered:
    """Prompts of both classes, each with an answer of ``model`` when it is not steered."""

    model: TransformerBridge
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    responses: tuple[str, ...]

    @classmethod
    def by(
        cls, model: TransformerBridge, data: ContrastiveDataset, max_new_tokens: int
    ) -> Answered:
        """Greedy answers, cut off at ``max_new_tokens``.

        Raises:
            UserError: the model carries hooks, or what :func:`ss_lens.generate` raises.
        """
        check_unhooked(model, "there would be no unsteered model to measure the divergence from")
        classes = ("positive",) * len(data.positive) + ("negative",) * len(data.negative)
        prompts = (*data.positive, *data.negative)
        responses = ss_lens.generate(model, prompts, max_new_tokens=max_new_tokens)
        return cls(model, classes, prompts, tuple(responses))

    def without_empty(self) -> Answered:
        """Those whose answer has a token to compare predictions at.

        Raises:
            UserError: there is none.
        """
        given = answers(self.model, self.prompts, self.responses)
        kept = [row for row, continuation in enumerate(given) if continuation.scored]
        if not kept:
            raise UserError(
                f"the unsteered model gives an empty answer to all {len(given)} prompts, so there "
                "is no text to measure the divergence on; use other prompts."
            )
        columns = (self.classes, self.prompts, self.responses)
        return Answered(self.model, *(tuple(column[row] for row in kept) for column in columns))

    def mean_kl(self, family: Family, strengths: Sequence[float]) -> list[float]:
        """Mean over the prompts of :func:`kl_divergence`'s ``kl_mean``, at each strength.

        In nats per token; NaN where any prompt has no divergence: an empty answer, or predictions
        that are no numbers.
        """
        texts = (self.model, family.calibration), (self.prompts, self.responses)
        asked = [family.at(strength) for strength in strengths]
        operators = [*dict.fromkeys(asked)]  # 0° and 360° are one
        first = operators[0]
        angles = [made.angle_deg for made in operators if isinstance(made, AngularOperator)]
        if isinstance(first, AngularOperator) and operators == [
            replace(first, angle_deg=angle) for angle in angles
        ]:  # one unsteered pass serves all
            table = sweep_kl_divergence(*texts[0], first, *texts[1], np.array(angles))
            values = table["kl_mean"].to_numpy().reshape(len(angles), -1)
        else:
            tables = [kl_divergence(*texts[0], operator, *texts[1]) for operator in operators]
            values = np.stack([table["kl_mean"].to_numpy() for table in tables])
        means = dict(zip(operators, values.mean(axis=1).tolist(), strict=True))
        return [means[operator] for operator in asked]

    def scores(self, family: Family, operator: Operator | None) -> pd.DataFrame:
        """Divergence and refusal score of each prompt; NaN without an operator.

        Returns:
            ``prompt_class``, ``prompt_index`` within it, ``kl`` in nats per token,
            ``refusal_score`` in nats and ``opening_mass``.
        """
        places = pd.DataFrame({"prompt_class": self.classes})
        places["prompt_index"] = places.groupby("prompt_class").cumcount()
        if operator is None:
            return places.assign(kl=math.nan, refusal_score=math.nan, opening_mass=math.nan)
        with ss_lens.steer(self.model, family.calibration, operator):
            scores = refusal_score(self.model, self.prompts)
        kl = kl_divergence(self.model, family.calibration, operator, self.prompts, self.responses)
        return pd.concat([places.assign(kl=kl["kl_mean"]), scores], axis=1)
