"""What is found of photos, in words: where the attention lies, and what the attended patches are worth."""

from statistics import fmean

import numpy as np

# of `PhotoAttention.ground_blocks`: whether without sinks, and which number
COLUMNS = {"on the object": (0, 0), "without sinks": (1, 0), "peak on or beside it": (1, 2)}


class Findings:
    """Prints what is found of each photo and, in the end, the means over all."""

    def __init__(self):
        self.groundings, self.by_block, self.verdicts, self.occlusions = [], [], [], []

    def ground(self, name, photo, cover, by_block=False):
        """Where the map of a PhotoAttention lies, by a `Viewer.cover`; of all its blocks with `by_block`."""
        self.groundings.append(photo.ground(*cover))
        _print_both(name, [_on_object(*ground[:3]) for ground in self.groundings[-1]])
        if by_block:
            self.by_block.append(photo.ground_blocks(*cover))
            label = photo.metadata["label"]
            self.verdicts.append(("wrong" if photo.mistaken else "right") if label else "of no known class")

    def occlude(self, name, photo, model):
        """What the model says of a PhotoAttention without its most attended patches."""
        self.occlusions.append(photo.occlude(model))
        _print_both(name, [_without_patches(*result) for result in self.occlusions[-1]])

    def block_means(self):
        """The means (layers, 2, 4) of `PhotoAttention.ground_blocks`, by group: all photos, right, wrong."""
        groups = {group: [rows for rows, verdict in zip(self.by_block, self.verdicts)
                          if group in ("all", verdict)] for group in ("all", "right", "wrong")}
        return {f"{group} {len(rows)}": np.mean(rows, 0) for group, rows in groups.items() if rows}

    def print_means(self):
        """Print the means over all photos, of each block first."""
        if self.by_block:
            _print_blocks(self.block_means())
        if self.groundings:
            _print_both(f"mean of {len(self.groundings)}", [
                _on_object(*map(fmean, zip(*grounds))) for grounds in zip(*self.groundings)])
        if self.occlusions:
            _print_both(f"mean of {len(self.occlusions)}",
                        list(map(_mean_without_patches, zip(*self.occlusions))))


def _print_both(what, texts):
    """Of all patches, and if there are sinks of the others."""
    for words, text in zip(("", " without sinks"), texts):
        print(f"{what}{words}: {text}")


def _on_object(share, area, peak, chance=None):
    """What `PhotoAttention.ground` returns for one photo; with `chance` the means over photos."""
    where = "on or beside it" if peak else "elsewhere"
    if chance is not None:
        where = f"on or beside it in {peak:.1%} (by chance {chance:.1%})"
    return f"{share:.1%} of the attention on the object, which covers {area:.1%} of the area; peak {where}"


def _without_patches(probability, falls):
    shares, attended, random = zip(*falls)
    return (f"probability {probability:.3f}; without the {_listed(shares, '.0%')} most attended patches "
            f"{_listed(attended, '.3f')}; without as many random ones {_listed(random, '.3f')}")


def _listed(numbers, form):
    return ", ".join(format(number, form) for number in numbers)


def _mean_without_patches(occlusions):
    probabilities, falls = zip(*occlusions)
    return _without_patches(fmean(probabilities), [map(fmean, zip(*rows)) for rows in zip(*falls)])


def _print_blocks(means):
    """A line a block of `Findings.block_means`; the last one is that of an attention which is even."""
    layers, wide = len(next(iter(means.values()))), max(12, 24 // len(means))
    print("block " + "".join(f"{title:>{wide * len(means)}}" for title in COLUMNS))
    print("      " + "".join(f"{name:>{wide}}" for _ in COLUMNS for name in means))
    for block in range(layers + 1):
        even = block == layers
        # beside each number stands that of an even attention
        cells = [of_group[min(block, layers - 1), patches, number + even]
                 for patches, number in COLUMNS.values() for of_group in means.values()]
        print(f"{'even' if even else block:>5} " + "".join(f"{cell:{wide}.1%}" for cell in cells))
