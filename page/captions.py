"""Captions: where the decoder looked for each token or word, and how often that is what the word names."""

import json

import numpy as np

from common.errors import BadInput
from models.tokenizer import joined, words_of
from page.packing import as_bytes, deflated, jpeg, on_canvas
from page.section import Section, counted, percent, read_npz

SIDE = 640  # pixels of the longer side of a photo
END = "[end]"
NOT_CLASSES = "article of"  # rows that split another one


def section(folders, photos, pointing=None):
    """The Section of what p2_caption_viz.py --all wrote into folders; `photos` is a section.Photos.

    `pointing` is the JSON file of p2_eval.py, or None. Raises BadInput for folders without captions and all their layers,
    for a file that is none of p2_eval.py, and for photos that are gone.
    """
    read = {file: read_caption(file) for folder in folders for file in sorted(folder.glob("*.json"))
            if file.with_suffix(".npz").exists()}
    if not read:
        raise BadInput(f"{', '.join(map(str, folders))}: no captions of p2_caption_viz.py are there")
    shown, blobs = [], {}
    for i, (file, (told, attention)) in enumerate(read.items()):
        photo = photos.find(told["photo"])
        size, box = on_canvas(photo.size, told["box"], SIDE)
        values, scale = as_bytes(attention)
        blobs[f"caption-{i}"] = deflated(values)
        tokens = [END if token == "[SEP]" else token for token in told["tokens"]]
        words = words_of(tokens)
        shown.append({
            "name": file.stem, "photo": jpeg(photo, SIDE), "size": size, "box": box,
            "layers": len(attention), "grid": list(attention.shape[2:]), "scale": scale.tolist(), "blob": f"caption-{i}",
            "tokens": [{"text": token, "parts": [t]} for t, token in enumerate(tokens)],
            "words": [{"text": joined([tokens[t] for t in parts]), "parts": parts} for parts in words],
            "log_probs": told["log_probs"]})
    table = read_pointing(pointing) if pointing else None
    return Section("captions", "Captions", story(shown, list(read.values()), table), {"photos": shown}, blobs,
                   {"pointing": table})


def read_caption(file):
    """What STEM.json says, and `attention_all` (layers, T, H, W) of STEM.npz. Raises BadInput where they are not that."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        attention = read_npz(file.with_suffix(".npz"))["attention_all"]
        fits = attention.shape[1] == len(told["tokens"]) == len(told["log_probs"]) and attention.ndim == 4
        if not fits or not {"photo", "box", "caption"} <= told.keys():
            raise KeyError("photo")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInput(f"{file} does not come with all layers of a caption: draw it with p2_caption_viz.py --all") from error
    return told, attention


def read_pointing(file):
    """The photos and the pointing game per word class of a JSON file of p2_eval.py, None where it was not played."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = [{"name": name, **{key: float(row[key]) for key in ("tokens", "hit", "chance", "mass", "area")}}
                for name, row in found["pointing"].items()]
        return {"rows": rows, "photos": int(found["photos"]), "exact": float(found["exact"])} if rows else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{file} is no result of p2_eval.py --json: name one") from error


def story(shown, read, table):
    """Four sentences about the captions and the last layer's maps."""
    tokens = sum(len(photo["tokens"]) for photo in shown)
    probability = np.exp(np.concatenate([photo["log_probs"] for photo in shown])).mean()
    sentences = [f"These are {counted(len(shown), 'caption')} of {tokens} tokens in all, predicted with a probability of "
                 f"{probability:.2f} on average."]
    last = [attention[-1].reshape(attention.shape[1], -1) for _, attention in read]
    moved = np.concatenate([np.diff(maps.argmax(1)) != 0 for maps in last])
    sentences.append(f"From one token to the next the peak of the map moves to another cell in {percent(moved.mean())} of the "
                     f"{len(moved)} steps." if len(moved) else "They have one token each.")
    if table:
        classes = [row for row in table["rows"] if not row["name"].startswith(NOT_CLASSES)]
        ordered = sorted(classes, key=lambda row: row["hit"] - row["chance"])
        best, worst = ordered[-1], ordered[0]
        sentences += [
            f"On {counted(table['photos'], 'drawn scene')}, of which {percent(table['exact'])} are described word for word, "
            f"the peak for a word of the class {best['name']} lies on what it names in {percent(best['hit'])}, by chance in "
            f"{percent(best['chance'])}: the widest margin of {len(classes)} classes.",
            f"The narrowest one is that of {worst['name']}: {percent(worst['hit'])}, by chance {percent(worst['chance'])}."]
    else:
        peaks = [(values.max(), photo["tokens"][t]["text"], photo["name"])
                 for photo, maps in zip(shown, last) for t, values in enumerate(maps)]
        (high, sharp, there), (low, flat, elsewhere) = max(peaks), min(peaks)
        sentences += [f"The sharpest map is that of \"{sharp}\" in {there}: one cell has {percent(high)} of the attention.",
                      f"The most even one is that of \"{flat}\" in {elsewhere}, where no cell has more than {percent(low)}."]
    return sentences
