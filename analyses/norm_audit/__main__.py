"""``python -m analyses.norm_audit``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ss_lens
from analyses import output
from analyses.norm_audit.conclusions import findings
from analyses.norm_audit.figures import figure
from analyses.norm_audit.measures import measure
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    out: output.Out = Path("runs/norm_audit"),
    paper: output.Paper = False,
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Norm, complement and phase under every operator, by dtype and basis; prints what follows."""
    chosen = output.checked(formats, paper)
    dataset = output.dataset_name(dataset, model)
    acts = ss_lens.capture(ss_lens.load_model(model, dtype=dtype), output.split(dataset).train)
    calibration = ss_lens.calibrate(acts)
    table = measure(acts, calibration)
    n, sites = int(table["n"].iloc[0]), len(calibration.selected_sites)
    subtitle = f"{model}; {dataset}: {n} activations at the {sites} steered sites"
    make = partial(output.printed, "norm_audit.printed", subtitle, table)
    output.save(out, "norm_audit", table, figure(table, subtitle), chosen, make)
    for finding in findings(table):
        print(f"- {finding}")


if __name__ == "__main__":
    output.command(main)
