/* Commit wait at the node's mouth. See answer_gate.h. */
#include "coordinator/answer_gate.h"

#include "base/alloc.h"
#include "base/limits.h"
#include "base/planted.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <time.h>

#define NAP_NS_MAX                                                                                 \
    (50 * MS_NS)       /* a stop, a fence or a change of epsilon is noticed within this            \
                        */
#define MARGIN_NS 2000 /* wake a little late rather than early and sleep again */

struct answer_gate {
    struct clock *clock;
    bool skip;
    atomic_bool stopped;
    struct metric *answers;
    struct metric *waits;
    struct metric *seconds;
    struct metric *refused;
};

struct answer_gate *answer_gate_new(const struct answer_gate_options *opt)
{
    struct answer_gate *g = SPAN_NEW(struct answer_gate);
    g->clock = opt->clock;
    g->skip = opt->skip;
    if (opt->metrics != NULL) {
        g->answers = metrics_counter(opt->metrics, "spanlite_gate_answers_total", "",
                                     "Answers that depend on a timestamp.");
        g->waits = metrics_counter(opt->metrics, "spanlite_gate_waits_total", "",
                                   "Answers that had to wait for their timestamp to pass.");
        g->seconds = metrics_hist(opt->metrics, "spanlite_gate_wait_seconds", "",
                                  "Commit wait that consensus had not already covered.");
        g->refused = metrics_counter(opt->metrics, "spanlite_gate_refused_total", "",
                                     "Answers dropped because the clock could not vouch for them.");
    }
    return g;
}

void answer_gate_free(struct answer_gate *g)
{
    span_free(g);
}

void answer_gate_stop(struct answer_gate *g)
{
    atomic_store_explicit(&g->stopped, true, memory_order_relaxed);
}

/* The default slack of 50 us would be added to every commit's latency. */
static void precise_timers(void)
{
    static _Thread_local bool done;
    if (!done) {
        done = true;
        (void)prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    }
}

static void nap_until(uint64_t mono_ns)
{
    struct timespec ts = {(time_t)(mono_ns / SEC_NS), (long)(mono_ns % SEC_NS)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR) {
    }
}

enum gate_verdict answer_gate_look(const struct tt_now *now, struct tt_ts not_before,
                                   uint64_t *wait_ns)
{
    *wait_ns = 0;
    if (now->state == CLOCK_FENCED) {
        return GATE_SHUT;
    }
    if (tt_after(&now->tt, not_before) || PLANTED(COMMIT_WAIT_SKIPPED)) {
        return GATE_OPEN;
    }
    *wait_ns =
        now->tt.earliest.ns > not_before.ns ? NAP_NS_MAX : not_before.ns - now->tt.earliest.ns;
    return GATE_WAIT;
}

static bool wait_for(struct answer_gate *g, struct tt_now *now, struct tt_ts t)
{
    precise_timers();
    for (;;) {
        uint64_t left;
        enum gate_verdict v = answer_gate_look(now, t, &left);
        if (v != GATE_WAIT) {
            return v == GATE_OPEN;
        }
        if (atomic_load_explicit(&g->stopped, memory_order_relaxed)) {
            return false;
        }
        left += MARGIN_NS;
        nap_until(now->mono_ns + (left < NAP_NS_MAX ? left : NAP_NS_MAX));
        clock_now(g->clock, now);
    }
}

bool answer_gate_hold(void *gate, uint64_t not_before_ns)
{
    struct answer_gate *g = gate;
    metric_add(g->answers, 1);
    if (not_before_ns == 0 || g->skip) {
        return true;
    }
    struct tt_now now;
    uint64_t left;
    clock_now(g->clock, &now);
    struct tt_ts t = tt_ts_of(not_before_ns);
    if (answer_gate_look(&now, t, &left) == GATE_OPEN) {
        return true;
    }
    uint64_t began = now.mono_ns;
    bool ok = wait_for(g, &now, t);
    metric_add(ok ? g->waits : g->refused, 1);
    metric_observe_ns(g->seconds, now.mono_ns - began);
    return ok;
}

void answer_gate_refusal(void *gate, char *out, size_t size)
{
    struct answer_gate *g = gate;
    struct clock_info ci;
    clock_info_get(g->clock, &ci);
    if (ci.state == CLOCK_FENCED) {
        (void)snprintf(out, size, "this node's clock is fenced: %s", ci.reason);
    } else if (atomic_load_explicit(&g->stopped, memory_order_relaxed)) {
        out[0] = '\0';
    } else {
        (void)snprintf(out, size, "this node's clock was fenced");
    }
}
