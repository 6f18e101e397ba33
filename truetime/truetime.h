/* TrueTime: a clock that answers with an interval that holds true time (Spanner, section 3).
 *
 * This header is the vocabulary of every layer: timestamps, intervals, clock states, the two tests.
 * Pure code never reads a clock: it gets a struct tt_now inside its event, read after the event was
 * taken from its queue (rule A3). Timestamps are nanoseconds since the Unix epoch, TAI-like (no
 * leap seconds are handled here: the source smears). 0 is "none" and lies before everything. */
#ifndef SPAN_TRUETIME_TRUETIME_H
#define SPAN_TRUETIME_TRUETIME_H

#include <stdbool.h>
#include <stdint.h>

struct tt_ts {
    uint64_t ns;
};

struct tt_interval {
    struct tt_ts earliest;
    struct tt_ts latest;
};

/* Rule B9: what each state may do. */
enum clock_state {
    CLOCK_SYNCED,
    CLOCK_WIDENED,          /* epsilon larger than usual, up to epsilon_max: everything */
    CLOCK_STALE_READS_ONLY, /* hands leases over, grants no vote, still appends and promises */
    CLOCK_FENCED,           /* as before, without any client answer that needs a clock */
};

/* What an event carries. mono_ns goes on when the clock is fenced; it is for timers that are about
 * patience (retries, elections), never for timestamps or leases. */
struct tt_now {
    struct tt_interval tt;
    uint64_t mono_ns;
    enum clock_state state;
};

static inline struct tt_ts tt_ts_of(uint64_t ns)
{
    return (struct tt_ts){ns};
}

static inline bool tt_lt(struct tt_ts a, struct tt_ts b)
{
    return a.ns < b.ns;
}

static inline bool tt_le(struct tt_ts a, struct tt_ts b)
{
    return a.ns <= b.ns;
}

static inline struct tt_ts tt_max(struct tt_ts a, struct tt_ts b)
{
    return a.ns > b.ns ? a : b;
}

static inline struct tt_ts tt_min(struct tt_ts a, struct tt_ts b)
{
    return a.ns < b.ns ? a : b;
}

static inline struct tt_ts tt_add(struct tt_ts a, uint64_t ns)
{
    return (struct tt_ts){a.ns + ns};
}

static inline bool tt_is_none(struct tt_ts a)
{
    return a.ns == 0;
}

/* t has certainly passed. */
static inline bool tt_after(const struct tt_interval *i, struct tt_ts t)
{
    return i->earliest.ns > t.ns;
}

/* t has certainly not come yet. */
static inline bool tt_before(const struct tt_interval *i, struct tt_ts t)
{
    return i->latest.ns < t.ns;
}

#endif
