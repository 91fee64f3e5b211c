// The answers at the dial's angle beside the unsteered ones; those of positive prompts are folded away.
const FIRST = 6;
const open = [false, true];
const whole = [false, false];

function startAnswers() {
  const host = byId("answers");
  if (!host) return;
  const choice = byId("arm");
  for (const arm of SAMPLES.arms) choice.append(html("option", { value: arm }, SAMPLES.strings[arm]));
  choice.closest("p").hidden = SAMPLES.arms.length < 2;
  choice.addEventListener("change", showAnswers);
  byId("back").addEventListener("click", () => turnToAnswers(-1));
  byId("on").addEventListener("click", () => turnToAnswers(1));
  turning.follow.push(showAnswers);
  showAnswers();
}

const shownArm = () => Number(byId("arm").value || SAMPLES.arms[0]);

// The next angle on the circle that has answers of this arm.
function turnToAnswers(by) {
  const count = DATA.angles.length;
  for (let step = 1; step <= count; step++) {
    const place = (turning.place + by * step + count * step) % count;
    if (hasTexts(shownArm(), place)) return turnTo(place);
  }
}

function showAnswers() {
  const arm = shownArm();
  const rows = answersAt(arm, turning.place);
  const angle = degrees(theta());
  const said = byId("answers-said");
  byId("answers-at").textContent = isStill(arm, turning.place) ? `${angle}, unsteered` : angle;
  if (!rows.length) {
    const places = DATA.angles.map((_, place) => place).filter((place) => hasTexts(arm, place));
    const near = places.sort((a, b) => apart(a) - apart(b)).slice(0, 3);
    const links = near.map((place) => html("button", { type: "button", onclick: () => turnTo(place) }, degrees(DATA.angles[place])));
    said.replaceChildren(`No answers were written at ${angle}, only scores. `, near.length ? "Nearest with answers: " : "", ...links);
    byId("answers").replaceChildren();
    return;
  }
  const parts = [...new Set(rows.map((row) => textOf("part", row)))];
  said.replaceChildren(
    isStill(arm, turning.place)
      ? `At 0° nothing is steered: these are the model’s own answers (${parts.join(", ")} part).`
      : `First the model’s own answer, then the steered one (${parts.join(", ")} part).`,
  );
  // Harmless prompts first: they are what one reads without a second thought.
  byId("answers").replaceChildren(...[1, 0].flatMap((cls) => {
    const own = rows.filter((row) => SAMPLES.cls[row] === cls);
    return own.length ? [group(cls, own, arm)] : [];
  }));
}
const apart = (place) => Math.abs(((DATA.angles[place] - theta() + 540) % 360) - 180);

function group(cls, rows, arm) {
  const alone = isStill(arm, turning.place);
  const title = html("summary", {}, html("b", {}, `${rows.length} ${CLASSES[cls]} prompt${rows.length > 1 ? "s" : ""}`), readCount(rows, alone));
  const list = html("div", { class: "cards" });
  const fill = () => {
    const few = whole[cls] ? rows : rows.slice(0, FIRST);
    list.replaceChildren(...few.map((row) => card(row, alone)));
    if (rows.length > few.length)
      list.append(html("button", { type: "button", class: "more", onclick: () => { whole[cls] = true; fill(); } }, `Show all ${rows.length}`));
  };
  const folded = html("details", {}, title, list);
  folded.open = open[cls];
  if (folded.open) fill();
  folded.addEventListener("toggle", () => {
    open[cls] = folded.open;
    if (folded.open && !list.childNodes.length) fill();
  });
  return folded;
}

// What is read off an answer: of a behaviour whether it shows, else whether it refuses.
const READINGS = [{ key: "shown", yes: "shown", no: "not shown" }, { key: "refused", yes: "refused", no: "answered" }];
const reading = () => READINGS.find(({ key }) => scoreColumn(key));
const SCORES = [{ key: "behaviour_score", unit: " nats" }, { key: "refusal_score", unit: " nats" }, { key: "text_score", unit: "" }];

function readCount(rows, alone) {
  const read = reading();
  if (!read) return null;
  const values = scoreColumn(read.key);
  const count = (which) => which.filter((row) => values[row] === 1).length;
  const bases = rows.map((row) => SAMPLES.base[row]).filter((row) => row >= 0);
  return html("span", {}, alone ? `${read.yes} ${count(rows)}` : `${read.yes} ${count(bases)} → ${count(rows)}`);
}
const scoreColumn = (key) => SAMPLES.scores.find((score) => score.key === key)?.values.of;

function card(row, alone) {
  const base = SAMPLES.base[row];
  const sides = alone
    ? [answer("unsteered", row)]
    : [base < 0 ? html("div", { class: "answer" }, html("h4", {}, "unsteered"), html("p", { class: "none" }, "not measured")) : answer("unsteered", base), answer(degrees(theta()), row)];
  return html("article", {}, html("h3", {}, textOf("prompt", row)), html("div", { class: alone ? "sides alone" : "sides" }, ...sides));
}

function answer(name, row) {
  const text = textOf("text", row);
  const chips = html("p", { class: "chips" });
  const read = reading();
  const value = read ? scoreColumn(read.key)[row] : null;
  const collapsed = scoreColumn("collapsed");
  const scored = SCORES.find(({ key }) => scoreColumn(key));
  const score = scored && scoreColumn(scored.key);
  if (value !== null) chips.append(html("span", { class: value ? "chip refused" : "chip" }, value ? read.yes : read.no));
  if (collapsed && collapsed[row] === 1) chips.append(html("span", { class: "chip broken" }, "collapsed"));
  if (score && score[row] !== null) chips.append(html("span", {}, `${written(score[row], true)}${scored.unit}`));
  if (SAMPLES.cut[row]) chips.append(html("span", {}, "first words only"));
  const shownText = text === "" ? html("p", { class: "none" }, "empty answer") : html("p", { class: "text" }, text);
  return html("div", { class: "answer" }, html("h4", {}, name), shownText, chips, movedTokens(row));
}
