"use strict";
const at = id => document.getElementById(id);
const words = { keep: "kept", relabel: "relabeled", exclude: "excluded" };
let issues = [], classes = [], here = 0, busy = false;
const skipped = new Set();

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The program has ended. Start label-issues --review again: it resumes here.");
  }
  const value = await response.json();
  if (!response.ok) throw new Error(value.error);
  return value;
}
function fail(error) {
  at("error").textContent = error.message;
  at("error").hidden = false;
}
function percent(fraction) {
  return `${(100 * fraction).toFixed(fraction < 0.1 || fraction > 0.9 ? 1 : 0)}%`;
}
function describe(decision) {
  return decision.action === "relabel" ? `relabeled as ${decision.name}` : words[decision.action];
}

// Photos of a class beside the issue; a photo that cannot be read leaves a gray square with its text.
function show(place, numbers, name) {
  at(place).replaceChildren(...numbers.map((number, i) => {
    const picture = document.createElement("img");
    picture.alt = `similar photo ${i + 1} of ${name}`;
    picture.src = `photo/${number}/224`;
    return picture;
  }));
  if (!numbers.length) at(place).textContent = "no other photo";
}
async function open(number, focus = true) {
  here = number;
  const issue = issues[number], label = classes[issue.label], other = classes[issue.looks_like];
  at("end").hidden = true;
  at("issue").hidden = false;
  at("question").textContent = `Photo ${number + 1} of ${issues.length}: labeled ${label}, looks like ${other}`;
  at("photo").src = `photo/${issue.image}/800`;
  at("photo").alt = `the photo in question, ${issue.file}`;
  at("chance").textContent = `\u2068${other}\u2069 ${percent(issue.probability)}, \u2068${label}\u2069 ${percent(issue.probability_of_label)}`;
  at("file").textContent = issue.file;
  for (const id of ["label-name", "keep-name"]) at(id).textContent = label;
  for (const id of ["other-name", "suggested-name"]) at(id).textContent = other;
  const decision = issue.decision;
  at("state").hidden = !decision;
  at("state").textContent = decision ? describe(decision) : "";
  const pressed = decision && (decision.action === "relabel" && decision.label === issue.looks_like ? "suggested" : decision.action);
  for (const button of document.querySelectorAll("[data-action]")) {
    if (["keep", "suggested", "exclude"].includes(button.dataset.action)) {
      button.setAttribute("aria-pressed", String(button.dataset.action === pressed));
    }
  }
  const chosen = decision && decision.action === "relabel" ? decision.label : issue.looks_like;
  at("class").value = String(Math.max(0, chosen));
  if (focus) at("question").focus({ preventScroll: true });
  const similar = await ask(`similar/${number}`);
  if (here !== number) return;
  show("label-photos", similar.label, label);
  show("other-photos", similar.looks_like, other);
}
function summarize(saved) {
  const decided = issues.filter(issue => issue.decision).length;
  at("bar").max = Math.max(1, issues.length);
  at("bar").value = decided;
  const counts = Object.entries(words).map(([action, text]) => `${saved[action]} ${text}`).join(", ");
  at("progress-text").textContent = `${decided} of ${issues.length} decided: ${counts}`;
  at("saved").hidden = !decided;
  at("table").textContent = saved.table;
  at("command").textContent = saved.command;
  at("decisions").replaceChildren(...issues.flatMap((issue, number) => issue.decision ? [row(issue, number)] : []));
}
function row(issue, number) {
  const made = document.createElement("tr");
  for (const text of [issue.file, classes[issue.label], describe(issue.decision)]) made.insertCell().textContent = text;
  const cell = made.insertCell();
  for (const [text, act] of [["Open", () => open(number)], ["Undo", () => undo(number)]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", `${text} ${issue.file}`);
    button.addEventListener("click", () => act());
    cell.append(button, " ");
  }
  return made;
}
function next() {
  const order = [...issues.keys()].map(i => (here + 1 + i) % issues.length);
  const open_ones = order.filter(i => !issues[i].decision && !skipped.has(i));
  if (open_ones.length) return open(open_ones[0]);
  finish();
}
function finish() {
  const left = issues.filter(issue => !issue.decision).length;
  at("issue").hidden = true;
  at("end").hidden = false;
  at("again").hidden = !left;
  at("end-title").textContent = !issues.length ? "No label issues" : left ? `${left} skipped` : "All label issues are decided";
  at("end-text").textContent = issues.length
    ? "Everything is saved. Ctrl-C in the terminal ends the program; it resumes here when it is started again."
    : "No photo looks more like another class than like its own.";
  at("end-title").focus({ preventScroll: true });
}
async function send(body) {
  if (busy) return null;
  busy = true;
  try {
    const result = await ask("decide", body);
    at("error").hidden = true;
    if (result.issue !== null) issues[result.issue].decision = result.decision;
    summarize(result.saved);
    return result;
  } finally {
    busy = false;
  }
}
async function decide(action, label) {
  const issue = issues[here];
  const result = await send(label === undefined ? { issue: here, action } : { issue: here, action, label });
  if (!result) return;
  skipped.delete(here);
  at("said").textContent = `${issue.file} ${describe(result.decision)}.`;
  await next();
}
async function undo(number) {
  const result = await send(number === undefined ? { action: "undo" } : { action: "undo", issue: number });
  if (!result) return;
  at("said").textContent = result.issue === null ? "There is nothing to undo." : `The decision on ${issues[result.issue].file} is undone.`;
  if (result.issue !== null) await open(result.issue);
}
const actions = {
  keep: () => decide("keep"),
  suggested: () => decide("relabel", issues[here].looks_like),
  exclude: () => decide("exclude"),
  skip: () => { if (!issues[here].decision) skipped.add(here); return next(); },
  back: () => open(at("issue").hidden ? here : (here + issues.length - 1) % issues.length),
  undo: () => undo(),
};
function act(name) {
  if (!issues.length || (at("issue").hidden && !["back", "undo"].includes(name))) return;
  actions[name]().catch(fail);
}
for (const button of document.querySelectorAll("[data-action]")) button.addEventListener("click", () => act(button.dataset.action));
at("other").addEventListener("submit", event => {
  event.preventDefault();
  decide("relabel", Number(at("class").value)).catch(fail);
});
at("again").addEventListener("click", () => { skipped.clear(); next(); });
at("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(at("command").textContent);
  at("copy").textContent = "Copied";
});
const keys = { k: "keep", s: "suggested", x: "exclude", n: "skip", ArrowRight: "skip", b: "back", ArrowLeft: "back", u: "undo" };
document.addEventListener("keydown", event => {
  const inside = event.target.closest("input, select, textarea, pre, .scroll");
  if (inside || event.ctrlKey || event.metaKey || event.altKey || event.repeat || !at("keys").checked) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "c" && !at("issue").hidden) { event.preventDefault(); at("class").focus(); }
  if (key in keys) { event.preventDefault(); act(keys[key]); }
});
document.addEventListener("error", event => {
  if (event.target.tagName === "IMG") event.target.alt += " (cannot be shown)";
}, true);

ask("state").then(state => {
  ({ issues, classes } = state);
  at("class").replaceChildren(...classes.map((name, i) => new Option(name, String(i))));
  summarize(state.saved);
  const first = issues.findIndex(issue => !issue.decision);
  if (first < 0) finish(); else open(first, false).catch(fail);
}).catch(fail);
