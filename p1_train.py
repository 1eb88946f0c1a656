"""Fine-tune a timm Vision Transformer on a folder of labelled images, with Adam or with SAM around it.

The headline setting, a pretrained ViT-Base with SAM around Adam:

    python p1_train.py --data p1_data --output runs/headline

A pretrained ViT-Tiny from a weights file, on a CPU; and one from scratch, on drawn images:

    python p1_train.py --data p1_data --arch vit_tiny_patch16_224 --weights vit_tiny.safetensors \\
        --output runs/tiny
    python p1_train.py --data demo --arch test_vit --scratch --optimizer adam --lr 1e-3 --output runs/scratch

On four GPUs of a machine, of which each takes `--batch-size` images:

    torchrun --nproc-per-node 4 p1_train.py --data p1_data --batch-size 8 --output runs/parallel

`--data DIR` holds `train/`, with files named {class}_{id}.jpg or one subfolder a class, and perhaps
`classes.txt`, one name a line. A part of `train/` is held out to choose the best epoch; `val/` is never read:
that is for p1_eval.py.

A run that was stopped or killed goes on with the same command and `--resume`, and ends with the same weights,
bit for bit, as one that was not. Exit code: 0; 2 for bad input; 3 if it stopped at a loss that is not finite,
or because another process failed; 130 and 143 after SIGINT and SIGTERM, saved.
"""

import math
import sys
from pathlib import Path

from common.cli import ArgumentParser, ImageSize, note, number, reports_errors
from common.recipe import parse_with_recipe
from engine.flags import add_training_flags


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument_group("data and output").add_argument
    add("--data", required=True, metavar="DIR", help="folder with train/; or `demo`: images drawn in seconds")
    add("--output", type=Path, required=True, metavar="DIR",
        help="receives checkpoints, metrics, settings and curves")
    add("--holdout", type=number(float, low=0, high=0.9), default=0.1, metavar="FRACTION",
        help="stratified part of train/ that chooses the epoch; 0 trains on all and takes the last "
             "(%(default)s)")
    add("--skip-bad", action="store_true", help="go on without files that cannot be used")
    add("--recipe", type=Path, metavar="FILE",
        help="TOML file of flags, such as recipes/model4.toml; those here override it")

    model = parser.add_argument_group("model")
    model.add_argument("--arch", default="vit_base_patch16_224", metavar="NAME",
                       help="any VisionTransformer, Beit or Eva of timm (%(default)s)")
    start = model.add_mutually_exclusive_group()
    start.add_argument("--weights", type=Path, metavar="FILE",
                       help="pretrained weights instead of timm's from the hub")
    start.add_argument("--scratch", action="store_true", help="start from random weights")
    model.add_argument("--image-size", type=ImageSize, metavar="N|HxW",
                       help="of what the model sees; positions are resampled (its own)")
    model.add_argument("--crop-pct", type=number(float, above=0, high=1), metavar="X",
                       help="part of a photo's shorter side used in evaluation (the model's own, often 0.9)")
    model.add_argument("--head-init", choices=["random", "probe"], default="random",
                       help="probe: begin with a linear probe of the frozen features, with the pretrained "
                            "head as prior (%(default)s)")
    model.add_argument("--compile", action="store_true",
                       help="train through torch.compile: slow to begin, then faster on a GPU (not on a CPU)")
    model.add_argument("--layer-decay", type=number(float, above=0, high=1), default=1, metavar="X",
                       help="each block learns at X times the rate of the next one: 0.65 to 1 (%(default)s)")

    augment = parser.add_argument_group("augmentation and labels").add_argument
    augment("--crop-scale", type=number(float, above=0, high=1), default=0.5, metavar="X",
            help="least part of a photo's area that the random crop keeps: 0.08 to 1 (%(default)s)")
    augment("--rand-augment", type=number(int, low=0, high=10), default=0, metavar="M",
            help="RandAugment of this magnitude: 5 to 9 (%(default)s: none)")
    augment("--random-erasing", type=number(float, low=0, high=1), default=0, metavar="P",
            help="probability that a rectangle turns to noise: 0.1 to 0.25 (%(default)s)")
    augment("--mixup", type=number(float, low=0, high=100), default=0, metavar="ALPHA",
            help="blend two photos, by shares of Beta(ALPHA, ALPHA): 0.1 to 0.8 (%(default)s: none)")
    augment("--cutmix", type=number(float, low=0, high=100), default=0, metavar="ALPHA",
            help="put a part of one photo into another: 0.5 to 1; with --mixup, one of the two a batch "
                 "(%(default)s: none)")
    augment("--label-smoothing", type=number(float, low=0, high=0.99), default=0, metavar="X",
            help="share of each label that all classes get alike: 0.1 (%(default)s)")

    add_training_flags(parser, optimizer="SAM around Adam", lr=3e-5, batch_size=32, epochs=10)
    return parser


