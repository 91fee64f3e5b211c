"""``python -m analyses RUN_DIR`` draws the figures of a run from its directory and the store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer
from rich.console import Console
from rich.markup import escape

from analyses import cosine_heatmap, norm_growth, sign_agreement
from ss_lens import Store, UserError, load_run
from ss_lens.files import atomic_path, disk_errors

FORMATS = ("html", "pdf", "svg", "png")


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


def write(figure: go.Figure, path: Path) -> None:
    """Write a figure in the format of its suffix; HTML is self-contained.

    Raises:
        UserError: a static format without kaleido and the browser that it draws with.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".html":
            figure.write_html(temporary, include_plotlyjs=True)
            return
        try:
            figure.write_image(temporary, scale=2 if path.suffix == ".png" else 1)
        except (ImportError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path.name} could not be drawn ({str(error).strip().splitlines()[0]}). PDF, SVG "
                'and PNG need the extra "figures" (pip install "ss_lens[figures]") and Chrome or '
                "Chromium (install one, or run plotly_get_chrome); HTML needs neither."
            ) from error


def main(
    run_dir: Annotated[Path, typer.Argument(help="What `ss-lens run` saved.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default RUN_DIR/figures.")] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="html, pdf, svg or png; may be repeated.")
    ] = None,
) -> None:
    """Draw sign agreement, norm growth and the cosine heatmap; tables are written beside them."""
    folder = out or run_dir / "figures"
    chosen = formats or ["html"]
    if unknown := set(chosen) - set(FORMATS):
        raise UserError(f"unknown --format {min(unknown)!r}; use one of {', '.join(FORMATS)}.")
    for name, (table, figure) in draw(run_dir).items():
        with disk_errors(folder), atomic_path(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
        for suffix in chosen:
            write(figure, folder / f"{name}.{suffix}")
            print(folder / f"{name}.{suffix}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
