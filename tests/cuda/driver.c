/* A stand-in for CUDA's runtime, driver and cuBLAS on a machine without a GPU: a P100 whose kernels compute nothing.
 *
 * Loaded before the real libraries (LD_PRELOAD), it answers torch's own CUDA code: devices, streams, memory up to the
 * size of the card, and the limits of a launch are as on a P100; kernels and matmuls are checked and then skipped. So
 * devices, arguments, launches and memory are those of a real run. Numbers are not: what is read back is zero.
 *
 *   cc -shared -fPIC -O1 -w -I tests/cuda -I .../nvidia/cuda_runtime/include tests/cuda/driver.c -o libcuda.so.1
 */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SHARED = 49152, THREADS = 1024, BLOCKS = 65535, SMALL = 1 << 20 };
static const size_t TOTAL = 16280ull << 20, CONTEXT = 500ull << 20; /* bytes of the card, and of the context on it */
static __thread cudaError_t last;

static cudaError_t fail(cudaError_t error) { return last = error; }

/* --- memory: pages that nobody touches, so 16 GB of them cost nothing ---------------------------------------------- */

struct block { char *start; size_t size; int on_gpu; };
static struct block blocks[1 << 16];
static int block_count;
static size_t held = CONTEXT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static cudaError_t allocate(void **pointer, size_t size, int on_gpu) {
  cudaError_t result = cudaErrorMemoryAllocation;
  int slot = 0;
  *pointer = NULL;
  pthread_mutex_lock(&lock);
  if (!on_gpu || held + size <= TOTAL) {
    char *start = mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    while (slot < block_count && blocks[slot].start) slot++;
    if (start != MAP_FAILED && slot < 1 << 16) {
      if (slot == block_count) block_count++;
      blocks[slot] = (struct block){start, size, on_gpu};
      held += on_gpu ? size : 0;
      *pointer = start;
      result = cudaSuccess;
    }
  }
  pthread_mutex_unlock(&lock);
  return result ? fail(result) : result;
}

static cudaError_t release(void *pointer) {
  pthread_mutex_lock(&lock);
  for (int slot = 0; pointer && slot < block_count; slot++)
    if (blocks[slot].start == pointer) {
      munmap(pointer, blocks[slot].size ? blocks[slot].size : 1);
      held -= blocks[slot].on_gpu ? blocks[slot].size : 0;
      blocks[slot].start = NULL;
      break;
    }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t n) { return allocate(p, n, 1); }
cudaError_t cudaFree(void *p) { return release(p); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return allocate(p, n, 0); }
cudaError_t cudaFreeHost(void *p) { return release(p); }
cudaError_t cudaMallocManaged(void **p, size_t n, unsigned flags) { return allocate(p, n, 1); }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *total = TOTAL; *free = TOTAL - held; return cudaSuccess; }

/* Large copies on the card would touch its pages; a number that is read back is zero. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind == cudaMemcpyDeviceToHost && n <= 8) memset(to, 0, n);
  else if (kind != cudaMemcpyDeviceToDevice || n <= SMALL) memcpy(to, from, n);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, n, kind, NULL);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t stream) {
  if (n <= SMALL) memset(to, value, n);
  return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int value, size_t n) { return cudaMemsetAsync(to, value, n, NULL); }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
  memset(found, 0, sizeof *found);
  for (int slot = 0; slot < block_count; slot++) {
    struct block *one = &blocks[slot];
    if (one->start && (char *)pointer >= one->start && (char *)pointer < one->start + one->size) {
      found->type = one->on_gpu ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
      found->devicePointer = (void *)pointer;
    }
  }
  return cudaSuccess;
}

/* --- the device: a P100 (data sheet; CUDA C++ programming guide, compute capability 6.0) --------------------------- */

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? fail(cudaErrorInvalidDevice) : cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "Tesla P100-PCIE-16GB");
  p->totalGlobalMem = TOTAL;
  p->major = 6;
  p->multiProcessorCount = 56;
  p->warpSize = 32;
  p->sharedMemPerBlock = p->sharedMemPerBlockOptin = SHARED;
  p->sharedMemPerMultiprocessor = 65536;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = THREADS;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = INT32_MAX;
  p->maxGridSize[1] = p->maxGridSize[2] = BLOCKS;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->totalConstMem = 65536;
  p->memPitch = INT32_MAX;
  p->textureAlignment = 512;
  p->l2CacheSize = 4 << 20;
  p->concurrentKernels = p->unifiedAddressing = p->managedMemory = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int device) {
  switch (name) {
    case cudaDevAttrComputeCapabilityMajor: *value = 6; break;
    case cudaDevAttrMultiProcessorCount: *value = 56; break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED; break;
    case cudaDevAttrMaxGridDimX: *value = INT32_MAX; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = THREADS; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 0;
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) { snprintf(text, size, "0000:00:00.0"); return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = -1; return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 12020; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 11070; return cudaSuccess; }
cudaError_t cudaGetLastError(void) { cudaError_t error = last; last = cudaSuccess; return error; }
cudaError_t cudaPeekAtLastError(void) { return last; }
const char *cudaGetErrorName(cudaError_t error) { return "cudaError"; }
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "refused by the stand-in for CUDA";
}

