#!/usr/bin/env python3
"""Attention rollout as people compute it today, beside this crate, on the same maps and in the same run.

    python3 benches/peers.py                 # the comparison: a CSV under benches/results/
    python3 benches/peers.py --scaling       # how the time grows with each extent
    python3 benches/peers.py --quick         # a few runs, printed only
    python3 benches/peers.py --device cuda --binary PATH --machine h200

Installs NumPy, PyTorch and PyHealth into target/peers/ and builds the binary, unless `--binary` gives one. On a GPU a
Python whose PyTorch sees it is used as it is, with nothing installed. Each system is timed in turns with the others:
`--rounds` times a fresh process, `--runs` runs in each. Every answer is compared with ours first. What the systems are:
peers_worker.py. What comes out: table.py and plots.py read it.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys

from machine import OtherWork, cpu_model

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / "target" / "peers"
DATA = ROOT / "target" / "peers-data"
ANSWER = DATA / "answer.safetensors"
REAL_MAPS = ROOT / "tests" / "data" / "minilm_batch4.safetensors"

# Layers, batch, heads and tokens of each feature.
SHAPES = {
    "ViT-B/16": {"": (12, 8, 12, 197)},
    "DeiT-Ti": {"": (12, 16, 3, 197)},
    "BERT-128": {"": (12, 16, 12, 128)},
    "BERT-512": {"": (12, 2, 12, 512)},
    "ViT-L/14@336": {"": (24, 1, 16, 577)},
    "one head": {"": (12, 96, 1, 197)},
    "MiniLM (real)": {"": (6, 4, 12, 28)},
    "clinical": {
        "conditions": (3, 256, 4, 100),
        "procedures": (2, 256, 4, 60),
        "drugs": (3, 256, 4, 40),
        "labs": (2, 256, 4, 24),
        "vitals": (1, 256, 4, 48),
        "demographics": (1, 256, 4, 3),
    },
}
# On a GPU, also the smallest batch and one that fills the device.
GPU_SHAPES = {
    "ViT-B/16 batch 1": {"": (12, 1, 12, 197)},
    "ViT-B/16 batch 64": {"": (12, 64, 12, 197)},
    "BERT-512 batch 16": {"": (12, 16, 12, 512)},
}
# The same without maps, and the size of the heads: queries and keys to compute them from.
SCORES_SHAPES = {
    "queries and keys 512": {"": (6, 1, 12, 512, 64)},
    "queries and keys 2048": {"": (6, 1, 8, 2048, 64)},
}
MAIN = ("ViT-B/16", "BERT-512", "ViT-L/14@336")
# Those in f16 and bf16 as well.
HALF = (*MAIN, *GPU_SHAPES, "one head")
DTYPES = ("f32", "f16", "bf16")
# What reads the maps and does no more: a floor beside ours, with no answer to check.
READS = ("numpy sum", "torch sum")
SYSTEMS = {
    "rows": (*READS, "numpy row", "torch row", "torch.compile row", "cuda graph row", "pyhealth", "pyhealth-algorithm"),
    "matrix": ("numpy loop", "torch loop", "torch.compile loop", "cuda graph loop"),
    "discard": ("torch topk", "torch topk row"),
}
# Each as its authors would write it: softmax makes every map.
SCORES_SYSTEMS = {"scores": ("torch softmax row",)}
# What f16 and bf16 maps are compared with.
HALF_SYSTEMS = {
    "rows": ("torch row", "torch.compile row", "cuda graph row"),
    "matrix": ("torch loop", "torch.compile loop", "cuda graph loop"),
}
OPTIONS = {
    "rows": [],
    "matrix": ["--output-kind", "matrix"],
    "discard": ["--discard-ratio", "0.9"],
    "scores": [],
}
# Largest difference between an answer in f32 and ours. Means are rounded in another order, so that discard may
# zero another one of two nearly equal entries. f16 and bf16 maps are averaged in f32 by all systems compared.
TOLERANCE = {"rows": 2e-6, "matrix": 2e-6, "discard": 1e-2, "scores": 2e-6}
AXES = ("layers", "batch", "heads", "tokens")
# One extent of this shape is varied at a time.
SCALING_BASE = (12, 4, 12, 128)
SCALING = {
    "tokens": (16, 32, 64, 96, 128, 197, 256, 384, 512),
    "layers": (1, 2, 4, 8, 12, 24),
    "batch": (1, 2, 4, 8, 16, 32),
    "heads": (1, 2, 4, 8, 12, 16),
}
GPU_SCALING = {**SCALING, "batch": (*SCALING["batch"], 64, 128)}
SCALING_SYSTEMS = {
    "rows": ("torch row", "cuda graph row", "pyhealth", "pyhealth-algorithm"),
    "matrix": ("torch loop", "cuda graph loop"),
}
COLUMNS = "system,output,shape,extents,dtype,threads,round,run,time_us,map_bytes"


def enter_environment(device):
    """Installs what is compared into target/peers and continues there, unless this Python can compute on the GPU."""
    python = VENV / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == VENV.resolve() or (device != "cpu" and sees_gpu()):
        return
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    if not (VENV / "installed").exists():
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "numpy", "torch", "matplotlib"], check=True)
        if subprocess.run([*pip, "pyhealth==2.1.0"]).returncode != 0:
            print("PyHealth cannot be installed here: its algorithm is measured instead", file=sys.stderr)
        (VENV / "installed").touch()
    os.execv(python, [str(python), *sys.argv])


def sees_gpu():
    """Whether this Python has a PyTorch that can compute on a GPU."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


