"""What the stability of a calibration comes to, in sentences made from its two tables."""

from __future__ import annotations

import pandas as pd

RELIABLE = 0.95
"""A site is called reliable where at least this share of draws selects it."""


def findings(draws: pd.DataFrame, sites: pd.DataFrame) -> list[str]:
    """What the two tables of :func:`analyses.stability.measure` say."""
    of_kind = {str(kind): rows for kind, rows in draws.groupby("kind")}
    full, boot, null = of_kind["full"].iloc[0], of_kind["bootstrap"], of_kind["shuffled"]
    return [
        *_about_sites(sites, boot),
        f"{full['direction_site']} is the direction site in "
        f"{(boot['direction_site'] == full['direction_site']).mean():.0%} of the bootstrap draws"
        f"{_runner_up(boot, full['direction_site'])}.",
        f"The plane of a bootstrap draw lies {_angles(boot, 0.5)} from that of all prompts "
        f"(principal angles, medians; in 95% of draws within {_angles(boot, 0.95)}); b1 turns by "
        f"{boot['b1_angle_deg'].median():.1f}°.",
        *_about_sizes(of_kind),
        f"Under shuffled labels {null['n_selected'].median():.0f} sites are selected (median; none "
        f"in {(null['n_selected'] == 0).sum()} of {len(null)} shuffles, at least "
        f"{full['n_selected']} in {(null['n_selected'] >= full['n_selected']).sum()}), and the "
        f"plane lies {_angles(null, 0.5)} away; random planes lie "
        f"{_angles(of_kind['random'], 0.5)} away.",
        f"Along b1 at its site the classes separate with an AUROC of {full['auroc']:.3f} on the "
        f"prompts that it was fitted on, of {boot['held_out_auroc'].median():.3f} on those that a "
        f"bootstrap draw left out; shuffled labels reach {null['auroc'].median():.3f} on their own "
        f"prompts. The candidates' mean cosine similarity is {full['agreement']:.3f}, under "
        f"shuffled labels {null['agreement'].median():.3f}.",
    ]


def _about_sites(sites: pd.DataFrame, boot: pd.DataFrame) -> list[str]:
    table = sites.query("kind == 'bootstrap'")
    steered, others = table.query("selected"), table.query("not selected")
    reliable = steered["share_selected"] >= RELIABLE
    apart = (steered["positive_own_low"] > 0) & (steered["negative_own_high"] < 0)
    wavering = ", ".join(steered["site"][~reliable])
    found = [
        f"All prompts select {len(steered)} of {len(table)} sites; {reliable.sum()} of them are "
        f"selected in at least {RELIABLE:.0%} of {len(boot)} bootstrap draws"
        f"{f', not so {wavering}' if wavering else ''}. Of the others, "
        f"{(others['share_selected'] > 1 - RELIABLE).sum()} are selected in more than "
        f"{1 - RELIABLE:.0%}.",
        f"At {apart.sum()} of the {len(steered)} both class means keep their side of zero in "
        "95% of the draws.",
    ]
    return found if len(steered) else found[:1]


def _runner_up(boot: pd.DataFrame, first: str) -> str:
    others = boot.loc[boot["direction_site"] != first, "direction_site"].value_counts()
    if not len(others):
        return ""
    return f"; next is {others.index[0]} with {others.iloc[0] / len(boot):.0%}"


def _about_sizes(draws: dict[str, pd.DataFrame]) -> list[str]:
    if "subsample" not in draws:
        return []
    medians = draws["subsample"].groupby("n_positive")["angle_2_deg"].median()
    listed = ", ".join(f"{angle:.0f}° with {size}" for size, angle in medians.items())
    return [f"With fewer prompts per class the larger principal angle is {listed} (medians)."]


def _angles(draws: pd.DataFrame, share: float) -> str:
    small, large = (draws[name].quantile(share) for name in ("angle_1_deg", "angle_2_deg"))
    return f"{small:.1f}° and {large:.1f}°"
