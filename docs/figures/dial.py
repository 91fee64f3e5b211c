"""Draw ``dial.svg`` of the README from ``dial.csv``: ``python docs/figures/dial.py``.

``dial.csv`` is the table that ``python -m analyses RUN`` wrote of the main job of `make demo`.
Colours are variables of the picture's own style, so that it is legible on light and on dark pages.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import pandas as pd

HERE = Path(__file__).parent
INK, PAPER, SOFT, METHOD, OTHER, WASH = (
    "#010101",
    "#020202",
    "#030303",
    "#040404",
    "#050505",
    "#060606",
)
STYLE = """<style>
svg { --ink: #1f2430; --paper: #ffffff; --soft: #6b7488; --method: #b8420b; --other: #1d4ed8;
  --wash: #cdd5e4 }
@media (prefers-color-scheme: dark) {
svg { --ink: #e8ebf2; --paper: #1b1f2a; --soft: #a2abbd; --method: #fb9a4b; --other: #86b0ff;
  --wash: #475169 } }
</style>
"""
WIDE = 14
"""Degrees that the band of a null covers to each side of its angle."""


def rows_of(table: pd.DataFrame, way: str, prompt_class: str = "positive") -> pd.DataFrame:
    """One way of steering, by angle, with 360° repeating 0° and changes from its own 0°."""
    rows = table.query("way == @way and prompt_class == @prompt_class").sort_values("angle_deg")
    start = rows.iloc[0]
    rows = pd.concat([rows, start.to_frame().T.assign(angle_deg=360.0)]).astype(
        {"angle_deg": float}
    )
    return rows.assign(change=rows["refusal_score"] - start["refusal_score"])


def main() -> None:
    """Change of the refusal score above, opening mass below."""
    table = pd.read_csv(HERE / "dial.csv")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "dial",
            "font.family": "sans-serif",
            "font.size": 10,
        }
        | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK)
        | dict.fromkeys(("xtick.color", "ytick.color"), INK)
        | {"axes.facecolor": PAPER, "figure.facecolor": PAPER, "axes.spines.top": False}
        | {"axes.spines.right": False}
    )
    shape = {"height_ratios": (5, 2)}
    figure, (score, mass) = plt.subplots(2, 1, figsize=(7.2, 4.6), sharex=True, gridspec_kw=shape)
    same = table.query("way == 'rotate_by, prompts of the random planes' and angle_deg == 0")
    at_zero = same["refusal_score"].item()
    uniform = table.query("way == 'random planes, uniform'")
    matched = table.query("way == 'random planes, equal energy'")
    for row in uniform.itertuples():
        box = {"width": 2 * WIDE, "color": WASH, "linewidth": 0}
        low, high = row.refusal_score_low - at_zero, row.refusal_score_high - at_zero
        score.bar(row.angle_deg, high - low, bottom=low, **box)
        height = row.opening_mass_high - row.opening_mass_low
        mass.bar(row.angle_deg, height, bottom=row.opening_mass_low, **box)
    for row in matched.itertuples():
        span = {"linewidth": 2, "color": OTHER, "linestyle": ":"}
        low, high = row.refusal_score_low - at_zero, row.refusal_score_high - at_zero
        score.vlines(row.angle_deg + WIDE, low, high, **span)
        mass.vlines(row.angle_deg + WIDE, row.opening_mass_low, row.opening_mass_high, **span)
    for prompt_class, colour, dash, marker in (
        ("positive", METHOD, "-", "o"),
        ("negative", SOFT, "--", "s"),
    ):
        rows = rows_of(table, "rotate_by", prompt_class)
        look = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 5}
        score.plot(rows["angle_deg"], rows["change"], linewidth=2.4, **look)
        if prompt_class == "positive":
            mass.plot(rows["angle_deg"], rows["opening_mass"], linewidth=2.4, **look)
    score.axhline(0, color=SOFT, linewidth=0.8)
    score.text(243, -6.3, "harmful requests, rotate_by", color=METHOD)
    score.text(240, 1.75, "harmless requests", color=SOFT)
    score.text(6, 0.7, "uniform random planes", color=SOFT)
    score.text(200, -9.2, "random planes of equal energy", color=OTHER)
    mass.text(246, 0.12, "equal energy: text breaks", color=OTHER)
    score.set(ylabel="change of the\nrefusal score (nats)", ylim=(-9.8, 2.4))
    mass.set(ylabel="opening\nmass", ylim=(0, 1.02), xlabel="θ", xlim=(-5, 366))
    mass.set_xticks(range(0, 361, 45), [f"{angle}°" for angle in range(0, 361, 45)])
    figure.align_ylabels()
    figure.tight_layout()
    path = HERE / "dial.svg"
    figure.savefig(path, metadata={"Date": None})
    drawn = path.read_text("utf-8")
    for colour, name in (
        *((INK, "ink"), (PAPER, "paper"), (SOFT, "soft"), (METHOD, "method")),
        *((OTHER, "other"), (WASH, "wash")),
    ):
        drawn = drawn.replace(colour, f"var(--{name})")
    start = drawn.index("<metadata")
    end = drawn.index("</metadata>") + len("</metadata>")
    path.write_text(drawn[:start] + STYLE + drawn[end:].lstrip("\n"), "utf-8")


if __name__ == "__main__":
    main()