def parse_args(argv):
    """The arguments, with the optimizer that they mean: the one that is named, else SAM around Adam."""
    args = parse_with_recipe(get_args_parser(), argv)
    args.sam = args.optimizer is None if args.sam is None else args.sam
    args.optimizer = args.optimizer or "adam"
    return args


def open_model(args, run, fit):
    """The model to train on the LabelledFolder `fit`, its preprocessing, facts for config.json. Collective.

    Its weights are random where those of a saved state will take their place.
    """
    from models import vit
    from models.weights import trained_size

    probing = args.head_init == "probe" and not run.saved
    # a probe learns from the pretrained head, if there is one, before it is replaced
    classes = None if probing and not args.scratch else len(fit.labels)
    # of a saved state, whose size may be that of a checkpoint which it began with
    size = trained_size(run.saved) if run.saved else args.image_size
    model, head_note = vit.create(args.arch, classes, args.weights, args.scratch or bool(run.saved), size)
    model.to(run.device)
    preprocessing = vit.preprocessing(model)
    if args.crop_pct:
        preprocessing["crop_pct"] = args.crop_pct
    about = {}
    if probing:
        has_head = not (args.scratch or head_note)
        about["probe"] = start_from_probe(model, has_head, preprocessing, fit, run)
    elif head_note:
        note(head_note)
    return model.train(), preprocessing, {**about, "model": vit.describe(model)}


def start_from_probe(model, has_head, preprocessing, fit, run):
    """Replace the head by a linear probe of the frozen features; facts for config.json. Collective.

    `has_head`: the model has its pretrained head, which is the prior.
    """
    from engine.inference import predict_shards
    from models import probe
    from models.vit import on_pixels

    loader = shard_loader(run, fit, preprocessing)
    facts = probe.start_from_probe(
        model, lambda features: predict_shards(on_pixels(features, preprocessing), loader,
                                               run.device).numpy(), fit.targets, has_head, run.args.seed)
    if run.is_main:
        accuracy = f"accuracy {facts['accuracy']:.3f} in cross-validation, " if facts["accuracy"] else ""
        print(f"head fitted to the frozen features: C {facts['C']:g}, prior weight {facts['trust']:g}, "
              f"{accuracy}{facts['seconds']:.0f} s")
    return facts


def shard_loader(run, folder, preprocessing):
    """The batches of this rank's shard of a LabelledFolder, as evaluation sees the images, in pixels."""
    from datasets.images import ImageDataset
    from datasets.transforms import evaluation_pixels
    from engine.distributed import shard

    dataset = ImageDataset(folder.root, shard(folder.names), shard(folder.targets),
                           evaluation_pixels(preprocessing))
    return run.loader(dataset, image_bytes(preprocessing), batch_size=run.args.batch_size)


def image_bytes(preprocessing):
    """What the pixels of an image take."""
    return math.prod(preprocessing["input_size"])


