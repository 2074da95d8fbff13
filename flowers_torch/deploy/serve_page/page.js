// Photos go to /api/predict one by one, a few at a time; answers are set as text, never as HTML.
"use strict";

const AT_ONCE = 4;
const SHOWN = 3; // classes of an answer
const MOST = 200; // answers kept on the page
const find = (selector, root = document) => root.querySelector(selector);
const queue = [];
let working = 0;
let model = { photo_bytes: Infinity };

function percent(share) {
  if (share >= 0.9995) return share === 1 ? "100%" : "99.9%";
  if (share < 0.001) return "< 0.1%";
  return `${(100 * share).toFixed(1)}%`;
}

function add(files) {
  find("#notice").hidden = true;
  const photos = [...files].filter((file) => file.size);
  if (photos.length > MOST) notify(`The first ${MOST} of ${photos.length} photos are looked at.`);
  const cards = photos.slice(0, MOST).map(card);
  find("#answers").prepend(...cards.map((made) => made.item));
  [...find("#answers").children].slice(MOST).forEach(remove);
  queue.push(...cards);
  count();
  for (; working < AT_ONCE && queue.length; working += 1) work();
}

async function work() {
  while (queue.length) {
    const next = queue.shift();
    if (next.item.isConnected) await answer(next);
  }
  working -= 1;
}

function card(file) {
  const item = find("#answer").content.firstElementChild.cloneNode(true);
  const photo = find(".photo", item);
  item.classList.add("waiting");
  find(".file", item).textContent = find(".file", item).title = file.name || "pasted photo";
  find("h3", item).textContent = "looking ...";
  photo.onerror = () => { // of a format that the browser does not show, or broken
    photo.hidden = true;
    find(".none", item).hidden = false;
    find("figure", item).classList.add("blank");
  };
  photo.src = item.dataset.url = URL.createObjectURL(file);
  find(".remove", item).onclick = () => {
    const next = item.nextElementSibling || item.previousElementSibling;
    remove(item);
    (next ? find(".remove", next) : find("#choose")).focus(); // the keyboard stays where it was
  };
  return { item, file };
}

async function answer({ item, file }) {
  const record = await ask(file, "");
  item.classList.remove("waiting");
  if (record.error) return fail(item, record.error);
  const best = record.classes[0];
  const title = find("h3", item);
  title.textContent = best.class;
  title.append(" ", part("small", `${percent(best.probability)} sure`));
  find(".photo", item).alt = `your photo, taken for ${best.class}`;
  if (record.unsure) {
    item.classList.add("unsure");
    title.firstChild.textContent = `perhaps ${best.class}`;
    find(".doubt", item).textContent = `unsure: ${record.doubt}`;
    find(".doubt", item).hidden = false;
  }
  for (const found of record.classes.slice(0, SHOWN)) {
    const bar = document.createElement("progress");
    bar.value = found.probability;
    bar.setAttribute("aria-label", found.class);
    const row = document.createElement("li");
    row.append(part("span", found.class, "name"), part("span", percent(found.probability), "share"), bar);
    find("ol", item).append(row);
  }
  find(".look", item).hidden = false;
  find(".look", item).onclick = () => look(item, file);
  say(`${find(".file", item).textContent}: ${title.textContent} ${find(".doubt", item).textContent}`);
}

async function look(item, file) {
  const button = find(".look", item);
  const heat = find(".heat", item);
  if (!heat.getAttribute("src")) {
    button.disabled = true;
    const record = await ask(file, "&gradcam=1");
    button.disabled = false;
    button.focus();
    if (!record.gradcam) return notify(record.no_gradcam || record.error);
    heat.src = record.gradcam;
    heat.alt = `what the network saw, yellow where it spoke for ${record.classes[0].class}`;
  }
  heat.hidden = !heat.hidden;
  find(".legend", item).hidden = heat.hidden;
  button.setAttribute("aria-pressed", String(!heat.hidden));
}

async function ask(file, query) {
  if (file.size > model.photo_bytes) {
    return { error: `larger than ${Math.round(model.photo_bytes / 2 ** 20)} MB, the most that this server takes` };
  }
  const form = new FormData();
  form.append("photo", file, file.name || "pasted photo");
  for (let tries = 0; ; tries += 1) {
    let response;
    try {
      response = await fetch(`/api/predict?top=${SHOWN}${query}`, { method: "POST", body: form });
    } catch {
      return { error: "the server does not answer; is it still running?" };
    }
    if (response.status === 503 && tries < 30) {
      await new Promise((done) => setTimeout(done, 1000));
      continue;
    }
    const told = await response.json().catch(() => ({}));
    return told.photos ? told.photos[0] : { error: told.error || `the server answered ${response.status}` };
  }
}

function fail(item, reason) {
  item.classList.add("failed");
  find("h3", item).textContent = "no answer";
  const [what, fix] = reason.split("; fix: ");
  find("ol", item).replaceWith(part("p", what), ...(fix ? [part("p", `What helps: ${fix}.`, "soft")] : []));
  say(`${find(".file", item).textContent}: no answer, ${reason}`);
}

function remove(item) {
  URL.revokeObjectURL(item.dataset.url);
  item.remove();
  count();
}

function count() {
  const photos = find("#answers").children.length;
  find("#tools").hidden = !photos;
  find("#count").textContent = photos === 1 ? "1 photo" : `${photos} photos`;
}

function part(tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

function say(text) { find("#said").textContent = text; }

function notify(text) {
  find("#notice").textContent = text;
  find("#notice").hidden = false;
}

// The camera in the page where the browser gives it to pages; else the phone's own camera application.
const viewfinder = find("#viewfinder");
const video = find("video", viewfinder);

async function openCamera() {
  if (!navigator.mediaDevices) return find("#capture").click();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const refused = error.name === "NotAllowedError";
    return notify(refused ? "The browser may not use the camera; its address bar has the switch." : "No camera was found.");
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

// Files: by button, by dropping them anywhere, by pasting.
find("#choose").onclick = () => find("#files").click();
for (const input of [find("#files"), find("#capture")]) {
  input.onchange = () => { add(input.files); input.value = ""; };
}
let depth = 0; // dragenter and dragleave come for every element on the way
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
  else notify("There is no picture in the clipboard.");
});
find("#clear").onclick = () => {
  queue.length = 0;
  [...find("#answers").children].forEach(remove);
  find("#choose").focus();
};

fetch("/api/model").then((response) => response.json()).then((told) => {
  model = told;
  document.title = `${told.name}: what is in the photo?`;
  const careful = told.unsure ? "; it rather says unsure than err" : "";
  find("#model").textContent = `${told.name} (${told.arch}) knows ${told.classes.length} classes${careful}`;
  find("#known summary").textContent = `What it can tell apart (${told.classes.length})`;
  find("#known ul").append(...told.classes.map((name) => part("li", name)));
  find("#promise").textContent = `It ${told.unsure}.`;
  find("#promise").hidden = !told.unsure;
  find("#known").hidden = false;
}).catch(() => notify("The server does not answer."));
