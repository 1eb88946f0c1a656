"""Reproduce an accuracy from a checkpoint, and write the prediction for every image.

    python p1_eval.py p1_data/val pred.csv --checkpoint runs/headline/best.pt --json result.json
    python p1_eval.py p1_data/val --checkpoint runs/headline/best.pt --expect 0.942

On four GPUs of a machine, with the same result:

    torchrun --nproc-per-node 4 p1_eval.py p1_data/val pred.csv --checkpoint runs/headline/best.pt

IMAGES is a folder. Files named {class}_{id}.jpg, or in subfolders named by class, are scored if the model
knows the class; of others the predicted class is printed. CSV gets a row an image, sorted by name:
`filename,label`. The model runs in fp32. For p1_report.py, eval.json, eval.npz and pred.csv are left beside a
run's best.pt, unless an evaluation of more labelled images lies there.

Exit code: 0; 1 if the accuracy differs from --expect by more than --tolerance; 2 for bad input.
"""

import csv
import io
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path

from common.cli import ArgumentParser, note, number, one_line, reports_errors
from common.errors import BadInput
from common.files import nfc, refuse_unwritable, sha256, write_text, written_whole
from common.unfinished import Unfinished, identity_of


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("images", type=Path, metavar="IMAGES", help="folder of images, in one level of subfolders or none")
    add("csv", type=Path, nargs="?", metavar="CSV", help="where the predictions go; its folder is created")
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="best.pt of a training run")
    add("--json", type=Path, metavar="FILE",
        help="where the accuracy goes, overall and by class, and the predictions of unlabelled images")
    share = number(float, low=0, high=1)
    add("--top", type=number(int, low=1), metavar="N", help="there the N most probable classes of each, too")
    add("--expect", type=share, metavar="ACC", help="the accuracy that must come out")
    add("--tolerance", type=share, default=0.005, metavar="X", help="how closely (%(default)s)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=64, metavar="N",
        help="images at a time and rank; more need more memory (%(default)s)")
    add("--workers", type=number(int, low=0, high=256), metavar="N",
        help="processes that load images (one a core, at most 16)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU where there is one")
    add("--skip-bad", action="store_true", help="go on without files that cannot be used")
    return parser


def refuse_data_set(folder, labels):
    """Raise BadInput for the folder around train/ and val/, unless these are classes of the checkpoint."""
    val = folder / "val"
    whole = val.is_dir() and ((folder / "train").is_dir() or (folder / "classes.txt").is_file())
    if whole and "val" not in labels:
        raise BadInput(f"{folder} is a whole data set, not a folder of images: did you mean {val}?")


def known_labels(names, checkpoint, args):
    """Each image's label, None where the checkpoint knows none. BadInput if --expect has none at all."""
    from datasets.images import known_label

    known = {nfc(label): label for label in checkpoint.labels}
    labels = [known_label(name, known) for name in names]
    unlabelled = labels.count(None)
    if unlabelled:
        note(f"{unlabelled} of {len(names)} images carry no label that the checkpoint knows: not scored")
    if args.expect is not None and unlabelled == len(names):
        raise BadInput(f"--expect {args.expect}: no label of {args.images} is one that the checkpoint knows")
    return labels


def predict_all(checkpoint, names, args, device):
    """The logits, float32 (images, classes), of all images on every rank, and this rank's Unfinished.
    Collective."""
    import torch
    from tqdm import tqdm

    from datasets import decode, images, transforms
    from engine import distributed
    from engine.inference import predict_shards
    from engine.loader import Loader, loader_workers
    from models.vit import on_pixels

    distributed.init_process_group(device)
    local_names = distributed.shard(names)
    unfinished = Unfinished(
        output_of(args), distributed.world_size(), device.type, args.batch_size, torch.__version__,
        identity_of([checkpoint.path, *(args.images / name for name in local_names)]))
    local_names = local_names[len(unfinished.rows) * args.batch_size:]
    pixels = transforms.evaluation_pixels(checkpoint.preprocessing)
    dataset = images.ImageDataset(args.images, local_names, [0] * len(local_names), pixels)
    batch_images = max(1, min(args.batch_size, len(dataset)))
    batch_bytes = batch_images * math.prod(checkpoint.preprocessing["input_size"])
    loader = Loader(dataset, loader_workers(args.workers, batch_bytes), device, batch_size=args.batch_size)
    model = on_pixels(checkpoint.model.to(device), checkpoint.preprocessing)
    with decode.explaining_bad_images(args.images, names):
        logits = predict_shards(model, loader, device, progress=lambda batches: tqdm(
            batches, unit=" batches", disable=None if distributed.rank() == 0 else True),
                                unfinished=unfinished)
    distributed.destroy_process_group()
    if not logits.isfinite().all():
        raise BadInput(f"{args.checkpoint}: its weights give outputs that are not finite: it is damaged")
    return logits, unfinished


def output_of(args):
    """The file beside which this rank keeps what is finished; None if none is written."""
    from engine import distributed

    outputs = filter(None, (args.json, args.csv, run_folder(args) and run_folder(args) / "eval.json"))
    output = next(outputs, None)
    return output and output.with_name(f"{output.name}.{distributed.rank()}")


def run_folder(args):
    """The folder of the training run that the checkpoint is of, if it can be written; else None."""
    from engine.checkpointing import CONFIG

    run = args.checkpoint.resolve().parent
    return run if (run / CONFIG).exists() and os.access(run, os.W_OK) else None


