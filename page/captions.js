// Captions: where the decoder looked for each token, or on average for the tokens of a word.

/** The mean over the maps of some tokens, (rows * columns). */
function tokensMap(photo, layer, tokens) {
  const count = photo.grid[0] * photo.grid[1], values = new Float64Array(count);
  for (const t of tokens) {
    const start = (layer * photo.tokens.length + t) * count, scale = photo.scale[layer][t] / tokens.length;
    for (let k = 0; k < count; k++) values[k] += scale * photo.bytes[start + k];
  }
  return values;
}

function captions({photos}) {
  const bar = byId("captions-tokens"), layerList = byId("captions-layer"), wholeWords = byId("captions-words");
  let photo, chosen = 0;

  const parts = () => photo[wholeWords.checked ? "words" : "tokens"];

  const draw = drawSoon(() => {
    const {text, tokens} = parts()[chosen], layer = Number(layerList.value), columns = photo.grid[1];
    const values = tokensMap(photo, layer, tokens), peak = Math.max(...values), at = values.indexOf(peak);
    overlay.draw(values);
    [...bar.children].forEach((button, i) => {
      button.setAttribute("aria-pressed", i === chosen);
      button.tabIndex = i === chosen ? 0 : -1;
    });
    showReadout("captions", [
      [wholeWords.checked ? "word" : "token", text],
      ["probability", Math.exp(tokens.reduce((sum, t) => sum + photo.log_probs[t], 0)).toFixed(2)],
      ["layer", layer], ["peak", percent(peak)], ["peak at", cellText([Math.floor(at / columns), at % columns])]]);
  });
  const overlay = new Overlay("captions", draw);

  const choose = index => { chosen = index; draw(); };

  function listParts() {
    bar.replaceChildren(...parts().map((part, i) => {
      const button = Object.assign(document.createElement("button"), {type: "button", textContent: part.text});
      for (const kind of ["pointerenter", "focus", "click"]) button.addEventListener(kind, () => choose(i));
      return button;
    }));
    choose(0);
  }

  const show = showLatest(loaded => {
    if (photo?.layers !== loaded.layers) setOptions(layerList, range(loaded.layers), loaded.layers - 1);
    photo = loaded;
    overlay.setPhoto(photo);
    listParts();
  });

  connectPhotoList("captions", index => show(photos[index]));
  layerList.addEventListener("change", draw);
  wholeWords.addEventListener("change", listParts);
  bar.addEventListener("keydown", event => {
    const last = parts().length - 1;
    const to = {ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: last}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    bar.children[Math.min(last, Math.max(0, to))].focus();
  });
  setOptions(byId("captions-photo-list"), photos.map(each => each.name), 0);
  show(photos[0]);
}
