/* Codec of messages and log commands: everything comes back as it was for random contents; every
 * truncation, every other version and every unbounded count is refused; flipped bytes never crash
 * (ASan: inputs lie at the end of exact allocations). */
#include "base/alloc.h"
#include "base/rng.h"
#include "txn/txn_codec.h"

#include <criterion/criterion.h>
#include <stdio.h>

#define MANY 6 /* elements of a random array, at most */

static struct rng g;
static struct arena made; /* what random contents borrow */

/* ---- random contents ---- */

static uint64_t any64(void)
{
    uint64_t v = rng_u64(&g);
    return v >> rng_below(&g, 64);
}

static bool any_bool(void)
{
    return rng_below(&g, 2) == 0;
}

static struct slice any_bytes(size_t min, size_t max)
{
    size_t n = min + rng_below(&g, max - min + 1);
    uint8_t *p = arena_alloc(&made, n + 1);
    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t)rng_u64(&g);
    }
    return slice_of(p, n);
}

static struct slice any_key(void)
{
    return any_bytes(1, rng_below(&g, 20) == 0 ? LIMIT_KEY_BYTES : 12);
}

static struct tt_ts any_ts(void)
{
    return tt_ts_of(any64());
}

static struct txn_id any_txn(void)
{
    return (struct txn_id){any64() | 1, (uint32_t)rng_u64(&g), (uint32_t)rng_u64(&g)};
}

static struct tt_interval any_interval(void)
{
    struct tt_interval i = {any_ts(), {0}};
    i.latest.ns = i.earliest.ns + rng_below(&g, 1000);
    if (i.latest.ns < i.earliest.ns) {
        i.latest = i.earliest;
    }
    return i;
}

static struct span any_span(void)
{
    struct span s = {.start = any_bytes(0, 9), .point = any_bool()};
    if (!s.point) {
        s.end = any_bytes(0, 9);
    }
    return s;
}

static size_t any_count(void)
{
    return rng_below(&g, MANY + 1);
}

static struct txn_write *any_writes(size_t *n)
{
    *n = any_count();
    struct txn_write *w = arena_alloc(&made, (*n + 1) * sizeof *w);
    for (size_t i = 0; i < *n; i++) {
        w[i].key = any_key();
        w[i].tombstone = any_bool();
        if (!w[i].tombstone) {
            w[i].value = any_bytes(0, 40);
        }
    }
    return w;
}

static struct txn_participant *any_participants(size_t *n)
{
    *n = any_count();
    struct txn_participant *p = arena_alloc(&made, (*n + 1) * sizeof *p);
    for (size_t i = 0; i < *n; i++) {
        p[i] = (struct txn_participant){any_key(), any64(), (uint32_t)rng_u64(&g)};
    }
    return p;
}

static struct range_descriptor any_descriptor(void)
{
    struct range_descriptor d = {.range = any64(),
                                 .generation = any64(),
                                 .start = any_bytes(0, 9),
                                 .end = any_bytes(0, 9),
                                 .leader = (uint32_t)rng_u64(&g)};
    d.member_count = rng_below(&g, LIMIT_REPLICAS + 1);
    for (size_t i = 0; i < d.member_count; i++) {
        d.members[i] = (uint32_t)rng_u64(&g);
    }
    return d;
}

static struct range_descriptor *any_descriptors(size_t *n)
{
    *n = any_count();
    struct range_descriptor *d = arena_alloc(&made, (*n + 1) * sizeof *d);
    for (size_t i = 0; i < *n; i++) {
        d[i] = any_descriptor();
    }
    return d;
}

static struct txn_id *any_txns(size_t *n)
{
    *n = any_count();
    struct txn_id *t = arena_alloc(&made, (*n + 1) * sizeof *t);
    for (size_t i = 0; i < *n; i++) {
        t[i] = any_txn();
    }
    return t;
}

/* ---- one entry per message and command ----
 *
 * encode writes random contents, decode takes a body and encodes what it got again: equal bytes
 * mean equal contents, because encodings are injective (a field the encoder left out would be
 * caught by *_keeps_every_field below). */

struct kind {
    const char *name;
    uint8_t msg; /* 0: a command, its encoding is the body */
    void (*make)(struct buf *out);
    span_status (*again)(struct slice body, struct arena *a, struct buf *out);
    size_t tail; /* bytes of free content at the end, whose truncation is no error */
};

