/* A session's key-value store: its transaction's state and write buffer live here, in the session's
 * thread; operations go to the gateway core through the worker's mailbox, and the thread sleeps on
 * a futex in the operation until it is done. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/planted.h"
#include "coordinator/kv_impl.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RETRY_AGE_NS (10 * SEC_NS) /* rule C7 */
#define SEQ_MASK     0x7fffffffU   /* the upper half is the gateway's own transactions' */

struct kv_env {
    struct kv_env_options opt;
    atomic_uint seq;
};

struct kv_env *kv_env_new(const struct kv_env_options *opt)
{
    struct kv_env *e = SPAN_NEW(struct kv_env);
    e->opt = *opt;
    atomic_init(&e->seq, (unsigned)opt->seed);
    return e;
}

void kv_env_free(struct kv_env *e)
{
    span_free(e);
}

static struct kv_ses *ses_of(struct kv *kv)
{
    return (struct kv_ses *)(void *)kv;
}

/* ---- operations ---- */

static void futex_wait(atomic_uint *word, unsigned value)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* On the core's thread. After the exchange the session may free the op: only its address is used
 * from then on. */
static void op_done(struct gateway_op *g)
{
    struct kv_op *op = LIST_ENTRY(g, struct kv_op, g);
    unsigned was = atomic_exchange(&op->state, KV_OP_DONE);
    if (was == KV_OP_WAITING) {
        futex_wake(&op->state);
    } else if (was == KV_OP_ABANDONED) {
        kv_op_free(op);
    }
}

struct kv_op *kv_op_new(void)
{
    struct kv_op *op = SPAN_NEW(struct kv_op);
    op->g.done = op_done;
    txn_read_init(&op->g.read);
    atomic_init(&op->state, KV_OP_DONE);
    return op;
}

void kv_op_free(struct kv_op *op)
{
    if (op == NULL) {
        return;
    }
    txn_read_deinit(&op->g.read);
    buf_deinit(&op->start);
    buf_deinit(&op->end);
    span_free(op->schema);
    span_free(op);
}

span_status kv_op_post(struct kv_ses *s, struct kv_op *op)
{
    op->g.status = SPAN_OK;
    op->g.deadline_ns = s->deadline_ns;
    atomic_store(&op->state, KV_OP_PENDING);
    span_status st = s->env->opt.post(s->env->opt.post_ctx, &op->g);
    if (st != SPAN_OK) {
        atomic_store(&op->state, KV_OP_DONE);
        op->g.status = span_fail(&op->g.err, SPAN_CLOSED, "the node is shutting down");
        op->g.read.page_count = 0;
    }
    return st;
}

bool kv_op_is_done(struct kv_op *op)
{
    return atomic_load(&op->state) == KV_OP_DONE;
}

void kv_op_abandon(struct kv_op *op)
{
    if (op != NULL && atomic_exchange(&op->state, KV_OP_ABANDONED) == KV_OP_DONE) {
        kv_op_free(op);
    }
}

static void set_waiting(struct kv_ses *s, struct kv_op *op)
{
    pthread_mutex_lock(&s->lock);
    s->waiting = op;
    pthread_mutex_unlock(&s->lock);
}

/* True when done; false when woken by cancel. */
static bool sleep_on(struct kv_ses *s, struct kv_op *op, bool cancelable)
{
    for (;;) {
        unsigned pending = KV_OP_PENDING;
        if (!atomic_compare_exchange_strong(&op->state, &pending, KV_OP_WAITING) &&
            pending == KV_OP_DONE) {
            return true;
        }
        if (cancelable && atomic_load(&s->canceled)) {
            return false;
        }
        futex_wait(&op->state, KV_OP_WAITING);
    }
}

/* Tells the core to stop the op, and waits for both: a cancel that arrives late must not meet the
 * next operation. */
static void stop_op(struct kv_ses *s, struct kv_op *op)
{
    struct kv_op *c = kv_op_new();
    c->g.kind = GATEWAY_CANCEL;
    c->g.target = &op->g;
    if (kv_op_post(s, c) == SPAN_OK) {
        (void)sleep_on(s, c, false);
    }
    kv_op_free(c);
    (void)sleep_on(s, op, false);
}

