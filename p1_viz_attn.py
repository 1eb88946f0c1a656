"""Draw where a [CLS] token looks, over the photo: by default that of the last layer, mean over its heads.

    python p1_viz_attn.py a.jpg b.jpg --checkpoint runs/headline/best.pt --output-dir figures --sheet
    python p1_viz_attn.py photos --arch vit_base_patch16_224 --output-dir figures --rollout --format pdf
    python p1_viz_attn.py photos --checkpoint runs/a/best.pt --output-dir figures --masks trimaps --occlusion

For each image (folders count as the images in them) STEM.png shows the photo, the map, and the map over
exactly the pixels that the model saw; for one in a subfolder, SUBFOLDER/STEM.png. STEM.npz holds the arrays:

    attention (H, W), attention_per_head (heads, H, W)   softmax(q k^T / sqrt(d)) from [CLS] to patches
    rollout (H, W)                                       with --rollout
    sinks (H, W)                         which patches draw attention whatever the photo
    attention_all (layers, heads, N, H * W) as bytes     with --all: of all N tokens, to patches; times
                                                         attention_all_scale (layers, heads, N)
    attention_cls (layers, heads, N)                     with --all: of [CLS], to all N tokens
    share_on_object, share_of_area, peak_on_object       with --masks
    ... _without_sinks                   the same of the other patches, if there are sinks
    object_cover, background_cover (H, W)                with --masks: the part of each patch they cover
    probability, occlusion (rows, 3)                     with --occlusion: of the predicted class; share of
                                                         patches removed, the probability without the most
                                                         attended ones, and without as many random ones;
                                         occlusion_without_sinks where these come last

With --all also `model`, `photo` (its path), `box` (left, top, right and bottom of what the model saw, in
pixels of the photo), the names `predicted` and `label` (by the photo's folder, else its name, or empty), and
`confidence`.
"""

import sys
from pathlib import Path
from statistics import fmean

from common.cli import ArgumentParser, ImageSize, number, reports_errors
from common.errors import BadInput

