"""What the machine's memory has left, and what its processor is called, of made-up machines."""

import platform
from pathlib import Path

import pytest

from escnet_runtime.memory import available_memory
from escnet_runtime.processor import core_quota, processor_features, processor_model


def put(path: Path, text: str) -> None:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_memory_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def test_a_containers_limit_bounds_the_memory(tmp_path: Path) -> None:
    put(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert available_memory(tmp_path) == 4000 * 1024
    put(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    put(tmp_path / "sys/fs/cgroup/memory.current", "100000\n")
    assert available_memory(tmp_path) == 4000 * 1024
    put(tmp_path / "sys/fs/cgroup/memory.max", "300000\n")
    assert available_memory(tmp_path) == 200_000


def test_files_that_a_container_has_read_take_no_memory(tmp_path: Path) -> None:
    """Else a bundle that was just written leaves no room to run it in."""
    put(tmp_path / "sys/fs/cgroup/memory.max", "300000\n")
    put(tmp_path / "sys/fs/cgroup/memory.current", "299000\n")
    put(
        tmp_path / "sys/fs/cgroup/memory.stat",
        "anon 40000\nfile 259000\nshmem 9000\ninactive_file 200000\nactive_file 50000\n",
    )
    assert available_memory(tmp_path) == 300_000 - 49_000


def test_a_processor_has_a_name(tmp_path: Path) -> None:
    cores = "processor\t: 0\nvendor_id\t: Maker\nmodel name\t: A Processor 9\n\n"
    put(tmp_path / "cpuinfo", cores + cores.replace("9", "10"))
    assert processor_model(tmp_path / "cpuinfo") == "A Processor 9"


def test_an_arm_core_has_numbers(tmp_path: Path) -> None:
    core = "processor : 0\nBogoMIPS : 50.0\nCPU implementer : 0x41\nCPU architecture: 8\n"
    other = "\nprocessor : 1\nCPU implementer : 0x41\nCPU part : 0xd0b\n"
    put(tmp_path / "cpuinfo", f"{core}CPU variant : 0x3\nCPU part : 0xd42\n{other}")
    assert processor_model(tmp_path / "cpuinfo") == f"{platform.machine()} 0x41 8 0x3 0xd42"


def test_an_arm_cores_name_that_all_have_is_none(tmp_path: Path) -> None:
    core = "processor : 0\nmodel name : ARMv8 Processor rev 1 (v8l)\nCPU implementer : 0x41\n"
    put(tmp_path / "cpuinfo", f"{core}CPU part : 0xd42\n")
    assert processor_model(tmp_path / "cpuinfo") == f"{platform.machine()} 0x41 0xd42"


def test_a_processor_without_a_list_is_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROCESSOR_IDENTIFIER", raising=False)
    assert processor_model(tmp_path / "cpuinfo") == platform.machine()
    put(tmp_path / "cpuinfo", "")
    assert processor_model(tmp_path / "cpuinfo") == platform.machine()


@pytest.mark.parametrize("key", ["flags", "Features"])
def test_what_a_processor_can(tmp_path: Path, key: str) -> None:
    put(tmp_path / "cpuinfo", f"processor : 0\n{key}\t: one two\n\n{key} : three\n")
    assert processor_features(tmp_path / "cpuinfo") == {"one", "two"}
    assert processor_features(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, None),
        ({"cpu.max": "all of it\n"}, None),
    ],
)
def test_a_containers_time_is_that_of_some_cores(
    files: dict[str, str], cores: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        put(tmp_path / "sys/fs/cgroup" / name, text)
    assert core_quota(tmp_path) == cores
