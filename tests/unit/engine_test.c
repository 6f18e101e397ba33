/* The engine against a naive model of it: random work with flushes at every step, reopening,
 * garbage collection, snapshots, splits. Faults and kills are in engine_fault_test.c. */
#include "base/limits.h"
#include "tests/unit/engine_model.h"

#include <sqlite3.h>
#include <sys/wait.h>

/* One step of whatever flush is under way, or begins one. */
static void step_flush(struct engine *e, struct engine_job **job, struct rng *r)
{
    if (*job == NULL) {
        *job = engine_freeze(e);
        return;
    }
    struct engine_flush_result result;
    bool run = rng_below(r, 8) != 0; /* now and then a job is given back unrun */
    if (run) {
        struct span_error err = {0};
        cr_assert_eq(engine_flush_run(*job, &err), SPAN_OK, "%s", err.text);
    }
    *job = engine_flush_done(e, *job, &result);
    cr_assert_eq(result.status, run ? SPAN_OK : SPAN_CANCELED);
    cr_assert(result.durable <= result.flushed && result.flushed <= engine_applied(e));
}

static void drop_job(struct engine *e, struct engine_job **job)
{
    struct engine_flush_result result;
    while (*job != NULL) {
        *job = engine_flush_done(e, *job, &result);
    }
}

/* Restart: what the file holds is exactly its index; replay gives the rest. */
static struct engine *reopen(struct engine *e, const struct engine_options *opt,
                             const struct model *m, struct rng *r)
{
    uint64_t flushed = engine_applied_flushed(e);
    engine_close(e);
    e = must_open(opt);
    cr_assert_eq(engine_applied(e), flushed);
    cr_assert_eq(engine_applied_durable(e), engine_applied(e));
    struct model then = model_at(m, engine_applied(e));
    check_all(e, &then, r);
    model_deinit(&then);
    model_replay(m, e);
    check_all(e, m, r);
    return e;
}

static void random_work(uint64_t steps)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 7, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    struct engine_job *job = NULL;
    struct model m;
    model_init(&m);
    for (uint64_t step = 0; step < steps; step++) {
        model_random_entry(&m, &r, e);
        uint64_t flush_steps = rng_below(&r, 3);
        for (uint64_t i = 0; i < flush_steps; i++) {
            step_flush(e, &job, &r);
        }
        for (int i = 0; i < 5; i++) {
            check_some(e, &m, &r);
        }
        if (rng_below(&r, 100) == 0) {
            check_all(e, &m, &r);
        }
        if (rng_below(&r, 150) == 0) {
            if (job != NULL && rng_below(&r, 2) == 0) {
                struct span_error err;
                cr_assert_eq(engine_flush_run(job, &err), SPAN_OK);
                opt.create = false;
            }
            drop_job(e, &job);
            e = reopen(e, &opt, &m, &r);
        }
    }
    drop_job(e, &job);
    check_all(e, &m, &r);
    must_flush(e);
    check_all(e, &m, &r);
    cr_assert_eq(engine_applied_durable(e), m.applied);
    engine_close(e);
    model_deinit(&m);
    temp_dir_remove(dir);
}

Test(engine, agrees_with_the_model_under_random_work, .timeout = 120)
{
    for (int i = 0; i < 4; i++) {
        random_work(700);
    }
}

Test(engine, garbage_collection_keeps_all_that_is_visible_at_the_horizon, .timeout = 60)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    for (int round = 0; round < 30; round++) {
        for (int i = 0; i < 30; i++) {
            model_random_entry(&m, &r, e);
        }
        struct op horizon = {.kind = OP_HORIZON, .ts = m.max_ts - rng_below(&r, 50)};
        struct op end = {.kind = OP_END, .ts = m.applied + 1};
        model_add(&m, horizon);
        model_add(&m, end);
        model_apply(&m, &horizon);
        model_apply(&m, &end);
        engine_apply_op(e, &horizon);
        engine_apply_op(e, &end);
        must_flush(e);
        for (uint64_t at = m.horizon; at <= m.max_ts; at++) {
            check_get(e, &m, (unsigned)rng_below(&r, MODEL_KEYS), at);
        }
        check_all(e, &m, &r);
    }
    engine_close(e);
    model_deinit(&m);
    temp_dir_remove(dir);
}

