// Vectors of 16 float32, numbers of bf16, and the layouts that tiles of AMX want.
#ifndef VECTORS_H
#define VECTORS_H
#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;
typedef __m512 vf;
#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

enum { LIMIT = 127, BLOCK = 64, MOST_WIDTH = 1024 };

INLINE vf wide(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
INLINE void narrow(bf16 *p, vf x) { _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x)); }
INLINE vf whole(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf clamp(vf x, float low, float high) {
    return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(low)), _mm512_set1_ps(high));
}
INLINE vf set1(float x) { return _mm512_set1_ps(x); }
// 0 where an integer of int8 stands at its limit: the clamp that made it passes no gradient
INLINE __mmask16 inside(vf integers) {
    return _mm512_cmp_ps_mask(_mm512_abs_ps(integers), set1(LIMIT - 0.5f), _CMP_LT_OQ);
}

EXPORT int allow_tiles(void) { return (int)syscall(SYS_arch_prctl, 0x1023, 18); }

static void configure(void) {
    struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } __attribute__((aligned(64))) c = {1, 0, {0}, {0}, {0}};
    for (int i = 0; i < 8; i++) c.bytes[i] = 64, c.rows[i] = 16;
    _tile_loadconfig(&c);
}

INLINE void transpose(__m512i r[16]) { // of 16 x 16 words
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88), r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
    }
}


// 16 rows of 32 as pairs of rows: [half of the columns][pair of rows][column], halves 256 words apart.
INLINE void store_pairs(uint32_t *to, const __m512i r[16]) {
    const __m512i low = _mm512_set1_epi32(0xFFFF);
    const __m512i first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i second = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    for (int i = 0; i < 16; i += 2) {
        __m512i even = _mm512_or_si512(_mm512_and_si512(r[i], low), _mm512_slli_epi32(r[i + 1], 16));
        __m512i odd = _mm512_or_si512(_mm512_srli_epi32(r[i], 16), _mm512_andnot_si512(low, r[i + 1]));
        _mm512_storeu_si512(to + i / 2 * 16, _mm512_permutex2var_epi32(even, first, odd));
        _mm512_storeu_si512(to + 256 + i / 2 * 16, _mm512_permutex2var_epi32(even, second, odd));
    }
}

// 16 rows of 32 as 32 rows of 16 at `to`, 32 apart: the first factor of a product over positions.
INLINE void turn(bf16 *to, const bf16 *from) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * 32);
    transpose(r); // r[pair of d][position]: words of two d
    for (int i = 0; i < 16; i++) {
        _mm256_storeu_si256((__m256i *)(to + 2 * i * 32), _mm512_cvtepi32_epi16(r[i]));
        _mm256_storeu_si256((__m256i *)(to + (2 * i + 1) * 32), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r[i], 16)));
    }
}

INLINE vf power(vf x) { // 2^x for -126 <= x <= 0, relative error below 4e-6
    vf n = whole(x), f = _mm512_sub_ps(x, n);
    vf p = _mm512_fmadd_ps(set1(0.00133335581f), f, set1(0.00961812910f));
    p = _mm512_fmadd_ps(p, f, set1(0.0555041087f));
    p = _mm512_fmadd_ps(p, f, set1(0.240226507f));
    p = _mm512_fmadd_ps(p, f, set1(0.693147181f));
    p = _mm512_fmadd_ps(p, f, set1(1));
    return _mm512_scalef_ps(p, n);
}
INLINE vf coarse_power(vf x) { // the same, relative error below 2e-4: a tenth of what bf16 rounds away
    vf n = whole(x), f = _mm512_sub_ps(x, n);
    vf p = _mm512_fmadd_ps(set1(0.0558263180f), f, set1(0.240152695f));
    p = _mm512_fmadd_ps(p, f, set1(0.693153073f));
    p = _mm512_fmadd_ps(p, f, set1(1));
    return _mm512_scalef_ps(p, n);
}
#define LOG2E 1.44269504f

#endif
