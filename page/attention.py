"""Attention: every layer, head and query of a ViT, over as many of its photos as fit; of others one map."""

import json

import numpy as np
import torch

from common.errors import BadInput
from interpret.grounding import peaks_on, share_on
from page.packing import as_bytes, deflated, packed, photo_with_box
from page.section import BY_CHANCE, Section, Table, drawn_files, open_photo, percent, read_npz, refusing

SIDE, SIDE_IN_BRIEF = 720, 96  # pixels of the longer side of a photo
LEAST = 3  # photos in full, however large: the page of a ViT-Base with three photos shows all it did
TENTH = 0.1  # of the patches
KEYS = {"photo", "box", "model", "predicted", "confidence", "label"}
ON_OBJECT = "on the object, last layer"


def section(folders, image_folders, room):
    """The Section of what p1_viz_attn.py --all wrote into folders; BadInput where it is not there.

    Photos are shown in full, in the order of `by_interest`, as long as the Section has at most `room`
    characters, and at least LEAST of them; the others in brief. One's own are those without a label and, of
    several folders, those of the first.
    """
    names = drawn_files(folders, "npz", lambda file: str(read_npz(file)["photo"]))
    items, numbers, models = {}, [], {}
    # All layers of all photos may not fit into memory: those shown in full are read once more.
    for file, name in names.items():
        if arrays := read_arrays(file):
            numbers.append(photo_numbers(arrays))
            models[str(arrays["model"])] = None
            photo = open_photo(str(arrays["photo"]), image_folders, name)
            items[file] = in_brief(name, arrays, photo, numbers[-1])
    if not items:
        raise BadInput(f"{', '.join(map(str, folders))}: no arrays of p1_viz_attn.py are there, with --all")

    blobs, size = {}, sum(map(characters, items.values()))
    own = {file for file, item in items.items()
           if not item["label"] or len(folders) > 1 and file.is_relative_to(folders[0])}
    for file in by_interest(items, own):
        arrays, blob = read_arrays(file), f"attention-{len(blobs)}"
        photo = open_photo(str(arrays["photo"]), image_folders, names[file])
        item = in_full(names[file], arrays, photo, blob)
        packed_rows = deflated(arrays["attention_all"])
        size += characters(item) - characters(items[file]) + len(packed_rows)
        if len(blobs) >= LEAST and size > room:
            break
        items[file], blobs[blob] = item, packed_rows
    shown = sorted(items, key=lambda file: ("blob" not in items[file], file not in own))
    return Section("attention", "Attention", summary(numbers, models),
                   {"photos": [items[file] for file in shown]}, blobs, {"in_full": len(blobs)})


def characters(item):
    """How long an item of the page's data is there."""
    return len(json.dumps(item))


