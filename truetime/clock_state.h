/* What a node's clock may be used for (rules B8, B9): pure.
 *
 *     synced <-> widened          at once, both may do everything
 *        \          |
 *         v         v
 *     stale-reads-only  ------>   fenced
 *            \                      |
 *             `---- quiet time -----'   back, straight to what the clock then deserves
 *
 * Worse takes effect with the observation that shows it. Better, out of stale-reads-only and
 * fenced, only after `quiet` without one observation as bad, and after the node's own promises have
 * passed.
 *
 * Two machines: struct clock_jump notices a step of CLOCK_REALTIME, struct clock_health decides the
 * state. One owner each; time arrives in the observation. */
#ifndef SPAN_TRUETIME_CLOCK_STATE_H
#define SPAN_TRUETIME_CLOCK_STATE_H

#include "truetime/truetime.h"

#include <stddef.h>

/* The paper's drift bound: 200 us a second. */
#define CLOCK_DRIFT_BOUND_PPB 200000
/* A difference between the two clocks that is never taken for a step. */
#define CLOCK_JUMP_SLACK_NS    100000
#define CLOCK_QUIET_NS_DEFAULT 5000000000ULL

/* "synced", "widened", "stale-reads-only", "fenced". Static storage. */
const char *clock_state_name(enum clock_state state);

/* ---- steps of CLOCK_REALTIME (rule B8) ----
 *
 * real - mono is constant in Linux but for three things: somebody set the clock, a leap second, or
 * the machine slept. Differences inside the drift bound are followed. A larger one is a jump: the
 * node goes on along the old line (anchor) while it is fenced. The jump ends when the old line is
 * met again, or when the new one has been kept for `quiet`, which is then adopted (somebody
 * corrected the clock; peers contradict if not). */
struct clock_jump {
    int64_t anchor_ns;       /* real - mono, as last believed */
    uint64_t anchor_mono_ns; /* when it was */
    int64_t asleep_ns;       /* boot - mono then: time the machine slept since it started */
    bool jumped;
    int64_t seen_ns;        /* while jumped: the new real - mono ... */
    uint64_t seen_since_ns; /* ... and since when it has been kept */
};

/* One careful look at the three clocks. */
struct clock_sample {
    uint64_t real_ns;
    uint64_t mono_ns;
    uint64_t boot_ns;
    uint64_t uncertainty_ns; /* the readings belong together but for so much */
};

void clock_jump_init(struct clock_jump *j, const struct clock_sample *s);
/* Largest |difference| from the anchor that is not a jump at mono_ns. */
uint64_t clock_jump_allowed(const struct clock_jump *j, uint64_t mono_ns);
/* Difference of a sample from the old line, 0 if inside the bound. Changes nothing. Sleep counts as
 * none: boot time goes on during it (see clock_jump_slept). */
int64_t clock_jump_size(const struct clock_jump *j, const struct clock_sample *s);
/* Time slept since the anchor was taken. */
uint64_t clock_jump_slept(const struct clock_jump *j, const struct clock_sample *s);
/* Real time along the old line. */
uint64_t clock_jump_real(const struct clock_jump *j, const struct clock_sample *s);
/* Takes a sample in; about once a second. Returns the jump seen (ns), 0 if none is open any more.
 */
int64_t clock_jump_step(struct clock_jump *j, const struct clock_sample *s, uint64_t quiet_ns);

/* ---- the state ---- */

/* Everything that bears on the state, at one moment. A zeroed one but for mono_ns is a good clock.
 */
struct clock_observation {
    uint64_t mono_ns;
    uint64_t epsilon_ns;       /* in force */
    uint64_t epsilon_usual_ns; /* configured; above it: widened */
    uint64_t epsilon_max_ns;   /* above it: stale-reads-only */
    int64_t jump_ns;    /* CLOCK_REALTIME against CLOCK_BOOTTIME beyond the drift bound; 0: none */
    uint64_t slept_ns;  /* the machine slept: its clock was set from the hardware's */
    uint64_t behind_ns; /* own latest lies so far before the own earliest seen before */
    bool unsynced;      /* the kernel says so (STA_UNSYNC or TIME_ERROR) */
    bool unbounded;     /* no error bound is known at all */
    unsigned conflicts; /* peers whose intervals contradict ours */
    unsigned peers;     /* all peers; a majority of them in conflict fences */
    bool promised;      /* a promise of this node has not passed yet */
};

struct clock_health {
    enum clock_state state;
    bool started;
    uint64_t since_mono_ns; /* when the state began */
    uint64_t
        better_since_ns; /* since when observations are better than the state; 0: they are not */
    uint64_t changes;    /* state changes since the start */
    char cause[128];     /* what the state follows from; "" while synced */
    char reason[200];    /* cause, or "3.2 of 5.0 s quiet after: " and the cause on the way back */
};

void clock_health_init(struct clock_health *h);
/* The state after this observation. The first one sets the state as it deserves. */
enum clock_state clock_health_step(struct clock_health *h, const struct clock_observation *o,
                                   uint64_t quiet_ns);

#endif
