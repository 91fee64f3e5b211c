"""The dial of a calibration on one source, measured on the prompts of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from analyses.grouped import groups
from analyses.null_bands import bands
from analyses.prompt_sources import check_sources
from ss_lens import Calibration, UserError
from ss_lens.activations.capture import check_unhooked
from ss_lens.core.progress import progress_bar
from ss_lens.experiments.dial.ways import MATCHED
from ss_lens.generation.angle_batch import BATCH_ROWS, Angled
from ss_lens.scoring.refusal_score import refusal_score, sweep_refusal_score
from ss_lens.stats.bootstrap import derive_rng
from ss_lens.stats.intervals import mean_interval


def measure(
    model: TransformerBridge,
    calibrations: Mapping[str, Calibration],
    operator: Angled,
    prompts: Mapping[str, Sequence[str]],
    angles_deg: Sequence[float | int],
    *,
    nulls: Sequence[Calibration] = (),
    seed: int = 0,
    batch_size: int = BATCH_ROWS,
) -> pd.DataFrame:
    """Refusal score of each source's prompts at each angle, under each calibration.

    Args:
        model: the model that the calibrations were made on, without hooks.
        calibrations: by the source that they were made on.
        operator: the class, for instance :class:`ss_lens.RotateBy`.
        prompts: by source, none of them calibrated on.
        angles_deg: in degrees.
        nulls: calibrations with random planes, two or more, whose draws make a band.
        seed: of the bootstrap over prompts.
        batch_size: rows per forward pass; changes the speed, not the result.

    Returns:
        One row per ``calibrated_on``, ``measured_on`` and ``angle_deg``: the mean
        ``refusal_score`` in nats with its BCa interval ``low``, ``high``; ``change``, its paired
        mean difference from the unsteered model, with ``change_low``, ``change_high``; the mean
        ``opening_mass``; ``n`` and ``draws``, 1. The random planes are one calibration more, named
        for what they are: of their ``draws`` the numbers are the mean, and the ends 2.5 % and
        97.5 % of them.

    Raises:
        UserError: nothing to measure on, one random plane alone, a model with hooks, or what
            steering raises.
    """
    check_sources(prompts, "drift is measured")
    if len(nulls) == 1:
        raise UserError(
            "one random plane makes no band; got 1, expected none, or 2 and more. Draw 99."
        )
    check_unhooked(model, "there would be no unsteered model to compare with")
    rows = []
    steps = len(prompts) * (len(calibrations) + len(nulls))
    with progress_bar(steps, "drift", "dial") as bar:
        for source, some in prompts.items():
            before = refusal_score(model, some, batch_size=batch_size)["refusal_score"]
            for made_on, calibration in calibrations.items():
                table = sweep_refusal_score(
                    model, calibration, operator, some, angles_deg, batch_rows=batch_size
                )
                for (angle,), part in groups(table, ["angle_deg"]):
                    scores = part.set_index("prompt_index")["refusal_score"]
                    change = scores - before
                    row = {"calibrated_on": made_on, "measured_on": source, "angle_deg": angle}
                    for name, values in (("refusal_score", scores), ("change", change)):
                        rng = derive_rng(seed, "drift", source, name)
                        low, high = mean_interval(values, rng)
                        prefix = "change_" if name == "change" else ""
                        row |= {name: values.mean(), f"{prefix}low": low, f"{prefix}high": high}
                    mass = part["opening_mass"].mean()
                    rows.append({**row, "opening_mass": mass, "n": len(scores), "draws": 1})
                bar.update()
            parts = []
            for draw, null in enumerate(nulls):
                table = sweep_refusal_score(
                    model, null, operator, some, angles_deg, batch_rows=batch_size
                )
                change = table["refusal_score"] - table["prompt_index"].map(before)
                parts.append(table.assign(change=change, null=MATCHED, draw=draw))
                bar.update()
            rows += _band(parts, source, len(some))
    return pd.DataFrame(rows)


def _band(parts: Sequence[pd.DataFrame], source: str, n: int) -> list[dict[str, object]]:
    """A row per angle for the draws of random planes."""
    if not parts:
        return []
    measured = ["refusal_score", "change", "opening_mass"]
    keys = ["null", "draw", "angle_deg"]
    means = pd.concat(parts).groupby(keys, sort=False)[measured].agg("mean").reset_index()
    return [
        {
            **{"calibrated_on": row["null"], "measured_on": source, "angle_deg": row["angle_deg"]},
            **{"refusal_score": row["refusal_score"], "change": row["change"]},
            **{"low": row["refusal_score_low"], "high": row["refusal_score_high"]},
            **{"change_low": row["change_low"], "change_high": row["change_high"]},
            **{"opening_mass": row["opening_mass"], "n": n, "draws": row["draws"]},
        }
        for row in bands(means, measured).to_dict("records")
    ]
