"use strict";
const photos = JSON.parse(document.getElementById("photos").textContent);
const cells = JSON.parse(document.getElementById("cells").textContent);
const dialog = document.getElementById("dialog");

// Every photo is in the page once: in a figure, or here. Figures that show it again take it from there.
function source(id) {
  const shown = document.querySelector(`img[data-photo="${id}"][src]`);
  return shown ? shown.src : photos[id]?.src;
}
for (const image of document.querySelectorAll("img[data-photo]:not([src])")) {
  const uri = source(image.dataset.photo);
  if (uri) image.src = uri;
}

function isolated(text) {
  const name = document.createElement("bdi");
  name.textContent = text;
  return name;
}
function figure(id) {
  const photo = photos[id], made = document.createElement("figure"), uri = source(id);
  const picture = document.createElement(uri ? "img" : "div");
  if (uri) { picture.src = uri; picture.alt = photo.file; } else { picture.className = "none"; picture.textContent = "no picture"; }
  const caption = document.createElement("figcaption"), verdict = document.createElement("span"), name = document.createElement("small");
  verdict.append(isolated(photo.label), ...(photo.predicted ? [", predicted as ", isolated(photo.predicted)] : []), ` (${photo.probability})`);
  if (photo.predicted) verdict.className = "bad";
  name.append(...photo.file.split("/").flatMap((piece, i) => i ? ["/", document.createElement("wbr"), piece] : [piece]));
  caption.append(verdict, document.createElement("br"), name);
  made.append(picture, caption);
  return made;
}
function show(title, ids, count) {
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = ids.length < count ? `${ids.length} of ${count} photos` : "";
  dialog.querySelector(".photos").replaceChildren(...ids.map(figure));
  dialog.showModal();
  dialog.scrollTop = 0;
}
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });

// The photos of a cell of the confusion matrix stand beside it.
function fill(button) {
  for (const other of matrix.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
  const panel = document.querySelector(".cell"), ids = cells[button.dataset.cell], count = Number(button.dataset.count);
  panel.querySelector("h3").textContent = button.title;
  panel.querySelector("p").textContent = ids.length < count ? `${ids.length} of ${count} photos` : `${count} ${count === 1 ? "photo" : "photos"}`;
  panel.querySelector(".photos").replaceChildren(...ids.map(figure));
  panel.scrollTop = 0;
}

const matrix = document.querySelector(".matrix");
if (matrix) {
  const buttons = [...matrix.querySelectorAll("button")];
  matrix.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) fill(button);
  });
  // The commonest confusion is open at first, and only a cell that somebody selects is read out.
  const confusions = buttons.filter(button => button.classList.contains("miss"));
  const first = confusions.reduce((a, b) => Number(b.dataset.count) > Number(a.dataset.count) ? b : a, confusions[0]);
  if (first) fill(first);
  document.querySelector(".cell").setAttribute("aria-live", "polite");
  // Arrow keys go to the next cell that can be opened, in the row or in the column.
  matrix.addEventListener("keydown", event => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const here = event.target.closest("button");
    if (!step || !here) return;
    event.preventDefault();
    const [row, column] = here.dataset.cell.split(",").map(Number);
    const ahead = buttons.map(button => {
      const [r, c] = button.dataset.cell.split(",").map(Number);
      const along = (r - row) * step[0] + (c - column) * step[1];
      const beside = Math.abs((r - row) * step[1]) + Math.abs((c - column) * step[0]);
      return { button, along, beside };
    }).filter(other => other.along > 0).sort((a, b) => a.beside * 100 + a.along - b.beside * 100 - b.along);
    if (ahead.length) ahead[0].button.focus();
  });
}

const map = document.querySelector(".map");
if (map) {
  // Photos on their dots, which become rings in the color of the class.
  const toggle = document.getElementById("map-photos");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const on = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", on);
    map.classList.toggle("pictures", on);
    for (const picture of map.querySelectorAll("image")) picture.remove();
    for (const dot of on ? map.querySelectorAll(".dot") : []) {
      const id = dot.dataset.photoDot, uri = photos[id] && source(id);
      if (!uri) continue;
      const picture = document.createElementNS("http://www.w3.org/2000/svg", "image");
      const placed = { href: uri, x: dot.cx.baseVal.value - 12, y: dot.cy.baseVal.value - 12, width: 24, height: 24,
        class: dot.getAttribute("class").replace("dot", "dot-photo"), preserveAspectRatio: "xMidYMid slice" };
      for (const [name, value] of Object.entries(placed)) picture.setAttribute(name, value);
      picture.dataset.photoDot = id;
      dot.after(picture);
    }
    pick();
  });
  map.addEventListener("click", event => {
    const id = event.target.dataset.photoDot;
    if (photos[id]) show(photos[id].file, [Number(id)], 1);
  });
  const one = document.getElementById("map-class"); // of many classes, in place of a button for each
  function pick() {
    const pressed = [...document.querySelectorAll('.legend button[aria-pressed="true"]')].map(b => b.dataset.label);
    const picked = one?.value ? [one.value] : pressed;
    map.classList.toggle("picked", picked.length > 0);
    for (const dot of map.querySelectorAll("[data-photo-dot]")) {
      dot.classList.toggle("on", picked.some(label => dot.classList.contains(`k${label}`)));
    }
  }
  one?.addEventListener("change", pick);
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      pick();
    });
  }
}
