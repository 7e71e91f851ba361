// The machine behind cuda_host.h: fibers, barriers, warp collectives, and a detector of races.
// Compiled without -fsanitize=thread, so that its own accesses are not watched.

#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "cuda_host.h"

// The linker names the edges of a section that has a C name.
extern "C" char __start_cuda_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shared[] __attribute__((weak));

namespace cuda_host {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 << 10;
constexpr int kNobody = -1;

enum class State { kReady, kWaitsForWarp, kWaitsForBlock, kDone };

struct Fiber {
  jmp_buf where;
  bool started = false;
  State state = State::kReady;
  int line = 0;                  // of the barrier or collective it waits at
  unsigned long long given = 0;  // to a collective
  std::vector<char> stack;
};

// Two different threads at most: enough to find one that is not the present thread.
struct Threads {
  int first = kNobody, second = kNobody;

  void add(int thread) {
    if (first == kNobody || first == thread) {
      first = thread;
    } else {
      second = thread;
    }
  }
  int other_than(int thread) const { return first != thread ? first : second; }
};

// Who touched a byte of shared memory since the last barrier.
struct Touched {
  unsigned epoch = 0;
  Threads readers, writers, changers;  // plain reads, plain writes, atomic accesses
};

// What the lanes of a warp gave to its last collective. Each reads it before the next one.
struct Given {
  unsigned long long lanes[kWarp] = {};
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Given> warps;
  jmp_buf scheduler;
  unsigned current = 0;
  dim3 grid{1, 1, 1}, block{1, 1, 1}, block_index{0, 0, 0};
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  bool any = false;         // what wait_or collects
  bool any_before = false;  // and hands out
  unsigned epoch = 1;
  std::vector<Touched> touched;
  std::string report;
};

Machine machine;

void say(const std::string& text) {
  if (machine.report.empty()) {  // the first one tells most
    machine.report = text;
  }
}

void to_scheduler() {
  // ucontext only makes the stacks: swapcontext would cost a system call each time.
  if (_setjmp(machine.fibers[machine.current].where) == 0) {
    _longjmp(machine.scheduler, 1);
  }
}

void start() {
  machine.body(machine.argument);
  machine.fibers[machine.current].state = State::kDone;
  _longjmp(machine.scheduler, 1);
}

void resume(unsigned thread) {
  Fiber& fiber = machine.fibers[thread];
  machine.current = thread;
  if (_setjmp(machine.scheduler) != 0) {
    return;
  }
  if (machine.fibers[machine.current].started) {
    _longjmp(machine.fibers[machine.current].where, 1);
  }
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.data();
  context.uc_stack.ss_size = fiber.stack.size();
  context.uc_link = nullptr;
  makecontext(&context, start, 0);
  setcontext(&context);
}

// Let the threads [begin, end) go on if all of them wait for one another at the same line.
bool release(State state, unsigned begin, unsigned end) {
  const int line = machine.fibers[begin].line;
  for (unsigned i = begin; i < end; ++i) {
    if (machine.fibers[i].state != state || machine.fibers[i].line != line) {
      return false;
    }
  }
  if (state == State::kWaitsForWarp) {
    for (unsigned i = begin; i < end; ++i) {
      machine.warps[begin / kWarp].lanes[i - begin] = machine.fibers[i].given;
    }
  } else {
    ++machine.epoch;
    machine.any_before = machine.any;
    machine.any = false;
  }
  for (unsigned i = begin; i < end; ++i) {
    machine.fibers[i].state = State::kReady;
  }
  return true;
}

std::string name_of(int thread) { return "thread " + std::to_string(thread); }

void check_all_done() {
  std::string waiting;
  int line = 0;
  for (unsigned i = 0; i < machine.fibers.size(); ++i) {
    const Fiber& fiber = machine.fibers[i];
    if (fiber.state != State::kDone) {
      waiting = name_of(static_cast<int>(i));
      line = fiber.line;
    }
  }
  if (!waiting.empty()) {
    say("divergent barrier: " + waiting + " waits at line " + std::to_string(line) +
        " for threads that are elsewhere");
  }
}

void prepare_block() {
  for (Fiber& fiber : machine.fibers) {
    fiber.started = false;
    fiber.state = State::kReady;
    fiber.stack.resize(kStack);
  }
  const size_t bytes = static_cast<size_t>(__stop_cuda_shared - __start_cuda_shared);
  // Shared memory starts with anything, never with zeros that a kernel could come to need.
  memset(__start_cuda_shared, 0xa5, bytes);
  machine.touched.assign(bytes, Touched{});
  machine.any = false;
}

// A warp runs alone until all of it waits for the block, then the next one: the widest spread that
// barriers allow. The order of warps and of lanes is drawn anew between any two barriers.
void run_block(std::mt19937& random, bool shuffled) {
  const unsigned threads = static_cast<unsigned>(machine.fibers.size());
  std::vector<unsigned> warps((threads + kWarp - 1) / kWarp), lanes(kWarp);
  for (unsigned i = 0; i < warps.size(); ++i) warps[i] = i;
  for (unsigned i = 0; i < kWarp; ++i) lanes[i] = i;
  do {
    if (shuffled) {
      std::shuffle(warps.begin(), warps.end(), random);
      std::shuffle(lanes.begin(), lanes.end(), random);
    }
    for (unsigned warp : warps) {
      const unsigned begin = warp * kWarp, end = std::min(begin + kWarp, threads);
      do {
        for (unsigned lane : lanes) {
          if (begin + lane < end && machine.fibers[begin + lane].state == State::kReady) {
            resume(begin + lane);
          }
        }
      } while (release(State::kWaitsForWarp, begin, end));
    }
  } while (release(State::kWaitsForBlock, 0, threads));
  check_all_done();
}

enum class Access { kRead, kWrite, kAtomic };

const char* verb(Access access) {
  return access == Access::kRead ? "reads" : access == Access::kWrite ? "writes" : "changes";
}

void forbid(const Threads& earlier, Access before, Access now) {
  const int me = static_cast<int>(machine.current), other = earlier.other_than(me);
  if (other != kNobody) {
    say("race on shared memory: " + name_of(other) + " " + verb(before) + " and " + name_of(me) +
        " " + verb(now) + " without a barrier between");
  }
}

void touch_byte(Touched& byte, Access access) {
  if (byte.epoch != machine.epoch) {
    byte = Touched{};
    byte.epoch = machine.epoch;
  }
  forbid(byte.writers, Access::kWrite, access);
  if (access != Access::kRead) {
    forbid(byte.readers, Access::kRead, access);
  }
  if (access != Access::kAtomic) {
    forbid(byte.changers, Access::kAtomic, access);
  }
  Threads& mine = access == Access::kRead    ? byte.readers
                  : access == Access::kWrite ? byte.writers
                                             : byte.changers;
  mine.add(static_cast<int>(machine.current));
}

void touch(const void* address, size_t bytes, Access access) {
  const char* at = static_cast<const char*>(address);
  if (at < __start_cuda_shared || at >= __stop_cuda_shared) {
    return;  // a thread's own variables, and the arrays in global memory
  }
  for (size_t i = 0; i < bytes; ++i) {
    touch_byte(machine.touched[static_cast<size_t>(at - __start_cuda_shared) + i], access);
  }
}

}  // namespace

