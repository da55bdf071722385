// Context mixing: the integers of nnfs.mixer.mixing, which explains them; here in the order that hides memory's latency.
//
// All lanes of a column are prepared together: hashes first, while the lines that they name are fetched; then matches,
// then the lines are looked at. Values that only the current column needs lie in one `Lane` of work space.
#include "rules.h"
#include "simd.h"
#include "team.h"

static const u8 NOWHERE[64] ALIGNED = {0}; // a line of histories that have seen nothing

typedef struct {
    i32 x[8][INPUTS] ALIGNED; // inputs of each bit
    i32 dot[8][SETS];         // what the sets of weights answered
    i32 set[8][SETS];
    i32 total[8], slot[8][MATCHES];
    u32 refined[8][2];
    u32 hashed[8];                 // where the second refining map of each bit begins
    u16 state[8][CONTEXTS];        // bit histories used, as places in `maps`
    i32 before;                    // the byte before
    i32 expected[MATCHES];         // what a match expects, with bit 8 set; 0: there is no match
    i32 matched[MATCHES];          // its class of length, and its misses
    const u8 *line[2][CONTEXTS];   // of each nibble: where its histories are
    const u8 *asked[2][CONTEXTS];  // where they may be: this place and two beside it
    u8 check[2][CONTEXTS];
    u64 hash[CONTEXTS];
    u32 found[MATCHES]; // places in `find`
} Lane;

static void hash_contexts(const Mixer *s, const i64 *r, i64 base, i64 t, u64 *out) {
    context_values(s, r, base, t, out);
    for (int i = 1; i < CONTEXTS; i++) out[i] = context_hash(out[i], (u64)i);
}

// Have the lines fetched that the histories of a nibble may lie in: three of them, in one line of the cache
INLINE void ask(const Mixer *s, Lane *l, int nibble, u64 c0) {
    for (int i = 0; i < CONTEXTS; i++) {
        u64 h = place_of(l->hash[i], c0);
        l->asked[nibble][i] = s->table + ((h & (u64)(s->lines - 1)) << 4);
        l->check[nibble][i] = (u8)(h >> 40);
        prefetch(l->asked[nibble][i]);
    }
}

INLINE u8 *beside(const Mixer *s, const u8 *line, i64 i) { return s->table + ((line - s->table) ^ (i << 4)); }

INLINE void find_lines(const Mixer *s, Lane *l, int nibble) {
    for (int c = 0; c < CONTEXTS; c++) {
        const u8 *found = NOWHERE;
        for (int i = 2; i >= 0; i--) {
            const u8 *at = beside(s, l->asked[nibble][c], i);
            found = *at == l->check[nibble][c] ? at : found;
        }
        l->line[nibble][c] = found;
    }
}

// Where the histories of a nibble are now, in the place of less seen ones if need be
INLINE u8 *find_or_make(const Mixer *s, const u8 *asked, u8 check, const u8 *found) {
    if (found != NOWHERE && *found == check) return (u8 *)found; // other lanes may have taken the place since
    u8 *worst = s->table;
    int least = 1 << 30;
    for (int i = 0; i < 3; i++) {
        u8 *at = beside(s, asked, i);
        if (*at == check) return at;
        if (at[1] < least) worst = at, least = at[1];
    }
    memset(worst, 0, 16);
    *worst = check;
    return worst;
}

// First half of preparing a lane for column t: what can be fetched ahead is asked for
static void prepare(const Mixer *s, Lane *l, const i64 *r, i64 base, i64 t) {
    hash_contexts(s, r, base, t, l->hash);
    ask(s, l, 0, 1);
    l->before = (i32)(r[LAST] & 255);
    for (int m = 0; m < MATCHES; m++) {
        if (t >= least_of(m)) {
            l->found[m] = match_hash(s->plain + base + t, least_of(m));
            prefetch(s->find + ((i64)m << FIND_BITS) + l->found[m]);
        }
        if (r[POINT + 3 * m] > 0) prefetch(s->plain + r[POINT + 3 * m]);
    }
}

