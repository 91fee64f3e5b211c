// The front end of the dial: it shows what Python says and asks for what the user turns to.
// Python sends the whole state of the answer; nothing here knows a model or a table.

const SVG = "http://www.w3.org/2000/svg";
const DEBOUNCE_MS = 200;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function drawn(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function onCircle(degrees, radius) {
  const angle = (degrees * Math.PI) / 180;
  return [radius * Math.cos(angle), -radius * Math.sin(angle)];
}

// A circle with the direction b1 at 0 degrees on the right and b2 at the top.
function circle(angles) {
  const svg = drawn("svg", { viewBox: "-66 -62 132 124", class: "ss-circle", "aria-hidden": "true" });
  svg.append(drawn("circle", { r: 42, class: "ss-rim" }));
  for (const angle of angles.length <= 24 ? angles : [0, 45, 90, 135, 180, 225, 270, 315]) {
    const [x1, y1] = onCircle(angle, 38);
    const [x2, y2] = onCircle(angle, 42);
    svg.append(drawn("line", { x1, y1, x2, y2, class: "ss-tick" }));
  }
  for (const [angle, name] of [[0, "0°"], [90, "90°"], [180, "180°"], [270, "270°"]]) {
    const [x, y] = onCircle(angle, 53);
    const label = drawn("text", { x, y, class: "ss-label" });
    label.textContent = name;
    svg.append(label);
  }
  const hand = drawn("line", { x1: 0, y1: 0, x2: 36, y2: 0, class: "ss-hand" });
  const tip = drawn("circle", { r: 5, class: "ss-tip" });
  svg.append(hand, tip, drawn("circle", { r: 2.5, class: "ss-tip" }));
  const turn = (degrees) => {
    const [x, y] = onCircle(degrees, 38);
    hand.setAttribute("x2", x);
    hand.setAttribute("y2", y);
    tip.setAttribute("cx", x);
    tip.setAttribute("cy", y);
  };
  return [svg, turn];
}

function nearest(angles, degrees) {
  const apart = (angle) => Math.abs(((angle - degrees + 540) % 360) - 180);
  return angles.reduce((best, angle, i) => (apart(angle) < apart(angles[best]) ? i : best), 0);
}

function field(label, control) {
  return make("label", { class: "ss-field" }, make("span", {}, label), control);
}

function select(options) {
  return make("select", {}, ...options.map((text, i) => make("option", { value: i }, text)));
}

function short(text, limit = 90) {
  return text.length <= limit ? text : `${text.slice(0, limit - 1)}…`;
}

function render({ model, el }) {
  const setup = model.get("setup");
  const live = setup.mode === "live";
  const { angles } = setup;
  let run = 0;
  let waiting = null;

  // What can be turned.
  const [svg, turn] = circle(angles);
  const range = make("input", {
    type: "range", min: 0, max: angles.length - 1, step: 1, value: nearest(angles, 0),
    "aria-label": "angle θ in degrees",
  });
  const reading = make("output", { class: "ss-theta" });
  const controls = setup.controls.map(({ name, options }) => [name, options, select(options)]);
  const examples = select(
    setup.prompts.map((p) => short(p.class ? `${p.class}: ${p.text}` : p.text)),
  );
  const prompt = make("textarea", { rows: 2, "aria-label": "prompt", spellcheck: "false" });
  const answer = make("button", { type: "button", class: "ss-answer" }, "Answer");
  const stop = make("button", { type: "button", disabled: true }, "Stop");

  // What is shown.
  const state = make("span", { class: "ss-state", role: "status" });
  const numbers = make("dl", { class: "ss-numbers" });
  const steered = make("div", { class: "ss-text" });
  const plain = make("div", { class: "ss-text" });
  const plainPanel = make("section", {}, make("h4", {}, "Unsteered"), plain);
  const movedText = make("p", { class: "ss-moved" });
  const tokens = make("div", { class: "ss-tokens" });
  const trace = make("section", { class: "ss-trace", hidden: true },
    make("h4", {}, "How far tokens were moved"), movedText, tokens);

  const angle = () => angles[Number(range.value)];
  const choices = () =>
    Object.fromEntries(controls.map(([name, options, node]) => [name, options[Number(node.value)]]));

  function turned() {
    const fixed = setup.without_angle.includes(choices().operator);
    range.disabled = fixed || angles.length < 2;
    svg.classList.toggle("ss-off", fixed);
    turn(angle());
    reading.value = fixed ? "no angle" : `θ = ${angle()}°`;
    range.setAttribute("aria-valuetext", `${angle()} degrees`);
  }

  function ask() {
    clearTimeout(waiting);
    waiting = null;
    run += 1;
    const asked = { kind: "ask", run, angle_deg: angle(), choices: choices() };
    if (live) asked.prompt = prompt.value;
    else asked.place = Number(examples.value);
    model.send(asked);
  }

  // Keys that repeat would ask for every angle that they pass.
  function askSoon() {
    clearTimeout(waiting);
    waiting = setTimeout(ask, live ? DEBOUNCE_MS : 0);
  }

  function text(node, said, fold) {
    node.replaceChildren();
    if (said == null) return;
    const words = said.split(/\s+/).filter(Boolean);
    if (!fold || words.length <= 6) {
      node.append(said);
      return;
    }
    node.append(
      make("details", {}, make("summary", {}, `${words.slice(0, 6).join(" ")} …`), said),
    );
  }

  function number(label, value) {
    return make("div", {}, make("dt", {}, label), make("dd", {}, value));
  }

  function show(told) {
    if (told.run != null && told.run < run) return;  // of a position that was left since
    run = Math.max(run, told.run ?? 0);
    const running = told.state === "running";
    stop.disabled = !running;
    el.firstChild.setAttribute("aria-busy", running);
    const said = { running: "answering …", done: "", stopped: "stopped", failed: told.error };
    state.textContent = said[told.state] ?? "";
    state.classList.toggle("ss-failed", told.state === "failed");
    text(steered, told.text, told.fold);
    text(plain, told.unsteered, told.fold);
    plainPanel.hidden = told.unsteered == null;
    numbers.replaceChildren();
    if (told.score) {
      const { name, value } = told.score;
      numbers.append(
        number(name, value.toFixed(2)),
        number("unsteered", told.before.value.toFixed(2)),
      );
    }
    for (const [label, value] of Object.entries(told.scores ?? {})) {
      numbers.append(number(label, Number.isInteger(value) ? `${value}` : value.toFixed(2)));
    }
    trace.hidden = !told.moved;
    movedText.textContent = told.moved ?? "";
    const all = told.tokens ?? [];
    const most = Math.max(1e-9, ...all.map((token) => token.moved ?? 0));
    tokens.replaceChildren(
      ...all.map((token) => {
        const share = token.moved == null ? 0 : token.moved / most;
        const chip = make("span", {
          class: token.is_prompt ? "ss-token ss-prompt" : "ss-token",
          style: `--share: ${Math.round(70 * share)}%`,
          title: token.moved == null ? "not read" : `moved by ${token.moved.toFixed(2)} of its length`,
        });
        chip.textContent = token.text.replaceAll("\n", "⏎");
        return chip;
      }),
    );
  }

  // The mouse on the circle.
  function follow(event) {
    if (range.disabled) return;
    const box = svg.getBoundingClientRect();
    const x = event.clientX - (box.left + box.width / 2);
    const y = event.clientY - (box.top + box.height / 2);
    const degrees = ((Math.atan2(-y, x) * 180) / Math.PI + 360) % 360;
    range.value = nearest(angles, degrees);
    turned();
  }
  svg.addEventListener("pointerdown", (event) => {
    svg.setPointerCapture(event.pointerId);
    follow(event);
  });
  svg.addEventListener("pointermove", (event) => {
    if (svg.hasPointerCapture(event.pointerId)) follow(event);
  });
  svg.addEventListener("pointerup", askSoon);

  range.addEventListener("input", turned);
  range.addEventListener("change", askSoon);
  for (const [, , node] of controls) {
    node.addEventListener("change", () => {
      turned();
      askSoon();
    });
  }
  examples.addEventListener("change", () => {
    prompt.value = setup.prompts[Number(examples.value)].text;
    askSoon();
  });
  answer.addEventListener("click", ask);
  stop.addEventListener("click", () => model.send({ kind: "stop" }));
  prompt.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook has shortcuts of its own
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      ask();
    }
  });

  const fields = controls.map(([name, , node]) => field(name, node));
  const many = setup.prompts.length > 1;
  prompt.value = setup.prompts[0].text;
  el.append(
    make("div", { class: "ss-dial" },
      make("div", { class: "ss-head" }, make("strong", {}, setup.title), state),
      make("div", { class: "ss-turn" }, svg, reading, range),
      make("div", { class: "ss-controls" },
        ...(many || !live ? [field(live ? "examples" : "prompt", examples)] : []),
        ...(live ? [field("prompt", prompt)] : []),
        make("div", { class: "ss-row" }, ...fields),
        ...(live ? [make("div", { class: "ss-row" }, answer, stop)] : []),
        numbers),
      make("div", { class: "ss-answers" },
        make("section", {}, make("h4", {}, "Steered"), steered), plainPanel),
      trace),
  );
  plainPanel.hidden = true;
  turned();
  model.on("msg:custom", show);
  if (live) model.send({ kind: "ready" });
  else ask();
  return () => {
    clearTimeout(waiting);
    model.off("msg:custom", show);
  };
}

export default { render };
