import copy

import pytest
import torch
from torch import nn

from sam import SAM


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batches(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 5, generator=generator, dtype=dtype), torch.randint(0, 3, (6,), generator=generator))
            for _ in range(count)]


def closure_for(model, optimizer, batch):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def written_out(weights, batch, rho, adaptive, lr):
    """One step of SAM or ASAM around gradient descent on the same network, from the papers' equations."""

    def gradients(values):
        values = [value.clone().requires_grad_() for value in values]
        hidden = torch.tanh(batch[0] @ values[0].T + values[1])
        log_probabilities = torch.log_softmax(hidden @ values[2].T + values[3], 1)
        loss = -log_probabilities[torch.arange(len(batch[1])), batch[1]].mean()
        return torch.autograd.grad(loss, values)

    g = gradients(weights)
    scaled = [w.abs() * x if adaptive else x for w, x in zip(weights, g)]
    norm = sum((x**2).sum() for x in scaled) ** 0.5
    eps = [rho * (w.abs() * x if adaptive else x) / norm for w, x in zip(weights, scaled)]
    return [w - lr * x for w, x in zip(weights, gradients([w + e for w, e in zip(weights, eps)]))]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_fifty_steps_agree_with_the_equations_written_out(adaptive, groups):
    model = network()
    expected = [p.detach().clone() for p in model.parameters()]
    parameters = list(model.parameters())
    parameters = parameters if groups == 1 else [{"params": parameters[:1]}, {"params": parameters[1:]}]
    optimizer = SAM(parameters, torch.optim.SGD, rho=0.3, adaptive=adaptive, lr=0.1)
    for batch in batches(50):
        optimizer.step(closure_for(model, optimizer, batch))
        expected = written_out(expected, batch, 0.3, adaptive, 0.1)
    for p, value in zip(model.parameters(), expected):
        torch.testing.assert_close(p.detach(), value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("base, options", [(torch.optim.Adam, {"lr": 1e-2}), (torch.optim.AdamW, {"lr": 1e-2}),
                                           (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})])
def test_rho_zero_is_the_base_optimizer_bit_for_bit(base, options):
    ours, plain = network(torch.float32), network(torch.float32)
    sam, alone = SAM(ours.parameters(), base, rho=0, **options), base(plain.parameters(), **options)
    for batch in batches(20, torch.float32):
        sam.step(closure_for(ours, sam, batch))
        alone.step(closure_for(plain, alone, batch))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters()))


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_climb_is_rho_long_and_its_way_back_exact(adaptive):
    model = network(torch.float32)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.7, adaptive=adaptive, lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    storage = [p.data_ptr() for p in model.parameters()]
    closure_for(model, optimizer, batches(1, torch.float32)[0])()
    optimizer.first_step()
    eps = [p.detach() - w for p, w in zip(model.parameters(), before)]
    lengths = [(e / w.abs() if adaptive else e).norm() for e, w in zip(eps, before)]
    torch.testing.assert_close(torch.stack(lengths).norm(), torch.tensor(0.7), rtol=1e-5, atol=0)
    optimizer.restore()
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before))
    assert storage == [p.data_ptr() for p in model.parameters()]


def test_written_out_passes_equal_the_closure():
    one, other = network(), network()
    first, second = (SAM(m.parameters(), torch.optim.Adam, lr=1e-2) for m in (one, other))
    for batch in batches(5):
        first.step(closure_for(one, first, batch))
        for step in (second.first_step, second.second_step):
            nn.functional.cross_entropy(other(batch[0]), batch[1]).backward()
            step(zero_grad=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_the_climb_does_not_depend_on_the_scale_of_the_loss():
    moved = []
    for scale in (1.0, 65536.0):
        model = network(torch.float32)
        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
        x, y = batches(1, torch.float32)[0]
        (nn.functional.cross_entropy(model(x), y) * scale).backward()
        optimizer.first_step()
        moved.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*moved):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_an_exception_in_the_second_pass_leaves_the_weights_as_they_were():
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    before = copy.deepcopy(model.state_dict())
    calls = []

    def closure():
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return closure_for(model, optimizer, batches(1)[0])()

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_no_gradients_or_zero_gradients_move_nothing():
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    before = copy.deepcopy(model.state_dict())
    for gradient in (None, 0.0):
        for p in model.parameters():
            p.grad = None if gradient is None else torch.zeros_like(p)
        optimizer.first_step()
        optimizer.second_step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_training_goes_on_from_a_saved_state_as_if_nothing_had_happened(tmp_path):
    straight = network()
    optimizer = SAM(straight.parameters(), torch.optim.Adam, rho=0.1, lr=1e-2)
    data = batches(10)
    for batch in data[:5]:
        optimizer.step(closure_for(straight, optimizer, batch))
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    for batch in data[5:]:
        optimizer.step(closure_for(straight, optimizer, batch))

    resumed = network()
    optimizer = SAM(resumed.parameters(), torch.optim.Adam, rho=0.4, lr=1.0)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for batch in data[5:]:
        optimizer.step(closure_for(resumed, optimizer, batch))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters()))


def test_group_settings_and_schedulers_reach_the_base_optimizer():
    model = network()
    optimizer = SAM([model[0].weight], torch.optim.SGD, rho=0.5, lr=0.1)
    optimizer.add_param_group({"params": [model[2].weight], "lr": 0.01, "rho": 0.0})
    assert [group["lr"] for group in optimizer.base_optimizer.param_groups] == [0.1, 0.01]
    assert [group["rho"] for group in optimizer.param_groups] == [0.5, 0.0]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.base_optimizer.param_groups] == [0.05, 0.005]
    assert scheduler.get_last_lr() == [0.05, 0.005]


def test_unusable_input_is_refused_by_name():
    model = network()
    with pytest.raises(ValueError, match="rho must be"):
        SAM(model.parameters(), torch.optim.SGD, rho=-1, lr=0.1)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="plain optimizer"):
        optimizer.load_state_dict(plain.state_dict())
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = SAM(embedding.parameters(), torch.optim.SGD, lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.first_step()
