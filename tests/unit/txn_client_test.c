/* Client transactions against ranges played by the test: what is sent to whom, and what a client is
 * told when answers are lost, late, refusals, or contradict the map. */
#include "base/alloc.h"
#include "base/limits.h"
#include "coordinator/route/txn_client.h"

#include <criterion/criterion.h>
#include <stdio.h>

#define NODES 3
#define SELF  1

/* Range 2: [01 .. k), range 3: [k ..); leaders 2 and 3. */
struct bench {
    struct directory dir;
    struct router *router;
    struct txn_clients *clients;
    struct buf out[NODES + 1];
    struct tt_now now;
    struct arena arena;
    node_id nodes[NODES];
    bool read_done;
    bool commit_done;
    bool status_done;
    struct txn_read read;
    struct txn_commit commit;
    struct txn_ref ref;
};

static struct buf *bench_out(void *ctx, node_id to, unsigned cls)
{
    struct bench *b = ctx;
    (void)cls;
    cr_assert(to >= 1 && to <= NODES);
    return &b->out[to];
}

static void learn(struct bench *b, range_id id, uint64_t generation, const char *start,
                  const char *end, node_id leader)
{
    struct range_descriptor x = {.range = id,
                                 .generation = generation,
                                 .start = slice_str(start),
                                 .end = slice_str(end),
                                 .member_count = 3,
                                 .members = {1, 2, 3},
                                 .leader = leader};
    router_learn(b->router, &b->now, &x, 1, true);
}

static void read_done(struct txn_read *r, const struct tt_now *now)
{
    struct bench *b = r->owner;
    (void)now;
    b->read_done = true;
}

static void commit_done(struct txn_commit *c, const struct tt_now *now)
{
    struct bench *b = c->owner;
    (void)now;
    b->commit_done = true;
}

static struct bench *bench_new(void)
{
    struct bench *b = SPAN_NEW(struct bench);
    for (node_id i = 0; i < NODES; i++) {
        b->nodes[i] = i + 1;
    }
    directory_init(&b->dir);
    struct router_config rc = {.self = SELF,
                               .incarnation = 77,
                               .nodes = b->nodes,
                               .node_count = NODES,
                               .first_id = 100,
                               .out_ctx = b,
                               .out = bench_out};
    b->router = router_new(&rc, &b->dir);
    b->clients = txn_clients_new(b->router);
    b->now = (struct tt_now){.tt = {{1000 * SEC_NS}, {1000 * SEC_NS + MS_NS}},
                             .mono_ns = 5 * SEC_NS,
                             .state = CLOCK_SYNCED};
    learn(b, 2, 1, "", "k", 2);
    learn(b, 3, 1, "k", "", 3);
    txn_read_init(&b->read);
    b->read.owner = b;
    b->read.done = read_done;
    b->ref.id = b->ref.age = (struct txn_id){1000 * SEC_NS, SELF, 9};
    return b;
}

static void bench_free(struct bench *b)
{
    txn_clients_close(b->clients, &b->now);
    router_close(b->router, &b->now);
    txn_clients_free(b->clients);
    router_free(b->router);
    directory_deinit(&b->dir);
    for (size_t i = 0; i <= NODES; i++) {
        buf_deinit(&b->out[i]);
    }
    txn_read_deinit(&b->read);
    arena_deinit(&b->arena);
    span_free(b);
}

static void pass(struct bench *b, uint64_t ns)
{
    b->now.mono_ns += ns;
    b->now.tt.earliest.ns += ns;
    b->now.tt.latest.ns += ns;
    router_tick(b->router, &b->now);
    txn_clients_tick(b->clients, &b->now);
}

/* The next message to a node: its kind, 0 when there is none. A request is decoded into q. */
static uint8_t next(struct bench *b, node_id node, struct range_request *q, struct slice *body)
{
    size_t at = 0;
    uint8_t kind;
    struct slice s;
    if (msg_next(buf_slice(&b->out[node]), &at, &kind, &s) != SPAN_OK) {
        return 0;
    }
    uint8_t *copy = arena_alloc(&b->arena, s.size + 1);
    memcpy(copy, s.data, s.size);
    s.data = copy;
    memmove(b->out[node].data, b->out[node].data + at, b->out[node].size - at);
    b->out[node].size -= at;
    if (kind == MSG_REQUEST) {
        cr_assert_eq(msg_decode_request(s, &b->arena, q), SPAN_OK);
    }
    if (body != NULL) {
        *body = s;
    }
    return kind;
}