static struct range_request any_request(void)
{
    struct range_request m = {
        .op = (uint8_t)(1 + rng_below(&g, OP_TRANSFER)),
        .request_id = any64(),
        .gateway = (uint32_t)rng_u64(&g),
        .incarnation = any64(),
        .range = any64(),
        .generation = any64(),
        .term = any64(),
        .txn = any_txn(),
        .age = any_txn(),
        .budget_ns = any64(),
        .may_wait = any_bool(),
        .follower_ok = any_bool(),
        .read_ts = any_ts(),
        .seen = any_ts(),
        .lock = (uint8_t)rng_below(&g, 3),
        .anchor = any_bytes(0, 9),
        .coordinator = any_bytes(0, 9),
        .coordinator_range = any64(),
        .coordinator_node = (uint32_t)rng_u64(&g),
        .new_range = any64(),
    };
    m.span_count = any_count();
    m.spans = arena_alloc(&made, (m.span_count + 1) * sizeof *m.spans);
    for (size_t i = 0; i < m.span_count; i++) {
        m.spans[i] = (struct read_span){any_span(), any_bool(), (uint32_t)rng_u64(&g)};
    }
    m.schema_count = any_count();
    m.schema = arena_alloc(&made, (m.schema_count + 1) * sizeof *m.schema);
    for (size_t i = 0; i < m.schema_count; i++) {
        m.schema[i] = (struct schema_use){(uint32_t)rng_u64(&g), any64()};
    }
    m.writes = any_writes(&m.write_count);
    m.participants = any_participants(&m.participant_count);
    return m;
}

static void make_request(struct buf *out)
{
    struct range_request m = any_request();
    msg_encode_request(out, &m);
}

static span_status again_request(struct slice body, struct arena *a, struct buf *out)
{
    struct range_request m;
    span_status st = msg_decode_request(body, a, &m);
    if (st == SPAN_OK) {
        msg_encode_request(out, &m);
    }
    return st;
}

static struct range_response any_response(void)
{
    struct range_response m = {
        .request_id = any64(),
        .op = (uint8_t)rng_u64(&g),
        .status = (uint16_t)rng_u64(&g),
        .range = any64(),
        .generation = any64(),
        .term = any64(),
        .leader = (uint32_t)rng_u64(&g),
        .seen = any_ts(),
        .ts = any_ts(),
        .txn_state = (uint8_t)rng_u64(&g),
        .text = any_bytes(0, 30),
    };
    m.row_count = any_count();
    m.rows = arena_alloc(&made, (m.row_count + 1) * sizeof *m.rows);
    for (size_t i = 0; i < m.row_count; i++) {
        m.rows[i] = (struct row){any_bytes(0, 9), any_bytes(0, 60), (uint32_t)any64()};
    }
    m.resume_count = any_count();
    m.resumes = arena_alloc(&made, (m.resume_count + 1) * sizeof *m.resumes);
    for (size_t i = 0; i < m.resume_count; i++) {
        m.resumes[i] = (struct read_resume){(uint32_t)any64(), any_bytes(0, 9)};
    }
    m.descriptors = any_descriptors(&m.descriptor_count);
    return m;
}

static void make_response(struct buf *out)
{
    struct range_response m = any_response();
    msg_encode_response(out, &m);
}

static span_status again_response(struct slice body, struct arena *a, struct buf *out)
{
    struct range_response m;
    span_status st = msg_decode_response(body, a, &m);
    if (st == SPAN_OK) {
        msg_encode_response(out, &m);
    }
    return st;
}

static void make_vote(struct buf *out)
{
    struct txn_vote m = {any_key(),        (uint8_t)rng_u64(&g), any_txn(),  any_key(),
                         any64(),          (uint32_t)any64(),    any_bool(), any_ts(),
                         (uint16_t)any64()};
    msg_encode_vote(out, &m);
}

static span_status again_vote(struct slice body, struct arena *a, struct buf *out)
{
    struct txn_vote m;
    (void)a;
    span_status st = msg_decode_vote(body, &m);
    if (st == SPAN_OK) {
        msg_encode_vote(out, &m);
    }
    return st;
}

static void make_outcome(struct buf *out)
{
    struct txn_outcome m = {.participant = any_key(),
                            .hops = (uint8_t)rng_u64(&g),
                            .txn = any_txn(),
                            .commit = any_bool(),
                            .coordinator = any_key(),
                            .node = (uint32_t)any64()};
    m.ts = m.commit ? tt_ts_of(any64() | 1) : tt_ts_of(0);
    msg_encode_outcome(out, &m);
}

static span_status again_outcome(struct slice body, struct arena *a, struct buf *out)
{
    struct txn_outcome m;
    (void)a;
    span_status st = msg_decode_outcome(body, &m);
    if (st == SPAN_OK) {
        msg_encode_outcome(out, &m);
    }
    return st;
}

static void make_ack(struct buf *out)
{
    struct txn_outcome_ack m = {any_key(), (uint8_t)rng_u64(&g), any_txn(), any_key()};
    msg_encode_outcome_ack(out, &m);
}

static span_status again_ack(struct slice body, struct arena *a, struct buf *out)
{
    struct txn_outcome_ack m;
    (void)a;
    span_status st = msg_decode_outcome_ack(body, &m);
    if (st == SPAN_OK) {
        msg_encode_outcome_ack(out, &m);
    }
    return st;
}

static void make_query(struct buf *out)
{
    struct txn_query m = {any_key(),       (uint8_t)rng_u64(&g), any_txn(),
                          any_bytes(0, 9), (uint32_t)any64(),    any_txn()};
    msg_encode_query(out, any_bool() ? MSG_TXN_QUERY : MSG_WOUND, &m);
}

