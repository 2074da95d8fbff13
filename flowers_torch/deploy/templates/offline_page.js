"use strict";
// Base64 of the runtime and the model, as the scripts after this one hand it over.
const store = {};
function part(name, text) { (store[name] ??= []).push(text); }

const TOP = 3, LEAST_SHOWN = 0.005, MOST_FILE = 64 << 20, MOST_PIXELS = 24e6;
const $ = id => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);
const photos = [];  // {file, card, outputs, error} in the order of their coming
let ort, session, queue = Promise.resolve();

function take(name) {
  const pieces = store[name].map(text => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  });
  delete store[name];  // a large model would be held twice
  return new Blob(pieces);
}

async function start() {
  const began = performance.now();
  describe();
  try {
    const script = URL.createObjectURL(new Blob([take("runtime")], {type: "text/javascript"}));
    ort = await import(script);
    const unzipped = take("wasm").stream().pipeThrough(new DecompressionStream("gzip"));
    ort.env.wasm.wasmBinary = await new Response(unzipped).arrayBuffer();
    ort.env.wasm.numThreads = 1;  // more need headers that only a server can send
    const model = new Uint8Array(await take("model").arrayBuffer());
    session = await ort.InferenceSession.create(model, {executionProviders: ["wasm"]});
    ort.env.wasm.wasmBinary = undefined;
  } catch (error) {
    say(`This browser cannot run the model: ${error.message ?? error}`, true);
    return;
  }
  $("files").disabled = $("camera").disabled = false;
  document.body.classList.remove("waiting");
  say(`Ready after ${((performance.now() - began) / 1000).toFixed(1)} s.`);
}

function describe() {
  document.body.classList.add("waiting");
  const license = facts.license ? ` The license of the weights it began with: ${facts.license}.` : "";
  $("about").textContent = `It names one of these classes whatever a photo shows. Network: ${facts.network}, ` +
    `${facts.size}.${license}`;
  $("knows").open = facts.classes.length <= 40;
  $("names").replaceChildren(...facts.classes.map(name => element("li", name)));
  const curve = facts.trust.curve ?? [];
  for (const most of [0.1, 0.05, 0.02, 0.01, 0]) {
    const fitting = curve.filter(([, answered, wrong]) => wrong <= most * answered);
    const all = fitting.includes(curve.at(-1));  // then it answers every photo anyway
    const promise = most ? `with at most ${most * 100}% wrong` : "with none wrong";
    if (fitting.length && !all) $("care").append(new Option(promise, most));
  }
}

// The probability from which on validation erred no more often than is wanted, as `predict --max-error`.
function threshold() {
  const most = Number($("care").value), curve = facts.trust.curve ?? [];
  if (most === 1 || !curve.length) return {least: 0, told: ""};
  const all = curve.at(-1)[1];
  const [least, answered, wrong] = curve.filter(([, n, w]) => w <= most * n).reduce((a, b) => b[1] > a[1] ? b : a);
  const share = (100 * (all - answered) / all).toFixed(0);
  return {least, told: `In validation ${wrong} of ${answered} answers were wrong, ` +
    `and it was unsure of ${share}% of photos.`};
}

function say(message, bad = false) {
  $("status").textContent = message;
  $("status").classList.toggle("bad", bad);
}

// All text goes through textContent: names of files and classes come from strangers.
function element(kind, text = "", name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = name;
  return made;
}

function add(files) {
  for (const file of files) {
    const card = element("li", "", "card busy"), photo = {file, card};
    photos.push(photo);
    const image = element("img");
    image.alt = "";
    image.src = photo.address = URL.createObjectURL(file);
    const body = element("div");
    body.append(element("small", file.name), element("h2", "…"));
    card.append(image, body);
    $("cards").append(card);
    queue = queue.then(() => answer(photo));
  }
  document.body.classList.toggle("full", photos.length > 0);
  if (photos.length) $("knows").open = false;
  $("tools").hidden = !photos.length;
}

