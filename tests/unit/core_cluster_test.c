/* Random bank transactions of many clients through gateway cores on a virtual cluster with crashes,
 * pauses, cuts, lost, late and doubled messages, leader transfers and splits. The history is
 * checked exactly:
 *
 *   - replayed in timestamp order, every read of every committed transaction is current (values
 * name their writer)
 *   - acknowledged before begun implies smaller timestamp; read-only ones see everything
 * acknowledged before they began
 *   - nothing acknowledged is missing or doubled, nothing answered as retryable is there
 *   - at the end: money conserved, at past timestamps on every replica; no lock, no transaction in
 * doubt; every operation ended
 *
 * SPAN_SEED=n runs one seed and says what happens, SPAN_SEEDS=n that many. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/log.h"
#include "tests/lib/mini_cluster.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define TABLE_ACCOUNTS 1024
#define TABLE_JOURNAL  1025
#define CLIENTS_MAX    16
#define ACCOUNTS_MAX   48
#define START_BALANCE  1000
#define RETRY_AGE_NS   (10 * SEC_NS)

/* ---- history ---- */

enum outcome {
    OUT_OPEN,
    OUT_COMMITTED,
    OUT_ABORTED,
    OUT_UNKNOWN,
};

enum kind {
    K_TRANSFER, /* two accounts, X locks, both written */
    K_WATCH,    /* reads a third account under S, too */
    K_BLIND,    /* writes that nothing was read for */
    K_AUDIT,    /* read-only at now: all accounts */
    K_PAST,     /* read-only at a past timestamp */
    K_STALE,    /* read-only, bounded staleness */
    K_LOCKED,   /* read-write that only reads: all accounts under S, validated */
    K_ROLLBACK, /* a transfer that is given up */
    K_COUNT,
};

struct cell {
    unsigned account;
    int64_t balance;
    uint64_t writer; /* number of the transaction in the history */
};

struct htxn {
    enum kind kind;
    enum outcome out;
    struct txn_id id;
    bool has_anchor;
    unsigned anchor; /* account */
    uint64_t begun_ns;
    uint64_t acked_ns;  /* 0: never */
    struct tt_ts floor; /* everything acknowledged before it began */
    struct tt_ts ts;    /* commit or read timestamp */
    struct tt_ts seen;
    struct cell *reads;
    size_t read_count;
    struct cell writes[2];
    size_t write_count;
    bool journal;
    bool in_journal; /* found at the end */
    bool must_retry; /* its status said so */
};

struct world;

struct client {
    struct world *w;
    unsigned n;
    node_id node;
    struct gateway_op op;
    size_t txn; /* in w->history */
    struct txn_id age;
    uint64_t age_until_ns;
    unsigned accounts[3];
    struct buf keys[3];
    struct slice key_slices[3];
    struct buf values[3];
    struct txn_write writes[3];
    struct buf anchor;
    struct buf span_start;
    struct buf span_end;
    unsigned phase;
    bool busy;
    bool paused;
    uint64_t epoch; /* of the node when the transaction began */
};

struct restart {
    struct world *w;
    node_id node;
};

struct world {
    uint64_t seed;
    struct mini *m;
    struct mini_options opt;
    struct htxn *history;
    size_t count;
    size_t cap;
    struct client clients[CLIENTS_MAX];
    size_t client_count;
    unsigned accounts;
    uint32_t seq;
    struct tt_ts floor; /* max over what was acknowledged so far */
    bool stopping;
    bool faults;
    unsigned weights[K_COUNT];
    unsigned weight_sum;
    uint64_t think_ns;
    unsigned think_share;  /* of 100 steps */
    uint64_t fault_gap_ns; /* between two faults, at most */
    bool failed;
    size_t busy;
    size_t admin_busy;
    bool op_done;
    size_t committed;
    size_t retried;
    size_t unknowns;
    size_t crashes;
    size_t splits;
    size_t transfers;
    bool verbose;
    struct restart restarts[MINI_NODES + 1];
    char why[1000];
};

