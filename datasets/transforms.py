"""From an image to what a model takes: the transforms, and what mixes two images of a batch."""

import timm.data
import torch
from PIL import Image
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing


def evaluation_transform(preprocessing):
    """PIL image -> float tensor (3, H, W), as timm evaluates a model of this `models.vit.preprocessing`."""
    return timm.data.create_transform(**_arguments(preprocessing), is_training=False)


def evaluation_pixels(preprocessing):
    """The same as uint8, a quarter of the memory; `models.vit.Normalise` takes the last step, of a batch."""
    return timm.data.create_transform(**_arguments(preprocessing), is_training=False, normalize=False)


def training_transform(preprocessing, crop_scale=0.5, rand_augment=0, random_erasing=0.0):
    """PIL image -> augmented pixels (3, H, W), uint8, by timm's transforms, for `models.vit.Normalise`.

    `crop_scale` is the least part of the area that the random resized crop keeps; a horizontal flip follows.
    `rand_augment` is the magnitude, 0 to 10, of RandAugment (Cubuk et al. 2020, arXiv:1909.13719): two
    operations, each with probability 0.5, their magnitudes spread by 0.5; 0 leaves it out. `random_erasing`
    is the probability that a rectangle is replaced by noise (Zhong et al. 2017, arXiv:1708.04896).
    """
    operations = f"rand-m{rand_augment}-mstd0.5-inc1" if rand_augment else None
    transform = timm.data.create_transform(
        **_arguments(preprocessing), is_training=True, scale=(crop_scale, 1.0), color_jitter=None,
        auto_augment=operations, normalize=False)
    if random_erasing:
        transform.transforms.append(PixelErasing(random_erasing, preprocessing))
    return transform


class PixelErasing(RandomErasing):
    """timm's RandomErasing, with its draws, of pixels (3, H, W), uint8: mean + std * noise, clipped."""

    def __init__(self, probability, preprocessing):
        super().__init__(probability, mode="pixel", device="cpu")
        self.mean, self.std = (torch.tensor(preprocessing[name])[:, None] for name in ("mean", "std"))

    def __call__(self, pixels):
        noise = super().__call__(torch.full(pixels.shape, torch.nan))
        erased = ~noise[0].isnan()
        values = noise[:, erased].mul_(self.std).add_(self.mean).mul_(255)
        pixels[:, erased] = values.round_().clamp_(0, 255).byte()
        return pixels


def _arguments(preprocessing):
    """The arguments of timm's `create_transform` that a data configuration stands for."""
    return {**preprocessing, "input_size": tuple(preprocessing["input_size"])}


def crop_box(size, preprocessing):
    """The part of a photo of `size` (width, height) that the model takes in after `evaluation_transform`.

    Returns (left, top, right, bottom) in its pixels, as floats; with padding the box reaches over the edge.
    """
    resize = evaluation_transform({**preprocessing, "interpolation": "nearest"}).transforms[0]  # the quickest
    resized = resize(Image.new("L", size)).size  # the library's own rounding of the longer side
    box = []
    for side, scaled, crop in zip(size, resized, preprocessing["input_size"][:0:-1]):
        # as torchvision and timm round: to even for a crop, down for the padding on the left and above
        offset = round((scaled - crop) / 2) if scaled >= crop else -((crop - scaled) // 2)
        box.append((offset * side / scaled, (offset + crop) * side / scaled))
    (left, right), (top, bottom) = box
    return left, top, right, bottom


class MixupCutMix:
    """Mixes each image of a batch with its mirror image in the order of the batch, by timm's Mixup.

    Mixup (Zhang et al. 2018, arXiv:1710.09412) blends both as a whole, x = lam x_i + (1 - lam) x_j, CutMix
    (Yun et al. 2019, arXiv:1905.04899) puts a rectangle of one into the other; targets follow the shares. lam
    is of Beta(alpha, alpha), one a batch; alpha is `mixup` or `cutmix`, 0 for none, of both a coin picks.
    All classes share the part `smoothing` of each target. Draws from NumPy's global stream.
    """

    def __init__(self, mixup, cutmix, smoothing, classes):
        self.mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes)
        self.smoothing, self.classes = smoothing, classes

    def __call__(self, images, targets):
        """Images (N, 3, H, W), overwritten, and targets (N,) -> images, shares of classes (N, classes).

        Of an odd number the last image is not mixed; a negative target there has no share in any class.
        """
        # no mask as an index, for whose size a GPU would be waited for
        rows = torch.arange(len(targets), device=images.device)
        shares = torch.full((len(targets), self.classes), self.smoothing / self.classes, device=images.device)
        shares[rows, targets.clamp(min=0)] += 1 - self.smoothing
        shares *= (targets >= 0)[:, None]
        even = len(images) // 2 * 2
        if even:
            images[:even], shares[:even] = self.mix(images[:even], targets[:even])
        return images, shares
