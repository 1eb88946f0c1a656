"""Photos in rows, with a caption below each."""

from matplotlib.figure import Figure

CAPTION = "File: true class -> predicted class (probability)."


def draw_photos(rows, title):
    """Rows of photos, with a heading above each row where it is not empty. Returns the Figure.

    `rows` are (heading, [(photo uint8 (height, width, 3), caption), ...]).
    """
    columns = max(len(photos) for _, photos in rows)
    width = 2.5 * columns
    points = max(7.5, width)  # 6 and more on A4
    figure = Figure(figsize=(width, 2.2 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=points + 2, wrap=True, parse_math=False)
    bands = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for band, (heading, photos) in zip(bands, rows):
        if heading:
            band.suptitle(heading, x=0.02, ha="left", size=points + 1, weight="bold", wrap=True,
                          parse_math=False)
        cells = band.subfigures(1, columns, squeeze=False)[0]  # in which captions wrap
        for cell, (photo, caption) in zip(cells, photos):
            axes = cell.subplots()
            axes.imshow(photo)
            axes.set_axis_off()
            axes.set_anchor("S")  # close to its caption
            cell.supxlabel(caption, fontsize=points, wrap=True, parse_math=False)
    return figure
