// The forward and backward pass of the network on one core of a processor with AMX (bf16) and AVX-512.
//
// `network.py` is the definition: these functions compute what it computes, in float32, with bf16 where it has bf16, but
// each product is finished (scaled, rounded, squared, added) while its sums are in the cache, and attention never leaves
// it. A bf16 is held as uint16_t; integers of int8 are held as bf16, exactly. Widths are multiples of 32, positions of 64.
//
// Arrays of bf16 and of bytes are stored in columns of 32: [width / 32][n positions][32], so that a tile's rows lie one
// after another, a head is one such column, and what is read next is near. Arrays of float32 are (n, width).
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

// x = the sums of the rows of `table` that `index` (n, count) names, and beside one another rows of `tables`.
static void embed(float *x, const float *table, const int32_t *index, long count, const float *const *tables,
                  const int32_t *ngrams, const long *widths, long tables_count, long n, long width) {
    for (long t = 0; t < n; t++) {
        float *to = x + t * width;
        for (long k = 0, at = 0; k < tables_count; at += widths[k++])
            memcpy(to + at, tables[k] + (long)ngrams[t * tables_count + k] * widths[k], widths[k] * sizeof(float));
        for (long i = 0; i < width; i += 16) {
            vf sum = _mm512_loadu_ps(to + i);
            for (long k = 0; k < count; k++)
                sum = _mm512_add_ps(sum, _mm512_loadu_ps(table + index[t * count + k] * width + i));
            _mm512_storeu_ps(to + i, sum);
        }
    }
}

EXPORT void embed_back(const float *dx, float *table, const int32_t *index, long count, float *const *tables, const int32_t *ngrams,
                       const long *widths, long tables_count, long n, long width) {
    for (long t = 0; t < n; t++) {
        const float *from = dx + t * width;
        for (long k = 0, at = 0; k < tables_count; at += widths[k++]) {
            float *row = tables[k] + (long)ngrams[t * tables_count + k] * widths[k];
            for (long i = 0; i < widths[k]; i += 16)
                _mm512_storeu_ps(row + i, _mm512_add_ps(_mm512_loadu_ps(row + i), _mm512_loadu_ps(from + at + i)));
        }
        for (long k = 0; k < count; k++) {
            float *row = table + (long)index[t * count + k] * width;
            for (long i = 0; i < width; i += 16)
                _mm512_storeu_ps(row + i, _mm512_add_ps(_mm512_loadu_ps(row + i), _mm512_loadu_ps(from + i)));
        }
    }
}

// The cross-entropy of rows of sums, those whose target is 0..255, in nats; its gradient times `factor` in `gradients`.
static double entropy(float *sums, bf16 *gradients, long column, const float *scale, const int64_t *candidates, const int32_t *buckets,
                      long count, const float *biases, float *dbiases, const int64_t *target, long n, float factor) {
    double loss = 0;
    for (long t = 0; t < n; t++) {
        bf16 *p = gradients + t * 32;
        float *row = sums + t * 256;
        if (target[t] < 0) {
            for (long i = 0; i < 8; i++) memset(p + i * column, 0, 32 * sizeof *p);
            continue;
        }
        for (long i = 0; i < 256; i += 16) _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), _mm512_loadu_ps(scale + i)));
        for (long k = 0; k < count; k++)
            if (buckets[t * count + k] > 0) row[candidates[t * count + k]] += biases[buckets[t * count + k]];
        vf most = _mm512_loadu_ps(row);
        for (long i = 16; i < 256; i += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(row + i));
        float top = _mm512_reduce_max_ps(most), wanted = row[target[t]];
        vf sum = _mm512_setzero_ps();
        for (long i = 0; i < 256; i += 16) {
            vf x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), set1(top)), set1(LOG2E));
            vf e = power(_mm512_max_ps(x, set1(-126)));
            _mm512_storeu_ps(row + i, e);
            sum = _mm512_add_ps(sum, e);
        }
        float total = _mm512_reduce_add_ps(sum);
        loss += logf(total) + top - wanted;
        for (long i = 0; i < 256; i += 16)
            _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), set1(factor / total)));
        row[target[t]] -= factor;
        for (long k = 0; k < count; k++)
            if (buckets[t * count + k] > 0) dbiases[buckets[t * count + k]] += row[candidates[t * count + k]];
        for (long i = 0; i < 256; i += 16) narrow(p + i / 32 * column + i % 32, _mm512_loadu_ps(row + i));
    }
    return loss;
}