static span_status again_query(struct slice body, struct arena *a, struct buf *out)
{
    struct txn_query m;
    (void)a;
    span_status st = msg_decode_query(body, &m);
    if (st == SPAN_OK) {
        msg_encode_query(out, MSG_TXN_QUERY, &m);
    }
    return st;
}

static void make_wounded(struct buf *out)
{
    struct txn_wounded m = {any64(), any64(), any_txn(), (uint16_t)any64()};
    msg_encode_wounded(out, &m);
}

static span_status again_wounded(struct slice body, struct arena *a, struct buf *out)
{
    struct txn_wounded m;
    (void)a;
    span_status st = msg_decode_wounded(body, &m);
    if (st == SPAN_OK) {
        msg_encode_wounded(out, &m);
    }
    return st;
}

static void make_keepalive(struct buf *out)
{
    struct keepalive m = {.gateway = (uint32_t)any64(), .incarnation = any64()};
    m.txns = any_txns(&m.count);
    msg_encode_keepalive(out, &m);
}

static span_status again_keepalive(struct slice body, struct arena *a, struct buf *out)
{
    struct keepalive m;
    span_status st = msg_decode_keepalive(body, a, &m);
    if (st == SPAN_OK) {
        msg_encode_keepalive(out, &m);
    }
    return st;
}

static void make_heartbeat(struct buf *out)
{
    struct heartbeat m = {.from = (uint32_t)any64(),
                          .sent = any_interval(),
                          .seq = any64(),
                          .lease_end = any_ts(),
                          .closed = any_ts(),
                          .unfit = any_bool(),
                          .replicas = (uint32_t)any64(),
                          .nodes_version = any64(),
                          .count = any_count()};
    m.ranges = arena_alloc(&made, (m.count + 1) * sizeof *m.ranges);
    for (size_t i = 0; i < m.count; i++) {
        m.ranges[i] = (struct heartbeat_range){any64(),    any64(),    any64(), any64(),
                                               any_bool(), any_bool(), any64()};
    }
    msg_encode_heartbeat(out, &m);
}

static span_status again_heartbeat(struct slice body, struct arena *a, struct buf *out)
{
    struct heartbeat m;
    span_status st = msg_decode_heartbeat(body, a, &m);
    if (st == SPAN_OK) {
        msg_encode_heartbeat(out, &m);
    }
    return st;
}

static void make_heartbeat_ack(struct buf *out)
{
    struct heartbeat_ack m = {.from = (uint32_t)any64(),
                              .sent = any_interval(),
                              .echo_sent = any_interval(),
                              .seq = any64(),
                              .count = any_count()};
    m.ranges = arena_alloc(&made, (m.count + 1) * sizeof *m.ranges);
    for (size_t i = 0; i < m.count; i++) {
        m.ranges[i] =
            (struct heartbeat_ack_range){any64(), any_bool(), any64(),    any_ts(),  any64(),
                                         any64(), any64(),    any_bool(), any_bool()};
    }
    msg_encode_heartbeat_ack(out, &m);
}

static span_status again_heartbeat_ack(struct slice body, struct arena *a, struct buf *out)
{
    struct heartbeat_ack m;
    span_status st = msg_decode_heartbeat_ack(body, a, &m);
    if (st == SPAN_OK) {
        msg_encode_heartbeat_ack(out, &m);
    }
    return st;
}

static void make_node_request(struct buf *out)
{
    struct node_request m = {(uint8_t)rng_u64(&g), any64(), (uint32_t)any64(), (uint32_t)any64(),
                             any_bytes(0, 20)};
    msg_encode_node_request(out, &m);
}

static span_status again_node_request(struct slice body, struct arena *a, struct buf *out)
{
    struct node_request m;
    (void)a;
    span_status st = msg_decode_node_request(body, &m);
    if (st == SPAN_OK) {
        msg_encode_node_request(out, &m);
    }
    return st;
}

static void make_node_response(struct buf *out)
{
    struct node_response m = {.request_id = any64(),
                              .node = (uint32_t)any64(),
                              .status = (uint16_t)any64(),
                              .text = any_bytes(0, 20),
                              .columns = 1 + (uint32_t)rng_below(&g, 3)};
    m.descriptors = any_descriptors(&m.descriptor_count);
    m.cell_count = any_count() * m.columns;
    m.cells = arena_alloc(&made, (m.cell_count + 1) * sizeof *m.cells);
    for (size_t i = 0; i < m.cell_count; i++) {
        m.cells[i] = any_bool() ? any_bytes(0, 9) : slice_of(NULL, 0);
    }
    msg_encode_node_response(out, &m);
}

static span_status again_node_response(struct slice body, struct arena *a, struct buf *out)
{
    struct node_response m;
    span_status st = msg_decode_node_response(body, a, &m);
    if (st == SPAN_OK) {
        msg_encode_node_response(out, &m);
    }
    return st;
}

static void make_range_bytes(struct buf *out)
{
    msg_encode_range_bytes(out, MSG_RAFT, any64(), any_bytes(20, 20));
}

