// The round dial and its slider: both snap to the angles that were measured.
const CENTRE = 170;
const around = (angle, radius) => {
  const turn = (angle * Math.PI) / 180;
  return [CENTRE + radius * Math.sin(turn), CENTRE - radius * Math.cos(turn)];
};
const point = (pair) => pair.map((number) => number.toFixed(2)).join(",");

function arc(from, to, inner, outer) {
  const large = to - from > 180 ? 1 : 0;
  return (
    `M${point(around(from, outer))}A${outer},${outer} 0 ${large},1 ${point(around(to, outer))}` +
    `L${point(around(to, inner))}A${inner},${inner} 0 ${large},0 ${point(around(from, inner))}z`
  );
}

function startDial() {
  const dial = byId("dial");
  if (!dial || !DATA.angles.length) return;
  const slider = byId("theta");
  const measure = DATA.measures[0];
  const method = DATA.series[0];
  const angles = DATA.angles;
  const needle = svg("g", { class: "needle" });
  const number = svg("text", { x: CENTRE, y: CENTRE + 6, class: "theta" });
  const below = svg("text", { x: CENTRE, y: CENTRE + 32, class: "said" });
  const lower = svg("text", { x: CENTRE, y: CENTRE + 50, class: "said" });
  const arms = SAMPLES.arms;

  const values = method ? method.values[measure.key].mean : [];
  const level = measure?.level ?? 0;
  const span = Math.max(1e-9, ...values.map((value) => (value === null ? 0 : Math.abs(value - level))));
  const shareAt = (angle) => {
    const place = method ? method.angles.indexOf(angle) : -1;
    return place < 0 || values[place] === null ? null : (values[place] - level) / span;
  };
  angles.forEach((angle, place) => {
    const before = place ? angles[place - 1] : angles[angles.length - 1] - 360;
    const after = place + 1 < angles.length ? angles[place + 1] : angles[0] + 360;
    if (angles.length > 1)
      dial.append(
        svg("path", {
          d: arc((before + angle) / 2, (angle + after) / 2, 96, 116),
          style: `fill:${diverging(shareAt(angle))}`,
          class: "segment",
        }),
      );
    const told = arms.some((arm) => hasTexts(arm, place));
    const [x, y] = around(angle, 127);
    dial.append(svg("circle", { cx: x, cy: y, r: told ? 4 : 2.6, class: told ? "told" : "scored" }));
  });
  for (const angle of [0, 90, 180, 270]) {
    const [x, y] = around(angle, 151);
    dial.append(svg("text", { x, y: y + 4, class: "tick" }, `${angle}°`));
  }
  dial.append(needle, number, below, lower);

  slider.max = angles.length - 1;
  slider.addEventListener("input", () => turnTo(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    // A circle has no ends: the arrows go on over 0°.
    const forward = ["ArrowRight", "ArrowUp"].includes(event.key);
    const back = ["ArrowLeft", "ArrowDown"].includes(event.key);
    const last = angles.length - 1;
    if ((forward && turning.place === last) || (back && turning.place === 0)) {
      event.preventDefault();
      turnTo(forward ? 0 : last);
    }
  });
  const follow = (event) => {
    const box = dial.getBoundingClientRect();
    const x = event.clientX - box.left - box.width / 2;
    const y = event.clientY - box.top - box.height / 2;
    turnTo(nearest(((Math.atan2(x, -y) * 180) / Math.PI + 360) % 360));
  };
  dial.addEventListener("pointerdown", (event) => {
    dial.setPointerCapture(event.pointerId);
    follow(event);
    slider.focus({ preventScroll: true });
    event.preventDefault();
  });
  dial.addEventListener("pointermove", (event) => {
    if (dial.hasPointerCapture(event.pointerId)) follow(event);
  });

  const places = angles.map((_, place) => place);
  const withTexts = places.filter((place) => arms.some((arm) => hasTexts(arm, place)));
  const jumps = byId("jumps");
  if (withTexts.length && withTexts.length <= 12) {
    jumps.append(html("span", {}, "Answers at "));
    for (const place of withTexts)
      jumps.append(
        html("button", { type: "button", "data-place": place, onclick: () => turnTo(place) }, degrees(angles[place])),
      );
  }

  function show() {
    const angle = theta();
    const own = shareAt(angle);
    const place = method ? method.angles.indexOf(angle) : -1;
    const value = place < 0 ? null : values[place];
    slider.value = turning.place;
    const reading = value === null ? "not measured for the method" : `${measure.label.replace(/ \(.*/, "")} ${written(value, !measure.rate)}`;
    slider.setAttribute("aria-valuetext", `${degrees(angle)}, ${reading}`);
    number.textContent = degrees(angle);
    below.textContent = measure ? measure.label.replace(/ \(.*/, "") : "";
    lower.textContent = measure ? written(value, !measure.rate) : "";
    const [x, y] = around(angle, 106);
    needle.replaceChildren(
      svg("line", { x1: around(angle, 70)[0], y1: around(angle, 70)[1], x2: x, y2: y }),
      svg("circle", { cx: x, cy: y, r: 13, style: `fill:${own === null ? "var(--panel)" : diverging(own)}` }),
    );
    for (const button of jumps.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(Number(button.dataset.place) === turning.place));
    byId("moved").replaceChildren(...moved(angle));
  }
  turning.follow.push(show);
  show();
}

// How far the rotation moves an activation: 2 sin(θ/2) times the share that lies in the plane.
function moved(angle) {
  const sites = DATA.sites;
  if (!sites || !sites.in_plane_positive) return [];
  const chosen = sites.selected.flatMap((on, row) => (on ? [row] : []));
  const mean = (column) => chosen.reduce((sum, row) => sum + sites[column][row], 0) / chosen.length;
  const factor = 2 * Math.sin((angle * Math.PI) / 360);
  return [
    "A rotation by ",
    html("b", {}, degrees(angle)),
    " moves the activation of a prompt’s last token by ",
    html("b", {}, written(factor * mean("in_plane_positive"))),
    ` of its length (${CLASSES[0]}) and `,
    html("b", {}, written(factor * mean("in_plane_negative"))),
    ` (${CLASSES[1]}), on average over the steered sites.`,
  ];
}
