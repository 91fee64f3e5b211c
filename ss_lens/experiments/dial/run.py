"""A finished main job: what was measured, and how it shows itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from ss_lens.activations.site_map import site_map
from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.calibration.calibration import Calibration
from ss_lens.core.shown import card, in_lines
from ss_lens.experiments.dial.asking import ASKED_COLUMNS
from ss_lens.experiments.dial.config import RunConfig
from ss_lens.experiments.dial.moved import MOVED_COLUMNS
from ss_lens.experiments.dial.scan import CHOICE_COLUMNS, DIAL_COLUMNS
from ss_lens.experiments.summaries import degrees, first_rows, judges
from ss_lens.judges.agreement.known import refused_by
from ss_lens.scoring.refusal import counts_by_phrases


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished main job, as its run directory holds it.

    A run of an earlier version has the answers at all of its angles in full, and no ``dial``,
    ``choices`` or ``verdict``; or it has these, and no ``asked`` or ``moved``.

    Attributes:
        calibration: fitted on the train part.
        activations: the store's keys of the ``train`` and ``test`` activations.
        responses: one row per test prompt and angle, 0 (unsteered) and those that were chosen: the
            ``response``, whether it was ``shortened``, whether it ``collapsed``, and all scores.
        scores: one row per angle, from :func:`score_by_angle`.
        dial: one row per way of steering (and draw), class and angle, on the dev part:
            ``refusal_score`` and ``opening_mass``, means over ``n`` prompts.
        choices: which angles were tried on dev for each sense, and which were chosen; see
            :func:`ss_lens.experiments.dial.scan.choose_angles`.
        asked: what system prompts do on dev instead; see
            :func:`ss_lens.experiments.dial.asking.scan_asking`.
        moved: how far each token of some harmless prompts and their answers is moved; see
            :func:`ss_lens.experiments.dial.moved.moved_tokens`.
        verdict: what turned, in words.
        measures: what the behaviour's columns are called; refusal's are ``refusal_score``,
            ``refused`` and ``refusal_positive``, another's ``behaviour_score`` (or ``text_score``),
            ``shown`` and ``shown_positive``.
        shown_by: the judge that says ``shown``, and its measured agreement with people when the
            job was run; empty where no judge does.
    """

    config: RunConfig
    calibration: Calibration
    activations: dict[str, str]
    responses: pd.DataFrame
    scores: pd.DataFrame
    dial: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*DIAL_COLUMNS]))
    choices: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*CHOICE_COLUMNS]))
    asked: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*ASKED_COLUMNS]))
    moved: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*MOVED_COLUMNS]))
    verdict: str = ""
    measures: Measures = REFUSAL
    shown_by: str = ""

    def __repr__(self) -> str:
        return in_lines(self._title, self._facts)

    def _repr_html_(self) -> str:
        made, rate = self.calibration, self.measures.rate
        columns = ("angle_deg", f"{rate}_positive", f"{rate}_negative")
        picture = site_map(
            made.sites,
            filled=made.selected_sites,
            ring=made.direction_site,
            crossed=made.candidates.excluded,
        )
        scores = first_rows(self.scores.filter([*columns]), ())
        return card(self._title, self._facts, picture, scores)

    @property
    def refused_by(self) -> str:
        """Who says ``refused``, and its measured agreement; empty where ``shown`` is followed."""
        followed = self.measures.shown == REFUSAL.shown
        return refused_by(counts_by_phrases(self.responses)) if followed else ""

    @property
    def _title(self) -> str:
        spec = self.calibration.spec
        return f"Run on {spec.model.name!r} with {spec.dataset_name!r}"

    @property
    def _facts(self) -> dict[str, str]:
        config, made = self.config, self.calibration
        named = {} if self.measures.is_refusal else {"behaviour": self.measures.behaviour}
        return {
            **named,
            "verdict": self.verdict or "none; a run of an earlier version",
            "prompts": f"{made.spec.n_positive} + {made.spec.n_negative} to calibrate on, "
            f"{config.dev} dev and {config.test} test per class",
            "steers": f"{len(made.selected_sites)} of {len(made.sites)} sites",
            "dial": degrees(config.angles_deg),
            "answers": f"{len(self.responses)}, at {degrees(self.responses['angle_deg'].tolist())}",
            **judges(self),
        }
