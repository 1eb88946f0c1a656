"""How long a caption takes: with what was computed kept, and with the network run again for every token.

    python -m benchmarks.caption_decoding
    python -m benchmarks.caption_decoding --size small --device cpu --tokens 32

Three ways to the same caption of one photo, in turn in one run, with random weights:

    kept       `decoding.search` and `decoding.teacher_force`, which also gives the cross-attention of all layers
    prefix     for every token the whole network, on the tokens so far
    padded     for every token the whole network, on all positions: as the public code of CATR does
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch
from PIL import Image

from benchmarks.rows import ratio
from engine.device import pick_device
from models import catr, decoding
from models.tokenizer import Tokenizer

GOAL = 1 / 10  # of the time of `prefix`, and so of `padded`
PHOTO = (299, 224)


def never_ending(config):
    """A CATR with random weights that does not predict the end token, and its Tokenizer."""
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{i}" for i in range(4, config.vocabulary))])
    torch.manual_seed(0)
    model = catr.CATR(config).eval()
    torch.nn.init.constant_(model.mlp.layers[-1].bias[tokenizer.end:tokenizer.end + 1], -1e9)
    return model, tokenizer


@torch.no_grad()
def again_for_every_token(model, photo, tokenizer, count, positions=None):
    """The greedy caption of `count` tokens, the network run on each prefix, padded to `positions` if given."""
    ids = []
    for t in range(count):
        tokens = torch.full((1, positions or t + 1), Tokenizer.PAD)
        tokens[0, :t + 1] = torch.tensor([tokenizer.start, *ids])
        ids.append(model([photo], tokens.to(photo.device))[0, t].argmax().item())
    return ids


@torch.no_grad()
def kept(model, photo, tokenizer, count):
    memory = model.encode([photo])
    captions = decoding.search(model, memory, tokenizer, count)
    return decoding.teacher_force(model, memory, captions, tokenizer)[0].ids


def measure(config, device, count, repeats):
    """Returns the times in seconds of each way, as a dict of lists. Raises RuntimeError where the captions differ."""
    model, tokenizer = never_ending(config)
    model.to(device)
    pixels = np.random.default_rng(0).integers(0, 256, (*PHOTO[::-1], 3), dtype=np.uint8)
    photo = catr.preprocess(Image.fromarray(pixels), config).to(device)
    ways = {"kept": lambda n: kept(model, photo, tokenizer, n),
            "prefix": lambda n: again_for_every_token(model, photo, tokenizer, n),
            "padded": lambda n: again_for_every_token(model, photo, tokenizer, n, config.positions)}
    for way in ways.values():
        way(1)  # the first run allocates
    times = {name: [] for name in ways}
    for _ in range(repeats):
        captions = {}
        for name, way in ways.items():
            started = time.perf_counter()
            captions[name] = way(count)  # lists of numbers: a GPU has finished
            times[name].append(time.perf_counter() - started)
        if not captions["kept"] == captions["prefix"] == captions["padded"] or len(captions["kept"]) != count:
            raise RuntimeError(f"the captions differ: {captions}")
    return times


def rows(options):
    """The rows of the table."""
    device = pick_device(options.device)
    times = measure(catr.small_config(100) if options.small else catr.Config(), device, 16, options.repeats)
    pace = {name: [1 / seconds for seconds in turns] for name, turns in times.items()}
    for way, words in (("prefix", "the tokens so far"), ("padded", "all positions")):
        yield ratio(f"caption of 16 tokens with its maps / the network again on {words}",
                    pace["kept"], pace[way], ">=", 10, "captions/s")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16, help="of the caption (%(default)s)")
    parser.add_argument("--size", choices=["full", "small"], default="full", help="of the captioner (%(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each way, in turn (%(default)s)")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    config = catr.Config() if args.size == "full" else catr.small_config(100)
    if not 1 <= args.tokens <= config.positions:
        parser.error(f"--tokens must be from 1 to {config.positions}")
    times = measure(config, device, args.tokens, args.repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{args.size} size, {args.tokens} tokens, a photo of {PHOTO[0]} x {PHOTO[1]}, {device.type}: "
          f"medians of {args.repeats}; the same tokens in all\n")
    print(f"way     time (s)  kept / way  goal: at most {GOAL:g}")
    for name, median in medians.items():
        ratio = "" if name == "kept" else f"{medians['kept'] / median:10.3f}"
        print(f"{name:6}  {median:8.3f}  {ratio}".rstrip(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