static void must_exit(pid_t child)
{
    int status = 0;
    cr_assert(child > 0);
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- snapshots ---------------------------------------------------------------------------------
 */

/* Streams the file of `from` into one of generation `to`. */
static struct engine_snapshot_info copy_file(const struct engine_options *from,
                                             const struct engine_options *to, size_t chunk_bytes)
{
    struct engine_snapshot *s = NULL;
    struct engine_restore *in = NULL;
    struct engine_snapshot_info sent;
    struct engine_snapshot_info got;
    struct span_error err = {0};
    cr_assert_eq(engine_snapshot_open(from, &s, &sent, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(engine_restore_begin(to, &in, &err), SPAN_OK, "%s", err.text);
    struct buf chunk = {0};
    bool done = false;
    while (!done) {
        cr_assert_eq(engine_snapshot_next(s, chunk_bytes, &chunk, &done, &err), SPAN_OK, "%s",
                     err.text);
        cr_assert_eq(engine_restore_feed(in, buf_slice(&chunk), &err), SPAN_OK, "%s", err.text);
    }
    cr_assert_eq(engine_restore_finish(in, &got, &err), SPAN_OK, "%s", err.text);
    engine_snapshot_close(s);
    buf_deinit(&chunk);
    cr_assert_eq(got.applied, sent.applied);
    cr_assert_eq(got.max_ts.ns, sent.max_ts.ns);
    return got;
}

static bool not_own(void *ctx, struct slice key)
{
    (void)ctx;
    return !slice_eq(key, slice_str("own"));
}

Test(engine, a_snapshot_restores_to_the_state_at_its_index, .timeout = 60)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 3, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    struct engine_job *job = NULL;
    struct model m;
    model_init(&m);
    for (int round = 0; round < 15; round++) {
        for (int i = 0; i < 60; i++) {
            model_random_entry(&m, &r, e);
            step_flush(e, &job, &r);
        }
        struct engine_options next = opt;
        next.generation = 2;
        struct engine_snapshot_info info = copy_file(&opt, &next, rng_between(&r, 1, 20000));
        struct engine *copy = must_open(&next);
        cr_assert_eq(engine_applied(copy), info.applied);
        struct model then = model_at(&m, info.applied);
        check_all(copy, &then, &r);
        /* The copy goes on with the log like any replica, and ends up the same. */
        model_replay(&m, copy);
        check_all(copy, &m, &r);
        uint64_t a = 0;
        uint64_t b = 1;
        cr_assert_eq(engine_digest(e, tt_ts_of(m.max_ts), NULL, NULL, &a), SPAN_OK);
        cr_assert_eq(engine_digest(copy, tt_ts_of(m.max_ts), NULL, NULL, &b), SPAN_OK);
        cr_assert_eq(a, b);
        /* A row of its own makes a replica differ, unless it is left out. */
        cr_assert_eq(engine_meta_put(copy, slice_str("own"), slice_str("x")), SPAN_OK);
        cr_assert_eq(engine_digest(copy, tt_ts_of(m.max_ts), NULL, NULL, &b), SPAN_OK);
        cr_assert_neq(a, b);
        cr_assert_eq(engine_digest(copy, tt_ts_of(m.max_ts), not_own, NULL, &b), SPAN_OK);
        cr_assert_eq(a, b);
        struct span_error err = {0};
        cr_assert_eq(engine_destroy(copy, &err), SPAN_OK, "%s", err.text);
        model_deinit(&then);
    }
    drop_job(e, &job);
    engine_close(e);
    model_deinit(&m);
    temp_dir_remove(dir);
}

Test(engine, a_pinned_snapshot_stays_as_it_was_and_holds_the_checkpoint_back)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 3, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    for (int i = 0; i < 50; i++) {
        model_random_entry(&m, &r, e);
    }
    must_flush(e);
    struct engine_snapshot *s = NULL;
    struct engine_snapshot_info info;
    struct span_error err = {0};
    cr_assert_eq(engine_snapshot_open(&opt, &s, &info, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(info.applied, 50);

    model_random_entry(&m, &r, e);
    struct engine_job *job = engine_freeze(e);
    struct engine_flush_result result = {0};
    bool pinned = false;
    while (job != NULL) {
        cr_assert_eq(engine_flush_run(job, &err), SPAN_OK, "%s", err.text);
        job = engine_flush_done(e, job, &result);
        pinned = pinned || result.checkpoint_pinned;
    }
    cr_assert(pinned);
    cr_assert_eq(result.flushed, 51);
    cr_assert_eq(result.durable, 50);
    check_all(e, &m, &r);
    engine_snapshot_close(s);
    must_flush(e);
    cr_assert_eq(engine_applied_durable(e), 51);
    engine_close(e);
    model_deinit(&m);
    temp_dir_remove(dir);
}

Test(engine, an_interrupted_restore_is_invisible_and_removable)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 3, .generation = 1, .create = true};
    struct engine_options next = {.dir = dir, .range_id = 3, .generation = 2};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    for (int i = 0; i < 50; i++) {
        model_random_entry(&m, &r, e);
    }
    must_flush(e);
    struct engine_snapshot *s = NULL;
    struct engine_snapshot_info info;
    struct engine_restore *in = NULL;
    struct span_error err = {0};
    struct buf chunk = {0};
    bool done = false;
    cr_assert_eq(engine_snapshot_open(&opt, &s, &info, &err), SPAN_OK);
    cr_assert_eq(engine_snapshot_next(s, 100, &chunk, &done, &err), SPAN_OK);
    cr_assert_not(done);
    pid_t child = fork();
    if (child == 0) { /* dies in the middle of receiving */
        span_status st = engine_restore_begin(&next, &in, &err);
        st = st != SPAN_OK ? st : engine_restore_feed(in, buf_slice(&chunk), &err);
        _exit(st == SPAN_OK ? 0 : 1);
    }
    must_exit(child);
    enum engine_file_state state = ENGINE_FILE_ABSENT;
    cr_assert_eq(engine_file_state(&next, &state, &err), SPAN_OK);
    cr_assert_eq(state, ENGINE_FILE_UNFINISHED);
    engine_snapshot_close(s);
    struct engine *copy = NULL;
    next.create = true;
    cr_assert_eq(engine_open(&next, &copy, &err), SPAN_INVALID);
    cr_assert_eq(engine_snapshot_open(&next, &s, &info, &err), SPAN_NOT_FOUND);
    engine_close(e);
    model_deinit(&m);
    buf_deinit(&chunk);
    temp_dir_remove(dir);
}

Test(engine, damaged_or_misplaced_snapshot_chunks_are_refused)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 3, .generation = 1, .create = true};
    struct engine_options next = {.dir = dir, .range_id = 3, .generation = 2};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    for (int i = 0; i < 80; i++) {
        model_random_entry(&m, &r, e);
    }
    must_flush(e);
    struct engine_snapshot *s = NULL;
    struct engine_snapshot_info info;
    struct span_error err = {0};
    struct buf chunk[2] = {{0}};
    bool done = false;
    cr_assert_eq(engine_snapshot_open(&opt, &s, &info, &err), SPAN_OK);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(engine_snapshot_next(s, 600, &chunk[i], &done, &err), SPAN_OK);
        cr_assert_not(done);
    }
    engine_snapshot_close(s);
    struct engine_restore *in = NULL;
    cr_assert_eq(engine_restore_begin(&next, &in, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(engine_restore_feed(in, buf_slice(&chunk[1]), &err), SPAN_CORRUPT);
    cr_assert_eq(engine_restore_feed(in, slice_of(chunk[0].data, 5), &err), SPAN_CORRUPT);
    cr_assert_eq(engine_restore_feed(in, (struct slice){0}, &err), SPAN_CORRUPT);
    for (int i = 0; i < 200; i++) {
        size_t at = (size_t)rng_below(&r, chunk[0].size);
        uint8_t bit = (uint8_t)(1U << rng_below(&r, 8));
        chunk[0].data[at] ^= bit;
        cr_assert_eq(engine_restore_feed(in, buf_slice(&chunk[0]), &err), SPAN_CORRUPT);
        chunk[0].data[at] ^= bit;
    }
    cr_assert_eq(engine_restore_feed(in, buf_slice(&chunk[0]), &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(engine_restore_feed(in, buf_slice(&chunk[0]), &err), SPAN_CORRUPT);
    /* Not the whole stream: no file. */
    cr_assert_eq(engine_restore_finish(in, &info, &err), SPAN_CORRUPT);
    enum engine_file_state state = ENGINE_FILE_COMPLETE;
    cr_assert_eq(engine_file_state(&next, &state, &err), SPAN_OK);
    cr_assert_eq(state, ENGINE_FILE_ABSENT);
    engine_close(e);
    model_deinit(&m);
    buf_deinit(&chunk[0]);
    buf_deinit(&chunk[1]);
    temp_dir_remove(dir);
}

/* ---- split -------------------------------------------------------------------------------------
 */

static span_status split_at(struct engine *e, unsigned key, const struct model *m,
                            struct span_error *err)
{
    char text[32];
    char meta_text[MODEL_META][32];
    struct buf values[MODEL_META] = {{0}};
    struct engine_meta_row rows[MODEL_META];
    size_t count = 0;
    for (unsigned i = 0; i < MODEL_META; i++) {
        if (m->meta[i] != 0) {
            model_value(m->meta[i], &values[i]);
            rows[count++] =
                (struct engine_meta_row){model_meta_key(i, meta_text[i]), buf_slice(&values[i])};
        }
    }
    struct engine_split_spec spec = {.key = model_key(key, text),
                                     .right_range_id = 8,
                                     .right_generation = 1,
                                     .right_applied = m->applied,
                                     .meta = rows,
                                     .meta_count = count};
    span_status st = engine_split(e, &spec, err);
    for (unsigned i = 0; i < MODEL_META; i++) {
        buf_deinit(&values[i]);
    }
    return st;
}

/* The right side's file is built ahead while entries go on: until it is there, or for some time. It
 * may be of another split, or not be wanted any more. */
static void build_ahead(struct engine *e, struct engine_job **job, unsigned cut, bool all,
                        struct model *m, struct rng *r)
{
    char text[32];
    bool other = !all && rng_below(r, 4) == 0;
    struct slice key = model_key(other ? cut - 1 : cut, text);
    engine_split_ahead(e, key, 8, 1);
    cr_assert_eq(engine_split_ahead_state(e, key, 8), ENGINE_AHEAD_BUILDING);
    for (int i = 0; all ? engine_split_ahead_state(e, key, 8) == ENGINE_AHEAD_BUILDING : i < 3;
         i++) {
        model_random_entry(m, r, e);
        step_flush(e, job, r);
        if (all && engine_split_ahead_state(e, key, 8) == ENGINE_AHEAD_FAILED) {
            cr_assert_eq(engine_split_ahead_status(e), SPAN_CANCELED, "given back unrun");
            engine_split_ahead(e, key, 8, 1);
        }
    }
    cr_assert(!all || engine_split_ahead_is_ready(e));
    if (all) {
        cr_assert_null(engine_freeze(e), "what came since must stay in memory");
    }
    if (!all && rng_below(r, 4) == 0) {
        engine_split_forget(e);
        cr_assert(!engine_split_ahead_is_ready(e));
    }
    for (uint64_t n = rng_below(r, 30); n > 0; n--) {
        model_random_entry(m, r, e);
    }
}

Test(engine, after_a_split_left_and_right_are_the_model, .timeout = 120)
{
    for (int round = 0; round < 18; round++) {
        struct rng r;
        test_seed(&r);
        char *dir = temp_dir();
        struct engine_options opt = {.dir = dir, .range_id = 7, .generation = 4, .create = true};
        struct engine_options right_opt = {.dir = dir, .range_id = 8, .generation = 1};
        struct engine *e = must_open(&opt);
        struct engine_job *job = NULL;
        struct model m;
        model_init(&m);
        for (int i = 0; i < 150; i++) {
            model_random_entry(&m, &r, e);
            for (uint64_t n = rng_below(&r, 4); n > 0; n--) {
                step_flush(e, &job, &r);
            }
        }
        unsigned cut = (unsigned)rng_between(&r, 11, MODEL_KEYS - 1);
        struct span_error err = {0};
        if (round % 3 != 0) {
            build_ahead(e, &job, cut, round % 3 == 1, &m, &r);
        }
        span_status st;
        while ((st = split_at(e, cut, &m, &err)) == SPAN_WOULD_WAIT) {
            step_flush(e, &job, &r);
        }
        cr_assert_eq(st, SPAN_OK, "%s", err.text);
        struct op end = {.kind = OP_END, .ts = m.applied + 1};
        struct model right = model_at(&m, m.applied);
        right.first_key = cut;
        model_add(&m, end);
        model_apply(&m, &end);
        m.end_key = cut;
        engine_apply_op(e, &end);

        struct engine *b = must_open(&right_opt);
        check_all(b, &right, &r);
        check_all(e, &m, &r);
        /* Both go on, the left through the flushes that drop the right's rows. */
        for (int i = 0; i < 60; i++) {
            model_random_entry(&m, &r, e);
            model_random_entry(&right, &r, b);
            step_flush(e, &job, &r);
            check_some(e, &m, &r);
            check_some(b, &right, &r);
        }
        drop_job(e, &job);
        must_flush(b);
        must_flush(e);
        check_all(b, &right, &r);
        check_all(e, &m, &r);
        engine_close(b);
        engine_close(e);
        opt.create = false;
        e = must_open(&opt);
        b = must_open(&right_opt);
        check_all(b, &right, &r);
        check_all(e, &m, &r);
        engine_close(b);
        engine_close(e);
        model_deinit(&m);
        model_deinit(&right);
        temp_dir_remove(dir);
    }
}

Test(engine, a_replayed_split_keeps_a_complete_right_side_and_rebuilds_an_unfinished_one)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 7, .generation = 1, .create = true};
    struct engine_options right_opt = {.dir = dir, .range_id = 8, .generation = 1};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    for (int i = 0; i < 100; i++) {
        model_random_entry(&m, &r, e);
    }
    struct span_error err = {0};
    /* A half-built file of an earlier try. */
    struct engine_restore *in = NULL;
    pid_t child = fork();
    if (child == 0) {
        _exit(engine_restore_begin(&right_opt, &in, &err) == SPAN_OK ? 0 : 1);
    }
    must_exit(child);
    cr_assert_eq(split_at(e, 60, &m, &err), SPAN_OK, "%s", err.text);
    struct engine *b = must_open(&right_opt);
    struct model right = model_at(&m, m.applied);
    right.first_key = 60;
    check_all(b, &right, &r);
    model_random_entry(&right, &r, b);
    must_flush(b);
    engine_close(b);
    engine_close(e); /* the left's part of the split was never flushed */

    e = must_open(&opt);
    model_replay(&m, e);
    cr_assert_eq(split_at(e, 60, &m, &err), SPAN_OK, "%s", err.text);
    b = must_open(&right_opt);
    check_all(b, &right, &r);
    m.end_key = 60;
    check_all(e, &m, &r);
    cr_assert_eq(split_at(e, 60, &m, &err), SPAN_INVALID, "not inside the bounds any more");
    cr_assert_eq(engine_set_bounds(e, (struct slice){0}, (struct slice){0}), SPAN_UNSUPPORTED);
    engine_close(b);
    engine_close(e);
    model_deinit(&m);
    model_deinit(&right);
    temp_dir_remove(dir);
}

/* Rows of a query on the file itself, beside the engine. */
static int64_t file_count(const struct engine_options *opt, const char *sql)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *q = NULL;
    char *path = span_asprintf("%s/r%llu.g%llu.db", opt->dir, (unsigned long long)opt->range_id,
                               (unsigned long long)opt->generation);
    cr_assert_eq(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
    cr_assert_eq(sqlite3_prepare_v2(db, sql, -1, &q, NULL), SQLITE_OK, "%s", sqlite3_errmsg(db));
    cr_assert_eq(sqlite3_step(q), SQLITE_ROW);
    int64_t count = sqlite3_column_int64(q, 0);
    (void)sqlite3_finalize(q);
    (void)sqlite3_close(db);
    span_free(path);
    return count;
}

/* Flushes while the engine says there is garbage; how often it had to. */
static int flush_until_clean(struct engine *e)
{
    struct engine_flush_result result = {.work_left = true};
    int jobs = 0;
    for (; result.work_left; jobs++) {
        cr_assert(jobs < 100);
        struct engine_job *job = engine_freeze(e);
        cr_assert_not_null(job);
        while (job != NULL) {
            struct span_error err = {0};
            cr_assert_eq(engine_flush_run(job, &err), SPAN_OK, "%s", err.text);
            job = engine_flush_done(e, job, &result);
        }
        engine_set_applied(e, engine_applied(e) + 1);
    }
    return jobs;
}

static void put_numbered(struct engine *e, unsigned count, uint64_t ts)
{
    for (unsigned i = 0; i < count; i++) {
        char text[16];
        struct slice key = slice_of(text, (size_t)snprintf(text, sizeof text, "%06u", i));
        cr_assert_eq(engine_put(e, key, tt_ts_of(ts + i), slice_str("value")), SPAN_OK);
    }
    engine_set_applied(e, engine_applied(e) + 1);
}

/* A file keeps no tombstone of a key that it does not have, so what is not found may have been
 * deleted as late as anything in it (rule D0): also in the file of a range that was taken in.
 * Seeds 500051 and 500497 of the simulator. */
Test(engine, what_was_deleted_in_a_range_counts_as_seen_after_its_merge)
{
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 7, .generation = 1, .create = true};
    struct engine_options right_opt = {.dir = dir, .range_id = 8, .generation = 1};
    struct engine *e = must_open(&opt);
    struct span_error err = {0};
    put_numbered(e, 10, 100);
    struct engine_split_spec spec = {.key = slice_str("000005"),
                                     .right_range_id = 8,
                                     .right_generation = 1,
                                     .right_applied = engine_applied(e)};
    cr_assert_eq(engine_split(e, &spec, &err), SPAN_OK, "%s", err.text);
    engine_set_applied(e, engine_applied(e) + 1);
    (void)flush_until_clean(e);
    struct engine *right = must_open(&right_opt);
    cr_assert_eq(engine_delete(right, slice_str("7"), tt_ts_of(500)), SPAN_OK);
    engine_set_applied(right, engine_applied(right) + 1);
    must_flush(right);
    cr_assert_eq(engine_merge(e, right, &err), SPAN_OK, "%s", err.text);
    engine_set_applied(e, engine_applied(e) + 1);
    engine_close(right);

    struct engine_value v = {0};
    for (int flushed = 0; flushed < 2; flushed++) {
        cr_assert_eq(engine_get(e, slice_str("7"), tt_ts_of(900), &v), SPAN_OK);
        cr_assert_eq(v.found, ENGINE_ABSENT);
        cr_assert_eq(v.seen.ns, 500);
        cr_assert_eq(engine_get(e, slice_str("7"), tt_ts_of(300), &v), SPAN_OK);
        cr_assert_eq(v.seen.ns, 300);
        struct engine_scan_spec scan = {
            .start = slice_str("6"), .end = slice_str("8"), .at = tt_ts_of(900)};
        struct engine_scan_result seen;
        cr_assert_eq(engine_scan(e, &scan, NULL, NULL, &seen), SPAN_OK);
        cr_assert_eq(seen.seen.ns, 500);
        must_flush(e);
    }
    engine_close(e);
    temp_dir_remove(dir);
}