// AdamW without decay over `n` values; the gradients of all `count` processes are added, and become 0.
EXPORT void adam(float *p, float *m, float *v, float *const *gradients, long count, long n, float rate, float beta1, float beta2,
                 float fix1, float root_fix2, float epsilon, float limit) {
    for (long i = 0; i < n; i += 16) {
        long left = n - i;
        __mmask16 k = left < 16 ? (1u << left) - 1 : 0xFFFF;
        vf g = _mm512_setzero_ps();
        for (long c = 0; c < count; c++) {
            g = _mm512_add_ps(g, _mm512_maskz_loadu_ps(k, gradients[c] + i));
            _mm512_mask_storeu_ps(gradients[c] + i, k, _mm512_setzero_ps());
        }
        vf first = _mm512_maskz_loadu_ps(k, m + i), second = _mm512_maskz_loadu_ps(k, v + i);
        first = _mm512_fmadd_ps(first, set1(beta1), _mm512_mul_ps(g, set1(1 - beta1)));
        second = _mm512_fmadd_ps(second, set1(beta2), _mm512_mul_ps(_mm512_mul_ps(g, g), set1(1 - beta2)));
        vf below = _mm512_fmadd_ps(_mm512_sqrt_ps(second), set1(root_fix2), set1(epsilon));
        vf x = _mm512_maskz_loadu_ps(k, p + i);
        x = _mm512_fnmadd_ps(_mm512_div_ps(first, below), set1(rate * fix1), x);
        if (limit > 0) x = clamp(x, -limit, limit);
        _mm512_mask_storeu_ps(m + i, k, first);
        _mm512_mask_storeu_ps(v + i, k, second);
        _mm512_mask_storeu_ps(p + i, k, x);
    }
}

// ---- Attention ----
//
// A query sees the keys of distance 0..63 in its lane. In tiles of 16 positions, query tile a sees the key tiles a - 4 to
// a: these five are "the band". Products take "the strip", six from the even one at or before a - 4 on (96 keys), so that
// pairs of tiles are whole steps of 32; the sixth has weights of 0. Before a row of positions lie 6 tiles of zeros.

enum { HEAD = 32, WINDOW = 64, TILE = 16, STRIP = 96, BAND = 5, BEFORE = 6 };
#define MASKED -1e30f
#define LEAST -90 // log2 of a weight that is none: denormal numbers, which take a hundred times as long, are far

typedef struct {
    long time, heads, kv_heads, column; // column: values of one column of 32, of all rows of positions
    float unit; // of scores
    const float *bias; // (heads, WINDOW) by distance
} Attention;

typedef struct { // the operands of one key-value head: 1 KB for each 16 keys
    uint32_t *transposed; // [tile][pair of d][key]
    uint32_t *pairs; // [pair of tiles][half of d][pair of keys][d]
} Operand;

static long attention_room(long time) { return (time / TILE + BEFORE + 2) * 1024L; } // bytes of one operand

// Lay out the 16 rows at `from` as tile `tile` of an operand.
INLINE void lay_out(Operand o, long tile, const bf16 *from) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * HEAD);
    store_pairs(o.pairs + (tile >> 1) * 512 + (tile & 1) * 128, r);
    transpose(r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(o.transposed + tile * 256 + i * 16, r[i]);
}

// scores = Q K^T of 16 rows of q and the strip
INLINE void strip_product(float scores[16][STRIP], const bf16 *q, const uint32_t *transposed, long first) {
    _tile_loadd(0, q, 64);
    for (long j = 0; j < 6; j += 2) {
        _tile_loadd(1, transposed + (first + j) * 256, 64);
        _tile_loadd(2, transposed + (first + j + 1) * 256, 64);
        _tile_zero(3);
        _tile_zero(4);
        _tile_dpbf16ps(3, 0, 1);
        _tile_dpbf16ps(4, 0, 2);
        _tile_stored(3, &scores[0][j * 16], STRIP * 4);
        _tile_stored(4, &scores[0][j * 16 + 16], STRIP * 4);
    }
}

// out = P V of 16 rows of the strip
INLINE void strip_sum(float out[16][HEAD], const bf16 p[16][STRIP], const uint32_t *pairs, long first) {
    _tile_zero(3);
    _tile_zero(4);
    for (long j = 0; j < 3; j++) {
        _tile_loadd(0, &p[0][j * 32], STRIP * 2);
        _tile_loadd(1, pairs + ((first >> 1) + j) * 512, 64);
        _tile_loadd(2, pairs + ((first >> 1) + j) * 512 + 256, 64);
        _tile_dpbf16ps(3, 0, 1);
        _tile_dpbf16ps(4, 0, 2);
    }
    _tile_stored(3, &out[0][0], HEAD * 4);
    _tile_stored(4, &out[0][16], HEAD * 4);
}

// The softmax of a row of scores. `reach`: the biases of the band's keys. `unseen`: how many keys at its begin are of
// another lane. All in powers of two. Returns log2 of the sum that divides.
INLINE float softmax(vf p[BAND], const float *scores, const float *reach, long unseen, float unit) {
    vf most = set1(MASKED);
    const __m512i ascending = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < BAND; i++) {
        __mmask16 seen = _mm512_cmpge_epi32_mask(ascending, _mm512_set1_epi32((int)(unseen - i * 16)));
        vf s = _mm512_fmadd_ps(_mm512_load_ps(scores + i * 16), set1(unit), _mm512_loadu_ps(reach + i * 16));
        p[i] = _mm512_mask_mov_ps(set1(MASKED), seen, s);
        most = _mm512_max_ps(most, p[i]);
    }
    float highest = _mm512_reduce_max_ps(most);
    vf top = set1(highest), sum = _mm512_setzero_ps();
    for (int i = 0; i < BAND; i++) {
        p[i] = coarse_power(_mm512_max_ps(_mm512_sub_ps(p[i], top), set1(LEAST)));
        sum = _mm512_add_ps(sum, p[i]);
    }
    float total = _mm512_reduce_add_ps(sum);
    for (int i = 0; i < BAND; i++) p[i] = _mm512_mul_ps(p[i], set1(1 / total));
    return highest + log2f(total);
}

