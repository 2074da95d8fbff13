// ONNX Runtime classifies in the browser. The scripts after this one add chunks of the runtime and the model in base64.
const MAX_BYTES = 64 << 20, MAX_PIXELS = 24e6;
const chunks = {};
function addChunk(name, text) { (chunks[name] ??= []).push(text); }

function takeBlob(name) {
  const parts = chunks[name].map(text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)));
  delete chunks[name]; // frees the memory
  return new Blob(parts);
}

async function load() {
  const began = performance.now();
  let ort, session;
  try {
    ort = await import(URL.createObjectURL(new Blob([takeBlob("runtime")], { type: "text/javascript" })));
    const unzipped = takeBlob("wasm").stream().pipeThrough(new DecompressionStream("gzip"));
    ort.env.wasm.wasmBinary = await new Response(unzipped).arrayBuffer();
    ort.env.wasm.numThreads = 1; // more threads need headers that only a server can send
    const network = new Uint8Array(await takeBlob("model").arrayBuffer());
    session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"] });
    ort.env.wasm.wasmBinary = undefined;
  } catch (error) {
    at("ready").textContent = `This browser cannot run the model: ${error.message ?? error}`;
    return at("ready").classList.add("bad");
  }
  at("ready").textContent = `Ready after ${((performance.now() - began) / 1000).toFixed(1)} s.`;
  start({
    parallel: 1,
    async classify(file) {
      if (file.size > MAX_BYTES) throw new Error(`it has more than ${MAX_BYTES >> 20} MB`);
      const { data, height, width } = await pixels(file);
      const outputs = await session.run({ images: new ort.Tensor("uint8", data, [1, height, width, 3]) });
      const values = Array.from(outputs.probabilities.data);
      const classes = values.map((probability, label) => ({ class: model.classes[label], probability }));
      const isUnlike = Boolean(outputs.ood_distance) && outputs.ood_distance.data[0] > model.ood_threshold;
      return { classes: classes.sort((a, b) => b.probability - a.probability), isUnlike };
    },
  });
}

// Browsers keep the high byte of each value of a PNG with 16 bits. Where the training photos use a smaller range of
// values, this returns the file with 8 bits in that range; other chunks, such as a color profile, stay.
async function in8Bits(file) {
  const [low, high] = model.value_range, head = new DataView(await file.slice(0, 33).arrayBuffer());
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
  const image = await createImageBitmap(await in8Bits(file), {colorSpaceConversion: "default"}).catch(() => {
    throw new Error("this browser cannot read it; fix: convert it to JPEG or PNG");
  });
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
