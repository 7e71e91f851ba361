// Lets g++ compile a CUDA kernel for the CPU, so that tests run the shipped source without a GPU.
//
// Every CUDA thread is a fiber of its own. Barriers and warp collectives are real: a fiber that
// reaches one waits until the others are there. The order in which fibers run between two barriers
// comes from a seed. The kernel's file is compiled with -fsanitize=thread and cuda_host.cpp takes
// the place of that sanitizer's library: it sees every access to shared memory and reports two
// threads that touch the same byte between two barriers, one of them writing.
//
// Only what the kernels of this project use is here. Put before the kernel with -include.
#pragma once

#include <math.h>
#include <string.h>

#include <utility>

#define __device__
#define __global__
#define __launch_bounds__(...)
// Blocks run one after the other; the section is how the machine knows shared memory.
#define __shared__ static __attribute__((section("cuda_shared")))

struct dim3 {
  unsigned x, y, z;
};

namespace cuda_host {

enum class Wait { kBlock, kWarp };

// The thread that runs now. Read through functions: fibers change under the compiler's feet.
dim3 thread_index();
dim3 block_index();
dim3 block_dimensions();
dim3 grid_dimensions();

// Wait for the other threads of the block or warp, which have to come to the same line.
void wait(Wait what, int line);
// Wait for the block; true if any thread said true.
bool wait_or(bool value, int line);
// Exchange 8 bytes between the lanes of a warp.
unsigned long long shuffle(unsigned mask, unsigned long long value, unsigned lane_mask, int line);
unsigned ballot(unsigned mask, bool value, int line);
// Tell of an atomic access, which may meet other atomic ones.
void atomic(const void* address, int bytes);

void run(dim3 grid, dim3 block, unsigned seed, void (*body)(void*), void* argument);
// What went wrong in the last run, or an empty text.
const char* report();

template <class T>
T shuffle_of(unsigned mask, T value, unsigned lane_mask, int line) {
  static_assert(sizeof(T) <= 8);
  unsigned long long bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, lane_mask, line);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class... Arguments>
struct Call {
  void (*kernel)(Arguments...);
  void** arguments;

  template <std::size_t... I>
  void apply(std::index_sequence<I...>) {
    kernel(*static_cast<Arguments*>(arguments[I])...);
  }
  static void body(void* self) {
    static_cast<Call*>(self)->apply(std::index_sequence_for<Arguments...>{});
  }
};

// As cuLaunchKernel: `arguments` points to the addresses of the kernel's arguments.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), dim3 grid, dim3 block, unsigned seed, void** arguments) {
  Call<Arguments...> call{kernel, arguments};
  run(grid, block, seed, Call<Arguments...>::body, &call);
}

}  // namespace cuda_host

#define threadIdx (cuda_host::thread_index())
#define blockIdx (cuda_host::block_index())
#define blockDim (cuda_host::block_dimensions())
#define gridDim (cuda_host::grid_dimensions())
#define __syncthreads() cuda_host::wait(cuda_host::Wait::kBlock, __LINE__)
#define __syncthreads_or(value) cuda_host::wait_or((value) != 0, __LINE__)
#define __shfl_xor_sync(mask, value, lane_mask) \
  cuda_host::shuffle_of(mask, value, lane_mask, __LINE__)
#define __ballot_sync(mask, value) cuda_host::ballot(mask, (value) != 0, __LINE__)

template <class T>
inline T atomicAdd(T* address, T value) {
  cuda_host::atomic(address, sizeof(T));
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

template <class T>
inline T atomicMax(T* address, T value) {
  cuda_host::atomic(address, sizeof(T));
  T before = __atomic_load_n(address, __ATOMIC_RELAXED);
  if (value > before) {
    __atomic_store_n(address, value, __ATOMIC_RELAXED);  // no fiber runs in between
  }
  return before;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
// g++ computes in float32 and, with -ffp-contract=off, rounds every operation.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline int __float2int_rn(float value) { return static_cast<int>(nearbyintf(value)); }