// Sums of products of 32 inputs with the weights of four sets, 1/65536 of them, within +-LIMIT
INLINE void dots(const i32 *x, const i32 *const *w, i32 *out) {
    i64 sum[SETS];
#if !defined NNFS_EMULATE && VL == 16
    const __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(x + 16);
    const __m512i odd_a = _mm512_srli_epi64(a, 32), odd_b = _mm512_srli_epi64(b, 32);
    for (int j = 0; j < SETS; j++) {
        const __m512i u = _mm512_loadu_si512(w[j]), v = _mm512_loadu_si512(w[j] + 16);
        __m512i t = _mm512_add_epi64(_mm512_mul_epi32(a, u), _mm512_mul_epi32(odd_a, _mm512_srli_epi64(u, 32)));
        t = _mm512_add_epi64(t, _mm512_add_epi64(_mm512_mul_epi32(b, v), _mm512_mul_epi32(odd_b, _mm512_srli_epi64(v, 32))));
        sum[j] = _mm512_reduce_add_epi64(t);
    }
#elif !defined NNFS_EMULATE && VL == 8
    __m256i even[4], odd[4], t[SETS];
    for (int v = 0; v < 4; v++) {
        even[v] = _mm256_loadu_si256((const __m256i *)(x + 8 * v));
        odd[v] = _mm256_srli_epi64(even[v], 32);
    }
    for (int j = 0; j < SETS; j++) {
        t[j] = _mm256_setzero_si256();
        for (int v = 0; v < 4; v++) {
            const __m256i u = _mm256_loadu_si256((const __m256i *)(w[j] + 8 * v));
            t[j] = _mm256_add_epi64(t[j], _mm256_add_epi64(_mm256_mul_epi32(even[v], u), _mm256_mul_epi32(odd[v], _mm256_srli_epi64(u, 32))));
        }
    }
    const __m256i p = _mm256_add_epi64(_mm256_unpacklo_epi64(t[0], t[1]), _mm256_unpackhi_epi64(t[0], t[1]));
    const __m256i q = _mm256_add_epi64(_mm256_unpacklo_epi64(t[2], t[3]), _mm256_unpackhi_epi64(t[2], t[3]));
    _mm_storeu_si128((__m128i *)sum, _mm_add_epi64(_mm256_castsi256_si128(p), _mm256_extracti128_si256(p, 1)));
    _mm_storeu_si128((__m128i *)(sum + 2), _mm_add_epi64(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)));
#else
    for (int j = 0; j < SETS; j++) {
        sum[j] = 0;
        for (int i = 0; i < INPUTS; i++) sum[j] += (i64)x[i] * w[j][i];
    }
#endif
    for (int j = 0; j < SETS; j++) {
        out[j] = (i32)limited(sum[j] >> 16);
    }
}

// The inputs of bit k (0: the highest) after the bits in c0 (1: none yet), and the sets of weights that they choose;
// network: its own probability, or 0. Apart from `answer`: a vector that is read right after its parts were written waits.
INLINE void look_up(const Mixer *s, Lane *l, int k, i32 c0, u32 network) {
    const Tables *tables = s->tables;
    const int node = node_of(k, c0);
    const u8 *const *line = l->line[k >> 2];
    i32 *x = l->x[k];
    u16 *used = l->state[k];
    int hits = 0;
    for (int i = 0; i < CONTEXTS; i++) {
        const int state = line[i][node];
        const i32 p = (i32)(s->maps[i << 8 | state] >> 10), there = -(state != 0);
        used[i] = (u16)(i << 8 | state);
        x[i] = tables->coarse[p >> 10] & there;
        x[CONTEXTS + i] = (p - 2097152) >> 11 & there;
        if (i >= 2 && i <= 6) hits -= there;
    }
    i32 expected = 0;
    for (int m = 0; m < MATCHES; m++) {
        i32 slot = -1, answer = 0;
        if (l->expected[m] >> (8 - k) == c0) {
            slot = l->matched[m] << 1 | (l->expected[m] >> (7 - k) & 1);
            answer = tables->coarse[s->match_maps[m * 512 + slot] >> 20];
            const i32 own = l->matched[m] >> 3;
            expected = own > expected ? own : expected;
        }
        x[2 * CONTEXTS + m] = answer;
        l->slot[k][m] = slot;
    }
    const i32 own = network ? tables->stretch[network] : 0;
    x[INPUTS - 2] = own;
    x[INPUTS - 1] = 256;
    const i32 n = (own < 0 ? -own : own) >> 7;
    i32 *set = l->set[k];
    set[0] = expected;
    set[1] = 16 + c0;
    set[2] = 272 + (network ? (n < 15 ? n : 15) << 3 | k : l->before);
    set[3] = 528 + (hits << 3 | k);
    l->hashed[k] = refining_row(l->before, c0);
    prefetch(s->refine + l->hashed[k] + CERTAIN / 2);
}

