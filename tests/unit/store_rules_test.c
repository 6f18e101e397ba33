/* Rules of PROTOCOL.md at the level of stores, one scenario each: hand-made requests of a gateway,
 * messages held up where the scenario wants it. Three nodes; range 2 holds keys 0..49, range 3 keys
 * 50..255. */
#include "base/alloc.h"
#include "tests/lib/store_sim.h"

#include <criterion/criterion.h>
#include <stdio.h>

#define ANSWERS 8192

struct world {
    struct sim sim;
    struct buf answers[ANSWERS];
    bool have[ANSWERS];
    uint64_t next_id;
    uint64_t waiting;
    uint32_t lost;   /* bit per message kind that does not leave a node ... */
    node_id lost_to; /* ... for this one; 0: for any */
    unsigned sent[32];
    unsigned aborts_sent; /* MSG_OUTCOME with an abort */
    unsigned wounded;
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
        buf_set(&w->answers[r.request_id % ANSWERS], body);
        w->have[r.request_id % ANSWERS] = true;
    }
    w->wounded += kind == MSG_WOUNDED ? 1 : 0;
    arena_deinit(&a);
}

static bool filter(void *ctx, node_id from, node_id to, uint8_t kind, struct slice body)
{
    struct world *w = ctx;
    struct txn_outcome o;
    (void)from;
    w->sent[kind]++;
    if (kind == MSG_OUTCOME && msg_decode_outcome(body, &o) == SPAN_OK && !o.commit) {
        w->aborts_sent++;
    }
    return (w->lost >> kind & 1) == 0 || (w->lost_to != 0 && w->lost_to != to);
}

static node_id leader_of(const struct world *w, range_id range)
{
    node_id leader = 0;
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        const struct sim_node *n = &w->sim.nodes[i];
        struct arena a = {0};
        struct range_descriptor *d;
        size_t count = n->alive ? store_descriptors(n->store, &a, &d) : 0;
        for (size_t k = 0; k < count; k++) {
            /* it knows best itself */
            if (d[k].range == range && d[k].leader == i) {
                leader = i;
            }
        }
        arena_deinit(&a);
    }
    return leader;
}

static bool leads_2(void *ctx)
{
    return leader_of(ctx, 1) != 0 && leader_of(ctx, 2) != 0;
}

static bool leads_3(void *ctx)
{
    return leads_2(ctx) && leader_of(ctx, 3) != 0;
}

/* ---- requests ---- */

static const uint8_t prefix[] = {0x01, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00};

struct key {
    uint8_t b[8];
};

static struct slice key_of(struct key *k, uint8_t n)
{
    memcpy(k->b, prefix, 7);
    k->b[7] = n;
    return slice_of(k->b, 8);
}

static struct txn_id new_txn(struct world *w, node_id gateway)
{
    return (struct txn_id){sim_clock(&w->sim.nodes[gateway]).tt.latest.ns, gateway,
                           (uint32_t)++w->next_id};
}

/* Leaves now; its answer comes under the id that is returned. */
static uint64_t post(struct world *w, node_id from, node_id to, struct range_request q)
{
    q.request_id = ++w->next_id;
    q.gateway = from;
    q.incarnation = 1;
    q.may_wait = true;
    q.budget_ns = q.budget_ns == 0 ? SEC_NS : q.budget_ns;
    w->have[q.request_id % ANSWERS] = false;
    struct buf b = {0};
    msg_encode_request(&b, &q);
    if (to == from) {
        sim_local(&w->sim, from, buf_slice(&b));
    } else {
        struct sim_node *n = &w->sim.nodes[from];
        struct tt_now now = sim_clock(n);
        buf_append_slice(&n->out[to][0], buf_slice(&b));
        sim_turn_end(n, &now);
    }
    buf_deinit(&b);
    return q.request_id;
}

static bool has_answer(void *ctx)
{
    struct world *w = ctx;
    return w->have[w->waiting % ANSWERS];
}

static bool answered(const struct world *w, uint64_t id)
{
    return w->have[id % ANSWERS];
}

static struct range_response answer(struct world *w, uint64_t id, struct arena *a)
{
    struct range_response r = {.status = SPAN_INTERNAL};
    w->waiting = id;
    cr_assert(sim_run_until(&w->sim, has_answer, w, 8 * SEC_NS), "no answer");
    cr_assert_eq(msg_decode_response(buf_slice(&w->answers[id % ANSWERS]), a, &r), SPAN_OK);
    return r;
}

static struct range_response ask(struct world *w, node_id from, struct range_request q,
                                 struct arena *a)
{
    return answer(w, post(w, from, leader_of(w, q.range), q), a);
}

/* A locking read of one key. */
static struct range_request lock_request(struct key *kb, struct read_span *s, range_id range,
                                         uint8_t key, struct txn_id txn, bool exclusive)
{
    *s = (struct read_span){.span = {.start = key_of(kb, key), .point = true}};
    return (struct range_request){.op = OP_READ,
                                  .range = range,
                                  .txn = txn,
                                  .age = txn,
                                  .lock = exclusive ? READ_LOCK_UPDATE : READ_LOCK_SHARED,
                                  .span_count = 1,
                                  .spans = s};
}

static struct range_response lock(struct world *w, node_id from, range_id range, uint8_t key,
                                  struct txn_id txn, bool exclusive, struct arena *a)
{
    struct key kb;
    struct read_span s;
    return ask(w, from, lock_request(&kb, &s, range, key, txn, exclusive), a);
}

static struct range_response read_at(struct world *w, node_id from, node_id to, range_id range,
                                     uint8_t key, struct tt_ts at, struct arena *a)
{
    struct key kb;
    struct read_span s = {.span = {.start = key_of(&kb, key), .point = true}};
    struct txn_id id = new_txn(w, from);
    struct range_request q = {.op = OP_READ,
                              .range = range,
                              .txn = id,
                              .age = id,
                              .read_ts = at,
                              .follower_ok = to != 0,
                              .span_count = 1,
                              .spans = &s};
    return answer(w, post(w, from, to != 0 ? to : leader_of(w, range), q), a);
}

static struct range_response put(struct world *w, node_id from, range_id range, uint8_t key,
                                 const char *value, struct arena *a)
{
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, key), .value = slice_str(value)};
    struct txn_id id = new_txn(w, from);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = range,
                              .txn = id,
                              .age = id,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    return ask(w, from, q, a);
}

/* The two halves of a 2PC that writes key 10 of range 2 (coordinator) and key 90 of range 3. */
static uint64_t post_prepare(struct world *w, node_id from, struct txn_id txn, uint64_t term,
                             const char *value)
{
    struct key k1;
    struct key k2;
    struct txn_write wr = {.key = key_of(&k2, 90), .value = slice_str(value)};
    struct range_request q = {.op = OP_PREPARE,
                              .range = 3,
                              .txn = txn,
                              .age = txn,
                              .term = term,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key,
                              .coordinator = key_of(&k1, 10),
                              .coordinator_range = 2,
                              .coordinator_node = leader_of(w, 2)};
    return post(w, from, leader_of(w, 3), q);
}

static uint64_t post_coordinate(struct world *w, node_id from, struct txn_id txn, uint64_t term,
                                const char *value, uint64_t budget_ns)
{
    struct key k1;
    struct key k2;
    struct txn_write wr = {.key = key_of(&k1, 10), .value = slice_str(value)};
    struct txn_participant p = {.anchor = key_of(&k2, 90), .range = 3, .node = leader_of(w, 3)};
    struct range_request q = {.op = OP_COORDINATE,
                              .range = 2,
                              .txn = txn,
                              .age = txn,
                              .term = term,
                              .budget_ns = budget_ns,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key,
                              .participant_count = 1,
                              .participants = &p};
    return post(w, from, leader_of(w, 2), q);
}

