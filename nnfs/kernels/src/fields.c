// Records of numbers: codec 21. FORMAT.md, section 14; `nnfs.mixer.fields` is the second engine. Behind mixer.c and
// light.c, of which it has hashes, records and adaptive maps.

enum { GUESSES = 3, INDIRECT = GUESSES - 1, WAYS = 7, BACK = 3, FIELD_SETS = 6, FIELD_LEAST = 6 };
enum { MATCH_INPUT = 2 * FIELD_CONTEXTS, GUESS_INPUT, ONE = FIELD_INPUTS - 1 };
#define FIELD_HITS 0x3528 // the contexts that count as hits: 3, 5, 8, 10, 12, 13

typedef struct {
    i64 byte, difference, hits, noise;
} Guess;

typedef struct {
    i64 place;        // of the byte in its field
    u64 above, known; // the field of the record before; the bytes of this one so far
    Guess guess[GUESSES];
    u16 *indirect;
} Field;

typedef struct {
    u8 *line[FIELD_CONTEXTS]; // of this nibble
    u64 hash[FIELD_CONTEXTS];
    i32 x[FIELD_INPUTS] ALIGNED, *row[FIELD_SETS], *last;
    i64 dot[FIELD_SETS], total;
    u32 *delta[GUESSES], *guess[GUESSES], *match; // entries that learn; those of bits that are expected
    u32 *refine[2];
    int state[FIELD_CONTEXTS];
} FieldBit;

INLINE u64 number_at(const Fields *s, i64 at) {
    u64 v = 0;
    if (at < 0) return 0;
    for (i64 i = 0; i < s->width; i++) v |= (u64)s->plain[at + i] << 8 * (s->big ? s->width - 1 - i : i);
    return v;
}

INLINE i64 extended(u64 v, i64 bytes) { return bytes ? (i64)(v << (64 - 8 * bytes)) >> (64 - 8 * bytes) : 0; }
INLINE i64 bits_of(i64 v) {
    const u64 own = (u64)(v < 0 ? ~v : v);
    return own ? 64 - __builtin_clzll(own) : 0;
}

// The number of record k (0: this one), as a way foretells it: from the field's numbers v and those to the left
INLINE u64 foretold(int way, const u64 *v, const u64 *left, int k) {
    switch (way) {
    case 0: return v[k + 1];
    case 1: return 2 * v[k + 1] - v[k + 2];
    case 2: return left[k] + v[k + 1] - left[k + 1];
    case 3: return 2 * v[k + 1] + left[k + 1] - v[k + 2] - left[k + 2];
    case 4: return 2 * v[k + 1] + left[k] - v[k + 2] - left[k + 1];
    case 5: return left[k];
    default: return v[k + 2];
    }
}

INLINE void field_guess(const Fields *s, const Field *f, Guess *g, u64 value, i64 score, i64 hits) {
    const i64 width = s->width, place = f->place, worth = s->big ? width - 1 - place : place; // of the byte
    const i64 noise = score / BACK - 8 * worth + 2;
    if (s->big) {
        const i64 d = place ? (i64)(f->known - (value >> 8 * (width - place) & (((u64)1 << 8 * place) - 1))) : 0;
        g->difference = d == 0 ? 0 : d == 1 ? 1 : d == -1 ? 2 : 3;
    } else {
        const i64 d = extended(f->known - value, place);
        value += (u64)d;
        g->difference = d == 0 ? 0 : d > 0 ? 1 : 2;
    }
    g->byte = (i64)(value >> 8 * worth & 255);
    g->hits = hits;
    g->noise = noise < 0 ? 0 : noise > 10 ? 10 : noise;
}