static span_status again_range_bytes(struct slice body, struct arena *a, struct buf *out)
{
    range_id id;
    struct slice bytes;
    (void)a;
    span_status st = msg_decode_range_bytes(body, &id, &bytes);
    if (st == SPAN_OK) {
        msg_encode_range_bytes(out, MSG_RAFT, id, bytes);
    }
    return st;
}

static void make_open(struct buf *out)
{
    struct cmd_open c = {any_ts()};
    cmd_encode_open(out, &c);
}

static span_status again_open(struct slice in, struct arena *a, struct buf *out)
{
    struct cmd_open c;
    (void)a;
    span_status st = cmd_decode_open(in, &c);
    if (st == SPAN_OK) {
        cmd_encode_open(out, &c);
    }
    return st;
}

static void make_commit(struct buf *out)
{
    struct cmd_commit c = {.txn = any_txn(), .ts = tt_ts_of(any64() | 1)};
    c.writes = any_writes(&c.write_count);
    cmd_encode_commit(out, &c);
}

static span_status again_commit(struct slice in, struct arena *a, struct buf *out)
{
    struct cmd_commit c;
    span_status st = cmd_decode_commit(in, a, &c);
    if (st == SPAN_OK) {
        cmd_encode_commit(out, &c);
    }
    return st;
}

static void make_prepare(struct buf *out)
{
    struct cmd_prepare c = {.txn = any_txn(),
                            .age = any_txn(),
                            .prepare_ts = tt_ts_of(any64() | 1),
                            .anchor = any_key(),
                            .coordinator = any_key(),
                            .coordinator_node = (uint32_t)any64(),
                            .lock_count = any_count()};
    c.writes = any_writes(&c.write_count);
    c.locks = arena_alloc(&made, (c.lock_count + 1) * sizeof *c.locks);
    for (size_t i = 0; i < c.lock_count; i++) {
        c.locks[i] = (struct cmd_lock){any_span(), any_bool() ? LOCK_SHARED : LOCK_EXCLUSIVE};
    }
    cmd_encode_prepare(out, &c);
}

static span_status again_prepare(struct slice in, struct arena *a, struct buf *out)
{
    struct cmd_prepare c;
    span_status st = cmd_decode_prepare(in, a, &c);
    if (st == SPAN_OK) {
        cmd_encode_prepare(out, &c);
    }
    return st;
}

static void make_decision(struct buf *out)
{
    struct cmd_decision c = {.txn = any_txn(), .commit = any_bool(), .anchor = any_key()};
    c.ts = c.commit ? tt_ts_of(any64() | 1) : tt_ts_of(0);
    c.writes = any_writes(&c.write_count);
    c.participants = any_participants(&c.participant_count);
    cmd_encode_decision(out, &c);
}

static span_status again_decision(struct slice in, struct arena *a, struct buf *out)
{
    struct cmd_decision c;
    span_status st = cmd_decode_decision(in, a, &c);
    if (st == SPAN_OK) {
        cmd_encode_decision(out, &c);
    }
    return st;
}

static void make_cmd_outcome(struct buf *out)
{
    struct cmd_outcome c = {.txn = any_txn(), .commit = any_bool()};
    c.ts = c.commit ? tt_ts_of(any64() | 1) : tt_ts_of(0);
    cmd_encode_outcome(out, &c);
}

static span_status again_cmd_outcome(struct slice in, struct arena *a, struct buf *out)
{
    struct cmd_outcome c;
    (void)a;
    span_status st = cmd_decode_outcome(in, &c);
    if (st == SPAN_OK) {
        cmd_encode_outcome(out, &c);
    }
    return st;
}

static void make_resolved(struct buf *out)
{
    struct cmd_resolved c = {0};
    c.txns = any_txns(&c.count);
    cmd_encode_resolved(out, &c);
}

static span_status again_resolved(struct slice in, struct arena *a, struct buf *out)
{
    struct cmd_resolved c;
    span_status st = cmd_decode_resolved(in, a, &c);
    if (st == SPAN_OK) {
        cmd_encode_resolved(out, &c);
    }
    return st;
}

static void make_maintain(struct buf *out)
{
    struct cmd_maintain c = {any_ts(), any_ts()};
    cmd_encode_maintain(out, &c);
}

static span_status again_maintain(struct slice in, struct arena *a, struct buf *out)
{
    struct cmd_maintain c;
    (void)a;
    span_status st = cmd_decode_maintain(in, &c);
    if (st == SPAN_OK) {
        cmd_encode_maintain(out, &c);
    }
    return st;
}

static void make_split(struct buf *out)
{
    struct cmd_split c = {any_key(), any64() | 1, any64(), any_ts()};
    cmd_encode_split(out, &c);
}

static span_status again_split(struct slice in, struct arena *a, struct buf *out)
{
    struct cmd_split c;
    (void)a;
    span_status st = cmd_decode_split(in, &c);
    if (st == SPAN_OK) {
        cmd_encode_split(out, &c);
    }
    return st;
}