static struct range_response status(struct world *w, node_id from, struct txn_id txn,
                                    struct arena *a)
{
    for (;;) {
        struct key k1;
        struct range_request q = {
            .op = OP_STATUS, .range = 2, .txn = txn, .age = txn, .anchor = key_of(&k1, 10)};
        q.coordinator = q.anchor;
        struct range_response r = ask(w, from, q, a);
        if (r.status != SPAN_OK || r.txn_state != TXN_STATE_RUNNING) {
            return r;
        }
        sim_run_for(&w->sim, 20 * MS_NS);
    }
}

static void transfer(struct world *w, range_id range, node_id to)
{
    for (int i = 0; i < 50 && leader_of(w, range) != to; i++) {
        node_id from = leader_of(w, range);
        if (from != 0) {
            struct range_request q = {
                .op = OP_TRANSFER, .range = range, .new_range = to, .txn = new_txn(w, from)};
            (void)post(w, from, from, q);
        }
        sim_run_for(&w->sim, 40 * MS_NS);
    }
    cr_assert_eq(leader_of(w, range), to);
}

static struct range_response split(struct world *w, range_id left, uint8_t key, range_id right,
                                   struct arena *a)
{
    struct key kb;
    struct read_span s = {.span = {.start = key_of(&kb, key), .point = true}};
    struct range_request q = {.op = OP_SPLIT,
                              .range = left,
                              .txn = new_txn(w, 1),
                              .span_count = 1,
                              .spans = &s,
                              .new_range = right};
    return ask(w, leader_of(w, left), q, a);
}

#define check_value(r, text)                                                                       \
    do {                                                                                           \
        cr_assert_eq((r).status, SPAN_OK, "%s",                                                    \
                     span_status_name(span_status_from_wire((r).status)));                         \
        cr_assert_eq((r).row_count, 1);                                                            \
        cr_assert(slice_eq((r).rows[0].value, slice_str(text)));                                   \
    } while (0)

/* Locks and transactions that leaders know of. */
static size_t left_over(struct world *w)
{
    size_t n = 0;
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        struct tt_now now = sim_clock(&w->sim.nodes[i]);
        for (unsigned what = 3; what <= 4; what++) {
            struct arena a = {0};
            struct slice *cells;
            size_t count;
            unsigned columns;
            if (w->sim.nodes[i].alive) {
                store_show(w->sim.nodes[i].store, &now, what, &a, &cells, &count, &columns);
                n += count;
            }
            arena_deinit(&a);
        }
    }
    return n;
}

static bool splits_ahead; /* in worlds made from now on */

static struct world *world_new(uint64_t seed, uint64_t epsilon_ns, bool two_ranges)
{
    struct world *w = SPAN_NEW(struct world);
    struct arena a = {0};
    sim_init(&w->sim, seed, 3);
    w->sim.epsilon_ns = epsilon_ns;
    w->sim.split_now_bytes = splits_ahead ? 1 : 0;
    for (node_id i = 1; i <= 3; i++) {
        w->sim.nodes[i].offset_ns = 0;
    }
    w->sim.on_gateway = on_gateway;
    w->sim.filter = filter;
    w->sim.ctx = w;
    sim_boot(&w->sim);
    for (node_id i = 1; i <= 3; i++) {
        store_set_balance(w->sim.nodes[i].store, false);
    }
    cr_assert(sim_run_until(&w->sim, leads_2, w, 10 * SEC_NS));
    sim_run_for(&w->sim, 100 * MS_NS);
    if (two_ranges) {
        cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_OK);
        cr_assert(sim_run_until(&w->sim, leads_3, w, 10 * SEC_NS));
        sim_run_for(&w->sim, 100 * MS_NS);
    }
    arena_deinit(&a);
    return w;
}

static void world_free(struct world *w)
{
    sim_deinit(&w->sim);
    for (size_t i = 0; i < ANSWERS; i++) {
        buf_deinit(&w->answers[i]);
    }
    span_free(w);
}

/* ---- A: timestamps and the floor ---- */

Test(store_rules, a1_a_new_leader_writes_above_what_the_old_one_let_be_read)
{
    struct world *w = world_new(31, 20 * MS_NS, false);
    struct arena a = {0};
    transfer(w, 2, 1);
    w->sim.nodes[1].offset_ns = 20 * MS_NS;
    w->sim.nodes[2].offset_ns = -20 * (int64_t)MS_NS;
    sim_run_for(&w->sim, 100 * MS_NS);
    struct tt_ts r = sim_clock(&w->sim.nodes[1]).tt.latest; /* 40 ms ahead of true time */
    cr_assert_eq(read_at(w, 1, 0, 2, 5, r, &a).status, SPAN_OK);
    struct range_request q = {.op = OP_TRANSFER, .range = 2, .new_range = 2, .txn = new_txn(w, 1)};
    (void)post(w, 1, 1, q);
    while (leader_of(w, 2) != 2) {
        sim_run_for(&w->sim, 100000);
    }
    cr_assert(tt_lt(sim_clock(&w->sim.nodes[2]).tt.latest, r), "else this shows nothing");
    struct range_response p = put(w, 3, 2, 5, "x", &a);
    cr_assert_eq(p.status, SPAN_OK);
    cr_assert(tt_lt(r, p.ts), "a write below a read that was answered");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a2_a_commit_is_above_everything_its_transaction_has_seen)
{
    struct world *w = world_new(32, MS_NS, false);
    struct arena a = {0};
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 5), .value = slice_str("v")};
    struct txn_id id = new_txn(w, 1);
    struct tt_ts seen = tt_add(sim_clock(&w->sim.nodes[1]).tt.latest, 30 * MS_NS);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .seen = seen,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    struct range_response r = ask(w, 1, q, &a);
    cr_assert_eq(r.status, SPAN_OK);
    cr_assert(tt_lt(seen, r.ts));
    /* and what comes after it is above it, too */
    struct range_response next = put(w, 2, 2, 6, "w", &a);
    cr_assert(tt_lt(r.ts, next.ts));
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a5_a_read_waits_for_a_record_in_flight_below_it)
{
    struct world *w = world_new(33, MS_NS, false);
    struct arena a = {0};
    cr_assert_eq(put(w, 1, 2, 5, "old", &a).status, SPAN_OK);
    node_id leader = leader_of(w, 2);
    w->lost = 1u << MSG_RAFT; /* nothing commits */
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 5), .value = slice_str("new")};
    struct txn_id id = new_txn(w, leader);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    uint64_t commit = post(w, leader, leader, q);
    struct tt_ts at = tt_add(sim_clock(&w->sim.nodes[leader]).tt.latest, MS_NS);
    struct read_span s = {.span = {.start = wr.key, .point = true}};
    struct range_request rq = {.op = OP_READ,
                               .range = 2,
                               .txn = new_txn(w, leader),
                               .read_ts = at,
                               .span_count = 1,
                               .spans = &s};
    uint64_t read = post(w, leader, leader, rq);
    s.span.start = key_of(&kb, 6);
    uint64_t other = post(w, leader, leader, rq);
    sim_run_for(&w->sim, 30 * MS_NS);
    cr_assert(!answered(w, read));
    cr_assert(answered(w, other), "another key has no reason to wait");
    w->lost = 0;
    struct range_response c = answer(w, commit, &a);
    cr_assert_eq(c.status, SPAN_OK);
    cr_assert(tt_le(c.ts, at));
    struct range_response got = answer(w, read, &a);
    check_value(got, "new");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a6_a_read_far_in_the_future_is_refused)
{
    struct world *w = world_new(34, MS_NS, false);
    struct arena a = {0};
    struct tt_ts far = tt_add(sim_clock(&w->sim.nodes[1]).tt.latest, 3600 * SEC_NS);
    cr_assert_eq(read_at(w, 1, 0, 2, 5, far, &a).status, SPAN_IN_FUTURE);
    struct range_response p = put(w, 1, 2, 5, "v", &a);
    cr_assert_eq(p.status, SPAN_OK);
    cr_assert(tt_lt(p.ts, tt_add(sim_clock(&w->sim.nodes[1]).tt.latest, SEC_NS)));
    arena_deinit(&a);
    world_free(w);
}