void kv_op_wait(struct kv_ses *s, struct kv_op *op)
{
    if (kv_op_is_done(op)) {
        return;
    }
    bool cancelable = op->g.kind != GATEWAY_COMMIT; /* a commit's outcome has to be known */
    set_waiting(s, op);
    bool done = sleep_on(s, op, cancelable);
    set_waiting(s, NULL);
    if (!done) {
        stop_op(s, op);
    }
}

static span_status run(struct kv_ses *s, struct kv_op *op)
{
    if (op->g.kind != GATEWAY_COMMIT && atomic_load(&s->canceled)) {
        op->g.read.page_count = 0;
        op->g.status = span_fail(&op->g.err, SPAN_CANCELED, "canceled");
        return SPAN_CANCELED;
    }
    if (kv_op_post(s, op) == SPAN_OK) {
        kv_op_wait(s, op);
    }
    return op->g.status;
}

static void kv_cancel(struct kv *kv)
{
    struct kv_ses *s = ses_of(kv);
    atomic_store(&s->canceled, true);
    pthread_mutex_lock(&s->lock);
    if (s->waiting != NULL) {
        unsigned waiting = KV_OP_WAITING;
        if (atomic_compare_exchange_strong(&s->waiting->state, &waiting, KV_OP_PENDING)) {
            futex_wake(&s->waiting->state);
        }
    }
    pthread_mutex_unlock(&s->lock);
}

static void kv_clear_cancel(struct kv *kv)
{
    atomic_store(&ses_of(kv)->canceled, false);
}

static void kv_set_deadline(struct kv *kv, uint64_t mono_ns)
{
    ses_of(kv)->deadline_ns = mono_ns;
}

static void kv_set_lock_timeout(struct kv *kv, uint64_t ns)
{
    ses_of(kv)->lock_timeout_ns = ns;
}

/* ---- the transaction ---- */

static void now_of(const struct kv_ses *s, struct tt_now *now)
{
    s->env->opt.now(s->env->opt.now_ctx, now);
}

static void txn_clear(struct kv_ses *s)
{
    s->kind = KV_TXN_NONE;
    s->ref = (struct txn_ref){0};
    s->in_core = false;
    s->failed = SPAN_OK;
    write_buffer_clear(&s->writes);
    buf_clear(&s->anchor);
    buf_clear(&s->id_text);
    s->seen = tt_ts_of(0);
    s->read_ts = tt_ts_of(0);
    s->use_count = 0;
    s->put_count = 0;
}

static span_status fail_clock(const struct kv_ses *s, struct span_error *err, const char *state)
{
    char reason[200] = "";
    if (s->env->opt.clock_reason != NULL) {
        s->env->opt.clock_reason(s->env->opt.now_ctx, reason, sizeof reason);
    }
    return span_fail(err, SPAN_CLOCK, "this node's clock is %s%s%s", state,
                     reason[0] == '\0' ? "" : ": ", reason);
}

/* Rule B9: a node whose clock is fenced gives no answer that needs a clock. Said before anything is
 * done, for what comes back from the ranges could not be told either (rule D0). */
static span_status refuse_fenced(const struct kv_ses *s, struct span_error *err)
{
    struct tt_now now;
    now_of(s, &now);
    return now.state >= CLOCK_FENCED ? fail_clock(s, err, "fenced") : SPAN_OK;
}

/* Not waited for: what the session does next reaches the core after it. */
static void post_rollback(struct kv_ses *s)
{
    struct kv_op *op = kv_op_new();
    op->g.kind = GATEWAY_ROLLBACK;
    op->g.txn = s->ref;
    atomic_store(&op->state, KV_OP_ABANDONED);
    op->g.deadline_ns = 0;
    if (s->env->opt.post(s->env->opt.post_ctx, &op->g) != SPAN_OK) {
        kv_op_free(op);
    }
}

static void kv_rollback(struct kv *kv)
{
    struct kv_ses *s = ses_of(kv);
    if (s->in_core) {
        post_rollback(s);
    }
    txn_clear(s);
}

