// The network's step of one column of one block's rows: the integers of nnfs.model.forward.
#ifndef CUDA_NETWORK_H
#define CUDA_NETWORK_H
#include "room.h"

enum { ACT_LIMIT = 127, RESIDUAL_LIMIT = (1 << 18) - 1, HIDDEN_LIMIT = 255, SQUARE_SHIFT = 9, EMBEDDING_SHIFT = 4 };
enum { SCORE_SHIFT = 6, LOGIT_SHIFT = 2, ROWS_OF_TILE = 8, OUTPUTS_OF_TILE = 16, INPUTS_OF_TILE = 32 };
enum { ACT, RESIDUAL, SQUARE, LOGITS }; // what becomes of a product's sums

DEVICE i32 within(i32 x, i32 low, i32 high) { return x < low ? low : x > high ? high : x; }
DEVICE u32 four_of(const void *p) { return *(const u32 *)p; }

struct alignas(16) Sixteen { u32 part[4]; };

// Finish a product, for one sum
template <int KIND> DEVICE void finish(const Product *p, i32 sum, int row, int output, void *out, int stride) {
    i32 y = (sum + ((1 << p->pre) >> 1)) >> p->pre;
    y = (y * p->multiplier[output] + (1 << (p->shift - 1))) >> p->shift;
    const int at = row * stride + output;
    if (KIND == RESIDUAL) {
        i32 *x = (i32 *)out + at;
        *x = within(*x + y, -RESIDUAL_LIMIT, RESIDUAL_LIMIT);
    } else if (KIND == LOGITS)
        ((i32 *)out)[at] = y;
    else if (KIND == ACT)
        ((i8 *)out)[at] = (i8)within(y, -ACT_LIMIT, ACT_LIMIT);
    else {
        y = within(y, 0, HIDDEN_LIMIT);
        ((i8 *)out)[at] = (i8)((y * y + (1 << (SQUARE_SHIFT - 1))) >> SQUARE_SHIFT);
    }
}

// (8 N, inputs) int8 . weights, and what follows, into `out`. A warp makes 16 outputs of all rows. Its weights for 32
// inputs lie as the tensor cores want them: 16 bytes for each of its threads. Without tensor cores (NNFS_DP4A) a thread
// sums what it holds of each row, and four threads add theirs up.
template <int N, int KIND> DEVICE void product(const Product *p, const i8 *x, void *out, int stride) {
    const int inputs = p->inputs, near = inputs + PAD;
    EACH_WARP (tile, p->outputs / OUTPUTS_OF_TILE) {
        const Sixteen *weight = (const Sixteen *)(p->weight + (i64)tile * OUTPUTS_OF_TILE * inputs);
        i32 sums[N][4][OWN];
#ifdef NNFS_DP4A
        i32 parts[N][2][ROWS_OF_TILE][OWN];
        LANES (l)
            for (int n = 0; n < N; n++)
                for (int c = 0; c < ROWS_OF_TILE; c++) parts[n][0][c][AT(l)] = parts[n][1][c][AT(l)] = 0;
        for (int b = 0; b < inputs / INPUTS_OF_TILE; b++) {
            LANES (l) {
                const Sixteen w = weight[b * WARP + l];
                UNROLL()
                for (int n = 0; n < N; n++)
                    UNROLL()
                    for (int c = 0; c < ROWS_OF_TILE; c++) {
                        const i8 *at = x + (n * ROWS_OF_TILE + c) * near + b * INPUTS_OF_TILE + l % 4 * 4;
                        const u32 low = four_of(at), high = four_of(at + 16);
                        i32 *sum = parts[n][0][c] + AT(l), *next = parts[n][1][c] + AT(l);
                        *sum = dot4(w.part[2], high, dot4(w.part[0], low, *sum));
                        *next = dot4(w.part[3], high, dot4(w.part[1], low, *next));
                    }
            }
        }
        UNROLL()
        for (int n = 0; n < N; n++)
            UNROLL()
            for (int h = 0; h < 2; h++)
                UNROLL()
                for (int c = 0; c < ROWS_OF_TILE; c++) {
                    quad_sum(parts[n][h][c]);
                    LANES (l)
                        if (l % 4 == c / 2) sums[n][2 * h + c % 2][AT(l)] = parts[n][h][c][AT(l)];
                }
#else
        LANES (l)
            for (int n = 0; n < N; n++)
                for (int q = 0; q < 4; q++) sums[n][q][AT(l)] = 0;
#ifdef __CUDACC__
#pragma unroll 8
#endif
        for (int b = 0; b < inputs / INPUTS_OF_TILE; b++) {
            u32 w[4][OWN], near_x[2][OWN];
            LANES (l) {
                const Sixteen own = weight[b * WARP + l];
                for (int q = 0; q < 4; q++) w[q][AT(l)] = own.part[q];
            }
            UNROLL()
            for (int n = 0; n < N; n++) {
                LANES (l) {
                    const i8 *at = x + (n * ROWS_OF_TILE + l / 4) * near + b * INPUTS_OF_TILE + l % 4 * 4;
                    near_x[0][AT(l)] = four_of(at), near_x[1][AT(l)] = four_of(at + 16);
                }
                mma(sums[n], w, near_x);
            }
        }
#endif
        LANES (l)
            for (int n = 0; n < N; n++)
                for (int q = 0; q < 4; q++)
                    finish<KIND>(p, sums[n][q][AT(l)], n * ROWS_OF_TILE + l % 4 * 2 + q % 2, tile * OUTPUTS_OF_TILE + l / 4 + q / 2 * 8, out, stride);
    }
    BARRIER();
}

