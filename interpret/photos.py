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
from interpret.sinks import find_sinks, plain_images
from models import vit
from models.checkpoint import open_checkpoint

GROUNDS = "share_on_object", "share_of_area", "peak_on_object"  # the names of the first three as arrays


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
    def predicted(self):
        """The title without what `ground` adds."""
        return self.title.partition("\n")[0]

    @property
    def attention(self):
        """The map to draw and to judge, (H, W): the rollout if there is one, else that of the block."""
        return self.arrays.get("rollout", self.arrays["attention"])

    def judged(self):
        """(What the arrays' names end with, the patches that count, bool (H, W)): all, and all but sinks."""
        sinks = self.arrays["sinks"]
        return [("", np.ones_like(sinks)), ("_without_sinks", ~sinks)][:1 + sinks.any()]

    def shown(self, without_sinks):
        """The map, with 0 where the sinks are if it is to be `without_sinks`."""
        return np.where(self.arrays["sinks"] & without_sinks, np.float32(0), self.attention)

    def ground(self, inside, outside):
        """Add to arrays and title where the map lies, by a `Viewer.cover`.

        Returns (share of the attention, share of the area, whether the peak is on or beside it, by chance),
        and if there are sinks the same of all other patches.
        """
        self.arrays.update(object_cover=inside, background_cover=outside)
        grounds = []
        for end, counts in self.judged():
            grounds.append(_ground(self.attention, counts, inside, outside))
            self.arrays.update({f"{name}{end}": value for name, value in zip(GROUNDS, grounds[-1])})
        for words, (share, area, *_) in zip(("on the object", "without sinks"), grounds):
            self.title += f"\n{words} {share:.1%}, area {area:.1%}"
        return grounds

    def ground_blocks(self, inside, outside):
        """As `ground`, of the map of each block, of all its patches and without its sinks: (layers, 2, 4)."""
        rows = np.array([[_ground(attention, counts, inside, outside)
                          for counts in (np.ones_like(sinks), ~sinks)] for attention, sinks in
                         zip(self.arrays["attention_by_block"], self.arrays["sinks_by_block"])])
        self.arrays.update({f"{name}_by_block": rows[..., i] for i, name in enumerate(GROUNDS)})
        return rows

    def occlude(self, model):
        """Add what `occlusion` returns to the arrays: for the map, and if there are sinks for that in which
        they come last. Returns (probability, falls) of each."""
        ends, kept = zip(*self.judged())
        probability, falls = occlusion(model, self.inputs, torch.from_numpy(
            np.where(kept, self.attention, np.float32(-1))))
        self.arrays.update({f"occlusion{end}": np.array(each) for end, each in zip(ends, falls)},
                           probability=probability)
        return [(probability, each) for each in falls]


def _ground(attention, counts, inside, outside):
    """What `PhotoAttention.ground` returns of a map's patches that `counts`, bool (H, W), leaves."""
    attention, on, off = (torch.from_numpy(part * counts) for part in (attention, inside, outside))
    share, area = (value.item() for value in share_on(attention, on, off))
    return share, area, *peaks_on(attention, torch.from_numpy(inside), counts)


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
        self._sinks = {}  # by block and whether of the rollout
        if checkpoint:
            opened = open_checkpoint(checkpoint)
            model, preprocessing, self.class_names = opened.model, opened.preprocessing, opened.class_names
            if image_size:
                vit.set_image_size(model, image_size)
                preprocessing = {**preprocessing, "input_size": [3, *image_size]}
            self.class_of = dict(zip(map(nfc, opened.labels), opened.class_names))
        else:
            model, missing_head = vit.create(arch, weights=weights, image_size=image_size)
            preprocessing = vit.preprocessing(model)
            self.class_names = [] if missing_head else _imagenet_names(model)
            if missing_head:
                note(f"{weights} has no head for its classes: no prediction is shown")
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

    def attend(self, paths, batch_size=16, block=-1, with_rollout=False, with_all=False, names=None,
               by_block=False):
        """Yield the PhotoAttention of each photo. Raises BadInput for a model without [CLS] attention.

        With `by_block` its arrays also have the map of each block, mean over heads, and the block's sinks.
        `names` are those of the figures, as `datasets.photos.find_photos` has them, or else the stems.
        """
        names = names or [path.stem for path in paths]
        blocks = self._blocks(block, with_rollout or with_all or by_block)
        fixed = {"sinks": self.find_sinks(block, with_rollout)[0]}
        if by_block:
            fixed["sinks_by_block"] = np.stack([self.find_sinks(number)[0] for number in blocks[:-1]])
        with ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(paths), batch_size):
                photos = list(pool.map(decode.load_image, paths[start:start + batch_size]))
                inputs = torch.stack(list(pool.map(self.transform, photos))).to(self.device)
                probabilities, maps = self._run(inputs, blocks)
                for i, (name, path, photo) in enumerate(zip(names[start:], paths[start:], photos)):
                    title, metadata = self._describe(name, path, photo.size, probabilities[i])
                    arrays = self._arrays([of_block[i] for of_block in maps], with_rollout, with_all,
                                          by_block)
                    arrays.update(metadata if with_all else {}, **fixed)
                    yield PhotoAttention(path, np.asarray(photo), inputs[i], title, metadata, arrays)

    def find_sinks(self, block=-1, with_rollout=False):
        """What `interpret.sinks.find_sinks` finds in this model's maps of a block, or in its rollout."""
        if (block, with_rollout) in self._sinks:
            return self._sinks[block, with_rollout]
        images = plain_images(self.preprocessing["input_size"][:0:-1])
        inputs = torch.stack(list(map(self.transform, images))).to(self.device)
        _, maps = self._run(inputs, self._blocks(block, with_rollout))
        from_cls = self._from_cls(rollout(maps[:-1]) if with_rollout else maps[-1].mean(1))
        self._sinks[block, with_rollout] = find_sinks(from_cls.numpy())
        return self._sinks[block, with_rollout]

    def _blocks(self, block, every):
        return [*range(len(self.model.blocks) if every else 0), block]

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

    def _arrays(self, maps, with_rollout, with_all, by_block):
        per_head, every = self._from_cls(maps[-1]), maps[:-1]
        arrays = {"attention": per_head.mean(0).numpy(), "attention_per_head": per_head.numpy()}
        if with_rollout:
            arrays["rollout"] = self._from_cls(rollout([one[None] for one in every]))[0].numpy()
        if by_block:
            arrays["attention_by_block"] = self._from_cls(torch.stack(every)).mean(1).numpy()
        if with_all:
            weights = torch.stack(every).cpu().numpy()
            patches = weights[..., self.model.num_prefix_tokens:]  # beside 0.9 to [CLS], bytes hold no 0.0004
            scale = np.maximum(patches.max(3), np.finfo(np.float32).tiny) / 255
            arrays.update(attention_all=np.rint(patches / scale[..., None]).astype(np.uint8),
                          attention_all_scale=scale, attention_cls=weights[:, :, 0])
        return arrays
