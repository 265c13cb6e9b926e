"""Reads the CSV files that peers.py writes: what table.py and plots.py share."""

import collections
import csv
import statistics

OURS = "attention-rollout"
OURS_GRAPH = "attention-rollout graph"
READ = "map read"
# Ours, in the fastest order, and other libraries' sums.
READS = (READ, "numpy sum", "torch sum")

Key = collections.namedtuple("Key", "output shape extents dtype threads")


class Results:
    """The header lines of a CSV, and its times by key, system and round."""

    def __init__(self, path):
        self.header = []
        self.times = collections.defaultdict(lambda: collections.defaultdict(lambda: collections.defaultdict(list)))
        self.map_bytes = {}
        with open(path) as file:
            lines = file.read().splitlines()
        self.header = [line[2:] for line in lines if line.startswith("# ")]
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            key = Key(row["output"], row["shape"], row["extents"], row["dtype"], int(row["threads"]))
            self.times[key][row["system"]][int(row["round"])].append(float(row["time_us"]))
            self.map_bytes[key] = int(row["map_bytes"])

    def note(self, name):
        """The header line that starts with `name`, without the name."""
        return next(line.split(": ", 1)[1] for line in self.header if line.startswith(name + ": "))

    def notes(self, name):
        """Every header line that starts with `name`, without the name."""
        return [line.split(": ", 1)[1] for line in self.header if line.startswith(name + ": ")]

    def gpu(self):
        """The GPU that was measured, as `NVIDIA H200 (cuda:0)`; None for the CPU."""
        device = self.note("processor").split("; device: ")[1]
        return device if "cuda" in device else None

    def minimum(self, key, system):
        """The smallest time in microseconds, or None where the system was not measured."""
        rounds = self.times[key].get(system)
        return min(min(times) for times in rounds.values()) if rounds else None

    def floor(self, key):
        """The smallest time in microseconds that anything took to read the maps once."""
        return min(self.minimum(key, system) for system in READS if system in self.times[key])

    def rounds(self, key, system):
        """How many processes measured it."""
        return len(self.times[key][system])

    def runs(self, key, system):
        """How many times there are."""
        return sum(len(times) for times in self.times[key][system].values())

    def ratio(self, key, system):
        """How many times as long as ours `system` takes: by the smallest times, then the range over the rounds of the
        ratio of medians. None where it was not measured. A CUDA graph is compared with ours."""
        against = OURS_GRAPH if system.startswith("cuda graph") else OURS
        theirs, ours = self.times[key].get(system), self.times[key].get(against)
        if not theirs or not ours:
            return None
        rounds = [statistics.median(theirs[r]) / statistics.median(ours[r]) for r in ours if r in theirs]
        return self.minimum(key, system) / self.minimum(key, against), min(rounds), max(rounds)