Test(engine, garbage_and_cut_off_rows_leave_the_file_a_chunk_a_flush, .timeout = 60)
{
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    const unsigned rows = 50000;
    for (uint64_t round = 1; round <= 3; round++) {
        put_numbered(e, rows, round * rows);
        must_flush(e);
    }
    cr_assert_eq(file_count(&opt, "SELECT count(*) FROM history"), 2 * rows);
    /* All first versions and half of the second ones are behind it. */
    engine_set_horizon(e, tt_ts_of(3 * rows + rows / 2 - 1));
    engine_set_applied(e, engine_applied(e) + 1);
    cr_assert(flush_until_clean(e) > 3);
    cr_assert_eq(file_count(&opt, "SELECT count(*) FROM history"), rows / 2);

    struct engine_split_spec spec = {
        .key = slice_str("005000"), .right_range_id = 2, .right_generation = 1, .right_applied = 1};
    struct engine_options right = {.dir = dir, .range_id = 2, .generation = 1};
    struct span_error err = {0};
    cr_assert_eq(engine_split(e, &spec, &err), SPAN_OK, "%s", err.text);
    engine_set_applied(e, engine_applied(e) + 1);
    cr_assert(flush_until_clean(e) > 2);
    cr_assert_eq(file_count(&opt, "SELECT count(*) FROM current"), 5000);
    cr_assert_eq(file_count(&opt, "SELECT count(*) FROM history"), 0);
    cr_assert_eq(file_count(&right, "SELECT count(*) FROM current"), rows - 5000);
    cr_assert_eq(file_count(&right, "SELECT count(*) FROM history"), rows / 2);
    engine_close(e);
    temp_dir_remove(dir);
}

