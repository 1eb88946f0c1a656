"""timm's VisionTransformer, Beit and Eva models: built by name, their weights, preprocessing, and the checkpoint format.

A checkpoint is a dict saved by torch and read with `weights_only=True`:

    format          1
    arch            timm's name
    labels          the labels as the training data wrote them, in the order of the head's outputs
    class_names     a name for each
    preprocessing   input_size, interpolation, mean, std, crop_pct, crop_mode: timm's data configuration
    settings        what the run was started with
    state_dict      the weights under timm's names

so that plain timm loads it too: `timm.create_model(arch, num_classes=len(labels), checkpoint_path=FILE)`.
"""

import difflib
import math
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import timm.data
import torch
from timm.models import beit, clean_state_dict, eva, vision_transformer
from timm.optim import param_groups_layer_decay

from common.errors import BadInput
from common.files import read_tensors, refuse_other_format, refuse_spoilt_weights

FIELDS = {"format", "arch", "labels", "class_names", "preprocessing", "settings", "state_dict"}
# class -> timm's conversions of its weights from older layouts and other grid sizes; DeiT's class is a VisionTransformer
CONVERSIONS = {
    vision_transformer.VisionTransformer: partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True),
    beit.Beit: beit.checkpoint_filter_fn,
    eva.Eva: eva.checkpoint_filter_fn,
}
HUB_PATIENCE = 4  # seconds until a hub that does not answer counts as unreachable


def build(arch, num_classes=None):
    """The timm model `arch`, randomly initialised, with `num_classes` outputs (its own number if None).

    Raises BadInput for a name that timm does not know, with the nearest ones, and for another kind of model.
    """
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(module=["vision_transformer", "deit", "beit", "eva"]), n=3)
        raise BadInput(f"--arch {arch}: timm has no such model" + (f"; did you mean {', '.join(near)}?" if near else ""))
    try:
        model = timm.create_model(arch, **({} if num_classes is None else {"num_classes": num_classes}))
    except RuntimeError as error:  # an unknown pretrained tag
        known = timm.list_models(f"{arch.partition('.')[0]}.*", pretrained=True)
        raise BadInput(f"--arch {arch}: timm knows no such weights; it has {', '.join(known) or 'none'}") from error
    if not isinstance(model, tuple(CONVERSIONS)):
        raise BadInput(f"--arch {arch} is a {type(model).__name__}: name a timm VisionTransformer, Beit or Eva, "
                       "such as vit_base_patch16_224")
    return model


def set_image_size(model, size):
    """Make the model take images of `size` (height, width): its position embedding is resampled as timm does.

    Raises BadInput where the patches do not divide it.
    """
    patch = model.patch_embed.feat_ratio(as_scalar=False)  # of a hybrid: what its convolutions stride over, too
    if any(side % step for side, step in zip(size, patch)):
        raise BadInput(f"--image-size {size[0]}x{size[1]}: each side must be a multiple of the patch, {patch[0]}x{patch[1]}")
    model.set_input_size(img_size=tuple(size))


def preprocessing(model):
    """timm's data configuration of a model, as plain values that a checkpoint can hold."""
    config = timm.data.resolve_model_data_config(model)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


class Normalised(torch.nn.Module):
    """A model on the pixels of `datasets.images.evaluation_pixels`, uint8 (N, 3, H, W).

    The arithmetic is that of `evaluation_transform`, bit for bit: x / 255, less the mean, by the standard deviation.
    """

    def __init__(self, model, preprocessing):
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocessing[name]).reshape(3, 1, 1), persistent=False)

    def forward(self, pixels):
        return self.model(pixels.float().div_(255).sub_(self.mean).div_(self.std))


