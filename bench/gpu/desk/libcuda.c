// A CUDA driver that drives nothing, for machines without a GPU: what Triton's NVIDIA backend and its launchers ask of
// libcuda. Modules load, launches succeed and are counted, and no kernel runs.
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "cuda.h"

#define MOST 512
#define LENGTH 128

static struct {
  char name[LENGTH];
  long launches;
} kernels[MOST];
static long known;
static const int multiprocessors = 132, shared = 227 * 1024, threads = 1024, registers = 128;

// For the Python side: how often a kernel of that name was launched, or all of them where it is null.
long desk_launches(const char* name) {
  long sum = 0;
  for (long k = 0; k < known; ++k)
    if (name == NULL || strcmp(kernels[k].name, name) == 0) sum += kernels[k].launches;
  return sum;
}

CUresult cuGetErrorString(CUresult error, const char** words) {
  *words =
      error == CUDA_ERROR_OUT_OF_MEMORY ? "the pretended driver knows no more kernels" : "not of the pretended driver";
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

// Triton 3.7 and newer ask for these.

CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int index) {
  *device = index;
  return CUDA_SUCCESS;
}

#undef cuDevicePrimaryCtxRetain
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) { return cuCtxGetCurrent(context); }

CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr*)data = pointer;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  *module = (CUmodule)1;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  long k = 0;
  while (k < known && strncmp(kernels[k].name, name, LENGTH - 1) != 0) ++k;
  if (k == MOST) return CUDA_ERROR_OUT_OF_MEMORY;
  if (k == known) {
    snprintf(kernels[k].name, LENGTH, "%s", name);
    ++known;
  }
  *function = (CUfunction)(intptr_t)(k + 1);
  return CUDA_SUCCESS;
}

// The one result that somebody checks: how many numbers each program has read wrong, in bench/gpu/launched.py.
static void compute(const char* name, const CUlaunchConfig* config, void** parameters) {
  if (strcmp(name, "grid_meeting") == 0) memset(*(void**)parameters[1], 0, 4 * config->gridDimX);
}

// The sums that blocks of a cluster find, as bench/gpu/cluster.cu says.
static void compute_cluster(const char* name, unsigned blocks, void** parameters) {
  const unsigned steps = *(unsigned*)parameters[0], words = strncmp(name, "exchange", 8) == 0 ? 16 * 512 / 2 : 0;
  unsigned* sums = *(unsigned**)parameters[1];
  for (unsigned block = 0; block < blocks; ++block) {
    sums[block] = 0;
    for (unsigned s = 0; s < steps; ++s)
      if (words == 0)
        sums[block] += 31 * s + block;
      else
        for (unsigned other = 0; other < blocks; ++other) sums[block] += words / blocks * (31 * s + other);
  }
}

CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
                        unsigned threads_z, unsigned bytes, CUstream stream, void** parameters, void** extra) {
  long k = (long)(intptr_t)function - 1;
  if (k < 0 || k >= known) return CUDA_ERROR_INVALID_HANDLE;
  __atomic_add_fetch(&kernels[k].launches, 1, __ATOMIC_RELAXED);
  compute_cluster(kernels[k].name, x, parameters);
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  long k = (long)(intptr_t)function - 1;
  if (k < 0 || k >= known) return CUDA_ERROR_INVALID_HANDLE;
  __atomic_add_fetch(&kernels[k].launches, 1, __ATOMIC_RELAXED);
  compute(kernels[k].name, config, parameters);
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? threads
           : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? registers
                                                                : 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? multiprocessors : shared;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}
