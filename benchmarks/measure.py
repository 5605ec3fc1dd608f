"""Clocks, alternation, medians and peaks of memory: what all parts measure with."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ovia_backup_dagster.demo.process_groups import end_group

REPOSITORY = Path(__file__).parents[1]
ROUNDS = 5
#: For filling memory: bytes of a read, and after how many reads free memory is checked.
_FILL_BYTES, _FILL_READS = 16 * 1024 * 1024, 64

#: JSON as it goes to ``results.json``.
Json = dict[str, Any]
Environment = Mapping[str, str]


def say(text: str) -> None:
    """Print progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def seconds(work: Callable[[], object]) -> float:
    """How many seconds the work takes."""
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Run each side once a round, so that other work of the machine affects all. Each round begins with another side.

    Memory is filled before each, as on a server that has run for a day.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            fill_memory()
            samples[name].append(sides[name]())
        say(f"  round {number + 1} of {rounds}: " + ", ".join(f"{n} {s[-1]:.3f}" for n, s in samples.items()))
    return samples


def fill_memory() -> None:
    """Fill free memory with a file's cache, which the kernel gives up as soon as a process needs the memory.

    A virtual machine may hand free memory back to its host. To get it again took 2.3 s for each GB here: more than half
    of what pg_dump needs for a GB, at the expense of the side that ran after something large had been dropped.
    """
    holes, buffer = _holes(), bytearray(_FILL_BYTES)
    free = _free_bytes()
    while True:
        for _ in range(_FILL_READS):
            holes.readinto(buffer)
        before, free = free, _free_bytes()
        if before - free < _FILL_BYTES * _FILL_READS / 2:
            return  # it takes memory from the cache now


@cache
def _holes() -> io.FileIO:
    """A sparse file without data, larger than memory."""
    descriptor, path = tempfile.mkstemp(prefix="ovia-bench-")
    os.unlink(path)
    os.truncate(descriptor, 1 << 40)
    return io.FileIO(descriptor, "r")


def _free_bytes() -> int:
    """Bytes of memory that are unused, also by caches."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    return int(fields["MemFree"].split()[0]) * 1024


@contextmanager
def processors(busy: list[float]) -> Iterator[None]:
    """Add the seconds for which this machine's processors were busy while the block ran, with any process."""
    before = _busy_seconds()
    yield
    busy.append(_busy_seconds() - before)


def _busy_seconds() -> float:
    # user, nice, system, idle, iowait, irq, softirq: the sum of all processors.
    ticks = [int(word) for word in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def summary(samples: Sequence[float], digits: int = 3) -> Json:
    """Samples with median, minimum and maximum."""
    return {
        "median": round(statistics.median(samples), digits),
        "min": round(min(samples), digits),
        "max": round(max(samples), digits),
        "samples": [round(sample, digits) for sample in samples],
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> Json:
    """The ratio in each round, and its median."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def target(figure: str, what: str, measured: float, most: float, unit: str = "") -> Json:
    """A target and whether it is met."""
    met = measured <= most
    return {"figure": figure, "what": what, "measured": round(measured, 3), "most": most, "unit": unit, "met": met}


def run(command: Sequence[str | Path], environment: Environment, output: Path | None = None) -> float:
    """Run a program from the checkout; return its seconds. It must succeed.

    Raises:
        RuntimeError: it failed; with the end of its error output.
    """
    with open(output or os.devnull, "wb") as stdout:
        clock = time.perf_counter()
        result = subprocess.run(
            [str(word) for word in command],
            env=dict(environment),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
        taken = time.perf_counter() - clock
    if result.returncode != 0:
        end = result.stderr.decode("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{command[0]} ended with code {result.returncode}: {end}")
    return taken


def peaks(command: Sequence[str | Path], environment: Environment) -> dict[str, float]:
    """Run a program; return the peak of resident memory in MB, of it and of each kind of program that it started.

    The program itself is called ``self``. The kernel keeps the peak (``VmHWM``), so that frequent looks are needed only
    for programs that end soon.
    """
    found: dict[str, float] = {}
    stop = threading.Event()

    def watch(first: int) -> None:
        while not stop.wait(0.01):
            for pid in _tree(first):
                with contextlib.suppress(OSError, KeyError):  # the process has ended
                    status = _status(pid)
                    name = "self" if pid == first else status["Name"].strip()
                    # Between fork and exec a child is a copy of its parent.
                    if pid == first or name.startswith(("pg_", "rclone", "age")):
                        found[name] = max(found.get(name, 0.0), int(status["VmHWM"].split()[0]) / 1024)

    with subprocess.Popen(
        [str(word) for word in command],
        env=dict(environment),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        watcher = threading.Thread(target=watch, args=(process.pid,))
        watcher.start()
        try:
            code = process.wait()
        finally:
            stop.set()
            watcher.join()
            process.kill()
    if code != 0:
        raise RuntimeError(f"{command[0]} ended with code {code}")
    return {name: round(peak, 1) for name, peak in found.items()}


@contextmanager
def background(command: Sequence[str | Path], environment: Environment, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the block runs; it and all processes that it started end with the block."""
    with (
        open(log, "wb") as output,
        # Its own session, so that its children end with it.
        subprocess.Popen(
            [str(word) for word in command],
            env=dict(environment),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            end_group(process)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}
