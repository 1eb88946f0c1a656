import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from interpret import landscape
from sam import SAM

SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 2,
         "mlp_ratio": 1, "num_classes": 3}
KINDS = {
    "vit": lambda: VisionTransformer(**SMALL),
    "beit": lambda: Beit(**SMALL, use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=0.1),
    "eva": lambda: Eva(**SMALL, use_rot_pos_emb=True, swiglu_mlp=True),
}


def photos(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 3, (count,), generator=generator)


@pytest.fixture(params=KINDS)
def model(request):
    """A tiny model of each kind in float64, with weights large enough that second derivatives count."""
    torch.manual_seed(0)
    model = KINDS[request.param]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture
def vit():
    torch.manual_seed(0)
    model = KINDS["vit"]().double().eval()
    with torch.no_grad():
        model.head.weight.normal_(0, 0.5)
    return model


def plain_loss(model, images, targets):
    """Cross-entropy by hand, an image at a time."""
    logits = torch.cat([model(image[None]) for image in images])
    return -torch.stack([row[target] - row.exp().sum().log() for row, target in zip(logits, targets)]).mean()


class Quadratic:
    """1/2 w^T A w, with A of known eigenvalues; w in two parts, one of them a matrix."""

    def __init__(self):
        rng = np.random.default_rng(3)
        basis = np.linalg.qr(rng.normal(size=(12, 12)))[0]
        self.eigenvalues = np.array([9, 6, 4, 1, 0.5, 0.3, 0.2, 0.1, 0, -0.5, -2, -20.0])
        self.matrix = torch.from_numpy(basis @ np.diag(self.eigenvalues) @ basis.T)
        self.flat = torch.from_numpy(rng.normal(size=12))
        self.weights = {"a": self.flat[:8].view(2, 4), "b": self.flat[8:]}

    def loss(self, weights, batch):
        flat = torch.cat([part.flatten() for part in weights.values()])
        return flat @ self.matrix @ flat / 2


# Curvature -------------------------------------------------------------------------------------------------


def test_the_eigenvalues_of_a_quadratic_are_those_of_its_matrix():
    quadratic = Quadratic()
    values = landscape.largest_eigenvalues(quadratic.loss, quadratic.weights, (None, [0]), 3)
    np.testing.assert_allclose(values, [9, 6, 4], rtol=1e-4)  # not -20, the largest in absolute value


def test_eigenvalues_agree_with_the_dense_hessian(model):
    batch, weights = photos(), landscape.weights_of(model)
    sizes = [weight.numel() for weight in weights.values()]

    def of_vector(flat):
        parts = [part.view_as(weight) for part, weight in zip(flat.split(sizes), weights.values())]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = torch.func.functional_call(model, dict(zip(weights, parts)), (batch[0],))
        return -logits.log_softmax(1)[torch.arange(len(logits)), batch[1]].mean()

    flat = torch.cat([weight.flatten() for weight in weights.values()])
    dense = torch.autograd.functional.hessian(of_vector, flat, vectorize=True)
    expected = torch.linalg.eigvalsh(dense).flip(0)[:3]
    loss = landscape.classification_loss(model)
    values = landscape.largest_eigenvalues(loss, weights, batch, 3, tolerance=1e-6)
    np.testing.assert_allclose(values, expected, rtol=1e-8)
    other_start = landscape.largest_eigenvalues(loss, weights, batch, 3, seed=1)
    np.testing.assert_allclose(other_start, expected, rtol=1e-3)


def test_the_hessian_product_agrees_with_differences_of_the_gradient(model):
    batch, step = photos(), 1e-5
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    loss, weights = landscape.classification_loss(model), landscape.weights_of(model)
    product = landscape.hessian_product(loss, weights, batch)(vector)

    def gradient(distance):
        start = 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += distance * vector[start:start + parameter.numel()].view_as(parameter)
                start += parameter.numel()
        model.zero_grad(set_to_none=False)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten().clone()
                          for p in model.parameters()])

    difference = (gradient(step) - gradient(-2 * step)) / (2 * step)
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-7)


def test_eigenvalues_that_do_not_converge_are_refused(monkeypatch):
    def gives_up(*args, **kwargs):
        raise landscape.ArpackNoConvergence("no", np.zeros(1), None)

    monkeypatch.setattr(landscape, "eigsh", gives_up)
    quadratic = Quadratic()
    with pytest.raises(landscape.BadInput, match="of 3 eigenvalues of the Hessian 1 converged: pass another"):
        landscape.largest_eigenvalues(quadratic.loss, quadratic.weights, (None, [0]), 3)


# Along the gradient ----------------------------------------------------------------------------------------


def test_the_rise_on_a_quadratic_is_the_analytic_one():
    quadratic = Quadratic()
    gradient = quadratic.matrix @ quadratic.flat
    rhos = [0.01, 0.3, 2.0]
    along = gradient / gradient.norm()
    expected = [rho * gradient.norm() + rho**2 / 2 * along @ quadratic.matrix @ along for rho in rhos]
    rises = landscape.rises(quadratic.loss, quadratic.weights, [(None, [0, 0]), (None, [0])], rhos)
    np.testing.assert_allclose(rises, torch.stack(expected), rtol=1e-12)


def test_without_a_gradient_there_is_no_rise():
    quadratic = Quadratic()
    at_zero = {name: torch.zeros_like(weight) for name, weight in quadratic.weights.items()}
    assert landscape.rises(quadratic.loss, at_zero, [(None, [0])], [0.1]).tolist() == [0]


