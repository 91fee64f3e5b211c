// What a turn costs: score against text, and one class of prompts against the other.
function startCosts() {
  const { text, both } = DATA.costs;
  const label = DATA.measures[0]?.label;
  if (byId("against-text")) {
    const front = text.x.map((x, row) => ({ x, y: text.y[row], row })).filter(({ row }) => text.on_front[row]);
    front.sort((a, b) => a.x - b.x);
    scatter(byId("against-text"), text, ["refusal score (nats)", "opening mass"], {
      looksOf: (row) => LOOKS[DATA.series.findIndex((series) => series.name === text.series[row])],
      path: front,
    });
  }
  if (byId("entangled")) {
    const rows = both.x.map((x, row) => ({ x, y: both.y[row] }));
    scatter(byId("entangled"), both, [`${CLASSES[0]} prompts: ${label}`, `${CLASSES[1]} prompts`], {
      looksOf: () => LOOKS[0],
      path: [...rows, rows[0]],
      square: true,
    });
  }
}

function scatter(box, points, titles, { looksOf, path, square }) {
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = Math.max(0.07 * (high - low), 0.02);
    return [low - pad, high + pad];
  };
  const whole = range([...points.x, ...points.y]);
  const [x0, x1] = square ? whole : range(points.x);
  const [y0, y1] = square ? whole : range([0, 1, ...points.y]);
  let follow = () => {};
  turning.follow.push(() => follow());
  onWidth(box, (width) => {
    const height = 300;
    const bottom = height - 42;
    const x = (value) => MARGIN.left + ((value - x0) / (x1 - x0)) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => MARGIN.top + ((y1 - value) / (y1 - y0)) * (bottom - MARGIN.top);
    const drawn = svg("svg", { width, height, role: "img", "aria-label": `${titles[1]} against ${titles[0]}` });
    for (const tick of niceTicks(y0, y1, 5)) {
      drawn.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick), class: "grid" }));
      drawn.append(svg("text", { x: MARGIN.left - 7, y: y(tick) + 4, class: "axis end" }, minus(String(tick))));
    }
    for (const tick of niceTicks(x0, x1, width < 420 ? 4 : 6)) {
      drawn.append(svg("line", { x1: x(tick), x2: x(tick), y1: MARGIN.top, y2: bottom, class: "grid" }));
      drawn.append(svg("text", { x: x(tick), y: bottom + 16, class: "axis mid" }, minus(String(tick))));
    }
    drawn.append(svg("text", { x: width - MARGIN.right, y: height - 6, class: "axis end" }, titles[0]));
    if (square) drawn.append(svg("line", { x1: x(x0), y1: y(x0), x2: x(x1), y2: y(x1), class: "level" }));
    const line = path.map((at) => `${x(at.x).toFixed(1)},${y(at.y).toFixed(1)}`).join("L");
    if (path.length > 1) drawn.append(svg("path", { d: `M${line}`, class: square ? "curve trail" : "curve front" }));
    points.x.forEach((value, row) => {
      const look = looksOf(row);
      drawn.append(marker(look.mark, x(value), y(points.y[row]), `fill:${look.colour}`));
    });
    const cursor = svg("g", { class: "cursor" });
    drawn.append(cursor);
    follow = () =>
      cursor.replaceChildren(
        ...points.x.flatMap((value, row) =>
          points.angle_deg[row] === theta() ? [svg("circle", { cx: x(value), cy: y(points.y[row]), r: 7, style: `stroke:${looksOf(row).colour}` })] : [],
        ),
      );
    box.replaceChildren(html("p", { class: "axis-title" }, titles[1]), drawn);
    follow();
  });
}
