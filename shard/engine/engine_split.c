/* Split: the right side as a complete file of its own, made of what the left's file holds and of
 * the memory generations; see engine_split in engine.h. The left side only moves its upper bound:
 * its rows go later, a chunk a flush.
 *
 * Nothing of the range is served between the split's record and the end of this, so the long part
 * of it is done before, by the flusher (engine_split_ahead):
 *
 *   flusher   WRITE   memory -> left's file, up to generation S
 *             AHEAD   rows of the right side as of S -> right file, marked unfinished, synced
 *   worker    engine_split: generations above S (nothing was flushed since) -> right file, state,
 *             sync, mark removed
 *
 * What is there after a crash in between is an unfinished file, and goes. */
#include "base/failpoint.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "shard/engine/engine_internal.h"

/* Copied at a time by the flusher: whoever waits for it or for the disk has a chance in between. */
#define PIECE_BYTES (512 * KIB)

static const uint8_t first_user_key[] = {0x01};

struct right_side {
    struct slice key;
    struct slice end; /* the left's bound so far; empty: none */
};

/* Whether a key goes into the right file. */
static bool is_right(void *ctx, struct slice key)
{
    const struct right_side *r = ctx;
    if (key.data[0] == 0) {
        return true;
    }
    return slice_cmp(key, r->key) >= 0 && (r->end.size == 0 || slice_cmp(key, r->end) < 0);
}

/* What is copied from. */
struct source {
    struct file_db *db;
    uint64_t horizon;
};

/* Copies the rows of [lo, hi) of one table; with `rest`, about PIECE_BYTES of them, all versions of
 * a key together, and the key to go on with (empty: that was all). */
static span_status copy_span(const struct source *from, struct writer *w, bool history,
                             struct slice lo, struct slice hi, struct buf *rest,
                             struct span_error *err)
{
    struct buf last = {0};
    size_t bytes = 0;
    const char *sql = history ? "SELECT k, ts, v, crc, end_ts FROM history"
                                " WHERE k >= ?1 AND k < ?2 ORDER BY k, ts DESC"
                              : "SELECT k, ts, v, crc FROM current"
                                " WHERE k >= ?1 AND k < ?2 ORDER BY k";
    struct file_db *d = from->db;
    sqlite3_stmt *q = NULL;
    span_status st = file_db_prepare(d, sql, &q, err);
    if (st != SPAN_OK) {
        return st;
    }
    stmt_bind_slice(q, 1, lo);
    stmt_bind_slice(q, 2, hi);
    int rc = SQLITE_ROW;
    while (st == SPAN_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        struct slice key = stmt_slice(q, 0);
        uint64_t ts = stmt_u64(q, 1);
        struct slice value = stmt_slice(q, 2);
        if (rest != NULL && bytes >= PIECE_BYTES && !slice_eq(key, buf_slice(&last))) {
            buf_set(rest, key);
            break;
        }
        if (rest != NULL) {
            buf_set(&last, key);
            bytes += key.size + value.size;
        }
        if (stmt_u64(q, 3) != row_crc(key, ts, value)) {
            st =
                span_fail(err, SPAN_CORRUPT, "%s: checksum of a row does not match", d->name->path);
        } else if (!history) {
            st = writer_current(w, key, ts, value, err);
        } else if (stmt_u64(q, 4) > from->horizon) {
            st = writer_history(w, key, ts, stmt_u64(q, 4), value, err);
        }
    }
    if (st == SPAN_OK && rc != SQLITE_DONE && rc != SQLITE_ROW) {
        st = file_db_fail(d, rc, err, sql);
    }
    (void)sqlite3_finalize(q);
    buf_deinit(&last);
    return st;
}

/* The right file's parts: of each table, the local keys and those of the right side. */
#define PARTS 4

struct part {
    bool history;
    struct slice lo;
    struct slice hi;
};

static struct part part_of(const struct right_side *r, unsigned i)
{
    struct slice end = r->end.size == 0 ? key_space_end() : r->end;
    struct slice user = slice_of(first_user_key, sizeof first_user_key);
    return (struct part){.history = i >= 2,
                         .lo = i % 2 == 0 ? (struct slice){0} : r->key,
                         .hi = i % 2 == 0 ? user : end};
}

static span_status copy_file(const struct source *from, struct writer *w,
                             const struct right_side *r, struct span_error *err)
{
    span_status st = SPAN_OK;
    for (unsigned i = 0; st == SPAN_OK && i < PARTS; i++) {
        struct part p = part_of(r, i);
        st = copy_span(from, w, p.history, p.lo, p.hi, NULL, err);
    }
    return st;
}