static struct range_request request(struct bench *b, node_id node, uint8_t op)
{
    struct range_request q = {0};
    cr_assert_eq(next(b, node, &q, NULL), MSG_REQUEST, "node %u got no request", node);
    cr_assert_eq(q.op, op, "node %u got operation %u", node, q.op);
    return q;
}

static void expect_nothing(struct bench *b, node_id node)
{
    struct range_request q = {0};
    cr_assert_eq(next(b, node, &q, NULL), 0, "node %u got something: operation %u", node, q.op);
}

static void answer(struct bench *b, node_id from, const struct range_request *q, span_status st,
                   struct range_response resp)
{
    resp.request_id = q->request_id;
    resp.op = q->op;
    resp.status = (uint16_t)st;
    resp.range = q->range;
    resp.generation = q->generation;
    resp.term = resp.term != 0 ? resp.term : 7;
    resp.leader = resp.leader != 0 ? resp.leader : st == SPAN_NOT_LEADER ? 0 : from;
    router_response(b->router, &b->now, from, &resp);
}

static void start_get(struct bench *b, const char *key, uint8_t lock)
{
    static struct slice keys[1];
    keys[0] = slice_str(key);
    b->read.keys = keys;
    b->read.key_count = 1;
    b->read.lock = lock;
    b->read.read_ts = tt_ts_of(0);
    b->read.mode = KV_READ_STRONG;
    b->read.deadline_ns = b->now.mono_ns + 10 * SEC_NS;
    b->read_done = false;
    struct txn_ref none = {0};
    txn_read_start(b->clients, &b->now, lock == READ_LOCK_NONE ? &none : &b->ref, &b->read);
}

/* Takes an X lock on a key of the range led by node. */
static void lock_key(struct bench *b, const char *key, node_id node)
{
    start_get(b, key, READ_LOCK_UPDATE);
    struct range_request q = request(b, node, OP_READ);
    cr_assert_eq(q.lock, READ_LOCK_UPDATE);
    answer(b, node, &q, SPAN_OK, (struct range_response){.seen = {500 * SEC_NS}});
    cr_assert(b->read_done);
    cr_assert_eq(b->read.status, SPAN_OK);
}

static void start_commit_of(struct bench *b, const char *k1, struct slice v1, const char *k2,
                            struct slice v2)
{
    static struct txn_write writes[2];
    size_t n = 0;
    if (k1 != NULL) {
        writes[n++] = (struct txn_write){.key = slice_str(k1), .value = v1};
    }
    if (k2 != NULL) {
        writes[n++] = (struct txn_write){.key = slice_str(k2), .value = v2};
    }
    b->commit = (struct txn_commit){.writes = writes,
                                    .write_count = n,
                                    .deadline_ns = b->now.mono_ns + 8 * SEC_NS,
                                    .done = commit_done,
                                    .owner = b};
    b->commit_done = false;
    txn_commit_start(b->clients, &b->now, &b->ref, &b->commit);
}

static void start_commit(struct bench *b, const char *k1, const char *k2)
{
    start_commit_of(b, k1, slice_str("v1"), k2, slice_str("v2"));
}

Test(txn_client, a_read_goes_to_the_leader_and_follows_it)
{
    struct bench *b = bench_new();
    start_get(b, "a", READ_LOCK_NONE);
    struct range_request q = request(b, 2, OP_READ);
    cr_assert_eq(q.read_ts.ns, b->now.tt.latest.ns, "strong: at the gateway's latest");
    answer(b, 2, &q, SPAN_NOT_LEADER, (struct range_response){.leader = 3, .term = 8});
    q = request(b, 3, OP_READ);
    answer(b, 3, &q, SPAN_NOT_LEADER, (struct range_response){0});
    expect_nothing(b, 2);
    pass(b, 60 * MS_NS);
    cr_assert(b->out[1].size + b->out[2].size > 0, "somebody else is asked after a little wait");
    for (node_id n = 1; n <= 2; n++) {
        if (b->out[n].size > 0) {
            q = request(b, n, OP_READ);
            struct row row = {slice_str("a"), slice_str("x"), 0};
            answer(b, n, &q, SPAN_OK,
                   (struct range_response){.row_count = 1, .rows = &row, .seen = {42}, .term = 9});
        }
    }
    cr_assert(b->read_done);
    cr_assert_eq(b->read.seen.ns, 42);
    cr_assert(
        slice_eq(read_row_value(&b->read.pages[0], &b->read.pages[0].rows[0]), slice_str("x")));
    bench_free(b);
}

