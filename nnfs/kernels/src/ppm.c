// Prediction by partial matching, variant H (Shkarin), with the range coder of 7-Zip: codec 19. FORMAT.md, section 12.
//
// The model lies in memory of Python's that has room for whatever so many bytes can make of it, so it never starts over.
// Contexts and states are named by their place in that memory: a damaged payload makes a wrong model, never a wrong place.
#include "nnfs.h"

#define EXPORT __attribute__((visibility("default")))

enum { ORDER = 8, MOST_PPM = 1 << 18, MOST_FREQUENCY = 124, PERIOD = 7, ROOT_SYMBOLS = 256 };
enum { STATES_A_BYTE = 5 * ORDER, FIRST_STATES = 512 }; // doubled blocks leave less than 3 states behind for each one in use
static const u8 ESCAPES[16] = {25, 14, 9, 7, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2};
static const u16 FIRST_BINARY[8] = {0x3CDD, 0x1F3F, 0x59BF, 0x48F3, 0x64A1, 0x5ABC, 0x6632, 0x6051};

typedef struct { u8 symbol, frequency; i32 next; } Symbol; // next: 0 nothing, above it a context, below it -1 - a place in `text`
typedef struct { u16 count, room, sum; i32 first, suffix; } Context; // suffix 0: the root
typedef struct { u16 sum; u8 shift, count; } See;

typedef struct {
    Symbol *symbols;
    Context *contexts;
    u8 *text;
    i64 symbol_count, context_count, symbols_most, contexts_most, written;
    i32 least, most, found; // contexts; a place in `symbols`
    i32 order_fall, first_escape, success, high, run, first_run, failed;
    u8 see_of[256], binary_of[256];
    See see[25][16], no_see;
    u16 binary[128][64];
} Model;

typedef struct {
    u64 low;
    u32 range, code;
    const u8 *in;
    u8 *out;
    i64 at, size;
    u64 waiting;
    u8 kept;
    int encodes;
} Range;

static i64 symbols_for(i64 size) { return FIRST_STATES + STATES_A_BYTE * size; }
static i64 contexts_for(i64 size) { return 2 + (ORDER + 1) * size; }

// The bytes of memory for a chunk of `size` bytes, -1 for impossible sizes
EXPORT i64 nnfs_ppm_size(i64 size) {
    if (size <= 0 || size > MOST_PPM) return -1;
    return (i64)sizeof(Model) + symbols_for(size) * (i64)sizeof(Symbol) + contexts_for(size) * (i64)sizeof(Context) + size + 64;
}

static void start(Model *m, i64 size) {
    m->symbols = (Symbol *)(m + 1);
    m->contexts = (Context *)(m->symbols + symbols_for(size));
    m->text = (u8 *)(m->contexts + contexts_for(size));
    m->symbols_most = symbols_for(size), m->contexts_most = contexts_for(size);
    m->symbol_count = ROOT_SYMBOLS, m->context_count = 2, m->written = 0;
    m->order_fall = ORDER, m->run = m->first_run = -ORDER - 1;
    m->success = m->high = m->first_escape = m->failed = 0, m->found = 0;
    m->least = m->most = 1;
    m->contexts[1] = (Context){ROOT_SYMBOLS, ROOT_SYMBOLS, ROOT_SYMBOLS + 1, 0, 0};
    for (int i = 0; i < ROOT_SYMBOLS; i++) m->symbols[i] = (Symbol){(u8)i, 1, 0};
    for (int i = 0; i < 128; i++)
        for (int k = 0; k < 64; k++) m->binary[i][k] = (u16)((1 << 14) - FIRST_BINARY[k & 7] / (i + 2));
    for (int i = 0; i < 25; i++)
        for (int k = 0; k < 16; k++) m->see[i][k] = (See){(u16)((5 * i + 10) << (PERIOD - 4)), PERIOD - 4, 4};
    m->no_see = (See){0, PERIOD, 64};
    for (int i = 0; i < 256; i++) m->binary_of[i] = (u8)(i < 2 ? 2 * i : i < 11 ? 4 : 6);
    for (int i = 0, value = 0, left = 1; i < 256; i++) {
        m->see_of[i] = (u8)(i < 3 ? i : value);
        if (i < 3) value = i + 1;
        else if (--left == 0) left = ++value - 2;
    }
}

INLINE Symbol *symbols_of(Model *m, const Context *c) { return m->symbols + c->first; }

INLINE i32 new_symbols(Model *m, int count) {
    if (m->symbol_count + count > m->symbols_most) {
        m->failed = 1;
        return 0;
    }
    m->symbol_count += count;
    return (i32)(m->symbol_count - count);
}

