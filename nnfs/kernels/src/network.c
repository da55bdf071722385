// The network's step: embeddings, attention, feed-forward part and frequencies of some columns of some lanes.
//
// Integers as nnfs.model.fixedpoint defines them, the same as those of nnfs.model.forward. Rows do not depend on each
// other. The steps after a product (scale, clamp, square, residual) are done on a block of outputs while it lies in
// the first cache.
#include "simd.h"
#include "team.h"
#include <math.h>

enum { ACT_LIMIT = 127, RESIDUAL_LIMIT = (1 << 18) - 1, HIDDEN_LIMIT = 255, SQUARE_SHIFT = 9, EMBEDDING_SHIFT = 4 };
enum { SCORE_SHIFT = 6, LOGIT_SHIFT = 2 };
enum { ACT, RESIDUAL, SQUARE, DOWN, LOGITS }; // what becomes of a product's sums; DOWN: RESIDUAL of positive inputs

// -------------------------------------------------------------------------------------------------------- products
#if defined LEVEL_AMX
enum { ROWS = 32, SPARSE = 0 };
#ifdef NNFS_EMULATE
typedef struct { i8 b[16][64]; int rows; } Tile;
static __thread Tile tiles[8];
#define _tile_zero(d) memset(tiles[d].b, 0, sizeof tiles[d].b)
INLINE void tile_load(int d, const void *p, i64 stride) {
    for (int r = 0; r < tiles[d].rows; r++) memcpy(tiles[d].b[r], (const char *)p + r * stride, 64);
}
INLINE void tile_store(int d, void *p, i64 stride) {
    for (int r = 0; r < tiles[d].rows; r++) memcpy((char *)p + r * stride, tiles[d].b[r], 64);
}
INLINE void tile_dot(int d, int a, int b) {
    for (int r = 0; r < tiles[d].rows; r++)
        for (int n = 0; n < 16; n++) {
            i32 sum = near32(tiles[d].b[r] + 4 * n);
            for (int k = 0; k < 16; k++)
                for (int q = 0; q < 4; q++) sum += (i32)tiles[a].b[r][4 * k + q] * tiles[b].b[k][4 * n + q];
            memcpy(tiles[d].b[r] + 4 * n, &sum, 4);
        }
}
#define _tile_loadd(d, p, s) tile_load(d, p, s)
#define _tile_stored(d, p, s) tile_store(d, p, s)
#define _tile_dpbssd(d, a, b) tile_dot(d, a, b)
#define _tile_release() (void)0
#endif

// Tiles 0 and 1 are the sums of the upper rows, 2 and 3 of the lower ones, 4 and 5 activations, 6 and 7 weights.
static void configure(int upper, int lower) {
    struct { u8 palette, start, unused[14]; u16 bytes[16]; u8 rows[16]; } __attribute__((packed)) c ALIGNED;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; i++) c.bytes[i] = 64, c.rows[i] = 16;
    c.rows[0] = c.rows[1] = c.rows[4] = (u8)upper;
    c.rows[2] = c.rows[3] = c.rows[5] = (u8)(lower ? lower : 16);
#ifdef NNFS_EMULATE
    for (int i = 0; i < 8; i++) tiles[i].rows = c.rows[i];
#else
    _tile_loadconfig(&c);
#endif
}

// The sums of at most 32 rows for 32 outputs, into a block of 32 by 32
INLINE void tile(const i8 *x, i64 stride, const u8 *weight, int inputs, i32 *block, int both) {
    const u8 *next = weight + PACKED * inputs;
    _tile_zero(0);
    _tile_zero(1);
    if (both) {
        _tile_zero(2);
        _tile_zero(3);
        for (int k = 0; k < inputs; k += 64) {
            _tile_loadd(6, weight + PACKED * k, 64);
            _tile_loadd(4, x + k, stride);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, next + PACKED * k, 64);
            _tile_dpbssd(1, 4, 7);
            _tile_loadd(5, x + 16 * stride + k, stride);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
        _tile_stored(2, block + 16 * 32, 128);
        _tile_stored(3, block + 16 * 32 + 16, 128);
    } else
        for (int k = 0; k < inputs; k += 64) {
            _tile_loadd(6, weight + PACKED * k, 64);
            _tile_loadd(4, x + k, stride);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, next + PACKED * k, 64);
            _tile_dpbssd(1, 4, 7);
        }
    _tile_stored(0, block, 128);
    _tile_stored(1, block + 16, 128);
}
#else
#if defined WIDE_VNNI
enum { ROWS = 8, VECTORS = 2, SPARSE = 40 }; // of a tile: its sums fill half of the registers; see `is_sparse`
#elif defined LEVEL_AVXVNNI
enum { ROWS = 6, VECTORS = 2, SPARSE = 28 };
#elif defined LEVEL_NEON
enum { ROWS = 6, VECTORS = 4, SPARSE = 28 };
#else
enum { ROWS = 4, VECTORS = 2, SPARSE = 50 };
#endif