/* safe_time of range 2 as SHOW RANGES tells it of node; 0: NULL. */
static uint64_t shown_safe_time(struct world *w, node_id node)
{
    struct tt_now now = sim_clock(&w->sim.nodes[node]);
    struct arena a = {0};
    struct slice *cells;
    size_t count;
    unsigned columns;
    uint64_t ts = 0;
    store_show(w->sim.nodes[node].store, &now, 0, &a, &cells, &count, &columns);
    for (size_t i = 0; i < count; i += columns) {
        struct slice cell = cells[i + 10];
        if (slice_eq(cells[i], slice_str("2")) && cell.data != NULL) {
            char text[24] = "";
            memcpy(text, cell.data, cell.size);
            ts = strtoull(text, NULL, 10);
            cr_assert_neq(ts, 0, "no timestamp is NULL, not 0");
        }
    }
    arena_deinit(&a);
    return ts;
}

Test(store_rules, safe_time_is_shown_as_reads_find_it)
{
    struct world *w = world_new(36, MS_NS, false);
    struct arena a = {0};
    struct range_response p = put(w, 1, 2, 5, "v", &a);
    sim_run_for(&w->sim, 200 * MS_NS);
    for (node_id i = 1; i <= 3; i++) { /* nothing has been written or read here for 200 ms */
        uint64_t ts = shown_safe_time(w, i);
        cr_assert_geq(ts, p.ts.ns, "node %u", i);
        cr_assert_leq(ts, sim_clock(&w->sim.nodes[i]).tt.latest.ns, "node %u", i);
        check_value(read_at(w, i, i, 2, 5, tt_ts_of(ts), &a), "v");
    }
    node_id leader = leader_of(w, 2);
    cr_assert_eq(shown_safe_time(w, leader), sim_clock(&w->sim.nodes[leader]).tt.latest.ns);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a4_a_follower_reads_once_its_safe_time_is_there)
{
    struct world *w = world_new(35, MS_NS, false);
    struct arena a = {0};
    struct range_response p = put(w, 1, 2, 5, "v", &a);
    node_id follower = leader_of(w, 2) == 3 ? 2 : 3;
    sim_run_for(&w->sim, 200 * MS_NS); /* heartbeats close it */
    struct range_response r = read_at(w, follower, follower, 2, 5, p.ts, &a);
    check_value(r, "v");
    cr_assert_eq(read_at(w, follower, follower, 2, 5, tt_ts_of(p.ts.ns - 1), &a).row_count, 0);
    struct tt_ts ahead = tt_add(sim_clock(&w->sim.nodes[follower]).tt.latest, 2 * MS_NS);
    uint16_t st = read_at(w, follower, follower, 2, 5, ahead, &a).status;
    cr_assert(st == SPAN_WOULD_WAIT || st == SPAN_NOT_LEADER);
    arena_deinit(&a);
    world_free(w);
}

/* ---- C: transactions ---- */