static span_status kv_begin(struct kv *kv, const struct kv_txn_options *opt, struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    if (s->kind != KV_TXN_NONE) {
        if (s->failed == SPAN_OK) {
            return span_fail(err, SPAN_INVALID, "a transaction is open already");
        }
        kv_rollback(kv);
    }
    span_status st = refuse_fenced(s, err);
    if (st != SPAN_OK) {
        return st;
    }
    s->kind = opt->read_only ? KV_TXN_READ_ONLY : KV_TXN_READ_WRITE;
    s->opt = *opt;
    if (opt->read_only && opt->mode == KV_READ_AT) {
        s->read_ts = opt->at;
        if (tt_is_none(opt->at)) {
            s->kind = KV_TXN_NONE;
            return span_fail(err, SPAN_INVALID, "AS OF needs a timestamp");
        }
    }
    return SPAN_OK;
}

/* The id is made at the first lock or write: a transaction that does neither has none. */
static void ensure_id(struct kv_ses *s)
{
    if (!txn_id_is_none(&s->ref.id)) {
        return;
    }
    struct tt_now now;
    now_of(s, &now);
    s->ref.id = (struct txn_id){
        .begin_ns = now.tt.latest.ns,
        .node = s->env->opt.node,
        .seq = atomic_fetch_add_explicit(&s->env->seq, 1, memory_order_relaxed) & SEQ_MASK,
    };
    bool retry = !txn_id_is_none(&s->retry_age) && now.mono_ns < s->retry_until_ns;
    s->ref.age = retry ? s->retry_age : s->ref.id;
}

static void note_failure(struct kv_ses *s, span_status st, const struct span_error *err)
{
    if (s->kind != KV_TXN_READ_WRITE || s->failed != SPAN_OK ||
        span_status_kind(st) != SPAN_KIND_RETRY) {
        return;
    }
    s->failed = st;
    s->fail_err = *err;
    if (!txn_id_is_none(&s->ref.age)) { /* rule C7 */
        struct tt_now now;
        now_of(s, &now);
        s->retry_age = s->ref.age;
        s->retry_until_ns = now.mono_ns + RETRY_AGE_NS;
    }
}

static span_status refuse_failed(const struct kv_ses *s, struct span_error *err)
{
    if (err != NULL) {
        *err = s->fail_err;
    }
    return s->failed;
}

/* Rule E1: the range of the first key locked or written is the coordinator. Descriptors read from
 * system tables do not count, or range 1 would be in every transaction. */
static void fix_anchor(struct kv_ses *s, struct slice key, bool exclusive)
{
    if (s->anchor.size > 0 || s->opt.autocommit || (key.size > 0 && key.data[0] == 0)) {
        return;
    }
    uint32_t table = 0;
    for (size_t i = 1; i < 5 && i < key.size; i++) {
        table = table << 8 | key.data[i];
    }
    if (!exclusive && (key.size < 5 || table < KEY_USER_TABLE_MIN)) {
        return;
    }
    if (key.size == 0) {
        buf_append_byte(&s->anchor, KEY_TABLE_PREFIX);
    } else {
        buf_set(&s->anchor, key);
    }
}

static const char *kv_txn_id(struct kv *kv)
{
    struct kv_ses *s = ses_of(kv);
    if (s->anchor.size == 0 || txn_id_is_none(&s->ref.id)) {
        return "";
    }
    if (s->id_text.size == 0) {
        char id[48];
        txn_id_format(&s->ref.id, id);
        buf_append_str(&s->id_text, id);
        buf_append_byte(&s->id_text, '@');
        for (size_t i = 0; i < s->anchor.size; i++) {
            buf_printf(&s->id_text, "%02x", s->anchor.data[i]);
        }
    }
    return buf_cstr(&s->id_text);
}

static bool kv_in_txn(struct kv *kv)
{
    return ses_of(kv)->kind != KV_TXN_NONE;
}

static struct tt_ts kv_read_ts(struct kv *kv)
{
    return ses_of(kv)->read_ts;
}