// The sums of `rows` rows for VL VECTORS outputs, into a block with 32 integers a row
INLINE void tile(const i8 *x, i64 stride, const u8 *weight, int inputs, const i32 *first, i32 *block, const int rows,
                 const int positive) {
    vi sums[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = set1(first[r]);
    for (int k = 0; k < inputs; k += QUAD) {
        vi w[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            w[v] = load(weight + (v * VL / PACKED) * PACKED * inputs + PACKED * k + v * VL % PACKED * QUAD);
        for (int r = 0; r < rows; r++) {
            vi four = set1(near32(x + r * stride + k));
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = positive && !WEIGHT_OFFSET ? dot_small(sums[r][v], four, w[v]) : dot_stored(sums[r][v], w[v], four);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) store(block + 32 * r + VL * v, sums[r][v]);
}

// Where the sums of some rows begin: where 128 was added to each weight, it comes off again
INLINE void firsts(const i8 *x, int inputs, int rows, i32 *first) {
#if WEIGHT_OFFSET
    for (int r = 0; r < rows; r++) {
        vi ones = (vi){0} + 0x01010101, total = {0};
        for (int k = 0; k < inputs; k += 4 * VL) total = dot(total, ones, load(x + (i64)r * inputs + k));
        first[r] = -128 * hsum(total);
    }
#else
    (void)x, (void)inputs;
    memset(first, 0, (size_t)rows * sizeof *first);
#endif
}

// All rows of a tile, with the outputs of one block
INLINE void block_of(const i8 *x, const u8 *weight, int inputs, const i32 *first, i32 *block, const int rows, const int positive) {
    for (int n = 0; n < BLOCK_OUTPUTS; n += VL * VECTORS) {
        const u8 *own = weight + (n / PACKED) * PACKED * inputs + n % PACKED * QUAD;
        tile(x, inputs, own, inputs, first, block + n, rows, positive);
    }
}
#endif

// Finish a product (scale, clamp, square, residual) for `rows` rows of one block of outputs from `n` on
INLINE void finish(const Product *p, int n, const i32 *block, int rows, const int kind, void *out, i64 stride) {
    const int pre = p->pre, shift = p->shift; // read once: what is stored below might be *p, for all the compiler knows
    const vi half_pre = set1((1 << pre) >> 1), half = set1(1 << (shift - 1));
    for (int v = 0; v < BLOCK_OUTPUTS; v += VL) {
        const vi multiplier = load(p->multiplier + n + v);
        for (int r = 0; r < rows; r++) {
            vi y = sra(load(block + 32 * r + v) + half_pre, pre);
            y = sra(y * multiplier + half, shift);
            i64 at = r * stride + n + v;
            if (kind == RESIDUAL || kind == DOWN) {
                i32 *x = (i32 *)out + at;
                store(x, vmin(vmax(load(x) + y, set1(-RESIDUAL_LIMIT)), set1(RESIDUAL_LIMIT)));
            } else if (kind == LOGITS) {
                store((i32 *)out + at, y);
            } else if (kind == ACT) {
                store8((i8 *)out + at, vmin(vmax(y, set1(-ACT_LIMIT)), set1(ACT_LIMIT)));
            } else {
                y = vmin(vmax(y, set1(0)), set1(HIDDEN_LIMIT));
                store8((i8 *)out + at, (square(y) + (1 << (SQUARE_SHIFT - 1))) >> SQUARE_SHIFT);
            }
        }
    }
}

// (rows, inputs) int8 . packed weights, and what follows, into `out` (rows, outputs): outputs `from` to `to` - 1
INLINE void product_as(const Product *p, const i8 *x, int rows, void *out, const int from, const int to, const int kind) {
    const int inputs = p->inputs, outputs = p->outputs;
    const int size = kind == ACT || kind == SQUARE ? 1 : 4;
    i32 block[ROWS * 32] ALIGNED;
#ifdef LEVEL_AMX
    const int whole = rows / ROWS * ROWS, rest = rows - whole, upper = rest > 16 ? 16 : rest;
    if (whole) {
        configure(16, 16);
        for (int n = from; n < to; n += BLOCK_OUTPUTS)
            for (int r = 0; r < whole; r += ROWS) {
                tile(x + (i64)r * inputs, inputs, p->weight + (i64)n * inputs, inputs, block, 1);
                finish(p, n, block, ROWS, kind, (char *)out + (i64)r * outputs * size, outputs);
            }
    }
    if (rest) {
        configure(upper, rest - upper);
        for (int n = from; n < to; n += BLOCK_OUTPUTS) {
            tile(x + (i64)whole * inputs, inputs, p->weight + (i64)n * inputs, inputs, block, rest > upper);
            finish(p, n, block, rest, kind, (char *)out + (i64)whole * outputs * size, outputs);
        }
    }
#else
    i32 first[FEED];
    for (int begin = 0; begin < rows; begin += FEED) {
        const int end = rows - begin < FEED ? rows : begin + FEED;
        firsts(x + (i64)begin * inputs, inputs, end - begin, first);
        for (int n = from; n < to; n += BLOCK_OUTPUTS) {
            const u8 *weight = p->weight + (i64)n * inputs;
            int r = begin;
            for (; r + ROWS <= end; r += ROWS) {
                block_of(x + (i64)r * inputs, weight, inputs, first + r - begin, block, ROWS, kind == DOWN);
                finish(p, n, block, ROWS, kind, (char *)out + (i64)r * outputs * size, outputs);
            }
            for (; r + ROWS / 2 <= end; r += ROWS / 2) {
                block_of(x + (i64)r * inputs, weight, inputs, first + r - begin, block, ROWS / 2, kind == DOWN);
                finish(p, n, block, ROWS / 2, kind, (char *)out + (i64)r * outputs * size, outputs);
            }
            for (; r < end; r++) {
                block_of(x + (i64)r * inputs, weight, inputs, first + r - begin, block, 1, kind == DOWN);
                finish(p, n, block, 1, kind, (char *)out + (i64)r * outputs * size, outputs);
            }
        }
    }
#endif
}

// Tell whether so few inputs are not 0 that one row after the other, without the others, is quicker: SPARSE percent
static int is_sparse(const Product *p, const i8 *x, i64 rows) {
    if (!p->rows || !SPARSE) return 0;
    i64 count = 0;
    for (i64 i = 0; i < rows * p->inputs; i += 32) count += __builtin_popcount(nonzero(x + i));
    return 100 * count < SPARSE * rows * p->inputs;
}

enum { FOURS = VL >= 8 ? VL / 4 : 1 }; // four vectors of sums that one pass makes
// Sums of 4 VL `fours` outputs: of `count` groups of four inputs, whose activations are those in `x`
INLINE void sparse_sums(const i8 *rows, const i32 *offsets, const i32 *x, int count, i32 *out, const int fours) {
    vi sums[FOURS][4] = {{{0}}};
    for (int g = 0; g < count; g++) {
        const i8 *a = rows + offsets[4 * g], *b = rows + offsets[4 * g + 1], *c = rows + offsets[4 * g + 2], *d = rows + offsets[4 * g + 3];
        const vi four = set1(x[g]);
        for (int f = 0; f < fours; f++) {
            vi q[4];
            interleave(a + 4 * VL * f, b + 4 * VL * f, c + 4 * VL * f, d + 4 * VL * f, q);
            for (int j = 0; j < 4; j++) sums[f][j] = dot_small(sums[f][j], four, q[j]);
        }
    }
    for (int f = 0; f < fours; f++) {
        in_order(sums[f]);
        for (int j = 0; j < 4; j++) store(out + 4 * VL * f + VL * j, sums[f][j]);
    }
}

// Gather the inputs that are not 0, and where their weights begin; return how many. No branch would be foretold here.
INLINE int choose(const i8 *x, int inputs, int outputs, i32 *offsets, i8 *chosen) {
    int count = 0;
#if !defined NNFS_EMULATE && VL == 16
    __m512i at = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(outputs));
    for (int k = 0; k < inputs; k += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16 * outputs))) {
        const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(x + k)));
        const __mmask16 there = _mm512_test_epi32_mask(v, v);
        _mm512_storeu_si512(offsets + count, _mm512_maskz_compress_epi32(there, at));
        store8(chosen + count, (vi)_mm512_maskz_compress_epi32(there, v));
        count += __builtin_popcount(there);
    }
