// The kernels: columns of a batch, a block for each group of chunks; and, to encode, the streams at the end.
#include "columns.h"
#include "network.h"

template <int N> DEVICE void step_columns(const Work &w, u8 *shared, int block) {
    Column o;
    o.net = w.net, o.rows = N * ROWS_OF_TILE;
    o.chunks = w.chunks + w.groups[block], o.count = w.groups[block + 1] - w.groups[block];
    const Room m = lay_out(o.net, o.rows, shared);
    const i64 past = (i64)o.net->layers * o.rows * o.net->kv_heads * WINDOW * HEAD * block;
    i64 end = 0;
    for (int c = 0; c < o.count; c++) end = length_of(&o.chunks[c].past) > end ? length_of(&o.chunks[c].past) : end;
    end = end < w.to ? end : w.to;
    seat(o, m);
    for (o.t = w.from; o.t < end; o.t++) {
        begin(o, m);
        predict_features(o, m);
        step<N>(o.net, m, w.keys + past, w.values + past, o.t);
        prepare(o, m);
        if (w.encoding) encode_column(o, m);
        else decode_column(o, m);
        learn_column(o, m);
        learn_features(o, m);
    }
}
