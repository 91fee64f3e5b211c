"""Which operator changes refusal most for the same force? Operators compared at equal divergence.

Equal angles are not equally strong interventions. The common measure is how far the predictions
move: the KL divergence from the unsteered model, which is the budget that each operator gets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from analyses.budget.answered import Answered
from analyses.budget.choosing import Goal, chosen, matched
from analyses.budget.families import Family
from analyses.budget.matching import TOLERANCE
from ss_lens import ContrastiveDataset, UserError
from ss_lens.geometry.operators import Operator
from ss_lens.scoring.refusal_score import opening_tokens, refusal_score
from ss_lens.stats.paired import compare, holm

BUDGET = 0.3
"""Within reach of rotations on the default model: about 100 degrees at the discriminative sites."""
ANSWER_TOKENS = 32


def measure(
    model: TransformerBridge,
    families: Mapping[str, Family],
    dev: ContrastiveDataset,
    test: ContrastiveDataset,
    budgets: Sequence[float | int] = (BUDGET,),
    *,
    goal: Goal = "weaken",
    tolerance: float = TOLERANCE,
    max_new_tokens: int = ANSWER_TOKENS,
    seed: int = 0,
) -> pd.DataFrame:
    """Refusal score of each family at the strength that spends the budget.

    The divergence is KL(unsteered ‖ steered) along the unsteered model's own greedy answers, in
    nats per token, averaged over the prompts of both classes
    (:func:`ss_lens.scoring.divergence.kl_divergence`). A family's strength is the first at which it
    equals the budget on ``dev`` (:meth:`analyses.budget.matching.Curve.first_match`). Around a
    circle every crossing of the budget is a candidate
    (:meth:`analyses.budget.matching.Curve.crossings`), and the one with the best mean score of
    ``dev``'s positive prompts is taken: the two senses of turning spend the same at different
    effect, and which of them is called positive is a convention. All that is reported beside
    ``dev_kl`` is measured on ``test`` at that strength, so the divergence there need not be the
    budget. Dev prompts with an empty answer do not count.

    Args:
        model: the model that the calibrations were made on, without hooks.
        families: by name; the first is the reference.
        dev: prompts that strengths are chosen on.
        test: prompts that are reported, none of them in ``dev``.
        budgets: in nats per token.
        goal: whether the best of several crossings has the lowest or the highest score.
        tolerance: relative, of the divergence on ``dev``.
        max_new_tokens: where the unsteered answers are cut off.
        seed: of bootstrap and permutations.

    Returns:
        One row per budget, family and class of prompts (``prompt_class``): ``strength`` and the
        ``operator``; around a circle ``sense``, ``+`` up to half a turn and ``−`` beyond, and
        ``candidates``, every crossing with its mean dev score; ``dev_kl``; ``kl`` over both classes
        with its 95 % bootstrap interval over prompts, ``kl_low`` and ``kl_high``, and ``class_kl``
        of this class; the mean
        ``refusal_score`` in nats with ``low``, ``high``, and the mean ``opening_mass``
        (:func:`ss_lens.scoring.refusal_score.refusal_score`), from ``n`` prompts; ``unsteered``,
        the mean score without steering; the paired ``difference`` from the reference at the same
        budget with ``difference_low``, ``difference_high``, the ``p_value`` of a sign-flip
        permutation test and ``p_holm``, corrected for the number of families
        (:func:`ss_lens.stats.paired.compare`).

        A family that does not reach the budget keeps its rows: ``problem`` says why, numbers are
        NaN. One without a strength is reported as it is, without a difference, and ``problem``
        says so.

    Raises:
        UserError: no family, a calibration of another model, no budget or one that is not positive
            and finite, dev and test prompts in common, no answer to any dev prompt, a model with
            hooks, or one whose tokenizer cannot tell refusals by their first token.
    """
    _check(model, families, dev, test, budgets)
    crossings = matched(Answered.by(model, dev, max_new_tokens), families, budgets, tolerance)
    choices = {
        (name, budget): chosen(model, families[name], found, dev, goal)
        for (name, budget), found in crossings.items()
    }
    reported = Answered.by(model, test, max_new_tokens)
    scored: dict[tuple[str, Operator | None], pd.DataFrame] = {}
    tables = []
    for budget in budgets:
        cells, rows = [], []
        for name, family in families.items():
            match, sense, candidates = choices[name, budget]
            reached = family.is_fixed or not match.problem
            operator = family.at(match.strength) if reached else None
            if (name, operator) not in scored:
                scored[name, operator] = reported.scores(family, operator)
            cells.append(scored[name, operator].assign(variant=name, draw=0))
            written = repr(operator) if operator else ""
            which = (match.strength, written, sense, candidates, match.kl, match.problem)
            rows.append((float(budget), name, *which))
        taken = pd.DataFrame(rows, columns=[*_COLUMNS[:7], "problem"])
        tables.append(taken.merge(_summary(pd.concat(cells), families, seed), on="family"))
    table = pd.concat(tables, ignore_index=True)
    for label in ("positive", "negative"):
        plain = refusal_score(model, getattr(test, label))["refusal_score"].mean()
        table.loc[table["prompt_class"] == label, "unsteered"] = plain
    return table.reindex(columns=[*_COLUMNS])


_COLUMNS = (
    *("budget", "family", "strength", "operator", "sense", "candidates", "dev_kl"),
    "prompt_class",
    *("kl", "kl_low", "kl_high", "class_kl"),
    *("refusal_score", "low", "high", "opening_mass", "n", "unsteered"),
    *("difference", "difference_low", "difference_high", "p_value", "p_holm", "problem"),
)


def _check(
    model: TransformerBridge,
    families: Mapping[str, Family],
    dev: ContrastiveDataset,
    test: ContrastiveDataset,
    budgets: Sequence[float | int],
) -> None:
    if not families:
        raise UserError(
            "there is no family of operators to compare; give at least one, by name, the reference "
            "first."
        )
    check_budgets(budgets)
    for name, family in families.items():
        try:
            family.calibration.check_fits(model)
        except UserError as error:
            raise UserError(f"family {name!r}: {error}") from error
    if both := {*dev.positive, *dev.negative} & {*test.positive, *test.negative}:
        raise UserError(
            f"the prompt {min(both)[:60]!r} is in dev and in test, so strengths would be chosen on "
            "what is reported; give disjoint parts, as dataset.split(...) does."
        )
    opening_tokens(model)  # without which there is no score, before an hour of matching


def check_budgets(budgets: Sequence[float | int]) -> None:
    if not budgets or not all(math.isfinite(budget) and budget > 0 for budget in budgets):
        raise UserError(
            f"budgets must be positive, finite numbers of nats per token; got {list(budgets)}. "
            f"Give one or more, for example {BUDGET}."
        )
    if len(set(budgets)) < len(budgets):
        raise UserError(f"a budget is given twice, in {list(budgets)}; keep one of them.")


def _summary(cells: pd.DataFrame, families: Mapping[str, Family], seed: int) -> pd.DataFrame:
    """Means, intervals and differences at one budget, a row per family and class."""
    reference = next(iter(families))
    places = ["variant", "prompt_class"]
    scores = compare(cells, ["refusal_score"], reference, seed=seed)
    # What has no strength is not at the budget, and must not count among those that are.
    fixed = scores["variant"].isin([name for name, family in families.items() if family.is_fixed])
    scores.loc[fixed, ["difference", "difference_low", "difference_high", "p_value"]] = math.nan
    scores["p_holm"] = scores.groupby("prompt_class")["p_value"].transform(holm)
    means = cells.groupby(places, as_index=False).agg(
        class_kl=("kl", "mean"), opening_mass=("opening_mass", "mean")
    )
    # Classes number their prompts from zero each, so the two together are numbered anew.
    together = cells.assign(prompt_class="both", prompt_index=cells.groupby("variant").cumcount())
    whole = compare(together, ["kl"], reference, seed=seed).filter(
        ["variant", "mean", "low", "high"]
    )
    return (
        scores.rename(columns={"mean": "refusal_score"})
        .merge(means, on=places)
        .merge(whole.set_axis(["variant", "kl", "kl_low", "kl_high"], axis=1), on="variant")
        .rename(columns={"variant": "family"})
    )
