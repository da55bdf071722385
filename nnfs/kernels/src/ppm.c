// Prediction by partial matching, variant H (Shkarin), with the range coder of 7-Zip: codec 19. FORMAT.md, section 12.
//
// The model lies in memory of Python's that has room for whatever so many bytes can make of it, so it never starts over.
// Contexts and states are named by their place in that memory: a damaged payload makes a wrong model, never a wrong place.
#include "nnfs.h"

#define EXPORT __attribute__((visibility("default")))

enum { ORDER = 8, MOST_PPM = 1 << 18, MOST_FREQUENCY = 124, PERIOD = 7, ROOT_SYMBOLS = 256, ROOT = 2 };
enum { STATES_A_BYTE = 5 * ORDER, FIRST_STATES = 512 }; // doubled blocks leave less than 3 states behind for each one in use
static const u8 ESCAPES[16] = {25, 14, 9, 7, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2};
static const u16 FIRST_BINARY[8] = {0x3CDD, 0x1F3F, 0x59BF, 0x48F3, 0x64A1, 0x5ABC, 0x6632, 0x6051};

typedef struct { u8 symbol, frequency; u16 unused; i32 next; } Symbol; // next: 0 nothing, above it a context, below it -1 - a place in `text`
typedef struct { // two units; a context with one symbol holds that itself: it takes one line of the cache, not two
    u16 count, sum;
    i32 suffix; // 0: this is the root
    union {
        Symbol only;
        struct { i32 first; u16 room, unused; };
    };
} __attribute__((may_alias)) Context;
typedef struct { u16 sum; u8 shift, count; } See;

typedef struct {
    Symbol *units; // contexts from unit 2 on upwards, blocks of symbols from the end downwards: places are numbers of units
    u8 *text;
    i64 contexts_end, symbols_begin, written;
    i32 least, most, found; // two contexts and a symbol
    u32 epoch;
    u8 masked[256]; // the epoch in which a symbol was seen that cannot follow any more
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
} Range;

static i64 units_for(i64 size) { return FIRST_STATES + (STATES_A_BYTE + 2 * (ORDER + 1)) * size; } // an even number

// The bytes of memory for a chunk of `size` bytes, -1 for impossible sizes
EXPORT i64 nnfs_ppm_size(i64 size) {
    if (size <= 0 || size > MOST_PPM) return -1;
    return (i64)sizeof(Model) + units_for(size) * (i64)sizeof(Symbol) + size + 64;
}

INLINE Context *context(const Model *m, i32 at) { return (Context *)(void *)(m->units + at); }