Test(store_rules, c1_a_commit_that_names_another_term_is_refused)
{
    struct world *w = world_new(41, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 1);
    struct range_response l = lock(w, 1, 3, 90, id, true, &a);
    cr_assert_eq(l.status, SPAN_OK);
    node_id was = leader_of(w, 3);
    transfer(w, 3, was == 3 ? 1 : 3);
    transfer(w, 3, was); /* the same node again: the locks are gone all the same */
    struct range_response p = answer(w, post_prepare(w, 1, id, l.term, "x"), &a);
    cr_assert_eq(p.status, SPAN_LOCKS_LOST);
    struct key kb;
    struct range_request v = {.op = OP_VALIDATE,
                              .range = 3,
                              .txn = id,
                              .age = id,
                              .term = l.term,
                              .read_ts = sim_clock(&w->sim.nodes[1]).tt.latest,
                              .anchor = key_of(&kb, 90)};
    cr_assert_eq(ask(w, 1, v, &a).status, SPAN_LOCKS_LOST);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c3_duplicates_after_the_end_change_nothing)
{
    struct world *w = world_new(42, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 1);
    (void)post_prepare(w, 1, id, 0, "first");
    uint64_t c = post_coordinate(w, 1, id, 0, "first", 0);
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_OK);
    struct tt_ts s = r.ts;
    sim_run_for(&w->sim, 50 * MS_NS);
    cr_assert_eq(put(w, 1, 2, 10, "second", &a).status, SPAN_OK);
    cr_assert_eq(put(w, 1, 3, 90, "second", &a).status, SPAN_OK);
    transfer(w, 2, leader_of(w, 2) == 1 ? 2 : 1); /* also a new leader knows */
    uint64_t p = post_prepare(w, 2, id, 0, "again");
    r = answer(w, post_coordinate(w, 2, id, 0, "again", 0), &a);
    cr_assert_eq(r.status, SPAN_OK);
    cr_assert_eq(r.ts.ns, s.ns);
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert(!answered(w, p) || left_over(w) == 0);
    cr_assert_eq(left_over(w), 0);
    struct tt_ts now = tt_ts_of(w->sim.now_ns);
    r = read_at(w, 1, 0, 2, 10, now, &a);
    check_value(r, "second");
    r = read_at(w, 1, 0, 3, 90, now, &a);
    check_value(r, "second");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c4_an_older_reader_wounds_a_coordinator_that_waits_for_votes)
{
    struct world *w = world_new(43, MS_NS, true);
    struct arena a = {0};
    struct txn_id old = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id young = new_txn(w, 2);
    uint64_t c = post_coordinate(w, 2, young, 0, "young", 0); /* no prepare is ever sent */
    sim_run_for(&w->sim, 20 * MS_NS);
    cr_assert(!answered(w, c));
    struct range_response l = lock(w, 1, 2, 10, old, true, &a);
    cr_assert_eq(l.status, SPAN_OK);
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_ABORTED);
    /* the vote that comes now finds the record */
    (void)post_prepare(w, 2, young, 0, "young");
    sim_run_for(&w->sim, SEC_NS);
    r = read_at(w, 1, 0, 3, 90, tt_ts_of(w->sim.now_ns), &a);
    cr_assert_eq(r.status, SPAN_OK);
    cr_assert_eq(r.row_count, 0);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c4_an_older_one_behind_a_prepared_participant_is_through_at_once)
{
    struct world *w = world_new(44, MS_NS, true);
    struct arena a = {0};
    struct txn_id old = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id young = new_txn(w, 2);
    cr_assert_eq(lock(w, 2, 2, 10, young, true, &a).status, SPAN_OK);
    (void)post_prepare(w, 2, young, 0, "young"); /* its commit request comes never */
    sim_run_for(&w->sim, 20 * MS_NS);
    uint64_t began = w->sim.now_ns;
    struct range_response l = lock(w, 1, 3, 90, old, true, &a);
    cr_assert_eq(l.status, SPAN_OK);
    cr_assert_lt(w->sim.now_ns - began, 400 * MS_NS, "%lu ms",
                 (unsigned long)((w->sim.now_ns - began) / MS_NS));
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c4_a_wound_reaches_a_coordinator_that_waits_for_locks_itself)
{
    struct world *w = world_new(45, MS_NS, true);
    struct arena a = {0};
    struct txn_id old = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id middle = new_txn(w, 2);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id young = new_txn(w, 3);
    /* young is prepared on key 10 here, for a coordinator that does not answer */
    struct key k1;
    struct key k2;
    struct txn_write wr = {.key = key_of(&k1, 10), .value = slice_str("y")};
    struct range_request q = {.op = OP_PREPARE,
                              .range = 2,
                              .txn = young,
                              .age = young,
                              .budget_ns = 5 * SEC_NS,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key,
                              .coordinator = key_of(&k2, 95),
                              .coordinator_range = 3,
                              .coordinator_node = leader_of(w, 3)};
    w->lost = 1u << MSG_TXN_QUERY | 1u << MSG_VOTE | 1u << MSG_WOUND;
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    (void)post(w, 3, leader_of(w, 2), q);
    sim_run_for(&w->sim, 20 * MS_NS);
    w->lost_to = leader_of(w, 3); /* what goes to range 2 arrives */
    (void)post_prepare(w, 2, middle, 0, "m");
    uint64_t c = post_coordinate(w, 2, middle, 0, "m", 5 * SEC_NS); /* waits for young's lock */
    sim_run_for(&w->sim, 20 * MS_NS);
    cr_assert(!answered(w, c));
    uint64_t began = w->sim.now_ns;
    struct range_response l = lock(w, 1, 3, 90, old, true, &a); /* behind middle's prepare */
    cr_assert_eq(l.status, SPAN_OK);
    cr_assert_lt(w->sim.now_ns - began, 400 * MS_NS);
    cr_assert_eq(answer(w, c, &a).status, SPAN_ABORTED);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_a_commit_request_that_never_gets_its_locks_ends_in_an_abort_record)
{
    struct world *w = world_new(46, MS_NS, true);
    struct arena a = {0};
    struct txn_id old = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    /* a younger prepared one holds key 10, so that the commit phase waits */
    struct txn_id young = {w->sim.now_ns + SEC_NS / 100, 3, 1};
    struct key k1;
    struct key k2;
    struct txn_write wr = {.key = key_of(&k1, 10), .value = slice_str("y")};
    struct range_request q = {.op = OP_PREPARE,
                              .range = 2,
                              .txn = young,
                              .age = young,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key,
                              .coordinator = key_of(&k2, 95),
                              .coordinator_range = 3,
                              .coordinator_node = leader_of(w, 3)};
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    w->lost = 1u << MSG_TXN_QUERY | 1u << MSG_VOTE | 1u << MSG_WOUND;
    w->lost_to = leader_of(w, 3);
    (void)post(w, 3, leader_of(w, 2), q);
    sim_run_for(&w->sim, 20 * MS_NS);
    (void)post_prepare(w, 1, old, 0, "o");
    uint64_t c = post_coordinate(w, 1, old, 0, "o", 300 * MS_NS);
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_ABORTED);
    cr_assert_eq(status(w, 2, old, &a).txn_state, TXN_STATE_ABORTED);
    w->lost = 0;
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert_eq(left_over(w), 0, "old's participant and young both ended");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_a_participant_finds_the_coordinator_s_new_leader)
{
    struct world *w = world_new(47, MS_NS, true);
    struct arena a = {0};
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    node_id dead = leader_of(w, 2);
    struct txn_id id = new_txn(w, leader_of(w, 3));
    (void)post_prepare(w, leader_of(w, 3), id, 0, "x");
    sim_run_for(&w->sim, 20 * MS_NS);
    cr_assert_gt(left_over(w), 0);
    sim_crash(&w->sim, dead); /* and never comes back */
    sim_run_for(&w->sim, 2 * SEC_NS);
    cr_assert_eq(left_over(w), 0, "still in doubt: its coordinator's node is gone");
    struct range_response r = status(w, leader_of(w, 3), id, &a);
    cr_assert_eq(r.txn_state, TXN_STATE_ABORTED);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_outcomes_find_the_participant_s_new_leader)
{
    struct world *w = world_new(48, MS_NS, true);
    struct arena a = {0};
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    node_id dead = leader_of(w, 3);
    node_id gateway = leader_of(w, 2);
    struct txn_id id = new_txn(w, gateway);
    w->lost = 1u << MSG_OUTCOME;
    (void)post_prepare(w, gateway, id, 0, "x");
    struct range_response r = answer(w, post_coordinate(w, gateway, id, 0, "x", 0), &a);
    cr_assert_eq(r.status, SPAN_OK);
    sim_crash(&w->sim, dead);
    sim_run_for(&w->sim, SEC_NS);
    w->lost = 1u << MSG_TXN_QUERY; /* the outcome has to come by itself */
    sim_run_for(&w->sim, 3 * SEC_NS);
    r = read_at(w, gateway, 0, 3, 90, tt_ts_of(w->sim.now_ns), &a);
    check_value(r, "x");
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert_eq(left_over(w), 0);
    arena_deinit(&a);
    world_free(w);
}

/* A vote is logged with all locks of its transaction there. Where they do not fit, the commit is
 * not tried again for ever as if it had met a conflict: the gateway hears it from both sides. */
