// Features, mixer and coder of one column of one block's rows: the integers of nnfs.model.features, nnfs.mixer.mixing
// and nnfs.codec.rans. The rules of one lane, context and bit are those of the processor's kernels; here they go to
// threads. Two things depend on the order of lanes, and keep it:
// - an entry of a map, which one thread moves by all bits of a column, lane by lane;
// - lines of histories and entries of orders: of all places that share a line, the thread of the first does the work
//   of the others too, in their order. Places that share none do not touch each other.
// Weights are only added to, modulo 2^32, so their order is free.
#ifndef COLUMNS_H
#define COLUMNS_H
#include "room.h"

typedef struct { // a block and its column
    const Network *net;
    Chunk *chunks;
    int count, rows; // chunks; rows
    i64 t;
} Column;

DEVICE Chunk *chunk_of(const Column &o, const Room &m, int r) { return o.chunks + m.chunk[r]; }
DEVICE int lane_of(const Chunk *chunk, int r) { return r - chunk->first; }
DEVICE i64 base_of(const Chunk *chunk, int r) { return chunk->past.begin + lane_of(chunk, r) * length_of(&chunk->past); }
DEVICE i64 *record_of(const Chunk *chunk, int r) { return chunk->mixer.record + lane_of(chunk, r) * RECORD; }
DEVICE u64 *past_of(const Chunk *chunk, int r) { return chunk->past.lane + lane_of(chunk, r) * LANE_FIELDS; }

// Give rows to chunks, once for a launch
DEVICE void seat(const Column &o, const Room &m) {
    EACH (r, o.rows) {
        m.chunk[r] = -1;
        for (int c = 0; c < o.count; c++)
            if (r >= o.chunks[c].first && r < o.chunks[c].first + (int)o.chunks[c].past.lanes) m.chunk[r] = c;
        for (int k = 0; k < INPUT_FIELDS; k++) m.row[r * INPUT_FIELDS + k] = 0;
        for (int k = 0; k < NGRAM_TABLES; k++) m.ngram[r * NGRAM_TABLES + k] = 0;
        for (int k = 0; k < CANDIDATES; k++) m.candidate[r * CANDIDATES + k] = 0, m.bucket[r * CANDIDATES + k] = 0;
    }
    BARRIER();
}

// Which rows have a byte in this column, and at which rate they learn
DEVICE void begin(const Column &o, const Room &m) {
    EACH (r, o.rows) {
        const Chunk *chunk = m.chunk[r] < 0 ? 0 : chunk_of(o, m, r);
        const i64 length = chunk ? length_of(&chunk->past) : 0;
        m.live[r] = o.t < length && lane_of(chunk, r) * length + o.t < chunk->past.size;
        m.rate[r] = m.live[r] ? (i32)rate_at(&chunk->mixer, o.t) : 0;
        if (!m.live[r])
            for (int q = 0; q < PLACES; q++) m.asked[r * PLACES + q] = ~0u;
    }
    BARRIER();
}

// ------------------------------------------------------------------------------------------------------- features
DEVICE void predict_features(const Column &o, const Room &m) {
    enum { ITEMS = ORDER_COUNT + 1 };
    EACH (i, o.rows * ITEMS) {
        const int r = i / ITEMS, k = i % ITEMS;
        if (!m.live[r]) continue;
        const Chunk *chunk = chunk_of(o, m, r);
        const u64 *lane = past_of(chunk, r);
        i32 *row = m.row + r * INPUT_FIELDS, *bucket = m.bucket + r * CANDIDATES;
        u8 *candidate = m.candidate + r * CANDIDATES;
        if (k < ORDER_COUNT)
            predict_order(&chunk->past, lane[LAST_BYTES], o.t, k, row, candidate, bucket);
        else
            predict_rest(&chunk->past, lane, o.t, o.net->ngram_bits, row, m.ngram + r * NGRAM_TABLES, candidate, bucket);
    }
    BARRIER();
}

