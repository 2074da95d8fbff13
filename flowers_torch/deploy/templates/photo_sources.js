// Where photos come from: files and folders, chosen or dropped anywhere, the clipboard, and the camera.
const IMAGE = /\.(jpe?g|png|webp|avif|heic|heif|bmp|gif|tiff?|ppm|pgm)$/i; // where the browser knows no type

// Of a folder, only images are taken.
function addFolder(files) {
  const isImage = file => file.type.startsWith("image/") || IMAGE.test(file.name);
  const images = files.filter(file => !file.name.startsWith(".") && isImage(file));
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

async function* walk(folder, path) { // a FileSystemDirectoryHandle
  for await (const [name, found] of folder.entries()) {
    if (found.kind === "directory") yield* walk(found, `${path}/${name}`);
    else yield Object.assign(await found.getFile(), { folderPath: `${path}/${name}` });
  }
}
async function* walkEntry(entry) { // a FileSystemEntry, in browsers without handles
  const file = entry.isFile && await new Promise((done, fail) => entry.file(done, fail));
  if (file) yield Object.assign(file, { folderPath: entry.fullPath.slice(1) });
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
