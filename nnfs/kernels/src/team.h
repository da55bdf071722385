// Some threads that step one chunk together: each does a share of the work of every phase, and of the others' shares once
// its own is done.
//
// All of them walk through the same phases, so nobody directs: a phase is over when `done` has reached the number of all
// work items up to it. How many items a phase has must not depend on data: one that is late walks through phases that are
// over, and sees the data of later ones. Each has the same share every time, so that its weights stay in its own core's caches. A thread
// that is not running holds the others up only while it has an item in hand. They spin for that for tens of microseconds,
// then the first sleeps and has the others rest, for longer each time: where cores are shared, it works alone.
#ifndef TEAM_H
#define TEAM_H
#include "nnfs.h"
#include <errno.h>
#include <time.h>
#if defined __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined __x86_64__
#include <immintrin.h>
#endif

enum { MOST_TEAM = 4 };
enum { FIRST_SPINS = 300000, OTHERS_SPIN = 1000000 }; // nanoseconds before one sleeps. The mixer takes 20,000, alone
enum { LEAST_REST = 1, MOST_REST = 128, CALM = 20, CALMER = 8 }; // milliseconds; CALM and CALMER rests without a stall make rests short again

typedef struct {
    i64 phase, goal; // phases begun; work items up to the end of this one
    i64 rest, rested; // the last rest, and when it is over (milliseconds)
} ALIGNED Walk;

typedef struct Team {
    i64 members ALIGNED;
    u32 over;                                // no more work: whoever rests returns
    u32 away ALIGNED;                        // the first is between two calls
    i64 done ALIGNED;                        // work items, of all phases
    u32 waits ALIGNED;                       // the first sleeps until `done` moves
    u32 resting[MOST_TEAM];                  // milliseconds that a member is told to rest
    struct { u64 word ALIGNED; } claimed[MOST_TEAM]; // phase << 16 | how many of this member's share are taken
    Walk walks[MOST_TEAM];
} Team;

struct Member {
    Team *team; // or none: alone
    i64 me, phase, goal, tasks, finished;
};

INLINE i64 read64(const i64 *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
INLINE u32 read32(const u32 *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
INLINE int is_over(const Member *m) { return m->team && m->me && read32(&m->team->over); }

INLINE void pause_briefly(void) {
#if defined __x86_64__
    _mm_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

INLINE i64 nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (i64)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Sleep while `*word` is `value`, at most some milliseconds
static void sleep_on(u32 *word, u32 value, i64 most) {
    struct timespec t = {most / 1000, most % 1000 * 1000000};
#if defined __linux__
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &t, 0, 0);
#else
    if (read32(word) == value) nanosleep(&t, 0);
#endif
}

static void wake(u32 *word) {
#if defined __linux__
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, MOST_TEAM, 0, 0, 0);
#else
    (void)word;
#endif
}

// How long to rest after a stall: twice as long as the last time, unless that is a while ago
static i64 rest_after(Walk *w) {
    const i64 now = nanoseconds() / 1000000, next = now < w->rested + CALM + CALMER * w->rest ? 2 * w->rest : LEAST_REST;
    w->rest = next < LEAST_REST ? LEAST_REST : next < MOST_REST ? next : MOST_REST;
    w->rested = now + w->rest;
    return w->rest;
}

static void stall(Member *m) {
    Team *t = m->team;
    const i64 rest = rest_after(t->walks + m->me);
    if (m->me) {
        sleep_on(&t->over, 0, rest);
        return;
    }
    for (i64 i = 1; i < t->members; i++) __atomic_store_n(t->resting + i, (u32)rest, __ATOMIC_RELAXED);
    for (;;) {
        __atomic_store_n(&t->waits, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&t->done, __ATOMIC_SEQ_CST) >= m->goal) break;
        sleep_on(&t->waits, 1, 100);
    }
    __atomic_store_n(&t->waits, 0, __ATOMIC_RELAXED);
}

INLINE void publish(Member *m, i64 count) {
    if (!m->team) return;
    __atomic_fetch_add(&m->team->done, count, __ATOMIC_SEQ_CST);
    if (m->me && __atomic_load_n(&m->team->waits, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&m->team->waits, 0, __ATOMIC_SEQ_CST);
        wake(&m->team->waits);
    }
}

// A phase of some work items, at most 65,535; it ends with `settle`
INLINE void begin_phase(Member *m, i64 tasks) {
    m->tasks = tasks, m->finished = 0;
    if (!m->team) return;
    m->phase++, m->goal += tasks;
    u32 *resting = m->team->resting + m->me;
    if (m->me && read32(resting)) sleep_on(&m->team->over, 0, __atomic_exchange_n(resting, 0, __ATOMIC_RELAXED));
}

// Take work items, `from` to `to` - 1: alone all of them, in a team one of one's own share, else of another one
INLINE int claim(Member *m, i64 *from, i64 *to) {
    Team *t = m->team;
    if (!t) {
        *from = 0, *to = m->tasks, m->tasks = 0;
        return *to > 0;
    }
    for (i64 i = 0; i < t->members && !is_over(m); i++) {
        const i64 who = (m->me + i) % t->members, begin = m->tasks * who / t->members, end = m->tasks * (who + 1) / t->members;
        u64 *word = &t->claimed[who].word, seen = __atomic_load_n(word, __ATOMIC_ACQUIRE);
        while ((i64)(seen >> 16) <= m->phase) { // else this phase is over
            const i64 at = begin + ((i64)(seen >> 16) == m->phase ? (i64)(seen & 65535) : 0);
            if (at >= end) break;
            if (__atomic_compare_exchange_n(word, &seen, (u64)m->phase << 16 | (u64)(at - begin + 1), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
                *from = at, *to = at + 1, m->finished++;
                return 1;
            }
        }
    }
    if (m->finished) publish(m, m->finished);
    return 0;
}

// Wait until all work items of the phase are done
INLINE void settle(Member *m) {
    Team *t = m->team;
    i64 since = 0;
    if (!t) return;
    for (int spins = 1; read64(&t->done) < m->goal && !is_over(m); spins++) {
        pause_briefly();
        if (spins % 64) continue;
        const i64 now = nanoseconds();
        if (!since) since = now;
        const int is_between = m->me && read32(&t->away); // that the first is not there is no stall
        if (now - since < (m->me && !is_between ? OTHERS_SPIN : FIRST_SPINS)) continue;
        if (is_between) sleep_on(&t->away, 1, 100);
        else stall(m);
        since = 0;
    }
}

INLINE Member join(Team *t, i64 me) {
    if (t && !me) {
        __atomic_store_n(&t->away, 0, __ATOMIC_SEQ_CST);
        wake(&t->away);
    }
    return t ? (Member){t, me, t->walks[me].phase, t->walks[me].goal, 0, 0} : (Member){0};
}

INLINE void leave(const Member *m) {
    if (!m->team) return;
    m->team->walks[m->me].phase = m->phase, m->team->walks[m->me].goal = m->goal;
    if (!m->me) __atomic_store_n(&m->team->away, 1, __ATOMIC_SEQ_CST);
}
#endif
