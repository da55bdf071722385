// The integers of features, mixer and coder that the processor's kernels and the GPU's (`../cuda`) share: the steps of one
// lane, one context or one bit. Their order and the threads that do them are chosen by the kernels.
#ifndef RULES_H
#define RULES_H
#include "nnfs.h"

// -------------------------------------------------------------------------------- features (nnfs.model.features)
enum { START = 256, AGE_ROW = 257, AGES = 18, RUN_BUCKETS = 4, MATCH_BUCKETS = 16 };
enum { ORDER_ROW = AGE_ROW + AGES, ORDER_ROWS = 1 + 256 * RUN_BUCKETS, MATCH_ROW = ORDER_ROW + ORDER_COUNT * ORDER_ROWS };
enum { MATCH_BIAS = 1 + ORDER_COUNT * RUN_BUCKETS };
enum { LAST_BYTES, WORD_HASH, PREVIOUS_WORD, MATCH_AT, MATCH_LENGTH }; // of a lane
#define PHI 0x9E3779B97F4A7C15ULL

INLINE int order_of(int k) { return k < 4 ? k + 1 : 6; }

INLINE i64 hashed(u64 value, u64 salt, int bits) {
    u64 mixed = (value + salt) * PHI;
    mixed ^= mixed >> 29;
    mixed *= 0xBF58476D1CE4E5B9ULL;
    return (i64)(mixed >> (64 - bits));
}

INLINE u64 low_bytes(u64 last, int count) { return last & (((u64)1 << 8 * count) - 1); }
INLINE int run_bucket(u32 run) { return run <= 1 ? 0 : run == 2 ? 1 : run <= 5 ? 2 : 3; }

INLINE int match_bucket(i64 length) {
    if (length < 10) return length < MATCH_MIN ? 0 : (int)(length - MATCH_MIN);
    return 3 + (length >= 12) + (length >= 14) + (length >= 16) + (length >= 20) + (length >= 24) + (length >= 32) + (length >= 48) +
           (length >= 64) + (length >= 96) + (length >= 128) + (length >= 256) + (length >= 512);
}

INLINE int age_of(i64 known) {
    int age = 0;
    for (; known > 0 && age < 17; known >>= 1) age++;
    return age;
}

// The place of an order's context in its table, and below it 8 bits that check it; -1: no such context yet
INLINE i64 order_place(const Past *s, u64 last, i64 column, int k) {
    const int order = order_of(k);
    return column < order ? -1 : hashed(low_bytes(last, order), (u64)order, (int)s->bits + 8);
}

// The features of one lane that come from order k
INLINE void predict_order(const Past *s, u64 last, i64 column, int k, i32 *row, u8 *candidate, i32 *bucket) {
    const i64 at = order_place(s, last, column, k);
    const u32 entry = at < 0 ? 0 : s->orders[k * s->entries + (at >> 8)];
    const int hit = entry && entry >> 16 == (u32)(at & 255);
    const i32 byte = entry >> 8 & 255, own = run_bucket(entry & 255);
    row[2 + k] = ORDER_ROW + k * ORDER_ROWS + (hit ? 1 + byte * RUN_BUCKETS + own : 0);
    candidate[k] = (u8)(hit ? byte : 0);
    bucket[k] = hit ? 1 + k * RUN_BUCKETS + own : 0;
}

// All others
INLINE void predict_rest(const Past *s, const u64 *lane, i64 column, int ngram_bits, i32 *row, i32 *ngram, u8 *candidate, i32 *bucket) {
    const u64 last = lane[LAST_BYTES];
    row[0] = column ? (i32)(last & 255) : START;
    row[1] = AGE_ROW + age_of(s->begin + column * s->lanes);
    const i64 match = (i64)lane[MATCH_AT] - 1;
    const i32 byte = match >= 0 ? s->plain[match] : 0, own = match_bucket((i64)lane[MATCH_LENGTH]);
    row[INPUT_FIELDS - 1] = MATCH_ROW + (match >= 0 ? 1 + byte * MATCH_BUCKETS + own : 0);
    candidate[CANDIDATES - 1] = (u8)byte;
    bucket[CANDIDATES - 1] = match >= 0 ? MATCH_BIAS + own : 0;
    for (int k = 0; k < 4; k++) {
        const int length = k < 3 ? k + 2 : 6;
        ngram[k] = (i32)hashed(low_bytes(last, length < column ? length : (int)column), (u64)length, ngram_bits);
    }
    const u64 word = lane[WORD_HASH] ? lane[WORD_HASH] : lane[PREVIOUS_WORD] ^ (last & 255);
    ngram[4] = (i32)hashed(word, 7, ngram_bits);
}

