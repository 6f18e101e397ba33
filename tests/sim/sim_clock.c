/* Offsets and drift; see sim_clock.h. */
#include "tests/sim/sim_clock.h"

#include "base/invariant.h"

#define DRIFT_PPB 200000

static int64_t bound_of(const struct sim_clock *c)
{
    return (int64_t)(c->epsilon_ns - c->epsilon_ns / 16);
}

void sim_clock_init(struct sim_clock *c, struct rng *r, uint64_t epsilon_ns, uint64_t true_ns)
{
    *c = (struct sim_clock){.epsilon_ns = epsilon_ns, .read_at_ns = true_ns};
    uint64_t how = rng_below(r, 3);
    c->offset_ns = how == 0 ? bound_of(c) : how == 1 ? -bound_of(c) : 0;
    c->drift_ppb = (int64_t)rng_below(r, 2 * DRIFT_PPB) - DRIFT_PPB;
}

struct tt_interval sim_clock_read(struct sim_clock *c, struct rng *r, uint64_t true_ns)
{
    int64_t dt = (int64_t)(true_ns - c->read_at_ns);
    c->read_at_ns = true_ns;
    c->offset_ns += dt / 1000 * c->drift_ppb / 1000000;
    int64_t bound = bound_of(c);
    if (c->offset_ns > bound || c->offset_ns < -bound) {
        c->offset_ns = c->offset_ns > 0 ? bound : -bound;
        int64_t drift = (int64_t)rng_below(r, DRIFT_PPB);
        c->drift_ppb = c->offset_ns > 0 ? -drift : drift;
    }
    uint64_t reading = (uint64_t)((int64_t)true_ns + c->offset_ns);
    struct tt_interval i = {.earliest = {reading - c->epsilon_ns},
                            .latest = {reading + c->epsilon_ns}};
    i.earliest.ns = i.earliest.ns < c->earliest_ns ? c->earliest_ns : i.earliest.ns;
    c->earliest_ns = i.earliest.ns;
    INVARIANT(i.earliest.ns <= true_ns);
    INVARIANT(i.latest.ns >= true_ns);
    return i;
}
