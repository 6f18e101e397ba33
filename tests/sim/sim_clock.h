/* A node's clock: the product's (truetime/clock.h) over simulated system clocks. Inside the bound
 * an offset drifts and turns round at the ends; true time is known, so that it can be checked to
 * lie in every interval. Beyond the bound:
 *
 *   step   CLOCK_REALTIME is set: against CLOCK_MONOTONIC it has jumped, which the node sees itself
 *   run    the oscillator is out, both lines run away at a rate: only the peers can show it, as
 *          they must where a machine starts with a wrong clock */
#ifndef SPAN_TESTS_SIM_SIM_CLOCK_H
#define SPAN_TESTS_SIM_SIM_CLOCK_H

#include "base/rng.h"
#include "truetime/clock.h"

struct sim_clock {
    uint64_t epsilon_ns;
    int64_t offset_ns; /* inside the bound */
    int64_t drift_ppb;
    uint64_t read_at_ns;
    int64_t step_ns;     /* of the real line alone */
    int64_t run_ns;      /* both lines are out by so much ... */
    int64_t run_goal_ns; /* ... on the way to this ... */
    uint64_t run_ppb;    /* ... at this rate */
    bool faulted;        /* it was beyond its bound, ever */

    struct clock *clock; /* of the process; NULL while there is none */
    struct clock_os os;
    struct clock_raw raw; /* what os reads */
    uint64_t refresh_ns;
};

/* At an end of the interval or in its middle: the ends are the interesting places. */
void sim_clock_init(struct sim_clock *c, struct rng *r, uint64_t epsilon_ns, uint64_t true_ns);
/* The process starts and ends; times as for sim_clock_read. */
void sim_clock_start(struct sim_clock *c, struct rng *r, uint64_t true_ns, uint64_t mono_ns,
                     unsigned peer_count);
void sim_clock_stop(struct sim_clock *c);
/* mono_ns is the node's CLOCK_MONOTONIC if its oscillator were right, and what *out says: the
 * simulator's own timers go by it. */
void sim_clock_read(struct sim_clock *c, struct rng *r, uint64_t true_ns, uint64_t mono_ns,
                    struct tt_now *out);
/* Between turns, now and then: what shard/node.c does once a second. */
void sim_clock_refresh(struct sim_clock *c, const struct tt_now *now);
/* Rule B8 (store_io.peer_clock). */
bool sim_clock_peer(struct sim_clock *c, const struct tt_now *now, unsigned peer,
                    const struct tt_interval *sent, const struct tt_interval *asked);

/* ---- beyond the bound ---- */

void sim_clock_step(struct sim_clock *c, int64_t by_ns);
/* Both lines go to goal_ns off at the rate; rate 0: they are there at once (only while the node is
 * down). */
void sim_clock_run(struct sim_clock *c, int64_t goal_ns, uint64_t ppb);
/* Somebody repairs it: stepped back, and the lines run back (at once while the node is down). */
void sim_clock_repair(struct sim_clock *c);

#endif