// An order's entry, `at` of `order_place`, once `byte` has followed
INLINE void learn_order(u32 *entry, i64 at, u32 byte) {
    const u32 known = (u32)(at & 255) << 8 | byte, old = *entry;
    u32 run = 1;
    if (old && old >> 8 == known) run = (old & 255) < 255 ? (old & 255) + 1 : 255;
    *entry = known << 8 | run;
}

INLINE void learn_word(u64 *lane, u32 byte) {
    const u32 folded = byte >= 65 && byte <= 90 ? byte | 32 : byte;
    if ((folded >= 97 && folded <= 122) || folded >= 128)
        lane[WORD_HASH] = (lane[WORD_HASH] + folded + 1) * PHI;
    else if (lane[WORD_HASH]) {
        lane[PREVIOUS_WORD] = lane[WORD_HASH];
        lane[WORD_HASH] = 0;
    }
}

// Where a context of MATCH_MIN bytes is kept in `starts`
INLINE i64 start_place(const Past *s, u64 last) { return hashed(low_bytes(last, MATCH_MIN), 11, (int)s->bits); }

// Add a byte, that of column `column`, to a lane
INLINE void learn_lane(const Past *s, u64 *lane, i64 length, i64 column, u32 byte) {
    lane[LAST_BYTES] = lane[LAST_BYTES] << 8 | byte;
    learn_word(lane, byte);
    i64 match = (i64)lane[MATCH_AT] - 1;
    if (match >= 0 && s->plain[match] == byte) { // goes on while it was right, into the next lane's start if need be
        match++;
        lane[MATCH_LENGTH]++;
        if (match >= s->begin + s->size || (match >= s->begin && (match - s->begin) % length > column)) match = -1;
    } else
        match = -1;
    lane[MATCH_AT] = (u64)(match + 1);
}

// How many bytes before `here` and `there` agree, within their lanes and at most MATCH_VERIFY
INLINE i64 verified(const Past *s, i64 length, i64 here, i64 there) {
    const i64 known = there >= s->begin ? (there - s->begin) % length : there, own = (here - s->begin) % length;
    i64 bound = own < known ? own : known, count = 0;
    bound = bound < MATCH_VERIFY ? bound : MATCH_VERIFY;
    while (count < bound && s->plain[here - 1 - count] == s->plain[there - 1 - count]) count++;
    return count;
}

// Look for a match of lane i after a column, if it has none; every lane's column is known by now
INLINE void find_match(const Past *s, u64 *lane, i64 i, i64 length, i64 column) {
    if (lane[MATCH_AT]) return;
    const i64 found = (i64)s->starts[start_place(s, lane[LAST_BYTES])] - 1;
    if (found < 0) return;
    const i64 matched = verified(s, length, s->begin + i * length + column + 1, found);
    if (matched >= MATCH_MIN) {
        lane[MATCH_AT] = (u64)(found + 1);
        lane[MATCH_LENGTH] = (u64)matched;
    }
}

// ------------------------------------------------------------------------------------- mixer (nnfs.mixer.mixing)
#define HASH_A 0x2545F4914F6CDD1DULL
#define HASH_B 0x1B873593CC9E2D51ULL
#define HASH_C 0x3C6EF372FE94F82BULL
enum { WORD_FACTOR = 0x2F0B4C47, VERIFIED = 40 };

INLINE int least_of(int m) { return m ? 16 : 6; } // bytes that match model m hashes

INLINE u64 context_hash(u64 value, u64 index) {
    i64 h = (i64)((value + index * HASH_B + 1) * HASH_A);
    return (u64)(h ^ h >> 31) * HASH_B;
}