/* A kill -9 and a start at once made every client silent for 4 s: the refusals of the election had
 * doubled the patience with the one message that was lost after it. */
Test(txn_client, refusals_do_not_make_a_lost_request_wait_for_longer)
{
    struct bench *b = bench_new();
    struct range_request q;
    start_get(b, "a", READ_LOCK_NONE);
    q = request(b, 2, OP_READ);
    for (int i = 0; i < 6; i++) { /* nobody leads for a while */
        answer(b, q.range == 2 && i == 0 ? 2 : 1, &q, SPAN_UNAVAILABLE, (struct range_response){0});
        for (node_id n = 1, found = 0; found == 0; n = n % NODES + 1) {
            if (b->out[n].size > 0) {
                q = request(b, n, OP_READ);
                found = n;
            } else if (n == NODES) {
                pass(b, ROUTE_BACKOFF_MAX_NS);
            }
        }
    }
    pass(b, ROUTE_RESEND_NS); /* the last one was lost */
    cr_assert(b->out[1].size + b->out[2].size + b->out[3].size > 0, "it is sent again by now");
    bench_free(b);
}

Test(txn_client, a_scan_is_cut_by_ranges_and_again_where_the_map_was_stale)
{
    struct bench *b = bench_new();
    struct txn_ref none = {0};
    b->read.key_count = 0;
    b->read.start = slice_str("a");
    b->read.end = slice_str("z");
    b->read.parallel = 4;
    b->read.mode = KV_READ_STRONG;
    b->read.deadline_ns = b->now.mono_ns + SEC_NS;
    txn_read_start(b->clients, &b->now, &none, &b->read);
    struct range_request q2 = request(b, 2, OP_READ);
    struct range_request q3 = request(b, 3, OP_READ);
    cr_assert(slice_eq(q2.spans[0].span.end, slice_str("k")));
    cr_assert(slice_eq(q3.spans[0].span.start, slice_str("k")));
    /* Range 3 was split at p: its node says so. */
    struct range_descriptor d[2] = {
        {.range = 3,
         .generation = 2,
         .start = slice_str("k"),
         .end = slice_str("p"),
         .member_count = 3,
         .members = {1, 2, 3},
         .leader = 3},
        {.range = 4,
         .generation = 2,
         .start = slice_str("p"),
         .member_count = 3,
         .members = {1, 2, 3},
         .leader = 1},
    };
    answer(b, 3, &q3, SPAN_STALE_DESCRIPTOR,
           (struct range_response){.descriptors = d, .descriptor_count = 2});
    q3 = request(b, 3, OP_READ);
    struct range_request q4 = request(b, 1, OP_READ);
    cr_assert(slice_eq(q3.spans[0].span.end, slice_str("p")));
    cr_assert(slice_eq(q4.spans[0].span.start, slice_str("p")));
    cr_assert(slice_eq(q4.spans[0].span.end, slice_str("z")));
    cr_assert_eq(q4.read_ts.ns, q2.read_ts.ns, "one timestamp for all");
    struct row rows[3] = {{slice_str("b"), slice_str("1"), 0},
                          {slice_str("l"), slice_str("2"), 0},
                          {slice_str("q"), slice_str("3"), 0}};
    struct read_resume rest = {0, slice_str("m")};
    answer(b, 1, &q4, SPAN_OK, (struct range_response){.row_count = 1, .rows = &rows[2]});
    answer(b, 2, &q2, SPAN_OK, (struct range_response){.row_count = 1, .rows = &rows[0]});
    cr_assert_not(b->read_done);
    answer(b, 3, &q3, SPAN_OK,
           (struct range_response){
               .row_count = 1, .rows = &rows[1], .resume_count = 1, .resumes = &rest});
    cr_assert(b->read_done);
    cr_assert_eq(b->read.page_count, 3);
    cr_assert(slice_eq(read_row_key(&b->read.pages[1], &b->read.pages[1].rows[0]), slice_str("l")));
    cr_assert_not(b->read.pages[1].complete);
    cr_assert(slice_eq(buf_slice(&b->read.pages[1].rest_start), slice_str("m")));
    cr_assert(slice_eq(buf_slice(&b->read.pages[1].rest_end), slice_str("p")));
    cr_assert(b->read.pages[2].complete);
    bench_free(b);
}

