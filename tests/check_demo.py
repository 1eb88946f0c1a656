"""What the demo must have shown, of the folder runs/demo that demo.sh leaves.

    python -m tests.check_demo

Its fine-tuned model reaches an accuracy of 0.95, and the peak of its attention falls on the object, or on a
patch next to it, for 90 % of the validation images. The captioner's caption is exact for 90 % of 400 scenes,
and the peak of the map falls on the object, or on a cell next to it, for 85 % of the colours and of the
shapes. The page holds all of it in 15 MB at most.
Exit code: 0 if so, else 1.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

from datasets.images import list_files
from datasets.masks import find_mask
from interpret.photos import Viewer

DATA = Path("data/demo")
RUN = Path("runs/demo")


def main():
    accuracy = json.loads((RUN / "result.json").read_text())["accuracy"]
    viewer = Viewer(torch.device("cpu"), RUN / "pretrained" / "best.pt")
    paths = [DATA / "val" / name for name in list_files(DATA / "val")]
    results = [photo.ground(*viewer.cover(photo.path, find_mask(DATA / "masks" / "val", photo.path.stem)))[0]
               for photo in viewer.attend(paths)]
    share, area, peak, chance = np.mean(results, 0)
    print(f"accuracy {accuracy:.4f}; the peak of the attention is on the object or beside it in {peak:.1%} "
          f"of {len(paths)} images (by chance {chance:.1%}); {share:.1%} of the attention is on it, of the "
          f"area {area:.1%}")
    captions = json.loads((RUN / "captions.json").read_text())
    hits = {role: captions["pointing"][role]["hit"] for role in ("colour", "shape")}
    print(f"exact captions {captions['exact']:.1%} of {captions['photos']}; pointing game: colour "
          f"{hits['colour']:.1%}, shape {hits['shape']:.1%}")
    captioner_holds = captions["exact"] >= 0.9 and captions["photos"] == 400 and min(hits.values()) >= 0.85
    page = (RUN / "index.html").read_bytes()
    sections = re.findall(rb'<section id="(\w+)"', page)
    print(f"the page has {len(page) / 1e6:.1f} MB and {len(sections)} sections")
    page_holds = len(page) <= 15e6 and sections == [b"results", b"positions", b"attention", b"captions"]
    return 0 if accuracy >= 0.95 and peak >= 0.9 and captioner_holds and page_holds else 1


if __name__ == "__main__":
    sys.exit(main())
