// What all parts of the page share: the data, elements, numbers, and the angle that is shown.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SAMPLES = DATA.samples;
const byId = (id) => document.getElementById(id);

function element(space, tag, attributes, children) {
  const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  // Texts become text nodes, never markup: prompts and answers are untrusted.
  for (const child of children) if (child !== null) made.append(child);
  return made;
}
const html = (tag, attributes, ...children) => element(null, tag, attributes, children);
const svg = (tag, attributes, ...children) => {
  const { width, height } = attributes;
  // With a box of its own a drawing shrinks to the width of a sheet when it is printed.
  const box = tag === "svg" && width ? { viewBox: `0 0 ${width} ${height}` } : {};
  return element("http://www.w3.org/2000/svg", tag, { ...box, ...attributes }, children);
};

const minus = (text) => text.replace("-", "−");
function written(value, signed = false) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = value.toFixed(size >= 100 ? 0 : size >= 0.1 || size < 0.0005 ? 2 : 3);
  if (Number(text) === 0) return "0.00";
  return (signed && value > 0 ? "+" : "") + minus(text);
}
const degrees = (angle) => `${Number(angle.toFixed(2))}°`;
const CLASSES = DATA.classes;

// The angle, as its place among those that were measured.
const turning = { place: Math.max(0, DATA.angles.indexOf(DATA.start)), follow: [] };
const theta = () => DATA.angles[turning.place] ?? 0;
function turnTo(place) {
  const next = Math.min(Math.max(place, 0), DATA.angles.length - 1);
  if (next === turning.place) return;
  turning.place = next;
  for (const follow of turning.follow) follow();
}
function nearest(angle) {
  let best = 0;
  let least = Infinity;
  DATA.angles.forEach((other, place) => {
    const apart = Math.abs(((angle - other + 540) % 360) - 180);
    if (apart < least) [best, least] = [place, apart];
  });
  return best;
}

// Rows of the samples by arm and angle; the unsteered ones by none.
const rowsOf = new Map();
const still = new Set(SAMPLES.arms.filter((_, place) => SAMPLES.still[place]));
SAMPLES.arm.forEach((arm, row) => {
  const key = `${arm}/${SAMPLES.theta[row]}`;
  if (!rowsOf.has(key)) rowsOf.set(key, []);
  rowsOf.get(key).push(row);
});
const unsteeredRows = rowsOf.get(`${SAMPLES.unsteered}/-1`) || [];
const isStill = (arm, place) => still.has(arm) && DATA.angles[place] === 0;
function answersAt(arm, place) {
  return rowsOf.get(`${arm}/${place}`) || (isStill(arm, place) ? unsteeredRows : []);
}
const hasTexts = (arm, place) => answersAt(arm, place).length > 0;
const textOf = (column, row) => SAMPLES.strings[SAMPLES[column][row]];

// How a curve looks: greyscale keeps dashes and marks apart.
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 4", "4 2"];
const MARKS = ["square", "triangle", "diamond", "circle"];
function looks() {
  let variant = 0;
  let random = 0;
  return DATA.series.map((series) => {
    if (series.role === "method") return { colour: "var(--warm)", dash: "", mark: "circle", width: 3 };
    if (series.role === "harmless")
      return { colour: "var(--cool)", dash: "7 4", mark: "diamond", width: 2 };
    if (series.role === "random") {
      const place = random++;
      const colour = place % 2 ? "var(--random-2)" : "var(--random-1)";
      return { colour, dash: DASHES[(place >> 1) % 6], mark: MARKS[place % 2], width: 1.5 };
    }
    const place = variant++;
    const colour = `var(--variant-${1 + (place % 4)})`;
    return { colour, dash: DASHES[1 + (place % 5)], mark: MARKS[place % 4], width: 1.75 };
  });
}
const LOOKS = looks();
const SHAPES = {
  square: "M-3.4,-3.4h6.8v6.8h-6.8z",
  triangle: "M0,-4.4L4.2,3.2H-4.2z",
  diamond: "M0,-4.6L4.6,0L0,4.6L-4.6,0z",
  circle: "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0z",
};
const marker = (kind, x, y, style) =>
  svg("path", { d: SHAPES[kind], transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`, style });

// From cool (−1) over the paper to warm (+1); printed, it darkens all the way.
function diverging(share) {
  if (share === null) return "var(--nothing)";
  const strength = Math.round(100 * Math.min(1, Math.abs(share)));
  return `color-mix(in oklab, ${share < 0 ? "var(--low)" : "var(--high)"} ${strength}%, var(--mid))`;
}
// Draws again whenever the width of a box changes.
function onWidth(box, draw) {
  let known = 0;
  new ResizeObserver(() => {
    const width = Math.floor(box.clientWidth);
    if (width && width !== known) draw((known = width));
  }).observe(box);
}
