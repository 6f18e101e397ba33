/* The choke point of answers: nothing before tt_after, not much later either. */
#include "base/limits.h"
#include "coordinator/answer_gate.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>

static struct clock *make_clock(enum clock_source source, uint64_t epsilon_ns)
{
    struct clock_options o;
    struct clock *c = NULL;
    struct span_error err = {0};
    clock_options_init(&o);
    o.source = source;
    o.epsilon_ns = epsilon_ns;
    cr_assert_eq(clock_new(&o, &c, &err), SPAN_OK, "%s", err.text);
    return c;
}

Test(answer_gate, holds_until_the_timestamp_is_certainly_past)
{
    struct clock *c = make_clock(CLOCK_SOURCE_EMULATED, 5 * MS_NS);
    struct metrics *m = metrics_new();
    struct answer_gate_options o = {.clock = c, .metrics = m};
    struct answer_gate *g = answer_gate_new(&o);
    uint64_t worst = 0;
    for (int i = 0; i < 20; i++) {
        struct tt_now now;
        clock_now(c, &now);
        uint64_t t = now.tt.latest.ns;
        cr_assert(answer_gate_hold(g, t));
        clock_now(c, &now);
        cr_assert(tt_after(&now.tt, tt_ts_of(t)));
        uint64_t late = now.tt.earliest.ns - t;
        worst = late > worst ? late : worst;
    }
    cr_assert_lt(worst, 50 * MS_NS, "%llu ns late", (unsigned long long)worst);
    cr_assert(answer_gate_hold(g, 1), "long past");
    cr_assert(answer_gate_hold(g, 0));
    struct metric *waits = metrics_counter(m, "spanlite_gate_waits_total", "", "");
    cr_assert_eq(metric_value(waits), 20);
    answer_gate_free(g);
    clock_free(c);
    metrics_free(m);
}

Test(answer_gate, skipping_waits_for_nothing)
{
    struct clock *c = make_clock(CLOCK_SOURCE_EMULATED, MS_NS);
    struct answer_gate_options o = {.clock = c, .skip = true};
    struct answer_gate *g = answer_gate_new(&o);
    struct tt_now now;
    clock_now(c, &now);
    cr_assert(answer_gate_hold(g, now.tt.latest.ns + 3600 * SEC_NS));
    answer_gate_free(g);
    clock_free(c);
}

struct holder {
    struct answer_gate *g;
    uint64_t t;
    atomic_bool result;
};

static void *hold_main(void *arg)
{
    struct holder *h = arg;
    atomic_store(&h->result, answer_gate_hold(h->g, h->t));
    return NULL;
}

Test(answer_gate, a_stop_lets_nothing_unvouched_out)
{
    struct clock *c = make_clock(CLOCK_SOURCE_EMULATED, MS_NS);
    struct answer_gate_options o = {.clock = c};
    struct answer_gate *g = answer_gate_new(&o);
    struct tt_now now;
    clock_now(c, &now);
    struct holder h = {.g = g, .t = now.tt.latest.ns + 3600 * SEC_NS, .result = true};
    pthread_t t;
    pthread_create(&t, NULL, hold_main, &h);
    answer_gate_stop(g);
    pthread_join(t, NULL);
    cr_assert_not(atomic_load(&h.result));
    cr_assert(answer_gate_hold(g, 1), "what is past may still be said");
    answer_gate_free(g);
    clock_free(c);
}

/* Rule B9: a fence lasts for seconds, so nobody is kept waiting for its end. */
Test(answer_gate, a_fence_refuses_at_once_and_says_why)
{
    struct clock *c = make_clock(CLOCK_SOURCE_EMULATED, MS_NS);
    struct answer_gate_options o = {.clock = c};
    struct answer_gate *g = answer_gate_new(&o);
    char why[300];
    struct tt_now now;
    clock_set_peer_count(c, 1);
    clock_now(c, &now);
    struct holder h = {.g = g, .t = now.tt.latest.ns + 3600 * SEC_NS, .result = true};
    pthread_t t;
    pthread_create(&t, NULL, hold_main, &h);
    struct tt_interval ahead = {{now.tt.latest.ns + SEC_NS}, {now.tt.latest.ns + SEC_NS + MS_NS}};
    clock_now(c, &now);
    cr_assert_not(clock_note_message(c, 1, &ahead, &now));
    cr_assert_eq(clock_refresh(c), CLOCK_FENCED);
    pthread_join(t, NULL);
    cr_assert_not(atomic_load(&h.result), "also one that waits already");
    cr_assert_not(answer_gate_hold(g, 1), "no answer that needs a clock");
    answer_gate_refusal(g, why, sizeof why);
    cr_assert(strstr(why, "fenced: the intervals of 1 of 1 peers contradict") != NULL, "%s", why);
    answer_gate_free(g);
    clock_free(c);
}

/* Rule B10: the bound in force when the wait ends. */
Test(answer_gate, a_wider_interval_makes_it_wait_longer)
{
    struct clock *c = make_clock(CLOCK_SOURCE_EMULATED, MS_NS);
    struct answer_gate_options o = {.clock = c};
    struct answer_gate *g = answer_gate_new(&o);
    struct span_error err = {0};
    struct tt_now now;
    clock_now(c, &now);
    struct holder h = {.g = g, .t = now.tt.latest.ns + 30 * MS_NS, .result = false};
    pthread_t t;
    pthread_create(&t, NULL, hold_main, &h);
    cr_assert_eq(clock_set_epsilon(c, 20 * MS_NS, &err), SPAN_OK);
    pthread_join(t, NULL);
    clock_now(c, &now);
    cr_assert(atomic_load(&h.result));
    cr_assert(tt_after(&now.tt, tt_ts_of(h.t)));
    answer_gate_free(g);
    clock_free(c);
}
