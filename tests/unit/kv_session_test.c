/* sql/kv.h as session threads see it, over real store and gateway cores: a worker thread runs a
 * virtual cluster and takes the operations that sessions post, as a node's worker does. Virtual
 * time runs while somebody waits. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/log.h"
#include "coordinator/kv_session.h"
#include "tests/sim/sim_cluster.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

struct rig {
    struct cluster *c;
    struct mailbox *box;
    pthread_mutex_t lock; /* of c: the worker's, and the sessions' clock */
    pthread_t worker;
    struct kv_env *env;
    node_id node;
    atomic_bool fenced; /* the node's clock, as its sessions see it */
};

static void *worker_main(void *arg)
{
    struct rig *g = arg;
    for (;;) {
        struct timespec ts;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        uint64_t now_ns = (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
        struct mailbox_item *items = mailbox_take_all(g->box, now_ns + 100000);
        if (items == NULL && mailbox_is_closed(g->box)) {
            return NULL;
        }
        pthread_mutex_lock(&g->lock);
        while (items != NULL) {
            struct mailbox_item *next = items->next;
            cluster_op(g->c, g->node, MAILBOX_ENTRY(items, struct gateway_op, item));
            items = next;
        }
        cluster_run_for(g->c, 2 * MS_NS);
        pthread_mutex_unlock(&g->lock);
    }
}

static span_status post(void *ctx, struct gateway_op *op)
{
    struct rig *g = ctx;
    return mailbox_post(g->box, &op->item);
}

static void session_now(void *ctx, struct tt_now *out)
{
    struct rig *g = ctx;
    pthread_mutex_lock(&g->lock);
    *out = cluster_clock(g->c, g->node);
    pthread_mutex_unlock(&g->lock);
    out->state = atomic_load(&g->fenced) ? CLOCK_FENCED : out->state;
}

static void clock_reason(void *ctx, char *out, size_t size)
{
    (void)ctx;
    snprintf(out, size, "it jumped");
}

static struct rig *rig_new(uint64_t seed)
{
    struct rig *g = SPAN_NEW(struct rig);
    struct cluster_options o;
    log_set_level(LOG_ERROR + 1); /* logs end with their machines */
    cluster_options_init(&o, seed);
    g->c = cluster_new(&o);
    cluster_boot(g->c);
    g->node = 1;
    g->box = mailbox_new(0);
    pthread_mutex_init(&g->lock, NULL);
    cluster_run_for(g->c, 800 * MS_NS);
    struct kv_env_options eo = {.node = 1,
                                .seed = seed,
                                .now = session_now,
                                .now_ctx = g,
                                .clock_reason = clock_reason,
                                .post = post,
                                .post_ctx = g};
    g->env = kv_env_new(&eo);
    int rc = pthread_create(&g->worker, NULL, worker_main, g);
    cr_assert_eq(rc, 0);
    return g;
}

static void rig_free(struct rig *g)
{
    mailbox_close(g->box);
    pthread_join(g->worker, NULL);
    cluster_free(g->c);
    mailbox_free(g->box);
    kv_env_free(g->env);
    pthread_mutex_destroy(&g->lock);
    span_free(g);
}

/* Leaves deadlines to the core: monotonic time of this node. */
static uint64_t deadline_in(struct rig *g, uint64_t ns)
{
    struct tt_now now;
    session_now(g, &now);
    return now.mono_ns + ns;
}

static struct slice key_of(struct buf *b, uint32_t table, uint32_t row)
{
    buf_clear(b);
    enc_u8(b, KEY_TABLE_PREFIX);
    for (int i = 3; i >= 0; i--) {
        enc_u8(b, (uint8_t)(table >> (8 * i)));
    }
    enc_u16(b, 0);
    for (int i = 3; i >= 0; i--) {
        enc_u8(b, (uint8_t)(row >> (8 * i)));
    }
    return buf_slice(b);
}

#define OK(expr) cr_assert_eq((expr), SPAN_OK, "%s: %s", #expr, err.text)

static void begin_rw(struct kv *kv)
{
    struct span_error err = {0};
    struct kv_txn_options o = {0};
    OK(kv->ops->begin(kv, &o, &err));
}

static void put_u32(struct kv *kv, uint32_t row, uint32_t v)
{
    struct span_error err = {0};
    struct buf k = {0};
    OK(kv->ops->put(kv, key_of(&k, 1024, row), slice_of(&v, sizeof v), &err));
    buf_deinit(&k);
}

static bool get_u32(struct kv *kv, uint32_t row, enum kv_lock lock, uint32_t *v)
{
    struct span_error err = {0};
    struct buf k = {0};
    struct buf val = {0};
    bool found;
    OK(kv->ops->get(kv, key_of(&k, 1024, row), lock, &found, &val, &err));
    if (found) {
        cr_assert_eq(val.size, sizeof *v);
        memcpy(v, val.data, sizeof *v);
    }
    buf_deinit(&k);
    buf_deinit(&val);
    return found;
}

static void commit(struct kv *kv)
{
    struct span_error err = {0};
    struct tt_ts ts;
    OK(kv->ops->commit(kv, &ts, &err));
}

static void fill(struct kv *kv, uint32_t rows)
{
    begin_rw(kv);
    for (uint32_t i = 0; i < rows; i++) {
        put_u32(kv, i, i);
    }
    commit(kv);
}

static void split(struct kv *kv, uint32_t row)
{
    struct span_error err = {0};
    struct buf k = {0};
    OK(kv->ops->split_at(kv, key_of(&k, 1024, row), &err));
    OK(kv->ops->split_at(kv, buf_slice(&k), &err)); /* a boundary already: fine */
    buf_deinit(&k);
}

Test(kv_session, commits_what_was_put_and_reads_it_back, .timeout = 60)
{
    struct rig *g = rig_new(1);
    struct kv *kv = kv_session_new(g->env);
    struct kv *other = kv_session_new(g->env);
    struct span_error err = {0};
    uint32_t v = 0;
    struct tt_ts ts = {0};
    begin_rw(kv);
    cr_assert_str_eq(kv->ops->txn_id(kv), "");
    put_u32(kv, 1, 11);
    cr_assert(strchr(kv->ops->txn_id(kv), '@') != NULL, "rule E1: known before COMMIT");
    cr_assert(get_u32(kv, 1, KV_LOCK_NONE, &v) && v == 11, "own writes are seen");
    cr_assert_not(get_u32(other, 1, KV_LOCK_NONE, &v), "nobody else does");
    char id[256];
    snprintf(id, sizeof id, "%s", kv->ops->txn_id(kv));
    OK(kv->ops->commit(kv, &ts, &err));
    cr_assert(ts.ns > 0 && kv->ops->not_before(kv).ns >= ts.ns);
    cr_assert_not(kv->ops->in_txn(kv));
    cr_assert(get_u32(other, 1, KV_LOCK_NONE, &v) && v == 11);
    cr_assert(other->ops->not_before(other).ns >= ts.ns, "rule D0: what was seen counts");
    other->ops->clear_not_before(other);
    cr_assert_eq(other->ops->not_before(other).ns, 0);
    enum kv_txn_outcome out;
    struct tt_ts told;
    OK(other->ops->txn_status(other, id, &out, &told, &err));
    cr_assert_eq(out, KV_TXN_COMMITTED);
    cr_assert_eq(told.ns, ts.ns);
    cr_assert_eq(other->ops->not_before(other).ns, ts.ns);
    cr_assert_eq(kv->ops->txn_status(kv, "nonsense", &out, &told, &err), SPAN_INVALID);
    cr_assert_eq(kv->ops->txn_status(kv, "1-1-1@0", &out, &told, &err), SPAN_INVALID);
    kv->ops->free(kv);
    other->ops->free(other);
    rig_free(g);
}

Test(kv_session, a_rollback_leaves_nothing_and_frees_locks, .timeout = 60)
{
    struct rig *g = rig_new(2);
    struct kv *kv = kv_session_new(g->env);
    struct kv *other = kv_session_new(g->env);
    uint32_t v = 0;
    fill(kv, 3);
    begin_rw(kv);
    cr_assert(get_u32(kv, 1, KV_LOCK_UPDATE, &v));
    put_u32(kv, 1, 99);
    kv->ops->rollback(kv);
    kv->ops->rollback(kv); /* harmless */
    begin_rw(other);       /* younger: it would wait for the lock */
    cr_assert(get_u32(other, 1, KV_LOCK_UPDATE, &v) && v == 1);
    put_u32(other, 1, 5);
    commit(other);
    begin_rw(kv);
    cr_assert(get_u32(kv, 1, KV_LOCK_SHARED, &v) && v == 5);
    kv->ops->free(kv); /* with an open transaction */
    begin_rw(other);
    cr_assert(get_u32(other, 1, KV_LOCK_UPDATE, &v));
    other->ops->free(other);
    rig_free(g);
}

Test(kv_session, savepoints_undo_writes_and_keep_the_rest, .timeout = 60)
{
    struct rig *g = rig_new(3);
    struct kv *kv = kv_session_new(g->env);
    uint32_t v = 0;
    struct span_error err = {0};
    struct buf k = {0};
    fill(kv, 4);
    begin_rw(kv);
    put_u32(kv, 0, 100);
    struct kv_mark mark = kv->ops->mark(kv);
    put_u32(kv, 0, 200);
    OK(kv->ops->del(kv, key_of(&k, 1024, 1), &err));
    cr_assert_not(get_u32(kv, 1, KV_LOCK_UPDATE, &v));
    kv->ops->rollback_to(kv, mark);
    cr_assert(get_u32(kv, 0, KV_LOCK_NONE, &v) && v == 100);
    cr_assert(get_u32(kv, 1, KV_LOCK_UPDATE, &v) && v == 1);
    commit(kv);
    cr_assert(get_u32(kv, 0, KV_LOCK_NONE, &v) && v == 100);
    buf_deinit(&k);
    kv->ops->free(kv);
    rig_free(g);
}

/* Scans in both directions over several ranges and pages, own writes in between: against an array.
 */
Test(kv_session, scans_merge_own_writes_over_ranges_and_pages, .timeout = 120)
{
    enum { ROWS = 3000 };
    struct rig *g = rig_new(4);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    struct buf k = {0};
    struct buf k2 = {0};
    int64_t *model = span_calloc(ROWS, sizeof *model);
    struct rng r;
    rng_init(&r, 4);
    begin_rw(kv);
    for (uint32_t i = 0; i < ROWS; i++) {
        model[i] = i % 3 == 0 ? -1 : (int64_t)i;
        if (model[i] >= 0) {
            put_u32(kv, i, i);
        }
    }
    commit(kv);
    split(kv, 700);
    split(kv, 701);
    split(kv, 2100);
    begin_rw(kv);
    for (int i = 0; i < 600; i++) {
        uint32_t row = (uint32_t)rng_below(&r, ROWS);
        if (rng_below(&r, 2) == 0) {
            put_u32(kv, row, row + 100000);
            model[row] = row + 100000;
        } else {
            OK(kv->ops->del(kv, key_of(&k, 1024, row), &err));
            model[row] = -1;
        }
    }
    for (int round = 0; round < 24; round++) {
        uint32_t from = (uint32_t)rng_below(&r, ROWS);
        uint32_t to = from + (uint32_t)rng_below(&r, ROWS - from + 1);
        bool reverse = round % 2 == 1;
        size_t hint = round % 3 == 0 ? 0 : 1 + rng_below(&r, 40);
        struct kv_scan *s = NULL;
        OK(kv->ops->scan_open(kv, key_of(&k, 1024, from), key_of(&k2, 1024, to), reverse,
                              round % 4 == 0 ? KV_LOCK_SHARED : KV_LOCK_NONE, hint, &s, &err));
        size_t stop = round % 5 == 0 ? 7 : SIZE_MAX;
        size_t n = 0;
        int64_t at = reverse ? (int64_t)to - 1 : (int64_t)from;
        for (;;) {
            struct slice key;
            struct slice value;
            span_status st = kv->ops->scan_next(s, &key, &value, &err);
            while (at >= (int64_t)from && at < (int64_t)to && model[at] < 0) {
                at += reverse ? -1 : 1;
            }
            bool more = at >= (int64_t)from && at < (int64_t)to;
            cr_assert_eq(st, more ? SPAN_OK : SPAN_NOT_FOUND, "round %d at %lld: %s", round,
                         (long long)at, err.text);
            if (!more || ++n > stop) {
                break;
            }
            uint32_t v;
            memcpy(&v, value.data, sizeof v);
            cr_assert(slice_eq(key, key_of(&k2, 1024, (uint32_t)at)), "round %d", round);
            cr_assert_eq((int64_t)v, model[at], "round %d row %lld", round, (long long)at);
            at += reverse ? -1 : 1;
        }
        kv->ops->scan_close(s); /* perhaps with a page on its way */
    }
    commit(kv);
    span_free(model);
    buf_deinit(&k);
    buf_deinit(&k2);
    kv->ops->free(kv);
    rig_free(g);
}

Test(kv_session, get_many_finds_stored_rows_own_writes_and_absent_ones, .timeout = 60)
{
    enum { N = 700 };
    struct rig *g = rig_new(5);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    fill(kv, N / 2);
    split(kv, 100);
    begin_rw(kv);
    put_u32(kv, 3, 33);
    put_u32(kv, N - 1, 77);
    struct buf *bytes = span_calloc(N, sizeof *bytes);
    struct slice *keys = span_calloc(N, sizeof *keys);
    struct buf *values = span_calloc(N, sizeof *values);
    bool *found = span_calloc(N, sizeof *found);
    for (uint32_t i = 0; i < N; i++) {
        keys[i] = key_of(&bytes[i], 1024, N - 1 - i);
    }
    OK(kv->ops->get_many(kv, keys, N, KV_LOCK_UPDATE, found, values, &err));
    for (uint32_t i = 0; i < N; i++) {
        uint32_t row = N - 1 - i;
        uint32_t want = row == 3 ? 33 : row == N - 1 ? 77 : row;
        cr_assert_eq(found[i], row < N / 2 || row == N - 1, "row %u", row);
        cr_assert(!found[i] || memcmp(values[i].data, &want, 4) == 0, "row %u", row);
        buf_deinit(&bytes[i]);
        buf_deinit(&values[i]);
    }
    OK(kv->ops->get_many(kv, keys, 0, KV_LOCK_NONE, found, values, &err));
    span_free(bytes);
    span_free(keys);
    span_free(values);
    span_free(found);
    commit(kv);
    kv->ops->free(kv);
    rig_free(g);
}

Test(kv_session, read_only_transactions_read_at_one_timestamp, .timeout = 60)
{
    struct rig *g = rig_new(6);
    struct kv *kv = kv_session_new(g->env);
    struct kv *writer = kv_session_new(g->env);
    struct span_error err = {0};
    uint32_t v = 0;
    fill(writer, 2);
    struct kv_txn_options ro = {.read_only = true, .mode = KV_READ_STRONG};
    OK(kv->ops->begin(kv, &ro, &err));
    cr_assert_eq(kv->ops->read_ts(kv).ns, 0);
    cr_assert(get_u32(kv, 0, KV_LOCK_SHARED, &v) && v == 0, "locks are not taken");
    struct tt_ts at = kv->ops->read_ts(kv);
    cr_assert(at.ns > 0);
    begin_rw(writer);
    put_u32(writer, 0, 50);
    put_u32(writer, 1, 51);
    commit(writer);
    cr_assert(get_u32(kv, 1, KV_LOCK_NONE, &v) && v == 1, "as it was then");
    struct buf k = {0};
    cr_assert_eq(kv->ops->put(kv, key_of(&k, 1024, 9), slice_str("x"), &err), SPAN_INVALID);
    OK(kv->ops->commit(kv, NULL, &err));
    cr_assert(get_u32(kv, 1, KV_LOCK_NONE, &v) && v == 51);
    struct kv_txn_options past = {.read_only = true, .mode = KV_READ_AT, .at = at};
    OK(kv->ops->begin(kv, &past, &err));
    cr_assert(get_u32(kv, 0, KV_LOCK_NONE, &v) && v == 0);
    kv->ops->rollback(kv);
    struct kv_txn_options future = {
        .read_only = true, .mode = KV_READ_AT, .at = {at.ns + 3600 * SEC_NS}};
    OK(kv->ops->begin(kv, &future, &err));
    bool found;
    struct buf val = {0};
    cr_assert_eq(kv->ops->get(kv, key_of(&k, 1024, 0), KV_LOCK_NONE, &found, &val, &err),
                 SPAN_IN_FUTURE);
    kv->ops->rollback(kv);
    struct kv_txn_options stale = {
        .read_only = true, .mode = KV_READ_MAX_STALENESS, .staleness_ns = 500 * MS_NS};
    OK(kv->ops->begin(kv, &stale, &err));
    (void)get_u32(kv, 0, KV_LOCK_NONE, &v);
    struct tt_now now;
    session_now(g, &now);
    struct tt_ts chosen = kv->ops->read_ts(kv);
    cr_assert(chosen.ns > 0 && chosen.ns <= now.tt.earliest.ns);
    buf_deinit(&k);
    buf_deinit(&val);
    kv->ops->free(kv);
    writer->ops->free(writer);
    rig_free(g);
}

/* Rules C5, C7. */
Test(kv_session, an_older_transaction_wounds_and_the_retry_inherits_the_age, .timeout = 60)
{
    struct rig *g = rig_new(7);
    struct kv *a = kv_session_new(g->env);
    struct kv *b = kv_session_new(g->env);
    struct span_error err = {0};
    uint32_t v = 0;
    bool found;
    struct buf k = {0};
    struct buf val = {0};
    fill(a, 3);
    begin_rw(a);
    (void)get_u32(a, 0, KV_LOCK_UPDATE, &v); /* a is older */
    begin_rw(b);
    (void)get_u32(b, 1, KV_LOCK_UPDATE, &v);
    put_u32(b, 1, 9);
    (void)get_u32(a, 1, KV_LOCK_UPDATE, &v); /* wounds b */
    struct tt_ts ts;
    cr_assert_eq(
        span_status_kind(b->ops->get(b, key_of(&k, 1024, 2), KV_LOCK_UPDATE, &found, &val, &err)),
        SPAN_KIND_RETRY);
    cr_assert_eq(span_status_kind(b->ops->commit(b, &ts, &err)), SPAN_KIND_RETRY);
    b->ops->rollback(b);
    commit(a);
    begin_rw(b);
    (void)get_u32(b, 1, KV_LOCK_UPDATE, &v); /* as old as its first try ... */
    begin_rw(a);
    struct kv *c = a;
    (void)get_u32(c, 2, KV_LOCK_UPDATE, &v); /* ... so a, which began in between, is younger */
    (void)get_u32(b, 2, KV_LOCK_UPDATE, &v);
    put_u32(b, 2, 1);
    commit(b);
    cr_assert_eq(
        span_status_kind(c->ops->get(c, key_of(&k, 1024, 0), KV_LOCK_UPDATE, &found, &val, &err)),
        SPAN_KIND_RETRY);
    buf_deinit(&k);
    buf_deinit(&val);
    a->ops->free(a);
    b->ops->free(b);
    rig_free(g);
}

struct blocked {
    struct kv *kv;
    atomic_int status;
};

static void *blocked_get(void *arg)
{
    struct blocked *x = arg;
    struct span_error err = {0};
    struct buf k = {0};
    struct buf val = {0};
    bool found;
    span_status st =
        x->kv->ops->get(x->kv, key_of(&k, 1024, 0), KV_LOCK_UPDATE, &found, &val, &err);
    buf_deinit(&k);
    buf_deinit(&val);
    atomic_store(&x->status, (int)st);
    return NULL;
}

static void assert_canceled(struct blocked *x)
{
    int st = atomic_load(&x->status);
    cr_assert_eq(st, (int)SPAN_CANCELED, "ended with %s",
                 span_status_name(span_status_from_wire((unsigned)st)));
}

Test(kv_session, a_blocked_call_is_canceled_from_another_thread, .timeout = 60)
{
    struct rig *g = rig_new(8);
    struct kv *a = kv_session_new(g->env);
    struct kv *b = kv_session_new(g->env);
    uint32_t v = 0;
    fill(a, 1);
    begin_rw(a);
    (void)get_u32(a, 0, KV_LOCK_UPDATE, &v);
    begin_rw(b);
    struct blocked x = {.kv = b};
    atomic_init(&x.status, -1);
    pthread_t t;
    pthread_create(&t, NULL, blocked_get, &x);
    b->ops->cancel(b); /* before or after it sleeps: both must do */
    pthread_join(t, NULL);
    assert_canceled(&x);
    b->ops->clear_cancel(b);
    b->ops->rollback(b);
    begin_rw(b);
    b->ops->set_deadline(b, deadline_in(g, 50 * MS_NS));
    atomic_store(&x.status, -1);
    blocked_get(&x);
    cr_assert_eq(atomic_load(&x.status), SPAN_DEADLINE);
    b->ops->set_deadline(b, 0);
    b->ops->rollback(b);
    begin_rw(b);
    b->ops->set_lock_timeout(b, 50 * MS_NS); /* long before the operation's own 10 s */
    uint64_t before = deadline_in(g, 0);
    atomic_store(&x.status, -1);
    blocked_get(&x);
    cr_assert_eq(atomic_load(&x.status), SPAN_DEADLINE);
    cr_assert_lt(deadline_in(g, 0) - before, 8 * SEC_NS);
    b->ops->set_lock_timeout(b, 0);
    b->ops->rollback(b);
    for (int i = 0; i < 30; i++) { /* races of cancel with the end of a call */
        begin_rw(b);
        pthread_create(&t, NULL, blocked_get, &x);
        for (volatile int k = 0; k < i * 20000; k++) {
        }
        b->ops->cancel(b);
        pthread_join(t, NULL);
        assert_canceled(&x);
        b->ops->clear_cancel(b);
        b->ops->rollback(b);
    }
    a->ops->free(a);
    b->ops->free(b);
    rig_free(g);
}

/* Calls that can not end, for no other node answers, each by another operation of the core. */

static span_status stuck_get(struct kv *kv)
{
    struct span_error err = {0};
    struct buf k = {0};
    struct buf val = {0};
    bool found;
    span_status st = kv->ops->get(kv, key_of(&k, 1024, 0), KV_LOCK_NONE, &found, &val, &err);
    buf_deinit(&k);
    buf_deinit(&val);
    return st;
}

static span_status stuck_scan(struct kv *kv)
{
    struct span_error err = {0};
    struct buf k = {0};
    struct kv_scan *scan = NULL;
    struct slice key;
    struct slice value;
    span_status st = kv->ops->scan_open(kv, key_of(&k, 1024, 0), slice_of(NULL, 0), false,
                                        KV_LOCK_NONE, 0, &scan, &err);
    if (st == SPAN_OK) {
        st = kv->ops->scan_next(scan, &key, &value, &err);
    }
    if (scan != NULL) {
        kv->ops->scan_close(scan);
    }
    buf_deinit(&k);
    return st;
}

static span_status stuck_alloc(struct kv *kv)
{
    struct span_error err = {0};
    uint64_t first = 0;
    return kv->ops->alloc_ids(kv, 7, 1, 0, &first, &err);
}

static span_status stuck_split(struct kv *kv)
{
    struct span_error err = {0};
    struct buf k = {0};
    span_status st = kv->ops->split_at(kv, key_of(&k, 1024, 77), &err);
    buf_deinit(&k);
    return st;
}

static span_status stuck_transfer(struct kv *kv)
{
    struct span_error err = {0};
    return kv->ops->transfer_leader(kv, 2, 2, &err);
}

static span_status stuck_status(struct kv *kv)
{
    struct span_error err = {0};
    enum kv_txn_outcome out;
    struct tt_ts ts;
    return kv->ops->txn_status(kv, "1-1-1@7400000400", &out, &ts, &err);
}

struct stuck {
    struct kv *kv;
    span_status (*call)(struct kv *kv);
    span_status status;
};

static void *stuck_main(void *arg)
{
    struct stuck *x = arg;
    x->status = x->call(x->kv);
    return NULL;
}

Test(kv_session, every_kind_of_call_is_canceled_from_another_thread, .timeout = 60)
{
    static const struct {
        const char *name;
        span_status (*call)(struct kv *kv);
    } calls[] = {
        {"get", stuck_get},     {"scan", stuck_scan},         {"alloc_ids", stuck_alloc},
        {"split", stuck_split}, {"transfer", stuck_transfer}, {"txn_status", stuck_status},
    };
    struct rig *g = rig_new(14);
    struct kv *kv = kv_session_new(g->env);
    pthread_mutex_lock(&g->lock);
    for (node_id n = 2; n <= 3; n++) {
        cluster_net(g->c)->cut[1][n] = true;
        cluster_net(g->c)->cut[n][1] = true;
    }
    cluster_run_for(g->c, SEC_NS); /* it leads nothing any more */
    pthread_mutex_unlock(&g->lock);
    for (int i = 0; i < 60; i++) {
        struct stuck x = {.kv = kv, .call = calls[i % 6].call};
        pthread_t t;
        pthread_create(&t, NULL, stuck_main, &x);
        for (volatile int k = 0; k < i % 10 * 50000; k++) {
        }
        kv->ops->cancel(kv);
        pthread_join(t, NULL);
        cr_assert_eq(x.status, SPAN_CANCELED, "%s ended with %s", calls[i % 6].name,
                     span_status_name(x.status));
        kv->ops->clear_cancel(kv);
    }
    kv->ops->free(kv);
    rig_free(g);
}

/* Rule B9. */
Test(kv_session, a_fenced_clock_refuses_at_once_with_its_reason, .timeout = 60)
{
    struct rig *g = rig_new(15);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    struct kv_txn_options rw = {0};
    struct kv_txn_options past = {.read_only = true, .mode = KV_READ_AT, .at = {1}};
    uint32_t v = 0;
    fill(kv, 2);
    begin_rw(kv);
    cr_assert(get_u32(kv, 1, KV_LOCK_UPDATE, &v));
    put_u32(kv, 1, 5);
    atomic_store(&g->fenced, true);
    cr_assert_eq(stuck_get(kv), SPAN_CLOCK);
    cr_assert_eq(stuck_scan(kv), SPAN_CLOCK);
    struct tt_ts ts;
    cr_assert_eq(kv->ops->commit(kv, &ts, &err), SPAN_CLOCK);
    cr_assert_str_eq(err.text, "this node's clock is fenced: it jumped");
    kv->ops->rollback(kv);
    cr_assert_eq(kv->ops->begin(kv, &rw, &err), SPAN_CLOCK);
    cr_assert_eq(kv->ops->begin(kv, &past, &err), SPAN_CLOCK);
    cr_assert_not(kv->ops->in_txn(kv));
    cr_assert_eq(stuck_alloc(kv), SPAN_CLOCK);
    cr_assert_eq(stuck_split(kv), SPAN_CLOCK);
    cr_assert_eq(stuck_status(kv), SPAN_CLOCK);
    OK(kv->ops->transfer_leader(kv, 2, 2, &err)); /* away from it, say */
    atomic_store(&g->fenced, false);
    begin_rw(kv);
    cr_assert(get_u32(kv, 1, KV_LOCK_UPDATE, &v) && v == 1, "rolled back, its locks are gone");
    commit(kv);
    kv->ops->free(kv);
    rig_free(g);
}

static void cut_off(struct rig *g, bool on)
{
    pthread_mutex_lock(&g->lock);
    for (node_id n = 2; n <= 3; n++) {
        cluster_net(g->c)->cut[1][n] = on;
        cluster_net(g->c)->cut[n][1] = on;
    }
    cluster_run_for(g->c, SEC_NS);
    pthread_mutex_unlock(&g->lock);
}

static void shows(struct kv *kv, enum kv_show what, const char *cells, const char *missing)
{
    struct span_error err = {0};
    struct kv_table t = {0};
    struct buf text = {0};
    OK(kv->ops->show(kv, what, &t, &err));
    for (size_t i = 0; i < t.rows * t.columns; i++) {
        buf_printf(&text, "%s%s", t.cells[i], i % t.columns == 1 ? ";" : " ");
    }
    cr_assert_str_eq(buf_cstr(&text), cells);
    cr_assert_str_eq(t.missing == NULL ? "" : t.missing, missing);
    buf_deinit(&text);
    kv_table_deinit(&t);
}

/* A lock that is not shown may be held all the same: who did not answer is told. */
Test(kv_session, show_tells_which_nodes_did_not_answer, .timeout = 60)
{
    struct rig *g = rig_new(18);
    struct kv *kv = kv_session_new(g->env);
    shows(kv, KV_SHOW_NODES, "1 here;2 here;3 here;", "");
    pthread_mutex_lock(&g->lock);
    cluster_net(g->c)->cut[3][1] = true;
    pthread_mutex_unlock(&g->lock);
    shows(kv, KV_SHOW_NODES, "1 here;2 here;3 unreachable;", "");
    shows(kv, KV_SHOW_CLOCKS, "1 here;2 here;3 unreachable;", "");
    shows(kv, KV_SHOW_LOCKS, "1 here;2 here;", "3");
    shows(kv, KV_SHOW_CLUSTER_SETTINGS, "1 here;", "");
    cut_off(g, true);
    shows(kv, KV_SHOW_TRANSACTIONS, "1 here;", "2, 3");
    /* A range of which nobody who answers has a replica is listed all the same. */
    shows(kv, KV_SHOW_RANGES, "1 here;2 no leader;", "2, 3");
    kv->ops->free(kv);
    rig_free(g);
}

/* What a call waited for is told: somebody's lock, or a range that nobody leads. */
Test(kv_session, a_wait_that_ends_names_the_range_and_what_it_lacked, .timeout = 60)
{
    struct rig *g = rig_new(16);
    struct kv *holder = kv_session_new(g->env);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    struct buf k = {0};
    struct buf val = {0};
    bool found;
    uint32_t v = 0;
    struct tt_ts ts;
    fill(kv, 1);
    begin_rw(holder);
    (void)get_u32(holder, 0, KV_LOCK_UPDATE, &v);
    begin_rw(kv);
    kv->ops->set_deadline(kv, deadline_in(g, 100 * MS_NS));
    cr_assert_eq(kv->ops->get(kv, key_of(&k, 1024, 0), KV_LOCK_UPDATE, &found, &val, &err),
                 SPAN_DEADLINE);
    cr_assert_str_eq(err.text, "deadline passed (range 2: waited for a lock until the deadline)");
    kv->ops->rollback(kv);
    kv->ops->set_deadline(kv, 0);
    OK(kv->ops->transfer_leader(kv, 2, 1, &err));
    holder->ops->rollback(holder);
    begin_rw(holder);
    (void)get_u32(holder, 0, KV_LOCK_UPDATE, &v);
    cut_off(g, true);
    kv->ops->set_deadline(kv, deadline_in(g, 100 * MS_NS));
    cr_assert_eq(kv->ops->get(kv, key_of(&k, 1024, 0), KV_LOCK_NONE, &found, &val, &err),
                 SPAN_UNAVAILABLE);
    cr_assert_str_eq(err.text, "range or node is not available (range 2: no leader answers; its "
                               "replicas are on nodes 1, 2, 3)");
    kv->ops->set_deadline(kv, deadline_in(g, 100 * MS_NS));
    cr_assert_eq(kv->ops->split_at(kv, key_of(&k, 1024, 5), &err), SPAN_UNAVAILABLE);
    kv->ops->set_deadline(kv, deadline_in(g, 100 * MS_NS));
    uint64_t first = 0;
    cr_assert_eq(kv->ops->alloc_ids(kv, 7, 1, 0, &first, &err), SPAN_UNAVAILABLE);
    cr_assert(strstr(err.text, "no automatic number") != NULL, "%s", err.text);
    kv->ops->set_deadline(kv, 0);
    cut_off(g, false);
    cr_assert(get_u32(kv, 0, KV_LOCK_NONE, &v), "a quorum again");
    put_u32(holder, 0, 7);
    cr_assert_eq(holder->ops->commit(holder, &ts, &err), SPAN_LOCKS_LOST, "%s", err.text);
    holder->ops->rollback(holder);
    buf_deinit(&k);
    buf_deinit(&val);
    kv->ops->free(kv);
    holder->ops->free(holder);
    rig_free(g);
}

Test(kv_session, numbers_are_given_once_and_lie_above_what_was_seen, .timeout = 60)
{
    struct rig *g = rig_new(9);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    uint64_t first = 0;
    OK(kv->ops->alloc_ids(kv, 7, 1, 0, &first, &err));
    cr_assert_eq(first, 1, "starts at 1");
    uint64_t last = first;
    for (int i = 0; i < 200; i++) {
        OK(kv->ops->alloc_ids(kv, 7, 13, 0, &first, &err));
        cr_assert(first > last);
        last = first + 12;
    }
    OK(kv->ops->alloc_ids(kv, 7, 1, 1000000, &first, &err));
    cr_assert_eq(first, 1000001);
    OK(kv->ops->alloc_ids(kv, 7, 5000, 0, &first, &err));
    cr_assert(first > 1000001);
    OK(kv->ops->alloc_ids(kv, 8, 1, 0, &first, &err));
    cr_assert_eq(first, 1, "another counter");
    cr_assert_eq(kv->ops->alloc_ids(kv, 8, 0, 0, &first, &err), SPAN_INVALID);
    kv->ops->free(kv);
    rig_free(g);
}

/* Rule E2. */
Test(kv_session, a_schema_change_refuses_whoever_planned_for_another_version, .timeout = 60)
{
    struct rig *g = rig_new(10);
    struct kv *ddl = kv_session_new(g->env);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    struct buf k = {0};
    struct buf k2 = {0};
    struct buf val = {0};
    bool found;
    uint32_t v = 0;
    split(ddl, 10);
    begin_rw(ddl);
    OK(ddl->ops->put_schema_version(ddl, 1024, 1, &err));
    commit(ddl);
    kv->ops->use_table(kv, 1024, 1);
    begin_rw(kv);
    put_u32(kv, 1, 1);
    put_u32(kv, 11, 11);
    commit(kv);
    /* A plan for version 2 is refused where 1 is in force, on both sides of the split. */
    kv->ops->use_table(kv, 1024, 2);
    cr_assert_eq(kv->ops->get(kv, key_of(&k, 1024, 11), KV_LOCK_NONE, &found, &val, &err),
                 SPAN_STALE_SCHEMA);
    kv->ops->rollback(kv);
    kv->ops->use_table(kv, 1024, 1);
    begin_rw(kv);
    (void)get_u32(kv, 1, KV_LOCK_SHARED, &v);
    kv->ops->rollback(kv);
    begin_rw(ddl);
    ddl->ops->use_table(ddl, 1024, 1);
    OK(ddl->ops->put_schema_version(ddl, 1024, 2, &err));
    OK(ddl->ops->delete_span(ddl, key_of(&k, 1024, 0), key_of(&k2, 1024, 100), &err));
    commit(ddl);
    kv->ops->use_table(kv, 1024, 1);
    begin_rw(kv);
    put_u32(kv, 12, 12);
    struct tt_ts ts;
    cr_assert_eq(kv->ops->commit(kv, &ts, &err), SPAN_STALE_SCHEMA);
    kv->ops->rollback(kv);
    kv->ops->use_table(kv, 1024, 2);
    cr_assert_not(get_u32(kv, 11, KV_LOCK_NONE, &v), "deleted with the change");
    buf_deinit(&k);
    buf_deinit(&k2);
    buf_deinit(&val);
    kv->ops->free(kv);
    ddl->ops->free(ddl);
    rig_free(g);
}

Test(kv_session, leaderships_move_on_request, .timeout = 60)
{
    struct rig *g = rig_new(11);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    uint32_t v = 0;
    fill(kv, 1);
    for (uint32_t node = 1; node <= 3; node++) {
        OK(kv->ops->transfer_leader(kv, 2, node, &err));
        OK(kv->ops->transfer_leader(kv, 2, node, &err));
        cr_assert(get_u32(kv, 0, KV_LOCK_NONE, &v));
    }
    cr_assert_eq(kv->ops->transfer_leader(kv, 99, 1, &err), SPAN_NOT_FOUND);
    cr_assert_eq(kv->ops->transfer_leader(kv, 2, 9, &err), SPAN_INVALID);
    kv->ops->free(kv);
    rig_free(g);
}

Test(kv_session, limits_are_clear_errors, .timeout = 60)
{
    struct rig *g = rig_new(12);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    struct tt_ts ts;
    uint8_t key[LIMIT_KEY_BYTES + 1] = {KEY_TABLE_PREFIX};
    cr_assert_eq(kv->ops->commit(kv, &ts, &err), SPAN_INVALID);
    cr_assert_eq(kv->ops->put(kv, slice_str("k"), slice_str("v"), &err), SPAN_INVALID);
    begin_rw(kv);
    struct kv_txn_options o = {0};
    cr_assert_eq(kv->ops->begin(kv, &o, &err), SPAN_INVALID);
    cr_assert_eq(kv->ops->put(kv, slice_of(key, sizeof key), slice_str("v"), &err), SPAN_TOO_LARGE);
    uint8_t *row = span_calloc(1, LIMIT_ROW_BYTES);
    struct buf k = {0};
    for (uint32_t i = 0; i < 5; i++) { /* more than one entry of the log may hold */
        OK(kv->ops->put(kv, key_of(&k, 1024, i), slice_of(row, LIMIT_ROW_BYTES), &err));
    }
    cr_assert_eq(kv->ops->commit(kv, &ts, &err), SPAN_TOO_LARGE);
    kv->ops->rollback(kv);
    uint32_t v;
    cr_assert_not(get_u32(kv, 0, KV_LOCK_NONE, &v));
    span_free(row);
    buf_deinit(&k);
    kv->ops->free(kv);
    rig_free(g);
}

/* What was only read counts, too: a participant logs its locks with the vote. */
Test(kv_session, locks_that_no_log_entry_can_hold_are_not_a_conflict, .timeout = 60)
{
    enum { N = 900, KEY = 3900 };
    struct rig *g = rig_new(17);
    struct kv *kv = kv_session_new(g->env);
    struct span_error err = {0};
    struct tt_ts ts;
    struct slice *keys = span_calloc(N, sizeof *keys);
    struct buf *bytes = span_calloc(N, sizeof *bytes);
    struct buf *values = span_calloc(N, sizeof *values);
    bool *found = span_calloc(N, sizeof *found);
    split(kv, 100);
    begin_rw(kv);
    for (uint32_t i = 0; i < N; i++) {
        (void)key_of(&bytes[i], 1024, 100 + i);
        while (bytes[i].size < KEY) {
            buf_append_byte(&bytes[i], 7);
        }
        keys[i] = buf_slice(&bytes[i]);
    }
    put_u32(kv, 1, 1); /* the first key: its range coordinates */
    OK(kv->ops->get_many(kv, keys, N, KV_LOCK_SHARED, found, values, &err));
    cr_assert_eq(kv->ops->commit(kv, &ts, &err), SPAN_TOO_LARGE, "%s", err.text);
    cr_assert(strstr(err.text, "its locks and writes in the range do not fit") != NULL, "%s",
              err.text);
    kv->ops->rollback(kv);
    begin_rw(kv);
    put_u32(kv, 1, 2);
    put_u32(kv, 100, 2);
    commit(kv); /* nothing of it is left behind */
    for (uint32_t i = 0; i < N; i++) {
        buf_deinit(&bytes[i]);
        buf_deinit(&values[i]);
    }
    span_free(keys);
    span_free(bytes);
    span_free(values);
    span_free(found);
    kv->ops->free(kv);
    rig_free(g);
}

struct teller {
    struct rig *g;
    unsigned n;
    unsigned done;
};

/* Transfers between ten rows, retried as a client would. */
static void *teller_main(void *arg)
{
    struct teller *t = arg;
    struct kv *kv = kv_session_new(t->g->env);
    struct rng r;
    rng_init(&r, t->n + 100);
    while (t->done < 60) {
        struct span_error err = {0};
        struct kv_txn_options o = {0};
        struct buf k[2] = {{0}, {0}};
        struct buf v[2] = {{0}, {0}};
        bool found;
        struct tt_ts ts;
        uint32_t rows[2] = {(uint32_t)rng_below(&r, 10), 0};
        rows[1] = (rows[0] + 1 + (uint32_t)rng_below(&r, 9)) % 10;
        span_status st = kv->ops->begin(kv, &o, &err);
        for (int i = 0; i < 2 && st == SPAN_OK; i++) {
            st =
                kv->ops->get(kv, key_of(&k[i], 1024, rows[i]), KV_LOCK_UPDATE, &found, &v[i], &err);
            if (st == SPAN_OK) {
                int32_t b;
                memcpy(&b, v[i].data, sizeof b);
                b += i == 0 ? -1 : 1;
                st = kv->ops->put(kv, buf_slice(&k[i]), slice_of(&b, sizeof b), &err);
            }
        }
        if (st == SPAN_OK) {
            st = kv->ops->commit(kv, &ts, &err);
        }
        if (st == SPAN_OK) {
            t->done++;
        } else {
            cr_assert_eq(span_status_kind(st), SPAN_KIND_RETRY, "%s", err.text);
            kv->ops->rollback(kv);
        }
        for (int i = 0; i < 2; i++) {
            buf_deinit(&k[i]);
            buf_deinit(&v[i]);
        }
    }
    kv->ops->free(kv);
    return NULL;
}

Test(kv_session, many_threads_lose_and_invent_nothing, .timeout = 180)
{
    struct rig *g = rig_new(13);
    struct kv *kv = kv_session_new(g->env);
    struct teller tellers[6];
    pthread_t threads[6];
    uint32_t v = 0;
    int64_t sum = 0;
    begin_rw(kv);
    for (uint32_t i = 0; i < 10; i++) {
        put_u32(kv, i, 100);
    }
    commit(kv);
    split(kv, 5);
    for (unsigned i = 0; i < 6; i++) {
        tellers[i] = (struct teller){.g = g, .n = i};
        pthread_create(&threads[i], NULL, teller_main, &tellers[i]);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
    }
    for (uint32_t i = 0; i < 10; i++) {
        cr_assert(get_u32(kv, i, KV_LOCK_NONE, &v));
        sum += (int32_t)v;
    }
    cr_assert_eq(sum, 1000);
    kv->ops->free(kv);
    rig_free(g);
}
