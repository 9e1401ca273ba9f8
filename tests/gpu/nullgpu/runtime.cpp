// A CUDA runtime without a GPU: memory is address space, kernels do nothing, misuse is an error.
//
// Preloaded into a process, it stands before libcudart and libcublas. What torch asks of a device is
// answered as an H200 would; a launch is checked and counted. What is illegal during a stream's
// capture is refused with the error that a GPU gives, by the three modes of capture.
#include <cublasLt.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "device.h"

namespace {

using Lock = std::lock_guard<std::mutex>;

std::mutex mutex;
std::map<uintptr_t, size_t> on_device, on_host;  // address -> bytes
size_t used = 0, most = 0;
std::atomic<long> launched{0}, launched_by_driver{0}, refused{0};
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t fail(cudaError_t error, const char* call, const char* why) {
  fprintf(stderr, "[nullgpu] %s: %s\n", call, why);
  ++refused;
  return last_error = error;
}

template <class Handle>
cudaError_t make(Handle* handle) {
  *handle = static_cast<Handle>(calloc(1, 64));
  return cudaSuccess;
}

// Memory

enum class Place { unknown, device, host };

bool holds(const std::map<uintptr_t, size_t>& blocks, uintptr_t address) {
  auto block = blocks.upper_bound(address);
  if (block == blocks.begin()) return false;
  --block;
  return address < block->first + block->second;
}

Place place_of(const void* pointer) {
  Lock lock(mutex);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (holds(on_device, address)) return Place::device;
  return holds(on_host, address) ? Place::host : Place::unknown;
}

// Large tensors are never written: their pages would be real memory. What a kernel would have found
// finite (one byte read back of a device) is said to be so.
constexpr size_t small = size_t{64} << 20;

void copy(void* to, const void* from, size_t bytes) {
  const bool to_device = place_of(to) == Place::device;
  if (to_device && bytes > small) return;
  if (!to_device && bytes == 1 && place_of(from) == Place::device) {
    *static_cast<char*>(to) = 1;
    return;
  }
  memmove(to, from, bytes);
}

// Capture

struct Capture {
  std::thread::id thread;
  cudaStreamCaptureMode mode;
  unsigned long long id;
  bool broken;
};
std::map<cudaStream_t, Capture> captures;
unsigned long long captures_so_far = 0;
thread_local cudaStreamCaptureMode own_mode = cudaStreamCaptureModeGlobal;

// True, with the error set, where a capture of this thread or another forbids a call now.
bool forbidden(const char* call) {
  {
    Lock lock(mutex);
    if (own_mode == cudaStreamCaptureModeRelaxed) return false;
    bool found = false;
    for (auto& [stream, capture] : captures) {
      const bool mine = capture.thread == std::this_thread::get_id();
      const bool counts = mine ? capture.mode != cudaStreamCaptureModeRelaxed
                               : own_mode == cudaStreamCaptureModeGlobal &&
                                     capture.mode == cudaStreamCaptureModeGlobal;
      if (counts) found = capture.broken = true;
    }
    if (!found) return false;
  }
  fail(cudaErrorStreamCaptureUnsupported, call, "not permitted while a stream is capturing");
  return true;
}

cudaError_t launch(const char* call, dim3 grid, dim3 block) {
  ++launched;
  if (!nullgpu::fits(grid.x, grid.y, grid.z, block.x, block.y, block.z, 0))
    return fail(cudaErrorInvalidConfiguration, call, "the grid or the block does not fit");
  return cudaSuccess;
}

}  // namespace

extern "C" {

// What a test asks

long nullgpu_launches() { return launched; }
long nullgpu_driver_launches() { return launched_by_driver; }
long nullgpu_refused() { return refused; }
size_t nullgpu_used() { return used; }
size_t nullgpu_most() { return most; }
void nullgpu_note_launch() { ++launched_by_driver; }
void nullgpu_note_refusal() { ++refused; }
int nullgpu_is_on_device(const void* pointer) { return place_of(pointer) != Place::unknown; }

// The device

cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  return device ? fail(cudaErrorInvalidDevice, "cudaSetDevice", "there is device 0 alone") : cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    default: return "an error of the null GPU";
  }
}
const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }
cudaError_t cudaDriverGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, nullgpu::name);
  p->totalGlobalMem = nullgpu::memory_bytes;
  p->major = nullgpu::major;
  p->minor = nullgpu::minor;
  p->multiProcessorCount = nullgpu::processors;
  p->sharedMemPerBlock = nullgpu::shared_static;
  p->sharedMemPerBlockOptin = nullgpu::shared_most;
  p->sharedMemPerMultiprocessor = nullgpu::shared_processor;
  p->regsPerBlock = p->regsPerMultiprocessor = nullgpu::registers;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->l2CacheSize = nullgpu::l2_bytes;
  p->memoryBusWidth = 6144;
  p->unifiedAddressing = p->concurrentKernels = p->managedMemory = p->cooperativeLaunch = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = nullgpu::attribute(attribute);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) {
  snprintf(id, size, "0000:00:00.0");
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }

// Memory

cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *total = nullgpu::memory_bytes;
  *available = *total - used;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = nullptr;
  if (forbidden("cudaMalloc")) return last_error;
  Lock lock(mutex);
  if (used + bytes > nullgpu::memory_bytes) return last_error = cudaErrorMemoryAllocation;
  constexpr size_t page = size_t{2} << 20;
  const size_t whole = (bytes + page - 1) / page * page;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* block = mmap(nullptr, whole, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (block == MAP_FAILED) return last_error = cudaErrorMemoryAllocation;
  on_device[reinterpret_cast<uintptr_t>(block)] = whole;
  used += whole;
  if (used > most) most = used;
  *pointer = block;
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFree(void* pointer) {
  if (!pointer) return cudaSuccess;
  if (forbidden("cudaFree")) return last_error;
  Lock lock(mutex);
  const auto block = on_device.find(reinterpret_cast<uintptr_t>(pointer));
  if (block == on_device.end()) return fail(cudaErrorInvalidValue, "cudaFree", "never allocated");
  munmap(pointer, block->second);
  used -= block->second;
  on_device.erase(block);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  Lock lock(mutex);
  on_host[reinterpret_cast<uintptr_t>(*pointer)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  {
    Lock lock(mutex);
    on_host.erase(reinterpret_cast<uintptr_t>(pointer));
  }
  free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (forbidden("cudaMemcpy")) return last_error;
  copy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  copy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* at, int value, size_t bytes) {
  if (bytes < small) memset(at, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(at, value, bytes);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
  memset(found, 0, sizeof *found);
  const Place place = place_of(pointer);
  found->type = place == Place::device ? cudaMemoryTypeDevice
                : place == Place::host ? cudaMemoryTypeHost
                                       : cudaMemoryTypeUnregistered;
  found->devicePointer = const_cast<void*>(pointer);
  return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void** pointer, const void*) {
  static char symbols[1 << 20];
  *pointer = symbols;
  return cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  memset(value, 0, sizeof(unsigned long long));
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) { return make(pool); }

// Streams, events, captures, graphs

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return make(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return make(stream); }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { *priority = 0; return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return forbidden("cudaStreamSynchronize") ? last_error : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  return forbidden("cudaDeviceSynchronize") ? last_error : cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return forbidden("cudaStreamQuery") ? last_error : cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return forbidden("cudaEventSynchronize") ? last_error : cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return make(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return make(event); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;  // no time passes on a device that does nothing
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(own_mode, *mode);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Lock lock(mutex);
  captures[stream] = {std::this_thread::get_id(), mode, ++captures_so_far, false};
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  bool broken;
  {
    Lock lock(mutex);
    broken = !captures.count(stream) || captures[stream].broken;
    captures.erase(stream);
  }
  *graph = nullptr;
  return broken ? fail(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture", "the capture was broken")
                : make(graph);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Lock lock(mutex);
  *status = captures.count(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t* graph,
    const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges, size_t* count) {
  cudaStreamIsCapturing(stream, status);
  Lock lock(mutex);
  if (id) *id = captures.count(stream) ? captures[stream].id : 0;
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* graph, cudaGraph_t, unsigned long long) {
  return make(graph);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) { *count = 1; return cudaSuccess; }

// Kernels

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  memset(found, 0, sizeof *found);
  found->ptxVersion = found->binaryVersion = 10 * nullgpu::major;
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 32;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void*, dim3 grid, dim3 block, void**, size_t, cudaStream_t) {
  return launch("cudaLaunchKernel", grid, block);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  return launch("cudaLaunchKernelExC", config->gridDim, config->blockDim);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3 grid, dim3 block, void**, size_t, cudaStream_t) {
  return launch("cudaLaunchKernel", grid, block);
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
char __cudaInitModule(void**) { return 1; }
cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *function = driver ? dlsym(driver, name) : nullptr;
  if (!*function && driver) *function = dlsym(driver, (std::string(name) + "_v2").c_str());
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// Matrix products: handles that are there, and an algorithm for everything

constexpr auto fine = CUBLAS_STATUS_SUCCESS;
cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) { make(handle); return fine; }
cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) { *mode = {}; return fine; }
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* mode) { *mode = {}; return fine; }
size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t, cudaDataType_t) {
  *made = static_cast<cublasLtMatmulDesc_t>(calloc(1, 1024));
  return fine;
}
cublasStatus_t cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayout_t* made, cudaDataType, uint64_t, uint64_t, int64_t) {
  *made = static_cast<cublasLtMatrixLayout_t>(calloc(1, 1024));
  return fine;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
  *made = static_cast<cublasLtMatmulPreference_t>(calloc(1, 1024));
  return fine;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
    cublasLtMatmulHeuristicResult_t* found, int* count) {
  memset(found, 0, sizeof *found);
  *count = 1;
  return fine;
}

}  // extern "C"
