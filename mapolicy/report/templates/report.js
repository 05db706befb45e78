"use strict";
// Without this script the page still shows every number. It adds tooltips, keyboard navigation and sorting.
const box = document.getElementById("box");
let current = null;

function show(cell) {
  hide();
  current = cell;
  box.textContent = cell.dataset.detail;
  box.hidden = false;
  cell.setAttribute("aria-describedby", "box");
  follow();
}

function follow() {
  if (!current) return;
  box.style.left = "0"; // at the left edge nothing narrows the box
  const at = current.getBoundingClientRect(), own = box.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left + at.width / 2 - own.width / 2), innerWidth - own.width - 8);
  const above = at.top - own.height - 6;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${above > 4 ? above : at.bottom + 6}px`;
}

function hide() {
  box.hidden = true;
  if (current) current.removeAttribute("aria-describedby");
  current = null;
}

function cellsOf(row) {
  return [...row.querySelectorAll("td[data-value]")];
}

function rowsOf(table) {
  return [...table.tBodies[0].rows];
}

// A table is one tab stop; the arrow keys move within it.
function move(table, cell, key) {
  const rows = rowsOf(table), row = cell.parentElement;
  const cells = cellsOf(row), x = cells.indexOf(cell), y = rows.indexOf(row);
  const goal = {
    ArrowRight: [x + 1, y], ArrowLeft: [x - 1, y], ArrowDown: [x, y + 1], ArrowUp: [x, y - 1],
    Home: [0, y], End: [cells.length - 1, y], PageUp: [x, 0], PageDown: [x, rows.length - 1],
  }[key];
  const next = goal && rows[goal[1]] && cellsOf(rows[goal[1]])[goal[0]];
  if (next) {
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
  return Boolean(goal);
}

function sorted(items, value, how) {
  const place = (item) => Number(item.dataset.place);
  return [...items].sort((a, b) => (how === "sum" ? value(b) - value(a) : 0) || place(a) - place(b));
}

function sortRows(table, how) {
  const sum = (row) => cellsOf(row).reduce((total, cell) => total + Number(cell.dataset.value), 0);
  table.tBodies[0].append(...sorted(rowsOf(table), sum, how));
}

function sortColumns(table, how) {
  const heads = [...table.tHead.rows[0].querySelectorAll("th[data-place]")];
  const sums = new Map();
  for (const row of rowsOf(table)) {
    for (const cell of cellsOf(row)) {
      sums.set(cell.dataset.place, (sums.get(cell.dataset.place) || 0) + Number(cell.dataset.value));
    }
  }
  const order = sorted(heads, (head) => sums.get(head.dataset.place), how).map((head) => head.dataset.place);
  for (const row of table.rows) {
    const end = row.querySelector(".total"), own = new Map();
    for (const cell of row.querySelectorAll(":scope > [data-place]")) own.set(cell.dataset.place, cell);
    for (const place of order) row.insertBefore(own.get(place), end);
  }
}

for (const table of document.querySelectorAll("table.heat")) {
  for (const cell of table.querySelectorAll("td[data-value]")) {
    cell.dataset.detail = cell.title;
    cell.removeAttribute("title");
    cell.tabIndex = -1;
  }
  table.querySelector("td[data-value]").tabIndex = 0;
  const cellAt = (event) => event.target.closest("td[data-value]");
  table.addEventListener("pointerover", (event) => (cellAt(event) ? show(cellAt(event)) : hide()));
  table.addEventListener("pointerleave", hide);
  table.addEventListener("focusin", (event) => cellAt(event) && show(cellAt(event)));
  table.addEventListener("focusout", hide);
  table.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    else if (cellAt(event) && move(table, cellAt(event), event.key)) event.preventDefault();
  });
}
addEventListener("scroll", follow, { passive: true, capture: true });

for (const button of document.querySelectorAll("button[data-sort]")) {
  button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.table);
    (button.dataset.sort === "rows" ? sortRows : sortColumns)(table, button.dataset.how);
    for (const other of button.parentElement.querySelectorAll(`[data-sort=${button.dataset.sort}]`)) {
      other.setAttribute("aria-pressed", String(other === button));
    }
  });
}
for (const tools of document.querySelectorAll(".tools[hidden]")) tools.hidden = false;