Test(store_rules, a_part_that_no_log_entry_holds_is_told_as_too_large)
{
    enum { SPANS = 230, KEY = 3900, REQUESTS = 4 };
    struct world *w = world_new(61, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 3);
    uint64_t term = 0;
    for (unsigned n = 0; n < REQUESTS; n++) {
        struct read_span *spans = arena_alloc(&a, SPANS * sizeof *spans);
        for (unsigned i = 0; i < SPANS; i++) {
            uint8_t *key = arena_alloc(&a, KEY);
            struct key k;
            struct slice head = key_of(&k, 90);
            memset(key, 7, KEY);
            memcpy(key, head.data, head.size);
            key[head.size] = (uint8_t)n;
            key[head.size + 1] = (uint8_t)i;
            spans[i] = (struct read_span){.span = {.start = slice_of(key, KEY), .point = true}};
        }
        struct range_request q = {.op = OP_READ,
                                  .range = 3,
                                  .txn = id,
                                  .age = id,
                                  .term = term,
                                  .lock = READ_LOCK_SHARED,
                                  .span_count = SPANS,
                                  .spans = spans,
                                  .anchor = spans[0].span.start};
        struct range_response r = ask(w, 3, q, &a);
        cr_assert_eq(r.status, SPAN_OK, "%s", span_status_text((span_status)r.status));
        cr_assert_eq(r.resume_count, 0);
        term = r.term;
    }
    uint64_t c = post_coordinate(w, 3, id, 0, "x", 3 * SEC_NS);
    sim_run_for(&w->sim, 5 * MS_NS); /* a no that comes first is repeated by the gateway */
    uint64_t p = post_prepare(w, 3, id, term, "x");
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_TOO_LARGE, "%s", span_status_text((span_status)r.status));
    cr_assert_eq(answer(w, p, &a).status, SPAN_TOO_LARGE);
    r = status(w, 3, id, &a);
    cr_assert_eq(r.txn_state, TXN_STATE_ABORTED, "and there is a record of it");
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert_eq(left_over(w), 0);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_a_leader_lost_between_prepare_and_decision_means_abort)
{
    struct world *w = world_new(49, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 3);
    w->lost = 1u << MSG_VOTE;
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    struct range_response l = lock(w, 3, 2, 10, id, true, &a);
    (void)post_prepare(w, 3, id, 0, "x");
    uint64_t c = post_coordinate(w, 3, id, l.term, "x", 3 * SEC_NS);
    sim_run_for(&w->sim, 20 * MS_NS);
    node_id other = 6 - leader_of(w, 2) - leader_of(w, 3);
    transfer(w, 2, other);
    w->lost = 0;
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_UNKNOWN_OUTCOME);
    r = answer(w, post_coordinate(w, 3, id, l.term, "x", 0), &a); /* the gateway asks again */
    cr_assert_eq(r.status, SPAN_ABORTED);
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert_eq(left_over(w), 0);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_locks_of_a_gateway_that_says_nothing_go)
{
    struct world *w = world_new(50, MS_NS, true);
    struct arena a = {0};
    cr_assert_eq(lock(w, 1, 2, 10, new_txn(w, 1), true, &a).status, SPAN_OK);
    cr_assert_gt(left_over(w), 0);
    sim_run_for(&w->sim, 2 * GATEWAY_LOST_NS);
    cr_assert_eq(left_over(w), 0);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c10_locks_of_a_prepared_reader_hold_under_the_next_leader)
{
    struct world *w = world_new(51, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 1);
    struct range_response l = lock(w, 1, 3, 70, id, false, &a); /* read only */
    w->lost = 1u << MSG_VOTE | 1u << MSG_TXN_QUERY;
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 2, leader_of(w, 3) == 1 ? 2 : 1);
    }
    (void)post_prepare(w, 1, id, l.term, "x");
    sim_run_for(&w->sim, 20 * MS_NS);
    transfer(w, 3, 6 - leader_of(w, 2) - leader_of(w, 3));
    sim_run_for(&w->sim, 20 * MS_NS);
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 70), .value = slice_str("late")};
    struct txn_id other = new_txn(w, 2);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 3,
                              .txn = other,
                              .age = other,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    cr_assert_eq(ask(w, 2, q, &a).status, SPAN_CONFLICT, "a younger writer meets the S lock");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c11_a_record_that_was_proposed_is_unknown_when_its_leader_goes)
{
    struct world *w = world_new(52, MS_NS, false);
    struct arena a = {0};
    node_id was = leader_of(w, 2);
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 5), .value = slice_str("v")};
    struct txn_id id = new_txn(w, was);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .budget_ns = 5 * SEC_NS,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    for (node_id i = 1; i <= 3; i++) {
        w->sim.cut[was][i] = true; /* nothing it says is heard */
    }
    uint64_t c = post(w, was, was, q);
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_UNKNOWN_OUTCOME);
    memset(w->sim.cut, 0, sizeof w->sim.cut);
    sim_run_for(&w->sim, SEC_NS);
    cr_assert(sim_run_until(&w->sim, leads_2, w, 5 * SEC_NS));
    /* idempotent: whoever leads now knows it, or takes it for the first time */
    r = ask(w, was, q, &a);
    cr_assert_eq(r.status, SPAN_OK);
    uint64_t s = r.ts.ns;
    r = ask(w, was, q, &a);
    cr_assert_eq(r.ts.ns, s);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c12_a_read_that_comes_after_the_rollback_locks_nothing)
{
    struct world *w = world_new(53, MS_NS, false);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 1);
    struct key kb;
    struct range_request q = {
        .op = OP_RELEASE, .range = 2, .txn = id, .age = id, .anchor = key_of(&kb, 5)};
    cr_assert_eq(ask(w, 1, q, &a).status, SPAN_OK);
    cr_assert_eq(lock(w, 1, 2, 5, id, true, &a).status, SPAN_ABORTED);
    cr_assert_eq(left_over(w), 0);
    cr_assert_eq(ask(w, 1, q, &a).status, SPAN_OK, "harmless twice");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a_lock_wait_past_the_deadline_ends_and_others_go_on)
{
    struct world *w = world_new(54, MS_NS, false);
    struct arena a = {0};
    struct txn_id first = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id second = new_txn(w, 1);
    cr_assert_eq(lock(w, 1, 2, 5, first, true, &a).status, SPAN_OK);
    struct key kb[2];
    struct read_span s[2];
    struct range_request q1 = lock_request(&kb[0], &s[0], 2, 5, second, false);
    q1.budget_ns = 100 * MS_NS;
    struct range_request q2 = lock_request(&kb[1], &s[1], 2, 5, second, true);
    q2.budget_ns = 4 * SEC_NS;
    uint64_t short_one = post(w, 1, leader_of(w, 2), q1);
    uint64_t long_one = post(w, 1, leader_of(w, 2), q2);
    cr_assert_eq(answer(w, short_one, &a).status, SPAN_DEADLINE);
    cr_assert(!answered(w, long_one));
    struct range_request rel = {
        .op = OP_RELEASE, .range = 2, .txn = first, .age = first, .anchor = s[0].span.start};
    cr_assert_eq(ask(w, 1, rel, &a).status, SPAN_OK);
    uint64_t began = w->sim.now_ns;
    cr_assert_eq(answer(w, long_one, &a).status, SPAN_OK);
    cr_assert_lt(w->sim.now_ns - began, 50 * MS_NS);
    arena_deinit(&a);
    world_free(w);
}

/* Rule G5: past the limit locks merge, none is dropped. */
Test(store_rules, g5_a_transaction_with_very_many_locks_ends_up_with_one_on_all)
{
    enum { BATCH = 26000 };

    struct world *w = world_new(56, MS_NS, false);
    struct arena a = {0};
    struct txn_id big = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id late = new_txn(w, 2);
    struct read_span *s = span_calloc(BATCH, sizeof *s);
    uint8_t(*keys)[12] = span_calloc(BATCH, sizeof *keys);
    for (uint32_t batch = 0; batch < 4; batch++) {
        for (uint32_t i = 0; i < BATCH; i++) {
            uint32_t n = batch * BATCH + i;
            memcpy(keys[i], prefix, 7);
            keys[i][7] = 7;
            memcpy(&keys[i][8], &n, 4);
            s[i] = (struct read_span){.span = {.start = slice_of(keys[i], 12), .point = true}};
        }
        struct range_request q = {.op = OP_READ,
                                  .range = 2,
                                  .txn = big,
                                  .age = big,
                                  .budget_ns = 20 * SEC_NS,
                                  .lock = READ_LOCK_SHARED,
                                  .span_count = BATCH,
                                  .spans = s};
        cr_assert_eq(ask(w, 1, q, &a).status, SPAN_OK);
        arena_clear(&a);
    }
    struct key kb;
    struct read_span one;
    struct range_request q = lock_request(&kb, &one, 2, 200, late, true);
    uint64_t id = post(w, 2, leader_of(w, 2), q);
    sim_run_for(&w->sim, 50 * MS_NS);
    cr_assert(!answered(w, id), "a key that big never named is locked, too");
    cr_assert_leq(left_over(w), (LIMIT_TXN_LOCKS + 4) * 10);
    struct range_request rel = {
        .op = OP_RELEASE, .range = 2, .txn = big, .age = big, .anchor = one.span.start};
    cr_assert_eq(ask(w, 1, rel, &a).status, SPAN_OK);
    cr_assert_eq(answer(w, id, &a).status, SPAN_OK);
    span_free(s);
    span_free(keys);
    arena_deinit(&a);
    world_free(w);
}

/* ---- B, F: leadership, splits, births ---- */

Test(store_rules, b5_draining_hands_over_what_is_led_and_what_comes_later)
{
    struct world *w = world_new(61, MS_NS, true);
    node_id x = leader_of(w, 2);
    struct tt_now now = sim_clock(&w->sim.nodes[x]);
    store_drain(w->sim.nodes[x].store, &now);
    sim_turn_end(&w->sim.nodes[x], &now);
    sim_run_for(&w->sim, 500 * MS_NS);
    cr_assert_eq(store_leader_count(w->sim.nodes[x].store), 0);
    cr_assert(leads_3(w));
    world_free(w);
}

