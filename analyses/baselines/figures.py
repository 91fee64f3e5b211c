"""The figure and the short table of asking, showing, training, adding, ablating and rotating."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses import style
from analyses.baselines.ways import UNSTEERED
from ss_lens.behaviours.measures import REFUSAL, Measures, PromptClass

TICKS = [float(f"{digit}e{power}") for power in range(-5, 3) for digit in (1, 2, 5)]


def figure(table: pd.DataFrame, subtitle: str = "", measures: Measures = REFUSAL) -> go.Figure:
    """Score against divergence, a panel per class, a marker per way.

    Crosses reach over the 95 % intervals. Dotted: the unsteered model. Open markers: no setting
    kept nine tenths of the dev answers from collapsing. A score is crossed out where less than half
    of the first token's probability is on any opening.

    Args:
        table: from :func:`analyses.baselines.measure`.
        subtitle: what was measured.
        measures: the names of the behaviour's columns.
    """
    points = wide(table).rename(columns=_short(measures))
    drawn, panels = style.panel_per_class(points)
    names = [name for name in dict.fromkeys(points["variant"]) if name != UNSTEERED]
    looks, crossed = style.series(names), style.Crosses()
    for panel, of_class in panels:
        for way, look in looks.items():
            rows = of_class.loc[of_class["variant"] == way]
            drawn.add_trace(_point(rows, way, look, in_legend=panel == 1), row=1, col=panel)
            crossed.draw(drawn, rows["kl"], rows["score"], rows["opening_mass"], col=panel)
        plain = of_class.loc[of_class["variant"] == UNSTEERED, "score"]
        style.level(drawn, float(plain.iloc[0]), row=1, col=panel)
    style.explain(drawn, style.BAR, "95 % intervals")
    if not points["admissible"].all():
        style.explain(drawn, style.OPEN, "open: text collapses")
    style.explain_level(drawn, UNSTEERED)
    drawn.update_xaxes(title_text="KL from unsteered (nats per token)", type="log", tickvals=TICKS)
    drawn.update_yaxes(title_text=measures.heading, col=1)
    title = "Asking, showing, training and steering"
    return style.layout(drawn, title, subtitle, height=500, narrowest=720)


def _point(rows: pd.DataFrame, way: str, look: style.Look, *, in_legend: bool) -> go.Scatter:
    return go.Scatter(
        x=rows["kl"],
        y=rows["score"],
        error_x=_interval(rows, "kl"),
        error_y=_interval(rows, "score"),
        mode="markers",
        name=way,
        legendgroup=way,
        marker={
            "symbol": style.opened(look.symbol, ~rows["admissible"]),
            "size": 9,
            "color": look.colour,
        },
        customdata=rows[["setting", "shown", "opening_mass", "seconds_per_answer"]],
        hovertemplate=f"{way}: %{{customdata[0]}}<br>%{{y:.2f}} nats at KL %{{x:.3g}}, shown "
        "%{customdata[1]:.2f}<br>opening mass %{customdata[2]:.2f}, %{customdata[3]:.2f} s per "
        "answer<extra></extra>",
        showlegend=in_legend,
    )


def _interval(rows: pd.DataFrame, name: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": rows[f"{name}_high"] - rows[name],
        "arrayminus": rows[name] - rows[f"{name}_low"],
        "thickness": 1,
        "width": 3,
    }


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row per way and class: each metric with ``_low``, ``_high``, ``_difference``, ``_p``."""
    rows = []
    for _, group in table.groupby(["variant", "prompt_class"], sort=False):
        row: dict[str, Any] = group.iloc[0].to_dict()
        for of_metric in group.to_dict("records"):
            name = of_metric["metric"]
            row[name] = of_metric["mean"]
            row[f"{name}_low"], row[f"{name}_high"] = of_metric["low"], of_metric["high"]
            row[f"{name}_difference"] = of_metric["difference"]
            row[f"{name}_p"] = of_metric["p_holm"]
        rows.append(row)
    return pd.DataFrame(rows)


def _short(measures: Measures) -> dict[str, str]:
    """The behaviour's columns by what they are."""
    ends = ("", "_low", "_high", "_difference", "_p")
    names = {measures.score: "score", measures.shown: "shown"}
    return {f"{own}{end}": f"{short}{end}" for own, short in names.items() for end in ends}


def brief(
    table: pd.DataFrame, measures: Measures = REFUSAL, moved: PromptClass = "positive"
) -> pd.DataFrame:
    """The table for readers: a row per way.

    A star marks a score of the class that is ``moved`` that differs from rotating's on the same
    prompts (Holm's p below 0.05), a dagger a setting at which text collapses.
    """
    rows = wide(table).rename(columns=_short(measures))
    words, shown = measures.words, "refused" if measures.is_refusal else "shown"
    by_class = {
        label: rows.loc[rows["prompt_class"] == label] for label in ("positive", "negative")
    }
    harmless = by_class["negative"].set_index("variant")
    found = []
    for row in by_class["positive"].to_dict("records"):
        other = harmless.loc[row["variant"]].to_dict()
        scores = {
            label: _text(one, "score", "+.2f")
            + "*" * (label == moved and one["score_p"] < style.LEVEL)
            for label, one in (("positive", row), ("negative", other))
        }
        found.append(
            {
                "way": row["variant"] + ("" if row["admissible"] else " †"),
                "setting": row["setting"],
                f"score, {words['positive']} (nats)": scores["positive"],
                "opening mass": f"{row['opening_mass']:.2f}",
                f"{shown}, {words['positive']}": _text(row, "shown", ".2f"),
                f"{shown}, {words['negative']}": _text(other, "shown", ".2f"),
                f"score, {words['negative']} (nats)": scores["negative"],
                f"KL, {words['positive']}": f"{row['kl']:.3f}",
                f"KL, {words['negative']}": f"{other['kl']:.3f}",
                "s per answer": f"{row['seconds_per_answer']:.2f}",
                "prompt tokens": f"{row['prompt_tokens']:.0f}",
            }
        )
    return pd.DataFrame(found)


def _text(row: dict[Any, Any], name: str, how: str) -> str:
    if math.isnan(row[name]):
        return "none"
    text = f"{row[name]:{how}} [{row[f'{name}_low']:{how}}, {row[f'{name}_high']:{how}}]"
    return text.replace("-", "−")
