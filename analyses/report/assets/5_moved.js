// Which tokens of a prompt and its answer were moved, and how far: in stronger colour the further.
const MOVED = DATA.moved;
const movedAt = new Map(MOVED ? MOVED.row.map((row, place) => [row, place]) : []);
const furthest = MOVED ? Math.max(0.001, ...MOVED.of.flat()) : 1;

function movedTokens(row) {
  const place = movedAt.get(row);
  if (place === undefined) return null;
  const tokens = MOVED.tokens[place];
  const values = MOVED.of[place];
  const start = MOVED.prompt[place];
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const most = values.indexOf(Math.max(...values));
  const shown = (from, to) => tokens.slice(from, to).map((token, i) => movedToken(token, values[from + i]));
  return html(
    "details",
    { class: "tokens", open: "" },
    html("summary", {}, html("span", {}, `moved by ${written(mean)} of their length on average; most “${legible(tokens[most])}”, ${written(values[most])}`)),
    html("p", {}, html("b", {}, "prompt "), ...shown(0, start)),
    html("p", {}, html("b", {}, "answer "), ...shown(start, tokens.length)),
    html("p", { class: "scale" }, "0 ", html("i", { class: "moved-scale" }), ` ${written(furthest)} of the activation’s length, mean over the steered sites`),
  );
}

function movedToken(token, value) {
  const share = value / furthest;
  const style = `background: color-mix(in oklab, var(--warm) ${Math.round(100 * share)}%, var(--middle)); color: ${share > 0.72 ? "var(--paper)" : "var(--ink)"}`;
  return html("span", { class: "token", style, title: written(value) }, legible(token));
}
const legible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
