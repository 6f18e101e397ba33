/* Members of a range change: rules F1 and F2 at the level of stores, one scenario each. Nodes 1 to
 * 3 begin the cluster, 4 joins it. Range 1 is left alone; range 2 is what changes. */
#include "base/alloc.h"
#include "tests/lib/store_sim.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <unistd.h>

struct world {
    struct sim sim;
    uint64_t next_id;
    uint64_t waiting;
    bool have;
    uint16_t status;
    struct buf value; /* of the last read */
    bool hold_gone;   /* MSG_GONE does not arrive ... */
    struct buf gone;  /* ... but the last one is kept */
};

static void on_gateway(void *ctx, struct sim_node *n, const struct tt_now *now, node_id from,
                       uint8_t kind, struct slice body)
{
    struct world *w = ctx;
    (void)n;
    (void)now;
    (void)from;
    struct arena a = {0};
    struct range_response r;
    if (kind == MSG_RESPONSE && msg_decode_response(body, &a, &r) == SPAN_OK &&
        r.request_id == w->waiting) {
        w->have = true;
        w->status = r.status;
        buf_clear(&w->value);
        if (r.row_count > 0) {
            buf_set(&w->value, r.rows[0].value);
        }
    }
    arena_deinit(&a);
}

static bool filter(void *ctx, node_id from, node_id to, uint8_t kind, struct slice body)
{
    struct world *w = ctx;
    (void)from;
    (void)to;
    if (kind == MSG_GONE && w->hold_gone) {
        buf_set(&w->gone, body);
        return false;
    }
    return true;
}

static struct world *world_new(uint64_t seed)
{
    struct world *w = SPAN_NEW(struct world);
    sim_init(&w->sim, seed, 4);
    w->sim.founders = 3;
    w->sim.states[4] = STORE_NODE_DRAINING; /* placement leaves everything alone */
    w->sim.on_gateway = on_gateway;
    w->sim.filter = filter;
    w->sim.ctx = w;
    sim_boot(&w->sim);
    return w;
}

static void world_free(struct world *w)
{
    sim_deinit(&w->sim);
    buf_deinit(&w->value);
    buf_deinit(&w->gone);
    span_free(w);
}

/* The descriptor of a range at a node; false: it has no replica. */
static bool descriptor_at(const struct world *w, node_id node, range_id range,
                          struct range_descriptor *out)
{
    struct arena a = {0};
    struct range_descriptor *d;
    const struct sim_node *n = &w->sim.nodes[node];
    size_t count = n->alive ? store_descriptors(n->store, &a, &d) : 0;
    bool found = false;
    for (size_t k = 0; k < count; k++) {
        if (d[k].range == range) {
            *out = d[k];
            found = true;
        }
    }
    arena_deinit(&a);
    return found;
}

static node_id leader_of(const struct world *w, range_id range)
{
    struct range_descriptor d;
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        if (descriptor_at(w, i, range, &d) && d.leader == i) {
            return i;
        }
    }
    return 0;
}

static bool leads(void *ctx)
{
    return leader_of(ctx, 1) != 0 && leader_of(ctx, 2) != 0;
}

static bool has_answer(void *ctx)
{
    struct world *w = ctx;
    return w->have;
}

/* Asks the range's leader until the answer is no invitation to try again. */
static uint16_t ask(struct world *w, struct range_request q)
{
    for (int tries = 0; tries < 200; tries++) {
        node_id to = leader_of(w, q.range);
        if (to == 0) {
            sim_run_for(&w->sim, 20 * MS_NS);
            continue;
        }
        q.request_id = w->waiting = ++w->next_id;
        q.gateway = to;
        q.incarnation = 1;
        q.may_wait = true;
        q.budget_ns = SEC_NS;
        q.txn = q.age =
            (struct txn_id){sim_clock(&w->sim.nodes[to]).tt.latest.ns, to, (uint32_t)w->next_id};
        w->have = false;
        struct buf b = {0};
        msg_encode_request(&b, &q);
        sim_local(&w->sim, to, buf_slice(&b));
        buf_deinit(&b);
        if (sim_run_until(&w->sim, has_answer, w, 2 * SEC_NS) && w->status != SPAN_NOT_LEADER &&
            w->status != SPAN_OVERLOADED && w->status != SPAN_UNAVAILABLE) {
            return w->status;
        }
        sim_run_for(&w->sim, 20 * MS_NS);
    }
    return SPAN_DEADLINE;
}

