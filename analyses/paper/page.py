"""The page of results of one model: its tables beside the paper's row, and a verdict per claim."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from analyses.paper import published
from analyses.paper.needed import check_complete
from analyses.paper.verdicts import Outcome, Tables, verdicts
from analyses.printed.tables import markdown, negative
from ss_lens import UserError
from ss_lens.experiments.paper.plan import PUBLISHED, UNSTEERED

TABLES = (
    *("methods", "ablations", "choices", "curves", "nulls", "null_ranks"),
    *("selection", "capability", "judges", "facts"),
)
SHOWN = {
    "refused": "refused",
    "refused_published": "refused (phrases)",
    "answered": "answered",
    "refusal_score": "score (nats)",
    "opening_mass": "opening mass",
    "collapsed": "collapsed",
    "perplexity": "perplexity",
    "perplexity_steered": "under the steered model",
    "compression_ratio": "compression",
    "repetition": "repetition",
    "non_latin_share": "foreign script",
}
WITHOUT_ANGLE = ("Add", "ActAdd", "Ablate", "Reflect")
"""Operators whose strength, if they have one, is no angle."""


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The CSV files of a run by their names.

    Raises:
        UserError: one is missing, or lacks what this version judges by.
    """
    for name in TABLES:
        if not (folder / f"{name}.csv").is_file():
            raise UserError(
                f"{folder} has no {name}.csv; expected the tables of a finished `ss-lens paper`. "
                "Run the same command again, which resumes it."
            )
    files = {name: folder / f"{name}.csv" for name in TABLES}
    tables = {name: pd.read_csv(path, dtype={"angle_deg": str}) for name, path in files.items()}
    check_complete(tables, folder)
    return tables


def page(tables: Tables, figures: Sequence[str] = ()) -> str:
    """The page as Markdown; nothing in it is not from the tables, the rules and the paper's row.

    Args:
        tables: from :func:`read_tables`.
        figures: paths beside the page.
    """
    facts = dict(zip(tables["facts"]["fact"], tables["facts"]["value"], strict=True))
    model = facts["model"]
    found = verdicts(tables)
    dtype = "" if facts.get("dtype", "auto") == "auto" else f" --dtype {facts['dtype']}"
    computed = f", in {facts['computed_in']}" if "computed_in" in facts else ""
    said = [f"{len([v for v in found if v.outcome == name])} {name}" for name in _outcomes(found)]
    parts = [
        f"# The paper on {model}",
        f"Written by `python -m analyses.paper` from the tables beside it; they were made with "
        f"`ss-lens paper --model {model} --positive FILE --negative FILE{dtype}`{computed}. "
        f"{facts['n_train']} prompts per class to calibrate on, {facts['dev']} to choose angles "
        f"and strengths on, {facts['test']} that are reported; {facts['max_new_tokens']} new "
        f"tokens; angles {facts['angles_deg']}. Intervals are of 95 %. *Refused* is by "
        f"{facts.get('refused_by', 'opening phrases')}; *refused (phrases)* by the published list. "
        "*Answered* is the share of answers that neither refuse nor collapse.",
        f"## Claim by claim: {', '.join(said)}",
        markdown(
            ("claim", "verdict", "by", "rule"),
            [(v.claim, f"**{v.outcome}**", negative(v.evidence), v.rule) for v in found],
        ),
        "## Methods",
        *_levels(tables["methods"], (*PUBLISHED, *_rest(tables["methods"], PUBLISHED))),
        f"### The paper's row: {published.MODEL}",
        f"From {published.SOURCE}. Another model of the family, 104 prompts, other judges and "
        "other angles: read it for its order, not its digits.",
        markdown(
            ("method", *published.COLUMNS),
            [(name, *map(_number, row)) for name, row in published.ROWS.items()],
        ),
        "## Ablations",
        *_levels(tables["ablations"], _rest(tables["ablations"], ())),
        "## Random planes and random site sets",
        "One pass over the harmful test prompts at the method's angle; the planes of equal energy "
        "hold as much of the activations as the method's own, the uniform ones next to nothing; "
        "the sets have as many sites.",
        _frame(tables["null_ranks"]),
        "## Rules of selection, and the published template",
        "The lowest mean refusal score of harmful dev prompts at any angle. The code published "
        "with the paper wraps every harmless prompt that it calibrates on in a template that "
        "harmful ones lack; the last row does so too. `centred=True` measures from the prompts of "
        "both classes.",
        _frame(tables["selection"].drop(columns="problem")),
        f"The two directions have the cosine {_number(facts['cos_b1_wrapped'])}; "
        f"{facts['shared_sites_wrapped']} sites are steered in both.",
        "## Judges",
        _frame(tables["judges"]) if len(tables["judges"]) else "None was configured.",
        "## Capability",
        _frame(tables["capability"]) if len(tables["capability"]) else "Not measured.",
        *(["## Figures"] if figures else []),
        *(f"![{Path(path).stem.replace('_', ' ')}]({path})" for path in figures),
    ]
    return "\n\n".join(parts) + "\n"


