"""Loop around steps of two linear layers: resumed, stopped, skipped, scored."""

import math
import os
import random
import re
import signal

import numpy as np
import pytest
import torch

from common.cli import SaveEvery
from common.errors import Interrupted, TrainingStopped
from engine import checkpointing, distributed, loop
from engine.schedule import warmup_cosine
from engine.state import TrainingState
from tests.helpers.linear import NAMES, Training
from tests.helpers.training import computed, metrics, same, weights

STEPS = math.ceil(len(NAMES) / 4)  # an epoch


class Killed(BaseException):
    pass


@pytest.fixture
def dying():
    """A function that makes the process die after each save of last.pt, or before the n-th of `name`."""
    save = checkpointing.save_checkpoint

    def arm(monkeypatch, name="last.pt", at=None):
        saves = []

        def save_then_die(content, path, *previous):
            saves.append(path.name)
            if at and saves.count(name) == at:
                raise Killed
            save(content, path, *previous)
            if not at and path.name == name:
                raise Killed

        monkeypatch.setattr(checkpointing, "save_checkpoint", save_then_die)

    return arm


def content(output, name="last.pt"):
    return torch.load(output / name, weights_only=True)


@pytest.mark.parametrize("args", [
    {}, {"sam": True, "accumulate": 2},
    {"optimizer": "sgd", "sam": True, "adaptive": True, "rho": 0.5, "ema": 0.5},
    {"precision": "fp16"}, {"precision": "bf16", "optimizer": "adamw"}])
def test_a_run_that_dies_after_every_step_ends_bit_for_bit_like_one_left_alone(
        tmp_path, monkeypatch, dying, args):
    """The layers draw from all three random streams; each step is taken by another process, so to speak."""
    args = {**args, "save_every": SaveEvery("1")}
    Training(tmp_path / "straight", **args).run()
    dying(monkeypatch)
    deaths = 0
    while True:
        random.seed(deaths), np.random.seed(deaths), torch.manual_seed(deaths)
        try:
            Training(tmp_path / "killed", **args).run()
            break
        except Killed:
            deaths += 1
    steps = math.ceil(STEPS / args.get("accumulate", 1))
    assert deaths == 2 * (steps + 1), "each step, and the end of each epoch"
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "straight", name), weights(tmp_path / "killed", name))
    one, other = (content(tmp_path / name)["resume"] for name in ("straight", "killed"))
    assert str(one["optimizer"]) == str(other["optimizer"]) and one["scaler"] == other["scaler"]
    assert computed(tmp_path / "straight") == computed(tmp_path / "killed")


def test_each_step_starts_all_random_streams_from_seed_rank_epoch_and_step(tmp_path, monkeypatch):
    draws = []
    count = TrainingState.count_step

    def counting(self, *args):
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
        count(self, *args)

    monkeypatch.setattr(TrainingState, "count_step", counting)
    for seed in (0, 0, 1):
        Training(tmp_path / f"{len(draws)}", seed=seed).run()
    first, again, other = draws[:12], draws[12:24], draws[24:]
    assert first == again and len(set(first)) == 12 and not set(first) & set(other)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    Training(tmp_path / "rank 1").run()
    assert len(draws) == 48 and not set(draws[36:]) & set(first)


def test_the_rate_follows_the_schedule_and_the_groups_their_share_of_it(tmp_path, monkeypatch):
    """2 epochs of 6 steps: a warm-up over the first of them, and a half cosine."""
    rates = []
    monkeypatch.setattr(TrainingState, "count_step", lambda self, *args: (
        rates.append([group["lr"] for group in self.optimizer.param_groups]),
        setattr(self, "step", self.step + 1)))
    training = Training(tmp_path / "run", lr=0.5)
    first, *others = training.model.parameters()
    training.optimizer.param_groups[0]["params"] = [first]
    training.optimizer.add_param_group({"params": others, "lr_scale": 0.25})
    training.run()
    expected = [0.5] + [0.25 * (1 + math.cos(math.pi * step / 11)) for step in range(11)]
    assert np.allclose(rates, [[rate, rate / 4] for rate in expected])
    last = [float(row["lr"]) for row in metrics(tmp_path / "run")]
    assert last == pytest.approx([expected[5], expected[11]])