#else
    for (int k = 0; k < inputs; k++) {
        offsets[count] = k * outputs, chosen[count] = x[k];
        count += x[k] != 0;
    }
#endif
    return count;
}

// One row of a product with DOWN behind it, from those of its inputs that are not 0
static void sparse_row(const Product *p, const i8 *x, i32 *out) {
    const int outputs = p->outputs;
    i32 offsets[MOST_WIDTH + 16], fours[MOST_WIDTH / 4 + 4], sums[MOST_WIDTH] ALIGNED;
    int count = choose(x, p->inputs, outputs, offsets, (i8 *)fours), n = 0;
    memset((i8 *)fours + count, 0, 4);
    memset(offsets + count, 0, 4 * sizeof *offsets);
    for (; n + 4 * VL * FOURS <= outputs; n += 4 * VL * FOURS) sparse_sums(p->rows + n, offsets, fours, (count + 3) / 4, sums + n, FOURS);
    for (; n < outputs; n += 4 * VL) sparse_sums(p->rows + n, offsets, fours, (count + 3) / 4, sums + n, 1);
    for (n = 0; n < outputs; n += BLOCK_OUTPUTS) finish(p, n, sums + n, 1, DOWN, out, outputs);
}

static void product(Member *m, const Product *p, const i8 *x, i64 rows, void *out, int kind) {
    const i64 tasks = p->outputs / BLOCK_OUTPUTS;
    i64 from, to;
    int sparse = kind == DOWN ? -1 : 0; // -1: not known. Who has a work item may look: until it is done the inputs stay
    begin_phase(m, tasks);
    while (claim(m, &from, &to)) {
        if (sparse < 0) sparse = is_sparse(p, x, rows);
        if (sparse) {
            for (i64 r = rows * from / tasks; r < rows * to / tasks; r++) sparse_row(p, x + r * p->inputs, (i32 *)out + r * p->outputs);
            continue;
        }
        const int begin = (int)from * BLOCK_OUTPUTS, end = (int)to * BLOCK_OUTPUTS;
        if (kind == ACT) product_as(p, x, (int)rows, out, begin, end, ACT);
        else if (kind == RESIDUAL) product_as(p, x, (int)rows, out, begin, end, RESIDUAL);
        else if (kind == SQUARE) product_as(p, x, (int)rows, out, begin, end, SQUARE);
        else if (kind == DOWN) product_as(p, x, (int)rows, out, begin, end, DOWN);
        else product_as(p, x, (int)rows, out, begin, end, LOGITS);
    }
    settle(m);
}