static struct slice key_of(uint8_t out[8], uint8_t n)
{
    static const uint8_t prefix[] = {0x01, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00};
    memcpy(out, prefix, 7);
    out[7] = n;
    return slice_of(out, 8);
}

static void put(struct world *w, range_id range, uint8_t key, const char *value)
{
    uint8_t kb[8];
    struct txn_write wr = {.key = key_of(kb, key), .value = slice_str(value)};
    struct range_request q = {
        .op = OP_COMMIT1, .range = range, .write_count = 1, .writes = &wr, .anchor = wr.key};
    cr_assert_eq(ask(w, q), SPAN_OK);
}

static void check_value(struct world *w, range_id range, uint8_t key, const char *value)
{
    uint8_t kb[8];
    struct read_span s = {.span = {.start = key_of(kb, key), .point = true}};
    struct range_request q = {.op = OP_READ,
                              .range = range,
                              .read_ts = tt_ts_of(w->sim.now_ns - MS_NS * 2),
                              .span_count = 1,
                              .spans = &s};
    sim_run_for(&w->sim, 10 * MS_NS);
    q.read_ts = tt_ts_of(w->sim.now_ns - 2 * MS_NS);
    cr_assert_eq(ask(w, q), SPAN_OK);
    cr_assert(slice_eq(buf_slice(&w->value), slice_str(value)));
}

static uint16_t change(struct world *w, range_id range, node_id add, node_id remove)
{
    struct range_request q = {
        .op = OP_MEMBERS, .range = range, .new_range = RANGE_MEMBERS(add, remove)};
    return ask(w, q);
}

/* Would the leader make this change if somebody asked for it? */
static uint16_t wish(struct world *w, range_id range, node_id add, node_id remove)
{
    struct range_request q = {.op = OP_MEMBERS,
                              .range = range,
                              .new_range = RANGE_MEMBERS(add, remove) | RANGE_MEMBERS_CHECK};
    return ask(w, q);
}

static void check_members(struct world *w, range_id range, const char *expected)
{
    struct range_descriptor d;
    char text[64] = "";
    size_t n = 0;
    cr_assert(descriptor_at(w, leader_of(w, range), range, &d));
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        for (size_t k = 0; k < d.member_count; k++) {
            n += d.members[k] == i ? (size_t)snprintf(text + n, sizeof text - n, "%u", i) : 0;
        }
    }
    cr_assert_str_eq(text, expected);
}

static size_t files_of(const struct world *w, node_id node, range_id range)
{
    char cmd[400];
    unsigned count = 0;
    (void)snprintf(cmd, sizeof cmd, "ls '%s' | grep -c '^r*0*%lu[-._]'", w->sim.nodes[node].dir,
                   (unsigned long)range);
    FILE *f = popen(cmd, "r");
    cr_assert_not_null(f);
    cr_assert_eq(fscanf(f, "%u", &count), 1);
    (void)pclose(f);
    return count;
}

static struct world *begin(uint64_t seed)
{
    struct world *w = world_new(seed);
    cr_assert(sim_run_until(&w->sim, leads, w, 10 * SEC_NS));
    return w;
}

