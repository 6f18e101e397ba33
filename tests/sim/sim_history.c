/* Before and after the clients: the accounts are written; everything must end; what the clients
 * wrote down must be one serial history in timestamp order that respects real time (sim_world.h):
 *
 *   - replayed in timestamp order, every read of every committed transaction is current (values
 *     name their writer)
 *   - acknowledged before begun implies smaller timestamp; read-only ones see everything
 *     acknowledged before they began
 *   - nothing acknowledged is missing or doubled, nothing answered as retryable is there
 *   - money is conserved, at past timestamps on every replica; no lock, no transaction in doubt is
 *     left; every operation ended */
#include "base/alloc.h"
#include "base/invariant.h"
#include "tests/sim/sim_world.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- synchronous operations of the test itself ---- */

static void plain_done(struct gateway_op *op)
{
    struct sim_world *w = op->owner;
    w->op_done = true;
}

static bool is_done(void *ctx)
{
    const struct sim_world *w = ctx;
    return w->op_done;
}

static span_status world_run_op(struct sim_world *w, node_id node, struct gateway_op *op)
{
    /* Not on the caller's stack: when the run has failed the gateway keeps it to the end. */
    struct gateway_op *o = span_memdup(op, sizeof *op);
    o->owner = w;
    o->done = plain_done;
    o->deadline_ns = 0;
    w->op_done = false;
    cluster_op(w->c, node, o);
    if (!cluster_run_until(w->c, is_done, w, 60 * SEC_NS)) {
        cluster_fail(w->c, "an operation did not end in 60 s");
        o->read.pages = NULL;
        w->op_left = o;
        return SPAN_DEADLINE;
    }
    *op = *o;
    span_free(o);
    return op->status;
}

void world_set_up(struct sim_world *w)
{
    struct gateway_op op = {.kind = GATEWAY_COMMIT};
    struct txn_write *writes = span_calloc(w->accounts, sizeof *writes);
    struct buf *bytes = span_calloc((size_t)w->accounts * 2, sizeof *bytes);
    struct htxn *t;
    w->cap = 256;
    w->history = span_calloc(w->cap, sizeof *w->history);
    t = &w->history[w->count++]; /* number 0: the start */
    for (unsigned i = 0; i < w->accounts; i++) {
        sim_account_key(&bytes[2 * i], i);
        sim_value_of(&bytes[2 * i + 1], START_BALANCE, 0);
        writes[i] = (struct txn_write){.key = buf_slice(&bytes[2 * i]),
                                       .value = buf_slice(&bytes[2 * i + 1])};
    }
    span_status st = SPAN_UNAVAILABLE;
    for (int tries = 0; tries < 5 && st != SPAN_OK; tries++) {
        struct tt_now now = cluster_clock(w->c, 1);
        op.txn.id = op.txn.age = (struct txn_id){now.tt.latest.ns, 1, w->seq++};
        op.commit = (struct txn_commit){.writes = writes, .write_count = w->accounts};
        st = world_run_op(w, 1, &op);
    }
    if (st != SPAN_OK) {
        cluster_fail(w->c, "the accounts could not be written: %s", op.err.text);
    }
    t->ts = op.commit.ts;
    t->out = OUT_COMMITTED;
    /* No reader of the past may come from before the start, by any clock. */
    cluster_run_for(w->c, 50 * MS_NS + (w->opt.epsilon_ns > 7 * MS_NS ? 200 * MS_NS : 0));
    w->floor = t->ts;
    for (unsigned i = 0; i < w->accounts * 2; i++) {
        buf_deinit(&bytes[i]);
    }
    span_free(bytes);
    span_free(writes);
    txn_read_deinit(&op.read);
}

/* ---- the end ---- */

bool world_idle(void *ctx)
{
    const struct sim_world *w = ctx;
    return w->busy == 0 && w->admin_busy == 0;
}

