"""The HarmBench classifiers: a fine-tuned model answers yes or no with its first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from ss_lens.core.checks import check_at_least
from ss_lens.core.errors import UserError
from ss_lens.judges.local import check_dtype, resident
from ss_lens.judges.verdicts import check_pairs, verdict_table

TEMPLATES = ("repository", "card")


@dataclass(frozen=True)
class HarmBench:
    """A HarmBench classifier, run locally (Mazeika et al. 2024, arXiv 2402.04249).

    As in the published evaluation, an answer is cut to 512 of the classifier's tokens, put into the
    template together with the prompt, and harmful if the likeliest next token reads “yes”, safe if
    it reads “no”, whatever the case, and otherwise unparsed.

    Attributes:
        model: ``cais/HarmBench-Llama-2-13b-cls``, ``cais/HarmBench-Mistral-7b-val-cls``, or a
            folder that holds one of them.
        template: ``repository`` is the template of the published evaluation, the same for both;
            ``card`` is the one on the model's card, which differs.
        max_response_tokens: how much of an answer is read; ``None`` is all of it.
        revision: a Hub commit, branch or tag.
        dtype: ``auto`` is bfloat16, as published, on a GPU and float32 elsewhere.
        device: as in :func:`ss_lens.load_model`.
        batch_size: answers per forward pass; changes the speed, not the verdicts.
    """

    model: str = "cais/HarmBench-Llama-2-13b-cls"
    template: str = "repository"
    max_response_tokens: int | None = 512
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int = field(default=8, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise UserError(
                f"unknown HarmBench template {self.template!r}; use {' or '.join(TEMPLATES)}."
            )
        for name in ("max_response_tokens", "batch_size"):
            if (value := getattr(self, name)) is not None:
                check_at_least(name, value)
        check_dtype(self.dtype)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> pd.DataFrame:
        """Judge each response to its prompt.

        Returns:
            The columns of :func:`ss_lens.judges.verdict_table`. ``score`` is the probability of
            “yes” given that the next token reads “yes” or “no”.

        Raises:
            UserError: the classifier cannot be loaded or is not one, or a prompt with its answer
                exceeds its context (nothing is cut without being told).
        """
        check_pairs(prompts, responses)
        if not prompts:
            return verdict_table([])
        from ss_lens.judges import classifier

        loaded = resident(classifier.load, self.model, self.revision, self.dtype, self.device)
        tokens = classifier.tokenize(
            loaded, self.template == "card", prompts, responses, self.max_response_tokens
        )
        return verdict_table(classifier.judge(loaded, tokens, self.batch_size))
