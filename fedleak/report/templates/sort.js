for (const table of document.querySelectorAll("table.sortable")) {
  // Of several rows of headings, the last has one for each column.
  [...table.tHead.rows[table.tHead.rows.length - 1].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => (row.cells[column].dataset.value ?? row.cells[column].textContent).trim().replace("–", "");
      const compare = (a, b) => (down ? -1 : 1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
      // Rows without a value stay last, whichever way.
      const order = (a, b) => (a === "") - (b === "") || compare(a, b);
      const rows = [...table.tBodies[0].rows].sort((a, b) => order(value(a), value(b)));
      table.tBodies[0].append(...rows);
    });
  });
}
