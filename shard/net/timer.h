/* One timer thread for all: a timerfd and a heap of deadlines. nng's own timers must not be used
 * (DESIGN section 4: one that fires spins a core for up to 1 ms and is 1 ms late); this thread is
 * about 25 us late and costs one wake-up per deadline.
 *
 * Nodes are intrusive and zeroed before first use. A callback runs on the timer thread and must be
 * short: it posts to a mailbox or re-arms; whatever it does delays every other deadline. */
#ifndef SPAN_SHARD_NET_TIMER_H
#define SPAN_SHARD_NET_TIMER_H

#include "base/heap.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct timer;
struct timer_node;

/* On the timer thread, without locks. The node is disarmed: it may be re-armed or freed in here. */
typedef void timer_fn(struct timer_node *n);

struct timer_node {
    struct heap_node heap; /* key: CLOCK_MONOTONIC deadline in ns */
    timer_fn *fn;
    bool canceling; /* a timer_cancel waits: arming is void */
};

/* Starts the thread. IO when the system gives no timerfd or thread. Owned by the caller. */
SPAN_CHECKED span_status timer_open(struct timer **out, struct span_error *err);
/* Stops and joins the thread. Nodes still armed are forgotten, their callbacks do not run. Not from
 * a callback. NULL is allowed. */
void timer_close(struct timer *t);

/* Any thread. Calls fn(n) once, as soon as CLOCK_MONOTONIC reaches at_ns (never before; at once
 * when it has passed). An armed node is re-armed. The node belongs to the timer until fn runs or
 * timer_cancel returns. */
void timer_at(struct timer *t, struct timer_node *n, uint64_t at_ns, timer_fn *fn);

/* Any thread. Disarms n and waits for a callback of n that is running; after it n is disarmed, even
 * if that callback re-armed it, and may be freed. From a callback it only disarms. True if the node
 * was armed. Do not call it holding a lock that n's callback takes. */
bool timer_cancel(struct timer *t, struct timer_node *n);

/* CLOCK_MONOTONIC now, ns. */
uint64_t timer_now_ns(void);

#endif