/* What is newer than generation seq; oldest first, as a flush would have written them. */
static span_status copy_memory(struct engine *e, struct writer *w, struct right_side *r,
                               uint64_t seq, struct span_error *err)
{
    span_status st = SPAN_OK;
    LIST_EACH(it, &e->frozen)
    {
        const struct generation *g = LIST_ENTRY(it, struct generation, link);
        if (st == SPAN_OK && g->seq > seq) {
            st = writer_put_rows(w, &g->rows, e->state.horizon, is_right, r, err);
        }
    }
    if (st == SPAN_OK) {
        st = writer_put_rows(w, &e->active->rows, e->state.horizon, is_right, r, err);
    }
    return st;
}

/* Completes the file in b, which holds the left file's rows as of seq. b is gone after it. */
static span_status finish_right(struct engine *e, const struct engine_split_spec *spec,
                                struct builder *b, uint64_t seq, struct span_error *err)
{
    struct right_side r = {.key = spec->key, .end = buf_slice(&e->state.end)};
    span_status st = copy_memory(e, &b->writer, &r, seq, err);
    for (size_t i = 0; st == SPAN_OK && i < spec->meta_count; i++) {
        st = writer_meta(&b->writer, spec->meta[i].key, spec->meta[i].value, err);
    }
    if (st != SPAN_OK) {
        builder_abort(b);
        return st;
    }
    struct file_state s = {
        .applied = spec->right_applied, .horizon = e->state.horizon, .max_ts = e->state.max_ts};
    buf_set(&s.start, spec->key);
    buf_set(&s.end, buf_slice(&e->state.end));
    st = builder_finish(b, &s, err);
    file_state_deinit(&s);
    return st;
}

/* All of it, out of the view. */
static span_status build_right(struct engine *e, const struct engine_split_spec *spec,
                               const struct engine_options *opt, struct span_error *err)
{
    struct builder b;
    span_status st = builder_begin(&b, opt, err);
    if (st != SPAN_OK) {
        return st;
    }
    struct right_side r = {.key = spec->key, .end = buf_slice(&e->state.end)};
    struct source from = {&e->view.conn, e->state.horizon};
    st = copy_file(&from, &b.writer, &r, err);
    if (st != SPAN_OK) {
        builder_abort(&b);
        return st;
    }
    return finish_right(e, spec, &b, e->view.state.seq, err);
}

/* ---- ahead of it -------------------------------------------------------------------------------
 */

static struct engine_options right_options(const struct file_name *left, uint64_t range_id,
                                           uint64_t generation)
{
    struct engine_options opt = file_name_options(left);
    opt.range_id = range_id;
    opt.generation = generation;
    return opt;
}

/* The next piece. */
static span_status copy_piece(struct file_db *d, struct ahead *a, struct span_error *err)
{
    struct file_state state = {0};
    struct buf rest = {0};
    span_status st = file_db_exec(d, "BEGIN", err);
    if (st == SPAN_OK) {
        st = file_db_load_state(d, &state, err);
    }
    if (st == SPAN_OK) {
        struct right_side r = {.key = buf_slice(&a->key), .end = buf_slice(&state.end)};
        struct source from = {d, state.horizon};
        struct part p = part_of(&r, a->part);
        st = copy_span(&from, &a->builder.writer, p.history,
                       a->lo.size > 0 ? buf_slice(&a->lo) : p.lo, p.hi, &rest, err);
    }
    if (st == SPAN_OK) {
        a->part += rest.size == 0 ? 1 : 0;
        buf_set(&a->lo, buf_slice(&rest));
        st = builder_sync(&a->builder, err);
    }
    file_state_deinit(&state);
    buf_deinit(&rest);
    return st;
}

span_status split_copy_ahead(const struct file_name *name, struct ahead *a, struct span_error *err)
{
    struct engine_options opt = right_options(name, a->right_range_id, a->right_generation);
    struct file_db d;
    span_status st = file_db_open(&d, name, false, err);
    if (st == SPAN_OK && !a->building) {
        FAILPOINT_MARK(ENGINE_SPLIT_BEGIN);
        st = builder_begin(&a->builder, &opt, err);
        a->building = st == SPAN_OK;
    }
    if (st == SPAN_OK) {
        st = copy_piece(&d, a, err);
    }
    file_db_close(&d);
    if (st != SPAN_OK && a->building) {
        a->building = false;
        builder_abort(&a->builder);
    }
    a->state = st != SPAN_OK      ? ENGINE_AHEAD_FAILED
               : a->part >= PARTS ? ENGINE_AHEAD_READY
                                  : ENGINE_AHEAD_BUILDING;
    return st;
}

void ahead_deinit(struct ahead *a)
{
    buf_deinit(&a->key);
    buf_deinit(&a->lo);
}

void engine_split_forget(struct engine *e)
{
    if (e->ahead.state == ENGINE_AHEAD_READY) {
        builder_abort(&e->ahead.builder);
    }
    e->ahead.state = ENGINE_AHEAD_NONE;
    e->ahead.status = SPAN_OK;
}

