"""How long are the activations, per site and class, and how do they grow with depth?"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import style
from analyses.run_parts import RunParts
from analyses.site_tables import LayerProfile
from ss_lens.activations.activations import Activations
from ss_lens.models.sites import STREAMS
from ss_lens.stats.bootstrap import bca_mean_interval, derive_rng


def draw(parts: RunParts) -> tuple[pd.DataFrame, go.Figure]:
    """The table and the figure of a run."""
    table = measure(parts.train)
    return table, figure(table, parts.seen)


def measure(acts: Activations, *, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Mean norm of the activations, one row per site and class.

    Returns:
        ``site``, ``layer``, ``stream``, ``prompt_class``; ``mean_norm`` (in units of the
        activation) with its 95 % BCa interval over prompts; ``growth``, the ratio to the same
        stream one captured layer before (NaN at the first).
    """
    tables = []
    for label, h in (("positive", acts.positive), ("negative", acts.negative)):
        norms = h.norm(dim=-1)
        rng = derive_rng(seed, "norm_growth", label)
        low, high = bca_mean_interval(norms.double().numpy(), rng, n_resamples)
        tables.append(
            pd.DataFrame(
                {
                    "site": [str(site) for site in acts.sites],
                    "layer": [site.layer for site in acts.sites],
                    "stream": [site.stream for site in acts.sites],
                    "prompt_class": label,
                    "mean_norm": norms.mean(dim=0).numpy(),
                    "low": low,
                    "high": high,
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    before = table.groupby(["prompt_class", "stream"])["mean_norm"].shift()
    return table.assign(growth=table["mean_norm"] / before)


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Norms above on a logarithmic scale, growth per layer below; a look per stream.

    The classes nearly coincide: the positive one is drawn wide and pale so that both can be seen.
    """
    drawn = style.two_panels()
    looks = style.series(STREAMS)
    widths = {"positive": (6, 0.45), "negative": (1.5, 1)}
    for _, rows in table.groupby(["prompt_class", "stream"], sort=False):
        label, stream = str(rows["prompt_class"].iloc[0]), rows["stream"].iloc[0]
        width, opacity = widths[label]
        look = looks[stream]
        for panel, column, unit in ((1, "mean_norm", "‖h‖"), (2, "growth", "ratio")):
            profile = LayerProfile.from_frame(rows, column, unit)
            drawn.add_trace(
                go.Scatter(
                    x=[site.layer for site in profile.sites],
                    y=profile.values,
                    mode="lines" if label == "positive" else "lines+markers",
                    opacity=opacity,
                    line={"color": look.colour, "width": width, "dash": look.dash},
                    marker={"symbol": look.symbol, "size": 5},
                    name=f"{stream}, {label}",
                    legendgroup=f"{stream}, {label}",
                    showlegend=panel == 1,
                    hovertemplate=f"{stream}, {label}, layer %{{x}}: %{{y:.3g}}<extra></extra>",
                ),
                row=panel,
                col=1,
            )
    style.level(drawn, 1, row=2, col=1)
    style.explain_level(drawn, "no growth")
    norms = table["mean_norm"].loc[lambda norm: norm > 0]
    if len(norms):
        style.log_ticks(drawn, float(norms.min()), float(norms.max()), row=1, col=1)
    drawn.update_yaxes(title_text="mean ‖h‖ (log scale)", row=1, col=1)
    drawn.update_yaxes(title_text="growth<br>per layer", row=2, col=1)
    drawn.update_xaxes(title_text="layer", row=2, col=1)
    return style.layout(drawn, "Norm growth of the activations", subtitle, height=580)
