"""Attention: every layer, head and query of a ViT, over the photos that it saw."""

import numpy as np
import torch

from common.errors import BadInput
from interpret.grounding import peaks_on, share_on
from page.packing import deflated, packed, photo_with_box
from page.section import BY_CHANCE, Section, Table, drawn_files, open_photo, percent, read_npz, refusing

SIDE = 720  # pixels of the longer side of a photo
TENTH = 0.1  # of the patches
KEYS = {"photo", "box", "model", "predicted", "confidence", "label"}


def section(folders, image_folders):
    """The Section of what p1_viz_attn.py --all wrote into folders; BadInput where it is not there."""
    names = drawn_files(folders, "npz", lambda file: str(read_npz(file)["photo"]))
    photos = {file: arrays for file in names if (arrays := read_arrays(file))}
    if not photos:
        raise BadInput(f"{', '.join(map(str, folders))}: no arrays of p1_viz_attn.py are there, with --all")
    items, blobs = [], {}
    for i, (file, arrays) in enumerate(photos.items()):
        blobs[f"attention-{i}"] = deflated(arrays["attention_all"])
        photo = open_photo(str(arrays["photo"]), image_folders, names[file])
        layers, heads, tokens, patches = arrays["attention_all"].shape
        floats = {"scale": "attention_all_scale", "cls": "attention_cls", "object": "object_cover",
                  "background": "background_cover"}
        items.append({
            "name": names[file], "blob": f"attention-{i}", "layers": layers, "heads": heads, "tokens": tokens,
            "grid": arrays["attention"].shape, "prefix": tokens - patches,
            "predicted": str(arrays["predicted"]), "confidence": float(arrays["confidence"]),
            "label": str(arrays["label"]),
            **{name: packed(arrays[key].astype("<f4")) for name, key in floats.items() if key in arrays},
            **photo_with_box(photo, arrays["box"].tolist(), SIDE)})
    return Section("attention", "Attention", summary(photos.values()), {"photos": items}, blobs)


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


def summary(photos):
    """The Table of where [CLS] looks in photos, given the arrays of each."""
    numbers = {}
    for arrays in photos:
        for name, pair in photo_numbers(arrays).items():
            numbers.setdefault(name, []).append(pair)
    rows = [[name, *("" if np.isnan(mean) else percent(mean) for mean in np.mean(pairs, 0)), len(pairs)]
            for name, pairs in numbers.items()]
    models = ", ".join(dict.fromkeys(str(arrays["model"]) for arrays in photos))
    return Table(f"Attention of [CLS], mean over heads: {models}", ["", "mean", BY_CHANCE, "photos"], rows)


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
        numbers["on the object, last layer"] = [share.item() for share in share_on(grid, inside, outside)]
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
