"""Choose the angle on dev under coherence constraints, and report test at that angle alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ss_lens.core.checks import check_is, check_one_of, check_positive, check_share
from ss_lens.core.errors import UserError
from ss_lens.geometry.strengths import reduced
from ss_lens.scoring.coherence import CollapseRule, collapse
from ss_lens.scoring.registry import all_columns
from ss_lens.stats.bootstrap import derive_rng
from ss_lens.stats.choice_shares import constrained_shares, order_on_circle
from ss_lens.stats.intervals import mean_interval

_CLASSES = ("positive", "negative")
_NEEDED = ("part", "prompt_class", "prompt_index", "prompt", "angle_deg")


@dataclass(frozen=True, kw_only=True)
class AngleCriterion:
    """What a good angle is: the best mean score among the angles that keep the text text.

    An angle is admissible when at most ``max_collapsed`` of its dev answers, of both classes, have
    collapsed. An answer has collapsed when it is empty, a loop, or exceeds a limit
    (:class:`ss_lens.scoring.coherence.CollapseRule`). A limit of ``None`` is not applied, and must
    be said for the two that matter most.

    Attributes:
        score: a column of the table, averaged over the prompts of ``prompt_class``.
        goal: ``minimise`` or ``maximise``.
        prompt_class: whose prompts the score is averaged over; ``positive`` shows the behaviour.
        max_perplexity: under the unsteered model, per answer.
        max_repetition: share of repeated word 4-grams, per answer.
        max_compression_ratio: per answer.
        max_non_latin_share: per answer.
        max_collapsed: the share of answers that may have collapsed.
        max_negative_kl: how far the predictions on the prompts that steering should leave alone,
            the negative ones, may move: the mean of ``kl_mean``, in nats per token.

    Raises:
        UserError: an unknown goal or class, a limit out of its range, or a share outside of 0 to 1.
    """

    score: str
    goal: str
    max_perplexity: float | int | None
    max_repetition: float | int | None
    max_compression_ratio: float | int | None = None
    max_non_latin_share: float | int | None = None
    max_collapsed: float | int = 0.1
    max_negative_kl: float | int | None = None
    prompt_class: str = "positive"

    def __post_init__(self) -> None:
        check_one_of("score", self.score, tuple(all_columns()))
        check_one_of("goal", self.goal, ("minimise", "maximise"))
        check_one_of("prompt_class", self.prompt_class, _CLASSES)
        check_share("max_collapsed", self.max_collapsed)
        if self.max_negative_kl is not None:
            check_positive("max_negative_kl", self.max_negative_kl)
        _ = self.rule  # rejects a limit out of its range

    @property
    def rule(self) -> CollapseRule:
        """When an answer counts as collapsed."""
        return CollapseRule(
            max_perplexity=self.max_perplexity,
            max_compression_ratio=self.max_compression_ratio,
            max_repetition=self.max_repetition,
            max_non_latin_share=self.max_non_latin_share,
        )


@dataclass(frozen=True, eq=False, repr=False)
class AngleChoice:
    """An angle chosen on dev, all that it was chosen by, and what test says at that angle.

    ``dev`` has a row per angle, ``test`` one row at the chosen angle; it is empty where no angle is
    admissible or test was not measured. Their columns: ``angle_deg``; ``score``, the mean of the
    criterion's score over its class, with its 95 % interval ``low`` and ``high`` (Wilson for rates,
    else BCa bootstrap over prompts) and the number of prompts ``n_scored``; ``collapsed``,
    the share of collapsed answers of ``n_answers``; ``perplexity`` and ``repetition``, means over
    the answers that have them; ``negative_kl``, the mean of ``kl_mean`` over negative prompts,
    where that is measured. ``dev`` has also ``admissible``, and ``share``: in which share of the
    resamples of dev's prompts the angle would be chosen.

    Attributes:
        angle_deg: ``None`` where no angle is admissible, which is a finding and not an error.
    """

    criterion: AngleCriterion
    angle_deg: float | None
    dev: pd.DataFrame
    test: pd.DataFrame

    def __str__(self) -> str:
        if self.angle_deg is None:
            least = self.dev["collapsed"].min()
            if self.criterion.max_negative_kl is not None:
                kl = self.dev["negative_kl"].min()
                return (
                    f"no admissible angle of {len(self.dev)}: at best {least:.2f} of the dev "
                    f"answers have collapsed, {self.criterion.max_collapsed:g} may, and at best "
                    f"the predictions on negative prompts move by {kl:.3g} nats, "
                    f"{self.criterion.max_negative_kl:g} may be"
                )
            if least <= self.criterion.max_collapsed:
                return (
                    f"no admissible angle of {len(self.dev)}: {self.criterion.score} is undefined "
                    "for the dev answers where few enough have collapsed"
                )
            return (
                f"no admissible angle of {len(self.dev)}: at best {least:.2f} of the dev answers "
                f"have collapsed, {self.criterion.max_collapsed:g} may"
            )
        row = self.dev.set_index("angle_deg").loc[self.angle_deg]
        said = (
            f"{self.angle_deg:g}° of {int(self.dev['admissible'].sum())} admissible angles: "
            f"{self.criterion.score} {row['score']:.3g} on dev"
        )
        share = row.get("share", math.nan)  # which choices of earlier versions have not
        again = "" if math.isnan(share) else f", chosen in {share:.0%} of the resamples of dev"
        if len(self.test):
            found = self.test.iloc[0]
            said += (
                f", {found['score']:.3g} [{found['low']:.3g}, {found['high']:.3g}] on test, "
                f"{found['collapsed']:.2f} collapsed"
            )
        return said + again

    def __repr__(self) -> str:
        return f"AngleChoice({self})"

    def as_json(self) -> dict[str, Any]:
        return {
            "criterion": asdict(self.criterion),
            "angle_deg": self.angle_deg,
            "dev": _as_records(self.dev),
            "test": _as_records(self.test),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> AngleChoice:
        return cls(
            criterion=AngleCriterion(**fields["criterion"]),
            angle_deg=fields["angle_deg"],
            dev=_frame(fields["dev"], (*_NUMBERS, "admissible", "share")),
            test=_frame(fields["test"], _NUMBERS),
        )


def choose_angle(table: pd.DataFrame, criterion: AngleCriterion) -> AngleChoice:
    """The admissible angle with the best mean score on dev; test is read at that angle alone.

    It is the first admissible one in the order of :func:`rank_angles`. Angles are taken modulo 360,
    so that −90 is 270 and 0 and 360 are one angle.

    Args:
        table: rows of one arm of a sweep, one per prompt and angle: ``part`` (``dev`` or ``test``),
            ``prompt_class``, ``prompt_index``, ``prompt``, ``angle_deg``, the criterion's score,
            and the coherence scores that it limits. Test rows may be absent, or be of other angles
            than dev's.
        criterion: what is best, and what is admissible.

    Raises:
        UserError: no dev rows, a score that the table has not, the rows of several arms, a prompt
            that is in both parts, or test rows of which none are at the chosen angle.
    """
    table = _checked(table, criterion)
    dev, test = (table.query("part == @part") for part in ("dev", "test"))
    numbers = _numbers(dev, criterion)
    within = numbers["collapsed"] <= criterion.max_collapsed
    if criterion.max_negative_kl is not None:
        within &= numbers["negative_kl"] <= criterion.max_negative_kl
    numbers["admissible"] = within & numbers["score"].notna()
    numbers["share"] = _shares(dev, criterion, numbers["angle_deg"].tolist())
    admissible = {*numbers.loc[numbers["admissible"], "angle_deg"]}
    angle = next((a for a in rank_angles(table, criterion) if a in admissible), None)
    at_angle = test.query("angle_deg == @angle")  # none for None
    if angle is not None and len(test) and at_angle.empty:
        raise UserError(
            f"dev chooses {angle:g}°, which test was not measured at; measure test there, or give "
            "both parts the same angles."
        )
    return AngleChoice(criterion, angle, numbers, _numbers(at_angle, criterion))


def rank_angles(table: pd.DataFrame, criterion: AngleCriterion) -> tuple[float, ...]:
    """The angles on dev from the best mean score on, admissible or not.

    Ties go to the angle nearest to 0 on the circle (so 350 before 20), then to the smaller one. The
    first that is admissible is the one that :func:`choose_angle` chooses.

    Args:
        table: as there, without the coherence scores.
        criterion: what is best.

    Raises:
        UserError: what :func:`choose_angle` says of the table.
    """
    table = _checked(table, criterion)
    of_class = (table["part"] == "dev") & (table["prompt_class"] == criterion.prompt_class)
    means = table.loc[of_class].groupby("angle_deg").agg({criterion.score: "mean"})
    scores = means[criterion.score].dropna()
    sign = 1 if criterion.goal == "minimise" else -1

    def place(angle: float) -> tuple[float, ...]:
        return (sign * float(scores.loc[angle]), *order_on_circle(angle))

    return tuple(sorted(map(float, scores.index), key=place))


_NUMBERS = (
    *("angle_deg", "score", "low", "high", "n_scored"),
    *("collapsed", "n_answers", "perplexity", "repetition", "negative_kl"),
)


def _checked(table: pd.DataFrame, criterion: AngleCriterion) -> pd.DataFrame:
    """The table with its angles from 0 to below 360."""
    check_is("table", table, (pd.DataFrame,), "a DataFrame such as load_sweep(...).table")
    made = "a criterion such as AngleCriterion(score='refused', goal='minimise', ...)"
    check_is("criterion", criterion, (AngleCriterion,), made)
    kl = () if criterion.max_negative_kl is None else ("kl_mean",)
    missing = [name for name in (*_NEEDED, criterion.score, *kl) if name not in table]
    if missing:
        raise UserError(
            f"the table has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}."
        )
    table = table.assign(angle_deg=table["angle_deg"].astype(float).map(reduced))
    parts = {part: table.query("part == @part") for part in ("dev", "test")}
    if not (parts["dev"]["prompt_class"] == criterion.prompt_class).any():
        raise UserError(
            f"the table has no dev rows of {criterion.prompt_class} prompts, and choosing an angle "
            "on test would report the luck of the choice; measure the dev part too."
        )
    if table.duplicated(["part", "prompt_class", "prompt_index", "angle_deg"]).any():
        raise UserError(
            "the table holds several rows of one prompt at one angle (0 and 360 degrees are one); "
            "choose for the rows of one arm (model, operator, selection, …) at a time."
        )
    if both := {*parts["dev"]["prompt"]} & {*parts["test"]["prompt"]}:
        raise UserError(
            f"the prompt {min(both)[:60]!r} is in dev and in test, so the report would be of "
            "prompts that the angle was chosen on; split the dataset again."
        )
    return table


def _numbers(rows: pd.DataFrame, criterion: AngleCriterion) -> pd.DataFrame:
    found = []
    for angle, group in rows.groupby("angle_deg", sort=False):
        scored = group.loc[group["prompt_class"] == criterion.prompt_class, criterion.score]
        scored = scored.dropna()
        low, high = mean_interval(scored, derive_rng(0))
        collapsed = collapse(group, criterion.rule)["collapsed"]
        means = {name: group[name].mean() for name in ("perplexity", "repetition") if name in group}
        if "kl_mean" in group:
            of_negative = group["prompt_class"] == "negative"
            means["negative_kl"] = float(group.loc[of_negative, "kl_mean"].mean())
        found.append(
            {
                "angle_deg": angle,
                "score": float(scored.mean()) if len(scored) else math.nan,
                "low": low,
                "high": high,
                "n_scored": len(scored),
                "collapsed": float(collapsed.mean()),
                "n_answers": len(group),
                **means,
            }
        )
    return _frame(found, _NUMBERS)


def _shares(
    dev: pd.DataFrame, criterion: AngleCriterion, angles_deg: Sequence[float]
) -> list[float]:
    """In which share of the resamples of dev's prompts each angle is the best admissible one."""
    order = sorted(angles_deg, key=order_on_circle)
    rows = dev.assign(collapsed=collapse(dev, criterion.rule)["collapsed"].astype(float))

    def wide(label: str, column: str) -> np.ndarray:
        of_class = rows.loc[rows["prompt_class"] == label]
        found = of_class.pivot(index="prompt_index", columns="angle_deg", values=column)
        return found.reindex(columns=order).to_numpy(dtype=float)

    present = [label for label in _CLASSES if (rows["prompt_class"] == label).any()]
    limited = [(criterion.max_collapsed, {label: wide(label, "collapsed") for label in present})]
    if criterion.max_negative_kl is not None and "negative" in present:
        limited.append((criterion.max_negative_kl, {"negative": wide("negative", "kl_mean")}))
    shares = constrained_shares(
        wide(criterion.prompt_class, criterion.score),
        limited,
        criterion.prompt_class,
        lowest=criterion.goal == "minimise",
    )
    by_angle = dict(zip(order, shares.tolist(), strict=True))
    return [by_angle[angle] for angle in angles_deg]


def _as_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; NaN, which JSON lacks, becomes null."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]


def _frame(records: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    frame = pd.DataFrame(records, columns=list(columns))
    kinds = {"n_scored": np.int64, "n_answers": np.int64, "admissible": bool}
    return frame.astype({name: kinds.get(name, np.float64) for name in columns})
