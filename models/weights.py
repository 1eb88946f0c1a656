"""A weights file into a timm model: from the hub or a path, in whatever layout, with or without its head."""

import threading
from functools import partial
from pathlib import Path

import torch
from timm.models import beit, clean_state_dict, eva, vision_transformer

from common.errors import BadInput
from common.files import read_tensors, refuse_nonfinite_weights

# class -> timm's conversions of its weights from older layouts and other grid sizes; DeiT's class is a VisionTransformer
CONVERSIONS = {
    vision_transformer.VisionTransformer: partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True),
    beit.Beit: beit.checkpoint_filter_fn,
    eva.Eva: eva.checkpoint_filter_fn,
}

HUB_PATIENCE = 4  # seconds until a hub that does not answer counts as unreachable


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
    refuse_nonfinite_weights(weights, path)
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
