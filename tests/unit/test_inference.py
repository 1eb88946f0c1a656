import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from engine.inference import predict, predict_shards, score, sum_losses

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))


@pytest.fixture
def dataset():
    torch.manual_seed(1)
    return TensorDataset(torch.randn(7, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0]))


def test_predictions_are_those_of_evaluation_mode_in_order(model, dataset):
    images, targets = dataset.tensors
    expected = F.linear(images, model[0].weight, model[0].bias).detach()
    for loader in (DataLoader(dataset, 3), DataLoader(dataset, 7)):
        logits, labels = predict(model, loader, CPU)
        torch.testing.assert_close(logits, expected)
        assert torch.equal(labels, targets) and model.training and not logits.requires_grad
    first, labels = predict(model, DataLoader(dataset, 3), CPU, progress=lambda batches: list(batches)[:1])
    assert len(first) == len(labels) == 3
    torch.testing.assert_close(predict_shards(model, DataLoader(dataset, 3), CPU), expected)


def test_scores_are_sums_and_an_empty_shard_counts_for_nothing(model, dataset):
    images, targets = dataset.tensors
    logits = F.linear(images, model[0].weight, model[0].bias)
    correct = (logits.argmax(1) == targets).sum().item()
    expected = [F.cross_entropy(logits, targets, reduction="sum").item(), correct]
    assert score(model, DataLoader(dataset, 2), CPU, "fp32", iter) == pytest.approx(expected)
    nothing = TensorDataset(images[:0], targets[:0])
    assert score(model, DataLoader(nothing, 2), CPU, "fp32", iter) == (0.0, 0.0)

    def loss(model, batch):
        logits, targets = model(batch[0]), batch[1]
        return F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(1) == targets).sum()

    assert sum_losses(model, DataLoader(dataset, 2), loss, CPU, "fp32") == pytest.approx(expected)
    assert model.training


def test_an_error_leaves_the_model_in_training_mode(dataset):
    wrong = torch.nn.Linear(9, 3)
    with pytest.raises(RuntimeError):
        predict(wrong, DataLoader(dataset, 3), CPU)
    assert wrong.training