static const struct kind kinds[] = {
    {"request", MSG_REQUEST, make_request, again_request, 0},
    {"response", MSG_RESPONSE, make_response, again_response, 0},
    {"vote", MSG_VOTE, make_vote, again_vote, 0},
    {"outcome", MSG_OUTCOME, make_outcome, again_outcome, 0},
    {"outcome ack", MSG_OUTCOME_ACK, make_ack, again_ack, 0},
    {"query", MSG_TXN_QUERY, make_query, again_query, 0},
    {"wounded", MSG_WOUNDED, make_wounded, again_wounded, 0},
    {"keepalive", MSG_KEEPALIVE, make_keepalive, again_keepalive, 0},
    {"heartbeat", MSG_HEARTBEAT, make_heartbeat, again_heartbeat, 0},
    {"heartbeat ack", MSG_HEARTBEAT_ACK, make_heartbeat_ack, again_heartbeat_ack, 0},
    {"node request", MSG_NODE_REQUEST, make_node_request, again_node_request, 0},
    {"node response", MSG_NODE_RESPONSE, make_node_response, again_node_response, 0},
    {"range bytes", MSG_RAFT, make_range_bytes, again_range_bytes, 20},
    {"open", 0, make_open, again_open, 0},
    {"commit", 0, make_commit, again_commit, 0},
    {"prepare", 0, make_prepare, again_prepare, 0},
    {"decision", 0, make_decision, again_decision, 0},
    {"cmd outcome", 0, make_cmd_outcome, again_cmd_outcome, 0},
    {"resolved", 0, make_resolved, again_resolved, 0},
    {"maintain", 0, make_maintain, again_maintain, 0},
    {"split", 0, make_split, again_split, 0},
};

#define KIND_COUNT (sizeof kinds / sizeof *kinds)

static struct slice body_of(const struct kind *k, const struct buf *b)
{
    struct slice body = buf_slice(b);
    if (k->msg != 0) {
        size_t at = 0;
        uint8_t kind;
        cr_assert_eq(msg_next(buf_slice(b), &at, &kind, &body), SPAN_OK);
        cr_assert(kind == k->msg || (k->msg == MSG_TXN_QUERY && kind == MSG_WOUND));
        cr_assert_eq(at, b->size);
        cr_assert_eq(msg_next(buf_slice(b), &at, &kind, &body), SPAN_NOT_FOUND);
        body = slice_of(b->data + 6, b->size - 6);
    }
    return body;
}

/* Decodes a copy that ends where the allocation ends. */
static span_status decode_exact(const struct kind *k, struct slice body, struct buf *out)
{
    struct arena a = {0};
    uint8_t *exact = span_malloc(body.size + (body.size == 0 ? 1 : 0));
    if (body.size > 0) {
        memcpy(exact, body.data, body.size);
    }
    span_status st = k->again(slice_of(exact, body.size), &a, out);
    span_free(exact);
    arena_deinit(&a);
    return st;
}

Test(txn_codec, everything_comes_back_as_it_was)
{
    for (uint64_t seed = 1; seed <= 300; seed++) {
        rng_init(&g, seed);
        for (size_t i = 0; i < KIND_COUNT; i++) {
            struct buf b = {0};
            struct buf again = {0};
            kinds[i].make(&b);
            cr_assert_eq(decode_exact(&kinds[i], body_of(&kinds[i], &b), &again), SPAN_OK,
                         "seed %lu %s", (unsigned long)seed, kinds[i].name);
            bool wound = kinds[i].msg == MSG_TXN_QUERY && b.data[4] == MSG_WOUND;
            b.data[4] = wound ? MSG_TXN_QUERY : b.data[4];
            cr_assert(slice_eq(buf_slice(&b), buf_slice(&again)), "seed %lu %s",
                      (unsigned long)seed, kinds[i].name);
            buf_deinit(&b);
            buf_deinit(&again);
        }
        arena_clear(&made);
    }
    arena_deinit(&made);
}

Test(txn_codec, every_truncation_and_every_byte_too_many_is_refused)
{
    for (uint64_t seed = 1; seed <= 25; seed++) {
        rng_init(&g, seed);
        for (size_t i = 0; i < KIND_COUNT; i++) {
            struct buf b = {0};
            struct buf again = {0};
            kinds[i].make(&b);
            struct slice body = body_of(&kinds[i], &b);
            size_t step = body.size > 600 ? 7 : 1;
            for (size_t cut = 0; cut < body.size - kinds[i].tail; cut += step) {
                cr_assert_eq(decode_exact(&kinds[i], slice_of(body.data, cut), &again),
                             SPAN_PROTOCOL, "seed %lu %s cut at %zu of %zu", (unsigned long)seed,
                             kinds[i].name, cut, body.size);
            }
            buf_append_byte(&b, 0);
            body = slice_of(b.data + (kinds[i].msg == 0 ? 0 : 6), body.size + 1);
            cr_assert(kinds[i].tail > 0 || decode_exact(&kinds[i], body, &again) == SPAN_PROTOCOL,
                      "%s with a byte behind it", kinds[i].name);
            buf_deinit(&b);
            buf_deinit(&again);
        }
        arena_clear(&made);
    }
    arena_deinit(&made);
}

