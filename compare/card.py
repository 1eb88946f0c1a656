"""A model card, as the Hugging Face hub shows it: what a model is, how good, and how to load it."""

from pathlib import Path

from compare.mistakes import confused_pairs
from compare.names import as_text, describe, given
from compare.statistics import wilson_interval

# paths of a machine, and what the first line says
NOT_SHOWN = {"data", "output", "recipe", "weights", "arch", "processes"}


def model_card(name, checkpoint, setting):
    """The text of a README.md, for a model `name` of a `models.checkpoint.Checkpoint`.

    `setting` is the `compare.runs.Setting` of its run alone, if it was evaluated, else None.
    """
    settings = checkpoint.settings
    size = "x".join(map(str, checkpoint.preprocessing["input_size"][1:]))
    hidden = NOT_SHOWN | (set() if settings.get("sam") else {"rho"})
    chosen = "\n".join(f"| {key.replace('_', ' ')} | {as_text(value)} |" for key, value in
                       sorted(given(settings).items()) if value != 0 and key not in hidden)
    return f"""---
library_name: timm
tags:
- image-classification
- timm
---
# {name}

{describe(settings)}: it tells {len(checkpoint.labels)} classes apart, in images of {size} pixels.

## How good it is

{_scores(setting) if setting else "It was not evaluated."}

## Use it

```python
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:{name}", pretrained=True).eval()  # or "hf-hub:you/{name}"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    probabilities = model(transform(Image.open("photo.jpg").convert("RGB"))[None]).softmax(1)[0]
for probability, index in zip(*probabilities.topk(min(5, len(probabilities)))):
    print(f"{{model.pretrained_cfg['label_names'][index]}} {{probability:.2f}}")
```

## How it was trained

On images of {Path(str(settings.get("data"))).name}, of the classes {", ".join(checkpoint.class_names)}.

| setting | value |
|---|---|
{chosen}

## Licence

To be chosen by who publishes it. The images and the pretrained weights have licences of their own.
"""


def _scores(setting):
    run, images = setting.runs[0], setting.images
    correct, count = int(run.correct.sum()), len(images.names)
    low, high = wilson_interval(correct, count)
    lines = [f"Accuracy **{correct / count:.4f}** on {count:,} images that it has not seen (95 % interval "
             f"{low:.3f} to {high:.3f})."]
    if pairs := confused_pairs(setting):
        lines += ["", "The classes that it confuses most:", ""]
        lines += [f"- {pair.name}: {pair.count} of {pair.images} images" for pair in pairs]
    return "\n".join(lines)
