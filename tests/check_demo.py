"""What the demo must have shown, of the folder runs/demo that demo.sh leaves.

    python -m tests.check_demo

Its fine-tuned model reaches an accuracy of 0.95, and the peak of its attention falls on the object, or on a patch next to
it, for 90 % of the validation images. The captioner's caption is exact for 90 % of 400 scenes, and the peak of the map falls on
the object, or on a cell next to it, for 85 % of the colours and of the shapes. The page holds all of it in 15 MB at most.
Exit code: 0 if so, else 1.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

from datasets import decode, images, transforms
from datasets.masks import find_mask, load_mask, patch_cover
from interpret.attention import attention_maps, cls_to_patch, patch_grid
from interpret.grounding import peaks_on, share_on
from models.checkpoint import open_checkpoint

DATA = Path("data/demo")
RUN = Path("runs/demo")


def main():
    accuracy = json.loads((RUN / "result.json").read_text())["accuracy"]
    checkpoint = open_checkpoint(RUN / "pretrained" / "best.pt")
    transform = transforms.evaluation_transform(checkpoint.preprocessing)
    grid = patch_grid(checkpoint.model, checkpoint.preprocessing["input_size"][1:])
    found = []
    for name in images.list_files(DATA / "val"):
        photo = decode.load_image(DATA / "val" / name)
        _, (last,) = attention_maps(checkpoint.model, transform(photo)[None])
        attention = cls_to_patch(last, checkpoint.model, grid)[0].mean(0)
        box = transforms.crop_box(photo.size, checkpoint.preprocessing)
        inside, outside = (torch.from_numpy(patch_cover(mask, box, grid))
                           for mask in load_mask(find_mask(DATA / "masks" / "val", Path(name).stem), photo.size))
        found.append([*peaks_on(attention, inside), *(value.item() for value in share_on(attention, inside, outside))])
    peak, chance, share, area = np.mean(found, 0)
    print(f"accuracy {accuracy:.4f}; the peak of the attention is on the object or beside it in {peak:.1%} of "
          f"{len(found)} images (by chance {chance:.1%}); {share:.1%} of the attention is on it, of the area {area:.1%}")
    captions = json.loads((RUN / "captions.json").read_text())
    hits = {role: captions["pointing"][role]["hit"] for role in ("colour", "shape")}
    print(f"exact captions {captions['exact']:.1%} of {captions['photos']}; pointing game: colour {hits['colour']:.1%}, "
          f"shape {hits['shape']:.1%}")
    captioner_holds = captions["exact"] >= 0.9 and captions["photos"] == 400 and min(hits.values()) >= 0.85
    page = (RUN / "index.html").read_bytes()
    sections = re.findall(rb'<section id="(\w+)"', page)
    print(f"the page has {len(page) / 1e6:.1f} MB and {len(sections)} sections")
    page_holds = len(page) <= 15e6 and sections == [b"results", b"positions", b"attention", b"captions"]
    return 0 if accuracy >= 0.95 and peak >= 0.9 and captioner_holds and page_holds else 1


if __name__ == "__main__":
    sys.exit(main())
