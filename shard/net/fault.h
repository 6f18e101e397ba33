/* What the fault hooks do with one message: a pure decision from the faults set, random numbers and
 * the time. The transport carries it out. */
#ifndef SPAN_SHARD_NET_FAULT_H
#define SPAN_SHARD_NET_FAULT_H

#include "base/rng.h"
#include "base/status.h"
#include "shard/net/transport.h"

/* Faults of one link in one direction. */
struct fault_path {
    struct transport_fault_path set;
    uint64_t last_due_ns; /* delivery time of the latest message that keeps the order */
    uint64_t held;        /* messages held back now: what comes must queue behind them */
};

struct fault_verdict {
    unsigned copies;    /* 0: dropped; 2: duplicated */
    uint64_t due_ns[2]; /* when each copy goes on; not after `now`: at once */
};

/* INVALID unless probabilities are in 0..1 and delays at most a minute. */
SPAN_CHECKED span_status fault_check(const struct transport_fault *f, struct span_error *err);

struct fault_verdict fault_decide(struct fault_path *p, struct rng *r, uint64_t now_ns);

#endif
