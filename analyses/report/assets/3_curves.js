// Curves against θ: one panel per measure, a legend that reads the values at the dial's angle.
const shown = firstShown();
const panels = [];
const MARGIN = { left: 44, right: 10, top: 12, bottom: 24 };

// The method and its harmless prompts, five other ways, three controls: more is a tick away.
function firstShown() {
  const room = { method: Infinity, harmless: Infinity, variant: 5, random: 3 };
  // Of the controls those of many draws come first.
  const order = DATA.series.map((series, place) => [Math.max(...series.draws) > 1 ? 0 : 1, place]);
  order.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return new Set(order.flatMap(([, place]) => (room[DATA.series[place].role]-- > 0 ? [place] : [])));
}

function niceTicks(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= raw);
  const ticks = [];
  for (let tick = Math.ceil(low / step); tick * step <= high + 1e-9; tick++) ticks.push(tick * step);
  return ticks.map((tick) => Number(tick.toPrecision(12)));
}

// Measured at a few of the method's angles only: marks with their range, no line between them.
const isSparse = (series) =>
  series !== DATA.series[0] && series.angles.length < Math.max(2, DATA.series[0].angles.length / 2);

// Two kinds of control at one angle stand beside each other.
function besides(series, look) {
  if (series.role !== "random" || !isSparse(series)) return 0;
  return LOOKS.filter((other) => other.width === 1.5).indexOf(look) % 2 ? 6 : -6;
}

function points(series, key) {
  const { mean, low, high } = series.values[key];
  const rows = series.angles.map((angle, row) => ({ angle, mean: mean[row], low: low[row], high: high[row] }));
  if (!isSparse(series) && rows.length > 1 && rows[0].angle === 0) rows.push({ ...rows[0], angle: 360 });
  return rows;
}

function drawPanel(panel, width) {
  const measure = DATA.measures.find((each) => each.key === panel.key);
  const height = panel.height;
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const visible = DATA.series.flatMap((series, place) => (shown.has(place) ? [[series, LOOKS[place]]] : []));
  const numbers = visible.flatMap(([series]) =>
    points(series, panel.key).flatMap((row) => [row.mean, row.low, row.high]).concat(series.values[panel.key].unsteered),
  );
  const known = numbers.filter((value) => value !== null);
  if (measure.level !== null) known.push(measure.level);
  let [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
  if (measure.rate) [low, high] = [0, Math.max(1, high)];
  const pad = measure.rate ? 0.03 : (high - low) * 0.06 || 1; // 1 where there is one value, or none
  [low, high] = [low - pad, high + pad];
  const x = (angle) => MARGIN.left + (angle / 360) * inner.width;
  const y = (value) => MARGIN.top + ((high - value) / (high - low)) * inner.height;

  const drawn = svg("svg", { width, height, role: "img", "aria-label": `${measure.label} against the angle` });
  for (const tick of niceTicks(low, high, 5)) {
    drawn.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick), class: "grid" }));
    drawn.append(svg("text", { x: MARGIN.left - 7, y: y(tick) + 4, class: "axis end" }, minus(String(tick))));
  }
  for (let tick = 0; tick <= 360; tick += width < 420 ? 90 : 45)
    drawn.append(svg("text", { x: x(tick), y: height - 6, class: tick === 360 ? "axis end" : "axis mid" }, `${tick}°`));
  if (measure.level !== null)
    drawn.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(measure.level), y2: y(measure.level), class: "level" }));

  for (const [series, look] of visible) {
    const rows = points(series, panel.key);
    const sparse = isSparse(series);
    const aside = besides(series, look);
    const ranged = rows.filter((row) => row.low !== null && row.high !== null);
    if (sparse)
      for (const row of ranged)
        drawn.append(svg("rect", { x: x(row.angle) + aside - 4, width: 8, y: y(row.high), height: Math.max(1, y(row.low) - y(row.high)), rx: 2, style: `fill:${look.colour}`, class: "range" }));
    else if (ranged.length > 1) {
      const top = ranged.map((row) => `${x(row.angle).toFixed(1)},${y(row.high).toFixed(1)}`);
      const bottom = ranged.map((row) => `${x(row.angle).toFixed(1)},${y(row.low).toFixed(1)}`).reverse();
      drawn.append(svg("path", { d: `M${[...top, ...bottom].join("L")}z`, style: `fill:${look.colour}`, class: "band" }));
    }
    if (!sparse) {
      let path = "";
      let open = false;
      for (const row of rows) {
        if (row.mean !== null) path += `${open ? "L" : "M"}${x(row.angle).toFixed(1)},${y(row.mean).toFixed(1)}`;
        open = row.mean !== null;
      }
      if (path) drawn.append(svg("path", { d: path, class: "curve", style: `stroke:${look.colour};stroke-width:${look.width}`, "stroke-dasharray": look.dash }));
    }
    if (rows.length <= 40)
      for (const row of rows)
        if (row.mean !== null) drawn.append(marker(look.mark, x(row.angle) + aside, y(row.mean), `fill:${look.colour}`));
  }
  const cursor = svg("g", { class: "cursor" });
  drawn.append(cursor);
  panel.cursor = () => {
    const angle = theta();
    cursor.replaceChildren(svg("line", { x1: x(angle), x2: x(angle), y1: MARGIN.top, y2: height - MARGIN.bottom }));
    for (const [series, look] of visible) {
      const value = series.values[panel.key].mean[series.angles.indexOf(angle)];
      if (value !== null && value !== undefined)
        cursor.append(svg("circle", { cx: x(angle) + besides(series, look), cy: y(value), r: 6.5, style: `stroke:${look.colour}` }));
    }
  };
  const follow = (event) => {
    const at = event.clientX - drawn.getBoundingClientRect().left;
    turnTo(nearest(Math.min(360, Math.max(0, ((at - MARGIN.left) / inner.width) * 360))));
  };
  drawn.addEventListener("pointerdown", (event) => {
    drawn.setPointerCapture(event.pointerId);
    follow(event);
  });
  drawn.addEventListener("pointermove", (event) => {
    if (drawn.hasPointerCapture(event.pointerId)) follow(event);
  });
  panel.box.replaceChildren(drawn);
  panel.cursor();
}

