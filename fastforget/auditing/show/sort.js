// Sorts the rows of each group by the column whose head is pressed. Without it the table stands as it was written.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter(row => !row.classList.contains("head"));
        body.append(...rows.sort((one, other) => order(one.cells[column], other.cells[column], down)));
      }
    });
  });
}

// What a cell is sorted by stands in it; a cell without comes last both ways.
function order(one, other, down) {
  const [a, b] = [one.dataset.value ?? "", other.dataset.value ?? ""];
  if (a === "" || b === "") return (a === "") - (b === "");
  const apart = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  return down ? -apart : apart;
}