Test(txn_client, one_range_commits_in_one_request_that_names_the_lock_token)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    start_commit(b, "a", NULL);
    struct range_request q = request(b, 2, OP_COMMIT1);
    cr_assert_eq(q.term, 7, "rule C1");
    cr_assert_eq(q.seen.ns, 500 * SEC_NS, "rule A2");
    cr_assert_eq(q.write_count, 1);
    expect_nothing(b, 3);
    answer(b, 2, &q, SPAN_OK, (struct range_response){.ts = {999}});
    cr_assert(b->commit_done);
    cr_assert_eq(b->commit.status, SPAN_OK);
    cr_assert_eq(b->commit.ts.ns, 999);
    cr_assert_eq(b->commit.seen_out.ns, 500 * SEC_NS);
    cr_assert_eq(txn_clients_count(b->clients), 0);
    expect_nothing(b, 2);
    bench_free(b);
}

Test(txn_client, a_refusal_is_told_as_it_is_when_nothing_is_unanswered)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    start_commit(b, "a", NULL);
    struct range_request q = request(b, 2, OP_COMMIT1);
    answer(b, 2, &q, SPAN_WOUNDED, (struct range_response){0});
    cr_assert_eq(b->commit.status, SPAN_WOUNDED);
    (void)request(b, 2, OP_RELEASE);
    expect_nothing(b, 2);
    bench_free(b);
}

/* Rule C11: the first copy may have been proposed. */
Test(txn_client, a_refusal_after_a_lost_answer_needs_an_abort_record)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    start_commit(b, "a", NULL);
    struct range_request q = request(b, 2, OP_COMMIT1);
    router_peer_lost(b->router, &b->now, 2);
    pass(b, 5 * MS_NS);
    node_id other = b->out[1].size > 0 ? 1 : 3;
    q = request(b, other, OP_COMMIT1);
    answer(b, other, &q, SPAN_LOCKS_LOST, (struct range_response){.term = 8});
    cr_assert_not(b->commit_done, "it may be committed all the same");
    (void)request(b, other, OP_RELEASE);
    q = request(b, other, OP_STATUS);
    cr_assert(slice_eq(q.anchor, slice_str("a")));
    answer(b, other, &q, SPAN_OK,
           (struct range_response){.txn_state = TXN_STATE_COMMITTED, .ts = {321}});
    cr_assert(b->commit_done);
    cr_assert_eq(b->commit.status, SPAN_OK);
    cr_assert_eq(b->commit.ts.ns, 321);
    bench_free(b);
}

Test(txn_client, an_outcome_that_nobody_tells_is_unknown_at_the_deadline_and_not_before)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    start_commit(b, "a", NULL);
    struct range_request q = request(b, 2, OP_COMMIT1);
    answer(b, 2, &q, SPAN_UNKNOWN_OUTCOME, (struct range_response){0});
    for (int i = 0; i < 79; i++) {
        pass(b, 100 * MS_NS);
        cr_assert_not(b->commit_done, "after %d ms", i * 100);
        for (node_id n = 1; n <= NODES; n++) {
            buf_clear(&b->out[n]);
        }
    }
    pass(b, 200 * MS_NS);
    cr_assert(b->commit_done);
    cr_assert_eq(b->commit.status, SPAN_UNKNOWN_OUTCOME);
    bench_free(b);
}

Test(txn_client, unknown_from_a_deposed_leader_is_asked_again_from_the_next)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    start_commit(b, "a", NULL);
    struct range_request q = request(b, 2, OP_COMMIT1);
    answer(b, 2, &q, SPAN_UNKNOWN_OUTCOME, (struct range_response){.leader = 3, .term = 8});
    q = request(b, 3, OP_COMMIT1);
    answer(b, 3, &q, SPAN_OK, (struct range_response){.ts = {11}, .term = 8});
    cr_assert_eq(b->commit.status, SPAN_OK);
    cr_assert_eq(b->commit.ts.ns, 11);
    bench_free(b);
}

