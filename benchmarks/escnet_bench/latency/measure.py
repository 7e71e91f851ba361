"""The schedule of a measurement: cells, first calls, rounds, and what no longer fits in time."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final

from escnet_runtime.errors import EscNetError
from escnet_runtime.memory import available_memory

from ..energy import EnergyCounter
from .forecast import Forecast
from .plan import Allocator, Cell, Settings, Variant
from .process import ProcessEnded, Served, TooSlow
from .rows import Found, Timed

__all__ = ["MIN_ROUNDS", "Measurement"]

#: With fewer rounds an implementation gets no row.
MIN_ROUNDS: Final = 3
#: Share of the available memory that a call may take by its estimate.
_MEMORY_SHARE: Final = 0.9
#: Rounds in which a GPU's stages are timed, which takes a separate call.
_STAGE_ROUNDS: Final = 5
#: Seconds of calls over which energy is measured.
_ENERGY_SECONDS: Final = 1.0
_LEAST_WAIT: Final = 5.0


class Measurement:
    """Measures cell after cell until all are done or time is up.

    Args:
        settings: what to measure.
        forecast: estimates calls, and learns from them.
        start: starts a measuring process with an allocator.
        gpu: whether everything runs on a GPU.
        counter: counter of energy, if there is one.
        clock: returns seconds.
        available: returns the bytes that a process can still take; None if not known.
        step: called with what is being done.
    """

    def __init__(
        self,
        settings: Settings,
        forecast: Forecast,
        start: Callable[[Allocator], Served],
        *,
        gpu: bool = False,
        counter: EnergyCounter | None = None,
        clock: Callable[[], float] = time.monotonic,
        available: Callable[[], int | None] = available_memory,
        step: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._settings, self._forecast, self._start = settings, forecast, start
        self._gpu, self._counter, self._clock = gpu, counter, clock
        self._available, self._step = available, step
        self._end = clock() + settings.seconds * (1 - settings.memory_share)
        self._served: dict[Allocator, Served] = {}
        self._keeps: bool | None = None  # whether the allocator "kept" keeps memory
        self._failed: dict[Variant, int] = {}  # least number of categories at which it failed
        self.found = Found()
        self.threads: dict[str, int] = {}

    def run(self) -> Found:
        """Measure. An exception ends the processes and loses nothing in ``found``."""
        with ExitStack() as stack:
            stack.callback(self._close)
            for index, cell in enumerate(self._settings.cells):
                self._step(f"{cell.categories} categories, allocator {cell.allocator}")
                self._measure(index, cell)
        return self.found

    def _until(self, index: int) -> float:
        """When a cell should end: its share of the time beyond what ours needs in later cells."""
        now, rest = self._clock(), self._settings.cells[index:]
        needed = [self._least(cell) for cell in rest]
        free = max(self._end - now - sum(needed), 0.0)
        return now + needed[0] + free * rest[0].weight / sum(cell.weight for cell in rest)

    def _least(self, cell: Cell) -> float:
        """Least seconds that ours needs in a cell; of the cells with one number, only the first."""
        known = [one for one in self._settings.variants if one.ours and one not in self._failed]
        ours = known[0] if known else None
        same = [one for one in self._settings.cells if one.categories == cell.categories]
        if ours is None or cell != same[0]:
            return 0.0
        return (1 + MIN_ROUNDS) * (self._forecast.call(ours, cell) or 0.0)

    def _measure(self, index: int, cell: Cell) -> None:
        timed: dict[Variant, Timed] = {}
        until, useless = self._until(index), self._useless(cell)
        self.found.timed[cell] = timed
        for variant in self._settings.variants:
            reason = useless or self._why_not(variant, cell, until, timed)
            if reason is None:
                self._open(variant, cell, until, timed)
            else:
                self.found.leave_out(variant, cell, reason)
            if variant.ours:  # its time in the other cells can be estimated better now
                until = self._until(index)
        if timed:
            self._rounds(cell, until, timed)
        for variant in [one for one, of in timed.items() if len(of.milliseconds) < MIN_ROUNDS]:
            self.found.leave_out(
                variant, cell, f"time: {MIN_ROUNDS} rounds did not fit; give more --minutes"
            )
            del timed[variant]
        self._energy(cell, timed)
        served = self._served.get(cell.allocator)
        if served is not None and timed:
            self._try(cell, lambda: self.threads.update(served.ask("info")["threads"]))
            self._try(cell, lambda: served.ask("trim"))

    def _useless(self, cell: Cell) -> str | None:
        """The reason why nothing can be measured in a cell; None if there is none."""
        if cell.allocator == "kept" and self._keeps is None and not self._over():
            try:
                info = self._at(cell).ask("info", seconds=self._patience())
            except EscNetError as error:
                return str(error)
            self._keeps = bool(info["kept"])
        if cell.allocator == "kept" and self._keeps is False:
            return "glibc's settings do not keep freed memory here: another C library?"
        return None

    def _why_not(
        self, variant: Variant, cell: Cell, until: float, timed: dict[Variant, Timed]
    ) -> str | None:
        """The reason why a variant is left out of a cell; None if it is not."""
        if self._over():
            return "time: none was left; give more --minutes"
        failed = self._failed.get(variant)
        if failed is not None and cell.categories >= failed:
            return f"it failed at {failed} categories" if failed > 1 else "it failed before"
        if (reason := self._too_large(variant, cell)) is not None:
            return reason
        call, opening = self._call_time(variant, cell), self._forecast.opening(variant, cell)
        if call is None or opening is None:  # nothing to estimate from: ours, in a first cell
            return None
        needed = opening + MIN_ROUNDS * call
        promised = MIN_ROUNDS * sum(self._call_time(one, cell) or 0.0 for one in timed)
        first = variant.ours and not timed
        left = (self._end if first else until) - self._clock() - promised
        if needed <= left:
            return None
        return (
            f"time: it would take about {math.ceil(needed)} s, {max(int(left), 0)} s are left for "
            "it here; give more --minutes, or fewer --categories or --implementations"
        )

    def _too_large(self, variant: Variant, cell: Cell) -> str | None:
        needed = self._forecast.memory(variant, cell.categories)
        there = self._available()
        if needed is None or there is None or needed <= _MEMORY_SHARE * there:
            return None
        return f"memory: it needs about {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free"

    def _call_time(self, variant: Variant, cell: Cell) -> float | None:
        return self._forecast.call(variant, cell)

    def _open(
        self, variant: Variant, cell: Cell, until: float, timed: dict[Variant, Timed]
    ) -> None:
        self._step(f"{cell.categories} categories, {cell.allocator}: open {variant.name}")
        try:
            answer = self._at(cell).ask(
                "open",
                variant,
                categories=cell.categories,
                # Compiling may take far longer than was expected, and the other cells wait.
                seconds=self._patience(None if variant.ours else until),
            )
        except EscNetError as error:
            self._lost(variant, cell, timed, error)
            return
        self._forecast.learn_opening(variant, cell, answer["ms"] / 1e3, answer["grown_bytes"])
        timed[variant] = Timed(
            first_ms=answer["ms"], chunk=answer["chunk"], agreement=answer["agreement"]
        )
        if not self._forecast.called(variant):
            # First calls load and are slower; a plan by their time would drop what does fit.
            order = [variant]
            self._call(variant, cell, timed, order, None)
            if not order:
                del timed[variant]

    def _rounds(self, cell: Cell, until: float, timed: dict[Variant, Timed]) -> None:
        order = list(timed)
        for _ in range(self._settings.warm_up):
            if self._clock() + (1 + MIN_ROUNDS) * self._round_time(order, cell) <= until:
                for variant in list(order):
                    self._call(variant, cell, timed, order, None)
        for number in range(self._settings.repeats):
            if self._over() or (
                number >= MIN_ROUNDS and self._clock() + self._round_time(order, cell) > until
            ):
                break
            self._drop_what_does_not_fit(cell, MIN_ROUNDS - number, order)
            if not order:
                break
            self._step(f"{cell.categories} categories, {cell.allocator}: round {number + 1}")
            at = number % len(order)
            for variant in [*order[at:], *order[:at]]:
                self._call(variant, cell, timed, order, number)

    def _round_time(self, order: list[Variant], cell: Cell) -> float:
        return sum(self._call_time(variant, cell) or 0.0 for variant in order)

    def _drop_what_does_not_fit(self, cell: Cell, rounds: int, order: list[Variant]) -> None:
        """Drop the least important variants until the others get their rounds."""
        while len(order) > 1 and rounds > 0:
            needed = rounds * self._round_time(order, cell)
            if self._clock() + needed <= self._end:
                return
            self.found.leave_out(
                order.pop(), cell, f"time: {MIN_ROUNDS} rounds do not fit; give more --minutes"
            )

    def _call(
        self,
        variant: Variant,
        cell: Cell,
        timed: dict[Variant, Timed],
        order: list[Variant],
        number: int | None,
    ) -> None:
        if variant not in order or self._over():
            return  # the variant was lost in this round, or time is up
        stages = number is not None and (not self._gpu or number < _STAGE_ROUNDS)
        try:
            answer = self._at(cell).ask(
                "call",
                variant,
                categories=cell.categories,
                stages=stages,
                seconds=self._patience(),
            )
        except EscNetError as error:
            order.remove(variant)
            if isinstance(error, TooSlow) and len(timed[variant].milliseconds) >= MIN_ROUNDS:
                self._end_process(cell)  # time is up; earlier measurements stay
                return
            timed[variant].milliseconds.clear()
            self._lost(variant, cell, timed, error)
            return
        self._forecast.learn_call(variant, cell, answer["ms"] / 1e3)
        if number is not None:
            timed[variant].milliseconds[number] = answer["ms"]
            if answer["stages"] is not None:
                timed[variant].stages.append(answer["stages"])

    def _lost(
        self, variant: Variant, cell: Cell, timed: dict[Variant, Timed], error: EscNetError
    ) -> None:
        """Leave a variant out; if its process is gone, open the others again in a new one."""
        self.found.leave_out(variant, cell, str(error))
        worked = any(variant in one for at, one in self.found.timed.items() if at != cell)
        self._failed[variant] = cell.categories if worked else 1
        if not isinstance(error, ProcessEnded | TooSlow):
            return
        self._end_process(cell)
        for other in [one for one in timed if one != variant]:
            if self._over():
                return
            try:
                self._at(cell).ask(
                    "open", other, categories=cell.categories, seconds=self._patience()
                )
            except EscNetError as again:
                self.found.leave_out(other, cell, f"opened again: {again}")
                if isinstance(again, ProcessEnded | TooSlow):
                    self._end_process(cell)

    def _energy(self, cell: Cell, timed: dict[Variant, Timed]) -> None:
        """Measure millijoules an image, over a loop of calls."""
        if self._counter is None:
            return
        for variant, one in timed.items():
            if cell.allocator not in self._served:  # a new process would cost other cells' time
                self.found.leave_out(variant, cell, "energy: the process ended before")
                continue
            seconds = one.percentiles()[0] / 1e3
            calls = max(math.ceil(_ENERGY_SECONDS / max(seconds, 1e-6)), 1)
            if self._clock() + calls * seconds > self._end:
                self.found.leave_out(variant, cell, "energy: no time was left")
                continue
            before = self._counter.joules()
            loop = partial(
                self._served[cell.allocator].ask,
                *("loop", variant),
                categories=cell.categories,
                calls=calls,
                seconds=self._patience(),
            )
            error = self._try(cell, loop)
            taken = self._counter.joules() - before
            if error is None and taken > 0:
                one.energy_mj = 1e3 * taken / calls
            else:
                said = "the counter gave no value" if error is None else str(error)
                self.found.leave_out(variant, cell, f"energy: {said}")

    def _at(self, cell: Cell) -> Served:
        if cell.allocator not in self._served:
            self._served[cell.allocator] = self._start(cell.allocator)
        return self._served[cell.allocator]

    def _end_process(self, cell: Cell) -> None:
        served = self._served.pop(cell.allocator, None)
        if served is not None:  # else it did not even begin
            served.close()

    def _over(self) -> bool:
        """Whether time is up."""
        return self._clock() >= self._end

    def _patience(self, until: float | None = None) -> float:
        """Seconds left to wait for an answer: until the end, or until ``until``."""
        end = self._end if until is None else min(self._end, until)
        return max(end - self._clock(), 0.0) + _LEAST_WAIT

    def _try(self, cell: Cell, ask: Callable[[], object]) -> EscNetError | None:
        """Ask for something that is optional; returns the error, if any.

        If the process has ended, it is dropped, so that the next variant is not blamed for that.
        """
        try:
            ask()
        except EscNetError as error:
            if isinstance(error, ProcessEnded | TooSlow):
                self._end_process(cell)
            return error
        return None

    def _close(self) -> None:
        for served in self._served.values():
            served.close()
        self._served.clear()