// Find the field that byte t is in, and what it may be
static void field_begin(const Fields *s, i64 t, Field *f) {
    const i64 width = s->width, place = (t + width - s->skip) % width, begin = t - place;
    u64 v[BACK + 3] = {0}, left[BACK + 3];
    for (int k = 0; k < BACK + 3; k++) {
        if (k) v[k] = number_at(s, begin - k * s->stride);
        left[k] = number_at(s, begin - width - k * s->stride);
    }
    f->place = place, f->above = v[1], f->known = 0;
    for (i64 i = 0; i < place; i++)
        if (begin + i >= 0) f->known |= (u64)s->plain[begin + i] << 8 * (s->big ? place - 1 - i : i);
    i64 score[WAYS], hits[WAYS];
    for (int way = 0; way < WAYS; way++) {
        score[way] = hits[way] = 0;
        for (int k = 1; k <= BACK; k++) {
            const i64 error = extended(v[k] - foretold(way, v, left, k), width);
            score[way] += bits_of(error);
            hits[way] |= (i64)(error == 0) << (k - 1);
        }
    }
    int best = 0, second = -1;
    for (int way = 1; way < WAYS; way++)
        if (score[way] < score[best]) best = way;
    for (int way = 0; way < WAYS; way++)
        if (way != best && (second < 0 || score[way] < score[second])) second = way;
    field_guess(s, f, f->guess, foretold(best, v, left, 0), score[best], hits[best]);
    field_guess(s, f, f->guess + 1, foretold(second, v, left, 0), score[second], hits[second]);
    f->indirect = s->indirect + ((f->known * 8 + (u64)place) * HASH_A >> 48);
    const i64 count = *f->indirect >> 8;
    f->guess[INDIRECT] = (Guess){*f->indirect & 255, 0, count < 7 ? count : 7, place};
}

INLINE void field_hashes(const Fields *s, const i64 *r, const Field *f, i64 t, u64 *hash) {
    const u64 c8 = (u64)r[LAST], c1 = c8 & 255, column = (u64)(t % s->stride) << 32;
    const i64 up_at = t - s->stride;
    const u64 up = up_at >= 0 ? s->plain[up_at] : 0, up2 = up_at >= s->stride ? s->plain[up_at - s->stride] : 0;
    const u64 before = up_at >= 1 ? s->plain[up_at - 1] : 0, behind = up_at >= -1 && s->stride > 1 ? s->plain[up_at + 1] : 0;
    const Guess *g = f->guess;
    const u64 values[FIELD_CONTEXTS] = {
        column,
        column | c1,
        c8 & 0xFFFF,
        c8 & 0xFFFFFF,
        c8 & 0xFFFFFFFF,
        column | c1 << 8 | up,
        c8 & 0xFFFFFFFFFFFF,
        (u64)r[WORD] * 256 + c1,
        column | before << 16 | c1 << 8 | up,
        column | (u64)(g[0].byte << 8 | g[0].difference << 4 | g[0].hits),
        column | (u64)(g[0].byte << 16 | g[1].byte << 8 | g[0].difference << 2 | g[1].difference),
        c1 << 8 | up,
        column | up << 8 | up2,
        f->above * HASH_A + f->known * HASH_C + (u64)f->place,
        column | (c8 & 0xFFFF),
        column | behind << 16 | ((up - before + c1) & 255) << 8,
    };
    for (int i = 0; i < FIELD_CONTEXTS; i++) hash[i] = context_hash(values[i], (u64)i);
}

INLINE void field_ask(const Fields *s, const u64 *hash, u64 c0) {
    for (int i = 0; i < FIELD_CONTEXTS; i++) prefetch(s->table + ((place_of(hash[i], c0) & (u64)(s->lines - 1)) << 4));
}

// Find the lines of a nibble, each in the place of a less seen one if need be
INLINE void field_lines(const Fields *s, FieldBit *l, u64 c0) {
    for (int i = 0; i < FIELD_CONTEXTS; i++) {
        const u64 h = place_of(l->hash[i], c0), place = h & (u64)(s->lines - 1);
        const u8 check = (u8)(h >> 40);
        u8 *found = 0;
        for (u64 k = 0; k < 3 && !found; k++)
            if (s->table[(place ^ k) << 4] == check) found = s->table + ((place ^ k) << 4);
        if (!found) {
            found = s->table + (place << 4);
            for (u64 k = 1; k < 3; k++)
                if (s->table[(place ^ k) << 4 | 1] < found[1]) found = s->table + ((place ^ k) << 4);
            memset(found, 0, 16);
            *found = check;
        }
        l->line[i] = found;
    }
}

