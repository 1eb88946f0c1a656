"""A model over a whole data set."""

import torch

from engine.device import autocast


@torch.no_grad()
def predict(model, loader, device, precision="fp32", progress=iter):
    """The logits, float32 (images, classes), and the targets (images,) of all batches, on the CPU.

    `progress` wraps the loader. The model is in evaluation mode during the call and comes back as it was.
    """
    was_training = model.training
    model.eval()
    logits, targets = [], []
    try:
        for images, labels in progress(loader):
            with autocast(device, precision):
                logits.append(model(images.to(device, non_blocking=True)).float().cpu())
            targets.append(labels)
    finally:
        model.train(was_training)
    return torch.cat(logits), torch.cat(targets)
