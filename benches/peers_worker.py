"""The rollouts that people use today, timed in a process of their own.

Started by peers.py as `peers_worker.py torch|numpy THREADS DEVICE`; answers one JSON request per line. NumPy and
PyTorch never share a process: each keeps threads of its own, and they disturb each other.
"""

import ctypes
import importlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import sys
import time
import traceback

FAMILY, THREADS, DEVICE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(THREADS)

if FAMILY == "torch":
    import torch
else:
    import numpy as np

import tensor_file  # noqa: E402

MAX_COPIES = 256
WARM_UP_SECONDS = 0.1
CLOCK_US = 200
MAX_REPEATS = 100
RATIO = 0.9


def rotation_bytes():
    """Inputs smaller than this lie in memory more than once and are taken in turn, so that no run finds its maps in a
    cache: the rule of src/measure/rotation.rs."""
    if DEVICE != "cpu":
        return 2 * getattr(torch.cuda.get_device_properties(DEVICE), "L2_cache_size", 64 << 20)
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [path.read_text().strip() for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    largest = max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0)
    return min(max(2 * largest, 256 << 20), 1 << 30)


def array(dtype, shape, data):
    """A tensor of a file as this family holds it."""
    if FAMILY == "numpy":
        return np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[dtype]).reshape(shape)
    element = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    return torch.frombuffer(data, dtype=element).reshape(shape)


def layers_of(tensors):
    """`{feature: [names of the tensors of each layer, in order]}` of a file: its map, or its queries and keys."""
    features = {}
    for name in tensors:
        prefix, _, base = name.rpartition("/")
        kind, _, layer = base.partition(".")
        if kind in ("layer", "query"):
            names = [name] if kind == "layer" else [name, name.replace("query.", "key.")]
            features.setdefault(prefix, {})[int(layer)] = names
    return {key: [layers[layer] for layer in sorted(layers)] for key, layers in features.items()}


def operands(tensors):
    """What a layer is to the systems: its map, or its queries and keys."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


# NumPy -----------------------------------------------------------------------------------------------------------


def numpy_sum(layers):
    """Reads every map once and does no more."""
    return sum(attention.sum() for attention in layers)


def numpy_loop(layers):
    rollout = None
    diagonal = np.arange(layers[0].shape[-1])
    for attention in layers:
        ahat = attention.mean(axis=1)
        ahat *= 0.5
        ahat[:, diagonal, diagonal] += 0.5
        rollout = ahat if rollout is None else ahat @ rollout
    return rollout


def numpy_row(layers):
    row = 0.5 * layers[-1][:, :, 0].mean(axis=1)
    row[:, 0] += 0.5
    for attention in reversed(layers[:-1]):
        fused = attention.mean(axis=1)
        row = 0.5 * row + 0.5 * (row[:, None, :] @ fused)[:, 0]
    return row


# PyTorch ---------------------------------------------------------------------------------------------------------


def torch_sum(layers):
    """Reads every map once and does no more."""
    return torch.stack([attention.sum() for attention in layers])


def torch_loop(layers):
    """Head mean, residual on the diagonal in place, no product with the identity."""
    rollout = None
    for attention in layers:
        fused = attention.mean(1, dtype=torch.float32)
        if rollout is None:
            rollout = fused.mul_(0.5)
            rollout.diagonal(dim1=-2, dim2=-1).add_(0.5)
        else:
            rollout = torch.baddbmm(rollout, fused, rollout, beta=0.5, alpha=0.5)
    return rollout


def torch_row(layers):
    """Only row 0: vector times matrix, last layer to first. Of the last layer only row 0 is read."""
    row = layers[-1][:, :, :1].mean(1, dtype=torch.float32).mul_(0.5)
    row[:, :, 0] += 0.5
    for attention in reversed(layers[:-1]):
        fused = attention.mean(1, dtype=torch.float32)
        row = torch.baddbmm(row, row, fused, beta=0.5, alpha=0.5)
    return row[:, 0]


def torch_softmax_row(layers):
    """Row 0 from queries and keys, through the maps of one layer at a time; of the last layer only row 0."""
    row = None
    for queries, keys in reversed(layers):
        if row is None:
            queries = queries[:, :, :1]
        scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        fused = torch.softmax(scores, -1).mean(1)
        if row is None:
            row = fused.mul_(0.5)
            row[:, :, 0] += 0.5
        else:
            row = torch.baddbmm(row, row, fused, beta=0.5, alpha=0.5)
    return row[:, 0]


def discarded(attention):
    """Head mean with the smallest entries of each item zeroed: vit-explain's definition, for any batch."""
    fused = attention.mean(1, dtype=torch.float32)
    flat = fused.view(fused.shape[0], -1)
    first = flat[:, 0].clone()
    smallest = flat.topk(int(flat.shape[1] * RATIO), dim=1, largest=False).indices
    flat.scatter_(1, smallest, 0.0)
    flat[:, 0] = first
    return fused