def by_interest(items, own):
    """The keys of items of photos: one's `own`, then the wrong ones, from the surest on, then in turn the
    surest and the least sure of the right ones.
    """
    wrong, right = [], []
    for key in sorted(items.keys() - own, key=lambda key: (-items[key]["confidence"], key)):
        (right if items[key]["label"] == items[key]["predicted"] else wrong).append(key)
    in_turn = [right[-1 - i // 2 if i % 2 else i // 2] for i in range(len(right))]
    return [key for key in items if key in own] + wrong + in_turn


def in_full(name, arrays, photo, blob):
    """The item of a photo for the script, with all layers and heads; the rows of all tokens are in a blob."""
    layers, heads, tokens, patches = arrays["attention_all"].shape
    floats = {"scale": "attention_all_scale", "cls": "attention_cls", "object": "object_cover",
              "background": "background_cover"}
    return {**shared_by_both(name, arrays), "blob": blob, "layers": layers, "heads": heads, "tokens": tokens,
            "prefix": tokens - patches,
            **{name: packed(arrays[key].astype("<f4")) for name, key in floats.items() if key in arrays},
            **photo_with_box(photo, arrays["box"].tolist(), SIDE)}


def in_brief(name, arrays, photo, numbers):
    """The item of a photo with the last layer's map alone: as one layer of one head, over a thumbnail."""
    layers, heads, _, patches = arrays["attention_all"].shape
    values, scale = as_bytes(arrays["attention_cls"][-1, :, -patches:].mean(0, keepdims=True))
    thumbnail = photo.copy()
    thumbnail.thumbnail((SIDE_IN_BRIEF, SIDE_IN_BRIEF))
    stretch = 2 * (thumbnail.width / photo.width, thumbnail.height / photo.height)
    box = [length * factor for length, factor in zip(arrays["box"].tolist(), stretch)]
    return {**shared_by_both(name, arrays), "only": {"layer": layers - 1, "head": f"mean of {heads}"},
            "layers": 1, "heads": 1, "tokens": patches, "prefix": 0, "cls": packed(values),
            "scale": float(scale), "on_object": numbers.get(ON_OBJECT),
            **photo_with_box(thumbnail, box, SIDE)}


def shared_by_both(name, arrays):
    """What an item says of a photo, whether in full or in brief."""
    return {"name": name, "grid": arrays["attention"].shape, "predicted": str(arrays["predicted"]),
            "confidence": float(arrays["confidence"]), "label": str(arrays["label"])}


def read_arrays(file):
    """The arrays in a file of p1_viz_attn.py --all as a dict, None for a file of another script."""
    with refusing(f"{file} does not hold all layers, heads and tokens of a photo as p1_viz_attn.py --all now "
                  "writes them: draw it again with that"):
        arrays = read_npz(file)
        if "attention" not in arrays or arrays["attention"].ndim != 2:
            return None
        *rows, patches = arrays["attention_all"].shape
        _, _, tokens = rows
        fits = all(arrays[name].shape == tuple(rows) for name in ("attention_all_scale", "attention_cls"))
        if not (fits and KEYS <= arrays.keys() and tokens > patches == arrays["attention"].size):
            raise ValueError("not all of a photo")
        return arrays


def summary(photos, models):
    """The Table of where [CLS] looks, given the `photo_numbers` of each photo and the names of the models."""
    by_name = {}
    for numbers in photos:
        for name, pair in numbers.items():
            by_name.setdefault(name, []).append(pair)
    rows = [[name, *("" if np.isnan(mean) else percent(mean) for mean in np.mean(pairs, 0)), len(pairs)]
            for name, pairs in by_name.items()]
    title = f"Attention of [CLS], mean over heads: {', '.join(models)}"
    return Table(title, ["", "mean", BY_CHANCE, "photos"], rows)


def photo_numbers(arrays):
    """(number, by chance or NaN) of a photo, by name; by chance all patches or tokens get equal attention."""
    patches, from_cls = arrays["attention"].size, arrays["attention_cls"]
    tokens, heads = from_cls.shape[-1], from_cls[..., -patches:]  # (layers, heads, patches)
    first, last = heads[0].mean(0), heads[-1].mean(0)
    peaks, tenth = heads[-1].max(-1) / heads[-1].sum(-1), max(1, round(TENTH * patches))
    numbers = {}
    if "object_cover" in arrays:
        inside, outside = (torch.from_numpy(arrays[f"{part}_cover"]) for part in ("object", "background"))
        grid = torch.from_numpy(last).reshape(inside.shape)
        numbers[ON_OBJECT] = [share.item() for share in share_on(grid, inside, outside)]
        numbers["peak on the object or beside it, last layer"] = peaks_on(grid, inside)
    for layer, values in (("first", first), ("last", last)):
        most = np.sort(values)[-tenth:].sum() / values.sum()
        numbers[f"on the most attended tenth of patches, {layer} layer"] = most, tenth / patches
    numbers["on the most attended patch, most even head, last layer"] = peaks.min(), 1 / patches
    numbers["on the most attended patch, sharpest head, last layer"] = peaks.max(), 1 / patches
    numbers["on [CLS] itself, last layer"] = from_cls[-1, :, 0].mean(), 1 / tokens
    if str(arrays["label"]) and str(arrays["predicted"]):
        numbers["class predicted right"] = str(arrays["label"]) == str(arrays["predicted"]), np.nan
    return numbers