def test_warmup_cosine():
    factors = [warmup_cosine(100, 10)(step) for step in range(100)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)]) and factors[10] == 1
    assert factors[55] == pytest.approx(0.5) and factors[99] < 0.001 and warmup_cosine(1, 0)(0) == 1


def test_metrics_are_sums_over_the_epoch(tmp_path):
    """22 images, 3 batches of 4 a step: 2 steps of 12 and 10 images, 6 passes over a batch, 12 with SAM."""
    sums = iter([(12.0, 3), (5.0, 4), (11.0, 9), (11.0, 9)])
    for sam in (False, True):
        training = Training(tmp_path / str(sam), sam=sam, accumulate=3, epochs=1)
        sizes = []
        training.take_step = lambda batches, size, sizes=sizes: (
            sizes.append((len(batches), size)), next(sums))[1]
        training.run()
        assert sizes == [(3, 12), (3, 10)]
    first, second = metrics(tmp_path / "False")[0], metrics(tmp_path / "True")[0]
    fit = [float(first[name]) for name in ("train_loss", "train_accuracy")]
    assert fit == pytest.approx([17 / 22, 7 / 22])
    assert [first["passes"], second["passes"], first["skipped_steps"]] == ["6", "12", "0"]
    assert first["holdout_loss"] == first["holdout_accuracy"] == ""
    assert 100 < float(first["peak_memory_mib"]) < 1e5


# Saving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every, saves", [(None, 2), ("4", 4), ("1", 14), ("1000s", 2)])
def test_it_saves_at_the_end_of_epochs_and_as_often_as_asked(tmp_path, monkeypatch, every, saves):
    names, save = [], checkpointing.save_checkpoint
    monkeypatch.setattr(checkpointing, "save_checkpoint", lambda content, path, *previous: (
        names.append(path.name), save(content, path, *previous)))
    Training(tmp_path / "run", save_every=SaveEvery(every) if every else None).run()
    assert names.count("last.pt") == saves and names.count("best.pt") == 2


def test_a_best_epoch_is_one_with_the_highest_score_and_ties_go_to_the_later_one(tmp_path, monkeypatch):
    scores, names, save = iter([1, 3, 3, 2]), [], checkpointing.save_checkpoint
    monkeypatch.setattr(checkpointing, "save_checkpoint", lambda content, path, *previous: (
        names.append(path.name), save(content, path, *previous)))
    training = Training(tmp_path / "run", epochs=4)
    training.evaluate, training.held_out = lambda model, until_stopped: (2.0, next(scores)), 4
    training.run()
    assert names == ["last.pt", "best.pt", "last.pt", "best.pt", "last.pt", "best.pt", "last.pt"]
    assert [row["holdout_accuracy"] for row in metrics(tmp_path / "run")] == ["0.25", "0.75", "0.75", "0.5"]
    assert content(tmp_path / "run", "best.pt")["epoch"] == 3


def test_without_a_held_out_part_the_last_epoch_is_the_best(tmp_path):
    Training(tmp_path / "run").run()
    assert same(weights(tmp_path / "run", "best.pt"), weights(tmp_path / "run"))
    assert "resume" not in content(tmp_path / "run", "best.pt")


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("killed, later_score, best_epoch", [(2, 1, 3), (3, 1, 3), (3, 3, 3)])
def test_best_is_completed_after_a_kill_before_it(tmp_path, dying, monkeypatch, ema, killed, later_score,
                                                  best_epoch):
    """A kill comes between last.pt and best.pt of the second epoch, or of the third."""
    output = tmp_path / "run"

    def training(*scores):
        one = Training(output, epochs=3, ema=ema)
        left = iter(scores)
        one.evaluate, one.held_out = lambda model, until_stopped: (0.0, next(left)), 4
        return one

    with monkeypatch.context() as patch:
        dying(patch, "best.pt", at=killed)
        with pytest.raises(Killed):
            training(1, 2, 3).run()
    assert content(output, "best.pt")["epoch"] == killed - 1
    saved = content(output)
    (output / "metrics.csv").unlink()
    checkpointing.complete_outputs(output, saved)
    average = saved["resume"]["average"]
    expected = saved["state_dict"]
    if ema:
        expected = {key[7:]: value for key, value in average.items() if key[:7] == "module."}
    best = content(output, "best.pt")
    assert best["epoch"] == killed and same(best["state_dict"], expected) and "resume" not in best
    assert len(metrics(output)) == killed
    training(later_score).run()
    assert content(output, "best.pt")["epoch"] == (killed if later_score < killed else best_epoch)
    assert len(metrics(output)) == 3