Test(store_rules, f5_a_split_drops_locks_of_its_right_side_only)
{
    struct world *w = world_new(62, MS_NS, false);
    struct arena a = {0};
    struct txn_id left = new_txn(w, 1);
    struct txn_id right = new_txn(w, 1);
    struct range_response l = lock(w, 1, 2, 10, left, true, &a);
    cr_assert_eq(lock(w, 1, 2, 90, right, true, &a).status, SPAN_OK);
    w->wounded = 0;
    cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_OK);
    sim_run_for(&w->sim, 50 * MS_NS);
    cr_assert_eq(w->wounded, 1);
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 10), .value = slice_str("v")};
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = left,
                              .age = left,
                              .term = l.term,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    cr_assert_eq(ask(w, 1, q, &a).status, SPAN_OK);
    cr_assert_eq(lock(w, 1, 2, 11, right, true, &a).status, SPAN_LOCKS_LOST);
    cr_assert_eq(lock(w, 1, 2, 90, new_txn(w, 1), true, &a).status, SPAN_STALE_DESCRIPTOR);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a_split_outside_the_range_or_at_a_local_key_is_refused)
{
    struct world *w = world_new(63, MS_NS, true);
    struct arena a = {0};
    cr_assert_eq(split(w, 2, 200, 9, &a).status, SPAN_STALE_DESCRIPTOR);
    uint8_t local[] = {0x00, 's', 1, 0, 0, 0};
    struct read_span s = {.span = {.start = slice_of(local, sizeof local), .point = true}};
    struct range_request q = {.op = OP_SPLIT,
                              .range = 2,
                              .txn = new_txn(w, 1),
                              .span_count = 1,
                              .spans = &s,
                              .new_range = 9};
    cr_assert_eq(ask(w, leader_of(w, 2), q, &a).status, SPAN_INVALID);
    cr_assert_eq(split(w, 2, 50, 9, &a).status, SPAN_STALE_DESCRIPTOR, "its end is not in it");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c2_an_abort_record_behind_a_split_is_void_where_its_anchor_has_left)
{
    struct world *w = world_new(64, MS_NS, false);
    struct arena a = {0};
    node_id leader = leader_of(w, 2);
    struct txn_id id = new_txn(w, leader);
    struct key kb;
    struct key pb;
    w->lost = 1u << MSG_RAFT; /* the split is proposed and does not commit yet */
    struct read_span s = {.span = {.start = key_of(&kb, 50), .point = true}};
    struct range_request q = {.op = OP_SPLIT,
                              .range = 2,
                              .txn = new_txn(w, leader),
                              .budget_ns = 3 * SEC_NS,
                              .span_count = 1,
                              .spans = &s,
                              .new_range = 3};
    uint64_t sp = post(w, leader, leader, q);
    sim_run_for(&w->sim, 10 * MS_NS);
    struct key qb;
    struct txn_query ask_of = {.coordinator = key_of(&qb, 90),
                               .txn = id,
                               .participant = key_of(&pb, 200),
                               .node = leader == 1 ? 2 : 1};
    struct buf b = {0};
    msg_encode_query(&b, MSG_TXN_QUERY, &ask_of);
    sim_local(&w->sim, leader, buf_slice(&b));
    buf_deinit(&b);
    sim_run_for(&w->sim, 10 * MS_NS);
    w->lost = 0;
    cr_assert_eq(answer(w, sp, &a).status, SPAN_OK);
    sim_run_for(&w->sim, 500 * MS_NS);
    cr_assert_eq(w->aborts_sent, 0, "told aborted by a range that is not the coordinator's");
    /* and the right side still may commit it */
    struct txn_write wr = {.key = key_of(&kb, 90), .value = slice_str("v")};
    struct range_request cq = {.op = OP_COMMIT1,
                               .range = 3,
                               .txn = id,
                               .age = id,
                               .write_count = 1,
                               .writes = &wr,
                               .anchor = wr.key};
    cr_assert_eq(ask(w, leader, cq, &a).status, SPAN_OK);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c2_a_split_carries_outcomes_to_both_sides)
{
    struct world *w = world_new(65, MS_NS, false);
    struct arena a = {0};
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 90), .value = slice_str("v")};
    struct txn_id id = new_txn(w, 1);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    struct range_response r = ask(w, 1, q, &a);
    cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_OK);
    cr_assert(sim_run_until(&w->sim, leads_3, w, 5 * SEC_NS));
    sim_run_for(&w->sim, 100 * MS_NS);
    q.range = 3;
    struct range_response again = ask(w, 1, q, &a);
    cr_assert_eq(again.status, SPAN_OK);
    cr_assert_eq(again.ts.ns, r.ts.ns);
    arena_deinit(&a);
    world_free(w);
}

/* Brings `away` back behind the others' logs: they have flushed, restarted and forgotten. */
static void come_back_late(struct world *w, node_id away)
{
    for (node_id i = 1; i <= 3; i++) {
        if (i != away) {
            struct tt_now now = sim_clock(&w->sim.nodes[i]);
            store_want_flush(w->sim.nodes[i].store, &now, 0);
            sim_turn_end(&w->sim.nodes[i], &now);
        }
    }
    sim_run_for(&w->sim, 500 * MS_NS);
    for (node_id i = 1; i <= 3; i++) {
        if (i != away) {
            sim_crash(&w->sim, i);
            sim_restart(&w->sim, i);
        }
    }
    sim_restart(&w->sim, away);
}

Test(store_rules, f1_a_member_away_during_a_split_gets_the_right_side_by_a_snapshot)
{
    struct world *w = world_new(66, MS_NS, false);
    struct arena a = {0};
    w->sim.flush_bytes = 1 * KIB;
    cr_assert_eq(put(w, 1, 2, 90, "before", &a).status, SPAN_OK);
    node_id away = leader_of(w, 2) == 3 ? 2 : 3;
    node_id gateway = leader_of(w, 2);
    sim_crash(&w->sim, away);
    cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_OK);
    cr_assert(sim_run_until(&w->sim, leads_3, w, 5 * SEC_NS));
    for (int i = 0; i < 5; i++) {
        cr_assert_eq(put(w, gateway, 2, 10, "left", &a).status, SPAN_OK);
        cr_assert_eq(put(w, gateway, 3, 90, "right", &a).status, SPAN_OK);
    }
    struct tt_ts s = put(w, gateway, 3, 91, "last", &a).ts;
    come_back_late(w, away);
    sim_run_for(&w->sim, 6 * SEC_NS);
    struct arena da = {0};
    struct range_descriptor *d;
    cr_assert_eq(store_descriptors(w->sim.nodes[away].store, &da, &d), 3, "it has all ranges");
    arena_deinit(&da);
    struct range_response r = read_at(w, away, away, 3, 91, s, &a);
    check_value(r, "last");
    /* it counts: the range lives with it and one other */
    node_id other = leader_of(w, 3) != away && leader_of(w, 3) != 0 ? leader_of(w, 3) : gateway;
    sim_crash(&w->sim, other == away ? gateway : other);
    cr_assert(sim_run_until(&w->sim, leads_3, w, 10 * SEC_NS));
    sim_run_for(&w->sim, 300 * MS_NS);
    r = put(w, away, 3, 90, "two of three", &a);
    cr_assert_eq(r.status, SPAN_OK);
    /* and it survives a restart of its own */
    sim_crash(&w->sim, away);
    sim_restart(&w->sim, away);
    sim_run_for(&w->sim, 3 * SEC_NS);
    r = read_at(w, away, away, 3, 91, s, &a);
    check_value(r, "last");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, h5_a_snapshot_of_many_chunks_arrives_over_a_bad_link_and_through_crashes)
{
    for (uint64_t seed = 200; seed < 206; seed++) {
        struct world *w = world_new(seed, MS_NS, false);
        struct arena a = {0};
        static char big[100001];
        memset(big, 'x', sizeof big - 1);
        node_id away = leader_of(w, 2) == 3 ? 2 : 3;
        node_id gateway = leader_of(w, 2);
        sim_crash(&w->sim, away);
        for (uint8_t k = 0; k < 40; k++) { /* 4 MB: eight chunks */
            big[0] = (char)('a' + k % 26);
            cr_assert_eq(put(w, gateway, 2, k, big, &a).status, SPAN_OK);
        }
        come_back_late(w, away);
        w->sim.loss = 0.05;
        w->sim.dup = 0.2;
        w->sim.dup_delay_ns = 700 * MS_NS;
        for (int i = 0; i < 4; i++) {
            sim_run_for(&w->sim, rng_below(&w->sim.rng, 900 * MS_NS));
            node_id x = (node_id)(1 + rng_below(&w->sim.rng, 3));
            sim_crash(&w->sim, x); /* the sender, the receiver or who looks on */
            sim_restart(&w->sim, x);
        }
        w->sim.loss = 0;
        sim_run_for(&w->sim, 25 * SEC_NS);
        struct tt_ts at = tt_ts_of(w->sim.now_ns - 100 * MS_NS);
        for (uint8_t k = 0; k < 40; k++) {
            big[0] = (char)('a' + k % 26);
            struct range_response r = read_at(w, away, away, 2, k, at, &a);
            check_value(r, big);
            arena_clear(&a);
        }
        arena_deinit(&a);
        world_free(w);
    }
}