def _outcomes(found: Iterable[Any]) -> list[str]:
    present = {verdict.outcome for verdict in found}
    return [outcome for outcome in get_args(Outcome) if outcome in present]


def _rest(table: pd.DataFrame, first: Sequence[str]) -> tuple[str, ...]:
    names = dict.fromkeys(table["variant"])
    return tuple(name for name in names if name not in (*first, UNSTEERED))


def _levels(table: pd.DataFrame, order: Sequence[str]) -> Iterable[str]:
    """A table per class: means with intervals, in the order given, the unsteered model first."""
    for name, label in (("positive", "Harmful"), ("negative", "Harmless")):
        of_class = table.loc[table["prompt_class"] == name]
        if of_class.empty:
            continue
        measured = {*of_class["metric"]}
        shown = {metric: head for metric, head in SHOWN.items() if metric in measured}
        rows = []
        for variant in (UNSTEERED, *order):
            here = of_class.query("variant == @variant").to_dict("records")
            first, by_metric = here[0], {row["metric"]: row for row in here}
            named = f"{variant} †" if "False" in str(first["admissible"]) else variant
            operator = str(first["operator"])
            angle = "" if operator.startswith(WITHOUT_ANGLE) else str(first["angle_deg"])
            place = ["", ""] if variant == UNSTEERED else [angle, operator]
            values = [_interval(by_metric[metric]) for metric in shown]
            rows.append((named, *place, _number(first["n_sites"]), *values))
        heads = ("", "angle (°)", "operator", "sites", *shown.values())
        n = int(of_class["n"].max())
        yield f"{label} test prompts ({n}):"
        yield markdown(heads, rows)
    yield "† no angle that was tried on dev kept nine tenths of the answers from collapsing."


def _interval(row: Mapping[Any, Any]) -> str:
    if math.isnan(row["mean"]):
        return "none"
    # Two digits after the point, so that a column can be compared; fewer of what is large.
    texts = [
        f"{row[name]:.2f}" if abs(row[name]) < 100 else f"{row[name]:.3g}"
        for name in ("mean", "low", "high")
    ]
    return negative("{} [{}, {}]".format(*texts))


def _frame(table: pd.DataFrame) -> str:
    rows = [tuple(map(_number, row)) for row in table.itertuples(index=False)]
    return markdown([name.replace("_", " ") for name in table.columns], rows)


def _number(value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "" if value is None else str(value)
    return "" if math.isnan(number) else negative(f"{number:.3g}")


def write_page(tables_dir: Path, docs: Path, name: str, figures: Mapping[str, str]) -> Path:
    """Copy the tables and figures below ``docs/name``, and write ``docs/name.md``."""
    home = docs / name
    home.mkdir(parents=True, exist_ok=True)
    for table in TABLES:
        (home / f"{table}.csv").write_text(
            (tables_dir / f"{table}.csv").read_text("utf-8"), "utf-8"
        )
    for figure, text in figures.items():
        (home / figure).write_text(text, "utf-8")
    path = docs / f"{name}.md"
    path.write_text(page_of(docs, name), "utf-8")
    return path


def page_of(docs: Path, name: str) -> str:
    """The page that the files below ``docs/name`` make."""
    figures = sorted(f"{name}/{path.name}" for path in (docs / name).glob("*.svg"))
    return page(read_tables(docs / name), figures)
