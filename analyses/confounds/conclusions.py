"""What the confound check says, in sentences made from its table."""

from __future__ import annotations

import pandas as pd


def reached(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Which surface classifier's interval reaches the area of which reading of the activations."""
    rows = table.to_dict("records")
    return [
        (surface["reading"], reading["reading"])
        for surface in rows
        for reading in rows
        if (surface["kind"], reading["kind"]) == ("surface", "activations")
        and surface["high"] >= reading["auroc"]
    ]


def findings(table: pd.DataFrame) -> list[str]:
    """What the table says, in sentences; a warning stands first."""
    first = table.iloc[0]
    said = [
        f"AUROC on unseen prompts of {first['n_positive']} positive and {first['n_negative']} "
        f"negative ones, in {first['n_folds']} folds (95% intervals over prompts):"
    ]
    for row in table.to_dict("records"):
        chosen = f"; sites (folds): {row['sites']}" if row["sites"] else ""
        said.append(
            f"{row['reading']}: {row['auroc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{chosen}."
        )
    above = table.query("kind == 'surface' and low > 0.5")["reading"]
    said.append(f"Better than chance from the text alone: {', '.join(above) or 'nothing'}.")
    if "activations" not in set(table["kind"]):
        return said
    if not (pairs := reached(table)):
        return [*said, "No surface classifier's interval reaches the activations."]
    named = "; ".join(f"{surface} reaches {reading}" for surface, reading in pairs)
    return [
        "WARNING: the surface of the prompts separates the classes as well as the activations do "
        f"({named}), so that their separation is no evidence that they represent the behaviour. "
        "Match the classes in length and wording.",
        *said,
    ]
