// A CUDA driver (libcuda.so.1) without a GPU: what Triton, packages and cuda-python call.
//
// Cubins are loaded as far as being one; a launch is checked and counted. Memory is the runtime's
// where that is preloaded.
#include <cuda.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "device.h"

namespace {

template <class Function>
Function* of_runtime(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

CUresult fail(CUresult error, const char* call, const std::string& why) {
  fprintf(stderr, "[nullgpu] %s: %s\n", call, why.c_str());
  if (auto note = of_runtime<void()>("nullgpu_note_refusal")) note();
  return error;
}

template <class Handle>
CUresult make(Handle* handle) {
  *handle = static_cast<Handle>(calloc(1, 256));
  return CUDA_SUCCESS;
}

const auto context = reinterpret_cast<CUcontext>(0x10);  // the primary one: there is no other

CUresult launch(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                unsigned shared) {
  if (auto note = of_runtime<void()>("nullgpu_note_launch")) note();
  if (nullgpu::fits(gx, gy, gz, bx, by, bz, shared)) return CUDA_SUCCESS;
  char said[400];
  snprintf(said, sizeof said, "%s: grid %u %u %u, block %u %u %u, %u bytes of shared memory",
           reinterpret_cast<char*>(function), gx, gy, gz, bx, by, bz, shared);
  return fail(CUDA_ERROR_INVALID_VALUE, "cuLaunchKernel", said);
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { *version = CUDA_VERSION; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) { *count = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  snprintf(name, size, "%s", nullgpu::name);
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) { *bytes = nullgpu::memory_bytes; return CUDA_SUCCESS; }
CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice) { memset(uuid, 0, sizeof *uuid); return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  *value = nullgpu::attribute(which);
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** said) {
  static const std::map<int, const char*> words = {
      {CUDA_SUCCESS, "no error"},
      {CUDA_ERROR_INVALID_VALUE, "invalid argument"},
      {CUDA_ERROR_OUT_OF_MEMORY, "out of memory"},
      {CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"},
      {CUDA_ERROR_FILE_NOT_FOUND, "file not found"}};
  const auto found = words.find(error);
  *said = found == words.end() ? nullptr : found->second;
  return *said ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuGetErrorName(CUresult error, const char** name) {
  static const std::map<int, const char*> names = {
      {CUDA_SUCCESS, "CUDA_SUCCESS"},
      {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
      {CUDA_ERROR_FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND"}};
  const auto found = names.find(error);
  *name = found == names.end() ? nullptr : found->second;
  return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Contexts

CUresult cuCtxGetCurrent(CUcontext* current) { *current = context; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext* popped) { *popped = context; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) { *device = 0; return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t* value, CUlimit) { *value = 1 << 20; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* retained, CUdevice) { *retained = context; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

// Memory, streams, events, graphs

CUresult cuMemGetInfo(size_t* available, size_t* total) {
  auto used = of_runtime<size_t()>("nullgpu_used");
  *total = nullgpu::memory_bytes;
  *available = *total - (used ? used() : 0);
  return CUDA_SUCCESS;
}
CUresult cuStreamCreate(CUstream* stream, unsigned) { return make(stream); }
CUresult cuStreamDestroy(CUstream stream) { free(stream); return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return CUDA_SUCCESS; }
CUresult cuStreamBeginCapture(CUstream, CUstreamCaptureMode) { return CUDA_SUCCESS; }
CUresult cuStreamEndCapture(CUstream, CUgraph* graph) { return make(graph); }
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuEventCreate(CUevent* event, unsigned) { return make(event); }
CUresult cuEventDestroy(CUevent event) { free(event); return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent, CUstream) { return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventQuery(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float* milliseconds, CUevent, CUevent) { *milliseconds = 1; return CUDA_SUCCESS; }
CUresult cuGraphInstantiate(CUgraphExec* graph, CUgraph, unsigned long long) { return make(graph); }
CUresult cuGraphLaunch(CUgraphExec, CUstream) { return CUDA_SUCCESS; }
CUresult cuGraphDestroy(CUgraph graph) { free(graph); return CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec graph) { free(graph); return CUDA_SUCCESS; }

// Kernels

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (memcmp(image, "\177ELF", 4)) return fail(CUDA_ERROR_INVALID_IMAGE, "cuModuleLoadData", "no cubin");
  return make(module);
}
CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(module, image);
}
CUresult cuModuleLoad(CUmodule* module, const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) return fail(CUDA_ERROR_FILE_NOT_FOUND, "cuModuleLoad", path);
  char start[4] = {};
  const bool whole = fread(start, 1, 4, file) == 4;
  fclose(file);
  return whole ? cuModuleLoadData(module, start) : fail(CUDA_ERROR_INVALID_IMAGE, "cuModuleLoad", path);
}
CUresult cuModuleUnload(CUmodule module) { free(module); return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  make(function);
  snprintf(reinterpret_cast<char*>(*function), 256, "%s", name);
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value > nullgpu::shared_most)
    return fail(CUDA_ERROR_INVALID_VALUE, "cuFuncSetAttribute",
                std::string(reinterpret_cast<char*>(function)) + " wants too much shared memory");
  return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream, void**, void**) {
  return launch(function, gx, gy, gz, bx, by, bz, shared);
}
CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                   unsigned by, unsigned bz, unsigned shared, CUstream, void**) {
  return launch(function, gx, gy, gz, bx, by, bz, shared);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction function, void**, void**) {
  return launch(function, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
                c->sharedMemBytes);
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute which, CUdeviceptr pointer) {
  auto known = of_runtime<int(const void*)>("nullgpu_is_on_device");
  if (known && !known(reinterpret_cast<void*>(pointer)))
    return fail(CUDA_ERROR_INVALID_VALUE, "cuPointerGetAttribute", "a kernel was handed host memory");
  if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *static_cast<CUdeviceptr*>(value) = pointer;
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void* base, const cuuint64_t*,
                                const cuuint64_t* strides, const cuuint32_t*, const cuuint32_t*,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill) {
  bool aligned = reinterpret_cast<uintptr_t>(base) % 16 == 0;
  for (cuuint32_t i = 0; i + 1 < rank; ++i) aligned = aligned && strides[i] % 16 == 0;
  return aligned ? CUDA_SUCCESS
                 : fail(CUDA_ERROR_INVALID_VALUE, "cuTensorMapEncodeTiled", "base and strides need 16 bytes");
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) {
  *clusters = nullgpu::processors / 2;
  return CUDA_SUCCESS;
}

// How cuda-python finds all of the above. A name with versions is the one of the header.
CUresult cuGetProcAddress_v2(const char* name, void** function, int, cuuint64_t,
                             CUdriverProcAddressQueryResult* result) {
  static void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = nullptr;
  for (const char* suffix : {"_v2", "_v3", "_v4", "", "WithFlags"})
    if (!*function) *function = dlsym(self, (std::string(name) + suffix).c_str());
  if (result) *result = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

}  // extern "C"
