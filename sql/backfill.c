/* CREATE INDEX on a table with rows: building, backfill, public; each step is a transaction of its
 * own.
 *
 * While the index is building every DML statement on the table writes its entries and, if it is
 * unique, checks them (the schema version makes sure of that, rule E2), so what the backfill has
 * passed stays right. The backfill locks the rows of a batch S while it writes their entries: no
 * row changes in between. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/ddl_impl.h"
#include "sql/index.h"
#include "sql/session_impl.h"

#include <stdio.h>
#include <time.h>

#define BATCH_ROWS    500
#define STEP_TRIES    20
#define BLOCK_BATCHES 10 /* of a table whose index is built inside a block */

struct backfill {
    struct sql_session *s;
    struct table_desc *d;
    const struct table_index *ix;
    struct buf from; /* first key not yet indexed */
    bool done;
};

static bool violation(struct backfill *b)
{
    struct sql_error *e = &b->s->err;
    struct buf cols = {0};
    for (size_t i = 0; i < b->ix->count; i++) {
        buf_printf(&cols, "%s%s.%s", i == 0 ? "" : ", ", b->d->name,
                   b->d->columns[b->ix->columns[i]].name);
    }
    sql_error_set(e, "23505", "UNIQUE constraint failed: %s", buf_cstr(&cols));
    snprintf(e->constraint, sizeof e->constraint, "%.255s", b->ix->name);
    snprintf(e->table, sizeof e->table, "%.255s", b->d->name);
    buf_deinit(&cols);
    return false;
}

static bool add_entry(struct backfill *b, struct slice row_key, struct slice row)
{
    struct kv *kv = b->s->kv;
    struct span_error err = {0};
    struct sql_value *v = span_calloc(b->d->column_count + 1, sizeof *v);
    struct buf key = {0};
    struct buf value = {0};
    struct buf other = {0};
    struct buf scratch = {0};
    int64_t rowid = 0;
    bool ok = true;
    span_status st = row_decode(row, v, b->d->column_count);
    if (b->d->pk != PK_COLUMNS) {
        uint32_t table = 0;
        uint16_t index = 0;
        struct slice rest;
        struct sql_value r;
        if (key_parse_prefix(row_key, &table, &index, &rest) &&
            key_decode(&rest, false, &r, &scratch)) {
            rowid = r.i;
        }
    }
    if (st == SPAN_OK) {
        index_entry_key(b->d, b->ix, v, rowid, &key);
        index_entry_value(b->d, b->ix, v, rowid, &value);
        if (key.size > LIMIT_KEY_BYTES) {
            index_key_too_large(&b->s->err, b->d, b->ix, key.size);
            ok = false;
        }
    }
    if (ok && st == SPAN_OK) {
        bool found = false;
        st = kv->ops->get(kv, buf_slice(&key), KV_LOCK_UPDATE, &found, &scratch, &err);
        if (st == SPAN_OK && found) {
            st = index_entry_row_key(b->d, b->ix, buf_slice(&scratch), &other);
            if (st == SPAN_OK && !slice_eq(buf_slice(&other), row_key)) {
                ok = violation(b);
            }
        }
    }
    if (ok && st == SPAN_OK) {
        st = kv->ops->put(kv, buf_slice(&key), buf_slice(&value), &err);
    }
    if (ok && st != SPAN_OK) {
        ok = session_fail(b->s, st, &err);
    }
    buf_deinit(&key);
    buf_deinit(&value);
    buf_deinit(&other);
    buf_deinit(&scratch);
    span_free(v);
    return ok;
}

/* One batch inside an open transaction; next: where to go on. */
static bool fill_batch(struct backfill *b, struct buf *next, bool *done)
{
    struct kv *kv = b->s->kv;
    struct span_error err = {0};
    struct buf prefix = {0};
    struct buf end = {0};
    struct kv_scan *scan = NULL;
    struct buf keys = {0}; /* rows of the batch: puts must not run while a scan is open over them */
    struct buf rows = {0};
    size_t n = 0;
    size_t sizes[BATCH_ROWS][2];
    key_index_prefix(&prefix, b->d->id, 0);
    key_prefix_end(&end, buf_slice(&prefix));
    session_use_desc(b->s, b->d);
    span_status st =
        kv->ops->scan_open(kv, b->from.size == 0 ? buf_slice(&prefix) : buf_slice(&b->from),
                           buf_slice(&end), false, KV_LOCK_SHARED, BATCH_ROWS, &scan, &err);
    while (st == SPAN_OK && n < BATCH_ROWS) {
        struct slice k;
        struct slice v;
        st = kv->ops->scan_next(scan, &k, &v, &err);
        if (st == SPAN_OK) {
            sizes[n][0] = k.size;
            sizes[n++][1] = v.size;
            buf_append_slice(&keys, k);
            buf_append_slice(&rows, v);
        }
    }
    if (scan != NULL) {
        kv->ops->scan_close(scan);
    }
    *done = st == SPAN_NOT_FOUND;
    bool ok = st == SPAN_OK || st == SPAN_NOT_FOUND || session_fail(b->s, st, &err);
    size_t ka = 0;
    size_t ra = 0;
    for (size_t i = 0; ok && i < n; i++) {
        struct slice k = slice_of(keys.data + ka, sizes[i][0]);
        ok = add_entry(b, k, slice_of(rows.data + ra, sizes[i][1]));
        ka += sizes[i][0];
        ra += sizes[i][1];
        if (ok && i + 1 == n) {
            buf_set(next, k);
            buf_append_byte(next, 0);
        }
    }
    buf_deinit(&prefix);
    buf_deinit(&end);
    buf_deinit(&keys);
    buf_deinit(&rows);
    return ok;
}

