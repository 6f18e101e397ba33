/* Lists, and what clients wrote down as the checker of recorded histories (tests/check) reads it.
 *
 * A list is a row that holds the numbers of the transactions that appended to it, in order. An
 * append reads the row under an X lock and writes it again, to one list or two, and in the same
 * transaction notes in a row of its request that it is done: a client that is not told how it ended
 * tries the request again until it knows, and it must have happened once.
 *
 * At the end two histories go through the checker, which knows nothing of timestamps but what it is
 * told, and nothing of the product: the lists as they are, and accounts and registers as registers
 * whose values are their writers. */
#include "base/alloc.h"
#include "tests/check/check_history.h"
#include "tests/sim/sim_world.h"

#define LIST_LONG 96 /* entries; then clients begin new ones */

void sim_list_key(struct buf *b, unsigned list)
{
    sim_table_key(b, TABLE_LISTS);
    sim_be32(b, list);
}

void sim_request_key(struct buf *b, uint64_t request)
{
    sim_table_key(b, TABLE_REQUESTS);
    sim_be32(b, (uint32_t)span_mix64(request) & 0xff);
    sim_be32(b, (uint32_t)request);
}

uint32_t sim_table_of(struct slice key)
{
    return key.size < 5 ? 0
                        : (uint32_t)key.data[1] << 24 | (uint32_t)key.data[2] << 16 |
                              (uint32_t)key.data[3] << 8 | key.data[4];
}

static struct list_read *read_new(struct htxn *t, unsigned list)
{
    t->lists = span_realloc(t->lists, (t->list_count + 1) * sizeof *t->lists);
    struct list_read *r = &t->lists[t->list_count++];
    *r = (struct list_read){.list = list};
    return r;
}

void sim_list_read(struct sim_world *w, struct htxn *t, struct slice key, struct slice value)
{
    struct cursor k = cursor_of(slice_of(key.data + 7, key.size - 7));
    unsigned list = 0;
    for (int i = 0; i < 4; i++) {
        list = list << 8 | dec_u8(&k);
    }
    if (!cursor_done(&k) || value.size % 8 != 0) {
        cluster_fail(w->c, "a list that nobody wrote");
        return;
    }
    struct list_read *r = read_new(t, list);
    r->count = value.size / 8;
    r->values = span_calloc(r->count + 1, sizeof *r->values);
    struct cursor v = cursor_of(value);
    for (size_t i = 0; i < r->count; i++) {
        r->values[i] = (int64_t)dec_u64(&v);
    }
    if (r->count > LIST_LONG && list >= w->list_base) {
        w->list_base += w->lists;
    }
}

const struct list_read *sim_list_find(const struct htxn *t, unsigned list)
{
    for (size_t i = 0; i < t->list_count; i++) {
        if (t->lists[i].list == list) {
            return &t->lists[i];
        }
    }
    return NULL;
}

void sim_list_absent(struct htxn *t, unsigned list)
{
    if (sim_list_find(t, list) == NULL) {
        (void)read_new(t, list);
    }
}

void sim_list_value(struct buf *b, const struct list_read *old, uint64_t txn)
{
    buf_clear(b);
    for (size_t i = 0; old != NULL && i < old->count; i++) {
        enc_u64(b, (uint64_t)old->values[i]);
    }
    enc_u64(b, txn);
}

void sim_lists_free(struct htxn *t)
{
    for (size_t i = 0; i < t->list_count; i++) {
        span_free(t->lists[i].values);
    }
    span_free(t->lists);
}

/* ---- the checker ---- */

static struct history_txn *add_txn(struct sim_world *w, struct history *h, const struct htxn *t)
{
    bool acked = t->out == OUT_COMMITTED && t->acked_ns != 0;
    struct history_txn *x =
        history_add_txn(h, t->client, t->begun_ns, acked ? t->acked_ns : t->begun_ns + 1,
                        acked                   ? HISTORY_OK
                        : t->out == OUT_ABORTED ? HISTORY_FAIL
                                                : HISTORY_UNKNOWN);
    x->as_of = t->kind == K_PAST || t->kind == K_STALE || (t->kind == K_LIST_READ && t->as_of);
    bool writes = t->write_count + t->append_count != 0;
    x->ts = t->out == OUT_COMMITTED && writes ? t->ts.ns : 0;
    bool timeless = t->acked_ns == 0 ? !cluster_in_contract(w->c, t->begun_ns) : t->timeless;
    if (timeless) { /* no orders from real time */
        x->start = 0;
        x->end = UINT64_MAX;
    }
    return x;
}

static void add_lists(struct history *h, const struct htxn *t, size_t number)
{
    for (size_t i = 0; i < t->list_count; i++) {
        const struct list_read *r = &t->lists[i];
        static const int64_t none;
        history_add_op(
            h, (struct history_op){.kind = HISTORY_LIST, .key = r->list, .list_count = r->count},
            r->count == 0 ? &none : r->values);
    }
    for (size_t i = 0; i < t->append_count; i++) {
        history_add_op(h,
                       (struct history_op){.kind = HISTORY_APPEND_OP,
                                           .key = t->appends[i],
                                           .value = (int64_t)number},
                       NULL);
    }
}

