"""The matrix of an entanglement report: a row per thing measured, a column per angle."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.entanglement.measures import OWN
from analyses.grouped import groups
from ss_lens import UserError
from ss_lens.stats.bootstrap import derive_rng
from ss_lens.stats.intervals import mean_interval


def matrix(items: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Means and paired changes from the unsteered model, with their intervals.

    Args:
        items: from :func:`analyses.entanglement.measure`.
        seed: of the bootstrap over items.

    Returns:
        One row per ``row``, ``plane`` and ``angle_deg``, the unsteered model's (NaN) first:
        ``kind``, ``unit``, ``mean`` with its 95 % interval ``low``, ``high`` (Wilson for what is
        all 0 and 1, else BCa), ``change`` with ``change_low``, ``change_high`` (BCa over paired
        items), ``undefined``, the items without a value on either side, which are left out, and
        ``n``, the others (with none of them, the numbers are NaN).

    Raises:
        UserError: a row whose items are not those of the unsteered model.
    """
    rows = []
    for (name, plane), group in groups(items, ["row", "plane"]):
        own = items.loc[(items["row"] == name) & (items["plane"] == OWN)]
        before = own.loc[own["angle_deg"].isna()].set_index("item")["value"]
        for (angle,), part in groups(group, ["angle_deg"]):
            values = part.set_index("item")["value"]
            if not values.index.equals(before.index):
                raise UserError(
                    f"{name!r} has {len(values)} items at {angle:g}° and {len(before)} unsteered; "
                    "expected the same ones. Measure both together."
                )
            defined = values.notna() & before.notna()
            values, reference = values[defined], before[defined]
            change, where = values - reference, (seed, "entanglement", name)
            is_rate = bool(
                len(values) and np.isin(values, (0, 1)).all() and np.isin(reference, (0, 1)).all()
            )
            measured = pd.Series(values.astype(bool) if is_rate else values)
            low, high = mean_interval(measured, derive_rng(*where))
            change_low, change_high = mean_interval(change, derive_rng(*where, "change"))
            rows.append(
                {
                    **{"row": name, "kind": part["kind"].iloc[0], "unit": part["unit"].iloc[0]},
                    **{"plane": plane, "angle_deg": angle, "mean": values.mean()},
                    **{"low": low, "high": high, "change": change.mean()},
                    **{"change_low": change_low, "change_high": change_high},
                    **{"undefined": int((~defined).sum()), "n": int(defined.sum())},
                }
            )
    return pd.DataFrame(rows)
