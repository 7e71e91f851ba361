"""Which call comes when: turns, rounds, time that is short, and processes that end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from escnet_bench.latency import process
from escnet_bench.latency.assemble import assemble_rows
from escnet_bench.latency.floor import Peak
from escnet_bench.latency.forecast import Forecast
from escnet_bench.latency.measure import MIN_ROUNDS, Measurement
from escnet_bench.latency.peaks import PeakMemory, measure_peaks
from escnet_bench.latency.plan import (
    IMPLEMENTATIONS,
    Allocator,
    Cell,
    Settings,
    Variant,
    cells,
)
from escnet_bench.latency.process import (
    ProcessEnded,
    Refused,
    TooSlow,
    inherited,
    thread_variables,
)
from escnet_bench.latency.rows import Found, Timed, ratios_of

OURS = Variant(implementation="onnxruntime", precision="fp32")
PLAIN = Variant(implementation="torch-plain", precision="fp32")
COMPILED = Variant(implementation="torch-compile-static", precision="fp32")
DYNAMIC = Variant(implementation="torch-compile-dynamic", precision="fp32")
OPENVINO = Variant(implementation="openvino", precision="bf16")
CAT_SEG = Variant(implementation="torch-cat-seg", precision="fp32")
ALL = (OURS, PLAIN, COMPILED)


@dataclass
class Machine:
    """Made-up processes on a made-up clock: a call takes ``seconds`` times categories."""

    seconds: dict[str, float] = field(
        default_factory=lambda: {"onnxruntime": 0.01, "torch-plain": 0.04, "openvino": 0.01}
    )
    compile_seconds: float = 20.0
    load_seconds: dict[str, float] = field(default_factory=dict)  # of a first call
    fails: dict[tuple[str, str], Exception] = field(default_factory=dict)
    now: float = 0.0
    asked: list[tuple[str, str, str, int]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    closed: int = 0
    grown: int = 1000
    keeps: bool = True
    told: Callable[[str], None] = lambda name: None  # of every call, before it

    def start(self, allocator: Allocator) -> "Process":
        """Begin a process."""
        self.started.append(allocator)
        return Process(self, allocator)

    def measure(self, settings: Settings, **more: Any) -> Measurement:
        """A measurement on this machine."""
        return Measurement(
            settings,
            Forecast(lambda form, categories: float(categories)),
            self.start,
            clock=lambda: self.now,
            **{"available": lambda: None, **more},
        )


@dataclass
class Process:
    """One of them."""

    machine: Machine
    allocator: str
    opened: set[str] = field(default_factory=set)

    def ask(self, do: str, variant: Variant | None = None, **more: Any) -> dict[str, Any]:
        """Take time, and answer."""
        if variant is None:
            return {"threads": {"torch": 2}, "kept": self.machine.keeps}
        machine, name = self.machine, variant.implementation
        machine.asked.append((do, name, self.allocator, more["categories"]))
        machine.told(name)
        if (do, name) in machine.fails:
            raise machine.fails[do, name]
        took = machine.seconds.get(name, 0.02) * more["categories"] * more.get("calls", 1)
        if do == "open":
            again = variant.dynamic and name in self.opened
            took += machine.compile_seconds if variant.compiled and not again else 0.0
            took += machine.load_seconds.get(name, 0.0)
            self.opened.add(name)
        assert name in self.opened
        if took > more["seconds"]:
            machine.now += more["seconds"]
            raise TooSlow(f"no answer within {more['seconds']:.0f} s")
        machine.now += took
        return {
            "ms": 1e3 * took,
            "stages": {"sam": 1.0},
            "chunk": None,
            "agreement": 1.0,
            "grown_bytes": machine.grown * more["categories"],
            "peak_memory_bytes": more["categories"],
            "device_memory_bytes": None,
        }

    def close(self) -> None:
        """End."""
        self.machine.closed += 1


def settings(
    seconds: float = 1000.0,
    categories: tuple[int, ...] = (19,),
    allocators: tuple[Allocator, ...] = ("default",),
    **more: Any,
) -> Settings:
    """Three implementations, four rounds at most."""
    asked = {"variants": ALL, "repeats": 4, "warm_up": 1, "memory_share": 0.0, **more}
    return Settings(cells=cells(categories, allocators), seconds=seconds, **asked)


def test_important_cells_come_first() -> None:
    ordered = cells([847, 19, 7, 150, 58], ["kept", "default"])
    assert [cell.categories for cell in ordered][::2] == [19, 150, 58, 847, 7]
    assert [cell.allocator for cell in ordered][:2] == ["default", "kept"]


def test_implementations_take_turns_and_the_order_moves_on() -> None:
    machine = Machine()
    found = machine.measure(settings()).run()
    calls = [name for do, name, _, _ in machine.asked if do == "call"]
    names = [variant.implementation for variant in ALL]
    assert calls[:3] == names  # as they are opened, to know what a call takes
    assert calls[3:6] == names  # the warm-up
    assert calls[6:9] == names
    assert calls[9:12] == [*names[1:], names[0]]
    assert calls[12:15] == [*names[2:], *names[:2]]
    [timed] = found.timed.values()
    assert [len(one.milliseconds) for one in timed.values()] == [4, 4, 4]
    assert not found.left_out


def test_first_calls_are_apart_from_the_others() -> None:
    [timed] = Machine().measure(settings()).run().timed.values()
    assert timed[COMPILED].first_ms > 20_000
    assert max(timed[COMPILED].milliseconds.values()) < 1000
    assert timed[PLAIN].stage_medians() == {"sam": 1.0}


def test_what_does_not_fit_is_left_out_the_least_important_first() -> None:
    found = Machine().measure(settings(seconds=12.0)).run()
    [timed] = found.timed.values()
    assert set(timed) == {OURS, PLAIN}
    [gone] = found.left_out
    assert gone.implementation == "torch-compile-static"
    assert gone.reason.startswith("time: it would take about 47 s, 7 s are")
    assert "--minutes" in gone.reason


def test_no_cell_takes_what_ours_needs_in_the_others() -> None:
    machine = Machine()
    asked = settings(seconds=60.0, categories=(19, 150, 58, 847))
    found = machine.measure(asked).run()
    for timed in found.timed.values():
        assert len(timed[OURS].milliseconds) >= MIN_ROUNDS
    assert machine.now < 61


def test_when_time_is_up_nothing_more_is_called() -> None:
    machine = Machine(seconds={"onnxruntime": 1.0})
    found = machine.measure(settings(seconds=50.0, categories=(19, 150))).run()
    assert not any(found.timed.values())
    assert {(one.implementation, one.categories) for one in found.left_out} >= {
        ("onnxruntime", 19),
        ("onnxruntime", 150),
        ("torch-plain", 150),
    }


def test_a_compilation_that_takes_longer_than_expected_costs_the_other_cells_nothing() -> None:
    machine = Machine(compile_seconds=10_000.0)
    asked = settings(seconds=400.0, categories=(19, 150, 58), variants=(OURS, PLAIN, COMPILED))
    found = machine.measure(asked).run()
    assert [set(timed) for timed in found.timed.values()] == 3 * [{OURS, PLAIN}]
    gone = [one for one in found.left_out if one.implementation == COMPILED.implementation]
    assert gone[0].reason.startswith("no answer within")
    assert machine.now < 400


def test_what_was_measured_stands_where_time_ends_in_the_middle_of_a_call() -> None:
    machine = Machine(seconds={"onnxruntime": 0.01, "torch-plain": 0.04})
    measurement = machine.measure(settings(variants=(OURS, PLAIN), warm_up=0))
    calls = 0

    def slower(name: str) -> None:
        nonlocal calls
        calls += name == "torch-plain"
        if calls == 6:  # the first call, one more, three rounds, and now the fourth
            machine.seconds["torch-plain"] = 1e6

    machine.told = slower
    [timed] = measurement.run().timed.values()
    assert [*timed[PLAIN].milliseconds] == [0, 1, 2]
    assert not measurement.found.left_out
    assert machine.closed == len(machine.started) == 1


def test_dynamic_shapes_are_compiled_once_in_a_process() -> None:
    forecast = Forecast(lambda form, categories: float(categories))
    at = {
        (n, allocator): Cell(categories=n, allocator=allocator)
        for n in (19, 150)
        for allocator in ("default", "kept")
    }
    for variant in (COMPILED, DYNAMIC):
        forecast.learn_opening(variant, at[19, "default"], 100.0, None)
        forecast.learn_call(variant, at[19, "default"], 1.9)
    there, elsewhere = at[150, "default"], at[19, "kept"]  # an allocator is a process
    assert (forecast.opening(COMPILED, there) or 0.0) > 100
    assert forecast.opening(DYNAMIC, there) == forecast.call(DYNAMIC, there)
    assert (forecast.opening(DYNAMIC, elsewhere) or 0.0) > 100


def test_openvino_is_ours_where_nothing_else_of_ours_runs() -> None:
    assert OPENVINO.ours
    cell = Cell(categories=19, allocator="default")
    timed = {
        one: Timed(first_ms=1, chunk=None, agreement=1, milliseconds={0: 10 * n})
        for n, one in enumerate((OPENVINO, PLAIN), 1)
    }
    assert {one.ours: one.ratio for one in ratios_of("tiny", cell, timed)} == {"openvino": 2.0}
    timed[OURS] = timed[PLAIN]
    assert {one.ours for one in ratios_of("tiny", cell, timed)} == {"onnxruntime"}


def test_reasons_name_no_folders() -> None:
    found = Found()
    found.leave_out(OURS, None, "cannot read /srv/ann/models/graph.onnx: no such file")
    assert found.left_out[0].reason == "cannot read graph.onnx: no such file"


def test_what_needs_more_memory_than_there_is_is_left_out() -> None:
    machine = Machine()
    asked = settings(categories=(19, 847), variants=(OURS, PLAIN))
    found = machine.measure(asked, available=lambda: 1000 * 400).run()
    assert len(found.timed[Cell(categories=19, allocator="default")]) == 2
    [gone] = found.left_out
    assert (gone.implementation, gone.categories) == ("torch-plain", 847)
    assert gone.reason.startswith("memory: it needs about")


def test_one_that_fails_is_left_out_for_good_and_the_others_remain() -> None:
    machine = Machine(fails={("open", "torch-plain"): Refused("made up")})
    found = machine.measure(settings(categories=(19, 58))).run()
    reasons = {(one.categories, one.implementation): one.reason for one in found.left_out}
    assert reasons == {
        (19, "torch-plain"): "made up",
        (58, "torch-plain"): "it failed before",
    }
    assert all(set(timed) == {OURS, COMPILED} for timed in found.timed.values())
    assert machine.started == ["default"]


def test_a_process_that_ends_takes_one_implementation_with_it() -> None:
    machine = Machine(fails={("call", "torch-plain"): ProcessEnded("signal 9 (out of memory?)")})
    found = machine.measure(settings()).run()
    [timed] = found.timed.values()
    assert set(timed) == {OURS, COMPILED}
    assert len(timed[OURS].milliseconds) == 4
    assert [one.reason for one in found.left_out] == ["signal 9 (out of memory?)"]
    assert machine.started == ["default", "default"]
    assert machine.closed == 2


def test_no_library_has_fewer_threads_than_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS=1 binds PyTorch, and neither ONNX Runtime nor OpenVINO."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT"), "1")
    assert inherited({"PATH": "/bin", "MALLOC_ARENA_MAX": "1", **threads}) == {"PATH": "/bin"}
    monkeypatch.setattr(process, "thread_limit", lambda: 0)
    assert thread_variables() == {}
    monkeypatch.setattr(process, "thread_limit", lambda: 2)  # a container's: ours takes two, too
    assert thread_variables() == {"OMP_NUM_THREADS": "2"}


def test_processes_are_ended_whatever_happens() -> None:
    machine = Machine(fails={("call", "torch-plain"): KeyboardInterrupt()})  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        machine.measure(settings(allocators=("default", "kept"))).run()
    assert machine.closed == len(machine.started) == 1


def test_an_allocator_that_does_not_work_here_is_left_out() -> None:
    machine = Machine(keeps=False)
    found = machine.measure(settings(allocators=("default", "kept"))).run()
    assert {one.allocator for one in found.left_out} == {"kept"}
    assert "another C library?" in found.left_out[0].reason
    assert not found.timed[Cell(categories=19, allocator="kept")]
    assert len(found.timed[Cell(categories=19, allocator="default")]) == 3


def test_energy_is_a_counters_difference_over_a_loop_of_calls() -> None:
    machine = Machine()

    class Counter:
        source = "made up"

        def joules(self) -> float:
            return 5 * machine.now  # five watts

        def close(self) -> None:
            pass

    [timed] = machine.measure(settings(), counter=Counter()).run().timed.values()
    assert timed[OURS].energy_mj == pytest.approx(1e3 * 5 * 0.01 * 19)
    assert [name for do, name, _, _ in machine.asked if do == "loop"].count("onnxruntime") == 1


def test_a_counter_that_tells_nothing_is_no_energy() -> None:
    """Such as tegrastats on a board whose rails are not known."""

    class Counter:
        source = "made up"

        def joules(self) -> float:
            return 0.0

        def close(self) -> None:
            pass

    found = Machine().measure(settings(), counter=Counter()).run()
    [timed] = found.timed.values()
    assert timed[OURS].energy_mj is None
    assert "energy: the counter gave no value" in {one.reason for one in found.left_out}


class Watts:
    """A counter: five of them."""

    source = "made up"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def joules(self) -> float:
        """Since the beginning."""
        return 5 * self.machine.now

    def close(self) -> None:
        """Nothing is open."""


def test_a_process_that_ends_in_what_is_good_to_have_costs_nobody_the_next_cells() -> None:
    machine = Machine(fails={("loop", "onnxruntime"): ProcessEnded("signal 9")})
    asked = settings(categories=(19, 58), variants=(OURS, PLAIN))
    found = machine.measure(asked, counter=Watts(machine)).run()
    assert [set(timed) for timed in found.timed.values()] == 2 * [{OURS, PLAIN}]
    assert machine.started == ["default", "default"]
    assert {(one.implementation, one.categories): one.reason for one in found.left_out} == {
        ("onnxruntime", 19): "energy: signal 9",
        ("torch-plain", 19): "energy: the process ended before",
        ("onnxruntime", 58): "energy: signal 9",
        ("torch-plain", 58): "energy: the process ended before",
    }


def test_energy_that_fails_is_named() -> None:
    machine = Machine(fails={("loop", "torch-plain"): Refused("made up")})
    found = machine.measure(settings(variants=(OURS, PLAIN)), counter=Watts(machine)).run()
    [timed] = found.timed.values()
    assert (timed[OURS].energy_mj is None, timed[PLAIN].energy_mj) == (False, None)
    assert [one.reason for one in found.left_out] == ["energy: made up"]


def test_a_process_that_does_not_begin_is_told() -> None:
    machine = Machine()

    def start(allocator: Allocator) -> Process:
        raise ProcessEnded("its process ended with code 127: no Python")

    machine.start = start  # type: ignore[method-assign]
    found = machine.measure(settings(variants=(OURS,))).run()
    assert [one.reason for one in found.left_out] == ["its process ended with code 127: no Python"]


def test_ratios_are_formed_within_a_round() -> None:
    ours = Timed(first_ms=1, chunk=16, agreement=1, milliseconds={0: 10, 1: 100, 2: 20})
    other = Timed(first_ms=1, chunk=None, agreement=1, milliseconds={0: 20, 1: 200, 2: 60})
    cell = Cell(categories=19, allocator="kept")
    found = {one.implementation: one for one in ratios_of("tiny", cell, {OURS: ours, PLAIN: other})}
    assert found["torch-plain"].ratio == 2  # the machine was ten times slower in between
    assert found["onnxruntime"].ratio == 1
    assert found["torch-plain"].ours == "onnxruntime"
    assert ratios_of("tiny", cell, {PLAIN: other}) == []


def test_a_rows_figures_are_of_its_rounds() -> None:
    """A hundred and one calls of 1 to 101 ms, and stages of which one came late."""
    timed = Timed(
        first_ms=7000.0,
        chunk=16,
        agreement=0.5,
        milliseconds={number: float(101 - number) for number in range(101)},
        stages=[{"sam": 1.0, "fuse": 5.0}, {"sam": 2.0}, {"sam": 30.0, "fuse": 4.0}],
        energy_mj=3.0,
    )
    peer = Timed(first_ms=1.0, chunk=None, agreement=None, milliseconds={0: 1.0, 1: 2.0, 2: 9.0})
    cell = Cell(categories=19, allocator="default")
    found = Found(timed={cell: {OURS: timed, CAT_SEG: peer}})
    machine = Peak(device="a GPU", gflop_a_second={"fp32": 500.0}, gb_a_second=8.0, source="")
    rows = assemble_rows(
        "tiny",
        found,
        {(OURS, cell): PeakMemory(host=11, device=12)},
        gflop=lambda form, categories, chunk: 10.0 if (form, chunk) == ("shared", 16) else None,
        peak=machine,
        weight_bytes=10**8,
    )
    ours, other = rows
    assert (ours.p50_ms, ours.p95_ms, ours.p99_ms) == (51, 96, 100)
    assert (ours.repeats, ours.first_ms, ours.agreement, ours.energy_mj) == (101, 7000, 0.5, 3)
    assert ours.stages == {"sam": 2.0, "fuse": 4.0}
    assert (ours.peak_memory_bytes, ours.device_memory_bytes) == (11, 12)
    assert (ours.gflop, ours.floor_ms) == (10, 20)  # its weights would take 12.5 ms
    assert ours.floor_share == pytest.approx(20 / 51)
    assert (other.p50_ms, other.stages) == (2, None)
    assert (other.gflop, other.floor_ms, other.floor_share) == (None, None, None)


def test_memory_is_measured_upwards_in_processes_of_their_own() -> None:
    machine = Machine()
    measurement = machine.measure(settings(categories=(150, 19), variants=(OURS, PLAIN)))
    found = measurement.run()
    machine.asked.clear()
    forecast = measurement._forecast
    peaks = measure_peaks(
        found, forecast, machine.start, until=machine.now + 1000, clock=lambda: machine.now
    )
    assert {(v.implementation, at.categories): p.host for (v, at), p in peaks.items()} == {
        ("onnxruntime", 19): 19,
        ("onnxruntime", 150): 150,
        ("torch-plain", 19): 19,
        ("torch-plain", 150): 150,
    }
    assert [number for _, _, _, number in machine.asked] == [19, 150, 19, 150]
    assert len(machine.started) == machine.closed == 3


@pytest.mark.parametrize(
    ("asked", "looked_at"),
    [(("default", "kept"), "default"), (("default",), "default"), (("kept",), "kept")],
)
def test_memory_is_that_of_one_allocator_and_said_of_no_other(
    asked: tuple[Allocator, ...], looked_at: Allocator
) -> None:
    machine = Machine()
    measurement = machine.measure(settings(allocators=asked))
    found = measurement.run()
    machine.started.clear()
    peaks = measure_peaks(
        found,
        measurement._forecast,
        machine.start,
        until=machine.now + 1000,
        clock=lambda: machine.now,
    )
    assert set(machine.started) == {looked_at}
    rows = assemble_rows("tiny", found, peaks, gflop=lambda *_: None, peak=None, weight_bytes=0)
    assert {(row.allocator, row.peak_memory_bytes) for row in rows} == {
        (allocator, 19 if allocator == looked_at else None) for allocator in asked
    }


def test_a_first_call_that_loads_for_long_takes_no_time_from_the_others() -> None:
    """A first call of 5 s in a cell of 20: a plan made of it would have no room for PLAIN."""
    machine = Machine(load_seconds={"onnxruntime": 5.0})
    found = machine.measure(settings(seconds=20.0, variants=(OURS, PLAIN))).run()
    [timed] = found.timed.values()
    assert set(timed) == {OURS, PLAIN}
    assert not found.left_out


def test_what_an_image_takes_whatever_the_categories_does_not_grow() -> None:
    forecast = Forecast(lambda form, categories: float(categories))
    for categories, grown in ((19, 1190), (150, 2500)):
        cell = Cell(categories=categories, allocator="default")
        forecast.learn_opening(PLAIN, cell, 1.0, grown)
    assert forecast.memory(PLAIN, 850) == pytest.approx(2500 + 700 * 10)
    assert forecast.memory(PLAIN, 58) == pytest.approx(1190 * 58 / 19)  # between them: enough


def test_memory_that_no_time_is_left_for_is_named() -> None:
    machine = Machine()
    measurement = machine.measure(settings(variants=(OURS,)))
    found: Found = measurement.run()
    peaks = measure_peaks(
        found, measurement._forecast, machine.start, until=machine.now, clock=lambda: machine.now
    )
    assert not peaks
    [gone] = found.left_out
    assert gone.reason == "memory: no time was left; give more --minutes"


def test_memory_that_fails_is_named_at_every_number_of_categories() -> None:
    machine = Machine()
    measurement = machine.measure(settings(categories=(19, 58, 150), variants=(OURS, PLAIN)))
    found: Found = measurement.run()
    told = iter(range(10))

    def second_fails(name: str) -> None:
        if name == "torch-plain" and next(told) == 1:
            raise ProcessEnded("signal 9")

    machine.told = second_fails
    peaks = measure_peaks(
        found,
        measurement._forecast,
        machine.start,
        until=machine.now + 1000,
        clock=lambda: machine.now,
    )
    assert {at.categories for one, at in peaks if one == OURS} == {19, 58, 150}
    assert {at.categories for one, at in peaks if one == PLAIN} == {19}
    assert {(one.implementation, one.categories): one.reason for one in found.left_out} == {
        ("torch-plain", number): "memory: signal 9" for number in (58, 150)
    }


@pytest.mark.parametrize(
    ("variant", "known", "expected"),
    [
        (OURS, {}, None),
        (PLAIN, {}, 3.0),  # told from ours
        (PLAIN, {Cell(categories=19, allocator="kept"): 2.0}, 2.0),
        (PLAIN, {Cell(categories=38, allocator="default"): 8.0}, 4.0),
    ],
)
def test_a_call_is_told_from_what_was_seen(
    variant: Variant, known: dict[Cell, float], expected: float | None
) -> None:
    work: Callable[[Any, int], float] = lambda form, categories: float(categories)  # noqa: E731
    forecast, cell = Forecast(work), Cell(categories=19, allocator="default")
    if variant != OURS:
        forecast.learn_call(OURS, cell, 1.0)
    for at, took in known.items():
        forecast.learn_call(variant, at, took)
    assert forecast.call(variant, cell) == expected


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_implementation_has_a_first_guess(name: str) -> None:
    forecast = Forecast(lambda form, categories: float(categories))
    cell = Cell(categories=19, allocator="default")
    forecast.learn_call(OURS, cell, 1.0)
    variant = Variant(implementation=name, precision="fp32")
    guess = forecast.call(variant, cell)
    if variant == OURS:
        assert guess == 1.0
    elif variant.ours:
        assert guess is None  # of a backend of ours, another tells nothing
    else:
        assert guess is not None
        assert guess > 1


def test_memory_grows_with_the_categories_of_what_takes_them_whole() -> None:
    forecast = Forecast(lambda form, categories: float(categories))
    cell = Cell(categories=19, allocator="default")
    for variant in (OURS, PLAIN, CAT_SEG):
        forecast.learn_opening(variant, cell, 1.0, 1900)
    expected = pytest.approx(1900 * (128 + 190) / (128 + 19))  # it pads
    assert forecast.memory(CAT_SEG, 190) == expected
    assert forecast.memory(PLAIN, 190) == 19_000
    assert forecast.memory(OURS, 190) == 1900
    assert forecast.memory(COMPILED, 190) is None