def train(args, run, folder, fingerprint):
    """Train a model on a LabelledFolder, of which a part is held out to choose the epoch."""
    from datasets import images, transforms
    from engine import distributed
    from engine.device import compiled
    from engine.inference import score
    from engine.loop import Loop
    from engine.state import TrainingState
    from engine.step import OptimizerStep, build_optimizer
    from models.checkpoint import checkpoint_fields
    from models.losses import NO_TARGET, ClassificationLoss
    from models.vit import Normalise, layer_groups, on_pixels

    # Data, and the model
    fit, held_out = (folder.keep(indices) for indices in images.stratified_holdout(
        folder.targets, args.holdout, args.seed))
    held_out = held_out.keep(run.usable(held_out.names))
    model, preprocessing, about = open_model(args, run, fit)
    augment = transforms.training_transform(preprocessing, args.crop_scale, args.rand_augment,
                                            args.random_erasing)
    # the last item stands for no image, for a rank that has none left
    any_name = fit.names[run.usable(fit.names)[0]]
    dataset = images.ImageDataset(fit.root, [*fit.names, any_name], fit.targets + [NO_TARGET], augment,
                                  args.seed)
    sampler = run.sampler(fit.names)
    loader = run.loader(dataset, image_bytes(preprocessing), batch_sampler=sampler)
    held_out_loader = shard_loader(run, held_out, preprocessing)
    normalise = Normalise(preprocessing).to(run.device)
    mix, smoothing = None, args.label_smoothing
    if args.mixup or args.cutmix:
        mix, smoothing = transforms.MixupCutMix(args.mixup, args.cutmix, smoothing, len(folder.labels)), 0.0

    # Optimization
    parameters = layer_groups(model, args.layer_decay) if args.layer_decay < 1 else model.parameters()
    ddp_model = distributed.data_parallel(compiled(model, run.device) if args.compile else model)
    optimizer, scaler = build_optimizer(args, parameters, ddp_model), run.scaler()
    take_step = OptimizerStep(ddp_model, optimizer, scaler, ClassificationLoss(smoothing), run.device,
                              args.precision)
    state = TrainingState(model, optimizer, scaler, run.settings, fingerprint, about, args.ema)
    saver = run.restore(state, checkpoint_fields(args.arch, folder.labels, folder.class_names, preprocessing))

    def prepare(pixels, targets):
        batch = normalise(pixels), targets
        return mix(*batch) if mix else batch

    def evaluate(model, until_stopped):
        return score(on_pixels(model, preprocessing), held_out_loader, run.device, args.precision,
                     until_stopped)

    run.announce(f"{args.arch}, {len(folder.labels)} classes", len(fit.names), len(held_out.names))
    with Loop(state, saver, sampler, fit.names, args, run.device) as loop:
        for _ in loop.epochs():
            for batches in loop.steps(loader, prepare):
                loop.end_step(*take_step(batches, loop.global_batch_size))
            loop.end_epoch(evaluate, len(held_out.names))


@reports_errors
def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv)

    # After the arguments, so that --help and typing errors answer at once.
    from common.files import refuse_missing
    from datasets import images, shapes
    from datasets.decode import explaining_bad_images
    from engine import distributed
    from engine.photos import REMEDY
    from engine.run import Run

    run = Run(args, get_args_parser().get_default)
    if run.finished:
        return run.finish()
    run.start()
    data = Path(args.data)
    if args.data == "demo":
        data = distributed.main_process_first(lambda: shapes.write_dataset(shapes.DEMO_DATA))
    root = data / "train"
    refuse_missing(root, "with --data the folder that holds train/", folder=True)
    listed = images.list_files(root)
    names = run.choose_photos(root, listed, images.unusable(root, listed, with_labels=True))
    folder = images.read_training_folder(root, data / "classes.txt", names=names)
    fingerprint = folder.fingerprint()
    run.check_images(fingerprint, root)
    with explaining_bad_images(root, [names[i] for i in run.usable(names)], remedy=REMEDY):
        train(args, run, folder, fingerprint)
    return 0


if __name__ == "__main__":
    sys.exit(main())