Test(engine, the_wal_of_sqlite_does_not_grow_from_flush_to_flush)
{
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    struct engine_flush_result result = {0};
    for (uint64_t round = 1; round <= 60; round++) {
        put_numbered(e, 500, round * 1000);
        engine_set_horizon(e, engine_max_ts(e)); /* no history: every flush is alike */
        engine_set_applied(e, round);
        for (struct engine_job *job = engine_freeze(e); job != NULL;) {
            struct span_error err = {0};
            cr_assert_eq(engine_flush_run(job, &err), SPAN_OK, "%s", err.text);
            job = engine_flush_done(e, job, &result);
        }
        cr_assert_eq(result.durable, round);
        cr_assert(result.wal_bytes < 256 * KIB, "%llu", (unsigned long long)result.wal_bytes);
    }
    engine_close(e);
    temp_dir_remove(dir);
}

/* ---- small promises -----------------------------------------------------------------------------
 */

Test(engine, an_entry_that_is_out_of_order_or_too_large_is_corrupt_and_changes_nothing)
{
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    struct slice key = slice_str("key");
    struct slice other = slice_str("other");
    cr_assert_eq(engine_put(e, key, tt_ts_of(10), slice_str("a")), SPAN_OK);
    cr_assert_eq(engine_put(e, other, tt_ts_of(20), slice_str("b")), SPAN_OK);
    for (int round = 0; round < 3; round++) { /* in memory, flushed, flushed as deleted */
        cr_assert_eq(engine_put(e, key, tt_ts_of(10), slice_str("c")), SPAN_CORRUPT);
        cr_assert_eq(engine_delete(e, key, tt_ts_of(9)), SPAN_CORRUPT);
        struct engine_value v;
        cr_assert_eq(engine_get(e, key, ENGINE_NEWEST, &v), SPAN_OK);
        cr_assert_eq(v.found == ENGINE_FOUND, round < 2);
        if (round == 1) {
            cr_assert_eq(engine_delete(e, key, tt_ts_of(11)), SPAN_OK);
        }
        engine_set_applied(e, (uint64_t)round + 1);
        must_flush(e);
    }
    cr_assert_eq(engine_delete(e, key, tt_ts_of(11)), SPAN_CORRUPT);
    cr_assert_eq(engine_put(e, key, tt_ts_of(12), slice_str("c")), SPAN_OK);
    struct buf big = {0};
    (void)buf_grow(&big, LIMIT_KEY_BYTES + 1);
    memset(big.data, 'x', big.size);
    cr_assert_eq(engine_put(e, buf_slice(&big), tt_ts_of(30), key), SPAN_CORRUPT);
    cr_assert_eq(engine_put(e, (struct slice){0}, tt_ts_of(30), key), SPAN_CORRUPT);
    cr_assert_eq(engine_put(e, key, tt_ts_of(0), key), SPAN_CORRUPT);
    cr_assert_eq(engine_put(e, key, tt_ts_of(UINT64_MAX), key), SPAN_CORRUPT);
    cr_assert_eq(engine_put(e, slice_of(big.data, LIMIT_KEY_BYTES), tt_ts_of(30), key), SPAN_OK);
    cr_assert_eq(engine_meta_put(e, buf_slice(&big), key), SPAN_CORRUPT);
    engine_set_applied(e, 4);
    must_flush(e);
    struct engine_value v;
    cr_assert_eq(engine_get(e, slice_of(big.data, LIMIT_KEY_BYTES), ENGINE_NEWEST, &v), SPAN_OK);
    cr_assert_eq(v.found, ENGINE_FOUND);
    engine_close(e);
    buf_deinit(&big);
    temp_dir_remove(dir);
}

