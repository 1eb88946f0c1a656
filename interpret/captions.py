"""Captions of photos: what each token or word looked at, and the pointing game on drawn scenes."""

import torch

from datasets import decode
from datasets.masks import load_groups, patch_cover
from interpret.grounding import point_tokens
from models import decoding
from models.catr import grid_box
from models.wordpieces import joined, words_of


def encoded(model, paths, batch_size, first=0):
    """The photos at `paths` from `first`, a batch at a time: (slice of paths, RGB images, their Memory)."""
    for start in range(first, len(paths), batch_size):
        rows = slice(start, start + batch_size)
        photos = [decode.load_image(path) for path in paths[rows]]
        yield rows, photos, decoding.encode(model, photos)


def captioned(model, tokenizer, paths, batch_size, max_tokens, beam, given=None):
    """(path, RGB image, teacher-forced pass) of each photo, for a caption by search or the ids `given`."""
    for rows, photos, memory in encoded(model, paths, batch_size):
        ids = [given] * len(photos) if given else decoding.search(model, memory, tokenizer, max_tokens, beam)
        yield from zip(paths[rows], photos, decoding.teacher_force(model, memory, ids, tokenizer))


def describe(forced, tokenizer, layer, photo, box, every_layer=False, words=False):
    """What p2_caption_viz.py stores and draws of a teacher-forced pass: (metadata, arrays, panels).

    The panels of the figure, a token each or, with `words`, a word: (maps (T, H, W), titles, probabilities).
    """
    tokens = tokenizer.tokens(forced.ids)
    titles = ["[end]" if i == tokenizer.end else token for i, token in zip(forced.ids, tokens)]
    maps, log_probs = forced.attention[layer].mean(0), forced.log_probs
    metadata = {"caption": tokenizer.text(forced.ids), "tokens": tokens, "token_ids": forced.ids,
                "log_probs": log_probs.tolist(), "grid": list(maps.shape[1:]), "photo": photo, "box": box}
    arrays = {"attention": maps}
    if every_layer:
        arrays["attention_all"] = forced.attention.mean(1)
    if words:
        pieces = words_of(tokens)
        maps = arrays["attention_words"] = torch.stack([maps[part].mean(0) for part in pieces])
        log_probs = torch.stack([log_probs[part].sum() for part in pieces])
        titles = [joined([titles[i] for i in part]) for part in pieces]
        metadata["words"] = [{"word": joined([tokens[i] for i in part]), "tokens": part, "log_prob": log_prob}
                             for part, log_prob in zip(pieces, log_probs.tolist())]
    arrays = {name: values.numpy() for name, values in arrays.items()}
    return metadata, arrays, (maps.numpy(), titles, log_probs.exp().tolist())


def pointing_game(model, tokenizer, memory, photos, captions, masks, layer):
    """`point_tokens` of a layer's maps for the true captions of drawn scenes, with the masks in files."""
    ids = [tokenizer.caption(text, model.config.positions) for text in captions]
    pointings = []
    for photo, mask, forced in zip(photos, masks, decoding.teacher_force(model, memory, ids, tokenizer)):
        grid = forced.attention.shape[-2:]
        box = grid_box(photo.size, grid, model.config)
        groups = [torch.from_numpy(patch_cover(group, box, grid)) for group in load_groups(mask, photo.size)]
        pointings += point_tokens(tokenizer.tokens(forced.ids), forced.attention[layer].mean(0), groups)
    return pointings
