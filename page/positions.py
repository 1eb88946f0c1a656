"""Position embeddings: the similarity of each patch to all others, for one model or several."""

import numpy as np
import torch

from common.errors import BadInput
from interpret.positions import position_statistics
from page.packing import as_bytes, deflated
from page.section import Section, percent, read_npz

DAMAGED = "draw it again with p1_viz_posembed.py"


def section(file):
    """The Section of the arrays that p1_viz_posembed.py wrote. Raises BadInput for a file that does not hold them."""
    try:
        arrays = read_npz(file)
        titles = arrays["titles"].tolist()
        similarities = [arrays["similarity" if i == 0 else f"similarity_{i}"] for i in range(len(titles))]
        shapes = [similarity.shape for similarity in similarities]
        if not titles or any(len(shape) != 4 or shape[:2] != shape[2:] for shape in shapes):
            raise ValueError("not square")
    except FileNotFoundError as error:
        raise BadInput(f"{file} does not exist: name what p1_viz_posembed.py wrote") from error
    except (ValueError, KeyError) as error:
        raise BadInput(f"{file} holds no similarities with their titles: {DAMAGED}") from error
    models, blobs = [], {}
    for i, (title, similarity) in enumerate(zip(titles, similarities)):
        low = float(similarity.min())
        values, scale = as_bytes(similarity.reshape(len(similarity) * similarity.shape[1], -1), low)
        blobs[f"similarity-{i}"] = deflated(values)
        models.append({"title": title, "grid": list(similarity.shape[:2]), "low": low, "scale": float(scale),
                       "blob": f"similarity-{i}"})
    return Section("positions", "Position embeddings", story(titles, similarities), {"models": models}, blobs)


def story(titles, similarities):
    """Four sentences about the first model, and how the others differ."""
    found = [position_statistics(torch.from_numpy(similarity)) for similarity in similarities]
    first, (height, width) = found[0], similarities[0].shape[:2]
    far = len(first["by_distance"])
    sentences = [
        f"In {titles[0]} two patches of one row are alike by {first['same_row']:.2f} on average, of one column by "
        f"{first['same_column']:.2f}, and others by {first['elsewhere']:.2f} (cosine similarity, at most 1).",
        f"It is {first['by_distance'][0]:.2f} between patches one step apart and {first['by_distance'][far // 2]:.2f} "
        f"between those {far // 2 + 1} steps apart, on the grid of {height} x {width}.",
        f"For {percent(first['nearest_adjacent'])} of the patches the most similar other one is one of the 8 around it; "
        f"chance would give {percent(adjacent_by_chance(height, width))}."]
    if len(found) > 1:
        others = "; ".join(f"in {title} it is {percent(one['nearest_adjacent'])}, with {one['same_row']:.2f}, "
                           f"{one['same_column']:.2f} and {one['elsewhere']:.2f} for row, column and others"
                           for title, one in zip(titles[1:], found[1:]))
        sentences.append(f"{others[0].upper()}{others[1:]}.")
    else:
        sentences.append(f"The least similar two patches have {similarities[0].min():.2f}.")
    return sentences


def adjacent_by_chance(height, width):
    """The mean share of a patch's neighbours, at most 8, among all other patches."""
    rows, columns = (np.minimum(np.arange(side) + 1, side - 1) - np.maximum(np.arange(side) - 1, 0) + 1
                     for side in (height, width))
    return (np.outer(rows, columns) - 1).mean() / (height * width - 1)
