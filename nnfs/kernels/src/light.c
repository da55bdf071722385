// Context mixing with fewer contexts, bit histories with fixed meanings and one lane: codec 20. FORMAT.md, section 13;
// `nnfs.mixer.light` is the second engine. Behind mixer.c, of which it has hashes, records and adaptive maps.

// The contexts of section 5.3 that are used; those of 2 to 4 bytes and of 6 count as hits
enum { LIGHT_LEAST = 6, LIGHT_FIND = 48 };
static const u8 LIGHT_CONTEXT[LIGHT_CONTEXTS] = {0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12};
enum { FIRST_HIT = 2, LAST_HIT = 5 };

typedef i32 v8 __attribute__((vector_size(32)));
typedef i32 v8_near __attribute__((vector_size(32), aligned(4), may_alias));
typedef i32 v4 __attribute__((vector_size(16)));
typedef i32 v4_near __attribute__((vector_size(16), aligned(4), may_alias));

typedef struct {
    u8 *line[LIGHT_CONTEXTS]; // of this nibble
    u64 hash[LIGHT_CONTEXTS];
    v8 x[3];       // inputs
    v4 dot;        // answers of the four sets of weights
    i32 *row[SETS], *last;
    u32 *refine[2]; // entries that learn
    i32 total;
} LightBit;

INLINE void light_hashes(const Light *s, const i64 *r, i64 t, u64 *hash) {
    const u64 c8 = (u64)r[LAST], c1 = c8 & 255, word = (u64)r[WORD];
    const i64 column = t - r[LINE], at = r[LINE_BEFORE] + column;
    const u64 above = at < r[LINE] ? s->plain[at] : 0;
    const u64 values[LIGHT_CONTEXTS] = {
        0, c1, c8 & 0xFFFF, c8 & 0xFFFFFF, c8 & 0xFFFFFFFF, c8 & 0xFFFFFFFFFFFF, word * 256 + c1,
        (word + (u64)r[WORD_BEFORE] * 0x9E3779B1) * 256 + c1, c8 & 0xFFFF00, above << 8 | c1,
        above << 8 | (u64)(column < 255 ? column : 255)};
    hash[0] = 0;
    for (int i = 1; i < LIGHT_CONTEXTS; i++) hash[i] = context_hash(values[i], LIGHT_CONTEXT[i]);
}

INLINE void light_ask(const Light *s, const u64 *hash, u64 c0) {
    for (int i = 0; i < LIGHT_CONTEXTS; i++) prefetch(s->table + ((place_of(hash[i], c0) & (u64)(s->lines - 1)) << 4));
}

// Find the lines of a nibble, each in the place of a less seen one if need be
INLINE void light_lines(const Light *s, LightBit *l, u64 c0) {
    for (int i = 0; i < LIGHT_CONTEXTS; i++) {
        const u64 h = place_of(l->hash[i], c0);
        const u8 check = (u8)(h >> 40);
        u8 *const place = s->table + ((h & (u64)(s->lines - 1)) << 4), *found = 0;
        for (int k = 2; k >= 0; k--) {
            u8 *at = s->table + ((place - s->table) ^ (k << 4));
            found = *at == check ? at : found;
        }
        if (__builtin_expect(!found, 0)) {
            found = place;
            for (int k = 1; k < 3; k++) {
                u8 *at = s->table + ((place - s->table) ^ (k << 4));
                found = at[1] < found[1] ? at : found;
            }
            memset(found, 0, 16);
            *found = check;
        }
        l->line[i] = found;
    }
}

// Keep or look for a match before byte t; *expected: the byte with bit 8 set, 0 for none. Return the map's row
INLINE i32 light_match(const Light *s, const i64 *r, i64 t, i64 *match, i32 *expected) {
    const u8 *plain = s->plain;
    i64 point = match[0], length = match[1], misses = match[2];
    if (point > 0) {
        const int is_right = plain[point] == plain[t - 1];
        length = is_right ? length + (length < 65535) : 0;
        misses = (misses << 1 | !is_right) & 7;
        point++;
    }
    if (t >= LIGHT_LEAST) {
        i32 *find = s->find + (((u64)r[LAST] & 0xFFFFFFFFFFFF) * HASH_A >> LIGHT_FIND);
        if (length < LIGHT_LEAST && *find > 0) {
            const i64 candidate = *find, most = candidate < VERIFIED ? candidate : VERIFIED;
            i64 same = 0;
            while (same < most && plain[candidate - 1 - same] == plain[t - 1 - same]) same++;
            if (same >= LIGHT_LEAST) point = candidate, length = same, misses = 0;
        }
        *find = (i32)t;
    }
    match[0] = point, match[1] = length, match[2] = misses;
    *expected = point ? plain[point] | 256 : 0;
    return length_class(length) << 3 | (i32)misses;
}

