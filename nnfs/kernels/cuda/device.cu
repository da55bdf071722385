// The program of a GPU. Compiled by NVRTC on the user's machine (nnfs.kernels.compiled), by nvcc in a test.
#include "kernels.h"

#define COLUMNS(n) \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) nnfs_columns_##n(Work w) { \
        extern __shared__ __align__(16) u8 shared[]; \
        step_columns<n>(w, shared, blockIdx.x); \
    }
COLUMNS(1)
COLUMNS(2)
COLUMNS(4)

extern "C" __global__ void nnfs_streams(Chunk *chunks) {
    if (threadIdx.x == 0) encode_bits(chunks + blockIdx.x);
}

// For whoever fills the structures: their sizes, and the constants of the shared memory
extern "C" __device__ int nnfs_sizes[] = {sizeof(Network), sizeof(Chunk), sizeof(Work), sizeof(Mixing), THREADS, PAD};
