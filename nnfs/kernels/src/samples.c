// Numbers in a row (sound, pixels, tables): the integers of nnfs.mixer.samples and nnfs.mixer.leastsquares, which explain
// them. Covariances are symmetric, so only their lower triangle is kept up here.
#include "simd.h"

enum { FORGET_AT = 9, ROWS_ABOVE = 4, AHEAD_OF = 8, HEAD_BITS = 37, POINT_L = 24, POINT_W = 20, CLAMP = 1 << 24 };
enum { S_COUNT, S_BYTES, S_CHANNELS, S_STRIDE, S_PHASE, S_SIGNED, S_REGRESSORS, S_EVERY, S_RATE }; // parameters

INLINE i64 floored(i64 a, i64 b) { // b > 0
    i64 q = a / b;
    return q - (a % b < 0);
}
INLINE i64 at_least(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 at_most(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 value_at(const Samples *s, i64 p) { return p >= 0 ? s->value[p] : 0; }
INLINE i64 class_of(i64 v) { // 4 to the octave
    i64 n = 0;
    for (; v >= 8; v >>= 1) n++;
    return (n << 2) + v;
}
INLINE i64 bottom_of(const i64 *g) { return g[S_SIGNED] ? -((i64)1 << (8 * g[S_BYTES] - 1)) : 0; }

static i64 gather(const Samples *s, i64 p, i64 *x) {
    const i64 *g = s->parameters;
    i64 base = 0;
    if (g[S_STRIDE] > 0) {
        const i64 west = value_at(s, p - g[S_CHANNELS]);
        base = (west + (p >= g[S_STRIDE] ? value_at(s, p - g[S_STRIDE]) : west)) >> 1;
    }
    for (i64 i = 0; i < g[S_REGRESSORS]; i++) {
        const i64 q = p - s->offsets[i];
        x[i] = q >= 0 ? s->value[q] - base : 0;
    }
    return base;
}

static void fixed(Samples *s, i64 p, i64 c) {
    const i64 channels = s->parameters[S_CHANNELS], stride = s->parameters[S_STRIDE];
    const i64 west = value_at(s, p - channels), before = value_at(s, p - 1);
    i64 *mean = s->mean;
    if (stride == 0) {
        const i64 west2 = value_at(s, p - 2 * channels), west3 = value_at(s, p - 3 * channels);
        mean[2] = (2 * west - west2) * 64;
        mean[3] = west * 64;
        mean[4] = (3 * west - 3 * west2 + west3) * 64;
        return;
    }
    i64 north = west, corner = west, east = west;
    if (p >= stride)
        north = value_at(s, p - stride), corner = value_at(s, p - stride - channels), east = value_at(s, p - stride + channels);
    const i64 high = at_least(west, north), low = at_most(west, north);
    mean[2] = (corner >= high ? low : corner <= low ? high : west + north - corner) * 64;
    if (c > 0)
        mean[3] = (west + before - value_at(s, p - 1 - channels) + north + before - value_at(s, p - 1 - stride)) * 32;
    else
        mean[3] = (west * 3 + north * 3 - 2 * corner) * 16;
    mean[4] = floored((2 * west + east + 2 * north - corner - value_at(s, p - 2 * stride + channels)) * 64, 3);
}

static i64 nearby(const Samples *s, i64 e, i64 p) {
    const i64 channels = s->parameters[S_CHANNELS], stride = s->parameters[S_STRIDE];
    const i32 *error = s->error + e * s->parameters[S_COUNT];
    i64 a = p >= channels ? 2 * (i64)error[p - channels] : 0;
    if (stride > 0) {
        if (p >= stride + channels)
            a += 2 * (i64)error[p - stride] + error[p - stride - channels] + error[p - stride + channels];
        return a;
    }
    if (p > 3 * channels) {
        a += 2 * (i64)error[p - 2 * channels] + 2 * (i64)error[p - 3 * channels];
        for (i64 i = 4; i < 8; i++)
            if (p >= i * channels) a += error[p - i * channels];
        a >>= 1;
    }
    return a;
}

static void begin_sample(Samples *s, i64 p) {
    const i64 *g = s->parameters, channels = g[S_CHANNELS], c = (p + g[S_PHASE]) % channels;
    const i64 bottom = bottom_of(g), top = bottom + ((i64)1 << 8 * g[S_BYTES]) - 1, base = gather(s, p, s->x);
    for (i64 o = 0; o < SOLVERS; o++) {
        i64 a = 0;
        const i64 *w = s->w + (o * channels + c) * MOST_REGRESSORS;
        for (i64 i = 0; i < g[S_REGRESSORS]; i++) a += w[i] * s->x[i];
        s->mean[o] = (a >> 14) + base * 64;
    }
    fixed(s, p, c);
    i64 total = 1, weighted = 0;
    for (i64 e = 0; e < EXPERTS; e++) {
        const i64 a = nearby(s, e, p);
        if (e == EXPERTS - 1)
            s->mean[e] = s->mean[0] + floored(weighted, total);
        else {
            const i64 part = ((i64)1 << 40) / ((a + 16) * (a + 16));
            total += part;
            weighted += part * (s->mean[e] - s->mean[0]);
        }
        s->mean[e] = at_most(at_least(s->mean[e], bottom * 64), top * 64);
        s->place[e] = at_most(class_of(a / 12), 255);
        s->narrow[e] = ((i64)1 << 34) / at_least(s->spread[(e * channels + c) * 256 + s->place[e]] * 185 >> 8, 300);
    }
    s->key[14] = c, s->key[15] = base;
    const i64 west = value_at(s, p - channels), north = value_at(s, g[S_STRIDE] > 0 ? p - g[S_STRIDE] : p - 2 * channels);
    i64 *h = s->hashed;
    h[0] = s->mean[0] >> 6;
    h[1] = s->mean[EXPERTS - 1] >> 6;
    h[2] = s->mean[1] >> 6;
    h[3] = west * 65536 + north;
    h[4] = (s->mean[2] >> 6) * 65536 | ((value_at(s, p - 1) - value_at(s, p - 1 - channels)) & 0xFFFF);
    h[5] = (s->mean[0] >> 5) * 1024 | s->place[0] << 1;
    for (int i = 0; i < SAMPLE_CONTEXTS; i++) h[i] = (i64)((u64)(h[i] * 8 + c + 1) * HASH_B);
}

INLINE i64 below(const Samples *s, i64 e, i64 v, i64 bottom, i64 bits) {
    const i64 edge = (i64)(LIMIT - 1) << 8;
    const i64 d = at_most(at_least((v * 64 - 32 - s->mean[e]) * s->narrow[e] >> 12, -edge), edge), i = (d >> 8) + LIMIT;
    const i64 f = s->tables->fine[i];
    return (f << 8) + (s->tables->fine[i + 1] - f) * (d & 255) + ((v - bottom) << 20 >> bits);
}

static i32 predict_sample(Samples *s, i64 k, i64 low) {
    const Tables *tables = s->tables;
    const i64 *g = s->parameters, bits = 8 * g[S_BYTES], bottom = bottom_of(g), width = (i64)1 << (bits - k), middle = low + (width >> 1);
    i64 *key = s->key;
    i32 *x = s->inputs;
    for (i64 e = 0; e < EXPERTS; e++) {
        i64 *own = s->below + 3 * e;
        if (k == 0) own[0] = 0, own[1] = ((i64)1 << 32) + (1 << 20);
        own[2] = below(s, e, middle, bottom, bits);
        const i64 p = at_most(at_least(floored((own[1] - own[2]) * 65536, own[1] - own[0] + 1), 1), 65535);
        x[e] = tables->stretch[p];
        x[EXPERTS + e] = (i32)(p - 32768) >> 5;
    }
    for (i64 i = 0; i < SAMPLE_CONTEXTS; i++) {
        i64 h = (i64)(((u64)s->hashed[i] + (u64)(low - bottom + (k + 1) * 0x50005) * HASH_C) * HASH_A);
        h ^= h >> 29;
        s->seen[i] = h & ((1 << SAMPLE_TABLE_BITS) - 1);
        const i32 state = s->table[(i << SAMPLE_TABLE_BITS) + s->seen[i]], p = (i32)(s->maps[i << 8 | state] >> 10), there = -(state != 0);
        x[2 * EXPERTS + i] = tables->coarse[p >> 10] & there;
        x[2 * EXPERTS + SAMPLE_CONTEXTS + i] = (p - 2097152) >> 11 & there;
    }
    x[2 * EXPERTS + 2 * SAMPLE_CONTEXTS] = 256;
    i64 z = (middle * 64 - 32 - s->mean[0]) * s->narrow[0] >> 18;
    z = (at_most(at_least(z < 0 ? -class_of(-z) : class_of(z), -31), 31) + 32) >> 1;
    const i64 ratio = at_most(class_of((width << 6) * s->narrow[0] >> 22) >> 1, 15), activity = at_most(s->place[0] >> 1, 31);
    key[0] = (key[14] & 7) * 16 + k;
    key[1] = 128 + ratio * 32 + z;
    key[2] = 640 + activity * 16 + k;
    key[3] = 1152 + (k < 10 ? (low - bottom) >> (bits - k) | (i64)1 << k : 0);
    const i32 *w[SETS];
    i32 answers[SETS];
    for (int j = 0; j < SETS; j++) w[j] = s->weights + INPUTS * key[j];
    dots(x, w, answers);
    i64 total = 0;
    for (int j = 0; j < SETS; j++) {
        key[4 + j] = answers[j];
        total += (i64)answers[j] * s->weights_last[SETS * k + j];
    }
    total = at_most(at_least(total >> 16, -LIMIT), LIMIT);
    key[8] = total;
    const i64 cell = (total + 2880) / 180, part = (total + 2880) % 180;
    key[9] = ratio * 32 + z, key[10] = 512 + activity * 16 + k, key[11] = cell + (part >= 90);
    i64 a = 0;
    for (int m = 9; m < 11; m++) {
        const u32 *f = s->refine + key[m] * CERTAIN + cell;
        a += (i64)(f[0] >> 10) * (180 - part) + (i64)(f[1] >> 10) * part;
    }
    return (i32)at_most(at_least((2 * (i64)tables->squash[total + LIMIT] + a / (180 * 64)) >> 2, 1), 65535);
}

static void learn_sample_bit(Samples *s, i64 k, u32 bit) {
    const Tables *tables = s->tables;
    const i64 *key = s->key, target = (i64)bit << 16, last = (target - tables->squash[key[8] + LIMIT]) * 40 >> 8;
    for (int j = 0; j < SETS; j++) {
        i32 *own = s->weights_last + SETS * k + j, *w = s->weights + INPUTS * key[j];
        *own = (i32)((u32)*own + (u32)((key[4 + j] * last + 32768) >> 16));
        const vi e = set1((i32)((target - tables->squash[key[4 + j] + LIMIT]) * s->parameters[S_RATE] >> 8));
        for (int v = 0; v < INPUTS; v += VL) store(w + v, load(w + v) + ((load(s->inputs + v) * e + 32768) >> 16));
    }
    for (i64 i = 0; i < SAMPLE_CONTEXTS; i++) {
        u8 *state = s->table + (i << SAMPLE_TABLE_BITS) + s->seen[i];
        learn_entry(tables->reciprocal, s->maps + (i << 8 | *state), bit, 1023); // that of state 0 is never asked
        *state = tables->next[2 * *state + bit];
    }
    learn_entry(tables->reciprocal, s->refine + key[9] * CERTAIN + key[11], bit, 255);
    learn_entry(tables->reciprocal, s->refine + key[10] * CERTAIN + key[11], bit, 255);
    for (i64 e = 0; e < EXPERTS; e++) s->below[3 * e + 1 - bit] = s->below[3 * e + 2];
}

static void observe(i64 *r, i64 *b, i64 n, const i64 *x, i64 y, i64 forget) {
    for (i64 i = 0; i < n; i++) {
        const i64 xi = x[i] * 64;
        i64 *row = r + i * MOST_REGRESSORS;
        for (i64 j = 0; j <= i; j++) row[j] += xi * x[j] - (row[j] >> forget);
        b[i] += xi * y - (b[i] >> forget);
    }
}

static void solve(const i64 *r, const i64 *b, i64 *w, i64 n, i64 *lower, i64 *d, i64 *z) {
    enum { M = MOST_REGRESSORS };
    i64 most = 1;
    int left = 0, right = 0;
    for (i64 i = 0; i < n; i++) most = at_least(most, r[i * M + i]);
    while (most >> right >= (i64)1 << HEAD_BITS) right++;
    while (most << left < (i64)1 << (HEAD_BITS - 1)) left++;
    const i64 ridge = (most << left >> right >> 19) + 16;
    for (i64 j = 0; j < n; j++) {
        for (i64 k = 0; k < j; k++) z[k] = lower[j * M + k] * d[k] >> POINT_L;
        for (i64 i = j; i < n; i++) {
            i64 a = 0;
            for (i64 k = 0; k < j; k++) a += lower[i * M + k] * z[k];
            const i64 v = (r[i * M + j] << left >> right) - (a >> POINT_L);
            if (i == j) d[j] = at_least(v + ridge, ridge);
            else lower[i * M + j] = floored(v << POINT_L, d[j]);
        }
    }
    for (i64 i = 0; i < n; i++) {
        i64 a = 0;
        for (i64 k = 0; k < i; k++) a += lower[i * M + k] * z[k];
        z[i] = (b[i] << left >> right) - (a >> POINT_L);
    }
    for (i64 i = n - 1; i >= 0; i--) {
        i64 a = 0;
        for (i64 k = i + 1; k < n; k++) a += lower[k * M + i] * w[k];
        w[i] = at_most(at_least(floored(z[i] << POINT_W, d[i]) - (a >> POINT_L), -CLAMP), CLAMP);
    }
}

static void learn_sample(Samples *s, i64 p) {
    enum { M = MOST_REGRESSORS };
    const i64 *g = s->parameters, v = s->value[p], c = s->key[14], channels = g[S_CHANNELS], stride = g[S_STRIDE], n = g[S_REGRESSORS];
    for (i64 e = 0; e < EXPERTS; e++) {
        const i64 d = v * 64 - s->mean[e], error = d < 0 ? -d : d;
        i64 *spread = s->spread + (e * channels + c) * 256 + s->place[e];
        s->error[e * g[S_COUNT] + p] = (i32)error;
        *spread += (error * 64 - *spread) >> 5;
    }
    for (i64 o = 0; o < SOLVERS; o++) {
        i64 *r = s->r + (o * channels + c) * M * M, *b = s->b + (o * channels + c) * M;
        observe(r, b, n, s->x, v - s->key[15], g[FORGET_AT + o]);
        if (o == 1 && stride > 0)
            for (i64 row = 1; row <= ROWS_ABOVE; row++) {
                const i64 q = p - row * stride + AHEAD_OF * channels;
                if (stride < q && q < p) {
                    const i64 base = gather(s, q, s->scratch + 2 * M);
                    observe(r, b, n, s->scratch + 2 * M, s->value[q] - base, g[FORGET_AT + o]);
                }
            }
        if (p / channels % g[S_EVERY] == 0) solve(r, b, s->w + (o * channels + c) * M, n, s->lower, s->scratch, s->scratch + M);
    }
}

// Probabilities of 1 along the bits of all samples, (samples, bits); or, with a coder, the samples themselves
static void run_samples(Samples *s, u16 *out, Coder *coder) {
    const i64 bits = 8 * s->parameters[S_BYTES], bottom = bottom_of(s->parameters);
    for (i64 p = 0; p < s->parameters[S_COUNT]; p++) {
        begin_sample(s, p);
        i64 low = bottom;
        for (i64 k = 0; k < bits; k++) {
            const i32 own = predict_sample(s, k, low);
            const i64 half = (i64)1 << (bits - k - 1);
            u32 bit;
            if (coder) bit = decode_bit(coder, 0, own);
            else bit = s->value[p] >= low + half, out[p * bits + k] = (u16)own;
            learn_sample_bit(s, k, bit);
            low += bit * half;
        }
        if (coder) s->value[p] = (i32)low;
        learn_sample(s, p);
    }
}
