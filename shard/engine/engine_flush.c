/* Flushing: frozen generations into the file, garbage out of it, SQLite's WAL into the database.
 *
 *   step        thread    what                                        why it can end
 *   WRITE       flusher   one transaction: generations, state, trim,  the only writer
 *                         garbage; its commit syncs SQLite's WAL
 *   AHEAD       flusher   the right file of a split to come        asked for by engine_split_ahead
 *   (done)      worker    renews the view, drops the generations
 *   CHECKPOINT  flusher   PASSIVE: all frames into the database, sync  the view now stands at the
 * end of the WAL, so nothing in it is held back (probes 2.4: under a reader that is not renewed it
 * never ends) (done)      worker    durable index; renews the view again: it     the next WRITE can
 * start the WAL now reads the database file only             from its beginning TRUNCATE    flusher
 * gives the WAL's space back, if it is large   no reader stands in the WAL
 *
 * A snapshot stream stands where it was opened, so a checkpoint under one stops there ("pinned")
 * and durable stays; the flush is tried again later.
 *
 * Failed syncs (rule H4). WRITE's commit is synced (synchronous=FULL): if that fails, SQLite takes
 * the commit back, the generations are still in memory, and the next job writes all frames again. A
 * CHECKPOINT whose sync of the database failed is repeated by SQLite from the frame where it began,
 * from a WAL that was synced. The exception is a checkpoint after a pinned one: the pinned one has
 * copied pages which SQLite counts as done but syncs only with the last ones, so they are not
 * written again. Then the file is not trusted any more (CORRUPT), and the replica is rebuilt. */
#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/invariant.h"
#include "base/planted.h"
#include "shard/engine/engine_internal.h"

#define WAL_KEEP_BYTES (4ULL << 20) /* a larger WAL is truncated: many ranges share the disk */
#define TRIM_ROWS      20000        /* rows cut off per flush and table */
#define GC_ROWS_MIN    10000        /* rows of history a flush looks at, at least */
#define GC_ROWS_PER_ROW                                                                            \
    4 /* and for each version it wrote: a pass is over before a quarter                            \
         more has been added */

enum job_step { STEP_WRITE, STEP_AHEAD, STEP_CHECKPOINT, STEP_TRUNCATE };

struct engine_job {
    enum job_step step;
    bool ran;
    span_status status;
    struct span_error error;
    struct file_name name;
    struct file_state state;                   /* what the file says after WRITE */
    const struct generation *gens[FROZEN_MAX]; /* oldest first; immutable, the engine's */
    size_t gen_count;
    struct list dropped; /* to be freed, here because the worker has better to do */
    struct gc_state gc;
    bool partial_backfill;
    uint64_t rows;
    uint64_t wal_bytes;
    bool pinned;
    struct ahead ahead; /* AHEAD: what is to be built; then, as READY, what was */
};

static void gc_copy(struct gc_state *to, const struct gc_state *from)
{
    struct buf cursor = to->cursor;
    buf_set(&cursor, buf_slice(&from->cursor));
    *to = *from;
    to->cursor = cursor;
}

/* ---- begin and end (worker) --------------------------------------------------------------------
 */

static bool state_differs(const struct file_state *a, const struct file_state *b)
{
    return a->applied != b->applied || a->horizon != b->horizon || a->trim != b->trim ||
           !slice_eq(buf_slice(&a->start), buf_slice(&b->start)) ||
           !slice_eq(buf_slice(&a->end), buf_slice(&b->end));
}

static struct engine_job *job_new(struct engine *e, enum job_step step)
{
    struct engine_job *job = SPAN_NEW(struct engine_job);
    struct engine_options opt = file_name_options(&e->name);
    file_name_init(&job->name, &opt);
    job->step = step;
    list_init(&job->dropped);
    job->partial_backfill = e->partial_backfill;
    LIST_EACH(it, &e->frozen)
    {
        const struct generation *g = LIST_ENTRY(it, struct generation, link);
        job->gens[job->gen_count++] = g;
        file_state_copy(&job->state, &g->state);
    }
    gc_copy(&job->gc, &e->gc);
    e->job = job;
    return job;
}

