// Attention of a row of positions, forward and backward.
//
// A query sees the keys of distance 0..63 in its lane. In tiles of 16 positions, query tile a sees the key tiles a - 4 to
// a: these five are "the band". Products take "the strip", six from the even one at or before a - 4 on (96 keys), so that
// pairs of tiles are whole steps of 32; the sixth has weights of 0. Before a row of positions lie 6 tiles of zeros.
#ifndef ATTENTION_H
#define ATTENTION_H
#include "vectors.h"

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

#endif
