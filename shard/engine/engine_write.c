/* Rows into a file: what a flush, a restore and a split have in common, and building a whole file.
 */
#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/invariant.h"
#include "shard/engine/engine_internal.h"

/* ---- writer ------------------------------------------------------------------------------------
 */

static const char *const write_text[WRITE_COUNT] = {
    [W_CURRENT_SET] = "INSERT INTO current VALUES(?1, ?2, ?3, ?4)"
                      " ON CONFLICT(k) DO UPDATE SET ts = ?2, v = ?3, crc = ?4",
    [W_CURRENT_DELETE] = "DELETE FROM current WHERE k = ?1",
    [W_MOVE] = "INSERT INTO history SELECT k, ts, ?2, v, crc FROM current WHERE k = ?1",
    [W_HISTORY_ADD] = "INSERT INTO history VALUES(?1, ?2, ?3, ?4, ?5)",
    [W_META_SET] = "INSERT INTO meta VALUES(?1, ?2, ?3)"
                   " ON CONFLICT(k) DO UPDATE SET v = ?2, crc = ?3",
    [W_META_DELETE] = "DELETE FROM meta WHERE k = ?1",
};

span_status writer_open(struct writer *w, const struct file_name *name, bool create,
                        struct span_error *err)
{
    *w = (struct writer){.min_end = UINT64_MAX};
    return file_db_open(&w->conn, name, create, err);
}

void writer_close(struct writer *w)
{
    file_db_close(&w->conn);
    buf_deinit(&w->max_key);
}

span_status writer_prepare(struct writer *w, struct span_error *err)
{
    for (int i = 0; i < WRITE_COUNT; i++) {
        span_status st = file_db_prepare(&w->conn, write_text[i], &w->stmts[i], err);
        if (st != SPAN_OK) {
            return st;
        }
    }
    return SPAN_OK;
}

span_status writer_current(struct writer *w, struct slice key, uint64_t ts, struct slice value,
                           struct span_error *err)
{
    sqlite3_stmt *q = w->stmts[W_CURRENT_SET];
    stmt_bind_slice(q, 1, key);
    stmt_bind_u64(q, 2, ts);
    stmt_bind_slice(q, 3, value);
    stmt_bind_u64(q, 4, row_crc(key, ts, value));
    w->rows++;
    return file_db_run(&w->conn, q, err);
}

span_status writer_history(struct writer *w, struct slice key, uint64_t ts, uint64_t end_ts,
                           struct slice value, struct span_error *err)
{
    sqlite3_stmt *q = w->stmts[W_HISTORY_ADD];
    stmt_bind_slice(q, 1, key);
    stmt_bind_u64(q, 2, ts);
    stmt_bind_u64(q, 3, end_ts);
    stmt_bind_slice(q, 4, value);
    stmt_bind_u64(q, 5, row_crc(key, ts, value));
    w->rows++;
    w->min_end = end_ts < w->min_end ? end_ts : w->min_end;
    return file_db_run(&w->conn, q, err);
}

span_status writer_meta(struct writer *w, struct slice key, struct slice value,
                        struct span_error *err)
{
    sqlite3_stmt *q = w->stmts[W_META_SET];
    stmt_bind_slice(q, 1, key);
    stmt_bind_slice(q, 2, value);
    stmt_bind_u64(q, 3, row_crc(key, 0, value));
    return file_db_run(&w->conn, q, err);
}

/* The row of `current`, if there is one, was overwritten at end_ts. */
static span_status move_current(struct writer *w, struct slice key, uint64_t end_ts,
                                struct span_error *err)
{
    if (!w->has_rows || slice_cmp(key, buf_slice(&w->max_key)) > 0) {
        return SPAN_OK;
    }
    sqlite3_stmt *q = w->stmts[W_MOVE];
    stmt_bind_slice(q, 1, key);
    stmt_bind_u64(q, 2, end_ts);
    span_status st = file_db_run(&w->conn, q, err);
    if (st == SPAN_OK && sqlite3_changes(w->conn.db) != 0) {
        w->rows++;
        w->min_end = end_ts < w->min_end ? end_ts : w->min_end;
    }
    return st;
}

static span_status put_key(struct writer *w, const struct mem_key *k, uint64_t horizon,
                           struct span_error *err)
{
    struct slice key = mem_key_slice(k);
    const struct mem_version *v = k->newest;
    span_status st = SPAN_OK;
    /* A version is visible until the next one's timestamp; behind the horizon nobody reads it. */
    for (; st == SPAN_OK && v->older != NULL && v->ts > horizon; v = v->older) {
        if (!v->older->tombstone) {
            st = writer_history(w, key, v->older->ts, v->ts, mem_version_slice(v->older), err);
        }
    }
    if (st == SPAN_OK && v->ts > horizon) {
        st = move_current(w, key, v->ts, err);
    }
    if (st != SPAN_OK) {
        return st;
    }
    if (!k->newest->tombstone) {
        return writer_current(w, key, k->newest->ts, mem_version_slice(k->newest), err);
    }
    stmt_bind_slice(w->stmts[W_CURRENT_DELETE], 1, key);
    return file_db_run(&w->conn, w->stmts[W_CURRENT_DELETE], err);
}