INLINE Symbol *symbol_in(Model *m, const Context *c, u8 symbol) {
    Symbol *s = symbols_of(m, c);
    while (s->symbol != symbol) s++;
    return s;
}

static i32 successors(Model *m, int skip) {
    i32 at = m->least, way[ORDER + 2];
    int count = 0;
    const u8 symbol = m->symbols[m->found].symbol;
    const i32 branch = m->symbols[m->found].next;
    if (!skip) way[count++] = m->found;
    while (m->contexts[at].suffix) {
        at = m->contexts[at].suffix;
        Symbol *s = symbol_in(m, m->contexts + at, symbol);
        if (s->next != branch) {
            at = s->next;
            if (!count) return at;
            break;
        }
        if (count > ORDER) { m->failed = 1; return 1; }
        way[count++] = (i32)(s - m->symbols);
    }
    const Context *c = m->contexts + at;
    Symbol up = {m->text[-1 - branch], 0, branch - 1};
    const Symbol *s = symbol_in(m, c, up.symbol);
    up.frequency = s->frequency;
    if (c->count != 1) {
        const u32 own = s->frequency - 1u, others = (u32)c->sum - c->count - own;
        up.frequency = (u8)(1 + (2 * own <= others ? 5 * own > others : (2 * own + 3 * others - 1) / (2 * others)));
    }
    while (count) {
        const i32 first = new_symbols(m, 1);
        if (m->failed || m->context_count >= m->contexts_most) { m->failed = 1; return 1; }
        m->symbols[first] = up;
        m->contexts[m->context_count] = (Context){1, 1, 0, first, at};
        at = (i32)m->context_count++;
        m->symbols[way[--count]].next = at;
    }
    return at;
}

static void lift(Model *m, const Symbol *found) { // the same symbol in the next shorter context
    Context *c = m->contexts + m->contexts[m->least].suffix;
    Symbol *s = symbols_of(m, c);
    if (c->count == 1) {
        s->frequency += s->frequency < 32;
        return;
    }
    if (s->symbol != found->symbol) {
        while (s->symbol != found->symbol) s++;
        if (s[0].frequency >= s[-1].frequency) {
            const Symbol other = s[-1];
            s[-1] = s[0], s[0] = other;
            s--;
        }
    }
    if (s->frequency < MOST_FREQUENCY - 9) s->frequency += 2, c->sum += 2;
}

static int widen(Model *m, Context *c) { // make room for one more symbol
    if (c->count < c->room) return 1;
    const i32 first = new_symbols(m, 2 * c->room);
    if (m->failed) return 0;
    memcpy(m->symbols + first, symbols_of(m, c), c->count * sizeof(Symbol));
    c->first = first, c->room *= 2;
    return 1;
}

static void update(Model *m) {
    i32 next = m->symbols[m->found].next;
    if (m->symbols[m->found].frequency < MOST_FREQUENCY / 4 && m->contexts[m->least].suffix) lift(m, m->symbols + m->found);
    if (!m->order_fall) {
        m->least = m->most = successors(m, 1);
        m->symbols[m->found].next = m->least;
        return;
    }
    const Symbol found = m->symbols[m->found];
    m->text[m->written++] = found.symbol;
    i32 successor = -1 - (i32)m->written;
    if (next) {
        if (next < 0) next = successors(m, 0);
        if (--m->order_fall == 0) {
            successor = next;
            m->written -= m->most != m->least;
        }
    } else {
        m->symbols[m->found].next = successor;
        next = m->least;
    }
    const u32 count = m->contexts[m->least].count, rest = m->contexts[m->least].sum - count - (found.frequency - 1u);
    for (i32 at = m->most; at != m->least && !m->failed; at = m->contexts[at].suffix) {
        Context *c = m->contexts + at;
        const u32 own = c->count;
        if (!widen(m, c)) return;
        if (own != 1) {
            c->sum = (u16)(c->sum + (2 * own < count) + 2 * ((4 * own <= count) & (c->sum <= 8 * own)));
        } else {
            Symbol *s = symbols_of(m, c);
            s->frequency = s->frequency < MOST_FREQUENCY / 4 - 1 ? s->frequency << 1 : MOST_FREQUENCY - 4;
            c->sum = (u16)(s->frequency + m->first_escape + (count > 3));
        }
        u32 share = 2 * (u32)found.frequency * (c->sum + 6u);
        const u32 all = rest + c->sum;
        if (share < 6 * all) {
            share = 1 + (share > all) + (share >= 4 * all);
            c->sum += 3;
        } else {
            share = 4 + (share >= 9 * all) + (share >= 12 * all) + (share >= 15 * all);
            c->sum = (u16)(c->sum + share);
        }
        symbols_of(m, c)[own] = (Symbol){found.symbol, (u8)share, successor};
        c->count++;
    }
    m->most = m->least = next;
}