static void crash_in_splits(unsigned times, uint64_t events)
{
    for (uint64_t after = 0; after < times; after++) {
        struct world *w = world_new(100 + after, MS_NS, false);
        struct arena a = {0};
        w->sim.flush_bytes = 1 * KIB;
        cr_assert_eq(put(w, 1, 2, 10, "left", &a).status, SPAN_OK);
        cr_assert_eq(put(w, 1, 2, 90, "right", &a).status, SPAN_OK);
        struct key kb;
        struct read_span s = {.span = {.start = key_of(&kb, 50), .point = true}};
        struct range_request q = {.op = OP_SPLIT,
                                  .range = 2,
                                  .txn = new_txn(w, 1),
                                  .span_count = 1,
                                  .spans = &s,
                                  .new_range = 3};
        (void)post(w, leader_of(w, 2), leader_of(w, 2), q);
        for (uint64_t i = 0; i < after * events; i++) {
            sim_step(&w->sim);
        }
        for (node_id i = 1; i <= 3; i++) {
            sim_crash(&w->sim, i);
        }
        for (node_id i = 1; i <= 3; i++) {
            sim_restart(&w->sim, i);
        }
        cr_assert(sim_run_until(&w->sim, leads_2, w, 10 * SEC_NS));
        sim_run_for(&w->sim, 3 * SEC_NS);
        struct arena da = {0};
        struct range_descriptor *d;
        bool happened = store_descriptors(w->sim.nodes[1].store, &da, &d) == 3;
        arena_deinit(&da);
        range_id right = happened ? 3 : 2;
        cr_assert(leader_of(w, right) != 0, "after %lu", (unsigned long)after);
        struct range_response r = read_at(w, 1, 0, right, 90, tt_ts_of(w->sim.now_ns), &a);
        check_value(r, "right");
        r = read_at(w, 1, 0, 2, 10, tt_ts_of(w->sim.now_ns), &a);
        check_value(r, "left");
        cr_assert_eq(put(w, 2, right, 90, "on", &a).status, SPAN_OK);
        arena_deinit(&a);
        world_free(w);
    }
}

Test(store_rules, a_split_survives_a_crash_of_everybody_at_any_moment)
{
    crash_in_splits(40, 2);
}

Test(store_rules, a_split_built_ahead_survives_a_crash_of_everybody_at_any_moment)
{
    splits_ahead = true;
    crash_in_splits(60, 4);
}

/* 4 MB of which the half goes right, while writes go on on both sides. */
static void split_under_writes(struct world *w, struct arena *a, uint64_t *longest_ns)
{
    static char big[100001];
    memset(big, 'x', sizeof big - 1);
    for (uint8_t k = 0; k < 40; k++) {
        cr_assert_eq(put(w, 1, 2, (uint8_t)(30 + k), big, a).status, SPAN_OK);
        arena_clear(a);
    }
    struct key kb;
    struct read_span s = {.span = {.start = key_of(&kb, 50), .point = true}};
    struct range_request q = {.op = OP_SPLIT,
                              .range = 2,
                              .txn = new_txn(w, 1),
                              .span_count = 1,
                              .spans = &s,
                              .new_range = 3};
    (void)post(w, leader_of(w, 2), leader_of(w, 2), q);
    char text[16] = "";
    unsigned n = 0;
    while (leader_of(w, 3) == 0) {
        uint64_t began = w->sim.now_ns;
        (void)snprintf(text, sizeof text, "v%u", n);
        bool right = n % 2 == 0;
        while (put(w, 1, right && leader_of(w, 3) != 0 ? 3 : 2, right ? 60 : 40, text, a).status !=
               SPAN_OK) {
            sim_run_for(&w->sim, MS_NS);
        }
        uint64_t took = w->sim.now_ns - began;
        *longest_ns = took > *longest_ns ? took : *longest_ns;
        arena_clear(a);
        cr_assert_lt(++n, 5000, "the split happens");
    }
    cr_assert_gt(n, 10, "there were writes while the file was built");
    sim_run_for(&w->sim, 500 * MS_NS);
    (void)snprintf(text, sizeof text, "v%u", n % 2 == 0 ? n - 2 : n - 1);
    struct range_response r = read_at(w, 1, 0, 3, 60, tt_ts_of(w->sim.now_ns), a);
    check_value(r, text);
    (void)snprintf(text, sizeof text, "v%u", n % 2 == 0 ? n - 1 : n - 2);
    r = read_at(w, 1, 0, 2, 40, tt_ts_of(w->sim.now_ns), a);
    check_value(r, text);
    r = read_at(w, 1, 0, 3, 69, tt_ts_of(w->sim.now_ns), a);
    check_value(r, big);
}

Test(store_rules, writes_go_on_while_the_right_side_of_a_split_is_built)
{
    for (uint64_t seed = 300; seed < 304; seed++) {
        struct world *w = world_new(seed, MS_NS, false);
        struct arena a = {0};
        uint64_t longest_ns = 0;
        split_under_writes(w, &a, &longest_ns);
        cr_assert_lt(longest_ns, 60 * MS_NS);
        /* And after a restart of everybody. */
        for (node_id i = 1; i <= 3; i++) {
            sim_crash(&w->sim, i);
            sim_restart(&w->sim, i);
        }
        cr_assert(sim_run_until(&w->sim, leads_3, w, 10 * SEC_NS));
        sim_run_for(&w->sim, 3 * SEC_NS);
        struct range_response r = read_at(w, 1, 0, 3, 60, tt_ts_of(w->sim.now_ns), &a);
        cr_assert(r.status == SPAN_OK && r.row_count == 1);
        arena_deinit(&a);
        world_free(w);
    }
}

Test(store_rules, a_member_that_missed_the_announcement_builds_its_right_side_before_it_applies)
{
    struct world *w = world_new(310, MS_NS, false);
    struct arena a = {0};
    node_id away = leader_of(w, 2) == 3 ? 2 : 3;
    node_id other = 6 - away - leader_of(w, 2);
    for (node_id i = 1; i <= 3; i++) {
        w->sim.cut[i][away] = w->sim.cut[away][i] = i != away;
    }
    uint64_t longest_ns = 0;
    split_under_writes(w, &a, &longest_ns);
    for (node_id i = 1; i <= 3; i++) {
        w->sim.cut[i][away] = w->sim.cut[away][i] = false;
    }
    sim_run_for(&w->sim, 6 * SEC_NS);
    sim_crash(&w->sim, other);
    cr_assert(sim_run_until(&w->sim, leads_3, w, 10 * SEC_NS));
    sim_run_for(&w->sim, 300 * MS_NS);
    cr_assert_eq(put(w, away, 3, 60, "with the late one", &a).status, SPAN_OK);
    struct range_response r = read_at(w, away, 0, 3, 69, tt_ts_of(w->sim.now_ns), &a);
    cr_assert(r.status == SPAN_OK && r.row_count == 1);
    arena_deinit(&a);
    world_free(w);
}

