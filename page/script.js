"use strict";
// What the page does when one points at something. Each section keeps a small state and draws it; numbers are bytes, which
// `unpacked` inflates when a photo or model is first shown.

const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const percent = share => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const MOVES = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};

// Numbers ------------------------------------------------------------------------------------------------------------

const bytesOf = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));
const inflated = {};

function unpacked(id) {
  inflated[id] ??= new Response(new Blob([bytesOf(find(id).textContent)]).stream()
    .pipeThrough(new DecompressionStream("deflate"))).arrayBuffer().then(buffer => new Uint8Array(buffer));
  return inflated[id];
}

const colours = Object.fromEntries(Object.entries(data.colours).map(([name, text]) => [name, bytesOf(text)]));

// Drawing ------------------------------------------------------------------------------------------------------------

/** Draws soon, once for any number of changes before the next frame. */
function drawingSoon(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}

/** A picture with a pixel a value: `share(k)` in 0 to 1 chooses the colour, `alpha(share)` how opaque it is. */
class Cells {
  constructor(rows, columns, map) {
    this.canvas = Object.assign(document.createElement("canvas"), {width: columns, height: rows});
    this.context = this.canvas.getContext("2d");
    this.image = this.context.createImageData(columns, rows);
    this.map = colours[map];
  }

  fill(share, alpha = () => 1) {
    const pixels = this.image.data;
    for (let k = 0; 4 * k < pixels.length; k++) {
      const value = Math.min(1, Math.max(0, share(k))), colour = 3 * Math.round(255 * value);
      pixels[4 * k] = this.map[colour];
      pixels[4 * k + 1] = this.map[colour + 1];
      pixels[4 * k + 2] = this.map[colour + 2];
      pixels[4 * k + 3] = Math.round(255 * alpha(value));
    }
    this.context.putImageData(this.image, 0, 0);
    return this.canvas;
  }
}

function drawBar(id, map) {
  const bar = find(id);
  bar.getContext("2d").drawImage(new Cells(1, 256, map).fill(k => k / 255), 0, 0);
}

/** Changes a canvas's size, which clears it, only where it is another one. */
function resize(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
}

