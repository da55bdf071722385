// The entry points, and which levels this processor has.
#include "team.h"
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
    if (widths != net->width || net->input_rows < features_rows() || net->bias_rows < features_biases()) return 0;
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
    Member alone = {0};
    level->step(net, s, f, lanes, columns, s->known, &alone);
    s->known += columns;
    return OK;
}

// ----------------------------------------------------------------------------------------------- mixer and coder
// Tell whether a mixer's numbers are possible.
static int mixer_fits(const Mixer *s) {
    return s->size > 0 && s->lanes > 0 && s->lanes <= MOST_CHUNK_LANES && s->lanes <= s->size && s->begin >= 0 && s->stride >= 0 &&
           s->size < (i64)1 << 30 && s->begin < (i64)1 << 30 && s->lines >= 4 && s->lines <= 1 << 26 && !(s->lines & (s->lines - 1)) &&
           s->rate >= 0 && s->rate <= 1350 / 3;
}

EXPORT i64 nnfs_tables_size(void) { return sizeof(Tables); }

EXPORT void nnfs_tables(Tables *t, const i32 *squash, const i16 *stretch, const i16 *coarse, const u8 *next, const i32 *fine) {
    memcpy(t->squash, squash, sizeof t->squash);
    memcpy(t->stretch, stretch, sizeof t->stretch);
    memcpy(t->coarse, coarse, sizeof t->coarse);
    memcpy(t->next, next, sizeof t->next);
    memcpy(t->fine, fine, sizeof t->fine);
    for (int n = 0; n < 1024; n++) t->reciprocal[n] = 65536 * 2 / (2 * n + 3);
}

// Probabilities of 1 along the bytes of a chunk, (columns, lanes, 8); network: its own, or none
EXPORT int nnfs_mix_encode(int which, Mixer *s, const u16 *network, u16 *out) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (!mixer_fits(s)) return BAD_ARGUMENT;
    level->mix_encode(s, network, out);
    return OK;
}

EXPORT int nnfs_mix_enter(int which, Mixer *s) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (!mixer_fits(s) || s->stride) return BAD_ARGUMENT;
    level->mix_enter(s);
    return OK;
}

static int coder_fits(const Coder *c) {
    return c->width > 0 && c->width <= MOST_STATES && c->size >= 0 && c->cursor >= 0 && c->cursor <= c->size;
}

// Decode columns of one chunk without a network
EXPORT int nnfs_mix_decode(int which, Mixer *s, Coder *coder, i64 from, i64 to) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (!mixer_fits(s) || !coder_fits(coder)) return BAD_ARGUMENT;
    const i64 columns = (s->size + s->lanes - 1) / s->lanes;
    if (from < 0 || to > columns) return BAD_ARGUMENT;
    Member alone = {0};
    for (i64 t = from; t < to; t++) level->mix_decode(s, t, 0, coder, 0, &alone);
    return OK;
}

// Probabilities of 1 along the bits of samples, (samples, bits), or with a coder the samples
EXPORT int nnfs_samples(int which, Samples *s, u16 *out, Coder *coder) {
    const Level *level = level_of(which);
    const i64 *g = s->parameters;
    if (!level) return NO_LEVEL;
    if (g[0] <= 0 || g[0] > 1 << 30 || g[1] < 1 || g[1] > 2 || g[2] < 1 || g[2] > 4 || g[3] < 0 || (g[3] && g[3] <= g[2])) return BAD_ARGUMENT;
    if (g[4] < 0 || g[6] < 1 || g[6] > MOST_REGRESSORS || g[7] < 1 || g[8] < 0 || g[8] > 1350) return BAD_ARGUMENT;
    if (g[9] < 0 || g[9] > 62 || g[10] < 0 || g[10] > 62 || (coder && !coder_fits(coder)) || (!coder && !out)) return BAD_ARGUMENT;
    for (i64 i = 0; i < g[6]; i++)
        if (s->offsets[i] < 1) return BAD_ARGUMENT;
    level->samples(s, out, coder);
    return OK;
}

static int light_fits(const Light *s) {
    return s->size > 0 && s->size < 1 << 30 && s->lines >= 4 && s->lines <= 1 << 26 && !(s->lines & (s->lines - 1));
}

// Probabilities of 1 along the bytes of a chunk of codec 20, (size, 8); counts (LIGHT_CONTEXTS, 256, 2), or none
EXPORT int nnfs_light_encode(int which, Light *s, u16 *out, u32 *counts) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (!light_fits(s)) return BAD_ARGUMENT;
    level->light_encode(s, out, counts);
    return OK;
}

EXPORT int nnfs_light_decode(int which, Light *s, Coder *coder) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (!light_fits(s) || !coder_fits(coder)) return BAD_ARGUMENT;
    level->light_decode(s, coder);
    return OK;
}

