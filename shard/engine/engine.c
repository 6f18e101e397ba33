/* Opening, applying, point reads. See engine.h for the promises, engine_internal.h for the shape.
 */
#include "shard/engine/engine.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/log.h"
#include "shard/engine/engine_internal.h"

/* ---- the view ----------------------------------------------------------------------------------
 */

static const char *const query_text[QUERY_COUNT] = {
    [Q_CURRENT_GET] = "SELECT ts, v, crc FROM current WHERE k = ?1",
    [Q_HISTORY_GET] = "SELECT ts, v, crc, end_ts FROM history WHERE k = ?1 AND ts <= ?2"
                      " ORDER BY ts DESC LIMIT 1",
    [Q_HISTORY_NEWEST] = "SELECT end_ts FROM history WHERE k = ?1 ORDER BY ts DESC LIMIT 1",
    [Q_META_GET] = "SELECT v, crc FROM meta WHERE k = ?1",
    [Q_CURRENT_ASC] = "SELECT k, ts, v, crc FROM current WHERE k >= ?1 AND k < ?2 AND ts <= ?3"
                      " ORDER BY k",
    [Q_CURRENT_DESC] = "SELECT k, ts, v, crc FROM current WHERE k >= ?1 AND k < ?2 AND ts <= ?3"
                       " ORDER BY k DESC",
    /* At most one version of a key is visible at a time, so the order within a key is of no matter.
     */
    [Q_HISTORY_ASC] = "SELECT k, ts, v, crc FROM history WHERE k >= ?1 AND k < ?2 AND ts <= ?3"
                      " AND end_ts > ?3 ORDER BY k, ts DESC",
    [Q_HISTORY_DESC] = "SELECT k, ts, v, crc FROM history WHERE k >= ?1 AND k < ?2 AND ts <= ?3"
                       " AND end_ts > ?3 ORDER BY k DESC, ts",
    [Q_META_ASC] = "SELECT k, 0, v, crc FROM meta WHERE k >= ?1 AND k < ?2 ORDER BY k",
};

span_status engine_note_error(struct engine *e, span_status st)
{
    if (st != SPAN_OK) {
        SPAN_LOG(ERROR, "engine failed", "range=%llu status=%s detail=\"%s\"",
                 (unsigned long long)e->name.range_id, span_status_name(st), e->error.text);
    }
    e->damaged = e->damaged || st == SPAN_CORRUPT;
    return st;
}

/* A replicated entry that cannot be: the same on every replica, and no fault of this file. */
static span_status bad_entry(const struct engine *e)
{
    SPAN_LOG(ERROR, "entry can not be applied", "range=%llu detail=\"%s\"",
             (unsigned long long)e->name.range_id, e->error.text);
    return SPAN_CORRUPT;
}

struct generation *generation_new(uint64_t seq)
{
    struct generation *g = SPAN_NEW(struct generation);
    g->seq = seq;
    list_init(&g->link);
    memtable_init(&g->rows);
    memtable_init(&g->meta);
    return g;
}

void generation_free(struct generation *g)
{
    list_remove(&g->link);
    memtable_deinit(&g->rows);
    memtable_deinit(&g->meta);
    file_state_deinit(&g->state);
    span_free(g);
}

void generations_free(struct list *head)
{
    LIST_EACH_SAFE(it, tmp, head)
    {
        generation_free(LIST_ENTRY(it, struct generation, link));
    }
}

static void view_end(struct engine *e)
{
    if (!e->view.open) {
        return;
    }
    for (int i = 0; i < QUERY_COUNT; i++) {
        if (e->view.queries[i] != NULL) {
            (void)sqlite3_reset(e->view.queries[i]);
        }
    }
    /* A read transaction has nothing to lose: whatever this says, it is over. */
    (void)sqlite3_exec(e->view.conn.db, "ROLLBACK", NULL, NULL, NULL);
    e->view.open = false;
}

/* Whether `sql` gives a row; its first column into out, if asked for. */
static span_status view_probe(struct engine *e, const char *sql, bool *any, struct buf *out)
{
    sqlite3_stmt *q = NULL;
    struct file_db *d = &e->view.conn;
    span_status st = file_db_prepare(d, sql, &q, &e->error);
    if (st != SPAN_OK) {
        return st;
    }
    int rc = sqlite3_step(q);
    *any = rc == SQLITE_ROW;
    if (rc == SQLITE_ROW && out != NULL) {
        buf_set(out, stmt_slice(q, 0));
    } else if (rc != SQLITE_ROW && rc != SQLITE_DONE) {
        st = file_db_fail(d, rc, &e->error, sql);
    }
    (void)sqlite3_finalize(q);
    return st;
}