// The same once more, of one row of scores whose sum is known. Keys that are not seen have 2^LEAST.
INLINE void softmax_again(vf p[BAND], const float *scores, const float *reach, long unseen, float unit, float sum) {
    const __m512i ascending = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < BAND; i++) {
        __mmask16 seen = _mm512_cmpge_epi32_mask(ascending, _mm512_set1_epi32((int)(unseen - i * 16)));
        vf s = _mm512_fmadd_ps(_mm512_load_ps(scores + i * 16), set1(unit), _mm512_sub_ps(_mm512_loadu_ps(reach + i * 16), set1(sum)));
        p[i] = coarse_power(_mm512_max_ps(_mm512_mask_mov_ps(set1(LEAST), seen, s), set1(LEAST)));
    }
}

// The biases of head h against the strip, one after another: of key c of the query at distance d from the strip's begin
// it is reach[95 - d + c]; in powers of two
static void reach_of(float reach[128], const float *bias) {
    for (int i = 0; i < 128; i++) reach[i] = 95 - i >= 0 && 95 - i < WINDOW ? bias[95 - i] * LOG2E : MASKED;
}

INLINE long strip_of(long a) { return ((a + 2) & ~1L) + (BEFORE - 6); } // the operand's tile where the strip of a begins

static void operands(Operand *o, uint8_t *room, const Attention *s, const bf16 *first) {
    long size = attention_room(s->time);
    for (long g = 0; g < s->kv_heads; g++) {
        o[g].transposed = (uint32_t *)(room + 2 * g * size);
        o[g].pairs = (uint32_t *)(room + (2 * g + 1) * size);
        memset(o[g].transposed, 0, BEFORE * 1024);
        memset(o[g].pairs, 0, BEFORE * 1024);
        memset(o[g].transposed + (s->time / TILE + BEFORE) * 256, 0, 2048);
        memset(o[g].pairs + (s->time / TILE + BEFORE) * 256, 0, 2048);
        for (long j = 0; j < s->time / TILE; j++) lay_out(o[g], j + BEFORE, first + g * s->column + j * TILE * HEAD);
    }
}

// One row of positions. qkv: integers, a column for each head, then those of keys and of values; start (time,); y: a
// column of integers for each head;
// sums (heads, time): log2 of what the weights were divided by. room: 4 kv_heads attention_room(time) bytes.
static __attribute__((noinline)) void attend(const Attention *s, const bf16 *qkv, const int32_t *start, bf16 *y, float *sums, uint8_t *room) {
    long size = 2 * s->kv_heads * attention_room(s->time);
    Operand k[8], v[8];
    operands(k, room, s, qkv + s->heads * s->column);
    operands(v, room + size, s, qkv + (s->heads + s->kv_heads) * s->column);
    float scores[16][STRIP] __attribute__((aligned(64))), out[16][HEAD] __attribute__((aligned(64))), reach[128];
    bf16 p[16][STRIP] __attribute__((aligned(64)));
    for (long h = 0; h < s->heads; h++) {
        long g = h / (s->heads / s->kv_heads);
        reach_of(reach, s->bias + h * WINDOW);
        for (long a = 0; a < s->time / TILE; a++) {
            long first = strip_of(a), origin = (first - BEFORE) * TILE, band = (a & 1) * TILE;
            strip_product(scores, qkv + h * s->column + a * TILE * HEAD, k[g].transposed, first);
            for (long i = 0; i < 16; i++) {
                vf row[BAND];
                long t = a * TILE + i, shift = 95 - (t - origin) + band;
                sums[h * s->time + t] = softmax(row, scores[i] + band, reach + shift, start[t] - origin - band, s->unit * LOG2E);
                for (int c = 0; c < BAND; c++) narrow(&p[i][band + c * 16], row[c]);
                narrow(&p[i][80 - 5 * band], _mm512_setzero_ps());
            }
            strip_sum(out, p, v[g].pairs, first);
            for (long i = 0; i < 16; i++)
                for (int c = 0; c < HEAD; c += 16)
                    narrow(y + h * s->column + (a * TILE + i) * HEAD + c, clamp(whole(_mm512_load_ps(&out[i][c])), -LIMIT, LIMIT));
        }
    }
}

// sums[tile of the strip] (6, 32 d, 16 keys) += A B, A: 32 rows of d of 32 positions, B: pairs of positions by keys
INLINE void strip_add(float *sums, const bf16 turned[HEAD][32], const uint32_t pairs[16][STRIP]) {
    _tile_loadd(0, turned[0], 64);
    _tile_loadd(1, turned[16], 64);
    for (long j = 0; j < 6; j++) {
        _tile_loadd(2, &pairs[0][j * 16], STRIP * 4);
        _tile_loadd(3, sums + j * 512, 64);
        _tile_loadd(4, sums + j * 512 + 256, 64);
        _tile_dpbf16ps(3, 0, 2);
        _tile_dpbf16ps(4, 1, 2);
        _tile_stored(3, sums + j * 512, 64);
        _tile_stored(4, sums + j * 512 + 256, 64);
    }
}

INLINE void join(uint32_t *to, const vf even[BAND], const vf odd[BAND], long band, long rest) {
    for (int c = 0; c < BAND; c++) {
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even[c]));
        __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd[c])), 16);
        _mm512_storeu_si512(to + band + c * 16, _mm512_or_si512(low, high));
    }
    _mm512_storeu_si512(to + rest, _mm512_setzero_si512());
}

