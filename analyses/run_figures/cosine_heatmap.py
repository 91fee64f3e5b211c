"""How alike are the candidate directions of different sites?"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import style
from analyses.run_parts import RunParts
from analyses.site_tables import SiteMatrix
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.candidates import cosine_matrix


def draw(parts: RunParts) -> tuple[pd.DataFrame, go.Figure]:
    """The table and the figure of a run."""
    table = measure(parts.calibration)
    return table, figure(table, parts.seen)


def measure(calibration: Calibration) -> pd.DataFrame:
    """Cosine similarity of every pair of candidate directions.

    Returns:
        One row per ordered pair: ``site``, ``other_site``, ``cosine`` (NaN where a site has no
        direction), and ``is_direction_site`` for the site of the global direction; it has
        none where the direction is a consensus of all.
    """
    names = [str(site) for site in calibration.sites]
    square = pd.DataFrame(
        cosine_matrix(calibration.candidates).numpy(),
        index=pd.Index(names, name="site"),
        columns=pd.Index(names, name="other_site"),
    )
    table = square.stack(future_stack=True).rename("cosine").reset_index()
    return table.assign(is_direction_site=table["site"] == str(calibration.direction_site))


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """A site × site heatmap; the dashed cross marks the direction site, yellow means no direction.

    A direction that all sites share (:class:`ss_lens.Consensus`) has no site and no cross.
    """
    matrix = SiteMatrix.from_frame(table, "cosine", "cosine")
    names = [str(site) for site in matrix.sites]
    shades = style.DIVERGING
    drawn = go.Figure(
        go.Heatmap(
            z=matrix.values,
            x=names,
            y=names,
            colorscale=[[i / (len(shades) - 1), shade] for i, shade in enumerate(shades)],
            zmin=-1,
            zmax=1,
            colorbar={"title": matrix.unit},
            hovertemplate="%{y} · %{x}: %{z:.3f}<extra></extra>",
        )
    )
    for chosen in dict.fromkeys(table.loc[table["is_direction_site"], "site"]):
        place = names.index(chosen)  # category axes are positioned by index
        line = {"color": "black", "width": 1, "dash": "dash"}
        drawn.add_hline(place, line=line)
        drawn.add_vline(place, line=line)
        inwards = 1 if place < len(names) / 2 else -1
        drawn.add_annotation(
            **{"x": place, "y": place, "ax": 90 * inwards, "ay": 40 * inwards},
            text=f"direction site {chosen}",
            bgcolor="white",
        )
    every = max(1, len(names) // 15)
    ticks = {"tickmode": "array", "tickvals": names[::every], "ticktext": names[::every]}
    drawn.update_xaxes(tickangle=60, range=[-0.5, len(names) - 0.5], **ticks)
    drawn.update_yaxes(range=[len(names) - 0.5, -0.5], **ticks)
    drawn = style.layout(
        drawn,
        "Cosine of the candidate directions (yellow: none)",
        subtitle,
        height=800,
    )
    drawn.update_layout(plot_bgcolor="#FFF3A6")  # shows where a site has no direction
    return drawn.update_xaxes(constrain="domain").update_yaxes(scaleanchor="x")
