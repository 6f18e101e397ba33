/* A replica whose file is damaged is rebuilt from its leader, and forgets nothing that it
 * acknowledged (store_rebuild.c): one scenario each. Three nodes; range 2 is what is damaged. Bytes
 * are changed as a disk would, by another hand than the engine's. */
#include "base/alloc.h"
#include "base/planted.h"
#include "tests/lib/store_sim.h"

#include <criterion/criterion.h>
#include <glob.h>
#include <sqlite3.h>
#include <stdio.h>
#include <unistd.h>

struct world {
    struct sim sim;
    uint64_t next_id;
    uint64_t waiting;
    bool have;
    uint16_t status;
    struct buf value; /* of the last read */
    node_id mute;     /* what it is sent of snapshots is kept ... */
    uint8_t mute_kind;
    struct buf held; /* ... here: the last one */
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
    if (kind == w->mute_kind && to == w->mute) {
        buf_set(&w->held, body);
        return false;
    }
    return true;
}

static void world_free(struct world *w)
{
    sim_deinit(&w->sim);
    buf_deinit(&w->value);
    buf_deinit(&w->held);
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

static struct world *begin(uint64_t seed)
{
    struct world *w = SPAN_NEW(struct world);
    sim_init(&w->sim, seed, 3);
    w->sim.on_gateway = on_gateway;
    w->sim.filter = filter;
    w->sim.ctx = w;
    sim_boot(&w->sim);
    cr_assert(sim_run_until(&w->sim, leads, w, 10 * SEC_NS));
    return w;
}

static node_id follower_of(struct world *w, range_id range)
{
    return leader_of(w, range) == 3 ? 2 : 3;
}

static void flush(struct world *w, node_id node)
{
    struct tt_now now = sim_clock(&w->sim.nodes[node]);
    store_want_flush(w->sim.nodes[node].store, &now, 0);
    sim_turn_end(&w->sim.nodes[node], &now);
    sim_run_for(&w->sim, 100 * MS_NS);
}

static size_t damaged_at(const struct world *w, node_id node, char *text, size_t size)
{
    return store_damaged(w->sim.nodes[node].store, text, size);
}

/* Files at the node by pattern; the first one's path. */
static size_t files(const struct world *w, node_id node, const char *pattern, char *out,
                    size_t size)
{
    char full[512];
    glob_t g;
    (void)snprintf(full, sizeof full, "%s/%s", w->sim.nodes[node].dir, pattern);
    size_t n = glob(full, 0, NULL, &g) == 0 ? g.gl_pathc : 0;
    if (n > 0 && out != NULL) {
        (void)snprintf(out, size, "%s", g.gl_pathv[0]);
    }
    globfree(&g);
    return n;
}

/* One bit of the value of every user row of range 2; the checksums stay. */
static void flip_rows(const struct world *w, node_id node)
{
    char path[512];
    sqlite3 *db;
    cr_assert_eq(files(w, node, "r2.g*.db", path, sizeof path), 1);
    cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
    char *err = NULL;
    int rc = sqlite3_exec(db,
                          "UPDATE current SET v = CAST(x'7e' AS BLOB) || substr(v, 2)"
                          " WHERE k >= x'01'",
                          NULL, NULL, &err);
    cr_assert_eq(rc, SQLITE_OK, "%s", err);
    cr_assert_gt(sqlite3_changes(db), 0);
    cr_assert_eq(sqlite3_close(db), SQLITE_OK);
}

/* The whole file is something else. */
static void shred(const struct world *w, node_id node)
{
    char path[512];
    cr_assert_eq(files(w, node, "r2.g*.db", path, sizeof path), 1);
    FILE *f = fopen(path, "r+b");
    cr_assert_not_null(f);
    for (int i = 0; i < 8192; i++) {
        (void)fputc(0xa5, f);
    }
    (void)fclose(f);
}

struct at {
    struct world *w;
    node_id node;
};

static bool is_rebuilt(void *ctx)
{
    struct at *a = ctx;
    struct range_descriptor d;
    return a->w->sim.nodes[a->node].alive && damaged_at(a->w, a->node, NULL, 0) == 0 &&
           descriptor_at(a->w, a->node, 2, &d) && d.leader != 0;
}

static bool is_damaged(void *ctx)
{
    struct at *a = ctx;
    return a->w->sim.nodes[a->node].alive && damaged_at(a->w, a->node, NULL, 0) == 1;
}

/* A read of a key at a node, whoever leads: what finds the damage. */
static void read_at(struct world *w, node_id node, uint8_t key)
{
    uint8_t kb[8];
    struct read_span s = {.span = {.start = key_of(kb, key), .point = true}};
    struct range_request q = {.op = OP_READ,
                              .range = 2,
                              .request_id = w->waiting = ++w->next_id,
                              .gateway = node,
                              .incarnation = 1,
                              .budget_ns = SEC_NS,
                              .follower_ok = true,
                              .read_ts = tt_ts_of(w->sim.now_ns - 300 * MS_NS),
                              .span_count = 1,
                              .spans = &s};
    w->have = false;
    struct buf b = {0};
    msg_encode_request(&b, &q);
    sim_local(&w->sim, node, buf_slice(&b));
    buf_deinit(&b);
    (void)sim_run_until(&w->sim, has_answer, w, SEC_NS);
}

Test(store_rebuild, a_follower_with_flipped_rows_is_rebuilt_and_its_file_is_kept_aside)
{
    struct world *w = begin(1);
    struct at a = {w, follower_of(w, 2)};
    char text[300];
    put(w, 2, 10, "a");
    put(w, 2, 11, "b");
    flush(w, a.node);
    flip_rows(w, a.node);
    sim_run_for(&w->sim, SEC_NS);
    put(w, 2, 12, "c");
    flush(w, a.node); /* its reader looks at the file anew */
    read_at(w, a.node, 10);
    cr_assert_eq(w->status, SPAN_NOT_LEADER);
    cr_assert_eq(damaged_at(w, a.node, text, sizeof text), 1);
    cr_assert_not_null(strstr(text, "checksum of a row"), "%s", text);
    cr_assert(sim_run_until(&w->sim, is_rebuilt, &a, 5 * SEC_NS));
    sim_run_for(&w->sim, SEC_NS);
    read_at(w, a.node, 10);
    cr_assert_eq(w->status, SPAN_OK);
    cr_assert(slice_eq(buf_slice(&w->value), slice_str("a")));
    cr_assert_eq(files(w, a.node, "damaged-r2.g1.db", NULL, 0), 1);
    cr_assert_eq(files(w, a.node, "r2.g1.db*", NULL, 0), 0);
    /* For good: also after a restart. */
    sim_crash(&w->sim, a.node);
    sim_restart(&w->sim, a.node);
    cr_assert_eq(damaged_at(w, a.node, NULL, 0), 0);
    cr_assert(sim_run_until(&w->sim, is_rebuilt, &a, 5 * SEC_NS));
    world_free(w);
}

Test(store_rebuild, a_leader_with_flipped_rows_is_followed_by_another_and_rebuilt)
{
    struct world *w = begin(2);
    struct at a = {w, leader_of(w, 2)};
    put(w, 2, 10, "a");
    flush(w, a.node);
    flip_rows(w, a.node);
    put(w, 2, 12, "c");
    flush(w, a.node);
    check_value(w, 2, 10, "a"); /* asks the leader, is refused, asks the next one */
    cr_assert_neq(leader_of(w, 2), 0);
    cr_assert(sim_run_until(&w->sim, is_rebuilt, &a, 5 * SEC_NS));
    cr_assert_eq(files(w, a.node, "damaged-r2.g1.db", NULL, 0), 1);
    check_value(w, 2, 12, "c");
    world_free(w);
}

Test(store_rebuild, a_file_that_can_not_be_opened_does_not_keep_the_node_down)
{
    struct world *w = begin(3);
    struct at a = {w, follower_of(w, 2)};
    put(w, 2, 10, "a");
    flush(w, a.node);
    sim_crash(&w->sim, a.node);
    shred(w, a.node);
    put(w, 2, 11, "b");
    w->mute = a.node; /* no snapshot comes through for now */
    w->mute_kind = MSG_SNAPSHOT;
    sim_restart(&w->sim, a.node);
    sim_run_for(&w->sim, SEC_NS);
    cr_assert(is_damaged(&a));
    cr_assert_gt(w->held.size, 0);
    /* Killed meanwhile it knows, also when the file is gone already. */
    sim_crash(&w->sim, a.node);
    sim_restart(&w->sim, a.node);
    cr_assert(is_damaged(&a));
    /* The answer to an earlier life's question makes nothing. */
    w->mute = 0;
    struct sim_node *n = &w->sim.nodes[a.node];
    struct tt_now now = sim_clock(n);
    store_message(n->store, &now, leader_of(w, 2), MSG_SNAPSHOT, buf_slice(&w->held));
    sim_turn_end(n, &now);
    cr_assert(is_damaged(&a));
    cr_assert(sim_run_until(&w->sim, is_rebuilt, &a, 15 * SEC_NS));
    sim_run_for(&w->sim, SEC_NS);
    read_at(w, a.node, 11);
    cr_assert(slice_eq(buf_slice(&w->value), slice_str("b")));
    world_free(w);
}

enum kept { KEPT, FORGOTTEN, LEADER_GONE };

/* What the leader and the damaged one acknowledged and the third never saw must outlive the leader:
 * the file that is gone held a part of it, the log the rest. */
static enum kept acknowledged_outlives_the_leader(uint64_t seed)
{
    struct world *w = begin(seed);
    node_id leader = leader_of(w, 2);
    struct at a = {w, follower_of(w, 2)};
    node_id third = 6 - leader - a.node;
    put(w, 2, 9, "z");
    flush(w, leader);
    w->mute = third; /* hears heartbeats, and gives its promise; no entry reaches it */
    w->mute_kind = MSG_RAFT;
    put(w, 2, 10, "a");
    flush(w, a.node); /* in its file alone, and the leader's log */
    put(w, 2, 11, "b");
    sim_crash(&w->sim, a.node);
    shred(w, a.node);
    sim_restart(&w->sim, a.node);
    bool rebuilt = sim_run_until(&w->sim, is_rebuilt, &a, SEC_NS);
    sim_crash(&w->sim, leader);
    w->mute = 0;
    uint8_t kb[8];
    struct read_span s = {.span = {.start = key_of(kb, 11), .point = true}};
    sim_run_for(&w->sim, 3 * SEC_NS);
    struct range_request q = {.op = OP_READ,
                              .range = 2,
                              .read_ts = tt_ts_of(w->sim.now_ns - 2 * MS_NS),
                              .span_count = 1,
                              .spans = &s};
    enum kept kept = LEADER_GONE; /* before the other was back */
    if (rebuilt) {
        bool there = ask(w, q) == SPAN_OK && slice_eq(buf_slice(&w->value), slice_str("b"));
        kept = there ? KEPT : FORGOTTEN;
    }
    world_free(w);
    return kept;
}

Test(store_rebuild, nothing_it_acknowledged_is_forgotten)
{
    unsigned kept = 0;
    for (uint64_t seed = 4; seed < 14; seed++) {
        enum kept k = acknowledged_outlives_the_leader(seed);
        cr_assert_neq(k, FORGOTTEN, "seed %lu", (unsigned long)seed);
        kept += k == KEPT ? 1 : 0;
    }
    cr_assert_gt(kept, 2);
}

Test(store_rebuild, a_planted_one_that_forgets_is_noticed)
{
    unsigned forgotten = 0;
    cr_assert_not_null(planted_set("rebuild-forgets"));
    for (uint64_t seed = 4; seed < 14; seed++) {
        forgotten += acknowledged_outlives_the_leader(seed) == FORGOTTEN ? 1 : 0;
    }
    cr_assert_gt(forgotten, 2);
}

static uint16_t change(struct world *w, range_id range, node_id add, node_id remove)
{
    struct range_request q = {
        .op = OP_MEMBERS, .range = range, .new_range = RANGE_MEMBERS(add, remove)};
    return ask(w, q);
}

Test(store_rebuild, one_that_was_removed_meanwhile_is_not_rebuilt)
{
    struct world *w = begin(10);
    struct at a = {w, follower_of(w, 2)};
    put(w, 2, 10, "a");
    flush(w, a.node);
    sim_crash(&w->sim, a.node);
    shred(w, a.node);
    cr_assert_eq(change(w, 2, 0, a.node), SPAN_OK);
    sim_restart(&w->sim, a.node);
    cr_assert(is_damaged(&a));
    sim_run_for(&w->sim, 12 * SEC_NS);
    struct range_descriptor d;
    cr_assert_eq(damaged_at(w, a.node, NULL, 0), 0);
    cr_assert_not(descriptor_at(w, a.node, 2, &d));
    /* And comes back as a new member. */
    cr_assert_eq(change(w, 2, a.node, 0), SPAN_OK);
    cr_assert(sim_run_until(&w->sim, is_rebuilt, &a, 15 * SEC_NS));
    world_free(w);
}
