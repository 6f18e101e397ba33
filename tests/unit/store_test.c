/* Stores of three nodes on virtual time, driven by hand-made gateway requests. */
#include "base/alloc.h"
#include "tests/lib/store_sim.h"

#include <criterion/criterion.h>
#include <stdio.h>

struct answer {
    bool have;
    struct buf body;
};

struct world {
    struct sim sim;
    struct answer answers[4096];
    uint64_t next_id;
    uint64_t waiting;
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
    if (kind == MSG_RESPONSE && msg_decode_response(body, &a, &r) == SPAN_OK) {
        buf_set(&w->answers[r.request_id % 4096].body, body);
        w->answers[r.request_id % 4096].have = true;
    }
    arena_deinit(&a);
}

static struct world *world_new(uint64_t seed)
{
    struct world *w = SPAN_NEW(struct world);
    sim_init(&w->sim, seed, 3);
    w->sim.on_gateway = on_gateway;
    w->sim.ctx = w;
    w->next_id = 1;
    sim_boot(&w->sim);
    return w;
}

static void world_free(struct world *w)
{
    sim_deinit(&w->sim);
    for (size_t i = 0; i < 4096; i++) {
        buf_deinit(&w->answers[i].body);
    }
    span_free(w);
}

static bool answered(void *ctx)
{
    struct world *w = ctx;
    return w->answers[w->waiting % 4096].have;
}

/* Finds the leader of a range; runs until there is one. */
static bool has_leader(void *ctx)
{
    struct world *w = ctx;
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        if (w->sim.nodes[i].alive && store_leader_count(w->sim.nodes[i].store) > 0) {
            return true;
        }
    }
    return false;
}

static node_id leader_of(struct world *w, range_id range)
{
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        struct arena a = {0};
        struct range_descriptor *d;
        if (!w->sim.nodes[i].alive) {
            continue;
        }
        size_t n = store_descriptors(w->sim.nodes[i].store, &a, &d);
        for (size_t k = 0; k < n; k++) {
            if (d[k].range == range && d[k].leader != 0 && w->sim.nodes[d[k].leader].alive) {
                node_id l = d[k].leader;
                arena_deinit(&a);
                return l;
            }
        }
        arena_deinit(&a);
    }
    return 0;
}

/* Sends from gateway `from` to the leader of q->range and waits; arena holds the answer. */
static struct range_response ask(struct world *w, node_id from, struct range_request q,
                                 struct arena *a)
{
    struct range_response r = {.status = SPAN_UNAVAILABLE};
    for (int tries = 0; tries < 200; tries++) {
        node_id to = leader_of(w, q.range);
        if (to == 0) {
            sim_run_for(&w->sim, 10 * MS_NS);
            continue;
        }
        q.request_id = w->next_id++;
        q.gateway = from;
        q.incarnation = 1;
        q.budget_ns = 5 * SEC_NS;
        w->waiting = q.request_id;
        w->answers[q.request_id % 4096].have = false;
        struct buf b = {0};
        msg_encode_request(&b, &q);
        struct sim_node *n = &w->sim.nodes[from];
        struct tt_now now = sim_clock(n);
        if (to == from) {
            sim_local(&w->sim, from, buf_slice(&b));
        } else {
            buf_append_slice(&n->out[to][0], buf_slice(&b));
            sim_turn_end(n, &now);
        }
        buf_deinit(&b);
        if (!sim_run_until(&w->sim, answered, w, 2 * SEC_NS)) {
            continue;
        }
        span_status st =
            msg_decode_response(buf_slice(&w->answers[q.request_id % 4096].body), a, &r);
        cr_assert_eq(st, SPAN_OK);
        if (r.status != SPAN_NOT_LEADER && r.status != SPAN_UNAVAILABLE) {
            return r;
        }
        sim_run_for(&w->sim, 10 * MS_NS);
    }
    return r;
}

static const uint8_t base_key[] = {0x01, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00};

static struct slice key_of(uint8_t out[8], uint8_t n)
{
    memcpy(out, base_key, 7);
    out[7] = n;
    return slice_of(out, 8);
}

static struct txn_id new_txn(struct world *w, node_id from)
{
    return (struct txn_id){sim_clock(&w->sim.nodes[from]).tt.latest.ns, from, (uint32_t)w->next_id};
}

