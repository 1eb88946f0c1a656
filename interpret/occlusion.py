"""Does an attention map name the patches that a prediction rests on? Remove them, and see if it falls."""

import torch


@torch.no_grad()
def occlusion(model, image, maps, shares=(0.1, 0.25, 0.5), draws=10, seed=0):
    """The predicted probability without the most attended patches, and without as many random ones.

    `image` (3, height, width) is preprocessed, `maps` (M, H, W) are attention to its patches. A patch is
    removed by setting its pixels to 0, the mean that the preprocessing subtracts. Returns, for the class that
    the model predicts for the whole image, its probability there and for each map a list of (share of patches
    removed, probability without the most attended, mean probability without random ones).
    """
    _, height, width = maps.shape
    count = height * width
    orders = maps.flatten(1).argsort(descending=True).cpu()
    generator = torch.Generator().manual_seed(seed)
    removals = [torch.empty(0, dtype=torch.long)]
    sizes = [max(1, round(share * count)) for share in shares]
    for size in sizes:
        drawn = [torch.randperm(count, generator=generator)[:size] for _ in range(draws)]
        removals += [*orders[:, :size], *drawn]
    remaining = torch.ones(len(removals), count)
    for row, removed in zip(remaining, removals):
        row[removed] = 0
    masks = remaining.reshape(-1, 1, height, 1, width, 1).to(image.device)
    cells = image.reshape(1, 3, height, image.shape[1] // height, width, image.shape[2] // width)
    logits = torch.cat([model((cells * part).reshape(-1, *image.shape)) for part in masks.split(16)])
    probabilities = logits.float().softmax(1)
    whole, predicted = probabilities[0].max(0)
    falls = probabilities[1:, predicted].reshape(len(sizes), len(maps) + draws).cpu()
    attended, random = falls[:, :len(maps)].T.tolist(), falls[:, len(maps):].mean(1).tolist()
    return whole.item(), [list(zip([size / count for size in sizes], each, random)) for each in attended]
