"""The variants of an ablation: what each lacks, what is compared, and by what dev chooses."""

from __future__ import annotations

from collections.abc import Mapping

from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.experiments.choose_angle import AngleCriterion
from ss_lens.experiments.config import SEED
from ss_lens.scoring.registry import headings

FULL, RANDOM_SITES = "full method", "random sites"
HEADINGS: Mapping[str, str] = {**headings(), "collapsed": "collapsed ↓"}
"""What is compared, and how it is headed: the scores that have a label, and the collapsed share."""
METRICS = tuple(name for name in HEADINGS if name not in ("behaviour_score", "shown"))
"""What is compared where refusal is weakened."""
EIGHT_ANGLES = tuple(float(angle) for angle in range(0, 360, 45))


def criterion(measures: Measures) -> AngleCriterion:
    """The least of a behaviour on its positive prompts among the angles with coherent answers."""
    return AngleCriterion(
        score=measures.score,
        goal="minimise",
        max_perplexity=20,
        max_repetition=0.3,
        max_collapsed=0.1,
    )


CRITERION = criterion(REFUSAL)
"""Least refusal of harmful prompts."""

SAME_SITES = "the full method's sites"
VARIANTS: Mapping[str, Mapping[str, str]] = {
    FULL: {},
    "set_angle, norm not kept": {"operator": "SetAngle"},
    "rotate_to (SAS)": {"operator": "RotateTo"},
    "rotate_to_if_aligned (AAS)": {"operator": "RotateToIfAligned"},
    "all sites": {"selection": "uniform"},
    "rotate_to, all sites": {"operator": "RotateTo", "selection": "uniform"},
    RANDOM_SITES: {"selection": f"RandomSites(seed={SEED})"},
    "first half": {"selection": "Half(which='first')"},
    "second half": {"selection": "Half(which='second')"},
    "random b2": {"plane": f"RandomSecond(seed={SEED})", "selection": SAME_SITES},
    "random plane": {"plane": f"RandomPlane(seed={SEED})", "selection": SAME_SITES},
    "shuffled labels": {"labels": "shuffled", "selection": SAME_SITES},
    "shuffled labels, own sites": {"labels": "shuffled"},
}
"""What each variant changes of the full method; what it does not name stays, the sites too.

``set_angle`` is the ablation of the norm as the paper describes it, ``rotate_to`` (SAS) on the same
sites as it was done. Random sites are as many as the full method's.
"""