// Sum the embeddings of every row into the residual stream
DEVICE void embed(const Network *net, const Room &m, int rows) {
    const int width = net->width;
    EACH (i, rows * width) {
        const int r = i / width, c = i % width;
        i32 sum = 0;
        for (int k = 0; k < INPUT_FIELDS; k++) sum += net->inputs[(i64)m.row[r * INPUT_FIELDS + k] * width + c];
        int k = 0, at = 0;
        while (c - at >= net->ngram_widths[k]) at += net->ngram_widths[k++];
        sum += net->ngrams[k][(i64)m.ngram[r * NGRAM_TABLES + k] * net->ngram_widths[k] + c - at];
        m.x[i] = sum * (1 << EMBEDDING_SHIFT);
    }
    BARRIER();
}

// RMSNorm of all rows
DEVICE void norm(const Network *net, const Room &m, int rows) {
    const int width = net->width;
    EACH_WARP (r, rows) {
        const i32 *x = m.x + r * width;
        i64 squares[OWN];
        LANES (l) {
            squares[AT(l)] = 0;
            for (int c = l; c < width; c += WARP) squares[AT(l)] += (i64)x[c] * x[c];
        }
        const i64 root = (i64)root_of((double)(warp_sum(squares) << 8)); // below 2^52, and correctly rounded: exact
        const i64 inverse = net->numerator / (root < 16 ? 16 : root);
        LANES (l)
            for (int c = l; c < width; c += WARP) {
                const i64 y = (x[c] * inverse + (1 << 27)) >> 28;
                m.u[r * (width + PAD) + c] = (i8)(y > ACT_LIMIT ? ACT_LIMIT : y < -ACT_LIMIT ? -ACT_LIMIT : y);
            }
    }
    BARRIER();
}

// Attention of all rows of one layer over their rings; the key of column t lies at place t mod WINDOW. A warp has one
// row and one key's head; a thread has two places, then one channel.
DEVICE void attend(const Network *net, const Room &m, int rows, const i32 *rings, i8 *all_keys, i8 *all_values, i64 t) {
    const int place = (int)(t % WINDOW), seen = t < WINDOW - 1 ? (int)t + 1 : WINDOW, kv_heads = net->kv_heads;
    const int wide = (net->heads + 2 * kv_heads) * HEAD + PAD;
    EACH_WARP (task, rows * kv_heads) {
        const int r = task / kv_heads, kv = task % kv_heads;
        if (!m.live[r]) continue;
        const i8 *act = m.act + r * wide;
        i8 *keys = all_keys + (i64)task * WINDOW * HEAD, *values = all_values + (i64)task * WINDOW * HEAD;
        u8 *high = m.weighing + task % WARPS * GROUP * 2 * WINDOW, *low = high + GROUP * WINDOW; // (GROUP, WINDOW)
        LANES (l) {
            keys[place * HEAD + l] = act[(net->heads + kv) * HEAD + l];
            values[place / QUAD * HEAD * QUAD + l * QUAD + place % QUAD] = act[(net->heads + kv_heads + kv) * HEAD + l];
        }
        WARP_BARRIER();
        i32 den[GROUP];
        i32 score[GROUP][2][OWN];
        LANES (l)
            for (int h = 0; h < 2; h++) {
                const int p = l + h * WARP;
                const Sixteen a = ((const Sixteen *)(keys + p * HEAD))[0], b = ((const Sixteen *)(keys + p * HEAD))[1];
                for (int g = 0; g < GROUP; g++) {
                    const int head = kv * GROUP + g;
                    const i8 *query = act + head * HEAD;
                    i32 sum = rings[head * 2 * WINDOW + WINDOW - place + p];
                    for (int c = 0; c < 4; c++) sum = dot4(a.part[c], four_of(query + 4 * c), sum);
                    for (int c = 0; c < 4; c++) sum = dot4(b.part[c], four_of(query + 16 + 4 * c), sum);
                    score[g][h][AT(l)] = p < seen ? sum : -(1 << 30);
                }
            }
        for (int g = 0; g < GROUP; g++) {
            i32 own[OWN];
            i64 weights[OWN];
            LANES (l) own[AT(l)] = score[g][0][AT(l)] > score[g][1][AT(l)] ? score[g][0][AT(l)] : score[g][1][AT(l)];
            const i32 top = warp_max(own);
            LANES (l) {
                weights[AT(l)] = 0;
                for (int h = 0; h < 2; h++) {
                    const int p = l + h * WARP;
                    const i32 below = (top - score[g][h][AT(l)]) >> SCORE_SHIFT;
                    const i32 w = p < seen ? net->attention[below < TABLE ? below : TABLE - 1] : 0;
                    weights[AT(l)] += w;
                    high[g * WINDOW + p] = (u8)(w >> 4);
                    low[g * WINDOW + p] = (u8)(w & 15);
                }
            }
            den[g] = (i32)warp_sum(weights);
        }
        WARP_BARRIER();
        LANES (l) {
            i32 h[GROUP] = {0}, w[GROUP] = {0};
            for (int j = 0; j < WINDOW; j += QUAD) {
                const u32 four = four_of(values + j * HEAD + l * QUAD);
                for (int g = 0; g < GROUP; g++) {
                    h[g] = dot4(four_of(high + g * WINDOW + j), four, h[g]);
                    w[g] = dot4(four_of(low + g * WINDOW + j), four, w[g]);
                }
            }
            for (int g = 0; g < GROUP; g++) { // the floor of (2 total + den) / (2 den)
                const i32 twice = 2 * (den[g] < 1 ? 1 : den[g]), sum = 2 * ((h[g] << 4) + w[g]) + den[g];
                m.attended[r * (net->heads * HEAD + PAD) + (kv * GROUP + g) * HEAD + l] = (i8)(sum / twice - (sum % twice < 0));
            }
        }
        WARP_BARRIER();
    }
    BARRIER();
}