static span_status view_begin(struct engine *e)
{
    struct file_view *v = &e->view;
    span_status st = file_db_exec(&v->conn, "BEGIN", &e->error);
    if (st != SPAN_OK) {
        return st;
    }
    v->open = true;
    st = file_db_load_state(&v->conn, &v->state, &e->error);
    if (st == SPAN_OK) {
        st = view_probe(e, "SELECT k FROM current ORDER BY k LIMIT 1", &v->has_current,
                        &v->current_min);
    }
    if (st == SPAN_OK) {
        st = view_probe(e, "SELECT k FROM current ORDER BY k DESC LIMIT 1", &v->has_current,
                        &v->current_max);
    }
    if (st == SPAN_OK) {
        st = view_probe(e, "SELECT 1 FROM history LIMIT 1", &v->has_history, NULL);
    }
    if (st == SPAN_OK) {
        st = view_probe(e, "SELECT 1 FROM meta LIMIT 1", &v->has_meta, NULL);
    }
    if (st != SPAN_OK) {
        view_end(e);
    }
    return st;
}

void view_drop(struct engine *e, uint64_t seq)
{
    LIST_EACH_SAFE(it, tmp, &e->frozen)
    {
        struct generation *g = LIST_ENTRY(it, struct generation, link);
        if (g->seq <= seq) {
            list_remove(&g->link);
            list_push_back(&e->dropped, &g->link);
            e->frozen_count--;
        }
    }
}

span_status view_renew(struct engine *e)
{
    view_end(e);
    span_status st = view_begin(e);
    if (st != SPAN_OK) {
        return engine_note_error(e, st);
    }
    /* Rule H6: only what the transaction that reads will use from now on holds. */
    view_drop(e, e->view.state.seq);
    return SPAN_OK;
}

span_status view_ensure(struct engine *e)
{
    if (e->view.open) {
        return SPAN_OK;
    }
    /* Without dropping generations: a job under way may be reading them. What is in both places is
     * read from memory. */
    return engine_note_error(e, view_begin(e));
}

span_status view_query(struct engine *e, enum query q, sqlite3_stmt **out)
{
    span_status st = view_ensure(e);
    if (st == SPAN_OK && e->view.queries[q] == NULL) {
        st = engine_note_error(
            e, file_db_prepare(&e->view.conn, query_text[q], &e->view.queries[q], &e->error));
    }
    *out = e->view.queries[q];
    return st;
}

bool view_may_have(const struct engine *e, struct slice key)
{
    const struct file_view *v = &e->view;
    return v->has_current && slice_cmp(key, buf_slice(&v->current_max)) <= 0 &&
           slice_cmp(key, buf_slice(&v->current_min)) >= 0;
}

/* ---- open and close ----------------------------------------------------------------------------
 */

static span_status init_file(struct file_db *d, struct span_error *err)
{
    sqlite3_stmt *q = NULL;
    span_status st = file_db_prepare(d, "SELECT 1 FROM sqlite_schema", &q, err);
    if (st != SPAN_OK) {
        return st;
    }
    int rc = sqlite3_step(q);
    (void)sqlite3_finalize(q);
    if (rc != SQLITE_DONE) {
        return span_fail(err, SPAN_CORRUPT, "%s: not a file of this program", d->name->path);
    }
    st = file_db_exec(d, "BEGIN IMMEDIATE", err);
    if (st == SPAN_OK) {
        st = file_db_create_schema(d, err);
    }
    if (st == SPAN_OK) {
        struct file_state empty = {0};
        st = file_db_store_state(d, &empty, err);
    }
    if (st == SPAN_OK) {
        st = file_db_exec(d, "COMMIT", err);
    }
    if (st != SPAN_OK) {
        (void)sqlite3_exec(d->db, "ROLLBACK", NULL, NULL, NULL);
    }
    return st;
}