Test(txn_client, two_ranges_are_prepared_at_once_and_the_coordinator_answers)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    lock_key(b, "m", 3);
    start_commit(b, "a", "m");
    struct range_request qc = request(b, 2, OP_COORDINATE);
    struct range_request qp = request(b, 3, OP_PREPARE);
    cr_assert_eq(qc.participant_count, 1);
    cr_assert(slice_eq(qc.participants[0].anchor, qp.anchor));
    cr_assert_eq(qc.participants[0].node, 3);
    cr_assert(slice_eq(qp.coordinator, qc.anchor));
    cr_assert_eq(qp.coordinator_node, 2);
    cr_assert_eq(qp.budget_ns, qc.budget_ns, "rule C8: the same deadline");
    pass(b, 600 * MS_NS); /* nothing heard: both again */
    cr_assert(b->out[1].size + b->out[2].size + b->out[3].size > 0);
    answer(b, 2, &qc, SPAN_OK, (struct range_response){.ts = {77}});
    cr_assert_eq(b->commit.status, SPAN_OK);
    cr_assert_eq(b->commit.ts.ns, 77);
    cr_assert_eq(router_count(b->router), 0, "nothing is sent for it any more");
    bench_free(b);
}

Test(txn_client, what_no_log_entry_can_hold_is_refused_before_it_is_sent)
{
    static const uint8_t zeros[LIMIT_ENTRY_BYTES];
    struct slice most = slice_of(zeros, LIMIT_TXN_RANGE_BYTES - 100);
    struct slice more = slice_of(zeros, LIMIT_TXN_RANGE_BYTES);
    for (int i = 0; i < 2; i++) { /* one range; one of two */
        struct bench *b = bench_new();
        lock_key(b, "a", 2);
        start_commit_of(b, "a", more, i == 0 ? NULL : "m", slice_str("v"));
        cr_assert(b->commit_done, "at once");
        cr_assert_eq(b->commit.status, SPAN_TOO_LARGE);
        cr_assert(strstr(b->commit.err.text, "in range") != NULL, "%s", b->commit.err.text);
        (void)request(b, 2, OP_RELEASE);
        expect_nothing(b, 2);
        expect_nothing(b, 3);
        bench_free(b);
    }
    struct bench *b = bench_new();
    start_commit_of(b, "a", most, "m", most); /* each range has an entry of its own */
    (void)request(b, 2, OP_COORDINATE);
    (void)request(b, 3, OP_PREPARE);
    bench_free(b);
}

/* Rule C1: also a range that was only read takes part. */
Test(txn_client, a_range_only_read_is_a_participant)
{
    struct bench *b = bench_new();
    start_get(b, "a", READ_LOCK_SHARED);
    struct range_request q = request(b, 2, OP_READ);
    answer(b, 2, &q, SPAN_OK, (struct range_response){0});
    lock_key(b, "m", 3);
    start_commit(b, NULL, "m");
    struct range_request qc = request(b, 3, OP_COORDINATE);
    struct range_request qp = request(b, 2, OP_PREPARE);
    cr_assert_eq(qp.write_count, 0);
    cr_assert_eq(qp.term, 7);
    cr_assert(slice_eq(qp.anchor, slice_str("a")));
    answer(b, 3, &qc, SPAN_ABORTED, (struct range_response){0});
    cr_assert_eq(b->commit.status, SPAN_ABORTED);
    bench_free(b);
}

/* Rule E1: the id said a; so a's range coordinates, though it writes nothing. */
Test(txn_client, the_coordinator_is_the_one_that_the_public_id_names)
{
    struct bench *b = bench_new();
    lock_key(b, "m", 3);
    static struct txn_write w;
    w = (struct txn_write){.key = slice_str("m"), .value = slice_str("v")};
    b->commit = (struct txn_commit){.writes = &w,
                                    .write_count = 1,
                                    .anchor = slice_str("a"),
                                    .deadline_ns = b->now.mono_ns + SEC_NS,
                                    .done = commit_done,
                                    .owner = b};
    txn_commit_start(b->clients, &b->now, &b->ref, &b->commit);
    struct range_request qc = request(b, 2, OP_COORDINATE);
    cr_assert(slice_eq(qc.anchor, slice_str("a")));
    cr_assert_eq(qc.write_count, 0);
    (void)request(b, 3, OP_PREPARE);
    answer(b, 2, &qc, SPAN_OK, (struct range_response){.ts = {5}});
    cr_assert_eq(b->commit.status, SPAN_OK);
    bench_free(b);
}

