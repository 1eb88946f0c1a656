"""SAM against equations written out here, and against what users of other implementations have run into."""

import ast
import copy
import functools
import io
import math
import pickle
import warnings
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sam import SAM

ROOT = Path(__file__).resolve().parents[2]
BASES = [(torch.optim.Adam, {"lr": 1e-2}), (torch.optim.AdamW, {"lr": 1e-2}),
         (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})]


def network(dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(device, dtype)


def batches(count, dtype=torch.float64, device="cpu", size=6):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 5, generator=generator, dtype=dtype).to(device),
             torch.randint(0, 3, (size,), generator=generator).to(device)) for _ in range(count)]


def closure_for(model, optimizer, batch, share=1.0):
    def closure():
        optimizer.zero_grad()
        loss = share * cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def noisy_vit():
    """A ViT with dropout and stochastic depth, and images to train it on."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, drop_path_rate=0.3, proj_drop_rate=0.2, img_size=64)
    return model, [(torch.randn(4, 3, 64, 64), torch.randint(0, 3, (4,))) for _ in range(2)]


def snapshot(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def assert_close(model, expected, tolerance):
    for p, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=0, atol=tolerance)


# The oracle: the network and the papers' equations written out. It shares nothing with sam.py.


def gradients(weights, batch):
    values = [value.clone().requires_grad_() for value in weights]
    hidden = torch.tanh(batch[0] @ values[0].T + values[1])
    log_probabilities = torch.log_softmax(hidden @ values[2].T + values[3], 1)
    return torch.autograd.grad(-log_probabilities[torch.arange(len(batch[1])), batch[1]].mean(), values)


def perturbed(weights, g, rho, adaptive):
    """w + eps; `rho` and `adaptive` are one value, or one for each weight."""
    rho, adaptive = ([x] * len(weights) if not isinstance(x, list) else x for x in (rho, adaptive))
    t = [w.abs() if a else torch.ones_like(w) for w, a in zip(weights, adaptive)]
    norm = sum(((t_ * g_) ** 2).sum() for t_, g_ in zip(t, g)) ** 0.5
    return [w + r * t_**2 * g_ / norm for w, r, t_, g_ in zip(weights, rho, t, g)]


def sam_gradient(weights, batch, rho, adaptive=False):
    return gradients(perturbed(weights, gradients(weights, batch), rho, adaptive), batch)


class WrittenOutAdam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self, lr):
        self.lr, self.t, self.m, self.v = lr, 0, 0, 0

    def __call__(self, weights, g):
        self.t += 1
        self.m = [0.9 * m + 0.1 * x for m, x in zip(self.m or [0] * len(g), g)]
        self.v = [0.999 * v + 0.001 * x**2 for v, x in zip(self.v or [0] * len(g), g)]
        return [w - self.lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)) ** 0.5 + 1e-8)
                for w, m, v in zip(weights, self.m, self.v)]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_fifty_steps_agree_with_the_equations_written_out(adaptive, base):
    model = network()
    expected = snapshot(model)
    base_class = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[base]
    update = {"sgd": lambda weights, g: [w - 0.01 * x for w, x in zip(weights, g)],
              "adam": WrittenOutAdam(0.01)}[base]
    optimizer = SAM(model.parameters(), base_class, rho=0.3, adaptive=adaptive, lr=0.01)
    for batch in batches(50):
        optimizer.step(closure_for(model, optimizer, batch))
        expected = update(expected, sam_gradient(expected, batch, 0.3, adaptive))
    assert_close(model, expected, 1e-12)


def test_groups_have_their_own_rho_and_adaptive_and_one_norm():
    model = network()
    expected = snapshot(model)
    first, second, third, last = model.parameters()
    optimizer = SAM([{"params": [first], "rho": 0.1}, {"params": [second, third], "adaptive": True},
                     {"params": [last], "rho": 0.0}], torch.optim.SGD, rho=0.5, lr=0.1)
    for batch in batches(50):
        optimizer.step(closure_for(model, optimizer, batch))
        g = sam_gradient(expected, batch, [0.1, 0.5, 0.5, 0.0], [False, True, True, False])
        expected = [w - 0.1 * x for w, x in zip(expected, g)]
    assert_close(model, expected, 1e-12)


def test_maximising_goes_down():
    model, batch = network(), batches(1)[0]
    w = snapshot(model)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, maximize=True)
    optimizer.step(closure_for(model, optimizer, batch))
    g = gradients(perturbed(w, gradients(w, batch), -0.5, False), batch)
    assert_close(model, [w_ + 0.1 * x for w_, x in zip(w, g)], 1e-12)


@pytest.mark.parametrize("base, options", BASES)
def test_rho_zero_is_the_base_optimizer_bit_for_bit(base, options):
    ours, images = noisy_vit()
    plain = copy.deepcopy(ours)
    sam = SAM(ours.parameters(), base, rho=0, model=ours, **options)
    alone = base(plain.parameters(), **options)
    torch.manual_seed(5)
    for step in range(20):
        sam.step(closure_for(ours, sam, images[step % 2]))
    stream = torch.get_rng_state()
    torch.manual_seed(5)
    for step in range(20):
        alone.step(closure_for(plain, alone, images[step % 2]))
    assert equal(ours.parameters(), plain.parameters()) and torch.equal(stream, torch.get_rng_state())


def train_from(folder, base, options, steps, save):
    """Load the state in `folder` if there is one, train, and save if asked. Returns the weights."""
    model, images = noisy_vit()
    optimizer = SAM(model.parameters(), base, rho=0.1, model=model, **options)
    torch.manual_seed(5)
    if (folder / "state.pt").exists():
        saved = torch.load(folder / "state.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
    for step in range(steps):
        optimizer.step(closure_for(model, optimizer, images[step % 2]))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "random": torch.get_rng_state()}
    torch.save(state, folder / save)


@pytest.mark.parametrize("base, options", BASES)
def test_training_goes_on_from_a_saved_state_as_if_nothing_had_happened(tmp_path, base, options):
    for steps, name in ((8, "straight.pt"), (4, "state.pt"), (4, "resumed.pt")):
        train_from(tmp_path, base, options, steps, name)
    straight, resumed = (torch.load(tmp_path / name, weights_only=True)["model"]
                         for name in ("straight.pt", "resumed.pt"))
    assert equal(straight.values(), resumed.values())


def test_the_state_holds_no_copy_of_the_weights(tmp_path):
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-2, model=model)
    optimizer.step(closure_for(model, optimizer, batches(1)[0]))
    closure_for(model, optimizer, batches(1)[0])()
    optimizer.first_step()  # in the middle of a step, when a copy of them exists
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(state) == {"state", "param_groups"}
    assert all(set(entry) == {"step", "exp_avg", "exp_avg_sq"} for entry in state["state"].values())
    plain = torch.optim.Adam(model.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match="the state of a plain optimizer"):
        optimizer.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_perturbation_has_norm_rho_and_its_way_back_exact(adaptive, device, dtype):
    model = network(dtype, device)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.7, adaptive=adaptive, lr=0.1)
    before, storage = snapshot(model), [p.data_ptr() for p in model.parameters()]
    closure_for(model, optimizer, batches(1, dtype, device)[0])()
    optimizer.first_step()
    eps = [p.detach().double() - w.double() for p, w in zip(model.parameters(), before)]
    lengths = [(e / w.double().abs() if adaptive else e).norm() for e, w in zip(eps, before)]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert torch.stack(lengths).norm().item() == pytest.approx(0.7, rel=tolerance)
    optimizer.restore()
    assert equal(model.parameters(), before) and storage == [p.data_ptr() for p in model.parameters()]


def test_adaptive_sharpness_does_not_change_under_a_rescaling_of_layers():
    """Layers scaled by 3 and 1/3 around a ReLU, biases too, are the same function.

    Kwon et al. 2021, section 3.
    """
    losses = {}
    x, y = batches(1)[0]
    for adaptive in (False, True):
        for factor in (1.0, 3.0):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3, bias=False)).double()
            with torch.no_grad():
                for p in model[0].parameters():
                    p *= factor
                model[2].weight /= factor
            optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, adaptive=adaptive, lr=0.1)
            flat = closure_for(model, optimizer, (x, y))().item()
            optimizer.first_step()
            losses[adaptive, factor] = flat, cross_entropy(model(x), y).item()
    assert losses[True, 1.0] == pytest.approx(losses[True, 3.0], rel=1e-12)
    assert losses[False, 1.0][0] == pytest.approx(losses[False, 3.0][0], rel=1e-12)
    assert abs(losses[False, 1.0][1] - losses[False, 3.0][1]) > 1e-3  # SAM itself is not invariant


def test_passes_written_out_equal_the_closure():
    one, images = noisy_vit()
    other = copy.deepcopy(one)
    first, second = (SAM(m.parameters(), torch.optim.AdamW, lr=1e-2, model=m) for m in (one, other))
    torch.manual_seed(5)
    for batch in images:
        first.step(closure_for(one, first, batch))
    torch.manual_seed(5)
    for x, y in images:
        with second.first_pass():
            cross_entropy(other(x), y).backward()
        second.first_step(zero_grad=True)
        assert all(p.grad is None for p in other.parameters())
        with second.second_pass():
            cross_entropy(other(x), y).backward()
        second.second_step(zero_grad=True)
        assert all(p.grad is None for p in other.parameters())
    assert equal(one.parameters(), other.parameters())


def test_the_closure_is_called_twice_and_the_first_loss_is_returned():
    model = network()
    optimizer, losses = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1), []

    def closure():
        losses.append(closure_for(model, optimizer, batches(1)[0])())
        return losses[-1]

    with torch.no_grad():  # the closure runs with gradients all the same
        returned = optimizer.step(closure)
    assert len(losses) == 2 and returned is losses[0] and losses[1] > losses[0]


def test_a_parameter_that_only_one_pass_uses():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
    optimizer = SAM([*first.parameters(), *second.parameters()], torch.optim.SGD, rho=0.5, lr=0.1)
    x = torch.randn(4, 3, dtype=torch.float64)
    calls = []

    def closure():
        optimizer.zero_grad()
        calls.append(None)
        layer = first if len(calls) % 2 else second  # `first` in first passes, `second` in second ones
        loss = layer(x).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        with torch.no_grad():
            first.weight.add_(1.0)  # as a user may do: an older copy of it would be stale
        before = snapshot(first)
        w, b = snapshot(second)
        optimizer.step(closure)
        assert equal(first.parameters(), before)
        residual = x @ w.T + b
        gradient = 2 * residual.T @ x / 4, 2 * residual.mean(0)
        assert_close(second, [w - 0.1 * gradient[0], b - 0.1 * gradient[1]], 1e-12)


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_second_pass_leaves_everything_as_it_was(written_out, error):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, model=model)
    before, left = snapshot(model), []  # what each forward pass left in buffers and random stream
    x, y = batches(1, torch.float32)[0]

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        left.append([*(b.clone() for b in model.buffers()), torch.get_rng_state()])
        if len(left) == 2:
            assert not equal(model.parameters(), before)
            raise error
        loss.backward()
        return loss

    with pytest.raises(error):
        if written_out:
            with optimizer.first_pass():
                closure()
            optimizer.first_step()
            with optimizer.second_pass():
                closure()
        else:
            optimizer.step(closure)
    assert equal(model.parameters(), before)
    assert equal([*model.buffers(), torch.get_rng_state()], left[0]) and not equal(left[0][:2], left[1][:2])


@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("form", ["closure", "written out", "m-sharpness"])
@pytest.mark.parametrize("linear", [False, True])
def test_what_is_not_finite_is_skipped(device, bad_pass, value, form, linear):
    """`linear`: the second gradient does not depend on the weights: it alone could not tell of the first."""
    model = network(torch.float32, device)
    x, y = batches(1, torch.float32, device)[0]
    optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-2, model=model)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=1)
    calls = []

    def closure():
        optimizer.zero_grad()
        calls.append(None)
        loss = sum(p.sum() for p in model.parameters()) if linear else cross_entropy(model(x), y)
        scaler.scale(loss * value if len(calls) == bad_pass else loss).backward()
        return loss

    def step():
        if form == "closure":
            optimizer.step(closure, scaler)
        elif form == "m-sharpness":
            optimizer.m_sharpness_step([closure, closure], scaler)
        else:
            with optimizer.first_pass():
                closure()
            optimizer.first_step(zero_grad=True)
            with optimizer.second_pass():
                closure()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
        scaler.update()

    before = snapshot(model)
    step()
    assert equal(model.parameters(), before) and not optimizer.state and scaler.get_scale() == 512
    step()
    assert all(p.isfinite().all() for p in model.parameters()) and scaler.get_scale() == 1024
    assert not equal(model.parameters(), before) and len(optimizer.state) == 4


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_does_not_depend_on_the_scale_of_the_loss(device, adaptive):
    def weights_after(scale, steps=3):
        model = network(torch.float32, device)
        optimizer = SAM(model.parameters(), torch.optim.Adam, rho=0.5, adaptive=adaptive, lr=1e-2)
        scaler = torch.amp.GradScaler(device, init_scale=scale) if scale else None
        tops = []
        for x, y in batches(steps, torch.float32, device):
            def closure(x=x, y=y):
                optimizer.zero_grad()
                tops.append(snapshot(model))
                loss = cross_entropy(model(x), y)
                (scaler.scale(loss) if scaler else loss).backward()
                return loss

            optimizer.step(closure, scaler)
            if scaler:
                scaler.update()
        return tops[1], snapshot(model)

    top, end = weights_after(None)
    for scale in (1.0, 65536.0):  # a power of two changes no bit
        assert equal(top, weights_after(scale)[0]) and equal(end, weights_after(scale)[1])
    for value, expected in zip(weights_after(1000.0)[0], top):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_autocast_around_both_passes_does_not_hide_the_perturbation(dtype, device):
    """autocast keeps its casts of the weights until it ends: those of w must not serve at w + eps."""
    ends = []
    for around in (False, True):
        model = network(torch.float32, device)
        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=1.0, lr=0.1)
        losses = []

        def closure(x, y, model=model, optimizer=optimizer, losses=losses):
            optimizer.zero_grad()
            with torch.autocast(device, dtype):
                loss = cross_entropy(model(x).float(), y)
            loss.backward()
            losses.append(loss.item())
            return loss

        with torch.autocast(device, dtype, enabled=around):
            for x, y in batches(3, torch.float32, device):
                optimizer.step(functools.partial(closure, x, y))
                optimizer.restore()
        ends.append(losses)
    assert ends[0][0] < ends[0][1]  # the perturbation is seen
    assert ends[0][:2] == ends[1][:2]


def test_micro_batches_add_up_to_one_batch():
    """With Adam in float64; in fp32 its steps along gradients that are truly zero are noise: so SGD there."""
    for dtype, base, tolerance in ((torch.float64, torch.optim.Adam, 1e-10),
                                   (torch.float32, torch.optim.SGD, 1e-6)):
        torch.manual_seed(0)
        big = timm.create_model("test_vit", num_classes=3, img_size=64).to(dtype)
        small = copy.deepcopy(big)
        images, targets = torch.randn(6, 3, 64, 64, dtype=dtype), torch.randint(0, 3, (6,))
        one, many = (SAM(m.parameters(), base, rho=0.1, lr=1e-2, model=m) for m in (big, small))

        def closure(many=many, small=small, images=images, targets=targets):
            many.zero_grad()
            for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
                (cross_entropy(small(images[part]), targets[part]) / 3).backward()

        for _ in range(3):
            one.step(closure_for(big, one, (images, targets)))
            many.step(closure)
        assert_close(small, snapshot(big), tolerance)


def test_m_sharpness_perturbs_for_each_micro_batch():
    model = network()
    expected = snapshot(model)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    data = batches(9)
    for step in range(3):
        parts = data[step * 3:step * 3 + 3]
        losses = optimizer.m_sharpness_step([closure_for(model, optimizer, part, share=1 / 3)
                                             for part in parts])
        assert len(losses) == 3
        each = [sam_gradient(expected, part, 0.5) for part in parts]
        expected = [w - 0.1 * sum(g) / 3 for w, g in zip(expected, zip(*each))]
    assert_close(model, expected, 1e-12)


def test_both_passes_see_the_same_random_numbers_and_the_stream_advances_once(device):
    model = network(torch.float32, device)
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model)
    drawn, batch = [], batches(1, torch.float32, device)[0]

    def draw():
        return torch.cat([torch.rand(3), torch.rand(3, device=device).cpu()])

    def closure():
        drawn.append(draw())
        return closure_for(model, optimizer, batch)()

    torch.manual_seed(3)
    expected = [draw() for _ in range(3)]
    torch.manual_seed(3)
    optimizer.step(closure)
    with optimizer.first_pass():
        closure()
    optimizer.first_step()
    with optimizer.second_pass():
        closure()
        draw()  # more than the first pass drew
    optimizer.second_step()
    assert equal(drawn, [expected[0], expected[0], expected[1], expected[1]])
    assert torch.equal(draw(), expected[2])


class Counter(nn.Module):
    """Counts its calls in a buffer that is replaced, not changed, and in a copy that no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls = self.calls + 1
        self.hidden += 1
        return x * self.calls


