// A CUDA driver on the CPU, so that the real cuda-bindings run CudaDevice without a GPU: what they
// hand over is what a driver gets. It does every piece of work at once. It is strict where a mistake
// would show late on a GPU: no call without a current context, no module loaded while captures are
// guarded, nothing freed that is not there, and in a forked child nothing at all. Kernels do not run: a launch writes its grid and block
// to the address that is its first argument. FAKE_DRIVER_FULL names what finds no memory.
#include <dlfcn.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

using Address = unsigned long long;
using Work = std::function<void()>;

// cuda.h: CUresult.
constexpr int kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3;
constexpr int kInvalidDevice = 101;
constexpr int kNoImage = 200, kNoContext = 201, kInvalidHandle = 400;
constexpr int kCaptureForbidden = 900, kCaptureInvalid = 901;
constexpr int kGlobal = 0, kThreadLocal = 1, kRelaxed = 2;  // CUstreamCaptureMode

constexpr size_t kTotal = 1ull << 30;

struct Graph {
  std::vector<Work> work;
};
struct Stream {
  Graph* captured = nullptr;
  bool invalid = false;
};
struct Event {
  bool timing;
  double time;
};

int primary;  // its address is the primary context
std::map<Address, size_t> memory;
size_t used = 0;
thread_local std::vector<void*> contexts;
thread_local int capture_mode = kGlobal;
thread_local Stream* capturing = nullptr;
Stream default_stream;
pid_t process = 0;  // that cuInit was called in

Stream* stream_of(void* handle) {
  return reinterpret_cast<Address>(handle) <= 2 ? &default_stream : static_cast<Stream*>(handle);
}

int give(void* handle, const Work& work) {
  if (contexts.empty()) return kNoContext;
  Stream* stream = stream_of(handle);
  if (stream->captured != nullptr) {
    stream->captured->work.push_back(work);
  } else {
    work();
  }
  return kSuccess;
}

bool full(const std::string& what) {
  const char* wanted = getenv("FAKE_DRIVER_FULL");
  return wanted != nullptr && what == wanted;
}

double milliseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

template <class T>
int destroy(void* thing) {
  if (contexts.empty()) return kNoContext;
  delete static_cast<T*>(thing);
  return kSuccess;
}

}  // namespace

#define NEED_CONTEXT \
  if (contexts.empty()) return kNoContext

extern "C" {

int cuInit(unsigned) {
  if (process == 0) process = getpid();
  return process == getpid() ? kSuccess : kNotInitialized;
}
int cuDriverGetVersion(int* version) {
  const char* wanted = getenv("FAKE_DRIVER_VERSION");
  *version = wanted != nullptr ? atoi(wanted) : 13000;
  return kSuccess;
}
int cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? kSuccess : kInvalidDevice;
}
int cuDeviceGetName(char* name, int size, int) {
  memset(name, 'x', static_cast<size_t>(size));
  strcpy(name, "NVIDIA of our own");
  return kSuccess;
}
int cuDeviceGetUuid(char* octets, int) { return memset(octets, 7, 16), kSuccess; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 9 : 0;  // compute capability 9.0
  return kSuccess;
}
int cuGetErrorString(int, const char** text) { return *text = "a failure", kSuccess; }

int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &primary, kSuccess; }
int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
int cuCtxPushCurrent_v2(void* context) {
  if (process != getpid()) return kNotInitialized;
  return contexts.push_back(context), kSuccess;
}
int cuCtxPopCurrent_v2(void** context) {
  NEED_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}
int cuCtxGetCurrent(void** context) {
  *context = contexts.empty() ? nullptr : contexts.back();
  return kSuccess;
}
int cuCtxSetCurrent(void* context) {
  if (!contexts.empty()) contexts.pop_back();
  if (context != nullptr) contexts.push_back(context);
  return kSuccess;
}
int cuCtxSynchronize() {
  NEED_CONTEXT;
  return kSuccess;
}

int cuMemGetInfo_v2(size_t* free, size_t* total) {
  NEED_CONTEXT;
  *free = kTotal - used;
  *total = kTotal;
  return kSuccess;
}
int cuMemAlloc_v2(Address* address, size_t size) {
  NEED_CONTEXT;
  if (size == 0) return kInvalidValue;
  if (used + size > kTotal) return kOutOfMemory;
  // Aligned as CUDA promises and no more, as long as nobody asks for room to do better.
  const size_t room = (size + 1024) / 512 * 512;
  *address = reinterpret_cast<Address>(aligned_alloc(512, room)) + 256;
  memory[*address] = size;
  used += size;
  return kSuccess;
}
int cuMemFree_v2(Address address) {
  NEED_CONTEXT;
  if (capturing != nullptr && capture_mode != kRelaxed) {
    capturing->invalid = true;
    return kCaptureForbidden;
  }
  const auto found = memory.find(address);
  if (found == memory.end()) return kInvalidValue;
  used -= found->second;
  memory.erase(found);
  free(reinterpret_cast<void*>(address - 256));
  return kSuccess;
}
int cuMemAllocHost_v2(void** address, size_t size) {
  NEED_CONTEXT;
  if (full("host")) return kOutOfMemory;
  return *address = malloc(size), size == 0 ? kInvalidValue : kSuccess;
}
int cuMemFreeHost(void* address) {
  NEED_CONTEXT;
  return free(address), kSuccess;
}
int cuPointerGetAttribute(void* value, int attribute, Address address) {
  NEED_CONTEXT;
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) return kInvalidValue;
  --after;
  if (address >= after->first + after->second) return kInvalidValue;
  if (attribute == 1) {  // CU_POINTER_ATTRIBUTE_CONTEXT
    *static_cast<void**>(value) = &primary;
  } else if (attribute == 9) {  // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    *static_cast<int*>(value) = 0;
  } else {
    return kInvalidValue;
  }
  return kSuccess;
}