void engine_split_ahead(struct engine *e, struct slice key, uint64_t right_range_id,
                        uint64_t right_generation)
{
    engine_split_forget(e);
    e->ahead.state = ENGINE_AHEAD_BUILDING;
    buf_set(&e->ahead.key, key);
    e->ahead.right_range_id = right_range_id;
    e->ahead.right_generation = right_generation;
}

enum engine_ahead engine_split_ahead_state(const struct engine *e, struct slice key,
                                           uint64_t right_range_id)
{
    const struct ahead *a = &e->ahead;
    bool same = a->right_range_id == right_range_id && slice_eq(buf_slice(&a->key), key);
    return same ? a->state : ENGINE_AHEAD_NONE;
}

bool engine_split_ahead_is_ready(const struct engine *e)
{
    return e->ahead.state == ENGINE_AHEAD_READY;
}

span_status engine_split_ahead_status(const struct engine *e)
{
    return e->ahead.state == ENGINE_AHEAD_FAILED ? e->ahead.status : SPAN_OK;
}

uint64_t engine_split_ahead_range(const struct engine *e, bool *running)
{
    *running = job_builds_ahead(e->job);
    if (*running) {
        return job_ahead_range(e->job);
    }
    bool any = e->ahead.state == ENGINE_AHEAD_BUILDING || e->ahead.state == ENGINE_AHEAD_READY;
    return any ? e->ahead.right_range_id : 0;
}

/* Completes what was built ahead. */
static span_status finish_ahead(struct engine *e, const struct engine_split_spec *spec,
                                struct span_error *err)
{
    struct builder b = e->ahead.builder;
    b.writer.conn.name = &b.name;
    e->ahead.state = ENGINE_AHEAD_NONE;
    INVARIANT(e->ahead.seq == e->view.state.seq);
    return finish_right(e, spec, &b, e->ahead.seq, err);
}

span_status engine_split(struct engine *e, const struct engine_split_spec *spec,
                         struct span_error *err)
{
    struct slice start = buf_slice(&e->state.start);
    struct slice end = buf_slice(&e->state.end);
    if (spec->key.size == 0 || spec->key.data[0] == 0 || slice_cmp(spec->key, start) <= 0 ||
        (end.size != 0 && slice_cmp(spec->key, end) >= 0)) {
        return span_fail(err, SPAN_INVALID, "%s: split key is not inside the range", e->name.path);
    }
    if (job_builds_ahead(e->job) && job_ahead_range(e->job) == spec->right_range_id) {
        return span_fail(err, SPAN_WOULD_WAIT, "%s: the right side is being built", e->name.path);
    }
    struct engine_options opt =
        right_options(&e->name, spec->right_range_id, spec->right_generation);
    bool ready =
        engine_split_ahead_state(e, spec->key, spec->right_range_id) == ENGINE_AHEAD_READY &&
        e->ahead.right_generation == spec->right_generation;
    if (!ready) {
        engine_split_forget(e); /* another one's, perhaps under the same name */
    }
    enum engine_file_state there = ENGINE_FILE_ABSENT;
    span_status st = engine_file_state(&opt, &there, err);
    if (st == SPAN_OK && ready) {
        st = finish_ahead(e, spec, err);
        FAILPOINT_MARK(ENGINE_SPLIT_DONE);
    } else if (st == SPAN_OK && there != ENGINE_FILE_COMPLETE) {
        st = view_ensure(e);
        if (st != SPAN_OK && err != NULL) {
            *err = e->error;
        }
        if (st == SPAN_OK) {
            FAILPOINT_MARK(ENGINE_SPLIT_BEGIN);
            struct span_error failed = {0};
            st = build_right(e, spec, &opt, &failed);
            FAILPOINT_MARK(ENGINE_SPLIT_DONE);
            if (st != SPAN_OK) {
                e->error = failed;
                (void)!engine_note_error(e, st);
                if (err != NULL) {
                    *err = failed;
                }
            }
        }
    }
    if (st == SPAN_OK) {
        st = engine_set_bounds(e, start, spec->key);
    }
    return st;
}

/* ---- size ---- */

static uint64_t pragma_u64(struct file_db *d, const char *sql)
{
    struct span_error err;
    sqlite3_stmt *q = NULL;
    uint64_t n = 0;
    if (file_db_prepare(d, sql, &q, &err) == SPAN_OK && sqlite3_step(q) == SQLITE_ROW) {
        n = stmt_u64(q, 0);
    }
    (void)sqlite3_finalize(q);
    return n;
}

uint64_t engine_file_bytes(struct engine *e, bool *trimming)
{
    *trimming = e->state.trim;
    if (view_ensure(e) != SPAN_OK) {
        return 0;
    }
    struct file_db *d = &e->view.conn;
    uint64_t pages = pragma_u64(d, "PRAGMA page_count");
    uint64_t unused = pragma_u64(d, "PRAGMA freelist_count");
    return pages < unused ? 0 : (pages - unused) * pragma_u64(d, "PRAGMA page_size");
}
