"""The sections of the page as HTML; what the data fill is left to the page's script."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import pandas as pd

from analyses.report.contents import Contents
from analyses.report.costs import against_text, entanglement


def verdict(contents: Contents) -> str:
    said = "".join(
        f'<div><p class="headline">{escape(part.headline)}</p>'
        f'<p class="detail">{escape(part.detail)}</p></div>'
        for part in contents.verdict
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in contents.notes)
    notes = f'<div class="notes" role="note" aria-label="notes">{notes}</div>' if notes else ""
    words = f'<div class="verdict" id="verdict">{said}</div>' if said else ""
    return f"<div>{words}{notes}</div>"


def dial(contents: Contents) -> str:
    if contents.curves.empty and contents.samples.empty:
        return ""
    steered = f" Moved: {contents.steered}." if contents.steered else ""
    if contents.moved is not None and len(contents.moved):
        negative = escape(contents.classes["negative"])
        trace = (
            f" Below the first {negative} answers: their tokens, in stronger colour the further "
            "moved."
        )
    elif contents.steered:
        trace = " No trace of single tokens is stored; <code>ss_lens.Trace</code> records one."
    else:
        trace = ""
    curves = "" if contents.curves.empty else _CURVES
    answers = "" if contents.samples.empty else _ANSWERS
    return _DIAL.format(
        moved=f"{escape(steered)}{trace}",
        curves=curves,
        answers=answers,
        ring=escape(_ring(contents)),
    )


def _ring(contents: Contents) -> str:
    if not contents.measures:
        return ""
    leading, first = contents.measures[0], contents.series[0]
    level = (
        f"warm above {leading.level:g}, cool below" if leading.level is not None else "warm: high"
    )
    dots = ""
    if not contents.samples.empty:
        dots = " Filled dots: angles with answers; hollow dots: scores only."
    return f"The ring is the {leading.label} of “{first.name}”, {level}.{dots}"


_DIAL = """<section aria-labelledby="dial-title">
<h2 id="dial-title">The dial</h2>
<p class="caption">Turn θ by dragging, or with the arrow keys on the slider. {ring}</p>
<div class="turn">
<div class="knob">
<svg id="dial" viewBox="0 0 340 340" aria-hidden="true"></svg>
<input type="range" id="theta" min="0" max="0" step="1" value="0" aria-label="angle θ">
<div id="jumps"></div>
<p class="moved"><span id="moved"></span>{moved}</p>
</div>
{curves}
</div>
{answers}
</section>"""
_CURVES = """<div>
<div id="curves"></div>
<h3 class="axis-title">At <span id="legend-at"></span>; in brackets 2.5–97.5 % of the draws or
a 95 % interval</h3>
<div class="scroll"><table id="legend"></table></div>
</div>"""
_ANSWERS = """<h2 id="answers-title"><span>Answers at <b id="answers-at"></b></span><span>
<button type="button" id="back" aria-label="previous angle with answers">◂</button><button
type="button" id="on" aria-label="next angle with answers">▸</button></span></h2>
<p class="pick"><label>arm <select id="arm"></select></label></p>
<p class="caption" id="answers-said" aria-live="polite"></p>
<div id="answers"></div>"""


def costs(contents: Contents) -> str:
    """Score against text, and one class of prompts against the other, where both were measured."""
    halves, (positive, negative) = "", _classes(contents)
    if against_text(contents) is not None:
        halves += _AGAINST_TEXT.format(positive=positive)
    if entanglement(contents) is not None:
        halves += _ENTANGLED.format(
            positive=positive, negative=negative, heading=positive.capitalize()
        )
    return f"{_COSTS}{halves}</div></section>" if halves else ""


_COSTS = """<section aria-labelledby="costs-title">
<h2 id="costs-title">What a turn costs</h2>
<p class="caption">Rings: where the dial stands.</p>
<div class="halves">"""
_AGAINST_TEXT = """<div><h3>Refusal against text</h3><div id="against-text"></div>
<p class="caption">All curves on {positive} prompts, at all angles. The dashed line joins the points
that no other beats, with a lower score and as much opening mass.</p></div>"""
_ENTANGLED = """<div><h3>{heading} against {negative} prompts</h3><div id="entangled"></div>
<p class="caption">The method around the circle. A turn that moves {positive} prompts alone runs
level; one that moves both alike runs along the dotted diagonal.</p></div>"""


def tables(contents: Contents) -> str:
    return "".join(
        f"<section><h2>{escape(table.title)}</h2>"
        f'<p class="caption">{escape(table.caption)}</p>{_table(table.rows)}</section>'
        for table in contents.tables
    )


def _table(rows: pd.DataFrame) -> str:
    """The first column heads the rows; a repeated heading is written once."""
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in rows)
    lines, before = [], None
    for first, *others in rows.itertuples(index=False):
        heading = "" if first == before else escape(str(first))
        cells = "".join(_cell(str(cell)) for cell in others)
        lines.append(f'<tr><th scope="row">{heading}</th>{cells}</tr>')
        before = first
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    kind = ' class="short"' if len(text) < 24 else ""
    return f"<td{kind}>{escape(text)}</td>"


def sites(contents: Contents) -> str:
    if contents.sites is None:
        return ""
    seen = f" Of {contents.sites_seen}." if contents.sites_seen else ""
    cosines = "" if contents.cosines is None else _COSINES
    positive, negative = _classes(contents)
    names = {"positive": positive, "negative": negative}
    norms = "" if contents.norms is None else _NORMS.format(**names)
    pair = f'<div class="pair">{cosines}{norms}</div>' if cosines or norms else ""
    return f"{_MAP.format(seen=escape(seen), **names)}{pair}</section>"


_MAP = """<section aria-labelledby="sites-title">
<h2 id="sites-title">Sites of the model</h2>
<p class="caption">One cell per block and stream; {positive} prompts in the upper half, {negative}
ones in the lower. + and − are the side of the mean, ? one that is not settled. Framed sites are
steered; the wedge marks the site that gives the direction.{seen}</p>
<fieldset class="pick" id="map-view" aria-label="what the map shows"></fieldset>
<div class="scroll" id="map"></div>
<p class="reading" id="map-said" aria-live="polite"></p>
"""
_SCALE = '<p class="scale">−1 <i></i> +1</p>'
_COSINES = f"""<div><h3>Cosines of the sites’ directions</h3>
<canvas id="cosines" tabindex="0" role="img" aria-label="cosines of the directions of all pairs of
sites, in the order of the model; arrow keys move, the line below reads"></canvas>
{_SCALE}<p class="reading" id="cosines-said" aria-live="polite"></p></div>"""
_NORMS = """<div><h3>Mean length of the activations, by block (logarithmic)</h3>
<div id="norms"></div><div id="norms-legend"></div>
<p class="caption">Wide and pale: {positive} prompts; thin: {negative} ones.</p>
</div>"""


def samples(contents: Contents) -> str:
    if contents.samples.empty:
        return ""
    choices = "".join(
        f'<label>{name} <select id="by-{key}"><option value="">all</option></select></label>'
        for key, name in (("class", "class"), ("part", "part"), ("arm", "arm"), ("angle", "θ"))
    )
    positive, _ = _classes(contents)
    return f"""<section aria-labelledby="samples-title">
<h2 id="samples-title">All samples</h2>
<div class="pick"><label>find <input type="search" id="by-text"
placeholder="in prompts and answers"></label>{choices}
<label><input type="checkbox" id="show-folded"> show what answers {positive} prompts</label></div>
<div class="scroll"><table id="samples"><thead></thead><tbody></tbody></table></div>
<div class="pages"><button type="button" id="previous">Previous</button>
<button type="button" id="next">Next</button><span id="counted" aria-live="polite"></span></div>
</section>"""


def made(contents: Contents) -> str:
    commands = "".join(
        f"<p>{escape(command.purpose)}</p><pre><code>{escape(command.line)}</code></pre>"
        for command in contents.commands
    )
    return (
        '<section aria-labelledby="made-title"><h2 id="made-title">How this was made</h2>'
        f"<h3>Commands</h3>{commands}"
        f"<h3>Configuration</h3>{_facts(contents.configuration)}"
        f"<h3>Provenance</h3>{_facts(contents.provenance)}</section>"
    )


def _classes(contents: Contents) -> tuple[str, str]:
    return escape(contents.classes["positive"]), escape(contents.classes["negative"])


def _facts(facts: Mapping[str, str]) -> str:
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(rows)}</dl>"
