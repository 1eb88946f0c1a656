"""How long a caption takes with its maps, against the network run again for every token."""

import numpy as np
import torch
from PIL import Image

from benchmarks.rows import compare, pace
from engine.device import keep_freed_memory
from models import catr, decoding
from models.tokenizer import Tokenizer

TOKENS = 16


def cached(model, photo, tokenizer, count):
    """The greedy caption of `count` tokens and its maps, as p2_caption_viz.py computes them."""
    memory = model.encode([photo])
    captions = decoding.search(model, memory, tokenizer, count)
    return decoding.teacher_force(model, memory, captions, tokenizer)[0].ids


def again(model, photo, tokenizer, count, positions=None):
    """The same tokens by the network on each prefix, padded to `positions` if given."""
    ids = []
    for t in range(count):
        tokens = torch.full((1, positions or t + 1), Tokenizer.PAD)
        tokens[0, :t + 1] = torch.tensor([tokenizer.start, *ids])
        ids.append(model([photo], tokens.to(photo.device))[0, t].argmax().item())
    return ids


@torch.no_grad()
def caption(config, device, way, *args):
    """(Captions/s, ids) with random weights that never predict the end token."""
    keep_freed_memory(device)
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(4, config.vocabulary))])
    torch.manual_seed(0)
    model = catr.CATR(config).eval()
    model.mlp.layers[-1].bias[tokenizer.end] = -1e9
    pixels = np.random.default_rng(0).integers(0, 256, (224, 299, 3), np.uint8)
    photo = catr.preprocess(Image.fromarray(pixels), config).to(device)
    way(model.to(device), photo, tokenizer, 1, *args)  # the first one allocates
    return pace(1, way, model, photo, tokenizer, TOKENS, *args)  # ids are numbers: a GPU has finished


def rows(options):
    """The rows of the table."""
    config = catr.small_config(100) if options.small else catr.Config()
    setting = caption, config, options.device
    return compare(options.repeats, f"caption of {TOKENS} tokens, with maps", "captions/s",
                   (*setting, cached), ("the network again on the tokens so far", 10, *setting, again),
                   ("the network again on all positions", 10, *setting, again, config.positions))
