/* A node's TrueTime clock: one struct clock per node (several nodes may share a process).
 *
 *   emulated   True time is CLOCK_REALTIME itself, so that all processes of one machine agree on it
 * to the nanosecond without sharing anything (an anchor of its own per process would differ by the
 * error of taking it, and for ever). The node's clock reads true time plus an offset and a drift
 * that can be set at run time; interval = reading -/+ epsilon. system     CLOCK_REALTIME -/+ the
 * kernel's error bound (adjtimex maxerror, growing by 500 ppm between polls), never less than the
 * configured epsilon. fixed      What clock_fixed_set says; until its first call CLOCK_REALTIME.
 * Nothing is checked.
 *
 * clock_now is for every turn of every worker: two vDSO clock readings (REALTIME and MONOTONIC), no
 * system call, no lock; a writer that is stopped in the middle holds up no reader. Everything else
 * is rare and takes a small lock. clock_refresh must be called about once a second by somebody.
 *
 * A step of CLOCK_REALTIME is noticed by the very clock_now that would have used it (rule B8): that
 * call and all later ones answer along the old line with state fenced, until clock_refresh has seen
 * the clock quiet for long enough. */
#ifndef SPAN_TRUETIME_CLOCK_H
#define SPAN_TRUETIME_CLOCK_H

#include "base/status.h"
#include "truetime/clock_model.h"
#include "truetime/clock_state.h"

enum clock_source { CLOCK_SOURCE_EMULATED, CLOCK_SOURCE_SYSTEM, CLOCK_SOURCE_FIXED };

/* The machine's clocks. clock_os() gives the real ones; tests and the simulator give their own. The
 * functions are called from any thread. */
struct clock_os {
    void (*read)(void *ctx, struct clock_raw *out);
    void (*sample)(void *ctx, struct clock_sample *out);
    /* The kernel's bound of its clock's error. */
    void (*kernel_error)(void *ctx, uint64_t *error_ns, bool *unsynced);
    void *ctx;
};

/* Static storage; clock_os.c is the only reader of the system's clocks. */
const struct clock_os *clock_os(void);
/* CLOCK_MONOTONIC, the same line as tt_now.mono_ns of every real clock. */
uint64_t clock_os_mono_ns(void);

struct clock_options {
    enum clock_source source;
    uint64_t epsilon_ns;       /* EPSILON_NS_DEFAULT */
    uint64_t epsilon_max_ns;   /* EPSILON_NS_MAX; above it the node serves stale reads only */
    uint64_t quiet_ns;         /* CLOCK_QUIET_NS_DEFAULT */
    int64_t offset_ns;         /* emulated only */
    int64_t drift_ppb;         /* emulated only */
    unsigned peer_count;       /* nodes of the cluster but this one */
    const struct clock_os *os; /* NULL: the machine's; borrowed for the clock's life */
};

struct clock;

void clock_options_init(struct clock_options *o);
/* INVALID when the lease is shorter than 10 x epsilon (rule B10), epsilon is 0, or it is above
 * EPSILON_NS_MAX; the text names the values. Pure. */
SPAN_CHECKED span_status clock_epsilon_check(uint64_t epsilon_ns, uint64_t lease_ns,
                                             struct span_error *err);
/* "emulated", "system", "fixed"; false if text is none of them. */
bool clock_source_parse(const char *text, enum clock_source *out);
const char *clock_source_name(enum clock_source source);

/* INVALID: epsilon above epsilon_max, or an offset or drift without source emulated. */
SPAN_CHECKED span_status clock_new(const struct clock_options *o, struct clock **out,
                                   struct span_error *err);
/* Nobody may be using it. NULL is ignored. */
void clock_free(struct clock *c);

/* Any thread, lock-free. Call it after the event was taken from its queue (rule A3). earliest never
 * runs backward: a call that begins after another has returned gets an earliest at least as late.
 */
void clock_now(struct clock *c, struct tt_now *out);
/* True time as far as this process can know it: exact for emulated and fixed. For tests, checkers
 * and the console, never for the protocol. Any thread. */
struct tt_ts clock_true_now(struct clock *c);

/* Looks at the kernel's error bound, at steps, at evidence from peers, and steps the state. About
 * once a second. Any thread. Logs changes to and from the two bad states. Returns the state. */
enum clock_state clock_refresh(struct clock *c);

/* Raised at once, lowered when the old bound has passed (2 x old epsilon later; nobody needs to
 * wait for it). INVALID above epsilon_max. Any thread. */
SPAN_CHECKED span_status clock_set_epsilon(struct clock *c, uint64_t epsilon_ns,
                                           struct span_error *err);
/* Offset and drift of the emulated clock from now on, also beyond epsilon: that is the fault to be
 * injected. UNSUPPORTED for other sources. Any thread. */
SPAN_CHECKED span_status clock_set_error(struct clock *c, int64_t offset_ns, int64_t drift_ppb,
                                         struct span_error *err);
/* UNSUPPORTED unless fixed. mono_ns may not run backward. */
SPAN_CHECKED span_status clock_fixed_set(struct clock *c, uint64_t real_ns, uint64_t mono_ns);
void clock_set_peer_count(struct clock *c, unsigned peer_count);

/* ---- evidence from peers (rule B8); any thread, lock-free; peer is a node id, 1 .. LIMIT_PEERS
 * ---- */

/* A message of `peer` carried `sent`, its interval at sending; now was read after it arrived.
 * False: one of the two clocks is out (our latest lies before its earliest), refuse the timestamps
 * of that message. */
bool clock_note_message(struct clock *c, unsigned peer, const struct tt_interval *sent,
                        const struct tt_now *now);
/* An answer of `peer` carried `answer`, its interval at answering; `asked` was ours when the
 * question left, now was read after the answer came. False as above. This one finds a clock of ours
 * that is fast, which no single message can. */
bool clock_note_round_trip(struct clock *c, unsigned peer, const struct tt_interval *asked,
                           const struct tt_interval *answer, const struct tt_now *now);
/* This node promised something until `until` (a lease grant): it does not come back from fenced or
 * stale-reads-only before that has passed (rule B9). Any thread, lock-free. */
void clock_note_promise(struct clock *c, struct tt_ts until);

/* ---- to show ---- */

struct clock_info {
    enum clock_source source;
    enum clock_state state;
    char reason[200]; /* "" while synced */
    uint64_t state_for_ns;
    uint64_t state_changes;
    uint64_t epsilon_ns;        /* in force */
    uint64_t epsilon_wanted_ns; /* configured; smaller while lowering waits for the old bound */
    uint64_t epsilon_max_ns;
    int64_t offset_ns; /* emulated error now, drift included */
    int64_t drift_ppb;
    unsigned conflicts; /* peers in conflict */
    unsigned peers;
    struct tt_now now;
};

/* Any thread. */
void clock_info_get(struct clock *c, struct clock_info *out);

#endif
