"""Calibrations that steer at some of their sites, for the tests of what looks inside."""

from __future__ import annotations

from collections.abc import Collection

from analyses.site_effects.measures import at_sites
from ss_lens import Calibration


def at_layers(calibration: Calibration, layers: Collection[int]) -> Calibration:
    """The calibration, steering at the sites of these layers alone."""
    return at_sites(calibration, [site for site in calibration.sites if site.layer in layers])