static void job_free(struct engine_job *job)
{
    generations_free(&job->dropped);
    file_name_deinit(&job->name);
    if (job->ahead.building) {
        builder_abort(&job->ahead.builder); /* nobody wants it any more */
    }
    ahead_deinit(&job->ahead);
    file_state_deinit(&job->state);
    buf_deinit(&job->gc.cursor);
    span_free(job);
}

/* The file is at view.state.seq, and this job is the only one that writes it. */
static void ahead_order(const struct engine *e, struct engine_job *job)
{
    job->ahead.state = ENGINE_AHEAD_BUILDING;
    buf_set(&job->ahead.key, buf_slice(&e->ahead.key));
    job->ahead.right_range_id = e->ahead.right_range_id;
    job->ahead.right_generation = e->ahead.right_generation;
    job->ahead.seq = e->view.state.seq;
}

bool job_builds_ahead(const struct engine_job *job)
{
    return job != NULL && job->step == STEP_AHEAD;
}

uint64_t job_ahead_range(const struct engine_job *job)
{
    return job->ahead.right_range_id;
}

/* Takes over what AHEAD built, if it is still wanted. True: it goes on with the next piece. */
static bool ahead_done(struct engine *e, struct engine_job *job)
{
    struct ahead *a = &e->ahead;
    bool wanted = a->state == ENGINE_AHEAD_BUILDING &&
                  a->right_range_id == job->ahead.right_range_id &&
                  slice_eq(buf_slice(&a->key), buf_slice(&job->ahead.key));
    if (!wanted) {
        return false; /* job_free removes it */
    }
    if (job->status == SPAN_OK && job->ahead.state == ENGINE_AHEAD_BUILDING) {
        return true;
    }
    a->state = ENGINE_AHEAD_FAILED;
    a->status = job->status;
    if (job->ahead.state == ENGINE_AHEAD_READY) {
        job->ahead.building = false;
        a->state = ENGINE_AHEAD_READY;
        a->builder = job->ahead.builder;
        a->builder.writer.conn.name = &a->builder.name;
        a->seq = job->ahead.seq;
    }
    return false;
}

struct engine_job *engine_freeze(struct engine *e)
{
    REQUIRE(!e->open_entry);
    if (e->job != NULL || e->ahead.state == ENGINE_AHEAD_READY) {
        return NULL;
    }
    struct generation *g = e->active;
    bool changed = !memtable_is_empty(&g->rows) || !memtable_is_empty(&g->meta) ||
                   state_differs(&e->state, &e->view.state) || e->state.trim;
    if (changed && e->frozen_count < FROZEN_MAX) {
        file_state_copy(&g->state, &e->state);
        g->state.seq = g->seq;
        list_push_back(&e->frozen, &g->link);
        e->frozen_count++;
        e->active = generation_new(e->next_seq++);
    }
    if (e->frozen_count != 0) {
        return job_new(e, STEP_WRITE);
    }
    if (e->ahead.state == ENGINE_AHEAD_BUILDING) {
        struct engine_job *job = job_new(e, STEP_AHEAD);
        ahead_order(e, job);
        return job;
    }
    return e->durable < e->view.state.applied ? job_new(e, STEP_CHECKPOINT) : NULL;
}

/* After WRITE: the garbage collector's progress, and what is left to trim. */
static void take_over(struct engine *e, struct engine_job *job)
{
    gc_copy(&e->gc, &job->gc);
    bool same_bounds = slice_eq(buf_slice(&e->state.end), buf_slice(&job->state.end)) &&
                       slice_eq(buf_slice(&e->state.start), buf_slice(&job->state.start));
    if (same_bounds) {
        e->state.trim = job->state.trim;
    }
}