@pytest.mark.parametrize("written_out", [False, True])
def test_buffers_follow_the_first_pass_alone_and_modules_come_back_as_they_were(written_out):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=0.1), nn.BatchNorm1d(4, momentum=0.0),
        nn.BatchNorm1d(4, momentum=None),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4).eval(), Counter(),
        nn.Linear(4, 3))
    plain = copy.deepcopy(model)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.0, model=model)
    settings = [(m.training, getattr(m, "momentum", "none")) for m in model]
    for x, y in batches(3, torch.float32):
        if written_out:
            with optimizer.first_pass():
                cross_entropy(model(x), y).backward()
            optimizer.first_step(zero_grad=True)
            with optimizer.second_pass():
                cross_entropy(model(x), y).backward()
            optimizer.second_step(zero_grad=True)
        else:
            optimizer.step(closure_for(model, optimizer, (x, y)))
        plain(x)
    assert model[1].num_batches_tracked == 3 and model[6].calls == model[6].hidden == 3
    assert equal(model.buffers(), plain.buffers())
    assert settings == [(m.training, getattr(m, "momentum", "none")) for m in model]


def test_the_second_pass_begins_with_the_buffers_of_the_first():
    model = nn.Sequential(nn.Linear(5, 3), Counter())
    optimizer, scales = SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model), []
    model[1].register_forward_hook(lambda module, inputs, output:
                                   scales.append((output / inputs[0]).mean().item()))
    for batch in batches(3, torch.float32):
        optimizer.step(closure_for(model, optimizer, batch))
    assert scales == pytest.approx([1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize("base, options", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("gradient", [None, 0.0])
def test_no_gradients_or_zero_gradients_move_nothing(base, options, adaptive, gradient):
    model = network()
    optimizer = SAM(model.parameters(), base, rho=0.5, adaptive=adaptive, **{**options, "weight_decay": 0.0})
    before = snapshot(model)

    def closure():
        for p in model.parameters():
            p.grad = None if gradient is None else torch.full_like(p, gradient)

    optimizer.step(closure)
    assert equal(model.parameters(), before)
    for p in model.parameters():
        nn.init.zeros_(p)
    optimizer.step(closure_for(model, optimizer, batches(1)[0]))  # ASAM: T = 0, so T g = 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_group_settings_and_schedulers_reach_the_base_optimizer_after_a_load_too():
    model, batch = network(), batches(1)[0]
    optimizer = SAM([model[0].weight], torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": [model[2].weight], "lr": 0.01, "rho": 0.0, "adaptive": True})
    loaded = SAM([{"params": [model[0].weight]}, {"params": [model[2].weight]}], torch.optim.SGD, lr=9.0)
    loaded.load_state_dict(optimizer.state_dict())
    for sam in (optimizer, loaded):
        assert [group["lr"] for group in sam.base_optimizer.param_groups] == [0.1, 0.01]
        settings = [(group["rho"], group["adaptive"]) for group in sam.param_groups]
        assert settings == [(0.5, False), (0.0, True)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns where it believes that the scheduler came first
            scheduler = torch.optim.lr_scheduler.LambdaLR(sam, lambda step: 0.5**step)
            closure_for(model, sam, batch)()
            sam.first_step()
            closure_for(model, sam, batch)()
            sam.second_step()
            scheduler.step()
        assert [group["lr"] for group in sam.base_optimizer.param_groups] == [0.05, 0.005]
        sam.param_groups[0]["lr"] = 0.0
        sam.param_groups[1]["momentum"] = 0.0
        weight, other = model[0].weight.detach().clone(), model[2].weight.detach().clone()
        sam.step(closure_for(model, sam, batch))
        assert torch.equal(weight, model[0].weight)
        torch.testing.assert_close(model[2].weight.detach(), other - 0.005 * model[2].weight.grad)


def test_unusable_input_is_refused_by_name():
    model = network()
    for wrong in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="rho must be"):
            SAM(model.parameters(), torch.optim.SGD, rho=wrong, lr=0.1)
        with pytest.raises(ValueError, match="rho must be"):
            SAM([{"params": model.parameters(), "rho": wrong}], torch.optim.SGD, lr=0.1)
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    closure_for(model, optimizer, batches(1)[0])()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="two passes"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="first_pass"), optimizer.second_pass():
        pass
    assert equal(model.parameters(), before)
    optimizer.first_step()
    optimizer.second_step()
    with pytest.raises(RuntimeError, match="two passes"):
        optimizer.second_step()
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = SAM(embedding.parameters(), torch.optim.SGD, lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.first_step()


def saved_and_loaded(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)),
                                       saved_and_loaded])
@pytest.mark.parametrize("in_between", [False, True])
def test_a_copy_takes_the_same_steps_and_leaves_the_original_alone(duplicate, in_between):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.3), nn.Linear(7, 3)).double()
    optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-2, model=model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # it wraps step(), which no copy may take over
    first, *rest = batches(4)
    closure_for(model, optimizer, first)()
    optimizer.first_step()
    if not in_between:
        optimizer.second_step()
    twin, twin_optimizer = duplicate((model, optimizer))
    weights = snapshot(twin)

    def end(model, optimizer):
        torch.manual_seed(1)
        optimizer.restore()
        for batch in rest:
            optimizer.step(closure_for(model, optimizer, batch))
        return [*snapshot(model), *model.buffers()]

    expected = end(model, optimizer)
    schedule.step()
    assert equal(twin.parameters(), weights), "steps of the original do not reach the copy"
    assert equal(end(twin, twin_optimizer), expected) and twin_optimizer.model is twin
    assert twin_optimizer.param_groups[0]["lr"] == 1e-2 and twin_optimizer.state_dict()["state"]
    assert equal(snapshot(model), expected[:len(weights)])


