"""At which sites do the two classes lie on opposite sides of the direction, and how surely?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from analyses import style
from analyses.run_parts import RunParts
from analyses.site_tables import LayerProfile
from ss_lens.activations.activations import Activations
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.site_selection import projections
from ss_lens.stats.bootstrap import bca_interval, derive_rng


def draw(parts: RunParts) -> tuple[pd.DataFrame, go.Figure]:
    """The table and the figure of a run."""
    table = measure(parts.test, parts.calibration)
    return table, figure(table, parts.unseen)


def measure(
    acts: Activations, calibration: Calibration, *, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Class projections onto the calibrated direction, one row per calibrated site.

    Args:
        acts: activations of any prompts of the same model, best ones that the calibration has not
            seen.
        calibration: its direction ``b1``, its sites and its selection.
        n_resamples: bootstrap draws over prompts, each class on its own; the direction stays fixed.
        seed: of the bootstrap.

    Returns:
        ``site``, ``layer``, ``stream``; per class the mean and standard deviation of the projection
        of the unit-normalised activation (a cosine) and the share of prompts on the class's side;
        ``product`` of the means with its 95 % BCa interval and ``p_opposite``, the share of draws
        in which the signs are opposite; ``opposite``, whether they are in these prompts;
        ``selected``, whether the calibration steers the site. Bounds and ``p_opposite`` are NaN
        where a class has a single prompt.

    Raises:
        UserError: a site of the calibration was not captured.
    """
    at_sites = [acts.at(site) for site in calibration.sites]
    positive, negative = (
        projections(torch.stack(side, dim=1), calibration.plane.b1)
        for side in zip(*at_sites, strict=True)
    )
    product = positive.mean(0) * negative.mean(0)
    samples = [projected.double().numpy() for projected in (positive, negative)]
    found = bca_interval(samples, _product, derive_rng(seed, "sign_agreement"), n_resamples)
    p_opposite = np.where(np.isnan(found.low), np.nan, (found.draws < 0).mean(axis=0))
    return pd.DataFrame(
        {
            "site": [str(site) for site in calibration.sites],
            "layer": [site.layer for site in calibration.sites],
            "stream": [site.stream for site in calibration.sites],
            "positive_mean": positive.mean(0).numpy(),
            "positive_sd": positive.std(0).numpy(),
            "negative_mean": negative.mean(0).numpy(),
            "negative_sd": negative.std(0).numpy(),
            "positive_share": (positive > 0).float().mean(0).numpy(),
            "negative_share": (negative < 0).float().mean(0).numpy(),
            "product": product.numpy(),
            "product_low": found.low,
            "product_high": found.high,
            "p_opposite": p_opposite,
            "opposite": (product < 0).numpy(),
            "selected": calibration.selected.numpy(),
            "n_positive": len(positive),
            "n_negative": len(negative),
        }
    )


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Mean projections with their spread above, shares of prompts on their side below.

    Steered sites are shaded. An open marker says that the bootstrap interval of the product of the
    two means includes zero there, so that its sign is not settled.
    """
    drawn = style.two_panels()
    sites = LayerProfile.from_frame(table, "product", "cosine²").sites
    x = style.depth(sites)
    settled = (table["product_low"] > 0) | (table["product_high"] < 0)
    n = {label: int(table[f"n_{label}"].iloc[0]) for label in style.CLASS_COLOURS}
    for label, colour in style.CLASS_COLOURS.items():
        mean = table[f"{label}_mean"].to_numpy()
        spread = table[f"{label}_sd"].to_numpy()
        drawn.add_trace(style.band(x, mean - spread, mean + spread, colour, label), row=1, col=1)
        drawn.add_trace(
            go.Scatter(
                x=x,
                y=mean,
                mode="lines+markers",
                name=f"{label} ({n[label]} prompts)",
                line={"color": colour},
                marker={"symbol": np.where(settled, "circle", "circle-open"), "size": 7},
                text=table["site"],
                customdata=table[["p_opposite"]],
                hovertemplate="%{text}: %{y:.3f}<br>opposite in %{customdata[0]:.0%} of draws",
            ),
            row=1,
            col=1,
        )
        drawn.add_trace(
            go.Scatter(
                x=x,
                y=table[f"{label}_share"],
                mode="lines+markers",
                line={"color": colour, "width": 0.7},
                marker={"size": 5},
                text=table["site"],
                hovertemplate="%{text}: %{y:.0%}",
                showlegend=False,
            ),
            row=2,
            col=1,
        )
    half = (x[1] - x[0]) / 2 if len(x) > 1 else 0.25
    for place in x[table["selected"].to_numpy(bool)]:
        drawn.add_vrect(
            place - half, place + half, fillcolor=style.SELECTED, line_width=0, layer="below"
        )
    style.level(drawn, 0, row=1, col=1)
    style.level(drawn, 0.5, row=2, col=1)
    limit = 1.1 * max(
        (table[f"{c}_mean"].abs() + table[f"{c}_sd"]).max() for c in style.CLASS_COLOURS
    )
    drawn.update_yaxes(title_text="projection onto b1<br>(cosine, mean ± sd)", row=1, col=1)
    drawn.update_yaxes(range=[-limit, limit], row=1, col=1)
    drawn.update_yaxes(title_text="share on<br>own side", range=[0, 1.03], row=2, col=1)
    drawn.update_yaxes(tickformat=".0%", row=2, col=1)
    streams = " then ".join(dict.fromkeys(site.stream for site in sites[:8]))
    drawn.update_xaxes(range=[x[0] - 2 * half, x[-1] + 2 * half])
    drawn.update_xaxes(title_text=f"layer (within each: {streams})", row=2, col=1)
    return style.layout(
        drawn,
        "Sign agreement (shaded: steered; open marker: sign not settled)",
        subtitle,
        height=580,
    )


def _product(positive: np.ndarray, negative: np.ndarray, axis: int) -> np.ndarray:
    return positive.mean(axis=axis) * negative.mean(axis=axis)