static span_status find_max_key(struct writer *w, struct span_error *err)
{
    sqlite3_stmt *q = NULL;
    span_status st =
        file_db_prepare(&w->conn, "SELECT k FROM current ORDER BY k DESC LIMIT 1", &q, err);
    if (st != SPAN_OK) {
        return st;
    }
    int rc = sqlite3_step(q);
    w->has_rows = rc == SQLITE_ROW;
    if (rc == SQLITE_ROW) {
        buf_set(&w->max_key, stmt_slice(q, 0));
    } else if (rc != SQLITE_DONE) {
        st = file_db_fail(&w->conn, rc, err, "find the last key");
    }
    (void)sqlite3_finalize(q);
    return st;
}

span_status writer_put_rows(struct writer *w, const struct memtable *rows, uint64_t horizon,
                            writer_filter *filter, void *ctx, struct span_error *err)
{
    if (memtable_is_empty(rows)) {
        return SPAN_OK;
    }
    span_status st = find_max_key(w, err);
    for (const struct mem_key *k = memtable_first(rows); st == SPAN_OK && k != NULL;
         k = mem_key_next(k)) {
        if (filter(ctx, mem_key_slice(k))) {
            st = put_key(w, k, horizon, err);
        }
    }
    return st;
}

span_status writer_put_meta(struct writer *w, const struct memtable *meta, struct span_error *err)
{
    span_status st = SPAN_OK;
    for (const struct mem_key *k = memtable_first(meta); st == SPAN_OK && k != NULL;
         k = mem_key_next(k)) {
        if (!k->newest->tombstone) {
            st = writer_meta(w, mem_key_slice(k), mem_version_slice(k->newest), err);
            continue;
        }
        stmt_bind_slice(w->stmts[W_META_DELETE], 1, mem_key_slice(k));
        st = file_db_run(&w->conn, w->stmts[W_META_DELETE], err);
    }
    return st;
}

/* ---- builder -----------------------------------------------------------------------------------
 */

/* The mark is on disk before the first byte of the database and goes when the last one is, so that
 * whatever happens in between is recognised without opening a half-written file. */

span_status builder_begin(struct builder *b, const struct engine_options *opt,
                          struct span_error *err)
{
    *b = (struct builder){0};
    file_name_init(&b->name, opt);
    enum engine_file_state there = ENGINE_FILE_ABSENT;
    span_status st = engine_file_state(opt, &there, err);
    if (st == SPAN_OK && there == ENGINE_FILE_COMPLETE) {
        st = span_fail(err, SPAN_EXISTS, "%s: the file exists", b->name.path);
    } else if (st == SPAN_OK) {
        /* Also when absent: the -wal of a file that is gone would be replayed into the new one. */
        st = engine_remove_files(opt, err);
    }
    if (st != SPAN_OK) {
        file_name_deinit(&b->name);
        return st;
    }
    st = file_mark(&b->name, FILE_BUILDING, err);
    FAILPOINT_MARK(ENGINE_BUILD_MARKED);
    if (st == SPAN_OK) {
        st = writer_open(&b->writer, &b->name, true, err);
    }
    /* Nobody looks at the file before it is complete and synced: no journal, no syncs. */
    if (st == SPAN_OK) {
        st = file_db_exec(&b->writer.conn, "PRAGMA journal_mode=OFF;PRAGMA synchronous=OFF;BEGIN",
                          err);
    }
    if (st == SPAN_OK) {
        st = file_db_create_schema(&b->writer.conn, err);
    }
    if (st == SPAN_OK) {
        st = writer_prepare(&b->writer, err);
    }
    if (st != SPAN_OK) {
        builder_abort(b);
    }
    return st;
}

void builder_abort(struct builder *b)
{
    struct engine_options opt = file_name_options(&b->name);
    writer_close(&b->writer);
    struct span_error ignored; /* what is left is marked unfinished and removed by the next one */
    span_status st = engine_remove_files(&opt, &ignored);
    (void)st;
    file_name_deinit(&b->name);
}

span_status builder_sync(struct builder *b, struct span_error *err)
{
    struct file_db *d = &b->writer.conn;
    span_status st = file_db_exec(d, "COMMIT", err);
    if (st == SPAN_OK) {
        st = FAILPOINT(ENGINE_BUILD_SYNC) ? file_injected(&b->name, err) : file_db_sync(d, err);
    }
    return st == SPAN_OK ? file_db_exec(d, "BEGIN", err) : st;
}

span_status builder_finish(struct builder *b, const struct file_state *s, struct span_error *err)
{
    struct file_db *d = &b->writer.conn;
    span_status st = file_db_store_state(d, s, err);
    if (st == SPAN_OK) {
        st = FAILPOINT(ENGINE_BUILD_COMMIT) ? file_injected(&b->name, err)
                                            : file_db_exec(d, "COMMIT", err);
    }
    /* Still without syncs of SQLite's own: the one that a change of the journal mode makes would
     * fail unnoticed, and the next one say OK about pages that the system dropped (rule H4). */
    if (st == SPAN_OK) {
        st = file_db_set_wal(d, err);
    }
    if (st == SPAN_OK) {
        st = FAILPOINT(ENGINE_BUILD_SYNC) ? file_injected(&b->name, err) : file_db_sync(d, err);
    }
    if (st == SPAN_OK) {
        writer_close(&b->writer);
        st = FAILPOINT(ENGINE_BUILD_UNMARK) ? file_injected(&b->name, err)
                                            : file_delete(&b->name, FILE_BUILDING, true, err);
        FAILPOINT_MARK(ENGINE_BUILT);
    }
    if (st != SPAN_OK) {
        builder_abort(b);
        return st;
    }
    file_name_deinit(&b->name);
    return SPAN_OK;
}