bool world_admin_idle(void *ctx)
{
    const struct sim_world *w = ctx;
    return w->admin_busy == 0;
}

static size_t leftovers(struct sim_world *w, bool print)
{
    size_t n = 0;
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        if (!cluster_alive(w->c, i)) {
            continue;
        }
        for (unsigned what = 3; what <= 4; what++) {
            struct arena a = {0};
            struct slice *cells = NULL;
            size_t count = 0;
            unsigned columns = 0;
            struct tt_now now = cluster_clock(w->c, i);
            store_show(cluster_store(w->c, i), &now, what, &a, &cells, &count, &columns);
            n += count;
            for (size_t k = 0; print && columns != 0 && k < count; k++) {
                fprintf(stderr, "%.*s%s", (int)cells[k].size,
                        cells[k].data == NULL ? "-" : (const char *)cells[k].data,
                        (k + 1) % columns == 0 ? "\n" : " ");
            }
            arena_deinit(&a);
        }
        struct gateway_stats g;
        gateway_stats_get(cluster_gateway(w->c, i), &g);
        n += g.txns + g.requests + g.ops;
        if (print) {
            fprintf(stderr, "gateway %u: %zu transactions, %zu requests, %zu operations\n", i,
                    g.txns, g.requests, g.ops);
        }
    }
    return n;
}

static void resolve_unknown(struct sim_world *w)
{
    for (size_t i = 0; i < w->count && !world_failed(w); i++) {
        struct htxn *t = &w->history[i];
        if (t->out != OUT_UNKNOWN || !t->has_anchor) {
            continue;
        }
        struct buf key = {0};
        if (t->kind == K_LIST) {
            sim_list_key(&key, t->anchor);
        } else {
            sim_account_key(&key, t->anchor);
        }
        enum kv_txn_outcome first = KV_TXN_RUNNING;
        bool asked = false;
        for (node_id n = 1; n <= cluster_node_count(w->c); n++) { /* every gateway says the same */
            if (!cluster_alive(w->c, n)) {
                continue;
            }
            struct gateway_op op = {.kind = GATEWAY_STATUS};
            op.u.status.txn = t->id;
            op.u.status.anchor = buf_slice(&key);
            span_status st;
            int tries = 0;
            do { /* a coordinator may be waiting for its deadline still */
                st = world_run_op(w, n, &op);
                cluster_run_for(w->c, 100 * MS_NS);
            } while (st == SPAN_OK && op.u.status.outcome == KV_TXN_RUNNING && tries++ < 150);
            if (st != SPAN_OK || (asked && op.u.status.outcome != first)) {
                cluster_fail(w->c, "status of transaction %zu: %s, %d and %d", i,
                             span_status_name(st), first, op.u.status.outcome);
            }
            asked = true;
            first = op.u.status.outcome;
            t->ts = op.u.status.ts;
            txn_read_deinit(&op.read);
        }
        if (first == KV_TXN_COMMITTED) {
            t->out = OUT_COMMITTED;
        } else if (first == KV_TXN_ABORTED) {
            t->out = OUT_ABORTED;
        } else {
            cluster_fail(w->c, "transaction %zu is neither committed nor aborted at the end: %d", i,
                         first);
        }
        buf_deinit(&key);
    }
}

