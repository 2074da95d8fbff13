// Each photo is one request to /api/predict. All text is set as text, never as HTML.
"use strict";

const MAX_REQUESTS = 4;
const SHOWN = 3; // classes of a prediction
const MAX_SET = 8; // of a set, shown
const MAX_CARDS = 200;
const find = (selector, root = document) => root.querySelector(selector);
const queue = [];
let working = 0;
let model = { image_bytes: Infinity };

function percent(fraction) {
  if (fraction >= 0.9995) return fraction === 1 ? "100%" : "99.9%";
  if (fraction < 0.001) return "< 0.1%";
  return `${(100 * fraction).toFixed(1)}%`;
}

function add(files) {
  find("#notice").hidden = true;
  const photos = [...files].filter((file) => file.size);
  if (photos.length > MAX_CARDS) notify(`Only the first ${MAX_CARDS} of ${photos.length} photos are classified.`);
  const cards = photos.slice(0, MAX_CARDS).map(card);
  find("#predictions").prepend(...cards.map((each) => each.item));
  [...find("#predictions").children].slice(MAX_CARDS).forEach(remove);
  queue.push(...cards);
  count();
  for (; working < MAX_REQUESTS && queue.length; working += 1) work();
}

async function work() {
  while (queue.length) {
    const next = queue.shift();
    if (next.item.isConnected) await classify(next);
  }
  working -= 1;
}

function card(file) {
  const item = find("#prediction").content.firstElementChild.cloneNode(true);
  const photo = find(".photo", item);
  item.classList.add("waiting");
  find(".file", item).textContent = find(".file", item).title = file.name || "pasted photo";
  find("h3", item).textContent = "classifying ...";
  photo.onerror = () => { // damaged, or in a format that the browser does not show
    photo.hidden = true;
    find(".none", item).hidden = false;
    find("figure", item).classList.add("blank");
  };
  photo.src = item.dataset.url = URL.createObjectURL(file);
  find(".remove", item).onclick = () => {
    const next = item.nextElementSibling || item.previousElementSibling;
    remove(item);
    (next ? find(".remove", next) : find("#choose")).focus(); // keeps the keyboard focus in place
  };
  return { item, file };
}

async function classify({ item, file }) {
  const prediction = await request(file, "");
  item.classList.remove("waiting");
  if (prediction.error) return fail(item, prediction.error);
  const best = prediction.classes[0];
  const title = find("h3", item);
  title.textContent = best.class;
  title.append(" ", element("small", `${percent(best.probability)} sure`));
  find(".photo", item).alt = `your photo, classified as ${best.class}`;
  if (prediction.abstained) {
    item.classList.add("unsure");
    title.firstChild.textContent = `perhaps ${best.class}`;
    find(".reason", item).textContent = `unsure: ${prediction.reason}`;
    find(".reason", item).hidden = false;
  }
  if (prediction.set && prediction.set.length > 1) {
    find(".set", item).textContent = `one of: ${prediction.set.slice(0, MAX_SET).join(", ")}` +
      (prediction.set.length > MAX_SET ? ` and ${prediction.set.length - MAX_SET} more` : "");
    find(".set", item).hidden = false;
  }
  for (const found of prediction.classes.slice(0, SHOWN)) {
    const bar = document.createElement("progress");
    bar.value = found.probability;
    bar.setAttribute("aria-label", found.class);
    const row = document.createElement("li");
    row.append(element("span", found.class, "name"), element("span", percent(found.probability), "percent"), bar);
    find("ol", item).append(row);
  }
  find(".explain", item).hidden = false;
  find(".explain", item).onclick = () => explain(item, file);
  announce(`${find(".file", item).textContent}: ${title.textContent} ${find(".reason", item).textContent}`);
}

async function explain(item, file) {
  const button = find(".explain", item);
  const heat = find(".heat", item);
  if (!heat.getAttribute("src")) {
    button.disabled = true;
    const prediction = await request(file, "&gradcam=1");
    button.disabled = false;
    button.focus();
    if (!prediction.gradcam) return notify(prediction.no_gradcam || prediction.error);
    heat.src = prediction.gradcam;
    heat.alt = `network input, yellow where it supports ${prediction.classes[0].class}`;
  }
  heat.hidden = !heat.hidden;
  find(".legend", item).hidden = heat.hidden;
  button.setAttribute("aria-pressed", String(!heat.hidden));
}

