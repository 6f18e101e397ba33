/* Removing the rows of what was dropped: DROP TABLE, DROP INDEX and TRUNCATE of more rows than one
 * transaction should carry.
 *
 * The statement's own transaction makes the span unreachable (the table's id or the index's id is
 * given up and never used again) and writes a record of it into system table 2: both happen or
 * neither. After that commit the session deletes the span in transactions of bounded size and the
 * record with the last one. Nobody can see the rows meanwhile, so a crash in between costs space
 * only: the record stays, and the next statement that leaves one sweeps it too. */
#include "base/alloc.h"
#include "sql/ddl_impl.h"
#include "sql/run.h"
#include "sql/session_impl.h"

#include <stdio.h>

#define SWEEP_KEYS    1000
#define SWEEP_BYTES   (1024 * 1024) /* keys and values read in one step */
#define SWEEP_RECORDS 64            /* taken up by one statement */

struct sweep {
    struct sql_session *s;
    struct buf record; /* its key in system table 2 */
    struct buf from;   /* keys below it are gone */
    struct buf end;
    struct buf next;
    bool done;
};

/* --- in the statement's transaction --- */

bool ddl_span_is_small(struct sql_session *s, struct slice start, struct slice end, bool *small)
{
    struct span_error err = {0};
    struct kv_scan *scan = NULL;
    size_t keys = 0;
    size_t bytes = 0;
    span_status st =
        s->kv->ops->scan_open(s->kv, start, end, false, KV_LOCK_NONE, SWEEP_KEYS + 1, &scan, &err);
    while (st == SPAN_OK && keys <= SWEEP_KEYS && bytes <= SWEEP_BYTES) {
        struct slice k;
        struct slice v;
        st = s->kv->ops->scan_next(scan, &k, &v, &err);
        keys += st == SPAN_OK ? 1 : 0;
        bytes += st == SPAN_OK ? k.size + v.size : 0;
    }
    if (scan != NULL) {
        s->kv->ops->scan_close(scan);
    }
    *small = st == SPAN_NOT_FOUND;
    return st == SPAN_OK || st == SPAN_NOT_FOUND || session_fail(s, st, &err);
}

bool ddl_sweep_later(struct sql_session *s, struct slice start, struct slice end)
{
    struct span_error err = {0};
    struct buf key = {0};
    struct sql_value v = {.type = SQL_BLOB, .s = start};
    key_index_prefix(&key, SYS_TABLE_DROPPED, 0);
    key_encode(&key, &v, COLL_BINARY, false);
    span_status st = s->kv->ops->put(s->kv, buf_slice(&key), end, &err);
    buf_deinit(&key);
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    s->sweep_due = true;
    return true;
}

bool ddl_remove_span(struct sql_session *s, struct slice start, struct slice end)
{
    struct span_error err = {0};
    bool small = false;
    if (!ddl_span_is_small(s, start, end, &small)) {
        return false;
    }
    if (!small) {
        return ddl_sweep_later(s, start, end);
    }
    span_status st = s->kv->ops->delete_span(s->kv, start, end, &err);
    return st == SPAN_OK || session_fail(s, st, &err);
}

/* --- after it --- */

/* An index's span belongs to a table that lives on: its schema version is named (rule E2). That of
 * a whole table has none. */
static span_status use_owner(struct sweep *w, struct span_error *err)
{
    struct table_desc **all = NULL;
    size_t count = 0;
    uint32_t table = 0;
    uint16_t index = 0;
    struct slice rest;
    if (!key_parse_prefix(buf_slice(&w->from), &table, &index, &rest) || index == 0) {
        return SPAN_OK;
    }
    span_status st = schema_load_all(w->s->kv, &all, &count, err);
    for (size_t i = 0; i < count; i++) {
        if (all[i]->kind == DESC_TABLE && all[i]->id == table) {
            w->s->kv->ops->use_table(w->s->kv, table, all[i]->version);
        }
        table_desc_unref(all[i]);
    }
    span_free(all);
    return st;
}