dim3 thread_index() {
  const unsigned i = machine.current;
  const dim3 size = machine.block;
  return {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
}
dim3 block_index() { return machine.block_index; }
dim3 block_dimensions() { return machine.block; }
dim3 grid_dimensions() { return machine.grid; }

void wait(Wait what, int line) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = what == Wait::kBlock ? State::kWaitsForBlock : State::kWaitsForWarp;
  fiber.line = line;
  to_scheduler();
}

bool wait_or(bool value, int line) {
  machine.any |= value;
  wait(Wait::kBlock, line);
  return machine.any_before;
}

unsigned long long shuffle(unsigned mask, unsigned long long value, unsigned lane_mask, int line) {
  if (mask != 0xffffffffu) {
    say("a collective of a part of a warp, which this machine does not know");
  }
  machine.fibers[machine.current].given = value;
  wait(Wait::kWarp, line);
  return machine.warps[machine.current / kWarp].lanes[machine.current % kWarp ^ lane_mask];
}

unsigned ballot(unsigned mask, bool value, int line) {
  shuffle(mask, value, 0, line);
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    lanes |= static_cast<unsigned>(machine.warps[machine.current / kWarp].lanes[lane]) << lane;
  }
  return lanes;
}

void atomic(const void* address, int bytes) {
  touch(address, static_cast<size_t>(bytes), Access::kAtomic);
}

void run(dim3 grid, dim3 block, unsigned seed, void (*body)(void*), void* argument) {
  machine.report.clear();
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || threads % kWarp != 0) {
    say("a block of " + std::to_string(threads) + " threads; expected whole warps, at most 1024");
    return;
  }
  machine.grid = grid;
  machine.block = block;
  machine.body = body;
  machine.argument = argument;
  machine.fibers.resize(threads);
  machine.warps.resize(threads / kWarp);
  std::mt19937 random(seed);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x && machine.report.empty(); ++x) {
        machine.block_index = {x, y, z};
        prepare_block();
        run_block(random, seed != 0);
      }
    }
  }
}

const char* report() { return machine.report.c_str(); }

}  // namespace cuda_host

// What -fsanitize=thread makes the kernel call. Only the accesses matter.
using cuda_host::Access;
using cuda_host::touch;
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define CUDA_HOST_WATCH(BYTES)                                                                    \
  void __tsan_read##BYTES(void* at) { touch(at, BYTES, Access::kRead); }                          \
  void __tsan_write##BYTES(void* at) { touch(at, BYTES, Access::kWrite); }                        \
  void __tsan_unaligned_read##BYTES(void* at) { touch(at, BYTES, Access::kRead); }                \
  void __tsan_unaligned_write##BYTES(void* at) { touch(at, BYTES, Access::kWrite); }
CUDA_HOST_WATCH(1)
CUDA_HOST_WATCH(2)
CUDA_HOST_WATCH(4)
CUDA_HOST_WATCH(8)
CUDA_HOST_WATCH(16)
void __tsan_read_range(void* at, unsigned long bytes) { touch(at, bytes, Access::kRead); }
void __tsan_write_range(void* at, unsigned long bytes) { touch(at, bytes, Access::kWrite); }
// Sanitized atomics of atomicAdd and atomicMax; cuda_host::atomic has told of them already.
unsigned __tsan_atomic32_load(const volatile unsigned* at, int) { return *at; }
uint64_t __tsan_atomic64_load(const volatile uint64_t* at, int) { return *at; }
void __tsan_atomic32_store(volatile unsigned* at, unsigned value, int) { *at = value; }
void __tsan_atomic64_store(volatile uint64_t* at, uint64_t value, int) { *at = value; }
unsigned __tsan_atomic32_fetch_add(volatile unsigned* at, unsigned value, int) {
  const unsigned before = *at;
  *at = before + value;
  return before;
}
}