// The probability (1/65536) that bit k is 1, once its inputs were looked up
INLINE i32 answer(const Mixer *s, Lane *l, int k, i32 c0) {
    const i32 *w[SETS];
    for (int j = 0; j < SETS; j++) w[j] = s->weights + (i64)INPUTS * l->set[k][j];
    dots(l->x[k], w, l->dot[k]);
    i64 total = 0;
    for (int j = 0; j < SETS; j++) total += (i64)l->dot[k][j] * s->weights_last[SETS * c0 + j];
    l->total[k] = (i32)limited(total >> 16);
    return refine(s, l->total[k], c0, l->hashed[k], l->refined[k]);
}

INLINE void learn_bit(const Mixer *s, Lane *l, int k, i32 c0, u32 bit, i64 rate) {
    const Tables *tables = s->tables;
    const i64 target = (i64)bit << 16, error = (target - tables->squash[l->total[k] + LIMIT]) * s->rate_last >> 8;
    const i32 *x = l->x[k];
    vi inputs[INPUTS / VL];
    for (int v = 0; v < INPUTS / VL; v++) inputs[v] = load(x + v * VL);
    for (int j = 0; j < SETS; j++) {
        const i32 dot = l->dot[k][j];
        i32 *last = s->weights_last + SETS * c0 + j, *w = s->weights + (i64)INPUTS * l->set[k][j];
        *last = (i32)((u32)*last + (u32)((dot * error + 32768) >> 16));
        // An input is within 12 bits and the error within 19, so their product fits 32 bits.
        const vi e = set1((i32)((target - tables->squash[dot + LIMIT]) * rate >> 8));
        for (int v = 0; v < INPUTS / VL; v++) store(w + v * VL, load(w + v * VL) + ((inputs[v] * e + 32768) >> 16));
    }
    for (int i = 0; i < CONTEXTS; i++) // that of state 0, which has seen nothing, is never asked: no need to branch
        learn_entry(tables->reciprocal, s->maps + l->state[k][i], bit, (u32)s->map_limit);
    for (int m = 0; m < MATCHES; m++)
        if (l->slot[k][m] >= 0) learn_entry(tables->reciprocal, s->match_maps + m * 512 + l->slot[k][m], bit, 1023);
    for (int i = 0; i < 2; i++) learn_entry(tables->reciprocal, s->refine + l->refined[k][i], bit, (u32)s->refine_limit);
}

// Enter the byte of a lane at column t, which is in `plain` now, into the tables
static void learn_byte(const Mixer *s, Lane *l, i64 *r, i64 base, i64 t) {
    const u32 byte = s->plain[base + t];
    const u8 *next = s->tables->next;
    for (int i = 0; i < CONTEXTS; i++) {
        learn_nibble(next, find_or_make(s, l->asked[0][i], l->check[0][i], l->line[0][i]), byte >> 4);
        learn_nibble(next, find_or_make(s, l->asked[1][i], l->check[1][i], l->line[1][i]), byte & 15);
    }
    for (int m = 0; m < MATCHES; m++)
        if (t >= least_of(m)) s->find[((i64)m << FIND_BITS) + l->found[m]] = (i32)(base + t + 1);
    advance(r, t, byte);
}

