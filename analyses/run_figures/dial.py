"""How do refusal and text answer to the angle, by the method and by its controls?"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import null_bands, style
from analyses.dial_looks import BESIDE, LONE, closed, looks, named, panels_of
from analyses.run_parts import RunParts
from ss_lens.experiments.dial.ways import METHOD, RANDOM
from ss_lens.stats.bootstrap import percentile_interval


def draw(parts: RunParts) -> tuple[pd.DataFrame, go.Figure] | None:
    """The table and the figure of a run."""
    if parts.dial.empty:
        return None
    table = measure(parts.dial)
    model, n = parts.train.spec.model.name, int(parts.dial["n"].iloc[0])
    harmful, harmless = parts.measures.words.values()
    subtitle = f"{model}; {n} {harmful} dev prompts; {harmless} where it says so"
    drawn = parts.dial.loc[parts.dial["way"].isin(RANDOM), "n"]
    if not drawn.empty:
        subtitle += f"; random planes on {drawn.iloc[0]} of them"
    return table, figure(table, subtitle)


def measure(dial: pd.DataFrame) -> pd.DataFrame:
    """One row per way, class and angle: means over draws, and the band of most of them.

    Returns:
        ``way``, ``prompt_class``, ``angle_deg``, ``draws``, and for ``refusal_score`` (or another
        behaviour's score) and ``opening_mass`` the mean with ``_low`` and ``_high``, 2.5 % and
        97.5 % of the draws.
    """
    groups = dial.groupby(["way", "prompt_class", "angle_deg"], sort=False)
    columns = {
        f"{name}{suffix}": (name, how)
        for name, _ in panels_of(dial)
        for suffix, how in (("", "mean"), ("_low", _low), ("_high", _high))
    }
    return groups.agg(draws=("draw", "size"), **columns).reset_index()


def _low(values: pd.Series) -> float:
    return float(percentile_interval(values.to_numpy(dtype=float))[0])


def _high(values: pd.Series) -> float:
    return float(percentile_interval(values.to_numpy(dtype=float))[1])


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Score above, opening mass below, against the angle; bars span most of the random draws.

    The circle closes: 360° repeats 0°. Below half of the opening mass (crossed out) the score says
    little, since the answer opens like neither a refusal nor an answer.
    """
    drawn, panels = style.two_panels(), panels_of(table)
    score = panels[0][0]
    crossed = style.Crosses()
    for (way, label), name in named(table).items():
        rows = closed(table, way, label)
        if rows.empty:
            continue
        look, lone = looks()[way, label], way in LONE
        x = rows["angle_deg"] + BESIDE.get(way, 0)
        for panel, (column, _) in enumerate(panels, start=1):
            spread = {
                "type": "data",
                "symmetric": False,
                "array": rows[f"{column}_high"] - rows[column],
                "arrayminus": rows[column] - rows[f"{column}_low"],
            }
            drawn.add_trace(
                go.Scatter(
                    x=x,
                    y=rows[column],
                    mode="markers" if lone else "lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=panel == 1,
                    line={
                        "color": look.colour,
                        "dash": look.dash,
                        "width": 3.5 if (way, label) == (METHOD, "positive") else 1.8,
                    },
                    marker={"color": look.colour, "symbol": look.symbol, "size": 10 if lone else 7},
                    error_y=spread if way in RANDOM else None,
                    customdata=rows[["angle_deg"]],
                    hovertemplate=f"{name}, %{{customdata[0]}}°: %{{y:.2f}}<extra></extra>",
                ),
                row=panel,
                col=1,
            )
        crossed.draw(drawn, x, rows[score], rows["opening_mass"])
    random = table.loc[table["way"].isin(RANDOM), "draws"]
    if not random.empty:
        style.explain(
            drawn, style.BAR, null_bands.told("random planes of each kind", int(random.max()))
        )
    style.level(drawn, 0, row=1, col=1)
    style.level(drawn, style.LOW_MASS, row=2, col=1)
    style.explain_level(drawn, f"0 nats; a mass of {style.LOW_MASS:g}")
    for panel, (_, title) in enumerate(panels, start=1):
        drawn.update_yaxes(title_text=title, row=panel, col=1)
    drawn.update_yaxes(range=[0, 1.03], row=2, col=1)
    drawn.update_xaxes(tickvals=list(range(0, 361, 45)), range=[-10, 370])
    drawn.update_xaxes(title_text="θ (degrees)", row=2, col=1)
    what = "refusal" if score == "refusal_score" else "score of the behaviour"
    return style.layout(drawn, f"The dial: {what} against the angle", subtitle, height=560)