static void add_cells(struct history *h, const struct htxn *t)
{
    for (size_t i = 0; i < t->read_count; i++) {
        history_add_op(h,
                       (struct history_op){.kind = HISTORY_READ,
                                           .key = t->reads[i].account,
                                           .value = (int64_t)t->reads[i].writer},
                       NULL);
    }
    for (size_t i = 0; i < t->write_count; i++) {
        if (!t->writes[i].absent) { /* a register's absence has no writer to be read */
            history_add_op(h,
                           (struct history_op){.kind = HISTORY_WRITE,
                                               .key = t->writes[i].account,
                                               .value = (int64_t)t->writes[i].writer},
                           NULL);
        }
    }
}

static void judge(struct sim_world *w, const struct history *h)
{
    struct check_report r;
    struct span_error err = {0};
    if (check_history(h, &r, &err) != SPAN_OK) {
        cluster_fail(w->c, "the history can not be judged: %s", err.text);
        return;
    }
    if (r.found_total != 0) {
        enc_u8(&r.say, 0);
        cluster_fail(w->c, "strict serializability (%s history): %.900s",
                     history_kind_name(h->kind), (const char *)r.say.data);
    }
    check_report_deinit(&r);
}

static void register_history(struct sim_world *w)
{
    struct history h;
    history_init_empty(&h, HISTORY_REGISTER);
    struct history_txn *first =
        history_add_txn(&h, CLIENTS_MAX, 0, w->history[0].begun_ns + 1, HISTORY_OK);
    first->ts = w->history[0].ts.ns;
    for (unsigned a = 0; a < w->accounts; a++) {
        history_add_op(&h, (struct history_op){.kind = HISTORY_WRITE, .key = a}, NULL);
    }
    for (size_t i = 1; i < w->count; i++) {
        if (w->history[i].read_count + w->history[i].write_count != 0) {
            (void)add_txn(w, &h, &w->history[i]);
            add_cells(&h, &w->history[i]);
        }
    }
    judge(w, &h);
    history_deinit(&h);
}

/* All lists as a node has them now, the last transaction of the history. */
static struct htxn *final_lists;

static void final_list(struct sim_world *w, struct slice key, struct slice value)
{
    if (sim_table_of(key) == TABLE_LISTS) {
        sim_list_read(w, final_lists, key, value);
    }
}

static void append_history(struct sim_world *w)
{
    struct history h;
    history_init_empty(&h, HISTORY_APPEND);
    for (size_t i = 1; i < w->count; i++) {
        if (w->history[i].list_count + w->history[i].append_count != 0) {
            (void)add_txn(w, &h, &w->history[i]);
            add_lists(&h, &w->history[i], i);
        }
    }
    for (node_id n = 1; n <= cluster_node_count(w->c) && !world_failed(w); n++) {
        if (!cluster_alive(w->c, n) || h.txn_count == 0) {
            continue;
        }
        struct htxn t = {.kind = K_LIST_READ, .out = OUT_COMMITTED, .client = CLIENTS_MAX + n};
        final_lists = &t;
        t.begun_ns = cluster_now(w->c);
        sim_scan(w, n, TABLE_LISTS, TABLE_LISTS + 1, tt_ts_of(0), final_list);
        t.acked_ns = cluster_now(w->c);
        for (unsigned l = 0; l < w->list_base + w->lists; l++) {
            sim_list_absent(&t, l);
        }
        (void)add_txn(w, &h, &t);
        add_lists(&h, &t, 0);
        sim_lists_free(&t);
    }
    if (!world_failed(w)) {
        judge(w, &h);
    }
    history_deinit(&h);
}

/* A request may have been tried often, it happened once, or never if nobody was told that it had.
 */
static void check_requests(struct sim_world *w)
{
    size_t *done = span_calloc(w->requests + 1, sizeof *done);
    for (size_t i = 1; i < w->count && !world_failed(w); i++) {
        const struct htxn *t = &w->history[i];
        if (t->out != OUT_COMMITTED || t->append_count == 0) {
            continue;
        }
        if (done[t->request] != 0) {
            cluster_fail(w->c, "idempotent retry: transactions %zu and %zu both did request %llu",
                         done[t->request], i, (unsigned long long)t->request);
        }
        done[t->request] = i;
    }
    for (size_t i = 1; i < w->count && !world_failed(w); i++) {
        const struct htxn *t = &w->history[i];
        if (t->done_by != 0 && done[t->request] != t->done_by) {
            cluster_fail(w->c,
                         "idempotent retry: transaction %zu read that request %llu was done by "
                         "%llu, it was done by %zu",
                         i, (unsigned long long)t->request, (unsigned long long)t->done_by,
                         done[t->request]);
        }
    }
    span_free(done);
}

void sim_check_serial(struct sim_world *w)
{
    check_requests(w);
    if (!world_failed(w)) {
        append_history(w);
    }
    if (!world_failed(w)) {
        register_history(w);
    }
}
