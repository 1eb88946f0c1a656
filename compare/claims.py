"""Comparisons of settings, and what may be said of them in words."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from compare.runs import BETWEEN_SEEDS, in_words
from compare.statistics import holm, mcnemar, paired_margin, wins_and_losses

LEVEL = 0.05  # a p-value below it exceeds the noise
EQUAL_PASSES = 0.05  # share of SAM's passes by which those of the plain run may differ
LITTLE = 0.03  # a difference in accuracy below it counts as little

# What two settings of a comparison may differ in, besides what they are compared for.
SAM = {"sam", "rho", "adaptive", "climb", "lr", "epochs"}
PRETRAINING = {"scratch", "weights", "head_init", "layer_decay", "lr", "epochs"}
SIZE = {"arch", "weights"}

SUPPORTED, NOT_SUPPORTED, OPEN = "supported", "not supported", "these runs do not say"


@dataclass
class Comparison:
    """Two settings on the same images: on how many the first does better, and worse; `p` is McNemar's exact one.

    `adjusted` is p after Holm's correction for all comparisons of the report, `margin` half the width of the 95 %
    interval of `difference`, the first one's accuracy minus the second one's.
    """

    first: object
    second: object
    wins: int
    losses: int
    p: float
    adjusted: float
    margin: float

    @property
    def difference(self):
        return self.first.mean("accuracy") - self.second.mean("accuracy")

    @property
    def exceeds_noise(self):
        """Whether the images say that one of them is better, and the ranges over seeds do not say otherwise."""
        return self.significant and not ranges_overlap(self.first, self.second, "accuracy")

    @property
    def significant(self):
        return self.adjusted < LEVEL and (self.wins - self.losses) * self.difference > 0

    def turned(self):
        return Comparison(self.second, self.first, self.losses, self.wins, self.p, self.adjusted, self.margin)


class Comparisons(list):
    """All comparisons of settings on the same images, in the order of the settings."""

    def __init__(self, settings):
        pairs = [(one, other) for one, other in combinations(settings, 2) if one.images == other.images]
        counts = [wins_and_losses(one.correct, other.correct) for one, other in pairs]
        p_values = [mcnemar(*count) for count in counts]
        super().__init__(Comparison(one, other, *count, p, adjusted, paired_margin(one.correct, other.correct))
                         for (one, other), count, p, adjusted in zip(pairs, counts, p_values, holm(p_values)))

    def between(self, first, second):
        """The comparison of two settings, the first one first."""
        for found in self:
            if (found.first, found.second) == (first, second):
                return found
            if (found.first, found.second) == (second, first):
                return found.turned()
        raise KeyError(f"{first.name} and {second.name} were evaluated on different images")


# Which settings are compared ---------------------------------------------------------------------------------------


@dataclass
class SamPair:
    """A setting without and one with SAM, equal in all but that, the learning rate and the number of epochs.

    `at` says at equal what they are compared, `epochs` or `passes`; `chosen` in words how, where there was a choice.
    """

    at: str
    plain: object
    sam: object
    chosen: str


def families(settings, free):
    """Settings on the same images that are equal in all but `free`, as lists of at least two."""
    found = {}
    for setting in settings:
        found.setdefault((setting.key(free), setting.images), []).append(setting)
    return [family for family in found.values() if len(family) > 1]


def sam_pairs(settings):
    """Every setting with SAM beside one without, at equal epochs and at equal forward-backward passes.

    Of several learning rates the one with the highest mean held-out accuracy is taken, never that of val; where nothing
    was held out, the pairs of the same learning rate.
    """
    found = []
    for family in families(settings, SAM):
        plain = [setting for setting in family if not setting.settings.get("sam")]
        variants = {}
        for setting in family:
            if setting.settings.get("sam"):
                variants.setdefault(setting.key({"lr"}), []).append(setting)
        for variant in variants.values():
            epochs, passes = variant[0].settings["epochs"], variant[0].mean("passes")
            at_epochs = [setting for setting in plain if setting.settings["epochs"] == epochs]
            at_passes = [setting for setting in plain if abs(setting.mean("passes") - passes) <= EQUAL_PASSES * passes]
            for at, candidates in (("epochs", at_epochs), ("passes", at_passes)):
                found += [SamPair(at, *pair) for pair in _chosen(candidates, variant)]
    return found


def _chosen(plain, sam):
    """The (plain, SAM, words) to compare out of the learning rates of both sides."""
    if not plain:
        return []
    if len(plain) == len(sam) == 1:
        return [(plain[0], sam[0], "")]
    if all(setting.held_out for setting in plain + sam):
        best = [max(side, key=lambda setting: setting.mean("held_out_accuracy")) for side in (plain, sam)]
        return [(*best, "the learning rates of the highest held-out accuracy")]
    return [(one, other, "the same learning rate, since nothing was held out") for one in plain for other in sam
            if one.settings["lr"] == other.settings["lr"]]


def sweeps(settings):
    """Sets of settings that differ in the learning rate alone, each in the order of the rates."""
    trained = [setting for setting in settings if setting.settings["lr"] > 0]  # 0 has no place on a log axis
    return [sorted(family, key=lambda setting: setting.settings["lr"]) for family in families(trained, {"lr"})]


def pretraining_pairs(settings):
    """For each setting from scratch the pretrained one that is most like it: (pretrained, from scratch)."""
    found = []
    for family in families(settings, PRETRAINING):
        pretrained = [setting for setting in family if not setting.settings.get("scratch")]
        for setting in family:
            if setting.settings.get("scratch") and pretrained:
                found.append((min(pretrained, key=lambda other: len(differing(setting, other))), setting))
    return found


def size_pairs(settings):
    """Settings that are equal in all but the architecture: (larger, smaller)."""
    return [tuple(sorted(pair, key=lambda setting: -setting.model["parameters"]))
            for family in families(settings, SIZE) for pair in combinations(family, 2)
            if all("parameters" in setting.model for setting in pair)
            and pair[0].model["parameters"] != pair[1].model["parameters"]]


def differing(first, second):
    """The names of the settings in which two differ."""
    return [name for name in {**first.settings, **second.settings}
            if name not in BETWEEN_SEEDS and first.settings.get(name) != second.settings.get(name)]


# Words -------------------------------------------------------------------------------------------------------------


def ranges_overlap(first, second, quantity):
    """Whether the ranges over seeds of a quantity overlap. Two single runs have none: False."""
    if len(first.runs) == len(second.runs) == 1:
        return False
    (low, high), (other_low, other_high) = first.range(quantity), second.range(quantity)
    return bool(max(low, other_low) <= min(high, other_high))


def points(difference):
    return f"{100 * abs(difference):.1f} points"


def p_in_words(p):
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def gap_in_words(setting):
    """The mean over seeds of training minus val accuracy, with its range where there are several."""
    low, high = setting.range("gap")
    over = f" ({100 * low:+.1f} to {100 * high:+.1f})" if len(setting.runs) > 1 else ""
    return f"{100 * setting.mean('gap'):+.1f} points{over} for {setting.in_prose}"


def count(values):
    """Numbers of epochs or passes over seeds: `3`, or `3.3 (3 to 4)`; infinite ones were not reached."""
    low, high = (f"{value:g}" if np.isfinite(value) else "never" for value in (min(values), max(values)))
    if low == high:
        return low
    return f"{np.mean(values):.3g} ({low} to {high})" if high != "never" else f"{low} to {high}"


def difference_in_words(comparison):
    """Whether two settings differ by more than the noise, as a sentence."""
    one = comparison.turned() if comparison.difference < 0 else comparison
    better, worse = one.first.in_prose, one.second.in_prose
    size, p = points(one.difference), p_in_words(one.adjusted)
    if one.exceeds_noise:
        return f"{better} beats {worse} by {size} ({p})"
    if one.significant:
        return (f"{better} is {size} above {worse} on these images ({p}), but their ranges over seeds overlap: "
                "no more than another seed may change")
    names = f"{comparison.first.in_prose} and {comparison.second.in_prose}"
    return f"{names} do not differ by more than the noise ({size}, {p})"


@dataclass
class Claim:
    """A statement, what these runs say of it (one of the three verdicts), and the sentence with the numbers."""

    statement: str
    verdict: str
    reason: str


def claims(settings, comparisons):
    """The claims that a report like this one is asked about, each for every pair of settings that can speak to it."""
    pairs = sam_pairs(settings)
    missing_sam = "it takes a setting with SAM and one without, equal in all else but the learning rate and the epochs"
    found = [
        [_faster("pretraining converges faster", *pair, "epochs") for pair in pretraining_pairs(settings)]
        or [Claim("pretraining converges faster", OPEN, "it takes a setting with --scratch and one without, equal in "
                  "all else but the learning rate and the epochs, on the same images")],
        [_faster("SAM converges faster, counted in epochs", pair.sam, pair.plain, "epochs")
         for pair in pairs if pair.at == "epochs"]
        or [Claim("SAM converges faster, counted in epochs", OPEN, missing_sam)],
        [_faster("SAM converges faster, counted in forward-backward passes", pair.sam, pair.plain, "passes")
         for pair in pairs]
        or [Claim("SAM converges faster, counted in forward-backward passes", OPEN, missing_sam)],
        [_overfits_less(pair, comparisons.between(pair.sam, pair.plain)) for pair in pairs]
        or [Claim("SAM overfits less", OPEN, missing_sam)],
        [_size_matters_little(comparisons.between(*pair)) for pair in size_pairs(settings)]
        or [Claim("size matters little here", OPEN,
                  "it takes two settings that are equal in all but --arch, on the same images")],
    ]
    return [claim for several in found for claim in several]


def _faster(statement, first, second, unit):
    """Whether the first setting needs fewer epochs or passes for what both reach.

    What both reach is 95 % of the lower of their final accuracies: a run that learns little would be done at once if
    it were measured by its own end. A setting that is beyond all that the other one ever reaches after its first epoch
    is the faster one too, however soon the other one has reached its own little.
    """
    kind = "held-out" if first.held_out else "training"
    finals = [np.mean([run.watched[-1] for run in setting.runs]) for setting in (first, second)]
    target = 0.95 * min(finals)
    own, others = ([getattr(run, f"{unit}_to")(target) for run in setting.runs] for setting in (first, second))
    when = {"epochs": "in epoch {}", "passes": "after {} passes"}[unit]
    reason = (f"{first.in_prose} reaches {100 * target:.1f} % {kind} accuracy {when.format(count(own))}, {second.in_prose} "
              f"{when.format(count(others))}; that is 95 % of the lower of their final accuracies, "
              f"{100 * finals[0]:.1f} and {100 * finals[1]:.1f} %")
    at_once = min(run.watched[0] for run in first.runs)
    most = max(run.watched.max() for run in second.runs)
    if at_once > most:
        reason += (f"; after its first epoch {first.in_prose} is at {100 * at_once:.1f} %, and {second.in_prose} never gets "
                   f"beyond {100 * most:.1f} % in {second.settings['epochs']} epochs")
    if max(own) < min(others) or at_once > most:
        verdict = SUPPORTED
    elif min(own) >= max(others):
        verdict = NOT_SUPPORTED
    else:
        verdict = OPEN
        reason += "; the ranges over seeds overlap: it takes more seeds"
    return Claim(statement, verdict, reason + _also_differing(first, second) + _of_one_run(first, second))


def _also_differing(first, second):
    names = [name for name in differing(first, second) if name in {"lr", "epochs", "rho", "head_init", "layer_decay"}]
    words = [f"{name.replace('_', ' ')} {in_words(first.settings.get(name))} and {in_words(second.settings.get(name))}"
             for name in names]
    return f"; they differ in {', '.join(words)} too" if words else ""


def _of_one_run(first, second):
    return "; one run each, so another seed may change it" if len(first.runs) == len(second.runs) == 1 else ""


def _overfits_less(pair, comparison):
    """Whether the gap between training and val is smaller with SAM by more than the noise of the images of val.

    The noise is that of the paired difference in accuracy on val: the accuracy in training is of many more images.
    """
    sam, plain = pair.sam, pair.plain
    less = plain.mean("gap") - sam.mean("gap")
    overlap = ranges_overlap(sam, plain, "gap")
    reason = (f"at equal {pair.at} training minus val accuracy is {gap_in_words(sam)} and {gap_in_words(plain)}; on val, "
              f"{difference_in_words(comparison)}")
    noise = f"the noise of {len(sam.images.names)} images (± {points(comparison.margin)})"
    if overlap:
        return Claim("SAM overfits less", OPEN,
                     f"{reason}; the ranges of the gap over seeds overlap: it takes more seeds")
    if not abs(less) > comparison.margin:  # a gap may be NaN, too
        return Claim("SAM overfits less", OPEN, f"{reason}; the gaps differ by {points(less)}, no more than {noise}: "
                     "it takes more images to validate on")
    return Claim("SAM overfits less", SUPPORTED if less > 0 else NOT_SUPPORTED,
                 f"{reason}; the gaps differ by {points(less)}, more than {noise}{_of_one_run(sam, plain)}")


def _size_matters_little(comparison):
    """Whether a larger and a smaller model differ by less than `LITTLE`, with 95 % confidence."""
    larger, smaller, images = comparison.first, comparison.second, len(comparison.first.images.names)
    difference, margin = comparison.difference, comparison.margin
    reason = (f"{larger.in_prose} has {larger.model['parameters'] / 1e6:.1f} M parameters, {smaller.in_prose} "
              f"{smaller.model['parameters'] / 1e6:.1f} M; {difference_in_words(comparison)}")
    interval = (f"the difference is {100 * difference:+.1f} ± {points(margin)}, where less than {100 * LITTLE:.0f} "
                "counts as little")
    if comparison.exceeds_noise and abs(difference) >= LITTLE:
        verdict = NOT_SUPPORTED
    elif abs(difference) + margin < LITTLE:
        verdict = SUPPORTED
    else:
        verdict = OPEN
        if abs(difference) < LITTLE:
            needed = images * (margin / (LITTLE - abs(difference))) ** 2
            interval += f": it takes about {float(f'{needed:.2g}'):,.0f} images to validate on"
        else:
            interval += ": it takes more images to validate on, or more seeds"
    return Claim("size matters little here", verdict, f"{reason}; {interval}{_of_one_run(larger, smaller)}")
