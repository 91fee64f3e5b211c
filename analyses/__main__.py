"""``python -m analyses RUN_DIR`` draws the figures of a run from its directory and the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer

from analyses import cosine_heatmap, norm_growth, output, sign_agreement
from ss_lens import Store, load_run


def draw(run_dir: Path, store: Store | None = None) -> dict[str, tuple[pd.DataFrame, go.Figure]]:
    """The tables and figures of a run, by name."""
    run = load_run(run_dir)
    store = store or Store()
    train, test = (store.load(run.activations[part]) for part in ("train", "test"))
    model, data = train.spec.model.name, train.spec.dataset_name
    seen = f"{model}; {data}: {train.spec.n_positive} + {train.spec.n_negative} prompts"
    unseen = (
        f"{model}; {test.spec.dataset_name}: {test.spec.n_positive} + {test.spec.n_negative} "
        "prompts that the calibration has not seen"
    )
    agreement = sign_agreement.measure(test, run.calibration)
    norms = norm_growth.measure(train)
    cosines = cosine_heatmap.measure(run.calibration)
    return {
        "sign_agreement": (agreement, sign_agreement.figure(agreement, unseen)),
        "norm_growth": (norms, norm_growth.figure(norms, seen)),
        "cosine_heatmap": (cosines, cosine_heatmap.figure(cosines, seen)),
    }


def main(
    run_dir: Annotated[Path, typer.Argument(help="What `ss-lens run` saved.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default RUN_DIR/figures.")] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="html, pdf, svg or png; may be repeated.")
    ] = None,
) -> None:
    """Draw sign agreement, norm growth and the cosine heatmap; tables are written beside them."""
    folder, chosen = out or run_dir / "figures", output.checked(formats)
    for name, (table, figure) in draw(run_dir).items():
        output.save(folder, name, table, figure, chosen)


if __name__ == "__main__":
    output.command(main)