// Probabilities of 1 along the bytes of a chunk of fields, (size, 8), or with a coder the bytes
EXPORT int nnfs_fields(int which, Fields *s, u16 *out, Coder *coder) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (s->size <= 0 || s->size >= 1 << 30 || s->lines < 4 || s->lines > 1 << 26 || (s->lines & (s->lines - 1))) return BAD_ARGUMENT;
    if (s->width < 1 || s->width > 8 || s->stride < s->width || s->stride > 65535 || s->stride % s->width) return BAD_ARGUMENT;
    if (s->skip < 0 || s->skip >= s->width || (coder && !coder_fits(coder)) || (!coder && !out)) return BAD_ARGUMENT;
    level->fields(s, out, coder);
    return OK;
}

// Encode backwards the bits of a chunk, `probability` (columns, lanes, 8); `words` is filled from its end, and has room
// for 16 bits a bit. Return where the first word starts, -1 for impossible numbers.
EXPORT i64 nnfs_rans_encode(const u8 *plain, i64 size, i64 lanes, const u16 *probability, i64 *states, i64 width, u8 *words) {
    if (size <= 0 || lanes <= 0 || lanes > size || width <= 0 || width > MOST_STATES) return -1;
    const i64 columns = (size + lanes - 1) / lanes;
    i64 at = 16 * size + 2;
    for (i64 t = columns - 1; t >= 0; t--) {
        const i64 active = (size - t + columns - 1) / columns;
        for (int k = 7; k >= 0; k--)
            for (i64 lane = active - 1; lane >= 0; lane--) {
                const int bit = plain[lane * columns + t] >> (7 - k) & 1;
                const u64 p = probability[(t * lanes + lane) * 8 + k], f = bit ? p : 65536 - p, begin = bit ? 0 : p;
                if (!p) return -1;
                u64 x = (u64)states[lane % width];
                if (x >= f << 32) {
                    at -= 2;
                    words[at] = (u8)(x >> 8);
                    words[at + 1] = (u8)x;
                    x >>= 16;
                }
                states[lane % width] = (i64)((x / f) << 16 | (x % f + begin));
            }
    }
    return at;
}

// ---------------------------------------------------------------------------------------------------------- batches
static i64 length_of(const Past *s) { return (s->size + s->lanes - 1) / s->lanes; }

static int past_fits(const Past *s) {
    return s->size > 0 && s->lanes > 0 && s->lanes <= MOST_CHUNK_LANES && s->lanes <= s->size && s->begin >= 0 &&
           s->size < (i64)1 << 30 && s->begin < (i64)1 << 30 && s->bits >= 8 && s->bits <= 24 && s->entries >= (i64)1 << s->bits;
}

static int batch_fits(const Network *net, const State *s, const Batch *b, i64 columns) {
    if (b->count <= 0 || b->first[0] != 0 || b->first[b->count] > s->lanes || b->first[b->count] * columns > b->rows) return 0;
    if (b->first[b->count] * columns > s->rows || net->ngram_bits < 1 || net->ngram_bits > 24) return 0;
    for (i64 k = 0; k < b->count; k++) {
        if (!past_fits(b->pasts + k) || b->first[k + 1] - b->first[k] != b->pasts[k].lanes) return 0;
        if (k && length_of(b->pasts + k) > length_of(b->pasts + k - 1)) return 0;
    }
    return 1;
}

// The number of lanes, from the first on, that belong to chunks that have not ended before `column`
static i64 live_lanes(const Batch *b, i64 column) {
    i64 k = 0;
    while (k < b->count && length_of(b->pasts + k) > column) k++;
    return b->first[k];
}

// The features of `column` for all chunks that have one, as column `at` of `live` lanes
static void predict_all(const Network *net, const Batch *b, i64 column, i64 at, i64 live) {
    for (i64 k = 0; k < b->count && length_of(b->pasts + k) > column; k++) {
        const i64 r = at * live + b->first[k];
        features_predict(b->pasts + k, column, net->ngram_bits, b->row + r * INPUT_FIELDS, b->ngram + r * NGRAM_TABLES,
                         b->candidate + r * CANDIDATES, b->bucket + r * CANDIDATES);
    }
}

