"use strict";
// Sort a table by a click on a heading: words by their letters, numbers by size, what is no number last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const sign = heading.ariaSort === "ascending" ? -1 : 1;
      for (const other of headings) other.ariaSort = "none";
      heading.ariaSort = sign > 0 ? "ascending" : "descending";
      const compare = "words" in heading.dataset ? byWords : byNumber;
      const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], sign));
      body.append(...rows);
    });
  });
}

function byWords(a, b, sign) {
  return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}

function byNumber(a, b, sign) {
  const x = Number(a.dataset.number ?? NaN), y = Number(b.dataset.number ?? NaN);
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
  return sign * (x - y);
}
