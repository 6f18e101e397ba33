/* The directed schedules; see sim_script.h. */
#include "tests/sim/sim_script.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "shard/raft/raft_internal.h"
#include "shard/range/store_impl.h"
#include "tests/sim/sim_sql.h"

#define RANGE 2 /* all user tables until it is split */

/* ---- looking ---- */

static struct replica *replica_of(struct sim_world *w, node_id node, range_id range)
{
    return cluster_alive(w->c, node) ? store_replica(cluster_store(w->c, node), range) : NULL;
}

static const struct raft *raft_of(struct sim_world *w, node_id node, range_id range)
{
    const struct replica *r = replica_of(w, node, range);
    return r == NULL ? NULL : r->raft;
}

static bool serves(struct sim_world *w, node_id node, range_id range)
{
    const struct replica *r = replica_of(w, node, range);
    struct tt_now now = cluster_clock(w->c, node);
    return r != NULL && r->raft != NULL && replica_may_serve(r, &now);
}

static node_id server_of(struct sim_world *w, range_id range)
{
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        if (serves(w, i, range)) {
            return i;
        }
    }
    return 0;
}

static bool votes_in(struct sim_world *w, node_id at, range_id range, node_id node, bool committed)
{
    const struct raft *r = raft_of(w, at, range);
    return r != NULL &&
           raft_conf_is_voter(committed ? raft_committed_conf(r, NULL) : raft_conf(r, NULL), node);
}

/* ---- waiting ---- */

/* What a script waits for: a condition over some nodes. */
struct wanted {
    struct sim_world *w;
    node_id a;
    node_id b;
    range_id range;
    uint64_t n;
    bool (*is)(const struct wanted *x);
};

static bool wanted_cond(void *ctx)
{
    const struct wanted *x = ctx;
    return x->is(x);
}

static bool await(struct wanted *x, uint64_t limit_ns)
{
    return cluster_run_until(x->w->c, wanted_cond, x, limit_ns);
}

static bool is_served(const struct wanted *x)
{
    return x->a == 0 ? server_of(x->w, x->range) != 0 : serves(x->w, x->a, x->range);
}

static node_id await_server(struct sim_world *w, range_id range)
{
    struct wanted x = {.w = w, .range = range, .is = is_served};
    (void)await(&x, 5 * SEC_NS);
    return server_of(w, range);
}

/* ---- asking ---- */

/* Until a is (b) or is not a voter of the range everywhere where it is served. */
static void change_members(struct sim_world *w, range_id range, node_id add, node_id remove)
{
    for (int tries = 0; tries < 50 && !world_failed(w); tries++) {
        node_id leader = await_server(w, range);
        if (leader == 0) {
            continue;
        }
        bool added = add == 0 || votes_in(w, leader, range, add, true);
        bool removed = remove == 0 || !votes_in(w, leader, range, remove, true);
        if (added && removed) {
            return;
        }
        world_move(w, leader, range, add, remove);
        (void)cluster_run_until(w->c, world_admin_idle, w, 2 * SEC_NS);
        cluster_run_for(w->c, 20 * MS_NS);
    }
}

static void hand_over(struct sim_world *w, range_id range, node_id to)
{
    for (int tries = 0; tries < 50 && !world_failed(w) && !serves(w, to, range); tries++) {
        node_id leader = await_server(w, range);
        if (leader != 0 && leader != to) {
            world_transfer(w, leader, range, to);
            (void)cluster_run_until(w->c, world_admin_idle, w, 2 * SEC_NS);
        }
        struct wanted x = {.w = w, .a = to, .range = range, .is = is_served};
        (void)await(&x, 500 * MS_NS);
    }
}

/* An operation of the script's own. */
struct asked {
    struct gateway_op op;
    bool done;
};

static void asked_done(struct gateway_op *op)
{
    struct asked *a = op->owner;
    a->done = true;
}

static struct asked *asked_new(enum gateway_op_kind kind)
{
    struct asked *a = SPAN_NEW(struct asked);
    a->op.kind = kind;
    a->op.owner = a;
    a->op.done = asked_done;
    txn_read_init(&a->op.read);
    return a;
}

static bool asked_is_done(void *ctx)
{
    const struct asked *a = ctx;
    return a->done;
}

static bool asked_await(struct sim_world *w, struct asked *a, uint64_t limit_ns)
{
    return cluster_run_until(w->c, asked_is_done, a, limit_ns);
}

