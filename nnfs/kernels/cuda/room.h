// The arguments of the kernels, and the shared memory of a block.
//
// A block steps the lanes of some chunks, at most as many as it has rows; a row is a lane. All that lasts from column
// to column lies in the device's memory, where `nnfs.codec.neuraldevice` has put it.
#ifndef ROOM_H
#define ROOM_H
#include "device.h"

enum { PAD = 16 }; // bytes behind a row of activations: eight rows lie in different banks then
enum { PLACES = 2 * CONTEXTS, TREE = 512, HEADER = 6 };

typedef struct {
    Past past;
    Mixer mixer;      // its `plain` is that of `past`
    Coder coder;      // to encode: of `words` there is room for `size`, and in the end they begin at `cursor`
    u16 *probability; // to encode: (columns, lanes, 8)
    i32 first, unused; // its first row
} Chunk;

typedef struct {
    const Network *net; // weights: (outputs / 16, inputs / 32, 32, 16), see `product`
    Chunk *chunks;
    const i32 *groups; // (blocks + 1,): the chunks of each block
    i8 *keys;          // (blocks, layers, rows, kv_heads, WINDOW, HEAD)
    i8 *values;        // (blocks, layers, rows, kv_heads, WINDOW / QUAD, HEAD, QUAD)
    i64 from, to;      // columns
    i32 encoding, unused;
} Work;

typedef struct { // of the mixer, for one row in one column
    i16 x[8][INPUTS]; // inputs of each bit
    i32 error[8][SETS];
    u32 refined[8][2];
    i32 line[2][CONTEXTS]; // of each nibble: where its histories are; -1: nowhere
    u64 hash[CONTEXTS];
    i16 dot[8][SETS], total[8], slot[8][MATCHES];
    u16 set[8][SETS], own[8]; // own: the network's probability
    u8 state[8][CONTEXTS];
    u8 check[2][CONTEXTS];
    u32 found[MATCHES];
    i32 expected[MATCHES], matched[MATCHES], before, so_far, p;
} Mixing;

typedef struct {
    // of the network, and later of the mixer, in the same places
    i32 *x;       // (rows, width)
    i8 *hidden;   // (rows, hidden + PAD)
    u32 *tree;    // (rows, TREE): sums of frequencies; 256 + b is byte b, n the sum of 2n and 2n + 1
    i8 *u;        // (rows, width + PAD)
    i8 *act;      // (rows, (heads + 2 kv_heads) HEAD + PAD)
    i8 *attended; // (rows, heads HEAD + PAD)
    u8 *weighing; // (WARPS, GROUP, 2, WINDOW)
    Mixing *mixing; // (rows,)
    // of the features
    i32 *row, *ngram, *bucket;
    u8 *candidate;
    i64 *order; // (rows, ORDER_COUNT): places, see `order_place`
    // of both
    u32 *asked; // (rows, PLACES): lines of histories, of both nibbles of each context; ~0: the row does not live
    i32 *chunk, *live, *rate; // (rows,)
    int bytes;
} Room;

DEVICE int stepped(int bytes) { return (bytes + 15) & ~15; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

DEVICE Room lay_out(const Network *net, int rows, u8 *base) {
    Room m;
    const int wide = (net->heads + 2 * net->kv_heads) * HEAD, heads = net->heads * HEAD;
    m.x = (i32 *)base;
    m.hidden = (i8 *)base + rows * 4 * net->width;
    m.tree = (u32 *)base;
    u8 *at = base + larger(rows * TREE * 4, rows * (4 * net->width + net->hidden + PAD));
    m.mixing = (Mixing *)at;
    m.u = (i8 *)at;
    m.act = m.u + rows * (net->width + PAD);
    m.attended = m.act + rows * (wide + PAD);
    m.weighing = (u8 *)m.attended + rows * (heads + PAD);
    at += larger(rows * (int)sizeof(Mixing), rows * (net->width + wide + heads + 3 * PAD) + WARPS * GROUP * 2 * WINDOW);
    m.order = (i64 *)at, at += rows * ORDER_COUNT * 8;
    m.row = (i32 *)at, at += rows * INPUT_FIELDS * 4;
    m.ngram = (i32 *)at, at += rows * NGRAM_TABLES * 4;
    m.bucket = (i32 *)at, at += rows * CANDIDATES * 4;
    m.asked = (u32 *)at, at += rows * PLACES * 4;
    m.chunk = (i32 *)at, at += rows * 4;
    m.live = (i32 *)at, at += rows * 4;
    m.rate = (i32 *)at, at += rows * 4;
    m.candidate = at, at += stepped(rows * CANDIDATES);
    m.bytes = (int)(at - base);
    return m;
}

DEVICE i64 length_of(const Past *s) { return (s->size + s->lanes - 1) / s->lanes; }
#endif
