"""What does each part of the method contribute? The ablation table of ``ss-lens ablate``, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer
from plotly.subplots import make_subplots

from analyses import output, style
from ss_lens.cli.tables import SCORES
from ss_lens.experiments.ablation import FULL, METRICS, AblationResult, load_ablations

SETTLED, UNSETTLED, REFERENCE = "#D55E00", "#0072B2", "#000000"
LEVEL = 0.05
HOVER = (
    *("low", "high", "n", "draws", "draw_low", "draw_high"),
    *("angles_deg", "n_sites", "p_holm"),
)


def measure(result: AblationResult) -> pd.DataFrame:
    """The ablation table.

    Returns:
        The columns of :func:`ss_lens.stats.paired.compare`, and ``settled``: whether the difference
        from the full method has Holm's p below 0.05 within its metric and class.
    """
    return result.table.assign(settled=result.table["p_holm"] < LEVEL)


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
                    customdata=part[[*HOVER]],
                    hovertemplate=(
                        "%{y}: %{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}] from "
                        "%{customdata[2]} prompts<br>%{customdata[3]} draws, %{customdata[4]:.3g} "
                        "to %{customdata[5]:.3g}<br>angle %{customdata[6]}°, %{customdata[7]} "
                        "sites, p %{customdata[8]:.3g}"
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
    # Or the order would be that of the traces, each of which holds some of the variants.
    order = [*dict.fromkeys(of_class["variant"])]
    drawn.update_yaxes(categoryarray=order, autorange="reversed", automargin=True)
    drawn.update_xaxes(nticks=4)
    height = 220 + 30 * int(of_class["variant"].nunique())
    title = f"Ablations on {prompt_class} test prompts"
    drawn = style.layout(drawn, title, subtitle, height=height)
    return drawn.update_layout(
        width=1300,
        legend={"y": -0.08, "yanchor": "top", "x": 0.5, "xanchor": "center"},
        margin={"t": 110, "b": 90},
    )


def angle_means(scan: pd.DataFrame) -> pd.DataFrame:
    """Mean ``refusal_score`` per ``prompt_class``, ``variant`` and ``angle_deg``, over prompts and
    draws."""
    keys = ["prompt_class", "variant", "angle_deg"]
    return scan.groupby(keys, sort=False).agg({"refusal_score": "mean"}).reset_index()


def polar(
    scan: pd.DataFrame,
    subtitle: str = "",
    *,
    variants: Sequence[str] | None = None,
) -> go.Figure:
    """The mean refusal score at each angle on dev, around the circle; one panel per class.

    Args:
        scan: :attr:`ss_lens.experiments.ablation.AblationResult.scan`.
        subtitle: what was measured.
        variants: which to draw; the first seven unless told.
    """
    score = "refusal_score"
    chosen = [*dict.fromkeys(scan["variant"])][: len(style.SERIES_COLOURS)]
    shown = scan.query("variant in @wanted", local_dict={"wanted": [*(variants or chosen)]})
    means = angle_means(shown)
    labels = [*dict.fromkeys(means["prompt_class"])]
    drawn = make_subplots(
        rows=1,
        cols=len(labels),
        specs=[[{"type": "polar"}] * len(labels)],
        subplot_titles=[f"{label} prompts" for label in labels],
    )
    colours = dict(zip(variants or chosen, cycle(style.SERIES_COLOURS), strict=False))
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
    drawn.update_annotations(yshift=24)  # clear of the tick at 90°
    low, high = float(means[score].min()), float(means[score].max())
    room = 0.05 * (high - low)
    drawn.update_polars(
        radialaxis={"range": [low - room, high + room], "angle": 90, "tickangle": 90, "nticks": 5},
        angularaxis={"direction": "counterclockwise", "dtick": 45},
    )
    title = "Refusal score (nats) against the angle, on dev"
    drawn = style.layout(drawn, title, subtitle, height=600)
    return drawn.update_layout(
        legend={"y": -0.08, "yanchor": "top", "x": 0.5, "xanchor": "center"},
        margin={"t": 160, "b": 120},
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
    table = measure(result)
    for label in dict.fromkeys(table["prompt_class"]):
        drawn = forest(table, f"{seen} that no choice has seen", prompt_class=label)
        rows = table.loc[table["prompt_class"] == label]
        output.save(place, f"ablations_{label}", rows, drawn, chosen)
    subtitle = f"{config.model}; {config.dataset}: {config.dev} dev prompts per class"
    drawn = polar(result.scan, subtitle)
    output.save(place, "angle_polar", angle_means(result.scan), drawn, chosen)


if __name__ == "__main__":
    output.command(main)
