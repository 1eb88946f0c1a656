"""Draw where a [CLS] token looks, over the photo: by default that of the last layer, mean over its heads.

    python p1_viz_attn.py a.jpg b.jpg --checkpoint runs/headline/best.pt --output-dir figures --sheet
    python p1_viz_attn.py photos --arch vit_base_patch16_224 --output-dir figures --rollout --format pdf
    python p1_viz_attn.py photos --checkpoint runs/a/best.pt --output-dir figures --masks trimaps --occlusion
    python p1_viz_attn.py photos --checkpoint runs/a/best.pt --output-dir figures --masks trimaps --block all

For each image (folders count as the images in them) STEM.png shows the photo, the map, and the map over
exactly the pixels that the model saw; for one in a subfolder, SUBFOLDER/STEM.png. With `--block all` it shows
the map of each block over the photo, and with `--masks` by_block.png how much of each lies on the object, for
photos that the model has right and wrong. STEM.npz holds the arrays:

    attention (H, W), attention_per_head (heads, H, W)   softmax(q k^T / sqrt(d)) from [CLS] to patches
    rollout (H, W)                                       with --rollout
    sinks (H, W)                         which patches draw attention whatever the photo
    attention_by_block, sinks_by_block (layers, H, W)    with --block all
    attention_all (layers, heads, N, H * W) as bytes     with --all: of all N tokens, to patches; times
                                                         attention_all_scale (layers, heads, N)
    attention_cls (layers, heads, N)                     with --all: of [CLS], to all N tokens
    share_on_object, share_of_area, peak_on_object       with --masks
    ... _without_sinks                   the same of the other patches, if there are sinks
    ... _by_block (layers, 2)            with --block all: of all patches, and without the block's sinks
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

from common.cli import ArgumentParser, ImageSize, number, reports_errors
from common.errors import BadInput

SHEET, BY_BLOCK = "contact_sheet", "by_block"
SHARES = "the share of it on the object, without sinks"
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
    which.add_argument("--block", type=block_number, default=-1, metavar="N",
                       help="of this block: 0 is the first, -1 the last; `all`: of each, beside one another")
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


def block_number(text):
    """An argparse type: a whole number, or `all`."""
    return text if text == "all" else number(int)(text)


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if args.weights and not args.arch:
        raise BadInput("--weights belongs to --arch; a --checkpoint has its own")

    # After the arguments, so that --help and typing errors answer at once.
    from datasets.masks import find_masks
    from datasets.photos import find_photos, refuse_to_overwrite, refuse_undecodable
    from engine.device import keep_freed_memory, pick_device
    from interpret.photos import Viewer

    device = pick_device(args.device)
    keep_freed_memory(device)
    photos = find_photos(args.images, [args.output_dir])
    names, paths = list(photos), list(photos.values())
    refuse_figures(args, names)
    masks = dict(zip(names, find_masks(args.masks, names))) if args.masks else {}
    refuse_to_overwrite(args.output_dir, (args.format, "npz"), [SHEET, BY_BLOCK, *names],
                        [*paths, *masks.values()])
    refuse_undecodable(paths)
    viewer = Viewer(device, args.checkpoint, args.arch, args.weights, args.image_size)
    if args.occlusion and not viewer.class_names:
        raise BadInput(f"--occlusion: {viewer.name} predicts no classes: leave it out")
    show(args, viewer, photos, masks)
    print(f"{viewer.name}: {len(paths)} image{'s' * (len(paths) > 1)} drawn to {args.output_dir}")
    return 0


def show(args, viewer, photos, masks):
    """Show the photos, {name: path}, to the model: print what is found, draw it, and store the arrays.

    `masks` has the file of each by its name, with `--masks`.
    """
    import numpy as np

    from common.files import written_whole
    from datasets.masks import load_mask
    from interpret.findings import Findings
    from interpret.sinks import sinks_in_words
    from plots.attention import ModelView, bar_label, draw_rows
    from plots.blocks import draw_shares
    from plots.drawing import Drawing

    covers = {name: viewer.cover(photos[name], mask) for name, mask in masks.items()}
    by_block, block = args.block == "all", -1 if args.block == "all" else args.block
    sinks, times = viewer.find_sinks(block, args.rollout)
    if sinks.any() or args.without_sinks:
        print(sinks_in_words(sinks, times))
    rows, findings = [], Findings()
    with Drawing() as drawing:
        attended = viewer.attend(list(photos.values()), args.batch_size, block, args.rollout, args.all,
                                 list(photos), by_block)
        for name, photo in zip(photos, attended):
            view = ModelView(photo.pixels, photo.metadata["box"], photo.mistaken, sinks)
            label = bar_label(len(viewer.model.blocks), len(photo.arrays["attention_per_head"]), args.block,
                              args.rollout, args.without_sinks)
            if args.masks:
                view.outlined, _ = load_mask(masks[name], photo.pixels.shape[1::-1])
                findings.ground(name, photo, covers[name], by_block)
            if args.occlusion:
                findings.occlude(name, photo, viewer.model)
            with written_whole(args.output_dir / f"{name}.npz") as temporary:
                np.savez_compressed(temporary, **photo.arrays)
            drawing.draw(args.output_dir / f"{name}.{args.format}", *picture(args, photo, view, label))
            if args.sheet:
                rows.append((view, photo.shown(args.without_sinks), photo.title.replace(": ", "\n", 1)))
        if args.sheet:
            drawing.draw(args.output_dir / f"{SHEET}.{args.format}", draw_rows, rows, label,
                         scale_each=args.scale_each)
        if findings.by_block:
            drawing.draw(args.output_dir / f"{BY_BLOCK}.{args.format}", draw_shares, findings.block_means())
    findings.print_means()


def refuse_figures(args, names):
    """Raise BadInput for a sheet of too many photos, and for one with the name of another figure."""
    if args.sheet and len(names) > MOST_ON_A_SHEET:
        raise BadInput(f"--sheet: {len(names)} photos do not fit: name at most {MOST_ON_A_SHEET}")
    for flag, wanted, name in (("--sheet", args.sheet, SHEET),
                               ("--block all", args.block == "all" and args.masks, BY_BLOCK)):
        if wanted and name in names:
            raise BadInput(f"{flag} takes the name of {name}.{args.format}, the figure of a photo: rename it")


def picture(args, photo, view, label):
    """The function that draws a photo, and its arguments."""
    from plots.attention import draw_blocks, draw_rows

    if args.block != "all":
        return draw_rows, [(view, photo.shown(args.without_sinks), photo.title)], label
    maps, sinks, shares = photo.arrays["attention_by_block"], photo.arrays["sinks_by_block"], []
    if args.masks:
        shares, label = photo.arrays["share_on_object_by_block"][:, 1], f"{label}; {SHARES}"
    return draw_blocks, view, maps * ~(sinks & args.without_sinks), sinks, shares, photo.predicted, label


if __name__ == "__main__":
    sys.exit(main())