function startCurves() {
  const host = byId("curves");
  if (!host) return;
  const keys = DATA.measures.map((measure) => measure.key);
  for (const place of [0, 1].slice(0, keys.length)) {
    const box = html("div", { class: "panel" });
    const panel = { key: keys[place], height: place ? 170 : 240, box, cursor: () => {} };
    const heading =
      keys.length > 2
        ? html(
            "select",
            { "aria-label": "measure of this panel", onchange: (event) => { panel.key = event.target.value; drawPanel(panel, box.clientWidth); legend(); } },
            ...DATA.measures.map((measure) => html("option", { value: measure.key, selected: measure.key === panel.key ? "" : null }, measure.label)),
          )
        : html("span", {}, DATA.measures[place].label);
    host.append(html("h3", { class: "axis-title" }, heading), box);
    panels.push(panel);
    onWidth(box, (width) => drawPanel(panel, width));
  }
  legend();
  turning.follow.push(() => {
    for (const panel of panels) panel.cursor();
    legendValues();
  });
}

function swatch(look) {
  const drawn = svg("svg", { width: 30, height: 12, "aria-hidden": "true" });
  drawn.append(svg("line", { x1: 1, x2: 29, y1: 6, y2: 6, style: `stroke:${look.colour};stroke-width:${look.width}`, "stroke-dasharray": look.dash }));
  drawn.append(marker(look.mark, 15, 6, `fill:${look.colour}`));
  return drawn;
}

let legendCells = [];
function legend() {
  const head = html("tr", {}, html("th", { scope: "col" }, "curve"));
  for (const panel of panels) {
    const label = DATA.measures.find((measure) => measure.key === panel.key).label;
    head.append(html("th", { scope: "col", class: "number" }, label));
  }
  head.append(html("th", { scope: "col", class: "number" }, "from unsteered"));
  head.append(html("th", { scope: "col", class: "number" }, "prompts"));
  legendCells = [];
  const rows = DATA.series.map((series, place) => {
    const box = html("input", { type: "checkbox", checked: shown.has(place) ? "" : null, onchange: (event) => {
      if (event.target.checked) shown.add(place);
      else shown.delete(place);
      for (const panel of panels) drawPanel(panel, panel.box.clientWidth);
    } });
    const cells = [...panels.map(() => html("td", { class: "number" })), html("td", { class: "number" }), html("td", { class: "number" })];
    legendCells.push(cells);
    return html("tr", {}, html("th", { scope: "row" }, html("label", {}, box, swatch(LOOKS[place]), html("span", {}, series.name))), ...cells);
  });
  byId("legend").replaceChildren(html("thead", {}, head), html("tbody", {}, ...rows));
  legendValues();
}

function legendValues() {
  byId("legend-at").textContent = degrees(theta());
  DATA.series.forEach((series, place) => {
    const row = series.angles.indexOf(theta());
    const cells = legendCells[place];
    panels.forEach((panel, column) => {
      const { mean, low, high } = series.values[panel.key];
      const signed = !DATA.measures.find((measure) => measure.key === panel.key).rate;
      const value = row < 0 ? null : mean[row];
      cells[column].replaceChildren(written(value, signed));
      if (row >= 0 && value !== null && low[row] !== null)
        cells[column].append(html("small", {}, `[${written(low[row], signed)}, ${written(high[row], signed)}]`));
    });
    const { mean, unsteered } = series.values[panels[0].key];
    const change = row < 0 || mean[row] === null || unsteered === null ? null : mean[row] - unsteered;
    cells[panels.length].textContent = written(change, true);
    cells[panels.length + 1].replaceChildren(row < 0 ? "–" : String(series.n[row] ?? "–"));
    if (row >= 0 && series.draws[row] > 1) cells[panels.length + 1].append(html("small", {}, `${series.draws[row]} draws`));
  });
}