Test(engine, open_says_what_is_wrong_with_a_file)
{
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 1};
    struct engine *e = NULL;
    struct span_error err = {0};
    cr_assert_eq(engine_open(&opt, &e, &err), SPAN_NOT_FOUND);
    opt.create = true;
    engine_close(must_open(&opt));
    char *from = span_asprintf("%s/r1.g1.db", dir);
    char *to = span_asprintf("%s/r1.g2.db", dir);
    cr_assert_eq(rename(from, to), 0);
    opt.generation = 2;
    cr_assert_eq(engine_open(&opt, &e, &err), SPAN_CORRUPT);
    cr_assert_not_null(strstr(err.text, to), "%s", err.text);
    FILE *f = fopen(to, "w");
    (void)fputs("This is no database. It is long enough to look like one to nobody: 0123456789", f);
    (void)fclose(f);
    cr_assert_eq(engine_open(&opt, &e, &err), SPAN_CORRUPT);
    cr_assert_not_null(strstr(err.text, to), "%s", err.text);
    struct engine_options nowhere = {.dir = "/nonexistent", .create = true};
    cr_assert_eq(engine_open(&nowhere, &e, &err), SPAN_IO);
    nowhere = (struct engine_options){.dir = dir, .create = true, .vfs = "no such"};
    cr_assert_eq(engine_open(&nowhere, &e, &err), SPAN_INVALID);
    cr_assert_null(e);
    span_free(from);
    span_free(to);
    temp_dir_remove(dir);
}