static void learn_column(const Mixer *s, Lane *lanes, i64 columns, i64 active, i64 t) {
    const i64 rate = rate_at(s, t);
    for (i64 lane = 0; lane < active; lane++) {
        const i64 base = s->begin + lane * columns;
        const i32 byte = s->plain[base + t] | 256;
        for (int k = 0; k < 8; k++) learn_bit(s, lanes + lane, k, byte >> (8 - k), byte >> (7 - k) & 1, rate);
        learn_byte(s, lanes + lane, s->record + lane * RECORD, base, t);
    }
}

// Probabilities of 1 along the bytes of a chunk, (columns, lanes, 8); network: its own, or none
static void mix_encode(Mixer *s, const u16 *network, u16 *out) {
    const i64 columns = (s->size + s->lanes - 1) / s->lanes;
    Lane lanes[MOST_CHUNK_LANES];
    for (i64 t = 0; t < columns; t++) {
        const i64 active = (s->size - t + columns - 1) / columns;
        for (i64 lane = 0; lane < active; lane++) {
            const i64 base = s->begin + lane * columns;
            prepare(s, lanes + lane, s->record + lane * RECORD, base, t);
            ask(s, lanes + lane, 1, 16 | s->plain[base + t] >> 4);
        }
        for (i64 lane = 0; lane < active; lane++) {
            Lane *l = lanes + lane;
            i64 *r = s->record + lane * RECORD;
            const i64 base = s->begin + lane * columns, at = (t * s->lanes + lane) * 8;
            for (int m = 0; m < MATCHES; m++) match(s, l->found[m], r, columns, base, t, m, l->expected + m, l->matched + m);
            find_lines(s, l, 0);
            find_lines(s, l, 1);
            const i32 byte = s->plain[base + t] | 256;
            for (int k = 0; k < 8; k++) look_up(s, l, k, byte >> (8 - k), network ? network[at + k] : 0);
            for (int k = 0; k < 8; k++) out[at + k] = (u16)answer(s, l, k, byte >> (8 - k));
        }
        learn_column(s, lanes, columns, active, t);
    }
}

// Enter the dictionary, `plain` before the chunk's beginning, into the tables: one lane, no weights learnt
static void mix_enter(Mixer *s) {
    enum { AHEAD = 4 }; // bytes whose lines are being fetched
    Lane lanes[AHEAD + 1];
    i64 record[RECORD] = {0};
    for (i64 t = 0; t < s->begin + AHEAD; t++) {
        if (t < s->begin) { // the record's match models stay empty, so it may run ahead
            Lane *l = lanes + t % (AHEAD + 1);
            hash_contexts(s, record, 0, t, l->hash);
            ask(s, l, 0, 1);
            ask(s, l, 1, 16 | s->plain[t] >> 4);
            for (int m = 0; m < MATCHES; m++)
                if (t >= least_of(m)) l->found[m] = match_hash(s->plain + t, least_of(m));
            for (int i = 0; i < CONTEXTS; i++) l->line[0][i] = l->line[1][i] = NOWHERE;
            advance(record, t, s->plain[t]);
        }
        if (t >= AHEAD) {
            i64 ignored[RECORD] = {0};
            learn_byte(s, lanes + (t - AHEAD) % (AHEAD + 1), ignored, 0, t - AHEAD);
        }
    }
    memcpy(s->record, record, sizeof record);
}

INLINE u32 sum_of(const u32 *f, int count) { // all frequencies of a row are below 2^31
    if (count >= VL) {
        vi total = {0};
        for (int i = 0; i < count; i += VL) total += load(f + i);
        return (u32)hsum(total);
    }
    u32 total = 0;
    for (int i = 0; i < count; i++) total += f[i];
    return total;
}

// The sum of the frequencies where bit k is 1, among the bytes that begin with the bits of c0
INLINE u64 ones_of(const u32 *f, i32 c0, int k) {
    const int width = 256 >> k;
    return sum_of(f + c0 * width - 256 + (width >> 1), width >> 1);
}

