"""The sites of a model as a picture: block × stream, with what was chosen among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

from ss_lens.models.sites import STREAMS, Site

FILL, RING = "#009E73", "#D55E00"
"""Of Okabe and Ito's palette: both stand out from black and from white."""
_CELL, _GAP, _LABELS, _LETTER = 14, 3, 96, 11


def site_map(
    sites: Sequence[Site],
    *,
    filled: Collection[Site] = (),
    ring: Site | None = None,
    crossed: Collection[Site] = (),
) -> str:
    """An inline SVG with a square per site, shallow blocks at the left.

    It needs nothing from elsewhere; lines and letters have the colour of the text around it.

    Args:
        sites: all of them.
        filled: those that are steered.
        ring: where the direction comes from.
        crossed: those without a direction.
    """
    present = {site.stream for site in sites}
    streams = [stream for stream in STREAMS if stream in present]
    layers = sorted({site.layer for site in sites})
    step = _CELL + _GAP
    width, height = _LABELS + step * len(layers) + 8, step * len(streams) + 44
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 10**6) if len(layers) <= 16 * n)
    parts = [
        _text(_LABELS - 8, step * row + _LETTER + 2, stream, "end")
        for row, stream in enumerate(streams)
    ]
    for column, layer in enumerate(layers):
        if layer % every == 0:
            x = _LABELS + step * column + _CELL / 2
            parts.append(_text(x, step * len(streams) + 12, str(layer), "middle"))
    for site in sites:
        x = _LABELS + step * layers.index(site.layer)
        y = step * streams.index(site.stream) + 1
        parts.append(_square(x, y, site, site in filled, site == ring, site in crossed))
    key_y = height - 16
    key, x = [("steered", (True, False, False)), ("not steered", (False, False, False))], _LABELS
    if ring is not None:
        key.append(("the direction's site", (ring in filled, True, False)))
    if crossed:
        key.append(("without a direction", (False, False, True)))
    for name, marks in key:
        parts.append(_square(x, key_y, None, *marks))
        parts.append(_text(x + _CELL + 5, key_y + _LETTER, name, "start"))
        x += _CELL + 18 + int(6.2 * len(name))
    width = max(width, x)
    said = f"{len(filled)} of {len(sites)} sites are steered"
    if ring is not None:
        said += f"; the direction comes from {ring}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(said)}" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'style="max-width:100%;height:auto;display:block;margin-top:8px" fill="currentColor" '
        f'font-family="sans-serif" font-size="{_LETTER}">{"".join(parts)}</svg>'
    )


def _square(
    x: float | int, y: float | int, site: Site | None, filled: bool, ringed: bool, crossed: bool
) -> str:
    drawn = (
        f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{_CELL - 1}" height="{_CELL - 1}" rx="2" '
        f'fill="{FILL if filled else "none"}" stroke="currentColor" stroke-opacity="0.45"/>'
    )
    if crossed:
        a, b, c, d = x + 4, x + _CELL - 4, y + 4, y + _CELL - 4
        drawn += (
            f'<path d="M{a} {c}L{b} {d}M{a} {d}L{b} {c}" stroke="currentColor" '
            'stroke-opacity="0.7" fill="none"/>'
        )
    if ringed:
        drawn += (
            f'<circle cx="{x + _CELL / 2}" cy="{y + _CELL / 2}" r="{_CELL / 2 + 1}" fill="none" '
            f'stroke="{RING}" stroke-width="2.5"/>'
        )
    if site is None:
        return drawn
    state = ["steered" if filled else "not steered"]
    state += ["the direction's site"] * ringed + ["without a direction"] * crossed
    named = escape(f"{site}: {', '.join(state)}")
    return f"<g><title>{named}</title>{drawn}</g>"


def _text(x: float | int, y: float | int, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
