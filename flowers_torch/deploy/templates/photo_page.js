// Cards of photos, which come from files, folders, the clipboard and the camera. A backend classifies them; see `start`.
// All text is set as text: file and class names are not trusted.
const TOP = 3; // classes on a card
const MAX_SET = 8; // classes of a set on a card
const MAX_PHOTOS = 1000;
const UNLIKE = "unlike the training photos", IMPROBABLE = "too improbable"; // the words of `predict`
const IMAGE = /\.(jpe?g|png|webp|avif|heic|heif|bmp|gif|tiff?|ppm|pgm)$/i; // where the browser knows no type
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
  if (files.length > room) notify(`The page holds ${MAX_PHOTOS} photos: ${count(files.length - room, "photo")} left out. Save the table and clear the page.`);
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
  set(find(".set", item), names.length ? `one of: ${names.slice(0, MAX_SET).join(", ")}${more}` : "");
  find("ol", item).replaceChildren(...classes.slice(0, TOP).map(found => {
    const row = element("li"), bar = element("progress");
    bar.value = found.probability;
    bar.ariaHidden = "true"; // the number stands beside it
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
  find(".photo", item).hidden = !heat.hidden;
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
  const words = only && [".file", "h3", ".reason", ".error", ".set"].map(each => find(each, only.item).textContent).filter(Boolean);
  say(only ? words.join(", ") : text);
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

// Files are chosen, dropped anywhere, or pasted. Of a folder, only images are taken.
function addFolder(files) {
  const images = files.filter(file => !file.name.startsWith(".") && (file.type.startsWith("image/") || IMAGE.test(file.name)));
  const path = file => file.webkitRelativePath || file.folderPath;
  add(images.sort((a, b) => path(a).localeCompare(path(b), undefined, { numeric: true })));
  if (!images.length) notify("There is no photo in this folder.");
}
at("choose").onclick = () => at("files").click();
at("choose-folder").onclick = () => at("folder").click();
at("files").onchange = at("capture").onchange = event => { add([...event.target.files]); event.target.value = ""; };
at("folder").onchange = event => { addFolder([...event.target.files]); event.target.value = ""; };
addEventListener("paste", event => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) add(files); else notify("There is no image in the clipboard.");
});
at("clear").onclick = () => {
  queue.length = 0;
  [...photos].forEach(remove);
  notify("");
  say("All photos are removed.");
  at("choose").focus();
};
at("save").onclick = () => saveTable("predictions.csv", table());

async function* walk(folder, path) { // a FileSystemDirectoryHandle
  for await (const [name, found] of folder.entries()) {
    if (found.kind === "directory") yield* walk(found, `${path}/${name}`);
    else yield Object.assign(await found.getFile(), { folderPath: `${path}/${name}` });
  }
}
async function* walkEntry(entry) { // a FileSystemEntry, in browsers without handles
  if (entry.isFile) yield Object.assign(await new Promise((done, fail) => entry.file(done, fail)), { folderPath: entry.fullPath.slice(1) });
  const reader = entry.isDirectory && entry.createReader();
  for (let some = [1]; reader && some.length;) {
    some = await new Promise((done, fail) => reader.readEntries(done, fail));
    for (const each of some) yield* walkEntry(each);
  }
}
async function addDropped(items) {
  const files = [], folders = [];
  for (const item of items.filter(each => each.kind === "file")) { // items are empty after the first wait
    const entry = item.webkitGetAsEntry?.();
    if (entry?.isDirectory) folders.push({ entry, handle: item.getAsFileSystemHandle?.() });
    else files.push(item.getAsFile());
  }
  if (files.length) add(files);
  for (const { entry, handle } of folders) {
    try {
      const opened = await handle, found = [];
      for await (const file of opened ? walk(opened, opened.name) : walkEntry(entry)) found.push(file);
      addFolder(found);
    } catch {
      notify(`This browser cannot read the dropped folder ${entry.name}. Choose it with the button.`);
    }
  }
}
const holdsFiles = event => [...(event.dataTransfer?.types ?? [])].includes("Files");
const mark = isOver => document.body.classList.toggle("over", isOver);
addEventListener("dragover", event => { if (holdsFiles(event)) { event.preventDefault(); mark(true); } });
addEventListener("dragleave", event => { if (!event.relatedTarget) mark(false); });
addEventListener("drop", event => {
  mark(false);
  if (!holdsFiles(event)) return;
  event.preventDefault();
  addDropped([...event.dataTransfer.items]);
});

// Phones have a camera application; elsewhere the page shows the camera if the browser allows it.
const video = find("video", document);
const CAMERA_ERRORS = {
  NotAllowedError: "The browser blocks the camera; allow it in the address bar.",
  NotFoundError: "No camera was found.",
  NotReadableError: "Another program uses the camera.",
};
at("camera").onclick = async () => {
  if (matchMedia("(pointer: coarse)").matches) return at("capture").click();
  notify("");
  if (!navigator.mediaDevices) return notify("The browser allows the camera only on https or on this machine.");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return notify(CAMERA_ERRORS[error.name] ?? `The camera does not work: ${error.message}`);
  }
  at("viewfinder").showModal();
};
at("shoot").onclick = () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  if (!canvas.width) return; // the camera is still starting
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(blob => add([new File([blob], "camera.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.95);
  at("viewfinder").close();
};
at("leave").onclick = () => at("viewfinder").close();
at("viewfinder").onclose = () => {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
};
