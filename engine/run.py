"""A training run is opened: its device and rank, the saved state to go on from, and its loaders."""

import contextlib
from dataclasses import asdict
from pathlib import Path

import torch

from common.cli import ImageSize, SaveEvery, note
from common.errors import BadInput
from common.files import refuse_unwritable
from engine import checkpointing, device, distributed
from engine.flags import AUTO, ORIGINS, optimizer_name
from engine.loader import Loader, loader_workers
from engine.output import locked
from engine.photos import first_photos, photos_again
from engine.seeding import ShuffledBatches, seed_everything
from plots.curves import draw_curves


class Run:
    """A run of training on one rank or several. Opening it reads its output folder, and changes nothing.

    Args:
        args: the parsed arguments, those of `engine.flags` among them.
        default: what a flag is when it is not given, by name: `ArgumentParser.get_default`.

    Attributes:
        settings: all arguments as plain values, and the number of ranks as `processes`. From `start` on
            `precision` is the one that the run keeps.
        is_main: whether this is rank 0, which alone writes and reports.
        device: a torch.device.
        saved: the saved state to go on from; None for a new run, and after `restore`.
        photos: an `engine.photos.Photos`, of `choose_photos`.
        finished: whether nothing is left to train.

    Raises BadInput for a folder that holds a run without `--resume`, for a damaged state, and for other
    settings than the run began with.
    """

    def __init__(self, args, default):
        self.args = args
        self.is_main = distributed.rank() == 0
        self.device = distributed.local_device(device.pick_device(args.device))
        self.stamp = checkpointing.stamp(args.output)
        self.saved = checkpointing.find_run(args.output, args.resume)
        if self.saved and args.precision == AUTO:
            args.precision = self.saved["settings"]["precision"]
        self.settings = {name: str(value) if isinstance(value, (Path, SaveEvery, ImageSize)) else value
                         for name, value in vars(args).items()}
        self.settings["processes"] = distributed.world_size()
        if self.saved:
            before = self.saved["settings"]
            checkpointing.check_settings(self.settings, before, default)
            self.settings.update((name, before[name]) for name in ORIGINS & before.keys())
        self._workers = None
        self.finished = bool(self.saved) and self.saved["resume"]["epoch"] == args.epochs

    def start(self):
        """Connect the ranks and start the random streams. Raises OSError for a read-only folder. Collective.
        """
        if self.is_main:
            refuse_unwritable(self.args.output / checkpointing.LAST)
        if self.args.resume and not self.saved:
            note(f"{self.args.output} holds no {checkpointing.LAST}: starting anew")
        if self.args.deterministic:
            device.compute_deterministically()
        distributed.init_process_group(self.device)
        if self.args.precision == AUTO:  # ranks may have different processors: that of rank 0 decides
            self.args.precision = distributed.all_gather(device.default_precision(self.device))[0]
            self.settings["precision"] = self.args.precision
        if device.is_slow(self.args.precision, self.device):
            note(f"--precision {device.fastest_precision(self.device)} is many times faster than "
                 f"{self.args.precision} on this {'GPU' if self.device.type == 'cuda' else 'processor'}")
        seed_everything(self.args.seed)

    def finish(self):
        """Of a finished run: write what a kill at its end left out, and say that nothing is left to do."""
        if self.is_main:
            with locked(self.args.output):
                self._complete_outputs()
                draw_curves(self.saved["resume"]["history"], self.args.output / checkpointing.CURVES)
            print(f"{self.args.output} is finished: {self.args.epochs} epochs. Raise --epochs to train on.")

    def _complete_outputs(self):
        if checkpointing.stamp(self.args.output) != self.stamp:
            raise BadInput(f"--output {self.args.output}: another run has saved there meanwhile: start again")
        checkpointing.remove_half_written(self.args.output)
        if self.saved:
            checkpointing.complete_outputs(self.args.output, self.saved)

    def choose_photos(self, root, names, bad):
        """The names of the photos that the run began with. Collective.

        `names` are there now, `bad`, {name: reason}, those that need not be tried. A new run tries all of the
        others; one that goes on, with --skip-bad alone. Raises BadInput of `engine.photos`.
        """
        saved = self.saved["resume"].get("photos") if self.saved else None
        if saved:
            self.photos = photos_again(saved, root, names, self.args.skip_bad)
        else:  # an older version saved none
            self.photos = first_photos(root, names, bad, self.args.skip_bad or not self.saved,
                                       self.args.skip_bad)
        return list(self.photos.sizes)

    def usable(self, names):
        """The indices of those names whose photos are not left out."""
        return [i for i, name in enumerate(names) if name not in self.photos.left_out]

    def check_images(self, fingerprint, where):
        """Raise BadInput where the training data is not what the run began with."""
        if self.saved and self.saved["resume"]["images"] != fingerprint:
            raise BadInput(f"--resume: {where} holds other images, or captions, than when the run began: "
                           "start a new run")

    def sampler(self, names):
        """The batches of this rank, of the images `names`."""
        left_out = set(range(len(names))).difference(self.usable(names))
        return ShuffledBatches(len(names), self.args.batch_size, self.args.seed, distributed.rank(),
                               distributed.world_size(), left_out)

    def loader(self, dataset, image_bytes, **options):
        """A Loader of images of at most so many bytes; the global random stream is left to the model."""
        if self._workers is None:
            self._workers = loader_workers(self.args.workers, self.args.batch_size * image_bytes,
                                           held=2 * self.args.accumulate)  # a step's, and the next one's
        return Loader(dataset, self._workers, self.device, generator=torch.Generator(),
                      persistent_workers=self._workers > 0, **options)

    def scaler(self):
        """The GradScaler of the run's precision; one that does nothing unless it is fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.args.precision == "fp16")

    def restore(self, state, fields):
        """Bring a TrainingState to where the saved one was, if any, and return its Saver. Collective.

        From here on the output folder is the run's own, and what a kill left there is made good. `fields` are
        what checkpoints hold besides the state. BadInput where ranks read different files, and where another
        run is at work in the folder, or was since this one was opened.
        """
        with contextlib.ExitStack() as stack:
            distributed.main_process_only(lambda: stack.enter_context(locked(self.args.output)))
            distributed.main_process_only(self._complete_outputs)
            state.photos = asdict(self.photos)
            if self.saved:
                state.load_state_dict(self.saved)
                self.saved = None  # a second copy of all tensors
            distributed.check_agreement([state.images, state.photos, state.epoch, state.step])
            return checkpointing.Saver(self.args.output, state, fields, self.args.save_every,
                                       stack.pop_all().close)

    def announce(self, title, images, held_out):
        """Say what is trained, on what, and where it goes."""
        if self.is_main:
            print(f"{title}, {optimizer_name(self.settings)}, {self.args.precision} on {self.device.type}: "
                  f"{images} images to train on, {held_out} held out -> {self.args.output}")