// Logits, in the leaves of the trees, to sums of frequencies
DEVICE void sum_frequencies(const Network *net, const Room &m, int rows) {
    EACH (r, rows)
        for (int k = 0; k < CANDIDATES; k++)
            m.tree[r * TREE + 256 + m.candidate[r * CANDIDATES + k]] += (u32)net->biases[m.bucket[r * CANDIDATES + k]];
    BARRIER();
    EACH_WARP (r, rows) {
        u32 *tree = m.tree + r * TREE;
        i32 own[OWN];
        LANES (l) {
            own[AT(l)] = (i32)tree[256 + l];
            for (int c = l + WARP; c < 256; c += WARP) own[AT(l)] = (i32)tree[256 + c] > own[AT(l)] ? (i32)tree[256 + c] : own[AT(l)];
        }
        const i32 top = warp_max(own);
        LANES (l)
            for (int c = l; c < 256; c += WARP) {
                const i32 below = (top - (i32)tree[256 + c]) >> LOGIT_SHIFT;
                tree[256 + c] = (u32)net->frequency[below < TABLE ? below : TABLE - 1] + 1;
            }
        for (int level = 128; level; level /= 2) {
            WARP_BARRIER();
            LANES (l)
                for (int n = level + l; n < 2 * level; n += WARP) tree[n] = tree[2 * n] + tree[2 * n + 1];
        }
    }
    BARRIER();
}

// Features of column t of all rows to trees of frequencies. keys, values: of this block.
template <int N> DEVICE void step(const Network *net, const Room &m, i8 *keys, i8 *values, i64 t) {
    const int rows = N * ROWS_OF_TILE, width = net->width, heads = net->heads * HEAD, wide = heads + 2 * net->kv_heads * HEAD;
    const i64 past = (i64)rows * net->kv_heads * WINDOW * HEAD;
    embed(net, m, rows);
    for (int k = 0; k < net->layers; k++) {
        const Product *p = net->products + 4 * k;
        norm(net, m, rows);
        product<N, ACT>(p, m.u, m.act, wide + PAD);
        attend(net, m, rows, net->rings + k * net->heads * 2 * WINDOW, keys + k * past, values + k * past, t);
        product<N, RESIDUAL>(p + 1, m.attended, m.x, width);
        norm(net, m, rows);
        product<N, SQUARE>(p + 2, m.u, m.hidden, net->hidden + PAD);
        product<N, RESIDUAL>(p + 3, m.hidden, m.x, width);
    }
    norm(net, m, rows);
    product<N, LOGITS>(net->products + 4 * net->layers, m.u, m.tree + 256, TREE);
    sum_frequencies(net, m, rows);
}
#endif