Test(store_member, a_node_takes_the_place_of_another_and_the_old_files_go)
{
    struct world *w = begin(1);
    struct range_descriptor d;
    put(w, 2, 10, "a");
    node_id old = leader_of(w, 2) == 3 ? 2 : 3;
    cr_assert_gt(files_of(w, old, 2), 0);
    cr_assert_eq(change(w, 2, 4, old), SPAN_OK);
    check_members(w, 2, old == 3 ? "124" : "134");
    cr_assert(descriptor_at(w, 4, 2, &d));
    put(w, 2, 11, "b");
    check_value(w, 2, 10, "a");
    sim_run_for(&w->sim, 5 * SEC_NS);
    cr_assert_not(descriptor_at(w, old, 2, &d));
    cr_assert_eq(files_of(w, old, 2), 0);
    cr_assert(descriptor_at(w, old, 1, &d)); /* the other range is none of its business */
    /* It stays gone through a restart; the others go on from their files. */
    for (node_id i = 1; i <= 4; i++) {
        sim_crash(&w->sim, i);
    }
    for (node_id i = 1; i <= 4; i++) {
        sim_restart(&w->sim, i);
    }
    cr_assert(sim_run_until(&w->sim, leads, w, 10 * SEC_NS));
    cr_assert_not(descriptor_at(w, old, 2, &d));
    check_value(w, 2, 11, "b");
    world_free(w);
}

Test(store_member, the_leader_hands_over_before_it_is_removed)
{
    struct world *w = begin(2);
    node_id old = leader_of(w, 2);
    put(w, 2, 10, "a");
    cr_assert_eq(change(w, 2, 4, old), SPAN_OK);
    cr_assert_neq(leader_of(w, 2), old);
    check_value(w, 2, 10, "a");
    sim_run_for(&w->sim, 5 * SEC_NS);
    struct range_descriptor d;
    cr_assert_not(descriptor_at(w, old, 2, &d));
    world_free(w);
}

/* Rule F2, in the shape that a running system gives it: removed while it could not hear of it. */
Test(store_member, one_that_was_removed_unheard_disturbs_nobody_and_goes_when_it_asks)
{
    struct world *w = begin(3);
    put(w, 2, 10, "a");
    node_id old = leader_of(w, 2) == 3 ? 2 : 3;
    for (node_id i = 1; i <= 4; i++) {
        w->sim.cut[old][i] = w->sim.cut[i][old] = true;
    }
    sim_run_for(&w->sim, 2 * SEC_NS); /* it stands in vain all the time */
    cr_assert_eq(change(w, 2, 4, old), SPAN_OK);
    put(w, 2, 11, "b");
    node_id leader = leader_of(w, 2);
    struct range_descriptor d;
    cr_assert(descriptor_at(w, old, 2, &d));
    memset(w->sim.cut, 0, sizeof w->sim.cut);
    for (int i = 0; i < 50; i++) {
        sim_run_for(&w->sim, 100 * MS_NS);
        cr_assert_eq(leader_of(w, 2), leader);
    }
    cr_assert_not(descriptor_at(w, old, 2, &d));
    check_value(w, 2, 11, "b");
    world_free(w);
}

/* A node added again is not thrown out by an answer that was on its way. */
Test(store_member, a_node_can_be_removed_and_added_again_at_once)
{
    struct world *w = begin(4);
    put(w, 2, 10, "a");
    for (int i = 0; i < 12; i++) {
        node_id other = leader_of(w, 2) == 3 ? 2 : 3;
        cr_assert_eq(change(w, 2, 0, other), SPAN_OK);
        sim_run_for(&w->sim, (uint64_t)i * 100 * MS_NS);
        put(w, 2, (uint8_t)(20 + i), "x");
        cr_assert_eq(change(w, 2, other, 0), SPAN_OK);
        check_members(w, 2, "123");
    }
    check_value(w, 2, 10, "a");
    check_value(w, 2, 31, "x");
    world_free(w);
}

Test(store_member, an_answer_from_before_it_was_added_again_throws_nobody_out)
{
    struct world *w = begin(9);
    struct range_descriptor d;
    put(w, 2, 10, "a");
    node_id old = leader_of(w, 2) == 3 ? 2 : 3;
    w->hold_gone = true;
    cr_assert_eq(change(w, 2, 4, old), SPAN_OK);
    sim_run_for(&w->sim, 6 * SEC_NS); /* it asks, and is not told */
    cr_assert_gt(w->gone.size, 0);
    cr_assert(descriptor_at(w, old, 2, &d));
    cr_assert_eq(change(w, 2, old, 4), SPAN_OK);
    check_members(w, 2, "123");
    struct sim_node *n = &w->sim.nodes[old];
    struct tt_now now = sim_clock(n);
    store_message(n->store, &now, leader_of(w, 2), MSG_GONE, buf_slice(&w->gone));
    sim_turn_end(n, &now);
    cr_assert(descriptor_at(w, old, 2, &d));
    sim_run_for(&w->sim, SEC_NS);
    cr_assert(descriptor_at(w, old, 2, &d));
    world_free(w);
}

