#!/usr/bin/env python3
"""Attention rollout as people compute it today, beside this crate, on the same maps and in the same run.

    python3 benches/peers.py                 # the comparison: a CSV under benches/results/
    python3 benches/peers.py --scaling       # how the time grows with each extent
    python3 benches/peers.py --quick         # a few runs, printed only

Installs NumPy, PyTorch and PyHealth into target/peers/ and builds the binary. Each system is timed in turns with
the others: `--rounds` times a fresh process, `--runs` runs in each. Every answer is compared with ours first.
What the systems are: peers_worker.py. What comes out: table.py and plots.py read it.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / "target" / "peers"
DATA = ROOT / "target" / "peers-data"
BINARY = ROOT / "target" / "release" / "attention-rollout"
REAL_MAPS = ROOT / "tests" / "data" / "minilm_batch4.safetensors"

# Layers, batch, heads and tokens of each feature.
SHAPES = {
    "ViT-B/16": {"": (12, 8, 12, 197)},
    "DeiT-Ti": {"": (12, 16, 3, 197)},
    "BERT-128": {"": (12, 16, 12, 128)},
    "BERT-512": {"": (12, 2, 12, 512)},
    "ViT-L/14@336": {"": (24, 1, 16, 577)},
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
MAIN = ("ViT-B/16", "BERT-512", "ViT-L/14@336")
HALF = ("f16", "bf16")
SYSTEMS = {
    "rows": ("numpy row", "torch row", "torch.compile row", "cuda graph row", "pyhealth", "pyhealth-algorithm"),
    "matrix": ("numpy loop", "torch loop", "torch.compile loop", "cuda graph loop"),
    "discard": ("torch topk", "torch topk row"),
}
OPTIONS = {
    "rows": [],
    "matrix": ["--output-kind", "matrix"],
    "discard": ["--discard-ratio", "0.9"],
}
# Largest difference between an answer in f32 and ours. Means are rounded in another order, so that discard may
# zero another one of two nearly equal entries. f16 and bf16 maps are averaged in f32 by all systems compared.
TOLERANCE = {"rows": 2e-6, "matrix": 2e-6, "discard": 1e-2}
AXES = ("layers", "batch", "heads", "tokens")
# One extent of this shape is varied at a time.
SCALING_BASE = (12, 4, 12, 128)
SCALING = {
    "tokens": (16, 32, 64, 96, 128, 197, 256, 384, 512),
    "layers": (1, 2, 4, 8, 12, 24),
    "batch": (1, 2, 4, 8, 16, 32),
    "heads": (1, 2, 4, 8, 12, 16),
}
SCALING_SYSTEMS = {"rows": ("torch row", "pyhealth", "pyhealth-algorithm"), "matrix": ("torch loop",)}
COLUMNS = "system,output,shape,extents,dtype,threads,round,run,time_us,map_bytes"


def enter_environment():
    """Installs what is compared into target/peers and continues there."""
    python = VENV / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == VENV.resolve():
        return
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    if not (VENV / "installed").exists():
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "numpy", "torch", "safetensors", "matplotlib"], check=True)
        if subprocess.run([*pip, "pyhealth==2.1.0"]).returncode != 0:
            print("PyHealth cannot be installed here: its algorithm is measured instead", file=sys.stderr)
        (VENV / "installed").touch()
    os.execv(python, [str(python), *sys.argv])


class Worker:
    """One process of peers_worker.py."""

    def __init__(self, family, threads, device):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(VENV / "inductor")}
        command = [sys.executable, "-W", "ignore", str(ROOT / "benches" / "peers_worker.py")]
        self.process = subprocess.Popen(
            [*command, family, str(threads), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.versions = self.ask(do="versions")
        self.systems = self.versions.pop("systems", ["numpy loop", "numpy row"])

    def ask(self, **request):
        """Sends a request and waits for its answer."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended during {request}")
        return json.loads(answer)

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