static struct range_response put(struct world *w, node_id from, range_id range, uint8_t k,
                                 const char *v, struct arena *a)
{
    uint8_t kb[8];
    struct txn_write wr = {.key = key_of(kb, k), .value = slice_str(v)};
    struct txn_id id = new_txn(w, from);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = range,
                              .txn = id,
                              .age = id,
                              .may_wait = true,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    return ask(w, from, q, a);
}

static struct range_response get(struct world *w, node_id from, range_id range, uint8_t k,
                                 struct tt_ts at, struct arena *a)
{
    uint8_t kb[8];
    struct read_span s = {.span = {.start = key_of(kb, k), .point = true}};
    struct txn_id id = new_txn(w, from);
    struct range_request q = {.op = OP_READ,
                              .range = range,
                              .txn = id,
                              .age = id,
                              .read_ts = at,
                              .span_count = 1,
                              .spans = &s};
    return ask(w, from, q, a);
}

Test(store, elects_commits_and_reads_back)
{
    struct world *w = world_new(1);
    struct arena a = {0};
    cr_assert(sim_run_until(&w->sim, has_leader, w, 5 * SEC_NS));
    struct range_response r = put(w, 1, 2, 5, "hello", &a);
    cr_assert_eq(r.status, SPAN_OK, "%s", span_status_name(span_status_from_wire(r.status)));
    struct tt_ts s = r.ts;
    r = get(w, 2, 2, 5, tt_add(s, 1), &a);
    cr_assert_eq(r.status, SPAN_OK, "%s", span_status_name(span_status_from_wire(r.status)));
    cr_assert_eq(r.row_count, 1);
    cr_assert(slice_eq(r.rows[0].value, slice_str("hello")));
    r = get(w, 3, 2, 5, tt_ts_of(s.ns - 1), &a);
    cr_assert_eq(r.row_count, 0);
    arena_deinit(&a);
    world_free(w);
}

static struct range_response split(struct world *w, uint8_t at, range_id right, range_id left,
                                   struct arena *a)
{
    uint8_t kb[8];
    struct read_span s = {.span = {.start = key_of(kb, at), .point = true}};
    struct txn_id id = new_txn(w, 1);
    struct range_request q = {.op = OP_SPLIT,
                              .range = left,
                              .txn = id,
                              .age = id,
                              .span_count = 1,
                              .spans = &s,
                              .new_range = right};
    return ask(w, 1, q, a);
}

/* Two-phase commit of writes to range 2 (k < 50) and range 3, coordinator in range 2. */
static struct range_response try_commit2(struct world *w, node_id from, const char *v,
                                         struct txn_id *out, struct arena *a)
{
    uint8_t k1[8], k2[8];
    for (int i = 0; i < 500 && (leader_of(w, 2) == 0 || leader_of(w, 3) == 0); i++) {
        sim_run_for(&w->sim, 10 * MS_NS);
    }
    struct txn_write w1 = {.key = key_of(k1, 10), .value = slice_str(v)};
    struct txn_write w2 = {.key = key_of(k2, 90), .value = slice_str(v)};
    struct txn_id id = new_txn(w, from);
    struct txn_participant p = {.anchor = w2.key, .range = 3, .node = leader_of(w, 3)};
    struct range_request prep = {.op = OP_PREPARE,
                                 .range = 3,
                                 .txn = id,
                                 .age = id,
                                 .may_wait = true,
                                 .write_count = 1,
                                 .writes = &w2,
                                 .anchor = w2.key,
                                 .coordinator = w1.key,
                                 .coordinator_range = 2,
                                 .coordinator_node = leader_of(w, 2),
                                 .gateway = from,
                                 .incarnation = 1,
                                 .budget_ns = 5 * SEC_NS,
                                 .request_id = w->next_id++};
    struct buf b = {0};
    msg_encode_request(&b, &prep);
    struct sim_node *n = &w->sim.nodes[from];
    if (p.node == from) {
        buf_append_slice(store_local(n->store), buf_slice(&b));
    } else {
        buf_append_slice(&n->out[p.node][0], buf_slice(&b));
    }
    buf_deinit(&b);
    struct range_request q = {.op = OP_COORDINATE,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .may_wait = true,
                              .write_count = 1,
                              .writes = &w1,
                              .anchor = w1.key,
                              .participant_count = 1,
                              .participants = &p};
    *out = id;
    return ask(w, from, q, a);
}

/* Aborted ones (a prepare was lost with a leader) are tried again as new transactions. */
static struct range_response commit2(struct world *w, node_id from, const char *v,
                                     struct txn_id *out, struct arena *a)
{
    struct range_response r = {0};
    for (int i = 0; i < 10; i++) {
        r = try_commit2(w, from, v, out, a);
        if (r.status != SPAN_ABORTED) {
            break;
        }
    }
    return r;
}

