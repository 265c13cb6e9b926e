#!/usr/bin/env python3
"""Draws how the time grows with each extent, from the CSV of `peers.py --scaling`.

    target/peers/bin/python benches/plots.py benches/results/<machine>/<date>-scaling.csv
"""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import ScalarFormatter  # noqa: E402

from results import OURS, OURS_GRAPH, READ, Results  # noqa: E402

AXES = ("tokens", "layers", "batch", "heads")
POSITION = {"layers": 0, "batch": 1, "heads": 2, "tokens": 3}
STYLES = {
    OURS: ("this crate", "#0b6e4f", "o"),
    OURS_GRAPH: ("this crate, as a graph", "#6fb98f", "o"),
    READ: ("reading the maps once", "#888888", None),
    "torch row": ("PyTorch, row", "#d1495b", "s"),
    "torch loop": ("PyTorch, loop", "#d1495b", "s"),
    "cuda graph row": ("PyTorch's CUDA graph, row", "#e59ba5", "s"),
    "cuda graph loop": ("PyTorch's CUDA graph, loop", "#e59ba5", "s"),
    "pyhealth": ("PyHealth", "#30638e", "^"),
    "pyhealth-algorithm": ("PyHealth's algorithm", "#30638e", "^"),
}
TITLES = {"rows": "One row of the rollout", "matrix": "The whole rollout"}


def curve(results, output, axis, threads, system):
    """Extents and milliseconds, in order of the extent."""
    points = []
    for key in results.times:
        if (key.output, key.shape, key.threads) == (output, f"scaling {axis}", threads):
            time = results.minimum(key, system)
            if time is not None:
                points.append((int(key.extents.split("x")[POSITION[axis]]), time / 1e3))
    return sorted(points)


def draw(results, output, path):
    """One figure: a column of panels for each extent, a row for each number of threads."""
    threads = sorted({key.threads for key in results.times})
    size = (3.6 * len(AXES), 3.2 * len(threads) + 0.7)
    figure, panels = plt.subplots(len(threads), len(AXES), figsize=size, squeeze=False, sharey=True)
    for line, count in zip(panels, threads):
        for panel, axis in zip(line, AXES):
            for system, (label, colour, marker) in STYLES.items():
                points = curve(results, output, axis, count, system)
                if points:
                    style = "--" if system == READ else "-"
                    panel.plot(*zip(*points), style, color=colour, marker=marker, markersize=4, label=label)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks([extent for extent, _ in curve(results, output, axis, count, OURS)])
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.tick_params(axis="x", labelsize=7, rotation=45)
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.grid(True, which="major", alpha=0.25)
            panel.set_xlabel(axis)
        line[0].set_ylabel(f"ms, {results.gpu() or ('1 thread' if count == 1 else f'{count} threads')}")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False)
    base = next(key.extents for key in results.times if key.shape == "scaling batch" and "x4x12x" in key.extents)
    figure.suptitle(f"{TITLES[output]}: one extent varied, the others of layers x batch x heads x tokens = {base}, f32")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def speed_up(results, path):
    """What more threads bring, over the tokens."""
    threads = sorted({key.threads for key in results.times})
    figure, panel = plt.subplots(figsize=(5, 3.6))
    for output, colour in (("rows", "#0b6e4f"), ("matrix", "#30638e")):
        for system, style in ((OURS, "-o"), (READ, "--")):
            if system == READ and output == "matrix":
                continue
            few, many = (dict(curve(results, output, "tokens", count, system)) for count in (threads[0], threads[-1]))
            label = "reading the maps once" if system == READ else f"this crate, {output}"
            colour = "#888888" if system == READ else colour
            tokens = sorted(few)
            panel.plot(tokens, [few[n] / many[n] for n in tokens], style, color=colour, markersize=4, label=label)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.set_xlabel("tokens")
    panel.set_ylabel(f"speed-up of {threads[-1]} threads over {threads[0]}")
    panel.set_ylim(bottom=0)
    panel.grid(True, alpha=0.25)
    panel.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main():
    path = pathlib.Path(sys.argv[1])
    results = Results(path)
    for output in TITLES:
        draw(results, output, path.with_name(f"{path.stem}-{output}.png"))
    if len({key.threads for key in results.times}) > 1:
        speed_up(results, path.with_name(f"{path.stem}-threads.png"))


if __name__ == "__main__":
    main()
