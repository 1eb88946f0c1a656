// Maps as pictures with a pixel a value, frames around their cells, and the cell under the mouse.

/** A function that draws before the next frame, once for any number of calls. */
function drawSoon(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
}

/** A canvas of rows x columns pixels in the colours of a map, to be drawn larger elsewhere. */
class Pixels {
  constructor(rows, columns, colourMap) {
    this.canvas = Object.assign(document.createElement("canvas"), {width: columns, height: rows});
    this.context = this.canvas.getContext("2d");
    this.image = this.context.createImageData(columns, rows);
    this.colours = colourMaps[colourMap];
  }

  /** The canvas, filled: `share(k)` in 0 to 1 chooses the colour of pixel k, `alpha(share)` how opaque it is. */
  fill(share, alpha = () => 1) {
    const channels = this.image.data;
    for (let k = 0; 4 * k < channels.length; k++) {
      const value = Math.min(1, Math.max(0, share(k))), colour = 3 * Math.round(255 * value);
      channels[4 * k] = this.colours[colour];
      channels[4 * k + 1] = this.colours[colour + 1];
      channels[4 * k + 2] = this.colours[colour + 2];
      channels[4 * k + 3] = Math.round(255 * alpha(value));
    }
    this.context.putImageData(this.image, 0, 0);
    return this.canvas;
  }
}

function drawColourBar(canvas, colourMap) {
  canvas.getContext("2d").drawImage(new Pixels(1, 256, colourMap).fill(k => k / 255), 0, 0);
}

/** The context of a canvas of this size, without smoothing. To set a size clears the canvas, so only another one is set. */
function contextOf(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  return context;
}

function drawFrame(context, left, top, width, height, thickness) {
  for (const [style, lineWidth] of [["#000", thickness + 2], ["#fff", thickness]]) {
    Object.assign(context, {strokeStyle: style, lineWidth});
    context.strokeRect(left, top, width, height);
  }
}

/** The [row, column] under the mouse of a grid over `box` on a canvas, in its pixels; null outside. */
function cellAt(event, canvas, [left, top, right, bottom], [rows, columns]) {
  const place = canvas.getBoundingClientRect();
  const x = (event.clientX - place.left) * canvas.width / place.width;
  const y = (event.clientY - place.top) * canvas.height / place.height;
  const row = Math.floor((y - top) / (bottom - top) * rows);
  const column = Math.floor((x - left) / (right - left) * columns);
  return row >= 0 && row < rows && column >= 0 && column < columns ? [row, column] : null;
}

/** The same for a grid over the whole canvas. */
const cellOfCanvas = (event, canvas, grid) => cellAt(event, canvas, [0, 0, canvas.width, canvas.height], grid);
