"""What a measurement was made on, and what else went on there."""

import os
import pathlib
import platform
import re
import time


def cpu_model():
    """The processor's own name for itself."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key: re.search(rf"^{key}\s*: (.*)$", text, re.M) for key in ("model name", "cpu family", "model")}
    name, family, model = (match.group(1).strip() if match else "?" for match in found.values())
    return f"{name} (family {family}, model {model})"


class OtherWork:
    """How busy others kept the processor since this was made: on Linux; None elsewhere."""

    def __init__(self):
        self.start = self.reading()

    @staticmethod
    def reading():
        """Seconds since some moment: passed, of all cores at work, and of them for this process and its children."""
        try:
            fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq = map(int, fields[:7])
        own = sum(os.times()[:4])
        return time.monotonic(), (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), own

    def cores(self):
        """Cores that others kept busy on average. Children count once they have been waited for."""
        end = self.reading()
        if self.start is None or end is None:
            return None
        passed, busy, own = (after - before for before, after in zip(self.start, end))
        return max(busy - own, 0.0) / passed
