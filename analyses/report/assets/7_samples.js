// The table of samples: filtered by text and choice, sorted by any column, a page at a time.
const PAGE = 25;
const table = { sort: null, down: false, page: 0, rows: [] };

function startSamples() {
  if (!byId("samples")) return;
  const fill = (id, values) => {
    const select = byId(id);
    for (const [value, label] of values) select.append(html("option", { value }, label));
    select.closest("label").hidden = values.length < 2;
  };
  const used = (column) => [...new Set(SAMPLES[column])];
  fill("by-class", used("cls").map((cls) => [cls, CLASSES[cls]]));
  fill("by-part", used("part").map((part) => [part, SAMPLES.strings[part]]));
  fill("by-arm", used("arm").map((arm) => [arm, SAMPLES.strings[arm]]));
  fill("by-angle", used("theta").sort((a, b) => a - b).map((place) => [place, place < 0 ? "unsteered" : degrees(DATA.angles[place])]));
  for (const id of ["by-class", "by-part", "by-arm", "by-angle", "show-folded"]) byId(id).addEventListener("change", refilter);
  byId("by-text").addEventListener("input", refilter);
  byId("previous").addEventListener("click", () => turnPage(-1));
  byId("next").addEventListener("click", () => turnPage(1));
  head();
  refilter();
}

const columns = () => [
  { name: "θ", of: (row) => (SAMPLES.theta[row] < 0 ? -1 : DATA.angles[SAMPLES.theta[row]]), shown: (row) => (SAMPLES.theta[row] < 0 ? "unsteered" : degrees(DATA.angles[SAMPLES.theta[row]])), number: true },
  ...(SAMPLES.arms.length > 1 ? [{ name: "arm", of: (row) => textOf("arm", row) }] : []),
  { name: "class", of: (row) => CLASSES[SAMPLES.cls[row]] },
  { name: "prompt", of: (row) => textOf("prompt", row), wide: true },
  { name: "answer", of: (row) => textOf("text", row), wide: true, folded: true },
  ...SAMPLES.scores.map((score) => ({
    name: score.label,
    of: (row) => score.values.of[row],
    shown: (row) => (score.values.kind === "truth" && score.values.of[row] !== null ? (score.values.of[row] ? "yes" : "no") : written(score.values.of[row])),
    number: true,
  })),
];
const COLUMNS = columns();

function head() {
  const row = html("tr", {});
  COLUMNS.forEach((column, place) => {
    const click = () => {
      table.down = table.sort === place ? !table.down : false;
      table.sort = place;
      refilter();
    };
    row.append(html("th", { scope: "col", class: column.number ? "number" : null }, html("button", { type: "button", onclick: click }, column.name)));
  });
  byId("samples").querySelector("thead").replaceChildren(row);
}

function refilter() {
  const wanted = byId("by-text").value.trim().toLowerCase();
  const chosen = ["cls", "part", "arm", "theta"].map((column, place) => [column, byId(["by-class", "by-part", "by-arm", "by-angle"][place]).value]);
  const matching = new Map();
  const matches = (code) => {
    if (!matching.has(code)) matching.set(code, SAMPLES.strings[code].toLowerCase().includes(wanted));
    return matching.get(code);
  };
  table.rows = SAMPLES.cls.map((_, row) => row).filter(
    (row) => chosen.every(([column, value]) => value === "" || SAMPLES[column][row] === Number(value)) && (wanted === "" || matches(SAMPLES.prompt[row]) || matches(SAMPLES.text[row])),
  );
  if (table.sort !== null) {
    const of = COLUMNS[table.sort].of;
    const keys = new Map(table.rows.map((row) => [row, of(row)]));
    const order = table.down ? -1 : 1;
    // Rows without a value come last, whichever way it is sorted.
    table.rows.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return order * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
  }
  byId("samples").querySelectorAll("thead th").forEach((cell, place) => {
    cell.setAttribute("aria-sort", place !== table.sort ? "none" : table.down ? "descending" : "ascending");
  });
  table.page = 0;
  turnPage(0);
}

function turnPage(by) {
  const pages = Math.max(1, Math.ceil(table.rows.length / PAGE));
  table.page = Math.min(Math.max(table.page + by, 0), pages - 1);
  const rows = table.rows.slice(table.page * PAGE, (table.page + 1) * PAGE);
  const unfolded = byId("show-folded").checked;
  byId("samples").querySelector("tbody").replaceChildren(...rows.map((row) => html("tr", {}, ...COLUMNS.map((column) => {
    const hide = column.folded && SAMPLES.cls[row] === 0 && !unfolded;
    const text = hide ? "folded away" : column.shown ? column.shown(row) : column.of(row);
    const kind = [column.number ? "number" : "", column.wide ? "wide" : "", hide ? "none" : ""].join(" ").trim();
    return html("td", { class: kind || null }, text);
  }))));
  byId("previous").disabled = table.page === 0;
  byId("next").disabled = table.page === pages - 1;
  const first = table.rows.length ? table.page * PAGE + 1 : 0;
  byId("counted").textContent = `${first}–${table.page * PAGE + rows.length} of ${table.rows.length} (${SAMPLES.cls.length} in all)`;
}
