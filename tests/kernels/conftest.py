"""Machines that kernels run on."""

import pytest

from tests.kernels.machines import GpuMachine, HostMachine, Machine


@pytest.fixture(scope="session", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    """The CPU, and a GPU where there is one."""
    if request.param == "gpu":
        return GpuMachine(request.getfixturevalue("cuda_device"))
    found: HostMachine = request.getfixturevalue("host")
    return found