/* One that has not ended has failed the run: then it ends with the nodes. */
static void asked_end(struct sim_world *w, struct asked *a)
{
    if (!a->done) {
        cluster_fail(w->c, "an operation of the script does not end");
    }
    for (node_id i = 1; i <= cluster_node_count(w->c) && !a->done; i++) {
        if (cluster_alive(w->c, i)) {
            cluster_crash(w->c, i, SIM_CRASH_KILL);
        }
    }
    while (!a->done && cluster_step(w->c)) { /* it was still on its way */
    }
    txn_read_deinit(&a->op.read);
    span_free(a);
}

/* Rows of a table of the script's own. */
static void row_key(struct buf *b, unsigned row)
{
    sim_table_key(b, TABLE_JOURNAL + 1);
    sim_be32(b, row);
}

static struct txn_ref new_txn(struct sim_world *w, node_id node)
{
    struct tt_now now = cluster_clock(w->c, node);
    struct txn_id id = {now.tt.latest.ns, node, w->seq++ & 0x7fffffffU};
    return (struct txn_ref){id, id};
}

/* ---- cutting ---- */

/* Nodes in the mask a do not hear those in b, nor those them. */
static void cut_between(struct sim_world *w, unsigned a, unsigned b)
{
    struct sim_net *net = cluster_net(w->c);
    cluster_say(w->c, "script: cuts %x from %x", a, b);
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        for (node_id k = 1; k <= cluster_node_count(w->c); k++) {
            if ((a >> i & 1) != 0 && (b >> k & 1) != 0 && i != k) {
                net->cut[i][k] = net->cut[k][i] = true;
            }
        }
    }
}

static unsigned all_nodes(const struct sim_world *w)
{
    return (2U << cluster_node_count(w->c)) - 2;
}

/* Nobody hears it any more. */
static void net_out(struct sim_world *w, node_id node)
{
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        cluster_net(w->c)->cut[node][i] = true;
    }
}

/* What the nodes of the mask say to this one takes longer. */
static void delay_to(struct sim_world *w, node_id node, unsigned from, uint64_t ns)
{
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        cluster_net(w->c)->late_ns[i][node] = (from >> i & 1) != 0 ? ns : 0;
    }
}

static void mend(struct sim_world *w)
{
    struct sim_net *net = cluster_net(w->c);
    memset(net->cut, 0, sizeof net->cut);
    memset(net->late_ns, 0, sizeof net->late_ns);
}

static void stop_for(struct sim_world *w, node_id node, uint64_t min_ns, uint64_t max_ns)
{
    uint64_t ns = rng_between(cluster_rng(w->c), min_ns, max_ns);
    cluster_say(w->c, "script: node %u is stopped for %llu ms", node,
                (unsigned long long)(ns / MS_NS));
    cluster_pause(w->c, node, ns);
}

/* ---- B1 ---- */

static bool has_sent(const struct wanted *x)
{
    return cluster_store(x->w->c, x->a)->heartbeat_seq != x->n;
}

/* To just after the node has sent its heartbeats. */
static void await_heartbeat(struct sim_world *w, node_id node)
{
    struct wanted x = {
        .w = w, .a = node, .n = cluster_store(w->c, node)->heartbeat_seq, .is = has_sent};
    (void)await(&x, SEC_NS);
}

/* The leader A of an idle range is stopped; answers to its heartbeats wait at its door. B votes for
 * C. A goes on; it hears B, who follows C by now, and not C. */
static void idle_leader_pauses(struct sim_world *w)
{
    node_id a = await_server(w, RANGE);
    node_id b = 1 + (a + 1) % 3; /* the one after A stands first (rule I4) */
    if (a == 0) {
        return;
    }
    await_heartbeat(w, a);
    stop_for(w, a, 400 * MS_NS, 900 * MS_NS);
    cluster_run_for(w->c, 30 * MS_NS);
    cut_between(w, 1U << a, all_nodes(w) & ~(1U << a) & ~(1U << b));
    cluster_run_for(w->c, 1500 * MS_NS);
    mend(w);
}

/* ---- B4 ---- */

/* A leads {A, B, C}; D and E join while it does. {A, B} and {C, D, E} lose each other, but what the
 * others said last comes so late that A does not miss them (rule B7). Its lease must not rest on
 * {A, B}. */