// Sums of products of the inputs with four sets of weights, 1/65536 of them, within +-LIMIT; modulo 2^32
INLINE v4 light_dots(const v8 *x, i32 *const *row) {
    v8 sum[SETS];
    for (int j = 0; j < SETS; j++) {
        const v8_near *w = (const v8_near *)row[j];
        sum[j] = x[0] * w[0] + x[1] * w[1] + x[2] * w[2];
    }
#if !defined NNFS_EMULATE && VL >= 8
    const __m256i p = _mm256_hadd_epi32((__m256i)sum[0], (__m256i)sum[1]), q = _mm256_hadd_epi32((__m256i)sum[2], (__m256i)sum[3]);
    const __m256i all = _mm256_hadd_epi32(p, q);
    __m128i d = _mm_srai_epi32(_mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)), 16);
    d = _mm_max_epi32(_mm_min_epi32(d, _mm_set1_epi32(LIMIT)), _mm_set1_epi32(-LIMIT));
    return (v4)d;
#else
    v4 d;
    for (int j = 0; j < SETS; j++) {
        u32 all = 0;
        for (int i = 0; i < 8; i++) all += (u32)sum[j][i];
        const i32 own = (i32)all >> 16;
        d[j] = own > LIMIT ? LIMIT : own < -LIMIT ? -LIMIT : own;
    }
    return d;
#endif
}

// The probability (1/65536) that a bit is 1. expects: a match does, its class of length and its entry
INLINE i32 light_predict(const Light *s, LightBit *l, int k, i32 c0, i32 node, u32 c1, i32 *state, int expects, i32 class, u32 entry) {
    const Tables *tables = s->tables;
    i32 pair[LIGHT_CONTEXTS + 1], hits = 0;
    for (int i = 0; i < LIGHT_CONTEXTS; i++) {
        state[i] = l->line[i][node];
        pair[i] = s->pairs[i << 8 | state[i]];
        if (i >= FIRST_HIT && i <= LAST_HIT) hits += state[i] != 0;
    }
    pair[LIGHT_CONTEXTS] = (expects ? tables->coarse[entry >> 20] & 0xFFFF : 0) | 256 << 16;
    const v8 most = {pair[0], pair[1], pair[2], pair[3], pair[4], pair[5], pair[6], pair[7]};
    const v8 rest = {pair[8], pair[9], pair[10], pair[11], pair[8] >> 16, pair[9] >> 16, pair[10] >> 16, pair[11] >> 16};
    l->x[0] = most << 16 >> 16;
    l->x[1] = most >> 16;
    l->x[2] = rest << 16 >> 16;
    l->row[0] = s->weights + (expects ? class : 0) * LIGHT_INPUTS;
    l->row[1] = s->weights + (16 + c0) * LIGHT_INPUTS;
    l->row[2] = s->weights + (272 + (i32)c1) * LIGHT_INPUTS;
    l->row[3] = s->weights + (528 + (hits << 3 | k)) * LIGHT_INPUTS;
    l->last = s->weights_last + SETS * c0;
    l->dot = light_dots(l->x, l->row);
    const v4 share = l->dot * *(const v4_near *)l->last;
    i32 total = (i32)((u32)share[0] + (u32)share[1] + (u32)share[2] + (u32)share[3]) >> 16;
    l->total = total = total > LIMIT ? LIMIT : total < -LIMIT ? -LIMIT : total;
    const u32 place = (u32)(total + 2880), low = place / 180, part = place % 180;
    const u32 second = 256 + ((c1 * 0x2F0B + (u32)c0 * 0x1C35) * 0x9E37u >> 8 & 4095);
    u32 *f = s->refine + (u32)c0 * CERTAIN + low, *g = s->refine + second * CERTAIN + low;
    const u32 both = ((f[0] >> 10) + (g[0] >> 10)) * (180 - part) + ((f[1] >> 10) + (g[1] >> 10)) * part;
    l->refine[0] = f + (part >= 90);
    l->refine[1] = g + (part >= 90);
    const i32 p = (2 * tables->squash[total + LIMIT] + (i32)(both / (180 * 64))) >> 2;
    return p < 1 ? 1 : p > 65535 ? 65535 : p;
}

