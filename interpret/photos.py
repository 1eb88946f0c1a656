"""Photos shown to a ViT: what it predicts of each, and where its [CLS] token attends."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from common.cli import note
from common.errors import BadInput
from common.files import nfc
from common.machine import usable_cores
from datasets import decode
from datasets.images import known_label
from datasets.masks import load_mask, patch_cover
from datasets.transforms import crop_box, evaluation_transform
from interpret.attention import attention_maps, cls_to_patch, patch_grid, rollout
from interpret.grounding import peaks_on, share_on
from interpret.occlusion import occlusion
from models import vit
from models.checkpoint import open_checkpoint


@dataclass
class PhotoAttention:
    """What a Viewer makes of one photo; the names in its dicts are those that p1_viz_attn.py documents."""

    path: Path
    pixels: np.ndarray  # uint8 (height, width, 3)
    inputs: torch.Tensor  # (3, H, W), preprocessed, on the model's device
    title: str
    metadata: dict
    arrays: dict

    @property
    def mistaken(self):
        """Whether the photo is known to be of another class than the predicted one."""
        return self.metadata["label"] not in ("", self.metadata["predicted"])

    @property
    def attention(self):
        """The map to draw and to judge, (H, W): the rollout if there is one, else that of the block."""
        return self.arrays.get("rollout", self.arrays["attention"])

    def ground(self, inside, outside):
        """Add to arrays and title where the map lies, by a `Viewer.cover`.

        Returns (share of the attention, share of the area, whether the peak is on or beside it, by chance).
        """
        attention, on, off = map(torch.from_numpy, (self.attention, inside, outside))
        share, area = (value.item() for value in share_on(attention, on, off))
        peak, chance = peaks_on(attention, on)
        self.arrays.update(share_on_object=share, share_of_area=area, peak_on_object=peak,
                           object_cover=inside, background_cover=outside)
        self.title += f"\nattention on the object {share:.0%}, area {area:.0%}"
        return share, area, peak, chance

    def occlude(self, model):
        """Add what `occlusion` returns for the map to the arrays, and return it."""
        probability, falls = occlusion(model, self.inputs, torch.from_numpy(self.attention))
        self.arrays.update(probability=probability, occlusion=np.array(falls))
        return probability, falls


def _imagenet_names(model):
    """timm's names of a model's classes where it is one of ImageNet's heads by their number, else numbers."""
    subset, classes = infer_imagenet_subset(model), range(model.num_classes)
    return list(map(ImageNetInfo(subset).index_to_description if subset else "class {}".format, classes))


class Viewer:
    """A model that photos are shown to: of a checkpoint, or timm's `arch` with its own weights or a file's.

    `image_size` (height, width) replaces its own. `class_names` is empty for a head that predicts no classes.
    """

    def __init__(self, device, checkpoint=None, arch=None, weights=None, image_size=None):
        self.name, self.device, self.class_of = str(checkpoint or arch), device, {}
        if checkpoint:
            opened = open_checkpoint(checkpoint)
            model, preprocessing, self.class_names = opened.model, opened.preprocessing, opened.class_names
            self.class_of = dict(zip(map(nfc, opened.labels), opened.class_names))
        else:
            model, missing_head = vit.create(arch, weights=weights)
            preprocessing = vit.preprocessing(model)
            self.class_names = [] if missing_head else _imagenet_names(model)
            if missing_head:
                note(f"{weights} has no head for its classes: no prediction is shown")
        if image_size:
            vit.set_image_size(model, image_size)
            preprocessing = {**preprocessing, "input_size": [3, *image_size]}
        self.model, self.preprocessing = model.eval().to(device), preprocessing
        self.transform = evaluation_transform(preprocessing)
        self.grid = patch_grid(model, preprocessing["input_size"][1:])

    def cover(self, path, mask):
        """What object and background cover of each patch of a photo, by a mask file: float32 (2, H, W).

        Raises BadInput for a file that is no mask, or has neither in what the model sees.
        """
        size = decode.load_image(path).size
        box = crop_box(size, self.preprocessing)
        cover = np.stack([patch_cover(part, box, self.grid) for part in load_mask(mask, size)])
        if not cover.any():
            raise BadInput(f"{mask} marks neither object nor background in what the model sees of {path}: "
                           "leave it out")
        return cover

    def attend(self, paths, batch_size=16, block=-1, with_rollout=False, with_all=False, names=None):
        """Yield the PhotoAttention of each photo. Raises BadInput for a model without [CLS] attention.

        `names` are those of the figures, as `datasets.photos.find_photos` has them, or else the stems.
        """
        names = names or [path.stem for path in paths]
        blocks = [*range(len(self.model.blocks) if with_rollout or with_all else 0), block]
        with ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(paths), batch_size):
                photos = list(pool.map(decode.load_image, paths[start:start + batch_size]))
                inputs = torch.stack(list(pool.map(self.transform, photos))).to(self.device)
                probabilities, maps = self._run(inputs, blocks)
                for i, (name, path, photo) in enumerate(zip(names[start:], paths[start:], photos)):
                    title, metadata = self._describe(name, path, photo.size, probabilities[i])
                    arrays = self._arrays([of_block[i] for of_block in maps], with_rollout, with_all)
                    yield PhotoAttention(path, np.asarray(photo), inputs[i], title, metadata, arrays)

    def _run(self, inputs, blocks):
        try:
            logits, maps = attention_maps(self.model, inputs, blocks)
            self._from_cls(maps[-1])  # refuses a model without a [CLS] token
        except BadInput as error:
            raise BadInput(f"{self.name}: {error}") from error
        return logits.float().softmax(1).cpu(), maps

    def _from_cls(self, maps):
        return cls_to_patch(maps, self.model, self.grid).cpu()

    def _describe(self, name, path, size, probabilities):
        place, box = Path(os.path.abspath(path)), crop_box(size, self.preprocessing)
        label = known_label(str(Path(name).with_name(path.name)), self.class_of, place.parent.name) or ""
        title, predicted, confidence = name, "", 0.0
        if self.class_names:
            confidence, index = (value.item() for value in probabilities.max(0))
            predicted = self.class_names[index]
            title += f": {predicted}, probability {confidence:.2f}"
        if label:
            sign = "\N{CHECK MARK}" if label == predicted else "\N{BALLOT X}"
            title = f"{name}: {sign} predicted {predicted} {confidence:.2f}, is {label}"
        return title, {"model": self.name, "photo": str(place), "box": box, "predicted": predicted,
                       "confidence": confidence, "label": label}

    def _arrays(self, maps, with_rollout, with_all):
        per_head, every = self._from_cls(maps[-1]), maps[:-1]
        arrays = {"attention": per_head.mean(0).numpy(), "attention_per_head": per_head.numpy()}
        if with_rollout:
            arrays["rollout"] = self._from_cls(rollout([one[None] for one in every]))[0].numpy()
        if with_all:
            weights = torch.stack(every).cpu().numpy()
            scale = arrays["attention_all_scale"] = weights.max((2, 3)) / 255
            arrays["attention_all"] = np.rint(weights / scale[:, :, None, None]).astype(np.uint8)
        return arrays
