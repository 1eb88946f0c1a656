"""OptimizerStep on linear layers, against steps written out."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

import p1_train
import p2_train
from engine.state import TrainingState
from engine.step import FUSED, OPTIMIZERS, OptimizerStep, build_optimizer
from sam import SAM
from tests.helpers.linear import ARGS, CLASSES, WIDTH, network

CPU = torch.device("cpu")


class Args:
    def __init__(self, **args):
        self.__dict__.update({**ARGS, **args})


def plain_loss(model, batch):
    inputs, targets = batch
    logits = model(inputs)
    return F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(1) == targets).sum()


def batches(*sizes):
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(size, WIDTH, generator=generator),
             torch.randint(CLASSES, (size,), generator=generator)) for size in sizes]


def step(model, loss=plain_loss, precision="fp32", scale=2.0**16, **args):
    optimizer = build_optimizer(Args(**args), model.parameters(), model)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=precision == "fp16")
    return OptimizerStep(model, optimizer, scaler, loss, CPU, precision)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def gradients(values, batch):
    """Of the mean cross-entropy of the two layers, at given weights."""
    leaves = [value.clone().requires_grad_() for value in values]
    hidden = torch.tanh(batch[0] @ leaves[0].T + leaves[1])
    log_p = torch.log_softmax(hidden @ leaves[2].T + leaves[3], 1)
    return torch.autograd.grad(-log_p[torch.arange(len(batch[1])), batch[1]].mean(), leaves)


def joined(parts):
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("sam", [False, True])
def test_a_step_over_batches_of_different_sizes_is_that_of_the_mean_loss(sam, precision, monkeypatch):
    """w - lr * g, with SAM g at w + rho * g / ||g||; scaled and unscaled on the way in fp16."""
    monkeypatch.setattr("engine.step.autocast", lambda *args: nullcontext())  # scaled, but in fp32
    model, parts = network().eval(), batches(4, 4, 3)
    before = at = weights(model)
    g = gradients(at, joined(parts))
    if sam:
        norm = torch.cat([value.flatten() for value in g]).norm()
        g = gradients([w + 0.2 * value / norm for w, value in zip(at, g)], joined(parts))
    with torch.no_grad():
        expected_loss, expected_correct = plain_loss(model, joined(parts))
    take_step = step(model, precision=precision, optimizer="sgd", sam=sam, rho=0.2, lr=0.5)
    total, correct = take_step(parts, 11)
    assert total == pytest.approx(expected_loss.item(), rel=1e-5) and correct == expected_correct
    for value, w, slope in zip(model.parameters(), before, g, strict=True):
        torch.testing.assert_close(value.detach(), w - 0.5 * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flags, optimizer, sam", [
    ([], "adam", True), (["--optimizer", "adam"], "adam", False),
    (["--optimizer", "sgd", "--sam"], "sgd", True),
    (["--sam"], "adam", True), (["--no-sam"], "adam", False), (["--optimizer", "adamw"], "adamw", False)])
def test_the_optimizer_is_what_is_named_and_sam_around_adam_otherwise(flags, optimizer, sam):
    args = p1_train.parse_args(["--data", "d", "--output", "o", *flags])
    assert (args.optimizer, args.sam) == (optimizer, sam)
    model = network()
    built = build_optimizer(args, model.parameters(), model)
    assert isinstance(built, SAM) is sam
    base = built.base_optimizer if sam else built
    assert type(base) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW,
                          "sgd": torch.optim.SGD}[optimizer]
    assert base.param_groups[0].get("momentum") == (0.9 if optimizer == "sgd" else None)
    assert base.param_groups[0]["lr"] == args.lr
    assert built.param_groups[0].get("rho") == (0.05 if sam else None)


def test_the_captioner_is_trained_with_adamw_or_sam_around_adam():
    for flags, optimizer, sam in (([], "adamw", False), (["--sam"], "adam", True),
                                  (["--optimizer", "sgd"], "sgd", False)):
        args = p2_train.parse_args(["--data", "d", "--output", "o", *flags])
        assert (args.optimizer, args.sam) == (optimizer, sam)


def test_sam_takes_its_flags():
    model = network()
    args = Args(sam=True, rho=0.3, adaptive=True, sync_perturbation=True)
    built = build_optimizer(args, model.parameters(), model)
    assert built.param_groups[0]["rho"] == 0.3 and built.param_groups[0]["adaptive"] is True
    assert built.sync_perturbation is True and built.model is model


@pytest.mark.parametrize("precision, dtype", [
    ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("sam", [False, True])
def test_the_model_computes_in_the_precision_asked_for_and_its_weights_stay_fp32(precision, dtype, sam):
    formats = []

    def loss(model, batch):
        logits = model(batch[0])
        formats.append(logits.dtype)
        return F.cross_entropy(logits.float(), batch[1], reduction="sum"), torch.tensor(0)

    model, before = network(), weights(network())
    take_step = step(model, loss, precision, sam=sam)
    for _ in range(2):
        take_step(batches(4), 4)
    assert formats == [dtype] * (4 if sam else 2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(not torch.equal(value, w) for value, w in zip(weights(model), before, strict=True))


@pytest.fixture
def fused(monkeypatch):
    """fused(optimizer) makes it the one of GPUs, which the CPU has too."""
    def fuse(optimizer):
        base_optimizer, options = OPTIMIZERS[optimizer]
        monkeypatch.setitem(OPTIMIZERS, optimizer, (base_optimizer, {**options, "fused": True}))

    return fuse


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("optimizer", FUSED)
def test_the_fused_optimizers_step_as_the_plain_ones(fused, optimizer, sam, precision):
    trained = []
    for _ in range(2):
        model = network().eval()  # without noise
        take_step = step(model, precision=precision, optimizer=optimizer, sam=sam, lr=0.1)
        for _ in range(3):
            take_step(batches(4, 3), 7)
        trained.append(weights(model))
        fused(optimizer)
    assert take_step.optimizer.param_groups[0]["fused"] is True
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sam, bad_pass", [(False, 1), (True, 1), (True, 2)])
def test_in_fp16_the_fused_optimizers_leave_out_what_overflows(fused, sam, bad_pass):
    """The scaler has them do so themselves."""
    fused("adam")
    passes = []

    def loss(model, batch):
        passes.append(None)
        value, correct = plain_loss(model, batch)
        return value * (1e30 if len(passes) == bad_pass else 1), correct

    model = network()
    before = weights(model)
    take_step = step(model, loss, "fp16", scale=2.0**40, sam=sam)
    assert math.isfinite(take_step(batches(4), 4)[0]) and take_step.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, w) for value, w in zip(weights(model), before, strict=True))
    take_step.scaler.update(2.0**10)
    take_step(batches(4), 4)
    assert not torch.equal(weights(model)[0], before[0])


@pytest.mark.parametrize("then", [True, None])
def test_a_run_goes_on_with_the_kind_of_optimizer_that_the_device_wants(monkeypatch, then):
    """As one that began on a GPU does on a CPU, and the other way round."""
    def state(fused):
        monkeypatch.setitem(OPTIMIZERS, "adam", (torch.optim.Adam, {"fused": fused}))
        model = network().eval()
        take_step = step(model, sam=True)
        return take_step, TrainingState(model, take_step.optimizer, take_step.scaler, {}, "", {})

    began, before = state(None if then else True)
    began(batches(4), 4)
    saved = copy.deepcopy(before.state_dict())
    going_on, after = state(then)
    after.load_state_dict(saved)
    assert [optimizer.param_groups[0]["fused"] for optimizer in (began.optimizer, going_on.optimizer)] == [
        None if then else True, then]
    began(batches(3), 3)
    going_on(batches(3), 3)
    for one, other in zip(weights(before.model), weights(after.model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sam, bad_pass", [(False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_is_not_finite_takes_no_step(sam, bad_pass, precision):
    passes = []

    def loss(model, batch):
        passes.append(None)
        value, correct = plain_loss(model, batch)
        return value * (math.nan if len(passes) == bad_pass else 1), correct

    model = network()
    before = weights(model)
    take_step = step(model, loss, precision, optimizer="sgd", sam=sam)
    total, _ = take_step(batches(4), 4)
    # in fp16 the scaler skips what the second pass of SAM spoils
    assert math.isnan(total) is (bad_pass == 1 or precision == "fp32")
    assert len(passes) == 1 + sam, "both losses of SAM are read at once, before the step"
    assert all(torch.equal(value, w) for value, w in zip(weights(model), before, strict=True))
    assert math.isfinite(take_step(batches(4), 4)[0]) and not torch.equal(weights(model)[0], before[0])


@pytest.mark.parametrize("sam", [False, True])
def test_in_fp16_a_gradient_that_overflows_skips_the_step_and_halves_the_scale(sam):
    model = network()
    before = weights(model)
    take_step = step(model, lambda model, batch: (plain_loss(model, batch)[0] * 1e30, torch.tensor(0)),
                     "fp16", scale=2.0**40, optimizer="sgd", sam=sam)
    assert math.isfinite(take_step(batches(4), 4)[0])
    assert all(torch.equal(value, w) for value, w in zip(weights(model), before, strict=True))
    assert take_step.scaler.get_scale() == 2.0**39


def test_the_backward_that_settles_the_order_of_sums_leaves_nothing_behind():
    """No gradient, no random number drawn, no statistics changed. That it helps: test_distributed.py."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(),
                                torch.nn.Linear(4, CLASSES)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    passes, random_state = [], torch.get_rng_state()
    model[1].register_full_backward_hook(lambda *args: passes.append(torch.get_rng_state()))
    step(model)._settle_order(batches(4)[0])
    assert len(passes) == 1 and not torch.equal(passes[0], random_state), "it did draw numbers"
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