static bool step_sweep(void *ctx)
{
    struct sweep *w = ctx;
    struct kv *kv = w->s->kv;
    struct span_error err = {0};
    struct kv_scan *scan = NULL;
    struct buf keys = {0}; /* deleted after the scan: writes must not run while one is open */
    size_t sizes[SWEEP_KEYS];
    size_t n = 0;
    size_t bytes = 0;
    span_status st = use_owner(w, &err);
    if (st == SPAN_OK) {
        st = kv->ops->scan_open(kv, buf_slice(&w->from), buf_slice(&w->end), false, KV_LOCK_UPDATE,
                                SWEEP_KEYS, &scan, &err);
    }
    while (st == SPAN_OK && n < SWEEP_KEYS && bytes < SWEEP_BYTES) {
        struct slice k;
        struct slice v;
        st = kv->ops->scan_next(scan, &k, &v, &err);
        if (st == SPAN_OK) {
            buf_append_slice(&keys, k);
            sizes[n++] = k.size;
            bytes += k.size + v.size;
        }
    }
    if (scan != NULL) {
        kv->ops->scan_close(scan);
    }
    w->done = st == SPAN_NOT_FOUND;
    st = w->done ? SPAN_OK : st;
    size_t at = 0;
    for (size_t i = 0; st == SPAN_OK && i < n; i++) {
        struct slice k = slice_of(keys.data + at, sizes[i]);
        st = kv->ops->del(kv, k, &err);
        at += sizes[i];
        if (i + 1 == n) {
            buf_set(&w->next, k);
            buf_append_byte(&w->next, 0);
        }
    }
    if (st == SPAN_OK && w->done) {
        st = kv->ops->del(kv, buf_slice(&w->record), &err);
    }
    buf_deinit(&keys);
    return st == SPAN_OK || session_fail(w->s, st, &err);
}

static bool sweep_one(struct sweep *w)
{
    while (!w->done) {
        if (!ddl_in_txn(w->s, step_sweep, w)) {
            return false;
        }
        buf_move(&w->from, &w->next); /* past the tombstones, only with the commit */
    }
    return true;
}

struct records {
    struct sql_session *s;
    struct sweep list[SWEEP_RECORDS];
    size_t count;
};

static void records_deinit(struct records *r)
{
    for (size_t i = 0; i < r->count; i++) {
        buf_deinit(&r->list[i].record);
        buf_deinit(&r->list[i].from);
        buf_deinit(&r->list[i].end);
        buf_deinit(&r->list[i].next);
    }
    r->count = 0;
}

static bool step_read_records(void *ctx)
{
    struct records *r = ctx;
    struct kv *kv = r->s->kv;
    struct span_error err = {0};
    struct kv_scan *scan = NULL;
    struct buf start = {0};
    struct buf end = {0};
    records_deinit(r);
    key_table_start(&start, SYS_TABLE_DROPPED);
    key_table_end(&end, SYS_TABLE_DROPPED);
    span_status st = kv->ops->scan_open(kv, buf_slice(&start), buf_slice(&end), false, KV_LOCK_NONE,
                                        SWEEP_RECORDS, &scan, &err);
    while (st == SPAN_OK && r->count < SWEEP_RECORDS) {
        struct slice k;
        struct slice v;
        struct sql_value blob;
        uint32_t table = 0;
        uint16_t index = 0;
        st = kv->ops->scan_next(scan, &k, &v, &err);
        if (st != SPAN_OK) {
            break;
        }
        struct sweep *w = &r->list[r->count++];
        memset(w, 0, sizeof *w);
        w->s = r->s;
        buf_set(&w->record, k);
        buf_set(&w->end, v);
        if (!key_parse_prefix(k, &table, &index, &k) || !key_decode(&k, false, &blob, &w->next) ||
            blob.type != SQL_BLOB) {
            st = span_fail(&err, SPAN_CORRUPT, "the record of a dropped table cannot be read");
            break;
        }
        buf_set(&w->from, blob.s);
        buf_clear(&w->next);
    }
    if (scan != NULL) {
        kv->ops->scan_close(scan);
    }
    buf_deinit(&start);
    buf_deinit(&end);
    return st == SPAN_OK || st == SPAN_NOT_FOUND || session_fail(r->s, st, &err);
}

void ddl_sweep(struct sql_session *s)
{
    struct sql_error keep = s->err;
    struct records *r = SPAN_NEW(struct records);
    char txn_id[sizeof s->txn_id];
    memcpy(txn_id, s->txn_id, sizeof txn_id);
    r->s = s;
    s->sweep_due = false;
    bool ok = ddl_in_txn(s, step_read_records, r);
    for (size_t i = 0; ok && i < r->count; i++) {
        ok = sweep_one(&r->list[i]);
    }
    if (!ok && s->sink != NULL) {
        struct buf text = {0};
        buf_printf(&text,
                   "rows of what was dropped remain on disk (%s); the next large DROP or TRUNCATE "
                   "removes them",
                   s->err.message);
        run_notice(s, s->sink, "01000", buf_cstr(&text));
        buf_deinit(&text);
    }
    records_deinit(r);
    span_free(r);
    memcpy(s->txn_id, txn_id, sizeof txn_id);
    s->err = keep;
}
