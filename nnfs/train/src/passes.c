// The forward and backward pass of the network on one core of a processor with AMX (bf16) and AVX-512.
//
// `network.py` is the definition: these functions compute what it computes, in float32, with bf16 where it has bf16, but
// each product is finished (scaled, rounded, squared, added) while its sums are in the cache, and attention never leaves
// it. A bf16 is held as uint16_t; integers of int8 are held as bf16, exactly. Widths are multiples of 32, positions of 64.
//
// Arrays of bf16 and of bytes are stored in columns of 32: [width / 32][n positions][32], so that a tile's rows lie one
// after another, a head is one such column, and what is read next is near. Arrays of float32 are (n, width).
#include "attention.h"
#include "products.h"

// ---- Embeddings, loss, optimizer ----

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