/* Acts on a step that succeeded; whether another follows. */
static bool finish_step(struct engine *e, struct engine_job *job)
{
    switch (job->step) {
    case STEP_WRITE:
        take_over(e, job);
        if (PLANTED(VERSIONS_FREED_EARLY)) {
            view_drop(e, job->state.seq);
        } else {
            job->status = view_renew(e);
        }
        LIST_EACH_SAFE(it, tmp, &e->dropped)
        {
            list_remove(it);
            list_push_back(&job->dropped, it);
        }
        job->step = STEP_CHECKPOINT;
        if (job->status == SPAN_OK && e->ahead.state == ENGINE_AHEAD_BUILDING) {
            job->step = STEP_AHEAD;
            ahead_order(e, job);
        }
        return job->status == SPAN_OK;
    case STEP_AHEAD:
        return ahead_done(e, job);
    case STEP_CHECKPOINT:
        e->partial_backfill = job->partial_backfill;
        if (job->pinned) {
            return false;
        }
        e->durable = e->view.state.applied;
        job->status = view_renew(e);
        job->step = STEP_TRUNCATE;
        return job->status == SPAN_OK && job->wal_bytes > WAL_KEEP_BYTES;
    case STEP_TRUNCATE:
        return false;
    }
    return false;
}

struct engine_job *engine_flush_done(struct engine *e, struct engine_job *job,
                                     struct engine_flush_result *out)
{
    REQUIRE(e->job == job);
    if (!job->ran) {
        job->status = SPAN_CANCELED;
    }
    uint64_t rows = job->rows;
    job->rows = 0;
    if (job->status == SPAN_CORRUPT) {
        e->error = job->error;
        e->damaged = true;
    }
    bool ahead = job->step == STEP_AHEAD;
    bool more = (ahead || job->status == SPAN_OK) && finish_step(e, job);
    if (ahead && job->ran) {
        job->status = SPAN_OK; /* the split hears why it failed, the flush has no fault */
    }
    bool garbage = e->gc.in_pass && e->gc.min_end <= e->state.horizon;
    *out = (struct engine_flush_result){.status = job->status,
                                        .flushed = e->view.state.applied,
                                        .durable = e->durable,
                                        .rows = rows,
                                        .wal_bytes = job->wal_bytes,
                                        .checkpoint_pinned = job->pinned,
                                        .pause = ahead && more,
                                        .work_left = e->state.trim || garbage};
    job->ran = false;
    if (more) {
        return job;
    }
    e->job = NULL;
    job_free(job);
    return NULL;
}

span_status engine_flush_now(struct engine *e, struct span_error *err)
{
    struct engine_job *job = engine_freeze(e);
    span_status st = SPAN_OK;
    while (job != NULL) {
        st = engine_flush_run(job, err);
        struct engine_flush_result result;
        job = engine_flush_done(e, job, &result);
        if (st == SPAN_OK && result.status != SPAN_OK) {
            st = span_fail(err, result.status, "%s", e->error.text);
        }
    }
    return st;
}

/* ---- WRITE (flusher) ---------------------------------------------------------------------------
 */

static bool in_bounds(void *ctx, struct slice key)
{
    const struct engine_job *job = ctx;
    return file_state_has_key(&job->state, key);
}

static span_status write_generations(struct engine_job *job, struct writer *w, uint64_t file_seq,
                                     struct span_error *err)
{
    span_status st = SPAN_OK;
    for (size_t i = 0; st == SPAN_OK && i < job->gen_count; i++) {
        const struct generation *g = job->gens[i];
        if (g->seq <= file_seq) {
            continue; /* written by a job whose end the worker did not get to */
        }
        st = writer_put_rows(w, &g->rows, job->state.horizon, in_bounds, job, err);
        if (st == SPAN_OK) {
            st = writer_put_meta(w, &g->meta, err);
        }
    }
    return st;
}

