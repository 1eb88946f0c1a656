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
        by_chance = arrays["adjacent_by_chance"].tolist()
        square = all(one.ndim == 4 and one.shape[:2] == one.shape[2:] for one in similarities)
        if not (square and len(titles) == len(by_chance) > 0):
            raise ValueError("not square")
    models, blobs = [], {}
    for i, (title, similarity) in enumerate(zip(titles, similarities)):
        grid, low = similarity.shape[:2], float(similarity.min())
        values, scale = as_bytes(similarity.reshape(grid[0] * grid[1], -1), low)
        blobs[f"similarity-{i}"] = deflated(values)
        models.append({"title": title, "grid": grid, "low": low, "scale": float(scale),
                       "blob": f"similarity-{i}"})
    table = summary(titles, similarities, by_chance)
    return Section("positions", "Position embeddings", table, {"models": models}, blobs)


def summary(titles, similarities, by_chance):
    """The Table of `position_statistics`, a column a model; `by_chance` are shares of adjacent ones."""
    columns = []
    for similarity in similarities:
        means = position_statistics(torch.from_numpy(similarity))
        by_distance = means["by_distance"]
        cosines = (means["same_row"], means["same_column"], means["elsewhere"], by_distance[0],
                   by_distance[len(by_distance) // 2], similarity.min())
        columns.append([*(f"{cosine:.3f}" for cosine in cosines), percent(means["nearest_adjacent"])])
    names = ("within a row", "within a column", "elsewhere", "one step apart", "half the diagonal apart",
             "the least similar two patches", "most similar other patch is adjacent")
    chances = (*5 * ["0.000"], "", ", ".join(dict.fromkeys(map(percent, by_chance))))
    return Table("Mean cosine similarity of two different patches, and by chance: of random embeddings",
                 ["", *titles, BY_CHANCE], list(zip(names, *columns, chances)))
