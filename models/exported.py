"""A checkpoint as timm and the Hugging Face hub know it: a folder.

    model.safetensors   the weights under timm's names
    config.json         timm's own: the architecture, the names of its classes, the preprocessing and size of
                        its images; and what else a checkpoint of ours has, under `vit_pets`
"""

import json
from pathlib import Path

from timm.models import save_for_hf

from common.errors import BadInput
from common.files import read_tensors

WEIGHTS, CONFIG, OURS = "model.safetensors", "config.json", "vit_pets"
PREPROCESSING = "input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"


def export(checkpoint, folder):
    """Write a `models.checkpoint.Checkpoint` as the two files above, into a folder, which is created."""
    model, preprocessing = checkpoint.model, checkpoint.preprocessing
    model.pretrained_cfg = {
        **model.pretrained_cfg, **preprocessing, "num_classes": len(checkpoint.labels),
        # of the pretrained weights: other sizes, a layout of their own, their classes, name and licence
        "test_input_size": None, "test_crop_pct": None, "custom_load": False, "label_offset": None,
        "tag": None, "license": None}
    save_for_hf(model, str(folder), safe_serialization=True,
                model_args={"img_size": preprocessing["input_size"][1:]},
                model_config={"label_names": checkpoint.class_names,
                              OURS: {"labels": checkpoint.labels, "settings": checkpoint.settings}})
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors' is for its owner alone


def is_exported(path):
    """Whether a path is a folder that `export` wrote, or one from the hub."""
    return (Path(path) / WEIGHTS).is_file()


def weights_file(path):
    """The file of the weights of what `read_content` reads."""
    return Path(path) / WEIGHTS if is_exported(path) else Path(path)


def read_exported(folder):
    """The content of the checkpoint that a folder was made of, as `models.checkpoint` describes it.

    Raises BadInput for a folder that `export` did not write.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return {"format": 1, "arch": config["architecture"], "class_names": config["label_names"],
                "preprocessing": {name: config["pretrained_cfg"][name] for name in PREPROCESSING},
                **{name: config[OURS][name] for name in ("labels", "settings")},
                "state_dict": read_tensors(folder / WEIGHTS)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / CONFIG} is none of p1_export.py ({type(error).__name__}: {error}): pass "
                       f"{folder / WEIGHTS} as --weights with its --arch") from error


def read_content(path):
    """What a checkpoint or weights file holds, or the folder of an exported one. BadInput for others."""
    return read_exported(path) if is_exported(path) else read_tensors(path)
