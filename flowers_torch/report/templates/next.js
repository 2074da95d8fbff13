const { images, classes } = JSON.parse(document.getElementById("listed").textContent);
const cards = [...document.querySelectorAll(".cards li")], save = document.getElementById("save");
const inputs = cards.map(card => card.querySelector("input"));
let saved = true;

function update(card, name) {
  card.classList.toggle("done", name !== "");
  for (const button of card.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(classes[button.dataset.class] === name));
  }
  const labeled = inputs.filter(input => input.value.trim()).length;
  document.getElementById("count").textContent = `${labeled} of ${cards.length} labeled`;
  save.disabled = labeled === 0;
  saved = labeled === 0;
}
cards.forEach((card, number) => {
  inputs[number].addEventListener("input", () => update(card, inputs[number].value.trim()));
  for (const button of card.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const name = classes[button.dataset.class];
      inputs[number].value = button.getAttribute("aria-pressed") === "true" ? "" : name;
      update(card, inputs[number].value);
    });
  }
});

save.addEventListener("click", () => {
  const rows = images.map((image, i) => [image.file, inputs[i].value.trim()]).filter(row => row[1]);
  saveTable("labels.csv", [["file", "label"], ...rows]);
  saved = true;
});
addEventListener("beforeunload", event => { if (!saved) event.preventDefault(); });
