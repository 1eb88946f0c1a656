"""A weights file into a model: from the hub or a path, in any layout, with or without its head."""

import copy
import re
from functools import partial
from pathlib import Path

import timm
import torch
from timm.models import beit, clean_state_dict, eva, vision_transformer

from common.errors import BadInput
from models.exported import read_content

# class (DeiT's is VisionTransformer) -> timm's conversion of weights from older layouts and other grid sizes
CONVERSIONS = {
    vision_transformer.VisionTransformer: partial(vision_transformer.checkpoint_filter_fn,
                                                  adapt_layer_scale=True),
    beit.Beit: beit.checkpoint_filter_fn,
    eva.Eva: eva.checkpoint_filter_fn,
}


LONGEST_SIDE = 4096  # pixels that a checkpoint may claim of its images: memory grows with their square
CONTAINERS = ("state_dict", "model_state_dict", "model", "module")  # of torch's users; the last DeepSpeed's
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")  # of one layer, too
PATCHES = "patch_embed.proj.weight"  # what all ViTs have
LAYOUTS = {"transformers": "embeddings.patch_embeddings.projection.weight", "torchvision": "conv_proj.weight"}


def state_dict_in(content, path, hint):
    """The state dict in a file's content, in one of the `CONTAINERS`, or all of it. None: BadInput."""
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds no state dict: {hint}")
    for key, value in content.items():
        plain = isinstance(value, torch.Tensor) and not value.is_complex() and not value.is_quantized
        if not plain or not isinstance(key, str):
            raise BadInput(f"{path} holds no state dict ({key} is no plain tensor): {hint}")
    return content


def unwrapped(weights, anchor):
    """A state dict without the names that torch's wrappers, Lightning and others put before the keys.

    They are what stands before `anchor`, a key that each model of the kind has; keys without are not its.
    """
    weights = {WRAPPERS.sub("", key): value for key, value in weights.items()}
    prefix = next((key.removesuffix(anchor) for key in weights if f".{key}".endswith(f".{anchor}")), None)
    if prefix is None or prefix.endswith("visual.trunk."):  # OpenCLIP's, of which timm takes the head, too
        return clean_state_dict(weights)
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def refuse_other_keys(weights, model, problem, hint):
    """Raise BadInput, `problem` (a key): `hint`, unless a state dict has a model's keys and shapes."""
    expected, shapes = ({key: tuple(value.shape) for key, value in state_dict.items()}
                        for state_dict in (model.state_dict(), weights))
    wrong = [f"{key} is missing" for key in expected if key not in shapes]
    wrong += [f"{key} is unknown" for key in shapes if key not in expected]
    wrong += [f"{key} is {shapes[key]}, not {shape}" for key, shape in expected.items()
              if shapes.get(key, shape) != shape]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BadInput(f"{problem} ({wrong[0]}{more}): {hint}")


def load_finite(model, weights, path):
    """Load a state dict of the model's keys and shapes. BadInput names a tensor with NaN or inf."""
    for key, value in weights.items():
        if not value.float().isfinite().all():  # float8 has no isfinite of its own
            raise BadInput(f"{path}: {key} holds values that are not finite: take an earlier checkpoint")
    if any(parameter.is_meta for parameter in model.parameters()):  # no memory yet: take the file's tensors
        model.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    else:
        model.load_state_dict(weights)


def refuse_other_format(content, path):
    """Raise BadInput for a checkpoint of ours, the dict `content`, in a format other than 1."""
    number = content.get("format")
    if type(number) is not int or number != 1:
        raise BadInput(f"{path} has the format {str(number)[:9]}, and this version reads 1: update it")


def trained_size(content):
    """The (height, width) that a checkpoint of ours says it was trained with; None of any other content."""
    config = content.get("preprocessing")
    size = config.get("input_size") if isinstance(config, dict) else None
    if isinstance(size, list) and len(size) == 3 and all(
            type(side) is int and 0 < side <= LONGEST_SIDE for side in size):
        return size[1:]
    return None


def set_image_size(model, size):
    """Make the model take images of `size` (height, width). BadInput where it cannot."""
    if tuple(size) == tuple(model.patch_embed.img_size):  # of which some are no multiple of their patch
        return
    patch = model.patch_embed.feat_ratio(as_scalar=False)  # of a hybrid, with its convolutions' stride
    if any(side % step for side, step in zip(size, patch)):
        raise BadInput(f"image size {size[0]}x{size[1]}: each side must be a multiple of the patch, "
                       f"{patch[0]}x{patch[1]}")
    if not hasattr(model, "set_input_size"):  # a Beit of timm before 1.0.31
        raise BadInput(f"image size: timm {timm.__version__} cannot resize a {type(model).__name__}: pip "
                       "install 'timm>=1.0.31'")
    model.set_input_size(img_size=tuple(size))