static void lease_outlives_members(struct sim_world *w)
{
    change_members(w, RANGE, 0, 4);
    change_members(w, RANGE, 0, 5);
    node_id a = 1 + (node_id)rng_below(cluster_rng(w->c), 3);
    hand_over(w, RANGE, 1 + a % 3);
    hand_over(w, RANGE, a); /* its term begins with three */
    change_members(w, RANGE, 4, 0);
    change_members(w, RANGE, 5, 0);
    if (!serves(w, a, RANGE)) {
        return;
    }
    unsigned side = 1U << a | 1U << (1 + a % 3);
    unsigned other = all_nodes(w) & ~side;
    uint64_t late_ns = rng_between(cluster_rng(w->c), 150 * MS_NS, 240 * MS_NS);
    await_heartbeat(w, a);
    delay_to(w, a, other, late_ns);
    cluster_run_for(w->c, 5 * MS_NS);
    cut_between(w, side, other);
    cluster_run_for(w->c, 1200 * MS_NS);
    mend(w);
}

/* ---- a change of members before an entry of the own term (Raft dissertation, erratum to 4.1) ----
 */

/* Five nodes: S1 leads {S1, S2, S3, S4}, and S5 is to come. */
struct cast {
    struct sim_world *w;
    node_id s1, s2, s3, s4, s5;
};

static bool has_applied_learner(struct sim_world *w, node_id at, node_id learner)
{
    raft_index index = 0;
    const struct raft *r = raft_of(w, at, RANGE);
    return r != NULL && raft_conf_has(raft_committed_conf(r, &index), learner) &&
           raft_applied(r) >= index;
}

static bool both_have_learner(const struct wanted *x)
{
    return has_applied_learner(x->w, x->a, (node_id)x->n) &&
           has_applied_learner(x->w, x->b, (node_id)x->n);
}

static bool knows_voter(const struct wanted *x)
{
    return votes_in(x->w, x->a, RANGE, x->b, false);
}

/* a stands and all of b's mask have voted for it; what it says as a leader is still to be sent. */
static bool has_votes(const struct wanted *x)
{
    const struct raft *c = raft_of(x->w, x->a, RANGE);
    bool all = c != NULL && c->role == RAFT_CANDIDATE;
    for (node_id i = 1; all && i <= cluster_node_count(x->w->c); i++) {
        const struct raft *r = raft_of(x->w, i, RANGE);
        all = (x->n >> i & 1) == 0 ||
              (r != NULL && r->hs.term == c->hs.term && r->hs.voted_for == x->a);
    }
    return all;
}

static bool one_has_votes(const struct wanted *x)
{
    struct wanted a = {.w = x->w, .a = x->a, .n = x->n | 1U << x->b};
    struct wanted b = {.w = x->w, .a = x->b, .n = x->n | 1U << x->a};
    return has_votes(&a) || has_votes(&b);
}

/* a promised something to b, the leader of its term. */
static bool has_promised(const struct wanted *x)
{
    const struct raft *r = raft_of(x->w, x->a, RANGE);
    const struct raft *l = raft_of(x->w, x->b, RANGE);
    return r != NULL && l != NULL && l->role == RAFT_LEADER && r->promise.term == l->hs.term &&
           !tt_is_none(r->promise.in_term);
}

static bool has_lease(const struct wanted *x)
{
    const struct raft *r = raft_of(x->w, x->a, RANGE);
    struct tt_now now = cluster_clock(x->w->c, x->a);
    return r != NULL && raft_has_lease(r, &now);
}

/* b lacks something of a's log. */
static bool is_ahead(const struct wanted *x)
{
    const struct raft *a = raft_of(x->w, x->a, RANGE);
    const struct raft *b = raft_of(x->w, x->b, RANGE);
    return a != NULL && b != NULL && raft_last_index(a) > raft_last_index(b);
}

static bool is_out(const struct wanted *x)
{
    return !votes_in(x->w, x->a, RANGE, x->b, true);
}

/* S5 becomes a voter in S1's log and its own, and nobody else hears of it. */
static bool split_off_with_new_voter(const struct cast *p)
{
    struct sim_world *w = p->w;
    struct wanted learner = {.w = w, .a = p->s2, .b = p->s3, .n = p->s5, .is = both_have_learner};
    struct wanted voter = {.w = w, .a = p->s5, .b = p->s5, .is = knows_voter};
    world_move(w, p->s1, RANGE, p->s5, 0);
    if (!await(&learner, SEC_NS)) {
        return false;
    }
    unsigned pair = 1U << p->s1 | 1U << p->s5;
    mend(w);
    cut_between(w, pair, all_nodes(w) & ~pair);
    return await(&voter, 500 * MS_NS);
}

