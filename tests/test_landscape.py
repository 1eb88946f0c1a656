import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

import p1_viz_landscape
from datasets import decode, transforms
from engine.flags import optimizer_name
from interpret import landscape
from plots.landscape import contour_levels, styles
from sam import SAM

SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1, "num_classes": 3}
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


# Curvature ---------------------------------------------------------------------------------------------------------


def test_the_eigenvalues_of_a_quadratic_are_those_of_its_matrix():
    quadratic = Quadratic()
    values = landscape.largest_eigenvalues(quadratic.loss, quadratic.weights, (None, [0]), 3)
    np.testing.assert_allclose(values, [9, 6, 4], rtol=1e-4)  # not -20, the largest in absolute value


def test_eigenvalues_agree_with_the_dense_hessian(model):
    batch, ticks = photos(), []
    weights = landscape.weights_of(model)
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
    values = landscape.largest_eigenvalues(loss, weights, batch, 3, tolerance=1e-6, tick=lambda: ticks.append(1))
    np.testing.assert_allclose(values, expected, rtol=1e-8)
    assert len(ticks) >= 8
    np.testing.assert_allclose(landscape.largest_eigenvalues(loss, weights, batch, 3, seed=1), expected, rtol=1e-3)


def test_the_hessian_product_agrees_with_differences_of_the_gradient(model):
    batch, step = photos(), 1e-5
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    product = landscape.hessian_product(landscape.classification_loss(model), landscape.weights_of(model), batch)(vector)

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


def test_too_many_eigenvalues_are_refused_by_name(monkeypatch):
    def gives_up(*args, **kwargs):
        raise landscape.ArpackNoConvergence("no", np.zeros(1), None)

    monkeypatch.setattr(landscape, "eigsh", gives_up)
    quadratic = Quadratic()
    with pytest.raises(landscape.BadInput, match="--eigenvalues 3: 1 of them converged"):
        landscape.largest_eigenvalues(quadratic.loss, quadratic.weights, (None, [0]), 3)


# Along the gradient ------------------------------------------------------------------------------------------------


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


def test_the_rise_is_what_sam_climbs(vit):
    parts = photos(4), photos(2, seed=1)
    joined = tuple(torch.cat(both) for both in zip(*parts))
    loss, weights = landscape.classification_loss(vit), landscape.weights_of(vit)
    for batches, batch in (([parts[0]], parts[0]), (list(parts), joined)):  # of unequal batches each image counts alike
        for rho in (0.02, 0.3):
            optimizer = SAM(vit.parameters(), torch.optim.SGD, rho=rho, lr=0.1)
            start = plain_loss(vit, *batch)
            optimizer.zero_grad()
            start.backward()
            optimizer.first_step()
            climbed = plain_loss(vit, *batch).item()
            optimizer.restore()
            assert landscape.rises(loss, weights, batches, [rho])[0] == pytest.approx(climbed - start.item(), rel=1e-6)


# Along directions --------------------------------------------------------------------------------------------------


def test_directions_have_the_norms_of_the_filters():
    torch.manual_seed(0)
    one, other = ({name: p.detach() for name, p in timm.create_model("test_vit", num_classes=4).named_parameters()} for _ in range(2))
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
    ticks = []
    line = landscape.losses_along(loss, weights, batches, directions[0], alphas, lambda: ticks.append(1))
    area = landscape.losses_over(loss, weights, batches, directions, grid, lambda: ticks.append(1))
    assert line.shape == (5,) and area.shape == (3, 3) and len(ticks) == 14
    assert line[2] == pytest.approx(plain_loss(vit, images, targets).item(), rel=1e-12)
    assert np.array_equal(area[1], line[::2])
    moved = KINDS["vit"]().double().eval()
    for i, j in ((0, 1), (2, 0), (0, 2)):
        moved.load_state_dict({name: weight + grid[j] * directions[0][name] + grid[i] * directions[1][name]
                               for name, weight in weights.items()})
        assert area[i, j] == pytest.approx(plain_loss(moved, images, targets).item(), rel=1e-12)


