"""At which sites do the two classes lie on opposite sides of the direction, and how surely?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from analyses import style
from analyses.run_parts import RunParts
from analyses.site_tables import LayerProfile, unsettled
from ss_lens.activations.activations import Activations
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.site_selection import projections
from ss_lens.stats.bootstrap import bca_interval, bca_mean_interval, derive_rng


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
        of the unit-normalised activation (a cosine), the mean's 95 % BCa interval (``_low``,
        ``_high``) and the share of prompts on the class's side;
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
    bounds = {}
    for label, sample in zip(("positive", "negative"), samples, strict=True):
        rng = derive_rng(seed, "sign_agreement", label)
        low, high = bca_mean_interval(sample, rng, n_resamples)
        bounds |= {f"{label}_low": low, f"{label}_high": high}
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
            **bounds,
        }
    )


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Class means with their intervals above, shares of prompts on their side below.

    Steered sites are shaded. A mean is open where its own 95 % interval holds zero: the data do
    not settle on which side the class lies.
    """
    drawn = style.two_panels()
    sites = LayerProfile.from_frame(table, "product", "cosine²").sites
    x = style.depth(sites)
    for label, look in style.CLASS_LOOKS.items():
        mean = table[f"{label}_mean"].to_numpy()
        drawn.add_trace(
            go.Scatter(
                x=x,
                y=mean,
                mode="lines+markers",
                name=f"{label} ({int(table[f'n_{label}'].iloc[0])} prompts)",
                line={"color": look.colour, "dash": look.dash},
                marker={
                    "symbol": style.opened(look.symbol, unsettled(table, label)),
                    "size": 7,
                },
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": table[f"{label}_high"] - mean,
                    "arrayminus": mean - table[f"{label}_low"],
                    "width": 0,
                    "thickness": 1.2,
                },
                text=table["site"],
                customdata=table[[f"{label}_low", f"{label}_high", f"{label}_sd", "p_opposite"]],
                hovertemplate="%{text}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], "
                "sd %{customdata[2]:.3f}<br>opposite in %{customdata[3]:.0%} of draws",
            ),
            row=1,
            col=1,
        )
        drawn.add_trace(
            go.Scatter(
                x=x,
                y=table[f"{label}_share"],
                mode="lines+markers",
                line={"color": look.colour, "width": 0.7, "dash": look.dash},
                marker={"size": 5, "symbol": look.symbol},
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
    style.explain(drawn, style.BAR, "95 % interval of the mean")
    style.explain(drawn, style.OPEN, "open: the interval holds 0")
    style.explain(drawn, {"symbol": "square", "size": 12, "color": style.SELECTED}, "steered sites")
    style.explain_level(drawn, "0; a half")
    drawn.update_yaxes(title_text="mean along b1<br>(cosine)", row=1, col=1)
    drawn.update_yaxes(title_text="share on<br>own side", range=[-0.04, 1.04], row=2, col=1)
    drawn.update_yaxes(tickformat=".0%", row=2, col=1)
    drawn.update_xaxes(range=[x[0] - 2 * half, x[-1] + 2 * half])
    drawn.update_xaxes(title_text=style.depth_title(sites), row=2, col=1)
    return style.layout(drawn, "Sign agreement", subtitle, height=560)


def _product(positive: np.ndarray, negative: np.ndarray, axis: int) -> np.ndarray:
    return positive.mean(axis=axis) * negative.mean(axis=axis)