DEVICE void learn_features(const Column &o, const Room &m) {
    EACH (c, o.count) { // contexts that ended before this column are followed by known bytes only now
        const Chunk *chunk = o.chunks + c;
        const Past *s = &chunk->past;
        for (int i = 0; i < s->lanes && o.t >= MATCH_MIN; i++)
            if (m.live[chunk->first + i])
                s->starts[start_place(s, s->lane[i * LANE_FIELDS + LAST_BYTES])] = (i32)(s->begin + i * length_of(s) + o.t + 1);
    }
    EACH (i, o.rows * ORDER_COUNT) {
        const int r = i / ORDER_COUNT;
        if (!m.live[r]) continue;
        const Chunk *chunk = chunk_of(o, m, r);
        m.order[i] = order_place(&chunk->past, past_of(chunk, r)[LAST_BYTES], o.t, i % ORDER_COUNT);
    }
    BARRIER();
    EACH (i, o.rows * ORDER_COUNT) {
        const int r = i / ORDER_COUNT, k = i % ORDER_COUNT;
        if (!m.live[r] || m.order[i] < 0) continue;
        const Chunk *chunk = chunk_of(o, m, r);
        const Past *s = &chunk->past;
        const i64 entry = m.order[i] >> 8;
        int other = chunk->first;
        while (m.order[other * ORDER_COUNT + k] >> 8 != entry) other++; // the first lane of this entry
        if (other != r) continue;
        for (; other < chunk->first + s->lanes && m.live[other]; other++) {
            const i64 at = m.order[other * ORDER_COUNT + k];
            if (at >> 8 == entry) learn_order(s->orders + k * s->entries + entry, at, s->plain[base_of(chunk, other) + o.t]);
        }
    }
    EACH (r, o.rows) {
        if (!m.live[r]) continue;
        const Chunk *chunk = chunk_of(o, m, r);
        const Past *s = &chunk->past;
        learn_lane(s, past_of(chunk, r), length_of(s), o.t, s->plain[base_of(chunk, r) + o.t]);
    }
    BARRIER();
    EACH (r, o.rows) {
        if (!m.live[r] || o.t + 1 < MATCH_MIN) continue;
        const Chunk *chunk = chunk_of(o, m, r);
        const i64 length = length_of(&chunk->past);
        const int i = lane_of(chunk, r);
        if (i * length + o.t + 1 < chunk->past.size) find_match(&chunk->past, past_of(chunk, r), i, length, o.t);
    }
    BARRIER();
}

// ---------------------------------------------------------------------------------------------------------- mixer
// Find the line of a context's histories for the nibble that begins at c0
DEVICE void find_line(const Mixer *s, Mixing *l, u32 *asked, int i, int nibble, i32 c0) {
    const u64 h = place_of(l->hash[i], (u64)c0);
    const u32 line = (u32)(h & (u64)(s->lines - 1));
    const u8 check = (u8)(h >> 40);
    i32 found = -1;
    for (int k = 2; k >= 0; k--) found = s->table[(i64)(line ^ k) << 4] == check ? (i32)(line ^ k) : found;
    asked[2 * i + nibble] = line;
    l->check[nibble][i] = check;
    l->line[nibble][i] = found;
}

DEVICE void prepare(const Column &o, const Room &m) {
    EACH (i, o.rows * (1 + MATCHES)) {
        const int r = i % o.rows, k = i / o.rows;
        if (!m.live[r]) continue;
        const Chunk *chunk = chunk_of(o, m, r);
        const Mixer *s = &chunk->mixer;
        const i64 base = base_of(chunk, r);
        i64 *record = record_of(chunk, r);
        Mixing *l = m.mixing + r;
        if (k < MATCHES) {
            l->found[k] = o.t >= least_of(k) ? match_hash(s->plain + base + o.t, least_of(k)) : 0;
            match(s, l->found[k], record, length_of(&chunk->past), base, o.t, k, l->expected + k, l->matched + k);
        } else {
            context_values(s, record, base, o.t, l->hash);
            l->before = (i32)(record[LAST] & 255);
            l->so_far = 1;
        }
    }
    BARRIER();
    EACH (i, o.rows * CONTEXTS) {
        const int r = i / CONTEXTS, k = i % CONTEXTS;
        if (!m.live[r]) continue;
        const Mixer *s = &chunk_of(o, m, r)->mixer;
        Mixing *l = m.mixing + r;
        if (k) l->hash[k] = context_hash(l->hash[k], (u64)k);
        find_line(s, l, m.asked + r * PLACES, k, 0, 1);
    }
    BARRIER();
}