void sim_scan(struct sim_world *w, node_id node, uint32_t from, uint32_t to, struct tt_ts ts,
              void (*fn)(struct sim_world *w, struct slice key, struct slice value))
{
    struct gateway_op op = {.kind = GATEWAY_READ};
    struct buf start = {0};
    struct buf end = {0};
    sim_table_key(&start, from);
    sim_table_key(&end, to);
    op.read.mode = ts.ns == 0 ? KV_READ_STRONG : KV_READ_AT;
    op.read.read_ts = ts;
    op.read.end = buf_slice(&end);
    op.read.parallel = 1;
    for (;;) {
        op.read.start = buf_slice(&start);
        span_status st = world_run_op(w, node, &op);
        if (st != SPAN_OK) {
            cluster_fail(w->c, "node %u can not read at %llu: %s", node, (unsigned long long)ts.ns,
                         op.err.text);
            break;
        }
        bool gap = false; /* one piece of the span may have come as several pages */
        for (size_t p = 0; p < op.read.page_count && !gap; p++) {
            const struct read_page *g = &op.read.pages[p];
            for (size_t i = 0; i < g->count; i++) {
                fn(w, read_row_key(g, &g->rows[i]), read_row_value(g, &g->rows[i]));
            }
            gap = !g->complete;
            if (gap) {
                buf_set(&start, buf_slice(&g->rest_start));
            }
        }
        if (!gap && op.read.complete) {
            break;
        }
        if (!gap) {
            buf_set(&start, buf_slice(&op.read.rest));
        }
    }
    txn_read_deinit(&op.read);
    buf_deinit(&start);
    buf_deinit(&end);
}

static void note_journal(struct sim_world *w, struct slice key, struct slice value)
{
    (void)key;
    struct cursor v = cursor_of(value);
    (void)dec_u64(&v);
    uint64_t writer = dec_u64(&v);
    if (writer >= w->count || w->history[writer].in_journal) {
        cluster_fail(w->c, "journal row of transaction %llu", (unsigned long long)writer);
        return;
    }
    w->history[writer].in_journal = true;
}

static void check_journal(struct sim_world *w)
{
    for (size_t i = 0; i < w->count && !world_failed(w); i++) {
        struct htxn *t = &w->history[i];
        if (!t->journal) {
            continue;
        }
        if (t->out == OUT_UNKNOWN) { /* had no id to ask by */
            t->out = t->in_journal ? OUT_COMMITTED : OUT_ABORTED;
            if (t->out == OUT_COMMITTED && t->write_count > 0) {
                t->ts = tt_ts_of(0);
            }
        }
        if (t->in_journal != (t->out == OUT_COMMITTED)) {
            cluster_fail(w->c, "transaction %zu of kind %d is %s, its journal row is %s", i,
                         t->kind, t->out == OUT_COMMITTED ? "committed" : "aborted",
                         t->in_journal ? "there" : "missing");
        }
    }
}

/* Transactions without an id to ask by: what they wrote tells, if anybody read it. */
static void settle_rest(struct sim_world *w)
{
    for (size_t i = 0; i < w->count; i++) {
        struct htxn *t = &w->history[i];
        for (size_t k = 0; k < t->read_count; k++) {
            struct htxn *writer =
                t->reads[k].writer < w->count ? &w->history[t->reads[k].writer] : NULL;
            if (writer == NULL) {
                cluster_fail(w->c, "transaction %zu read a value of nobody", i);
            } else if (writer->out == OUT_ABORTED) {
                cluster_fail(
                    w->c, "transaction %zu read account %u of transaction %llu, which was aborted",
                    i, t->reads[k].account, (unsigned long long)t->reads[k].writer);
            }
        }
    }
}

/* ---- replay ---- */

static struct sim_world *replay_world;

static int by_ts(const void *pa, const void *pb)
{
    size_t a = *(const size_t *)pa;
    size_t b = *(const size_t *)pb;
    const struct htxn *x = &replay_world->history[a];
    const struct htxn *y = &replay_world->history[b];
    if (x->ts.ns != y->ts.ns) {
        return x->ts.ns < y->ts.ns ? -1 : 1;
    }
    bool rx = x->write_count == 0 && a != 0; /* a reader at s sees what was written at s */
    bool ry = y->write_count == 0 && b != 0;
    return rx != ry ? (rx ? 1 : -1) : a < b ? -1 : 1;
}

