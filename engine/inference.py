"""A model over a whole data set."""

import math
import time

import torch

from engine.device import autocast


@torch.no_grad()
def predict(model, loader, device, precision="fp32", progress=iter):
    """The logits, float32 (images, classes), and the targets (images,) of a loader's batches, on the CPU.

    `progress` wraps the loader, and may end early. The model is in evaluation mode during the call and comes back as it was.
    """
    was_training = model.training
    model.eval()
    # Room for all of them from the start: a small tensor that each batch left would split the memory of its large ones,
    # which the next batch could then not use again.
    logits, targets, start = None, torch.empty(len(loader.dataset), dtype=torch.long), 0
    try:
        for images, labels in progress(loader):
            with autocast(device, precision):
                found = model(images.to(device, non_blocking=True))
            if logits is None:
                logits = torch.empty(len(targets), found.shape[1])
            end = start + len(labels)
            logits[start:end], targets[start:end] = found, labels
            start = end
    finally:
        model.train(was_training)
    return logits[:start], targets[:start]


@torch.no_grad()
def expected_seconds(model, dataset, device, workers, trial=4):
    """How long `predict` will take, by a trial on a few images of the data set."""
    model.eval()

    def seconds(work):
        started = time.perf_counter()
        done = work()
        return time.perf_counter() - started, done

    trial = min(trial, len(dataset))
    loading, images = seconds(lambda: torch.stack([dataset[i * len(dataset) // trial][0] for i in range(trial)]).to(device))
    model(images[:1]).cpu()  # the first call is slower
    computing, _ = seconds(lambda: model(images).cpu())
    loading /= max(1, workers)
    # a GPU computes while the cores load; on the CPU both share them
    return (computing + loading if device.type == "cpu" else max(computing, loading)) * len(dataset) / trial


class Mirrored(torch.nn.Module):
    """The log of the mean of a model's probabilities for images and for their mirror images: (N, 3, H, W) -> (N, classes)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        both = torch.stack([self.model(images), self.model(images.flip(-1))]).float().log_softmax(-1)
        return both.logsumexp(0) - math.log(2)