// sums (tiles, 32 d, 16 keys) -> gradients of the integers at `to`, which stand at `at`
static void give_back(const float *sums, const bf16 *at, bf16 *to, long tiles, float factor) {
    for (long j = 0; j < tiles; j++)
        for (int half = 0; half < 2; half++) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(sums + j * 512 + half * 256 + i * 16);
            transpose(r);
            for (int i = 0; i < 16; i++) {
                long place = (j * TILE + i) * HEAD + half * 16;
                vf d = _mm512_mul_ps(_mm512_castsi512_ps(r[i]), set1(factor));
                narrow(to + place, _mm512_maskz_mov_ps(inside(wide(at + place)), d));
            }
        }
}

// The gradient of `attend`: dy, like y, of which what is at a limit of y is ignored; dqkv like qkv; dbias
// (heads, WINDOW) is added to. room: 4 kv_heads attention_room(time) + 2 attention_sums(time) bytes.
static long attention_sums(long time) { return (time / TILE + BEFORE + 2) * 2048L; }

static __attribute__((noinline)) void attend_back(const Attention *s, const bf16 *qkv, const int32_t *start, const bf16 *y, const float *sums, bf16 *dy,
                        bf16 *dqkv, float *dbias, uint8_t *room) {
    long size = 2 * s->kv_heads * attention_room(s->time), group = s->heads / s->kv_heads, tiles = s->time / TILE;
    Operand k[8], v[8];
    for (long h = 0; h < s->heads; h++)
        for (long i = h * s->column; i < h * s->column + s->time * HEAD; i += 16)
            narrow(dy + i, _mm512_maskz_mov_ps(inside(wide(y + i)), wide(dy + i)));
    operands(k, room, s, qkv + s->heads * s->column);
    operands(v, room + size, s, qkv + (s->heads + s->kv_heads) * s->column);
    float *dk = (float *)(room + 2 * size), *dv = (float *)(room + 2 * size + attention_sums(s->time));
    static __thread float scores[16][STRIP] __attribute__((aligned(64))), dp[16][STRIP] __attribute__((aligned(64)));
    static __thread float out[16][HEAD] __attribute__((aligned(64)));
    static __thread bf16 ds[16][STRIP] __attribute__((aligned(64))), turned[HEAD][32] __attribute__((aligned(64)));
    static __thread uint32_t p_pairs[16][STRIP] __attribute__((aligned(64))), ds_pairs[16][STRIP] __attribute__((aligned(64)));
    static __thread float reach[16][128], dreach[16][128];
    for (long h = 0; h < s->heads; h++) reach_of(reach[h], s->bias + h * WINDOW);
    memset(dreach, 0, sizeof dreach);
    for (long g = 0; g < s->kv_heads; g++) {
        memset(dk, 0, 2 * attention_sums(s->time));
        for (long pair = g * group; pair < (g + 1) * group; pair += 2)
            for (long a = 0; a < tiles; a++) {
                long first = strip_of(a), origin = (first - BEFORE) * TILE, band = (a & 1) * TILE, rest = 80 - 5 * band;
                for (long side = 0; side < 2; side++) {
                    long h = pair + side;
                    strip_product(scores, qkv + h * s->column + a * TILE * HEAD, k[g].transposed, first);
                    strip_product(dp, dy + h * s->column + a * TILE * HEAD, v[g].transposed, first);
                    for (long i = 0; i < 16; i += 2) {
                        vf p[2][BAND], d[2][BAND];
                        for (int odd = 0; odd < 2; odd++) {
                            long t = a * TILE + i + odd, shift = 95 - (t - origin) + band;
                            const float *given = &dp[i + odd][band];
                            softmax_again(p[odd], scores[i + odd] + band, reach[h] + shift, start[t] - origin - band,
                                          s->unit * LOG2E, sums[h * s->time + t]);
                            vf along = _mm512_setzero_ps();
                            for (int c = 0; c < BAND; c++) along = _mm512_fmadd_ps(p[odd][c], _mm512_load_ps(given + c * 16), along);
                            vf mean = set1(_mm512_reduce_add_ps(along));
                            for (int c = 0; c < BAND; c++) {
                                d[odd][c] = _mm512_mul_ps(p[odd][c], _mm512_sub_ps(_mm512_load_ps(given + c * 16), mean));
                                float *to = &dreach[h][shift + c * 16];
                                _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), d[odd][c]));
                                narrow(&ds[i + odd][band + c * 16], d[odd][c]);
                            }
                            narrow(&ds[i + odd][rest], _mm512_setzero_ps());
                        }
                        join(p_pairs[side * 8 + i / 2], p[0], p[1], band, rest);
                        join(ds_pairs[side * 8 + i / 2], d[0], d[1], band, rest);
                    }
                    strip_sum(out, ds, k[g].pairs, first);
                    for (long i = 0; i < 16; i++)
                        for (int c = 0; c < HEAD; c += 16) {
                            long place = h * s->column + (a * TILE + i) * HEAD + c;
                            vf value = _mm512_mul_ps(_mm512_load_ps(&out[i][c]), set1(s->unit));
                            narrow(dqkv + place, _mm512_maskz_mov_ps(inside(wide(qkv + place)), value));
                        }
                }
                for (int side = 0; side < 2; side++)
                    turn(&turned[0][side * 16], qkv + (pair + side) * s->column + a * TILE * HEAD);
                strip_add(dk + first * 512, turned, ds_pairs);
                for (int side = 0; side < 2; side++)
                    turn(&turned[0][side * 16], dy + (pair + side) * s->column + a * TILE * HEAD);
                strip_add(dv + first * 512, turned, p_pairs);
            }
        long at = (s->heads + g) * s->column;
        give_back(dk + BEFORE * 512, qkv + at, dqkv + at, tiles, s->unit);
        at += s->kv_heads * s->column;
        give_back(dv + BEFORE * 512, qkv + at, dqkv + at, tiles, 1);
    }
    for (long h = 0; h < s->heads; h++)
        for (int i = 32; i < 96; i++) dbias[h * WINDOW + 95 - i] += dreach[h][i];
}
// ---- Products ----
//
// The second factor lies packed: [32 of its columns][32 of its rows][half of the columns], each a tile of 1 KB. 64 rows
// of the first factor are multiplied at a time, in blocks of 32 by 32 sums that go to an "ending" while they are in the
// first cache.

