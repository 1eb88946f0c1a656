"""Nothing lies on the wrong device: forward passes on CUDA tensors that have no content, and need no GPU."""

import contextlib

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from benchmarks.memory import to_fake
from common.errors import BadInput
from datasets.transforms import MixupCutMix
from engine.inference import predict
from interpret import attention, landscape, occlusion, positions
from models import catr, decoding, vit
from models.losses import ClassificationLoss
from models.probe import Features
from tests.unit.test_vit import KINDS

CUDA = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(torch.__version__ < (2, 11), reason="a convolution aborts")


@pytest.fixture
def fake():
    """Inside, tensors have no content, and two of different devices do not go together."""
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        yield mode


def test_two_devices_do_not_go_together(fake):
    with pytest.raises(Exception, match="found (at least )?two (different )?devices"):
        torch.zeros(2, device=CUDA) + torch.zeros(2)


def classifier(arch):
    """(A model of one block, its images, their targets), on the GPU."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.device("meta"):
        model = timm.create_model(arch, depth=1)
        model.reset_classifier(3)
    images = torch.zeros(2, *vit.preprocessing(model)["input_size"], device=CUDA)
    return to_fake(model, CUDA), images, torch.zeros(2, dtype=torch.long, device=CUDA)


@pytest.mark.parametrize("arch", KINDS)
def test_every_kind_of_model_trains_and_is_drawn_on_one_device(arch, fake):
    model, images, targets = classifier(arch)
    assert all(part.device == CUDA for part in ClassificationLoss(0.1)(model.train(), (images, targets)))
    assert Features(model.eval())(images).device == CUDA
    grid = attention.patch_grid(model, images.shape[2:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "max", lambda self, dim: (self[0], 0))  # which one, depends on content
        assert occlusion.occlusion(model, images[0], torch.zeros(2, *grid, device=CUDA), (0.5,), 1)
    with contextlib.suppress(BadInput), pytest.MonkeyPatch.context() as patch:  # differential, or no [CLS]
        patch.setattr(attention, "_same", lambda values, expected: values.device == expected.device)
        maps = attention.attention_maps(model, images)[1]
        assert attention.rollout(maps).device == maps[0].device == CUDA
        assert attention.cls_to_patch(maps[0], model, grid).device == CUDA
    with contextlib.suppress(BadInput):  # no learned positions
        assert positions.position_similarity(model).device == CUDA


def test_a_landscape_stays_on_one_device(fake):
    """It moves all parameters alike, of whatever kind the model is."""
    model, images, targets = classifier("vit_tiny_patch16_224")
    weights, loss = landscape.weights_of(model), landscape.classification_loss(model)
    direction, = landscape.random_directions([weights], 1, 0)
    assert loss(landscape._moved(weights, direction, 0.1), (images, targets)).device == CUDA


def test_predictions_come_to_the_cpu(fake):
    loader = torch.utils.data.DataLoader([(torch.zeros(5), torch.tensor(0))] * 3, 2)
    assert predict(torch.nn.Linear(5, 3, device=CUDA), loader, CUDA)[0].device == torch.device("cpu")


def test_images_are_mixed_on_one_device(fake):
    for odd in (0, 1):
        images, targets = torch.zeros(4 + odd, 3, 8, 8, device=CUDA), torch.zeros(4 + odd, device=CUDA).long()
        batch = MixupCutMix(0.2, 1.0, 0.1, 3)(images, targets)
        loss = ClassificationLoss()(lambda images: images.mean((2, 3)), batch)
        assert all(part.device == CUDA for part in (*batch, *loss))


def test_the_captioner_trains_and_captions_on_one_device(fake):
    with torch.utils._python_dispatch._disable_current_modes(), torch.device("meta"):
        model = catr.CATR(catr.small_config(20))
    model = to_fake(model, CUDA).train()
    photos = [torch.zeros(3, 64, 96, device=CUDA), torch.zeros(3, 96, 80, device=CUDA)]
    ids = torch.zeros(2, 6, dtype=torch.long, device=CUDA)
    losses = decoding.token_losses(model(photos, ids[:, :-1]), ids)
    memory = model.eval().encode(photos)
    cache = model.begin(memory)
    logits, maps = model.decode(ids[:, :1], cache, with_maps=True)
    cache.select(torch.zeros(3, dtype=torch.long, device=CUDA))
    longer = model.decode(ids[:1, :1].expand(3, 1), cache)
    assert {tensor.device for tensor in (*losses, logits, *maps, longer)} == {CUDA}
