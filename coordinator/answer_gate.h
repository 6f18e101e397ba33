/* The one choke point of answers (rule D0): no byte that depends on a timestamp leaves to a client
 * before tt_after(timestamp) by this node's clock. This is commit wait: it delays answers, never
 * locks, and what consensus took already counts.
 *
 * The calling session thread sleeps precisely (absolute clock_nanosleep with a timer slack of 1 ns)
 * and looks again, because epsilon may have changed meanwhile (rule B10: the bound in force at the
 * end counts). */
#ifndef SPAN_COORDINATOR_ANSWER_GATE_H
#define SPAN_COORDINATOR_ANSWER_GATE_H

#include "base/metrics.h"
#include "truetime/clock.h"

struct answer_gate;

struct answer_gate_options {
    struct clock *clock;     /* borrowed */
    struct metrics *metrics; /* may be NULL */
    bool skip; /* --unsafe-skip-commit-wait: nothing waits; the probe that must find inversions uses
                  it */
};

struct answer_gate *answer_gate_new(const struct answer_gate_options *opt);
void answer_gate_free(struct answer_gate *g); /* nobody is in hold any more */

/* What the gate says at a moment, without clock or sleep of its own (the simulator's gate, too). */
enum gate_verdict {
    GATE_OPEN,
    GATE_WAIT, /* look again after *wait_ns of this clock's time, if its bound stays as it is */
    GATE_SHUT, /* fenced: it cannot be told */
};

enum gate_verdict answer_gate_look(const struct tt_now *now, struct tt_ts not_before,
                                   uint64_t *wait_ns);

/* Returns when tt_after(not_before_ns); true. False, at once: it cannot be told, because the clock
 * is fenced (for seconds at least, rule B9) or the gate was stopped: nothing that depends on the
 * timestamp may be sent. Any thread; pg_listener's `hold` (ctx = gate). */
bool answer_gate_hold(void *gate, uint64_t not_before_ns);
/* Why it refused, for people; "" when it was stopped. Any thread. */
void answer_gate_refusal(void *gate, char *out, size_t size);
/* Later and waiting calls whose timestamp has not passed return false soon (within 50 ms). Any
 * thread. */
void answer_gate_stop(struct answer_gate *g);

#endif
