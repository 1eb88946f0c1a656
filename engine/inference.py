"""A model over a whole data set."""


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
