// The model's sites: a map of blocks and streams, the cosines of their directions, their norms.
const VIEWS = {
  means: { label: "class means on b1", needs: "positive_mean" },
  cosine: { label: "cosine of its direction with b1", needs: "direction_cosine" },
  plane: { label: "share of the activation in the plane", needs: "in_plane_positive" },
};
let view = "means";
let chosenSite = 0;

function startSites() {
  const box = byId("map");
  if (!box) return;
  const names = Object.keys(VIEWS).filter((name) => DATA.sites[VIEWS[name].needs]);
  view = names[0];
  const choice = byId("map-view");
  for (const name of names) {
    const input = html("input", { type: "radio", name: "map-view", value: name, checked: name === view ? "" : null, onchange: () => { view = name; drawMap(box.clientWidth); } });
    choice.append(html("label", {}, input, VIEWS[name].label));
  }
  chosenSite = Math.max(0, DATA.sites.is_direction_site.indexOf(1));
  onWidth(box, drawMap);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const { layer, stream } = DATA.sites;
    const streams = [...new Set(stream)];
    const to = streams.indexOf(stream[chosenSite]) + step[1];
    const found = layer.findIndex((each, row) => each === layer[chosenSite] + step[0] && stream[row] === streams[to]);
    if (found >= 0) { chosenSite = found; drawMap(box.clientWidth); }
  });
}

function drawMap(width) {
  const sites = DATA.sites;
  const streams = [...new Set(sites.stream)];
  const blocks = Math.max(...sites.layer) + 1;
  const left = 66;
  const cell = Math.max(9, Math.min(34, Math.floor((width - left - 4) / blocks)));
  const high = Math.max(30, Math.min(40, cell * 1.6));
  const total = left + blocks * cell + 4;
  const gap = 14;
  const height = streams.length * (high + gap) + 30;
  const drawn = svg("svg", { width: total, height, tabindex: 0, role: "group", "aria-label": "map of sites; arrow keys move, the line below reads" });
  const limit = (column) => Math.max(1e-9, ...sites[column].map((value) => Math.abs(value ?? 0)));
  const most = view === "means" ? Math.max(limit("positive_mean"), limit("negative_mean")) : view === "plane" ? Math.max(limit("in_plane_positive"), limit("in_plane_negative")) : 1;
  streams.forEach((stream, line) => drawn.append(svg("text", { x: left - 8, y: line * (high + gap) + high / 2 + 14, class: "axis end" }, stream)));
  sites.site.forEach((name, row) => {
    const x = left + sites.layer[row] * cell;
    const y = streams.indexOf(sites.stream[row]) * (high + gap) + 10;
    const group = svg("g", { class: sites.selected[row] ? "site on" : "site", onpointerenter: () => { chosenSite = row; readSite(); }, onpointerdown: () => { chosenSite = row; drawMap(width); } });
    const halves = view === "cosine" ? [sites.direction_cosine[row]] : view === "means" ? [sites.positive_mean[row], sites.negative_mean[row]] : [sites.in_plane_positive[row], sites.in_plane_negative[row]];
    halves.forEach((value, half) => {
      const tall = high / halves.length;
      const share = value === null ? null : value / most;
      const fill = view === "plane" && share !== null ? `color-mix(in oklab, var(--variant-1) ${Math.round(100 * share)}%, var(--middle))` : diverging(share);
      group.append(svg("rect", { x: x + 1, y: y + half * tall, width: cell - 2, height: tall, style: `fill:${fill}` }));
      const settled = view !== "means" || sites[half ? "negative_settled" : "positive_settled"][row];
      if (value !== null && cell >= 13 && view !== "plane")
        group.append(svg("text", { x: x + cell / 2, y: y + (half + 0.5) * tall + 4, class: "sign" }, settled ? (value < 0 ? "−" : "+") : "?"));
    });
    group.append(svg("rect", { x: x + 1, y, width: cell - 2, height: high, class: "frame" }));
    if (sites.is_direction_site[row]) group.append(svg("path", { d: `M${x + cell / 2 - 5},${y - 9}h10l-5,7z`, class: "star" }));
    if (row === chosenSite) group.append(svg("rect", { x: x - 0.5, y: y - 1.5, width: cell + 1, height: high + 3, class: "chosen" }));
    drawn.append(group);
  });
  const every = cell < 20 ? 4 : 2;
  for (let block = 0; block < blocks; block += every)
    drawn.append(svg("text", { x: left + (block + 0.5) * cell, y: height - 6, class: "axis mid" }, String(block)));
  drawn.append(svg("text", { x: left - 8, y: height - 6, class: "axis end" }, "block"));
  const focused = byId("map").contains(document.activeElement);
  byId("map").replaceChildren(drawn);
  if (focused) drawn.focus();
  readSite();
}

