"""Attention: every layer, head and query of a ViT, over the photos that it saw."""

import numpy as np
import torch

from common.errors import BadInput
from interpret.grounding import peaks_on, share_on
from page.packing import deflated, packed, photo_with_box
from page.section import BY_CHANCE, Section, Table, drawn_files, open_photo, percent, read_npz, refusing

SIDE = 720  # pixels of the longer side of a photo
TENTH = 0.1  # of the patches
KEYS = {"attention_all", "attention_all_scale", "photo", "box", "model", "predicted", "confidence", "label"}


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
        layers, heads, tokens, _ = arrays["attention_all"].shape
        covers = {part: packed(np.rint(255 * arrays[f"{part}_cover"].clip(0, 1)).astype(np.uint8))
                  for part in ("object", "background") if f"{part}_cover" in arrays}
        items.append({
            "name": names[file], "blob": f"attention-{i}", "layers": layers, "heads": heads, "tokens": tokens,
            "grid": arrays["attention"].shape, "prefix": tokens - arrays["attention"].size,
            "scale": arrays["attention_all_scale"].tolist(), "predicted": str(arrays["predicted"]),
            "confidence": float(arrays["confidence"]), "label": str(arrays["label"]), **covers,
            **photo_with_box(photo, arrays["box"].tolist(), SIDE)})
    return Section("attention", "Attention", summary(photos.values()), {"photos": items}, blobs)


def read_arrays(file):
    """The arrays in a file of p1_viz_attn.py --all as a dict, None for a file of another script."""
    with refusing(f"{file} does not hold all layers, heads and tokens of a photo: "
                  "draw it with p1_viz_attn.py --all"):
        arrays = read_npz(file)
        if "attention" not in arrays or arrays["attention"].ndim != 2:
            return None
        layers, heads, tokens, keys = arrays["attention_all"].shape
        fits = arrays["attention_all_scale"].shape == (layers, heads) and tokens == keys
        if not (fits and KEYS <= arrays.keys() and tokens > arrays["attention"].size):
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
    patches, tokens = arrays["attention"].size, arrays["attention_all"].shape[-1]
    from_cls = arrays["attention_all"][:, :, 0] * arrays["attention_all_scale"][..., None]
    heads = from_cls[..., -patches:].astype(np.float32)  # (layers, heads, patches)
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