Test(txn_codec, flipped_bytes_never_crash_a_decoder, .timeout = 120)
{
    for (uint64_t seed = 1; seed <= 400; seed++) {
        rng_init(&g, seed);
        for (size_t i = 0; i < KIND_COUNT; i++) {
            struct buf b = {0};
            struct buf again = {0};
            kinds[i].make(&b);
            struct slice body = body_of(&kinds[i], &b);
            uint8_t *p = b.data + (b.size - body.size);
            for (uint64_t n = 1 + rng_below(&g, 4); n > 0 && body.size > 0; n--) {
                p[rng_below(&g, body.size)] = (uint8_t)rng_u64(&g);
            }
            span_status st = decode_exact(&kinds[i], body, &again);
            cr_assert(st == SPAN_OK || st == SPAN_PROTOCOL);
            buf_deinit(&b);
            buf_deinit(&again);
        }
        arena_clear(&made);
    }
    arena_deinit(&made);
}

Test(txn_codec, unknown_versions_are_refused)
{
    rng_init(&g, 7);
    for (size_t i = 0; i < KIND_COUNT; i++) {
        struct buf b = {0};
        struct buf again = {0};
        struct slice body;
        size_t at = 0;
        uint8_t kind;
        kinds[i].make(&b);
        for (unsigned v = 0; v < 256; v++) {
            uint8_t *version = &b.data[kinds[i].msg != 0 ? 5 : 0];
            uint8_t was = *version;
            *version = (uint8_t)v;
            at = 0;
            span_status st = kinds[i].msg != 0 ? msg_next(buf_slice(&b), &at, &kind, &body)
                                               : decode_exact(&kinds[i], buf_slice(&b), &again);
            cr_assert_eq(st, v == was ? SPAN_OK : SPAN_PROTOCOL, "%s version %u", kinds[i].name, v);
            *version = was;
        }
        buf_deinit(&b);
        buf_deinit(&again);
    }
    arena_deinit(&made);
}

Test(txn_codec, frames_are_split_and_bad_lengths_refused)
{
    rng_init(&g, 3);
    struct buf frame = {0};
    for (size_t i = 0; kinds[i].msg != 0; i++) {
        kinds[i].make(&frame);
    }
    size_t at = 0;
    size_t n = 0;
    uint8_t kind;
    struct slice body;
    span_status st;
    while ((st = msg_next(buf_slice(&frame), &at, &kind, &body)) == SPAN_OK) {
        n++;
    }
    cr_assert_eq(st, SPAN_NOT_FOUND);
    cr_assert_eq(n, 13);
    at = 0;
    cr_assert_eq(msg_next(slice_of(frame.data, 5), &at, &kind, &body), SPAN_PROTOCOL);
    static const uint32_t bad[] = {0, 1, 0xffffffff, 0x80000000};
    for (size_t i = 0; i < 4; i++) {
        enc_u32_at(&frame, 0, bad[i]);
        at = 0;
        cr_assert_eq(msg_next(buf_slice(&frame), &at, &kind, &body), SPAN_PROTOCOL);
        cr_assert_eq(at, 0);
    }
    buf_deinit(&frame);
    arena_deinit(&made);
}

/* A count that the bytes behind it can not hold is refused before anything is allocated for it. */
Test(txn_codec, counts_are_bounded_by_what_follows)
{
    struct buf b = {0};
    struct arena a = {0};
    struct cmd_resolved c;
    enc_u8(&b, 1);
    enc_var(&b, UINT64_MAX);
    cr_assert_eq(cmd_decode_resolved(buf_slice(&b), &a, &c), SPAN_PROTOCOL);
    buf_clear(&b);
    enc_u8(&b, 1);
    enc_var(&b, (UINT64_MAX / 16) + 2); /* times 16 is small again */
    for (int i = 0; i < 64; i++) {
        enc_u8(&b, 0);
    }
    cr_assert_eq(cmd_decode_resolved(buf_slice(&b), &a, &c), SPAN_PROTOCOL);
    buf_deinit(&b);
    arena_deinit(&a);
}