static void check_pair(struct world *w, const char *v)
{
    struct arena a = {0};
    struct tt_ts now = tt_ts_of(w->sim.now_ns + 3 * w->sim.epsilon_ns);
    sim_run_for(&w->sim, 20 * MS_NS);
    struct range_response r = get(w, 1, 2, 10, now, &a);
    cr_assert_eq(r.status, SPAN_OK, "%s", span_status_name(span_status_from_wire(r.status)));
    cr_assert_eq(r.row_count, 1);
    cr_assert(slice_eq(r.rows[0].value, slice_str(v)));
    r = get(w, 2, 3, 90, now, &a);
    cr_assert_eq(r.status, SPAN_OK, "%s", span_status_name(span_status_from_wire(r.status)));
    cr_assert_eq(r.row_count, 1);
    cr_assert(slice_eq(r.rows[0].value, slice_str(v)));
    arena_deinit(&a);
}

Test(store, splits_and_commits_over_both_sides)
{
    struct world *w = world_new(2);
    struct arena a = {0};
    struct txn_id id;
    cr_assert(sim_run_until(&w->sim, has_leader, w, 5 * SEC_NS));
    struct range_response r = put(w, 1, 2, 90, "old", &a);
    cr_assert_eq(r.status, SPAN_OK);
    r = split(w, 50, 3, 2, &a);
    cr_assert_eq(r.status, SPAN_OK, "%s", span_status_name(span_status_from_wire(r.status)));
    r = get(w, 2, 3, 90, tt_ts_of(w->sim.now_ns + 5 * MS_NS), &a);
    cr_assert_eq(r.status, SPAN_OK, "%s", span_status_name(span_status_from_wire(r.status)));
    cr_assert_eq(r.row_count, 1);
    cr_assert(slice_eq(r.rows[0].value, slice_str("old")));
    r = commit2(w, 3, "both", &id, &a);
    cr_assert_eq(r.status, SPAN_OK, "%s", span_status_name(span_status_from_wire(r.status)));
    check_pair(w, "both");
    /* a duplicate is answered with the same timestamp and has no second effect */
    struct tt_ts s = r.ts;
    uint8_t k1[8];
    struct txn_write w1 = {.key = key_of(k1, 10), .value = slice_str("x")};
    struct range_request dup = {.op = OP_COORDINATE,
                                .range = 2,
                                .txn = id,
                                .age = id,
                                .write_count = 1,
                                .writes = &w1,
                                .anchor = w1.key};
    r = ask(w, 2, dup, &a);
    cr_assert_eq(r.status, SPAN_OK);
    cr_assert_eq(r.ts.ns, s.ns);
    check_pair(w, "both");
    arena_deinit(&a);
    world_free(w);
}

Test(store, survives_crashes_of_all_nodes_at_once)
{
    for (uint64_t seed = 10; seed < 20; seed++) {
        struct world *w = world_new(seed);
        struct arena a = {0};
        struct txn_id id;
        cr_assert(sim_run_until(&w->sim, has_leader, w, 5 * SEC_NS), "seed %lu", seed);
        struct range_response r = split(w, 50, 3, 2, &a);
        cr_assert_eq(r.status, SPAN_OK, "seed %lu", seed);
        for (int i = 0; i < 20; i++) {
            char v[32];
            snprintf(v, sizeof v, "v%d", i);
            r = commit2(w, (node_id)(1 + i % 3), v, &id, &a);
            cr_assert_eq(r.status, SPAN_OK, "seed %lu round %d %s", seed, i,
                         span_status_name(span_status_from_wire(r.status)));
            sim_run_for(&w->sim, rng_below(&w->sim.rng, 3 * MS_NS));
            if (i % 3 == 2) {
                for (node_id n = 1; n <= 3; n++) {
                    sim_crash(&w->sim, n);
                }
                for (node_id n = 1; n <= 3; n++) {
                    sim_restart(&w->sim, n);
                }
            } else if (i % 3 == 1) {
                node_id victim = (node_id)(1 + rng_below(&w->sim.rng, 3));
                sim_crash(&w->sim, victim);
                sim_run_for(&w->sim, rng_below(&w->sim.rng, 800 * MS_NS));
                sim_restart(&w->sim, victim);
            }
            check_pair(w, v);
        }
        arena_deinit(&a);
        world_free(w);
    }
}
