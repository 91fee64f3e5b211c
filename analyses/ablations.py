"""What does each part of the method contribute? The ablation table of ``ss-lens ablate``, drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer
from plotly.subplots import make_subplots

from analyses import null_bands, output, style
from analyses.spoken import Spoken
from ss_lens import UserError
from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.experiments.ablations.result import AblationResult, load_ablations
from ss_lens.experiments.ablations.variants import FULL, HEADINGS

LEVEL = style.LEVEL
PANELS_PER_ROW = 4
HEADING = 64
"""Pixels between the rows of panels: the lower one's heading, and the upper one's ticks."""
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
    metrics: Sequence[str] | None = None,
) -> go.Figure:
    """A panel per metric, a line per variant: mean and 95 % interval, the full method dotted.

    Filled: differs from the full method on the same prompts. Open: not shown to.
    """
    of_class = table.query("prompt_class == @prompt_class")
    if metrics is None:  # another behaviour than refusal has its own
        metrics = [name for name in HEADINGS if (table["metric"] == name).any()]
    grid = [metrics[i : i + PANELS_PER_ROW] for i in range(0, len(metrics), PANELS_PER_ROW)]
    widest, per_row = len(grid[0]), 70 + 20 * of_class["variant"].nunique()
    drawn = make_subplots(
        rows=len(grid),
        cols=widest,
        specs=[[{}] * len(line) + [None] * (widest - len(line)) for line in grid],
        shared_yaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=HEADING / (len(grid) * per_row),
        subplot_titles=[HEADINGS[name] for name in metrics],
    )
    for index, metric in enumerate(metrics):
        row, col = divmod(index, widest)
        rows = of_class[of_class["metric"] == metric]
        whole = rows["variant"] == FULL
        for kind, name, mask in (
            ("reference", "full method", whole),
            ("differs", f"differs from it (p < {LEVEL:g})", ~whole & rows["settled"]),
            ("open", "open: not shown to differ", ~whole & ~rows["settled"]),
        ):
            part = rows[mask]
            look = style.FOREST_LOOKS[kind]
            symbol = f"{look.symbol}-open" if kind == "open" else look.symbol
            drawn.add_trace(
                go.Scatter(
                    x=part["mean"],
                    y=part["variant"],
                    mode="markers",
                    name=name,
                    legendgroup=name,
                    showlegend=index == 0,
                    marker={"color": look.colour, "symbol": symbol, "size": 8},
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": part["high"] - part["mean"],
                        "arrayminus": part["mean"] - part["low"],
                        "color": look.colour,
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
                row=row + 1,
                col=col + 1,
            )
        for mean in rows.loc[whole, "mean"]:
            style.upright(drawn, mean, row=row + 1, col=col + 1)
    style.explain(drawn, style.ACROSS, "95 % interval")
    style.explain_level(drawn, "mean of the full method")
    # Or the order would be that of the traces, each of which holds some of the variants.
    order = [*dict.fromkeys(of_class["variant"])]
    drawn.update_yaxes(categoryarray=order, autorange="reversed", automargin=True)
    drawn.update_xaxes(nticks=4)
    height = 130 + len(grid) * per_row
    title = f"Ablations on {prompt_class} test prompts"
    return style.layout(drawn, title, subtitle, height=height, narrowest=130 + 170 * widest)


def angle_means(scan: pd.DataFrame, measures: Measures = REFUSAL) -> pd.DataFrame:
    """Mean score and ``opening_mass`` per ``prompt_class``, ``variant``, ``draw`` and
    ``angle_deg``, over prompts.

    Draws stay apart: a random plane has no orientation, so an angle in one draw has nothing to do
    with the same angle in another, and their mean would flatten every curve.

    Args:
        scan: a row per prompt.
        measures: what the columns are called. The score keeps its name; a score of answers has no
            opening mass.
    """
    keys = ["prompt_class", "variant", "draw", "angle_deg"]
    columns = [name for name in (measures.score, measures.mass) if name is not None]
    means = scan.groupby(keys, sort=False).agg(dict.fromkeys(columns, "mean")).reset_index()
    if measures.mass is None:
        return means.assign(opening_mass=math.nan)
    return means.rename(columns={measures.mass: "opening_mass"})


def turned(means: pd.DataFrame, score: str = "refusal_score") -> pd.DataFrame:
    """The rows of variants with more than one angle, each curve once.

    A variant at one angle of another, like the full method turned by 90°, has the very curve of
    that other, and would show it a second time.
    """
    keys = [name for name in ("prompt_class", "draw", "angle_deg") if name in means]
    kept: dict[tuple[object, ...], pd.DataFrame] = {}
    for _, rows in means.groupby("variant", sort=False):
        if rows["angle_deg"].nunique() > 1:
            ordered = rows.sort_values(keys)[[*keys, score]]
            kept.setdefault(tuple(ordered.itertuples(index=False, name=None)), rows)
    return pd.concat(list(kept.values())) if kept else means.iloc[:0]


def polar(
    scan: pd.DataFrame,
    subtitle: str = "",
    *,
    variants: Sequence[str] | None = None,
    bands: pd.DataFrame | None = None,
    measures: Measures = REFUSAL,
) -> go.Figure:
    """The mean score at each angle on dev, around the circle; one panel per class.

    A variant with several draws has a curve for each, all alike.

    Args:
        scan: :attr:`ss_lens.experiments.ablations.result.AblationResult.scan`.
        subtitle: what was measured.
        variants: which to draw; all unless told.
        bands: of random controls on positive prompts, from :func:`analyses.null_bands.bands`.
        measures: what the behaviour's columns are called.

    Raises:
        UserError: a variant that was not scanned.
    """
    scanned = [*dict.fromkeys(scan["variant"])]
    if unknown := [name for name in variants or () if name not in scanned]:
        raise UserError(
            f"{unknown[0]!r} was not scanned; draw one or more of {', '.join(scanned)}."
        )
    looks = style.series(variants or scanned)
    wanted, score = scan.loc[scan["variant"].isin([*looks])], measures.score
    means = angle_means(wanted, measures)
    labels = [*dict.fromkeys(means["prompt_class"])]
    drawn = make_subplots(
        rows=1,
        cols=len(labels),
        specs=[[{"type": "polar"}] * len(labels)],
        subplot_titles=[f"{label} prompts" for label in labels],
    )
    if bands is not None and "positive" in labels:
        col = labels.index("positive") + 1
        null_bands.draw_polar(drawn, bands, "refusal_score", row=1, col=col)
    for variant, look in looks.items():
        of_variant = means.query("variant == @variant")
        of_draw = of_variant.groupby(["prompt_class", "draw"], sort=False)
        for index, (_, rows) in enumerate(of_draw):
            closed = pd.concat([ordered := rows.sort_values("angle_deg"), ordered.head(1)])
            label, draw = rows["prompt_class"].iloc[0], rows["draw"].iloc[0]
            drawn.add_trace(
                go.Scatterpolar(
                    theta=closed["angle_deg"],
                    r=closed[score],
                    mode="lines+markers",
                    name=variant,
                    legendgroup=variant,
                    showlegend=index == 0,
                    line={"color": look.colour, "dash": look.dash, "width": 1.5},
                    marker={"size": 5, "symbol": look.symbol},
                    hovertemplate=f"%{{theta}}°: %{{r:.2f}}, draw {draw}",
                ),
                row=1,
                col=labels.index(label) + 1,
            )
    drawn.update_annotations(yshift=24)  # clear of the tick at 90°
    low, high = float(means[score].min()), float(means[score].max())
    if bands is not None:
        low = min(low, float(bands["refusal_score_low"].min()))
        high = max(high, float(bands["refusal_score_high"].max()))
    room = 0.05 * (high - low)
    drawn.update_polars(
        radialaxis={"range": [low - room, high + room], "angle": 90, "tickangle": 90, "nticks": 5},
        angularaxis={"direction": "counterclockwise", "dtick": 45},
    )
    title = f"{measures.heading[:1].upper()}{measures.heading[1:]} against the angle, on dev"
    wide = 360 * len(labels)
    return style.layout(drawn, title, subtitle, height=500, clear=16, narrowest=wide)


def main(
    folder: Annotated[Path, typer.Argument(help="What `ss-lens ablate` saved.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default FOLDER/figures.")] = None,
    paper: output.Paper = False,
    formats: output.Formats = None,
) -> None:
    """Draw the forest plot of each class, and the angle response on dev around the circle."""
    chosen, place = output.checked(formats, paper), out or folder / "figures"
    result = load_ablations(folder)
    config, measures = result.config, result.config.measures
    seen = f"{config.model}; {config.dataset}: {config.test} prompts per class"
    table = measure(result)
    for label in dict.fromkeys(table["prompt_class"]):
        drawn = forest(table, f"{seen} that no choice has seen", prompt_class=label)
        rows = table.loc[table["prompt_class"] == label]
        of_print = f"{seen}, {label} prompts", rows, HEADINGS, FULL
        make = partial(output.printed, "forest", *of_print)
        output.save(place, f"ablations_{label}", rows, drawn, chosen, make)
    subtitle = f"{config.model}; {config.dataset}: {config.dev} dev prompts per class"
    drawn = polar(result.scan, subtitle, measures=measures)
    means = angle_means(result.scan, measures)
    shown = turned(means, measures.score)
    words = (f"{word} prompts" for word in measures.words.values())
    spoken = Spoken(measures.score, "" if measures.mass is None else " (nats)", *words)
    make = partial(output.printed, "angle_curves", subtitle, shown, FULL, None, spoken)
    output.save(place, "angle_polar", means, drawn, chosen, make)


if __name__ == "__main__":
    output.command(main)
