"""Fine-tune a timm Vision Transformer on a folder of labelled images, with Adam or with SAM around it.

The headline setting, a pretrained ViT-Base with SAM around Adam:

    python p1_train.py --data p1_data --output runs/headline

A pretrained ViT-Tiny from a weights file, on a CPU; and a model from scratch, on images drawn by the project itself:

    python p1_train.py --data p1_data --arch vit_tiny_patch16_224 --weights vit_tiny.safetensors --precision bf16 \\
        --output runs/tiny
    python p1_train.py --data demo --arch test_vit --scratch --optimizer adam --lr 1e-3 --output runs/scratch

On four GPUs of a machine, of which each takes `--batch-size` images:

    torchrun --nproc-per-node 4 p1_train.py --data p1_data --precision bf16 --batch-size 8 --output runs/parallel

`--data DIR` holds `train/`, with files named {class}_{id}.jpg or one subfolder a class, and perhaps `classes.txt`, one
name a line. A part of `train/` is held out to choose the best epoch; `val/` is never read: that is for p1_eval.py.

A run that was stopped or killed goes on with the same command and `--resume`, and ends with the same weights, bit for
bit, as one that was not. Exit code: 0; 2 for bad input; 3 if it stopped at a loss that is not finite, or because another
process failed; 130 and 143 after SIGINT and SIGTERM, saved.
"""

import argparse
import sys
import time
from pathlib import Path

from common.cli import ArgumentParser, note, number, reports_errors
from common.recipe import parse_with_recipe
from datasets import decode
from engine.flags import add_training_flags
from models.checkpoint import checkpoint_fields

NO_TARGET = -100  # what cross_entropy ignores


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("data and output").add_argument
    add("--data", required=True, metavar="DIR", help="folder with train/; or `demo`: images drawn in seconds")
    add("--output", type=Path, required=True, metavar="DIR", help="receives checkpoints, metrics, settings and curves")
    add("--holdout", type=number(float, low=0, high=0.9), default=0.1, metavar="FRACTION",
        help="stratified part of train/ that chooses the epoch; 0 trains on all and takes the last (%(default)s)")
    add("--skip-bad", action="store_true", help="go on without files that cannot be used")
    add("--recipe", type=Path, metavar="FILE", help="TOML file of flags, such as recipes/model4.toml; those here override it")

    model = parser.add_argument_group("model")
    model.add_argument("--arch", default="vit_base_patch16_224", metavar="NAME",
                       help="any VisionTransformer, Beit or Eva of timm (%(default)s)")
    start = model.add_mutually_exclusive_group()
    start.add_argument("--weights", type=Path, metavar="FILE", help="pretrained weights instead of timm's from the hub")
    start.add_argument("--scratch", action="store_true", help="start from random weights")
    model.add_argument("--crop-pct", type=number(float, above=0, high=1), metavar="X",
                       help="share of a photo's shorter side seen in evaluation (the model's own, often 0.9)")
    model.add_argument("--head-init", choices=["random", "probe"], default="random",
                       help="probe: begin with logistic regression on the frozen features, drawn towards what the "
                            "pretrained head takes the images for (%(default)s)")
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
            help="put a part of one photo into another: 0.5 to 1; with --mixup, one of the two a batch (%(default)s: none)")
    augment("--label-smoothing", type=number(float, low=0, high=0.99), default=0, metavar="X",
            help="share of each label that all classes get alike: 0.1 (%(default)s)")

    add_training_flags(parser, optimizer="SAM around Adam", lr=3e-5, batch_size=32, epochs=10)
    return parser