/* S2 (or S3) is elected by all three and holds their promises; S4, who lacks what came before, does
 * not get the first entry of the term. *p is turned so that S2 leads. */
static bool elect_without_s4(struct cast *p)
{
    struct sim_world *w = p->w;
    struct wanted votes = {.w = w, .a = p->s2, .b = p->s3, .n = 1U << p->s4, .is = one_has_votes};
    if (!await(&votes, 2 * SEC_NS)) {
        return false;
    }
    const struct raft *r = raft_of(w, p->s3, RANGE);
    if (r != NULL && r->role == RAFT_CANDIDATE) {
        node_id s3 = p->s3;
        p->s3 = p->s2;
        p->s2 = s3;
    }
    struct wanted promise = {.w = w, .a = p->s4, .b = p->s2, .is = has_promised};
    if (!await(&promise, 200 * MS_NS)) {
        return false;
    }
    cluster_net(w->c)->cut[p->s2][p->s4] = true;
    cluster_say(w->c, "script: node %u leads, node %u lacks its entry", p->s2, p->s4);
    struct wanted lease = {.w = w, .a = p->s2, .is = has_lease};
    return await(&lease, 20 * MS_NS);
}

/* S1 adds S5, which only the two know; S2 removes S4, which only S2 and S3 know. Each change alone
 * is right; the majorities {S1, S4, S5} of the one and {S2, S3} of the other do not meet. */
static void members_of_two_terms(struct sim_world *w)
{
    struct cast p = {.w = w};
    p.s5 = 1 + (node_id)rng_below(cluster_rng(w->c), 5);
    change_members(w, RANGE, 0, p.s5);
    p.s1 = await_server(w, RANGE);
    node_id others[5];
    size_t n = 0;
    for (node_id i = 1; i <= 5; i++) {
        if (i != p.s1 && i != p.s5) {
            others[n++] = i;
        }
    }
    if (p.s1 == 0 || p.s1 == p.s5) {
        return;
    }
    p.s2 = others[0];
    p.s3 = others[1];
    p.s4 = others[2];
    cut_between(w, 1U << p.s4, all_nodes(w)); /* it falls behind */
    cut_between(w, 1U << p.s5, all_nodes(w)); /* not to catch up yet */
    struct wanted ahead = {.w = w, .a = p.s1, .b = p.s4, .is = is_ahead};
    (void)await(&ahead, SEC_NS);
    if (split_off_with_new_voter(&p) && elect_without_s4(&p)) {
        struct wanted out = {.w = w, .a = p.s2, .b = p.s4, .is = is_out};
        world_move(w, p.s2, RANGE, 0, p.s4);
        (void)await(&out, 200 * MS_NS);
        unsigned side = 1U << p.s2 | 1U << p.s3;
        mend(w);
        cut_between(w, side, all_nodes(w) & ~side);
        cluster_run_for(w->c, 1500 * MS_NS);
    }
    mend(w);
}

/* ---- C4 ---- */

#define ROWS 3

static range_id range_of(struct sim_world *w, struct slice key)
{
    const struct store *s = cluster_store(w->c, sim_any_alive(w));
    range_id id = 0;
    for (size_t i = 0; i < s->by_key_count; i++) {
        if (slice_cmp(buf_slice(&s->by_key[i]->start), key) <= 0) {
            id = s->by_key[i]->id;
        }
    }
    return id;
}

/* A range of its own for each row, led by node 1, 2 and 3. */
static void lay_out_rows(struct sim_world *w, struct buf *keys, range_id *ranges)
{
    for (unsigned i = 0; i < ROWS; i++) {
        row_key(&keys[i], i);
        struct asked *a = asked_new(GATEWAY_SPLIT);
        a->op.u.split.key = buf_slice(&keys[i]);
        cluster_op(w->c, 1, &a->op);
        (void)asked_await(w, a, 10 * SEC_NS);
        asked_end(w, a);
        cluster_run_for(w->c, 50 * MS_NS);
    }
    for (unsigned i = 0; i < ROWS; i++) {
        ranges[i] = range_of(w, buf_slice(&keys[i]));
        hand_over(w, ranges[i], i + 1);
    }
}

struct in_doubt {
    struct sim_world *w;
    struct txn_id txn;
    range_id range;
    node_id node;
};

static bool is_prepared(void *ctx)
{
    const struct in_doubt *d = ctx;
    const struct replica *r = replica_of(d->w, d->node, d->range);
    const struct rtxn *t = r == NULL ? NULL : rtxn_find(r, &d->txn);
    return t != NULL && t->state == RTXN_PREPARED;
}