static size_t *committed_order(struct sim_world *w, size_t *count)
{
    size_t *order = span_calloc(w->count + 1, sizeof *order);
    size_t n = 0;
    for (size_t i = 0; i < w->count; i++) {
        const struct htxn *t = &w->history[i];
        bool timed = t->kind != K_LOCKED && t->kind != K_BLIND && t->ts.ns != 0;
        /* A clock that is far behind reads what was before the accounts: nothing. */
        timed = timed && (t->write_count + t->append_count != 0 || t->ts.ns >= w->history[0].ts.ns);
        if (i == 0 || (t->out == OUT_COMMITTED && timed)) {
            order[n++] = i;
        }
    }
    replay_world = w;
    qsort(order, n, sizeof *order, by_ts);
    *count = n;
    return order;
}

static void apply(struct sim_world *w, const struct htxn *t, size_t i, struct cell *state)
{
    if (i == 0) {
        for (unsigned a = 0; a < w->accounts; a++) {
            state[a] = (struct cell){.account = a, .balance = START_BALANCE};
        }
        for (unsigned a = w->accounts; a < w->cells; a++) {
            state[a] = (struct cell){.account = a, .absent = true};
        }
    }
    for (size_t k = 0; k < t->write_count; k++) {
        state[t->writes[k].account] = t->writes[k];
    }
}

static void check_reads(struct sim_world *w, const struct htxn *t, size_t i,
                        const struct cell *state)
{
    int64_t sum = 0;
    size_t present = 0;
    struct tt_ts newest = tt_ts_of(0);
    for (unsigned a = 0; a < w->cells; a++) {
        present += state[a].absent ? 0 : 1;
        newest = tt_max(newest, w->history[state[a].writer].ts);
    }
    for (size_t k = 0; k < t->read_count && !world_failed(w); k++) {
        const struct cell *r = &t->reads[k];
        const struct cell *s = &state[r->account];
        sum += r->account < w->accounts ? r->balance : 0;
        if (r->writer != s->writer || r->balance != s->balance || s->absent) {
            const struct htxn *a = &w->history[r->writer];
            const struct htxn *b = &w->history[s->writer];
            cluster_fail(
                w->c,
                "transaction %zu (kind %d, ts %llu) read account %u as written by %llu (ts %llu), "
                "current is "
                "%llu (ts %llu)",
                i, t->kind, (unsigned long long)t->ts.ns, r->account, (unsigned long long)r->writer,
                (unsigned long long)a->ts.ns, (unsigned long long)s->writer,
                (unsigned long long)b->ts.ns);
        }
    }
    bool whole = t->kind == K_AUDIT || t->kind == K_PAST || t->kind == K_STALE;
    if (whole && t->seen.ns < newest.ns) { /* rule D0: also what it shows by its absence */
        cluster_fail(w->c, "transaction %zu (kind %d) was answered after %llu, it shows %llu", i,
                     t->kind, (unsigned long long)t->seen.ns, (unsigned long long)newest.ns);
    }
    if (whole && !world_failed(w) &&
        (t->read_count != present || sum != (int64_t)w->accounts * START_BALANCE)) {
        cluster_fail(w->c, "transaction %zu (kind %d) saw %zu rows of %zu with %lld", i, t->kind,
                     t->read_count, present, (long long)sum);
    }
}

static void check_time(struct sim_world *w, const struct htxn *t, size_t i)
{
    bool reader = t->write_count + t->append_count == 0;
    bool timeless = t->acked_ns == 0 ? !cluster_in_contract(w->c, t->begun_ns) : t->timeless;
    if (t->kind == K_PAST || t->kind == K_STALE || t->as_of || i == 0 || timeless) {
        return;
    }
    if (reader ? t->ts.ns < t->floor.ns : t->ts.ns <= t->floor.ns) {
        cluster_fail(
            w->c,
            "transaction %zu (kind %d) has ts %llu, but %llu was acknowledged before it began", i,
            t->kind, (unsigned long long)t->ts.ns, (unsigned long long)t->floor.ns);
    }
}

