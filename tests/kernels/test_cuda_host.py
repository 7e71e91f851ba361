"""The machine that runs kernels on the CPU: barriers hold, and what is wrong is found."""

import ctypes

import numpy as np
import pytest

from escnet_runtime.kernels import Launch
from tests.kernels.host import HostCompiler, KernelFaultError
from tests.kernels.machines import Guarded, HostMachine

# Each thread writes its number and reads that of the thread behind it.
EXCHANGE = """
extern "C" __global__ void kernel(int* out) {
  __shared__ int numbers[64];
  numbers[threadIdx.x] = threadIdx.x;
  BARRIER;
  out[blockIdx.x * 64 + threadIdx.x] = numbers[(threadIdx.x + 1) % 64];
}
"""
COUNT = """
extern "C" __global__ void kernel(int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) {
    count = 0;
  }
  __syncthreads();
  ADD;
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = count;
}
"""
COLLECTIVES = """
extern "C" __global__ void kernel(int* out) {
  const int lane = threadIdx.x % 32;
  const unsigned odd = __ballot_sync(0xffffffffu, lane & 1);
  const int neighbour = __shfl_xor_sync(0xffffffffu, lane, 1);
  const int any = __syncthreads_or(threadIdx.x == 63), none = __syncthreads_or(false);
  out[blockIdx.x * 64 + threadIdx.x] =
      odd == 0xaaaaaaaau && any && !none ? neighbour : -1;
}
"""
BESIDE = """
extern "C" __global__ void kernel(int* out) { out[blockIdx.x * 64 + threadIdx.x + 64] = 1; }
"""


def run(compiler: HostCompiler, source: str, seed: int = 1, blocks: int = 2) -> list[int]:
    """What 64 threads a block leave in an array, a number each."""
    machine = HostMachine(compiler, source)
    out = Guarded(machine, np.zeros(64 * blocks, np.int32))
    arguments = (ctypes.c_void_p(out.address),)
    launch = Launch(kernel="kernel", grid=(blocks, 1, 1), block=(64, 1, 1), arguments=arguments)
    machine.launch(launch, seed=seed)
    numbers: list[int] = out.read().tolist()
    return numbers


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_barriers_hold_in_any_order(host_compiler: HostCompiler, seed: int) -> None:
    source = EXCHANGE.replace("BARRIER", "__syncthreads()")
    assert run(host_compiler, source, seed) == [*range(1, 64), 0] * 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_missing_barrier_is_a_race_in_any_order(host_compiler: HostCompiler, seed: int) -> None:
    with pytest.raises(KernelFaultError, match="race on shared memory: thread"):
        run(host_compiler, EXCHANGE.replace("BARRIER", ""), seed)


def test_a_barrier_that_not_all_threads_reach_is_found(host_compiler: HostCompiler) -> None:
    source = EXCHANGE.replace("BARRIER", "if (threadIdx.x != 5) { __syncthreads(); }")
    with pytest.raises(KernelFaultError, match=r"divergent barrier|race"):
        run(host_compiler, source)


def test_atomics_do_not_race_with_one_another(host_compiler: HostCompiler) -> None:
    assert run(host_compiler, COUNT.replace("ADD", "atomicAdd(&count, 2)")) == [128] * 128


def test_plain_additions_race(host_compiler: HostCompiler) -> None:
    with pytest.raises(KernelFaultError, match="race"):
        run(host_compiler, COUNT.replace("ADD", "count += 2"))


def test_an_atomic_races_with_a_plain_access(host_compiler: HostCompiler) -> None:
    source = COUNT.replace("ADD", "if (threadIdx.x) { atomicAdd(&count, 2); } else { count = 7; }")
    with pytest.raises(KernelFaultError, match=r"changes and .* writes|writes and .* changes"):
        run(host_compiler, source)


def test_collectives(host_compiler: HostCompiler) -> None:
    assert run(host_compiler, COLLECTIVES) == [lane ^ 1 for lane in range(32)] * 4


def test_a_write_beside_an_array_is_found(host_compiler: HostCompiler) -> None:
    with pytest.raises(AssertionError, match="outside its array"):
        run(host_compiler, BESIDE, blocks=1)
