"""Norm growth in print: mean norms by depth above, growth per layer below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses import style
from analyses.printed import sheet
from analyses.site_tables import LayerProfile
from ss_lens.models.sites import STREAMS, Stream

CAPTION = (
    "Mean norm of the activations per stream and class, and its ratio to the layer before; bars "
    "are 95 % intervals over prompts."
)
LOOKS = style.series(STREAMS)
PALE: Mapping[str, Any] = {"linewidth": 2.6, "alpha": 0.4}
FINE: Mapping[str, Any] = {"linewidth": 0.8}


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """A colour and marker per stream; the positive class wide and pale, the negative one fine.

    Args:
        table: from :func:`analyses.run_figures.norm_growth.measure`.
        columns: of the page, one or two.
    """
    drawn = sheet.blank(columns, {1: 3.6, 2: 3.4}[columns])
    norms, growth = drawn.subplots(2, 1, sharex=True, height_ratios=(1.7, 1))
    streams = [cast(Stream, name) for name in dict.fromkeys(table["stream"])]
    for stream in streams:
        look = LOOKS[stream]
        for label, width in (("positive", PALE), ("negative", FINE)):
            rows = table.query("stream == @stream and prompt_class == @label")
            for axes, column, unit in ((norms, "mean_norm", "‖h‖"), (growth, "growth", "ratio")):
                profile = LayerProfile.from_frame(rows, column, unit)
                marked = {"marker": "none"} if label == "positive" else {"markersize": 2.6}
                x = [site.layer for site in profile.sites]
                sheet.curve(axes, x, profile.values, look, **{**width, **marked})
            layers = rows["layer"]
            sheet.bars(norms, layers, rows["low"], rows["high"], look.colour)
    sheet.log_scale(norms)
    norms.set_ylabel("mean ‖h‖")
    growth.set_ylabel("growth per layer")
    sheet.level(growth, 1)
    sheet.label_depth(growth, ())
    entries: list[tuple[Artist, str]] = [
        *((sheet.key(LOOKS[stream], **FINE), str(stream)) for stream in streams),
        (Line2D([], [], color="black", **PALE), "wide: positive class"),
        (Line2D([], [], color="black", **FINE), "fine: negative class"),
        (sheet.BAR_KEY, "95 % interval of the mean"),
        (sheet.LEVEL_KEY, "no growth"),
    ]
    sheet.legend(drawn, entries)
    return drawn


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """The mean norm with its interval per layer, a column per stream and class."""
    named = table.assign(
        column=table["stream"].astype(str) + ", " + table["prompt_class"],
        text=[
            "{:.3g} [{:.3g}, {:.3g}]".format(*row)
            for row in table[["mean_norm", "low", "high"]].itertuples(index=False)
        ],
    )
    wide = named.pivot(index="layer", columns="column", values="text").fillna("")
    order = list(dict.fromkeys(named["column"]))
    return wide[order].reset_index().rename_axis(columns=None)