static void pause_ms(unsigned ms)
{
    struct timespec ts = {.tv_nsec = (long)ms * 1000000L};
    nanosleep(&ts, NULL);
}

bool ddl_in_txn(struct sql_session *s, bool (*step)(void *ctx), void *ctx)
{
    for (unsigned i = 0; i < STEP_TRIES; i++) {
        sql_error_clear(&s->err);
        if (block_begin_kv(s, false, true) && step(ctx) && block_commit(s)) {
            return true;
        }
        block_rollback(s);
        if (!sqlstate_is_retryable(s->err.status)) {
            return false;
        }
        pause_ms(1U + i * 5U);
    }
    return false;
}

struct add_step {
    struct sql_session *s;
    struct ddl_text *x;
    bool unique;
    bool soft;
    size_t open;
    struct table_desc *d;
    bool building;
    char *notice;
    size_t notice_size;
};

static bool step_add(void *ctx)
{
    struct add_step *a = ctx;
    table_desc_unref(a->d);
    a->d = NULL;
    return ddl_add_index(a->s, a->x, a->unique, a->soft, a->open, &a->d, &a->building, a->notice,
                         a->notice_size);
}

static bool step_fill(void *ctx)
{
    struct backfill *b = ctx;
    struct buf next = {0};
    bool done = false;
    bool ok = fill_batch(b, &next, &done);
    if (ok) {
        ok = block_commit(b->s); /* the position moves only with the commit */
        if (ok) {
            buf_move(&b->from, &next);
            b->done = done;
            ok = block_begin_kv(b->s, false, true); /* for ddl_in_txn to commit: empty */
        }
    }
    buf_deinit(&next);
    return ok;
}

struct drop_step {
    struct sql_session *s;
    const char *name;
};

static bool step_drop(void *ctx)
{
    struct drop_step *x = ctx;
    return ddl_drop_index_named(x->s, x->name);
}

static bool step_publish(void *ctx)
{
    struct drop_step *x = ctx;
    struct table_desc *entry = NULL;
    struct table_desc *d = NULL;
    bool ok = ddl_lock_name(x->s, x->name, &entry) && entry != NULL &&
              ddl_lock_name(x->s, entry->table, &d) && d != NULL;
    struct table_index *ix = ok ? table_find_index(d, x->name) : NULL;
    if (ix == NULL) {
        if (x->s->err.code[0] == '\0') {
            sql_error_set(&x->s->err, "42704", "index \"%s\" was dropped while it was built",
                          x->name);
        }
        ok = false;
    } else {
        struct table_desc *next = table_desc_copy(d);
        table_find_index(next, x->name)->state = INDEX_PUBLIC;
        next->version++;
        ok = ddl_put_desc(x->s, next, false);
        table_desc_unref(next);
    }
    table_desc_unref(entry);
    table_desc_unref(d);
    return ok;
}

static bool build(struct sql_session *s, struct table_desc *d, const char *name)
{
    struct backfill b = {.s = s, .d = d, .ix = table_find_index(d, name)};
    struct drop_step named = {.s = s, .name = name};
    bool ok = true;
    while (ok && !b.done) {
        ok = ddl_in_txn(s, step_fill, &b);
    }
    buf_deinit(&b.from);
    if (ok) {
        ok = ddl_in_txn(s, step_publish, &named);
    }
    if (!ok) {
        struct sql_error keep = s->err;
        (void)ddl_in_txn(s, step_drop, &named);
        s->err = keep;
    }
    return ok;
}

bool ddl_fill_in_block(struct sql_session *s, const struct table_desc *d, const char *name)
{
    struct table_desc *next = table_desc_copy(d);
    struct table_index *ix = table_find_index(next, name);
    struct backfill b = {.s = s, .d = next, .ix = ix};
    bool ok = true;
    for (int batch = 0; ok && !b.done; batch++) {
        struct buf from = {0};
        ok = fill_batch(&b, &from, &b.done);
        buf_move(&b.from, &from);
        if (ok && !b.done && batch + 1 == BLOCK_BATCHES) {
            sql_error_set(&s->err, "0A000",
                          "an index on more than %d rows cannot be built inside a transaction",
                          BLOCK_BATCHES * BATCH_ROWS);
            sql_error_hint(&s->err,
                           "Run CREATE INDEX outside BEGIN .. COMMIT, as a message of its own.");
            ok = false;
        }
    }
    if (ok) {
        ix->state = INDEX_PUBLIC;
        ok = ddl_put_desc(s, next, false);
    }
    buf_deinit(&b.from);
    table_desc_unref(next);
    return ok;
}

bool ddl_create_index_online(struct sql_session *s, const struct sql_stmt *st, char *notice,
                             size_t notice_size)
{
    struct ddl_text x;
    struct add_step a = {.s = s, .x = &x, .notice = notice, .notice_size = notice_size};
    (void)st;
    notice[0] = '\0';
    if (!ddl_text_init(&x, s)) {
        return false;
    }
    bool ok = ddl_parse_index(s, &x, &a.unique, &a.soft, &a.open) && ddl_in_txn(s, step_add, &a);
    if (ok && a.building) {
        ok = build(s, a.d, (const char *)x.name.data);
    }
    table_desc_unref(a.d);
    ddl_text_deinit(&x);
    return ok;
}