async function request(file, query) {
  if (file.size > model.image_bytes) {
    return { error: `larger than ${Math.round(model.image_bytes / 2 ** 20)} MB, the most that this server takes` };
  }
  const form = new FormData();
  form.append("photo", file, file.name || "pasted photo");
  for (let tries = 0; ; tries += 1) {
    let response;
    try {
      response = await fetch(`/api/predict?top=${SHOWN}${query}`, { method: "POST", body: form });
    } catch {
      return { error: "the server does not respond; is it still running?" };
    }
    if (response.status === 503 && tries < 30) {
      await new Promise((done) => setTimeout(done, 1000));
      continue;
    }
    const body = await response.json().catch(() => ({}));
    return body.predictions ? body.predictions[0] : { error: body.error || `the server responded with ${response.status}` };
  }
}

function fail(item, reason) {
  item.classList.add("failed");
  find("h3", item).textContent = "no prediction";
  const [what, fix] = reason.split("; fix: ");
  find("ol", item).replaceWith(element("p", what), ...(fix ? [element("p", `Fix: ${fix}.`, "soft")] : []));
  announce(`${find(".file", item).textContent}: no prediction, ${reason}`);
}

function remove(item) {
  URL.revokeObjectURL(item.dataset.url);
  item.remove();
  count();
}

function count() {
  const photos = find("#predictions").children.length;
  find("#tools").hidden = !photos;
  find("#count").textContent = photos === 1 ? "1 photo" : `${photos} photos`;
}

function element(tag, text, name = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (name) node.className = name;
  return node;
}

function announce(text) { find("#announcement").textContent = text; }

function notify(text) {
  find("#notice").textContent = text;
  find("#notice").hidden = false;
}

// Uses the camera in the page if the browser allows it, otherwise the phone's camera application.
const viewfinder = find("#viewfinder");
const video = find("video", viewfinder);

async function openCamera() {
  if (!navigator.mediaDevices) return find("#capture").click();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const refused = error.name === "NotAllowedError";
    return notify(refused ? "The browser blocks the camera; allow it in the address bar." : "No camera was found.");
  }
  viewfinder.showModal();
}

function shoot() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  if (!canvas.width) return;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => add([new File([blob], "camera.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.95);
  viewfinder.close();
}

viewfinder.onclose = () => {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
};
find("#camera").onclick = openCamera;
find("#shoot").onclick = shoot;
find("#leave").onclick = () => viewfinder.close();

// Files are chosen, dropped anywhere, or pasted.
find("#choose").onclick = () => find("#files").click();
for (const input of [find("#files"), find("#capture")]) {
  input.onchange = () => { add(input.files); input.value = ""; };
}
let depth = 0; // dragenter and dragleave fire for every nested element
const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const mark = (change) => { depth = Math.max(0, depth + change); find("#drop").classList.toggle("over", depth > 0); };
addEventListener("dragenter", (event) => holdsFiles(event) && mark(1));
addEventListener("dragleave", (event) => holdsFiles(event) && mark(-1));
addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  depth = 0;
  mark(0);
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) add(files);
  else notify("There is no image in the clipboard.");
});
find("#clear").onclick = () => {
  queue.length = 0;
  [...find("#predictions").children].forEach(remove);
  find("#choose").focus();
};

fetch("/api/model").then((response) => response.json()).then((info) => {
  model = info;
  document.title = `${model.name}: what is in the photo?`;
  const careful = model.threshold ? " and says when it is unsure" : "";
  find("#model").textContent = `${model.name} (${model.arch}) tells ${model.classes.length} classes apart${careful}`;
  find("#classes summary").textContent = `Classes (${model.classes.length})`;
  find("#classes ul").append(...model.classes.map((name) => element("li", name)));
  find("#threshold").textContent = `It ${model.threshold}.`;
  find("#threshold").hidden = !model.threshold;
  find("#classes").hidden = false;
}).catch(() => notify("The server does not respond."));
