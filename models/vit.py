"""timm's VisionTransformer, Beit and Eva models: built by name, their preprocessing and layer groups."""

import difflib

import timm
import timm.data
import torch
from timm.optim import param_groups_layer_decay

from common.errors import BadInput
from models.weights import CONVERSIONS, fetch_pretrained, load_weights, set_image_size

FAMILIES = ["vision_transformer", "deit", "beit", "eva"]  # timm's modules


def build(arch, num_classes=None):
    """The timm model `arch`, random, with `num_classes` outputs (None: its own). BadInput for others."""
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(module=FAMILIES), n=3)
        guess = f"; did you mean {', '.join(near)}?" if near else ""
        raise BadInput(f"--arch {arch}: timm has no such model{guess}")
    try:
        model = timm.create_model(arch, **({} if num_classes is None else {"num_classes": num_classes}))
    except RuntimeError as error:  # an unknown pretrained tag
        names = ", ".join(timm.list_models(f"{arch.partition('.')[0]}.*", pretrained=True)) or "none"
        raise BadInput(f"--arch {arch}: timm knows no such weights; it has {names}") from error
    if not isinstance(model, tuple(CONVERSIONS)):
        raise BadInput(f"--arch {arch} is a {type(model).__name__}: name a timm VisionTransformer, Beit or "
                       "Eva, such as vit_base_patch16_224")
    return model


def create(arch, num_classes=None, weights=None, scratch=False, image_size=None):
    """The model `arch`, random with `scratch`, else with the weights of a file or timm's own from the hub.

    It takes images of `image_size` (height, width); None: of its own, or of a checkpoint's of ours. Returns
    (model, what to tell the user about its head or None). Raises BadInput as `load_weights` does.
    """
    model = build(arch, num_classes)
    if not scratch:
        path = weights or fetch_pretrained(model, arch)
        return model, load_weights(model, arch, path, num_classes is None, image_size)
    if image_size:
        set_image_size(model, image_size)
    return model, None


def preprocessing(model):
    """timm's data configuration of a model, as plain values that a checkpoint can hold."""
    channels = model.pretrained_cfg["input_size"][0]
    config = timm.data.resolve_model_data_config(
        model, {"input_size": (channels, *model.patch_embed.img_size)})
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


class Normalise(torch.nn.Module):
    """Pixels (N, 3, H, W), uint8, of `datasets.transforms` -> what a model of this `preprocessing` takes.

    (x / 255 - mean) / std, which gives the bits of `evaluation_transform`.
    """

    def __init__(self, preprocessing):
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocessing[name]).reshape(3, 1, 1), persistent=False)

    def forward(self, pixels):
        return pixels.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)


def on_pixels(model, preprocessing):
    """A model, where it is, with `Normalise` before it."""
    return torch.nn.Sequential(Normalise(preprocessing), model).to(next(model.parameters()).device)


def describe(model):
    """What a table says of a model: its `parameters`, and its `width`, `heads` and `depth`."""
    # of a parallel block, itself or its branches attend
    heads = next(part.num_heads for part in model.blocks[0].modules() if hasattr(part, "num_heads"))
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()),
            "width": model.embed_dim, "heads": heads, "depth": len(model.blocks)}


def layer_groups(model, decay):
    """Parameter groups for layer-wise learning-rate decay: a list of dicts of `params` and `lr_scale`.

    lr_scale = decay ^ (depth + 1 - i) for layer i (Bao et al. 2021, arXiv:2106.08254). timm counts: 0 the
    embedding, 1 to `depth` the blocks, the last with its norm, depth + 1 the head with a norm after pooling.
    """
    groups = param_groups_layer_decay(model, weight_decay=0.0, layer_decay=decay)
    # without its weight decay: that of the optimizer holds for all, as it does without layer decay
    return [{"params": group["params"], "lr_scale": group["lr_scale"]} for group in groups]