def load_weights(model, arch, path, adopt_head=False):
    """Load a weights file into a model of the name `arch`, with timm's conversions (older layouts, other grid sizes).

    The model's head is left as it is where the file has none, or one of another size; with `adopt_head` the model
    takes the file's number of classes instead. Returns what to tell the user about a head left at random, or None.
    Raises BadInput for a file that does not fit otherwise.
    """
    path = Path(path)
    content = read_tensors(path)
    made_for = content.get("arch") if isinstance(content, dict) else None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise BadInput(f"{path} holds no state dict: pass a timm weights file or a checkpoint of p1_train.py")
    hint = f"it was made for {made_for}" if isinstance(made_for, str) else "name the --arch that it was made for"
    try:
        convert = next(convert for kind, convert in CONVERSIONS.items() if isinstance(model, kind))
        weights = convert(clean_state_dict(content), model)
    except (RuntimeError, ValueError, AssertionError) as error:  # tensors that its conversions cannot reshape
        raise BadInput(f"{path} does not fit {arch}: {hint}") from error

    heads = model.default_cfg["classifier"]
    heads = (heads,) if isinstance(heads, str) else heads
    theirs = next((len(value) for key, value in weights.items() if key.rpartition(".")[0] in heads), None)
    if adopt_head and theirs:
        model.reset_classifier(theirs)
    own = model.state_dict()
    in_head = {key for key in own if key.rpartition(".")[0] in heads}
    replaced = {key for key in in_head if key not in weights or weights[key].shape != own[key].shape}
    told = None
    if replaced:
        ours = len(own[min(in_head)])
        told = (f"the head of {path.name} ({theirs} classes) is replaced by a new one ({ours} classes)" if theirs
                else f"{path.name} has no head: a new one ({ours} classes) takes its place")
        weights = {key: value for key, value in weights.items() if key.rpartition(".")[0] not in heads}
        weights.update((key, own[key]) for key in in_head)
    wrong = [f"{key} is missing" for key in own if key not in weights]
    wrong += [f"{key} is unknown" for key in weights if key not in own]
    wrong += [f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}" for key in own
              if key in weights and weights[key].shape != own[key].shape]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BadInput(f"{path} does not fit {arch} ({wrong[0]}{more}): {hint}")
    refuse_spoilt_weights(weights, path)
    model.load_state_dict(weights)
    return told


def fetch_pretrained(model, arch):
    """The file of timm's pretrained weights for a model, from the hub's cache or the hub itself.

    Raises BadInput if the hub cannot be reached, within about 10 seconds, or has no such weights.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    config = model.pretrained_cfg
    repository = config.get("hf_hub_id")
    if not repository:
        raise BadInput(f"--arch {arch} has no pretrained weights on the hub: pass a file with --weights")
    names = [config["hf_hub_filename"]] if config.get("hf_hub_filename") else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        try:
            _within(HUB_PATIENCE, huggingface_hub.get_hf_file_metadata, huggingface_hub.hf_hub_url(repository, name),
                    timeout=HUB_PATIENCE)
            return Path(huggingface_hub.hf_hub_download(repository, name))
        except EntryNotFoundError:
            continue
        except Exception as error:  # no route, no name, a proxy's refusal, a 404: each client library has its own
            raise BadInput(f"the weights {repository} cannot be fetched from the hub ({type(error).__name__}): get "
                           f"{name} of them elsewhere and pass it with --weights") from error
    raise BadInput(f"{repository} on the hub holds none of {', '.join(names)}: pass the weights with --weights FILE")


def _within(seconds, function, *args, **kwargs):
    """The function's result, or TimeoutError: its own time-outs may not cover name look-ups and retries."""
    outcome = {}

    def run():
        try:
            outcome["result"] = function(*args, **kwargs)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "result" not in outcome:
        raise TimeoutError
    return outcome["result"]


def create(arch, num_classes=None, weights=None, scratch=False):
    """The model `arch`: random with `scratch`, with the weights of a file, or timm's pretrained ones from the hub.

    Returns (model, what to tell the user about its head or None). Raises BadInput as the functions above do.
    """
    model = build(arch, num_classes)
    if scratch:
        return model, None
    file = weights or fetch_pretrained(model, arch)
    return model, load_weights(model, arch, file, adopt_head=num_classes is None)


def describe(model):
    """What a table says of a model: its `parameters`, and its `width`, `heads` and `depth`."""
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "width": model.embed_dim,
            "heads": model.blocks[0].attn.num_heads, "depth": len(model.blocks)}