Test(txn_codec, more_participants_members_or_key_bytes_than_may_be_are_refused)
{
    struct arena a = {0};
    struct buf b = {0};
    struct txn_participant p[LIMIT_TXN_RANGES + 1];
    for (size_t i = 0; i <= LIMIT_TXN_RANGES; i++) {
        p[i] = (struct txn_participant){slice_str("k"), 1, 1};
    }
    struct cmd_decision d = {.txn = {1, 1, 1},
                             .commit = true,
                             .ts = {5},
                             .anchor = slice_str("a"),
                             .participants = p,
                             .participant_count = LIMIT_TXN_RANGES};
    struct cmd_decision got;
    cmd_encode_decision(&b, &d);
    cr_assert_eq(cmd_decode_decision(buf_slice(&b), &a, &got), SPAN_OK);
    d.participant_count++;
    buf_clear(&b);
    cmd_encode_decision(&b, &d);
    cr_assert_eq(cmd_decode_decision(buf_slice(&b), &a, &got), SPAN_PROTOCOL);
    static uint8_t long_key[LIMIT_KEY_BYTES + 65];
    struct txn_write w = {.key = slice_of(long_key, LIMIT_KEY_BYTES), .value = slice_str("v")};
    struct cmd_commit c = {.txn = {1, 1, 1}, .ts = {5}, .write_count = 1, .writes = &w};
    struct cmd_commit c2;
    buf_clear(&b);
    cmd_encode_commit(&b, &c);
    cr_assert_eq(cmd_decode_commit(buf_slice(&b), &a, &c2), SPAN_OK);
    for (size_t bad = 0; bad <= LIMIT_KEY_BYTES + 65; bad += LIMIT_KEY_BYTES + 65) {
        w.key.size = bad; /* none at all, and too long */
        buf_clear(&b);
        cmd_encode_commit(&b, &c);
        cr_assert_eq(cmd_decode_commit(buf_slice(&b), &a, &c2), SPAN_PROTOCOL);
    }
    struct range_descriptor desc = {.range = 1, .member_count = LIMIT_REPLICAS};
    buf_clear(&b);
    enc_descriptor(&b, &desc);
    b.data[b.size - 4 * LIMIT_REPLICAS - 1] = LIMIT_REPLICAS + 1;
    enc_u32(&b, 0);
    struct cursor cur = cursor_of(buf_slice(&b));
    dec_descriptor(&cur, &desc);
    cr_assert(!cursor_ok(&cur));
    buf_deinit(&b);
    arena_deinit(&a);
}

Test(txn_codec, contradictory_outcomes_are_refused)
{
    struct buf b = {0};
    struct arena a = {0};
    struct cmd_outcome o = {.txn = {1, 1, 1}, .commit = true, .ts = {0}};
    struct cmd_outcome got;
    cmd_encode_outcome(&b, &o);
    cr_assert_eq(cmd_decode_outcome(buf_slice(&b), &got), SPAN_PROTOCOL);
    o = (struct cmd_outcome){.txn = {1, 1, 1}, .commit = false, .ts = {5}};
    buf_clear(&b);
    cmd_encode_outcome(&b, &o);
    cr_assert_eq(cmd_decode_outcome(buf_slice(&b), &got), SPAN_PROTOCOL);
    struct cmd_decision d = {.txn = {1, 1, 1}, .commit = true};
    struct cmd_decision got_d;
    buf_clear(&b);
    cmd_encode_decision(&b, &d);
    cr_assert_eq(cmd_decode_decision(buf_slice(&b), &a, &got_d), SPAN_PROTOCOL);
    buf_deinit(&b);
    arena_deinit(&a);
}

/* The fields of the two largest messages one by one: an encoder that forgets one would still be
 * consistent with its decoder. */
Test(txn_codec, a_request_keeps_every_field)
{
    for (uint64_t seed = 1; seed <= 50; seed++) {
        rng_init(&g, seed);
        struct range_request m = any_request();
        struct range_request r;
        struct buf b = {0};
        struct arena a = {0};
        msg_encode_request(&b, &m);
        cr_assert_eq(msg_decode_request(slice_of(b.data + 6, b.size - 6), &a, &r), SPAN_OK);
        cr_assert(r.op == m.op && r.request_id == m.request_id && r.gateway == m.gateway);
        cr_assert(r.incarnation == m.incarnation && r.range == m.range);
        cr_assert(r.generation == m.generation && r.term == m.term && r.budget_ns == m.budget_ns);
        cr_assert(txn_id_eq(&r.txn, &m.txn) && txn_id_eq(&r.age, &m.age));
        cr_assert(r.may_wait == m.may_wait && r.follower_ok == m.follower_ok && r.lock == m.lock);
        cr_assert(r.read_ts.ns == m.read_ts.ns && r.seen.ns == m.seen.ns);
        cr_assert(slice_eq(r.anchor, m.anchor) && slice_eq(r.coordinator, m.coordinator));
        cr_assert(r.coordinator_range == m.coordinator_range &&
                  r.coordinator_node == m.coordinator_node && r.new_range == m.new_range);
        cr_assert_eq(r.span_count, m.span_count);
        for (size_t i = 0; i < m.span_count; i++) {
            cr_assert(slice_eq(r.spans[i].span.start, m.spans[i].span.start) &&
                      slice_eq(r.spans[i].span.end, m.spans[i].span.end) &&
                      r.spans[i].span.point == m.spans[i].span.point &&
                      r.spans[i].reverse == m.spans[i].reverse &&
                      r.spans[i].max_rows == m.spans[i].max_rows);
        }
        cr_assert_eq(r.schema_count, m.schema_count);
        for (size_t i = 0; i < m.schema_count; i++) {
            cr_assert(r.schema[i].table_id == m.schema[i].table_id &&
                      r.schema[i].version == m.schema[i].version);
        }
        cr_assert_eq(r.write_count, m.write_count);
        for (size_t i = 0; i < m.write_count; i++) {
            cr_assert(slice_eq(r.writes[i].key, m.writes[i].key) &&
                      slice_eq(r.writes[i].value, m.writes[i].value) &&
                      r.writes[i].tombstone == m.writes[i].tombstone);
        }
        cr_assert_eq(r.participant_count, m.participant_count);
        for (size_t i = 0; i < m.participant_count; i++) {
            cr_assert(slice_eq(r.participants[i].anchor, m.participants[i].anchor) &&
                      r.participants[i].range == m.participants[i].range &&
                      r.participants[i].node == m.participants[i].node);
        }
        buf_deinit(&b);
        arena_deinit(&a);
        arena_clear(&made);
    }
    arena_deinit(&made);
}

