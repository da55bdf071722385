// The features of a position, which the network gets before it predicts: the integers of nnfs.model.features, which explains them.
#include "rules.h"

// The features of one column of one chunk, (lanes, ...)
void features_predict(const Past *s, i64 column, int ngram_bits, i32 *row, i32 *ngram, u8 *candidate, i32 *bucket) {
    for (i64 i = 0; i < s->lanes; i++, row += INPUT_FIELDS, ngram += NGRAM_TABLES, candidate += CANDIDATES, bucket += CANDIDATES) {
        const u64 *lane = s->lane + i * LANE_FIELDS;
        for (int k = 0; k < ORDER_COUNT; k++) predict_order(s, lane[LAST_BYTES], column, k, row, candidate, bucket);
        predict_rest(s, lane, column, ngram_bits, row, ngram, candidate, bucket);
    }
}

// Add a column, which is in `plain` now, to the past
void features_learn(Past *s, i64 column) {
    const i64 length = (s->size + s->lanes - 1) / s->lanes;
    if (column >= MATCH_MIN) // contexts that ended before this column are followed by known bytes only now
        for (i64 i = 0; i < s->lanes && i * length + column < s->size; i++)
            s->starts[start_place(s, s->lane[i * LANE_FIELDS + LAST_BYTES])] = (i32)(s->begin + i * length + column + 1);
    for (i64 i = 0; i < s->lanes; i++) {
        u64 *lane = s->lane + i * LANE_FIELDS;
        const i64 position = i * length + column;
        if (position >= s->size) {
            lane[MATCH_AT] = 0;
            continue;
        }
        const u32 byte = s->plain[s->begin + position];
        for (int k = 0; k < ORDER_COUNT; k++) {
            const i64 at = order_place(s, lane[LAST_BYTES], column, k);
            if (at >= 0) learn_order(s->orders + k * s->entries + (at >> 8), at, byte);
        }
        learn_lane(s, lane, length, column, byte);
    }
    if (column + 1 >= MATCH_MIN)
        for (i64 i = 0; i < s->lanes && i * length + column + 1 < s->size; i++)
            find_match(s, s->lane + i * LANE_FIELDS, i, length, column);
}

i32 features_rows(void) { return MATCH_ROW + 1 + 256 * MATCH_BUCKETS; }
i32 features_biases(void) { return MATCH_BIAS + MATCH_BUCKETS; }