// The inputs of bit k, after the bits in c0, that item i brings: a context, a match, or what else there is
DEVICE void look_up(const Mixer *s, Mixing *l, const u32 *tree, int i, int k, i32 c0) {
    const Tables *tables = s->tables;
    if (i < CONTEXTS) {
        const i32 line = l->line[k >> 2][i];
        const int state = line < 0 ? 0 : s->table[((i64)line << 4) + node_of(k, c0)];
        const i32 p = (i32)(s->maps[i << 8 | state] >> 10);
        l->state[k][i] = (u8)state;
        l->x[k][i] = (i16)(state ? tables->coarse[p >> 10] : 0);
        l->x[k][CONTEXTS + i] = (i16)(state ? (p - 2097152) >> 11 : 0);
    } else if (i < CONTEXTS + MATCHES) {
        const int n = i - CONTEXTS;
        const i32 expected = l->expected[n];
        const int hit = expected >> (8 - k) == c0, slot = l->matched[n] << 1 | (expected >> (7 - k) & 1);
        l->x[k][2 * CONTEXTS + n] = (i16)(hit ? tables->coarse[s->match_maps[n * 512 + slot] >> 20] : 0);
        l->slot[k][n] = (i16)(hit ? slot : -1);
    } else {
        const u32 own = share(tree[2 * c0 + 1], tree[c0]);
        l->own[k] = (u16)own;
        l->x[k][INPUTS - 2] = tables->stretch[own];
        l->x[k][INPUTS - 1] = 256;
        fetch(s->refine + refining_row(l->before, c0) + CERTAIN / 2);
    }
}

// The answer of set j of weights
DEVICE void ask_set(const Mixer *s, Mixing *l, int j, int k, i32 c0) {
    const i16 *x = l->x[k];
    i32 set;
    if (j == 0) {
        set = 0;
        for (int n = 0; n < MATCHES; n++)
            if (l->slot[k][n] >= 0 && l->matched[n] >> 3 > set) set = l->matched[n] >> 3;
    } else if (j == 1)
        set = 16 + c0;
    else if (j == 2) {
        const i32 own = x[INPUTS - 2], n = (own < 0 ? -own : own) >> 7;
        set = 272 + ((n < 15 ? n : 15) << 3 | k);
    } else {
        i32 hits = 0;
        for (int i = 2; i <= 6; i++) hits += l->state[k][i] != 0;
        set = 528 + (hits << 3 | k);
    }
    const i32 *w = s->weights + (i64)INPUTS * set;
    i64 sum = 0;
    UNROLL()
    for (int i = 0; i < INPUTS; i++) sum += (i64)x[i] * w[i];
    l->set[k][j] = (u16)set;
    l->dot[k][j] = (i16)limited(sum >> 16);
}

// The probability (1/65536) that bit k is 1
DEVICE i32 answer(const Mixer *s, Mixing *l, int k, i32 c0) {
    i64 total = 0;
    for (int j = 0; j < SETS; j++) total += (i64)l->dot[k][j] * s->weights_last[SETS * c0 + j];
    l->total[k] = (i16)limited(total >> 16);
    return refine(s, l->total[k], c0, refining_row(l->before, c0), l->refined[k]);
}

enum { LOOK_UPS = CONTEXTS + MATCHES + 1 };

// Probabilities of a column whose bytes are known: all bits at once
DEVICE void encode_column(const Column &o, const Room &m) {
    EACH (i, o.rows * CONTEXTS) {
        const int r = i / CONTEXTS;
        if (!m.live[r]) continue;
        const Chunk *chunk = chunk_of(o, m, r);
        find_line(&chunk->mixer, m.mixing + r, m.asked + r * PLACES, i % CONTEXTS, 1, 16 | chunk->past.plain[base_of(chunk, r) + o.t] >> 4);
    }
    EACH (r, o.rows)
        if (m.live[r]) m.mixing[r].so_far = 256 | chunk_of(o, m, r)->past.plain[base_of(chunk_of(o, m, r), r) + o.t];
    BARRIER();
    EACH (i, o.rows * 8 * LOOK_UPS) {
        const int r = i / (8 * LOOK_UPS), k = i / LOOK_UPS % 8;
        if (m.live[r]) look_up(&chunk_of(o, m, r)->mixer, m.mixing + r, m.tree + r * TREE, i % LOOK_UPS, k, m.mixing[r].so_far >> (8 - k));
    }
    BARRIER();
    EACH (i, o.rows * 8 * SETS) {
        const int r = i / (8 * SETS), k = i / SETS % 8;
        if (m.live[r]) ask_set(&chunk_of(o, m, r)->mixer, m.mixing + r, i % SETS, k, m.mixing[r].so_far >> (8 - k));
    }
    BARRIER();
    EACH (i, o.rows * 8) {
        const int r = i / 8, k = i % 8;
        if (!m.live[r]) continue;
        const Chunk *chunk = chunk_of(o, m, r);
        const i64 at = (o.t * chunk->past.lanes + lane_of(chunk, r)) * 8 + k;
        chunk->probability[at] = (u16)answer(&chunk->mixer, m.mixing + r, k, m.mixing[r].so_far >> (8 - k));
    }
    BARRIER();
}

