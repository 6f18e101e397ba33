/* Delays, loss, doubles, cuts; see sim_net.h. */
#include "tests/sim/sim_net.h"

#include <string.h>

static uint64_t arrival(struct sim_net *n, struct rng *r, uint64_t now_ns)
{
    uint64_t delay = rng_between(r, n->delay_min_ns, n->delay_max_ns);
    if (rng_double(r) < n->slow) {
        delay += rng_below(r, n->slow_ns + 1);
        n->slow_frames++;
    }
    return now_ns + delay;
}

size_t sim_net_send(struct sim_net *n, struct rng *r, uint64_t now_ns, unsigned from, unsigned to,
                    unsigned cls, uint64_t at_ns[2])
{
    if (n->cut[from][to]) {
        n->cut_frames++;
        return 0;
    }
    if (rng_double(r) < n->loss) {
        n->lost_frames++;
        return 0;
    }
    at_ns[0] = arrival(n, r, now_ns) + n->late_ns[from][to];
    uint64_t *last = &n->last_arrival_ns[from][to][cls];
    if (!n->reorder) {
        at_ns[0] = at_ns[0] <= *last ? *last + 1 : at_ns[0];
    }
    n->overtaking_frames += at_ns[0] < *last ? 1 : 0;
    *last = at_ns[0] > *last ? at_ns[0] : *last;
    if (rng_double(r) >= n->dup) {
        return 1;
    }
    at_ns[1] = arrival(n, r, now_ns) + 1;
    at_ns[1] += rng_below(r, n->dup_late_ns);
    n->doubled_frames++;
    return 2;
}

void sim_net_heal(struct sim_net *n)
{
    memset(n->cut, 0, sizeof n->cut);
    memset(n->late_ns, 0, sizeof n->late_ns);
    n->loss = 0;
    n->dup = 0;
    n->slow = 0;
    n->reorder = false;
}
