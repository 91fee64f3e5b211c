"""How does the readiness to refuse answer to the angle, for each way of steering?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses import null_bands, output, style
from analyses.null_bands import bands
from ss_lens import (
    Activations,
    Calibration,
    ContrastiveDataset,
    MatchedRandomPlane,
    RandomPlane,
    UserError,
)
from ss_lens.core.progress import progress_bar
from ss_lens.experiments.dial.ways import MATCHED, UNIFORM
from ss_lens.geometry.operators import AngularOperator, RotateBy, RotateTo
from ss_lens.models.sources import DEFAULT_MODEL
from ss_lens.scoring.refusal_score import refusal_score, sweep_refusal_score
from ss_lens.stats.bootstrap import bca_mean_interval, derive_rng

Way = tuple[Calibration, type[AngularOperator]]
ANGLES = tuple(range(0, 360, 15))


def paper_ways(train: Activations) -> dict[str, Way]:
    """The comparison of arXiv 2601.19375: where to rotate, and by or to an angle."""
    everywhere = ss_lens.calibrate(train, rule="uniform")
    return {
        "rotate_by, discriminative sites": (ss_lens.calibrate(train), RotateBy),
        "rotate_by, all sites": (everywhere, RotateBy),
        "rotate_to, all sites": (everywhere, RotateTo),
    }


def random_ways(train: Activations, draws: int) -> dict[str, tuple[Way, ...]]:
    """Rotations in random planes at the discriminative sites, uniform and of equal energy."""
    sites = ",".join(map(str, ss_lens.calibrate(train).selected_sites))
    kinds = {
        UNIFORM: lambda seed: RandomPlane(seed=seed),
        MATCHED: lambda seed: MatchedRandomPlane(seed=seed, sites=sites),
    }
    rule = f"Explicit(sites={sites!r})"
    return {
        name: tuple(
            (ss_lens.calibrate(train, plane=plane(seed), rule=rule), RotateBy)
            for seed in range(draws)
        )
        for name, plane in kinds.items()
    }


def measure(
    model: TransformerBridge,
    ways: Mapping[str, Way],
    data: ContrastiveDataset,
    angles_deg: Sequence[float | int] = ANGLES,
    *,
    nulls: Mapping[str, Sequence[Way]] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean refusal score per way, class and angle.

    Args:
        model: the model that the calibrations were made on.
        ways: calibration (plane and sites) and operator, by name.
        data: prompts that no calibration has seen.
        angles_deg: in degrees.
        nulls: several draws of each kind of control, by name.
        n_resamples: bootstrap draws over prompts.
        seed: of the bootstrap.

    Returns:
        ``way``, ``prompt_class``, ``angle_deg``; the mean ``refusal_score`` in nats with its 95 %
        BCa interval (``low``, ``high``), the mean ``opening_mass``, ``unsteered`` (the mean
        score without steering), ``n``, and ``draws``. See
        :func:`ss_lens.scoring.refusal_score.refusal_score`. Of several draws the score is their
        mean, and ``low`` and ``high`` are 2.5 % and 97.5 % of them.
    """
    labels, rows = ("positive", "negative"), []
    unsteered = {
        label: float(refusal_score(model, getattr(data, label))["refusal_score"].mean())
        for label in labels
    }
    drawn_ways = sum(map(len, (nulls or {}).values()))
    with progress_bar(len(labels) * (len(ways) + drawn_ways), "angle response", "way") as bar:
        for label, (way, (calibration, operator)) in product(labels, ways.items()):
            prompts = getattr(data, label)
            table = sweep_refusal_score(model, calibration, operator, prompts, angles_deg)
            bar.update()
            for angle, group in table.groupby("angle_deg", sort=True):
                scores = group["refusal_score"].to_numpy(dtype=float)
                rng = derive_rng(seed, "angle_response", label)
                low, high = bca_mean_interval(scores, rng, n_resamples)
                rows.append(
                    {
                        "way": way,
                        "prompt_class": label,
                        "angle_deg": angle,
                        "refusal_score": float(scores.mean()),
                        "low": float(low),
                        "high": float(high),
                        "opening_mass": float(group["opening_mass"].mean()),
                        "unsteered": unsteered[label],
                        "n": len(scores),
                        "draws": 1,
                    }
                )
        for label, (name, drawn) in product(labels, (nulls or {}).items()):
            prompts, parts = getattr(data, label), []
            for draw, (calibration, operator) in enumerate(drawn):
                table = sweep_refusal_score(model, calibration, operator, prompts, angles_deg)
                parts.append(table.assign(null=name, draw=draw))
                bar.update()
            means = (
                pd.concat(parts)
                .groupby(["null", "draw", "angle_deg"])
                .agg({"refusal_score": "mean", "opening_mass": "mean"})
            )
            for row in bands(means.reset_index()).to_dict("records"):
                rows.append(
                    {
                        "way": name,
                        "prompt_class": label,
                        "angle_deg": row["angle_deg"],
                        "refusal_score": row["refusal_score"],
                        "low": row["refusal_score_low"],
                        "high": row["refusal_score_high"],
                        "opening_mass": row["opening_mass"],
                        "unsteered": unsteered[label],
                        "n": len(prompts),
                        "draws": row["draws"],
                    }
                )
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Score against angle, one panel per class; bands are 95 % intervals, dotted is unsteered.

    Of random controls the band is that of most of their draws, and there is no line.

    A score is crossed out where less than half of the first token's probability is on any opening,
    refusing or complying, so that it says little.
    """
    drawn, panels = style.panel_per_class(table)
    random = null_bands.null_rows(table)
    looks, crossed = style.series(table.loc[~random, "way"]), style.Crosses()
    for panel, whole in panels:
        of_class = whole.loc[~random.loc[whole.index]]
        found = whole.loc[random.loc[whole.index]].rename(
            columns={"way": "null", "low": "refusal_score_low", "high": "refusal_score_high"}
        )
        null_bands.draw(drawn, found, row=1, col=panel, in_legend=panel == 1)
        for way, rows in of_class.sort_values("angle_deg", kind="stable").groupby(
            "way", sort=False
        ):
            look = looks[str(way)]
            x = rows["angle_deg"].to_numpy()
            low, high = rows["low"].to_numpy(), rows["high"].to_numpy()
            drawn.add_trace(style.band(x, low, high, look.colour, str(way)), row=1, col=panel)
            drawn.add_trace(
                go.Scatter(
                    x=x,
                    y=rows["refusal_score"],
                    mode="lines+markers",
                    name=str(way),
                    legendgroup=str(way),
                    line={"color": look.colour, "dash": look.dash},
                    marker={"symbol": look.symbol, "size": 6},
                    customdata=rows[["opening_mass"]],
                    hovertemplate="%{x}°: %{y:.2f} nats<br>opening mass %{customdata[0]:.2f}",
                    showlegend=panel == 1,
                ),
                row=1,
                col=panel,
            )
            of_way = rows["angle_deg"], rows["refusal_score"], rows["opening_mass"]
            crossed.draw(drawn, *of_way, col=panel)
        unsteered = float(of_class["unsteered"].iloc[0])
        style.level(drawn, unsteered, row=1, col=panel)
    style.explain(drawn, style.BAND, "95 % interval")
    style.explain_level(drawn, "unsteered")
    drawn.update_xaxes(title_text="θ (degrees)", tickvals=list(range(0, 361, 90)))
    drawn.update_yaxes(title_text="refusal score (nats)", col=1)
    title = "Refusal score against the angle"
    return style.layout(drawn, title, subtitle, height=480, narrowest=560)


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    test: Annotated[int, typer.Option(help="Prompts per class that are reported.")] = 24,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    step: Annotated[int, typer.Option(help="Degrees between angles.")] = 15,
    draws: Annotated[
        int,
        typer.Option(help="Random planes of each kind, for a band; each costs as a way does."),
    ] = 0,
    out: output.Out = Path("runs/angle_response"),
    paper: output.Paper = False,
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Refusal score against the angle on held-out prompts, for three ways of steering."""
    chosen = output.checked(formats, paper)
    dataset = output.dataset_name(dataset, model)
    if draws < 0 or draws == 1:
        raise UserError(f"--draws must be 0, or 2 and more for a band; got {draws}. Write 99.")
    parts = output.split(dataset, seed, test)
    loaded = ss_lens.load_model(model, dtype=dtype)
    train = ss_lens.capture(loaded, parts.train)
    nulls = random_ways(train, draws) if draws else {}
    table = measure(loaded, paper_ways(train), parts.test, range(0, 360, step), nulls=nulls)
    subtitle = f"{model}; {dataset}: {test} + {test} prompts that no calibration has seen"
    make = partial(output.printed, "angle_response", subtitle, table)
    output.save(out, "angle_response", table, figure(table, subtitle), chosen, make)


if __name__ == "__main__":
    output.command(main)
