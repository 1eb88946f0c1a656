"""The state of a training run: all that its next step depends on."""

import torch
from torch.optim.swa_utils import AveragedModel


class ExponentialAverage(AveragedModel):
    """torch's, with its keys and its arithmetic; torch sends a GPU the count of steps, and waits for that."""

    def __init__(self, model, decay):
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model):
        pairs = [list(self.module.parameters()), list(model.parameters())]
        if self.n_averaged == 0:
            torch._foreach_copy_(*pairs)
        else:
            torch._foreach_lerp_(*pairs, 1 - self.decay)
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        self.n_averaged += 1


class TrainingState:
    """What a run saves and goes on from, bit for bit, in the middle of an epoch too.

    Attributes:
        model, optimizer, scaler: as they are trained.
        average: the model with exponentially averaged weights, None without `ema`. After each step
            average = ema * average + (1 - ema) * weights; it begins with the weights after the first one.
        settings: of the run, as plain values.
        images: a checksum of the names of the training images.
        photos: `sizes`, {name: bytes} of the photos that it began with, and `left_out`, {name: reason} of
            those that it goes without (`engine.photos.Photos`).
        about: what config.json says of the run besides the settings.
        epoch, step: epochs done; steps done of the next one. They are the position in the data as well, since
            the order of the images depends on (seed, epoch) alone (`engine.seeding.ShuffledBatches`).
        totals: sums over the steps done of this epoch.
        history: a row an epoch, as in metrics.csv.
        best, best_epoch: the highest score of an epoch, -1 before the first one, and its number, from 1.

    Random streams need no place here: each step starts them from (seed, rank, epoch, step), see
    `engine.seeding.seed_step`, and each image from (seed, epoch, index). So does the learning rate.
    """

    def __init__(self, model, optimizer, scaler, settings, images, about, ema=None):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.average = ExponentialAverage(model, ema) if ema else None
        self.settings, self.images, self.about, self.photos = settings, images, about, {}
        self.epoch, self.step, self.history, self.best, self.best_epoch = 0, 0, [], -1.0, 0
        self._clear_totals()

    def _clear_totals(self):
        self.totals = {"images": 0, "loss": 0.0, "correct": 0.0, "lr": 0.0, "seconds": 0.0,
                       "skipped_steps": 0, "passes": 0}

    @property
    def eval_model(self):
        """The model that evaluation uses: the averaged one where there is one."""
        return self.average.module if self.average else self.model

    def count_step(self, images, loss, correct):
        """Count a step that has been taken; `loss` and `correct` are sums over its `images`."""
        self.step += 1
        for name, value in (("images", images), ("loss", loss), ("correct", correct)):
            self.totals[name] += value
        if self.average:
            self.average.update_parameters(self.model)

    def count_skipped_step(self):
        """Count a step that was not taken."""
        self.step += 1
        self.totals["skipped_steps"] += 1

    def finish_epoch(self, row, score):
        """End the epoch with its row of the history. Returns whether it is the best so far, or as good."""
        self.history.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self._clear_totals()
        if score < self.best:
            return False
        self.best, self.best_epoch = score, self.epoch
        return True

    def is_finite(self):
        """Whether all weights are finite."""
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all())

    def best_weights(self):
        """What evaluation wants of this state: the `epoch` done and the `state_dict` of `eval_model`."""
        return {"epoch": self.epoch, "settings": self.settings, "state_dict": self.eval_model.state_dict()}

    def state_dict(self):
        """`state_dict`, the weights; `settings`; and `resume`, all else."""
        return {"state_dict": self.model.state_dict(), "settings": self.settings, "resume": {
            "images": self.images, "photos": self.photos, "about": self.about, "epoch": self.epoch,
            "step": self.step, "totals": self.totals, "history": self.history, "best": self.best,
            "best_epoch": self.best_epoch,
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None}}

    def load_state_dict(self, saved):
        """Put back what `state_dict` returned, but for the settings: see `checkpointing.check_settings`."""
        self.model.load_state_dict(saved["state_dict"])
        resume = saved["resume"]
        for now, before in zip(self.optimizer.param_groups, resume["optimizer"]["param_groups"]):
            before["fused"] = now["fused"]  # which the device decides: the run may have begun on another
        self.optimizer.load_state_dict(resume["optimizer"])
        self.scaler.load_state_dict(resume["scaler"])
        if self.average:
            self.average.load_state_dict(resume["average"])
        for name in ("about", "epoch", "step", "totals", "history", "best", "best_epoch"):
            setattr(self, name, resume[name])
