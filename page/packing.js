// What packing.py packed, unpacked: plain values in `data`, arrays as bytes, photos as images.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const decodeBytes = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));

/** The 256 colours of each map: red, green and blue, a byte each. */
const colourMaps = Object.fromEntries(Object.entries(data.colours).map(([name, text]) => [name, decodeBytes(text)]));

async function inflate(id) {
  const deflated = new Blob([decodeBytes(byId(id).textContent)]).stream();
  const buffer = await new Response(deflated.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  return new Uint8Array(buffer);
}

async function decodePhoto(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

/** A photo or model, when its `bytes`, if any, are inflated and its `image` is decoded: once, when it is first shown. */
function load(item) {
  item.loaded ??= Promise.all([item.blob && inflate(item.blob), item.photo && decodePhoto(item.photo)])
    .then(([bytes, image]) => Object.assign(item, {bytes, image}));
  return item.loaded;
}

/** A function that loads an item and then shows it, unless another one was asked for meanwhile. */
function showLatest(show) {
  let latest;
  return async item => {
    latest = item;
    await load(item);
    if (latest === item) show(item);
  };
}