/* T1, the older one, wants the row of range 2 on which T2 is prepared; T2's coordinator, range 1,
 * waits for range 3, which does not hear of it. T1 must not wait for that. */
static void old_meets_prepared(struct sim_world *w)
{
    struct buf keys[ROWS] = {{0}};
    range_id ranges[ROWS];
    struct txn_write writes[ROWS];
    lay_out_rows(w, keys, ranges);
    struct txn_ref old = new_txn(w, 2);
    cluster_run_for(w->c, 50 * MS_NS);
    cut_between(w, 1U << 1, 1U << 3);
    struct asked *young = asked_new(GATEWAY_COMMIT);
    young->op.txn = new_txn(w, 1);
    for (unsigned i = 0; i < ROWS; i++) {
        writes[i] = (struct txn_write){.key = buf_slice(&keys[i]), .value = buf_slice(&keys[i])};
    }
    young->op.commit =
        (struct txn_commit){.writes = writes, .write_count = ROWS, .anchor = buf_slice(&keys[0])};
    struct in_doubt doubt = {w, young->op.txn.id, ranges[1], 2};
    struct slice key = buf_slice(&keys[1]);
    cluster_op(w->c, 1, &young->op);
    struct asked *read = asked_new(GATEWAY_READ);
    struct asked *rollback = asked_new(GATEWAY_ROLLBACK);
    read->op.txn = rollback->op.txn = old;
    read->op.read.keys = &key;
    read->op.read.key_count = 1;
    read->op.read.lock = READ_LOCK_UPDATE;
    bool reached = cluster_run_until(w->c, is_prepared, &doubt, SEC_NS);
    cluster_say(w->c, "script: %sprepared", reached ? "" : "not ");
    cluster_op(w->c, 2, &read->op);
    if (reached && !asked_await(w, read, SEC_NS)) {
        cluster_fail(w->c, "an older transaction waits for a younger one that is prepared, whose "
                           "coordinator was not told (rule C4)");
    }
    mend(w);
    (void)asked_await(w, read, 20 * SEC_NS);
    cluster_op(w->c, 2, &rollback->op);
    (void)asked_await(w, rollback, 20 * SEC_NS);
    (void)asked_await(w, young, 20 * SEC_NS);
    asked_end(w, read);
    asked_end(w, rollback);
    asked_end(w, young);
    for (unsigned i = 0; i < ROWS; i++) {
        buf_deinit(&keys[i]);
    }
}

/* ---- C8 ---- */

/* The commit request reaches the coordinator after the participant's question, which it answers
 * with an abort, and before the participant's vote. */
static void late_commit_request(struct sim_world *w)
{
    struct buf keys[ROWS] = {{0}};
    range_id ranges[ROWS];
    struct txn_write writes[2];
    struct sim_net *net = cluster_net(w->c);
    lay_out_rows(w, keys, ranges);
    net->reorder = true;
    net->late_ns[3][1] = rng_between(cluster_rng(w->c), 300 * MS_NS, 400 * MS_NS);
    net->late_ns[2][1] = net->late_ns[3][1] + 100 * MS_NS;
    struct asked *t = asked_new(GATEWAY_COMMIT);
    t->op.txn = new_txn(w, 3);
    for (unsigned i = 0; i < 2; i++) {
        writes[i] = (struct txn_write){.key = buf_slice(&keys[i]), .value = buf_slice(&keys[i])};
    }
    t->op.commit =
        (struct txn_commit){.writes = writes, .write_count = 2, .anchor = buf_slice(&keys[0])};
    struct in_doubt doubt = {w, t->op.txn.id, ranges[1], 2};
    cluster_op(w->c, 3, &t->op);
    bool reached = cluster_run_until(w->c, is_prepared, &doubt, SEC_NS);
    cluster_say(w->c, "script: %sprepared", reached ? "" : "not ");
    memset(net->late_ns, 0, sizeof net->late_ns);
    net->cut[3][1] = true; /* what is under way arrives; it is not asked again meanwhile */
    cluster_run_for(w->c, 290 * MS_NS);
    mend(w);
    (void)asked_await(w, t, 20 * SEC_NS);
    asked_end(w, t);
    cluster_run_for(w->c, SEC_NS);
    net->reorder = false;
    for (unsigned i = 0; i < ROWS; i++) {
        buf_deinit(&keys[i]);
    }
}

/* ---- C10 ---- */