def torch_topk(layers):
    """vit-explain's way: discard with top-k, then the whole product, of which row 0 is wanted."""
    rollout = None
    for attention in layers:
        ahat = discarded(attention).mul_(0.5)
        ahat.diagonal(dim1=-2, dim2=-1).add_(0.5)
        rollout = ahat if rollout is None else torch.bmm(ahat, rollout)
    return rollout[:, 0]


def torch_topk_row(layers):
    """Top-k too, but vector times matrix."""
    row = None
    for attention in reversed(layers):
        fused = discarded(attention)
        if row is None:
            row = torch.zeros_like(fused[:, :1])
            row[:, :, 0] = 1.0
        row = torch.baddbmm(row, row, fused, beta=0.5, alpha=0.5)
    return row[:, 0]


def pyhealth_algorithm(layers):
    """AttentionRollout.attribute() line by line, for where the package cannot be installed."""
    rollout = None
    for attention in layers:
        fused = attention.mean(dim=1)
        identity = torch.eye(fused.shape[1], device=fused.device, dtype=fused.dtype).unsqueeze(0)
        ahat = 0.5 * (fused + identity)
        if rollout is None:
            rollout = identity.expand(fused.shape[0], -1, -1)
        rollout = torch.bmm(ahat, rollout)
    return rollout[:, 0]


def saved_maps():
    """What PyHealth's AttentionRollout asks of a model, over maps that are there already."""

    class SavedMaps(torch.nn.Module):
        def set_attention_hooks(self, enabled):
            pass

        def forward(self, **data):
            return {}

        def get_attention_layers(self):
            return self.layers

        def get_relevance_tensor(self, rollout, **data):
            return {key: matrix[:, 0] for key, matrix in rollout.items()}

    return SavedMaps()


def pyhealth():
    """PyHealth's own class, or None where the package is not installed."""
    try:
        methods = importlib.import_module("pyhealth.interpret.methods.attention_rollout")
    except ImportError:
        return None
    model = saved_maps()
    rollout = methods.AttentionRollout(model)

    def attribute(features):
        model.layers = {key: [(layer, None) for layer in layers] for key, layers in features.items()}
        return rollout.attribute()

    return attribute


def each(compute):
    """`compute` for every feature."""
    return lambda features: {key: compute(layers) for key, layers in features.items()}


class Graphed:
    """`compute` as a CUDA graph over fixed inputs, captured once per copy of the inputs."""

    def __init__(self, compute):
        self.compute = compute
        self.captured = {}

    def __call__(self, features):
        key = id(features)
        if key not in self.captured:
            self.compute(features)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self.compute(features)
            self.captured[key] = graph, outputs
        graph, outputs = self.captured[key]
        graph.replay()
        return outputs

    def forget(self):
        """Drops the graphs, before the inputs go that they were captured with."""
        self.captured.clear()