static struct tt_ts kv_now_latest(struct kv *kv)
{
    struct tt_now now;
    now_of(ses_of(kv), &now);
    return now.tt.latest;
}

static struct tt_ts kv_not_before(struct kv *kv)
{
    return ses_of(kv)->not_before;
}

static void kv_clear_not_before(struct kv *kv)
{
    ses_of(kv)->not_before = tt_ts_of(0);
}

/* ---- schema ---- */

static void set_version(struct schema_use **list, size_t *count, size_t *cap, uint32_t table,
                        uint64_t version)
{
    for (size_t i = 0; i < *count; i++) {
        if ((*list)[i].table_id == table) {
            (*list)[i].version = version;
            return;
        }
    }
    if (*count == *cap) {
        *cap = *cap == 0 ? 8 : *cap * 2;
        *list = span_realloc(*list, *cap * sizeof **list);
    }
    (*list)[(*count)++] = (struct schema_use){table, version};
}

static void kv_use_table(struct kv *kv, uint32_t table_id, uint64_t version)
{
    struct kv_ses *s = ses_of(kv);
    set_version(&s->uses, &s->use_count, &s->use_cap, table_id, version);
}

static span_status kv_put_schema_version(struct kv *kv, uint32_t table_id, uint64_t version,
                                         struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    if (s->kind != KV_TXN_READ_WRITE) {
        return span_fail(err, SPAN_INVALID, "a schema change needs a read-write transaction");
    }
    ensure_id(s);
    set_version(&s->puts, &s->put_count, &s->put_cap, table_id, version);
    return SPAN_OK;
}

/* Versions to rely on, but for those that this transaction itself brings into force: they are not
 * yet. */
static size_t fill_schema(const struct kv_ses *s, struct schema_use *out)
{
    size_t n = 0;
    for (size_t i = 0; i < s->use_count; i++) {
        bool own = false;
        for (size_t k = 0; k < s->put_count; k++) {
            own = own || (s->puts[k].table_id == s->uses[i].table_id &&
                          s->puts[k].version == s->uses[i].version);
        }
        if (!own) {
            out[n++] = s->uses[i];
        }
    }
    return n;
}

static void op_schema(const struct kv_ses *s, struct kv_op *op)
{
    if (op->schema_cap < s->use_count) {
        op->schema_cap = s->use_count;
        op->schema = span_realloc(op->schema, op->schema_cap * sizeof *op->schema);
    }
    op->g.read.schema = op->schema;
    op->g.read.schema_count = op->schema == NULL ? 0 : fill_schema(s, op->schema);
}

/* ---- reads ---- */

/* Timestamp of a lock-free read. None: the core chooses it (bounded staleness). */
static span_status choose_ts(struct kv_ses *s, struct txn_read *r, struct span_error *err)
{
    struct tt_now now;
    r->mode = KV_READ_STRONG;
    if (s->kind == KV_TXN_READ_ONLY) {
        r->mode = s->opt.mode;
        r->staleness_ns = s->opt.staleness_ns;
        r->read_ts = s->read_ts;
        if (!tt_is_none(s->read_ts) || r->mode == KV_READ_MAX_STALENESS) {
            return SPAN_OK;
        }
    }
    now_of(s, &now);
    if (now.state >= CLOCK_STALE_READS_ONLY) {
        return fail_clock(s, err, "outside its bound");
    }
    r->read_ts = now.tt.latest; /* after the statement came (rule A3) */
    if (s->kind == KV_TXN_READ_ONLY) {
        s->read_ts = r->read_ts;
    }
    return SPAN_OK;
}

