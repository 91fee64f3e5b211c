"""Sign agreement in print: class means with their intervals, and shares on their own side."""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analyses import style
from analyses.printed import sheet
from analyses.site_tables import LayerProfile, unsettled

CAPTION = (
    "Class means of the unit-normalised activations along b1, with 95 % intervals over prompts, "
    "and the share of prompts on their class's side."
)
SHADE = "0.88"


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """Means above, shares below, by depth; a mean is open where its own interval holds zero.

    Args:
        table: from :func:`analyses.run_figures.sign_agreement.measure`.
        columns: of the page, one or two.
    """
    drawn = sheet.blank(columns, 3.4)
    means, shares = drawn.subplots(2, 1, sharex=True, height_ratios=(1.7, 1))
    sites = LayerProfile.from_frame(table, "product", "cosine²").sites
    x = style.depth(sites)
    half = (x[1] - x[0]) / 2 if len(x) > 1 else 0.25
    small = {"markersize": 2.2 if columns == 1 else 2.8, "linewidth": 0.8}
    entries: list[tuple[Artist, str]] = []
    for label, look in style.CLASS_LOOKS.items():
        ends = table[f"{label}_low"], table[f"{label}_high"]
        sheet.bars(means, x, *ends, look.colour)
        open_ = unsettled(table, label)
        sheet.curve(means, x, table[f"{label}_mean"], look, open_=open_, **small)
        sheet.curve(shares, x, table[f"{label}_share"], look, **small)
        n = int(table[f"n_{label}"].iloc[0])
        entries.append((sheet.key(look, **small), f"{label} ({n} prompts)"))
    for first, last in sheet.spans(table["selected"]):
        for axes in (means, shares):
            axes.axvspan(x[first] - half, x[last] + half, color=SHADE, linewidth=0, zorder=0)
    sheet.level(means, 0)
    sheet.level(shares, 0.5)
    means.set_ylabel("mean along b1 (cosine)")
    shares.set_ylabel("share on own side")
    shares.set_ylim(-0.06, 1.06)
    shares.set_xlim(x[0] - 2 * half, x[-1] + 2 * half)
    sheet.label_depth(shares, sites)
    entries += [
        (sheet.BAR_KEY, "95 % interval of the mean"),
        (sheet.OPEN_KEY, "the interval holds 0"),
        (Patch(facecolor=SHADE, linewidth=0), "steered sites"),
        (sheet.LEVEL_KEY, "0; a half"),
    ]
    sheet.legend(drawn, entries)
    return drawn


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """Both means with their intervals, the shares, and what is steered, per site."""
    columns: dict[str, object] = {"site": table["site"]}
    for label in style.CLASS_LOOKS:
        rows = table[[f"{label}_{part}" for part in ("mean", "low", "high")]].itertuples(
            index=False
        )
        columns[f"{label} mean"] = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*row) for row in rows]
        columns[f"{label} on own side"] = [f"{share:.0%}" for share in table[f"{label}_share"]]
    settled = ~(unsettled(table, "positive") | unsettled(table, "negative"))
    opposite = table["opposite"].to_numpy(dtype=bool)
    columns["signs"] = [
        ("opposite" if other else "alike") if sure else "not settled"
        for other, sure in zip(opposite, settled, strict=True)
    ]
    columns["steered"] = ["yes" if steered else "" for steered in table["selected"]]
    return pd.DataFrame(columns)