static void start(Model *m, i64 size) {
    m->units = (Symbol *)(void *)(((uintptr_t)(m + 1) + 15) & ~(uintptr_t)15);
    m->text = (u8 *)(m->units + units_for(size));
    m->contexts_end = 2 * ROOT, m->symbols_begin = units_for(size) - ROOT_SYMBOLS, m->written = 0;
    m->epoch = 0;
    memset(m->masked, 0, sizeof m->masked);
    m->order_fall = ORDER, m->run = m->first_run = -ORDER - 1;
    m->success = m->high = m->first_escape = m->failed = 0;
    m->least = m->most = ROOT;
    *context(m, ROOT) = (Context){.count = ROOT_SYMBOLS, .sum = ROOT_SYMBOLS + 1, .first = (i32)m->symbols_begin, .room = ROOT_SYMBOLS};
    m->found = (i32)m->symbols_begin;
    for (int i = 0; i < ROOT_SYMBOLS; i++) m->units[m->symbols_begin + i] = (Symbol){(u8)i, 1, 0, 0};
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

INLINE Symbol *symbols_of(Model *m, Context *c) { return c->count == 1 ? &c->only : m->units + c->first; }

INLINE Symbol *symbol_in(Model *m, Context *c, u8 symbol) {
    Symbol *s = symbols_of(m, c);
    while (s->symbol != symbol) s++;
    return s;
}

static i32 successors(Model *m, int skip) {
    i32 at = m->least, way[ORDER + 2];
    int count = 0;
    const u8 symbol = m->units[m->found].symbol;
    const i32 branch = m->units[m->found].next;
    if (!skip) way[count++] = m->found;
    while (context(m, at)->suffix) {
        at = context(m, at)->suffix;
        Symbol *s = symbol_in(m, context(m, at), symbol);
        if (s->next != branch) {
            at = s->next;
            if (!count) return at;
            break;
        }
        if (count > ORDER) { m->failed = 1; return ROOT; }
        way[count++] = (i32)(s - m->units);
    }
    Context *c = context(m, at);
    Symbol up = {m->text[-1 - branch], 0, 0, branch - 1};
    const Symbol *s = symbol_in(m, c, up.symbol);
    up.frequency = s->frequency;
    if (c->count != 1) {
        const u32 own = s->frequency - 1u, others = (u32)c->sum - c->count - own;
        up.frequency = (u8)(1 + (2 * own <= others ? 5 * own > others : (2 * own + 3 * others - 1) / (2 * others)));
    }
    while (count) {
        const i32 made = (i32)m->contexts_end;
        if (made + 2 > m->symbols_begin) { m->failed = 1; return ROOT; }
        m->contexts_end += 2;
        *context(m, made) = (Context){.count = 1, .suffix = at, .only = up};
        m->units[way[--count]].next = at = made;
    }
    return at;
}

static void lift(Model *m, const Symbol *found) { // the same symbol in the next shorter context
    Context *c = context(m, context(m, m->least)->suffix);
    if (c->count == 1) {
        c->only.frequency += c->only.frequency < 32;
        return;
    }
    Symbol *s = m->units + c->first;
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

INLINE Symbol *widen(Model *m, Context *c) { // make room for one more symbol, outside the context
    const int count = c->count;
    if (count > 1 && count < c->room) return m->units + c->first;
    if (m->contexts_end + 2 * count > m->symbols_begin) {
        m->failed = 1;
        return 0;
    }
    m->symbols_begin -= 2 * count;
    Symbol *s = m->units + m->symbols_begin;
    if (count == 1) *s = c->only;
    else memcpy(s, m->units + c->first, (size_t)count * sizeof *s);
    c->first = (i32)m->symbols_begin, c->room = (u16)(2 * count);
    return s;
}

static void update(Model *m) {
    i32 next = m->units[m->found].next;
    if (m->units[m->found].frequency < MOST_FREQUENCY / 4 && context(m, m->least)->suffix) lift(m, m->units + m->found);
    if (!m->order_fall) {
        m->least = m->most = successors(m, 1);
        m->units[m->found].next = m->least;
        return;
    }
    const Symbol found = m->units[m->found];
    m->text[m->written++] = found.symbol;
    i32 successor = -1 - (i32)m->written;
    if (next) {
        if (next < 0) next = successors(m, 0);
        if (--m->order_fall == 0) {
            successor = next;
            m->written -= m->most != m->least;
        }
    } else {
        m->units[m->found].next = successor;
        next = m->least;
    }
    const u32 count = context(m, m->least)->count, rest = context(m, m->least)->sum - count - (found.frequency - 1u);
    for (i32 at = m->most; at != m->least && !m->failed; at = context(m, at)->suffix) {
        Context *c = context(m, at);
        const u32 own = c->count;
        Symbol *s = widen(m, c);
        if (!s) return;
        if (own != 1) {
            c->sum = (u16)(c->sum + (2 * own < count) + 2 * ((4 * own <= count) & (c->sum <= 8 * own)));
        } else {
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
        s[own] = (Symbol){found.symbol, (u8)share, 0, successor};
        c->count++;
    }
    m->most = m->least = next;
}

static void rescale(Model *m) {
    Context *c = context(m, m->least);
    Symbol *const first = m->units + c->first, *s = m->units + m->found;
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
            one = *first;
            c->only = one;
            m->found = m->least + 1;
            return;
        }
    }
    c->sum = (u16)(sum + escape - (escape >> 1));
    m->found = c->first;
}

static void go_on(Model *m) {
    const i32 next = m->units[m->found].next;
    if (!m->order_fall && next > 0) m->least = m->most = next;
    else update(m);
}

// ------------------------------------------------------------------------------------------------ the range coder
INLINE void shift_low(Range *r) {
    if (r->low < 0xFF000000 || r->low >> 32) {
        for (u8 byte = r->kept; r->waiting; r->waiting--, byte = 0xFF)
            if (r->at < r->size) r->out[r->at++] = (u8)(byte + (r->low >> 32));
            else r->at = r->size + 1;
        r->kept = (u8)(r->low >> 24);
    }
    r->waiting++;
    r->low = (r->low & 0x00FFFFFF) << 8;
}

INLINE void normalize(Range *r, const int encodes) {
    while (r->range < 1u << 24) {
        r->range <<= 8;
        if (encodes) shift_low(r);
        else r->code = r->code << 8 | (r->at < r->size ? r->in[r->at] : 0), r->at++;
    }
}

INLINE void take(Range *r, u32 begin, u32 width, const int encodes) { // after `range` was divided by the total
    if (encodes) r->low += (u64)begin * r->range;
    else r->code -= begin * r->range;
    r->range *= width;
    normalize(r, encodes);
}

// Begin an epoch in which the symbols of a context cannot follow
INLINE void mask_from(Model *m, const Symbol *s, int count) {
    if (!(u8)++m->epoch) {
        memset(m->masked, 0, sizeof m->masked);
        m->epoch = 1;
    }
    for (int i = 0; i < count; i++) m->masked[s[i].symbol] = (u8)m->epoch;
}

// Code one symbol: that given, or the one that the stream has. -1: an escape from the root, -2: an impossible number
INLINE int code_symbol(Model *m, Range *r, int given, const int encodes) {
    Context *c = context(m, m->least);
    u8 *const masked = m->masked;
    if (c->count != 1) {
        Symbol *s = m->units + c->first, *const end = s + c->count;
        r->range /= c->sum;
        const u32 place = encodes ? 0 : r->code / r->range;
        u32 below = s->frequency;
        if (!encodes && place >= c->sum) return -2;
        if (encodes ? s->symbol == given : place < below) {
            const int symbol = s->symbol;
            take(r, 0, below, encodes);
            m->found = c->first;
            m->success = 2 * below > c->sum;
            c->sum += 4;
            m->run += m->success;
            if ((s->frequency += 4) > MOST_FREQUENCY) rescale(m);
            go_on(m);
            return symbol;
        }
        m->success = 0;
        while (++s != end) {
            if (encodes ? s->symbol == given : place < below + s->frequency) {
                const int symbol = s->symbol;
                take(r, below, s->frequency, encodes);
                m->found = (i32)(s - m->units);
                c->sum += 4;
                s->frequency += 4;
                if (s[0].frequency > s[-1].frequency) {
                    const Symbol other = s[-1];
                    s[-1] = s[0], s[0] = other;
                    m->found--;
                    if ((--s)->frequency > MOST_FREQUENCY) rescale(m);
                }
                go_on(m);
                return symbol;
            }
            below += s->frequency;
        }
        m->high = m->units[m->found].symbol >= 0x40 ? 8 : 0;
        take(r, below, c->sum - below, encodes);
        mask_from(m, m->units + c->first, c->count);
    } else {
        Symbol *s = &c->only;
        m->high = m->units[m->found].symbol >= 0x40 ? 8 : 0;
        u16 *p = &m->binary[s->frequency - 1][m->success + m->binary_of[context(m, c->suffix)->count - 1] + m->high +
                                              2 * (s->symbol >= 0x40 ? 8 : 0) + (m->run < 0 ? 0x20 : 0)];
        const u32 bound = (r->range >> 14) * *p;
        const int is = encodes ? s->symbol == given : r->code < bound;
        const u16 mean = (u16)((*p + 32) >> PERIOD);
        if (is) {
            const int symbol = s->symbol;
            r->range = bound;
            normalize(r, encodes);
            *p = (u16)(*p + 128 - mean);
            m->found = m->least + 1;
            s->frequency += s->frequency < 128;
            m->success = 1;
            m->run++;
            go_on(m);
            return symbol;
        }
        if (encodes) r->low += bound;
        else r->code -= bound;
        r->range -= bound;
        normalize(r, encodes);
        *p = (u16)(*p - mean);
        m->first_escape = ESCAPES[*p >> 10];
        mask_from(m, s, 1);
        m->success = 0;
    }
    const u8 epoch = (u8)m->epoch;
    for (;;) {
        const int known = context(m, m->least)->count;
        do {
            m->order_fall++;
            m->least = context(m, m->least)->suffix;
            if (!m->least) return -1;
        } while (context(m, m->least)->count == known);
        c = context(m, m->least);
        Symbol *const first = m->units + c->first, *s = first;
        const int unmasked = c->count - known;
        u32 all = 0, escape = 1;
        for (int i = 0; i < c->count; i++) all += masked[first[i].symbol] == epoch ? 0 : first[i].frequency;
        See *see = &m->no_see;
        if (c->count != 256) {
            see = m->see[m->see_of[unmasked - 1]] + (unmasked < context(m, c->suffix)->count - c->count) +
                  2 * (c->sum < 11 * c->count) + 4 * (known > unmasked) + m->high;
            escape = see->sum >> see->shift;
            see->sum = (u16)(see->sum - escape);
            escape += !escape;
        }
        const u32 total = all + escape;
        r->range /= total;
        const u32 place = encodes ? 0 : r->code / r->range;
        if (!encodes && place >= total) return -2;
        u32 below = 0;
        for (int i = 0; i < c->count; i++, s++) {
            if (masked[s->symbol] == epoch) continue;
            if (encodes ? s->symbol == given : place < below + s->frequency) {
                const int symbol = s->symbol;
                take(r, below, s->frequency, encodes);
                if (see->shift < PERIOD && --see->count == 0) {
                    see->sum = (u16)(see->sum << 1);
                    see->count = (u8)(3 << see->shift++);
                }
                m->found = (i32)(s - m->units);
                c->sum += 4;
                if ((s->frequency += 4) > MOST_FREQUENCY) rescale(m);
                m->run = m->first_run;
                update(m);
                return symbol;
            }
            below += s->frequency;
        }
        take(r, all, escape, encodes);
        see->sum = (u16)(see->sum + total);
        for (int i = 0; i < c->count; i++) masked[first[i].symbol] = epoch;
    }
}

static int fits(i64 size, const void *room, i64 room_size) { return room && nnfs_ppm_size(size) > 0 && room_size >= nnfs_ppm_size(size); }

// Encode `size` bytes to `out`; return how many bytes that takes, -1 if there are not so many or for impossible numbers.
EXPORT i64 nnfs_ppm_encode(u8 *room, i64 room_size, const u8 *plain, i64 size, u8 *out, i64 out_size) {
    if (!fits(size, room, room_size) || out_size < 0) return -1;
    Model *m = (Model *)(void *)room;
    Range r = {.range = 0xFFFFFFFF, .out = out, .size = out_size};
    start(m, size);
    for (i64 i = 0; i < size; i++)
        if (code_symbol(m, &r, plain[i], 1) < 0 || m->failed || r.at > r.size) return -1;
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
        const int symbol = code_symbol(m, &r, 0, 0);
        if (symbol < 0 || m->failed || r.at > r.size + 4) return BAD_ARGUMENT;
        plain[i] = (u8)symbol;
    }
    return r.code || r.at < r.size ? BAD_ARGUMENT : OK;
}
