"""Do length and surface form tell the classes apart as well as the activations do?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer

import ss_lens
from analyses import output, style
from analyses.folds import assign_folds, auroc_within_folds, bootstrap_counts
from analyses.out_of_fold import activation_scores, best_site, direction_site, surface_scores
from ss_lens import Activations, ContrastiveDataset, UserError
from ss_lens.calibration.calibrate import CALIBRATION_STREAMS
from ss_lens.core.progress import progress_bar
from ss_lens.models.chat import tokenize
from ss_lens.models.load import DEFAULT_MODEL
from ss_lens.models.sites import Stream


def measure(
    dataset: ContrastiveDataset,
    acts: Activations | None = None,
    *,
    token_counts: Sequence[int] | None = None,
    n_folds: int = 5,
    n_resamples: int = 2000,
    streams: Sequence[Stream] = CALIBRATION_STREAMS,
    seed: int = 0,
) -> pd.DataFrame:
    """How well unseen prompts can be told apart: by their texts, and by their activations.

    All is fitted on every fold but one and scored on that one. The surface classifiers are logistic
    regressions on standardised lengths (characters, words, tokens where given), on character
    n-grams (1 to 4, within words, TF-IDF), and on both. The activations are read by projection onto
    the difference of the class means at one site: that which is best by cross-validation within the
    training folds, and that of the global direction, which is what the default calibration reads.

    Args:
        dataset: of a paired one, partners are always in the same fold.
        acts: of exactly these prompts; without them only the texts are measured.
        token_counts: tokens of each prompt, the positive ones first.
        n_folds: at least 3.
        n_resamples: bootstrap draws over prompts (over pairs where paired), classifiers fixed.
        streams: as in :func:`ss_lens.calibrate`.
        seed: of folds and draws.

    Returns:
        One row per ``reading``: ``kind`` (``surface`` or ``activations``), ``auroc`` with its 95 %
        interval (``low``, ``high``; see :func:`analyses.folds.auroc_within_folds`), ``sites`` with
        the number of folds that chose them, ``n_positive``, ``n_negative``, ``n_folds``.

    Raises:
        UserError: activations of other prompts, another number of token counts, fewer than 3 folds,
            or more than a class has prompts.
    """
    _check(dataset, acts, token_counts)
    folds = assign_folds(dataset, n_folds, seed)
    draws = bootstrap_counts(dataset, n_resamples, seed)
    lengths = _lengths(dataset, token_counts)
    texts = pd.DataFrame({"text": [*dataset.positive, *dataset.negative]})
    surfaces = {
        "length": lengths,
        "character n-grams": texts,
        "length and n-grams": texts.join(lengths),
    }
    choices = {
        "activations, best site": best_site,
        "activations, direction site": direction_site,
    }
    rows = []
    with progress_bar(len(surfaces) + len(choices), "fitting", "reading") as bar:
        for reading, features in surfaces.items():
            area = auroc_within_folds(surface_scores(features, folds), folds, draws)
            rows.append((reading, "surface", *area, ""))
            bar.update()
        for reading, choose in choices.items() if acts is not None else ():
            assert acts is not None
            scores, chosen = activation_scores(acts.restricted_to(streams), folds, choose)
            sites = ", ".join(f"{site} ({n})" for site, n in chosen.most_common())
            rows.append((reading, "activations", *auroc_within_folds(scores, folds, draws), sites))
            bar.update()
    table = pd.DataFrame(rows, columns=["reading", "kind", "auroc", "low", "high", "sites"])
    return table.assign(
        n_positive=len(dataset.positive), n_negative=len(dataset.negative), n_folds=n_folds
    )


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


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Areas with their intervals; orange where the surface reaches the activations (dashed)."""
    suspects = {surface for surface, _ in reached(table)}
    drawn = go.Figure()
    for row in table.to_dict("records"):
        colour = style.NEUTRAL if row["kind"] == "surface" else style.CLASS_COLOURS["negative"]
        if row["reading"] in suspects:
            colour = style.CLASS_COLOURS["positive"]
        area = row["auroc"]
        whiskers = {"array": [row["high"] - area], "arrayminus": [area - row["low"]]}
        drawn.add_trace(
            go.Scatter(
                x=[area],
                y=[row["reading"]],
                mode="markers",
                marker={"color": colour, "size": 11},
                error_x={"type": "data", "color": colour, **whiskers},
                hovertemplate=f"%{{y}}: %{{x:.3f}}<br>{row['sites']}<extra></extra>",
                showlegend=False,
            )
        )
        if row["kind"] == "activations":
            drawn.add_vline(area, line={"color": colour, "width": 1, "dash": "dash"})
    drawn.add_vline(0.5, line={"color": style.NEUTRAL, "width": 1, "dash": "dot"})
    drawn.update_yaxes(autorange="reversed")
    drawn.update_xaxes(
        title_text="AUROC on unseen prompts (dotted: chance; dashed: the activations)",
        range=[min(0.4, float(table["low"].min()) - 0.02), 1.01],
    )
    return style.layout(drawn, "How well the classes can be told apart", subtitle, height=380)


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = "refusal",
    seed: Annotated[int, typer.Option(help="Of the split, the folds and the draws.")] = 0,
    out: output.Out = Path("runs/confounds"),
    formats: output.Formats = None,
) -> None:
    """Whether length and surface form tell the classes apart as well as the activations do."""
    chosen = output.checked(formats)
    train = output.split(dataset, seed).train
    loaded = ss_lens.load_model(model)
    counts = [len(ids) for ids in tokenize(loaded, (*train.positive, *train.negative))]
    table = measure(train, ss_lens.capture(loaded, train), token_counts=counts, seed=seed)
    subtitle = f"{model}; {dataset}: {len(train.positive)} + {len(train.negative)} prompts"
    output.save(out, "confounds", table, figure(table, subtitle), chosen)
    for finding in findings(table):
        print(f"- {finding}")


def _check(
    dataset: ContrastiveDataset, acts: Activations | None, token_counts: Sequence[int] | None
) -> None:
    n = len(dataset.positive) + len(dataset.negative)
    if acts is not None and acts.spec.dataset_digest != dataset.digest:
        raise UserError(
            f"the activations are of {acts.spec.dataset_name!r} and not of the prompts of "
            f"{dataset.name!r}; capture these."
        )
    if token_counts is not None and len(token_counts) != n:
        raise UserError(
            f"{len(token_counts)} token counts do not fit {n} prompts; give one for each, the "
            "positive prompts first."
        )


def _lengths(dataset: ContrastiveDataset, token_counts: Sequence[int] | None) -> pd.DataFrame:
    texts = [*dataset.positive, *dataset.negative]
    lengths = {
        "characters": [len(text) for text in texts],
        "words": [len(text.split()) for text in texts],
    }
    if token_counts is not None:
        lengths["tokens"] = list(token_counts)
    return pd.DataFrame(lengths)


if __name__ == "__main__":
    output.command(main)