int cuStreamCreate(void** stream, unsigned flags) {
  NEED_CONTEXT;
  *stream = new Stream;
  return flags == 1 ? kSuccess : kInvalidValue;  // CU_STREAM_NON_BLOCKING
}
int cuStreamDestroy_v2(void* stream) { return destroy<Stream>(stream); }
int cuStreamSynchronize(void* handle) {
  NEED_CONTEXT;
  Stream* stream = stream_of(handle);
  stream->invalid = stream->captured != nullptr;
  return stream->invalid ? kCaptureForbidden : kSuccess;
}
int cuEventCreate(void** event, unsigned flags) {
  NEED_CONTEXT;
  *event = new Event{flags == 0, 0};  // else CU_EVENT_DISABLE_TIMING
  return kSuccess;
}
int cuEventDestroy_v2(void* event) { return destroy<Event>(event); }
int cuEventRecord(void* event, void* stream) {
  NEED_CONTEXT;
  // In a capture it only orders the work, which here is in order.
  if (stream_of(stream)->captured == nullptr) static_cast<Event*>(event)->time = milliseconds();
  return kSuccess;
}
int cuEventSynchronize(void*) {
  NEED_CONTEXT;
  return kSuccess;
}
int cuEventElapsedTime(float* time, void* first, void* last) {
  NEED_CONTEXT;
  const Event *a = static_cast<Event*>(first), *b = static_cast<Event*>(last);
  *time = static_cast<float>(b->time - a->time);
  return a->timing && b->timing ? kSuccess : kInvalidHandle;
}
int cuStreamWaitEvent(void*, void*, unsigned flags) {
  NEED_CONTEXT;
  return flags == 0 ? kSuccess : kInvalidValue;
}

int cuMemcpyHtoDAsync_v2(Address target, const void* source, size_t size, void* stream) {
  return give(stream, [=] { memcpy(reinterpret_cast<void*>(target), source, size); });
}
int cuMemcpyDtoHAsync_v2(void* target, Address source, size_t size, void* stream) {
  return give(stream, [=] { memcpy(target, reinterpret_cast<void*>(source), size); });
}
int cuMemcpyDtoDAsync_v2(Address target, Address source, size_t size, void* stream) {
  void *to = reinterpret_cast<void*>(target), *from = reinterpret_cast<void*>(source);
  return give(stream, [=] { memmove(to, from, size); });
}
int cuMemsetD8Async(Address target, unsigned char byte, size_t size, void* stream) {
  return give(stream, [=] { memset(reinterpret_cast<void*>(target), byte, size); });
}

int cuThreadExchangeStreamCaptureMode(int* mode) { return std::swap(*mode, capture_mode), 0; }
int cuStreamBeginCapture_v2(void* handle, int mode) {
  NEED_CONTEXT;
  capturing = stream_of(handle);
  *capturing = Stream{new Graph, false};
  return mode == kThreadLocal ? kSuccess : kInvalidValue;
}
int cuStreamEndCapture(void* handle, void** graph) {
  NEED_CONTEXT;
  Stream* stream = stream_of(handle);
  capturing = nullptr;
  *graph = stream->invalid ? nullptr : stream->captured;
  stream->captured = nullptr;
  return *graph != nullptr ? kSuccess : kCaptureInvalid;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, Address flags) {
  NEED_CONTEXT;
  if (full("graph")) return kOutOfMemory;
  *executable = new Graph(*static_cast<Graph*>(graph));
  return flags == 0 ? kSuccess : kInvalidValue;
}
int cuGraphDestroy(void* graph) { return destroy<Graph>(graph); }
int cuGraphExecDestroy(void* graph) { return destroy<Graph>(graph); }
int cuGraphLaunch(void* graph, void*) {
  NEED_CONTEXT;
  if (full("launch")) return kOutOfMemory;
  for (const Work& work : static_cast<Graph*>(graph)->work) work();
  return kSuccess;
}

int cuModuleLoadData(void** module, const void* image) {
  NEED_CONTEXT;
  if (full("module")) return kOutOfMemory;
  if (capture_mode != kRelaxed) return kCaptureForbidden;
  *module = new Graph;
  return memcmp(image, "\x7f" "ELF", 4) == 0 ? kSuccess : kNoImage;
}
int cuModuleUnload(void* module) { return destroy<Graph>(module); }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  NEED_CONTEXT;
  *function = module;
  return strncmp(name, "escnet_", 7) == 0 ? kSuccess : kInvalidValue;
}
int cuFuncLoad(void*) { return kSuccess; }
int cuLaunchKernel(void*, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** arguments, void** extra) {
  if (shared != 0 || extra != nullptr) return kInvalidValue;
  unsigned* first = *static_cast<unsigned**>(arguments[0]);
  const std::vector<unsigned> shape{gx, gy, gz, bx, by, bz};
  return give(stream, [=] { memcpy(first, shape.data(), shape.size() * sizeof(unsigned)); });
}

// How cuda-bindings find the rest; a newer form of a function goes by its old name.
int cuGetProcAddress_v2(const char* name, void** function, int, Address, int* status) {
  static void* self = [] {
    Dl_info here;
    dladdr(reinterpret_cast<void*>(&cuGetProcAddress_v2), &here);
    return dlopen(here.dli_fname, RTLD_NOW);
  }();
  *function = nullptr;
  for (const char* suffix : {"", "_v2", "WithFlags"}) {
    if (*function == nullptr) *function = dlsym(self, (std::string(name) + suffix).c_str());
  }
  if (status != nullptr) *status = *function != nullptr ? 0 : 1;
  return kSuccess;
}

}  // extern "C"
