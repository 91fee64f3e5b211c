"""What a report shows, as plain tables and texts: gathering makes it, the page draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from ss_lens.core.errors import UserError

Role = Literal["method", "harmless", "variant", "random"]
"""What a curve is of: the method, the same on harmless prompts, another way, random controls."""
UNSTEERED = "unsteered"
"""The arm of the answers without steering."""
REFUSAL_CLASSES = {"positive": "harmful", "negative": "harmless"}
PLAIN_CLASSES = {"positive": "positive", "negative": "negative"}
"""How the two classes of prompts are called where the behaviour is refusal, and elsewhere."""
SAMPLE_COLUMNS = ("arm", "part", "prompt_class", "prompt_index", "prompt", "angle_deg", "response")


@dataclass(frozen=True)
class Measure:
    """A quantity that curves show: its column, how its axis is called, and its reference line."""

    column: str
    label: str
    level: float | None = None
    is_rate: bool = False


DIAL_MEASURES = (
    Measure("refusal_score", "refusal score (nats)", level=0.0),
    Measure("opening_mass", "opening mass", level=0.5, is_rate=True),
)
"""What the dial of a main job and the curves of a paper run are read in."""


def dial_measures(score: str, heading: str) -> tuple[Measure, ...]:
    """What the dial of a behaviour is read in: its score in place of refusal's."""
    return (Measure(score, heading, level=0.0), *DIAL_MEASURES[1:])


@dataclass(frozen=True)
class Series:
    """One curve of the dial, by its name in :attr:`Contents.curves`."""

    name: str
    role: Role
    prompt_class: str


@dataclass(frozen=True)
class Said:
    """One sentence of the verdict: what turned, and the numbers that say so."""

    headline: str
    detail: str = ""


@dataclass(frozen=True)
class Command:
    """A command line that reproduces something, and what that is."""

    purpose: str
    line: str


@dataclass(frozen=True, eq=False)
class Table:
    """A small table of text, as it is printed; the first column heads its rows."""

    title: str
    caption: str
    rows: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything that the page of one run or sweep shows.

    Attributes:
        title: the model and the dataset.
        subtitle: what was measured, in a line.
        classes: what the positive and the negative prompts are called.
        verdict: what was found, in words.
        notes: what is missing or does not fit, each with what to do about it.
        series: the curves, in the order of the legend; the first is the method.
        curves: one row per curve and angle: ``series``, ``angle_deg``, ``n`` (prompts), ``draws``,
            and of each measure its mean, ``_low`` and ``_high`` (NaN without a range), and
            ``_unsteered``, the value without steering.
        measures: the columns of ``curves``, the leading one first.
        samples: the answers: :data:`SAMPLE_COLUMNS`, ``shortened``, and the scores. The unsteered
            ones have the arm :data:`UNSTEERED` and no angle.
        moved: how far each token of some samples was moved: ``arm``, ``part``, ``prompt_class``,
            ``prompt_index``, ``angle_deg``, and the columns of
            :func:`ss_lens.experiments.dial.moved.moved_tokens`.
        scores: the scores of ``samples`` that the table shows, with their headings.
        still: the arms that leave the model as it is at 0 degrees.
        start_deg: where the dial stands at first.
        steered: how many sites the method steers, and which tokens it moves there, in words.
        sites: the map: ``site``, ``layer``, ``stream``, ``positive_mean``, ``negative_mean``
            (projections onto b1), ``positive_sd``, ``negative_sd``, ``settled``, ``selected``,
            ``is_direction_site``, ``direction_cosine``, ``in_plane_positive``,
            ``in_plane_negative``; absent columns are not drawn.
        sites_seen: the prompts that the map is of, in words.
        cosines: one row per ordered pair of sites: ``site``, ``other_site``, ``cosine``.
        norms: ``layer``, ``stream``, ``prompt_class``, ``mean_norm``, ``low``, ``high``.
        tables: what was measured in the end, and how it was chosen.
        configuration: names and values.
        provenance: versions and digests.
        commands: to make this again.
    """

    title: str
    subtitle: str
    classes: Mapping[str, str] = field(default_factory=lambda: REFUSAL_CLASSES)
    verdict: tuple[Said, ...] = ()
    notes: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["series"]))
    measures: tuple[Measure, ...] = ()
    samples: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=[*SAMPLE_COLUMNS, "shortened"])
    )
    moved: pd.DataFrame | None = None
    scores: Mapping[str, str] = field(default_factory=dict)
    still: tuple[str, ...] = ()
    start_deg: float = 0.0
    steered: str = ""
    sites: pd.DataFrame | None = None
    sites_seen: str = ""
    cosines: pd.DataFrame | None = None
    norms: pd.DataFrame | None = None
    tables: tuple[Table, ...] = ()
    configuration: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[Command, ...] = ()

    def __post_init__(self) -> None:
        drawn, named = set(self.curves["series"]), {series.name for series in self.series}
        if drawn != named:
            raise UserError(
                f"the curves are of {sorted(drawn)}, and the series name {sorted(named)}; name "
                "each curve once."
            )
        if missing := [name for name in SAMPLE_COLUMNS if name not in self.samples]:
            raise UserError(
                f"the samples lack the columns {', '.join(missing)}; a report needs "
                f"{', '.join(SAMPLE_COLUMNS)}."
            )
