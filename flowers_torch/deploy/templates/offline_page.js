"use strict";
// Base64 chunks of the runtime and the model, added by the scripts after this one.
const chunks = {};
function addChunk(name, text) { (chunks[name] ??= []).push(text); }

const TOP = 3, MIN_SHOWN = 0.005, MAX_BYTES = 64 << 20, MAX_PIXELS = 24e6;
const $ = id => document.getElementById(id);
const summary = JSON.parse($("summary").textContent);
const photos = [];  // {file, card, outputs, error} in order of arrival
let ort, session, queue = Promise.resolve();

function takeBlob(name) {
  const parts = chunks[name].map(text => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  });
  delete chunks[name];  // frees the memory
  return new Blob(parts);
}

async function start() {
  const began = performance.now();
  describe();
  try {
    const script = URL.createObjectURL(new Blob([takeBlob("runtime")], {type: "text/javascript"}));
    ort = await import(script);
    const unzipped = takeBlob("wasm").stream().pipeThrough(new DecompressionStream("gzip"));
    ort.env.wasm.wasmBinary = await new Response(unzipped).arrayBuffer();
    ort.env.wasm.numThreads = 1;  // more threads need headers that only a server can send
    const model = new Uint8Array(await takeBlob("model").arrayBuffer());
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
  const license = summary.license ? ` License of the pretrained weights: ${summary.license}.` : "";
  $("about").textContent = `Every photo is classified as one of these classes. Network: ${summary.network}, ` +
    `${summary.size}.${license}`;
  $("knows").open = summary.classes.length <= 40;
  $("names").replaceChildren(...summary.classes.map(name => element("li", name)));
  const curve = summary.selective.curve ?? [];
  for (const maxError of [0.1, 0.05, 0.02, 0.01, 0]) {
    const fitting = curve.filter(([, accepted, errors]) => errors <= maxError * accepted);
    const all = fitting.includes(curve.at(-1));  // then no photo is unsure
    const option = maxError ? `with at most ${maxError * 100}% wrong` : "with none wrong";
    if (fitting.length && !all) $("care").append(new Option(option, maxError));
  }
}

// The confidence threshold for the chosen error rate in validation, as in `predict --max-error`.
function threshold() {
  const maxError = Number($("care").value), curve = summary.selective.curve ?? [];
  if (maxError === 1 || !curve.length) return {probability: 0, text: ""};
  const all = curve.at(-1)[1];
  const [probability, accepted, errors] = curve.filter(([, n, e]) => e <= maxError * n).reduce((a, b) => b[1] > a[1] ? b : a);
  const unsure = (100 * (all - accepted) / all).toFixed(0);
  return {probability, text: `In validation ${errors} of ${accepted} predictions were wrong, ` +
    `and ${unsure}% of photos were unsure.`};
}

function say(message, bad = false) {
  $("status").textContent = message;
  $("status").classList.toggle("bad", bad);
}

// All text goes through textContent: file and class names are not trusted.
function element(kind, text = "", name = "") {
  const node = document.createElement(kind);
  node.textContent = text;
  node.className = name;
  return node;
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
    queue = queue.then(() => classify(photo));
  }
  document.body.classList.toggle("full", photos.length > 0);
  if (photos.length) $("knows").open = false;
  $("tools").hidden = !photos.length;
}

async function classify(photo) {
  if (!photos.includes(photo)) return;  // removed in the meantime
  await new Promise(resolve => setTimeout(resolve));  // lets the browser draw
  const began = performance.now();
  try {
    if (photo.file.size > MAX_BYTES) throw new Error(`it has more than ${MAX_BYTES >> 20} MB`);
    const {data, height, width} = await pixels(photo.file);
    const input = new ort.Tensor("uint8", data, [1, height, width, 3]);
    const outputs = await session.run({images: input});
    photo.outputs = Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, Array.from(value.data)]));
  } catch (error) {
    photo.error = `This photo cannot be read: ${error.message || error}`;
  }
  if (!photos.includes(photo)) return;
  show(photo);
  const done = photos.filter(p => p.outputs || p.error).length;
  say(`${done} of ${photos.length} photos.${photo.error ? "" : ` One takes ${Math.round(performance.now() - began)} ms.`}`);
}

