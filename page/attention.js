// Attention: every layer, head and query of a ViT, over the photos that it saw.

const CLS = null; // a query is a patch, [row, column], or this
const MEAN = -1; // a head is its number, or this: the mean over all heads

/** The attention of a query to the patches, (rows * columns). */
function attentionMap(photo, layer, head, query) {
  const [rows, columns] = photo.grid, values = new Float64Array(rows * columns);
  const heads = head === MEAN ? range(photo.heads) : [head];
  for (const each of heads) {
    const first = (layer * photo.heads + each) * photo.tokens;
    const token = first + (query === CLS ? 0 : photo.prefix + query[0] * columns + query[1]);
    const [weights, start, scale] = query === CLS ? [photo.cls, first + photo.prefix, 1]
      : [photo.bytes, token * values.length, photo.scale[token]];
    for (let k = 0; k < values.length; k++) values[k] += scale * weights[start + k] / heads.length;
  }
  return values;
}

const MARGIN = 4; // pixels around each map of the overview, which the frame fills

/** Draws the maps of all layers (rows) and heads (columns) for a query on one scale, with a frame around the chosen one. */
function drawHeads(canvas, pixels, photo, layer, head, query) {
  const {layers, heads, grid: [rows, columns]} = photo;
  const width = Math.max(2, Math.floor(Math.min(96, 480 / heads, 640 / layers) / columns)) * columns + 2 * MARGIN;
  const height = (width - 2 * MARGIN) * rows / columns + 2 * MARGIN;
  const maps = range(layers).flatMap(i => range(heads).map(j => attentionMap(photo, i, j, query)));
  const peak = Math.max(...maps.map(values => Math.max(...values)));
  const context = contextOf(canvas, heads * width, Math.round(layers * height));
  context.clearRect(0, 0, canvas.width, canvas.height);
  maps.forEach((values, k) => {
    const left = k % heads * width, top = Math.floor(k / heads) * height;
    const map = pixels.fill(cell => Math.sqrt(values[cell] / peak));
    context.drawImage(map, left + MARGIN, top + MARGIN, width - 2 * MARGIN, height - 2 * MARGIN);
  });
  const [left, framed] = head === MEAN ? [0, canvas.width] : [head * width, width];
  drawFrame(context, left + MARGIN / 2, layer * height + MARGIN / 2, framed - MARGIN, height - MARGIN, MARGIN - 2);
}

/** The share of a map on the object, and that of the area that it covers. */
function shareOnObject(photo, values) {
  let on = 0, off = 0, object = 0, background = 0;
  values.forEach((value, k) => {
    on += value * photo.object[k];
    off += value * photo.background[k];
    object += photo.object[k];
    background += photo.background[k];
  });
  return [on / (on + off), object / (object + background)];
}

/** What the readout says of a map: pairs of a name and a value. */
function attentionNumbers(photo, values, layer, head, query) {
  const peak = Math.max(...values), at = values.indexOf(peak), columns = photo.grid[1];
  const pairs = [
    ["query", query === CLS ? "[CLS]" : cellText(query)], ["layer", photo.only?.layer ?? layer],
    ["head", photo.only?.head ?? (head === MEAN ? `mean of ${photo.heads}` : head)],
    ["attention on patches", percent(values.reduce((sum, value) => sum + value, 0))],
    ["its peak", percent(peak)], ["peak at", cellText([Math.floor(at / columns), at % columns])]];
  const onObject = photo.on_object ?? (photo.object && shareOnObject(photo, values));
  if (onObject) {
    const [share, area] = onObject;
    pairs.push(["of it on the object", percent(share)], ["by chance (area)", percent(area)]);
  }
  if (photo.predicted) pairs.push(["predicted", photo.predicted], ["probability", photo.confidence.toFixed(2)]);
  if (photo.predicted && photo.label) pairs.push(["true class", photo.label + (isWrong(photo) ? " (wrong)" : "")]);
  return pairs;
}

const isWrong = photo => Boolean(photo.label) && photo.label !== photo.predicted;

