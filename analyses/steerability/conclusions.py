"""What steerability comes to, in sentences made from its tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def findings(
    summary: pd.DataFrame,
    surface: pd.DataFrame | None = None,
    transferred: pd.DataFrame | None = None,
    *,
    by: Sequence[str] = (),
    unit: str = "nats",
) -> list[str]:
    """What the tables of ``summarise``, ``explained`` and ``transfer`` say.

    Args:
        summary: with a row per group of ``by``.
        surface: with the columns of ``by`` too, where there are any.
        transferred: with ``first`` and ``second``.
        by: what is told apart.
        unit: of the score.
    """
    said = []
    for row in summary.to_dict("records"):
        name = ", ".join(str(row[column]) for column in by)
        said.append(
            f"{f'{name}: ' if name else ''}the score goes {row['toward']:+.2f} {unit} "
            f"[{row['low']:+.2f}, {row['high']:+.2f}] toward the goal over the scan, with a spread "
            f"of {row['spread']:.2f} over {row['n']} prompts; {row['wrong_way']:.0%} "
            f"[{row['wrong_low']:.0%}, {row['wrong_high']:.0%}] go the wrong way "
            f"(median R² of the straight line: {row['linearity']:.2f})."
        )
    for row in () if surface is None else surface.to_dict("records"):
        name = ", ".join(str(row[column]) for column in by)
        p = row["p_value"]
        verdict = "no more than" if p > 0.05 else "more than"
        said.append(
            f"{f'{name}: ' if name else ''}{row['feature']} explains {row['r2']:.0%} of the "
            f"variance between prompts, {verdict} by chance ({row['chance']:.0%} on average, "
            f"{'p < 0.001' if p < 0.001 else f'p = {p:.3f}'})."
        )
    for row in () if transferred is None else transferred.to_dict("records"):
        said.append(
            f"From {row['first']} to {row['second']} the change goes from "
            f"{row['toward_first']:+.2f} to {row['toward_second']:+.2f} {unit} (difference "
            f"{row['difference']:+.2f} [{row['difference_low']:+.2f}, "
            f"{row['difference_high']:+.2f}]) on {row['n']} prompts, whose order is kept with "
            f"ρ = {row['rank_correlation']:.2f} [{row['rank_low']:.2f}, {row['rank_high']:.2f}]."
        )
    return said
