"""Settings of several runs, drawn: what `p1_report.py` and `report_page.py` share."""

import numpy as np

from compare.statistics import reliability
from plots import report as plots

CURVES = "Mean over seeds as a line, their range as a band; above over epochs, below over forward-backward passes."
RELIABILITY = ("Answers by their confidence, in 15 bins, all seeds together: the larger a point, the more answers. Below the "
               "dashed line the model is surer than it is right. ECE is that of one run, mean over seeds.")


def curves(settings):
    """Loss and accuracy of settings over epochs and passes, as a Figure."""
    held_out = {setting.held_out for setting in settings}
    accuracy = {True: "held-out accuracy", False: "training accuracy"}
    return plots.draw_curves(
        [plots.Curves(setting.name + (f" ({accuracy[setting.held_out]})" if len(held_out) > 1 else ""),
                      setting.runs[0].history["epoch"],
                      np.mean([run.history["passes"].cumsum() for run in setting.runs], 0),
                      np.stack([run.history["train_loss"] for run in setting.runs]),
                      np.stack([run.watched for run in setting.runs])) for setting in settings],
        accuracy[held_out.pop()] if len(held_out) == 1 else "accuracy")


def calibration(settings):
    """The reliability curve of each setting, as a Figure."""
    return plots.draw_reliability(
        [(f"{setting.name}\nECE {setting.mean('ece'):.3f}",
          *reliability(np.concatenate([run.confidence for run in setting.runs]), setting.correct.ravel()))
         for setting in settings])