/* --- kernels ------------------------------------------------------------------------------------------------------- */

static __thread struct { dim3 grid, block; size_t shared; void *stream; } call;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  call.grid = grid, call.block = block, call.shared = shared, call.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = call.grid, *block = call.block, *shared = call.shared, *(void **)stream = call.stream;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
  size_t threads = (size_t)block.x * block.y * block.z;
  if (shared <= SHARED && threads && threads <= THREADS && grid.x && grid.y && grid.z && grid.y <= BLOCKS && grid.z <= BLOCKS)
    return cudaSuccess;
  fprintf(stderr, "CUDA refused a launch: %zu threads, %zu bytes of shared memory, grid %u %u %u\n", threads, shared,
          grid.x, grid.y, grid.z);
  return fail(cudaErrorInvalidConfiguration);
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = THREADS;
  found->numRegs = 32;
  found->binaryVersion = found->ptxVersion = 60;
  found->maxDynamicSharedSizeBytes = SHARED;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute name, int value) {
  return name == cudaFuncAttributeMaxDynamicSharedMemorySize && value > SHARED ? fail(cudaErrorInvalidValue) : cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *kernel, int size, size_t shared, unsigned flags) {
  *count = 2;
  return cudaSuccess;
}
static void *module[4];
void **__cudaRegisterFatBinary(void *binary) { return module; }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterFunction(void **h, const char *f, char *d, const char *n, int l, void *a, void *b, void *c, void *e, int *w) {}
void __cudaRegisterVar(void **h, char *v, char *d, const char *n, int e, size_t s, int c, int g) {}
char __cudaInitModule(void **handle) { return 1; }

/* --- streams and events: nothing is ever pending ------------------------------------------------------------------- */

static void *token(void) { static uintptr_t number = 0x1000; return (void *)(number += 16); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { *s = token(); return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = 0; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) { *status = 0; return cudaSuccess; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id) {
  *status = 0;
  if (id) *id = 0;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = token(); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { *e = token(); return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t e) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t a, cudaEvent_t b) { *milliseconds = 1; return cudaSuccess; }

/* --- cuBLAS: leading dimensions are checked as its documentation says (status 7: an invalid value) ------------------ */

int cublasCreate_v2(void **handle) { *handle = malloc(64); return 0; }
int cublasDestroy_v2(void *handle) { free(handle); return 0; }
int cublasSetStream_v2(void *handle, void *stream) { return 0; }
int cublasSetWorkspace_v2(void *handle, void *memory, size_t size) { return 0; }
int cublasSetMathMode(void *handle, int mode) { return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasSetPointerMode_v2(void *handle, int mode) { return 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return 0; }

static int check(int ta, int tb, int m, int n, int k, int lda, int ldb, int ldc) {
  int a = ta ? k : m, b = tb ? n : k;
  if (m >= 0 && n >= 0 && k >= 0 && lda >= (a > 1 ? a : 1) && ldb >= (b > 1 ? b : 1) && ldc >= (m > 1 ? m : 1)) return 0;
  fprintf(stderr, "cuBLAS refused a product: m %d n %d k %d, leading dimensions %d %d %d\n", m, n, k, lda, ldb, ldc);
  return 7;
}
int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int at, int lda, const void *b,
                 int bt, int ldb, const void *beta, void *c, int ct, int ldc, int compute, int algorithm) {
  return check(ta, tb, m, n, k, lda, ldb, ldc);
}
int cublasSgemm_v2(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda, const float *b,
                   int ldb, const float *beta, float *c, int ldc) {
  return check(ta, tb, m, n, k, lda, ldb, ldc);
}
int cublasSgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda,
                              long long sa, const float *b, int ldb, long long sb, const float *beta, float *c, int ldc,
                              long long sc, int count) {
  return check(ta, tb, m, n, k, lda, ldb, ldc);
}
int cublasGemmStridedBatchedEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int at, int lda,
                               long long sa, const void *b, int bt, int ldb, long long sb, const void *beta, void *c, int ct,
                               int ldc, long long sc, int count, int compute, int algorithm) {
  return check(ta, tb, m, n, k, lda, ldb, ldc);
}
int cublasSgemv_v2(void *h, int t, int m, int n, const float *alpha, const float *a, int lda, const float *x, int ix,
                   const float *beta, float *y, int iy) {
  return lda < (m > 1 ? m : 1) ? 7 : 0;
}

/* --- libcuda.so.1, which torch opens by its name: this file is compiled under it -------------------------------------- */

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12020; return 0; }
int cuCtxGetCurrent(void **context) { *context = module; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
