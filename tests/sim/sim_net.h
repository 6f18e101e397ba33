/* The simulated network: when a frame arrives, how often, or not at all. Frames of one ordered pair
 * of nodes and one class arrive in order unless `reorder`; a doubled one comes a second time, late,
 * out of any order. */
#ifndef SPAN_TESTS_SIM_SIM_NET_H
#define SPAN_TESTS_SIM_SIM_NET_H

#include "base/rng.h"

#include <stdbool.h>
#include <stddef.h>

#define SIM_NODES_MAX 7

struct sim_net {
    uint64_t delay_min_ns;
    uint64_t delay_max_ns;
    double slow; /* share of frames that take up to slow_ns more */
    uint64_t slow_ns;
    double loss;
    double dup; /* share of frames delivered twice, the second up to dup_late_ns later */
    uint64_t dup_late_ns;
    bool reorder;
    uint64_t late_ns[SIM_NODES_MAX + 1][SIM_NODES_MAX + 1]; /* more, from -> to */
    bool cut[SIM_NODES_MAX + 1][SIM_NODES_MAX + 1];         /* from, to */
    uint64_t last_arrival_ns[SIM_NODES_MAX + 1][SIM_NODES_MAX + 1][2];

    uint64_t cut_frames; /* lost in a cut */
    uint64_t lost_frames;
    uint64_t slow_frames;
    uint64_t doubled_frames;
    uint64_t overtaking_frames;
};

/* Arrival times of a frame sent now; returns how many (0: lost). */
size_t sim_net_send(struct sim_net *n, struct rng *r, uint64_t now_ns, unsigned from, unsigned to,
                    unsigned cls, uint64_t at_ns[2]);
/* No cuts, loss, doubles, slow frames or reordering any more. */
void sim_net_heal(struct sim_net *n);

#endif