Test(txn_client, a_participant_that_was_split_under_a_commit_is_refused_for_it)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    lock_key(b, "m", 3);
    static struct txn_write w[3];
    w[0] = (struct txn_write){.key = slice_str("a")};
    w[1] = (struct txn_write){.key = slice_str("m")};
    w[2] = (struct txn_write){.key = slice_str("q")};
    b->commit = (struct txn_commit){.writes = w,
                                    .write_count = 3,
                                    .deadline_ns = b->now.mono_ns + SEC_NS,
                                    .done = commit_done,
                                    .owner = b};
    txn_commit_start(b->clients, &b->now, &b->ref, &b->commit);
    struct range_request qc = request(b, 2, OP_COORDINATE);
    struct range_request qp = request(b, 3, OP_PREPARE);
    struct range_descriptor d[2] = {
        {.range = 3,
         .generation = 2,
         .start = slice_str("k"),
         .end = slice_str("p"),
         .member_count = 3,
         .members = {1, 2, 3}},
        {.range = 4,
         .generation = 2,
         .start = slice_str("p"),
         .member_count = 3,
         .members = {1, 2, 3}},
    };
    answer(b, 3, &qp, SPAN_STALE_DESCRIPTOR,
           (struct range_response){.descriptors = d, .descriptor_count = 2});
    pass(b, MS_NS);
    struct range_request none;
    struct slice body;
    struct txn_vote v;
    cr_assert_eq(next(b, 2, &none, &body), MSG_VOTE, "the gateway votes no for it");
    cr_assert_eq(msg_decode_vote(body, &v), SPAN_OK);
    cr_assert_not(v.yes);
    cr_assert(slice_eq(v.participant, qp.anchor));
    answer(b, 2, &qc, SPAN_ABORTED, (struct range_response){0});
    cr_assert_eq(b->commit.status, SPAN_STALE_DESCRIPTOR, "the true reason is told");
    cr_assert_eq(span_status_kind(b->commit.status), SPAN_KIND_RETRY);
    bench_free(b);
}

Test(txn_client, without_writes_every_range_confirms_its_locks)
{
    struct bench *b = bench_new();
    start_get(b, "a", READ_LOCK_SHARED);
    struct range_request q = request(b, 2, OP_READ);
    answer(b, 2, &q, SPAN_OK,
           (struct range_response){.seen = {2000 * SEC_NS}}); /* ahead of this clock */
    start_get(b, "m", READ_LOCK_SHARED);
    q = request(b, 3, OP_READ);
    answer(b, 3, &q, SPAN_OK, (struct range_response){0});
    start_commit(b, NULL, NULL);
    struct range_request v2 = request(b, 2, OP_VALIDATE);
    struct range_request v3 = request(b, 3, OP_VALIDATE);
    cr_assert_eq(v2.read_ts.ns, 2000 * SEC_NS, "not below what was seen");
    cr_assert_eq(v3.read_ts.ns, v2.read_ts.ns);
    answer(b, 2, &v2, SPAN_OK, (struct range_response){0});
    cr_assert_not(b->commit_done);
    answer(b, 3, &v3, SPAN_LOCKS_LOST, (struct range_response){0});
    cr_assert(b->commit_done);
    cr_assert_eq(b->commit.status, SPAN_LOCKS_LOST);
    bench_free(b);
}

/* Rule C5: the locks elsewhere go without waiting for the client. */
Test(txn_client, a_wound_releases_everything_else_at_once)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    lock_key(b, "m", 3);
    struct txn_wounded m = {
        .incarnation = 77, .range = 2, .txn = b->ref.id, .status = SPAN_WOUNDED};
    txn_on_wounded(b->clients, &b->now, &m);
    expect_nothing(b, 2);
    struct range_request q = request(b, 3, OP_RELEASE);
    cr_assert(txn_id_eq(&q.txn, &b->ref.id));
    start_get(b, "b", READ_LOCK_SHARED);
    cr_assert(b->read_done);
    cr_assert_eq(b->read.status, SPAN_WOUNDED, "the client hears of it at its next statement");
    txn_rollback(b->clients, &b->now, &b->ref.id);
    expect_nothing(b, 3);
    cr_assert_eq(txn_clients_count(b->clients), 0);
    bench_free(b);
}

Test(txn_client, a_wound_for_another_life_of_this_node_is_ignored)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    struct txn_wounded m = {
        .incarnation = 76, .range = 2, .txn = b->ref.id, .status = SPAN_WOUNDED};
    txn_on_wounded(b->clients, &b->now, &m);
    start_commit(b, "a", NULL);
    (void)request(b, 2, OP_COMMIT1);
    bench_free(b);
}