// ----------------------------------------------------------------------------------------------- norm and embedding
static i64 squares(const i32 *x, int width) {
    i64 total = 0;
#if !defined NNFS_EMULATE && defined WIDE_VNNI
    __m512i a = _mm512_setzero_si512(), b = a;
    for (int c = 0; c < width; c += 16) {
        __m512i v = _mm512_loadu_si512(x + c), odd = _mm512_srli_epi64(v, 32);
        a = _mm512_add_epi64(a, _mm512_mul_epi32(v, v));
        b = _mm512_add_epi64(b, _mm512_mul_epi32(odd, odd));
    }
    total = _mm512_reduce_add_epi64(_mm512_add_epi64(a, b));
#elif !defined NNFS_EMULATE && VL == 8
    __m256i a = _mm256_setzero_si256(), b = a;
    for (int c = 0; c < width; c += 8) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(x + c)), odd = _mm256_srli_epi64(v, 32);
        a = _mm256_add_epi64(a, _mm256_mul_epi32(v, v));
        b = _mm256_add_epi64(b, _mm256_mul_epi32(odd, odd));
    }
    i64 parts[4];
    _mm256_storeu_si256((__m256i *)parts, _mm256_add_epi64(a, b));
    total = parts[0] + parts[1] + parts[2] + parts[3];
#else
    for (int c = 0; c < width; c++) total += (i64)x[c] * x[c];
#endif
    return total;
}

