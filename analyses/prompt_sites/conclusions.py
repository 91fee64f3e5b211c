"""What choosing sites by prompt does, in sentences made from its table."""

from __future__ import annotations

import pandas as pd

from analyses import style
from analyses.grouped import groups
from analyses.prompt_sites.measures import ALL, CHOSEN, FIXED


def findings(table: pd.DataFrame) -> list[str]:
    """What the table of :func:`analyses.prompt_sites.measure` says, a few sentences per source."""
    said = []
    for (name,), rows in groups(table, ["source"]):
        of = {str(row["condition"]): row for row in rows.to_dict("records")}
        chosen, fixed, every = of[CHOSEN], of[FIXED], of[ALL]
        apart = chosen["difference_low"] > 0 or chosen["difference_high"] < 0
        text = (
            f"{name} ({chosen['n']} prompts): at {chosen['n_sites']} sites the score changes by "
            f"{_signed(chosen, 'change')} nats where they are chosen by prompt and by "
            f"{_signed(fixed, 'change')} where they are fixed, a difference of "
            f"{_signed(chosen, 'difference')} (p = {chosen['p_value']:.3f}), "
            f"{'' if apart else 'not '}told from zero; {chosen['shared']:.0%} of the chosen sites "
            f"are the fixed ones. The divergence differs by "
            f"{_signed(chosen, 'kl_difference', 3)} nats per token. All {every['n_sites']} sites "
            f"change the score by {_signed(every, 'change')}."
        )
        low = [row for row in (chosen, fixed, every) if row["opening_mass"] < style.LOW_MASS]
        if low:
            listed = ", ".join(f"{row['opening_mass']:.2f} {row['condition']}" for row in low)
            text += f" The opening mass is {listed}, so the score says little there."
        said.append(text)
    return said


def _signed(row: dict, name: str, digits: int = 2) -> str:
    mean, low, high = (f"{row[f'{name}{end}']:+.{digits}f}" for end in ("", "_low", "_high"))
    return f"{mean} [{low}, {high}]"