function attention({photos}) {
  const canvas = byId("attention-photo"), headsCanvas = byId("attention-heads");
  const layerList = byId("attention-layer"), headList = byId("attention-head");
  let order, photo, pixels;
  let selected = CLS, hovered; // queries; `hovered` is undefined where no patch is under the mouse
  for (const each of photos) {
    if (each.only) each.cls = Float32Array.from(decodeBytes(each.cls), byte => each.scale * byte);
    else for (const name of ["scale", "cls", "object", "background"])
      if (each[name]) each[name] = new Float32Array(decodeBytes(each[name]).buffer);
  }

  const chosen = () => [Number(layerList.value), Number(headList.value) - 1];
  const patchAt = event => photo.only ? null : cellAt(event, canvas, photo.box, photo.grid);

  const draw = drawSoon(() => {
    const query = hovered === undefined ? selected : hovered, [layer, head] = chosen();
    const values = attentionMap(photo, layer, head, query);
    overlay.draw(values);
    overlay.dimOutside();
    if (query !== CLS) overlay.frameCell(query);
    if (!photo.only) drawHeads(headsCanvas, pixels, photo, layer, head, query);
    byId("attention-cls").setAttribute("aria-pressed", query === CLS);
    showReadout("attention", attentionNumbers(photo, values, layer, head, query));
  });
  const overlay = new Overlay("attention", draw);

  const show = showLatest(loaded => {
    const before = photo;
    photo = loaded;
    overlay.setPhoto(photo);
    pixels = new Pixels(...photo.grid, "inferno");
    hovered = undefined;
    for (const part of byId("attention").querySelectorAll("[data-in-full]")) part.hidden = Boolean(photo.only);
    if (before?.layers !== photo.layers || before?.heads !== photo.heads) {
      setOptions(layerList, range(photo.layers), photo.layers - 1);
      setOptions(headList, ["mean", ...range(photo.heads)], 0);
    }
    if (String(before?.grid) !== String(photo.grid) || photo.only) selected = CLS;
    draw();
  });

  function listPhotos(wrongFirst) {
    order = wrongFirst ? [...photos.filter(isWrong), ...photos.filter(each => !isWrong(each))] : photos;
    setOptions(byId("attention-photo-list"), order.map(each => each.name + (isWrong(each) ? " (wrong)" : "")), 0);
    show(order[0]);
  }

  const step = connectPhotoList("attention", index => show(order[index]));
  for (const list of [layerList, headList]) list.addEventListener("change", draw);
  byId("attention-wrong")?.addEventListener("change", event => listPhotos(event.target.checked));
  byId("attention-cls").addEventListener("click", () => { selected = CLS; draw(); });

  canvas.addEventListener("pointermove", event => { hovered = patchAt(event) ?? undefined; draw(); });
  canvas.addEventListener("pointerleave", () => { hovered = undefined; draw(); });
  canvas.addEventListener("pointerdown", event => { selected = patchAt(event) ?? CLS; draw(); });
  canvas.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in STEPS && !photo.only) selected = selected === CLS ? [0, 0] : moveCell(selected, key, photo.grid);
    else if (key === "Escape") selected = CLS;
    else if (key === "n" || key === "p") step(key === "n" ? 1 : -1);
    else return;
    event.preventDefault();
    hovered = undefined;
    draw();
  });

  const choose = ([layer, head]) => { layerList.value = layer; headList.value = head + 1; draw(); };
  for (const kind of ["pointermove", "pointerdown"])
    headsCanvas.addEventListener(kind, event => {
      const cell = cellOfCanvas(event, headsCanvas, [photo.layers, photo.heads]);
      if (cell) choose(cell);
    });
  headsCanvas.addEventListener("keydown", event => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const [layer, head] = chosen();
    choose(head === MEAN ? [layer, 0] : moveCell([layer, head], event.key, [photo.layers, photo.heads]));
  });
  listPhotos(Boolean(byId("attention-wrong")?.checked));
}