@reports_errors
def main(argv=None):
    args = parse_with_recipe(get_args_parser(), sys.argv[1:] if argv is None else argv)
    args.sam = args.optimizer is None if args.sam is None else args.sam
    args.optimizer = args.optimizer or "adam"

    # After the arguments, so that --help and typing errors answer at once.
    import torch.nn.functional as F

    from datasets import images, shapes, transforms
    from engine import distributed
    from engine.inference import predict
    from engine.training import Run
    from models import vit

    run = Run(args)
    if run.finished:
        return 0

    # Data
    data = Path(args.data)
    if args.data == "demo":
        data = distributed.main_process_first(lambda: shapes.write_dataset(shapes.DEMO_DATA))
    folder = images.read_training_folder(data / "train", data / "classes.txt", args.skip_bad)
    fingerprint = folder.fingerprint()
    run.check_images(fingerprint, folder.root)
    to_fit, to_hold_out = images.stratified_holdout(folder.targets, args.holdout, args.seed)
    fit, held_out = folder.keep(to_fit), folder.keep(to_hold_out)

    # Model
    probing = args.head_init == "probe" and not run.saved
    if run.saved:
        model, told = vit.build(args.arch, len(folder.labels)), None  # its weights come with the rest of the state
    else:  # a probe learns from the pretrained head, if there is one, before it is replaced
        classes = None if probing and not args.scratch else len(folder.labels)
        model, told = vit.create(args.arch, classes, args.weights, args.scratch)
    if told and not probing:
        note(told)
    model.to(run.device)
    preprocessing = vit.preprocessing(model)
    if args.crop_pct:
        preprocessing["crop_pct"] = args.crop_pct
    plain = transforms.evaluation_transform(preprocessing)
    about = {}
    if probing:
        from models.probe import (  # SciPy takes a second that others need not wait
            Features,
            fit_probe,
            read_head,
            set_head,
        )

        started, own = time.monotonic(), []
        own_names, own_targets = distributed.shard(fit.names), distributed.shard(fit.targets)
        with decode.explaining_bad_images(folder.root, folder.names), distributed.detect_lost_ranks():
            if own_names:  # there may be fewer images than processes
                dataset = images.ImageDataset(fit.root, own_names, own_targets, plain)
                loader = run.loader(dataset, batch_size=args.batch_size)
                own = list(predict(Features(model), loader, run.device)[0].numpy())
            pretrained = None if args.scratch or told else read_head(model)
            probe = fit_probe(distributed.gather_shards(own), fit.targets, pretrained, args.seed)
        model.reset_classifier(len(folder.labels))
        set_head(model, probe)
        model.to(run.device)
        about["probe"] = {"C": probe.C, "trust": probe.prior_weight, "accuracy": probe.accuracy, "seconds": time.monotonic() - started}
        if run.first:
            print(f"head fitted to the frozen features: C {probe.C:g}, trust {probe.prior_weight:g}, "
                  + (f"accuracy {probe.accuracy:.3f} in cross-validation, " if probe.accuracy else "")
                  + f"{about['probe']['seconds']:.0f} s")
    about["model"] = vit.describe(model)
    model.train()

    # Training
    transform = transforms.training_transform(preprocessing, args.crop_scale, args.rand_augment, args.random_erasing)
    fit_dataset = images.ImageDataset(fit.root, fit.names + fit.names[:1], fit.targets + [NO_TARGET], transform, args.seed)
    mix, smoothing = None, args.label_smoothing
    if args.mixup or args.cutmix:
        mix, smoothing = transforms.MixupCutMix(args.mixup, args.cutmix, smoothing, len(folder.labels)), 0.0
    own_names, own_targets = distributed.shard(held_out.names), distributed.shard(held_out.targets)
    held_out_dataset = images.ImageDataset(held_out.root, own_names, own_targets, plain)
    held_out_loader = run.loader(held_out_dataset, batch_size=args.batch_size) if own_names else None

    def losses(model, batch):
        inputs, targets = batch
        logits = model(inputs)
        loss = F.cross_entropy(logits.float(), targets, ignore_index=NO_TARGET, label_smoothing=smoothing, reduction="sum")
        if mix:  # the class with the largest share is the one to name
            targets = targets.argmax(1).where(targets.any(1), NO_TARGET)
        return loss, (logits.argmax(1) == targets).sum()

    def evaluate(model, until_stopped):
        if not own_names:
            return 0.0, 0.0
        logits, targets = predict(model, held_out_loader, run.device, args.precision, until_stopped)
        return F.cross_entropy(logits, targets, reduction="sum").item(), (logits.argmax(1) == targets).sum().item()

    run.train(model, fit_dataset, fit.names, losses,
              fields=checkpoint_fields(args.arch, folder.labels, folder.class_names, preprocessing),
              fingerprint=fingerprint, title=f"{args.arch}, {len(folder.labels)} classes", about=about,
              parameters=vit.layer_groups(model, args.layer_decay) if args.layer_decay < 1 else None, mix=mix,
              evaluate=evaluate,
              held_out=len(held_out.names), explaining=lambda: decode.explaining_bad_images(folder.root, folder.names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