struct reader_dies {
    struct sim_world *w;
    struct buf keys[ROWS];
    struct buf x; /* of the same range as row 1 */
    range_id ranges[ROWS];
    struct slice keys_read[1];
    struct txn_write writes[2];
    struct txn_write other;
    struct asked *read;
    struct asked *commit;
    struct asked *younger;
    struct asked *floor;
};

/* T reads x and writes rows 0 and 1; its vote is long under way. */
static bool prepare_reader(struct reader_dies *p)
{
    struct sim_world *w = p->w;
    p->keys_read[0] = buf_slice(&p->x);
    p->read->op.txn = p->commit->op.txn = new_txn(w, 3);
    p->read->op.read.keys = p->keys_read;
    p->read->op.read.key_count = 1;
    p->read->op.read.lock = READ_LOCK_SHARED;
    cluster_op(w->c, 3, &p->read->op);
    (void)asked_await(w, p->read, 5 * SEC_NS);
    cluster_net(w->c)->late_ns[2][1] = 1500 * MS_NS;
    for (unsigned i = 0; i < 2; i++) {
        p->writes[i] =
            (struct txn_write){.key = buf_slice(&p->keys[i]), .value = buf_slice(&p->keys[i])};
    }
    p->commit->op.commit = (struct txn_commit){.writes = p->writes,
                                               .write_count = 2,
                                               .anchor = buf_slice(&p->keys[0]),
                                               .seen = p->read->op.read.seen};
    struct in_doubt doubt = {w, p->commit->op.txn.id, p->ranges[1], 2};
    cluster_op(w->c, 3, &p->commit->op);
    return p->read->done && p->read->op.status == SPAN_OK &&
           cluster_run_until(w->c, is_prepared, &doubt, SEC_NS);
}

/* Node 3 leads what node 2 led; somebody writes x there, and afterwards the coordinator's floor
 * rises above that write. */
static void write_what_was_read(struct reader_dies *p)
{
    struct sim_world *w = p->w;
    cluster_net(w->c)->late_ns[3][1] = 1200 * MS_NS;
    struct wanted serves3 = {.w = w, .a = 3, .range = p->ranges[1], .is = is_served};
    (void)await(&serves3, 2 * SEC_NS);
    p->other = (struct txn_write){.key = buf_slice(&p->x), .value = buf_slice(&p->x)};
    p->younger->op.txn = new_txn(w, 3);
    p->younger->op.commit = (struct txn_commit){.writes = &p->other, .write_count = 1};
    cluster_op(w->c, 3, &p->younger->op);
    (void)asked_await(w, p->younger, 300 * MS_NS);
    cluster_run_for(w->c, 30 * MS_NS);
    p->floor->op.read.keys = p->keys_read;
    p->floor->op.read.key_count = 1;
    p->keys_read[0] = buf_slice(&p->keys[0]);
    cluster_op(w->c, 4, &p->floor->op);
    (void)asked_await(w, p->floor, 200 * MS_NS);
}

/* T is prepared in range 1, whose leader then dies; before T is decided, somebody else writes what
 * T has read there: that must wait. */
static void leader_of_reader_dies(struct sim_world *w)
{
    struct reader_dies p = {.w = w};
    lay_out_rows(w, p.keys, p.ranges);
    cluster_net(w->c)->reorder = true;
    row_key(&p.x, 1);
    buf_append_byte(&p.x, 'x');
    p.read = asked_new(GATEWAY_READ);
    p.commit = asked_new(GATEWAY_COMMIT);
    p.younger = asked_new(GATEWAY_COMMIT);
    p.floor = asked_new(GATEWAY_READ);
    if (prepare_reader(&p) && serves(w, 2, p.ranges[1])) {
        cluster_say(w->c, "script: prepared");
        cluster_run_for(w->c, 5 * MS_NS);
        cluster_crash(w->c, 2, SIM_CRASH_KILL);
        write_what_was_read(&p);
    } else {
        p.younger->done = p.floor->done = true;
    }
    (void)asked_await(w, p.commit, 20 * SEC_NS);
    (void)asked_await(w, p.younger, 20 * SEC_NS);
    (void)asked_await(w, p.floor, 20 * SEC_NS);
    const struct gateway_op *t = &p.commit->op;
    const struct gateway_op *y = &p.younger->op;
    if (t->status == SPAN_OK && y->status == SPAN_OK && !tt_is_none(y->commit.ts) &&
        y->commit.ts.ns < t->commit.ts.ns) {
        cluster_fail(w->c,
                     "a read is not current: a transaction committed at %llu what it read before "
                     "another wrote it at %llu",
                     (unsigned long long)t->commit.ts.ns, (unsigned long long)y->commit.ts.ns);
    }
    asked_end(w, p.read);
    asked_end(w, p.commit);
    asked_end(w, p.younger);
    asked_end(w, p.floor);
    mend(w);
    cluster_net(w->c)->reorder = false;
    for (unsigned i = 0; i < ROWS; i++) {
        buf_deinit(&p.keys[i]);
    }
    buf_deinit(&p.x);
}

