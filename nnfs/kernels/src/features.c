// What the network is told of a position before it predicts: the integers of nnfs.model.features, which explains them.
#include "nnfs.h"

enum { START = 256, AGE_ROW = 257, AGES = 18, RUN_BUCKETS = 4, MATCH_BUCKETS = 16 };
enum { ORDER_ROW = AGE_ROW + AGES, ORDER_ROWS = 1 + 256 * RUN_BUCKETS, MATCH_ROW = ORDER_ROW + ORDER_COUNT * ORDER_ROWS };
enum { MATCH_BIAS = 1 + ORDER_COUNT * RUN_BUCKETS };
enum { LAST_BYTES, WORD_HASH, PREVIOUS_WORD, MATCH_AT, MATCH_LENGTH }; // of a lane
static const int ORDERS[ORDER_COUNT] = {1, 2, 3, 4, 6};
static const u64 PHI = 0x9E3779B97F4A7C15ULL;

INLINE i64 hashed(u64 value, u64 salt, int bits) {
    u64 mixed = (value + salt) * PHI;
    mixed ^= mixed >> 29;
    mixed *= 0xBF58476D1CE4E5B9ULL;
    return (i64)(mixed >> (64 - bits));
}

INLINE u64 low_bytes(u64 last, int count) { return last & (((u64)1 << 8 * count) - 1); }
INLINE int run_bucket(u32 run) { return run <= 1 ? 0 : run == 2 ? 1 : run <= 5 ? 2 : 3; }

static int match_bucket(i64 length) {
    static const i64 bounds[] = {12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512};
    if (length < 10) return length < MATCH_MIN ? 0 : (int)(length - MATCH_MIN);
    int bucket = 3;
    for (int i = 0; i < 12 && length >= bounds[i]; i++) bucket++;
    return bucket;
}

static int age_of(i64 known) {
    int age = 0;
    for (; known > 0 && age < 17; known >>= 1) age++;
    return age;
}

// The features of one column of one chunk, (lanes, ...)
void features_predict(const Past *s, i64 column, int ngram_bits, i32 *row, i32 *ngram, u8 *candidate, i32 *bucket) {
    const int age = age_of(s->begin + column * s->lanes), bits = (int)s->bits;
    for (i64 i = 0; i < s->lanes; i++, row += INPUT_FIELDS, ngram += NGRAM_TABLES, candidate += CANDIDATES, bucket += CANDIDATES) {
        const u64 *lane = s->lane + i * LANE_FIELDS, last = lane[LAST_BYTES];
        row[0] = column ? (i32)(last & 255) : START;
        row[1] = AGE_ROW + age;
        for (int k = 0; k < ORDER_COUNT; k++) {
            row[2 + k] = ORDER_ROW + k * ORDER_ROWS;
            candidate[k] = 0;
            bucket[k] = 0;
            if (column >= ORDERS[k]) {
                const i64 at = hashed(low_bytes(last, ORDERS[k]), (u64)ORDERS[k], bits + 8);
                const u32 entry = s->orders[k * s->entries + (at >> 8)];
                if (entry && entry >> 16 == (u32)(at & 255)) {
                    const i32 byte = entry >> 8 & 255, own = run_bucket(entry & 255);
                    row[2 + k] += 1 + byte * RUN_BUCKETS + own;
                    candidate[k] = (u8)byte;
                    bucket[k] = 1 + k * RUN_BUCKETS + own;
                }
            }
        }
        row[INPUT_FIELDS - 1] = MATCH_ROW;
        candidate[CANDIDATES - 1] = 0;
        bucket[CANDIDATES - 1] = 0;
        const i64 match = (i64)lane[MATCH_AT] - 1;
        if (match >= 0) {
            const i32 byte = s->plain[match], own = match_bucket((i64)lane[MATCH_LENGTH]);
            row[INPUT_FIELDS - 1] += 1 + byte * MATCH_BUCKETS + own;
            candidate[CANDIDATES - 1] = (u8)byte;
            bucket[CANDIDATES - 1] = MATCH_BIAS + own;
        }
        static const int lengths[] = {2, 3, 4, 6};
        for (int k = 0; k < 4; k++)
            ngram[k] = (i32)hashed(low_bytes(last, lengths[k] < column ? lengths[k] : (int)column), (u64)lengths[k], ngram_bits);
        const u64 word = lane[WORD_HASH] ? lane[WORD_HASH] : lane[PREVIOUS_WORD] ^ (last & 255);
        ngram[4] = (i32)hashed(word, 7, ngram_bits);
    }
}