/* Rule F1: [left] splits, the node leaves the right side, crashes, and replays the split. */
Test(store_member, a_split_replayed_does_not_bring_back_a_replica_that_was_removed)
{
    struct world *w = begin(5);
    struct range_descriptor d;
    w->sim.flush_bytes = 64 * MIB;
    uint8_t kb[8];
    struct read_span s = {.span = {.start = key_of(kb, 50), .point = true}};
    struct range_request q = {
        .op = OP_SPLIT, .range = 2, .span_count = 1, .spans = &s, .new_range = 3};
    cr_assert_eq(ask(w, q), SPAN_OK);
    put(w, 3, 60, "a");
    node_id old = leader_of(w, 3) == 3 ? 2 : 3;
    cr_assert(descriptor_at(w, old, 3, &d));
    cr_assert_eq(change(w, 3, 4, old), SPAN_OK);
    sim_run_for(&w->sim, 5 * SEC_NS);
    cr_assert_not(descriptor_at(w, old, 3, &d));
    sim_crash(&w->sim, old);
    sim_restart(&w->sim, old);
    for (int i = 0; i < 20; i++) {
        sim_run_for(&w->sim, 50 * MS_NS);
        cr_assert_not(descriptor_at(w, old, 3, &d));
    }
    cr_assert(descriptor_at(w, old, 2, &d));
    cr_assert_eq(d.end.size, 8); /* the left side did shrink */
    /* And it may come back the proper way. */
    cr_assert_eq(change(w, 3, old, 4), SPAN_OK);
    check_members(w, 3, "123");
    check_value(w, 3, 60, "a");
    world_free(w);
}

Test(store_member, what_makes_no_sense_is_refused)
{
    struct world *w = begin(6);
    cr_assert_eq(change(w, 2, 0, 0), SPAN_INVALID);
    cr_assert_eq(change(w, 2, 4, 4), SPAN_INVALID);
    cr_assert_eq(change(w, 2, 2, 4), SPAN_OK); /* both so already */
    node_id first = leader_of(w, 2) == 1 ? 2 : 1;
    cr_assert_eq(change(w, 2, 0, first), SPAN_OK);
    cr_assert_eq(change(w, 2, 0, leader_of(w, 2) == 3 ? 3 - first : 3), SPAN_OK);
    cr_assert_eq(change(w, 2, 0, leader_of(w, 2)), SPAN_INVALID); /* the last one */
    put(w, 2, 10, "alone");
    check_value(w, 2, 10, "alone");
    world_free(w);
}

Test(store_member, a_wish_that_would_shrink_a_range_or_do_nothing_is_refused)
{
    struct world *w = begin(10);
    w->sim.replicas = 3;
    sim_nodes_changed(&w->sim);
    cr_assert_eq(wish(w, 2, 2, 1), SPAN_INVALID); /* 2 has one: it would only lose the one on 1 */
    cr_assert_eq(wish(w, 2, 2, 0), SPAN_INVALID);
    cr_assert_eq(wish(w, 2, 4, 9), SPAN_INVALID); /* 9 has none: it would only add */
    cr_assert_eq(wish(w, 2, 0, 4), SPAN_INVALID);
    cr_assert_eq(wish(w, 2, 4, 1), SPAN_OK);
    cr_assert_eq(wish(w, 2, 4, 0), SPAN_OK);
    cr_assert_eq(wish(w, 2, 0, 1), SPAN_OK); /* a majority of three is left */
    sim_run_for(&w->sim, SEC_NS);
    check_members(w, 2, "123"); /* asking changes nothing */
    node_id first = leader_of(w, 2) == 1 ? 2 : 1;
    cr_assert_eq(change(w, 2, 0, first), SPAN_OK);
    cr_assert_eq(wish(w, 2, 0, leader_of(w, 2)), SPAN_INVALID);
    world_free(w);
}

