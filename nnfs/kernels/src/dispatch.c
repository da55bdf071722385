// The entry points, and which levels this processor has.
#include "nnfs.h"
#if defined __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined __aarch64__ && defined __linux__
#include <sys/auxv.h>
#endif

#define EXPORT __attribute__((visibility("default")))

// In the order of preference, and as NNFS_KERNELS names them
#define LEVELS(use) use(amx, HAS_AMX) use(vnni, HAS_VNNI) use(avxvnni, HAS_AVXVNNI) use(avx2, HAS_AVX2) \
    use(neon, HAS_NEON) use(portable, 1)
enum { AMX, VNNI, AVXVNNI, AVX2, NEON, PORTABLE, LEVEL_COUNT };

#ifndef HAS_AMX
#define HAS_AMX 0
#endif
#ifndef HAS_VNNI
#define HAS_VNNI 0
#endif
#ifndef HAS_AVXVNNI
#define HAS_AVXVNNI 0
#endif
#ifndef HAS_AVX2
#define HAS_AVX2 0
#endif
#ifndef HAS_NEON
#define HAS_NEON 0
#endif
#define DECLARE(name, there) extern const Level nnfs_level_##name;
LEVELS(DECLARE)
#define COMPILED(name, there) there,
static const u8 compiled[] = {LEVELS(COMPILED)};

static const Level *level_of(int which) {
    switch (which) {
#if HAS_AMX
    case AMX: return &nnfs_level_amx;
#endif
#if HAS_VNNI
    case VNNI: return &nnfs_level_vnni;
#endif
#if HAS_AVXVNNI
    case AVXVNNI: return &nnfs_level_avxvnni;
#endif
#if HAS_AVX2
    case AVX2: return &nnfs_level_avx2;
#endif
#if HAS_NEON
    case NEON: return &nnfs_level_neon;
#endif
    case PORTABLE: return &nnfs_level_portable;
    default: return 0;
    }
}

#if defined __x86_64__ && !defined NNFS_EMULATE
static u32 bits_of(u32 leaf, u32 sub, int which) {
    u32 r[4] = {0};
    if (__get_cpuid_max(0, 0) >= leaf) __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
    return r[which];
}

static u32 supported(void) {
    enum { EAX, EBX, ECX, EDX };
    u32 found = 1u << PORTABLE;
    if (!(bits_of(1, 0, ECX) >> 27 & 1)) return found; // no xgetbv
    u32 low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); // which registers the system saves
    const u32 b7 = bits_of(7, 0, EBX), c7 = bits_of(7, 0, ECX), d7 = bits_of(7, 0, EDX), a71 = bits_of(7, 1, EAX);
    if ((low & 6) != 6 || !(b7 >> 5 & 1) || !(bits_of(1, 0, ECX) >> 12 & 1)) return found; // AVX2, FMA
    found |= 1u << AVX2;
    if (a71 >> 4 & 1) found |= 1u << AVXVNNI;
    const int wide = (low & 0xE6) == 0xE6 && b7 >> 16 & 1 && b7 >> 17 & 1 && b7 >> 30 & 1 && b7 >> 31 & 1; // F DQ BW VL
    if (!wide || !(c7 >> 11 & 1)) return found;
    found |= 1u << VNNI;
    if ((low >> 17 & 3) == 3 && d7 >> 24 & 1 && d7 >> 25 & 1 && syscall(SYS_arch_prctl, 0x1023, 18) == 0)
        found |= 1u << AMX; // the system gives its registers to a process that asks, once, for all of its threads
    return found;
}
#elif defined __aarch64__ && defined __linux__ && !defined NNFS_EMULATE
static u32 supported(void) { return 1u << PORTABLE | (getauxval(AT_HWCAP) >> 20 & 1) << NEON; } // ASIMDDP
#elif defined NNFS_EMULATE
static u32 supported(void) { return ~0u; }
#else
static u32 supported(void) { return 1u << PORTABLE; }
#endif

// The levels that can run here, a bit for each. To be called once, before there are threads.
EXPORT u32 nnfs_levels(void) {
    u32 found = supported(), there = 0;
    for (int i = 0; i < LEVEL_COUNT; i++) there |= (found >> i & compiled[i]) << i;
    return there;
}

EXPORT int nnfs_offset(int which) {
    const Level *level = level_of(which);
    return level ? level->weight_offset : -1;
}