// The sum of products of the inputs with one set of weights
INLINE i64 field_dot(const i32 *x, const i32 *w) {
#if !defined NNFS_EMULATE && VL == 16
    __m512i sum = _mm512_setzero_si512();
    for (int v = 0; v < FIELD_INPUTS; v += VL) {
        const __m512i a = _mm512_loadu_si512(x + v), b = _mm512_loadu_si512(w + v);
        sum = _mm512_add_epi64(sum, _mm512_mul_epi32(a, b));
        sum = _mm512_add_epi64(sum, _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32)));
    }
    return _mm512_reduce_add_epi64(sum);
#elif !defined NNFS_EMULATE && VL == 8
    __m256i sum = _mm256_setzero_si256();
    for (int v = 0; v < FIELD_INPUTS; v += VL) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(x + v)), b = _mm256_loadu_si256((const __m256i *)(w + v));
        sum = _mm256_add_epi64(sum, _mm256_mul_epi32(a, b));
        sum = _mm256_add_epi64(sum, _mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32)));
    }
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
#else
    i64 sum = 0;
    for (int i = 0; i < FIELD_INPUTS; i++) sum += (i64)x[i] * w[i];
    return sum;
#endif
}

// The probability (1/65536) that a bit is 1
INLINE i32 field_predict(const Fields *s, FieldBit *l, const Field *f, int k, i32 c0, i64 column, i32 matched, i32 expected) {
    const Tables *tables = s->tables;
    i32 *x = l->x;
    const int node = node_of(k, c0);
    i64 hits = 0, agree = 0;
    for (int i = 0; i < FIELD_CONTEXTS; i++) {
        const int state = l->state[i] = l->line[i][node];
        const i32 p = (i32)(s->maps[i << 8 | state] >> 10), there = -(state != 0);
        x[i] = tables->coarse[p >> 10] & there;
        x[FIELD_CONTEXTS + i] = (p - 2097152) >> 11 & there;
        hits += state != 0 && FIELD_HITS >> i & 1;
    }
    l->match = expected >> (8 - k) == c0 ? s->match_map + (matched << 1 | (expected >> (7 - k) & 1)) : 0;
    x[MATCH_INPUT] = l->match ? tables->coarse[*l->match >> 20] : 0;
    for (int m = 0; m < GUESSES; m++) {
        const Guess *g = f->guess + m;
        i32 *own = x + GUESS_INPUT + 3 * m;
        l->delta[m] = s->delta + ((m * 44 + (g->noise << 2 | g->difference)) << 11 | k << 8 | (((c0 << (8 - k)) - g->byte) & 255));
        const i32 p = (i32)(*l->delta[m] >> 10);
        own[0] = tables->coarse[p >> 10];
        own[1] = (p - 2097152) >> 11;
        l->guess[m] = 0, own[2] = 0;
        if ((g->byte | 256) >> (8 - k) == c0) {
            l->guess[m] = s->guess_map + (m << 9 | (g->hits << 2 | g->difference) << 4 | f->place << 1 | (g->byte >> (7 - k) & 1));
            own[2] = tables->coarse[*l->guess[m] >> 20];
            agree |= 1 << m;
        }
    }
    const Guess *g = f->guess;
    const i64 rows[FIELD_SETS] = {l->match ? matched >> 3 : 0, 16 + c0, 272 + (column & 255), 528 + (hits << 3 | k),
                                  592 + ((g->hits << 2 | g->difference) << 3 | k), 848 + ((g->noise << 3 | agree) << 3 | k)};
    i64 total = 0;
    l->last = s->weights_last + FIELD_SETS * c0;
    for (int j = 0; j < FIELD_SETS; j++) {
        const i32 *w = l->row[j] = s->weights + rows[j] * FIELD_INPUTS;
        l->dot[j] = limited(field_dot(x, w) >> 16);
        total += l->dot[j] * l->last[j];
    }
    l->total = total = limited(total >> 16);
    const u32 place = (u32)(total + 2880), low = place / 180, part = place % 180;
    u32 *a = s->refine + (u32)c0 * CERTAIN + low, *b = s->refine + refining_row((i32)column, c0) + low;
    const u64 both = ((u64)(a[0] >> 10) + (b[0] >> 10)) * (180 - part) + ((u64)(a[1] >> 10) + (b[1] >> 10)) * part;
    l->refine[0] = a + (part >= 90);
    l->refine[1] = b + (part >= 90);
    const i64 p = (2 * (i64)tables->squash[total + LIMIT] + (i64)(both / (180 * 64))) >> 2;
    return (i32)(p < 1 ? 1 : p > 65535 ? 65535 : p);
}

