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

from common.console import ArgumentParser, SaveEvery, number, remark, reports_errors
from common.errors import BadInput, Interrupted, TrainingStopped

DEMO_DATA = Path(__file__).resolve().parent / "data" / "demo"
WARMUP = 0.1  # of all steps
NO_TARGET = -100  # what cross_entropy ignores


class NotFinite(ArithmeticError):
    """A loss is inf or NaN."""


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

    add = parser.add_argument_group("optimization").add_argument
    add("--optimizer", choices=["adam", "adamw", "sgd"],
        help="without --sam, exactly this one; if neither is named, SAM around Adam")
    add("--sam", action=argparse.BooleanOptionalAction, help="put SAM around the optimizer (Adam if none is named)")
    add("--rho", type=number(float, low=0), default=0.05, metavar="X",
        help="how far SAM climbs: 0.02 to 0.2, ten times that with --adaptive (%(default)s)")
    add("--adaptive", action="store_true", help="ASAM: climb in units of each weight")
    add("--climb", choices=["process", "joint", "micro-batch"], default="process",
        help="whose gradient SAM climbs along: that of each process of torchrun, the joint one of all processes, or "
             "that of each batch of --accumulate (%(default)s)")
    add("--epochs", type=number(int, low=1, high=10**6), default=10, metavar="N",
        help="passes over the training images (%(default)s)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=32, metavar="N",
        help="images a forward pass and process (%(default)s)")
    add("--accumulate", type=number(int, low=1, high=10**6), default=1, metavar="N",
        help="batches a step (%(default)s)")
    add("--lr", type=number(float, low=0, high=1e30), default=3e-5, metavar="X",
        help="peak learning rate, between a linear warm-up and a cosine decay: 1e-5 to 3e-4 for pretrained weights, "
             "3e-4 to 2e-3 from scratch (%(default)s)")
    add("--ema", type=number(float, above=0, high=0.99999), metavar="DECAY",
        help="evaluate and keep the exponential average of the weights over about 1 / (1 - DECAY) steps: 0.9 to 0.9999")
    add("--precision", choices=["fp32", "bf16", "fp16"], default="fp32",
        help="number format of the forward and backward pass (%(default)s)")
    add("--on-nonfinite", choices=["stop", "skip"], default="stop",
        help="a step whose loss is inf or NaN stops the run, or is left out and counted (%(default)s)")

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=number(int, low=0, high=2**32 - 1), default=0, metavar="N",
        help="decides the split, the order and all chance (%(default)s)")
    add("--workers", type=number(int, low=0, high=256), metavar="N",
        help="processes that load images (one a core, at most 8)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="auto is the GPU where there is one")
    add("--deterministic", action="store_true",
        help="on a GPU, too, the same seed gives the same bits; slower there, and no difference on the CPU")
    add("--save-every", type=SaveEvery, metavar="N|Ns", help="save every N steps or N seconds too, not only each epoch")
    add("--resume", action="store_true", help="go on from last.pt in --output; start anew if there is none")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    args.sam = args.optimizer is None if args.sam is None else args.sam
    args.optimizer = args.optimizer or "adam"

    # After the arguments, so that --help and typing errors answer at once.
    import math
    import signal
    import time
    from contextlib import nullcontext
    from datetime import timedelta
    from itertools import islice

    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from common.files import write_text
    from datasets import images, shapes
    from engine import distributed, run_folder
    from engine.device import autocast, compute_deterministically, loader_workers, pick_device
    from engine.inference import predict
    from engine.randomness import ShuffledBatches, seed_everything, seed_step
    from engine.schedule import warmup_cosine
    from engine.signals import StopSignal, ignore_stop_signals
    from engine.state import TrainingState
    from models import vit
    from plots.curves import draw_curves, drawing_curves
    from sam import SAM

    settings = {name: str(value) if isinstance(value, (Path, SaveEvery)) else value
                for name, value in vars(args).items()}
    settings["processes"] = distributed.world_size()
    first = distributed.rank() == 0  # alone it writes and reports
    device = distributed.own_device(pick_device(args.device))
    saved = run_folder.find_run(args.output, args.resume)
    if first:
        run_folder.clean(args.output)
    if saved:
        run_folder.check_settings(settings, saved["settings"])
        if first:
            run_folder.mend(args.output, saved)
        if saved["resume"]["epoch"] == args.epochs:
            if first:
                draw_curves(saved["resume"]["history"], args.output / run_folder.CURVES)
                print(f"{args.output} is finished: {args.epochs} epochs. Raise --epochs to train on.")
            return 0
    elif args.resume:
        remark(f"{args.output} holds no {run_folder.LAST}: starting anew")
    if args.deterministic:
        compute_deterministically()
    if device.type == "cpu" and args.precision != "fp32" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        remark(f"this processor has no instructions for {args.precision}: fp32 is many times faster here")
    distributed.connect(device)
    seed_everything(args.seed)

    # Data
    if args.data == "demo":
        data = distributed.one_after_the_other(lambda: shapes.write_dataset(DEMO_DATA))
    else:
        data = Path(args.data)
    folder = images.read_training_folder(data / "train", data / "classes.txt", args.skip_bad)
    fingerprint = folder.fingerprint()
    if saved and saved["resume"]["images"] != fingerprint:
        raise BadInput(f"--resume: {folder.root} holds other images than when the run began: start a new run")
    to_fit, to_hold_out = images.split_held_out(folder.targets, args.holdout, args.seed)
    fit, held_out = folder.keep(to_fit), folder.keep(to_hold_out)

    # Model
    if saved:
        model, told = vit.build(args.arch, len(folder.labels)), None  # its weights come with the rest of the state
    else:
        model, told = vit.create(args.arch, len(folder.labels), args.weights, args.scratch)
    if told:
        remark(told)
    model.to(device).train()
    preprocessing = vit.preprocessing(model)

    # Loaders. Their own generators keep the global random stream free for the model.
    workers = loader_workers(args.workers)
    loading = {"num_workers": workers, "pin_memory": device.type == "cuda", "persistent_workers": workers > 0,
               "worker_init_fn": ignore_stop_signals}
    batches = ShuffledBatches(len(fit.names), args.batch_size, args.seed,
                              distributed.rank(), distributed.world_size())
    fit_loader = DataLoader(
        images.ImageDataset(fit.root, fit.names + fit.names[:1], fit.targets + [NO_TARGET],
                            images.training_transform(preprocessing), args.seed),
        batch_sampler=batches, generator=torch.Generator(), **loading)
    own_names, own_targets = distributed.share(held_out.names), distributed.share(held_out.targets)
    held_out_loader = DataLoader(
        images.ImageDataset(held_out.root, own_names, own_targets, images.evaluation_transform(preprocessing)),
        batch_size=args.batch_size, generator=torch.Generator(), **loading) if own_names else None

    # Optimization
    trained = distributed.parallel(model)
    base_class, options = {"adam": (torch.optim.Adam, {}), "adamw": (torch.optim.AdamW, {}),
                           "sgd": (torch.optim.SGD, {"momentum": 0.9})}[args.optimizer]
    if args.sam:
        optimizer = SAM(model.parameters(), base_class, rho=args.rho, adaptive=args.adaptive, model=trained,
                        synchronised=args.climb == "joint", lr=args.lr, **options)
    else:
        optimizer = base_class(model.parameters(), lr=args.lr, **options)
    steps_per_epoch = math.ceil(len(batches) / args.accumulate)
    total_steps = args.epochs * steps_per_epoch
    images_per_step = args.batch_size * distributed.world_size() * args.accumulate
    schedule = warmup_cosine(total_steps, int(WARMUP * total_steps))
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")

    # State
    state = TrainingState(model, optimizer, scaler, settings, fingerprint, args.ema)
    if saved:
        state.load_state_dict(saved)
        del saved  # a second copy of all tensors
    distributed.check_agreement([fingerprint, state.epoch, state.step])
    saver = run_folder.Saver(
        args.output, state, vit.checkpoint_fields(args.arch, folder.labels, folder.class_names, preprocessing),
        args.save_every)

    def closure_over(group, size):
        """What a step calls, twice with SAM: the gradient of the loss over a group of batches, divided by `size`.

        Its return value is (summed loss, correct) over all processes.
        """
        calls = 0

        def closure():
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            totals = torch.zeros(2, dtype=torch.float64, device=device)
            for inputs, targets in distributed.averaging_last(trained, group):
                with autocast(device, args.precision):
                    logits = trained(inputs)
                    loss = F.cross_entropy(logits.float(), targets, ignore_index=NO_TARGET, reduction="sum")
                scaler.scale(loss * distributed.world_size() / size).backward()
                totals += torch.stack([loss.detach(), (logits.argmax(1) == targets).sum()])
            loss, correct = distributed.summed(totals).tolist()
            # in fp16 a gradient that overflowed spoils the climb, and the scaler will skip the step
            if not math.isfinite(loss) and (calls == 1 or not scaler.is_enabled()):
                raise NotFinite
            return loss, correct

        return closure

    def groups_of(batches, size):
        batches = iter(batches)
        while group := list(islice(batches, size)):
            yield group

    def save_or_stop(due=False):
        """In all processes together: save if one is due, and save and end if a signal has come to any of them."""
        number, due = distributed.largest([stop.number, int(due and first)], device)
        if number or due:
            saver.save()
        if number:
            distributed.gathered(None)  # the end of one process makes torchrun end the others, which may still be saving
            raise Interrupted(f"stopped by {signal.Signals(number).name} {run_folder.after(state.epoch, state.step)}: "
                              f"--resume goes on from {args.output / run_folder.LAST}", number)

    name = f"SAM({args.optimizer})" if args.sam else args.optimizer
    if first:
        print(f"{args.arch}, {name}, {args.precision} on {device.type}: {len(fit.names)} images to train on, "
              f"{len(held_out.names)} held out, {len(folder.labels)} classes -> {args.output}")

    images_before = state.epoch * len(fit.names) + min(state.step * images_per_step, len(fit.names))
    bar = tqdm(total=args.epochs * len(fit.names), initial=images_before, unit=" images",
               disable=None if first else True, dynamic_ncols=True)
    run_started = time.monotonic()
    curves = drawing_curves(state.history, args.output / run_folder.CURVES) if first else nullcontext()
    with StopSignal() as stop, images.explaining_bad_images(folder.root, folder.names), curves, bar, saver.rescuing():
        while state.epoch < args.epochs:
            bar.set_description(f"epoch {state.epoch + 1}/{args.epochs}")
            batches.epoch, batches.start = state.epoch, state.step * args.accumulate
            totals = state.totals
            epoch_started = time.monotonic() - totals["seconds"]
            for group in groups_of(fit_loader, args.accumulate):
                seed_step(args.seed, distributed.rank(), state.epoch, state.step)
                group = [(inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True))
                         for inputs, targets in group]
                seen = state.step * images_per_step
                size = min(images_per_step, len(fit.names) - seen)
                totals["lr"] = args.lr * schedule(state.epoch * steps_per_epoch + state.step)
                for param_group in optimizer.param_groups:
                    param_group["lr"] = totals["lr"]
                try:
                    if not args.sam:
                        results = [closure_over(group, size)()]
                        scaler.step(optimizer)
                    elif args.climb == "micro-batch":
                        results = optimizer.m_sharpness_step([closure_over([b], size) for b in group], scaler)
                    else:
                        results = [optimizer.step(closure_over(group, size), scaler)]
                    scaler.update()
                    state.count_step(size, *map(sum, zip(*results)))
                except NotFinite:
                    saver.stop_if_spoilt()
                    told = f"the loss is not finite in step {state.step + 1} of epoch {state.epoch + 1}"
                    names = [fit.names[index] for index in batches.order()[seen:seen + size]]
                    if args.on_nonfinite == "stop":
                        saver.save()
                        raise TrainingStopped(f"{told}: {saver.kept()}; start a new run with a smaller --lr, or pass "
                                              "--resume --on-nonfinite skip to leave out this batch:", names) from None
                    state.count_skipped_step()
                    bar.write(f"note: {told}: skipped {', '.join(names)}", sys.stderr)
                optimizer.zero_grad()
                totals["seconds"] = time.monotonic() - epoch_started
                if totals["images"]:
                    bar.set_postfix(loss=f"{totals['loss'] / totals['images']:.3f}",
                                    accuracy=f"{totals['correct'] / totals['images']:.3f}", refresh=False)
                bar.update(size)
                save_or_stop(saver.due())

            saver.stop_if_spoilt()
            counted = totals["images"] or math.nan  # all steps may have been skipped
            row = {"epoch": state.epoch + 1, "lr": totals["lr"],
                   "train_loss": totals["loss"] / counted, "train_accuracy": totals["correct"] / counted,
                   "holdout_loss": None, "holdout_accuracy": None, "skipped_steps": totals["skipped_steps"],
                   "images_per_second": totals["images"] / totals["seconds"], "seconds": totals["seconds"]}
            if held_out.names:
                sums = torch.zeros(2, dtype=torch.float64)
                if held_out_loader:
                    logits, targets = predict(state.scored, held_out_loader, device, args.precision,
                                              stop.until_it_comes)
                    sums += torch.stack([F.cross_entropy(logits, targets, reduction="sum"),
                                         (logits.argmax(1) == targets).sum()])
                sums = distributed.summed(sums.to(device)) / len(held_out.names)
                row["holdout_loss"], row["holdout_accuracy"] = sums.tolist()
                save_or_stop()  # before the row counts: a signal may have cut the evaluation short
            is_best = state.finish_epoch(row, score=row["holdout_accuracy"] or 0.0)
            saver.save()
            if is_best:
                saver.save_best()
            saver.save_metrics()

            if not first:
                continue
            pace = (time.monotonic() - run_started) / max(1, state.epoch * len(fit.names) - images_before)
            bar.write(f"epoch {state.epoch}/{args.epochs}  loss {row['train_loss']:.3f}  "
                      f"accuracy {row['train_accuracy']:.3f}"
                      + (f"  held out {row['holdout_accuracy']:.3f}" if held_out.names else "")
                      + f"  {row['images_per_second']:.0f} images/s"
                      + f"  {timedelta(seconds=round(pace * (args.epochs - state.epoch) * len(fit.names)))} left")

    distributed.disconnect()
    if not first:
        return 0
    chosen = f"epoch {state.best_epoch}" if held_out.names else "the last epoch"
    print(f"done: {args.output / run_folder.BEST} holds {chosen}"
          + (f", accuracy {state.best:.3f} on the part held out" if held_out.names else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