// How many bytes before `here` and `there` agree, within their lanes and at most MATCH_VERIFY
static i64 verified(const Past *s, i64 length, i64 here, i64 there) {
    const i64 known = there >= s->begin ? (there - s->begin) % length : there, own = (here - s->begin) % length;
    i64 bound = own < known ? own : known, count = 0;
    bound = bound < MATCH_VERIFY ? bound : MATCH_VERIFY;
    while (count < bound && s->plain[here - 1 - count] == s->plain[there - 1 - count]) count++;
    return count;
}

static void learn_word(u64 *lane, u32 byte) {
    const u32 folded = byte >= 65 && byte <= 90 ? byte | 32 : byte;
    if ((folded >= 97 && folded <= 122) || folded >= 128)
        lane[WORD_HASH] = (lane[WORD_HASH] + folded + 1) * PHI;
    else if (lane[WORD_HASH]) {
        lane[PREVIOUS_WORD] = lane[WORD_HASH];
        lane[WORD_HASH] = 0;
    }
}

// Add a column, which is in `plain` now, to the past
void features_learn(Past *s, i64 column) {
    const i64 length = (s->size + s->lanes - 1) / s->lanes;
    const int bits = (int)s->bits;
    if (column >= MATCH_MIN) // contexts that ended before this column are followed by known bytes only now
        for (i64 i = 0; i < s->lanes && i * length + column < s->size; i++)
            s->starts[hashed(low_bytes(s->lane[i * LANE_FIELDS + LAST_BYTES], MATCH_MIN), 11, bits)] =
                (i32)(s->begin + i * length + column + 1);
    for (i64 i = 0; i < s->lanes; i++) {
        u64 *lane = s->lane + i * LANE_FIELDS;
        const i64 position = i * length + column;
        if (position >= s->size) {
            lane[MATCH_AT] = 0;
            continue;
        }
        const u32 byte = s->plain[s->begin + position];
        const u64 last = lane[LAST_BYTES];
        for (int k = 0; k < ORDER_COUNT; k++)
            if (column >= ORDERS[k]) {
                const i64 at = hashed(low_bytes(last, ORDERS[k]), (u64)ORDERS[k], bits + 8);
                u32 *entry = s->orders + k * s->entries + (at >> 8), run = 1;
                const u32 known = (u32)(at & 255) << 8 | byte;
                if (*entry && *entry >> 8 == known) run = (*entry & 255) < 255 ? (*entry & 255) + 1 : 255;
                *entry = known << 8 | run;
            }
        lane[LAST_BYTES] = last << 8 | byte;
        learn_word(lane, byte);
        i64 match = (i64)lane[MATCH_AT] - 1, matched = (i64)lane[MATCH_LENGTH];
        if (match >= 0 && s->plain[match] == byte) { // goes on while it was right, into the next lane's start if need be
            match++;
            matched++;
            if (match >= s->begin + s->size || (match >= s->begin && (match - s->begin) % length > column)) match = -1;
        } else
            match = -1;
        lane[MATCH_AT] = (u64)(match + 1);
        lane[MATCH_LENGTH] = (u64)matched;
    }
    if (column + 1 >= MATCH_MIN) // lanes without a match look for one; every lane's column is known by now
        for (i64 i = 0; i < s->lanes && i * length + column + 1 < s->size; i++) {
            u64 *lane = s->lane + i * LANE_FIELDS;
            if (lane[MATCH_AT]) continue;
            const i64 found = (i64)s->starts[hashed(low_bytes(lane[LAST_BYTES], MATCH_MIN), 11, bits)] - 1;
            if (found < 0) continue;
            const i64 matched = verified(s, length, s->begin + i * length + column + 1, found);
            if (matched >= MATCH_MIN) {
                lane[MATCH_AT] = (u64)(found + 1);
                lane[MATCH_LENGTH] = (u64)matched;
            }
        }
}

i32 features_rows(void) { return MATCH_ROW + 1 + 256 * MATCH_BUCKETS; }
i32 features_biases(void) { return MATCH_BIAS + MATCH_BUCKETS; }
