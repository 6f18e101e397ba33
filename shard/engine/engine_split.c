/* Split: the right side as a complete file of its own, made in one go out of the view and the
 * memory generations; see engine_split in engine.h. The left side only moves its upper bound: its
 * rows go later, a chunk a flush. */
#include "base/failpoint.h"
#include "base/invariant.h"
#include "shard/engine/engine_internal.h"

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

/* Copies the view's rows of [lo, hi) of one table. */
static span_status copy_span(struct engine *e, struct writer *w, bool history, struct slice lo,
                             struct slice hi, struct span_error *err)
{
    const char *sql = history ? "SELECT k, ts, v, crc, end_ts FROM history"
                                " WHERE k >= ?1 AND k < ?2 ORDER BY k, ts DESC"
                              : "SELECT k, ts, v, crc FROM current"
                                " WHERE k >= ?1 AND k < ?2 ORDER BY k";
    struct file_db *d = &e->view.conn;
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
        if (stmt_u64(q, 3) != row_crc(key, ts, value)) {
            st = span_fail(err, SPAN_CORRUPT, "%s: checksum of a row does not match", e->name.path);
        } else if (!history) {
            st = writer_current(w, key, ts, value, err);
        } else if (stmt_u64(q, 4) > e->state.horizon) {
            st = writer_history(w, key, ts, stmt_u64(q, 4), value, err);
        }
    }
    if (st == SPAN_OK && rc != SQLITE_DONE) {
        st = file_db_fail(d, rc, err, sql);
    }
    (void)sqlite3_finalize(q);
    return st;
}

static span_status copy_file(struct engine *e, struct writer *w, const struct right_side *r,
                             struct span_error *err)
{
    struct slice end = r->end.size == 0 ? key_space_end() : r->end;
    struct slice user = slice_of(first_user_key, sizeof first_user_key);
    span_status st = SPAN_OK;
    for (int history = 0; st == SPAN_OK && history <= 1; history++) {
        st = copy_span(e, w, history != 0, (struct slice){0}, user, err);
        if (st == SPAN_OK) {
            st = copy_span(e, w, history != 0, r->key, end, err);
        }
    }
    return st;
}

/* Oldest first, as a flush would have written them. */
static span_status copy_memory(struct engine *e, struct writer *w, struct right_side *r,
                               struct span_error *err)
{
    span_status st = SPAN_OK;
    LIST_EACH(it, &e->frozen)
    {
        const struct generation *g = LIST_ENTRY(it, struct generation, link);
        if (st == SPAN_OK && g->seq > e->view.state.seq) {
            st = writer_put_rows(w, &g->rows, e->state.horizon, is_right, r, err);
        }
    }
    if (st == SPAN_OK) {
        st = writer_put_rows(w, &e->active->rows, e->state.horizon, is_right, r, err);
    }
    return st;
}

static span_status build_right(struct engine *e, const struct engine_split_spec *spec,
                               const struct engine_options *opt, struct span_error *err)
{
    struct builder b;
    span_status st = builder_begin(&b, opt, err);
    if (st != SPAN_OK) {
        return st;
    }
    struct right_side r = {.key = spec->key, .end = buf_slice(&e->state.end)};
    st = copy_file(e, &b.writer, &r, err);
    if (st == SPAN_OK) {
        st = copy_memory(e, &b.writer, &r, err);
    }
    for (size_t i = 0; st == SPAN_OK && i < spec->meta_count; i++) {
        st = writer_meta(&b.writer, spec->meta[i].key, spec->meta[i].value, err);
    }
    if (st != SPAN_OK) {
        builder_abort(&b);
        return st;
    }
    struct file_state s = {
        .applied = spec->right_applied, .horizon = e->state.horizon, .max_ts = e->state.max_ts};
    buf_set(&s.start, spec->key);
    buf_set(&s.end, buf_slice(&e->state.end));
    st = builder_finish(&b, &s, err);
    file_state_deinit(&s);
    return st;
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
    struct engine_options opt = file_name_options(&e->name);
    opt.range_id = spec->right_range_id;
    opt.generation = spec->right_generation;
    enum engine_file_state there = ENGINE_FILE_ABSENT;
    span_status st = engine_file_state(&opt, &there, err);
    if (st == SPAN_OK && there != ENGINE_FILE_COMPLETE) {
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
