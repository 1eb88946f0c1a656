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
from pathlib import Path

from common.console import ArgumentParser, number, remark, reports_errors
from common.training_flags import add_training_flags

DEMO_DATA = Path(__file__).resolve().parent / "data" / "demo"
NO_TARGET = -100  # what cross_entropy ignores


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("data and output").add_argument
    add("--data", required=True, metavar="DIR", help="folder with train/; or `demo`: images drawn in seconds")
    add("--output", type=Path, required=True, metavar="DIR", help="receives checkpoints, metrics, settings and curves")
    add("--holdout", type=number(float, low=0, high=0.9), default=0.1, metavar="FRACTION",
        help="stratified part of train/ that chooses the epoch; 0 trains on all and takes the last (%(default)s)")
    add("--skip-bad", action="store_true", help="go on without files that cannot be used")

    model = parser.add_argument_group("model")
    model.add_argument("--arch", default="vit_base_patch16_224", metavar="NAME",
                       help="any VisionTransformer, Beit or Eva of timm (%(default)s)")
    start = model.add_mutually_exclusive_group()
    start.add_argument("--weights", type=Path, metavar="FILE", help="pretrained weights instead of timm's from the hub")
    start.add_argument("--scratch", action="store_true", help="start from random weights")

    add_training_flags(parser, optimizer="SAM around Adam", lr=3e-5, batch_size=32, epochs=10)
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    args.sam = args.optimizer is None if args.sam is None else args.sam
    args.optimizer = args.optimizer or "adam"

    # After the arguments, so that --help and typing errors answer at once.
    import torch.nn.functional as F

    from datasets import images, shapes
    from engine import distributed
    from engine.inference import predict
    from engine.training import Run
    from models import vit

    run = Run(args)
    if run.finished:
        return 0

    # Data
    data = distributed.one_after_the_other(lambda: shapes.write_dataset(DEMO_DATA)) if args.data == "demo" else Path(args.data)
    folder = images.read_training_folder(data / "train", data / "classes.txt", args.skip_bad)
    fingerprint = folder.fingerprint()
    run.check_images(fingerprint, folder.root)
    to_fit, to_hold_out = images.split_held_out(folder.targets, args.holdout, args.seed)
    fit, held_out = folder.keep(to_fit), folder.keep(to_hold_out)

    # Model
    if run.saved:
        model, told = vit.build(args.arch, len(folder.labels)), None  # its weights come with the rest of the state
    else:
        model, told = vit.create(args.arch, len(folder.labels), args.weights, args.scratch)
    if told:
        remark(told)
    model.to(run.device).train()
    preprocessing = vit.preprocessing(model)

    # Training
    fit_dataset = images.ImageDataset(fit.root, fit.names + fit.names[:1], fit.targets + [NO_TARGET],
                                      images.training_transform(preprocessing), args.seed)
    own_names, own_targets = distributed.share(held_out.names), distributed.share(held_out.targets)
    held_out_loader = run.loader(
        images.ImageDataset(held_out.root, own_names, own_targets, images.evaluation_transform(preprocessing)),
        batch_size=args.batch_size) if own_names else None

    def losses(model, batch):
        inputs, targets = batch
        logits = model(inputs)
        loss = F.cross_entropy(logits.float(), targets, ignore_index=NO_TARGET, reduction="sum")
        return loss, (logits.argmax(1) == targets).sum()

    def evaluate(model, until_stopped):
        if not own_names:
            return 0.0, 0.0
        logits, targets = predict(model, held_out_loader, run.device, args.precision, until_stopped)
        return F.cross_entropy(logits, targets, reduction="sum").item(), (logits.argmax(1) == targets).sum().item()

    run.train(model, fit_dataset, fit.names, losses,
              fields=vit.checkpoint_fields(args.arch, folder.labels, folder.class_names, preprocessing),
              fingerprint=fingerprint, title=f"{args.arch}, {len(folder.labels)} classes", evaluate=evaluate,
              held_out=len(held_out.names), explaining=lambda: images.explaining_bad_images(folder.root, folder.names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
