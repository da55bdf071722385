// The machine below the kernels: a GPU, or the host that runs the same source for tests.
//
// A kernel is a row of phases. `EACH` gives a phase's items to the threads of a block, `EACH_WARP` to its warps, and
// `BARRIER` ends the phase. Within a phase no item may depend on another one: the host runs the items one after the
// other, forwards, backwards or mixed up, and the tests compare what comes out. A warp's variables are arrays of
// `OWN`: one element a thread on a GPU, one for each of the 32 on the host.
#ifndef DEVICE_H
#define DEVICE_H
#include "../src/rules.h"

enum { THREADS = 512, WARP = 32, WARPS = THREADS / WARP };

#ifdef __CUDACC__
#define DEVICE static __device__ __forceinline__
#define EACH(i, count) for (int i = threadIdx.x, n_ = (count); i < n_; i += THREADS)
#define EACH_WARP(w, count) for (int w = threadIdx.x / WARP, n_ = (count); w < n_; w += WARPS)
#define LANES(l) for (int l = threadIdx.x % WARP, o_ = 1; o_; o_ = 0 & l)
#define OWN 1
#define AT(l) 0
#define UNROLL(n) _Pragma("unroll")
#define BARRIER() __syncthreads()
#define WARP_BARRIER() __syncwarp()

DEVICE void add_to(i32 *sum, i32 x) { atomicAdd((unsigned int *)sum, (unsigned int)x); }
DEVICE i32 dot4(u32 a, u32 b, i32 sum) { return __dp4a((int)a, (int)b, sum); }
DEVICE double root_of(double x) { return __dsqrt_rn(x); }
DEVICE void fetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

DEVICE i64 warp_sum(i64 *v) {
    for (int i = WARP / 2; i; i /= 2) v[0] += __shfl_xor_sync(~0u, v[0], i);
    return v[0];
}

DEVICE i32 warp_max(i32 *v) {
    for (int i = WARP / 2; i; i /= 2) {
        const i32 other = __shfl_xor_sync(~0u, v[0], i);
        v[0] = other > v[0] ? other : v[0];
    }
    return v[0];
}

#ifdef NNFS_DP4A
// Every thread gets the sum of the four whose places in the warp differ in the two lowest bits
DEVICE void quad_sum(i32 *v) {
    v[0] += __shfl_xor_sync(~0u, v[0], 1);
    v[0] += __shfl_xor_sync(~0u, v[0], 2);
}
#else
// sums (16, 8) += a (16, 32) . b (32, 8) on tensor cores; who holds what: PTX ISA, "Matrix Fragments for mma.m16n8k32"
DEVICE void mma(i32 (*sums)[OWN], const u32 (*a)[OWN], const u32 (*b)[OWN]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(sums[0][0]), "+r"(sums[1][0]), "+r"(sums[2][0]), "+r"(sums[3][0])
                 : "r"(a[0][0]), "r"(a[1][0]), "r"(a[2][0]), "r"(a[3][0]), "r"(b[0][0]), "r"(b[1][0]));
}
#endif
#else
#include <math.h>
#define DEVICE static inline
#define EACH(i, count) for (int at_ = 0, n_ = (count), i; at_ < n_ && (i = host_item(at_, n_), 1); at_++)
#define EACH_WARP(w, count) EACH (w, count)
#define LANES(l) for (int l = 0; l < WARP; l++)
#define OWN WARP
#define AT(l) (l)
#define UNROLL(n)
#define BARRIER() (void)0
#define WARP_BARRIER() (void)0

enum { FORWARDS, BACKWARDS, MIXED };
static int host_order = FORWARDS;
static inline int host_item(int i, int count) {
    const int far = 7919; // a prime: all items come once
    if (host_order == FORWARDS) return i;
    return host_order == MIXED && count % far ? (int)(((i64)i * far + 13) % count) : count - 1 - i;
}

DEVICE void add_to(i32 *sum, i32 x) { *sum = (i32)((u32)*sum + (u32)x); }
DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
    for (int k = 0; k < 32; k += 8) sum += (i32)(i8)(a >> k) * (i8)(b >> k);
    return sum;
}
DEVICE double root_of(double x) { return sqrt(x); }
DEVICE void fetch(const void *) {}

DEVICE i64 warp_sum(i64 *v) {
    i64 sum = 0;
    for (int l = 0; l < WARP; l++) sum += v[l];
    return sum;
}

DEVICE i32 warp_max(i32 *v) {
    i32 top = v[0];
    for (int l = 1; l < WARP; l++) top = v[l] > top ? v[l] : top;
    return top;
}

DEVICE void quad_sum(i32 *v) {
    for (int l = 0; l < WARP; l += 4) v[l] = v[l + 1] = v[l + 2] = v[l + 3] = v[l] + v[l + 1] + v[l + 2] + v[l + 3];
}

DEVICE void mma(i32 (*sums)[OWN], const u32 (*a)[OWN], const u32 (*b)[OWN]) {
    i8 rows[16][32], columns[8][32];
    for (int l = 0; l < WARP; l++)
        for (int h = 0; h < 2; h++) { // h: the lower or the upper 16 of the 32 that are summed
            memcpy(rows[l / 4] + l % 4 * 4 + 16 * h, &a[2 * h][l], 4);
            memcpy(rows[l / 4 + 8] + l % 4 * 4 + 16 * h, &a[2 * h + 1][l], 4);
            memcpy(columns[l / 4] + l % 4 * 4 + 16 * h, &b[h][l], 4);
        }
    for (int l = 0; l < WARP; l++)
        for (int q = 0; q < 4; q++) {
            const i8 *x = rows[l / 4 + q / 2 * 8], *y = columns[l % 4 * 2 + q % 2];
            i32 sum = 0;
            for (int k = 0; k < 32; k++) sum += x[k] * y[k];
            sums[q][l] += sum;
        }
}
#endif
#endif