/* Rule C12: also where a lock was only asked for. */
Test(txn_client, a_rollback_releases_what_was_asked_for_too)
{
    struct bench *b = bench_new();
    start_get(b, "a", READ_LOCK_UPDATE);
    (void)request(b, 2, OP_READ);
    txn_rollback(b->clients, &b->now, &b->ref.id);
    cr_assert(b->read_done);
    cr_assert_eq(b->read.status, SPAN_CANCELED);
    (void)request(b, 2, OP_RELEASE);
    cr_assert_eq(router_count(b->router), 0);
    bench_free(b);
}

Test(txn_client, answers_of_two_leaders_are_lost_locks)
{
    struct bench *b = bench_new();
    lock_key(b, "a", 2);
    start_get(b, "b", READ_LOCK_UPDATE);
    struct range_request q = request(b, 2, OP_READ);
    cr_assert_eq(q.term, 7);
    answer(b, 2, &q, SPAN_OK, (struct range_response){.term = 8});
    cr_assert_eq(b->read.status, SPAN_LOCKS_LOST);
    start_commit(b, "a", NULL);
    cr_assert(b->commit_done);
    cr_assert_eq(b->commit.status, SPAN_LOCKS_LOST);
    bench_free(b);
}

Test(txn_client, live_transactions_are_kept_alive_where_they_hold_locks)
{
    struct bench *b = bench_new();
    struct range_request q;
    struct slice body;
    struct keepalive k;
    lock_key(b, "a", 2);
    pass(b, 1100 * MS_NS);
    expect_nothing(b, 3);
    cr_assert_eq(next(b, 2, &q, &body), MSG_KEEPALIVE);
    cr_assert_eq(msg_decode_keepalive(body, &b->arena, &k), SPAN_OK);
    cr_assert_eq(k.count, 1);
    cr_assert_eq(k.incarnation, 77);
    cr_assert(txn_id_eq(&k.txns[0], &b->ref.id));
    txn_rollback(b->clients, &b->now, &b->ref.id);
    (void)request(b, 2, OP_RELEASE);
    pass(b, 1100 * MS_NS);
    expect_nothing(b, 2);
    bench_free(b);
}

Test(txn_client, a_schema_change_reaches_every_range_of_the_table)
{
    struct bench *b = bench_new();
    uint8_t cut[5] = {1, 0, 0, 4, 0}; /* table 1024 begins here */
    uint8_t in[8] = {1, 0, 0, 4, 0, 0, 0, 9};
    struct range_descriptor d[3] = {
        {.range = 2,
         .generation = 2,
         .end = slice_of(cut, 5),
         .member_count = 3,
         .members = {1, 2, 3},
         .leader = 2},
        {.range = 5,
         .generation = 2,
         .start = slice_of(cut, 5),
         .end = slice_of(in, 8),
         .member_count = 3,
         .members = {1, 2, 3},
         .leader = 2},
        {.range = 6,
         .generation = 2,
         .start = slice_of(in, 8),
         .member_count = 3,
         .members = {1, 2, 3},
         .leader = 3},
    };
    router_learn(b->router, &b->now, d, 3, false);
    static struct schema_use put;
    put = (struct schema_use){1024, 8};
    b->commit = (struct txn_commit){.schema_puts = &put,
                                    .schema_put_count = 1,
                                    .deadline_ns = b->now.mono_ns + SEC_NS,
                                    .done = commit_done,
                                    .owner = b};
    txn_commit_start(b->clients, &b->now, &b->ref, &b->commit);
    struct range_request qc = request(b, 2, OP_COORDINATE);
    struct range_request qp = request(b, 3, OP_PREPARE);
    cr_assert_eq(qc.range, 5);
    cr_assert_eq(qp.range, 6);
    uint8_t key[SCHEMA_KEY_BYTES];
    cr_assert(slice_eq(qc.writes[0].key, schema_key(key, 1024)));
    cr_assert(slice_eq(qp.writes[0].key, schema_key(key, 1024)));
    cr_assert_eq(qp.writes[0].value.data[0], 8);
    /* The request proves what it covers: a range that has shrunk refuses. */
    cr_assert(slice_eq(qc.spans[0].span.start, slice_of(cut, 5)));
    cr_assert(slice_eq(qc.spans[0].span.end, slice_of(in, 8)));
    answer(b, 2, &qc, SPAN_OK, (struct range_response){.ts = {1}});
    cr_assert_eq(b->commit.status, SPAN_OK);
    bench_free(b);
}