/* A validated read-write transaction that wrote nothing: some point in time explains all it read,
 * and it is not before what was acknowledged before it began. */
static void check_locked(struct sim_world *w, const struct htxn *t, size_t i, const size_t *order,
                         size_t n)
{
    uint64_t from = 0;
    uint64_t until = UINT64_MAX;
    int64_t sum = 0;
    size_t accounts = 0;
    for (size_t k = 0; k < t->read_count; k++) {
        const struct cell *r = &t->reads[k];
        uint64_t written = w->history[r->writer].ts.ns;
        from = written > from ? written : from;
        sum += r->account < w->accounts ? r->balance : 0;
        accounts += r->account < w->accounts ? 1 : 0;
        bool after = false;
        for (size_t x = 0; x < n; x++) { /* the next writer of the account */
            const struct htxn *o = &w->history[order[x]];
            bool writes = false;
            for (size_t y = 0; y < o->write_count; y++) {
                writes = writes || o->writes[y].account == r->account;
            }
            if (after && writes) {
                until = o->ts.ns < until ? o->ts.ns : until;
                break;
            }
            after = after || order[x] == r->writer;
        }
    }
    bool timeless = t->acked_ns == 0 ? !cluster_in_contract(w->c, t->begun_ns) : t->timeless;
    if (from >= until || (until <= t->floor.ns && !timeless)) {
        cluster_fail(
            w->c,
            "transaction %zu read under locks what never was at one time: written at %llu, over "
            "at %llu, floor %llu",
            i, (unsigned long long)from, (unsigned long long)until,
            (unsigned long long)t->floor.ns);
    }
    if (accounts != w->accounts || sum != (int64_t)w->accounts * START_BALANCE) {
        cluster_fail(w->c, "transaction %zu saw %zu accounts with %lld under locks", i, accounts,
                     (long long)sum);
    }
}

static struct cell *expected;

static void check_row(struct sim_world *w, struct slice key, struct slice value)
{
    struct cell c;
    if (!sim_parse_cell(key, value, &c) || c.account >= w->cells || expected[c.account].absent ||
        c.writer != expected[c.account].writer || c.balance != expected[c.account].balance) {
        cluster_fail(w->c, "a replica has account %u of %llu, which is not what was committed last",
                     c.account, (unsigned long long)c.writer);
        return;
    }
    expected[c.account].account = UINT32_MAX; /* seen */
}

/* The state at a timestamp, read at every node's own replicas. */
static void check_replicas(struct sim_world *w, struct tt_ts ts, const struct cell *state)
{
    for (node_id n = 1; n <= cluster_node_count(w->c) && !world_failed(w); n++) {
        if (!cluster_alive(w->c, n)) {
            continue;
        }
        expected = span_memdup(state, w->cells * sizeof *state);
        sim_scan(w, n, TABLE_ACCOUNTS, TABLE_ACCOUNTS + 1, ts, check_row);
        for (unsigned a = 0; a < w->cells && !world_failed(w); a++) {
            if (expected[a].account != UINT32_MAX && !expected[a].absent) {
                cluster_fail(w->c, "node %u lacks account %u at %llu", n, a,
                             (unsigned long long)ts.ns);
            }
        }
        span_free(expected);
    }
}