class Worker:
    """The systems of one family and the maps they are timed with."""

    def __init__(self):
        self.copies = []
        if FAMILY == "numpy":
            self.systems = {"numpy sum": each(numpy_sum), "numpy loop": each(numpy_loop), "numpy row": each(numpy_row)}
            return
        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        torch.backends.cuda.matmul.allow_tf32 = False
        self.systems = {
            "torch sum": each(torch_sum),
            "torch loop": each(torch_loop),
            "torch row": each(torch_row),
            "torch topk": each(torch_topk),
            "torch topk row": each(torch_topk_row),
            "torch softmax row": each(torch_softmax_row),
        }
        attribute = pyhealth()
        name = "pyhealth" if attribute else "pyhealth-algorithm"
        self.systems[name] = attribute or each(pyhealth_algorithm)
        for name, compute in (("torch.compile loop", torch_loop), ("torch.compile row", torch_row)):
            self.systems[name] = each(torch.compile(compute, dynamic=False))
        if DEVICE != "cpu":
            torch.cuda.set_device(DEVICE)
            self.systems["cuda graph loop"] = Graphed(each(torch_loop))
            self.systems["cuda graph row"] = Graphed(each(torch_row))

    def make(self, path, features, dtype):
        """Writes random maps, softmax of normal numbers, or, where heads have a size, normal queries and keys: the same for
        everyone who reads the file."""
        torch.manual_seed(0)
        element = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        tensors = {}
        for key, (layers, batch, heads, tokens, *head_dim) in features.items():
            prefix = f"{key}/" if key else ""
            for layer in range(layers):
                if head_dim:
                    extents = batch, heads, tokens, *head_dim
                    made = {kind: torch.randn(extents) for kind in ("query", "key")}
                else:
                    made = {"layer": torch.softmax(2 * torch.randn(batch, heads, tokens, tokens), -1)}
                for kind, tensor in made.items():
                    tensor = tensor.to(element)
                    data = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
                    tensors[f"{prefix}{kind}.{layer}"] = dtype.upper(), tensor.shape, data
        tensor_file.write(path, tensors)
        return {}

    def load(self, path):
        """Reads the layers of a file, as often as the rotation takes."""
        self.copies = []
        for system in self.systems.values():
            if isinstance(system, Graphed):
                system.forget()
        tensors = tensor_file.read(path)
        features = {
            key: [[array(*tensors[name]) for name in names] for names in layers]
            for key, layers in layers_of(tensors).items()
        }
        size = sum(tensor.nbytes for layers in features.values() for layer in layers for tensor in layer)

        def copy(tensor):
            return tensor.copy() if FAMILY == "numpy" else tensor.to(DEVICE, copy=True)

        for _ in range(min(MAX_COPIES, -(-rotation_bytes() // size))):
            copied = {
                key: [operands([copy(tensor) for tensor in layer]) for layer in layers]
                for key, layers in features.items()
            }
            self.copies.append(copied)
        return {"copies": len(self.copies)}

    def time(self, system, runs):
        """Times in microseconds, after warm-up runs. On a GPU, as in src/measure: what is timed follows straight after
        another run, and short runs are repeated."""
        compute = self.systems[system]
        copies = itertools.cycle(self.copies)
        # Every copy has a graph of its own, to be captured before anything is timed.
        for features in self.copies if isinstance(compute, Graphed) else self.copies[:1]:
            compute(features)
        times = []
        if DEVICE == "cpu":
            for _ in range(runs):
                features = next(copies)
                start = time.perf_counter()
                compute(features)
                times.append((time.perf_counter() - start) * 1e6)
            return {"times_us": times}
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def elapsed_us(repeats):
            compute(next(copies))
            start.record()
            for _ in range(repeats):
                compute(next(copies))
            end.record()
            end.synchronize()
            return start.elapsed_time(end) * 1e3 / repeats

        best, warm_up = float("inf"), time.perf_counter()
        while best == float("inf") or time.perf_counter() - warm_up < WARM_UP_SECONDS:
            best = min(best, elapsed_us(1))
        repeats = min(max(-(-CLOCK_US // max(best, 1)), 1), MAX_REPEATS)
        return {"times_us": [elapsed_us(int(repeats)) for _ in range(runs)]}

    def check(self, system, answer):
        """Largest difference from the answers in a file, over all features."""
        worst = 0.0
        outputs = self.systems[system](self.copies[0])
        tensors = tensor_file.read(answer)
        for key, output in outputs.items():
            name = "relevance" if output.ndim == 2 else "rollout"
            expected = array(*tensors[f"{key}/{name}" if key else name])
            got = output if FAMILY == "numpy" else output.float().cpu()
            difference = float(abs(got - expected).max())
            worst = max(worst, difference if difference == difference else float("inf"))
        return {"difference": worst}

    def versions(self):
        """Versions of what is measured."""
        if FAMILY == "numpy":
            return {"numpy": np.__version__, "systems": list(self.systems)}
        found = {"torch": torch.__version__}
        if DEVICE != "cpu":
            found["CUDA"] = torch.version.cuda
        if "pyhealth" in self.systems:
            found["pyhealth"] = importlib.metadata.version("pyhealth")
        return {**found, "systems": list(self.systems)}


def main():
    # Libraries print; the answers must be all there is on the real stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # a system that cannot run here must not end the others
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