function frame(context, left, top, width, height, line) {
  for (const [style, thickness] of [["#000", line + 2], ["#fff", line]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    context.strokeRect(left, top, width, height);
  }
}

/** A photo, dimmed where the model did not see it, under a map whose cells divide `box` evenly. */
function drawOverlay(canvas, photo, picture, values, top, opacity, cells, dimmed) {
  const [width, height] = photo.size, [left, upper, right, lower] = photo.box;
  resize(canvas, width, height);
  canvas.style.width = `min(100%, ${Math.round(85 * width / height)}vh)`;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.drawImage(picture, 0, 0, width, height);
  context.imageSmoothingEnabled = false;
  context.drawImage(cells.fill(k => values[k] / top, share => opacity * Math.sqrt(share)),
    left, upper, right - left, lower - upper);
  if (dimmed) {
    context.fillStyle = "rgba(0, 0, 0, 0.65)";
    context.fillRect(0, 0, width, upper);
    context.fillRect(0, lower, width, height - lower);
    context.fillRect(0, upper, left, lower - upper);
    context.fillRect(right, upper, width - right, lower - upper);
  }
}

/** The row and column of a grid over `box`, in pixels of a canvas, that an event points at; null outside. */
function cellAt(event, canvas, [left, top, right, bottom], rows, columns) {
  const place = canvas.getBoundingClientRect();
  const x = (event.clientX - place.left) * canvas.width / place.width;
  const y = (event.clientY - place.top) * canvas.height / place.height;
  const row = Math.floor((y - top) / (bottom - top) * rows), column = Math.floor((x - left) / (right - left) * columns);
  return row >= 0 && row < rows && column >= 0 && column < columns ? [row, column] : null;
}

function moved([row, column], key, rows, columns) {
  const [down, across] = MOVES[key];
  return [Math.min(rows - 1, Math.max(0, row + down)), Math.min(columns - 1, Math.max(0, column + across))];
}

const pictures = new Map();

function picture(address) {
  if (!pictures.has(address)) {
    const image = new Image();
    image.src = address;
    pictures.set(address, image.decode().then(() => image));
  }
  return pictures.get(address);
}

/** The bytes of a photo's maps, and its picture. */
const load = photo => Promise.all([unpacked(photo.blob), picture(photo.photo)]);

/** A function that loads for something and then uses what came, unless it was called again meanwhile. */
function newest(load, use) {
  let calls = 0;
  return async asked => {
    const call = ++calls, loaded = await load(asked);
    if (call === calls) use(asked, loaded);
  };
}

// Controls -----------------------------------------------------------------------------------------------------------

function choices(select, names, chosen) {
  select.replaceChildren(...names.map((name, i) => new Option(name, i, false, i === chosen)));
}

/** The buttons and the list that step through `count` photos: calls `show(place)`, and returns the function that steps. */
function stepping(id, count, show) {
  const select = find(`${id}-photo-list`);
  const step = by => {
    select.selectedIndex = (select.selectedIndex + by + count) % count;
    show(select.selectedIndex);
  };
  select.addEventListener("change", () => show(select.selectedIndex));
  for (const button of find(id).querySelectorAll("[data-step]"))
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  return step;
}

/** What the two sliders say: [opacity, share of the peak that has the brightest colour]. */
function overlaySettings(id, changed) {
  const opacity = find(`${id}-opacity`), top = find(`${id}-top`);
  for (const slider of [opacity, top]) slider.addEventListener("input", changed);
  return () => {
    find(`${id}-top-value`).textContent = `${top.value} %`;
    return [opacity.value / 100, top.value / 100];
  };
}

// Results ------------------------------------------------------------------------------------------------------------

function results({photos, cells}) {
  const matrices = [...document.querySelectorAll("[data-matrix]")], behind = find("behind");
  const clear = () => {
    for (const button of document.querySelectorAll("[data-cell][aria-pressed=true]")) button.removeAttribute("aria-pressed");
  };
  find("matrix")?.addEventListener("change", event => {
    matrices.forEach((matrix, i) => { matrix.hidden = i !== event.target.selectedIndex; });
    clear();
    behind.replaceChildren("No cell is chosen.");
  });
  matrices.forEach((matrix, i) => {
    const buttons = [...matrix.querySelectorAll("[data-cell]")];
    const byCell = new Map(buttons.map(button => [button.dataset.cell, button]));
    buttons.forEach((button, k) => { button.tabIndex = k ? -1 : 0; });
    matrix.addEventListener("keydown", event => {
      const [down, across] = MOVES[event.key] ?? [0, 0];
      if (!event.target.dataset.cell || !(down || across)) return;
      event.preventDefault();
      let [row, column] = event.target.dataset.cell.split("-").map(Number);
      const most = matrix.querySelectorAll("tbody tr").length;
      do {
        row += down;
        column += across;
      } while (Math.min(row, column) >= 0 && Math.max(row, column) < most && !byCell.has(`${row}-${column}`));
      byCell.get(`${row}-${column}`)?.focus();
    });
    matrix.addEventListener("focusin", event => {
      if (!event.target.dataset.cell) return;
      for (const button of buttons) button.tabIndex = button === event.target ? 0 : -1;
    });
    matrix.addEventListener("click", event => {
      if (!event.target.dataset.cell) return;
      clear();
      event.target.setAttribute("aria-pressed", "true");
      const heading = document.createElement("h4"), list = document.createElement("ul");
      const {total, photos: shown} = cells[i][event.target.dataset.cell];
      heading.textContent = event.target.getAttribute("aria-label")
        + (shown.length < total ? ` (the ${shown.length} surest of ${total} photos)` : "");
      for (const [photo, name, probability] of shown) {
        const item = document.createElement("li"), image = new Image();
        Object.assign(image, {src: photos[photo], alt: ""});
        item.append(image, `${name}, ${probability.toFixed(2)}`);
        list.append(item);
      }
      behind.replaceChildren(heading, list);
    });
  });
}

// Position embeddings ------------------------------------------------------------------------------------------------

function positions({models}) {
  const grid = find("positions-grid"), map = find("positions-map"), told = find("positions-told");
  const state = {model: 0, patch: models[0].grid.map(side => Math.floor(side / 2))};
  let values, mosaic, one;
  drawBar("positions-bar", "viridis");

  const draw = drawingSoon(() => {
    const model = models[state.model], [rows, columns] = model.grid, count = rows * columns, [row, column] = state.patch;
    const similarity = k => model.low + model.scale * values[(row * columns + column) * count + k];

    const pixel = Math.max(1, Math.floor(640 / columns / columns)), wide = pixel * columns + 1, high = pixel * rows + 1;
    resize(grid, columns * wide, rows * high);
    const overview = grid.getContext("2d");
    overview.imageSmoothingEnabled = false;
    overview.clearRect(0, 0, grid.width, grid.height);
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++)
        overview.drawImage(mosaic, j * columns, i * rows, columns, rows, j * wide, i * high, wide - 1, high - 1);
    frame(overview, column * wide, row * high, wide - 1, high - 1, 2);

    const large = 40;
    resize(map, columns * large, rows * large);
    const context = map.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(one.fill(k => values[(row * columns + column) * count + k] / 255), 0, 0, map.width, map.height);
    frame(context, column * large + 2, row * large + 2, large - 4, large - 4, 3);

    let nearest = -1;
    for (let k = 0; k < count; k++)
      if (k !== row * columns + column && (nearest < 0 || similarity(k) > similarity(nearest))) nearest = k;
    told.textContent = `Patch in row ${row}, column ${column}.` + (nearest < 0 ? "" : ` Most similar other patch: row ` +
      `${Math.floor(nearest / columns)}, column ${nearest % columns}, with ${similarity(nearest).toFixed(2)}.`);
  });

  const show = newest(index => unpacked(models[index].blob), (index, found) => {
    const model = models[index], [rows, columns] = model.grid, count = rows * columns;
    Object.assign(state, {model: index, patch: [Math.min(state.patch[0], rows - 1), Math.min(state.patch[1], columns - 1)]});
    values = found;
    one = new Cells(rows, columns, "viridis");
    mosaic = new Cells(rows * rows, columns * columns, "viridis").fill(k => {
      const y = Math.floor(k / (columns * columns)), x = k % (columns * columns);
      const query = Math.floor(y / rows) * columns + Math.floor(x / columns);
      return values[query * count + (y % rows) * columns + x % columns] / 255;
    });
    find("positions-low").textContent = model.low.toFixed(2);
    find("positions-high").textContent = (model.low + 255 * model.scale).toFixed(2);
    draw();
  });

  for (const canvas of [grid, map]) {
    for (const kind of ["pointermove", "pointerdown"])
      canvas.addEventListener(kind, event => {
        const cell = cellAt(event, canvas, [0, 0, canvas.width, canvas.height], ...models[state.model].grid);
        if (cell) { state.patch = cell; draw(); }
      });
    canvas.addEventListener("keydown", event => {
      if (!(event.key in MOVES)) return;
      event.preventDefault();
      state.patch = moved(state.patch, event.key, ...models[state.model].grid);
      draw();
    });
  }
  for (const radio of document.querySelectorAll("[name=positions-model]"))
    radio.addEventListener("change", () => show(Number(radio.value)));
  show(Number(document.querySelector("[name=positions-model]:checked")?.value ?? 0));
}