// RMSNorm of one row of residuals
static void norm_row(const i32 *x, int width, i64 numerator, i8 *u) {
    i64 root = (i64)sqrt((double)(squares(x, width) << 8)); // below 2^52, and the root is correctly rounded: exact
    i64 inverse = numerator / (root < 16 ? 16 : root);
    int c = 0;
#if !defined NNFS_EMULATE && VL >= 8
    if (inverse <= INT32_MAX) {
#if VL == 16
        const __m512i by = _mm512_set1_epi64(inverse), half = _mm512_set1_epi64(1 << 27), limit = _mm512_set1_epi32(ACT_LIMIT);
        for (; c < width; c += 16) {
            __m512i v = _mm512_loadu_si512(x + c), odd = _mm512_srli_epi64(v, 32);
            __m512i low = _mm512_srli_epi64(_mm512_add_epi64(_mm512_mul_epi32(v, by), half), 28);   // its low 32 bits
            __m512i high = _mm512_slli_epi64(_mm512_add_epi64(_mm512_mul_epi32(odd, by), half), 4); // its high ones
            __m512i y = _mm512_mask_blend_epi32(0xAAAA, low, high);
            y = _mm512_max_epi32(_mm512_min_epi32(y, limit), _mm512_set1_epi32(-ACT_LIMIT));
            store8(u + c, (vi)y);
        }
#else
        const __m256i by = _mm256_set1_epi64x(inverse), half = _mm256_set1_epi64x(1 << 27), limit = _mm256_set1_epi32(ACT_LIMIT);
        for (; c < width; c += 8) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(x + c)), odd = _mm256_srli_epi64(v, 32);
            __m256i low = _mm256_srli_epi64(_mm256_add_epi64(_mm256_mul_epi32(v, by), half), 28);
            __m256i high = _mm256_slli_epi64(_mm256_add_epi64(_mm256_mul_epi32(odd, by), half), 4);
            __m256i y = _mm256_blend_epi32(low, high, 0xAA);
            y = _mm256_max_epi32(_mm256_min_epi32(y, limit), _mm256_set1_epi32(-ACT_LIMIT));
            store8(u + c, (vi)y);
        }
#endif
    }
#endif
    for (; c < width; c++) {
        i64 y = (x[c] * inverse + (1 << 27)) >> 28;
        u[c] = (i8)(y > ACT_LIMIT ? ACT_LIMIT : y < -ACT_LIMIT ? -ACT_LIMIT : y);
    }
}

static void norm(Member *m, const Network *net, const i32 *x, i64 rows, i8 *u) {
    i64 from, to;
    begin_phase(m, rows);
    while (claim(m, &from, &to))
        for (i64 r = from; r < to; r++) norm_row(x + r * net->width, net->width, net->numerator, u + r * net->width);
    settle(m);
}

static void fetch_embedding(const Network *net, const Features *f, i64 r) {
    for (int k = 0; k < INPUT_FIELDS; k++)
        for (int c = 0; c < net->width; c += 64) prefetch(net->inputs + (i64)f->rows[r * INPUT_FIELDS + k] * net->width + c);
    for (int k = 0; k < NGRAM_TABLES; k++)
        prefetch(net->ngrams[k] + (i64)f->ngrams[r * NGRAM_TABLES + k] * net->ngram_widths[k]);
}

// Sum the embeddings of some rows into the residual stream
static void embed(const Network *net, const Features *f, i64 from, i64 end, i32 *x, i8 *u) {
    const int width = net->width;
    i16 sum[MOST_WIDTH] ALIGNED;
    for (i64 r = from; r < end; r++) {
        if (r + 2 < end) fetch_embedding(net, f, r + 2);
        int at = 0;
        for (int k = 0; k < NGRAM_TABLES; k++) {
            const i8 *row = net->ngrams[k] + (i64)f->ngrams[r * NGRAM_TABLES + k] * net->ngram_widths[k];
            for (int c = 0; c < net->ngram_widths[k]; c++) sum[at + c] = row[c];
            at += net->ngram_widths[k];
        }
        const i8 *in[INPUT_FIELDS];
        for (int k = 0; k < INPUT_FIELDS; k++) in[k] = net->inputs + (i64)f->rows[r * INPUT_FIELDS + k] * width;
        i32 *own = x + r * width;
        for (int c = 0; c < width; c++) {
            i16 s = sum[c];
            for (int k = 0; k < INPUT_FIELDS; k++) s = (i16)(s + in[k][c]);
            own[c] = (i32)s * (1 << EMBEDDING_SHIFT);
        }
        norm_row(own, width, net->numerator, u + r * width);
    }
}

