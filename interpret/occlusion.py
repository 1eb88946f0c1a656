"""Does an attention map name the patches that a prediction rests on? Remove them, and see if it falls."""

import torch


@torch.no_grad()
def occlusion(model, image, attention, shares=(0.1, 0.25, 0.5), draws=10, seed=0):
    """The predicted probability without the most attended patches, and without as many random ones.

    `image` (3, height, width) is preprocessed, `attention` (H, W) the map of its patches. A patch is removed
    by setting its pixels to 0, the mean that the preprocessing subtracts. Returns, for the class that the
    model predicts for the whole image, its probability there and a list of (share of patches removed,
    probability without the most attended, mean probability without random ones).
    """
    height, width = attention.shape
    count = height * width
    order = attention.flatten().argsort(descending=True).cpu()
    generator = torch.Generator().manual_seed(seed)
    removals = [torch.empty(0, dtype=torch.long)]
    sizes = [max(1, round(share * count)) for share in shares]
    for size in sizes:
        removals += [order[:size], *(torch.randperm(count, generator=generator)[:size] for _ in range(draws))]
    remaining = torch.ones(len(removals), count)
    for row, removed in zip(remaining, removals):
        row[removed] = 0
    masks = remaining.reshape(-1, 1, height, 1, width, 1).to(image.device)
    cells = image.reshape(1, 3, height, image.shape[1] // height, width, image.shape[2] // width)
    logits = torch.cat([model((cells * part).reshape(-1, *image.shape)) for part in masks.split(16)])
    probabilities = logits.float().softmax(1)
    whole, predicted = probabilities[0].max(0)
    falls = probabilities[1:, predicted].reshape(len(shares), 1 + draws).cpu()
    return whole.item(), [(size / count, row[0].item(), row[1:].mean().item())
                          for size, row in zip(sizes, falls)]