// Each context, before it is hashed; the first has nothing to hash
INLINE void context_values(const Mixer *s, const i64 *r, i64 base, i64 t, u64 *out) {
    const u64 c8 = (u64)r[LAST], c1 = c8 & 255, word = (u64)r[WORD], before = (u64)r[WORD_BEFORE];
    out[0] = 0;
    out[1] = c1;
    out[2] = c8 & 0xFFFF;
    out[3] = c8 & 0xFFFFFF;
    out[4] = c8 & 0xFFFFFFFF;
    out[5] = c8 & 0xFFFFFFFFFF;
    out[6] = c8 & 0xFFFFFFFFFFFF;
    out[7] = word * 256 + c1;
    out[8] = (word + before * 0x9E3779B1) * 256 + c1;
    out[9] = c8 & 0xFFFF00;
    out[10] = c8 & 0xE0E0E0E0E0E0;
    out[13] = c8 & 0xFFFF0000;
    if (s->stride > 0) {
        const u64 up = t >= s->stride ? s->plain[base + t - s->stride] : 0;
        const u64 up2 = t >= 2 * s->stride ? s->plain[base + t - 2 * s->stride] : 0;
        out[11] = c1 << 8 | up;
        out[12] = (u64)(t % s->stride) << 16 | up << 8 | up2;
    } else {
        const i64 column = t - r[LINE], at = r[LINE_BEFORE] + column;
        const u64 above = at < r[LINE] ? s->plain[base + at] : 0;
        out[11] = above << 8 | c1;
        out[12] = above << 8 | (u64)(column < 255 ? column : 255);
    }
}

INLINE u64 place_of(u64 hash, u64 c0) {
    i64 h = (i64)((hash + c0 * HASH_C) * HASH_A);
    return (u64)(h ^ h >> 32);
}

INLINE u32 match_hash(const u8 *end, int least) {
    u64 h = 0;
    for (int i = 1; i <= least; i++) h = (h + end[-i] + 1) * WORD_FACTOR;
    return (u32)(h * HASH_A >> 40) & ((1 << FIND_BITS) - 1);
}

INLINE i32 length_class(i64 n) {
    if (n < 8) return (i32)n;
    return 8 + (n >= 12) + (n >= 16) + (n >= 24) + (n >= 32) + (n >= 64) + (n >= 128) + (n >= 512);
}

// Keep or look for a match of model m before column t. found: the hash of what is before it, where there is enough.
// `expected` becomes the byte that follows, with bit 8 set, or 0; `matched` the class of the length, and the misses.
INLINE void match(const Mixer *s, u32 hash, i64 *r, i64 columns, i64 base, i64 t, int m, i32 *expected, i32 *matched) {
    const u8 *plain = s->plain;
    const int least = least_of(m);
    i64 point = r[POINT + 3 * m], length = r[LENGTH + 3 * m];
    if (t > 0 && point > 0) { // the byte before was expected at `point`
        const i64 misses = r[MISSES + 3 * m];
        if (plain[point] == plain[base + t - 1]) {
            length += length < 65535;
            r[MISSES + 3 * m] = misses << 1 & 7;
        } else {
            length = 0;
            r[MISSES + 3 * m] = (misses << 1 | 1) & 7;
        }
        point++;
        if (point >= s->begin + s->size || (point >= s->begin && (point - s->begin) % columns >= t)) point = length = 0;
    }
    if (length < least && t >= least) {
        const i64 candidate = (i64)s->find[((i64)m << FIND_BITS) + hash] - 1;
        if (candidate > 0) {
            i64 known = candidate >= s->begin ? (candidate - s->begin) % columns : candidate, found = 0;
            known = known < t ? known : t;
            known = known < VERIFIED ? known : VERIFIED;
            while (found < known && plain[candidate - 1 - found] == plain[base + t - 1 - found]) found++;
            if (found >= least && found > length) {
                point = candidate, length = found;
                r[MISSES + 3 * m] = 0;
            }
        }
    }
    r[POINT + 3 * m] = point, r[LENGTH + 3 * m] = point ? length : 0;
    *expected = point ? plain[point] | 256 : 0;
    *matched = length_class(r[LENGTH + 3 * m]) << 3 | (i32)r[MISSES + 3 * m];
}