class Failure(Exception):
    """What a system said when it could not be run."""


class Worker:
    """One process of peers_worker.py."""

    def __init__(self, family, threads, device):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(DATA / "inductor")}
        command = [sys.executable, "-W", "ignore", str(ROOT / "benches" / "peers_worker.py")]
        self.log = DATA / f"worker-{family}.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, family, str(threads), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self.versions = self.ask(do="versions")
        self.systems = self.versions.pop("systems")

    def ask(self, **request):
        """Sends a request and waits for its answer."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended during {request}; see {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def data_file(worker, features, dtype):
    """The file with the maps of a shape, written on first use."""
    if features == SHAPES["MiniLM (real)"] and dtype == "f32":
        return REAL_MAPS
    extents = "_".join("x".join(map(str, shape)) for shape in features.values())
    path = DATA / f"{extents}_{dtype}.safetensors"
    if not path.exists():
        worker.ask(do="make", path=str(path) + ".part", features=features, dtype=dtype)
        os.replace(str(path) + ".part", path)
    return path


class Comparison:
    """Collects the rows of the CSV."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.rows = []
        self.differences = {}
        self.failures = {}
        self.versions = {}
        self.gpu = None
        self.revision = revision(arguments.binary, arguments.is_built)
        self.other_work = OtherWork()

    def ours(self, path, output, threads, *options):
        """Our command line on `path`; the JSON it prints."""
        command = [str(self.arguments.binary), options[0], str(path), "--no-mask", "--json", *OPTIONS[output], *options[1:]]
        command += ["--device", self.arguments.device, "--threads", str(threads)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    def record(self, key, system, times, map_bytes):
        """Adds the times of one system in one round."""
        output, shape, extents, dtype, threads, round_ = key
        for run, time_us in enumerate(times):
            self.rows.append((system, output, shape, extents, dtype, threads, round_, run, f"{time_us:.2f}", map_bytes))

    def check(self, worker, system, output, key):
        """Compares the answer of `system` with ours, which is in the file ANSWER."""
        difference = worker.ask(do="check", system=system, answer=str(ANSWER))["difference"]
        if not difference <= TOLERANCE[output]:
            raise SystemExit(f"{system} differs from ours by {difference:.2e} on {key}")
        worst = self.differences.get((system, output), 0.0)
        self.differences[system, output] = max(worst, difference)

    def measure_peer(self, worker, system, key, map_bytes, runs):
        """One system on one shape; what it says where it cannot run."""
        output, round_ = key[0], key[5]
        try:
            if round_ == 0 and system not in READS:
                self.check(worker, system, output, key)
            times = worker.ask(do="time", system=system, runs=runs)["times_us"]
        except Failure as failure:
            self.failures[system, output] = f"{failure} on {key[1]}"
            print(f"{system} ({output}) failed: {failure}; see {worker.log}", file=sys.stderr, flush=True)
            return
        self.record(key, system, times, map_bytes)

    def measure(self, workers, shape, features, dtype, threads, round_, systems):
        """Every system on one shape, once."""
        path = data_file(workers["torch"], features, dtype)
        loaded = [worker for family, worker in workers.items() if dtype == "f32" or family == "torch"]
        for worker in loaded:
            worker.ask(do="load", path=str(path))
        extents = ";".join("x".join(map(str, extent)) for extent in features.values())
        for output, wanted in systems.items():
            runs = self.arguments.runs
            # Sorting every map takes so long that two runs tell it.
            peer_runs = min(runs, 2) if output == "discard" else runs
            key = (output, shape, extents, dtype, threads, round_)
            check = [] if round_ == 0 else ["--no-check"]
            result = self.ours(path, output, threads, "bench", "--runs", str(runs), *check)
            map_bytes = result["map_bytes"]
            self.gpu = result["device_name"] if result["device"] != "cpu" else None
            self.record(key, "attention-rollout", result["runs_us"], map_bytes)
            self.record(key, "attention-rollout graph", result["graph_us"], map_bytes)
            self.record(key, "map read", result["floor_us"], map_bytes)
            if round_ == 0 and wanted:
                self.ours(path, output, threads, "run", "--output", str(ANSWER))
            for worker in loaded:
                for system in wanted:
                    if system not in worker.systems or ("compile" in system and shape not in MAIN):
                        continue
                    self.measure_peer(worker, system, key, map_bytes, peer_runs)
            self.progress(key)

    def progress(self, key):
        """One line with the smallest time of each system so far."""
        best = {}
        for row in self.rows:
            if row[1:6] == key[:5]:
                best[row[0]] = min(best.get(row[0], float("inf")), float(row[8]))
        text = ", ".join(f"{system} {time_us / 1e3:.4g}" for system, time_us in best.items())
        print(f"{key[1]} {key[2]} {key[0]} {key[3]} {key[4]} threads, ms: {text}", file=sys.stderr, flush=True)

    def run(self):
        """All rounds; what is there so far is kept after each shape."""
        arguments = self.arguments
        for round_ in range(arguments.rounds):
            for threads in arguments.threads:
                workers = {family: Worker(family, threads, arguments.device) for family in arguments.families}
                for worker in workers.values():
                    self.versions.update(worker.versions)
                for shape, features, dtype, systems in self.plan():
                    self.measure(workers, shape, features, dtype, threads, round_, systems)
                    if not arguments.quick:
                        self.write()
                for worker in workers.values():
                    worker.close()
                if not arguments.quick:
                    # Only now is it known what the workers themselves took.
                    print(self.write())

    def plan(self):
        """What is measured: shape, features, element type and the systems for each output."""
        on_gpu = self.arguments.device != "cpu"
        if self.arguments.scaling:
            for name, extents in (GPU_SCALING if on_gpu else SCALING).items():
                for extent in extents:
                    shape = [*SCALING_BASE]
                    shape[AXES.index(name)] = extent
                    yield f"scaling {name}", {"": tuple(shape)}, "f32", SCALING_SYSTEMS
            return
        for shape, features in {**SHAPES, **(GPU_SHAPES if on_gpu else {})}.items():
            if not re.search(self.arguments.shapes, shape):
                continue
            systems = {output: names for output, names in SYSTEMS.items() if output != "discard" or shape in MAIN}
            for dtype in self.arguments.dtypes:
                if dtype == "f32":
                    yield shape, features, dtype, systems
                elif shape in HALF:
                    yield shape, features, dtype, HALF_SYSTEMS
        for shape, features in SCORES_SHAPES.items():
            if re.search(self.arguments.shapes, shape):
                yield shape, features, "f32", SCORES_SYSTEMS

    def write(self):
        """The CSV: how it was made, then every time. Its path."""
        name = self.gpu or f"{cpu_model().split('(')[0]} {os.cpu_count()}core"
        machine = self.arguments.machine or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        kind = "-scaling" if self.arguments.scaling else ""
        path = ROOT / "benches" / "results" / machine / f"{datetime.date.today()}{kind}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            for line in self.header():
                file.write(f"# {line}\n")
            file.write(COLUMNS + "\n")
            for row in self.rows:
                file.write(",".join(map(str, row)) + "\n")
        return path

    def header(self):
        """What a reader must know to judge or repeat the numbers."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        device = self.arguments.device if self.gpu is None else f"{self.gpu} ({self.arguments.device})"
        yield f"date: {datetime.date.today()}"
        yield f"processor: {cpu_model()}, {os.cpu_count()} cores, {memory:.0f} GiB; device: {device}"
        yield f"system: {platform.system()} {platform.machine()}, Python {platform.python_version()}"
        yield "versions: " + ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield f"attention-rollout: {self.revision}"
        yield f"command: python3 benches/peers.py {shlex.join(without_note(sys.argv[1:]))}".rstrip()
        cores = self.other_work.cores()
        if cores is not None:
            yield f"other work: kept {cores:.2f} of {os.cpu_count()} cores busy on average"
        if self.arguments.note:
            yield f"note: {self.arguments.note}"
        for (system, output), difference in self.differences.items():
            yield f"checked: {system} ({output}) differs from ours by at most {difference:.1e}"
        for (system, output), failure in self.failures.items():
            yield f"failed: {system} ({output}): {failure}"


def revision(binary, is_built):
    """What is measured: the commit, where the binary was built here; else its version and what identifies its file."""
    if is_built:
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        return f"commit {commit.stdout.strip()}"
    version = subprocess.run([str(binary), "--version"], check=True, stdout=subprocess.PIPE, text=True)
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    return f"{version.stdout.strip()}, SHA-256 {digest[:16]}"


def without_note(arguments):
    """The arguments that matter when a measurement is repeated. Paths of the binary are shown as a name."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--note")
    parser.add_argument("--binary")
    known, rest = parser.parse_known_args(arguments)
    return rest + (["--binary", pathlib.Path(known.binary).name] if known.binary else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes per system")
    parser.add_argument("--runs", type=int, default=7, help="timed runs in each process")
    parser.add_argument("--threads", type=int, nargs="+", help="on the CPU; one and all cores by default")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:N (timed with CUDA events)")
    parser.add_argument("--binary", type=pathlib.Path, help="the attention-rollout to measure; built unless given")
    parser.add_argument("--shapes", default="", help="only shapes that match this regular expression")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="element types of the maps")
    parser.add_argument("--scaling", action="store_true", help="vary one extent at a time instead")
    parser.add_argument("--quick", action="store_true", help="one round of three runs, no CSV")
    parser.add_argument("--note", help="what else a reader must know, for the header of the CSV")
    parser.add_argument("--machine", help="folder of the results; named after the processor by default")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.runs = 1, 3
    if arguments.device == "cuda":
        arguments.device = "cuda:0"
    on_cpu = arguments.device == "cpu"
    arguments.threads = arguments.threads or ([1, os.cpu_count()] if on_cpu else [1])
    arguments.families = ["torch", "numpy"] if on_cpu and not arguments.scaling else ["torch"]
    enter_environment(arguments.device)
    DATA.mkdir(parents=True, exist_ok=True)
    arguments.is_built = arguments.binary is None
    if arguments.is_built:
        subprocess.run(["cargo", "build", "--quiet", "--release", "--features", "cli"], cwd=ROOT, check=True)
        arguments.binary = ROOT / "target" / "release" / "attention-rollout"
    elif not arguments.binary.is_file():
        parser.error(f"--binary: there is no file {arguments.binary}")
    else:
        arguments.binary = arguments.binary.resolve()
    Comparison(arguments).run()


if __name__ == "__main__":
    main()
