// Products of matrices, what is done with their sums at once, and the gradients of their weights.
//
// The second factor lies packed: [32 of its columns][32 of its rows][half of the columns], each a tile of 1 KB. 64 rows
// of the first factor are multiplied at a time, in blocks of 32 by 32 sums that go to an "ending" while they are in the
// first cache.
#ifndef PRODUCTS_H
#define PRODUCTS_H
#include "vectors.h"

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

#endif
