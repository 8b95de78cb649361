/* What the headers of the runtime need of the compiler's: nvidia's wheel does not have it. */
#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDAAPI
#define __inline_hint__
#define __forceinline__ inline
#define __CUDA_ARCH_HAS_FEATURE__(x) 0