def load_weights(model, arch, path, adopt_head=False, image_size=None):
    """Load a weights file into a model of the name `arch`, after timm's conversion from older layouts.

    Where the file has no head or one of another size, the model's stays; with `adopt_head` it gets the file's
    number of classes. The model takes images of `image_size` (height, width), else of the size that a
    checkpoint of ours was trained with, else of its own. Returns what to tell the user about a head left at
    random, or None. Raises BadInput for a file that does not fit otherwise.
    """
    problem, hint = f"{path} does not fit {arch}", "name the --arch that it was made for"
    content = read_content(path)
    weights = state_dict_in(content, path, "pass a timm weights file or a checkpoint of p1_train.py")
    if isinstance(content.get("arch"), str):
        hint = f"it was made for {content['arch']}"
    if size := trained_size(content):
        set_image_size(model, size)
    for layout, key in LAYOUTS.items():
        if any(f".{name}".endswith(f".{key}") for name in weights):
            raise BadInput(f"{path} has the layout of {layout}: take timm's weights, which come without "
                           "--weights or from https://huggingface.co/timm")
    convert = next(convert for kind, convert in CONVERSIONS.items() if isinstance(model, kind))
    try:
        if any(key.endswith("embedding/kernel") for key in weights):
            weights = _from_google(weights, path, model)
        else:
            weights = convert(unwrapped(weights, PATCHES), model)
    except (LookupError, AttributeError, RuntimeError, ValueError, AssertionError) as error:  # other tensors
        raise BadInput(f"{problem}: {hint}") from error
    message = _match_heads(model, weights, Path(path).name, adopt_head)
    refuse_other_keys(weights, model, problem, hint)
    load_finite(model, weights, path)
    if image_size:
        set_image_size(model, image_size)
    return message


def _from_google(arrays, path, model):
    """The state dict that timm makes of Google's .npz file at `path`, of which `arrays` is the content."""
    depth = sum(1 if "encoderblock_" in key else len(array) for key, array in arrays.items()
                if re.search(r"encoderblock(_\d+)?/LayerNorm_0/scale$", key))
    if depth != len(model.blocks):  # timm would take the first ones of more
        raise ValueError(f"{depth} blocks, not {len(model.blocks)}")
    google = copy.deepcopy(model)
    google.reset_classifier(sum(len(array) for key, array in arrays.items() if key.endswith("head/bias")))
    google.load_pretrained(str(path))
    return google.state_dict()


def _match_heads(model, weights, name, adopt_head):
    """Give the weights of the file `name` the model's head, or the model theirs. Returns what to say."""
    layers = model.default_cfg["classifier"]
    layers = (layers,) if isinstance(layers, str) else layers

    def head_of(state_dict):
        return {key: value for key, value in state_dict.items() if key.rpartition(".")[0] in layers}

    theirs = head_of(weights)
    their_classes = next((len(value) for value in theirs.values() if value.dim()), None)
    if adopt_head and their_classes:
        model.reset_classifier(their_classes)
    ours = head_of(model.state_dict())
    if all(key in theirs and theirs[key].shape == value.shape for key, value in ours.items()):
        return None
    for key in theirs:
        del weights[key]
    weights.update(ours)
    new = f"a new one ({len(next(iter(ours.values())))} classes)"
    return f"the head of {name} ({their_classes} classes) is replaced by {new}" if theirs else (
        f"{name} has no head: {new} takes its place")


def fetch_pretrained(model, arch):
    """The file of timm's pretrained weights for a model, from the hub's cache or the hub, else BadInput.

    huggingface_hub waits for the environment's HF_HUB_ETAG_TIMEOUT, then HF_HUB_DOWNLOAD_TIMEOUT for more.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, file = (model.pretrained_cfg.get(key) for key in ("hf_hub_id", "hf_hub_filename"))
    if not repository:
        raise BadInput(f"--arch {arch} has no pretrained weights on the hub: pass a file with --weights")
    names = [file] if file else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        if isinstance(cached := huggingface_hub.try_to_load_from_cache(repository, name), str):
            return Path(cached)
    for name in names:
        try:
            # asks once; hf_hub_download by itself would ask a silent hub six times, a minute each
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, name),
                                                 timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT)
            return Path(huggingface_hub.hf_hub_download(repository, name))
        except Exception as error:  # no route, no name, a proxy's refusal: each client library has its own
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue  # the hub says so
            raise BadInput(f"the weights {repository} cannot be fetched from the hub "
                           f"({type(error).__name__}): get {name} elsewhere, pass --weights FILE") from error
    raise BadInput(f"{repository} on the hub holds none of {', '.join(names)}: pass a file with --weights")
