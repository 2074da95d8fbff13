// Cards of photos with their predictions, the settings, and the table. A backend classifies the photos; see `start`.
// All text is set as text: file and class names are not trusted.
const TOP = 3; // classes on a card
const MAX_SET = 8; // classes of a set on a card
const MAX_PHOTOS = 1000;
const UNLIKE = "unlike the training photos", IMPROBABLE = "too improbable"; // the words of `predict`
const at = id => document.getElementById(id);
const find = (selector, root) => root.querySelector(selector);
const model = JSON.parse(at("model").textContent);
const photos = []; // { file, name, item, classes, isUnlike, error, decision }, in order of arrival
const queue = [];
let backend, working = 0;

// `classify(file, name)` gives the classes with their probabilities, the most probable first, and whether the photo is
// out of distribution; `explain(file, name)`, which may be missing, the address of a heatmap. Both throw errors.
function start(given) {
  backend = given;
  work();
}

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
function set(node, text) {
  node.textContent = text;
  node.hidden = !text;
}
function notify(text) { set(at("notice"), text); }
function say(text) { at("said").textContent = text; }
function count(number, name) { return `${number} ${name}${number === 1 ? "" : "s"}`; }

// Only a probability of 1 is shown as 100%.
function percent(fraction) {
  if (fraction >= 0.9995) return fraction === 1 ? "100%" : "99.9%";
  return fraction < 0.001 ? "< 0.1%" : `${(100 * fraction).toFixed(1)}%`;
}

function add(files) {
  notify("");
  const room = MAX_PHOTOS - photos.length;
  const left = files.length - room;
  if (left > 0) notify(`The page holds ${MAX_PHOTOS} photos: ${left} left out. Save the table and clear the page.`);
  const added = files.slice(0, Math.max(0, room)).map(card);
  at("predictions").prepend(...added.map(photo => photo.item));
  photos.push(...added);
  queue.push(...added);
  if (added.length) at("classes").open = false;
  update();
  work();
}

function card(file) {
  const item = at("card").content.firstElementChild.cloneNode(true);
  const photo = { file, name: file.webkitRelativePath || file.folderPath || file.name || "pasted photo", item };
  const picture = find(".photo", item);
  find(".file", item).textContent = photo.name;
  picture.onerror = () => { // damaged, or in a format that the browser does not show
    picture.hidden = true;
    find(".none", item).hidden = false;
  };
  picture.src = item.dataset.url = URL.createObjectURL(file);
  find(".remove", item).onclick = () => {
    const next = item.nextElementSibling || item.previousElementSibling;
    remove(photo);
    (next ? find(".remove", next) : at("choose")).focus(); // keeps the keyboard focus in place
  };
  find(".remove", item).setAttribute("aria-label", `Remove ${photo.name}`);
  find(".explain", item).onclick = () => explain(photo);
  find(".explain", item).setAttribute("aria-label", `Explain ${photo.name}`);
  return photo;
}

function work() {
  while (backend && working < backend.parallel && queue.length) {
    working += 1;
    classify(queue.shift()).finally(() => { working -= 1; work(); });
  }
}

async function classify(photo) {
  find("h3", photo.item).textContent = "classifying";
  await new Promise(done => setTimeout(done)); // lets the browser draw
  try {
    if (!photo.file.size) throw new Error("the file is empty");
    Object.assign(photo, await backend.classify(photo.file, photo.name));
  } catch (error) {
    photo.error = error.message || String(error);
  }
  show(photo);
  update();
}

// What `predict` decides with the same error rate and coverage.
function decide({ classes, isUnlike }) {
  const rate = model.rates[at("rate").value], coverage = model.coverages[at("coverage").value];
  const reason = isUnlike ? UNLIKE : rate && classes[0].probability < rate.probability ? IMPROBABLE : "";
  const likely = coverage && Math.max(1, classes.filter(each => each.probability >= coverage.probability).length);
  return { reason, abstains: Boolean(reason && rate), names: classes.slice(0, likely ?? 0).map(each => each.class) };
}