Test(txn_codec, a_response_keeps_every_field)
{
    for (uint64_t seed = 1; seed <= 50; seed++) {
        rng_init(&g, seed);
        struct range_response m = any_response();
        struct range_response r;
        struct buf b = {0};
        struct arena a = {0};
        msg_encode_response(&b, &m);
        cr_assert_eq(msg_decode_response(slice_of(b.data + 6, b.size - 6), &a, &r), SPAN_OK);
        cr_assert(r.request_id == m.request_id && r.op == m.op && r.status == m.status);
        cr_assert(r.range == m.range && r.generation == m.generation && r.term == m.term);
        cr_assert(r.leader == m.leader && r.seen.ns == m.seen.ns && r.ts.ns == m.ts.ns);
        cr_assert(r.txn_state == m.txn_state && slice_eq(r.text, m.text));
        cr_assert(r.row_count == m.row_count && r.resume_count == m.resume_count);
        for (size_t i = 0; i < m.row_count; i++) {
            cr_assert(r.rows[i].span == m.rows[i].span && slice_eq(r.rows[i].key, m.rows[i].key) &&
                      slice_eq(r.rows[i].value, m.rows[i].value));
        }
        for (size_t i = 0; i < m.resume_count; i++) {
            cr_assert(r.resumes[i].span == m.resumes[i].span &&
                      slice_eq(r.resumes[i].key, m.resumes[i].key));
        }
        cr_assert_eq(r.descriptor_count, m.descriptor_count);
        for (size_t i = 0; i < m.descriptor_count; i++) {
            const struct range_descriptor *x = &r.descriptors[i];
            const struct range_descriptor *y = &m.descriptors[i];
            cr_assert(x->range == y->range && x->generation == y->generation &&
                      x->leader == y->leader && x->member_count == y->member_count);
            cr_assert(slice_eq(x->start, y->start) && slice_eq(x->end, y->end));
            cr_assert_eq(memcmp(x->members, y->members, sizeof x->members), 0);
        }
        buf_deinit(&b);
        arena_deinit(&a);
        arena_clear(&made);
    }
    arena_deinit(&made);
}

Test(txn_codec, the_timestamp_of_a_command_is_found_without_decoding_it)
{
    struct buf b = {0};
    struct cmd_commit c = {.txn = {1, 1, 1}, .ts = {77}};
    cmd_encode_commit(&b, &c);
    cr_assert_eq(cmd_peek_ts(CMD_COMMIT1, buf_slice(&b)).ns, 77);
    cr_assert_eq(cmd_peek_ts(CMD_OPEN, buf_slice(&b)).ns, 0);
    for (size_t cut = 0; cut < 9; cut++) {
        cr_assert_eq(cmd_peek_ts(CMD_COMMIT1, slice_of(b.data, cut)).ns, 0);
    }
    buf_clear(&b);
    struct cmd_decision d = {.txn = {1, 1, 1}, .anchor = slice_str("a")};
    cmd_encode_decision(&b, &d);
    cr_assert_eq(cmd_peek_ts(CMD_DECISION, buf_slice(&b)).ns, 0, "an abort has none");
    buf_deinit(&b);
}

Test(txn_codec, transaction_ids_have_a_text_form)
{
    rng_init(&g, 11);
    for (int i = 0; i < 500; i++) {
        struct txn_id id = {any64() | 1, (uint32_t)rng_below(&g, LIMIT_PEERS + 1),
                            (uint32_t)rng_u64(&g)};
        struct txn_id got;
        char text[48];
        txn_id_format(&id, text);
        cr_assert(txn_id_parse(text, &got));
        cr_assert(txn_id_eq(&id, &got));
    }
    static const char *const bad[] = {"",        "-",
                                      "1",       "1-",
                                      "1-1",     "1-1-",
                                      "0-1-1",   "x-1-1",
                                      "1-x-1",   "1-1-x",
                                      "1-65-1",  "1-1-1 ",
                                      " 1-1-1",  "1--1-1",
                                      "1-+1-1",  "1-1--1",
                                      "+1-1-1",  "1-1-100000000",
                                      "1-1-1-1", "11111111111111111-1-1",
                                      "1-1-\n1", "1-1-0x5",
                                      "0x5-1-1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct txn_id got;
        cr_assert(!txn_id_parse(bad[i], &got), "\"%s\"", bad[i]);
    }
}
