"""What may be claimed of settings, a row a claim."""

from collections import namedtuple

import numpy as np

from compare.comparisons import (
    EXCEEDS,
    causes,
    differing,
    one_cause,
    pretraining_pairs,
    ranges_overlap,
    sam_pairs,
    side_by_side,
    size_pairs,
)

LITTLE = 0.03  # a difference in accuracy below it counts as little
SUPPORTED, NOT_SUPPORTED, OPEN = VERDICTS = "supported", "not supported", "these runs do not say"
HEADER = ["claim", "verdict", "first setting", "second setting", "first value", "second value",
          "difference ± 95 % margin", "note"]
MORE_SEEDS = "ranges over seeds overlap: needs more seeds"
ALIKE = "beside one without, equal in all else but lr and epochs, on the same images"

# Texts all, in the order of HEADER; empty where there are none.
Claim = namedtuple("Claim", "statement verdict first second first_value second_value margin note",
                   defaults=[""] * 6)


def claims(settings, comparisons):
    """A list of Claims, the supported ones first, about all settings that can speak to them."""
    pairs, between = sam_pairs(settings), comparisons.between
    needs_sam, rows = f"needs a setting with --sam {ALIKE}", []
    for statement, needs, answers in (
            ("pretraining converges faster", f"needs a setting with --scratch {ALIKE}",
             [_faster(*pair, "epochs") for pair in pretraining_pairs(settings)]),
            ("SAM converges faster, counted in epochs", needs_sam,
             [_faster(pair.sam, pair.plain, "epochs", pair.by_design) for pair in pairs
              if pair.equal == "epochs"]),
            ("SAM converges faster, counted in forward-backward passes", needs_sam,
             [_faster(pair.sam, pair.plain, "passes", pair.by_design) for pair in pairs]),
            ("SAM overfits less", needs_sam,
             [_overfits_less(pair, between(pair.sam, pair.plain)) for pair in pairs]),
            ("size matters little here", "needs two --arch, equal in all else, on the same images",
             [_size_matters_little(between(*pair)) for pair in size_pairs(settings)])):
        rows += [Claim(statement, *answer) for answer in answers] or [Claim(statement, OPEN, note=needs)]
    return sorted(rows, key=lambda claim: VERDICTS.index(claim.verdict))


def _answer(verdict, first, second, values, margin, *notes, by_design=()):
    """The fields of a Claim after its statement, from two settings, and texts; empty notes are left out.

    `by_design` are settings that differ so that the two can be compared: {name: why}.
    """
    both = first.settings, second.settings
    names = differing(*both)
    if not one_cause([name for name in names if name not in by_design]):
        notes = [*notes, f"differ in {causes(*both)}"]
    else:
        notes = [*notes, *(f"{side_by_side([name], *both)}, {by_design[name]}" for name in by_design
                           if name in names)]
    if len(first.runs) == len(second.runs) == 1:
        notes = [*notes, "one run each: another seed may change it"]
    return verdict, first.name, second.name, *values, margin, "; ".join(filter(None, notes))


def _faster(first, second, unit, by_design=()):
    """Whether the first setting needs fewer epochs or passes for what both reach.

    That is 95 % of the lower of their final accuracies: measured by its own end, a run that learns little
    would be done at once. A setting that begins beyond all that the other one reaches is faster, too.
    """
    both = first, second
    finals = [np.mean([run.learning_curve[-1] for run in setting.runs]) for setting in both]
    target = 0.95 * min(finals)
    times, others = ([run.time_to(target, unit) for run in setting.runs] for setting in both)
    at_once = min(run.learning_curve[0] for run in first.runs)
    best = max(run.learning_curve.max() for run in second.runs)
    if max(times) < min(others) or at_once > best:
        verdict = SUPPORTED
    else:
        verdict = NOT_SUPPORTED if min(times) >= max(others) else OPEN
    spec, form = {"epochs": (".3g", "epoch {}"), "passes": (",.0f", "{} passes")}[unit]
    return _answer(
        verdict, *both, [_over_seeds(several, spec, form) for several in (times, others)], "",
        f"to {'held-out' if first.held_out else 'training'} accuracy {target:.3f}, "
        f"95 % of the lower of {finals[0]:.3f} and {finals[1]:.3f}",
        at_once > best and f"first at {at_once:.3f} after one epoch, second never above {best:.3f}",
        verdict == OPEN and MORE_SEEDS, by_design=by_design)


def _over_seeds(values, spec, form):
    """Mean and range over seeds, `epoch 3.5 (3 to 4)`; what is infinite was never reached."""
    low, mean, high = (format(value, spec) for value in (min(values), np.mean(values), max(values)))
    if np.isinf(max(values)):
        return "never" if low == high else f"{form.format(low)} to never"
    return form.format(mean) + f" ({low} to {high})" * (low != high)


def _overfits_less(pair, comparison):
    """Whether the gap between training and val is smaller with SAM by more than the noise.

    That is of the paired difference in accuracy on val: the accuracy in training is of many more images.
    """
    both = sam, plain = comparison.first, comparison.second
    difference = sam.mean("gap") - plain.mean("gap")
    verdict, reason = OPEN, f"within the noise of {len(sam.images.names)} images: needs more images"
    if np.isnan(difference):
        reason = "no training accuracy was measured"
    elif ranges_overlap(sam, plain, "gap"):
        reason = MORE_SEEDS
    elif abs(difference) > comparison.margin:
        verdict, reason = SUPPORTED if difference < 0 else NOT_SUPPORTED, ""
    gaps = [_over_seeds(100 * setting.values("gap"), "+.1f", "{} points") for setting in both]
    return _answer(verdict, *both, gaps, _with_margin(difference, comparison),
                   f"training minus val accuracy at equal {pair.equal}",
                   f"accuracy on val {100 * comparison.difference:+.1f} points: {comparison.verdict}", reason,
                   by_design=pair.by_design)


def _size_matters_little(comparison):
    """Whether a larger and a smaller model differ by less than `LITTLE`, with 95 % confidence."""
    both = comparison.first, comparison.second
    difference, margin = abs(comparison.difference), comparison.margin
    verdict, reason = OPEN, "needs more images, or more seeds"
    if comparison.verdict == EXCEEDS and difference >= LITTLE:
        verdict, reason = NOT_SUPPORTED, ""
    elif difference + margin < LITTLE:
        verdict, reason = SUPPORTED, ""
    elif difference < LITTLE:
        needed = len(comparison.first.images.names) * (margin / (LITTLE - difference)) ** 2
        reason = f"needs about {float(f'{needed:.2g}'):,.0f} images"
    values = [f"{setting.mean('accuracy'):.3f} with {setting.model['parameters'] / 1e6:.1f} M parameters"
              for setting in both]
    return _answer(verdict, *both, values, _with_margin(comparison.difference, comparison),
                   f"less than {100 * LITTLE:.0f} points is little", comparison.verdict, reason)


def _with_margin(difference, comparison):
    return f"{100 * difference:+.1f} ± {100 * comparison.margin:.1f} points"
