"""What a gate does, in sentences made from its table."""

from __future__ import annotations

import pandas as pd

from analyses import style
from analyses.gating.measures import GATED, UNGATED
from analyses.grouped import groups


def findings(table: pd.DataFrame) -> list[str]:
    """What the table of :func:`analyses.gating.measure` says, a sentence or two per source."""
    said = []
    for (name,), rows in groups(table, ["source"]):
        of = {str(row["condition"]): row for row in rows.to_dict("records")}
        bare, gated = of[UNGATED], of[GATED]
        text = (
            f"{name} ({gated['n']} prompts): the gate opens for {gated['steered']:.0%} "
            f"[{gated['steered_low']:.0%}, {gated['steered_high']:.0%}]; the score changes by "
            f"{_signed(gated, 'change')} nats gated and by {_signed(bare, 'change')} ungated, "
            f"at a divergence of {gated['kl']:.3f} against {bare['kl']:.3f} nats per token."
        )
        if min(bare["opening_mass"], gated["opening_mass"]) < style.LOW_MASS:
            text += (
                f" The opening mass is {gated['opening_mass']:.2f} gated and "
                f"{bare['opening_mass']:.2f} ungated, so the score says little there."
            )
        said.append(text)
    return said


def _signed(row: dict, name: str) -> str:
    return f"{row[name]:+.2f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"
