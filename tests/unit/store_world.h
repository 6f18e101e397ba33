/* A world of three stores for scenarios of single rules: hand-made requests of a gateway, messages
 * held up where the scenario wants it. Range 2 holds keys 0..49, range 3 keys 50..255. */
#ifndef SPAN_TESTS_STORE_WORLD_H
#define SPAN_TESTS_STORE_WORLD_H

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

static inline void on_gateway(void *ctx, struct sim_node *n, const struct tt_now *now, node_id from,
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

static inline bool filter(void *ctx, node_id from, node_id to, uint8_t kind, struct slice body)
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

static inline node_id leader_of(const struct world *w, range_id range)
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

static inline bool leads_2(void *ctx)
{
    return leader_of(ctx, 1) != 0 && leader_of(ctx, 2) != 0;
}

static inline bool leads_3(void *ctx)
{
    return leads_2(ctx) && leader_of(ctx, 3) != 0;
}

/* ---- requests ---- */

static const uint8_t prefix[] = {0x01, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00};

struct key {
    uint8_t b[8];
};

static inline struct slice key_of(struct key *k, uint8_t n)
{
    memcpy(k->b, prefix, 7);
    k->b[7] = n;
    return slice_of(k->b, 8);
}

static inline struct txn_id new_txn(struct world *w, node_id gateway)
{
    return (struct txn_id){sim_clock(&w->sim.nodes[gateway]).tt.latest.ns, gateway,
                           (uint32_t)++w->next_id};
}

/* Leaves now; its answer comes under the id that is returned. */
static inline uint64_t post(struct world *w, node_id from, node_id to, struct range_request q)
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

static inline bool has_answer(void *ctx)
{
    struct world *w = ctx;
    return w->have[w->waiting % ANSWERS];
}

static inline bool answered(const struct world *w, uint64_t id)
{
    return w->have[id % ANSWERS];
}

static inline struct range_response answer(struct world *w, uint64_t id, struct arena *a)
{
    struct range_response r = {.status = SPAN_INTERNAL};
    w->waiting = id;
    cr_assert(sim_run_until(&w->sim, has_answer, w, 8 * SEC_NS), "no answer");
    cr_assert_eq(msg_decode_response(buf_slice(&w->answers[id % ANSWERS]), a, &r), SPAN_OK);
    return r;
}

static inline struct range_response ask(struct world *w, node_id from, struct range_request q,
                                        struct arena *a)
{
    return answer(w, post(w, from, leader_of(w, q.range), q), a);
}

/* A locking read of one key. */
static inline struct range_request lock_request(struct key *kb, struct read_span *s, range_id range,
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

static inline struct range_response lock(struct world *w, node_id from, range_id range, uint8_t key,
                                         struct txn_id txn, bool exclusive, struct arena *a)
{
    struct key kb;
    struct read_span s;
    return ask(w, from, lock_request(&kb, &s, range, key, txn, exclusive), a);
}

static inline struct range_response read_at(struct world *w, node_id from, node_id to,
                                            range_id range, uint8_t key, struct tt_ts at,
                                            struct arena *a)
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

static inline struct range_response put(struct world *w, node_id from, range_id range, uint8_t key,
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
static inline uint64_t post_prepare(struct world *w, node_id from, struct txn_id txn, uint64_t term,
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

static inline uint64_t post_coordinate(struct world *w, node_id from, struct txn_id txn,
                                       uint64_t term, const char *value, uint64_t budget_ns)
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

static inline struct range_response status(struct world *w, node_id from, struct txn_id txn,
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

static inline void transfer(struct world *w, range_id range, node_id to)
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

static inline struct range_response split(struct world *w, range_id left, uint8_t key,
                                          range_id right, struct arena *a)
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
static inline size_t left_over(struct world *w)
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

static inline struct world *world_new(uint64_t seed, uint64_t epsilon_ns, bool two_ranges)
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

static inline void world_free(struct world *w)
{
    sim_deinit(&w->sim);
    for (size_t i = 0; i < ANSWERS; i++) {
        buf_deinit(&w->answers[i]);
    }
    span_free(w);
}

#endif
