"""A model over a whole data set."""

import numpy as np
import torch
import torch.nn.functional as F

from engine import distributed
from engine.device import autocast, to_device


@torch.no_grad()
def predict(model, loader, device, precision="fp32", progress=iter, keep=lambda logits: None):
    """The logits, float32 (images, classes), and the targets (images,) of a loader's batches, on the CPU.

    `progress` wraps the loader, and may end early; `keep` is given the logits of each batch, a part of those
    of all. The model is in evaluation mode during the call only.
    """
    was_training = model.training
    model.eval()
    # Room for all from the start: a small tensor that each batch left would split the memory of its large
    # ones, which the next batch could then not use again.
    logits, targets, start = None, torch.empty(len(loader.dataset), dtype=torch.long), 0
    try:
        for images, labels in progress(loader):
            with autocast(device, precision):
                batch_logits = model(images.to(device, non_blocking=True))
            if logits is None:
                logits = torch.empty(len(targets), batch_logits.shape[1])
            end = start + len(labels)
            logits[start:end], targets[start:end] = batch_logits, labels
            start = end
            keep(logits[end - len(labels):end])
    finally:
        model.train(was_training)
    return logits[:start], targets[:start]


def predict_shards(model, loader, device, progress=iter, unfinished=None):
    """The float32 outputs (images, classes) for the images of all ranks, on each of them. Collective.

    `loader` has this rank's shard, which may be empty, as `distributed.shard` makes it; or what is left of it
    after the batches of a `common.unfinished.Unfinished`, which keeps the new ones too.
    """
    batches = [] if unfinished is None else unfinished.rows
    keep = batches.append if unfinished is None else unfinished.append
    with distributed.detect_lost_ranks():
        if len(loader.dataset):
            predict(model, loader, device, progress=progress, keep=keep)
        rows = [row for batch in batches for row in batch.numpy()]
        return torch.from_numpy(np.stack(distributed.gather_shards(rows)))


def score(model, loader, device, precision, until_stopped):
    """(summed cross-entropy, number of correct answers) on a loader's images, which may be none.

    `until_stopped` wraps the loader, and may end early.
    """
    if not len(loader.dataset):
        return 0.0, 0.0
    logits, targets = predict(model, loader, device, precision, until_stopped)
    loss, correct = F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(1) == targets).sum()
    return loss.item(), correct.item()


@torch.no_grad()
def sum_losses(model, batches, loss, device, precision):
    """The sums over batches of what `loss`, that of an OptimizerStep, returns, as floats."""
    was_training = model.training
    model.eval()
    sums = torch.zeros(2)
    for batch in batches:
        with autocast(device, precision):
            sums += torch.stack(loss(model, to_device(batch, device))).cpu()
    model.train(was_training)
    return sums.tolist()