// The network's probabilities of 1 along some bytes: of row i into out[i]
static void net_path(const u32 *frequencies, const u8 *bytes, i64 stride, i64 rows, u16 *out) {
    for (i64 i = 0; i < rows; i++, frequencies += 256, out += 8) {
        const i32 byte = bytes[i * stride] | 256;
        u64 total = sum_of(frequencies, 256);
        for (int k = 0; k < 8; k++) {
            const u64 ones = ones_of(frequencies, byte >> (8 - k), k);
            out[k] = (u16)share(ones, total);
            total = byte >> (7 - k) & 1 ? ones : total - ones;
        }
    }
}

// The weights and maps of the chunk that is next, into the second cache: the network's step threw them out
static void fetch_next(const Mixer *next, int k) {
    const char *w = (const char *)next->weights + k * 6400, *maps = (const char *)next->maps + k * 1792;
    for (int i = 0; i < 6400; i += 64) prefetch_far(w + i);
    for (int i = 0; i < 1792; i += 64) prefetch_far(maps + i);
    if (k == 0)
        for (int i = 0; i < 64 * 128; i += 64) prefetch_far((const char *)next->weights + 528 * 128 + i);
    if (k == 1)
        for (int i = 0; i < 4096; i += 64) prefetch_far((const char *)next->weights_last + i), prefetch_far((const char *)next->match_maps + i);
    if (k == 7)
        for (i64 i = 0; i < next->lanes * RECORD * 8; i += 64) prefetch_far((const char *)next->record + i);
}

// Decode column t of a chunk into its `plain`, tell the team, and learn it; frequencies (lanes, 256): the network's, or none
static void mix_decode(Mixer *s, i64 t, const u32 *frequencies, Coder *coder, const Mixer *next, Member *m) {
    const i64 columns = (s->size + s->lanes - 1) / s->lanes, active = (s->size - t + columns - 1) / columns;
    Lane lanes[MOST_CHUNK_LANES];
    i32 so_far[MOST_CHUNK_LANES], p[MOST_CHUNK_LANES];
    u64 total[MOST_CHUNK_LANES] = {0}, ones[MOST_CHUNK_LANES] = {0};
    for (i64 lane = 0; lane < active; lane++)
        prepare(s, lanes + lane, s->record + lane * RECORD, s->begin + lane * columns, t);
    for (i64 lane = 0; lane < active; lane++) {
        i64 *r = s->record + lane * RECORD;
        for (int m = 0; m < MATCHES; m++) {
            Lane *l = lanes + lane;
            match(s, l->found[m], r, columns, s->begin + lane * columns, t, m, l->expected + m, l->matched + m);
        }
        so_far[lane] = 1;
        if (frequencies) total[lane] = sum_of(frequencies + lane * 256, 256);
        find_lines(s, lanes + lane, 0);
    }
    for (int k = 0; k < 8; k++) {
        if (next) fetch_next(next, k);
        if (k == 4) {
            for (i64 lane = 0; lane < active; lane++) ask(s, lanes + lane, 1, (u64)so_far[lane]);
            for (i64 lane = 0; lane < active; lane++) find_lines(s, lanes + lane, 1);
        }
        for (i64 lane = 0; lane < active; lane++) {
            u32 own = 0;
            if (frequencies) {
                ones[lane] = ones_of(frequencies + lane * 256, so_far[lane], k);
                own = share(ones[lane], total[lane]);
            }
            look_up(s, lanes + lane, k, so_far[lane], own);
        }
        for (i64 lane = 0; lane < active; lane++) p[lane] = answer(s, lanes + lane, k, so_far[lane]);
        for (i64 lane = 0; lane < active; lane++) {
            const u32 bit = decode_bit(coder, lane % coder->width, p[lane]);
            total[lane] = bit ? ones[lane] : total[lane] - ones[lane];
            so_far[lane] = so_far[lane] << 1 | (i32)bit;
        }
    }
    for (i64 lane = 0; lane < active; lane++) s->plain[s->begin + lane * columns + t] = (u8)so_far[lane];
    publish(m, 1);
    learn_column(s, lanes, columns, active, t);
}