// --------------------------------------------------------------------------------------------------------- network
// Tell whether there is a kernel for a network of these sizes.
EXPORT int nnfs_network_fits(const Network *net) {
    if (net->width <= 0 || net->width > MOST_WIDTH || net->width % 64 || net->hidden <= 0 || net->hidden % 64) return 0;
    if (net->layers <= 0 || 4 * net->layers + 1 > MOST_PRODUCTS || net->kv_heads <= 0) return 0;
    if (net->heads != net->kv_heads * GROUP || net->heads * HEAD % 64 || net->ngram_bits < 1 || net->ngram_bits > 24) return 0;
    i32 widths = 0;
    for (int k = 0; k < NGRAM_TABLES; k++) {
        if (net->ngram_widths[k] <= 0 || net->ngram_widths[k] > net->width) return 0;
        widths += net->ngram_widths[k];
    }
    if (widths != net->width) return 0;
    for (int i = 0; i <= 4 * net->layers; i++) {
        const Product *p = net->products + i;
        if (p->inputs <= 0 || p->inputs % 64 || p->inputs > MOST_WIDTH || p->outputs <= 0 || p->outputs % BLOCK_OUTPUTS) return 0;
        if (p->pre < 0 || p->pre > 24 || p->shift < 1 || p->shift > 24) return 0;
    }
    return 1;
}

static i64 rounded(i64 bytes) { return (bytes + 63) & ~(i64)63; }

// Lay a state out at `room`, which begins at a multiple of 64; return its size in bytes, or -1 for impossible numbers.
// Without `room` the size only.
EXPORT i64 nnfs_state_start(int which, const Network *net, State *s, u8 *room, i64 lanes, i64 columns) {
    const Level *level = level_of(which);
    if (!level || lanes <= 0 || columns <= 0 || lanes > MOST_LANES || columns > MOST_LANES || lanes * columns > 1 << 24) return -1;
    const i64 rows = lanes * columns, wide = (net->heads + 2 * net->kv_heads) * HEAD;
    const i64 past = (i64)net->layers * lanes * net->kv_heads * HEAD * WINDOW;
    const i64 sizes[] = {past, past, 4 * rows * net->width, rows * net->width, rows * wide, rows * net->heads * HEAD,
                         FEED * (i64)net->hidden, 4 * rows * 256, 4 * rows * 256};
    u8 *parts[9];
    i64 at = 0;
    for (int i = 0; i < 9; i++) {
        parts[i] = room ? room + at : 0;
        at += rounded(sizes[i]);
    }
    if (!room) return at;
    s->lanes = lanes, s->rows = rows, s->known = 0;
    s->keys = parts[0], s->values = (i8 *)parts[1], s->x = (i32 *)(void *)parts[2], s->u = (i8 *)parts[3];
    s->act = (i8 *)parts[4], s->attended = (i8 *)parts[5], s->part = (i8 *)parts[6];
    s->logits = (i32 *)(void *)parts[7], s->out = (u32 *)(void *)parts[8];
    memset(s->keys, level->key_offset, past);
    memset(s->values, 0, past);
    return at;
}

static int in_range(const i32 *values, i64 count, i64 fields, const i32 *bounds) {
    for (i64 i = 0; i < count; i++)
        for (i64 k = 0; k < fields; k++)
            if ((u32)values[i * fields + k] >= (u32)bounds[k]) return 0;
    return 1;
}

// Features of some columns to frequencies, `s->out` (columns lanes, 256)
EXPORT int nnfs_forward(int which, const Network *net, State *s, const Features *f, i64 lanes, i64 columns) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (lanes <= 0 || columns <= 0 || lanes > s->lanes || lanes * columns > s->rows) return BAD_ARGUMENT;
    i32 rows[INPUT_FIELDS], grams[NGRAM_TABLES], biases[CANDIDATES];
    for (int k = 0; k < INPUT_FIELDS; k++) rows[k] = net->input_rows;
    for (int k = 0; k < NGRAM_TABLES; k++) grams[k] = 1 << net->ngram_bits;
    for (int k = 0; k < CANDIDATES; k++) biases[k] = net->bias_rows;
    const i64 count = lanes * columns;
    if (!in_range(f->rows, count, INPUT_FIELDS, rows) || !in_range(f->ngrams, count, NGRAM_TABLES, grams) ||
        !in_range(f->bucket, count, CANDIDATES, biases))
        return BAD_ARGUMENT;
    level->step(net, s, f, lanes, columns);
    return OK;
}