def test_what_cannot_be_copied_or_wrapped_says_why():
    model = network()
    with pytest.raises(TypeError, match=r"pass the class, SAM\(params, torch.optim.Adam, lr="):
        SAM(model.parameters(), torch.optim.Adam(model.parameters()))
    model.no_sync = None  # what tells DistributedDataParallel from a plain module
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model)
    for duplicate in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="DistributedDataParallel model cannot be copied"):
            duplicate(optimizer)


def test_frozen_parameters_stay_where_they_are():
    model = network()
    model[0].requires_grad_(False)
    frozen, rest = snapshot(model[0]), snapshot(model[2])
    optimizer = SAM(model.parameters(), torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    for batch in batches(3):
        optimizer.step(closure_for(model, optimizer, batch))
    assert equal(model[0].parameters(), frozen) and not equal(model[2].parameters(), rest)


def test_a_compiled_model_takes_the_same_steps():
    """Traced but not compiled to machine code, which an integration test does."""
    plain = network(torch.float32)
    model = copy.deepcopy(plain)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    one, other = (SAM(m.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, model=m) for m in (plain, compiled))
    for step, batch in enumerate(batches(5, torch.float32)):
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            one.step(closure_for(plain, one, batch))
            other.step(closure_for(compiled, other, batch))
    assert_close(model, snapshot(plain), 1e-6)


class Kernels(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of the operations that ran, without those that only make a view."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_takes_a_few_multi_tensor_calls_and_never_waits_for_the_device(adaptive):
    kernels = {}
    for depth in (2, 20):
        model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(depth)])
        optimizer = SAM(model.parameters(), torch.optim.SGD, adaptive=adaptive, lr=0.1, model=model)
        model(torch.randn(2, 5)).sum().backward()
        with Kernels() as seen:
            optimizer.first_step()
            optimizer.restore()
        kernels[depth] = seen.names
    assert kernels[2] == kernels[20] and len(kernels[2]) < 30
    assert "_foreach_norm" in kernels[2] and "_local_scalar_dense" not in kernels[2]  # what .item() would be


def peak_memory(work):
    """Bytes allocated at the most while `work` ran, over those at its start."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_extra_memory_is_one_copy_of_the_parameters(adaptive):
    """Gradients, as for any optimizer, and one copy; m-sharpness also holds the sum of the gradients."""
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    x = torch.randn(2, 256)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer = SAM(model.parameters(), torch.optim.SGD, adaptive=adaptive, lr=0.1, model=model)
    for work, copies in ((lambda: (closure(), optimizer.base_optimizer.step()), 1),
                         (lambda: optimizer.step(closure), 2),
                         (lambda: optimizer.m_sharpness_step([closure] * 3), 3)):
        work()  # whatever is allocated once for all
        optimizer.zero_grad()
        assert peak_memory(work) / size == pytest.approx(copies, abs=0.03)


def test_sam_py_is_one_short_file_that_imports_torch_alone():
    source = (ROOT / "sam.py").read_text()
    assert len(source.splitlines()) < 310
    modules = {name.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)
               for name in node.names}
    assert modules == {"contextlib", "torch"} and "from " not in [line[:5] for line in source.splitlines()]