/* Key of the row `offset` rows after the first one in [lo, hi), into out; *found false if there are
 * fewer. */
static span_status key_at_offset(struct file_db *d, const char *sql, struct slice lo,
                                 struct slice hi, uint64_t offset, struct buf *out, bool *found,
                                 struct span_error *err)
{
    sqlite3_stmt *q = NULL;
    span_status st = file_db_prepare(d, sql, &q, err);
    if (st != SPAN_OK) {
        return st;
    }
    stmt_bind_slice(q, 1, lo);
    stmt_bind_slice(q, 2, hi);
    stmt_bind_u64(q, 3, offset);
    int rc = sqlite3_step(q);
    *found = rc == SQLITE_ROW;
    if (rc == SQLITE_ROW) {
        buf_set(out, stmt_slice(q, 0));
    } else if (rc != SQLITE_DONE) {
        st = file_db_fail(d, rc, err, sql);
    }
    (void)sqlite3_finalize(q);
    return st;
}

static span_status delete_span(struct file_db *d, const char *sql, struct slice lo, struct slice hi,
                               uint64_t horizon, struct span_error *err)
{
    sqlite3_stmt *q = NULL;
    span_status st = file_db_prepare(d, sql, &q, err);
    if (st != SPAN_OK) {
        return st;
    }
    stmt_bind_slice(q, 1, lo);
    stmt_bind_slice(q, 2, hi);
    if (sqlite3_bind_parameter_count(q) >= 3) {
        stmt_bind_u64(q, 3, horizon);
    }
    st = file_db_run(d, q, err);
    (void)sqlite3_finalize(q);
    return st;
}

/* Deletes up to TRIM_ROWS rows of [lo, hi) from one table; *left: there are more. */
static span_status trim_span(struct file_db *d, bool history, struct slice lo, struct slice hi,
                             bool *left, struct span_error *err)
{
    struct buf upto = {0};
    bool more = false;
    span_status st = key_at_offset(
        d,
        history ? "SELECT k FROM history WHERE k >= ?1 AND k < ?2 ORDER BY k LIMIT 1 OFFSET ?3"
                : "SELECT k FROM current WHERE k >= ?1 AND k < ?2 ORDER BY k LIMIT 1 OFFSET ?3",
        lo, hi, TRIM_ROWS, &upto, &more, err);
    /* When that key is the first one (a hot row's history), the whole span goes. */
    if (more && slice_eq(buf_slice(&upto), lo)) {
        more = false;
    }
    if (st == SPAN_OK) {
        st = delete_span(d,
                         history ? "DELETE FROM history WHERE k >= ?1 AND k < ?2"
                                 : "DELETE FROM current WHERE k >= ?1 AND k < ?2",
                         lo, more ? buf_slice(&upto) : hi, 0, err);
    }
    *left = *left || more;
    buf_deinit(&upto);
    return st;
}

/* Rows that a split (or narrower bounds) left outside. */
static span_status trim(struct engine_job *job, struct file_db *d, struct span_error *err)
{
    static const uint8_t first[] = {0x01}; /* local keys stay */
    struct slice end = buf_slice(&job->state.end);
    struct slice start = buf_slice(&job->state.start);
    bool left = false;
    span_status st = SPAN_OK;
    for (int history = 0; st == SPAN_OK && history <= 1; history++) {
        if (end.size != 0) {
            st = trim_span(d, history != 0, end, key_space_end(), &left, err);
        }
        if (st == SPAN_OK && start.size != 0) {
            st = trim_span(d, history != 0, slice_of(first, sizeof first), start, &left, err);
        }
    }
    job->state.trim = left;
    return st;
}

