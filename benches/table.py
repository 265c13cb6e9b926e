#!/usr/bin/env python3
"""Writes CSVs of peers.py as tables of ratios: all of them as benches/results/README.md, a section for each CSV, in
order; and the rows that users ask for first into the README, between its two markers.

    python3 benches/table.py benches/results/<machine>/<date>.csv ...
"""

import argparse
import pathlib

from results import OURS, OURS_GRAPH, Results

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
ALL = ROOT / "benches" / "results" / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

# The rows of the README: on the CPU or a GPU, output, shape, element type, threads.
FIRST = [
    ("cpu", "rows", "ViT-B/16", "f32", 2),
    ("cpu", "matrix", "ViT-B/16", "f32", 2),
    ("cpu", "rows", "BERT-512", "f16", 2),
    ("cpu", "rows", "clinical", "f32", 2),
    ("gpu", "rows", "ViT-B/16 batch 64", "f16", 1),
    ("gpu", "matrix", "ViT-B/16 batch 64", "f16", 1),
    ("gpu", "rows", "ViT-B/16", "f16", 1),
    ("gpu", "rows", "ViT-L/14@336", "f16", 1),
]
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
        cells.append(f"{ours / results.floor(key):.2f}")
        for system in systems:
            ratio = results.ratio(key, system)
            shown = "{:.2f} ({:.2f}-{:.2f})" if results.rounds(key, OURS) > 1 else "{:.2f}"
            cells.append(shown.format(*ratio) if ratio else "")
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


ASKED = {"rows": "one row", "matrix": "whole rollout", "discard": "one row, discard"}


def first(everything):
    """The rows of FIRST: each where it was measured last."""
    lines = ["| on | maps, layers x batch x heads x tokens | to get | time | times the read | fastest other system |"]
    lines.append("|---|---|---|---|---|---|")
    for device, output, shape, dtype, threads in FIRST:
        found = [
            (results, key)
            for results, _ in everything
            for key in results.times
            if (device == "gpu") == (results.gpu() is not None)
            and (key.output, key.shape, key.dtype, key.threads) == (output, shape, dtype, threads)
        ]
        if not found:
            raise SystemExit(f"no time of {device} {output} {shape} {dtype}, {threads} threads")
        results, key = max(found, key=lambda it: it[0].note("date"))
        ours, read = results.minimum(key, OURS), results.floor(key)
        ratio, system = min((results.ratio(key, name)[0], name) for name in NAMES if results.ratio(key, name))
        on = results.gpu() or f"{results.note('processor').split(' (')[0]}, {threads} threads"
        extents = key.extents if ";" not in key.extents else f"{key.extents.count(';') + 1} features"
        time = f"{ours:.0f} us" if results.gpu() else f"{ours / 1e3:.2f} ms"
        cells = [on, f"{shape.split(' batch')[0]}, {extents}, {dtype}", ASKED[output], time]
        cells += [f"{ours / read:.2f}", f"{NAMES[system]}: {ratio:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


FIRST_INTRODUCTION = """\
*Times the read* compares with reading the maps once, the least any rollout must do. The last column says how many times \
as long the fastest other system takes: below 1 it is faster than this crate (a CUDA graph is compared with this crate's \
run as a graph)."""


INTRODUCTION = """\
Extents are layers x batch x heads x tokens. *Times the read* compares with reading the same bytes of the maps once, as \
fast as the same device can (the CPU with as many threads). The other columns say how many times as long as this crate a \
system takes: above 1 this crate is faster (in brackets, where there were several processes, the range of the ratio of medians over them).

*Row* carries one row from the last layer to the first, which is the least PyTorch can do; *loop* multiplies whole \
matrices, head mean and residual done in place; PyHealth is its own `AttentionRollout.attribute()` on the saved maps. \
*Top-k* discards as vit-explain does."""

ON_GPU = """\
Times on a GPU are those of CUDA events around a run that follows straight after another, on maps that lie in device \
memory and in no cache. PyTorch's CUDA graphs are compared with this crate's run as a graph."""


def section(results, path):
    """What one CSV has to say."""
    runs = max(results.runs(key, OURS) for key in results.times)
    yield f"## On {results.gpu() or results.note('processor').split(' (')[0] + ' (CPU)'}"
    yield ""
    yield f"Measured {results.note('date')} on {results.note('processor')}; {results.note('versions')}."
    yield from (f"Other work {line}." for line in results.notes("other work"))
    yield from results.notes("note")
    yield (
        f"Every time is the smallest of up to {runs} runs in turns with the others, after a check that the answers "
        f"agree; [raw times]({path.relative_to(ALL.parent)}), made by `{results.note('command')}`."
    )
    for output, title in TITLES.items():
        if any(key.output == output for key in results.times):
            yield from ["", f"**{title}**", "", *table(results, output)]
    yield from ["", slower(results)]
    yield from (f"Not measured: {line}." for line in results.notes("failed"))
    yield ""


PLOTS = """\
## How times grow

How the time of one row grows with each extent
([the same for the whole rollout](xeon-2core/2026-11-26-scaling-matrix.png),
[what a second thread brings](xeon-2core/2026-11-26-scaling-threads.png)):

![Time against tokens, layers, batch and heads: this crate, PyTorch, PyHealth and reading the maps](xeon-2core/2026-11-26-scaling-rows.png)

An older version was measured on [an AMD EPYC](epyc-2core/2026-11-23.csv)."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="+", type=lambda path: pathlib.Path(path).resolve())
    everything = [(Results(path), path) for path in parser.parse_args().csv]
    lines = ["# Results", "", "Made by `benches/table.py` of the CSV files beside this page.", "", INTRODUCTION, ""]
    if any(results.gpu() for results, _ in everything):
        lines += [ON_GPU, ""]
    for results, path in everything:
        lines += section(results, path)
    ALL.write_text("\n".join([*lines, PLOTS, ""]))
    before, rest = README.read_text().split(BEGIN)
    _, after = rest.split(END)
    README.write_text("\n".join([before + BEGIN, "", FIRST_INTRODUCTION, "", *first(everything), "", END + after]))


if __name__ == "__main__":
    main()
