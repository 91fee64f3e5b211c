"""Tables of what a paper run compares with: random draws, rules of selection, the template."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ss_lens.calibration.site_selection import as_rule, rule_name
from ss_lens.experiments.dial.verdict import BROKEN
from ss_lens.experiments.paper.measured import Chosen, Measured, means_by_angle, rows_of
from ss_lens.experiments.paper.plan import CENTRED, SELECTIONS
from ss_lens.models.sites import Site


def null_draws(measured: Measured) -> pd.DataFrame:
    """A row per random draw and angle: mean scores of the harmful test prompts it is measured on.

    The method's angle is the first of each draw.
    """
    found = []
    for name, swept in measured.nulls.items():
        for draw, (_, rows) in enumerate(swept.table.groupby(["selection", "plane"], sort=False)):
            means = rows.groupby("angle_deg", sort=False).agg(
                {"refusal_score": "mean", "opening_mass": "mean"}
            )
            found.append(means.reset_index().assign(null=name, draw=draw))
    table = pd.concat(found, ignore_index=True)
    return table.filter(["null", "draw", "angle_deg", "refusal_score", "opening_mass"])


def null_ranks(measured: Measured, full: Chosen) -> pd.DataFrame:
    """Where the method stands among the draws: p = (1 + draws that lower as much) / (1 + draws).

    ``p_value_whole`` counts the draws only that leave the text whole, with an opening mass of at
    least :data:`ss_lens.experiments.dial.verdict.BROKEN` of the unsteered one; where the method's
    own is less, it counts them all. The method is averaged over the prompts of the draws.
    """
    drawn = {place for swept in measured.nulls.values() for place in swept.table["prompt_index"]}
    harmful = "prompt_class == 'positive' and prompt_index in @drawn"
    method = rows_of(measured.tested.table, full.arm, full.angle_deg).query(harmful)
    score = float(method["refusal_score"].mean())
    unsteered = measured.tested.unsteered.query(harmful)
    base, base_mass = (float(unsteered[name].mean()) for name in ("refusal_score", "opening_mass"))
    mass, rows = float(method["opening_mass"].mean()), []
    limit = BROKEN * base_mass
    at_angle = null_draws(measured).query("angle_deg == @full.angle_deg")
    for name, draws in at_angle.groupby("null", sort=False):
        low = draws.loc[draws["refusal_score"] <= score]
        as_low = len(low)
        whole = as_low if mass < limit else int((low["opening_mass"] >= limit).sum())
        rows.append(
            {
                "null": name,
                "angle_deg": full.angle_deg,
                "unsteered": base,
                "method": score,
                "n": len(drawn),
                "draws": len(draws),
                "draw_mean": draws["refusal_score"].mean(),
                "draw_low": draws["refusal_score"].min(),
                "draw_high": draws["refusal_score"].max(),
                "draws_as_low": as_low,
                "p_value": (1 + as_low) / (1 + len(draws)),
                "unsteered_mass": base_mass,
                "method_mass": mass,
                "draw_mass_low": draws["opening_mass"].min(),
                "draw_mass_high": draws["opening_mass"].max(),
                "draws_as_low_whole": whole,
                "p_value_whole": (1 + whole) / (1 + len(draws)),
            }
        )
    return pd.DataFrame(rows)


def selection(measured: Measured) -> pd.DataFrame:
    """A row per rule of selection, and one for the published template: sites and depth of the dial.

    The depth is the lowest mean refusal score of harmful dev prompts at any angle.
    """
    names = {rule_name(as_rule(rule)): rule for rule in SELECTIONS}
    rows = []
    groups = measured.others.groups.drop_duplicates(["dataset", "selection"])
    for group in groups.to_dict("records"):
        wrapped = str(group["dataset"]).endswith("data_wrapped.jsonl")
        name = names.get(group["selection"], CENTRED)
        row: dict[str, Any] = {
            "rule": "site, published template" if wrapped else name,
            "n_sites": group["n_sites"],
            "blocks": _blocks(group["steered_sites"]),
            "problem": "" if pd.isna(group["problem"]) else group["problem"],
        }
        if pd.isna(group["problem"]):
            here = "dataset == @group['dataset'] and selection == @group['selection']"
            means = means_by_angle(measured.others.table.query(here)).set_index("angle_deg")
            lowest = means["refusal_score"].idxmin()
            row |= {
                "angle_deg": lowest,
                "refusal_score": means.loc[lowest, "refusal_score"],
                "opening_mass": means.loc[lowest, "opening_mass"],
                "refusal_score_at_0": means["refusal_score"].get(0.0),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _blocks(steered_sites: str) -> str:
    """``3, 15–26``"""
    layers = sorted({Site.parse(text).layer for text in steered_sites.split(",") if text})
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