def run_to_evaluate(args, labelled):
    """The `run_folder`, if an evaluation of so many labelled images belongs into it; else None.

    It does for best.pt, where none of more labelled images lies. A note says what is kept or replaced.
    """
    from engine.checkpointing import BEST

    run, name = run_folder(args), args.checkpoint.resolve().name
    if not run:
        return None
    try:
        before = int(json.loads((run / "eval.json").read_text(encoding="utf-8"))["labelled"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
        before = 0
    belongs = name == BEST and labelled >= max(before, 1)
    if before:
        this = f"has {labelled}" if name == BEST else f"is of {name}"
        note(f"{run / 'eval.json'} of {before} labelled images is {'replaced' if belongs else 'kept'}: this "
             f"evaluation {this}")
    return run if belongs else None


def as_csv(names, labels):
    """The predictions as CSV text: `filename,label`, then a row an image."""
    text = io.StringIO()
    for row in [("filename", "label"), *zip(names, labels)]:
        # csv quotes a line feed by itself, but not a carriage return, at which readers end a row, too
        quoting = csv.QUOTE_ALL if "\r" in "".join(row) else csv.QUOTE_MINIMAL
        csv.writer(text, lineterminator="\n", quoting=quoting).writerow(row)
    return text.getvalue()


def score(predictions, labels, checkpoint):
    """What goes into the JSON file, from the predicted and the true labels (None where there is none)."""
    from compare.statistics import wilson_interval

    right = Counter(label for prediction, label in zip(predictions, labels) if prediction == label)
    counts = Counter(labels)
    per_class = {label: {"name": name, "correct": right[label], "labelled": counts[label]}
                 for label, name in zip(checkpoint.labels, checkpoint.class_names)}
    correct, labelled = right.total(), counts.total() - counts[None]
    ci95 = list(wilson_interval(correct, labelled)) if labelled else None
    return {"accuracy": correct / labelled if labelled else None, "correct": correct, "labelled": labelled,
            "images": len(predictions), "ci95": ci95, "checkpoint_sha256": sha256(checkpoint.path),
            "per_class": per_class}


def save(args, names, labels, logits, checkpoint):
    """Write the files that are asked for, and for p1_report.py into the run's folder; returns the scores.

    They have `unlabelled`, where there are such images: their predicted class and its probability, by name;
    and with `--top` the `most_probable` classes of all.
    """
    import numpy as np
    import torch

    probabilities = logits.softmax(1)
    predictions = [checkpoint.labels[index] for index in logits.argmax(1)]
    result = score(predictions, labels, checkpoint)

    def most_probable(row, count):
        values, indices = map(torch.Tensor.tolist, row.topk(min(count, len(row))))
        return [{"label": checkpoint.labels[i], "name": checkpoint.class_names[i], "probability": value}
                for value, i in zip(values, indices)]

    unlabelled = {name: most_probable(row, 1)[0]
                  for name, label, row in zip(names, labels, probabilities) if label is None}
    if unlabelled:
        result["unlabelled"] = unlabelled
    if args.top:
        result["most_probable"] = {
            name: most_probable(row, args.top) for name, row in zip(names, probabilities)}
    run = run_to_evaluate(args, result["labelled"])
    for path in filter(None, (args.csv, run and run / "pred.csv")):
        write_text(path, as_csv(names, predictions))
    for path in filter(None, (args.json, run and run / "eval.json")):
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        # of a name's bytes that are not UTF-8, which JSON must be, this makes JSON's escapes
        write_text(path, text.encode("utf-8", "backslashreplace").decode())
    if run:
        targets = [-1 if label is None else checkpoint.labels.index(label) for label in labels]
        with written_whole(run / "eval.npz") as temporary:
            np.savez(temporary, names=names, targets=targets, probabilities=probabilities.numpy(),
                     labels=checkpoint.labels, class_names=checkpoint.class_names,
                     folder=str(args.images.resolve()))
    return result


def report(result, args):
    """Print predictions and the accuracy; returns the exit code, which is 1 where --expect is not met."""
    from datasets.decode import shortened

    lines = [one_line(f"{name}: {prediction['name']}, probability {prediction['probability']:.2f}")
             for name, prediction in result.get("unlabelled", {}).items()]
    print(*shortened(lines), sep="\n", end="\n" * bool(lines))
    if not result["labelled"]:
        print(f"{result['images']} images, none labelled")
        return 0
    low, high = result["ci95"]
    print(f"accuracy {result['accuracy']:.4f} ({result['correct']} of {result['labelled']} labelled images, "
          f"95 % interval {low:.3f} to {high:.3f})")
    if args.expect is None:
        return 0
    # 0.78 - 0.775 is a little more than 0.005 in floating point
    met = abs(result["accuracy"] - args.expect) <= args.tolerance + 1e-9
    print(f"{'' if met else 'not '}as expected: {args.expect} within {args.tolerance}")
    return 0 if met else 1


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_intermixed_args(argv)  # CSV may follow the flags
    if args.top and not args.json:
        raise BadInput("--top belongs to --json FILE, which lists them")

    # After the arguments, so that --help and typing errors answer at once.

    from datasets.images import image_names
    from engine import distributed
    from engine.device import keep_freed_memory, pick_device
    from models.checkpoint import open_checkpoint

    device = distributed.local_device(pick_device(args.device))
    keep_freed_memory(device)
    checkpoint = open_checkpoint(args.checkpoint)
    refuse_data_set(args.images, checkpoint.labels)
    written = [path for path in (args.csv, args.json) if path]
    names = image_names(args.images, args.skip_bad, written=written)
    labels = known_labels(names, checkpoint, args)
    refuse_unwritable(*written)
    logits, unfinished = predict_all(checkpoint, names, args, device)
    result = None
    if distributed.rank() == 0:  # which writes and reports
        result = save(args, names, labels, logits, checkpoint)
    unfinished.remove()
    return report(result, args) if result else 0


if __name__ == "__main__":
    sys.exit(main())
