"""Captions: where the decoder looked for each token or word, and how often that is what the word names."""

import json

import numpy as np

from common.errors import BadInput
from models.wordpieces import joined, words_of
from page.packing import as_bytes, deflated, photo_with_box
from page.section import BY_CHANCE, Section, Table, drawn_files, open_photo, percent, read_npz, refusing

SIDE = 640  # pixels of the longer side of a photo
END = "[end]"
POINTING_GAME = {"hit": "peak on the object", "chance": BY_CHANCE, "mass": "attention on it",
                 "area": f"{BY_CHANCE} (area)"}


def section(folders, image_folders, pointing_game=None):
    """The Section of what p2_caption_viz.py --all wrote into folders; BadInput where it is not there."""
    names = drawn_files(folders, "json", lambda file: json.loads(file.read_text(encoding="utf-8"))["photo"])
    captions = {file: read_caption(file) for file in names if file.with_suffix(".npz").exists()}
    if not captions:
        raise BadInput(f"{', '.join(map(str, folders))}: no captions of p2_caption_viz.py are there")
    items, blobs = [], {}
    for i, (file, (caption, attention)) in enumerate(captions.items()):
        photo, tokens = open_photo(caption["photo"], image_folders, names[file]), caption["tokens"]
        words = words_of(tokens)
        values, scale = as_bytes(attention)
        blobs[f"caption-{i}"] = deflated(values)
        items.append({
            "name": names[file], "blob": f"caption-{i}", **photo_with_box(photo, caption["box"], SIDE),
            "layers": len(attention), "grid": attention.shape[2:], "scale": scale.tolist(),
            "tokens": [{"text": token, "tokens": [t]} for t, token in enumerate(tokens)],
            "words": [{"text": joined([tokens[t] for t in word]), "tokens": word} for word in words],
            "log_probs": caption["log_probs"]})
    return Section("captions", "Captions", summary(captions), {"photos": items}, blobs,
                   {"pointing_game": read_pointing_game(pointing_game) if pointing_game else None})


def read_caption(file):
    """What STEM.json says, its end token as END, and `attention_all` (layers, T, H, W) of STEM.npz."""
    with refusing(f"{file} does not come with all layers of a caption: draw it with p2_caption_viz.py --all"):
        caption = json.loads(file.read_text(encoding="utf-8"))
        attention = read_npz(file.with_suffix(".npz"))["attention_all"]
        _, tokens, _, _ = attention.shape
        fits = tokens == len(caption["tokens"]) == len(caption["log_probs"])
        if not (fits and {"photo", "box"} <= caption.keys()):
            raise ValueError("not all of a caption")
    caption["tokens"] = [END if token == "[SEP]" else token for token in caption["tokens"]]
    return caption, attention


def read_pointing_game(file):
    """The Table of the pointing game in a JSON file of p2_eval.py, None where it was not played."""
    with refusing(f"{file} is no result of p2_eval.py --json: name one"):
        scores = json.loads(file.read_text(encoding="utf-8"))
        rows = [[name, int(row["tokens"]), *(percent(row[key]) for key in POINTING_GAME)]
                for name, row in scores["pointing"].items()]
        caption = f"Pointing game, {scores['photos']:,} scenes; exact captions: {percent(scores['exact'])}"
    return Table(caption, ["word class", "tokens", *POINTING_GAME.values()], rows) if rows else None


def summary(captions):
    """The Table of captions, by their files as `read_caption` gives them, and of the last layer's maps."""
    probabilities, moves, peaks = [], [], []
    for file, (caption, attention) in captions.items():
        maps = attention[-1].reshape(attention.shape[1], -1)
        cell = 1 / maps.shape[1]
        probabilities.extend(np.exp(caption["log_probs"]))
        moves.extend((moved, 1 - cell) for moved in np.diff(maps.argmax(1)) != 0)
        peaks.extend((values.max(), cell, f"“{token}” in {file.stem}")
                     for token, values in zip(caption["tokens"], maps))
    rows = [["probability of a token, mean", f"{np.mean(probabilities):.2f}", ""]]
    if moves:
        rows.append(["peak in another cell than for the token before", *map(percent, np.mean(moves, 0))])
    for name, (peak, cell, where) in (("sharpest", max(peaks)), ("most even", min(peaks))):
        rows.append([f"peak of the {name} map, {where}", percent(peak), percent(cell)])
    return Table(f"{len(captions)} captions, {len(probabilities)} tokens; maps of the last layer",
                 ["", "value", BY_CHANCE], rows)