function readSite() {
  const sites = DATA.sites;
  const row = chosenSite;
  const facts = [html("b", {}, sites.site[row]), sites.selected[row] ? ", steered" : ", not steered"];
  if (sites.is_direction_site[row]) facts.push(", gives the direction");
  if (sites.positive_mean) {
    const mean = (label) => `${written(sites[`${label}_mean`][row], true)} ± ${written(sites[`${label}_sd`][row])}`;
    facts.push(` · mean on b1: ${CLASSES[0]} ${mean("positive")}, ${CLASSES[1]} ${mean("negative")}`);
    const open = CLASSES.filter((_, half) => !sites[half ? "negative_settled" : "positive_settled"][row]);
    if (open.length) facts.push(` (side not settled: ${open.join(", ")})`);
    facts.push(` · in the plane: ${written(sites.in_plane_positive[row])}, ${written(sites.in_plane_negative[row])}`);
  }
  facts.push(` · direction’s cosine with b1: ${written(sites.direction_cosine[row], true)}`);
  byId("map-said").replaceChildren(...facts);
}

function startCosines() {
  const canvas = byId("cosines");
  if (!canvas) return;
  const { sites, of } = DATA.cosines;
  const said = byId("cosines-said");
  canvas.width = canvas.height = sites.length;
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16));
    const [warm, cool, middle, nothing] = ["--high", "--low", "--mid", "--nothing"].map(colour);
    const context = canvas.getContext("2d");
    const image = context.createImageData(sites.length, sites.length);
    of.flat().forEach((value, place) => {
      const end = value < 0 ? cool : warm;
      for (let part = 0; part < 3; part++)
        image.data[4 * place + part] = value === null ? nothing[part] : middle[part] + Math.abs(value) * (end[part] - middle[part]);
      image.data[4 * place + 3] = 255;
    });
    context.putImageData(image, 0, 0);
  };
  draw();
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  let [row, column] = [chosenSite, Math.min(sites.length - 1, chosenSite + 1)];
  const read = () => said.replaceChildren(html("b", {}, sites[row]), " and ", html("b", {}, sites[column]), `: ${of[row][column] === null ? "a site without a direction" : `cosine ${written(of[row][column], true)}`}`);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, size) => Math.min(sites.length - 1, Math.max(0, Math.floor((offset / size) * sites.length)));
    row = at(event.clientY - box.top, box.height);
    column = at(event.clientX - box.left, box.width);
    read();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    row = Math.min(sites.length - 1, Math.max(0, row + step[0]));
    column = Math.min(sites.length - 1, Math.max(0, column + step[1]));
    read();
  });
  read();
}

function startNorms() {
  const box = byId("norms");
  if (!box) return;
  const { layer, stream, prompt_class: label, mean_norm: norm } = DATA.norms;
  const streams = [...new Set(stream)];
  const known = norm.filter((value) => value > 0);
  const [low, high] = [Math.log10(Math.min(...known)) - 0.05, Math.log10(Math.max(...known)) + 0.05];
  const last = Math.max(1, ...layer);
  onWidth(box, (width) => {
    const height = 260;
    const x = (block) => MARGIN.left + (block / last) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => MARGIN.top + ((high - Math.log10(value)) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    const drawn = svg("svg", { width, height, role: "img", "aria-label": "mean length of the activations by block, logarithmic" });
    for (let power = Math.floor(low); power <= high; power++)
      for (const times of high - low > 2 ? [1] : [1, 2, 5]) {
        const tick = times * 10 ** power;
        if (Math.log10(tick) < low || Math.log10(tick) > high) continue;
        drawn.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick), class: "grid" }));
        drawn.append(svg("text", { x: MARGIN.left - 7, y: y(tick) + 4, class: "axis end" }, tick >= 1 ? String(Math.round(tick)) : String(Number(tick.toPrecision(1)))));
      }
    for (const tick of niceTicks(0, last, 6)) if (Number.isInteger(tick)) drawn.append(svg("text", { x: x(tick), y: height - 6, class: "axis mid" }, String(tick)));
    streams.forEach((name, place) => {
      for (const of of ["positive", "negative"]) {
        const rows = layer.map((_, row) => row).filter((row) => stream[row] === name && label[row] === of && norm[row] > 0);
        const path = rows.map((row, at) => `${at ? "L" : "M"}${x(layer[row]).toFixed(1)},${y(norm[row]).toFixed(1)}`).join("");
        const wide = of === "positive";
        drawn.append(svg("path", { d: path, class: "curve", style: `stroke:var(--variant-${1 + (place % 4)});stroke-width:${wide ? 6 : 1.5};opacity:${wide ? 0.35 : 1}`, "stroke-dasharray": wide ? "" : DASHES[place % 6] }));
      }
    });
    box.replaceChildren(drawn);
  });
  byId("norms-legend").append(...streams.map((name, place) => {
    const look = { colour: `var(--variant-${1 + (place % 4)})`, dash: DASHES[place % 6], width: 1.75, mark: "circle" };
    const drawn = svg("svg", { width: 30, height: 12, "aria-hidden": "true" }, svg("line", { x1: 1, x2: 29, y1: 6, y2: 6, style: `stroke:${look.colour};stroke-width:2`, "stroke-dasharray": look.dash }));
    return html("span", {}, drawn, name);
  }));
}