function show(photo) {
  const { item, classes, error } = photo, title = find("h3", item);
  item.classList.remove("waiting");
  item.classList.toggle("failed", Boolean(error));
  if (error) {
    title.textContent = "no prediction";
    return set(find(".error", item), error.replace("; fix: ", ". Fix: "));
  }
  const { reason, abstains, names } = photo.decision = decide(photo);
  item.classList.toggle("unsure", abstains);
  title.textContent = abstains ? `perhaps ${classes[0].class}` : classes[0].class;
  set(find(".reason", item), abstains ? `unsure: ${reason}` : reason);
  const more = names.length > MAX_SET ? ` and ${names.length - MAX_SET} more` : "";
  // A set of one class is the title.
  set(find(".set", item), names.length > 1 ? `one of: ${names.slice(0, MAX_SET).join(", ")}${more}` : "");
  find("ol", item).replaceChildren(...classes.slice(0, TOP).map(found => {
    const row = element("li"), bar = element("progress");
    bar.value = found.probability;
    bar.setAttribute("aria-hidden", "true"); // the number stands beside it
    row.append(element("span", found.class), element("span", percent(found.probability)), bar);
    return row;
  }));
  find(".explain", item).hidden = !backend.explain;
}

async function explain({ file, name, item, classes }) {
  const button = find(".explain", item), heat = find(".heat", item);
  if (!heat.getAttribute("src")) {
    button.disabled = true;
    try {
      heat.src = await backend.explain(file, name);
      heat.alt = `network input, yellow where it supports ${classes[0].class}`;
    } catch (error) {
      return notify(error.message);
    } finally {
      button.disabled = false;
      button.focus();
    }
  }
  heat.hidden = !heat.hidden;
  item.classList.toggle("explained", !heat.hidden);
  find(".legend", item).hidden = heat.hidden;
  button.setAttribute("aria-pressed", String(!heat.hidden));
}

function remove(photo) {
  URL.revokeObjectURL(photo.item.dataset.url);
  photo.item.remove();
  photos.splice(photos.indexOf(photo), 1);
  if (queue.includes(photo)) queue.splice(queue.indexOf(photo), 1);
  update();
}

// The counts; a screen reader hears them when all photos are classified.
function update() {
  const done = photos.filter(photo => photo.classes || photo.error), failed = done.filter(photo => photo.error).length;
  const unsure = done.filter(photo => photo.decision?.abstains).length;
  const text = `${done.length} of ${count(photos.length, "photo")}` +
    (unsure ? `, ${unsure} unsure` : "") + (failed ? `, ${failed} without a prediction` : "");
  at("results").hidden = !photos.length;
  at("save").disabled = !done.length;
  Object.assign(at("bar"), { max: photos.length || 1, value: done.length, hidden: done.length === photos.length });
  at("count").textContent = text;
  if (!photos.length || done.length < photos.length) return;
  const only = photos.length === 1 ? photos[0] : null;
  const lines = [".file", "h3", ".reason", ".error", ".set"];
  say(only ? lines.map(line => find(line, only.item).textContent).filter(Boolean).join(", ") : text);
}

// The columns and words of `predict --csv`.
function table() {
  const withSets = Boolean(at("coverage").value);
  const rows = photos.filter(photo => photo.classes || photo.error).map(photo => {
    if (photo.error) return [photo.name, "", "", "", "", photo.error, ""];
    const { reason, names } = photo.decision, [best] = photo.classes;
    return [photo.name, 1, best.class, best.probability.toFixed(6), reason, "", names.join("; ")];
  });
  const header = ["file", "rank", "class", "probability", "reason", "error", "set"];
  return [header, ...rows].map(row => withSets ? row : row.slice(0, -1));
}

// The settings: error rates and coverages that the validation photos can promise.
function choices(id, made, chosen, text) {
  made.forEach((each, number) => at(id).append(new Option(text(each), number)));
  const number = made.findIndex(each => each[id] === chosen);
  at(id).value = number < 0 ? "" : number;
  at(id).parentElement.hidden = !made.length;
  at(id).onchange = () => {
    describe();
    photos.filter(photo => photo.classes).forEach(show);
    update();
  };
}
function describe() {
  const rate = model.rates[at("rate").value];
  set(at("promise"), rate ? `The model ${rate.text}.` : "");
}
const whole = fraction => `${+(100 * fraction).toPrecision(4)}%`;
choices("rate", model.rates, model.rate, each => `at most ${whole(each.rate)}`);
choices("coverage", model.coverages, model.coverage, each => `right for ${whole(each.coverage)} of photos`);
describe();

at("clear").onclick = () => {
  queue.length = 0;
  [...photos].forEach(remove);
  notify("");
  say("All photos are removed.");
  at("choose").focus();
};
at("save").onclick = () => saveTable("predictions.csv", table());