/* ---- Raft figure 8 ---- */

static bool is_led(const struct wanted *x)
{
    const struct raft *a = raft_of(x->w, x->a, RANGE);
    const struct raft *b = raft_of(x->w, x->b, RANGE);
    return (a != NULL && a->role == RAFT_LEADER) || (b != NULL && b->role == RAFT_LEADER);
}

/* One of the three in the mask n has both others' votes. */
static bool any_has_votes(const struct wanted *x)
{
    for (node_id i = 1; i <= cluster_node_count(x->w->c); i++) {
        struct wanted one = {.w = x->w, .a = i, .n = x->n & ~(1ULL << i)};
        if ((x->n >> i & 1) != 0 && has_votes(&one)) {
            return true;
        }
    }
    return false;
}

static bool has_more(const struct wanted *x)
{
    const struct raft *r = raft_of(x->w, x->a, RANGE);
    return r != NULL && raft_last_index(r) > x->n;
}

static node_id candidate_of(struct sim_world *w, unsigned mask)
{
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        const struct raft *r = raft_of(w, i, RANGE);
        if ((mask >> i & 1) != 0 && r != NULL && r->role == RAFT_CANDIDATE) {
            return i;
        }
    }
    return 0;
}

/* S1 leads again and S3 (of the mask low) takes the first of its old entries, and no more. */
static bool give_a_piece(struct sim_world *w, node_id s1, node_id s2, unsigned low)
{
    struct wanted led = {.w = w, .a = s1, .b = s2, .is = is_led};
    node_id s3 = low >> 1 & 1 ? 1 : low >> 2 & 1 ? 2 : low >> 3 & 1 ? 3 : low >> 4 & 1 ? 4 : 5;
    if (!await(&led, 3 * SEC_NS)) {
        return false;
    }
    unsigned s4 = low & ~(1U << s3);
    unsigned pair = 1U << s1 | 1U << s2;
    cut_between(w, s4, pair);
    struct wanted piece = {.w = w, .a = s3, .n = raft_last_index(raft_of(w, s3, RANGE))};
    piece.is = has_more;
    if (!await(&piece, 300 * MS_NS)) {
        return false;
    }
    cluster_net(w->c)->cut[s1][s3] = cluster_net(w->c)->cut[s2][s3] = true;
    cluster_say(w->c, "script: node %u has a piece", s3);
    cluster_run_for(w->c, 20 * MS_NS);
    return true;
}

#define BULK_OPS   40
#define BULK_BYTES 600

/* Commits of one row each, given to one node at the same time: more than fits one append. */
struct bulk {
    struct asked *ops[BULK_OPS];
    struct buf keys[BULK_OPS];
    struct buf value;
    struct txn_write writes[BULK_OPS];
};

static struct bulk *bulk_write(struct sim_world *w, node_id at)
{
    struct bulk *b = SPAN_NEW(struct bulk);
    memset(buf_grow(&b->value, BULK_BYTES), 'x', BULK_BYTES);
    for (unsigned i = 0; i < BULK_OPS; i++) {
        row_key(&b->keys[i], i);
        b->writes[i] =
            (struct txn_write){.key = buf_slice(&b->keys[i]), .value = buf_slice(&b->value)};
        b->ops[i] = asked_new(GATEWAY_COMMIT);
        b->ops[i]->op.txn = new_txn(w, at);
        b->ops[i]->op.commit = (struct txn_commit){.writes = &b->writes[i], .write_count = 1};
        cluster_op(w->c, at, &b->ops[i]->op);
    }
    return b;
}

static void bulk_end(struct sim_world *w, struct bulk *b)
{
    for (unsigned i = 0; i < BULK_OPS; i++) {
        (void)asked_await(w, b->ops[i], 20 * SEC_NS);
        asked_end(w, b->ops[i]);
        buf_deinit(&b->keys[i]);
    }
    buf_deinit(&b->value);
    span_free(b);
}

