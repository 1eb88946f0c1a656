"""How often a step would wait for a GPU: once, to read the loss. Counted on the CPU by what would do so."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.transforms import MixupCutMix
from engine.device import to_device
from engine.state import TrainingState
from engine.step import OptimizerStep, build_optimizer
from models import catr, decoding
from models.losses import ClassificationLoss
from tests.helpers.linear import ARGS

CPU, CLASSES = torch.device("cpu"), 4
READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique"}


class Waits(TorchDispatchMode):
    """`names` of what reads a tensor's content, makes one on the CPU, or uses a mask as an index."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names = []
        for owner, name in ((torch.Tensor, "tolist"), (torch.Tensor, "cpu"), (torch.Tensor, "numpy"),
                            (torch, "tensor"), (torch, "as_tensor"), (torch, "from_numpy")):
            monkeypatch.setattr(owner, name, self.counting(name, getattr(owner, name)))

    def counting(self, name, function):
        def counted(*args, **kwargs):
            self.names.append(name)
            return function(*args, **kwargs)

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            value is not None and value.dtype == torch.bool
            for indices in args if isinstance(indices, (list, tuple)) for value in indices)
        if name in READING or masks:
            self.names.append(name)
        return func(*args, **kwargs or {})


def build(model, loss, precision="fp32", **args):
    args = type("Args", (), {**ARGS, "optimizer": "sgd", **args})
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(args, model.parameters(), model)
    state = TrainingState(model, optimizer, scaler, {}, "", {}, args.ema)
    return OptimizerStep(model, optimizer, scaler, loss, CPU, precision), state


def plain():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, CLASSES))


# torch's own count of averaged steps, which stays on the CPU
@pytest.mark.parametrize("args, others", [
    ({}, []), ({"sam": True}, []), ({"sam": True, "adaptive": True}, []),
    ({"ema": 0.9, "sam": True}, ["_local_scalar_dense"])])
@pytest.mark.parametrize("mixup, cutmix", [(0, 0), (0.5, 0), (0, 1.0)])
@pytest.mark.parametrize("size", [4, 5])
def test_a_step_reads_the_loss_and_nothing_else(monkeypatch, args, others, mixup, cutmix, size):
    take_step, state = build(plain(), ClassificationLoss(0.1), **args)
    batches = [[torch.randn(size, 3, 8, 8), torch.arange(size) % CLASSES] for _ in range(2)]
    for _ in range(2):
        np.random.seed(0)
        with monkeypatch.context() as patch, Waits(patch) as waits:
            moved = [to_device(batch, CPU) for batch in batches]
            if mixup or cutmix:
                moved = [MixupCutMix(mixup, cutmix, 0.1, CLASSES)(*batch) for batch in moved]
            state.count_step(2 * size, *take_step(moved, 2 * size))
        assert waits.names == ["tolist", *others]


def test_a_step_of_the_captioner_reads_the_loss_and_nothing_else(monkeypatch):
    def loss(model, batch):
        photos, ids = batch
        return decoding.token_losses(model(photos, ids[:, :-1]), ids)

    take_step, _ = build(catr.CATR(catr.small_config(20)), loss, sam=True)
    photos = [torch.randn(3, 64, 32 + 16 * i) for i in range(3)]
    with Waits(monkeypatch) as waits:
        take_step([[photos, torch.randint(3, 20, (3, 6))]], 3)
    assert waits.names == ["tolist"]


@pytest.mark.parametrize("work", [
    lambda x: x[x > 0], lambda x: x.sum().item(), lambda x: bool(x[0] > 0), lambda x: x.tolist(),
    lambda x: x.nonzero(), lambda x: x.cpu(), lambda x: x.masked_fill_(x > 0, 0)[x > 0].sum(),
    lambda x: x.__setitem__(x > 0, 0.0), lambda x: torch.tensor([1.0]) + x])
def test_what_waits_is_counted(monkeypatch, work):
    with Waits(monkeypatch) as waits:
        work(torch.randn(5))
    assert waits.names


def test_the_average_is_torchs_bit_for_bit():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    _, state = build(model, None, ema=0.9)
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(4):
        with torch.no_grad():
            for value in (*model.parameters(), model[1].running_mean):
                value += torch.randn_like(value)
        state.count_step(1, 0.0, 0.0)
        expected.update_parameters(model)
    ours, theirs = state.average.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["module.0.weight"], model[0].weight)