// The bytes of a column, into `plain`: bit by bit
DEVICE void decode_column(const Column &o, const Room &m) {
    for (int k = 0; k < 8; k++) {
        EACH (i, o.rows * LOOK_UPS) {
            const int r = i / LOOK_UPS, n = i % LOOK_UPS;
            if (!m.live[r]) continue;
            const Mixer *s = &chunk_of(o, m, r)->mixer;
            Mixing *l = m.mixing + r;
            if (k == 4 && n < CONTEXTS) find_line(s, l, m.asked + r * PLACES, n, 1, l->so_far);
            look_up(s, l, m.tree + r * TREE, n, k, l->so_far);
        }
        BARRIER();
        EACH (i, o.rows * SETS) {
            const int r = i / SETS;
            if (m.live[r]) ask_set(&chunk_of(o, m, r)->mixer, m.mixing + r, i % SETS, k, m.mixing[r].so_far);
        }
        BARRIER();
        EACH (r, o.rows)
            if (m.live[r]) m.mixing[r].p = answer(&chunk_of(o, m, r)->mixer, m.mixing + r, k, m.mixing[r].so_far);
        BARRIER();
        EACH (c, o.count) { // the lanes of a chunk take turns: they share one stream
            Chunk *chunk = o.chunks + c;
            for (int i = 0, r = chunk->first; i < chunk->past.lanes && m.live[r]; i++, r++) {
                Mixing *l = m.mixing + r;
                l->so_far = l->so_far << 1 | (i32)decode_bit(&chunk->coder, i % chunk->coder.width, l->p);
                if (k == 7) chunk->mixer.plain[base_of(chunk, r) + o.t] = (u8)l->so_far;
            }
        }
        BARRIER();
    }
}

// Where the histories of a nibble are now, in the place of less seen ones if need be
DEVICE u8 *find_or_make(const Mixer *s, u32 asked, u8 check, i32 found) {
    if (found >= 0 && s->table[(i64)found << 4] == check) return s->table + ((i64)found << 4);
    u8 *worst = s->table;
    int least = 1 << 30;
    for (int k = 0; k < 3; k++) {
        u8 *at = s->table + ((i64)(asked ^ k) << 4);
        if (*at == check) return at;
        if (at[1] < least) worst = at, least = at[1];
    }
    for (int k = 1; k < 16; k++) worst[k] = 0;
    *worst = check;
    return worst;
}

// Enter the nibbles that share a cache line of histories with place i of row r, if no place before does
DEVICE void learn_lines(const Chunk *chunk, const Room &m, int r, int place) {
    const Mixer *s = &chunk->mixer;
    const int own = r * PLACES + place, end = (chunk->first + (int)chunk->past.lanes) * PLACES;
    const u32 shared = m.asked[own] >> 2; // the three lines that a nibble may take lie in four
    int i = chunk->first * PLACES;
    while (m.asked[i] >> 2 != shared) i++;
    if (i != own) return;
    for (; i < end; i++) {
        if (m.asked[i] >> 2 != shared) continue;
        const Mixing *l = m.mixing + i / PLACES;
        const int nibble = i % 2, context = i % PLACES / 2;
        u8 *line = find_or_make(s, m.asked[i], l->check[nibble][context], l->line[nibble][context]);
        learn_nibble(s->tables->next, line, nibble ? l->so_far & 15 : l->so_far >> 4 & 15);
    }
}

// Teach map i of a chunk the bits of a column: one of each context, one of each match model, two that refine
DEVICE void learn_map(const Chunk *chunk, const Room &m, int i) {
    const Mixer *s = &chunk->mixer;
    u32 *map = i < CONTEXTS ? s->maps + (i << 8) : i < CONTEXTS + MATCHES ? s->match_maps + 512 * (i - CONTEXTS) : s->refine;
    const u32 limit = (u32)(i < CONTEXTS ? s->map_limit : i < CONTEXTS + MATCHES ? 1023 : s->refine_limit);
    for (int r = chunk->first; r < chunk->first + chunk->past.lanes && m.live[r]; r++) {
        const Mixing *l = m.mixing + r;
        for (int k = 0; k < 8; k++) {
            const i32 at = i < CONTEXTS ? l->state[k][i] : i < CONTEXTS + MATCHES ? l->slot[k][i - CONTEXTS] : (i32)l->refined[k][i - CONTEXTS - MATCHES];
            if (at >= 0) learn_entry(s->tables->reciprocal, map + at, l->so_far >> (7 - k) & 1, limit);
        }
    }
}

