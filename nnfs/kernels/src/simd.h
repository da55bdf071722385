// Vectors of VL int32, by the compiler's vector types; by intrinsics where those are not enough.
//
// One of LEVEL_AMX, LEVEL_VNNI, LEVEL_AVXVNNI, LEVEL_AVX2, LEVEL_NEON, LEVEL_PORTABLE is defined. With NNFS_EMULATE a
// level keeps its shapes and layouts, but every instruction is plain C: so tests run it on machines without the unit.
#ifndef SIMD_H
#define SIMD_H
#include "nnfs.h"

#if defined LEVEL_AMX || defined LEVEL_VNNI
#define VL 16
#define WIDE_VNNI 1
#elif defined LEVEL_AVXVNNI || defined LEVEL_AVX2
#define VL 8
#else
#define VL 4
#endif
// The dot product instructions of x86 want one unsigned side: stored keys and weights have 128 added for them. AMX takes
// signed weights, so there only keys have it.
#if defined WIDE_VNNI || defined LEVEL_AVXVNNI
#define KEY_OFFSET 128
#else
#define KEY_OFFSET 0
#endif
#ifdef LEVEL_AMX
#define WEIGHT_OFFSET 0
#else
#define WEIGHT_OFFSET KEY_OFFSET
#endif

typedef i32 vi __attribute__((vector_size(4 * VL)));
typedef i32 vi_near __attribute__((vector_size(4 * VL), aligned(1), may_alias));

INLINE vi load(const void *p) { return *(const vi_near *)p; }
INLINE void store(void *p, vi v) { *(vi_near *)p = v; }
INLINE vi set1(i32 x) { return x - (vi){0}; }
INLINE i32 near32(const void *p) { i32 v; memcpy(&v, p, 4); return v; }
INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
INLINE void prefetch_far(const void *p) { __builtin_prefetch(p, 0, 2); }