static void rescale(Model *m) {
    Context *c = m->contexts + m->least;
    Symbol *const first = symbols_of(m, c), *s = m->symbols + m->found;
    Symbol one = *s;
    for (; s != first; s--) s[0] = s[-1];
    *s = one;
    u32 escape = c->sum - s->frequency, sum, gone = 0;
    const int more = m->order_fall != 0;
    s->frequency = (u8)((s->frequency + 4 + more) >> 1);
    sum = s->frequency;
    for (int i = c->count - 1; i > 0; i--) {
        escape -= (++s)->frequency;
        s->frequency = (u8)((s->frequency + more) >> 1);
        sum += s->frequency;
        if (s[0].frequency > s[-1].frequency) {
            Symbol *at = s;
            one = *at;
            do at[0] = at[-1];
            while (--at != first && one.frequency > at[-1].frequency);
            *at = one;
        }
    }
    if (!s->frequency) {
        for (; !s->frequency; s--) gone++;
        escape += gone;
        c->count = (u16)(c->count - gone);
        if (c->count == 1) {
            do first->frequency = (u8)(first->frequency - (first->frequency >> 1)), escape >>= 1;
            while (escape > 1);
            m->found = c->first;
            return;
        }
    }
    c->sum = (u16)(sum + escape - (escape >> 1));
    m->found = c->first;
}

static void go_on(Model *m) {
    const i32 next = m->symbols[m->found].next;
    if (!m->order_fall && next > 0) m->least = m->most = next;
    else update(m);
}

// ------------------------------------------------------------------------------------------------ the range coder
static void shift_low(Range *r) {
    if (r->low < 0xFF000000 || r->low >> 32) {
        for (u8 byte = r->kept; r->waiting; r->waiting--, byte = 0xFF)
            if (r->at < r->size) r->out[r->at++] = (u8)(byte + (r->low >> 32));
            else r->at = r->size + 1;
        r->kept = (u8)(r->low >> 24);
    }
    r->waiting++;
    r->low = (r->low & 0x00FFFFFF) << 8;
}

INLINE void normalize(Range *r) {
    while (r->range < 1u << 24) {
        r->range <<= 8;
        if (r->encodes) shift_low(r);
        else r->code = r->code << 8 | (r->at < r->size ? r->in[r->at] : 0), r->at++;
    }
}

INLINE void take(Range *r, u32 begin, u32 width) { // after `range` was divided by the total
    if (r->encodes) r->low += (u64)begin * r->range;
    else r->code -= begin * r->range;
    r->range *= width;
    normalize(r);
}

