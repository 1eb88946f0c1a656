"""Reproduce an accuracy from a checkpoint, and write the prediction for every image.

    python p1_eval.py p1_data/val pred.csv --checkpoint runs/headline/best.pt --json result.json
    python p1_eval.py p1_data/val --checkpoint runs/headline/best.pt --expect 0.942

On four GPUs of a machine, with the same result:

    torchrun --nproc-per-node 4 p1_eval.py p1_data/val pred.csv --checkpoint runs/headline/best.pt

IMAGES is a folder; names may be anything. Files named {class}_{id}.jpg, or in subfolders named by class, are scored if
the checkpoint knows the class. CSV gets one row an image, sorted by name: `filename,label`. The model runs in fp32.

Exit code: 0; 1 if the accuracy differs from --expect by more than --tolerance; 2 for bad input.
"""

import csv
import io
import json
import os
import sys
from pathlib import Path

from common.cli import ArgumentParser, note, number, reports_errors
from common.errors import BadInput
from common.files import refuse_unwritable, sha256, write_text, written_whole


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("images", type=Path, metavar="IMAGES", help="folder of images, in one level of subfolders or none")
    add("csv", type=Path, nargs="?", metavar="CSV", help="where the predictions go; its folder is created")
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="best.pt of a training run")
    add("--json", type=Path, metavar="FILE", help="where the accuracy goes, overall and by class")
    add("--expect", type=number(float, low=0, high=1), metavar="ACC", help="the accuracy that must come out")
    add("--tolerance", type=number(float, low=0, high=1), default=0.005, metavar="X", help="how closely (%(default)s)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=64, metavar="N",
        help="images at a time and process; more need more memory (%(default)s)")
    add("--workers", type=number(int, low=0, high=256), metavar="N",
        help="processes that load images (one a core, at most 8)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="auto is the GPU where there is one")
    add("--skip-bad", action="store_true", help="go on without files that cannot be used")
    return parser


def as_csv(names, labels):
    """The predictions as CSV text: `filename,label`, then a row an image."""
    text = io.StringIO()
    for row in [("filename", "label"), *zip(names, labels)]:
        # csv quotes a line feed by itself, but not a carriage return, at which readers end a row, too
        quoting = csv.QUOTE_ALL if "\r" in "".join(row) else csv.QUOTE_MINIMAL
        csv.writer(text, lineterminator="\n", quoting=quoting).writerow(row)
    return text.getvalue()


def score(predicted, true, checkpoint):
    """What goes into the JSON file, from the predicted and the true labels; None stands for an unlabelled image."""
    from compare.statistics import wilson_interval  # brings NumPy, which --help need not wait for

    per_class = {label: {"name": name, "correct": 0, "labelled": 0}
                 for label, name in zip(checkpoint.labels, checkpoint.class_names)}
    for guess, label in zip(predicted, true):
        if label is not None:
            per_class[label]["labelled"] += 1
            per_class[label]["correct"] += guess == label
    correct = sum(row["correct"] for row in per_class.values())
    labelled = sum(row["labelled"] for row in per_class.values())
    return {"accuracy": correct / labelled if labelled else None, "correct": correct, "labelled": labelled,
            "images": len(predicted), "ci95": list(wilson_interval(correct, labelled)) if labelled else None,
            "checkpoint_sha256": sha256(checkpoint.path), "per_class": per_class}


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_intermixed_args(argv)  # CSV may follow the flags

    # After the arguments, so that --help and typing errors answer at once.
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from datasets import decode, images, transforms
    from engine import distributed
    from engine.checkpointing import CONFIG
    from engine.device import loader_workers, pick_device
    from engine.inference import predict
    from models.checkpoint import open_checkpoint
    from models.vit import Normalised

    device = distributed.local_device(pick_device(args.device))
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32 on a GPU, too
    checkpoint = open_checkpoint(args.checkpoint)
    names = images.usable_files(args.images, args.skip_bad)
    known = set(checkpoint.labels)
    true = [label if label in known else None for label in map(images.label_of, names)]
    labelled = sum(label is not None for label in true)
    if labelled < len(names):
        note(f"{len(names) - labelled} of {len(names)} images carry no label that the checkpoint knows: not scored")
    if args.expect is not None and not labelled:
        raise BadInput(f"--expect {args.expect}: no image in {args.images} carries a label that the checkpoint knows")

    refuse_unwritable(*filter(None, (args.csv, args.json)))

    distributed.init_process_group(device)
    first = distributed.rank() == 0  # alone it writes and reports
    own_names, own = distributed.shard(names), []
    dataset = images.ImageDataset(args.images, own_names, [0] * len(own_names),
                                  transforms.evaluation_pixels(checkpoint.preprocessing))
    with decode.explaining_bad_images(args.images, names), distributed.detect_lost_ranks():
        if own_names:  # there may be fewer images than processes
            workers = loader_workers(args.workers)
            loader = DataLoader(dataset, batch_size=args.batch_size, num_workers=workers, pin_memory=device.type == "cuda")
            predictor = Normalised(checkpoint.model, checkpoint.preprocessing).to(device)
            outputs, _ = predict(predictor, loader, device, progress=lambda batches: tqdm(
                batches, unit=" batches", disable=None if first else True))
            own = list(outputs.numpy())
        logits = torch.from_numpy(np.stack(distributed.gather_shards(own)))
    distributed.destroy_process_group()
    if not logits.isfinite().all():
        raise BadInput(f"{args.checkpoint}: its weights give outputs that are not finite: it is damaged")
    if not first:
        return 0
    predicted = [checkpoint.labels[index] for index in logits.argmax(1)]

    result = score(predicted, true, checkpoint)
    predictions, scores = as_csv(names, predicted), json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if args.csv:
        write_text(args.csv, predictions)
    if args.json:
        write_text(args.json, scores)
    run = args.checkpoint.resolve().parent
    if (run / CONFIG).exists() and os.access(run, os.W_OK):
        write_text(run / "eval.json", scores)
        write_text(run / "pred.csv", predictions)
        with written_whole(run / "eval.npz") as temporary:
            np.savez(temporary, names=names, probabilities=logits.softmax(1).numpy(), labels=checkpoint.labels,
                     targets=[-1 if label is None else checkpoint.labels.index(label) for label in true],
                     class_names=checkpoint.class_names, folder=str(args.images.resolve()))

    if not labelled:
        print(f"{len(names)} images, none labelled")
        return 0
    low, high = result["ci95"]
    print(f"accuracy {result['accuracy']:.4f} ({result['correct']} of {labelled} labelled images, "
          f"95 % interval {low:.3f} to {high:.3f})")
    if args.expect is not None:
        # 1e-9, because 0.78 - 0.775 is a little more than 0.005 in floating point
        if abs(result["accuracy"] - args.expect) > args.tolerance + 1e-9:
            print(f"not as expected: {args.expect} within {args.tolerance}")
            return 1
        print(f"as expected: {args.expect} within {args.tolerance}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