// Write the network's probabilities of columns `from` to `to` - 1, all known, to `paths`; `columns` of them in one step
EXPORT int nnfs_encode_columns(int which, const Network *net, State *s, Batch *b, i64 from, i64 to, i64 columns) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (columns <= 0 || !batch_fits(net, s, b, columns) || from < 0 || to > length_of(b->pasts)) return BAD_ARGUMENT;
    const Features f = {b->row, b->ngram, b->candidate, b->bucket};
    Member alone = {0};
    for (i64 t = from; t < to; t += columns) {
        const i64 count = to - t < columns ? to - t : columns, live = live_lanes(b, t);
        for (i64 i = 0; i < count; i++) {
            predict_all(net, b, t + i, i, live);
            for (i64 k = 0; k < b->count && length_of(b->pasts + k) > t + i; k++) features_learn(b->pasts + k, t + i);
        }
        level->step(net, s, &f, live, count, s->known, &alone);
        s->known += count;
        for (i64 i = 0; i < count; i++)
            for (i64 k = 0; k < b->count && length_of(b->pasts + k) > t + i; k++) {
                const Past *p = b->pasts + k;
                const i64 length = length_of(p), active = (p->size - (t + i) + length - 1) / length;
                level->net_path(s->out + (i * live + b->first[k]) * 256, p->plain + p->begin + t + i, length, active,
                                b->paths[k] + (t + i) * p->lanes * 8);
            }
    }
    return OK;
}

// The features of column `t` of all chunks that have one, once the column before it is learned
static void follow(const Network *net, const Batch *b, i64 t, i64 live) {
    for (i64 k = 0; t && k < b->count && length_of(b->pasts + k) > t; k++)
        if (b->alive[k]) features_learn(b->pasts + k, t - 1);
    predict_all(net, b, t, 0, live);
}

// Mix and decode column `t` of all chunks that are alive
static void decode_column(const Level *level, const State *s, const Batch *b, i64 t, Member *m) {
    for (i64 k = 0, next; k < b->count && length_of(b->pasts + k) > t; k = next) {
        for (next = k + 1; next < b->count && !b->alive[next]; next++) {}
        if (!b->alive[k]) continue;
        const Mixer *after = next < b->count && length_of(b->pasts + next) > t ? b->mixers + next : 0;
        level->mix_decode(b->mixers + k, t, s->out + b->first[k] * 256, b->coders + k, after, m);
    }
}

EXPORT i64 nnfs_team_size(void) { return sizeof(Team); }

// Say to a team, or to memory that is to be one, how many it has; 0: it is over, and `nnfs_decode_columns` returns to all
// members but the first.
EXPORT int nnfs_team(Team *team, i64 members) {
    if (members < 0 || members > MOST_TEAM) return BAD_ARGUMENT;
    if (members) {
        memset(team, 0, sizeof *team);
        team->members = members, team->away = 1;
        return OK;
    }
    __atomic_store_n(&team->over, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&team->away, 0, __ATOMIC_SEQ_CST);
    wake(&team->over);
    wake(&team->away);
    return OK;
}

// Decode columns `from` to `to` - 1, which follow those of the last call, of all chunks that are alive. With a team, of one
// chunk: its member `me` does its share. The first mixes, and may come back in several calls; the others return after
// the last column, or when the team is over.
EXPORT int nnfs_decode_columns(int which, const Network *net, State *s, Batch *b, i64 from, i64 to, Team *team, i64 me) {
    const Level *level = level_of(which);
    if (!level) return NO_LEVEL;
    if (!batch_fits(net, s, b, 1) || from < 0 || to > length_of(b->pasts)) return BAD_ARGUMENT;
    if (team && (me < 0 || me >= team->members || b->count != 1 || !b->alive[0])) return BAD_ARGUMENT;
    for (i64 k = 0; k < b->count; k++) {
        const Mixer *m = b->mixers + k;
        const Past *p = b->pasts + k;
        if (!mixer_fits(m) || m->size != p->size || m->lanes != p->lanes || m->begin != p->begin || m->plain != p->plain) return BAD_ARGUMENT;
        if (b->alive[k] && !coder_fits(b->coders + k)) return BAD_ARGUMENT;
    }
    const Features f = {b->row, b->ngram, b->candidate, b->bucket};
    Member m = join(team, me);
    for (i64 t = from, first, end; t < to && !is_over(&m); t++) {
        const i64 live = live_lanes(b, t);
        begin_phase(&m, 1);
        while (claim(&m, &first, &end)) follow(net, b, t, live); // by another member, while the first learns in the mixer
        settle(&m);
        level->step(net, s, &f, live, 1, t, &m);
        begin_phase(&m, 1);
        if (m.me == 0) decode_column(level, s, b, t, &m);
        settle(&m);
    }
    leave(&m);
    return OK;
}

// Add a dictionary, the `plain` of one lane, to tables that know nothing yet.
EXPORT int nnfs_features_enter(Past *s) {
    if (!past_fits(s) || s->lanes != 1 || s->begin) return BAD_ARGUMENT;
    for (i64 t = 0; t < s->size; t++) features_learn(s, t);
    return OK;
}