struct listing {
    uint64_t seen[8];
    size_t count;
};

static void list_one(void *ctx, uint64_t range_id, uint64_t generation)
{
    struct listing *l = ctx;
    l->seen[l->count++] = range_id * 100 + generation;
}

Test(engine, files_are_listed_by_range_and_generation_and_removed_whole)
{
    char *dir = temp_dir();
    struct engine_options a = {.dir = dir, .range_id = 1, .generation = 1, .create = true};
    struct engine_options b = {.dir = dir, .range_id = 12, .generation = 3, .create = true};
    struct engine *e = must_open(&a); /* open: with -wal and -shm */
    engine_close(must_open(&b));
    char *alien = span_asprintf("%s/r1.g01.db", dir);
    FILE *f = fopen(alien, "w");
    cr_assert_not_null(f);
    (void)fclose(f);
    struct listing l = {0};
    struct span_error err = {0};
    cr_assert_eq(engine_list_files(dir, list_one, &l, &err), SPAN_OK);
    cr_assert_eq(l.count, 2);
    cr_assert(l.seen[0] == 101 && l.seen[1] == 1203);
    cr_assert_eq(engine_destroy(e, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(engine_remove_files(&b, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(engine_remove_files(&b, &err), SPAN_OK, "absent is no error");
    l.count = 0;
    cr_assert_eq(engine_list_files(dir, list_one, &l, &err), SPAN_OK);
    cr_assert_eq(l.count, 0);
    cr_assert_eq(unlink(alien), 0);
    cr_assert_eq(rmdir(dir), 0, "nothing else is left");
    span_free(alien);
    span_free(dir);
}

Test(engine, an_idle_replica_has_nothing_to_flush_until_its_index_moves)
{
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    cr_assert_null(engine_freeze(e));
    engine_set_applied(e, 5);
    must_flush(e);
    cr_assert_eq(engine_applied_durable(e), 5);
    cr_assert_null(engine_freeze(e));
    cr_assert_eq(engine_memory_bytes(e), 0);
    engine_close(e);
    temp_dir_remove(dir);
}