span_status kv_read_begin(struct kv_ses *s, struct kv_op *op, enum kv_lock lock,
                          struct slice first_key, struct span_error *err)
{
    struct txn_read *r = &op->g.read;
    if (s->failed != SPAN_OK) {
        return refuse_failed(s, err);
    }
    span_status st = refuse_fenced(s, err);
    if (st != SPAN_OK) {
        return st;
    }
    op->g.kind = GATEWAY_READ;
    op->g.txn = (struct txn_ref){0};
    r->read_ts = tt_ts_of(0);
    op_schema(s, op);
    if (s->kind != KV_TXN_READ_WRITE || lock == KV_LOCK_NONE) {
        r->lock = READ_LOCK_NONE;
        return choose_ts(s, r, err);
    }
    ensure_id(s);
    fix_anchor(s, first_key, lock == KV_LOCK_UPDATE);
    s->in_core = true;
    op->g.txn = s->ref;
    r->lock_wait_ns = s->lock_timeout_ns;
    r->lock = lock == KV_LOCK_UPDATE ? READ_LOCK_UPDATE : READ_LOCK_SHARED;
    return SPAN_OK;
}

span_status kv_read_end(struct kv_ses *s, struct kv_op *op, struct span_error *err)
{
    const struct txn_read *r = &op->g.read;
    s->seen = tt_max(s->seen, r->seen);
    s->not_before = tt_max(s->not_before, r->seen);
    if (op->g.status != SPAN_OK) {
        note_failure(s, op->g.status, &op->g.err);
        if (err != NULL) {
            *err = op->g.err;
        }
        return op->g.status;
    }
    if (s->kind == KV_TXN_READ_ONLY && tt_is_none(s->read_ts)) {
        s->read_ts = r->read_ts;
    }
    return SPAN_OK;
}

static void deliver(const struct txn_read *r, const size_t *index, bool *found, struct buf *values)
{
    for (size_t p = 0; p < r->page_count; p++) {
        const struct read_page *g = &r->pages[p];
        for (size_t i = 0; i < g->count; i++) {
            size_t at = index == NULL ? g->rows[i].item : index[g->rows[i].item];
            found[at] = true;
            buf_set(&values[at], read_row_value(g, &g->rows[i]));
        }
    }
}

/* Reads n keys that the write buffer does not have; index maps them to the caller's. */
static span_status read_keys(struct kv_ses *s, const struct slice *keys, const size_t *index,
                             size_t n, enum kv_lock lock, bool *found, struct buf *values,
                             struct span_error *err)
{
    struct txn_read *r = &s->op->g.read;
    r->keys = keys;
    r->key_count = n;
    span_status st = kv_read_begin(s, s->op, lock, keys[0], err);
    if (st != SPAN_OK) {
        return st;
    }
    (void)run(s, s->op);
    st = kv_read_end(s, s->op, err);
    if (st == SPAN_OK) {
        deliver(r, index, found, values);
    }
    return st;
}

static bool own_write(const struct kv_ses *s, struct slice key, bool *found, struct buf *value)
{
    struct txn_write w;
    if (s->writes.count == 0 || !write_buffer_get(&s->writes, key, &w)) {
        return false;
    }
    *found = !w.tombstone;
    if (!w.tombstone) {
        buf_set(value, w.value);
    }
    return true;
}

static span_status kv_get(struct kv *kv, struct slice key, enum kv_lock lock, bool *found,
                          struct buf *value, struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    *found = false;
    buf_clear(value);
    if (own_write(s, key, found, value)) {
        return s->failed == SPAN_OK ? SPAN_OK : refuse_failed(s, err);
    }
    return read_keys(s, &key, NULL, 1, lock, found, value, err);
}

static span_status kv_get_many(struct kv *kv, const struct slice *keys, size_t n, enum kv_lock lock,
                               bool *found, struct buf *values, struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    for (size_t i = 0; i < n; i++) {
        found[i] = false;
        buf_clear(&values[i]);
    }
    if (s->failed != SPAN_OK) {
        return refuse_failed(s, err);
    }
    if (n == 0) {
        return SPAN_OK;
    }
    if (s->writes.count == 0) {
        return read_keys(s, keys, NULL, n, lock, found, values, err);
    }
    if (s->key_cap < n) {
        s->key_cap = n;
        s->keys = span_realloc(s->keys, n * sizeof *s->keys);
        s->key_index = span_realloc(s->key_index, n * sizeof *s->key_index);
    }
    size_t left = 0;
    for (size_t i = 0; i < n; i++) {
        if (!own_write(s, keys[i], &found[i], &values[i])) {
            s->keys[left] = keys[i];
            s->key_index[left++] = i;
        }
    }
    return left == 0 ? SPAN_OK
                     : read_keys(s, s->keys, s->key_index, left, lock, found, values, err);
}

