"""What long conversations do to steering, in sentences made from their table."""

from __future__ import annotations

import pandas as pd

from analyses import style
from analyses.grouped import groups


def findings(summary: pd.DataFrame) -> list[str]:
    """What the table of :func:`analyses.conversations.summarise` says of the last turn."""
    said = []
    for (condition,), rows in groups(summary, ["condition"]):
        last = rows.sort_values("turn").iloc[-1].to_dict()
        says_little = last["opening_mass"] < style.LOW_MASS
        moved = last["moved_low"] > 0 or last["moved_high"] < 0
        said.append(
            f"{condition}: after {last['turn']} turns ({last['n_tokens']:.0f} tokens) the score is "
            f"{last['refusal_score']:+.2f} nats, {last['moved']:+.2f} [{last['moved_low']:+.2f}, "
            f"{last['moved_high']:+.2f}] from before the conversation"
            f"{'' if moved else ', which is not told from no change'}; the norm is "
            f"{last['norm_ratio']:.2f} [{last['norm_low']:.2f}, {last['norm_high']:.2f}] times the "
            f"unsteered one{'; the opening mass is low, so the score says little' * says_little}."
        )
    return said
