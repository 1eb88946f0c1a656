"""Which settings are compared with which, and by how much they differ."""

from collections import namedtuple
from itertools import combinations

from compare.names import as_text, describe, distinct_names, given, key
from compare.statistics import holm, mcnemar, paired_margin, wins_and_losses

LEVEL = 0.05  # a p-value below it exceeds the noise
EQUAL_PASSES = 0.05  # by which share the passes of the run without SAM may differ from those with SAM

# What two settings of a comparison may differ in, besides what they are compared for.
SAM_ALONE = {"sam", "rho", "adaptive", "sync_perturbation"}
SAM = SAM_ALONE | {"lr", "epochs"}
PRETRAINING = {"scratch", "weights", "head_init", "layer_decay", "lr", "epochs"}
SIZE = {"arch", "weights"}
# Settings that differ together for one cause.
ONE_CAUSE = [SAM_ALONE, {"scratch", "weights"}, SIZE]

BEST_HELD_OUT = "highest held-out accuracy"

EXCEEDS, OVERLAP, WITHIN = "exceeds the noise", "ranges over seeds overlap", "within the noise"


class SamPair(namedtuple("SamPair", "equal plain sam choice")):
    """A setting without and one with SAM, of equal "epochs" or "passes", and how their rates were chosen."""

    @property
    def by_design(self):
        """The settings in which the two may differ and be comparable for it: {name: why}."""
        chosen = {"lr": "each with the highest held-out accuracy"} if self.choice == BEST_HELD_OUT else {}
        return {**chosen, "epochs": "for equal passes"} if self.equal == "passes" else chosen


class Comparison:
    """Two settings on the same images. `p` is McNemar's, `adjusted` by Holm's method for all comparisons."""

    def __init__(self, first, second, adjusted=None):
        self.first, self.second, self.adjusted = first, second, adjusted
        self.wins, self.losses = wins_and_losses(first.correct, second.correct)
        self.p = mcnemar(self.wins, self.losses)
        self.difference = first.mean("accuracy") - second.mean("accuracy")
        self.margin = paired_margin(first.correct, second.correct)  # of the difference, 95 %

    @property
    def verdict(self):
        """Whether the images say that one is better, and the ranges over seeds do not say otherwise."""
        if not (self.adjusted < LEVEL and (self.wins - self.losses) * self.difference > 0):
            return WITHIN
        return OVERLAP if ranges_overlap(self.first, self.second, "accuracy") else EXCEEDS


class Comparisons(list):
    """All comparisons of settings on the same images, in the order of the settings."""

    def __init__(self, settings):
        pairs = combinations(settings, 2)
        super().__init__(Comparison(*pair) for pair in pairs if pair[0].images == pair[1].images)
        for comparison, adjusted in zip(self, holm([comparison.p for comparison in self])):
            comparison.adjusted = adjusted

    def between(self, first, second):
        """The comparison of two settings, the first one first."""
        for comparison in self:
            if {comparison.first, comparison.second} == {first, second}:
                return Comparison(first, second, comparison.adjusted)
        raise KeyError(f"{first.name} and {second.name} were evaluated on different images")


def ranges_overlap(first, second, quantity):
    """Whether the ranges over seeds of a quantity overlap. Two single runs have none: False."""
    one, other = first.values(quantity), second.values(quantity)
    return len(one) + len(other) > 2 and bool(max(one.min(), other.min()) <= min(one.max(), other.max()))


def differing(first, second):
    """The names of the settings in which two differ, each a dict of a run's settings."""
    one, other = given(first), given(second)
    return [name for name in {**first, **second} if one.get(name) != other.get(name)]


def one_cause(names):
    """Whether settings of these names, in which two runs differ, are a single cause."""
    return len(names) < 2 or any(cause.issuperset(names) for cause in ONE_CAUSE)


def side_by_side(names, first, second):
    """The values of some settings in two dicts of them: `lr 1e-04 / 3e-04, epochs 4 / 8`."""
    return ", ".join(f"{name.replace('_', ' ')} {as_text(first.get(name))} / {as_text(second.get(name))}"
                     for name in names)