/* S1 leads, and its entries reach S2 alone. S5 is elected; its entry reaches nobody. S1 or S2 is
 * elected and gives S3 some of the old entries: a majority has them, but S5 may still be elected,
 * by S3 and S4, and replace them. */
static void figure_8(struct sim_world *w)
{
    node_id s1 = await_server(w, RANGE);
    node_id s2 = 1 + s1 % 5;
    unsigned pair = 1U << s1 | 1U << s2;
    unsigned rest = all_nodes(w) & ~pair;
    cluster_run_for(w->c, 50 * MS_NS);
    cut_between(w, pair, rest);
    struct bulk *bulk = bulk_write(w, s1 == 0 ? 1 : s1);
    struct wanted votes = {.w = w, .n = rest, .is = any_has_votes};
    if (s1 == 0 || !await(&votes, 2 * SEC_NS)) {
        mend(w);
        bulk_end(w, bulk);
        return;
    }
    node_id s5 = candidate_of(w, rest);
    unsigned low = rest & ~(1U << s5);
    net_out(w, s5);
    cluster_run_for(w->c, 5 * MS_NS); /* it leads, alone */
    mend(w);
    cut_between(w, 1U << s5, all_nodes(w));
    if (give_a_piece(w, s1, s2, low)) {
        mend(w);
        cut_between(w, pair, all_nodes(w) & ~pair);
        cluster_run_for(w->c, 2 * SEC_NS);
    }
    mend(w);
    bulk_end(w, bulk);
}

/* ---- reads above the lease ---- */

/* What the others said last to leader A comes so late that it does not miss them (rule B7) when its
 * lease is over, and somebody else leads. Its clients go on asking it. */
static void leader_hears_echoes(struct sim_world *w)
{
    node_id a = await_server(w, RANGE);
    if (a == 0) {
        return;
    }
    cluster_run_for(w->c, 100 * MS_NS);
    await_heartbeat(w, a);
    delay_to(w, a, all_nodes(w), rng_between(cluster_rng(w->c), 150 * MS_NS, 240 * MS_NS));
    cluster_run_for(w->c, 5 * MS_NS);
    cut_between(w, 1U << a, all_nodes(w));
    cluster_run_for(w->c, 1200 * MS_NS);
    mend(w);
}

/* ---- F2 ---- */

/* The log of one node is damaged while it is down, until the node notices: it is out for good. */
static void log_is_damaged(struct sim_world *w)
{
    node_id n = 1 + (node_id)rng_below(cluster_rng(w->c), 3);
    for (int tries = 0; tries < 10 && !world_failed(w) && !cluster_lost(w->c, n); tries++) {
        cluster_run_for(w->c, rng_between(cluster_rng(w->c), 20 * MS_NS, 300 * MS_NS));
        if (cluster_alive(w->c, n)) {
            cluster_crash(w->c, n, SIM_CRASH_KILL);
        }
        (void)cluster_flip(w->c, n);
        (void)cluster_restart(w->c, n);
    }
}

static const struct sim_script scripts[] = {
    {"pause", "directed: the leader of an idle range is stopped", 3, idle_leader_pauses, true},
    {"erratum", "directed: two leaders change members, each unknown to the other", 5,
     members_of_two_terms, false},
    {"wound", "directed: an old transaction meets a young one that is prepared", 3,
     old_meets_prepared, true},
    {"request", "directed: a commit request comes after a participant's question", 3,
     late_commit_request, true},
    {"reader", "directed: the leader of a range that was read dies", 5, leader_of_reader_dies,
     true},
    {"answers", "directed: SQL: errors and status of what was just committed", 3, sim_sql_answers,
     true},
    {"unique", "directed: SQL: rows with unique keys", 3, sim_sql_unique, true},
    {"figure8", "directed: Raft's figure 8", 5, figure_8, false},
    {"damage", "directed: the log of a node is damaged while it is down", 3, log_is_damaged, false},
    {"echoes", "directed: a leader hears the others late when its lease is over", 3,
     leader_hears_echoes, false},
    {"grow", "directed: members join while a lease runs", 5, lease_outlives_members, true},
};

const struct sim_script *sim_script_get(size_t i)
{
    return i < sizeof scripts / sizeof scripts[0] ? &scripts[i] : NULL;
}

const struct sim_script *sim_script_find(const char *scenario)
{
    for (size_t i = 0; sim_script_get(i) != NULL; i++) {
        if (strcmp(scripts[i].name, scenario) == 0) {
            return &scripts[i];
        }
    }
    return NULL;
}
