"""Draw where the last layer's [CLS] token looks, mean over its heads, over the photo.

    python p1_viz_attn.py 26_5064.jpg 29_4718.jpg 31_4838.jpg --checkpoint runs/headline/best.pt --output-dir figures
    python p1_viz_attn.py photos --arch vit_base_patch16_224 --output-dir figures

For each image (folders count as the images in them) STEM.png shows the photo, the map, and the map over exactly the
pixels that the model saw. STEM.npz holds `attention` (H, W), softmax(q k^T / sqrt(d)) from [CLS] to the patches, and
`attention_per_head` (heads, H, W). With --all also every row of every layer as bytes: `attention_all` (layers, heads,
N, N) times `attention_all_scale` (layers, heads) is the attention.
"""

import argparse
import sys
from pathlib import Path

from common.console import ArgumentParser, number, reports_errors
from common.errors import BadInput


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="image files and folders")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="of p1_train.py")
    source.add_argument("--arch", metavar="NAME", help="a timm name, with timm's weights")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a weights file for --arch")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="is created")
    parser.add_argument("--all", action="store_true", help="also store all layers, heads and tokens")
    parser.add_argument("--batch-size", type=number(int, low=1, high=10**6), default=16, metavar="N",
                        help="images at a time (%(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto",
                        help="auto is the GPU where there is one")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if args.weights and not args.arch:
        raise BadInput("--weights belongs to --arch; a --checkpoint has its own")

    # After the arguments, so that --help and typing errors answer at once.
    import numpy as np
    import torch

    from common.files import written_whole
    from datasets import images
    from engine.device import pick_device
    from models import vit
    from models.attention import attention_maps, cls_to_patch
    from plots.attention import draw_attention

    device = pick_device(args.device)
    paths = []
    for path in args.images:
        if path.is_dir():
            paths += [path / name for name in images.list_files(path)]
        elif path.exists():
            paths.append(path)
        else:
            raise BadInput(f"{path} does not exist: name image files or folders")
    first = {}
    for path in paths:
        if first.setdefault(path.stem, path) != path:
            raise BadInput(f"{first[path.stem]} and {path} would both become {path.stem}.png: rename one")
    bad = images.undecodable("", paths)  # before the first figure is drawn
    if bad:
        raise images.bad_files("", bad, len(paths), remedy="mend them or leave them out")

    if args.checkpoint:
        opened = vit.open_checkpoint(args.checkpoint)
        model, preprocessing, names = opened.model, opened.preprocessing, opened.class_names
    else:
        model, _ = vit.create(args.arch, weights=args.weights)
        preprocessing = vit.preprocessing(model)
        names = [f"class {i}" for i in range(model.num_classes)]
    model.eval().to(device)
    transform = images.evaluation_transform(preprocessing)

    for start in range(0, len(paths), args.batch_size):
        batch = paths[start:start + args.batch_size]
        photos = [images.load_image(path) for path in batch]
        inputs = torch.stack([transform(photo) for photo in photos]).to(device)
        logits, maps = attention_maps(model, inputs, range(len(model.blocks)) if args.all else (-1,))
        per_head = cls_to_patch(maps[-1], model).cpu().numpy()
        probabilities = logits.float().softmax(1).cpu()
        for i, (path, photo) in enumerate(zip(batch, photos)):
            arrays = {"attention": per_head[i].mean(0), "attention_per_head": per_head[i]}
            if args.all:
                weights = torch.stack([layer[i] for layer in maps]).cpu().numpy()
                scale = weights.max((2, 3)) / 255
                arrays["attention_all"] = np.rint(weights / scale[:, :, None, None]).astype(np.uint8)
                arrays["attention_all_scale"] = scale
            title = path.stem
            if len(names):
                probability, index = probabilities[i].max(0)
                title += f": {names[index]}, probability {probability:.2f}"
            with written_whole(args.output_dir / f"{path.stem}.npz") as temporary:
                np.savez_compressed(temporary, **arrays)
            with written_whole(args.output_dir / f"{path.stem}.png") as temporary:
                draw_attention(np.asarray(photo), arrays["attention"], images.crop_box(photo.size, preprocessing),
                               title, temporary)
    print(f"{len(paths)} image{'s' * (len(paths) > 1)} drawn to {args.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
