"""Any causal language model as judge, by the probabilities of two verdict words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ss_lens.core.checks import check_at_least, check_is
from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_json
from ss_lens.judges.local import check_dtype, resident
from ss_lens.judges.rubric import OF_WORDS, fill, read_rubric
from ss_lens.judges.verdicts import check_pairs, verdict_table


@dataclass(frozen=True)
class RubricJudge:
    """A causal language model that is asked a question about each answer, and runs here.

    The rubric with prompt and answer in it is the user's turn. The verdict is the likelier of two
    words as the beginning of the model's reply: one forward pass per answer, no sampling, nothing
    to parse. The model is a copy of the judge's own, so that it stays unsteered whatever is steered
    meanwhile, the model of the same name included.

    Attributes:
        model: as :func:`ss_lens.load_model` takes it.
        rubric: ``refused``; a text with ``{prompt}`` and ``{answer}`` in it that asks for one of
            the two words; or the path of such a text.
        positive: the word that says so: of the rubric ``refused``, that the answer declines.
        negative: the word that says otherwise.
        revision: a Hub commit, branch or tag.
        dtype: as in :func:`ss_lens.load_model`.
        device: as there.
        batch_size: answers per forward pass; changes the speed, not the verdicts.

    Raises:
        UserError: a word that is blank, or the same one twice.
    """

    model: str
    rubric: str = "refused"
    positive: str = "yes"
    negative: str = "no"
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int = field(default=8, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_is("model", self.model, (str,), "a name such as 'qwen2.5-coder-1.5b'")
        check_is("rubric", self.rubric, (str,), "a name, a text or a path, such as 'refused'")
        for name in ("positive", "negative"):
            word = getattr(self, name)
            check_is(name, word, (str,), "a word such as 'yes'")
            if not word.strip():
                raise UserError(f"{name} is blank; expected a word such as 'yes'. Write one.")
        if self.positive.strip().lower() == self.negative.strip().lower():
            raise UserError(
                f"both verdicts of the judge are {self.positive!r}; expected two different words. "
                "Write for instance positive='yes', negative='no'."
            )
        check_dtype(self.dtype)
        check_at_least("batch_size", self.batch_size)

    def identity(self) -> dict[str, Any]:
        """What a verdict depends on besides prompt and response, as JSON values.

        Raises:
            UserError: the rubric cannot be read.
        """
        return {
            "model": self.model,
            "revision": self.revision,
            "rubric_sha256": sha256_of_json(read_rubric(self.rubric, OF_WORDS)),
            "positive": self.positive,
            "negative": self.negative,
            "dtype": self.dtype,
            "device": self.device,
        }

    def check_ready(self) -> None:
        """Raise where the rubric cannot be read or the tokenizer does not tell the words apart.

        The model's weights are not loaded.
        """
        read_rubric(self.rubric, OF_WORDS)
        from ss_lens.judges.words import verdict_tokens
        from ss_lens.models.load import load_tokenizer

        tokenizer = load_tokenizer(self.model, revision=self.revision)
        verdict_tokens.of_words(tokenizer, self.model, self.positive, self.negative)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> pd.DataFrame:
        """Judge each response to its prompt.

        Returns:
            The columns of :func:`ss_lens.judges.verdict_table`: ``verdict`` is one of the two
            words, and ``score`` the probability of ``positive`` given that the reply begins with
            one of them. Besides, ``mass`` is the probability that it does. Where that is small,
            the model was about to say something else, and the verdict says little.

        Raises:
            UserError: the rubric lacks a place, the model is unavailable or does not tell the words
                apart by their first tokens, or an answer exceeds its context (none is cut).
        """
        rubric = read_rubric(self.rubric, OF_WORDS)
        check_pairs(prompts, responses)
        if not prompts:
            return verdict_table([]).assign(mass=pd.Series(dtype=float))
        from ss_lens.judges.words import verdict_tokens

        model = resident(verdict_tokens.load, self.model, self.revision, self.dtype, self.device)
        name = str(model.cfg.model_name)
        words = verdict_tokens.of_words(model.tokenizer, name, self.positive, self.negative)
        questions = [
            fill(rubric, prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        opinions, mass = verdict_tokens.judge(model, questions, words, self.batch_size)
        return verdict_table(opinions).assign(mass=mass)
