/* A node's TrueTime: an offset inside +-epsilon, drifting, turning round at the bounds. True time
 * is known, so that it can be checked to lie in every interval. */
#ifndef SPAN_TESTS_SIM_SIM_CLOCK_H
#define SPAN_TESTS_SIM_SIM_CLOCK_H

#include "base/rng.h"
#include "truetime/truetime.h"

struct sim_clock {
    uint64_t epsilon_ns;
    int64_t offset_ns;
    int64_t drift_ppb;
    uint64_t read_at_ns;
    uint64_t earliest_ns; /* never runs backward (rule B10) */
};

/* At an end of the interval or in its middle: the ends are the interesting places. */
void sim_clock_init(struct sim_clock *c, struct rng *r, uint64_t epsilon_ns, uint64_t true_ns);
struct tt_interval sim_clock_read(struct sim_clock *c, struct rng *r, uint64_t true_ns);

#endif
