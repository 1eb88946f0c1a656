"""Training through torch.compile, by a backend that counts its graphs and runs them as they are."""

import functools

import pytest
import timm
import torch
from torch._dynamo.backends.debugging import aot_eager

from engine.device import compiled
from engine.inference import score
from engine.step import OptimizerStep
from models.losses import ClassificationLoss
from sam import SAM
from tests.helpers.training import largest_difference, metrics, train

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch):
    """graphs(backend) is a list that has each graph that is compiled from then on."""
    def counted_by(backend):
        made = []

        def counting(graph, inputs):
            made.append(graph)
            return backend(graph, inputs)

        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
        return made

    torch._dynamo.reset()
    yield counted_by
    torch._dynamo.reset()


def trained(wrap):
    """The weights of a ViT after two epochs of steps of two batches, of which the last is smaller."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", depth=1, num_classes=3).train()
    images, targets = torch.randn(10, 3, 160, 160), torch.arange(10) % 3
    parts = [list(zip(images.split(size), targets.split(size))) for size in (3, 2)]
    forward = wrap(model)
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=forward)
    take_step = OptimizerStep(forward, optimizer, torch.amp.GradScaler("cpu", enabled=False),
                              ClassificationLoss(0), CPU, "fp32")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, targets), 4)
    for _ in range(2):
        for batches in (parts[0][:2], parts[0][:2], [parts[0][2], parts[1][4]]):
            take_step(batches, sum(len(targets) for _, targets in batches))
        score(model, loader, CPU, "fp32", iter)
    return model.state_dict()


def test_two_graphs_suffice_for_all_epochs_passes_and_micro_batches(graphs):
    made = graphs(aot_eager)
    one, other = trained(lambda model: model), trained(lambda model: compiled(model, CPU))
    assert len(made) == 3, "one tries whether it works"
    assert one.keys() == other.keys() and largest_difference(one, other) < 1e-5


def test_a_run_goes_on_with_and_without_it(graphs, shapes, tmp_path):
    made = graphs(lambda graph, inputs: graph)
    for epochs, *more in ((1, "--compile"), (2,)):
        assert train(shapes, tmp_path / "run", "--epochs", epochs, "--resume", *more) == 0
    assert len(metrics(tmp_path / "run")) == 2 and 2 <= len(made) <= 3


def test_without_a_compiler_it_is_refused_before_the_first_step(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    torch._dynamo.reset()
    assert train(shapes, tmp_path / "run", "--compile") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --compile does not work here: InvalidCxxCompiler: No working C++ ")
    assert error.endswith(": mend that, or leave it out\n") and error.count("\n") == 1
    assert not list(tmp_path.glob("run/*.pt"))
