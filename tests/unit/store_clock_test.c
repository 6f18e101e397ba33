/* Rule B8 end to end: stores that exchange heartbeats on virtual time, each with a real struct
 * clock that judges what the intervals in them say. The clocks' own readings are not used: a node's
 * time is the simulator's, its state is what its clock has come to. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/log.h"
#include "tests/lib/store_sim.h"
#include "truetime/clock.h"
#include "txn/txn_codec.h"

#include <criterion/criterion.h>
#include <stdio.h>

struct world {
    struct sim sim;
    struct clock_os os;      /* the simulator's time */
    struct clock *clocks[4]; /* by node */
    node_id deaf;            /* answers to its heartbeats do not reach this node; 0: none */
    node_id not ;            /* leader that is not meant */
};

static void os_read(void *ctx, struct clock_raw *out)
{
    const struct sim *s = ctx;
    out->mono_ns = s->now_ns;
    out->real_ns = s->now_ns;
}

static void os_sample(void *ctx, struct clock_sample *out)
{
    const struct sim *s = ctx;
    *out = (struct clock_sample){
        .real_ns = s->now_ns, .mono_ns = s->now_ns, .boot_ns = s->now_ns, .uncertainty_ns = 50};
}

static void os_error(void *ctx, uint64_t *error_ns, bool *unsynced)
{
    (void)ctx;
    *error_ns = 0;
    *unsynced = false;
}

static bool peer_clock(void *ctx, struct sim_node *n, const struct tt_now *now, node_id peer,
                       const struct tt_interval *sent, const struct tt_interval *asked)
{
    struct world *w = ctx;
    struct clock *c = w->clocks[n->id];
    struct tt_now state;
    bool fine = asked == NULL ? clock_note_message(c, peer, sent, now)
                              : clock_note_round_trip(c, peer, asked, sent, now);
    clock_now(c, &state);
    n->state = state.state;
    return fine;
}

static bool filter(void *ctx, node_id from, node_id to, uint8_t kind, struct slice body)
{
    const struct world *w = ctx;
    (void)from;
    (void)body;
    return kind != MSG_HEARTBEAT_ACK || to != w->deaf;
}

static node_id leader(struct world *w)
{
    node_id found = 0;
    for (node_id i = 1; i <= 3; i++) {
        struct arena a = {0};
        struct range_descriptor *d;
        size_t count = store_descriptors(w->sim.nodes[i].store, &a, &d);
        for (size_t k = 0; k < count; k++) {
            found = d[k].range == 2 && d[k].leader == i ? i : found;
        }
        arena_deinit(&a);
    }
    return found;
}

static bool is_led(void *ctx)
{
    struct world *w = ctx;
    node_id n = leader(w);
    return n != 0 && n != w->not ;
}

static struct world *world_new(uint64_t seed)
{
    struct world *w = SPAN_NEW(struct world);
    struct clock_options o;
    log_set_level(LOG_ERROR);
    sim_init(&w->sim, seed, 3);
    w->os = (struct clock_os){os_read, os_sample, os_error, &w->sim};
    clock_options_init(&o);
    o.peer_count = 2;
    o.os = &w->os;
    for (node_id i = 1; i <= 3; i++) {
        cr_assert_eq(clock_new(&o, &w->clocks[i], NULL), SPAN_OK);
    }
    for (node_id i = 1; i <= 3; i++) {
        w->sim.nodes[i].offset_ns = 0;
    }
    w->sim.peer_clock = peer_clock;
    w->sim.filter = filter;
    w->sim.ctx = w;
    sim_boot(&w->sim);
    for (node_id i = 1; i <= 3; i++) {
        store_set_balance(w->sim.nodes[i].store, false);
    }
    cr_assert(sim_run_until(&w->sim, is_led, w, 10 * SEC_NS));
    sim_run_for(&w->sim, SEC_NS);
    return w;
}

static void world_free(struct world *w)
{
    sim_deinit(&w->sim);
    for (node_id i = 1; i <= 3; i++) {
        clock_free(w->clocks[i]);
    }
    span_free(w);
}

static unsigned conflicts(struct world *w, node_id n)
{
    struct clock_info info;
    clock_info_get(w->clocks[n], &info);
    return info.conflicts;
}

static void expect_states(struct world *w, node_id fenced)
{
    for (node_id i = 1; i <= 3; i++) {
        cr_assert_eq(w->sim.nodes[i].state, i == fenced ? CLOCK_FENCED : CLOCK_SYNCED, "node %u",
                     i);
    }
}

Test(store_clock, good_clocks_never_contradict_each_other)
{
    struct world *w = world_new(1);
    for (node_id i = 1; i <= 3; i++) { /* the ends of what is allowed */
        w->sim.nodes[i].offset_ns = i == 1 ? 1000000 : i == 2 ? -1000000 : 0;
    }
    sim_run_for(&w->sim, 3 * SEC_NS);
    expect_states(w, 0);
    cr_assert_eq(conflicts(w, 1) + conflicts(w, 2) + conflicts(w, 3), 0);
    world_free(w);
}

Test(store_clock, the_answers_to_its_heartbeats_fence_a_leader_whose_clock_is_fast)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct world *w = world_new(seed);
        node_id fast = leader(w);
        w->sim.nodes[fast].offset_ns = 20 * (int64_t)MS_NS;
        w->deaf = fast;
        sim_run_for(&w->sim, 2 * LEASE_RENEW_NS);
        expect_states(w, 0); /* no message that reaches it shows it, and the others are two */
        cr_assert_eq(conflicts(w, fast), 0);
        cr_assert_eq(conflicts(w, fast % 3 + 1), 1, "each of them knows of one that is ahead");
        w->deaf = 0;
        sim_run_for(&w->sim, 2 * LEASE_RENEW_NS);
        expect_states(w, fast);
        cr_assert_eq(conflicts(w, fast), 2, "seed %llu", (unsigned long long)seed);
        w->not = fast;
        cr_assert(sim_run_until(&w->sim, is_led, w, 2 * SEC_NS), "another one leads soon");
        sim_run_for(&w->sim, 3 * SEC_NS);
        cr_assert_neq(leader(w), fast, "and goes on leading");
        expect_states(w, fast);
        world_free(w);
    }
}

Test(store_clock, heartbeats_fence_a_node_whose_clock_is_slow)
{
    struct world *w = world_new(9);
    node_id slow = leader(w) % 3 + 1;
    w->sim.nodes[slow].offset_ns = -20 * (int64_t)MS_NS;
    w->deaf = slow; /* the heartbeats of the others are enough */
    sim_run_for(&w->sim, 100 * MS_NS);
    expect_states(w, slow);
    world_free(w);
}