/* Smallest end_ts in [lo, hi) of history, UINT64_MAX if it is empty. */
static span_status min_end_of(struct file_db *d, struct slice lo, struct slice hi, uint64_t *out,
                              struct span_error *err)
{
    static const char sql[] = "SELECT min(end_ts) FROM history WHERE k >= ?1 AND k < ?2";
    sqlite3_stmt *q = NULL;
    span_status st = file_db_prepare(d, sql, &q, err);
    if (st != SPAN_OK) {
        return st;
    }
    stmt_bind_slice(q, 1, lo);
    stmt_bind_slice(q, 2, hi);
    int rc = sqlite3_step(q);
    *out = UINT64_MAX;
    if (rc != SQLITE_ROW) {
        st = file_db_fail(d, rc, err, sql);
    } else if (sqlite3_column_type(q, 0) != SQLITE_NULL) {
        *out = stmt_u64(q, 0);
    }
    (void)sqlite3_finalize(q);
    return st;
}

/* One chunk of the pass over history: what ended at or before the horizon is visible to nobody. */
static span_status collect_garbage(struct engine_job *job, struct writer *w, struct span_error *err)
{
    struct gc_state *gc = &job->gc;
    gc->min_end = w->min_end < gc->min_end ? w->min_end : gc->min_end;
    gc->added_min = w->min_end < gc->added_min ? w->min_end : gc->added_min;
    if (gc->min_end > job->state.horizon) {
        return SPAN_OK;
    }
    if (!gc->in_pass) {
        gc->in_pass = true;
        gc->pass_min = UINT64_MAX;
        gc->added_min = UINT64_MAX;
        buf_clear(&gc->cursor);
    }
    struct file_db *d = &w->conn;
    uint64_t budget = w->rows * GC_ROWS_PER_ROW;
    budget = budget < GC_ROWS_MIN ? GC_ROWS_MIN : budget;
    struct buf upto = {0};
    bool more = false;
    struct slice lo = buf_slice(&gc->cursor);
    span_status st = key_at_offset(
        d, "SELECT k FROM history WHERE k >= ?1 AND k < ?2 ORDER BY k LIMIT 1 OFFSET ?3", lo,
        key_space_end(), budget, &upto, &more, err);
    if (more) {
        buf_append_byte(&upto, 0); /* the chunk includes that key, so that a hot one is got past */
    }
    struct slice hi = more ? buf_slice(&upto) : key_space_end();
    if (st == SPAN_OK) {
        st = delete_span(d, "DELETE FROM history WHERE k >= ?1 AND k < ?2 AND end_ts <= ?3", lo, hi,
                         job->state.horizon, err);
    }
    uint64_t left_min = UINT64_MAX;
    if (st == SPAN_OK) {
        st = min_end_of(d, lo, hi, &left_min, err);
    }
    gc->pass_min = left_min < gc->pass_min ? left_min : gc->pass_min;
    if (more) {
        buf_set(&gc->cursor, buf_slice(&upto));
    } else {
        gc->in_pass = false;
        gc->min_end = gc->pass_min < gc->added_min ? gc->pass_min : gc->added_min;
    }
    buf_deinit(&upto);
    return st;
}

static span_status write_all(struct engine_job *job, struct writer *w, struct span_error *err)
{
    struct file_state was = {0};
    span_status st = file_db_load_state(&w->conn, &was, err);
    if (st == SPAN_OK) {
        st = writer_prepare(w, err);
    }
    if (st == SPAN_OK) {
        st = write_generations(job, w, was.seq, err);
    }
    if (st == SPAN_OK && job->state.trim) {
        st = trim(job, &w->conn, err);
    }
    if (st == SPAN_OK) {
        st = collect_garbage(job, w, err);
    }
    if (st == SPAN_OK) {
        st = file_db_store_state(&w->conn, &job->state, err);
    }
    file_state_deinit(&was);
    return st;
}

