"""The contents of the report of ``ss-lens ablate``, and its table beside the run it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analyses.ablations import angle_means
from analyses.report.contents import (
    Command,
    Contents,
    Role,
    Said,
    Series,
    Table,
    dial_measures,
)
from analyses.report.sources import variants
from analyses.report.sources.run_facts import ablate_command
from analyses.report.sources.sweep import of_sweep
from analyses.report.sources.variants import LEVEL
from ss_lens import UserError
from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.experiments.ablations.config import AblationConfig
from ss_lens.experiments.ablations.result import AblationResult, load_ablations
from ss_lens.experiments.ablations.variants import FULL, HEADINGS
from ss_lens.experiments.summaries import judges


def is_ablation(folder: Path) -> bool:
    """Whether an ablation was finished there."""
    return (folder / "ablations" / "ablations.json").exists()


def of_ablations(folder: Path, *, keep_answers: bool = False) -> Contents:
    """The report of a finished ablation: its variants, their curves on dev and answers on test.

    Raises:
        UserError: what the folder holds is damaged.
    """
    result, swept = load_ablations(folder), of_sweep(folder, keep_answers=keep_answers)
    config, measures = result.config, result.config.measures
    asked = dial_measures(measures.score, measures.heading)
    series, drawn = curves(result.scan, measures)
    chosen = result.choices.query("variant == @FULL and chosen")["angle_deg"]
    return replace(
        swept,
        title=f"{Path(config.model).name} · {Path(config.dataset).name} · ablations",
        subtitle="The full method beside variants that each lack one part of it; curves are of dev "
        "prompts, answers of test prompts at each variant’s own angle",
        classes={str(label): word for label, word in measures.words.items()},
        verdict=said(result.table, measures),
        notes=(*swept.notes, *_problems(result.problems)),
        configuration={**swept.configuration, **judges(result)},
        series=series,
        curves=drawn,
        measures=asked if measures.mass else asked[:1],
        start_deg=float(chosen.iloc[0]),
        tables=(*level_tables(result), choice_table(result.choices)),
        commands=(
            Command(
                "the ablations, resumed where they stopped", ablate_command(config, str(folder))
            ),
            Command("this report", f"ss-lens report {folder}"),
            Command("its figures, one by one", f"python -m analyses.ablations {folder}"),
        ),
    )


def said(table: pd.DataFrame, measures: Measures = REFUSAL) -> tuple[Said, ...]:
    """How many variants differ from the full method, and which, by score and by collapse."""
    word, (score, unit, _) = measures.words["positive"], measures.heading.partition(" (nats)")
    found = []
    for metric, words, form in (
        (measures.score, f"in the {score} of {word} prompts{unit}", "{:+.1f}"),
        ("collapsed", "in the share of answers to them that collapse", "{:+.2f}"),
    ):
        of_metric = table.loc[(table["metric"] == metric) & (table["variant"] != FULL)]
        here = of_metric.loc[of_metric["prompt_class"] == "positive"]
        if here.empty:
            continue
        differing = here["p_holm"] < LEVEL
        moved = [
            f"{row['variant']} {form.format(row['difference'])}".replace("-", "−")
            for row in here.loc[differing].to_dict("records")
        ]
        lists = {"Differing": moved, "Not shown to differ": [*here.loc[~differing, "variant"]]}
        parts = [f"{head}: {', '.join(names)}." for head, names in lists.items() if names]
        headline = f"{differing.sum()} of {len(here)} variants differ from the {FULL} {words}"
        found.append(Said(headline, " ".join(parts)))
    return tuple(found)


def curves(
    scan: pd.DataFrame, measures: Measures = REFUSAL
) -> tuple[tuple[Series, ...], pd.DataFrame]:
    """A curve per variant on positive dev prompts, and the full method on negative ones.

    Args:
        scan: of :class:`ss_lens.experiments.ablations.result.AblationResult`.
        measures: what its columns are called.
    """
    columns = dial_measures(measures.score, measures.heading)
    still = f"{FULL}, {measures.words['negative']} prompts"
    counted = {
        str(label): int(rows["prompt_index"].nunique())
        for label, rows in scan.groupby("prompt_class")
    }
    means = angle_means(scan, measures)
    means["n"] = means["prompt_class"].map(counted)
    parts = variants.curves(means.query("prompt_class == 'positive'"), FULL, columns)
    harmless = means.query("prompt_class == 'negative' and variant == @FULL")
    parts += [part.assign(series=still) for part in variants.curves(harmless, FULL, columns)]
    drawn = pd.concat(parts, ignore_index=True)
    series = []
    for name in dict.fromkeys(drawn["series"]):
        beside = name == still
        role: Role = "harmless" if beside else variants.role(name, drawn, FULL)
        series.append(Series(name, role, "negative" if beside else "positive"))
    return tuple(series), drawn


def level_tables(result: AblationResult) -> tuple[Table, ...]:
    """What each variant does on test."""
    table = result.table.assign(angle_deg=result.table["angles_deg"].str.replace(", ", "; "))
    words = {str(label): word for label, word in result.config.measures.words.items()}
    return (variants.levels(table, "Ablations", HEADINGS, f"the {FULL}", words),)


def choice_table(choices: pd.DataFrame) -> Table:
    """The angles that were tried on dev for each variant and draw."""
    rows = [
        {
            "variant": row["variant"],
            "draw": f"{row['draw']}",
            "angle": f"{row['angle_deg']:g}°",
            "dev score (nats)": f"{row['score']:+.2f}".replace("-", "−"),
            "collapsed": f"{row['collapsed']:.2f}",
            "chosen": "chosen" if row["chosen"] else "too much text collapsed",
        }
        for row in choices.to_dict("records")
    ]
    caption = "From the best score on dev on, until few enough of the dev answers collapse."
    return Table("Choice of the angles", caption, pd.DataFrame(rows))


def beside(folder: Path, asked: AblationConfig, n_sites: int) -> tuple[Path, AblationResult] | None:
    """The ablation in a folder beside a run's that was made of the same calibration.

    It is of the same model, dataset and split, in the same chat format, and steers as many sites.

    Args:
        folder: of the run.
        asked: what an ablation of the run's calibration would be asked for.
        n_sites: that the run's calibration steers.
    """
    for place in _places(folder):
        try:
            result = load_ablations(place)
        except UserError:  # of another version, or damaged: the command beside makes it again
            continue
        sites = result.table.query("variant == @FULL")["n_sites"]
        if _same(result.config, asked) and {*sites} == {str(n_sites)}:
            return place, result
    return None


def _places(folder: Path) -> Iterable[Path]:
    siblings = sorted(place for place in folder.resolve().parent.iterdir() if place.is_dir())
    return (place for place in siblings if is_ablation(place))


def _same(found: AblationConfig, asked: AblationConfig) -> bool:
    names = ("dev", "test", "seed", "chat")
    alike = all(getattr(found, name) == getattr(asked, name) for name in names)
    texts = ((found.model, asked.model), (found.dataset, asked.dataset))
    return alike and all(Path(a).name == Path(b).name for a, b in texts)


def _problems(problems: pd.DataFrame) -> list[str]:
    rows = problems.to_dict("records")
    return [
        f"{row['variant']}, draw {row['draw']}, has no answers: {row['problem']}." for row in rows
    ]
