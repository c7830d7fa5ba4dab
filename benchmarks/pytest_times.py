"""Measures what each test costs, in seconds and processor seconds, and which processes used the processors.

A pytest plugin: ``PYTHONPATH=benchmarks .venv/bin/pytest -p pytest_times --times=FILE``. Every finished test adds one
JSON line to FILE (also to that of an earlier run): the seconds of its set-up, call and tear-down, and the processor
seconds (user and system) of all processes of this machine, by kind of process. What a process uses after the last
sample before its end is not seen. ``python benchmarks/pytest_times.py FILE`` prints the tables of
docs/benchmarks/tests.md.
"""

import collections
import json
import os
import sys
import threading
import time
from pathlib import Path

INTERVAL_S = 0.2
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# the first that stands in the command line
KINDS = (
    ("gcs_server", "Ray: head, raylet, agents"),
    ("raylet/raylet", "Ray: head, raylet, agents"),
    ("ray/dashboard", "Ray: head, raylet, agents"),
    ("ray-dashboard", "Ray: head, raylet, agents"),
    ("/agent/", "Ray: head, raylet, agents"),
    ("ray::DashboardAgent", "Ray: head, raylet, agents"),
    ("ray::RuntimeEnvAgent", "Ray: head, raylet, agents"),
    ("log_monitor", "Ray: head, raylet, agents"),
    ("autoscaler", "Ray: head, raylet, agents"),
    ("ray start", "Ray: head, raylet, agents"),
    ("default_worker.py", "Ray: workers that start"),
    ("setup_worker.py", "Ray: workers that start"),
    ("ray::", "Ray: workers at work"),
    ("mlflow server", "MLflow servers"),
    ("mlflow.server", "MLflow servers"),
    ("moto", "S3 servers"),
    ("chrom", "browsers"),
    ("deno", "BIDS validator"),
    ("bids-validator", "BIDS validator"),
    ("bin/pytest", "pytest itself"),
    ("-m pytest", "pytest itself"),
)
OTHER = "other processes (jobs, scripts)"


def read_processes():
    """Processor seconds and command line of every process, by (pid, start time)."""
    processes = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended
        processes[int(entry.name), stat[19]] = ((int(stat[11]) + int(stat[12])) / _TICKS_PER_S, command)
    return processes


def classify(command):
    """The kind of process that has this command line."""
    return next((kind for part, kind in KINDS if part in command), OTHER)


class ProcessorSampler:
    """Adds up the processor seconds of all processes, by kind."""

    def __init__(self):
        self.seconds = collections.Counter()
        self._before = read_processes()
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self):
        while True:
            time.sleep(INTERVAL_S)
            self.update()

    def update(self):
        """Take a sample now."""
        with self._lock:
            after = read_processes()
            for process, (seconds, command) in after.items():
                before = self._before.get(process, (0.0, ""))[0]
                if command:  # kernel threads have none
                    self.seconds[classify(command)] += seconds - before
            self._before = after

    def read(self):
        """The seconds so far, by kind."""
        self.update()
        with self._lock:
            return dict(self.seconds)


class TestTimes:
    """Writes a line a test."""

    def __init__(self, path):
        self.path = Path(path)
        self.sampler = ProcessorSampler()
        self.processors = self.sampler.read()
        self.wall = {}

    def pytest_runtest_logreport(self, report):
        """Note the seconds of a phase; after the last one, write the test's line."""
        self.wall[report.when] = round(report.duration, 3)
        if report.when != "teardown":
            self.outcome = report.outcome
            return
        now = self.sampler.read()
        used = {kind: round(seconds - self.processors.get(kind, 0.0), 2) for kind, seconds in now.items()}
        line = {"test": report.nodeid, "outcome": self.outcome, **self.wall}
        line["processors"] = {kind: seconds for kind, seconds in used.items() if seconds}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.processors, self.wall = now, {}


def pytest_addoption(parser):
    """The file to write."""
    parser.addoption("--times", help="file of JSON lines to which the cost of each test is written")


def pytest_configure(config):
    """Start measuring."""
    if config.getoption("--times"):
        config.pluginmanager.register(TestTimes(config.getoption("--times")))


def main(path):
    """Print the tables of a run."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for line in lines:
        line["wall"] = sum(line.get(when, 0.0) for when in ("setup", "call", "teardown"))
        line["cpu"] = sum(line["processors"].values())
    kinds = collections.Counter()
    files = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for line in lines:
        kinds.update(line["processors"])
        entry = files[line["test"].partition("::")[0]]
        entry[0] += 1
        entry[1] += line["wall"]
        entry[2] += line["cpu"]
    total = sum(line["wall"] for line in lines)
    write = sys.stdout.write
    write(f"{len(lines)} tests, {total:.0f} s, {sum(kinds.values()):.0f} processor seconds\n\n")
    write("| kind of process | processor s |\n| --- | ---: |\n")
    for kind, seconds in kinds.most_common():
        write(f"| {kind} | {seconds:.0f} |\n")
    write("\n| file | tests | s | processor s |\n| --- | ---: | ---: | ---: |\n")
    for name, (count, wall, cpu) in sorted(files.items(), key=lambda item: -item[1][1]):
        write(f"| {name} | {count} | {wall:.1f} | {cpu:.1f} |\n")
    write("\n| slowest tests | set-up s | call s | tear-down s | processor s |\n| --- | ---: | ---: | ---: | ---: |\n")
    for line in sorted(lines, key=lambda line: -line["wall"])[:60]:
        phases = " | ".join(f"{line.get(when, 0.0):.1f}" for when in ("setup", "call", "teardown"))
        write(f"| {line['test']} | {phases} | {line['cpu']:.1f} |\n")


if __name__ == "__main__":
    main(sys.argv[1])