// ------------------------------------------------------------------------------------------------------- attention
enum { KEYS = HEAD * WINDOW, PLACES = WINDOW / VL };
#if VL == 16
enum { AT_ONCE = GROUP }; // heads that share a key, while its sums fit the registers
#else
enum { AT_ONCE = 1 };
#endif

// Enter the keys and values of one row into its lane's rings
static void keep_row(const Network *net, const i8 *act, u8 *keys, i8 *values, i64 t) {
    const int place = t % WINDOW;
    for (int kv = 0; kv < net->kv_heads; kv++) {
        const i8 *key = act + (net->heads + kv) * HEAD, *value = act + (net->heads + net->kv_heads + kv) * HEAD;
        u8 *k = keys + kv * KEYS + place * QUAD;
        i8 *v = values + kv * KEYS + place / QUAD * HEAD * QUAD + place % QUAD;
        for (int c = 0; c < HEAD; c += QUAD) {
            u32 four = (u32)near32(key + c) ^ KEY_OFFSET * 0x01010101u;
            memcpy(k + c * WINDOW, &four, QUAD);
        }
        for (int c = 0; c < HEAD; c++) v[c * QUAD] = value[c];
    }
}

// Turn the scores of one head into weights, 7 high and 4 low bits apart, and return their sum
INLINE i32 weigh(const Network *net, vi *score, int seen, u8 *high, u8 *low) {
    vi top = score[0], den = {0};
    if (seen < WINDOW)
        for (int j = 0; j < PLACES; j++)
            for (int k = 0; k < VL; k++)
                if (j * VL + k >= seen) score[j][k] = -(1 << 30);
    top = score[0];
    for (int j = 1; j < PLACES; j++) top = vmax(top, score[j]);
    top = set1(hmax(top));
    for (int j = 0; j < PLACES; j++) {
        vi w = lookup(net->attention, vmin((top - score[j]) >> SCORE_SHIFT, set1(TABLE - 1)));
        if (seen < WINDOW)
            for (int k = 0; k < VL; k++)
                if (j * VL + k >= seen) w[k] = 0;
        den += w;
        store8(high + j * VL, w >> 4);
        store8(low + j * VL, w & 15);
    }
    return hsum(den);
}

// Floor of (2 total + den) / (2 den), all integers below 2^26. With half a unit added to the numerator the quotient is
// at least 0.5 / (2 den) > 2^-19 away from every integer and float64 errs by less than 2^-43: the floor is exact.
INLINE void quotients(const i32 *total, i32 den, i8 *out) {
    const double inverse = 1.0 / (2.0 * den), add = den + 0.5;
    i32 whole[HEAD];
    for (int c = 0; c < HEAD; c++) whole[c] = (i32)((2.0 * total[c] + add) * inverse + 256.0); // 256: no negative ones
    for (int c = 0; c < HEAD; c++) out[c] = (i8)(whole[c] - 256);
}

// Attention of one row over its lane's rings. The key of column t lies at place t mod WINDOW; `rings` of a head holds
// its distances backwards, twice, so that those of all places begin at WINDOW - place.
static void attend_row(const Network *net, const i32 *rings, const i8 *act, const u8 *keys, const i8 *values, i64 t, i8 *out) {
    const int place = t % WINDOW, seen = t < WINDOW - 1 ? (int)t + 1 : WINDOW;
    u8 high[GROUP][WINDOW] ALIGNED, low[GROUP][WINDOW] ALIGNED;
    for (int kv = 0; kv < net->kv_heads; kv++, keys += KEYS, values += KEYS) {
        i32 den[GROUP];
        for (int from = 0; from < GROUP; from += AT_ONCE) {
            vi score[AT_ONCE][PLACES];
            for (int g = 0; g < AT_ONCE; g++)
                for (int j = 0; j < PLACES; j++)
                    score[g][j] = load(rings + (kv * GROUP + from + g) * 2 * WINDOW + WINDOW - place + j * VL);
            for (int c = 0; c < HEAD; c += QUAD) {
                vi query[AT_ONCE];
                for (int g = 0; g < AT_ONCE; g++) query[g] = set1(near32(act + (kv * GROUP + from + g) * HEAD + c));
                for (int j = 0; j < PLACES; j++) {
                    vi k = load(keys + c * WINDOW + j * VL * QUAD);
                    for (int g = 0; g < AT_ONCE; g++) score[g][j] = dot_stored(score[g][j], k, query[g]);
                }
            }
            for (int g = 0; g < AT_ONCE; g++) den[from + g] = weigh(net, score[g], seen, high[from + g], low[from + g]);
        }
        i32 total[GROUP][HEAD] ALIGNED;
        for (int c = 0; c < HEAD; c += VL) {
            vi h[GROUP] = {{0}}, l[GROUP] = {{0}};
            for (int j = 0; j < WINDOW; j += QUAD) {
                vi v = load(values + j * HEAD + c * QUAD);
                for (int g = 0; g < GROUP; g++) {
                    h[g] = dot_small(h[g], set1(near32(high[g] + j)), v);
                    l[g] = dot_small(l[g], set1(near32(low[g] + j)), v);
                }
            }
            for (int g = 0; g < GROUP; g++) store(total[g] + c, (h[g] << 4) + l[g]);
        }
        for (int g = 0; g < GROUP; g++) quotients(total[g], den[g], out + (kv * GROUP + g) * HEAD);
    }
}

