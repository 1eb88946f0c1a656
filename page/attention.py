"""Attention: every layer, head and query of a ViT, over the photos that it saw."""

import numpy as np
import torch

from common.errors import BadInput
from interpret.grounding import peaks_on, share_on
from page.packing import deflated, jpeg, on_canvas, packed
from page.section import Section, counted, percent, read_npz

SIDE = 720  # pixels of the longer side of a photo
TENTH = 0.1  # of the patches


def section(folders, photos):
    """The Section of the arrays that p1_viz_attn.py --all wrote into folders; `photos` is a section.Photos.

    Raises BadInput for folders without such arrays, and for photos that are gone.
    """
    files = [file for folder in folders for file in sorted(folder.glob("*.npz"))]
    read = {file: one for file in files if (one := read_arrays(file))}
    if not read:
        raise BadInput(f"{', '.join(map(str, folders))}: no arrays of p1_viz_attn.py are there")
    shown, blobs = [], {}
    for i, (file, one) in enumerate(read.items()):
        photo = photos.find(str(one["photo"]))
        size, box = on_canvas(photo.size, one["box"].tolist(), SIDE)
        layers, heads, tokens, _ = one["attention_all"].shape
        grid = one["attention"].shape
        blobs[f"attention-{i}"] = deflated(one["attention_all"])
        shown.append({
            "name": file.stem, "model": str(one["model"]), "photo": jpeg(photo, SIDE), "size": size, "box": box,
            "layers": layers, "heads": heads, "tokens": tokens, "grid": list(grid), "prefix": tokens - grid[0] * grid[1],
            "scale": one["attention_all_scale"].tolist(), "blob": f"attention-{i}",
            "predicted": str(one["predicted"]), "confidence": float(one["confidence"]), "label": str(one["label"]),
            **({"object": packed(cover_as_bytes(one["object_cover"])),
                "background": packed(cover_as_bytes(one["background_cover"]))} if "object_cover" in one else {})})
    labelled = any(photo["label"] and photo["predicted"] for photo in shown)
    return Section("attention", "Attention", story(shown, list(read.values())), {"photos": shown}, blobs, {"labelled": labelled})


def read_arrays(file):
    """The arrays in a file of p1_viz_attn.py --all as a dict, None for a file of another script.

    Raises BadInput for one that was written without --all, and for a damaged one.
    """
    try:
        one = read_npz(file)
        if "attention" not in one or one["attention"].ndim != 2:
            return None
        layers, heads, tokens, keys = one["attention_all"].shape
        fits = one["attention_all_scale"].shape == (layers, heads) and tokens == keys > one["attention"].size
        if not fits or not {"photo", "box", "model", "predicted", "confidence", "label"} <= one.keys():
            raise KeyError("photo")
    except (ValueError, KeyError) as error:
        raise BadInput(f"{file} does not hold all layers, heads and tokens of a photo: draw it with p1_viz_attn.py --all") \
            from error
    return one


def cover_as_bytes(cover):
    return np.rint(255 * cover.clip(0, 1)).astype(np.uint8)


def story(shown, read):
    """Four sentences about the photos, and where the last layer's [CLS] token looks in them, mean over its heads."""
    attention = [from_cls(one) for one in read]  # (layers, heads, H, W) each
    last = [one[-1].mean(0) for one in attention]
    models = dict.fromkeys(photo["model"] for photo in shown)
    known = [photo for photo in shown if photo["label"] and photo["predicted"]]
    right = sum(photo["label"] == photo["predicted"] for photo in known)
    predicted = f"; it answers {right} of the {len(known)} labelled ones right" if known else ""
    sentences = [f"These are {counted(len(shown), 'photo')} as {' and '.join(models)} sees them{predicted}."]

    masked = [(one, map_) for one, map_ in zip(read, last) if "object_cover" in one]
    first, final = (np.mean([most_attended(one[layer].mean(0)) for one in attention]) for layer in (0, -1))
    sentences.append(f"In the first layer the tenth of the patches to which [CLS] attends most gets {percent(first)} of what "
                     f"it gives to patches, in the last one {percent(final)} (mean over heads and photos).")
    if masked:
        covers = [(torch.from_numpy(one["object_cover"]), torch.from_numpy(one["background_cover"])) for one, _ in masked]
        maps = [torch.from_numpy(map_) for _, map_ in masked]
        share, area = np.mean([[value.item() for value in share_on(map_, *cover)] for map_, cover in zip(maps, covers)], 0)
        peaks, chance = np.mean([peaks_on(map_, inside) for map_, (inside, _) in zip(maps, covers)], 0)
        sentences += [f"In the last layer {percent(share)} of its attention lies on the object, which covers {percent(area)} of "
                      f"the area ({counted(len(masked), 'photo')} with a mask).",
                      f"The peak lies on the object or beside it in {percent(peaks)} of them; a patch chosen by chance would "
                      f"in {percent(chance)}."]
    else:
        itself = np.mean([one["attention_all"][-1, :, 0, 0] * one["attention_all_scale"][-1] for one in read])
        alike = [one[-1] for one in attention if one.shape == attention[0].shape]
        heads = np.mean([heads.max((-2, -1)) / heads.sum((-2, -1)) for heads in alike], 0)
        sentences += [f"In the last layer [CLS] gives {percent(itself)} of its attention to itself.",
                      f"The strongest single patch of a head gets between {percent(heads.min())} and {percent(heads.max())} of "
                      "what the head gives to patches, depending on the head."]
    return sentences


def from_cls(one):
    """The attention of the [CLS] token to the patches, (layers, heads, H, W), of one photo's arrays."""
    values = one["attention_all"][:, :, 0, -one["attention"].size:] * one["attention_all_scale"][..., None]
    return values.reshape(*values.shape[:2], *one["attention"].shape).astype(np.float32)


def most_attended(attention):
    """The share of a map (H, W) that its most attended tenth of patches gets."""
    ordered = np.sort(attention, axis=None)[::-1]
    return ordered[:max(1, round(TENTH * ordered.size))].sum() / ordered.sum()