/* Opens the connection and makes sure of the schema. */
static span_status open_file(struct engine *e, const struct engine_options *opt,
                             struct span_error *err)
{
    enum engine_file_state there = ENGINE_FILE_ABSENT;
    span_status st = engine_file_state(opt, &there, err);
    if (st != SPAN_OK) {
        return st;
    }
    if (there == ENGINE_FILE_UNFINISHED) {
        return span_fail(err, SPAN_INVALID, "%s: a restore or split of this file did not finish",
                         e->name.path);
    }
    if (there == ENGINE_FILE_ABSENT && !opt->create) {
        return span_fail(err, SPAN_NOT_FOUND, "%s: no such file", e->name.path);
    }
    if (there == ENGINE_FILE_ABSENT) {
        st = engine_remove_files(opt, err); /* a -wal whose database is gone */
        if (st != SPAN_OK) {
            return st;
        }
    }
    struct file_db *d = &e->view.conn;
    st = file_db_open(d, &e->name, opt->create, err);
    if (there == ENGINE_FILE_ABSENT) {
        /* As in builder_finish: a sync of SQLite's own would fail unnoticed here (rule H4). */
        st = st == SPAN_OK ? file_db_exec(d, "PRAGMA synchronous=OFF", err) : st;
        st = st == SPAN_OK ? file_db_set_wal(d, err) : st;
        st = st == SPAN_OK ? file_db_sync(d, err) : st;
        st = st == SPAN_OK ? file_db_exec(d, "PRAGMA synchronous=FULL", err) : st;
    } else if (st == SPAN_OK) {
        st = file_db_set_wal(d, err);
    }
    struct file_state state = {0};
    if (st == SPAN_OK) {
        st = file_db_load_state(d, &state, err);
    }
    if (st == SPAN_NOT_FOUND) {
        st = opt->create ? init_file(d, err)
                         : span_fail(err, SPAN_CORRUPT, "%s: the file is empty", e->name.path);
    }
    file_state_deinit(&state);
    return st;
}

/* What a killed process left in SQLite's WAL was perhaps never synced: only after a checkpoint may
 * the log before it go. */
static bool checkpoint_at_open(struct engine *e)
{
    int log = 0;
    int done = 0;
    int rc =
        sqlite3_wal_checkpoint_v2(e->view.conn.db, "main", SQLITE_CHECKPOINT_TRUNCATE, &log, &done);
    if (rc == SQLITE_OK) {
        return true;
    }
    struct span_error err;
    span_status st = file_db_fail(&e->view.conn, rc, &err, "checkpoint at open");
    SPAN_LOG(WARN, "engine could not checkpoint", "status=%s detail=\"%s\"", span_status_name(st),
             err.text);
    return false;
}

span_status engine_open(const struct engine_options *opt, struct engine **out,
                        struct span_error *err)
{
    *out = NULL;
    struct engine *e = SPAN_NEW(struct engine);
    file_name_init(&e->name, opt);
    list_init(&e->frozen);
    list_init(&e->dropped);
    span_status st = open_file(e, opt, err);
    bool synced = false;
    if (st == SPAN_OK) {
        synced = checkpoint_at_open(e);
        st = view_begin(e);
        if (st != SPAN_OK && err != NULL) {
            *err = e->error;
        }
    }
    if (st != SPAN_OK) {
        engine_close(e);
        return st;
    }
    file_state_copy(&e->state, &e->view.state);
    e->durable = synced ? e->state.applied : 0;
    e->next_seq = e->view.state.seq + 1;
    e->active = generation_new(e->next_seq++);
    e->gc.min_end = e->view.has_history ? 0 : UINT64_MAX;
    e->gc.added_min = UINT64_MAX;
    *out = e;
    return SPAN_OK;
}

void engine_close(struct engine *e)
{
    if (e == NULL) {
        return;
    }
    REQUIRE(e->job == NULL);
    view_end(e);
    file_db_close(&e->view.conn);
    file_state_deinit(&e->view.state);
    buf_deinit(&e->view.current_min);
    buf_deinit(&e->view.current_max);
    generations_free(&e->frozen);
    generations_free(&e->dropped);
    if (e->active != NULL) {
        generation_free(e->active);
    }
    engine_split_forget(e);
    ahead_deinit(&e->ahead);
    file_state_deinit(&e->state);
    buf_deinit(&e->gc.cursor);
    buf_deinit(&e->scratch);
    buf_deinit(&e->resume);
    file_name_deinit(&e->name);
    span_free(e);
}

