"""What fine-tuning minimises: the cross-entropy of a batch, and how many of its images are right."""

import torch.nn.functional as F

NO_TARGET = -100  # of an image that stands for none, which cross_entropy ignores


class ClassificationLoss:
    """(model, (images, targets)) -> (summed cross-entropy, number of correct answers), tensors.

    `targets`: (N,) classes or NO_TARGET; or (N, classes), their shares after mixing: the largest counts as
    the answer, a row of zeros as no image.
    """

    def __init__(self, label_smoothing=0.0):
        self.label_smoothing = label_smoothing

    def __call__(self, model, batch):
        images, targets = batch
        logits = model(images)
        loss = F.cross_entropy(logits.float(), targets, ignore_index=NO_TARGET,
                               label_smoothing=self.label_smoothing, reduction="sum")
        if targets.ndim == 2:
            targets = targets.argmax(1).where(targets.any(1), NO_TARGET)
        return loss, (logits.argmax(1) == targets).sum()
