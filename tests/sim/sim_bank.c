/* Bank clients of the simulator: their rows, and each client as a small machine that runs one
 * transaction after the other through a gateway and writes down what it read, wrote and was told.
 * See sim_world.h. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/planted.h"
#include "tests/sim/sim_world.h"

#include <stdlib.h>

/* ---- keys and values ---- */

void sim_table_key(struct buf *b, uint32_t table)
{
    buf_clear(b);
    enc_u8(b, 1);
    for (int i = 3; i >= 0; i--) {
        enc_u8(b, (uint8_t)(table >> (8 * i)));
    }
    enc_u16(b, 0);
}

void sim_be32(struct buf *b, uint32_t v)
{
    for (int i = 3; i >= 0; i--) {
        enc_u8(b, (uint8_t)(v >> (8 * i)));
    }
}

void sim_account_key(struct buf *b, unsigned account)
{
    sim_table_key(b, TABLE_ACCOUNTS);
    sim_be32(b, account);
}

/* Spread over the table, so that splits tear journals of one transaction apart from its accounts.
 */
void sim_journal_key(struct buf *b, size_t txn)
{
    sim_table_key(b, TABLE_JOURNAL);
    sim_be32(b, (uint32_t)span_mix64(txn) & 0xff);
    sim_be32(b, (uint32_t)txn);
}

void sim_value_of(struct buf *b, int64_t balance, uint64_t writer)
{
    buf_clear(b);
    enc_u64(b, (uint64_t)balance);
    enc_u64(b, writer);
}

bool sim_parse_cell(struct slice key, struct slice value, struct cell *out)
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

#define LONG_NS (400 * MS_NS)

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
    cluster_at(c->w->c, cluster_now(c->w->c), step_cb,
               c); /* in the client's own time, not inside the node's turn */
}

