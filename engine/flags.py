"""The flags that p1_train.py and p2_train.py share, the optimization and the run, and what their values mean.
"""

import argparse

from common.cli import SaveEvery, number

AUTO = "auto"  # of --precision
# Settings that do not change what a run computes.
HARMLESS = {"resume", "recipe", "output", "workers", "device", "compile", "save_every", "skip_bad",
            "on_nonfinite"}
# What a run began from, by its path. A resume compares the images and reads no weights, so these may change;
# the run's settings keep the first ones, for they tell one setting from another (`compare.names`).
ORIGINS = {"data", "weights", "checkpoint", "vocab"}


def optimizer_name(settings):
    """The optimizer of a run's settings: `adam`, `SAM(adam)` or `ASAM(sgd)`."""
    if not settings["sam"]:
        return settings["optimizer"]
    return f"{'ASAM' if settings['adaptive'] else 'SAM'}({settings['optimizer']})"


def current_settings(settings):
    """A run's settings under today's names, from those that an older version may have written.

    `--climb micro-batch`, which no flag stands for any more, is left as it is.
    """
    settings = {name: value for name, value in settings.items() if name != "cache"}
    if settings.get("climb") in ("process", "joint"):
        settings["sync_perturbation"] = settings.pop("climb") == "joint"
    return settings


def add_training_flags(parser, optimizer, lr, batch_size, epochs):
    """Add them. `optimizer` says in words what is used if none is named, the rest are defaults."""
    add = parser.add_argument_group("optimization").add_argument
    add("--optimizer", choices=["adam", "adamw", "sgd"],
        help=f"without --sam, exactly this one; if neither is named, {optimizer}")
    add("--sam", action=argparse.BooleanOptionalAction,
        help="put SAM around the optimizer (Adam if none is named)")
    add("--rho", type=number(float, low=0), default=0.05, metavar="X",
        help="norm of SAM's perturbation: 0.02 to 0.2, ten times that with --adaptive (%(default)s)")
    add("--adaptive", action="store_true", help="ASAM: a perturbation in units of each weight")
    add("--sync-perturbation", action="store_true",
        help="under torchrun, perturb along the mean gradient of all ranks, not along each rank's own")
    add("--epochs", type=number(int, low=1, high=10**6), default=epochs, metavar="N",
        help="passes over the training images (%(default)s)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=batch_size, metavar="N",
        help="images a forward pass and rank (%(default)s)")
    add("--accumulate", type=number(int, low=1, high=10**6), default=1, metavar="N",
        help="batches a step (%(default)s)")
    add("--lr", type=number(float, low=0, high=1e30), default=lr, metavar="X",
        help="peak learning rate, between a linear warm-up and a cosine decay: 1e-5 to 3e-4 for pretrained "
             "weights, 3e-4 to 2e-3 from scratch (%(default)s)")
    add("--ema", type=number(float, above=0, high=0.99999), metavar="DECAY",
        help="evaluate and keep the exponential average of the weights over about 1 / (1 - DECAY) steps: "
             "0.9 to 0.9999")
    add("--precision", choices=[AUTO, "fp32", "bf16", "fp16"], default=AUTO,
        help="number format of the forward and backward pass (auto: bf16 where the device has instructions "
             "for it, else fp32)")
    add("--on-nonfinite", choices=["stop", "skip"], default="stop",
        help="a step whose loss is inf or NaN stops the run, or is left out and counted (%(default)s)")

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=number(int, low=0, high=2**32 - 1), default=0, metavar="N",
        help="random seed: split, shuffling, augmentation, dropout (%(default)s)")
    add("--workers", type=number(int, low=0, high=256), metavar="N",
        help="processes that load images (one a core, at most 16)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="auto is the GPU where there is one")
    add("--deterministic", action="store_true",
        help="on a GPU, too, the same seed gives the same bits; slower there, and no difference on the CPU")
    add("--save-every", type=SaveEvery, metavar="N|Ns",
        help="save every N steps or N seconds too, not only each epoch")
    add("--resume", action="store_true", help="go on from last.pt in --output; start anew if there is none")
