"use strict";
// A button in every header of a table sorts it by that column: upwards, then downwards. Cells with
// data-value are numbers; what has no number comes last either way.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const rows = [...body.rows];
      const numeric = rows.some((row) => "value" in row.cells[column].dataset);
      const compare = (a, b) => {
        const [x, y] = [a.cells[column], b.cells[column]];
        if (!numeric) return sign * x.textContent.localeCompare(y.textContent, "en");
        const [u, v] = [x, y].map((cell) => parseFloat(cell.dataset.value));
        if (isNaN(u) || isNaN(v)) return isNaN(u) - isNaN(v);
        return sign * (u - v);
      };
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...rows.sort(compare));
    });
  });
}
// A button under every picture shows it as large as it is, to be scrolled.
for (const figure of document.querySelectorAll("figure")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "size";
  button.textContent = "full size";
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(figure.classList.toggle("full")));
  });
  figure.querySelector("figcaption").before(button);
}
