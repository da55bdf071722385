// Shared by all translation units: what Python hands over, and what each level (a set of instructions) offers.
//
// Python makes every structure and all memory; nothing here allocates, keeps or frees any. Sizes were checked when a
// structure was made (nnfs_network_fits, nnfs_mixer_fits); what comes from a payload is checked where it is used.
#ifndef NNFS_H
#define NNFS_H
#ifdef __CUDACC_RTC__ // which has no headers
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
#else
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;
#endif

#ifdef __CUDACC__
#define INLINE static __device__ __forceinline__
#else
#define INLINE static inline __attribute__((always_inline))
#endif
#define ALIGNED __attribute__((aligned(64)))

// Answers of entry points
enum { OK = 0, BAD_ARGUMENT = 1, NO_LEVEL = 2 };

// ---------------------------------------------------------------------------------------------- the network's sizes
enum { HEAD = 32, WINDOW = 64, GROUP = 4, TABLE = 1024 }; // of one head; positions seen; queries that share a key
enum { INPUT_FIELDS = 8, NGRAM_TABLES = 5, CANDIDATES = 6, ORDER_COUNT = 5 };
enum { QUAD = 4, PACKED = 16, BLOCK_OUTPUTS = 32 }; // a packed weight: [outputs / PACKED][inputs / QUAD][PACKED][QUAD]
enum { MOST_PRODUCTS = 4 * 64 + 1, MOST_WIDTH = 1040, MOST_LANES = 1 << 16 };

typedef struct {
    const u8 *weight; // packed int8; exclusive-ored with `Level.weight_offset`
    const i8 *rows;   // the same as (inputs, outputs), for a product whose inputs are 0 to 127 and mostly 0; else none
    const i32 *multiplier;
    i32 outputs, inputs, pre, shift;
} Product;

typedef struct {
    i32 width, layers, heads, kv_heads, hidden, input_rows, ngram_bits, bias_rows;
    i64 numerator;                  // of a norm
    const i8 *inputs;               // (input_rows, width)
    const i8 *ngrams[NGRAM_TABLES]; // (2^ngram_bits, ngram_widths[k])
    i32 ngram_widths[NGRAM_TABLES + 1];
    const i32 *biases;    // (bias_rows,)
    const i32 *attention; // (TABLE,)
    const i32 *frequency; // (TABLE,)
    const i32 *rings;     // (layers, heads, 2 WINDOW): twice the distances backwards, see `attend_row`
    const Product *products;
} Network;

// Features of some columns, (columns, lanes, ...)
typedef struct {
    const i32 *rows;     // (.., INPUT_FIELDS): rows of `inputs`
    const i32 *ngrams;   // (.., NGRAM_TABLES)
    const u8 *candidate; // (.., CANDIDATES)
    const i32 *bucket;   // (.., CANDIDATES): rows of `biases`
} Features;

// The network for some lanes: its past and its work space, laid out by `nnfs_state_size` in memory of Python's
typedef struct {
    i64 lanes, rows; // most of them in one call: rows = lanes columns
    i64 known;       // columns that came before
    u8 *keys;        // (layers, lanes, kv_heads, HEAD / QUAD, WINDOW, QUAD), with `Level.key_offset` exclusive-ored
    i8 *values;      // (layers, lanes, kv_heads, WINDOW / QUAD, HEAD, QUAD)
    i32 *x;          // (rows, width): the residual stream
    i8 *u;           // (rows, width): its norm
    i8 *act;         // (rows, (heads + 2 kv_heads) HEAD): queries, keys, values
    i8 *attended;    // (rows, heads HEAD)
    i8 *part;        // (FEED, hidden)
    i32 *logits;     // (rows, 256)
    u32 *out;        // (rows, 256): frequencies
} State;

enum { FEED = 128 }; // rows that go through the feed-forward part together: their hidden units stay in the cache

#include "mixing.h"

// ------------------------------------------------------------------------------------------------------- a batch
enum { MATCH_MIN = 7, MATCH_VERIFY = 40, LANE_FIELDS = 5 };

typedef struct { // the past of one chunk, as nnfs.model.features has it
    const u8 *plain; // (begin + size,)
    i64 size, lanes, begin, bits;
    u32 *orders; // (ORDER_COUNT, entries)
    i64 entries; // at least 2^bits
    i32 *starts; // (2^bits,)
    u64 *lane;   // (lanes, LANE_FIELDS)
} Past;

typedef struct { // chunks whose lanes are stepped side by side, the longest lanes first
    i64 count;
    Past *pasts;
    Mixer *mixers;
    Coder *coders;    // to decode
    u16 *const *paths; // to encode: (columns, lanes, 8) of each chunk
    const u8 *alive;  // to decode: those whose stream can be decoded
    const i64 *first; // (count + 1,): a chunk's lanes are first[k] .. first[k + 1] - 1
    i64 rows;         // of the features below
    i32 *row, *ngram;
    u8 *candidate;
    i32 *bucket;
} Batch;

#ifndef __CUDACC__ // a GPU has the structures and the rules, and functions of its own
void features_predict(const Past *, i64 column, int ngram_bits, i32 *row, i32 *ngram, u8 *candidate, i32 *bucket);
void features_learn(Past *, i64 column);
i32 features_rows(void);   // of the table of embeddings
i32 features_biases(void); // of the vector of output biases

// ------------------------------------------------------------------------------------------------------- the levels
typedef struct Member Member; // see team.h
typedef struct {
    const char *name;
    u8 weight_offset, key_offset; // are exclusive-ored to each packed weight, and to each key
    void (*step)(const Network *, State *, const Features *, i64 lanes, i64 columns, i64 known, Member *);
    void (*net_path)(const u32 *frequencies, const u8 *bytes, i64 stride, i64 rows, u16 *out);
    void (*mix_encode)(Mixer *, const u16 *network, u16 *out);
    void (*mix_enter)(Mixer *);
    void (*mix_decode)(Mixer *, i64 column, const u32 *frequencies, Coder *, const Mixer *next, Member *);
    void (*samples)(Samples *, u16 *out, Coder *);
    void (*light_encode)(Light *, u16 *out, u32 *counts);
    void (*light_decode)(Light *, Coder *);
    void (*fields)(Fields *, u16 *out, Coder *);
} Level;
#endif

#endif