def layer_groups(model, decay):
    """Parameter groups for layer-wise learning-rate decay (Bao et al. 2021, arXiv:2106.08254): dicts of `params`, `lr_scale`.

    timm counts the layers: 0 is the embedding, 1 to `depth` are the blocks, the last one with a norm after it, and
    depth + 1 is the head, with a norm after the pooling. The rate of layer i is multiplied by lr_scale = decay ^ (depth + 1 - i).
    """
    groups = param_groups_layer_decay(model, weight_decay=0.0, layer_decay=decay)
    # without its weight decay: that of the optimizer holds for all, as it does without layer decay
    return [{"params": group["params"], "lr_scale": group["lr_scale"]} for group in groups]


# Checkpoints -------------------------------------------------------------------------------------------------------


def checkpoint_fields(arch, labels, class_names, preprocessing):
    """The dict described at the top of this file, all but `settings` and `state_dict`, which belong to the run's state."""
    return {"format": 1, "arch": arch, "labels": list(labels), "class_names": list(class_names),
            "preprocessing": preprocessing}


@dataclass
class Checkpoint:
    """A checkpoint, opened: the model has the weights and is in evaluation mode."""

    path: Path
    model: torch.nn.Module
    arch: str
    labels: list
    class_names: list
    preprocessing: dict
    settings: dict


def _are_names(labels, class_names):
    return (isinstance(labels, list) and isinstance(class_names, list) and len(labels) == len(class_names) > 0
            and all(isinstance(name, str) for name in [*labels, *class_names]))


def _shapes(state_dict):
    """The shapes of its tensors by key; None for what is no state dict."""
    if isinstance(state_dict, dict) and all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        return {key: value.shape for key, value in state_dict.items()}


def _is_preprocessing(found, of_model):
    """Whether a checkpoint's data configuration can be that of a model whose own is `of_model`."""
    if not isinstance(found, dict) or found.keys() != of_model.keys() or found["input_size"] != of_model["input_size"]:
        return False
    if not isinstance(found["mean"], list) or not isinstance(found["std"], list):
        return False
    numbers = [found["crop_pct"], *found["mean"], *found["std"]]
    return (len(found["mean"]) == len(found["std"]) == 3
            and all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
            and 0.05 <= numbers[0] <= 2 and min(found["std"]) > 0
            and found["interpolation"] in ("nearest", "bilinear", "bicubic", "lanczos")
            and found["crop_mode"] in ("center", "squash", "border"))


def open_checkpoint(path):
    """Open a checkpoint of `p1_train.py` for evaluation or figures. Raises BadInput for anything else."""
    content = read_tensors(path)
    if not isinstance(content, dict) or not FIELDS <= content.keys():
        raise BadInput(f"{path} is not a checkpoint of p1_train.py: for plain weights pass --arch and --weights")
    refuse_other_format(content, path)
    arch, labels, state_dict = content["arch"], content["labels"], content["state_dict"]
    if not isinstance(arch, str) or not _are_names(labels, content["class_names"]):
        raise BadInput(f"{path} does not say which model it is, or of which classes: it is damaged")
    try:
        with torch.device("meta"):  # what a file claims takes no memory until its weights are known to fit
            model = build(arch, len(labels))
        if _shapes(state_dict) != _shapes(model.state_dict()):
            raise BadInput(f"its weights do not fit its own architecture, {arch}: it is damaged")
        if all(name in state_dict for name, _ in model.named_buffers()):
            model.to_empty(device="cpu")  # random weights first would take as long as opening the file
        else:
            model = build(arch, len(labels))
        if not _is_preprocessing(content["preprocessing"], preprocessing(model)):
            raise BadInput(f"its preprocessing does not fit its own architecture, {arch}: it is damaged")
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    refuse_spoilt_weights(state_dict, path)
    model.load_state_dict(state_dict)
    return Checkpoint(Path(path), model.eval(), content["arch"], content["labels"], content["class_names"],
                      content["preprocessing"], content["settings"])