/* ---- writes ---- */

static span_status write_key(struct kv *kv, struct slice key, const struct slice *value,
                             struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    if (s->kind != KV_TXN_READ_WRITE) {
        return span_fail(err, SPAN_INVALID, "a write needs a read-write transaction");
    }
    if (s->failed != SPAN_OK) {
        return refuse_failed(s, err);
    }
    ensure_id(s);
    fix_anchor(s, key, true);
    span_status st = value == NULL ? write_buffer_del(&s->writes, key)
                                   : write_buffer_put(&s->writes, key, *value);
    if (st == SPAN_OK) {
        return SPAN_OK;
    }
    if (key.size > LIMIT_KEY_BYTES || key.size == 0) {
        return span_fail(err, st, "a key of %zu bytes, the limit is %llu", key.size,
                         LIMIT_KEY_BYTES);
    }
    if (value != NULL && value->size > LIMIT_ROW_BYTES) {
        return span_fail(err, st, "a row of %zu bytes, the limit is %llu", value->size,
                         LIMIT_ROW_BYTES);
    }
    return span_fail(err, st, "the transaction's writes are more than %llu bytes",
                     LIMIT_TXN_WRITE_BYTES);
}

static span_status kv_put(struct kv *kv, struct slice key, struct slice value,
                          struct span_error *err)
{
    return write_key(kv, key, &value, err);
}

static span_status kv_del(struct kv *kv, struct slice key, struct span_error *err)
{
    return write_key(kv, key, NULL, err);
}

static struct kv_mark kv_mark(struct kv *kv)
{
    return (struct kv_mark){write_buffer_mark(&ses_of(kv)->writes)};
}

static void kv_rollback_to(struct kv *kv, struct kv_mark mark)
{
    write_buffer_rollback_to(&ses_of(kv)->writes, mark.n);
}

static span_status kv_delete_span(struct kv *kv, struct slice start, struct slice end,
                                  struct span_error *err)
{
    struct kv_scan *scan = NULL;
    struct slice key;
    struct slice value;
    span_status st = kv_scan_open(kv, start, end, false, KV_LOCK_UPDATE, 0, &scan, err);
    while (st == SPAN_OK) {
        st = kv_scan_next(scan, &key, &value, err);
        if (st == SPAN_OK) {
            st = kv_del(kv, key, err);
        }
    }
    if (scan != NULL) {
        kv_scan_close(scan);
    }
    return st == SPAN_NOT_FOUND ? SPAN_OK : st;
}

/* ---- commit ---- */

static span_status commit_in_core(struct kv_ses *s, struct tt_ts *ts, struct span_error *err)
{
    struct kv_op *op = s->op;
    if (s->list_cap < s->writes.count) {
        s->list_cap = s->writes.count;
        s->list = span_realloc(s->list, s->list_cap * sizeof *s->list);
    }
    write_buffer_list(&s->writes, s->list);
    op_schema(s, op);
    op->g.kind = GATEWAY_COMMIT;
    op->g.txn = s->ref;
    op->g.commit = (struct txn_commit){
        .writes = s->list,
        .write_count = s->writes.count,
        .schema = op->g.read.schema,
        .schema_count = op->g.read.schema_count,
        .schema_puts = s->puts,
        .schema_put_count = s->put_count,
        .anchor = s->opt.autocommit ? slice_of(NULL, 0) : buf_slice(&s->anchor),
        .seen = s->seen,
    };
    span_status st = run(s, op);
    s->in_core = false;
    s->not_before = tt_max(s->not_before, tt_max(op->g.commit.ts, op->g.commit.seen_out));
    if (st == SPAN_OK) {
        *ts = op->g.commit.ts;
        return SPAN_OK;
    }
    note_failure(s, st, &op->g.err);
    if (s->failed == SPAN_OK) { /* over all the same */
        s->failed = st;
        s->fail_err = op->g.err;
    }
    if (err != NULL) {
        *err = op->g.err;
    }
    return st;
}

