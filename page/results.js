// Results: the photos behind a cell of a confusion matrix.

/** Shows a cell's photos, each with its name and the probability of what it was taken for. */
function showCellPhotos(title, {total, photos}, thumbnails) {
  const heading = document.createElement("h4"), list = document.createElement("ul");
  heading.textContent = title + (photos.length < total ? ` (the ${photos.length} surest of ${total} photos)` : "");
  for (const [photo, name, probability] of photos) {
    const item = document.createElement("li"), image = new Image();
    Object.assign(image, {src: thumbnails[photo], alt: ""});
    item.append(image, `${name}, ${probability.toFixed(2)}`);
    list.append(item);
  }
  byId("cell-photos").replaceChildren(heading, list);
}

/** The next button from that of the cell ROW-COLUMN in a direction, past empty cells; undefined beyond the edge. */
function nextCell(matrix, cell, [down, right]) {
  const size = matrix.querySelectorAll("tbody tr").length;
  let [row, column] = cell.split("-").map(Number), button;
  do {
    row += down;
    column += right;
    button = matrix.querySelector(`[data-cell="${row}-${column}"]`);
  } while (!button && Math.min(row, column) >= 0 && Math.max(row, column) < size);
  return button;
}

function results({photos, cells}) {
  const matrices = [...document.querySelectorAll("[data-matrix]")];
  const release = () => document.querySelector("[data-cell][aria-pressed=true]")?.removeAttribute("aria-pressed");

  byId("matrix")?.addEventListener("change", event => {
    matrices.forEach((matrix, i) => { matrix.hidden = i !== event.target.selectedIndex; });
    release();
    byId("cell-photos").replaceChildren("No cell is chosen.");
  });

  matrices.forEach((matrix, i) => {
    const buttons = [...matrix.querySelectorAll("[data-cell]")];
    const keepInTabOrder = chosen => { for (const each of buttons) each.tabIndex = each === chosen ? 0 : -1; };
    keepInTabOrder(buttons[0]);
    for (const button of buttons) {
      button.addEventListener("focus", () => keepInTabOrder(button));
      button.addEventListener("keydown", event => {
        if (!(event.key in STEPS)) return;
        event.preventDefault();
        nextCell(matrix, button.dataset.cell, STEPS[event.key])?.focus();
      });
      button.addEventListener("click", () => {
        release();
        button.setAttribute("aria-pressed", "true");
        showCellPhotos(button.getAttribute("aria-label"), cells[i][button.dataset.cell], photos);
      });
    }
  });
}