static void check_history(struct sim_world *w)
{
    size_t n;
    size_t *order = committed_order(w, &n);
    struct cell *state = span_calloc(w->cells, sizeof *state);
    size_t snapshots = 0;
    bool untimed = false; /* a committed transfer whose timestamp nobody knows: no exact replay */
    for (size_t i = 0; i < w->count; i++) {
        const struct htxn *t = &w->history[i];
        untimed = untimed || (t->write_count > 0 && t->ts.ns == 0 &&
                              (t->out == OUT_COMMITTED || t->out == OUT_UNKNOWN));
    }
    for (size_t x = 0; x < n && !world_failed(w); x++) {
        size_t i = order[x];
        const struct htxn *t = &w->history[i];
        check_time(w, t, i);
        if (!untimed && i != 0) {
            check_reads(w, t, i, state);
        }
        apply(w, t, i, state);
        bool boundary = x + 1 == n || w->history[order[x + 1]].ts.ns > t->ts.ns;
        if (!untimed && boundary && (x + 1 == n || (x > 0 && x % (n / 4 + 1) == 0)) &&
            snapshots++ < 6) {
            check_replicas(w, t->ts, state);
        }
    }
    for (size_t i = 0; i < w->count && !world_failed(w); i++) {
        if (w->history[i].kind == K_LOCKED && w->history[i].out == OUT_COMMITTED && !untimed &&
            i != 0) {
            check_locked(w, &w->history[i], i, order, n);
        }
    }
    if (untimed) {
        cluster_say(w->c, "an unknown outcome without an id: replay left out");
        w->untimed = true;
    }
    span_free(order);
    span_free(state);
}

/* ---- life ---- */

#define LIVES_NS (5 * SEC_NS)

static int life_cmp(const void *a, const void *b)
{
    return slice_cmp(((const struct txn_write *)a)->key, ((const struct txn_write *)b)->key);
}

/* An operation that ends with an error has ended, too: every range must take a write again, through
 * every gateway, soon after the last fault. The row it deletes was never there. */
static void check_lives(struct sim_world *w, node_id node)
{
    struct arena a = {0};
    struct range_descriptor *all;
    size_t count = store_descriptors(cluster_store(w->c, node), &a, &all);
    struct txn_write *writes = span_calloc(count + 1, sizeof *writes);
    struct buf *keys = span_calloc(count + 1, sizeof *keys);
    struct buf users = {0};
    size_t n = 0;
    sim_table_key(&users, TABLE_ACCOUNTS);
    for (size_t i = 0; i < count; i++) {
        if (slice_cmp(all[i].start, buf_slice(&users)) < 0) {
            continue;
        }
        buf_set(&keys[n], all[i].start);
        sim_be32(&keys[n], UINT32_MAX);
        writes[n] = (struct txn_write){.key = buf_slice(&keys[n]), .tombstone = true};
        n++;
    }
    qsort(writes, n, sizeof *writes, life_cmp);
    uint64_t until_ns = cluster_now(w->c) + LIVES_NS;
    span_status st = SPAN_UNAVAILABLE;
    struct gateway_op op = {.kind = GATEWAY_COMMIT};
    while (n != 0 && st != SPAN_OK && cluster_now(w->c) < until_ns && !world_failed(w)) {
        struct tt_now now = cluster_clock(w->c, node);
        op.txn.id = op.txn.age = (struct txn_id){now.tt.latest.ns, node, w->seq++ & 0x7fffffffU};
        op.commit = (struct txn_commit){.writes = writes, .write_count = n};
        st = world_run_op(w, node, &op);
        cluster_run_for(w->c, MS_NS);
    }
    if (n != 0 && st != SPAN_OK) {
        cluster_fail(w->c,
                     "liveness: %zu ranges do not take a write at node %u, %llu s after the last "
                     "fault: %s",
                     n, node, LIVES_NS / SEC_NS, op.err.text);
    }
    for (size_t i = 0; i < n; i++) {
        buf_deinit(&keys[i]);
    }
    span_free(keys);
    span_free(writes);
    buf_deinit(&users);
    txn_read_deinit(&op.read);
    arena_deinit(&a);
}

/* ---- the verdict ---- */

/* A flipped bit is found when its row is read: the digests read all of them. What was found must be
 * rebuilt, and then there is none left. */