def causes(first, second):
    """In what two dicts of settings differ, and whether more than one of it may be the cause."""
    names = differing(first, second)
    several = "" if one_cause(names) else ": no single one can be named as the cause"
    return side_by_side(names, first, second) + several


def families(settings, free):
    """Settings on the same images that are equal in all but `free`, as lists of at least two."""
    groups = group_by(settings, lambda setting: (key(setting.settings, free), setting.images))
    return [family for family in groups.values() if len(family) > 1]


def group_by(items, property_of):
    """Lists of items by property_of(item), a dict."""
    groups = {}
    for item in items:
        groups.setdefault(property_of(item), []).append(item)
    return groups


def sam_pairs(settings):
    """Every setting with SAM beside one without, a SamPair for `equal` epochs and one for equal passes."""
    pairs = []
    for family in families(settings, SAM):
        plain = [setting for setting in family if not setting.settings.get("sam")]
        with_sam = [setting for setting in family if setting.settings.get("sam")]
        for variant in group_by(with_sam, lambda setting: key(setting.settings, {"lr"})).values():
            epochs, passes = variant[0].settings["epochs"], variant[0].mean("passes")
            pairs += _chosen("epochs", [one for one in plain if one.settings["epochs"] == epochs], variant)
            near = [one for one in plain if abs(one.mean("passes") - passes) <= EQUAL_PASSES * passes]
            pairs += _chosen("passes", near, variant)
    return pairs


def _chosen(equal, plain, sam):
    """The SamPairs out of the learning rates of both sides: chosen by held-out images, never by val."""
    if len(plain) == len(sam) == 1:
        return [SamPair(equal, plain[0], sam[0], "only one")]
    if plain and all(setting.held_out for setting in plain + sam):
        best = [max(side, key=lambda setting: setting.mean("held_out_accuracy")) for side in (plain, sam)]
        return [SamPair(equal, *best, BEST_HELD_OUT)]
    return [SamPair(equal, one, other, "same learning rate") for one in plain for other in sam
            if one.settings["lr"] == other.settings["lr"]]


def pretraining_pairs(settings):
    """For each setting from scratch the pretrained one that is most like it: (pretrained, from scratch)."""
    pairs = []
    for family in families(settings, PRETRAINING):
        pretrained = [setting for setting in family if not setting.settings.get("scratch")]
        pairs += [(min(pretrained, key=lambda one: len(differing(one.settings, setting.settings))), setting)
                  for setting in family if setting.settings.get("scratch") and pretrained]
    return pairs


def size_pairs(settings):
    """Settings that are equal in all but the architecture: (larger, smaller)."""
    sized = [setting for setting in settings if "parameters" in setting.model]
    pairs = [sorted(pair, key=lambda setting: -setting.model["parameters"])
             for family in families(sized, SIZE) for pair in combinations(family, 2)]
    return [pair for pair in pairs if pair[0].model["parameters"] > pair[1].model["parameters"]]


def sweeps(settings):
    """Sets of settings that differ in the learning rate alone: (name, settings in the order of the rates)."""
    trained = [setting for setting in settings if setting.settings["lr"] > 0]  # 0 has no place on a log axis
    sets = [sorted(family, key=lambda one: one.settings["lr"]) for family in families(trained, {"lr"})]
    shared = [family[0].settings for family in sets]
    names = [f"{describe(values)}, {values['epochs']} epochs" for values in shared]
    return list(zip(distinct_names(names, shared, ignored={"lr"}), sets))


def sweep_curves(sweeps):
    """The argument of plots.curves.draw_learning_rates."""
    return [{"name": name, "rates": [setting.settings["lr"] for setting in sweep],
             "val": [setting.values("accuracy") for setting in sweep],
             "held_out": [one.values("held_out_accuracy") for one in sweep if one.held_out] or None}
            for name, sweep in sweeps]
