"use strict";

// A click on a heading sorts the table's body by that column; a second one turns the order round.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const each of headings) each.setAttribute("aria-sort", each === heading ? order : "none");
      const key = (row) => row.cells[column].dataset;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...(table.tBodies[0]?.rows ?? [])];
      rows.sort((a, b) => compare(key(a), key(b), sign));
      table.tBodies[0]?.append(...rows);
    });
  });
}

// Numbers by size, then texts by letters; what is missing comes last in either order.
function compare(a, b, sign) {
  if ("missing" in a || "missing" in b) return ("missing" in a) - ("missing" in b);
  if ("number" in a && "number" in b) return sign * (Number(a.number) - Number(b.number));
  if ("number" in a || "number" in b) return sign * (("number" in b) - ("number" in a));
  return sign * a.text.localeCompare(b.text, "en", { numeric: true });
}

for (const picture of document.querySelectorAll(".picture img")) {
  const link = document.createElement("a");
  link.href = picture.src;
  link.download = picture.dataset.name;
  link.textContent = "Save as SVG";
  picture.closest("figure").querySelector(".files").prepend(link);
}

// Paper cannot be unfolded. The manifest alone stays out of print.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded.push(...document.querySelectorAll("details:not([open], .manifest)"));
  for (const details of unfolded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
  unfolded = [];
});