def test_the_rise_is_that_at_sams_perturbation(vit):
    parts = photos(4), photos(2, seed=1)
    joined = tuple(torch.cat(both) for both in zip(*parts))
    loss, weights = landscape.classification_loss(vit), landscape.weights_of(vit)
    for batches, batch in (([parts[0]], parts[0]), (list(parts), joined)):  # each image counts alike
        for rho in (0.02, 0.3):
            optimizer = SAM(vit.parameters(), torch.optim.SGD, rho=rho, lr=0.1)
            start = plain_loss(vit, *batch)
            optimizer.zero_grad()
            start.backward()
            optimizer.first_step()
            rise = plain_loss(vit, *batch).item() - start.item()
            optimizer.restore()
            assert landscape.rises(loss, weights, batches, [rho])[0] == pytest.approx(rise, rel=1e-6)


# Along directions ------------------------------------------------------------------------------------------


def test_directions_have_the_norms_of_the_filters():
    torch.manual_seed(0)
    one, other = (landscape.weights_of(timm.create_model("test_vit", num_classes=4)) for _ in range(2))
    one = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in one.items()}
    first, second = landscape.random_directions([one, other], 2, seed=5)
    filters = 0
    for name, weight in one.items():
        if weight.ndim == 1:
            assert not first[name].any(), name
            continue
        rows = first[name][0] if name in ("cls_token", "pos_embed") else first[name]
        theirs = [w[name][0] if name in ("cls_token", "pos_embed") else w[name] for w in (one, other)]
        for i, row in enumerate(rows):
            expected = sum((w[i] ** 2).sum().sqrt() for w in theirs) / 2
            assert (row**2).sum().sqrt().item() == pytest.approx(expected.item(), rel=1e-5)
            filters += 1
    assert filters > 1000
    flat = [torch.cat([part.flatten() for part in direction.values()]) for direction in (first, second)]
    assert abs(torch.cosine_similarity(*flat, dim=0)) < 0.05
    # Gaussian before they were scaled: what is left of a long row has the moments
    row = first["patch_embed.proj.weight"].flatten(1)
    row = (row / row.std(1, keepdim=True)).flatten().double()
    assert (row**4).mean().item() == pytest.approx(3, abs=0.1)


def test_directions_depend_on_the_seed_and_not_on_the_order_of_the_models():
    torch.manual_seed(0)
    one, other = ({"a": torch.randn(3, 4), "b": torch.randn(5)} for _ in range(2))
    ahead, back, again = (landscape.random_directions(models, 2, seed)
                          for models, seed in (([one, other], 0), ([other, one], 0), ([one, other], 1)))
    for i in range(2):
        torch.testing.assert_close(ahead[i], back[i], rtol=0, atol=1e-7)
        assert not torch.allclose(ahead[i]["a"], again[i]["a"])
    assert not torch.allclose(ahead[0]["a"], ahead[1]["a"])


def test_a_filter_without_length_stays_where_it_is():
    weights = {"a": torch.zeros(3, 4)}
    assert not landscape.random_directions([weights], 1, 0)[0]["a"].any()


def test_losses_are_those_of_the_moved_model(vit):
    batches = [photos(4), photos(2, seed=1)]
    images, targets = (torch.cat(both) for both in zip(*batches))
    loss, weights = landscape.classification_loss(vit), landscape.weights_of(vit)
    directions = landscape.random_directions([weights], 2, seed=0)
    alphas, grid = np.linspace(-1, 1, 5), np.linspace(-1, 1, 3)
    line = landscape.losses_along(loss, weights, batches, directions[0], alphas)
    area = landscape.losses_over(loss, weights, batches, directions, grid, grid)
    assert line.shape == (5,) and area.shape == (3, 3)
    assert line[2] == pytest.approx(plain_loss(vit, images, targets).item(), rel=1e-12)
    assert np.array_equal(area[1], line[::2])
    moved = KINDS["vit"]().double().eval()
    for i, j in ((0, 1), (2, 0), (0, 2)):
        moved.load_state_dict({name: weight + grid[j] * directions[0][name] + grid[i] * directions[1][name]
                               for name, weight in weights.items()})
        assert area[i, j] == pytest.approx(plain_loss(moved, images, targets).item(), rel=1e-12)


def test_weights_are_left_alone_bit_for_bit(vit):
    batches = [photos(4)]
    before = {name: (parameter, parameter.data_ptr(), parameter.detach().clone())
              for name, parameter in vit.named_parameters()}
    loss, weights = landscape.classification_loss(vit), landscape.weights_of(vit)
    directions = landscape.random_directions([weights], 2, seed=0)

    def stop():
        raise KeyboardInterrupt

    landscape.losses_over(loss, weights, batches, directions, [-1, 1], [-1, 1])
    landscape.rises(loss, weights, batches, [0.1])
    landscape.largest_eigenvalues(loss, weights, batches[0], 1)
    handle = vit.norm.register_forward_pre_hook(lambda *_: stop())
    with pytest.raises(KeyboardInterrupt):
        landscape.losses_along(loss, weights, batches, directions[0], [1, 2])
    handle.remove()
    handle = vit.norm.register_full_backward_hook(lambda *_: stop())
    with pytest.raises(KeyboardInterrupt):
        landscape.largest_eigenvalues(loss, weights, batches[0], 1)
    handle.remove()
    assert not any(weight.requires_grad for weight in weights.values())
    for name, parameter in vit.named_parameters():
        same, pointer, value = before[name]
        assert parameter is same and parameter.data_ptr() == pointer and parameter.grad is None
        assert torch.equal(parameter, value)