static void see_rebuilt(struct sim_world *w)
{
    uint64_t give_up_ns = cluster_now(w->c) + 60 * SEC_NS;
    char text[300] = "";
    size_t quiet = 0;
    while (!world_failed(w) && quiet < 3 && cluster_now(w->c) < give_up_ns) {
        w->digests += sim_check_digests(w->check);
        cluster_run_for(w->c, 300 * MS_NS);
        size_t damaged = 0;
        for (node_id n = 1; n <= cluster_node_count(w->c); n++) {
            if (cluster_alive(w->c, n)) {
                damaged += store_damaged(cluster_store(w->c, n), text, sizeof text);
            }
        }
        quiet = damaged == 0 ? quiet + 1 : 0;
    }
    if (!world_failed(w) && quiet < 3) {
        cluster_fail(w->c, "a damaged replica is not rebuilt 60 s after the last fault: %s", text);
    }
}

#define REST_NS (20 * SEC_NS)

static bool at_rest(void *ctx)
{
    const struct sim_world *w = ctx;
    return sim_check_rests(w->check, &w->opt);
}

static void say_clocks(struct sim_world *w)
{
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        struct clock_info info = {0};
        if (cluster_alive(w->c, i)) {
            clock_info_get(cluster_sim_clock(w->c, i)->clock, &info);
        }
        if (info.state != CLOCK_SYNCED) {
            cluster_fail(w->c, "node %u: its clock is still %s 30 s after it was repaired: %s", i,
                         clock_state_name(info.state), info.reason);
        }
    }
}

/* Rule B9: a clock that is good again is used again. */
static bool clocks_good(void *ctx)
{
    const struct sim_world *w = ctx;
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        if (cluster_alive(w->c, i) && cluster_clock(w->c, i).state != CLOCK_SYNCED) {
            return false;
        }
    }
    return true;
}

void sim_finish(struct sim_world *w)
{
    w->stopping = true;
    cluster_heal(w->c);
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        if (!cluster_alive(w->c, i) && !cluster_lost(w->c, i)) {
            (void)cluster_restart(w->c, i);
        }
    }
    if (!cluster_run_until(w->c, clocks_good, w, 30 * SEC_NS) && !world_failed(w)) {
        say_clocks(w);
    }
    if (!cluster_run_until(w->c, world_idle, w, 60 * SEC_NS) && !world_failed(w)) {
        cluster_fail(w->c,
                     "%zu clients and %zu administrators are not done 60 s after the last fault",
                     w->busy, w->admin_busy);
        leftovers(w, true);
    }
    if (!world_failed(w) && w->rotten != 0) {
        see_rebuilt(w);
    }
    for (node_id i = 1; i <= cluster_node_count(w->c) && !world_failed(w); i++) {
        if (cluster_alive(w->c, i)) {
            check_lives(w, i);
        }
    }
    if (!world_failed(w)) {
        resolve_unknown(w);
    }
    uint64_t give_up_ns = cluster_now(w->c) + 30 * SEC_NS;
    while (!world_failed(w) && leftovers(w, false) > 0 && cluster_now(w->c) < give_up_ns) {
        cluster_run_for(w->c, 20 * MS_NS);
    }
    if (!world_failed(w) && leftovers(w, false) > 0) {
        leftovers(w, true);
        cluster_fail(w->c, "locks, transactions or requests are left 30 s after the last one");
    }
    if (!world_failed(w)) {
        cluster_run_for(w->c, SEC_NS);
        sim_scan(w, sim_any_alive(w), TABLE_JOURNAL, TABLE_JOURNAL + 1, tt_ts_of(0), note_journal);
        check_journal(w);
        settle_rest(w);
        check_history(w);
    }
    if (!world_failed(w)) {
        sim_check_serial(w);
    }
    if (!world_failed(w)) {
        w->digests += sim_check_digests(w->check);
        /* A replica that left its range unheard keeps its log until it has asked whether it did. */
        (void)cluster_run_until(w->c, at_rest, w, REST_NS);
        sim_check_bounds(w->check, &w->opt, true);
    }
}