Test(txn_client, schema_versions_go_where_their_tables_keys_are)
{
    struct bench *b = bench_new();
    uint8_t key[9] = {1, 0, 0, 4, 1, 0, 0, 1, 2};
    static struct slice keys[1];
    struct schema_use uses[2] = {{1024, 3}, {1025, 4}};
    keys[0] = slice_of(key, sizeof key);
    b->read.keys = keys;
    b->read.key_count = 1;
    b->read.lock = READ_LOCK_SHARED;
    b->read.schema = uses;
    b->read.schema_count = 2;
    b->read.deadline_ns = b->now.mono_ns + SEC_NS;
    txn_read_start(b->clients, &b->now, &b->ref, &b->read);
    struct range_request q = request(b, 2, OP_READ);
    cr_assert_eq(q.schema_count, 1);
    cr_assert_eq(q.schema[0].table_id, 1025);
    answer(b, 2, &q, SPAN_STALE_SCHEMA, (struct range_response){0});
    cr_assert_eq(b->read.status, SPAN_STALE_SCHEMA);
    (void)request(b, 2, OP_RELEASE);
    bench_free(b);
}

Test(txn_client, own_replicas_answer_old_reads_and_the_leader_when_they_can_not)
{
    struct bench *b = bench_new();
    struct txn_ref none = {0};
    static struct slice keys[1];
    keys[0] = slice_str("a");
    b->read.keys = keys;
    b->read.key_count = 1;
    b->read.mode = KV_READ_AT;
    b->read.read_ts.ns = b->now.tt.latest.ns - SEC_NS;
    b->read.deadline_ns = b->now.mono_ns + SEC_NS;
    txn_read_start(b->clients, &b->now, &none, &b->read);
    struct range_request q = request(b, SELF, OP_READ);
    cr_assert(q.follower_ok);
    for (int i = 0; i < 20 && b->out[2].size == 0; i++) { /* a little patience with the safe time */
        answer(b, SELF, &q, SPAN_WOULD_WAIT, (struct range_response){.leader = 2});
        pass(b, 3 * MS_NS);
        if (b->out[SELF].size > 0) {
            q = request(b, SELF, OP_READ);
        }
    }
    q = request(b, 2, OP_READ);
    cr_assert_not(q.follower_ok);
    answer(b, 2, &q, SPAN_OK, (struct range_response){0});
    cr_assert_eq(b->read.status, SPAN_OK);
    b->read.read_ts.ns = b->now.tt.latest.ns + 1;
    txn_read_start(b->clients, &b->now, &none, &b->read);
    cr_assert_eq(b->read.status, SPAN_IN_FUTURE, "rule A6");
    bench_free(b);
}

/* The gateway has checked the timestamp by its own clock: a range that calls it the future shows
 * that one of the two clocks is out. It is not the client's fault, and a retry here meets it again.
 */
Test(txn_client, a_timestamp_of_ours_that_a_leader_calls_the_future_is_a_matter_of_clocks)
{
    struct bench *b = bench_new();
    struct txn_ref none = {0};
    static struct slice keys[1];
    keys[0] = slice_str("a");
    b->read.keys = keys;
    b->read.key_count = 1;
    b->read.mode = KV_READ_STRONG;
    b->read.deadline_ns = b->now.mono_ns + SEC_NS;
    txn_read_start(b->clients, &b->now, &none, &b->read);
    struct range_request q = request(b, 2, OP_READ);
    answer(b, 2, &q, SPAN_IN_FUTURE, (struct range_response){0});
    cr_assert_eq(b->read.status, SPAN_CLOCK);
    cr_assert(strstr(b->read.err.text, "range 2: the clocks of this node and of") != NULL, "%s",
              b->read.err.text);
    lock_key(b, "a", 2);
    start_commit(b, NULL, NULL);
    q = request(b, 2, OP_VALIDATE);
    answer(b, 2, &q, SPAN_IN_FUTURE, (struct range_response){0});
    cr_assert(b->commit_done);
    cr_assert_eq(b->commit.status, SPAN_CLOCK, "%s", b->commit.err.text);
    bench_free(b);
}