typedef struct { // the weights of products that have their inputs in common
    long outputs, inputs;
    uint32_t *forward, *back; // packed: integers by inputs; what gradients pass through, by outputs
    float *scale; // (outputs,): what the sums are worth
    float *sums; // gradient of the weights, in blocks: [32 of the wide side][32 of the narrow side][4 tiles]
    long wide_outputs; // whether the outputs are the wide side
} Product;

typedef struct {
    float *x; // sums (BLOCK, width) of a whole block of rows, or the residual stream
    const float *before, *scale;
    bf16 *low;
    uint8_t *hidden;
    long width; // of x, before
    long n; // positions of low, hidden
    float factor;
} Target;

// Finishes row i of the 32 by 32 sums c of a block that begins at `row` and `column`.
typedef void Ending(const Target *to, const float c[32][32], long row, long column, long i);

// Multiply BLOCK of n rows, `row` the first of them, by all `columns` columns of a packed factor. A block of sums is
// finished, piece by piece, while the tiles of the next one are multiplied.
INLINE void product(const bf16 *a, long n, long row, long inputs, const uint32_t *packed, long columns, Ending ending, const Target *to) {
    float sums[2][32][32] __attribute__((aligned(64)));
    long steps = inputs / 32, blocks = columns / 32 * (BLOCK / 32);
    for (long block = 0; block <= blocks; block++) {
        const float(*finished)[32] = sums[(block & 1) ^ 1];
        long before = row + (block - 1) % (BLOCK / 32) * 32, column = (block - 1) / (BLOCK / 32) * 32;
        if (block == blocks) {
            for (long i = 0; i < 32; i++) ending(to, finished, before, column, i);
            break;
        }
        const bf16 *first = a + (row + block % (BLOCK / 32) * 32) * 32;
        const uint32_t *second = packed + block / (BLOCK / 32) * 32 * inputs / 2;
        float(*c)[32] = sums[block & 1];
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long s = 0; s < steps; s++) {
            _tile_loadd(4, first + s * n * 32, 64);
            _tile_loadd(6, second + s * 512, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, second + s * 512 + 256, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, first + s * n * 32 + 512, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            if (block)
                for (long i = s * 32 / steps; i < (s + 1) * 32 / steps; i++) ending(to, finished, before, column, i);
        }
        _tile_stored(0, &c[0][0], 128);
        _tile_stored(1, &c[0][16], 128);
        _tile_stored(2, &c[16][0], 128);
        _tile_stored(3, &c[16][16], 128);
    }
}

INLINE vf scaled(const Target *to, const float *c, long column) {
    return _mm512_mul_ps(_mm512_load_ps(c), _mm512_loadu_ps(to->scale + column));
}
INLINE void narrow_both(bf16 *to, vf first, vf second) { _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first)); }