// Code one symbol: that given, or the one that the stream has. -1: an escape from the root, -2: an impossible number
INLINE int code_symbol(Model *m, Range *r, int given) {
    u8 masked[256];
    Context *c = m->contexts + m->least;
    memset(masked, 0, sizeof masked);
    if (c->count != 1) {
        Symbol *s = symbols_of(m, c);
        r->range /= c->sum;
        const u32 place = r->encodes ? 0 : r->code / r->range;
        u32 below = 0;
        if (!r->encodes && place >= c->sum) return -2;
        for (int i = 0; i < c->count; i++, s++) {
            if (r->encodes ? s->symbol == given : place < below + s->frequency) {
                const int symbol = s->symbol;
                take(r, below, s->frequency);
                m->found = (i32)(s - m->symbols);
                c->sum += 4;
                if (i == 0) {
                    m->success = 2 * s->frequency > c->sum - 4;
                    m->run += m->success;
                    if ((s->frequency += 4) > MOST_FREQUENCY) rescale(m);
                } else {
                    m->success = 0;
                    s->frequency += 4;
                    if (s[0].frequency > s[-1].frequency) {
                        const Symbol other = s[-1];
                        s[-1] = s[0], s[0] = other;
                        m->found--;
                        if ((--s)->frequency > MOST_FREQUENCY) rescale(m);
                    }
                }
                go_on(m);
                return symbol;
            }
            below += s->frequency;
            masked[s->symbol] = 1;
        }
        m->success = 0;
        m->high = m->symbols[m->found].symbol >= 0x40 ? 8 : 0;
        take(r, below, c->sum - below);
    } else {
        Symbol *s = symbols_of(m, c);
        m->high = m->symbols[m->found].symbol >= 0x40 ? 8 : 0;
        u16 *p = &m->binary[s->frequency - 1][m->success + m->binary_of[m->contexts[c->suffix].count - 1] + m->high +
                                              2 * (s->symbol >= 0x40 ? 8 : 0) + (m->run < 0 ? 0x20 : 0)];
        const u32 bound = (r->range >> 14) * *p;
        const int is = r->encodes ? s->symbol == given : r->code < bound;
        const u16 mean = (u16)((*p + 32) >> PERIOD);
        if (is) {
            const int symbol = s->symbol;
            r->range = bound;
            normalize(r);
            *p = (u16)(*p + 128 - mean);
            m->found = c->first;
            s->frequency += s->frequency < 128;
            m->success = 1;
            m->run++;
            go_on(m);
            return symbol;
        }
        if (r->encodes) r->low += bound;
        else r->code -= bound;
        r->range -= bound;
        normalize(r);
        *p = (u16)(*p - mean);
        m->first_escape = ESCAPES[*p >> 10];
        masked[s->symbol] = 1;
        m->success = 0;
    }
    for (;;) {
        const int known = m->contexts[m->least].count;
        do {
            m->order_fall++;
            m->least = m->contexts[m->least].suffix;
            if (!m->least) return -1;
        } while (m->contexts[m->least].count == known);
        c = m->contexts + m->least;
        Symbol *const first = symbols_of(m, c), *s = first;
        const int unmasked = c->count - known;
        u32 all = 0, escape = 1;
        for (int i = 0; i < c->count; i++) all += masked[first[i].symbol] ? 0 : first[i].frequency;
        See *see = &m->no_see;
        if (c->count != 256) {
            see = m->see[m->see_of[unmasked - 1]] + (unmasked < m->contexts[c->suffix].count - c->count) +
                  2 * (c->sum < 11 * c->count) + 4 * (known > unmasked) + m->high;
            escape = see->sum >> see->shift;
            see->sum = (u16)(see->sum - escape);
            escape += !escape;
        }
        const u32 total = all + escape;
        r->range /= total;
        const u32 place = r->encodes ? 0 : r->code / r->range;
        if (!r->encodes && place >= total) return -2;
        u32 below = 0;
        for (int i = 0; i < c->count; i++, s++) {
            if (masked[s->symbol]) continue;
            if (r->encodes ? s->symbol == given : place < below + s->frequency) {
                const int symbol = s->symbol;
                take(r, below, s->frequency);
                if (see->shift < PERIOD && --see->count == 0) {
                    see->sum = (u16)(see->sum << 1);
                    see->count = (u8)(3 << see->shift++);
                }
                m->found = (i32)(s - m->symbols);
                c->sum += 4;
                if ((s->frequency += 4) > MOST_FREQUENCY) rescale(m);
                m->run = m->first_run;
                update(m);
                return symbol;
            }
            below += s->frequency;
        }
        take(r, all, escape);
        see->sum = (u16)(see->sum + total);
        for (int i = 0; i < c->count; i++) masked[first[i].symbol] = 1;
    }
}

static int fits(i64 size, const void *room, i64 room_size) { return room && nnfs_ppm_size(size) > 0 && room_size >= nnfs_ppm_size(size); }

// Encode `size` bytes to `out`; return how many bytes that takes, -1 if there are not so many or for impossible numbers.
EXPORT i64 nnfs_ppm_encode(u8 *room, i64 room_size, const u8 *plain, i64 size, u8 *out, i64 out_size) {
    if (!fits(size, room, room_size) || out_size < 0) return -1;
    Model *m = (Model *)(void *)room;
    Range r = {.range = 0xFFFFFFFF, .out = out, .size = out_size, .encodes = 1};
    start(m, size);
    for (i64 i = 0; i < size; i++)
        if (code_symbol(m, &r, plain[i]) < 0 || m->failed || r.at > r.size) return -1;
    for (int i = 0; i < 5; i++) shift_low(&r);
    return r.at > r.size ? -1 : r.at;
}

// Decode `size` bytes from a stream; 0: it ends as it was begun, and is used up.
EXPORT int nnfs_ppm_decode(u8 *room, i64 room_size, const u8 *stream, i64 stream_size, u8 *plain, i64 size) {
    if (!fits(size, room, room_size) || stream_size < 0) return BAD_ARGUMENT;
    Model *m = (Model *)(void *)room;
    Range r = {.range = 0xFFFFFFFF, .in = stream, .size = stream_size};
    start(m, size);
    for (int i = 0; i < 4; i++) r.code = r.code << 8 | (r.at < r.size ? r.in[r.at] : 0), r.at++;
    for (i64 i = 0; i < size; i++) {
        const int symbol = code_symbol(m, &r, 0);
        if (symbol < 0 || m->failed || r.at > r.size + 4) return BAD_ARGUMENT;
        plain[i] = (u8)symbol;
    }
    return r.code || r.at < r.size ? BAD_ARGUMENT : OK;
}