def test_a_best_that_is_not_the_runs_own_is_replaced(tmp_path, capsys):
    output, scores = tmp_path / "run", iter([3, 1, 2, 1])

    def training(epochs):
        one = Training(output, epochs=epochs)
        one.evaluate, one.held_out = lambda model, until_stopped: (0.0, next(scores)), 4
        return one

    training(2).run()
    torch.save({**content(output, "best.pt"), "epoch": 2}, output / "best.pt")
    training(4).run()
    assert content(output, "best.pt")["epoch"] == 3
    printed = capsys.readouterr()
    assert "best.pt is not that of epoch 1, the best so far" in printed.err
    assert "best.pt holds epoch 3, accuracy 0.500" in printed.out


def test_averaged_weights_follow_their_equation_and_are_what_is_evaluated_and_kept(tmp_path, monkeypatch):
    """Against the weights after each of the steps, averaged here in float64."""
    after, evaluated = [], []
    count = TrainingState.count_step

    def recording(self, *args):
        after.append({key: value.double().clone() for key, value in self.model.state_dict().items()})
        count(self, *args)

    monkeypatch.setattr(TrainingState, "count_step", recording)
    training = Training(tmp_path / "run", ema=0.7)
    training.held_out = 4
    training.evaluate = lambda model, until_stopped: (evaluated.append(
        {key: value.clone() for key, value in model.state_dict().items()}), (0.0, 1))[1]
    training.run()
    average = after[0]
    for values in after[1:]:
        average = {key: 0.7 * average[key] + 0.3 * values[key] for key in values}
    best, last = weights(tmp_path / "run", "best.pt"), weights(tmp_path / "run")
    assert len(after) == 12 and max((best[key] - average[key]).abs().max().item() for key in best) < 1e-6
    assert same(evaluated[1], best) and not same(best, last)
    assert all(torch.equal(last[key].double(), after[-1][key]) for key in last), "last.pt keeps the raw ones"


# Signals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, monkeypatch, capfd, number, code):
    Training(tmp_path / "straight", sam=True).run()
    count = TrainingState.count_step

    def interrupt(self, *args):
        if (self.epoch, self.step) == (1, 1):
            os.kill(os.getpid(), number)
        count(self, *args)

    monkeypatch.setattr(TrainingState, "count_step", interrupt)
    with pytest.raises(Interrupted,
                       match="after step 2 of epoch 2: --resume goes on from .*last.pt") as stopped:
        Training(tmp_path / "run", sam=True).run()
    assert stopped.value.exit_code == code
    message = f"note: {number.name}: finishing the step and saving; once more stops at once"
    assert message in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(TrainingState, "count_step", count)
    Training(tmp_path / "run", sam=True).run()
    assert same(weights(tmp_path / "run"), weights(tmp_path / "straight"))
    assert computed(tmp_path / "run") == computed(tmp_path / "straight")


def test_a_signal_during_the_evaluation_cuts_it_short_and_the_epoch_is_scored_anew(tmp_path):
    batches = []

    def evaluate(model, until_stopped, interrupted=None):
        for batch in until_stopped(range(4)):
            batches.append(batch)
            if batch == interrupted:
                os.kill(os.getpid(), signal.SIGTERM)
        return 0.0, 2

    training = Training(tmp_path / "run", epochs=1)
    training.evaluate, training.held_out = lambda *args: evaluate(*args, interrupted=1), 4
    with pytest.raises(Interrupted, match="after step 6 of epoch 1"):
        training.run()
    assert batches == [0, 1] and not (tmp_path / "run" / "metrics.csv").exists()
    training = Training(tmp_path / "run", epochs=1)
    training.evaluate, training.held_out = evaluate, 4
    training.run()
    assert batches == [0, 1, 0, 1, 2, 3] and len(metrics(tmp_path / "run")) == 1


# Losses and weights that are not finite ---------------------------------------------------------------


def names_of_step(number, batch_size=4):
    """The images of a step of the first epoch, with the seed 0."""
    order = np.random.default_rng([0, 0]).permutation(len(NAMES))
    return [NAMES[i] for i in order[batch_size * (number - 1):batch_size * number]]


