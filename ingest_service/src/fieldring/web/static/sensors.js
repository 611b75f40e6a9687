"use strict";
// Narrows the list to the rows that hold what was typed.
const box = document.getElementById("filter");
box.closest(".filter").hidden = false;
box.addEventListener("input", () => {
  const wanted = box.value.trim().toLowerCase();
  for (const row of document.querySelectorAll("#sensors tbody tr")) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
});
