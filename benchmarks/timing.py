"""How things are timed here: cold weights, turns instead of runs, limits measured in between.

A shared machine drifts by tens of percent within a minute. So whatever is compared takes turns, block by block: ours,
each peer, the probes of the machine's limits, and again. Every block begins with a pause, in which the thread pool of
whoever ran before stops spinning, and a few calls that are not counted. Figures are medians over all blocks.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lowbit._load import core

Call = Callable[[], Any]

PAUSE_SECONDS = 0.01
WARM_UP_SECONDS = 0.002
BLOCK_SECONDS = 0.025
MAX_CALLS_IN_BLOCK = 100


def pause() -> None:
    """Lets other thread pools fall asleep."""
    time.sleep(PAUSE_SECONDS)


@dataclass(frozen=True)
class Spread:
    """Median, 5th and 95th percentile of some samples, in their unit."""

    median: float
    p5: float
    p95: float

    @staticmethod
    def of(samples: Iterable[float]) -> Spread:
        p5, median, p95 = np.percentile(list(samples), [5, 50, 95])
        return Spread(float(median), float(p5), float(p95))


class Contestant:
    """One way to solve a problem.

    Args:
        name: as tables show it.
        calls: the problem on one copy of the weight each. Turning through them keeps the weight out of the caches:
            see ``num_copies``.
    """

    def __init__(self, name: str, calls: Sequence[Call]) -> None:
        self.name = name
        self.samples: list[float] = []  # seconds
        self._calls = calls
        self._next = 0

    def next(self) -> Call:
        """The call on the copy of the weight that was used longest ago."""
        call = self._calls[self._next]
        self._next = (self._next + 1) % len(self._calls)
        return call

    def warm_up(self) -> None:
        """What begins a block: a pause, and calls that do not count."""
        pause()
        end = time.perf_counter() + WARM_UP_SECONDS
        self.next()()
        while time.perf_counter() < end:
            self.next()()

    def calls_in_block(self) -> int:
        """As many as fill a block, at least three unless a call takes very long."""
        self.warm_up()
        shortest = min(self._timed() for _ in range(3))
        if shortest > 10 * BLOCK_SECONDS:
            return 1
        return max(3, min(MAX_CALLS_IN_BLOCK, int(BLOCK_SECONDS / shortest)))

    def _timed(self) -> float:
        call = self.next()
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def block(self) -> None:
        """Times one block."""
        if not self.samples:
            self._block_calls = self.calls_in_block()
        self.warm_up()
        for _ in range(self._block_calls):
            self.samples.append(self._timed())

    def spread(self) -> Spread:
        """Of the seconds of a call."""
        return Spread.of(self.samples)


@dataclass
class Limit:
    """A limit of the machine, measured again for each block.

    Attributes:
        what: ``"read_bandwidth"`` (bytes per second), ``"f32"``, ``"bf16"`` or ``"int8"`` (operations per second).
        samples: one for each block.
    """

    what: str
    samples: list[float] = field(default_factory=list)

    def block(self) -> None:
        """Measures once."""
        pause()
        seconds = 0.08 if self.what == "read_bandwidth" else 0.02
        self.samples.append(core().probe(self.what, seconds, torch.get_num_threads()))

    @property
    def value(self) -> float:
        return Spread.of(self.samples).median


def multiplier(family: str, x_dtype: torch.dtype) -> str:
    """Which multiply peak binds a family: the fastest unit that may compute it at the CPU level in use."""
    if family == "integer":
        return "int8"
    if x_dtype == torch.float32:
        return "f32"
    # VDPBF16PS is slower than FMA on processors that split it
    return max(("f32", "bf16"), key=lambda what: peak(what) or 0.0)


def peak(what: str, seconds: float = 0.02) -> float | None:
    """A multiply peak in operations per second; None where there is no such unit."""
    try:
        return core().probe(what, seconds, torch.get_num_threads())
    except RuntimeError:  # no such unit at this level
        return None


def take_turns(entrants: Sequence[Contestant | Limit], blocks: int) -> None:
    """Times everyone, block by block in turn."""
    for _ in range(blocks):
        for entrant in entrants:
            entrant.block()


class Turns:
    """``setup`` of ``benchmark.pedantic``: ours is timed by pytest-benchmark, all others in between its blocks.

    Args:
        ours: whose calls ``pedantic`` makes: ``benchmark.pedantic(run, setup=turns, rounds=turns.rounds)``.
        others: who has a block before each of ours.
        blocks: how many.
    """

    def __init__(self, ours: Contestant, others: Sequence[Contestant | Limit], blocks: int) -> None:
        self._ours = ours
        self._others = others
        self._calls = ours.calls_in_block()
        self._round = 0
        self.rounds = blocks * self._calls

    def __call__(self) -> tuple[tuple[Call], dict[str, Any]]:
        if self._round % self._calls == 0:
            for other in self._others:
                other.block()
            self._ours.warm_up()
        self._round += 1
        return (self._ours.next(),), {}


def run(call: Call) -> None:
    """The function that pytest-benchmark times."""
    call()


class Disturbance:
    """How much of the machine others took since this was made: the rest of this system, and the hypervisor."""

    def __init__(self) -> None:
        self._begin = _cpu_seconds()

    def percent(self) -> float | None:
        """Of all processors' time; None where the system does not say."""
        begin, end = self._begin, _cpu_seconds()
        if begin is None or end is None or end.total <= begin.total:
            return None
        others = (end.busy - begin.busy) - (end.ours - begin.ours)
        return max(0.0, 100 * others / (end.total - begin.total))


@dataclass(frozen=True)
class _CpuSeconds:
    busy: float  # of everyone, with what the hypervisor gave to other machines
    ours: float
    total: float


def _cpu_seconds() -> _CpuSeconds | None:
    try:
        with open("/proc/stat") as lines:
            fields = [int(word) / os.sysconf("SC_CLK_TCK") for word in lines.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, idle, waiting, interrupts, soft_interrupts, stolen = fields
    busy = user + nice + system + interrupts + soft_interrupts + stolen
    return _CpuSeconds(busy, time.process_time(), busy + idle + waiting)


def num_copies(weight_bytes: int, rotate_bytes: int) -> int:
    """Copies of a weight that are read in turn so that each is cold when its turn comes.

    ``rotate_bytes`` is 512 MiB unless told otherwise. Machines like the one these figures come from report hundreds of
    MiB of L3, but share it with other machines: reading 512 MiB again and again runs at the speed of memory within
    3 % (256 MiB: 15 % faster), which is why the bandwidth probe reads as much, too.
    """
    return max(2, math.ceil(rotate_bytes / weight_bytes))