#if !defined NNFS_EMULATE && defined WIDE_VNNI
#include <immintrin.h>
#define M(v) ((__m512i)(v))
INLINE vi vmin(vi a, vi b) { return (vi)_mm512_min_epi32(M(a), M(b)); }
INLINE vi vmax(vi a, vi b) { return (vi)_mm512_max_epi32(M(a), M(b)); }
INLINE vi sra(vi v, int n) { return (vi)_mm512_sra_epi32(M(v), _mm_cvtsi32_si128(n)); }
INLINE void store8(void *p, vi v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(M(v))); }
INLINE vi square(vi v) { return (vi)_mm512_madd_epi16(M(v), M(v)); } // of what is not negative, and below 2^15
INLINE i32 hmax(vi v) { return _mm512_reduce_max_epi32(M(v)); }
INLINE i32 hsum(vi v) { return _mm512_reduce_add_epi32(M(v)); }
INLINE vi lookup(const i32 *table, vi i) { return (vi)_mm512_i32gather_epi32(M(i), table, 4); }
// sums + the products of four bytes of `a`, unsigned, and of `b`, signed
INLINE vi dot(vi sums, vi a, vi b) { return (vi)_mm512_dpbusd_epi32(M(sums), M(a), M(b)); }
INLINE vi dot_small(vi sums, vi a, vi b) { return dot(sums, a, b); }
#elif !defined NNFS_EMULATE && VL == 8
#include <immintrin.h>
#define M(v) ((__m256i)(v))
INLINE vi vmin(vi a, vi b) { return (vi)_mm256_min_epi32(M(a), M(b)); }
INLINE vi vmax(vi a, vi b) { return (vi)_mm256_max_epi32(M(a), M(b)); }
INLINE vi sra(vi v, int n) { return (vi)_mm256_sra_epi32(M(v), _mm_cvtsi32_si128(n)); }
INLINE void store8(void *p, vi v) { // the integers are those of a byte, so neither step saturates
    __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(M(v)), _mm256_extracti128_si256(M(v), 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(w, w));
}
INLINE vi square(vi v) { return (vi)_mm256_madd_epi16(M(v), M(v)); } // of what is not negative, and below 2^15
INLINE i32 hmax(vi v) {
    __m128i a = _mm_max_epi32(_mm256_castsi256_si128(M(v)), _mm256_extracti128_si256(M(v), 1));
    a = _mm_max_epi32(a, _mm_shuffle_epi32(a, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(a, _mm_shuffle_epi32(a, 0xB1)));
}
INLINE i32 hsum(vi v) {
    __m128i a = _mm_add_epi32(_mm256_castsi256_si128(M(v)), _mm256_extracti128_si256(M(v), 1));
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xB1)));
}
INLINE vi lookup(const i32 *table, vi i) { // gathers are no quicker here, and slow where they have been mitigated
    vi r;
    for (int k = 0; k < VL; k++) r[k] = table[i[k]];
    return r;
}
#ifdef LEVEL_AVXVNNI
INLINE vi dot(vi sums, vi a, vi b) { return (vi)_mm256_dpbusd_avx_epi32(M(sums), M(a), M(b)); }
INLINE vi dot_small(vi sums, vi a, vi b) { return dot(sums, a, b); }
#else
// As `dot`, of unsigned bytes up to 127: pairs stay within 32,258, so that their sums do not saturate
INLINE vi dot_small(vi sums, vi a, vi b) {
    __m256i pairs = _mm256_maddubs_epi16(M(a), M(b));
    return sums + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
// sums + the products of four signed bytes within +-127
INLINE vi dot_signed(vi sums, vi a, vi b) { return dot_small(sums, (vi)_mm256_abs_epi8(M(b)), (vi)_mm256_sign_epi8(M(a), M(b))); }
#endif
#else
typedef i8 vb __attribute__((vector_size(4 * VL)));
typedef u8 vub __attribute__((vector_size(4 * VL)));
INLINE vi vmin(vi a, vi b) { vi m = a < b; return (a & m) | (b & ~m); }
INLINE vi vmax(vi a, vi b) { vi m = a > b; return (a & m) | (b & ~m); }
INLINE vi sra(vi v, int n) { return v >> n; }
INLINE void store8(void *p, vi v) { for (int k = 0; k < VL; k++) ((i8 *)p)[k] = (i8)v[k]; }
INLINE vi square(vi v) { return v * v; }
INLINE i32 hmax(vi v) { i32 m = v[0]; for (int k = 1; k < VL; k++) m = v[k] > m ? v[k] : m; return m; }
INLINE i32 hsum(vi v) { i32 s = 0; for (int k = 0; k < VL; k++) s += v[k]; return s; }
INLINE vi lookup(const i32 *table, vi i) { vi r; for (int k = 0; k < VL; k++) r[k] = table[i[k]]; return r; }
#if !defined NNFS_EMULATE && defined LEVEL_NEON
#include <arm_neon.h>
INLINE vi dot_signed(vi sums, vi a, vi b) { return (vi)vdotq_s32((int32x4_t)sums, (int8x16_t)a, (int8x16_t)b); }
INLINE vi dot_small(vi sums, vi a, vi b) { return dot_signed(sums, a, b); }
#else
INLINE vi dot(vi sums, vi a, vi b) {
    vub p = (vub)a; vb q = (vb)b;
    for (int k = 0; k < 4 * VL; k++) sums[k / 4] += (i32)p[k] * q[k];
    return sums;
}
INLINE vi dot_small(vi sums, vi a, vi b) { return dot(sums, a, b); }
INLINE vi dot_signed(vi sums, vi a, vi b) {
    vb p = (vb)a, q = (vb)b;
    for (int k = 0; k < 4 * VL; k++) sums[k / 4] += (i32)p[k] * q[k];
    return sums;
}
#endif
#endif

// The bytes at a, b, c and d, 4 VL of each, four by four: q[j] has those of VL outputs, in an order that `in_order` undoes
INLINE void interleave(const i8 *a, const i8 *b, const i8 *c, const i8 *d, vi *q) {
#if !defined NNFS_EMULATE && VL == 16
    const __m512i p = _mm512_loadu_si512(a), r = _mm512_loadu_si512(b), s = _mm512_loadu_si512(c), t = _mm512_loadu_si512(d);
    const __m512i low = _mm512_unpacklo_epi8(p, r), high = _mm512_unpackhi_epi8(p, r);
    const __m512i other_low = _mm512_unpacklo_epi8(s, t), other_high = _mm512_unpackhi_epi8(s, t);
    q[0] = (vi)_mm512_unpacklo_epi16(low, other_low), q[1] = (vi)_mm512_unpackhi_epi16(low, other_low);
    q[2] = (vi)_mm512_unpacklo_epi16(high, other_high), q[3] = (vi)_mm512_unpackhi_epi16(high, other_high);
#elif !defined NNFS_EMULATE && VL == 8
    const __m256i p = M(load(a)), r = M(load(b)), s = M(load(c)), t = M(load(d));
    const __m256i low = _mm256_unpacklo_epi8(p, r), high = _mm256_unpackhi_epi8(p, r);
    const __m256i other_low = _mm256_unpacklo_epi8(s, t), other_high = _mm256_unpackhi_epi8(s, t);
    q[0] = (vi)_mm256_unpacklo_epi16(low, other_low), q[1] = (vi)_mm256_unpackhi_epi16(low, other_low);
    q[2] = (vi)_mm256_unpacklo_epi16(high, other_high), q[3] = (vi)_mm256_unpackhi_epi16(high, other_high);
#elif !defined NNFS_EMULATE && defined LEVEL_NEON
    const int8x16x2_t p = vzipq_s8(vld1q_s8(a), vld1q_s8(b)), r = vzipq_s8(vld1q_s8(c), vld1q_s8(d));
    for (int k = 0; k < 2; k++) {
        const int16x8x2_t four = vzipq_s16(vreinterpretq_s16_s8(p.val[k]), vreinterpretq_s16_s8(r.val[k]));
        q[2 * k] = (vi)four.val[0], q[2 * k + 1] = (vi)four.val[1];
    }
#else
    const i8 *from[4] = {a, b, c, d};
    for (int k = 0; k < 16 * VL; k++) ((i8 *)q)[k] = from[k % 4][k / 4];
#endif
}

INLINE void in_order(vi *q) { // unpacking works on each 16 bytes of a vector
#if !defined NNFS_EMULATE && VL == 16
    const __m512i a = _mm512_shuffle_i32x4(M(q[0]), M(q[1]), 0x44), b = _mm512_shuffle_i32x4(M(q[0]), M(q[1]), 0xEE);
    const __m512i c = _mm512_shuffle_i32x4(M(q[2]), M(q[3]), 0x44), d = _mm512_shuffle_i32x4(M(q[2]), M(q[3]), 0xEE);
    q[0] = (vi)_mm512_shuffle_i32x4(a, c, 0x88), q[1] = (vi)_mm512_shuffle_i32x4(a, c, 0xDD);
    q[2] = (vi)_mm512_shuffle_i32x4(b, d, 0x88), q[3] = (vi)_mm512_shuffle_i32x4(b, d, 0xDD);
#elif !defined NNFS_EMULATE && VL == 8
    const __m256i a = M(q[0]), b = M(q[1]), c = M(q[2]), d = M(q[3]);
    q[0] = (vi)_mm256_permute2x128_si256(a, b, 0x20), q[1] = (vi)_mm256_permute2x128_si256(c, d, 0x20);
    q[2] = (vi)_mm256_permute2x128_si256(a, b, 0x31), q[3] = (vi)_mm256_permute2x128_si256(c, d, 0x31);
#else
    (void)q;
#endif
}

// A bit for each of 32 bytes that is not 0
INLINE u32 nonzero(const i8 *p) {
#if !defined NNFS_EMULATE && VL >= 8
    return ~(u32)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(const void *)p), _mm256_setzero_si256()));
#else
    u32 bits = 0;
    for (int k = 0; k < 32; k++) bits |= (u32)(p[k] != 0) << k;
    return bits;
#endif
}

// A stored key or weight with the activations that it meets
INLINE vi dot_stored(vi sums, vi stored, vi activation) {
#if KEY_OFFSET
    return dot(sums, stored, activation);
#else
    return dot_signed(sums, stored, activation);
#endif
}
#endif