async function answer(photo) {
  if (!photos.includes(photo)) return;  // cleared meanwhile
  await new Promise(resolve => setTimeout(resolve));  // the browser draws first
  const began = performance.now();
  try {
    if (photo.file.size > MOST_FILE) throw new Error(`it has more than ${MOST_FILE >> 20} MB`);
    const {data, height, width} = await pixels(photo.file);
    const input = new ort.Tensor("uint8", data, [1, height, width, 3]);
    const outputs = await session.run({photos: input});
    photo.outputs = Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, Array.from(value.data)]));
  } catch (error) {
    photo.error = `This photo cannot be read: ${error.message || error}`;
  }
  if (!photos.includes(photo)) return;
  show(photo);
  const done = photos.filter(p => p.outputs || p.error).length;
  say(`${done} of ${photos.length} photos.${photo.error ? "" : ` One takes ${Math.round(performance.now() - began)} ms.`}`);
}

// An upright photo on white as bytes R, G, B, as the package's own reader gives it; colour profiles are ignored.
async function pixels(file) {
  const image = await createImageBitmap(file, {colorSpaceConversion: "none"});
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (image.width * image.height)));
  const width = Math.max(1, Math.round(image.width * shrink)), height = Math.max(1, Math.round(image.height * shrink));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  image.close();
  const rgba = context.getImageData(0, 0, width, height).data, data = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
  }
  return {data, height, width};
}

function ranked(photo) {
  const all = photo.outputs.probabilities.map((value, label) => ({value, name: facts.classes[label]}));
  return all.sort((a, b) => b.value - a.value);
}

function doubt(photo, least) {
  if (photo.outputs.strangeness && photo.outputs.strangeness[0] > facts.trust.limit) return "unlike the training photos";
  return ranked(photo)[0].value < least ? "too improbable" : "";
}

function show(photo) {
  const {card} = photo, body = card.lastChild;
  card.classList.remove("busy");
  body.replaceChildren(element("small", photo.file.name));
  if (photo.error) {
    card.firstChild.hidden = true;
    body.append(element("p", photo.error, "fault"));
    return;
  }
  const [first, ...others] = ranked(photo).slice(0, TOP), why = doubt(photo, threshold().least);
  card.classList.toggle("unsure", !!why);
  card.firstChild.alt = why ? "unsure" : first.name;
  if (why) body.append(element("span", `unsure: ${why}`, "doubt"));
  const list = element("dl");
  for (const {name, value} of [first, ...others.filter(other => other.value >= LEAST_SHOWN)]) {
    const bar = element("i"), title = element("dt");
    bar.style.setProperty("--share", `${100 * value}%`);
    title.append(name === first.name ? element("h2", why ? `perhaps ${name}` : name) : name);
    list.append(title, element("dd", percent(value)), bar);
  }
  body.append(list);
}

// What is not quite 100% is never called so.
function percent(share) {
  const text = (100 * share).toFixed(1);
  return text === "100.0" && share < 1 ? "99.9%" : `${text}%`;
}

function table() {
  const least = threshold().least;
  const quote = value => `"${String(value).replaceAll('"', '""')}"`;
  const rows = photos.filter(p => p.outputs || p.error).map(p => p.error ? [p.file.name, "", "", p.error]
    : [p.file.name, ranked(p)[0].name, ranked(p)[0].value.toFixed(6), doubt(p, least), ...p.outputs.probabilities]);
  return [["file", "class", "probability", "doubt", ...facts.classes], ...rows]
    .map(row => row.map(quote).join(",")).join("\n") + "\n";
}

for (const id of ["files", "camera"]) $(id).addEventListener("change", event => {
  add(event.target.files);
  event.target.value = "";
});
addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (session) add(event.dataTransfer.files);
});
addEventListener("paste", event => { if (session) add(event.clipboardData.files); });
$("care").addEventListener("change", () => {
  $("promise").textContent = threshold().told;
  photos.filter(photo => photo.outputs).forEach(show);
});
$("clear").addEventListener("click", () => {
  for (const photo of photos.splice(0)) URL.revokeObjectURL(photo.address);
  $("cards").replaceChildren();
  add([]);
  say("Ready.");
  $("files").focus();
});
$("save").addEventListener("click", () => {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([table()], {type: "text/csv"}));
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