def ours(path, output, threads, device, *options):
    """Our command line on `path`; the JSON it prints."""
    command = [str(BINARY), options[0], str(path), "--no-mask", "--json", *OPTIONS[output], *options[1:]]
    command += ["--device", device, "--threads", str(threads)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class Comparison:
    """Collects the rows of the CSV."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.rows = []
        self.differences = {}
        self.versions = {}

    def record(self, key, system, times, map_bytes):
        """Adds the times of one system in one round."""
        output, shape, extents, dtype, threads, round_ = key
        for run, time in enumerate(times):
            self.rows.append((system, output, shape, extents, dtype, threads, round_, run, f"{time:.2f}", map_bytes))

    def check(self, worker, system, output, path, threads, key):
        """Compares the answer of `system` with ours."""
        answer = DATA / "answer.safetensors"
        ours(path, output, threads, self.arguments.device, "run", "--output", str(answer))
        difference = worker.ask(do="check", system=system, answer=str(answer))["difference"]
        if not difference <= TOLERANCE[output]:
            raise SystemExit(f"{system} differs from ours by {difference:.2e} on {key}")
        worst = self.differences.get((system, output), 0.0)
        self.differences[system, output] = max(worst, difference)

    def measure(self, workers, shape, features, dtype, threads, round_, systems):
        """Every system on one shape, once."""
        path = data_file(workers["torch"], features, dtype)
        loaded = [worker for family, worker in workers.items() if dtype == "f32" or family == "torch"]
        for worker in loaded:
            worker.ask(do="load", path=str(path))
        extents = ";".join("x".join(map(str, extent)) for extent in features.values())
        for output, wanted in systems.items():
            runs = min(self.arguments.runs, 2) if output == "discard" else self.arguments.runs
            key = (output, shape, extents, dtype, threads, round_)
            device = self.arguments.device
            check = [] if round_ == 0 else ["--no-check"]
            result = ours(path, output, threads, device, "bench", "--runs", str(runs), *check)
            map_bytes = result["map_bytes"]
            self.record(key, "attention-rollout", result["runs_us"], map_bytes)
            self.record(key, "map read", result["floor_us"], map_bytes)
            for worker in loaded:
                for system in wanted:
                    if system not in worker.systems:
                        continue
                    if "compile" in system and shape not in MAIN:
                        continue
                    if round_ == 0:
                        self.check(worker, system, output, path, threads, key)
                    times = worker.ask(do="time", system=system, runs=runs)["times_us"]
                    self.record(key, system, times, map_bytes)
            self.progress(key)

    def progress(self, key):
        """One line with the smallest time of each system so far."""
        best = {}
        for row in self.rows:
            if row[1:6] == key[:5]:
                best[row[0]] = min(best.get(row[0], float("inf")), float(row[8]))
        text = ", ".join(f"{system} {time / 1e3:.2f}" for system, time in best.items())
        print(f"{key[1]} {key[2]} {key[0]} {key[3]} {key[4]} threads, ms: {text}", file=sys.stderr, flush=True)

    def run(self):
        """All rounds; what is there so far is kept after each."""
        arguments = self.arguments
        DATA.mkdir(parents=True, exist_ok=True)
        for round_ in range(arguments.rounds):
            for threads in arguments.threads:
                workers = {family: Worker(family, threads, arguments.device) for family in arguments.families}
                for worker in workers.values():
                    self.versions.update(worker.versions)
                for shape, features, dtype, systems in self.plan():
                    self.measure(workers, shape, features, dtype, threads, round_, systems)
                for worker in workers.values():
                    worker.close()
            if not arguments.quick:
                self.write()

    def plan(self):
        """What is measured: shape, features, element type and the systems for each output."""
        if self.arguments.scaling:
            for name, extents in SCALING.items():
                for extent in extents:
                    shape = [*SCALING_BASE]
                    shape[AXES.index(name)] = extent
                    yield f"scaling {name}", {"": tuple(shape)}, "f32", SCALING_SYSTEMS
            return
        for shape, features in SHAPES.items():
            if not re.search(self.arguments.shapes, shape):
                continue
            systems = {output: names for output, names in SYSTEMS.items() if output != "discard" or shape in MAIN}
            yield shape, features, "f32", systems
            if shape in MAIN:
                for dtype in HALF:
                    yield shape, features, dtype, {"rows": ("torch row",), "matrix": ()}

    def write(self):
        """The CSV: how it was made, then every time."""
        name = re.sub(r"[^a-z0-9]+", "-", cpu_model().split("(")[0].lower()).strip("-")
        machine = self.arguments.machine or f"{name}-{os.cpu_count()}core"
        kind = "-scaling" if self.arguments.scaling else ""
        path = ROOT / "benches" / "results" / machine / f"{datetime.date.today()}{kind}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            for line in self.header():
                file.write(f"# {line}\n")
            file.write(COLUMNS + "\n")
            for row in self.rows:
                file.write(",".join(map(str, row)) + "\n")
        print(path)

    def header(self):
        """What a reader must know to judge or repeat the numbers."""
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        yield f"date: {datetime.date.today()}"
        yield f"processor: {cpu_model()}, {os.cpu_count()} cores, {memory:.0f} GiB; device: {self.arguments.device}"
        yield f"system: {platform.system()} {platform.machine()}, Python {platform.python_version()}"
        yield "versions: " + ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield f"attention-rollout: commit {commit.stdout.strip()}"
        yield f"command: python3 benches/peers.py {' '.join(sys.argv[1:])}".rstrip()
        if self.arguments.note:
            yield f"note: {self.arguments.note}"
        for (system, output), difference in self.differences.items():
            yield f"checked: {system} ({output}) differs from ours by at most {difference:.1e}"


def cpu_model():
    """The processor's own name for itself."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key: re.search(rf"^{key}\s*: (.*)$", text, re.M) for key in ("model name", "cpu family", "model")}
    name, family, model = (match.group(1).strip() if match else "?" for match in found.values())
    return f"{name} (family {family}, model {model})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes per system")
    parser.add_argument("--runs", type=int, default=7, help="timed runs in each process")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:N (timed with CUDA events)")
    parser.add_argument("--shapes", default="", help="only shapes that match this regular expression")
    parser.add_argument("--scaling", action="store_true", help="vary one extent at a time instead")
    parser.add_argument("--quick", action="store_true", help="one round of three runs, no CSV")
    parser.add_argument("--note", help="what else a reader must know, for the header of the CSV")
    parser.add_argument("--machine", help="folder of the results; named after the processor by default")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.runs = 1, 3
    arguments.families = ["torch", "numpy"] if arguments.device == "cpu" and not arguments.scaling else ["torch"]
    enter_environment()
    subprocess.run(["cargo", "build", "--quiet", "--release", "--features", "cli"], cwd=ROOT, check=True)
    Comparison(arguments).run()


if __name__ == "__main__":
    main()