static void fail(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void fail(struct world *w, const char *fmt, ...)
{
    if (w->failed) {
        return;
    }
    w->failed = true;
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(w->why, sizeof w->why, fmt, ap);
    va_end(ap);
    fprintf(stderr, "seed %llu: at %.6f s: %s\n", (unsigned long long)w->seed,
            (double)(mini_now(w->m) % (1000 * SEC_NS)) / 1e9, w->why);
}

static void say(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void say(struct world *w, const char *fmt, ...)
{
    if (!w->verbose) {
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%.6f ", (double)(mini_now(w->m) % (1000 * SEC_NS)) / 1e9);
    (void)vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
}

/* ---- keys and values ---- */

static void table_key(struct buf *b, uint32_t table)
{
    buf_clear(b);
    enc_u8(b, 1);
    for (int i = 3; i >= 0; i--) {
        enc_u8(b, (uint8_t)(table >> (8 * i)));
    }
    enc_u16(b, 0);
}

static void be32(struct buf *b, uint32_t v)
{
    for (int i = 3; i >= 0; i--) {
        enc_u8(b, (uint8_t)(v >> (8 * i)));
    }
}

static void account_key(struct buf *b, unsigned account)
{
    table_key(b, TABLE_ACCOUNTS);
    be32(b, account);
}

/* Spread over the table, so that splits tear journals of one transaction apart from its accounts.
 */
static void journal_key(struct buf *b, size_t txn)
{
    table_key(b, TABLE_JOURNAL);
    be32(b, (uint32_t)span_mix64(txn) & 0xff);
    be32(b, (uint32_t)txn);
}

static void value_of(struct buf *b, int64_t balance, uint64_t writer)
{
    buf_clear(b);
    enc_u64(b, (uint64_t)balance);
    enc_u64(b, writer);
}

static bool parse_cell(struct slice key, struct slice value, struct cell *out)
{
    struct cursor v = cursor_of(value);
    if (key.size != 11) {
        return false;
    }
    out->account = (unsigned)key.data[7] << 24 | (unsigned)key.data[8] << 16 |
                   (unsigned)key.data[9] << 8 | key.data[10];
    out->balance = (int64_t)dec_u64(&v);
    out->writer = dec_u64(&v);
    return cursor_done(&v);
}

/* ---- clients ---- */

static void client_next(struct client *c);
static void step(struct client *c);

static void step_cb(void *ctx)
{
    step(ctx);
}

static struct htxn *txn_of(struct client *c)
{
    return &c->w->history[c->txn];
}

static void op_done(struct gateway_op *op)
{
    struct client *c = op->owner;
    mini_at(c->w->m, mini_now(c->w->m), step_cb,
            c); /* in the client's own time, not inside the node's turn */
}

static void add_read(struct world *w, struct htxn *t, struct slice key, struct slice value)
{
    struct cell cell;
    if (!parse_cell(key, value, &cell) || cell.account >= w->accounts) {
        fail(w, "a row that nobody wrote");
        return;
    }
    t->reads = span_realloc(t->reads, (t->read_count + 1) * sizeof *t->reads);
    t->reads[t->read_count++] = cell;
}

static void take_reads(struct client *c)
{
    const struct txn_read *r = &c->op.read;
    struct htxn *t = txn_of(c);
    for (size_t p = 0; p < r->page_count; p++) {
        for (size_t i = 0; i < r->pages[p].count; i++) {
            add_read(c->w, t, read_row_key(&r->pages[p], &r->pages[p].rows[i]),
                     read_row_value(&r->pages[p], &r->pages[p].rows[i]));
        }
    }
    t->seen = tt_max(t->seen, r->seen);
}

static void client_wait(struct client *c, uint64_t ns)
{
    mini_at(c->w->m, mini_now(c->w->m) + ns, step_cb, c);
}

static uint64_t think(struct client *c)
{
    struct rng *r = mini_rng(c->w->m);
    return rng_below(r, 100) >= c->w->think_share ? 0 : rng_below(r, c->w->think_ns);
}

static void begin(struct client *c)
{
    struct world *w = c->w;
    struct rng *r = mini_rng(w->m);
    if (w->count == w->cap) {
        w->cap = w->cap == 0 ? 256 : w->cap * 2;
        w->history = span_realloc(w->history, w->cap * sizeof *w->history);
    }
    c->txn = w->count++;
    struct htxn *t = txn_of(c);
    memset(t, 0, sizeof *t);
    uint64_t pick = rng_below(r, w->weight_sum);
    unsigned k = 0;
    while (pick >= w->weights[k]) {
        pick -= w->weights[k++];
    }
    t->kind = (enum kind)k;
    t->begun_ns = mini_now(w->m);
    t->floor = w->floor;
    struct tt_now now = mini_clock(w->m, c->node);
    t->id = (struct txn_id){now.tt.latest.ns, c->node, w->seq++ & 0x7fffffffU};
    c->op.txn = (struct txn_ref){t->id, t->id};
    if (!txn_id_is_none(&c->age) && mini_now(w->m) < c->age_until_ns) {
        c->op.txn.age = c->age;
    }
    for (unsigned i = 0; i < 3; i++) {
        bool again;
        do {
            c->accounts[i] = (unsigned)rng_below(r, w->accounts);
            again = false;
            for (unsigned p = 0; p < i; p++) {
                again = again || c->accounts[p] == c->accounts[i];
            }
        } while (again);
        account_key(&c->keys[i], c->accounts[i]);
        c->key_slices[i] = buf_slice(&c->keys[i]);
    }
    c->phase = 0;
    c->epoch = mini_epoch(w->m, c->node);
    c->busy = true;
    w->busy++;
}

static void end(struct client *c, enum outcome out)
{
    struct world *w = c->w;
    struct htxn *t = txn_of(c);
    t->out = out;
    if (out == OUT_ABORTED && t->must_retry) {
        w->retried++;
        if (txn_id_is_none(&c->age)) {
            c->age = c->op.txn.age;
        }
        c->age_until_ns = mini_now(w->m) + RETRY_AGE_NS;
    } else {
        c->age = (struct txn_id){0};
    }
    w->committed += out == OUT_COMMITTED && t->write_count > 0 ? 1 : 0;
    w->unknowns += out == OUT_UNKNOWN ? 1 : 0;
    c->busy = false;
    w->busy--;
    client_next(c);
}

/* Rule D0: what the client sees, it sees once the timestamp has passed on its gateway. */
static void acknowledge(struct client *c)
{
    struct world *w = c->w;
    struct htxn *t = txn_of(c);
    struct tt_ts nb = tt_max(t->ts, t->seen);
    if (t->kind == K_PAST || t->kind == K_STALE || t->kind == K_AUDIT) {
        nb = t->seen; /* a read timestamp itself is no fact about the data */
    }
    if (mini_now(w->m) < nb.ns) {
        fail(w, "transaction %zu acknowledged before its timestamp", c->txn);
    }
    t->acked_ns = mini_now(w->m);
    w->floor = tt_max(w->floor, nb);
    end(c, OUT_COMMITTED);
}

static void read_points(struct client *c, const struct slice *keys, size_t n, uint8_t lock)
{
    struct txn_read *r = &c->op.read;
    c->op.kind = GATEWAY_READ;
    r->keys = keys;
    r->key_count = n;
    r->lock = lock;
    r->read_ts = tt_ts_of(0);
    c->op.deadline_ns = 0;
    mini_op(c->w->m, c->node, &c->op);
}

static void read_all(struct client *c, uint8_t lock, struct slice from, struct slice to)
{
    struct txn_read *r = &c->op.read;
    c->op.kind = GATEWAY_READ;
    r->key_count = 0;
    r->start = from;
    r->end = to;
    r->lock = lock;
    r->parallel = 1 + rng_below(mini_rng(c->w->m), 4);
    r->page_rows = (uint32_t)rng_below(mini_rng(c->w->m), 20);
    c->op.deadline_ns = 0;
    mini_op(c->w->m, c->node, &c->op);
}

static void commit(struct client *c, size_t writes, bool anchored)
{
    struct htxn *t = txn_of(c);
    c->op.kind = GATEWAY_COMMIT;
    c->op.deadline_ns = 0;
    c->op.commit = (struct txn_commit){.writes = c->writes, .write_count = writes, .seen = t->seen};
    t->has_anchor = anchored;
    if (anchored) {
        t->anchor = c->accounts[0];
        account_key(&c->anchor, c->accounts[0]);
        c->op.commit.anchor = buf_slice(&c->anchor);
    }
    mini_op(c->w->m, c->node, &c->op);
}

static int write_cmp(const void *a, const void *b)
{
    return slice_cmp(((const struct txn_write *)a)->key, ((const struct txn_write *)b)->key);
}

static size_t make_writes(struct client *c)
{
    struct world *w = c->w;
    struct rng *r = mini_rng(w->m);
    struct htxn *t = txn_of(c);
    int64_t amount = (int64_t)rng_below(r, 20) + 1;
    for (unsigned i = 0; i < 2; i++) {
        const struct cell *was = NULL;
        for (size_t k = 0; k < t->read_count; k++) {
            was = t->reads[k].account == c->accounts[i] ? &t->reads[k] : was;
        }
        if (was == NULL) {
            fail(w, "account %u is gone", c->accounts[i]);
            return 0;
        }
        int64_t balance = was->balance + (i == 0 ? -amount : amount);
        t->writes[i] = (struct cell){c->accounts[i], balance, c->txn};
        value_of(&c->values[i], balance, c->txn);
        c->writes[i] =
            (struct txn_write){.key = buf_slice(&c->keys[i]), .value = buf_slice(&c->values[i])};
    }
    t->write_count = 2;
    size_t n = 2;
    if (rng_below(r, 2) == 0) {
        t->journal = true;
        journal_key(&c->keys[2], c->txn);
        value_of(&c->values[2], amount, c->txn);
        c->writes[n++] =
            (struct txn_write){.key = buf_slice(&c->keys[2]), .value = buf_slice(&c->values[2])};
    }
    qsort(c->writes, n, sizeof c->writes[0], write_cmp);
    return n;
}

static void rollback(struct client *c)
{
    c->op.kind = GATEWAY_ROLLBACK;
    c->phase = 90;
    mini_op(c->w->m, c->node, &c->op);
}

/* A statement failed: the transaction is rolled back, what it is worth is known. */
static void statement_failed(struct client *c)
{
    struct htxn *t = txn_of(c);
    span_status st = c->op.status;
    t->must_retry = span_status_kind(st) == SPAN_KIND_RETRY;
    if (!t->must_retry && st != SPAN_CLOSED && st != SPAN_BELOW_HORIZON) {
        fail(c->w, "transaction %zu of kind %d: a read said %s: %s", c->txn, t->kind,
             span_status_name(st), c->op.err.text);
    }
    rollback(c);
}

static bool connected(const struct client *c)
{
    return mini_alive(c->w->m, c->node) && mini_epoch(c->w->m, c->node) == c->epoch;
}

static void committed(struct client *c)
{
    struct world *w = c->w;
    struct htxn *t = txn_of(c);
    span_status st = c->op.status;
    say(w, "client %u txn %zu commit %s ts %llu", c->n, c->txn, span_status_name(st),
        (unsigned long long)c->op.commit.ts.ns);
    if (st == SPAN_OK) {
        t->ts = c->op.commit.ts;
        t->seen = tt_max(t->seen, c->op.commit.seen_out);
        if (t->kind != K_LOCKED && tt_is_none(t->ts)) {
            fail(w, "transaction %zu committed without a timestamp", c->txn);
        }
        c->phase = 80;
        if (!connected(c)) {
            end(c, OUT_COMMITTED); /* nobody heard of it, but it is so */
            return;
        }
        mini_at(w->m, mini_after(w->m, c->node, tt_max(t->ts, t->seen)), step_cb, c);
    } else if (st == SPAN_UNKNOWN_OUTCOME) {
        end(c, OUT_UNKNOWN);
    } else {
        t->must_retry = span_status_kind(st) == SPAN_KIND_RETRY;
        if (!t->must_retry && st != SPAN_CLOSED) {
            fail(w, "transaction %zu: commit said %s: %s", c->txn, span_status_name(st),
                 c->op.err.text);
        }
        end(c, OUT_ABORTED);
    }
}

static void step_transfer(struct client *c)
{
    struct htxn *t = txn_of(c);
    struct rng *r = mini_rng(c->w->m);
    switch (c->phase++) {
    case 0:
        if (t->kind == K_WATCH) {
            read_points(c, &c->key_slices[2], 1, READ_LOCK_SHARED);
        } else if (rng_below(r, 3) == 0) {
            c->phase = 2;
            read_points(c, c->key_slices, 2, READ_LOCK_UPDATE);
        } else {
            read_points(c, &c->key_slices[0], 1, READ_LOCK_UPDATE);
        }
        break;
    case 1:
        if (c->op.kind == GATEWAY_READ && !c->paused && rng_below(r, 100) < c->w->think_share) {
            c->paused = true; /* a client that takes its time between two statements */
            c->phase = 1;
            client_wait(c, rng_below(r, c->w->think_ns));
            break;
        }
        c->paused = false;
        take_reads(c);
        if (t->kind == K_WATCH) { /* then the two at once */
            read_points(c, c->key_slices, 2,
                        rng_below(r, 4) == 0 ? READ_LOCK_SHARED : READ_LOCK_UPDATE);
        } else {
            read_points(c, &c->key_slices[1], 1, READ_LOCK_UPDATE);
        }
        break;
    case 2:
        take_reads(c);
        if (c->w->failed) {
            rollback(c);
        } else if (t->kind == K_ROLLBACK) {
            rollback(c);
        } else {
            size_t n = make_writes(c);
            commit(c, n, rng_below(r, 2) == 0);
        }
        break;
    default:
        committed(c);
        break;
    }
}

static void step_blind(struct client *c)
{
    struct htxn *t = txn_of(c);
    if (c->phase++ == 0) {
        t->journal = true;
        journal_key(&c->keys[2], c->txn);
        value_of(&c->values[2], 0, c->txn);
        c->writes[0] =
            (struct txn_write){.key = buf_slice(&c->keys[2]), .value = buf_slice(&c->values[2])};
        commit(c, 1, false);
    } else {
        committed(c);
    }
}

/* Reads everything, page after page; gaps left by full pages are read one after the other. */
static void step_scan(struct client *c)
{
    struct htxn *t = txn_of(c);
    struct txn_read *r = &c->op.read;
    uint8_t lock = t->kind == K_LOCKED ? READ_LOCK_SHARED : READ_LOCK_NONE;
    struct tt_now now = mini_clock(c->w->m, c->node);
    if (c->phase == 0) {
        c->phase = 1;
        table_key(&c->span_start, TABLE_ACCOUNTS);
        table_key(&c->span_end, TABLE_ACCOUNTS + 1);
        r->reverse = rng_below(mini_rng(c->w->m), 2) == 0;
        r->mode = t->kind == K_STALE ? KV_READ_MAX_STALENESS : KV_READ_STRONG;
        uint64_t start_ns = c->w->history[0].ts.ns; /* nothing to see before */
        uint64_t age = now.tt.earliest.ns > start_ns ? now.tt.earliest.ns - start_ns : 0;
        age = age < 2 * SEC_NS ? age : 2 * SEC_NS;
        r->staleness_ns = rng_below(mini_rng(c->w->m), age + 1);
        r->read_ts = tt_ts_of(0);
        if (t->kind == K_PAST) {
            r->mode = KV_READ_AT;
            r->read_ts.ns = now.tt.earliest.ns - rng_below(mini_rng(c->w->m), age + 1);
        }
        read_all(c, lock, buf_slice(&c->span_start), buf_slice(&c->span_end));
        return;
    }
    if (c->phase == 2) {
        committed(c);
        return;
    }
    /* Take what came up to the first gap; what lies behind it is asked for again. */
    struct htxn *h = txn_of(c);
    h->seen = tt_max(h->seen, r->seen);
    bool gap = false;
    struct buf start = {0};
    struct buf stop = {0};
    for (size_t p = 0; p < r->page_count && !gap; p++) {
        const struct read_page *g = &r->pages[p];
        for (size_t i = 0; i < g->count; i++) {
            add_read(c->w, h, read_row_key(g, &g->rows[i]), read_row_value(g, &g->rows[i]));
        }
        if (!g->complete) {
            gap = true;
            buf_set(&start, r->reverse ? buf_slice(&c->span_start) : buf_slice(&g->rest_start));
            buf_set(&stop, r->reverse ? buf_slice(&g->rest_end) : buf_slice(&c->span_end));
        }
    }
    if (!gap && !r->complete) {
        gap = true;
        buf_set(&start, r->reverse ? buf_slice(&c->span_start) : buf_slice(&r->rest));
        buf_set(&stop, r->reverse ? buf_slice(&r->rest) : buf_slice(&c->span_end));
    }
    if (gap) {
        buf_move(&c->span_start, &start);
        buf_move(&c->span_end, &stop);
        read_all(c, lock, buf_slice(&c->span_start), buf_slice(&c->span_end));
        return;
    }
    if (t->kind == K_LOCKED) {
        c->phase = 2;
        commit(c, 0, false);
        return;
    }
    t->ts = r->read_ts;
    c->phase = 80;
    mini_at(c->w->m, mini_after(c->w->m, c->node, t->seen), step_cb, c);
}

static void step(struct client *c)
{
    struct htxn *t;
    if (!c->busy) {
        if (c->w->stopping || c->w->failed) {
            return;
        }
        if (!mini_alive(c->w->m, c->node)) {
            c->node = 1 + (node_id)rng_below(mini_rng(c->w->m), mini_node_count(c->w->m));
            client_wait(c, 20 * MS_NS);
            return;
        }
        begin(c);
    }
    t = txn_of(c);
    if (c->phase == 80) {
        if (!connected(c)) {
            end(c, OUT_COMMITTED);
        } else {
            acknowledge(c);
        }
        return;
    }
    if (c->phase == 90) {
        c->phase = 91; /* rolled back */
        end(c, OUT_ABORTED);
        return;
    }
    if (c->phase > 0 && !connected(c) && c->op.kind != GATEWAY_COMMIT) {
        end(c, OUT_ABORTED); /* the connection broke, and the transaction with it */
        return;
    }
    bool read_ended = c->phase > 0 && c->op.kind == GATEWAY_READ;
    if (read_ended && c->op.status != SPAN_OK) {
        say(c->w, "client %u txn %zu read %s", c->n, c->txn, c->op.err.text);
        statement_failed(c);
        return;
    }
    switch (t->kind) {
    case K_TRANSFER:
    case K_WATCH:
    case K_ROLLBACK:
        step_transfer(c);
        break;
    case K_BLIND:
        step_blind(c);
        break;
    case K_AUDIT:
    case K_PAST:
    case K_STALE:
    case K_LOCKED:
        step_scan(c);
        break;
    case K_COUNT:
        break;
    }
}

static void client_next(struct client *c)
{
    if (c->w->stopping || c->w->failed) {
        return;
    }
    client_wait(c, think(c));
}

/* ---- administration and faults ---- */

struct admin {
    struct gateway_op op;
    struct world *w;
    struct buf key;
};

static void admin_done(struct gateway_op *op)
{
    struct admin *a = op->owner;
    struct world *w = a->w;
    say(w, "admin %d: %s", op->kind, op->status == SPAN_OK ? "ok" : op->err.text);
    w->splits += op->kind == GATEWAY_SPLIT && op->status == SPAN_OK ? 1 : 0;
    w->transfers += op->kind == GATEWAY_TRANSFER && op->status == SPAN_OK ? 1 : 0;
    w->admin_busy--;
    buf_deinit(&a->key);
    span_free(a);
}

static node_id any_alive(struct world *w)
{
    node_id n;
    do {
        n = 1 + (node_id)rng_below(mini_rng(w->m), mini_node_count(w->m));
    } while (!mini_alive(w->m, n));
    return n;
}

static struct admin *admin_new(struct world *w, enum gateway_op_kind kind)
{
    struct admin *a = SPAN_NEW(struct admin);
    a->w = w;
    a->op.kind = kind;
    a->op.owner = a;
    a->op.done = admin_done;
    w->admin_busy++;
    return a;
}

static void split_at_random(struct world *w)
{
    struct admin *a = admin_new(w, GATEWAY_SPLIT);
    if (rng_below(mini_rng(w->m), 4) == 0) {
        table_key(&a->key, TABLE_JOURNAL);
        be32(&a->key, (uint32_t)rng_below(mini_rng(w->m), 256));
    } else {
        account_key(&a->key, (unsigned)rng_below(mini_rng(w->m), w->accounts));
    }
    a->op.u.split.key = buf_slice(&a->key);
    mini_op(w->m, any_alive(w), &a->op);
}

static void transfer_at_random(struct world *w)
{
    struct admin *a = admin_new(w, GATEWAY_TRANSFER);
    a->op.u.transfer.range = 1 + rng_below(mini_rng(w->m), 6);
    a->op.u.transfer.node = 1 + (node_id)rng_below(mini_rng(w->m), mini_node_count(w->m));
    mini_op(w->m, any_alive(w), &a->op);
}

static void restart_cb(void *ctx)
{
    struct restart *r = ctx;
    if (!mini_alive(r->w->m, r->node)) {
        say(r->w, "restart node %u", r->node);
        mini_restart(r->w->m, r->node);
    }
}

static void crash(struct world *w, node_id node)
{
    say(w, "crash node %u", node);
    w->crashes++;
    mini_crash(w->m, node);
    w->restarts[node] = (struct restart){w, node};
    mini_at(w->m, mini_now(w->m) + rng_below(mini_rng(w->m), 1500 * MS_NS), restart_cb,
            &w->restarts[node]);
}

static size_t alive_count(struct world *w)
{
    size_t n = 0;
    for (node_id i = 1; i <= mini_node_count(w->m); i++) {
        n += mini_alive(w->m, i) ? 1 : 0;
    }
    return n;
}

static void heal_cb(void *ctx)
{
    struct world *w = ctx;
    for (node_id a = 1; a <= mini_node_count(w->m); a++) {
        for (node_id b = 1; b <= mini_node_count(w->m); b++) {
            mini_cut(w->m, a, b, false);
        }
    }
}

static void cut(struct world *w)
{
    struct rng *r = mini_rng(w->m);
    node_id a = 1 + (node_id)rng_below(r, mini_node_count(w->m));
    uint64_t how = rng_below(r, 4);
    say(w, "cut node %u, how %d", a, (int)how);
    for (node_id b = 1; b <= mini_node_count(w->m); b++) {
        if (b == a || (how == 3 && rng_below(r, 2) == 0)) {
            continue;
        }
        if (how != 1) {
            mini_cut(w->m, a, b, true);
        }
        if (how != 2) {
            mini_cut(w->m, b, a, true);
        }
    }
    mini_at(w->m, mini_now(w->m) + rng_below(r, 1200 * MS_NS), heal_cb, w);
}

static void fault_cb(void *ctx)
{
    struct world *w = ctx;
    struct rng *r = mini_rng(w->m);
    if (w->stopping || w->failed) {
        return;
    }
    switch (alive_count(w) == 0 ? 99 : rng_below(r, 10)) {
    case 0:
    case 1:
        if (alive_count(w) > mini_node_count(w->m) / 2 + 1) {
            crash(w, any_alive(w));
        }
        break;
    case 2:
        if (rng_below(r, 4) == 0) { /* all at once */
            for (node_id i = 1; i <= mini_node_count(w->m); i++) {
                if (mini_alive(w->m, i)) {
                    crash(w, i);
                }
            }
        }
        break;
    case 3:
    case 4: {
        node_id n = any_alive(w);
        uint64_t ns = rng_below(r, 800 * MS_NS);
        say(w, "pause node %u for %llu ms", n, (unsigned long long)(ns / MS_NS));
        mini_pause(w->m, n, ns);
        break;
    }
    case 5:
        cut(w);
        break;
    case 6:
    case 7:
        transfer_at_random(w);
        break;
    case 8:
        split_at_random(w);
        break;
    case 9:
        mini_want_flush(w->m, any_alive(w));
        break;
    default:
        break;
    }
    mini_at(w->m, mini_now(w->m) + rng_between(r, w->fault_gap_ns / 20, w->fault_gap_ns), fault_cb,
            w);
}

/* ---- synchronous operations of the test itself ---- */

static void plain_done(struct gateway_op *op)
{
    struct world *w = op->owner;
    w->op_done = true;
}

static bool is_done(void *ctx)
{
    const struct world *w = ctx;
    return w->op_done;
}

static span_status run_op(struct world *w, node_id node, struct gateway_op *op)
{
    op->owner = w;
    op->done = plain_done;
    op->deadline_ns = 0;
    w->op_done = false;
    mini_op(w->m, node, op);
    if (!mini_run_until(w->m, is_done, w, 60 * SEC_NS)) {
        fail(w, "an operation did not end in 60 s");
        return SPAN_DEADLINE;
    }
    return op->status;
}

static void set_up(struct world *w)
{
    struct gateway_op op = {.kind = GATEWAY_COMMIT};
    struct txn_write *writes = span_calloc(w->accounts, sizeof *writes);
    struct buf *bytes = span_calloc((size_t)w->accounts * 2, sizeof *bytes);
    struct htxn *t;
    w->cap = 256;
    w->history = span_calloc(w->cap, sizeof *w->history);
    t = &w->history[w->count++]; /* number 0: the start */
    for (unsigned i = 0; i < w->accounts; i++) {
        account_key(&bytes[2 * i], i);
        value_of(&bytes[2 * i + 1], START_BALANCE, 0);
        writes[i] = (struct txn_write){.key = buf_slice(&bytes[2 * i]),
                                       .value = buf_slice(&bytes[2 * i + 1])};
    }
    span_status st = SPAN_UNAVAILABLE;
    for (int tries = 0; tries < 5 && st != SPAN_OK; tries++) {
        struct tt_now now = mini_clock(w->m, 1);
        op.txn.id = op.txn.age = (struct txn_id){now.tt.latest.ns, 1, w->seq++};
        op.commit = (struct txn_commit){.writes = writes, .write_count = w->accounts};
        st = run_op(w, 1, &op);
    }
    if (st != SPAN_OK) {
        fail(w, "the accounts could not be written: %s", op.err.text);
    }
    t->ts = op.commit.ts;
    t->out = OUT_COMMITTED;
    mini_run_for(w->m, 50 * MS_NS);
    w->floor = t->ts;
    for (unsigned i = 0; i < w->accounts * 2; i++) {
        buf_deinit(&bytes[i]);
    }
    span_free(bytes);
    span_free(writes);
    txn_read_deinit(&op.read);
}

/* ---- the end ---- */

static bool idle(void *ctx)
{
    const struct world *w = ctx;
    return w->busy == 0 && w->admin_busy == 0;
}

static size_t leftovers(struct world *w, bool print)
{
    size_t n = 0;
    for (node_id i = 1; i <= mini_node_count(w->m); i++) {
        for (unsigned what = 3; what <= 4; what++) {
            struct arena a = {0};
            struct slice *cells = NULL;
            size_t count = 0;
            unsigned columns = 0;
            struct tt_now now = mini_clock(w->m, i);
            store_show(mini_store(w->m, i), &now, what, &a, &cells, &count, &columns);
            n += count;
            for (size_t k = 0; print && columns != 0 && k < count; k++) {
                fprintf(stderr, "%.*s%s", (int)cells[k].size,
                        cells[k].data == NULL ? "-" : (const char *)cells[k].data,
                        (k + 1) % columns == 0 ? "\n" : " ");
            }
            arena_deinit(&a);
        }
        struct gateway_stats g;
        gateway_stats_get(mini_gateway(w->m, i), &g);
        n += g.txns + g.requests + g.ops;
        if (print) {
            fprintf(stderr, "gateway %u: %zu transactions, %zu requests, %zu operations\n", i,
                    g.txns, g.requests, g.ops);
        }
    }
    return n;
}

static void resolve_unknown(struct world *w)
{
    for (size_t i = 0; i < w->count && !w->failed; i++) {
        struct htxn *t = &w->history[i];
        if (t->out != OUT_UNKNOWN || !t->has_anchor) {
            continue;
        }
        struct buf key = {0};
        account_key(&key, t->anchor);
        enum kv_txn_outcome first = KV_TXN_RUNNING;
        for (node_id n = 1; n <= mini_node_count(w->m); n++) { /* every gateway says the same */
            struct gateway_op op = {.kind = GATEWAY_STATUS};
            op.u.status.txn = t->id;
            op.u.status.anchor = buf_slice(&key);
            span_status st;
            int tries = 0;
            do { /* a coordinator may be waiting for its deadline still */
                st = run_op(w, n, &op);
                mini_run_for(w->m, 100 * MS_NS);
            } while (st == SPAN_OK && op.u.status.outcome == KV_TXN_RUNNING && tries++ < 150);
            if (st != SPAN_OK || (n > 1 && op.u.status.outcome != first)) {
                fail(w, "status of transaction %zu: %s, %d and %d", i, span_status_name(st), first,
                     op.u.status.outcome);
            }
            first = op.u.status.outcome;
            t->ts = op.u.status.ts;
            txn_read_deinit(&op.read);
        }
        if (first == KV_TXN_COMMITTED) {
            t->out = OUT_COMMITTED;
        } else if (first == KV_TXN_ABORTED) {
            t->out = OUT_ABORTED;
        } else {
            fail(w, "transaction %zu is neither committed nor aborted at the end: %d", i, first);
        }
        buf_deinit(&key);
    }
}

struct final_row {
    struct cell cell;
    bool journal;
};

/* All rows of both tables at ts (0: now) as the node sees them; fn for each. */
static void scan_tables(struct world *w, node_id node, struct tt_ts ts,
                        void (*fn)(struct world *w, struct slice key, struct slice value))
{
    struct gateway_op op = {.kind = GATEWAY_READ};
    struct buf start = {0};
    struct buf end = {0};
    table_key(&start, TABLE_ACCOUNTS);
    table_key(&end, TABLE_JOURNAL + 1);
    op.read.mode = ts.ns == 0 ? KV_READ_STRONG : KV_READ_AT;
    op.read.read_ts = ts;
    op.read.end = buf_slice(&end);
    op.read.parallel = 1;
    for (;;) {
        op.read.start = buf_slice(&start);
        span_status st = run_op(w, node, &op);
        if (st != SPAN_OK) {
            fail(w, "node %u can not read at %llu: %s", node, (unsigned long long)ts.ns,
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

static bool is_journal(struct slice key)
{
    return key.size > 4 && key.data[4] == (TABLE_JOURNAL & 0xff);
}

static void note_journal(struct world *w, struct slice key, struct slice value)
{
    if (!is_journal(key)) {
        return;
    }
    struct cursor v = cursor_of(value);
    (void)dec_u64(&v);
    uint64_t writer = dec_u64(&v);
    if (writer >= w->count || w->history[writer].in_journal) {
        fail(w, "journal row of transaction %llu", (unsigned long long)writer);
        return;
    }
    w->history[writer].in_journal = true;
}

static void check_journal(struct world *w)
{
    for (size_t i = 0; i < w->count && !w->failed; i++) {
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
            fail(w, "transaction %zu of kind %d is %s, its journal row is %s", i, t->kind,
                 t->out == OUT_COMMITTED ? "committed" : "aborted",
                 t->in_journal ? "there" : "missing");
        }
    }
}

/* Transactions without an id to ask by: what they wrote tells, if anybody read it. */
static void settle_rest(struct world *w)
{
    for (size_t i = 0; i < w->count; i++) {
        struct htxn *t = &w->history[i];
        for (size_t k = 0; k < t->read_count; k++) {
            struct htxn *writer =
                t->reads[k].writer < w->count ? &w->history[t->reads[k].writer] : NULL;
            if (writer == NULL) {
                fail(w, "transaction %zu read a value of nobody", i);
            } else if (writer->out == OUT_ABORTED) {
                fail(w, "transaction %zu read account %u of transaction %llu, which was aborted", i,
                     t->reads[k].account, (unsigned long long)t->reads[k].writer);
            }
        }
    }
}

/* ---- replay ---- */

static struct world *replay_world;

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

static size_t *committed_order(struct world *w, size_t *count)
{
    size_t *order = span_calloc(w->count + 1, sizeof *order);
    size_t n = 0;
    for (size_t i = 0; i < w->count; i++) {
        const struct htxn *t = &w->history[i];
        bool timed = t->kind != K_LOCKED && t->kind != K_BLIND && t->ts.ns != 0;
        if (i == 0 || (t->out == OUT_COMMITTED && timed)) {
            order[n++] = i;
        }
    }
    replay_world = w;
    qsort(order, n, sizeof *order, by_ts);
    *count = n;
    return order;
}

static void apply(struct world *w, const struct htxn *t, size_t i, struct cell *state)
{
    if (i == 0) {
        for (unsigned a = 0; a < w->accounts; a++) {
            state[a] = (struct cell){a, START_BALANCE, 0};
        }
    }
    for (size_t k = 0; k < t->write_count; k++) {
        state[t->writes[k].account] = t->writes[k];
    }
}

static void check_reads(struct world *w, const struct htxn *t, size_t i, const struct cell *state)
{
    int64_t sum = 0;
    for (size_t k = 0; k < t->read_count && !w->failed; k++) {
        const struct cell *r = &t->reads[k];
        const struct cell *s = &state[r->account];
        sum += r->balance;
        if (r->writer != s->writer || r->balance != s->balance) {
            const struct htxn *a = &w->history[r->writer];
            const struct htxn *b = &w->history[s->writer];
            fail(w,
                 "transaction %zu (kind %d, ts %llu) read account %u as written by %llu (ts %llu), "
                 "current is "
                 "%llu (ts %llu)",
                 i, t->kind, (unsigned long long)t->ts.ns, r->account,
                 (unsigned long long)r->writer, (unsigned long long)a->ts.ns,
                 (unsigned long long)s->writer, (unsigned long long)b->ts.ns);
        }
    }
    bool whole = t->kind == K_AUDIT || t->kind == K_PAST || t->kind == K_STALE;
    if (whole && !w->failed &&
        (t->read_count != w->accounts || sum != (int64_t)w->accounts * START_BALANCE)) {
        fail(w, "transaction %zu (kind %d) saw %zu accounts with %lld", i, t->kind, t->read_count,
             (long long)sum);
    }
}

static void check_time(struct world *w, const struct htxn *t, size_t i)
{
    bool reader = t->write_count == 0;
    if (t->kind == K_PAST || t->kind == K_STALE || i == 0) {
        return;
    }
    if (reader ? t->ts.ns < t->floor.ns : t->ts.ns <= t->floor.ns) {
        fail(w, "transaction %zu (kind %d) has ts %llu, but %llu was acknowledged before it began",
             i, t->kind, (unsigned long long)t->ts.ns, (unsigned long long)t->floor.ns);
    }
}

/* A validated read-write transaction that wrote nothing: some point in time explains all it read,
 * and it is not before what was acknowledged before it began. */
static void check_locked(struct world *w, const struct htxn *t, size_t i, const size_t *order,
                         size_t n)
{
    uint64_t from = 0;
    uint64_t until = UINT64_MAX;
    int64_t sum = 0;
    for (size_t k = 0; k < t->read_count; k++) {
        const struct cell *r = &t->reads[k];
        uint64_t written = w->history[r->writer].ts.ns;
        from = written > from ? written : from;
        sum += r->balance;
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
    if (from >= until || until <= t->floor.ns) {
        fail(w,
             "transaction %zu read under locks what never was at one time: written at %llu, over "
             "at %llu, floor %llu",
             i, (unsigned long long)from, (unsigned long long)until,
             (unsigned long long)t->floor.ns);
    }
    if (t->read_count != w->accounts || sum != (int64_t)w->accounts * START_BALANCE) {
        fail(w, "transaction %zu saw %zu accounts with %lld under locks", i, t->read_count,
             (long long)sum);
    }
}

static struct cell *expected;

static void check_row(struct world *w, struct slice key, struct slice value)
{
    struct cell c;
    if (is_journal(key)) {
        return;
    }
    if (!parse_cell(key, value, &c) || c.writer != expected[c.account].writer ||
        c.balance != expected[c.account].balance) {
        fail(w, "a replica has account %u of %llu, it should be of %llu", c.account,
             (unsigned long long)c.writer, (unsigned long long)expected[c.account].writer);
    }
    expected[c.account].account = UINT32_MAX; /* seen */
}

/* The state at a timestamp, read at every node's own replicas. */
static void check_replicas(struct world *w, struct tt_ts ts, const struct cell *state)
{
    for (node_id n = 1; n <= mini_node_count(w->m) && !w->failed; n++) {
        expected = span_memdup(state, w->accounts * sizeof *state);
        scan_tables(w, n, ts, check_row);
        for (unsigned a = 0; a < w->accounts && !w->failed; a++) {
            if (expected[a].account != UINT32_MAX) {
                fail(w, "node %u lacks account %u at %llu", n, a, (unsigned long long)ts.ns);
            }
        }
        span_free(expected);
    }
}

static void check_history(struct world *w)
{
    size_t n;
    size_t *order = committed_order(w, &n);
    struct cell *state = span_calloc(w->accounts, sizeof *state);
    size_t snapshots = 0;
    bool untimed = false; /* a committed transfer whose timestamp nobody knows: no exact replay */
    for (size_t i = 0; i < w->count; i++) {
        const struct htxn *t = &w->history[i];
        untimed = untimed || (t->write_count > 0 && t->ts.ns == 0 &&
                              (t->out == OUT_COMMITTED || t->out == OUT_UNKNOWN));
    }
    for (size_t x = 0; x < n && !w->failed; x++) {
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
    for (size_t i = 0; i < w->count && !w->failed; i++) {
        if (w->history[i].kind == K_LOCKED && w->history[i].out == OUT_COMMITTED && !untimed &&
            i != 0) {
            check_locked(w, &w->history[i], i, order, n);
        }
    }
    if (untimed && w->verbose) {
        fprintf(stderr, "seed %llu: an unknown outcome without an id: replay left out\n",
                (unsigned long long)w->seed);
    }
    span_free(order);
    span_free(state);
}

/* ---- a run ---- */

static void draw_options(struct world *w)
{
    struct rng r;
    rng_init(&r, w->seed * 7919 + 1);
    static const uint64_t epsilons[] = {100000, 1000000, 4000000, 7000000};
    mini_options_init(&w->opt, w->seed);
    w->opt.epsilon_ns = epsilons[rng_below(&r, 4)];
    w->opt.nodes = rng_below(&r, 5) == 0 ? 5 : 3;
    w->opt.net.delay_max_ns = rng_between(&r, 100000, 4 * MS_NS);
    w->opt.sync_max_ns = rng_between(&r, 50000, 3 * MS_NS);
    w->opt.flush_bytes = rng_below(&r, 2) == 0 ? 8 * KIB : 256 * KIB;
    w->faults = rng_below(&r, 6) != 0;
    w->fault_gap_ns = rng_between(&r, 100 * MS_NS, 2 * SEC_NS);
    if (w->faults) {
        w->opt.net.loss = rng_below(&r, 3) == 0 ? 0.02 : 0;
        w->opt.net.slow = rng_below(&r, 3) == 0 ? 0.01 : 0;
        w->opt.net.dup = rng_below(&r, 3) == 0 ? 0.05 : 0;
        w->opt.net.dup_late_ns = rng_below(&r, 2) == 0 ? 20 * MS_NS : 2 * SEC_NS;
        w->opt.net.reorder = rng_below(&r, 4) == 0;
    }
    /* Readers push floors up and hide what is wrong with them: some histories have none, or none
     * without locks. */
    static const unsigned usual[K_COUNT] = {40, 12, 6, 14, 6, 6, 8, 8};
    for (unsigned k = 0; k < K_COUNT; k++) {
        bool none = k != K_TRANSFER && rng_below(&r, 3) == 0;
        w->weights[k] = none ? 0 : 1 + (unsigned)rng_below(&r, 2 * usual[k]);
    }
    if (rng_below(&r, 3) == 0) {
        w->weights[K_AUDIT] = w->weights[K_PAST] = w->weights[K_STALE] = 0;
    }
    for (unsigned k = 0; k < K_COUNT; k++) {
        w->weight_sum += w->weights[k];
    }
    w->think_ns = rng_below(&r, 2) == 0 ? 3 * MS_NS : rng_between(&r, MS_NS, 200 * MS_NS);
    w->think_share = (unsigned)rng_below(&r, 100);
    w->accounts = 4 + (unsigned)rng_below(&r, rng_below(&r, 2) == 0 ? 8 : ACCOUNTS_MAX - 4);
    w->client_count = 2 + rng_below(&r, CLIENTS_MAX - 2);
    w->opt.verbose = w->verbose;
}

static void finish(struct world *w)
{
    w->stopping = true;
    mini_heal(w->m);
    for (node_id i = 1; i <= mini_node_count(w->m); i++) {
        if (!mini_alive(w->m, i)) {
            mini_restart(w->m, i);
        }
    }
    if (!mini_run_until(w->m, idle, w, 60 * SEC_NS) && !w->failed) {
        fail(w, "%zu clients and %zu administrators are not done 60 s after the last fault",
             w->busy, w->admin_busy);
        leftovers(w, true);
    }
    if (!w->failed) {
        resolve_unknown(w);
    }
    uint64_t give_up_ns = mini_now(w->m) + 30 * SEC_NS;
    while (!w->failed && leftovers(w, false) > 0 && mini_now(w->m) < give_up_ns) {
        mini_run_for(w->m, 20 * MS_NS);
    }
    if (!w->failed && leftovers(w, false) > 0) {
        leftovers(w, true);
        fail(w, "locks, transactions or requests are left 30 s after the last one");
    }
    if (!w->failed) {
        mini_run_for(w->m, SEC_NS);
        scan_tables(w, 1, tt_ts_of(0), note_journal);
        check_journal(w);
        settle_rest(w);
        check_history(w);
    }
}

static void world_free(struct world *w)
{
    mini_free(w->m);
    for (size_t i = 0; i < w->client_count; i++) {
        struct client *c = &w->clients[i];
        for (int k = 0; k < 3; k++) {
            buf_deinit(&c->keys[k]);
            buf_deinit(&c->values[k]);
        }
        buf_deinit(&c->anchor);
        buf_deinit(&c->span_start);
        buf_deinit(&c->span_end);
        txn_read_deinit(&c->op.read);
    }
    for (size_t i = 0; i < w->count; i++) {
        span_free(w->history[i].reads);
    }
    span_free(w->history);
    span_free(w);
}

static bool run_seed(uint64_t seed, bool verbose, uint64_t *trace)
{
    struct world *w = SPAN_NEW(struct world);
    w->seed = seed;
    w->verbose = verbose;
    span_invariant_set_seed(seed);
    draw_options(w);
    w->m = mini_new(&w->opt);
    set_up(w);
    uint64_t splits = rng_below(mini_rng(w->m), 8);
    for (uint64_t i = 0; i < splits && !w->failed; i++) {
        split_at_random(w);
        mini_run_until(w->m, idle, w, 20 * SEC_NS);
    }
    for (size_t i = 0; i < w->client_count && !w->failed; i++) {
        struct client *c = &w->clients[i];
        c->w = w;
        c->n = (unsigned)i;
        c->node = 1 + (node_id)(i % w->opt.nodes);
        c->op.owner = c;
        c->op.done = op_done;
        client_wait(c, rng_below(mini_rng(w->m), 10 * MS_NS));
    }
    if (w->faults) {
        mini_at(w->m, mini_now(w->m) + 300 * MS_NS, fault_cb, w);
    }
    if (!w->failed) {
        mini_run_for(w->m, 4 * SEC_NS);
        finish(w);
    }
    fprintf(stderr,
            "seed %llu: %zu transactions, %zu transfers committed, %zu retried, %zu unknown, %zu "
            "crashes, %zu splits, "
            "%zu hand-overs%s\n",
            (unsigned long long)seed, w->count, w->committed, w->retried, w->unknowns, w->crashes,
            w->splits, w->transfers, w->failed ? ": FAILED" : "");
    bool ok = !w->failed;
    if (trace != NULL) {
        *trace = mini_trace(w->m);
    }
    world_free(w);
    return ok;
}

Test(core_cluster, random_transactions_are_strictly_serializable_through_faults, .timeout = 600)
{
    const char *one = getenv("SPAN_SEED");
    const char *many = getenv("SPAN_SEEDS");
    log_set_level(one == NULL ? LOG_ERROR : LOG_INFO);
    if (one != NULL) {
        cr_assert(run_seed(strtoull(one, NULL, 10), true, NULL));
        return;
    }
    uint64_t count = many == NULL ? 20 : strtoull(many, NULL, 10);
    for (uint64_t seed = 1; seed <= count; seed++) {
        cr_assert(run_seed(seed, false, NULL), "SPAN_SEED=%llu repeats it",
                  (unsigned long long)seed);
    }
}

Test(core_cluster, one_seed_gives_one_history, .timeout = 120)
{
    uint64_t a;
    uint64_t b;
    log_set_level(LOG_ERROR);
    cr_assert(run_seed(3, false, &a));
    cr_assert(run_seed(3, false, &b));
    cr_assert_eq(a, b);
}
