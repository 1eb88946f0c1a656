"""A training run: from its arguments to what it leaves in the output folder. It knows no model and no kind of data.

`p1_train.py` and `p2_train.py` give it a model, a data set, a loss, and a way to evaluate; the arguments are those of
`engine.flags`. All that makes a run durable is here: it can be stopped, killed and resumed at any step.
"""

import math
import signal
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from common.cli import SaveEvery, note
from common.errors import BadInput, Interrupted, TrainingStopped
from engine import checkpointing, distributed
from engine.device import (
    autocast,
    compute_deterministically,
    has_instructions_for,
    loader_workers,
    peak_memory,
    pick_device,
)
from engine.flags import optimizer_name
from engine.schedule import warmup_cosine
from engine.seeding import ShuffledBatches, seed_everything, seed_step
from engine.signals import StopSignal, ignore_stop_signals
from engine.state import TrainingState
from plots.curves import draw_curves, drawing_curves
from sam import SAM

WARMUP = 0.1  # of all steps


class NotFinite(ArithmeticError):
    """A loss is inf or NaN."""


class Run:
    """A run of training, on one process or several.

    Attributes:
        args: the parsed arguments.
        settings: all of them as plain values, with the number of processes.
        first: whether this process is the first one, which alone writes and reports.
        device: a torch.device.
        saved: the saved state to go on from, None for a new run.
        finished: whether nothing is left to do.
    """

    def __init__(self, args):
        self.args = args
        self.settings = {name: str(value) if isinstance(value, (Path, SaveEvery)) else value
                         for name, value in vars(args).items()}
        self.settings["processes"] = distributed.world_size()
        self.first = distributed.rank() == 0
        self.device = distributed.local_device(pick_device(args.device))
        self.saved = checkpointing.find_run(args.output, args.resume)
        if self.first:
            checkpointing.clean(args.output)
        if self.saved:
            checkpointing.check_settings(self.settings, self.saved["settings"])
            if self.first:
                checkpointing.mend(args.output, self.saved)
        elif args.resume:
            note(f"{args.output} holds no {checkpointing.LAST}: starting anew")
        self.finished = bool(self.saved) and self.saved["resume"]["epoch"] == args.epochs
        if self.finished and self.first:
            draw_curves(self.saved["resume"]["history"], args.output / checkpointing.CURVES)
            print(f"{args.output} is finished: {args.epochs} epochs. Raise --epochs to train on.")
        if not self.finished:
            self._connect()

    def _connect(self):
        args = self.args
        if args.deterministic:
            compute_deterministically()
        if self.device.type == "cpu" and not has_instructions_for(args.precision):
            note(f"this processor has no instructions for {args.precision}: fp32 is many times faster here")
        distributed.init_process_group(self.device)
        seed_everything(args.seed)

    def check_images(self, fingerprint, where):
        """Refuse to go on where the data is not that of before. Raises BadInput."""
        if self.saved and self.saved["resume"]["images"] != fingerprint:
            raise BadInput(f"--resume: {where} holds other images, or captions, than when the run began: start a new run")

    def loader(self, dataset, **options):
        """A DataLoader with the run's workers. Its own generator keeps the global random stream free for the model."""
        workers = loader_workers(self.args.workers)
        return torch.utils.data.DataLoader(
            dataset, generator=torch.Generator(), num_workers=workers, pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0, worker_init_fn=ignore_stop_signals,
            multiprocessing_context="fork" if workers else None, **options)  # forked ones share datasets.cache

    def train(self, model, dataset, names, losses, *, fields, fingerprint, title, about, parameters=None, mix=None,
              evaluate=None, held_out=0, collate=None, explaining=nullcontext):
        """Train, from the saved state if there is one, to the last epoch.

        Args:
            model: in training mode, on the device.
            dataset: items by the keys of `ShuffledBatches`; the last one, after those of `names`, stands for no image.
            names: of the training images.
            losses: (trained model, batch on the device) -> (loss, correct), the sums over the batch's images, tensors.
            fields: what checkpoints hold besides the state.
            fingerprint: of the training data.
            title: what is trained, for the screen.
            about: what config.json says of it besides the settings, a dict of plain values. A run that goes on keeps
                what it began with.
            parameters: groups for the optimizer, if not all alike. A group's `lr_scale` multiplies its learning rate.
            mix: batch on the device -> batch, once before a step's passes.
            evaluate: (model, wrapper for its loader) -> (loss, correct), the sums over this process's share of the
                `held_out` images; None where none is held out.
            collate: of the batches of `dataset`, if not the default one.
            explaining: a context manager that explains images that cannot be read.
        """
        args, device, first = self.args, self.device, self.first
        batches = ShuffledBatches(len(names), args.batch_size, args.seed, distributed.rank(), distributed.world_size())
        loader = self.loader(dataset, batch_sampler=batches, collate_fn=collate)

        # Optimization
        trained = distributed.data_parallel(model)
        base_class, options = {"adam": (torch.optim.Adam, {}), "adamw": (torch.optim.AdamW, {}),
                               "sgd": (torch.optim.SGD, {"momentum": 0.9})}[args.optimizer]
        parameters = parameters or model.parameters()
        if args.sam:
            optimizer = SAM(parameters, base_class, rho=args.rho, adaptive=args.adaptive, model=trained,
                            synchronised=args.climb == "joint", lr=args.lr, **options)
        else:
            optimizer = base_class(parameters, lr=args.lr, **options)
        steps_per_epoch = math.ceil(len(batches) / args.accumulate)
        total_steps = args.epochs * steps_per_epoch
        images_per_step = args.batch_size * distributed.world_size() * args.accumulate
        schedule = warmup_cosine(total_steps, int(WARMUP * total_steps))
        scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")

        # State
        state = TrainingState(model, optimizer, scaler, self.settings, fingerprint, about, args.ema)
        if self.saved:
            state.load_state_dict(self.saved)
            self.saved = None  # a second copy of all tensors
        distributed.check_agreement([fingerprint, state.epoch, state.step])
        saver = checkpointing.Saver(args.output, state, fields, args.save_every)

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
                for batch in distributed.no_sync_until_last(trained, group):
                    state.totals["passes"] += 1
                    with autocast(device, args.precision):
                        loss, correct = losses(trained, batch)
                    scaler.scale(loss * distributed.world_size() / size).backward()
                    totals += torch.stack([loss.detach(), correct])
                loss, correct = distributed.all_reduce_sum(totals).tolist()
                # in fp16 a gradient that overflowed spoils the climb, and the scaler will skip the step
                if not math.isfinite(loss) and (calls == 1 or not scaler.is_enabled()):
                    raise NotFinite
                return loss, correct

            return closure

        def save_or_stop(due=False):
            """In all processes together: save if one is due, and save and end if a signal has come to any of them."""
            number, due = distributed.all_reduce_max([stop.number, int(due and first)], device)
            if number or due:
                saver.save()
            if number:
                distributed.all_gather(None)  # the end of one process makes torchrun end the others, which may still be saving
                raise Interrupted(f"stopped by {signal.Signals(number).name} {checkpointing.after(state.epoch, state.step)}: "
                                  f"--resume goes on from {args.output / checkpointing.LAST}", number)

        if first:
            print(f"{title}, {optimizer_name(self.settings)}, {args.precision} on {device.type}: {len(names)} images to train on, "
                  f"{held_out} held out -> {args.output}")

        images_before = state.epoch * len(names) + min(state.step * images_per_step, len(names))
        bar = tqdm(total=args.epochs * len(names), initial=images_before, unit=" images",
                   disable=None if first else True, dynamic_ncols=True)
        run_started = time.monotonic()
        curves = drawing_curves(state.history, args.output / checkpointing.CURVES) if first else nullcontext()
        with StopSignal() as stop, explaining(), curves, bar, saver.rescuing():
            while state.epoch < args.epochs:
                bar.set_description(f"epoch {state.epoch + 1}/{args.epochs}")
                batches.epoch, batches.start = state.epoch, state.step * args.accumulate
                totals = state.totals
                epoch_started = time.monotonic() - totals["seconds"]
                for group in groups_of(loader, args.accumulate):
                    seed_step(args.seed, distributed.rank(), state.epoch, state.step)
                    group = [moved(batch, device) for batch in group]
                    if mix:
                        group = [mix(*batch) for batch in group]
                    seen = state.step * images_per_step
                    size = min(images_per_step, len(names) - seen)
                    totals["lr"] = args.lr * schedule(state.epoch * steps_per_epoch + state.step)
                    for param_group in optimizer.param_groups:
                        param_group["lr"] = totals["lr"] * param_group.get("lr_scale", 1)
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
                        spoilt = [names[index] for index in batches.order()[seen:seen + size]]
                        if args.on_nonfinite == "stop":
                            saver.save()
                            raise TrainingStopped(f"{told}: {saver.kept()}; start a new run with a smaller --lr, or pass "
                                                  "--resume --on-nonfinite skip to leave out this batch:",
                                                  spoilt) from None
                        state.count_skipped_step()
                        bar.write(f"note: {told}: skipped {', '.join(spoilt)}", sys.stderr)
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
                       "images_per_second": totals["images"] / totals["seconds"], "seconds": totals["seconds"],
                       "passes": totals["passes"], "peak_memory_mib": peak_memory(device) / 2**20}
                if held_out:
                    sums = torch.tensor(evaluate(state.scored, stop.until_it_comes), dtype=torch.float64, device=device)
                    row["holdout_loss"], row["holdout_accuracy"] = (distributed.all_reduce_sum(sums) / held_out).tolist()
                    save_or_stop()  # before the row counts: a signal may have cut the evaluation short
                is_best = state.finish_epoch(row, score=row["holdout_accuracy"] or 0.0)
                saver.save()
                if is_best:
                    saver.save_best()
                saver.save_metrics()

                if not first:
                    continue
                pace = (time.monotonic() - run_started) / max(1, state.epoch * len(names) - images_before)
                bar.write(f"epoch {state.epoch}/{args.epochs}  loss {row['train_loss']:.3f}  "
                          f"accuracy {row['train_accuracy']:.3f}"
                          + (f"  held out {row['holdout_accuracy']:.3f}" if held_out else "")
                          + f"  {row['images_per_second']:.0f} images/s"
                          + f"  {timedelta(seconds=round(pace * (args.epochs - state.epoch) * len(names)))} left")

        distributed.destroy_process_group()
        if first:
            chosen = f"epoch {state.best_epoch}" if held_out else "the last epoch"
            print(f"done: {args.output / checkpointing.BEST} holds {chosen}"
                  + (f", accuracy {state.best:.3f} on the part held out" if held_out else ""))


def groups_of(batches, size):
    """Lists of `size` batches, the last one perhaps shorter."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def moved(batch, device):
    """A batch, nested lists of tensors, on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    return [moved(part, device) for part in batch]