static span_status run_write(struct engine_job *job, struct span_error *err)
{
    struct writer w;
    span_status st = writer_open(&w, &job->name, false, err);
    if (st == SPAN_OK) {
        st = FAILPOINT(ENGINE_FLUSH_BEGIN) ? file_injected(&job->name, err)
                                           : file_db_exec(&w.conn, "BEGIN IMMEDIATE", err);
    }
    if (st == SPAN_OK) {
        st = write_all(job, &w, err);
        if (st == SPAN_OK) {
            st = FAILPOINT(ENGINE_FLUSH_COMMIT) ? file_injected(&job->name, err)
                                                : file_db_exec(&w.conn, "COMMIT", err);
            FAILPOINT_MARK(ENGINE_FLUSH_COMMITTED);
        }
        if (st != SPAN_OK) {
            /* SQLite may have rolled back by itself; then this says so, and is right too. */
            (void)sqlite3_exec(w.conn.db, "ROLLBACK", NULL, NULL, NULL);
        }
    }
    if (st == SPAN_OK) {
        job->rows = w.rows;
        job->wal_bytes = file_db_wal_bytes(&w.conn);
    }
    writer_close(&w);
    return st;
}

/* ---- CHECKPOINT and TRUNCATE (flusher) ----------------------------------------------------------
 */

static span_status run_checkpoint(struct engine_job *job, struct span_error *err)
{
    struct file_db d;
    span_status st = file_db_open(&d, &job->name, false, err);
    if (st != SPAN_OK) {
        return st;
    }
    int log = 0;
    int done = 0;
    int rc = SQLITE_IOERR;
    if (!FAILPOINT(ENGINE_CHECKPOINT)) {
        rc = sqlite3_wal_checkpoint_v2(d.db, "main", SQLITE_CHECKPOINT_PASSIVE, &log, &done);
        FAILPOINT_MARK(ENGINE_CHECKPOINTED);
    }
    job->wal_bytes = file_db_wal_bytes(&d);
    if (rc == SQLITE_OK || rc == SQLITE_BUSY) {
        job->pinned = rc == SQLITE_BUSY || done < log;
        job->partial_backfill = job->pinned && (job->partial_backfill || done > 0);
    } else {
        st = file_db_fail(&d, rc, err, "checkpoint");
        if (st == SPAN_IO && job->partial_backfill) {
            st = span_fail(err, SPAN_CORRUPT, "%s: sync failed after a partial checkpoint",
                           job->name.path);
        }
    }
    file_db_close(&d);
    return st;
}

static span_status run_truncate(struct engine_job *job, struct span_error *err)
{
    struct file_db d;
    span_status st = file_db_open(&d, &job->name, false, err);
    if (st != SPAN_OK) {
        return st;
    }
    (void)sqlite3_busy_timeout(d.db, 0); /* a reader in the WAL: the next job will do it */
    int rc = SQLITE_IOERR;
    if (!FAILPOINT(ENGINE_TRUNCATE)) {
        rc = sqlite3_wal_checkpoint_v2(d.db, "main", SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
        FAILPOINT_MARK(ENGINE_TRUNCATED);
    }
    if (rc != SQLITE_OK && rc != SQLITE_BUSY) {
        st = file_db_fail(&d, rc, err, "truncate the WAL");
    }
    job->wal_bytes = file_db_wal_bytes(&d);
    file_db_close(&d);
    return st;
}

span_status engine_flush_run(struct engine_job *job, struct span_error *err)
{
    REQUIRE(!job->ran);
    job->error = (struct span_error){0};
    job->pinned = false;
    generations_free(&job->dropped);
    switch (job->step) {
    case STEP_WRITE:
        job->status = run_write(job, &job->error);
        break;
    case STEP_AHEAD:
        job->status = split_copy_ahead(&job->name, &job->ahead, &job->error);
        break;
    case STEP_CHECKPOINT:
        job->status = run_checkpoint(job, &job->error);
        break;
    case STEP_TRUNCATE:
        job->status = run_truncate(job, &job->error);
        break;
    }
    job->ran = true;
    if (job->status != SPAN_OK && err != NULL) {
        *err = job->error;
    }
    return job->status;
}
