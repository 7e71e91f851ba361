"""Fixtures of the GPU's tests for a run on ``fake_driver.cpp``; a plugin of that run alone."""

from collections.abc import Iterator

import pytest

from escnet_runtime.device import Device, open_device


@pytest.fixture(scope="session")
def cuda_device() -> Iterator[Device]:
    """The driver's only GPU."""
    with open_device() as device:
        yield device


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    """This driver does everything at once: nothing is gained by waiting long."""
    monkeypatch.setattr("tests.device.test_cuda.MUCH", 4096)
