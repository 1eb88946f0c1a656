"""Around each step of training: seeds, learning rate, counting, progress, saving, stopping, scoring.

    with Loop(state, saver, sampler, names, args, device) as loop:
        for _ in loop.epochs():
            for batches in loop.steps(loader):
                loop.end_step(*take_step(batches, loop.global_batch_size))
            loop.end_epoch(evaluate, held_out)
"""

import contextlib
import math
import signal
import sys
import time
from datetime import timedelta
from itertools import islice

import torch
from tqdm import tqdm

from common.errors import Interrupted, TrainingStopped
from engine import distributed
from engine.checkpointing import BEST, CURVES, LAST, position_in_words
from engine.device import peak_memory, to_device
from engine.schedule import warmup_cosine
from engine.seeding import seed_step
from engine.signals import StopSignal
from plots.curves import drawing_curves

WARMUP = 0.1  # of all steps
LINE_EVERY = 30  # seconds, where a log file or a pipe shows no progress bar


class Loop:
    """The rest of a training loop, for one rank or several. Each of its methods is Collective.

    On entering, SIGINT and SIGTERM are noted, to be acted upon at the end of a step. On leaving, whatever the
    reason, the curves are drawn and what can be saved is.

    Args:
        state: an `engine.state.TrainingState`.
        saver: its `engine.checkpointing.Saver`.
        sampler: the `engine.seeding.ShuffledBatches` of the loader.
        names: of the training images.
        args: `accumulate`, `batch_size`, `epochs`, `lr`, `on_nonfinite`, `output`, `sam` and `seed`.
        device: a torch.device.
    """

    def __init__(self, state, saver, sampler, names, args, device):
        self.state, self.saver, self.sampler, self.names = state, saver, sampler, names
        self.args, self.device = args, device
        self.is_main = distributed.rank() == 0
        self.images_per_step = args.batch_size * distributed.world_size() * args.accumulate
        self.steps_per_epoch = math.ceil(len(names) / self.images_per_step)
        total_steps = args.epochs * self.steps_per_epoch
        self.schedule = warmup_cosine(total_steps, int(WARMUP * total_steps))
        self.held_out = 0

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.callback(self.saver.release)
            self.stop = stack.enter_context(StopSignal())
            if self.is_main:
                stack.enter_context(drawing_curves(self.state.history, self.args.output / CURVES))
            self.bar = stack.enter_context(tqdm(
                total=self.args.epochs * len(self.names), initial=self._images_done(), unit=" images",
                disable=None if self.is_main else True, dynamic_ncols=True))
            stack.enter_context(self.saver.rescuing())
            self._exit = stack.pop_all().__exit__
        self.started, self.images_before = time.monotonic(), self._images_done()
        self.last_line = self.started
        return self

    def _images_done(self):
        in_this_epoch = min(self.state.step * self.images_per_step, len(self.names))
        return self.state.epoch * len(self.names) + in_this_epoch

    def __exit__(self, kind, error, traceback):
        self._exit(kind, error, traceback)
        if kind is None:
            distributed.destroy_process_group()
            if self.is_main:
                self._print_end()

    def epochs(self):
        """The number of each epoch that is left, from 0."""
        while self.state.epoch < self.args.epochs:
            self.bar.set_description(f"epoch {self.state.epoch + 1}/{self.args.epochs}")
            yield self.state.epoch

    def steps(self, loader, prepare=None):
        """The batches of each step that is left of this epoch: lists of `accumulate` or fewer, on the device.

        Before each, the random streams are started anew and the learning rate is set. `prepare` makes of the
        parts of a batch what the loss takes.
        """
        self.sampler.epoch, self.sampler.start = self.state.epoch, self.state.step * self.args.accumulate
        self.epoch_started = time.monotonic() - self.state.totals["seconds"]
        for batches in groups_of(loader, self.args.accumulate):
            seed_step(self.args.seed, distributed.rank(), self.state.epoch, self.state.step)
            self._set_learning_rate()
            self.passes = len(batches) * (2 if self.args.sam else 1)
            batches = [to_device(batch, self.device) for batch in batches]
            yield [prepare(*batch) for batch in batches] if prepare else batches

    @property
    def global_batch_size(self):
        """The number of images of the step at hand, on all ranks: the last one of an epoch may have fewer."""
        return len(self._step_indices()) or 1  # all of them may be left out: then its loss is 0

    def _step_indices(self):
        return self.sampler.indices(self.state.step * self.images_per_step, self.images_per_step)

    def _set_learning_rate(self):
        lr = self.args.lr * self.schedule(self.state.epoch * self.steps_per_epoch + self.state.step)
        self.state.totals["lr"] = lr
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1)

    def end_step(self, loss, correct):
        """Count the step, with the sums over its images, and save where a save is due.

        A loss that is not finite stops the run, as a TrainingStopped with the names of the images, or counts
        as a skipped step. Raises Interrupted after a signal to any rank, when all have saved.
        """
        images = self.global_batch_size
        if math.isfinite(loss):
            self.state.count_step(images, loss, correct)
        else:
            self._stop_or_skip(images)
        self.state.totals["passes"] += self.passes
        self.state.optimizer.zero_grad()
        self._show_progress(images)
        self._save_or_stop(self.saver.due())

    def _stop_or_skip(self, images):
        self.saver.stop_if_nonfinite()
        names = [self.names[index] for index in self._step_indices()]
        message = f"the loss is not finite in step {self.state.step + 1} of epoch {self.state.epoch + 1}"
        if self.args.on_nonfinite == "stop":
            self.saver.save()
            raise TrainingStopped(
                f"{message}: {self.saver.last_good_state()}; start a new run with a smaller --lr, or pass "
                "--resume --on-nonfinite skip to leave out this batch:", names)
        self.state.count_skipped_step()
        self.bar.write(f"note: {message}: skipped {', '.join(names)}", sys.stderr)

    def _show_progress(self, size):
        totals = self.state.totals
        totals["seconds"] = time.monotonic() - self.epoch_started
        if totals["images"]:
            self.bar.set_postfix(loss=f"{totals['loss'] / totals['images']:.3f}",
                                 accuracy=f"{totals['correct'] / totals['images']:.3f}", refresh=False)
        self.bar.update(size)
        ends = self.state.step == self.steps_per_epoch  # which has a line of its own
        if (self.is_main and self.bar.disable and not ends
                and time.monotonic() - self.last_line >= LINE_EVERY):
            self.last_line = time.monotonic()
            print(f"epoch {self.state.epoch + 1}/{self.args.epochs}  "
                  f"step {self.state.step}/{self.steps_per_epoch}  "
                  f"loss {totals['loss'] / (totals['images'] or math.nan):.3f}  "
                  f"{totals['images'] / totals['seconds']:.0f} images/s  {self._time_left()} left",
                  flush=True)

    def _time_left(self):
        done = self._images_done()
        seconds_per_image = (time.monotonic() - self.started) / max(1, done - self.images_before)
        return timedelta(seconds=round(seconds_per_image * (self.args.epochs * len(self.names) - done)))

    def _save_or_stop(self, due=False):
        number, due = distributed.all_reduce_max([self.stop.number, int(due and self.is_main)])
        if number or due:
            self.saver.save()
        if number:
            # when one rank ends, torchrun ends the others, which may still be saving
            distributed.barrier()
            position = position_in_words(self.state.epoch, self.state.step)
            raise Interrupted(f"stopped by {signal.Signals(number).name} {position}: "
                              f"--resume goes on from {self.args.output / LAST}", number)

    def end_epoch(self, evaluate, held_out):
        """Score the epoch, save it, and say how it went.

        `evaluate(model, until_stopped)` returns (loss, correct), the sums over this rank's shard of the
        `held_out` images, if there are any; `until_stopped` wraps its loader, which a signal ends early.
        """
        self.saver.stop_if_nonfinite()
        self.held_out = held_out
        row = self._row()
        if held_out:
            sums = torch.tensor(evaluate(self.state.eval_model, self.stop.until_stopped), dtype=torch.float64,
                                device=self.device)
            means = distributed.all_reduce_sum(sums) / held_out
            row["holdout_loss"], row["holdout_accuracy"] = means.tolist()
            self._save_or_stop()  # before the row counts: a signal may have cut the evaluation short
        is_best = self.state.finish_epoch(row, score=row["holdout_accuracy"] or 0.0)
        self.saver.save()
        if is_best:
            self.saver.save_best()
        self.saver.save_metrics()
        if self.is_main:
            self._print_epoch(row)

    def _row(self):
        totals = self.state.totals
        images = totals["images"] or math.nan  # all steps may have been skipped
        return {"epoch": self.state.epoch + 1, "lr": totals["lr"], "train_loss": totals["loss"] / images,
                "train_accuracy": totals["correct"] / images, "holdout_loss": None, "holdout_accuracy": None,
                "skipped_steps": totals["skipped_steps"],
                "images_per_second": totals["images"] / totals["seconds"], "seconds": totals["seconds"],
                "passes": totals["passes"], "peak_memory_mib": peak_memory(self.device) / 2**20}

    def _print_epoch(self, row):
        held_out = f"  held out {row['holdout_accuracy']:.3f}" if self.held_out else ""
        self.bar.write(f"epoch {self.state.epoch}/{self.args.epochs}  loss {row['train_loss']:.3f}  "
                       f"accuracy {row['train_accuracy']:.3f}{held_out}  "
                       f"{row['images_per_second']:.0f} images/s  {self._time_left()} left")

    def _print_end(self):
        choice = f"epoch {self.state.best_epoch}" if self.held_out else "the last epoch"
        accuracy = f", accuracy {self.state.best:.3f} on the part held out" if self.held_out else ""
        print(f"done: {self.args.output / BEST} holds {choice}{accuracy}")


def groups_of(batches, size):
    """Lists of `size` batches, the last one perhaps shorter."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group