static span_status kv_commit(struct kv *kv, struct tt_ts *commit_ts, struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    struct tt_ts ts = tt_ts_of(0);
    span_status st = SPAN_OK;
    if (s->kind == KV_TXN_NONE) {
        return span_fail(err, SPAN_INVALID, "no transaction is open");
    }
    if (s->failed != SPAN_OK) {
        return refuse_failed(s, err);
    }
    if (s->in_core || s->writes.count > 0 || s->put_count > 0) {
        st = refuse_fenced(s, err);
        st = st == SPAN_OK ? commit_in_core(s, &ts, err) : st;
    }
    if (st == SPAN_OK) {
        if (s->kind == KV_TXN_READ_WRITE) {
            s->retry_age = (struct txn_id){0};
        }
        txn_clear(s);
    }
    if (commit_ts != NULL) {
        *commit_ts = ts;
    }
    return st;
}

/* ---- administration ---- */

static span_status admin(struct kv_ses *s, enum gateway_op_kind kind, struct span_error *err)
{
    s->op->g.kind = kind;
    s->op->g.txn = (struct txn_ref){0};
    span_status st = run(s, s->op);
    if (st != SPAN_OK && err != NULL) {
        *err = s->op->g.err;
    }
    return st;
}

/* SHOW, SET and a hand-over are for a node that is out of order, too. */
static span_status timed_admin(struct kv_ses *s, enum gateway_op_kind kind, struct span_error *err)
{
    span_status st = refuse_fenced(s, err);
    return st == SPAN_OK ? admin(s, kind, err) : st;
}

static span_status kv_alloc_ids(struct kv *kv, uint32_t counter, uint64_t count, uint64_t seen_max,
                                uint64_t *first, struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    s->op->g.u.alloc.counter = counter;
    s->op->g.u.alloc.count = count;
    s->op->g.u.alloc.seen_max = seen_max;
    span_status st = timed_admin(s, GATEWAY_ALLOC, err);
    *first = st == SPAN_OK ? s->op->g.u.alloc.first : 0;
    return st;
}

static span_status kv_split_at(struct kv *kv, struct slice key, struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    s->op->g.u.split.key = key;
    return timed_admin(s, GATEWAY_SPLIT, err);
}

static span_status kv_transfer_leader(struct kv *kv, uint64_t range, uint32_t node,
                                      struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    s->op->g.u.transfer.range = range;
    s->op->g.u.transfer.node = node;
    return admin(s, GATEWAY_TRANSFER, err);
}

static span_status kv_move_replica(struct kv *kv, uint64_t range, uint32_t add, uint32_t remove,
                                   struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    s->op->g.u.move.range = range;
    s->op->g.u.move.add = add;
    s->op->g.u.move.remove = remove;
    s->op->g.u.move.wish = true;
    return admin(s, GATEWAY_MOVE, err);
}

static span_status kv_merge_ranges(struct kv *kv, uint64_t left, uint64_t right,
                                   struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    s->op->g.u.merge.left = left;
    s->op->g.u.merge.right = right;
    return timed_admin(s, GATEWAY_MERGE, err);
}

static span_status kv_show(struct kv *kv, enum kv_show what, struct kv_table *out,
                           struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    memset(out, 0, sizeof *out);
    s->op->g.u.show.what = what;
    memset(&s->op->g.u.show.table, 0, sizeof s->op->g.u.show.table);
    span_status st = admin(s, GATEWAY_SHOW, err);
    if (st == SPAN_OK) {
        *out = s->op->g.u.show.table;
    }
    return st;
}

