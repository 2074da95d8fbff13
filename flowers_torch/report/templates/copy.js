"use strict";
for (const button of document.querySelectorAll(".copy")) {
  if (!navigator.clipboard) continue; // only pages that the browser trusts may write there
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