INLINE void to_integers(const Target *to, const float c[32][32], long row, long column, long i) {
    narrow_both(to->low + column * to->n + (row + i) * 32, clamp(whole(scaled(to, c[i], column)), -LIMIT, LIMIT),
                clamp(whole(scaled(to, &c[i][16], column + 16)), -LIMIT, LIMIT));
}
INLINE void to_squares(const Target *to, const float c[32][32], long row, long column, long i) {
    const vf rounding = set1(12582912); // 1.5 * 2^23: a sum with it has no fraction
    long place = column * to->n + (row + i) * 32;
    vf square[2];
    for (int k = 0; k < 2; k++) {
        __m512i h = _mm512_cvtps_epi32(scaled(to, &c[i][k * 16], column + k * 16));
        h = _mm512_min_epi32(_mm512_max_epi32(h, _mm512_setzero_si512()), _mm512_set1_epi32(255));
        _mm_storeu_si128((__m128i *)(to->hidden + place + k * 16), _mm512_cvtepi32_epi8(h));
        vf f = _mm512_cvtepi32_ps(h);
        square[k] = _mm512_sub_ps(_mm512_fmadd_ps(_mm512_mul_ps(f, f), set1(to->factor), rounding), rounding);
    }
    narrow_both(to->low + place, square[0], square[1]);
}
INLINE void from_squares(const Target *to, const float c[32][32], long row, long column, long i) { // gradients
    long place = column * to->n + (row + i) * 32;
    vf g[2];
    for (int k = 0; k < 2; k++) {
        __m512i h = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(to->hidden + place + k * 16)));
        g[k] = _mm512_mul_ps(_mm512_load_ps(&c[i][k * 16]), _mm512_cvtepi32_ps(h));
        g[k] = _mm512_maskz_mul_ps(_mm512_cmplt_epi32_mask(h, _mm512_set1_epi32(255)), g[k], set1(to->factor));
    }
    narrow_both(to->low + place, g[0], g[1]);
}
INLINE void to_stream(const Target *to, const float c[32][32], long row, long column, long i) {
    for (long k = 0, at = (row + i) * to->width + column; k < 32; k += 16)
        _mm512_storeu_ps(to->x + at + k, _mm512_add_ps(scaled(to, &c[i][k], column + k), _mm512_loadu_ps(to->before + at + k)));
}
INLINE void to_bf16(const Target *to, const float c[32][32], long row, long column, long i) {
    narrow_both(to->low + column * to->n + (row + i) * 32, _mm512_load_ps(c[i]), _mm512_load_ps(&c[i][16]));
}
INLINE void to_block(const Target *to, const float c[32][32], long row, long column, long i) {
    float *x = to->x + (row % BLOCK + i) * to->width + column;
    _mm512_storeu_ps(x, _mm512_load_ps(c[i]));
    _mm512_storeu_ps(x + 16, _mm512_load_ps(&c[i][16]));
}

// Round the weights (rows, inputs) of outputs `begin` on as inference does, and pack them. unit: of the inputs; worth:
// the unit of what the sums become.
EXPORT void quantise(const Product *w, const float *weights, long begin, long rows, float unit, float worth) {
    bf16 block[2][16][MOST_WIDTH] __attribute__((aligned(64)));
    long inputs = w->inputs;
    for (long n = 0; n < rows; n++) {
        const float *row = weights + n * inputs;
        vf most = set1(1e-8f);
        for (long i = 0; i < inputs; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(row + i)));
        float scale = _mm512_reduce_max_ps(most) / LIMIT;
        w->scale[begin + n] = scale * worth / unit;
        for (long i = 0; i < inputs; i += 16) {
            vf v = whole(_mm512_mul_ps(_mm512_loadu_ps(row + i), set1(1 / scale)));
            narrow(&block[0][n % 16][i], v);
            narrow(&block[1][n % 16][i], _mm512_mul_ps(v, set1(scale / unit)));
        }
        if (n % 16 < 15) continue;
        long tile = (begin + n) / 16;
        for (long k = 0; k < inputs; k += 32) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(&block[1][i][k]);
            store_pairs(w->back + k * w->outputs / 2 + (tile / 2) * 512 + (tile & 1) * 128, r);
            for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(&block[0][i][k]);
            transpose(r);
            uint32_t *to = w->forward + (tile / 2 * 32) * inputs / 2 + k / 32 * 512 + (tile & 1) * 256;
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * 16, r[i]);
        }
    }
}

// Add to `w->sums` what n positions give. room: n (2 a + 64) bytes for a narrow side of `a` values.
static void learn(const Product *w, const bf16 *gradient, const bf16 *inputs, long n, uint8_t *room) {
    const bf16 *narrow_side = w->wide_outputs ? inputs : gradient, *wide_side = w->wide_outputs ? gradient : inputs;
    long a = w->wide_outputs ? w->inputs : w->outputs, b = w->wide_outputs ? w->outputs : w->inputs;
    enum { SPAN = 512 }; // positions: 32 columns of the wide side are half of the first cache then
    bf16 *turned = (bf16 *)room; // [32 of a][32 of the positions][half of a's][16][32]: tiles of 1 KB
    uint32_t *panel = (uint32_t *)(room + 2 * n * a);
    for (long i = 0; i < a; i += 32)
        for (long t = 0; t < n; t += 16) turn(turned + i * n + t / 32 * 1024 + (t / 16 & 1) * 16, narrow_side + i * n + t * 32);
    for (long j = 0; j < b; j += 32)
        for (long s = 0; s < n; s += SPAN) {
            long steps = (n - s < SPAN ? n - s : SPAN) / 32;
            for (long t = 0; t < steps * 32; t += 16) {
                __m512i r[16];
                for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(wide_side + j * n + (s + t + i) * 32);
                store_pairs(panel + t / 32 * 512 + (t / 16 & 1) * 128, r);
            }
            for (long i = 0; i < a; i += 32) {
                float *c = w->sums + j * a + i * 32;
                const bf16 *first = turned + i * n + s * 32;
                const uint32_t *second = panel;
                _tile_loadd(0, c, 64);
                _tile_loadd(1, c + 256, 64);
                _tile_loadd(2, c + 512, 64);
                _tile_loadd(3, c + 768, 64);
                for (long k = 0; k < steps; k++) {
                    for (int q = 0; q < 4; q++) _mm_prefetch((const char *)(c + 1024 + (k & 15) * 64 + q * 16), _MM_HINT_T0);
                    _tile_loadd(4, first + k * 1024, 64);
                    _tile_loadd(6, second + k * 512, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_loadd(7, second + k * 512 + 256, 64);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_loadd(5, first + k * 1024 + 512, 64);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, c, 64);
                _tile_stored(1, c + 256, 64);
                _tile_stored(2, c + 512, 64);
                _tile_stored(3, c + 768, 64);
            }
        }
}

// gradient (rows, inputs) of outputs `begin` on += the sums * factor; the sums become 0.
EXPORT void take(const Product *w, float *gradient, long begin, long rows, float factor) {
    long side = w->wide_outputs ? w->inputs : w->outputs;
    for (long o = begin; o < begin + rows; o += 16)
        for (long i = 0; i < w->inputs; i += 16) {
            long a = w->wide_outputs ? i : o, z = w->wide_outputs ? o : i; // of the narrow side, of the wide side
            float *c = w->sums + z / 32 * 32 * side + a / 32 * 1024 + (a / 16 & 1) * 512 + (z / 16 & 1) * 256;
            __m512i r[16];
            for (int k = 0; k < 16; k++) r[k] = _mm512_loadu_si512(c + k * 16), _mm512_storeu_si512(c + k * 16, _mm512_setzero_si512());
            if (w->wide_outputs) transpose(r);
            for (int k = 0; k < 16; k++) {
                float *to = gradient + (o - begin + k) * w->inputs + i;
                _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_castsi512_ps(r[k]), set1(factor), _mm512_loadu_ps(to)));
            }
        }
}