// Browsers keep the high byte of each value of a PNG with 16 bits. Where the training photos use a smaller range of
// values, this returns the file with 8 bits in that range; other chunks, such as a color profile, stay.
async function in8Bits(file) {
  const [low, high] = summary.value_range, head = new DataView(await file.slice(0, 33).arrayBuffer());
  const isDeep = head.byteLength === 33 && head.getUint32(0) === 0x89504e47 && head.getUint8(24) === 16;
  if (!isDeep || low === undefined || (low === 0 && high === 65535)) return file;
  if (head.getUint8(28)) throw new Error("it is an interlaced PNG of 16 bits; save it without interlacing");
  const width = head.getUint32(16), height = head.getUint32(20), channels = {0: 1, 2: 3, 4: 2, 6: 4}[head.getUint8(25)];
  if (width * height > MAX_PIXELS) throw new Error(`it has more than ${MAX_PIXELS / 1e6} million pixels of 16 bits`);
  const bytes = new Uint8Array(await file.arrayBuffer()), view = new DataView(bytes.buffer), pixels = [], others = [];
  for (let at = 8; at + 12 <= bytes.length;) {
    const size = view.getUint32(at) + 12, kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + size - 4);
    if (kind === "IDAT") pixels.push(content);
    else if (!["IHDR", "IEND", "tRNS", "sBIT", "bKGD", "hIST"].includes(kind)) others.push(bytes.subarray(at, at + size));
    at += size;
  }
  const raw = await recoded(pixels, new DecompressionStream("deflate"));
  const scale = 255 / (high - low), row = 2 * width * channels, small = new Uint8Array(height * (1 + width * channels));
  unfilter(raw, row, 2 * channels);
  for (let y = 0, to = 0; y < height; y++) {
    to++;  // no filter
    for (let from = y * (row + 1) + 1, end = from + row, c = 0; from < end; from += 2, c = (c + 1) % channels) {
      const isAlpha = channels % 2 === 0 && c === channels - 1;
      const level = Math.round((raw[from] * 256 + raw[from + 1] - low) * scale);
      small[to++] = isAlpha ? raw[from] : Math.min(255, Math.max(0, level));
    }
  }
  const header = new Uint8Array(head.buffer.slice(16, 29));
  header[8] = 8;
  const data = await recoded([small], new CompressionStream("deflate"));
  return new Blob([bytes.subarray(0, 8), chunk("IHDR", header), ...others, chunk("IDAT", data), chunk("IEND", new Uint8Array(0))]);
}

async function recoded(parts, stream) {
  return new Uint8Array(await new Response(new Blob(parts).stream().pipeThrough(stream)).arrayBuffer());
}

// Undoes the filters of PNG in place; `row` is the length of a row without its filter type.
function unfilter(raw, row, step) {
  for (let start = 0; start + row < raw.length; start += row + 1) {
    const type = raw[start];
    for (let i = 1; i <= row; i++) {
      const left = i > step ? raw[start + i - step] : 0, up = start ? raw[start + i - row - 1] : 0;
      const corner = start && i > step ? raw[start + i - row - 1 - step] : 0;
      const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
      const nearest = a <= b && a <= c ? left : b <= c ? up : corner;
      raw[start + i] += [0, left, up, (left + up) >> 1, nearest][type];
    }
  }
}

function chunk(kind, content) {
  const made = new Uint8Array(content.length + 12), view = new DataView(made.buffer);
  view.setUint32(0, content.length);
  made.set([...kind].map(letter => letter.charCodeAt(0)), 4);
  made.set(content, 8);
  let crc = -1;
  for (let i = 4; i < made.length - 4; i++) {
    crc ^= made[i];
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  view.setUint32(made.length - 4, ~crc);
  return made;
}

// An upright photo as RGB bytes on white in sRGB, as the package reads it.
async function pixels(file) {
  const image = await createImageBitmap(await in8Bits(file), {colorSpaceConversion: "default"});
  const shrink = Math.min(1, Math.sqrt(MAX_PIXELS / (image.width * image.height)));
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
  const all = photo.outputs.probabilities.map((value, label) => ({value, name: summary.classes[label]}));
  return all.sort((a, b) => b.value - a.value);
}

function reason(photo, minimum) {
  if (photo.outputs.ood_distance && photo.outputs.ood_distance[0] > summary.selective.ood_threshold) return "unlike the training photos";
  return ranked(photo)[0].value < minimum ? "too improbable" : "";
}

function show(photo) {
  const {card} = photo, body = card.lastChild;
  card.classList.remove("busy");
  body.replaceChildren(element("small", photo.file.name));
  if (photo.error) {
    card.firstChild.hidden = true;
    body.append(element("p", photo.error, "error"));
    return;
  }
  const [first, ...others] = ranked(photo).slice(0, TOP), why = reason(photo, threshold().probability);
  card.classList.toggle("unsure", !!why);
  card.firstChild.alt = why ? "unsure" : first.name;
  if (why) body.append(element("span", `unsure: ${why}`, "reason"));
  const list = element("dl");
  for (const {name, value} of [first, ...others.filter(other => other.value >= MIN_SHOWN)]) {
    const bar = element("i"), title = element("dt");
    bar.style.setProperty("--fraction", `${100 * value}%`);
    title.append(name === first.name ? element("h2", why ? `perhaps ${name}` : name) : name);
    list.append(title, element("dd", percent(value)), bar);
  }
  body.append(list);
}

// Only a probability of 1 is shown as 100%.
function percent(fraction) {
  const text = (100 * fraction).toFixed(1);
  return text === "100.0" && fraction < 1 ? "99.9%" : `${text}%`;
}

function table() {
  const minimum = threshold().probability;
  const quote = value => `"${String(value).replaceAll('"', '""')}"`;
  const rows = photos.filter(p => p.outputs || p.error).map(p => p.error ? [p.file.name, "", "", p.error]
    : [p.file.name, ranked(p)[0].name, ranked(p)[0].value.toFixed(6), reason(p, minimum), ...p.outputs.probabilities]);
  return [["file", "class", "probability", "reason", ...summary.classes], ...rows]
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
  $("promise").textContent = threshold().text;
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
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
