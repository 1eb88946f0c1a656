// What controls.html has, moved and filled; and the arrow keys.

const percent = share => `${(100 * share).toFixed(1)} %`;
const cellText = ([row, column]) => `row ${row}, column ${column}`;
const STEPS = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};

/** The cell of a grid that an arrow key leads to from [row, column], not beyond its edges. */
function moveCell([row, column], key, [rows, columns]) {
  const [down, right] = STEPS[key];
  return [Math.min(rows - 1, Math.max(0, row + down)), Math.min(columns - 1, Math.max(0, column + right))];
}

function setOptions(select, names, selected) {
  select.replaceChildren(...names.map((name, i) => new Option(name, i, false, i === selected)));
}

/** Whole numbers from 0, so many. */
const range = count => [...Array(count).keys()];

/** Lets the list of photos and the buttons beside it call `show(index)`; returns the function that steps by 1 or -1. */
function connectPhotoList(id, show) {
  const select = byId(`${id}-photo-list`);
  const step = by => {
    select.selectedIndex = (select.selectedIndex + by + select.length) % select.length;
    show(select.selectedIndex);
  };
  select.addEventListener("change", () => show(select.selectedIndex));
  for (const button of byId(id).querySelectorAll("[data-step]"))
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  return step;
}

/** Lets each of these buttons save what its canvas shows, as a file of the canvas's name. */
function connectSaving() {
  for (const button of document.querySelectorAll("[data-saves]"))
    button.addEventListener("click", () => {
      const name = button.dataset.saves;
      Object.assign(document.createElement("a"), {href: byId(name).toDataURL(), download: `${name}.png`}).click();
    });
}

/** Shows the numbers of what is drawn: pairs of a name and a value. Only texts that differ are laid out again. */
function showReadout(id, pairs) {
  const list = byId(`${id}-readout`);
  if (list.children.length !== pairs.length)
    list.replaceChildren(...pairs.map(() => {
      const group = document.createElement("div");
      group.append(document.createElement("dt"), document.createElement("dd"));
      return group;
    }));
  pairs.forEach((pair, i) => pair.forEach((text, j) => {
    const element = list.children[i].children[j];
    if (element.textContent !== String(text)) element.textContent = text;
  }));
}