// Attention of all rows of one layer, for some lanes; `known` columns came before
static void attend(const Network *net, State *s, i64 layer, i64 from, i64 end, i64 lanes, i64 columns, i64 known) {
    const i64 lane_size = (i64)net->kv_heads * KEYS, wide = (net->heads + 2 * net->kv_heads) * HEAD;
    const i32 *rings = net->rings + layer * net->heads * 2 * WINDOW;
    for (i64 lane = from; lane < end; lane++) {
        u8 *keys = s->keys + (layer * s->lanes + lane) * lane_size;
        i8 *values = s->values + (layer * s->lanes + lane) * lane_size;
        if (lane + 1 < end)
            for (i64 i = 0; i < lane_size; i += 64) prefetch(keys + lane_size + i), prefetch(values + lane_size + i);
        for (i64 t = 0; t < columns; t++) {
            i64 r = t * lanes + lane;
            keep_row(net, s->act + r * wide, keys, values, known + t);
            attend_row(net, rings, s->act + r * wide, keys, values, known + t, s->attended + r * net->heads * HEAD);
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ step
// Logits with the candidates' biases to frequencies
static void frequencies(const Network *net, const Features *f, i64 from, i64 to, i32 *all_logits, u32 *all) {
    for (i64 r = from; r < to; r++) {
        i32 *logits = all_logits + r * 256;
        u32 *out = all + r * 256;
        for (int k = 0; k < CANDIDATES; k++)
            logits[f->candidate[r * CANDIDATES + k]] += net->biases[f->bucket[r * CANDIDATES + k]];
        vi top = load(logits);
        for (int c = VL; c < 256; c += VL) top = vmax(top, load(logits + c));
        top = set1(hmax(top));
        for (int c = 0; c < 256; c += VL) {
            vi i = vmin((top - load(logits + c)) >> LOGIT_SHIFT, set1(TABLE - 1));
            store(out + c, lookup(net->frequency, i) + 1);
        }
    }
}

// One step of the network; `known` columns came before. The members of a team call it alike.
static void step(const Network *net, State *s, const Features *f, i64 lanes, i64 columns, i64 known, Member *m) {
    const i64 rows = lanes * columns, width = net->width;
    i64 from, to;
    begin_phase(m, rows);
    while (claim(m, &from, &to)) embed(net, f, from, to, s->x, s->u);
    settle(m);
    for (i64 k = 0; k < net->layers; k++) {
        const Product *p = net->products + 4 * k;
        product(m, p, s->u, rows, s->act, ACT);
        begin_phase(m, lanes);
        while (claim(m, &from, &to)) attend(net, s, k, from, to, lanes, columns, known);
        settle(m);
        product(m, p + 1, s->attended, rows, s->x, RESIDUAL);
        norm(m, net, s->x, rows, s->u);
        for (i64 r = 0; r < rows; r += FEED) {
            i64 count = rows - r < FEED ? rows - r : FEED;
            product(m, p + 2, s->u + r * width, count, s->part, SQUARE);
            product(m, p + 3, s->part, count, s->x + r * width, DOWN);
        }
        norm(m, net, s->x, rows, s->u);
    }
    product(m, net->products + 4 * net->layers, s->u, rows, s->logits, LOGITS);
    begin_phase(m, rows);
    while (claim(m, &from, &to)) frequencies(net, f, from, to, s->logits, s->out);
    settle(m);
#ifdef LEVEL_AMX
    _tile_release();
#endif
}