class Spoilt(torch.utils.data.Dataset):
    """The data set with the image of a name as NaN."""

    def __init__(self, dataset, name):
        self.dataset, self.index = dataset, NAMES.index(name)

    def __getitem__(self, key):
        inputs, target = self.dataset[key]
        return inputs * (math.nan if key[1] == self.index else 1), target


@pytest.mark.parametrize("args", [{"optimizer": "sgd"}, {"optimizer": "sgd", "sam": True},
                                  {"precision": "fp16"}])
def test_a_loss_that_is_not_finite_stops_with_the_state_before_it_and_may_be_skipped(tmp_path, capsys, args):
    names = names_of_step(3)

    def run(**more):
        training = Training(tmp_path / "run", **args, **more)
        training.dataset = Spoilt(training.dataset, names[1])
        training.run()

    for _ in range(2):
        with pytest.raises(TrainingStopped, match="the loss is not finite in step 3 of epoch 1: the last "
                                                  "good state, after step 2 of epoch 1, is in .*run/last.pt"
                           ) as stopped:
            run()
        assert list(stopped.value.details) == names and stopped.value.exit_code == 3
        assert not (tmp_path / "run" / "previous.pt").exists(), "the same state is not saved twice"
    assert content(tmp_path / "run")["resume"]["step"] == 2
    run(on_nonfinite="skip")
    rows = metrics(tmp_path / "run")
    assert [row["skipped_steps"] for row in rows] == ["1", "1"]
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)
    assert f"skipped {', '.join(names)}" in capsys.readouterr().err
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_a_loss_that_is_not_finite_in_the_first_step_leaves_nothing(tmp_path):
    training = Training(tmp_path / "run")
    training.dataset = Spoilt(training.dataset, names_of_step(1)[0])
    with pytest.raises(TrainingStopped, match="in step 1 of epoch 1: no good state was saved before it"):
        training.run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spoilt_step", [12, 11])  # the last step of the second epoch; the one before
def test_weights_that_are_not_finite_are_not_saved(tmp_path, spoilt_step):
    training = Training(tmp_path / "run", epochs=3, on_nonfinite="skip")
    take_step, steps = training.take_step, []

    def spoiling(batches, size):
        sums = take_step(batches, size)
        steps.append(None)
        if len(steps) == spoilt_step:
            next(training.model.parameters()).data.fill_(math.inf)
        return sums

    training.take_step = spoiling
    with pytest.raises(TrainingStopped, match=f"the weights are not finite after step {spoilt_step - 6} of "
                                              "epoch 2: the last good state, after epoch 1"):
        training.run()
    assert content(tmp_path / "run")["resume"]["epoch"] == 1
    for name in ("last.pt", "best.pt"):
        assert all(value.isfinite().all() for value in weights(tmp_path / "run", name).values())


def test_an_error_inside_draws_the_curves_and_stays_the_error(tmp_path, real_curves):
    Training(tmp_path / "run", epochs=1).run()
    (tmp_path / "run" / "curves.png").unlink()
    training = Training(tmp_path / "run", epochs=2)
    training.take_step = lambda batches, size: 1 / 0
    with pytest.raises(ZeroDivisionError):
        training.run()
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize("terminal, rank, lines", [(False, 0, 10), (True, 0, 0), (False, 1, 0)])
def test_a_log_gets_a_line_now_and_then_where_a_terminal_has_a_bar(tmp_path, monkeypatch, capsys, terminal,
                                                                   rank, lines):
    bar, steps = loop.tqdm, loop.Loop.steps

    def of_rank(self, loader):
        self.is_main = rank == 0
        return steps(self, loader)

    monkeypatch.setattr(loop.Loop, "steps", of_rank)
    if terminal:
        monkeypatch.setattr(loop, "tqdm", lambda **options: bar(**{**options, "disable": False}))
    monkeypatch.setattr(loop, "LINE_EVERY", 0)
    Training(tmp_path / "run").run()
    found = re.findall(r"^epoch (\d)/2  step (\d)/6  loss \d\.\d{3}  \d+ images/s  0:00:00 left$",
                       capsys.readouterr().out, re.MULTILINE)
    assert found == [(str(epoch), str(step)) for epoch in (1, 2) for step in range(1, 6)][:lines]
    monkeypatch.setattr(loop, "LINE_EVERY", 3600)
    Training(tmp_path / "other").run()
    assert "step" not in capsys.readouterr().out