span_status engine_destroy(struct engine *e, struct span_error *err)
{
    struct file_name name;
    struct engine_options opt = file_name_options(&e->name);
    file_name_init(&name, &opt);
    engine_close(e);
    opt = file_name_options(&name);
    span_status st = engine_remove_files(&opt, err);
    file_name_deinit(&name);
    return st;
}

const struct span_error *engine_error(const struct engine *e)
{
    return &e->error;
}

bool engine_is_damaged(const struct engine *e)
{
    return e->damaged;
}

/* ---- apply -------------------------------------------------------------------------------------
 */

/* Newest version of key in memory, 0 if none. */
static uint64_t memory_newest_ts(const struct engine *e, struct slice key)
{
    for (struct generation *g = gen_newest(e); g != NULL; g = gen_older(e, g)) {
        const struct mem_key *k = memtable_find(&g->rows, key);
        if (k != NULL) {
            return k->newest->ts;
        }
    }
    return 0;
}

/* First column of the row that q gives for key, 0 if there is none. */
static span_status query_ts(struct engine *e, enum query which, struct slice key, uint64_t *out)
{
    sqlite3_stmt *q = NULL;
    span_status st = view_query(e, which, &q);
    if (st != SPAN_OK) {
        return st;
    }
    stmt_bind_slice(q, 1, key);
    int rc = sqlite3_step(q);
    if (rc == SQLITE_ROW) {
        *out = stmt_u64(q, 0);
    } else if (rc != SQLITE_DONE) {
        st = engine_note_error(e, file_db_fail(&e->view.conn, rc, &e->error, "read"));
    }
    (void)sqlite3_reset(q);
    return st;
}

/* Newest version of key in the file, 0 if none is known. A deleted key's is where its last version
 * ended. */
static span_status file_newest_ts(struct engine *e, struct slice key, uint64_t *out)
{
    *out = 0;
    span_status st = view_ensure(e);
    if (st == SPAN_OK && view_may_have(e, key)) {
        st = query_ts(e, Q_CURRENT_GET, key, out);
    }
    if (st == SPAN_OK && *out == 0 && e->view.has_history) {
        st = query_ts(e, Q_HISTORY_NEWEST, key, out);
    }
    return st;
}

span_status engine_newest_ts(struct engine *e, struct slice key, struct tt_ts *out)
{
    out->ns = file_state_has_key(&e->state, key) ? memory_newest_ts(e, key) : 0;
    if (out->ns != 0 || !file_state_has_key(&e->state, key)) {
        return SPAN_OK;
    }
    return file_newest_ts(e, key, &out->ns);
}

/* Versions of a key come in increasing order (A1's assert). Usually ts is above everything in the
 * range, and nothing need be looked up. */
static span_status check_order(struct engine *e, struct slice key, uint64_t ts)
{
    if (ts > e->state.max_ts) {
        return SPAN_OK;
    }
    uint64_t newest = memory_newest_ts(e, key);
    if (newest == 0 && ts <= e->view.state.max_ts) {
        span_status st = file_newest_ts(e, key, &newest);
        if (st != SPAN_OK) {
            return st;
        }
    }
    if (ts > newest) {
        return SPAN_OK;
    }
    struct engine_value v; /* is it the file that is wrong? */
    span_status st = engine_get(e, key, ENGINE_NEWEST, &v);
    if (st != SPAN_OK) {
        return st;
    }
    (void)!span_fail(&e->error, SPAN_CORRUPT,
                     "%s: version %llu of a key does not follow its version %llu", e->name.path,
                     (unsigned long long)ts, (unsigned long long)newest);
    return bad_entry(e);
}

static span_status check_sizes(struct engine *e, struct slice key, struct slice value)
{
    if (key.size != 0 && key.size <= ENGINE_KEY_BYTES_MAX && value.size <= ENGINE_VALUE_BYTES_MAX) {
        return SPAN_OK;
    }
    (void)!span_fail(&e->error, SPAN_CORRUPT, "%s: key of %zu and value of %zu bytes", e->name.path,
                     key.size, value.size);
    return bad_entry(e);
}

static span_status add_version(struct engine *e, struct slice key, struct tt_ts ts,
                               struct slice value, bool tombstone)
{
    span_status st = check_sizes(e, key, value);
    if (st != SPAN_OK) {
        return st;
    }
    if (ts.ns == 0 || ts.ns > INT64_MAX) {
        (void)!span_fail(&e->error, SPAN_CORRUPT, "%s: timestamp %llu", e->name.path,
                         (unsigned long long)ts.ns);
        return bad_entry(e);
    }
    st = check_order(e, key, ts.ns);
    if (st != SPAN_OK) {
        return st;
    }
    memtable_add(&e->active->rows, key, ts.ns, value, tombstone);
    e->state.max_ts = ts.ns > e->state.max_ts ? ts.ns : e->state.max_ts;
    e->open_entry = true;
    return SPAN_OK;
}