// Attention ----------------------------------------------------------------------------------------------------------

function attention({photos}) {
  const canvas = find("attention-photo"), overview = find("attention-heads"), told = find("attention-told");
  const layer = find("attention-layer"), head = find("attention-head");
  const CLS = null; // a query is a patch, [row, column], or this
  let order = photos.map((_, i) => i), photo, shown, bytes, cells, small;
  let kept = CLS, pointed; // `pointed` is undefined where nothing is pointed at
  drawBar("attention-bar", "inferno");

  /** The map of a query in a layer: that of a head, or with -1 the mean over all. */
  function mapOf(layer, head, query) {
    const [rows, columns] = photo.grid, token = query === CLS ? 0 : photo.prefix + query[0] * columns + query[1];
    const heads = head < 0 ? [...Array(photo.heads).keys()] : [head], values = new Float64Array(rows * columns);
    for (const one of heads) {
      const start = ((layer * photo.heads + one) * photo.tokens + token) * photo.tokens + photo.prefix;
      const scale = photo.scale[layer][one] / heads.length;
      for (let k = 0; k < values.length; k++) values[k] += scale * bytes[start + k];
    }
    return values;
  }

  const chosen = () => [Number(layer.value), Number(head.value) - 1];

  function drawOverview(query) {
    const [rows, columns] = photo.grid, side = Math.max(2, Math.floor(Math.min(96, 480 / photo.heads, 640 / photo.layers) / columns))
      * columns + 2;
    const high = side * rows / columns, [ofLayer, ofHead] = chosen(), maps = [];
    resize(overview, photo.heads * side, Math.round(photo.layers * high));
    let top = 0;
    for (let i = 0; i < photo.layers; i++)
      for (let j = 0; j < photo.heads; j++) {
        maps.push(mapOf(i, j, query));
        top = Math.max(top, ...maps.at(-1));
      }
    const context = overview.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, overview.width, overview.height);
    maps.forEach((values, k) => {
      const x = k % photo.heads * side, y = Math.floor(k / photo.heads) * high;
      context.drawImage(small.fill(cell => Math.sqrt(values[cell] / top)), x + 1, y + 1, side - 2, high - 2);
    });
    const left = ofHead < 0 ? 0 : ofHead * side, width = ofHead < 0 ? overview.width : side;
    frame(context, left + 1.5, ofLayer * high + 1.5, width - 3, high - 3, 2);
  }

  const draw = drawingSoon(() => {
    const query = pointed === undefined ? kept : pointed, [rows, columns] = photo.grid, [ofLayer, ofHead] = chosen();
    const values = mapOf(ofLayer, ofHead, query), [opacity, share] = settings(), peak = Math.max(...values);
    drawOverlay(canvas, photo, shown, values, peak * share || 1, opacity, cells, true);
    if (query !== CLS) {
      const [left, top, right, bottom] = photo.box, across = (right - left) / columns, down = (bottom - top) / rows;
      frame(canvas.getContext("2d"), left + query[1] * across, top + query[0] * down, across, down, 2);
    }
    drawOverview(query);
    find("attention-cls").setAttribute("aria-pressed", query === CLS);
    find("attention-bar-top").textContent = percent(peak * share);

    const at = values.indexOf(peak), from = query === CLS ? "[CLS]" : `the patch in row ${query[0]}, column ${query[1]}`;
    const sentences = [`From ${from}, layer ${ofLayer}, ${ofHead < 0 ? `mean over ${photo.heads} heads` : `head ${ofHead}`}: ` +
      `${percent(values.reduce((a, b) => a + b, 0))} goes to patches, most of it, ${percent(peak)}, to row ` +
      `${Math.floor(at / columns)}, column ${at % columns}.`];
    if (photo.object) {
      let on = 0, off = 0, object = 0, background = 0;
      values.forEach((value, k) => {
        on += value * photo.object[k];
        off += value * photo.background[k];
        object += photo.object[k];
        background += photo.background[k];
      });
      sentences.push(`${percent(on / (on + off))} of that lies on the object, which covers ` +
        `${percent(object / (object + background))} of the area.`);
    }
    if (photo.predicted) {
      const verdict = !photo.label ? "" : photo.label === photo.predicted ? ", which is right"
        : `, which is wrong: it is ${photo.label}`;
      sentences.push(`Predicted: ${photo.predicted}, probability ${photo.confidence.toFixed(2)}${verdict}.`);
    }
    told.textContent = sentences.join(" ");
  });

  const show = newest(load, (next, [found, image]) => {
    const before = photo;
    [photo, bytes, shown] = [next, found, image];
    for (const name of ["object", "background"])
      if (typeof photo[name] === "string") photo[name] = bytesOf(photo[name]);
    [cells, small] = [0, 1].map(() => new Cells(...photo.grid, "inferno"));
    pointed = undefined;
    if (before?.layers !== photo.layers || before?.heads !== photo.heads) {
      choices(layer, [...Array(photo.layers).keys()], photo.layers - 1);
      choices(head, ["mean", ...Array(photo.heads).keys()], 0);
    }
    if (String(before?.grid) !== String(photo.grid)) kept = CLS;
    draw();
  });

  function list(wrongFirst) {
    const wrong = i => Number(Boolean(photos[i].label) && photos[i].label !== photos[i].predicted);
    order = photos.map((_, i) => i).sort((a, b) => wrongFirst ? wrong(b) - wrong(a) || a - b : a - b);
    choices(find("attention-photo-list"), order.map(i => photos[i].name + (wrong(i) ? " (wrong)" : "")), 0);
    show(photos[order[0]]);
  }

  const settings = overlaySettings("attention", draw);
  const step = stepping("attention", photos.length, place => show(photos[order[place]]));
  for (const select of [layer, head]) select.addEventListener("change", draw);
  find("attention-wrong")?.addEventListener("change", event => list(event.target.checked));
  find("attention-cls").addEventListener("click", () => { kept = CLS; draw(); });
  const patchAt = event => cellAt(event, canvas, photo.box, ...photo.grid);
  canvas.addEventListener("pointermove", event => { pointed = patchAt(event) ?? undefined; draw(); });
  canvas.addEventListener("pointerleave", () => { pointed = undefined; draw(); });
  canvas.addEventListener("pointerdown", event => { kept = patchAt(event); draw(); });
  canvas.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in MOVES) kept = kept === CLS ? [0, 0] : moved(kept, key, ...photo.grid);
    else if (key === "Escape") kept = CLS;
    else if (key === "n" || key === "p") step(key === "n" ? 1 : -1);
    else return;
    event.preventDefault();
    pointed = undefined;
    draw();
  });
  const choose = (row, column) => { layer.value = row; head.value = column + 1; draw(); };
  for (const kind of ["pointermove", "pointerdown"])
    overview.addEventListener(kind, event => {
      const cell = cellAt(event, overview, [0, 0, overview.width, overview.height], photo.layers, photo.heads);
      if (cell) choose(...cell);
    });
  overview.addEventListener("keydown", event => {
    if (!(event.key in MOVES)) return;
    event.preventDefault();
    const [ofLayer, ofHead] = chosen();
    choose(...(ofHead < 0 ? [ofLayer, 0] : moved([ofLayer, ofHead], event.key, photo.layers, photo.heads)));
  });
  list(Boolean(find("attention-wrong")?.checked));
}