INLINE void field_learn(const Fields *s, FieldBit *l, int node, u32 bit, i64 rate) {
    const Tables *tables = s->tables;
    const i64 target = (i64)bit << 16, error = (target - tables->squash[l->total + LIMIT]) * 60 >> 8;
    for (int j = 0; j < FIELD_SETS; j++) {
        l->last[j] = (i32)((u32)l->last[j] + (u32)((l->dot[j] * error + 32768) >> 16));
        // As in mixer.c, a product fits 32 bits.
        const vi e = set1((i32)((target - tables->squash[l->dot[j] + LIMIT]) * rate >> 8));
        for (int v = 0; v < FIELD_INPUTS; v += VL) store(l->row[j] + v, load(l->row[j] + v) + ((load(l->x + v) * e + 32768) >> 16));
    }
    for (int i = 0; i < FIELD_CONTEXTS; i++) { // that of state 0 is never asked
        learn_entry(tables->reciprocal, s->maps + (i << 8 | l->state[i]), bit, 1023);
        l->line[i][node] = tables->next[l->state[i] * 2 + (int)bit];
    }
    if (l->match) learn_entry(tables->reciprocal, l->match, bit, 1023);
    for (int m = 0; m < GUESSES; m++) {
        learn_entry(tables->reciprocal, l->delta[m], bit, 255);
        if (l->guess[m]) learn_entry(tables->reciprocal, l->guess[m], bit, 1023);
    }
    for (int i = 0; i < 2; i++) learn_entry(tables->reciprocal, l->refine[i], bit, 255);
}

// Go through the bytes of a chunk: with a coder they are decoded, else probabilities of 1 go to out, (size, 8)
static void run_fields(Fields *s, u16 *out, Coder *coder) {
    const Light matcher = {.plain = s->plain, .find = s->find};
    i64 r[RECORD] = {0}, match[3] = {0};
    Field f;
    FieldBit l;
    memset(l.x, 0, sizeof l.x);
    l.x[ONE] = 256;
    for (i64 t = 0; t < s->size; t++) {
        const i64 column = t % s->stride, rate = 450 + 450 * 512 / (t + 256);
        field_begin(s, t, &f);
        field_hashes(s, r, &f, t, l.hash);
        field_ask(s, l.hash, 1);
        i32 expected, c0 = 1;
        const i32 matched = light_match(&matcher, r, t, match, &expected);
        for (int k = 0; k < 8; k++) {
            if (k == 0 || k == 4) field_lines(s, &l, (u64)c0);
            if (k == 0 && !coder) field_ask(s, l.hash, 16 | s->plain[t] >> 4);
            const i32 p = field_predict(s, &l, &f, k, c0, column, matched, expected);
            u32 bit;
            if (coder) bit = decode_bit(coder, 0, p);
            else bit = s->plain[t] >> (7 - k) & 1, out[8 * t + k] = (u16)p;
            field_learn(s, &l, node_of(k, c0), bit, rate);
            c0 = c0 << 1 | (i32)bit;
            if (k == 3 && coder) field_ask(s, l.hash, (u64)c0);
        }
        const u32 byte = (u32)c0 & 255, old = *f.indirect, count = old >> 8;
        s->plain[t] = (u8)byte;
        *f.indirect = (u16)((old & 255) == byte ? old + (count < 255) * 256 : byte | (u32)(count > 3) << 8);
        advance(r, t, byte);
    }
}