static void add_read(struct sim_world *w, struct htxn *t, struct slice key, struct slice value)
{
    struct cell cell;
    if (sim_table_of(key) == TABLE_LISTS) {
        sim_list_read(w, t, key, value);
        return;
    }
    if (sim_table_of(key) == TABLE_REQUESTS && value.size == 8) {
        struct cursor v = cursor_of(value);
        t->done_by = dec_u64(&v);
        return;
    }
    if (!sim_parse_cell(key, value, &cell) || cell.account >= w->cells) {
        cluster_fail(w->c, "a row that nobody wrote");
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
    cluster_at(c->w->c, cluster_now(c->w->c) + ns, step_cb, c);
}

static uint64_t think(struct client *c)
{
    struct rng *r = cluster_rng(c->w->c);
    return rng_below(r, 100) >= c->w->think_share ? 0 : rng_below(r, c->w->think_ns);
}

/* A new request, or the one that is still open. */
static void begin_list(struct client *c)
{
    struct sim_world *w = c->w;
    struct rng *r = cluster_rng(w->c);
    if (c->request == 0) {
        c->request = ++w->requests;
        unsigned first = (unsigned)rng_below(r, w->lists);
        for (unsigned i = 0; i < 3; i++) {
            c->lists[i] = w->list_base + (first + i) % w->lists;
        }
        c->appends = 1 + rng_below(r, w->lists > 1 ? 2 : 1);
    }
    txn_of(c)->request = c->request;
}

static void begin(struct client *c)
{
    struct sim_world *w = c->w;
    struct rng *r = cluster_rng(w->c);
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
    t->kind = w->readers != 0 && c->n % (w->readers + 1) == 0 ? K_AUDIT : (enum kind)k;
    t->kind = c->request != 0 ? K_LIST : t->kind;
    t->client = c->n;
    t->begun_ns = cluster_now(w->c);
    t->floor = w->floor;
    struct tt_now now = cluster_clock(w->c, c->node);
    t->id = (struct txn_id){now.tt.latest.ns, c->node, w->seq++ & 0x7fffffffU};
    c->op.txn = (struct txn_ref){t->id, t->id};
    if (!txn_id_is_none(&c->age) && cluster_now(w->c) < c->age_until_ns) {
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
        sim_account_key(&c->keys[i], c->accounts[i]);
        c->key_slices[i] = buf_slice(&c->keys[i]);
    }
    if (t->kind == K_LIST) {
        begin_list(c);
    }
    c->phase = 0;
    c->epoch = cluster_epoch(w->c, c->node);
    c->busy = true;
    w->busy++;
}

static void end(struct client *c, enum ending out)
{
    struct sim_world *w = c->w;
    struct htxn *t = txn_of(c);
    t->out = out;
    if (out == OUT_ABORTED && t->must_retry) {
        w->retried++;
        if (txn_id_is_none(&c->age)) {
            c->age = c->op.txn.age;
        }
        c->age_until_ns = cluster_now(w->c) + RETRY_AGE_NS;
    } else {
        c->age = (struct txn_id){0};
    }
    w->committed += out == OUT_COMMITTED && t->write_count + t->append_count > 0 ? 1 : 0;
    if (t->kind == K_LIST && (out == OUT_COMMITTED || t->done_by != 0)) {
        c->request = 0;
        cluster_count(w->c, t->done_by != 0 ? TALLY_DONE_BEFORE : TALLY_APPENDS);
    } else if (t->kind == K_LIST) {
        cluster_count(w->c, TALLY_TRIED_AGAIN);
    } else if (out == OUT_COMMITTED) {
        static const enum sim_tally kinds[K_COUNT] = {
            [K_TRANSFER] = TALLY_TXN_TRANSFER,  [K_WATCH] = TALLY_TXN_TRANSFER,
            [K_BLIND] = TALLY_TXN_BLIND,        [K_AUDIT] = TALLY_TXN_STRONG_SCAN,
            [K_PAST] = TALLY_TXN_PAST_SCAN,     [K_STALE] = TALLY_TXN_STALE_SCAN,
            [K_LOCKED] = TALLY_TXN_LOCKED_SCAN, [K_PUT] = TALLY_TXN_REGISTER,
            [K_LONG] = TALLY_TXN_LONG,          [K_LIST_READ] = TALLY_TXN_LIST_READ};

        cluster_count(w->c, kinds[t->kind]);
    }
    w->unknowns += out == OUT_UNKNOWN ? 1 : 0;
    c->busy = false;
    w->busy--;
    client_next(c);
}

static bool reads_only(const struct htxn *t)
{
    return t->kind == K_PAST || t->kind == K_STALE || t->kind == K_AUDIT || t->kind == K_LIST_READ;
}

/* Rule D0: what the client sees, it sees once the timestamp has passed on its gateway. */
static void acknowledge(struct client *c)
{
    struct sim_world *w = c->w;
    struct htxn *t = txn_of(c);
    struct tt_ts nb = tt_max(t->ts, t->seen);
    if (reads_only(t)) {
        nb = t->seen; /* a read timestamp itself is no fact about the data */
    }
    t->timeless = !cluster_in_contract(w->c, t->begun_ns);
    if (cluster_now(w->c) < nb.ns && !t->timeless) {
        cluster_fail(w->c, "transaction %zu acknowledged before its timestamp", c->txn);
    }
    t->acked_ns = cluster_now(w->c);
    w->floor = t->timeless ? w->floor : tt_max(w->floor, nb);
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
    cluster_op(c->w->c, c->node, &c->op);
}

static void read_all(struct client *c, uint8_t lock, struct slice from, struct slice to)
{
    struct txn_read *r = &c->op.read;
    c->op.kind = GATEWAY_READ;
    r->key_count = 0;
    r->start = from;
    r->end = to;
    r->lock = lock;
    r->parallel = 1 + rng_below(cluster_rng(c->w->c), 4);
    r->page_rows = (uint32_t)rng_below(cluster_rng(c->w->c), 20);
    c->op.deadline_ns = 0;
    cluster_op(c->w->c, c->node, &c->op);
}

static void commit(struct client *c, size_t writes, bool anchored)
{
    struct htxn *t = txn_of(c);
    c->op.kind = GATEWAY_COMMIT;
    c->op.deadline_ns = 0;
    c->op.commit = (struct txn_commit){.writes = c->writes, .write_count = writes, .seen = t->seen};
    t->has_anchor = anchored;
    if (anchored) {
        t->anchor = t->kind == K_LIST ? c->lists[0] : c->accounts[0];
        if (t->kind == K_LIST) {
            sim_list_key(&c->anchor, t->anchor);
        } else {
            sim_account_key(&c->anchor, t->anchor);
        }
        c->op.commit.anchor = buf_slice(&c->anchor);
    }
    cluster_op(c->w->c, c->node, &c->op);
}

static int write_cmp(const void *a, const void *b)
{
    return slice_cmp(((const struct txn_write *)a)->key, ((const struct txn_write *)b)->key);
}

static size_t make_writes(struct client *c)
{
    struct sim_world *w = c->w;
    struct rng *r = cluster_rng(w->c);
    struct htxn *t = txn_of(c);
    int64_t amount = (int64_t)rng_below(r, 20) + 1;
    for (unsigned i = 0; i < 2; i++) {
        const struct cell *was = NULL;
        for (size_t k = 0; k < t->read_count; k++) {
            was = t->reads[k].account == c->accounts[i] ? &t->reads[k] : was;
        }
        if (was == NULL) {
            cluster_fail(w->c, "account %u is gone", c->accounts[i]);
            return 0;
        }
        int64_t balance = was->balance + (i == 0 ? -amount : amount);
        t->writes[i] =
            (struct cell){.account = c->accounts[i], .balance = balance, .writer = c->txn};
        sim_value_of(&c->values[i], balance, c->txn);
        c->writes[i] =
            (struct txn_write){.key = buf_slice(&c->keys[i]), .value = buf_slice(&c->values[i])};
    }
    t->write_count = 2;
    size_t n = 2;
    if (rng_below(r, 2) == 0) {
        t->journal = true;
        sim_journal_key(&c->keys[2], c->txn);
        sim_value_of(&c->values[2], amount, c->txn);
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
    cluster_op(c->w->c, c->node, &c->op);
}

/* A statement failed: the transaction is rolled back, what it is worth is known. */
static void statement_failed(struct client *c)
{
    struct htxn *t = txn_of(c);
    span_status st = c->op.status;
    t->must_retry = span_status_kind(st) == SPAN_KIND_RETRY;
    if (!t->must_retry && st != SPAN_CLOSED && st != SPAN_BELOW_HORIZON) {
        cluster_fail(c->w->c, "transaction %zu of kind %d: a read said %s: %s", c->txn, t->kind,
                     span_status_name(st), c->op.err.text);
    }
    rollback(c);
}

static bool connected(const struct client *c)
{
    return cluster_alive(c->w->c, c->node) && cluster_epoch(c->w->c, c->node) == c->epoch;
}

static void committed(struct client *c)
{
    struct sim_world *w = c->w;
    struct htxn *t = txn_of(c);
    span_status st = c->op.status;
    cluster_say(w->c, "client %u txn %zu commit %s ts %llu", c->n, c->txn, span_status_name(st),
                (unsigned long long)c->op.commit.ts.ns);
    if (st == SPAN_OK) {
        t->ts = c->op.commit.ts;
        t->seen = tt_max(t->seen, c->op.commit.seen_out);
        if (t->kind != K_LOCKED && tt_is_none(t->ts)) {
            cluster_fail(w->c, "transaction %zu committed without a timestamp", c->txn);
        }
        c->phase = 80;
        if (!connected(c)) {
            end(c, OUT_COMMITTED); /* nobody heard of it, but it is so */
            return;
        }
        cluster_at(w->c, cluster_after(w->c, c->node, tt_max(t->ts, t->seen)), step_cb, c);
    } else if (st == SPAN_UNKNOWN_OUTCOME) {
        end(c, OUT_UNKNOWN);
    } else {
        t->must_retry = span_status_kind(st) == SPAN_KIND_RETRY;
        if (!t->must_retry && st != SPAN_CLOSED) {
            cluster_fail(w->c, "transaction %zu: commit said %s: %s", c->txn, span_status_name(st),
                         c->op.err.text);
        }
        end(c, OUT_ABORTED);
    }
}

static void step_transfer(struct client *c)
{
    struct htxn *t = txn_of(c);
    struct rng *r = cluster_rng(c->w->c);
    switch (c->phase++) {
    case 0:
        if (t->kind == K_WATCH || t->kind == K_LONG) {
            read_points(c, &c->key_slices[2], 1, READ_LOCK_SHARED);
        } else if (rng_below(r, 3) == 0) {
            c->phase = 2;
            read_points(c, c->key_slices, 2, READ_LOCK_UPDATE);
        } else {
            read_points(c, &c->key_slices[0], 1, READ_LOCK_UPDATE);
        }
        break;
    case 1:
        if (!c->paused && (t->kind == K_LONG || rng_below(r, 100) < c->w->think_share)) {
            c->paused = true; /* a client that takes its time between two statements */
            c->phase = 1;
            client_wait(c, rng_below(r, t->kind == K_LONG ? LONG_NS : c->w->think_ns));
            break;
        }
        c->paused = false;
        take_reads(c);
        if (t->kind == K_WATCH || t->kind == K_LONG) { /* then the two at once */
            read_points(c, c->key_slices, 2,
                        rng_below(r, 4) == 0 ? READ_LOCK_SHARED : READ_LOCK_UPDATE);
        } else {
            read_points(c, &c->key_slices[1], 1, READ_LOCK_UPDATE);
        }
        break;
    case 2:
        if (!c->paused && t->kind == K_LONG) {
            c->paused = true;
            c->phase = 2;
            client_wait(c, rng_below(r, LONG_NS));
            break;
        }
        c->paused = false;
        take_reads(c);
        if (world_failed(c->w)) {
            rollback(c);
        } else if (t->kind == K_ROLLBACK) {
            rollback(c);
        } else {
            size_t n = make_writes(c);
            commit(c, n, rng_below(r, 16) != 0);
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
        sim_journal_key(&c->keys[2], c->txn);
        sim_value_of(&c->values[2], 0, c->txn);
        if (rng_below(cluster_rng(c->w->c), 3) == 0) { /* a record of many sectors */
            size_t more = rng_below(cluster_rng(c->w->c), 3000);
            memset(buf_grow(&c->values[2], more), 0x5a, more);
        }
        c->writes[0] =
            (struct txn_write){.key = buf_slice(&c->keys[2]), .value = buf_slice(&c->values[2])};
        commit(c, 1, false);
    } else {
        committed(c);
    }
}

/* Reads the lists and whether the request is done; appends, or is content. */
static void step_list(struct client *c)
{
    struct htxn *t = txn_of(c);
    if (c->phase == 0) {
        c->phase = 1;
        for (size_t i = 0; i < c->appends; i++) {
            sim_list_key(&c->keys[i], c->lists[i]);
            c->key_slices[i] = buf_slice(&c->keys[i]);
        }
        sim_request_key(&c->keys[c->appends], c->request);
        c->key_slices[c->appends] = buf_slice(&c->keys[c->appends]);
        read_points(c, c->key_slices, c->appends + 1, READ_LOCK_UPDATE);
        return;
    }
    if (c->phase == 2) {
        committed(c);
        return;
    }
    take_reads(c);
    for (size_t i = 0; i < c->appends; i++) {
        sim_list_absent(t, c->lists[i]);
    }
    if (t->done_by != 0 || world_failed(c->w)) {
        t->append_count = 0;
        rollback(c);
        return;
    }
    for (size_t i = 0; i < c->appends; i++) {
        t->appends[i] = c->lists[i];
        sim_list_value(&c->values[i], sim_list_find(t, c->lists[i]), c->txn);
    }
    t->append_count = c->appends;
    buf_clear(&c->values[c->appends]);
    enc_u64(&c->values[c->appends], c->txn);
    for (size_t i = 0; i <= c->appends; i++) {
        c->writes[i] =
            (struct txn_write){.key = buf_slice(&c->keys[i]), .value = buf_slice(&c->values[i])};
    }
    qsort(c->writes, c->appends + 1, sizeof c->writes[0], write_cmp);
    c->phase = 2;
    commit(c, c->appends + 1, true);
}

/* Blind writes: nothing that was seen pushes their timestamps up, only floors do. */
static void step_put(struct client *c)
{
    struct sim_world *w = c->w;
    struct rng *r = cluster_rng(w->c);
    struct htxn *t = txn_of(c);
    if (c->phase++ > 0) {
        committed(c);
        return;
    }
    unsigned registers = w->cells - w->accounts;
    unsigned first = (unsigned)rng_below(r, registers);
    t->write_count = registers > 1 ? 1 + rng_below(r, 2) : 1;
    for (unsigned i = 0; i < t->write_count; i++) {
        struct cell *cell = &t->writes[i];
        *cell = (struct cell){.account = w->accounts + (first + i) % registers,
                              .balance = (int64_t)rng_below(r, 1000),
                              .writer = c->txn,
                              .absent = rng_below(r, 4) == 0};
        c->accounts[i] = cell->account;
        sim_account_key(&c->keys[i], cell->account);
        sim_value_of(&c->values[i], cell->balance, c->txn);
        c->writes[i] = (struct txn_write){.key = buf_slice(&c->keys[i]),
                                          .value = buf_slice(&c->values[i]),
                                          .tombstone = cell->absent};
    }
    qsort(c->writes, t->write_count, sizeof c->writes[0], write_cmp);
    commit(c, t->write_count, true);
}

/* Reads everything, page after page; gaps left by full pages are read one after the other. */
static void step_scan(struct client *c)
{
    struct sim_world *w = c->w;
    struct htxn *t = txn_of(c);
    struct txn_read *r = &c->op.read;
    uint8_t lock = t->kind == K_LOCKED ? READ_LOCK_SHARED : READ_LOCK_NONE;
    struct tt_now now = cluster_clock(c->w->c, c->node);
    if (c->phase == 3) { /* a reader that took its time between two pages */
        c->phase = 1;
        read_all(c, lock, buf_slice(&c->span_start), buf_slice(&c->span_end));
        return;
    }
    if (c->phase == 0) {
        c->phase = 1;
        uint32_t table = t->kind == K_LIST_READ ? TABLE_LISTS : TABLE_ACCOUNTS;
        c->known_lists = w->list_base + w->lists;
        sim_table_key(&c->span_start, table);
        sim_table_key(&c->span_end, table + 1);
        r->reverse = rng_below(cluster_rng(c->w->c), 2) == 0;
        uint64_t how = t->kind == K_LIST_READ ? rng_below(cluster_rng(w->c), 3) : 0;
        t->as_of = how != 0;
        r->mode = t->kind == K_STALE || how == 1 ? KV_READ_MAX_STALENESS : KV_READ_STRONG;
        uint64_t start_ns = c->w->history[0].ts.ns; /* nothing to see before */
        uint64_t age = now.tt.earliest.ns > start_ns ? now.tt.earliest.ns - start_ns : 0;
        age = age < 2 * SEC_NS ? age : 2 * SEC_NS;
        r->staleness_ns = rng_below(cluster_rng(c->w->c), age + 1);
        r->read_ts = tt_ts_of(0);
        if (t->kind == K_PAST || how == 2) {
            r->mode = KV_READ_AT;
            r->read_ts.ns = now.tt.earliest.ns - rng_below(cluster_rng(c->w->c), age + 1);
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
        if (lock == READ_LOCK_NONE && rng_below(cluster_rng(w->c), 8) == 0) {
            c->phase = 3;
            client_wait(c, rng_below(cluster_rng(w->c), LONG_NS / 4));
            return;
        }
        read_all(c, lock, buf_slice(&c->span_start), buf_slice(&c->span_end));
        return;
    }
    if (t->kind == K_LOCKED) {
        c->phase = 2;
        commit(c, 0, false);
        return;
    }
    for (unsigned i = 0; t->kind == K_LIST_READ && i < c->known_lists; i++) {
        sim_list_absent(t, i);
    }
    t->ts = r->read_ts;
    c->phase = 80;
    cluster_at(c->w->c, cluster_after(c->w->c, c->node, t->seen), step_cb, c);
}

static void step(struct client *c)
{
    struct htxn *t;
    if (!c->busy) {
        if (c->w->stopping || world_failed(c->w)) {
            return;
        }
        if (!cluster_alive(c->w->c, c->node)) {
            c->node = 1 + (node_id)rng_below(cluster_rng(c->w->c), cluster_node_count(c->w->c));
            client_wait(c, 20 * MS_NS);
            return;
        }
        begin(c);
    }
    t = txn_of(c);
    if (c->phase == 80) {
        struct tt_now now = cluster_clock(c->w->c, c->node);
        struct tt_ts nb = tt_max(t->ts, t->seen);
        nb = reads_only(t) ? t->seen : nb;
        if (!connected(c) || now.state == CLOCK_FENCED) { /* the gate lets nothing out */
            end(c, OUT_COMMITTED);
        } else if (!tt_after(&now.tt, nb) && !PLANTED(COMMIT_WAIT_SKIPPED)) {
            cluster_at(c->w->c, cluster_after(c->w->c, c->node, nb), step_cb, c);
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
        cluster_say(c->w->c, "client %u txn %zu read %s", c->n, c->txn, c->op.err.text);
        statement_failed(c);
        return;
    }
    switch (t->kind) {
    case K_TRANSFER:
    case K_WATCH:
    case K_ROLLBACK:
    case K_LONG:
        step_transfer(c);
        break;
    case K_LIST:
        step_list(c);
        break;
    case K_BLIND:
        step_blind(c);
        break;
    case K_PUT:
        step_put(c);
        break;
    case K_AUDIT:
    case K_PAST:
    case K_STALE:
    case K_LOCKED:
    case K_LIST_READ:
        step_scan(c);
        break;
    case K_COUNT:
        break;
    }
}

static void client_next(struct client *c)
{
    if (c->w->stopping || world_failed(c->w)) {
        return;
    }
    if (c->op.status == SPAN_CLOCK) { /* a driver tries the next address */
        c->node = 1 + (node_id)rng_below(cluster_rng(c->w->c), cluster_node_count(c->w->c));
    }
    client_wait(c, think(c));
}

bool sim_is_journal(struct slice key)
{
    return key.size > 4 && key.data[4] == (TABLE_JOURNAL & 0xff);
}

void sim_clients_start(struct sim_world *w)
{
    for (size_t i = 0; i < w->client_count; i++) {
        struct client *c = &w->clients[i];
        c->w = w;
        c->n = (unsigned)i;
        c->node = 1 + (node_id)(i % w->opt.nodes);
        c->op.owner = c;
        c->op.done = op_done;
        client_wait(c, rng_below(cluster_rng(w->c), 10 * MS_NS));
    }
}

void sim_clients_free(struct sim_world *w)
{
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
}