INLINE void light_learn(const Light *s, LightBit *l, u32 bit, i32 rate, i32 node, const i32 *state) {
    const Tables *tables = s->tables;
    const i32 target = (i32)bit << 16, error = (target - tables->squash[l->total + LIMIT]) * 60 >> 8;
    v4_near *last = (v4_near *)l->last;
    *last += (l->dot * error + 32768) >> 16;
    for (int j = 0; j < SETS; j++) {
        v8_near *w = (v8_near *)l->row[j];
        const i32 e = (target - tables->squash[l->dot[j] + LIMIT]) * rate >> 8;
        for (int v = 0; v < 3; v++) w[v] += (l->x[v] * e + 32768) >> 16;
    }
    for (int i = 0; i < LIGHT_CONTEXTS; i++) l->line[i][node] = tables->next[state[i] * 2 + (i32)bit];
    for (int i = 0; i < 2; i++) learn_entry(tables->reciprocal, l->refine[i], bit, 255);
}

// Go through the bytes of a chunk: with a coder they are decoded, else probabilities of 1 go to out, (size, 8).
// counts: how often 0 and 1 followed each history of each context, to learn their meanings from; or none
INLINE void light_run(Light *s, u16 *out, Coder *coder, u32 *counts) {
    i64 r[RECORD] = {0}, match[3] = {0};
    u64 x = coder ? (u64)coder->states[0] : 0;
    i64 cursor = coder ? coder->cursor : 0;
    LightBit l;
    for (i64 t = 0; t < s->size; t++) {
        light_hashes(s, r, t, l.hash);
        light_ask(s, l.hash, 1);
        i32 expected;
        const i32 matched = light_match(s, r, t, match, &expected), rate = (i32)(450 + 450 * 512 / (t + 256));
        const u32 c1 = (u32)r[LAST] & 255;
        i32 c0 = 1;
        for (int k = 0; k < 8; k++) {
            if (k == 0 || k == 4) light_lines(s, &l, (u64)c0);
            if (k == 0 && !coder) light_ask(s, l.hash, 16 | s->plain[t] >> 4);
            const int expects = expected >> (8 - k) == c0;
            u32 *entry = s->match_map + (matched << 1 | (expected >> (7 - k) & 1));
            i32 state[LIGHT_CONTEXTS], node = k < 4 ? c0 : (c0 & ((1 << (k - 4)) - 1)) | 1 << (k - 4);
            const i32 p = light_predict(s, &l, k, c0, node, c1, state, expects, matched >> 3, *entry);
            u32 bit;
            const i32 likely = c0 << 1 | (p >= 32768);
            if (coder) {
                if (k == 3) light_ask(s, l.hash, (u64)likely); // while the bit is found
                const u64 low = x & 0xFFFF, own = low < (u64)p;
                x = own ? (u64)p * (x >> 16) + low : (u64)(65536 - p) * (x >> 16) + low - (u64)p;
                if (x < (u64)1 << 32 && cursor + 2 <= coder->size) {
                    x = x << 16 | (u64)coder->words[cursor] << 8 | coder->words[cursor + 1];
                    cursor += 2;
                }
                bit = (u32)own;
            } else {
                bit = s->plain[t] >> (7 - k) & 1;
                out[8 * t + k] = (u16)p;
                if (counts)
                    for (int i = 0; i < LIGHT_CONTEXTS; i++) counts[(i << 8 | state[i]) * 2 + (i32)bit]++;
            }
            light_learn(s, &l, bit, rate, node, state);
            if (expects) learn_entry(s->tables->reciprocal, entry, bit, 1023);
            c0 = c0 << 1 | (i32)bit;
            if (k == 3 && coder && c0 != likely) light_ask(s, l.hash, (u64)c0);
        }
        s->plain[t] = (u8)c0;
        advance(r, t, (u32)c0 & 255);
    }
    if (coder) coder->states[0] = (i64)x, coder->cursor = cursor;
}

static void light_encode(Light *s, u16 *out, u32 *counts) { light_run(s, out, 0, counts); }
static void light_decode(Light *s, Coder *coder) { light_run(s, 0, coder, 0); }
