"""What does each part of the method contribute? The ablation table of ``ss-lens ablate``, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer
from plotly.subplots import make_subplots

from analyses import output, style
from ss_lens.ablations import FULL, METRICS, OWN, AblationResult, load_ablations
from ss_lens.reports import SCORES

SETTLED, UNSETTLED, REFERENCE = "#D55E00", "#0072B2", "#000000"
LEVEL = 0.05


def measure(result: AblationResult, *, at: str = OWN) -> pd.DataFrame:
    """The rows of the ablation table at one choice of the angle.

    Returns:
        The columns of :func:`ss_lens.comparisons.compare`, and ``settled``: whether the difference
        from the full method has Holm's p below 0.05 within its metric and class.
    """
    rows = result.table.query("at == @at")
    return rows.assign(settled=rows["p_holm"] < LEVEL).reset_index(drop=True)


def forest(
    table: pd.DataFrame,
    subtitle: str = "",
    *,
    prompt_class: str = "positive",
    metrics: Sequence[str] = METRICS,
) -> go.Figure:
    """A panel per metric, a line per variant: mean and 95 % interval, the full method dotted.

    Filled orange: differs from the full method on the same prompts. Hollow blue: not shown to.
    """
    of_class = table.query("prompt_class == @prompt_class")
    drawn = make_subplots(
        rows=1,
        cols=len(metrics),
        shared_yaxes=True,
        horizontal_spacing=0.015,
        subplot_titles=[SCORES[name] for name in metrics],
    )
    for panel, metric in enumerate(metrics, start=1):
        rows = of_class[of_class["metric"] == metric]
        whole = rows["variant"] == FULL
        for name, mask, colour, symbol in (
            ("full method", whole, REFERENCE, "diamond"),
            (f"differs (p < {LEVEL:g})", ~whole & rows["settled"], SETTLED, "circle"),
            ("not shown to differ", ~whole & ~rows["settled"], UNSETTLED, "circle-open"),
        ):
            part = rows[mask]
            drawn.add_trace(
                go.Scatter(
                    x=part["mean"],
                    y=part["variant"],
                    mode="markers",
                    name=name,
                    legendgroup=name,
                    showlegend=panel == 1,
                    marker={"color": colour, "symbol": symbol, "size": 8},
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": part["high"] - part["mean"],
                        "arrayminus": part["mean"] - part["low"],
                        "color": colour,
                        "thickness": 1.5,
                        "width": 0,
                    },
                    customdata=part[["low", "high", "angles_deg", "n_sites", "p_holm"]],
                    hovertemplate=(
                        "%{y}: %{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<br>angle "
                        "%{customdata[2]}°, %{customdata[3]} sites, p %{customdata[4]:.3g}"
                    ),
                ),
                row=1,
                col=panel,
            )
        line = {"color": style.NEUTRAL, "width": 1, "dash": "dot"}
        for mean in rows.loc[whole, "mean"]:
            drawn.add_shape(
                type="line", x0=mean, x1=mean, y0=0, y1=1, yref="y domain", line=line,
                row=1, col=panel,
            )  # fmt: skip
    drawn.update_yaxes(autorange="reversed", automargin=True)
    drawn.update_xaxes(nticks=4)
    height = 220 + 30 * int(of_class["variant"].nunique())
    title = f"Ablations on {prompt_class} test prompts"
    drawn = style.layout(drawn, title, subtitle, height=height)
    return drawn.update_layout(
        width=1300,
        legend={"y": -0.08, "yanchor": "top", "x": 0.5, "xanchor": "center"},
        margin={"t": 110, "b": 90},
    )


def polar(
    dev: pd.DataFrame,
    subtitle: str = "",
    *,
    variants: Sequence[str] | None = None,
    score: str = "refusal_score",
) -> go.Figure:
    """The mean score at each angle on dev, around the circle; one panel per class.

    Args:
        dev: :attr:`ss_lens.ablations.AblationResult.dev`.
        subtitle: what was measured.
        variants: which to draw; those that steer otherwise than by the full method's rotation, and
            the full method itself, unless told.
        score: a column of ``dev``.
    """
    chosen = [*dict.fromkeys(dev["variant"])][: len(style.SERIES_COLOURS)]
    shown = dev.query("variant in @wanted", local_dict={"wanted": [*(variants or chosen)]})
    keys = ["prompt_class", "variant", "angle_deg"]
    means = shown.groupby(keys, sort=False).agg({score: "mean"}).reset_index()
    labels = [*dict.fromkeys(means["prompt_class"])]
    drawn = make_subplots(
        rows=1,
        cols=len(labels),
        specs=[[{"type": "polar"}] * len(labels)],
        subplot_titles=[f"{label} prompts" for label in labels],
    )
    colours = dict(zip(variants or chosen, style.SERIES_COLOURS, strict=False))
    for panel, label in enumerate(labels, start=1):
        for variant, colour in colours.items():
            here = (means["prompt_class"] == label) & (means["variant"] == variant)
            rows = means.loc[here].sort_values("angle_deg")
            closed = pd.concat([rows, rows.head(1)])
            drawn.add_trace(
                go.Scatterpolar(
                    theta=closed["angle_deg"],
                    r=closed[score],
                    mode="lines+markers",
                    name=variant,
                    legendgroup=variant,
                    showlegend=panel == 1,
                    line={"color": colour},
                    marker={"size": 5},
                    hovertemplate="%{theta}°: %{r:.2f}",
                ),
                row=1,
                col=panel,
            )
    low, high = float(means[score].min()), float(means[score].max())
    room = 0.05 * (high - low)
    drawn.update_polars(
        radialaxis={"range": [low - room, high + room], "angle": 90, "tickangle": 90, "nticks": 5},
        angularaxis={"direction": "counterclockwise", "dtick": 45},
    )
    title = f"{SCORES.get(score, score)} against the angle, on dev".capitalize()
    drawn = style.layout(drawn, title, subtitle, height=560)
    return drawn.update_layout(
        legend={"y": -0.08, "yanchor": "top", "x": 0.5, "xanchor": "center"},
        margin={"t": 120, "b": 120},
    )


def main(
    folder: Annotated[Path, typer.Argument(help="What `ss-lens ablate` saved.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default FOLDER/figures.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="html, pdf, …")] = None,
) -> None:
    """Draw the forest plot of each class, and the angle response on dev around the circle."""
    chosen, place = output.checked(formats), out or folder / "figures"
    result = load_ablations(folder)
    config = result.config
    seen = f"{config.model}; {config.dataset}: {config.test} prompts per class"
    for at in dict.fromkeys(result.table["at"]):
        table = measure(result, at=at)
        for label in dict.fromkeys(table["prompt_class"]):
            name = f"ablations_{label}_{'own' if at == OWN else 'same'}_angle"
            figure = forest(table, f"{seen} that no choice has seen; at {at}", prompt_class=label)
            output.save(place, name, table.query("prompt_class == @label"), figure, chosen)
    subtitle = f"{config.model}; {config.dataset}: {config.dev} dev prompts per class"
    output.save(place, "angle_polar", result.dev, polar(result.dev, subtitle), chosen)


if __name__ == "__main__":
    output.command(main)