/* Before anybody changed the nodes there is no table; what is missing is made good all the same. */
Test(store_member, a_range_that_lost_a_member_gets_one_without_a_node_table)
{
    struct world *w = SPAN_NEW(struct world);
    sim_init(&w->sim, 11, 3);
    w->sim.replicas = 3;
    w->sim.on_gateway = on_gateway;
    w->sim.filter = filter;
    w->sim.ctx = w;
    sim_boot(&w->sim);
    cr_assert(sim_run_until(&w->sim, leads, w, 10 * SEC_NS));
    put(w, 2, 10, "a");
    node_id first = leader_of(w, 2) == 1 ? 2 : 1;
    cr_assert_eq(change(w, 2, 0, first), SPAN_OK);
    sim_run_for(&w->sim, 20 * SEC_NS);
    check_members(w, 2, "123");
    /* A member that is down is counted as missing, but keeps its place. */
    node_id leader = leader_of(w, 2);
    struct tt_now now = sim_clock(&w->sim.nodes[leader]);
    cr_assert_eq(store_short_count(w->sim.nodes[leader].store, &now), 0);
    sim_crash(&w->sim, leader == 1 ? 2 : 1);
    sim_run_for(&w->sim, 5 * SEC_NS);
    leader = leader_of(w, 2);
    now = sim_clock(&w->sim.nodes[leader]);
    cr_assert_gt(store_short_count(w->sim.nodes[leader].store, &now), 0);
    check_members(w, 2, "123");
    world_free(w);
}

/* Placement: a node that leaves gives its replicas to the one that joined; nothing is asked of
 * anybody. */
static bool node_3_is_empty(void *ctx)
{
    struct world *w = ctx;
    struct range_descriptor d;
    return !descriptor_at(w, 3, 1, &d) && !descriptor_at(w, 3, 2, &d);
}

Test(store_member, the_replicas_of_a_node_that_leaves_move_to_the_one_that_joined)
{
    struct world *w = begin(7);
    put(w, 2, 10, "a");
    w->sim.states[4] = STORE_NODE_ACTIVE;
    w->sim.states[3] = STORE_NODE_LEAVING;
    w->sim.replicas = 3;
    sim_nodes_changed(&w->sim);
    cr_assert(sim_run_until(&w->sim, node_3_is_empty, w, 60 * SEC_NS));
    check_members(w, 1, "124");
    check_members(w, 2, "124");
    check_value(w, 2, 10, "a");
    world_free(w);
}

/* Also when it is dead, and also with its disk gone for good. */
Test(store_member, the_replicas_of_a_dead_node_that_leaves_move_too)
{
    struct world *w = begin(8);
    put(w, 2, 10, "a");
    sim_crash(&w->sim, 3);
    sim_run_for(&w->sim, 2 * SEC_NS);
    put(w, 2, 11, "b");
    w->sim.states[4] = STORE_NODE_ACTIVE;
    w->sim.states[3] = STORE_NODE_LEAVING;
    w->sim.replicas = 3;
    sim_nodes_changed(&w->sim);
    sim_run_for(&w->sim, 20 * SEC_NS);
    check_members(w, 1, "124");
    check_members(w, 2, "124");
    sim_crash(&w->sim, leader_of(w, 2) == 4 ? 1 : leader_of(w, 2));
    cr_assert(sim_run_until(&w->sim, leads, w, 10 * SEC_NS));
    check_value(w, 2, 11, "b");
    /* Its old disk comes back: it learns that it is out. */
    sim_restart(&w->sim, 3);
    cr_assert(sim_run_until(&w->sim, node_3_is_empty, w, 30 * SEC_NS));
    world_free(w);
}