span_status engine_put(struct engine *e, struct slice key, struct tt_ts ts, struct slice value)
{
    return add_version(e, key, ts, value, false);
}

span_status engine_delete(struct engine *e, struct slice key, struct tt_ts ts)
{
    return add_version(e, key, ts, (struct slice){0}, true);
}

static span_status set_meta(struct engine *e, struct slice key, struct slice value, bool tombstone)
{
    span_status st = check_sizes(e, key, value);
    if (st == SPAN_OK) {
        memtable_set(&e->active->meta, key, value, tombstone);
        e->open_entry = true;
    }
    return st;
}

span_status engine_meta_put(struct engine *e, struct slice key, struct slice value)
{
    return set_meta(e, key, value, false);
}

span_status engine_meta_delete(struct engine *e, struct slice key)
{
    return set_meta(e, key, (struct slice){0}, true);
}

void engine_set_applied(struct engine *e, uint64_t index)
{
    REQUIRE(index >= e->state.applied);
    e->state.applied = index;
    e->open_entry = false;
}

uint64_t engine_applied(const struct engine *e)
{
    return e->state.applied;
}

uint64_t engine_applied_flushed(const struct engine *e)
{
    return e->view.state.applied;
}

uint64_t engine_applied_durable(const struct engine *e)
{
    return e->durable;
}

void engine_set_horizon(struct engine *e, struct tt_ts horizon)
{
    if (horizon.ns > e->state.horizon && horizon.ns <= INT64_MAX) {
        e->state.horizon = horizon.ns;
        e->open_entry = true;
    }
}

struct tt_ts engine_horizon(const struct engine *e)
{
    return tt_ts_of(e->state.horizon);
}

struct tt_ts engine_max_ts(const struct engine *e)
{
    return tt_ts_of(e->state.max_ts);
}

span_status engine_set_bounds(struct engine *e, struct slice start, struct slice end)
{
    struct slice old_start = buf_slice(&e->state.start);
    struct slice old_end = buf_slice(&e->state.end);
    if (slice_eq(start, old_start) && slice_eq(end, old_end)) {
        return SPAN_OK;
    }
    bool wider_end = old_end.size != 0 && (end.size == 0 || slice_cmp(end, old_end) > 0);
    if (wider_end || slice_cmp(start, old_start) < 0) {
        return span_fail(&e->error, SPAN_UNSUPPORTED, "%s: bounds of a range only shrink",
                         e->name.path);
    }
    buf_set(&e->state.start, start);
    buf_set(&e->state.end, end);
    e->state.trim = true;
    e->open_entry = true;
    engine_split_forget(e); /* what it would hold is not what the right side is any more */
    return SPAN_OK;
}

uint64_t engine_active_bytes(const struct engine *e)
{
    return e->active->rows.bytes + e->active->meta.bytes;
}

uint64_t engine_memory_bytes(const struct engine *e)
{
    uint64_t sum = 0;
    for (struct generation *g = gen_newest(e); g != NULL; g = gen_older(e, g)) {
        sum += g->rows.bytes + g->meta.bytes;
    }
    return sum;
}

/* ---- point reads -------------------------------------------------------------------------------
 */

/* Reads the row the statement stands on: columns ts, v, crc. */
static span_status take_row(struct engine *e, sqlite3_stmt *q, struct slice key,
                            struct engine_value *out)
{
    uint64_t ts = stmt_u64(q, 0);
    struct slice value = stmt_slice(q, 1);
    if (stmt_u64(q, 2) != row_crc(key, ts, value)) { /* first: key may be a slice of the scratch */
        return span_fail(&e->error, SPAN_CORRUPT, "%s: checksum of a row does not match",
                         e->name.path);
    }
    buf_set(&e->scratch, value);
    out->found = ENGINE_FOUND;
    out->value = buf_slice(&e->scratch);
    out->ts = tt_ts_of(ts);
    out->seen = out->ts;
    return SPAN_OK;
}