// Captions -----------------------------------------------------------------------------------------------------------

function captions({photos}) {
  const canvas = find("captions-photo"), bar = find("captions-tokens"), layer = find("captions-layer");
  const whole = find("captions-words"), told = find("captions-told");
  let photo, shown, bytes, cells, chosen = 0;
  drawBar("captions-bar", "inferno");

  const parts = () => photo[whole.checked ? "words" : "tokens"];

  /** The mean over the maps of some tokens. */
  function mapOf(layer, tokens) {
    const count = photo.grid[0] * photo.grid[1], values = new Float64Array(count);
    for (const t of tokens) {
      const start = (layer * photo.tokens.length + t) * count, scale = photo.scale[layer][t] / tokens.length;
      for (let k = 0; k < count; k++) values[k] += scale * bytes[start + k];
    }
    return values;
  }

  const draw = drawingSoon(() => {
    const part = parts()[chosen], ofLayer = Number(layer.value), values = mapOf(ofLayer, part.parts);
    const [opacity, share] = settings(), peak = Math.max(...values), columns = photo.grid[1];
    drawOverlay(canvas, photo, shown, values, peak * share || 1, opacity, cells, false);
    [...bar.children].forEach((button, i) => {
      button.setAttribute("aria-pressed", i === chosen);
      button.tabIndex = i === chosen ? 0 : -1;
    });
    find("captions-bar-top").textContent = percent(peak * share);
    const at = values.indexOf(peak), probability = Math.exp(part.parts.reduce((sum, t) => sum + photo.log_probs[t], 0));
    told.textContent = `"${part.text}", probability ${probability.toFixed(2)}, layer ${ofLayer}: the cell in row ` +
      `${Math.floor(at / columns)}, column ${at % columns} has the most attention, ${percent(peak)}.`;
  });

  const choose = index => { chosen = index; draw(); };

  function list() {
    chosen = 0;
    bar.replaceChildren(...parts().map((part, i) => {
      const button = Object.assign(document.createElement("button"), {type: "button", textContent: part.text});
      for (const kind of ["pointerenter", "focus", "click"]) button.addEventListener(kind, () => choose(i));
      return button;
    }));
    draw();
  }

  const show = newest(load, (next, [found, image]) => {
    const before = photo;
    [photo, bytes, shown] = [next, found, image];
    cells = new Cells(...photo.grid, "inferno");
    if (before?.layers !== photo.layers) choices(layer, [...Array(photo.layers).keys()], photo.layers - 1);
    list();
  });

  const settings = overlaySettings("captions", draw);
  stepping("captions", photos.length, place => show(photos[place]));
  layer.addEventListener("change", draw);
  whole.addEventListener("change", list);
  bar.addEventListener("keydown", event => {
    const last = parts().length - 1, to = {ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: last}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    bar.children[Math.min(last, Math.max(0, to))].focus();
  });
  choices(find("captions-photo-list"), photos.map(each => each.name), 0);
  show(photos[0]);
}

for (const [id, section] of Object.entries({results, positions, attention, captions}))
  if (data.sections[id]) section(data.sections[id]);