def test_weights_are_left_alone_bit_for_bit(vit):
    batches = [photos(4)]
    before = {name: (parameter, parameter.data_ptr(), parameter.detach().clone()) for name, parameter in vit.named_parameters()}
    loss, weights = landscape.classification_loss(vit), landscape.weights_of(vit)
    directions = landscape.random_directions([weights], 2, seed=0)

    def stop():
        raise KeyboardInterrupt

    landscape.losses_over(loss, weights, batches, directions, [-1, 1])
    landscape.rises(loss, weights, batches, [0.1])
    landscape.largest_eigenvalues(loss, weights, batches[0], 1)
    with pytest.raises(KeyboardInterrupt):
        landscape.largest_eigenvalues(loss, weights, batches[0], 1, tick=stop)
    with pytest.raises(KeyboardInterrupt):
        landscape.losses_along(loss, weights, batches, directions[0], [1, 2], stop)
    handle = vit.norm.register_forward_pre_hook(lambda *_: stop())
    with pytest.raises(KeyboardInterrupt):
        landscape.losses_along(loss, weights, batches, directions[0], [1, 2])
    handle.remove()
    assert not any(weight.requires_grad for weight in weights.values())
    for name, parameter in vit.named_parameters():
        same, pointer, value = before[name]
        assert parameter is same and parameter.data_ptr() == pointer and torch.equal(parameter, value) and parameter.grad is None


# The script --------------------------------------------------------------------------------------------------------

QUICK = ["--device", "cpu", "--workers", "0", "--images", "10", "--batch-size", "5", "--points", "3", "--grid", "3", "--rho", "0.05",
         "0.1", "--eigenvalues", "1", "--hessian-batches", "1"]