// ---- Norms ----

// u = the RMSNorm of x as integers, r = what it multiplied by: `count` of n rows from `row` on.
static void normed(const float *x, bf16 *u, float *r, long n, long row, long count, long width, float unit) {
    for (long t = row; t < row + count; t++) {
        vf squares = _mm512_setzero_ps();
        for (long i = 0; i < width; i += 16) {
            vf v = _mm512_loadu_ps(x + t * width + i);
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        r[t] = 1 / sqrtf(_mm512_reduce_add_ps(squares) / width + 1e-6f);
        for (long i = 0; i < width; i += 16) {
            vf v = _mm512_mul_ps(_mm512_loadu_ps(x + t * width + i), set1(r[t] * unit));
            narrow(u + (i & ~31L) * n + t * 32 + (i & 31), clamp(whole(v), -LIMIT, LIMIT));
        }
    }
}

// dx += the gradient of a norm of which `du` (count, width) is that of the integers; low = dx as bf16.
static void normed_back(float *dx, const float *x, const bf16 *u, const float *r, float *du, bf16 *low, long n, long row,
                        long count, long width, float unit) {
    for (long t = row; t < row + count; t++, du += width) {
        vf along = _mm512_setzero_ps();
        long at = t * width;
        for (long i = 0; i < width; i += 16) {
            vf d = _mm512_maskz_loadu_ps(inside(wide(u + (i & ~31L) * n + t * 32 + (i & 31))), du + i);
            _mm512_storeu_ps(du + i, d);
            along = _mm512_fmadd_ps(d, _mm512_loadu_ps(x + at + i), along);
        }
        float mean = _mm512_reduce_add_ps(along) * r[t] * r[t] / width;
        for (long i = 0; i < width; i += 16) {
            vf d = _mm512_fnmadd_ps(_mm512_loadu_ps(x + at + i), set1(mean), _mm512_loadu_ps(du + i));
            d = _mm512_fmadd_ps(d, set1(r[t] * unit), _mm512_loadu_ps(dx + at + i));
            _mm512_storeu_ps(dx + at + i, d);
            narrow(low + (i & ~31L) * n + t * 32 + (i & 31), d);
        }
    }
}

// ---- The network ----

typedef struct {
    long rows, time, width, heads, kv_heads, hidden; // of a span: rows of positions, side by side in all arrays
    float act, hidden_unit, square_unit, score_unit;
    uint8_t *room; // `room_of` bytes, at a multiple of 64
} Shape;

typedef struct {
    const Product *qkv, *out, *up, *down;
    const float *distance;
    float *distance_gradient;
} Layer;

typedef struct { // what a layer's backward pass wants of its forward pass, for a span
    float *x, *middle; // residual stream before attention, and before the feed-forward part
    bf16 *u, *u2, *qkv, *y, *squares; // integers
    uint8_t *hidden;
    float *r, *r2; // what the norms multiplied by
    float *sums; // (rows, heads, time), see `attend`
} Kept;

typedef struct { // gradients of a span
    float *dx; // of the residual stream
    bf16 *low, *middle, *dqkv, *dy, *wide; // of it as bf16 behind and amid a layer; of qkv; of y; of hidden units
} Gradients;

static long attention_bytes(const Shape *s) { return 4 * s->kv_heads * attention_room(s->time) + 2 * attention_sums(s->time); }
static long learning_bytes(const Shape *s) { return s->rows * s->time * (2 * (s->width + 512) + 64); }

EXPORT long room_of(const Shape *s) {
    return attention_bytes(s) > learning_bytes(s) ? attention_bytes(s) : learning_bytes(s);
}

EXPORT void embed_span(const Shape *s, const Kept *first, const float *table, const int32_t *index, long count,
                       const float *const *tables, const int32_t *ngrams, const long *widths, long tables_count) {
    embed(first->x, table, index, count, tables, ngrams, widths, tables_count, s->rows * s->time, s->width);
    normed(first->x, first->u, first->r, s->rows * s->time, 0, s->rows * s->time, s->width, s->act);
}

// From `k->x`, `k->u` to the next layer's `x`, `u`, `r`. start (rows, time).
EXPORT void forward(const Shape *s, const Layer *l, const Kept *k, const int32_t *start, float *x, bf16 *u, float *r) {
    long n = s->rows * s->time, width = s->width, inner = s->heads * HEAD;
    Attention attention = {s->time, s->heads, s->kv_heads, n * HEAD, 1 / s->score_unit, l->distance};
    configure();
    Target qkv = {.low = k->qkv, .scale = l->qkv->scale, .n = n};
    for (long t = 0; t < n; t += BLOCK) product(k->u, n, t, width, l->qkv->forward, l->qkv->outputs, to_integers, &qkv);
    for (long row = 0; row < s->rows; row++) {
        long at = row * s->time;
        attend(&attention, k->qkv + at * HEAD, start + at, k->y + at * HEAD, k->sums + at * s->heads, s->room);
    }
    Target middle = {.x = k->middle, .before = k->x, .scale = l->out->scale, .width = width};
    Target up = {.low = k->squares, .hidden = k->hidden, .scale = l->up->scale, .n = n,
                 .factor = s->square_unit / (s->hidden_unit * s->hidden_unit)};
    Target down = {.x = x, .before = k->middle, .scale = l->down->scale, .width = width};
    for (long t = 0; t < n; t += BLOCK) {
        product(k->y, n, t, inner, l->out->forward, width, to_stream, &middle);
        normed(k->middle, k->u2, k->r2, n, t, BLOCK, width, s->act);
        product(k->u2, n, t, width, l->up->forward, s->hidden, to_squares, &up);
        product(k->squares, n, t, s->hidden, l->down->forward, width, to_stream, &down);
        normed(x, u, r, n, t, BLOCK, width, s->act);
    }
    _tile_release();
}

// From the gradient of a layer's outputs (`dx`, `low`) to that of its inputs, and to those of its weights.
EXPORT void backward(const Shape *s, const Layer *l, const Kept *k, const Gradients *g, const int32_t *start) {
    long n = s->rows * s->time, width = s->width, inner = s->heads * HEAD;
    float block[BLOCK * MOST_WIDTH] __attribute__((aligned(64)));
    Attention attention = {s->time, s->heads, s->kv_heads, n * HEAD, 1 / s->score_unit, l->distance};
    configure();
    learn(l->down, g->low, k->squares, n, s->room);
    Target wide_part = {.low = g->wide, .hidden = k->hidden, .n = n, .factor = 2 * s->square_unit / s->hidden_unit};
    Target rows = {.x = block, .width = width}, dy = {.low = g->dy, .n = n};
    for (long t = 0; t < n; t += BLOCK) {
        product(g->low, n, t, width, l->down->back, s->hidden, from_squares, &wide_part);
        product(g->wide, n, t, s->hidden, l->up->back, width, to_block, &rows);
        normed_back(g->dx, k->middle, k->u2, k->r2, block, g->middle, n, t, BLOCK, width, s->act);
        product(g->middle, n, t, width, l->out->back, inner, to_bf16, &dy);
    }
    learn(l->up, g->wide, k->u2, n, s->room);
    learn(l->out, g->middle, k->y, n, s->room);
    for (long row = 0; row < s->rows; row++) {
        long at = row * s->time, place = at * HEAD;
        attend_back(&attention, k->qkv + place, start + at, k->y + place, k->sums + at * s->heads, g->dy + place, g->dqkv + place,
                    l->distance_gradient, s->room);
    }
    learn(l->qkv, g->dqkv, k->u, n, s->room);
    for (long t = 0; t < n; t += BLOCK) {
        product(g->dqkv, n, t, l->qkv->outputs, l->qkv->back, width, to_block, &rows);
        normed_back(g->dx, k->x, k->u, k->r, block, g->low, n, t, BLOCK, width, s->act);
    }
    _tile_release();
}

// The head: the loss of a span in nats, summed, its gradient times `factor` in g->dx, g->low and in the weights' sums.
// x, u, r: of the last layer's outputs; g->wide holds the gradients of the logits.
EXPORT double head(const Shape *s, const Product *w, const float *x, const bf16 *u, const float *r, const Gradients *g,
                   const int64_t *candidates, const int32_t *buckets, long count, const float *biases, float *dbiases,
                   const int64_t *target, float factor) {
    long n = s->rows * s->time;
    float block[BLOCK * MOST_WIDTH] __attribute__((aligned(64)));
    double loss = 0;
    configure();
    Target logits = {.x = block, .width = 256}, rows = {.x = block, .width = s->width};
    memset(g->dx, 0, n * s->width * sizeof *g->dx);
    for (long t = 0; t < n; t += BLOCK) {
        product(u, n, t, s->width, w->forward, 256, to_block, &logits);
        loss += entropy(block, g->wide + t * 32, n * 32, w->scale, candidates + t * count, buckets + t * count, count, biases, dbiases,
                        target + t, BLOCK, factor);
        product(g->wide, n, t, 256, w->back, s->width, to_block, &rows);
        normed_back(g->dx, x, u, r, block, g->low, n, t, BLOCK, s->width, s->act);
    }
    learn(w, g->wide, u, n, s->room);
    _tile_release();
    return loss;
}
