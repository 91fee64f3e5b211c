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
            colorbar={"title": matrix.unit, "thickness": 14, "len": 0.9},
            hovertemplate="%{y} · %{x}: %{z:.3f}<extra></extra>",
        )
    )
    for chosen in dict.fromkeys(table.loc[table["is_direction_site"], "site"]):
        place = names.index(chosen)  # category axes are positioned by index
        line = {"color": "black", "width": 1, "dash": "dash"}
        drawn.add_hline(place, line=line)
        drawn.add_vline(place, line=line)
        drawn.add_annotation(
            **{"x": place, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False},
            xanchor="left" if place < len(names) / 2 else "right",
            text=f"direction site {chosen}",
        )
    firsts = style.layer_ticks(matrix.sites)
    ticks = {
        **{"tickmode": "array", "tickvals": [*firsts.values()]},
        "ticktext": [*map(str, firsts)],
    }
    drawn.update_xaxes(range=[-0.5, len(names) - 0.5], **ticks)
    drawn.update_yaxes(range=[len(names) - 0.5, -0.5], title_text="layer", **ticks)
    drawn.update_xaxes(title_text=style.depth_title(matrix.sites))
    drawn = style.layout(
        drawn,
        "Cosine of the candidate directions (yellow: none)",
        subtitle,
        height=620,
        narrowest=460,
    )
    drawn.update_layout(plot_bgcolor="#FFF3A6")  # shows where a site has no direction
    drawn.update_xaxes(constrain="domain")
    return drawn.update_yaxes(scaleanchor="x", constrain="domain", constraintoward="top")