@pytest.fixture(scope="module")
def plain_run(run, tmp_path_factory):
    """A checkpoint like that of `run`, said to be of Adam, with other weights."""
    saved = torch.load(run / "best.pt", weights_only=True)
    folder = tmp_path_factory.mktemp("plain") / "plain"
    folder.mkdir()
    weights = {name: value * 1.1 for name, value in saved["state_dict"].items()}
    torch.save({**saved, "settings": {**saved["settings"], "sam": False}, "state_dict": weights}, folder / "best.pt")
    return folder


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_script_writes_the_figure_and_its_arrays(run, plain_run, shapes, tmp_path, capsys, suffix):
    output = tmp_path / "new" / f"figure.{suffix}"
    assert p1_viz_landscape.main([str(run / "best.pt"), str(plain_run / "best.pt"), "--data", str(shapes), "--output",
                                  str(output), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("output: SAM(adam), loss ") and lines[3].startswith("plain: adam, loss ")
    assert "against" in lines[6] and str(output) in lines[7] and output.stat().st_size > 5000
    with np.load(output.with_suffix(".npz")) as arrays:
        shapes_of = {key: arrays[key].shape for key in arrays}
        assert arrays["names"].tolist() == ["output", "plain"] and arrays["kinds"].tolist() == ["SAM(adam)", "adam"]
        assert arrays["alphas"].tolist() == arrays["grid_alphas"].tolist()
        np.testing.assert_array_equal(arrays["loss_2d"][:, 1], arrays["loss_1d"])
        np.testing.assert_array_equal(arrays["loss_1d"][:, 1], arrays["loss"])
        assert (arrays["rise"][:, :, 1] > arrays["rise"][:, :, 0]).all()
        assert len({name.split("_")[0] for name in arrays["images"][:4]}) == 4, "a batch begins with one of each class"
    assert shapes_of == {"names": (2,), "kinds": (2,), "loss": (2,), "alphas": (3,), "loss_1d": (2, 3), "grid_alphas": (3,),
                         "loss_2d": (2, 3, 3), "rhos": (2,), "rise": (2, 2, 2), "rise_full": (2, 2),
                         "eigenvalues": (2, 1, 1), "images": (10,)}


def test_the_losses_are_those_of_the_photos_named(run, shapes, tmp_path):
    from datasets import images
    from models.checkpoint import open_checkpoint

    output = tmp_path / "figure.png"
    assert p1_viz_landscape.main([str(run / "best.pt"), "--data", str(shapes), "--output", str(output), *QUICK]) == 0
    opened = open_checkpoint(run / "best.pt")
    transform = transforms.evaluation_transform(opened.preprocessing)
    with np.load(output.with_suffix(".npz")) as arrays:
        names, found, rise, rise_full = arrays["images"].tolist(), arrays["loss"][0], arrays["rise"][0], arrays["rise_full"][0]
    inputs = torch.stack([transform(decode.load_image(shapes / "train" / name)) for name in names])
    targets = [opened.labels.index(name.split("_")[0]) for name in names]
    with torch.no_grad():
        assert found == pytest.approx(plain_loss(opened.model, inputs, targets).item(), rel=1e-5)
    loss, weights = landscape.classification_loss(opened.model), landscape.weights_of(opened.model)
    batches = [(inputs[:5], torch.tensor(targets[:5])), (inputs[5:], torch.tensor(targets[5:]))]
    for values, part in ((rise[0], batches[:1]), (rise[1], batches[1:]), (rise_full, batches)):
        np.testing.assert_allclose(values, landscape.rises(loss, weights, part, [0.05, 0.1]), rtol=1e-3)
    folder = images.read_training_folder(shapes / "train", shapes / "classes.txt")
    held_out = {folder.names[i] for i in images.stratified_holdout(folder.targets, 0.1, 0)[1]}
    assert held_out and not held_out & set(names)


def test_photos_come_evenly_from_the_classes():
    targets = [0] * 10 + [1] * 3 + [2] * 20
    for count, expected in ((3, [1, 1, 1]), (9, [3, 3, 3]), (13, [5, 3, 5]), (50, [10, 3, 20])):
        chosen = p1_viz_landscape.evenly(targets, count, seed=0)
        assert np.bincount([targets[i] for i in chosen]).tolist() == expected and len(set(chosen)) == len(chosen)
    assert p1_viz_landscape.evenly(targets, 9, 0) == p1_viz_landscape.evenly(targets, 9, 0) != p1_viz_landscape.evenly(targets, 9, 1)


def test_a_folder_with_one_photo_a_class_is_taken_whole():
    assert list(p1_viz_landscape.fitted([0, 1], {"holdout": 0.1, "seed": 0})) == [0, 1]


FLAT, SHARP = np.array([1.0, 2, 3]), np.array([2.0, 3, 4])
MIXED = np.array([0.9, 3, 4])


@pytest.mark.parametrize("sam, plain, start", [
    ([FLAT, FLAT], [SHARP, SHARP], "SAM was flatter here: "),
    ([SHARP, SHARP], [FLAT, FLAT], "SAM was not flatter here: "),
    ([FLAT, SHARP], [SHARP, FLAT], "the measures disagree: "),
    ([FLAT, FLAT], [SHARP, MIXED], "no clear difference here: "),
])
def test_the_verdict_takes_both_measures_in_every_batch(sam, plain, start):
    measures = {"eigenvalue": np.stack([plain[0], sam[0]]), "rise": np.stack([plain[1], sam[1]])}
    said = p1_viz_landscape.verdict(["a", "b"], [False, True], measures)
    assert said.startswith(start), said
    if start == "SAM was flatter here: ":
        assert said == (start + "eigenvalue 2 (1 to 3) against 3 (2 to 4), lower in 3 of 3 batches; "
                        "rise 2 (1 to 3) against 3 (2 to 4), lower in 3 of 3 batches")


def test_the_verdict_over_seeds_compares_means_and_wants_no_overlap():
    names, with_sam = list("abcd"), [True, True, False, False]
    apart = np.stack([FLAT, FLAT + 0.1, SHARP, SHARP + 0.5])
    assert p1_viz_landscape.verdict(names, with_sam, {"rise": apart}).startswith(
        "SAM was flatter here: rise 2.05 (1.05 to 3.05) against 3.25")
    overlapping = np.stack([FLAT, SHARP + 0.1, SHARP, SHARP + 0.5])
    said = p1_viz_landscape.verdict(names, with_sam, {"rise": overlapping})
    assert said.startswith("no clear difference here: ") and said.endswith("3 of 3 batches, though checkpoints of both kinds overlap")


def test_without_a_second_kind_the_verdict_ranks():
    measures = {"rise": np.stack([SHARP, FLAT])}
    assert p1_viz_landscape.verdict(["a", "b"], [True, True], measures) == "from flat to sharp by rise: b 2 (1 to 3), a 3 (2 to 4)"
    assert p1_viz_landscape.verdict(["a"], [True], {"rise": FLAT[None]}) == "one checkpoint, with nothing to compare it to"


def test_names_and_kinds(tmp_path):
    names_of = p1_viz_landscape.names_of
    assert names_of([tmp_path / "a" / "best.pt", tmp_path / "b" / "best.pt"]) == ["a", "b"]
    assert names_of([tmp_path / "a" / "best.pt", tmp_path / "a" / "last.pt"]) == ["best", "last"]
    twice = [tmp_path / "x" / "a" / "best.pt", tmp_path / "y" / "a" / "best.pt"]
    assert names_of(twice) == list(map(str, twice))
    assert [optimizer_name({"optimizer": "adam", "sam": sam, "adaptive": adaptive}) for sam, adaptive in
            ((False, False), (True, False), (True, True))] == ["adam", "SAM(adam)", "ASAM(adam)"]


def test_kinds_share_a_colour_and_differ_in_their_lines():
    looks = styles(["adam", "SAM(adam)", "adam", "SAM(adam)"])
    assert [look["color"] for look in looks] == [looks[0]["color"], looks[1]["color"]] * 2 and looks[0]["color"] != looks[1]["color"]
    assert looks[0]["linestyle"] != looks[2]["linestyle"] and looks[0]["marker"] != looks[2]["marker"]
    alone = styles(["adam"] * 4)
    assert len({look["color"] for look in alone}) == 4


def test_levels_reach_from_the_least_to_the_most():
    levels = contour_levels(np.array([[-0.1, 0.5], [0.2, 3.9]]))
    assert levels[0] == -0.1 and levels[-1] == pytest.approx(3.9) and (np.diff(levels) > 0).all()
    assert np.diff(np.sqrt(levels - levels[0])) == pytest.approx(np.sqrt(4) / (len(levels) - 1))
    assert (np.diff(contour_levels(np.zeros((2, 2)))) > 0).all()


@pytest.mark.parametrize("change, expected", [
    ({"arch": "test_vit4"}, "differ in arch"),
    ({"labels": ["a", "b", "c", "d"]}, "differ in labels"),
    ({"crop_pct": 0.5}, "differ in preprocessing"),
])
def test_checkpoints_that_cannot_be_compared_are_refused(run, shapes, tmp_path, capsys, change, expected):
    saved = torch.load(run / "best.pt", weights_only=True)
    if "arch" in change:
        from models.vit import build
        saved["state_dict"] = build("test_vit4", 4).state_dict()
    if "crop_pct" in change:
        change = {"preprocessing": {**saved["preprocessing"], **change}}
    torch.save({**saved, **change}, tmp_path / "other.pt")
    output = tmp_path / "out" / "figure.png"
    assert p1_viz_landscape.main([str(run / "best.pt"), str(tmp_path / "other.pt"), "--data", str(shapes), "--output",
                                  str(output), *QUICK]) == 2
    assert expected in capsys.readouterr().err and not output.parent.exists()


@pytest.mark.parametrize("case, expected", [("labels", "holds the label 9"), ("huge", "not finite: it is damaged"),
                                            ("cut", "1 file of"), ("span", "--span leads"), ("rho", "--rho leads"),
                                            ("holdout", "no photo that all"), ("folder", "figure.png is a folder"), ("missing", "train does not exist")])
def test_bad_input_leaves_nothing_behind(run, shapes, tmp_path, capsys, monkeypatch, case, expected):
    checkpoint, data, output, flags = run / "best.pt", tmp_path / "data", tmp_path / "out" / "figure.png", []
    (data / "train").mkdir(parents=True)
    for label in range(4):
        for i in range(2):
            (data / "train" / f"{label}_{i}.jpg").write_bytes((shapes / "train" / f"{label}_{i}.jpg").read_bytes())
    if case == "labels":
        (data / "train" / "0_0.jpg").rename(data / "train" / "9_0.jpg")
    if case == "holdout":
        monkeypatch.setattr(p1_viz_landscape, "fitted", lambda targets, settings: [])
    if case == "cut":
        (data / "train" / "0_0.jpg").write_bytes((shapes / "train" / "0_0.jpg").read_bytes()[:600])
        (data / "train" / "0_1.jpg").unlink()
    if case == "huge":
        saved = torch.load(checkpoint, weights_only=True)
        checkpoint = tmp_path / "huge.pt"
        torch.save({**saved, "state_dict": {k: v * 1e30 for k, v in saved["state_dict"].items()}}, checkpoint)
    if case in ("span", "rho"):
        flags = [f"--{case}", "1e38"]
    if case == "folder":
        output.mkdir(parents=True)
    if case == "missing":
        data = tmp_path / "missing"
    assert p1_viz_landscape.main([str(checkpoint), "--data", str(data), "--output", str(output), *QUICK, *flags]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0]
    assert case == "folder" or not list(tmp_path.glob("out/*"))