SHEET = "contact_sheet"
MOST_ON_A_SHEET = 40


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGES", help="image files and folders")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="of p1_train.py")
    source.add_argument("--arch", metavar="NAME", help="a timm name, with timm's weights")
    add("--weights", type=Path, metavar="FILE", help="a weights file for --arch")
    add("--output-dir", type=Path, required=True, metavar="DIR", help="is created")
    add("--format", choices=["png", "pdf", "svg"], default="png", help="of the pictures (%(default)s)")
    add("--image-size", type=ImageSize, metavar="N|HxW", help="of what the model sees (its own)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=16, metavar="N",
        help="images at a time (%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is the GPU, if there is one")

    add = parser.add_argument_group("what is drawn").add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--block", type=int, default=-1, metavar="N",
                       help="of this block: 0 is the first, -1 the last")
    which.add_argument("--rollout", action="store_true",
                       help="attention rollout: how [CLS] reaches the patches through all blocks")
    add("--sheet", action="store_true", help=f"also {SHEET}.png: all photos, in the order given")
    add("--scale-each", action="store_true", help="on the sheet, too, a colour scale for each photo")
    add("--without-sinks", action="store_true",
        help="leave out the patches that draw attention whatever the photo")
    add("--all", action="store_true", help="also store all layers, heads and tokens")

    add = parser.add_argument_group("what it means").add_argument
    add("--masks", type=Path, metavar="DIR",
        help="trimaps of Oxford-IIIT Pet, or masks with 0 for background, named like the figures: print the "
             "share of attention on the object, and of the area that it covers")
    add("--occlusion", action="store_true",
        help="print the probability without the most attended patches, against random ones")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if args.weights and not args.arch:
        raise BadInput("--weights belongs to --arch; a --checkpoint has its own")

    # After the arguments, so that --help and typing errors answer at once.
    import numpy as np

    from common.files import written_whole
    from datasets.masks import find_masks, load_mask
    from datasets.photos import find_photos, refuse_to_overwrite, refuse_undecodable
    from engine.device import keep_freed_memory, pick_device
    from interpret.photos import Viewer
    from interpret.sinks import sinks_in_words
    from plots.attention import ModelView, bar_label, draw_rows
    from plots.drawing import Drawing

    device = pick_device(args.device)
    keep_freed_memory(device)
    photos = find_photos(args.images, [args.output_dir])
    names, paths = list(photos), list(photos.values())
    refuse_sheet(args, photos)
    masks = dict(zip(paths, find_masks(args.masks, names))) if args.masks else {}
    refuse_to_overwrite(args.output_dir, (args.format, "npz"), [SHEET, *names], [*paths, *masks.values()])
    refuse_undecodable(paths)
    viewer = Viewer(device, args.checkpoint, args.arch, args.weights, args.image_size)
    if args.occlusion and not viewer.class_names:
        raise BadInput(f"--occlusion: {viewer.name} predicts no classes: leave it out")
    covers = {path: viewer.cover(path, mask) for path, mask in masks.items()}

    sinks, times = viewer.find_sinks(args.block, args.rollout)
    if sinks.any() or args.without_sinks:
        print(sinks_in_words(sinks, times))
    rows, groundings, occlusions = [], [], []
    with Drawing() as drawing:
        attended = viewer.attend(paths, args.batch_size, args.block, args.rollout, args.all, names)
        for name, photo in zip(names, attended):
            arrays, heads = photo.arrays, len(photo.arrays["attention_per_head"])
            view = ModelView(photo.pixels, photo.metadata["box"], photo.mistaken, sinks)
            label = bar_label(len(viewer.model.blocks), heads, args.block, args.rollout, args.without_sinks)
            if args.masks:
                view.outlined, _ = load_mask(masks[photo.path], photo.pixels.shape[1::-1])
                groundings.append(photo.ground(*covers[photo.path]))
                print_both(name, [on_object(*ground[:3]) for ground in groundings[-1]])
            if args.occlusion:
                occlusions.append(photo.occlude(viewer.model))
                print_both(name, [without_patches(*result) for result in occlusions[-1]])
            with written_whole(args.output_dir / f"{name}.npz") as temporary:
                np.savez_compressed(temporary, **arrays)
            attention = photo.without_sinks if args.without_sinks else photo.attention
            drawing.draw(args.output_dir / f"{name}.{args.format}", draw_rows,
                         [(view, attention, photo.title)], label)
            if args.sheet:
                rows.append((view, attention, photo.title.replace(": ", "\n", 1)))
        if args.sheet:
            drawing.draw(args.output_dir / f"{SHEET}.{args.format}", draw_rows, rows, label,
                         scale_each=args.scale_each)
    print_means(groundings, occlusions)
    print(f"{viewer.name}: {len(paths)} image{'s' * (len(paths) > 1)} drawn to {args.output_dir}")
    return 0


def refuse_sheet(args, photos):
    if args.sheet and len(photos) > MOST_ON_A_SHEET:
        raise BadInput(f"--sheet: {len(photos)} photos do not fit: name at most {MOST_ON_A_SHEET}")
    if args.sheet and SHEET in photos:
        raise BadInput(f"--sheet takes the name of {SHEET}.{args.format}, the figure of a photo: rename it")


def on_object(share, area, peak, chance=None):
    """What `PhotoAttention.ground` returns for one photo; with `chance` the means over photos."""
    where = "on or beside it" if peak else "elsewhere"
    if chance is not None:
        where = f"on or beside it in {peak:.1%} (by chance {chance:.1%})"
    return f"{share:.1%} of the attention on the object, which covers {area:.1%} of the area; peak {where}"


def without_patches(probability, falls):
    return f"probability {probability:.3f}; " + "; ".join(
        f"{attended:.3f} without the {share:.0%} most attended patches, {random:.3f} without as many random "
        "ones"
        for share, attended, random in falls)


def print_both(what, texts):
    """Of all patches, and if there are sinks of the others."""
    for words, text in zip(("", " without sinks"), texts):
        print(f"{what}{words}: {text}")


def print_means(groundings, occlusions):
    """Each has, for a photo, what `PhotoAttention.ground` and `occlude` return."""
    if groundings:
        print_both(f"mean of {len(groundings)}",
                   [on_object(*map(fmean, zip(*grounds))) for grounds in zip(*groundings)])
    if occlusions:
        print_both(f"mean of {len(occlusions)}", [mean_without_patches(each) for each in zip(*occlusions)])


def mean_without_patches(occlusions):
    probabilities, falls = zip(*occlusions)
    return without_patches(fmean(probabilities), [map(fmean, zip(*rows)) for rows in zip(*falls)])


if __name__ == "__main__":
    sys.exit(main())