static span_status kv_set_cluster(struct kv *kv, const char *name, const char *value,
                                  struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    s->op->g.u.set.name = name;
    s->op->g.u.set.value = value;
    return admin(s, GATEWAY_SET, err);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* "<id>@<hex of the anchor key>" */
static bool parse_public_id(const char *text, struct txn_id *id, struct buf *anchor)
{
    const char *at = strchr(text, '@');
    char head[48];
    if (at == NULL || (size_t)(at - text) >= sizeof head) {
        return false;
    }
    memcpy(head, text, (size_t)(at - text));
    head[at - text] = '\0';
    size_t digits = strlen(at + 1);
    if (!txn_id_parse(head, id) || digits == 0 || digits % 2 != 0 || digits > 2 * LIMIT_KEY_BYTES) {
        return false;
    }
    for (const char *p = at + 1; *p != '\0'; p += 2) {
        int hi = hex_digit(p[0]);
        int lo = hex_digit(p[1]);
        if (hi < 0 || lo < 0) {
            return false;
        }
        buf_append_byte(anchor, (uint8_t)(hi * 16 + lo));
    }
    return anchor->data[0] != 0;
}

static span_status kv_txn_status(struct kv *kv, const char *id, enum kv_txn_outcome *out,
                                 struct tt_ts *ts, struct span_error *err)
{
    struct kv_ses *s = ses_of(kv);
    struct buf anchor = {0};
    *ts = tt_ts_of(0);
    if (!parse_public_id(id, &s->op->g.u.status.txn, &anchor)) {
        buf_deinit(&anchor);
        return span_fail(err, SPAN_INVALID, "not a transaction id: %.200s", id);
    }
    s->op->g.u.status.anchor = buf_slice(&anchor);
    s->op->g.u.status.ts = tt_ts_of(0);
    span_status st = timed_admin(s, GATEWAY_STATUS, err);
    if (st == SPAN_OK) {
        *out = s->op->g.u.status.outcome;
        *ts = s->op->g.u.status.ts;
        /* Rule D0: an answer like any other. */
        s->not_before = PLANTED(STATUS_EARLY) ? s->not_before : tt_max(s->not_before, *ts);
    }
    buf_deinit(&anchor);
    return st;
}

/* ---- life ---- */

static void kv_free(struct kv *kv)
{
    struct kv_ses *s = ses_of(kv);
    kv_rollback(kv);
    kv_op_free(s->op);
    write_buffer_deinit(&s->writes);
    buf_deinit(&s->anchor);
    buf_deinit(&s->id_text);
    kv_spares_free(s);
    span_free(s->uses);
    span_free(s->puts);
    span_free(s->list);
    span_free(s->keys);
    span_free(s->key_index);
    pthread_mutex_destroy(&s->lock);
    span_free(s);
}

static const struct kv_ops session_ops = {
    .begin = kv_begin,
    .get = kv_get,
    .get_many = kv_get_many,
    .scan_open = kv_scan_open,
    .scan_next = kv_scan_next,
    .scan_close = kv_scan_close,
    .put = kv_put,
    .del = kv_del,
    .mark = kv_mark,
    .rollback_to = kv_rollback_to,
    .commit = kv_commit,
    .rollback = kv_rollback,
    .use_table = kv_use_table,
    .put_schema_version = kv_put_schema_version,
    .delete_span = kv_delete_span,
    .alloc_ids = kv_alloc_ids,
    .not_before = kv_not_before,
    .clear_not_before = kv_clear_not_before,
    .txn_id = kv_txn_id,
    .in_txn = kv_in_txn,
    .read_ts = kv_read_ts,
    .now_latest = kv_now_latest,
    .set_deadline = kv_set_deadline,
    .set_lock_timeout = kv_set_lock_timeout,
    .cancel = kv_cancel,
    .clear_cancel = kv_clear_cancel,
    .split_at = kv_split_at,
    .transfer_leader = kv_transfer_leader,
    .move_replica = kv_move_replica,
    .merge_ranges = kv_merge_ranges,
    .show = kv_show,
    .txn_status = kv_txn_status,
    .set_cluster = kv_set_cluster,
    .free = kv_free,
};

struct kv *kv_session_new(struct kv_env *env)
{
    struct kv_ses *s = SPAN_NEW(struct kv_ses);
    s->kv.ops = &session_ops;
    s->env = env;
    s->op = kv_op_new();
    pthread_mutex_init(&s->lock, NULL);
    atomic_init(&s->canceled, false);
    write_buffer_init(&s->writes);
    return &s->kv;
}