// Learn a column, whose bytes are in `plain` and in each row's `so_far` now
DEVICE void learn_column(const Column &o, const Room &m) {
    enum { MAPS = CONTEXTS + MATCHES + 2 };
    EACH (i, o.rows * 8 * SETS) {
        const int r = i / (8 * SETS), k = i / SETS % 8, j = i % SETS;
        if (!m.live[r]) continue;
        const Mixer *s = &chunk_of(o, m, r)->mixer;
        Mixing *l = m.mixing + r;
        const i64 target = (i64)(l->so_far >> (7 - k) & 1) << 16, dot = l->dot[k][j];
        const i64 error = (target - s->tables->squash[l->total[k] + LIMIT]) * s->rate_last >> 8;
        l->error[k][j] = (i32)((target - s->tables->squash[dot + LIMIT]) * m.rate[r] >> 8);
        add_to(s->weights_last + SETS * (l->so_far >> (8 - k)) + j, (i32)((dot * error + 32768) >> 16));
    }
    BARRIER();
    EACH (i, o.count * MAPS) learn_map(o.chunks + i / MAPS, m, i % MAPS);
    EACH (i, o.rows * PLACES)
        if (m.live[i / PLACES]) learn_lines(chunk_of(o, m, i / PLACES), m, i / PLACES, i % PLACES);
    EACH (i, o.rows * 8 * SETS * INPUTS) {
        const int r = i / (8 * SETS * INPUTS), k = i / (SETS * INPUTS) % 8, j = i / INPUTS % SETS, n = i % INPUTS;
        if (!m.live[r]) continue;
        const Mixing *l = m.mixing + r;
        const i32 more = (l->x[k][n] * l->error[k][j] + 32768) >> 16; // 12 bits by 19, see the processor's kernels
        if (more) add_to(chunk_of(o, m, r)->mixer.weights + (i64)INPUTS * l->set[k][j] + n, more);
    }
    EACH (i, o.count * MATCHES) {
        const Chunk *chunk = o.chunks + i / MATCHES;
        const int n = i % MATCHES;
        for (int r = chunk->first; r < chunk->first + chunk->past.lanes && m.live[r] && o.t >= least_of(n); r++)
            chunk->mixer.find[(n << FIND_BITS) + m.mixing[r].found[n]] = (i32)(base_of(chunk, r) + o.t + 1);
    }
    EACH (r, o.rows)
        if (m.live[r]) advance(record_of(chunk_of(o, m, r), r), o.t, m.mixing[r].so_far & 255);
    BARRIER();
}

// ---------------------------------------------------------------------------------------------------------- coder
// Encode backwards the bits of a chunk: as nnfs_rans_encode does, but -1 in `cursor` where `words` has no room for them
DEVICE void encode_bits(Chunk *chunk) {
    Coder *coder = &chunk->coder;
    const Past *s = &chunk->past;
    const i64 columns = length_of(s);
    u8 *words = (u8 *)coder->words;
    i64 at = coder->size;
    for (i64 t = columns - 1; t >= 0; t--) {
        const i64 active = (s->size - t + columns - 1) / columns;
        for (int k = 7; k >= 0; k--)
            for (i64 lane = active - 1; lane >= 0; lane--) {
                const int bit = s->plain[s->begin + lane * columns + t] >> (7 - k) & 1;
                const u64 p = chunk->probability[(t * s->lanes + lane) * 8 + k], f = bit ? p : 65536 - p;
                u64 x = (u64)coder->states[lane % coder->width];
                if (x >= f << 32) {
                    if (at < 2) {
                        coder->cursor = -1;
                        return;
                    }
                    at -= 2;
                    words[at] = (u8)(x >> 8), words[at + 1] = (u8)x;
                    x >>= 16;
                }
                coder->states[lane % coder->width] = (i64)((x / f) << 16 | (x % f + (bit ? 0 : p)));
            }
    }
    coder->cursor = at;
}
#endif
