"""A training run of two linear layers on random numbers, with the engine's parts: milliseconds an epoch."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from engine.checkpointing import Saver, complete_outputs, find_run
from engine.loop import Loop
from engine.seeding import ShuffledBatches, seed_everything
from engine.state import TrainingState
from engine.step import OptimizerStep, build_optimizer

NAMES = [f"{i}.jpg" for i in range(22)]
CLASSES, WIDTH = 3, 5
ARGS = {"optimizer": "adam", "sam": False, "rho": 0.05, "adaptive": False, "sync_perturbation": False,
        "lr": 0.01, "epochs": 2, "batch_size": 4, "accumulate": 1, "ema": None, "precision": "fp32",
        "on_nonfinite": "stop", "seed": 0, "save_every": None}


class Numbers(torch.utils.data.Dataset):
    """22 random vectors of three classes, by the keys of ShuffledBatches."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(len(NAMES), WIDTH, generator=generator)
        self.targets = torch.randint(CLASSES, (len(NAMES),), generator=generator)

    def __getitem__(self, key):
        return self.inputs[key[1]], self.targets[key[1]]


class Noisy(torch.nn.Linear):
    """A layer that draws from Python's, NumPy's and torch's streams while it trains."""

    def forward(self, x):
        noise = random.random() + np.random.rand() + torch.rand(1).item() if self.training else 0
        return super().forward(x) * (1 + 1e-2 * noise)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(Noisy(WIDTH, 4), torch.nn.Tanh(), Noisy(4, CLASSES)).to(dtype)


def loss(model, batch):
    inputs, targets = batch
    logits = model(inputs)
    return F.cross_entropy(logits.float(), targets, reduction="sum"), (logits.argmax(1) == targets).sum()


class Training:
    """A run into the folder `output`, from its saved state if it has one; `args` replace those of ARGS.

    `dataset`, `loss`, `take_step`, `evaluate` and `held_out` may be replaced before `run`.
    """

    def __init__(self, output, **args):
        self.args = SimpleNamespace(**{**ARGS, **args}, output=Path(output))
        saved = find_run(output, resume=True)
        if saved:
            complete_outputs(output, saved)
        seed_everything(self.args.seed)
        self.dataset, self.model, self.held_out = Numbers(), network().train(), 0
        self.optimizer = build_optimizer(self.args, self.model.parameters(), self.model)
        scaler = torch.amp.GradScaler("cpu", enabled=self.args.precision == "fp16")
        settings = {name: value for name, value in vars(self.args).items()
                    if name not in ("output", "save_every")}
        self.state = TrainingState(self.model, self.optimizer, scaler, settings, "fingerprint", {},
                                   self.args.ema)
        if saved:
            self.state.load_state_dict(saved)
        self.saver = Saver(output, self.state, {"format": 1}, self.args.save_every)
        self.take_step = OptimizerStep(self.model, self.optimizer, scaler, loss, torch.device("cpu"),
                                       self.args.precision)

    def evaluate(self, model, until_stopped):
        raise AssertionError("nothing is held out")

    def run(self):
        sampler = ShuffledBatches(len(NAMES), self.args.batch_size, self.args.seed)
        loader = torch.utils.data.DataLoader(self.dataset, batch_sampler=sampler, generator=torch.Generator())
        with Loop(self.state, self.saver, sampler, NAMES, self.args, torch.device("cpu")) as loop:
            for _ in loop.epochs():
                for batches in loop.steps(loader):
                    loop.end_step(*self.take_step(batches, loop.global_batch_size))
                loop.end_epoch(self.evaluate, self.held_out)
        return self