/* ---- merge (F3) ---- */

static uint64_t post_merge(struct world *w, range_id left, range_id right)
{
    node_id leader = leader_of(w, left);
    struct range_request q = {
        .op = OP_MERGE, .range = left, .new_range = right, .txn = new_txn(w, leader)};
    return post(w, leader, leader, q);
}

/* As the gateway does: again until there is a last word. */
static span_status try_merge(struct world *w, range_id left, range_id right)
{
    struct arena a = {0};
    span_status st = SPAN_OVERLOADED;
    for (int i = 0; i < 100 && span_status_kind(st) == SPAN_KIND_RETRY; i++) {
        if (leader_of(w, left) != 0) {
            st = span_status_from_wire(answer(w, post_merge(w, left, right), &a).status);
        }
        sim_run_for(&w->sim, 20 * MS_NS);
    }
    arena_deinit(&a);
    return st;
}

static void merge(struct world *w, range_id left, range_id right)
{
    span_status st = try_merge(w, left, right);
    cr_assert_eq(st, SPAN_OK, "%s", span_status_name(st));
}

static size_t ranges_at(struct world *w, node_id node)
{
    struct arena a = {0};
    struct range_descriptor *d;
    size_t n = store_descriptors(w->sim.nodes[node].store, &a, &d);
    arena_deinit(&a);
    return n;
}

/* What the split that made range 3 left in range 2's files goes. */
static void trim(struct world *w)
{
    for (int times = 0; times < 2; times++) {
        for (node_id i = 1; i <= 3; i++) {
            struct tt_now now = sim_clock(&w->sim.nodes[i]);
            store_want_flush(w->sim.nodes[i].store, &now, 0);
            sim_turn_end(&w->sim.nodes[i], &now);
        }
        sim_run_for(&w->sim, 300 * MS_NS);
    }
}

Test(store_rules, f3_a_merge_takes_rows_outcomes_and_schema_along)
{
    struct world *w = world_new(80, MS_NS, true);
    struct arena a = {0};
    cr_assert_eq(put(w, 1, 2, 10, "left", &a).status, SPAN_OK);
    cr_assert_eq(put(w, 1, 3, 90, "right", &a).status, SPAN_OK);
    struct txn_id two = new_txn(w, 1);
    (void)post_prepare(w, 1, two, 0, "both");
    struct tt_ts s = answer(w, post_coordinate(w, 1, two, 0, "both", SEC_NS), &a).ts;
    cr_assert(!tt_is_none(s));
    sim_run_for(&w->sim, 200 * MS_NS);
    merge(w, 2, 3);
    sim_run_for(&w->sim, 500 * MS_NS);
    for (node_id n = 1; n <= 3; n++) {
        cr_assert_eq(ranges_at(w, n), 2);
    }
    struct range_response r = read_at(w, 1, 0, 2, 90, sim_clock(&w->sim.nodes[1]).tt.latest, &a);
    check_value(r, "both");
    cr_assert_eq(status(w, 1, two, &a).ts.ns, s.ns);
    cr_assert_eq(put(w, 1, 2, 90, "after", &a).status, SPAN_OK);
    struct key kb;
    struct read_span span;
    struct range_request late = lock_request(&kb, &span, 3, 90, new_txn(w, 1), true);
    r = answer(w, post(w, 1, leader_of(w, 2), late), &a);
    cr_assert_eq(r.status, SPAN_STALE_DESCRIPTOR);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, f3_nothing_is_written_below_what_the_right_side_was_read_at)
{
    struct world *w = world_new(81, 7 * MS_NS, true);
    struct arena a = {0};
    transfer(w, 2, 2);
    transfer(w, 3, 2);
    for (node_id n = 1; n <= 3; n++) {
        w->sim.nodes[n].offset_ns = n == 2 ? -6 * (int64_t)MS_NS : 6 * (int64_t)MS_NS;
    }
    sim_run_for(&w->sim, 300 * MS_NS);
    struct tt_ts at = tt_add(sim_clock(&w->sim.nodes[1]).tt.latest, 60 * MS_NS);
    cr_assert_eq(read_at(w, 1, 0, 3, 90, at, &a).status, SPAN_OK);
    merge(w, 2, 3);
    struct tt_ts s = put(w, 1, 2, 90, "after", &a).ts;
    cr_assert_gt(s.ns, at.ns);
    arena_deinit(&a);
    world_free(w);
}

/* Crashes of one node at every eighth of a millisecond of a merge: it ends one way or the other,
 * everywhere, and nothing is lost. */
Test(store_rules, f3_a_merge_survives_a_crash_at_any_moment)
{
    unsigned whole = 0;  /* ended without help, one way ... */
    unsigned undone = 0; /* ... or the other */
    for (unsigned at = 0; at < 40; at++) {
        struct world *w = world_new(83 + at, MS_NS, true);
        struct arena a = {0};
        node_id victim = 1 + at % 3;
        cr_assert_eq(put(w, 1, 2, 10, "left", &a).status, SPAN_OK);
        cr_assert_eq(put(w, 1, 3, 90, "right", &a).status, SPAN_OK);
        transfer(w, 2, 1);
        transfer(w, 3, 1);
        trim(w);
        (void)post_merge(w, 2, 3);
        sim_run_for(&w->sim, at * (MS_NS / 8));
        sim_crash(&w->sim, victim);
        sim_run_for(&w->sim, 200 * MS_NS);
        sim_restart(&w->sim, victim);
        cr_assert(sim_run_until(&w->sim, leads_2, w, 10 * SEC_NS));
        sim_run_for(&w->sim, 3 * SEC_NS);
        size_t ranges = ranges_at(w, 1);
        for (node_id n = 2; n <= 3; n++) {
            cr_assert_eq(ranges_at(w, n), ranges, "crash of %u at %u", victim, at);
        }
        whole += ranges == 2 ? 1 : 0;
        undone += ranges == 3 ? 1 : 0;
        if (ranges == 3) {
            merge(w, 2, 3);
        }
        struct tt_ts now = sim_clock(&w->sim.nodes[1]).tt.latest;
        struct range_response left = read_at(w, 1, 0, 2, 10, now, &a);
        check_value(left, "left");
        struct range_response right = read_at(w, 1, 0, 2, 90, now, &a);
        check_value(right, "right");
        arena_deinit(&a);
        world_free(w);
    }
    cr_assert_gt(whole, 5, "%u whole, %u undone", whole, undone);
    cr_assert_gt(undone, 0, "%u whole, %u undone", whole, undone);
}

Test(store_rules, f3_ranges_that_are_no_neighbours_or_have_other_members_are_refused)
{
    struct world *w = world_new(130, MS_NS, true);
    struct arena a = {0};
    cr_assert_eq(split(w, 3, 150, 4, &a).status, SPAN_OK);
    sim_run_for(&w->sim, 500 * MS_NS);
    node_id to = leader_of(w, 2);
    transfer(w, 4, to);
    cr_assert_eq(try_merge(w, 2, 4), SPAN_INVALID);
    cr_assert_eq(try_merge(w, 2, 9), SPAN_INVALID);
    cr_assert_eq(try_merge(w, 1, 2), SPAN_INVALID);
    arena_deinit(&a);
    world_free(w);
}

/* A split whose answer was lost is sent again after a merge undid it. */
Test(store_rules, f3_a_number_is_not_given_twice)
{
    struct world *w = world_new(131, MS_NS, true);
    struct arena a = {0};
    merge(w, 2, 3);
    cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_EXISTS);
    cr_assert_eq(split(w, 2, 100, 5, &a).status, SPAN_OK);
    sim_run_for(&w->sim, 500 * MS_NS);
    cr_assert_eq(split(w, 5, 150, 3, &a).status, SPAN_EXISTS);
    arena_deinit(&a);
    world_free(w);
}
