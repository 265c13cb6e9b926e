#!/usr/bin/env python3
"""Writes CSVs of peers.py as tables of ratios into the README, between its two markers: a section for each, in order.

    python3 benches/table.py benches/results/<machine>/<date>.csv ...
"""

import argparse
import pathlib

from results import OURS, OURS_GRAPH, READ, Results

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TITLES = {
    "rows": "One row of the rollout (`--rows 0`)",
    "matrix": "The whole rollout (`--output-kind matrix`)",
    "discard": "One row with discard (`--discard-ratio 0.9`)",
}
NAMES = {
    "pyhealth": "PyHealth",
    "pyhealth-algorithm": "PyHealth's algorithm",
    "torch row": "PyTorch, row",
    "torch loop": "PyTorch, loop",
    "torch.compile row": "torch.compile, row",
    "torch.compile loop": "torch.compile, loop",
    "numpy row": "NumPy, row",
    "numpy loop": "NumPy, loop",
    "torch topk": "PyTorch top-k, loop",
    "torch topk row": "PyTorch top-k, row",
    "cuda graph row": "CUDA graph, row",
    "cuda graph loop": "CUDA graph, loop",
}


def table(results, output):
    """One table: a line for each shape, element type and, on the CPU, number of threads."""
    keys = [key for key in results.times if key.output == output]
    systems = [name for name in NAMES if any(name in results.times[key] for key in keys)]
    on_gpu = results.gpu() is not None
    columns = ["us", "as a graph, us"] if on_gpu else ["threads", "ms"]
    titles = ["maps", "extents", *columns, "times the read", *(NAMES[name] for name in systems)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for key in keys:
        ours, graph = results.minimum(key, OURS), results.minimum(key, OURS_GRAPH)
        extents = key.extents if ";" not in key.extents else f"{key.extents.count(';') + 1} features"
        cells = [f"{key.shape}, {key.dtype}", extents]
        if on_gpu:
            cells += [f"{ours:.1f}", f"{graph:.1f}" if graph else ""]
        else:
            cells += [str(key.threads), f"{ours / 1e3:.2f}"]
        cells.append(f"{ours / results.minimum(key, READ):.2f}")
        for system in systems:
            ratio = results.ratio(key, system)
            cells.append("{:.2f} ({:.2f}-{:.2f})".format(*ratio) if ratio else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def slower(results):
    """Where another system is faster."""
    found = []
    for key in results.times:
        for system, name in NAMES.items():
            ratio = results.ratio(key, system)
            if ratio and ratio[0] < 1:
                threads = "1 thread" if key.threads == 1 else f"{key.threads} threads"
                where = [key.output, key.dtype] if results.gpu() else [key.output, key.dtype, threads]
                found.append(f"{name} on {key.shape} ({', '.join(where)}: {ratio[0]:.2f})")
    return "Slower than: " + "; ".join(found) + "." if found else "Slower than none of them in any line."


INTRODUCTION = """\
Extents are layers x batch x heads x tokens. *Times the read* compares with reading the same bytes of the maps once, as \
fast as the same device can (the CPU with as many threads). The other columns say how many times as long as this crate a \
system takes: above 1 this crate is faster (in brackets, the range of the ratio of medians over the processes).

*Row* carries one row from the last layer to the first, which is the least PyTorch can do; *loop* multiplies whole \
matrices, head mean and residual done in place; PyHealth is its own `AttentionRollout.attribute()` on the saved maps. \
*Top-k* discards as vit-explain does."""

ON_GPU = """\
Times on a GPU are those of CUDA events around a run that follows straight after another, on maps that lie in device \
memory and in no cache. PyTorch's CUDA graphs are compared with this crate's run as a graph."""


def section(results, path):
    """What one CSV has to say."""
    runs = max(results.runs(key, OURS) for key in results.times)
    yield f"### On {results.gpu() or results.note('processor').split(' (')[0] + ' (CPU)'}"
    yield ""
    yield f"Measured {results.note('date')} on {results.note('processor')}; {results.note('versions')}."
    yield from (f"Other work {line}." for line in results.notes("other work"))
    yield from results.notes("note")
    yield (
        f"Every time is the smallest of up to {runs} runs in turns with the others, after a check that the answers "
        f"agree; [raw times]({path.relative_to(ROOT)}), made by `{results.note('command')}`."
    )
    for output, title in TITLES.items():
        if any(key.output == output for key in results.times):
            yield from ["", f"**{title}**", "", *table(results, output)]
    yield from ["", slower(results)]
    yield from (f"Not measured: {line}." for line in results.notes("failed"))
    yield ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="+", type=lambda path: pathlib.Path(path).resolve())
    everything = [(Results(path), path) for path in parser.parse_args().csv]
    lines = ["", INTRODUCTION, ""]
    if any(results.gpu() for results, _ in everything):
        lines += [ON_GPU, ""]
    for results, path in everything:
        lines += section(results, path)
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text("\n".join([before + BEGIN, *lines, END + after]))


if __name__ == "__main__":
    main()
