// Position embeddings: the similarity of a patch to all others, and of every patch to all others.

const MAP_CELL = 40; // pixels of a patch on the map of one
const OVERVIEW_SIDE = 640; // pixels of the overview, about
const NARROWEST = 320; // pixels that it may be shown in

/** Draws the maps of all patches, each in its patch's place, from `mosaic`, which has a pixel a value. */
function drawSimilarityOverview(canvas, mosaic, [rows, columns], [row, column]) {
  const zoom = Math.max(1, Math.floor(OVERVIEW_SIDE / columns / columns));
  const gap = Math.ceil(zoom * columns * columns / (NARROWEST - columns)); // at least a pixel on the narrowest screen
  const width = zoom * columns + gap, height = zoom * rows + gap;
  const context = contextOf(canvas, columns * width, rows * height);
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++)
      context.drawImage(mosaic, j * columns, i * rows, columns, rows, j * width, i * height, width - gap, height - gap);
  drawFrame(context, column * width, row * height, width - gap, height - gap, 2);
}

function positions({models}) {
  const overview = byId("positions-grid"), map = byId("positions-map");
  let model, pixels, mosaic, patch = models[0].grid.map(side => Math.floor(side / 2));
  drawColourBar(byId("positions-bar"), "viridis");

  const draw = drawSoon(() => {
    const [rows, columns] = model.grid, count = rows * columns, index = patch[0] * columns + patch[1];
    const values = model.bytes.subarray(index * count, (index + 1) * count);
    drawSimilarityOverview(overview, mosaic, model.grid, patch);
    const context = contextOf(map, columns * MAP_CELL, rows * MAP_CELL);
    context.drawImage(pixels.fill(k => values[k] / 255), 0, 0, map.width, map.height);
    drawFrame(context, patch[1] * MAP_CELL + 2, patch[0] * MAP_CELL + 2, MAP_CELL - 4, MAP_CELL - 4, 3);

    const others = range(count).filter(k => k !== index);
    const nearest = others.reduce((best, k) => values[k] > values[best] ? k : best, others[0]);
    showReadout("positions", [["patch", cellText(patch)], ...others.length ? [
      ["most similar other patch", cellText([Math.floor(nearest / columns), nearest % columns])],
      ["cosine similarity", (model.low + model.scale * values[nearest]).toFixed(2)]] : []]);
  });

  const show = showLatest(loaded => {
    model = loaded;
    const [rows, columns] = model.grid, count = rows * columns;
    patch = [Math.min(patch[0], rows - 1), Math.min(patch[1], columns - 1)];
    pixels = new Pixels(rows, columns, "viridis");
    mosaic = new Pixels(rows * rows, columns * columns, "viridis").fill(k => {
      const y = Math.floor(k / (columns * columns)), x = k % (columns * columns);
      const query = Math.floor(y / rows) * columns + Math.floor(x / columns);
      return model.bytes[query * count + (y % rows) * columns + x % columns] / 255;
    });
    byId("positions-low").textContent = model.low.toFixed(2);
    byId("positions-high").textContent = (model.low + 255 * model.scale).toFixed(2);
    draw();
  });

  for (const canvas of [overview, map]) {
    for (const kind of ["pointermove", "pointerdown"])
      canvas.addEventListener(kind, event => {
        const cell = cellOfCanvas(event, canvas, model.grid);
        if (cell) { patch = cell; draw(); }
      });
    canvas.addEventListener("keydown", event => {
      if (!(event.key in STEPS)) return;
      event.preventDefault();
      patch = moveCell(patch, event.key, model.grid);
      draw();
    });
  }
  for (const radio of document.querySelectorAll("[name=positions-model]"))
    radio.addEventListener("change", () => show(models[radio.value]));
  show(models[document.querySelector("[name=positions-model]:checked")?.value ?? 0]);
}