// The node of a line's tree that the bits in c0 lead to, within a nibble
INLINE int node_of(int k, i32 c0) { return k < 4 ? c0 : (c0 & ((1 << (k - 4)) - 1)) | 1 << (k - 4); }

// Where the second refining map begins
INLINE u32 refining_row(i32 before, i32 c0) {
    return (256 + (u32)(((u64)before * 0x2F0B + (u64)c0 * 0x1C35) * 0x9E37 >> 8 & 4095)) * CERTAIN;
}

INLINE i64 limited(i64 x) { return x > LIMIT ? LIMIT : x < -LIMIT ? -LIMIT : x; }

// The probability (1/65536) that the answers' `total` and two refining maps give; `refined`: what is to be learnt
INLINE i32 refine(const Mixer *s, i32 total, i32 c0, u32 second, u32 *refined) {
    const u32 place = (u32)(total + 2880), low = place / 180, part = place % 180, first = (u32)c0 * CERTAIN;
    refined[0] = first + low + (part >= 90);
    refined[1] = second + low + (part >= 90);
    const u32 *f = s->refine + first + low, *g = s->refine + second + low;
    const u64 both = ((u64)(f[0] >> 10) + (g[0] >> 10)) * (180 - part) + ((u64)(f[1] >> 10) + (g[1] >> 10)) * part;
    const i64 p = (2 * (i64)s->tables->squash[total + LIMIT] + (i64)(both / (180 * 64))) >> 2;
    return (i32)(p < 1 ? 1 : p > 65535 ? 65535 : p);
}

// The rate of the weights at column t: three times as fast in the beginning
INLINE i64 rate_at(const Mixer *s, i64 t) { return s->rate + s->rate * 512 / (s->begin + t * s->lanes + 256); }

// Move an entry of an adaptive map towards a bit
INLINE void learn_entry(const i32 *reciprocal, u32 *entry, u32 bit, u32 limit) {
    const u32 v = *entry, n = v & 1023;
    i64 p = v >> 10;
    p += ((((i64)bit << 22) - p) >> 3) * reciprocal[n] >> 13;
    p = p < 0 ? 0 : p > 4194303 ? 4194303 : p;
    *entry = (u32)p << 10 | (n + 1 < limit ? n + 1 : limit);
}

INLINE void learn_nibble(const u8 *next, u8 *line, int nibble) {
    int node = 1;
    for (int k = 3; k >= 0; k--) {
        const int bit = nibble >> k & 1;
        line[node] = next[line[node] * 2 + bit];
        node = node << 1 | bit;
    }
}

INLINE void advance(i64 *r, i64 t, u32 byte) {
    r[LAST] = (i64)((u64)r[LAST] << 8 | byte);
    const u32 letter = byte >= 65 && byte <= 90 ? byte + 32 : byte;
    if (byte >= 128 || (letter >= 97 && letter <= 122)) {
        r[WORD] = (i64)(((u64)r[WORD] + letter + 1) * WORD_FACTOR & 0x3FFFFFFFFFFF);
    } else if (r[WORD]) {
        r[WORD_BEFORE] = r[WORD];
        r[WORD] = 0;
    }
    if (byte == 10) {
        r[LINE_BEFORE] = r[LINE];
        r[LINE] = t + 1;
    }
}

INLINE u32 share(u64 ones, u64 total) {
    const u64 p = (ones << 16) / total;
    return (u32)(p < 1 ? 1 : p > 65535 ? 65535 : p);
}

// -------------------------------------------------------------------------------------- coder (nnfs.codec.rans)
INLINE u32 decode_bit(Coder *coder, i64 which, i32 p) {
    i64 x = coder->states[which];
    const i64 low = x & 0xFFFF;
    const u32 bit = low < p;
    x = bit ? p * (x >> 16) + low : (65536 - p) * (x >> 16) + low - p;
    if (x < (i64)1 << 32 && coder->cursor + 2 <= coder->size) {
        x = x << 16 | (i64)coder->words[coder->cursor] << 8 | coder->words[coder->cursor + 1];
        coder->cursor += 2;
    }
    coder->states[which] = x;
    return bit;
}
#endif