/* The newest version in `current` (history false) or the one of `history` visible at `at`. */
static span_status file_get_from(struct engine *e, bool history, struct slice key, uint64_t at,
                                 struct engine_value *out)
{
    sqlite3_stmt *q = NULL;
    span_status st = view_query(e, history ? Q_HISTORY_GET : Q_CURRENT_GET, &q);
    if (st != SPAN_OK) {
        return st;
    }
    stmt_bind_slice(q, 1, key);
    if (history) {
        stmt_bind_u64(q, 2, at);
    }
    int rc = sqlite3_step(q);
    if (rc == SQLITE_ROW) {
        if (stmt_u64(q, 0) <= at && (!history || stmt_u64(q, 3) > at)) {
            st = take_row(e, q, key, out);
        }
    } else if (rc != SQLITE_DONE) {
        st = file_db_fail(&e->view.conn, rc, &e->error, "read");
    }
    (void)sqlite3_reset(q);
    return engine_note_error(e, st);
}

static span_status file_get(struct engine *e, struct slice key, uint64_t at,
                            struct engine_value *out)
{
    span_status st = view_ensure(e);
    if (st == SPAN_OK && view_may_have(e, key)) {
        st = file_get_from(e, false, key, at, out);
    }
    /* At or above everything in the file, what is not in `current` is not there. */
    if (st == SPAN_OK && out->found == ENGINE_ABSENT && at < e->view.state.max_ts &&
        e->view.has_history) {
        st = file_get_from(e, true, key, at, out);
    }
    if (st == SPAN_OK && out->found == ENGINE_ABSENT) {
        /* Perhaps there was a tombstone, which the file does not keep (rule D0). */
        out->seen = tt_min(tt_ts_of(at), tt_ts_of(engine_deleted_max_ts(e)));
    }
    return st;
}

span_status engine_get(struct engine *e, struct slice key, struct tt_ts at_ts,
                       struct engine_value *out)
{
    *out = (struct engine_value){.found = ENGINE_ABSENT};
    if (at_ts.ns < e->state.horizon) {
        return SPAN_BELOW_HORIZON;
    }
    if (!file_state_has_key(&e->state, key)) {
        return SPAN_OK;
    }
    uint64_t at = ts_clamp(at_ts.ns);
    for (struct generation *g = gen_newest(e); g != NULL; g = gen_older(e, g)) {
        const struct mem_key *k = memtable_find(&g->rows, key);
        const struct mem_version *v = k == NULL ? NULL : mem_key_at(k, at);
        if (v != NULL) {
            out->found = v->tombstone ? ENGINE_TOMBSTONE : ENGINE_FOUND;
            out->value = mem_version_slice(v);
            out->ts = tt_ts_of(v->ts);
            out->seen = out->ts;
            return SPAN_OK;
        }
    }
    return file_get(e, key, at, out);
}

span_status engine_meta_get(struct engine *e, struct slice key, struct slice *value)
{
    *value = (struct slice){0};
    for (struct generation *g = gen_newest(e); g != NULL; g = gen_older(e, g)) {
        const struct mem_key *k = memtable_find(&g->meta, key);
        if (k != NULL) {
            *value = mem_version_slice(k->newest);
            return k->newest->tombstone ? SPAN_NOT_FOUND : SPAN_OK;
        }
    }
    span_status st = view_ensure(e);
    if (st != SPAN_OK || !e->view.has_meta) {
        return st != SPAN_OK ? st : SPAN_NOT_FOUND;
    }
    sqlite3_stmt *q = NULL;
    st = view_query(e, Q_META_GET, &q);
    if (st != SPAN_OK) {
        return st;
    }
    stmt_bind_slice(q, 1, key);
    int rc = sqlite3_step(q);
    if (rc == SQLITE_ROW) {
        if (stmt_u64(q, 1) == row_crc(key, 0, stmt_slice(q, 0))) {
            buf_set(&e->scratch, stmt_slice(q, 0));
            *value = buf_slice(&e->scratch);
        } else {
            st = span_fail(&e->error, SPAN_CORRUPT, "%s: checksum of a meta row does not match",
                           e->name.path);
        }
    } else if (rc != SQLITE_DONE) {
        st = file_db_fail(&e->view.conn, rc, &e->error, "read");
    }
    (void)sqlite3_reset(q);
    return st == SPAN_OK && rc == SQLITE_DONE ? SPAN_NOT_FOUND : engine_note_error(e, st);
}
