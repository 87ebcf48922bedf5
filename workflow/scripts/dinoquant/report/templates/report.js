"use strict";
// Sort the table by a click on a heading, and show the rows that fit the filters. Without this the table is complete.
const table = document.getElementById("rows");
const headings = [...table.tHead.rows[0].cells];
const rows = [...table.tBodies[0].rows];
const [text, device, batch] = ["text", "device", "batch"].map((id) => document.getElementById(id));

function filter() {
  const words = text.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const chosen = [device, batch].every((choice) => !choice.value || row.dataset[choice.id] === choice.value);
    row.hidden = !(chosen && words.every((word) => row.textContent.toLowerCase().includes(word)));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${rows.length} rows; a heading sorts them`;
}

function sort(column) {
  const descending = headings[column].ariaSort === "ascending";
  const value = (row) => row.cells[column].dataset.value;
  const missing = (row) => value(row) === "";
  rows.sort((a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b); // at the end in either order
    const order = value(a).localeCompare(value(b), "en");
    const difference = Number.isNaN(value(a) - value(b)) ? order : value(a) - value(b);
    return descending ? -difference : difference;
  });
  table.tBodies[0].append(...rows);
  for (const heading of headings) heading.ariaSort = null;
  headings[column].ariaSort = descending ? "descending" : "ascending";
}

headings.forEach((heading, column) => {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sort(column));
  heading.append(button);
});
for (const control of [text, device, batch]) control.addEventListener("input", filter);
document.getElementById("filters").hidden = false;
filter();
