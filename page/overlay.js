// A photo under a map: the canvas `ID-photo`, and what overlay.html has for it: two sliders and a colour bar.

class Overlay {
  /** `changed` is called when a slider is moved. */
  constructor(id, changed) {
    [this.canvas, this.opacity, this.top, this.topText, this.barText] =
      ["photo", "opacity", "top", "top-value", "bar-top"].map(part => byId(`${id}-${part}`));
    for (const slider of [this.opacity, this.top]) slider.addEventListener("input", changed);
    drawColourBar(byId(`${id}-bar`), "inferno");
  }

  /** Sets the size of the canvas for photos of another size or grid. */
  setPhoto(photo) {
    this.photo = photo;
    this.pixels = new Pixels(...photo.grid, "inferno");
  }

  /** Draws the photo, and over it a map whose cells divide the photo's box evenly. */
  draw(values) {
    const {size: [width, height], box: [left, top, right, bottom], image} = this.photo;
    const brightest = Math.max(...values) * this.top.value / 100, opacity = this.opacity.value / 100;
    const context = contextOf(this.canvas, width, height);
    this.canvas.style.width = `min(100%, ${width}px, ${Math.round(85 * width / height)}vh)`;
    context.imageSmoothingEnabled = true;
    context.drawImage(image, 0, 0, width, height);
    context.imageSmoothingEnabled = false;
    const pixels = this.pixels.fill(k => values[k] / (brightest || 1), share => opacity * Math.sqrt(share));
    context.drawImage(pixels, left, top, right - left, bottom - top);
    this.topText.textContent = `${this.top.value} %`;
    this.barText.textContent = percent(brightest);
  }

  /** Dims the photo outside its box, which the model did not see. */
  dimOutside() {
    const {size: [width, height], box: [left, top, right, bottom]} = this.photo;
    const context = this.canvas.getContext("2d");
    context.fillStyle = "rgba(0, 0, 0, 0.65)";
    context.fillRect(0, 0, width, top);
    context.fillRect(0, bottom, width, height - bottom);
    context.fillRect(0, top, left, bottom - top);
    context.fillRect(right, top, width - right, bottom - top);
  }

  /** Draws a frame around the cell [row, column]. */
  frameCell([row, column]) {
    const {grid: [rows, columns], box: [left, top, right, bottom]} = this.photo;
    const width = (right - left) / columns, height = (bottom - top) / rows;
    drawFrame(this.canvas.getContext("2d"), left + column * width, top + row * height, width, height, 2);
  }
}
