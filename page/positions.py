"""Position embeddings: the similarity of each patch to all others, for one model or several."""

import torch

from interpret.positions import position_statistics
from page.packing import as_bytes, deflated
from page.section import BY_CHANCE, Section, Table, percent, read_npz, refusing


def section(file):
    """The Section of what p1_viz_posembed.py wrote. Raises BadInput for a file that does not hold that."""
    with refusing(f"{file} holds no similarities with their titles: draw it again with p1_viz_posembed.py"):
        arrays = read_npz(file)
        titles = arrays["titles"].tolist()
        similarities = [arrays[f"similarity_{i}" if i else "similarity"] for i in range(len(titles))]
        if not titles or any(one.ndim != 4 or one.shape[:2] != one.shape[2:] for one in similarities):
            raise ValueError("not square")
    models, blobs = [], {}
    for i, (title, similarity) in enumerate(zip(titles, similarities)):
        grid, low = similarity.shape[:2], float(similarity.min())
        values, scale = as_bytes(similarity.reshape(grid[0] * grid[1], -1), low)
        blobs[f"similarity-{i}"] = deflated(values)
        models.append({"title": title, "grid": grid, "low": low, "scale": float(scale),
                       "blob": f"similarity-{i}"})
    table = summary(titles, similarities)
    return Section("positions", "Position embeddings", table, {"models": models}, blobs)


def summary(titles, similarities):
    """The Table of `position_statistics`, a column a model."""
    columns = []
    for similarity in similarities:
        means = position_statistics(torch.from_numpy(similarity))
        by_distance = means["by_distance"]
        cosines = (means["same_row"], means["same_column"], means["elsewhere"], by_distance[0],
                   by_distance[len(by_distance) // 2], similarity.min())
        columns.append([*(f"{cosine:.2f}" for cosine in cosines), percent(means["nearest_adjacent"])])
    adjacent = dict.fromkeys(percent(adjacent_by_chance(*each.shape[:2])) for each in similarities)
    names = ("within a row", "within a column", "elsewhere", "one step apart", "half the diagonal apart",
             "the least similar two patches", "most similar other patch is adjacent")
    chances = (*5 * ["0.00"], "", ", ".join(adjacent))
    return Table("Mean cosine similarity of two different patches, and by chance: of random embeddings",
                 ["", *titles, BY_CHANCE], list(zip(names, *columns, chances)))


def adjacent_by_chance(height, width):
    """The share of ordered pairs of different patches that are neighbours, a patch having 8 at most."""
    patches = height * width
    return ((3 * height - 2) * (3 * width - 2) - patches) / (patches * (patches - 1))
