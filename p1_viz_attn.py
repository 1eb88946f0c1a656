"""Draw where a [CLS] token looks, over the photo: by default that of the last layer, mean over its heads.

    python p1_viz_attn.py 26_5064.jpg 29_4718.jpg 31_4838.jpg --checkpoint runs/headline/best.pt --output-dir figures --sheet
    python p1_viz_attn.py photos --arch vit_base_patch16_224 --output-dir figures --blocks all --heads --format pdf
    python p1_viz_attn.py photos --checkpoint runs/headline/best.pt --output-dir figures --masks trimaps --occlusion

For each image (folders count as the images in them) STEM.png shows the photo, the map, and the map over exactly the
pixels that the model saw. STEM.npz holds the arrays:

    attention (H, W), attention_per_head (heads, H, W)   softmax(q k^T / sqrt(d)) from [CLS] to the patches
    rollout (H, W)                                       with --rollout
    attention_blocks (layers, heads, H, W)               with --blocks all
    attention_all (layers, heads, N, N) as bytes         with --all; times attention_all_scale (layers, heads) it is
                                                         every row of every layer
    share_on_object, share_of_area, peak_on_object       with --masks
    object_cover, background_cover (H, W)                with --masks: the part of each patch that they cover
    occlusion (rows of share removed, probability without the most attended patches, without random ones); probability

With --all it also says, for `report_page.py`, of what they are: `model`, `photo` (its path), `box` (left, top, right and
bottom of what the model saw, in pixels of the photo), `predicted` and `label`, the true class by the photo's name (names,
empty where nobody knows), and `confidence`, the probability of the predicted class.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.cli import ArgumentParser, image_size, note, number, reports_errors
from common.errors import BadInput

SHEET = "contact_sheet"
MOST_ON_A_SHEET = 40


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGES", help="image files and folders")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="of p1_train.py")
    source.add_argument("--arch", metavar="NAME", help="a timm name, with timm's weights")
    add("--weights", type=Path, metavar="FILE", help="a weights file for --arch")
    add("--output-dir", type=Path, required=True, metavar="DIR", help="is created")
    add("--format", choices=["png", "pdf", "svg"], default="png", help="of the pictures (%(default)s)")
    add("--image-size", type=image_size, metavar="N|HxW", help="show the model images of this size (its own)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=16, metavar="N", help="images at a time (%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is the GPU where there is one")

    add = parser.add_argument_group("what is drawn").add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--block", type=int, default=-1, metavar="N", help="of this block: 0 is the first, -1 the last")
    which.add_argument("--blocks", choices=["all"], help="a row for each block")
    which.add_argument("--rollout", action="store_true",
                       help="attention rollout: how [CLS] reaches the patches through all blocks")
    add("--heads", action="store_true", help="each head by itself")
    add("--interpolation", choices=["bilinear", "nearest"], default="bilinear",
        help="of the overlay: smooth, or one colour a patch (%(default)s)")
    add("--sheet", action="store_true", help=f"also {SHEET}.png: all photos below one another, in the order given")
    add("--all", action="store_true", help="also store all layers, heads and tokens")

    add = parser.add_argument_group("what it means").add_argument
    add("--masks", type=Path, metavar="DIR", help="trimaps of Oxford-IIIT Pet or masks that are 0 on the background, named "
        "STEM.png: print the share of attention on the object, against the share of area that it covers")
    add("--occlusion", action="store_true",
        help="print how far the probability falls without the most attended patches, against random ones")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if args.weights and not args.arch:
        raise BadInput("--weights belongs to --arch; a --checkpoint has its own")
    if args.rollout and args.heads:
        raise BadInput("--rollout mixes the heads: leave --heads out")

    # After the arguments, so that --help and typing errors answer at once.
    import numpy as np
    import torch

    from common.files import written_whole
    from datasets import decode, images, transforms
    from datasets.masks import find_mask, load_mask, patch_cover
    from datasets.photos import find_images, refuse_to_overwrite
    from engine.device import pick_device
    from interpret.attention import patch_grid
    from interpret.grounding import peaks_on, share_on
    from interpret.occlusion import occlusion
    from models import vit
    from models.checkpoint import open_checkpoint
    from plots.attention import LABEL, Seen, draw_heads, draw_rows
    from plots.drawing import Drawing

    device = pick_device(args.device)
    paths = find_images(args.images)
    if args.sheet and len(paths) > MOST_ON_A_SHEET:
        raise BadInput(f"--sheet: {len(paths)} photos do not fit on one sheet: name at most {MOST_ON_A_SHEET}")
    if args.sheet and SHEET in {path.stem for path in paths}:
        raise BadInput(f"--sheet would take the name of {SHEET}.{args.format}, the figure of one of the photos: rename it")
    masks = {path: find_mask(args.masks, path.stem) for path in paths} if args.masks else {}
    refuse_to_overwrite(args.output_dir, (args.format, "npz"), [SHEET, *(path.stem for path in paths)],
                        [*paths, *masks.values()])
    bad = decode.undecodable("", paths)  # before the first figure is drawn
    if bad:
        raise decode.bad_files("", bad, len(paths), remedy="mend them or leave them out")

    if args.checkpoint:
        opened = open_checkpoint(args.checkpoint)
        model, preprocessing, names = opened.model, opened.preprocessing, opened.class_names
        known = dict(zip(opened.labels, names))  # the names of the classes by their labels
    else:
        model, told = vit.create(args.arch, weights=args.weights)
        preprocessing = vit.preprocessing(model)
        if told:
            note(f"{args.weights} has no head for its classes: no prediction is shown")
        names, known = [] if told else [f"class {i}" for i in range(model.num_classes)], {}
    if args.occlusion and not names:
        raise BadInput(f"--occlusion: {args.checkpoint or args.arch} predicts no classes: leave it out")
    if args.image_size:
        vit.set_image_size(model, args.image_size)
        preprocessing = {**preprocessing, "input_size": [3, *args.image_size]}
    model.eval().to(device)
    transform = transforms.evaluation_transform(preprocessing)
    grid = patch_grid(model, preprocessing["input_size"][1:])

    def covered(path, mask):
        """The parts of each patch that object and background cover, (H, W) each."""
        size = decode.load_image(path).size
        box = transforms.crop_box(size, preprocessing)
        inside, outside = (torch.from_numpy(patch_cover(part, box, grid)) for part in load_mask(mask, size))
        if not (inside + outside).any():
            raise BadInput(f"{mask} marks neither object nor background in what the model sees of {path}: leave it out")
        return inside, outside

    label = "attention rollout from [CLS] to each patch" if args.rollout else \
        LABEL if args.block == -1 else f"{LABEL}, block {args.block}"
    covers = {path: covered(path, mask) for path, mask in masks.items()}  # before the first figure is drawn

    sheet, on_object, occluded = [], [], []
    with Drawing() as drawing:
        for path, photo, inputs, probabilities, arrays in attended(model, paths, transform, grid, device, args):
            seen = Seen(np.asarray(photo), transforms.crop_box(photo.size, preprocessing))
            drawn, title = arrays["rollout" if args.rollout else "attention"], path.stem
            predicted, confidence = "", 0.0
            if names:
                confidence, index = (value.item() for value in probabilities.max(0))
                predicted = names[index]
                title += f": {predicted}, probability {confidence:.2f}"
            if args.all:
                arrays.update(model=str(args.checkpoint or args.arch), photo=str(path.resolve()), box=seen.box,
                              predicted=predicted, confidence=confidence, label=known.get(images.label_of(path.name)) or known.get(path.parent.name, ""))
            if args.masks:
                inside, outside = covers[path]
                share, area = (value.item() for value in share_on(torch.from_numpy(drawn), inside, outside))
                peak, chance = peaks_on(torch.from_numpy(drawn), inside)
                arrays.update(share_on_object=share, share_of_area=area, peak_on_object=peak, object_cover=inside.numpy(),
                              background_cover=outside.numpy())
                on_object.append((share, area, peak, chance))
                title += f"\nattention on the object {share:.0%}, area {area:.0%}"
                print(f"{path.stem}: {share:.1%} of the attention on the object, which covers {area:.1%} of the area; "
                      f"peak {'on or beside it' if peak else 'elsewhere'}")
            if args.occlusion:
                arrays["probability"], falls = occlusion(model, inputs, torch.from_numpy(drawn))
                arrays["occlusion"] = np.array(falls)
                occluded.append((arrays["probability"], arrays["occlusion"]))
                print(f"{path.stem}: probability {arrays['probability']:.3f}; " + "; ".join(map(in_words, falls)))
            with written_whole(args.output_dir / f"{path.stem}.npz") as temporary:
                np.savez_compressed(temporary, **arrays)
            picture = args.output_dir / f"{path.stem}.{args.format}"
            per_block = [(f"block {block}", heads) for block, heads in enumerate(arrays["attention_blocks"])] \
                if args.blocks else [("", arrays["attention_per_head"])]
            if args.heads:
                drawing.draw(picture, draw_heads, seen, per_block, title, interpolation=args.interpolation)
            elif args.blocks:
                drawing.draw(picture, draw_rows, [(seen, heads.mean(0), name) for name, heads in per_block],
                             interpolation=args.interpolation, heading=title, compressed=True)
            else:
                drawing.draw(picture, draw_rows, [(seen, drawn, title)], interpolation=args.interpolation, label=label)
            if args.sheet:
                sheet.append((seen, drawn, title.replace(": ", "\n", 1)))
        if args.sheet:
            drawing.draw(args.output_dir / f"{SHEET}.{args.format}", draw_rows, sheet,
                         interpolation=args.interpolation, label=label)

    if on_object:
        share, area, peak, chance = np.mean(on_object, 0)
        print(f"mean of {len(on_object)}: {share:.1%} of the attention on the object, which covers {area:.1%} of the area; "
              f"peak on or beside it in {peak:.1%} (by chance {chance:.1%})")
    if occluded:
        probability = np.mean([whole for whole, _ in occluded])
        falls = np.mean([rows for _, rows in occluded], 0)
        print(f"mean of {len(occluded)}: probability {probability:.3f}; " + "; ".join(map(in_words, falls)))
    print(f"{len(paths)} image{'s' * (len(paths) > 1)} drawn to {args.output_dir}")
    return 0


def attended(model, paths, transform, grid, device, args):
    """Read the attention in photos: for each path its photo, the input (3, H, W), the probabilities (classes,), the arrays.

    `grid` is that of the patches. The arrays are those of the attention at the top of this file.
    """
    import numpy as np
    import torch

    from datasets.decode import load_image
    from interpret.attention import attention_maps, cls_to_patch, rollout

    every = range(len(model.blocks)) if args.all or args.blocks or args.rollout else ()

    def load(path):
        photo = load_image(path)
        return photo, transform(photo)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), args.batch_size):
            batch = paths[start:start + args.batch_size]
            photos, inputs = zip(*pool.map(load, batch))
            inputs = torch.stack(inputs).to(device)
            try:
                logits, (*maps, chosen) = attention_maps(model, inputs, (*every, args.block))
                shown = cls_to_patch(chosen, model, grid).cpu()
            except BadInput as error:
                raise BadInput(f"{args.checkpoint or args.arch}: {error}") from error
            probabilities = logits.float().softmax(1).cpu()
            for i, (path, photo) in enumerate(zip(batch, photos)):
                arrays = {"attention": shown[i].mean(0).numpy(), "attention_per_head": shown[i].numpy()}
                if args.rollout:
                    mixed = rollout([m[i:i + 1] for m in maps])
                    arrays["rollout"] = cls_to_patch(mixed, model, grid)[0].cpu().numpy()
                if args.blocks:
                    arrays["attention_blocks"] = np.stack([cls_to_patch(m[i], model, grid).cpu().numpy() for m in maps])
                if args.all:
                    weights = torch.stack([layer[i] for layer in maps]).cpu().numpy()
                    scale = weights.max((2, 3)) / 255
                    arrays["attention_all"] = np.rint(weights / scale[:, :, None, None]).astype(np.uint8)
                    arrays["attention_all_scale"] = scale
                yield path, photo, inputs[i], probabilities[i], arrays


def in_words(fall):
    """A row of `interpret.occlusion.occlusion` for the screen."""
    share, attended, random = fall
    return f"{attended:.3f} without the {share:.0%} most attended patches, {random:.3f} without random ones"


if __name__ == "__main__":
    sys.exit(main())
