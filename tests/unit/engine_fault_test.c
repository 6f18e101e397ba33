/* The engine under faults: killed in the middle of a flush, writes and syncs that fail, flipped
 * bytes. */
#include "tests/unit/engine_model.h"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ---- a VFS whose n-th write fails ---------------------------------------------------------------
 */

static struct {
    sqlite3_vfs vfs;
    sqlite3_vfs *real;
    sqlite3_io_methods io;
    long countdown; /* operations until one fails; 0: none will */
    int failure;    /* result code it fails with */
    bool lasting;   /* and all after it */
    bool syncs_only;
    long done;
} fault;

struct fault_file {
    sqlite3_file base;
    sqlite3_file *real;
};

static sqlite3_file *real_of(sqlite3_file *f)
{
    return ((struct fault_file *)(void *)f)->real;
}

static int fault_now(bool sync)
{
    if (fault.countdown == 0 || (fault.syncs_only && !sync)) {
        return SQLITE_OK;
    }
    fault.done++;
    if (fault.countdown > 1) {
        fault.countdown--;
        return SQLITE_OK;
    }
    fault.countdown = fault.lasting ? 1 : 0;
    return fault.failure;
}

static int f_close(sqlite3_file *f)
{
    int rc = real_of(f)->pMethods->xClose(real_of(f));
    sqlite3_free(real_of(f));
    return rc;
}

static int f_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at)
{
    return real_of(f)->pMethods->xRead(real_of(f), p, n, at);
}

static int f_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
    int rc = fault_now(false);
    if (rc != SQLITE_OK) { /* half of it gets there */
        (void)real_of(f)->pMethods->xWrite(real_of(f), p, n / 2, at);
        return rc;
    }
    return real_of(f)->pMethods->xWrite(real_of(f), p, n, at);
}

static int f_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    int rc = fault_now(false);
    return rc != SQLITE_OK ? rc : real_of(f)->pMethods->xTruncate(real_of(f), size);
}

static int f_sync(sqlite3_file *f, int flags)
{
    int rc = fault_now(true);
    rc = rc == SQLITE_IOERR_WRITE ? SQLITE_IOERR_FSYNC : rc;
    return rc != SQLITE_OK ? rc : real_of(f)->pMethods->xSync(real_of(f), flags);
}

static int f_size(sqlite3_file *f, sqlite3_int64 *size)
{
    return real_of(f)->pMethods->xFileSize(real_of(f), size);
}

static int f_lock(sqlite3_file *f, int level)
{
    return real_of(f)->pMethods->xLock(real_of(f), level);
}

static int f_unlock(sqlite3_file *f, int level)
{
    return real_of(f)->pMethods->xUnlock(real_of(f), level);
}

static int f_reserved(sqlite3_file *f, int *out)
{
    return real_of(f)->pMethods->xCheckReservedLock(real_of(f), out);
}

static int f_control(sqlite3_file *f, int op, void *arg)
{
    return real_of(f)->pMethods->xFileControl(real_of(f), op, arg);
}

static int f_sector(sqlite3_file *f)
{
    return real_of(f)->pMethods->xSectorSize(real_of(f));
}

static int f_device(sqlite3_file *f)
{
    return real_of(f)->pMethods->xDeviceCharacteristics(real_of(f));
}

static int f_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **out)
{
    return real_of(f)->pMethods->xShmMap(real_of(f), page, size, extend, out);
}

static int f_shm_lock(sqlite3_file *f, int at, int n, int flags)
{
    return real_of(f)->pMethods->xShmLock(real_of(f), at, n, flags);
}

static void f_shm_barrier(sqlite3_file *f)
{
    real_of(f)->pMethods->xShmBarrier(real_of(f));
}

static int f_shm_unmap(sqlite3_file *f, int drop)
{
    return real_of(f)->pMethods->xShmUnmap(real_of(f), drop);
}

static int f_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
    (void)vfs;
    struct fault_file *f = (struct fault_file *)(void *)file;
    *f = (struct fault_file){.real = sqlite3_malloc(fault.real->szOsFile)};
    memset(f->real, 0, (size_t)fault.real->szOsFile);
    int rc = fault.real->xOpen(fault.real, name, f->real, flags, out);
    if (rc != SQLITE_OK) {
        sqlite3_free(f->real);
        return rc;
    }
    f->base.pMethods = &fault.io;
    return SQLITE_OK;
}

static void fault_install(void)
{
    fault.real = sqlite3_vfs_find(NULL);
    fault.vfs = *fault.real;
    fault.vfs.pNext = NULL;
    fault.vfs.zName = "fault";
    fault.vfs.szOsFile = (int)sizeof(struct fault_file);
    fault.vfs.xOpen = f_open;
    fault.io = (sqlite3_io_methods){.iVersion = 2,
                                    .xClose = f_close,
                                    .xRead = f_read,
                                    .xWrite = f_write,
                                    .xTruncate = f_truncate,
                                    .xSync = f_sync,
                                    .xFileSize = f_size,
                                    .xLock = f_lock,
                                    .xUnlock = f_unlock,
                                    .xCheckReservedLock = f_reserved,
                                    .xFileControl = f_control,
                                    .xSectorSize = f_sector,
                                    .xDeviceCharacteristics = f_device,
                                    .xShmMap = f_shm_map,
                                    .xShmLock = f_shm_lock,
                                    .xShmBarrier = f_shm_barrier,
                                    .xShmUnmap = f_shm_unmap};
    cr_assert_eq(sqlite3_vfs_register(&fault.vfs, 0), SQLITE_OK);
}

static void fault_set(long countdown, int failure, bool lasting)
{
    fault.countdown = countdown;
    fault.failure = failure;
    fault.lasting = lasting;
    fault.done = 0;
}

/* ---- failing flushes ----------------------------------------------------------------------------
 */

/* Every write and sync of a flush fails in turn, once or for good; nothing is lost, reads go on,
 * and the next flush succeeds. */
static void flush_with_faults(int failure, span_status expected, bool lasting)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {
        .dir = dir, .range_id = 7, .generation = 1, .create = true, .vfs = "fault"};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    long failed = 0;
    bool reached_end = false;
    for (long n = 1; !reached_end; n += n < 60 ? 1 : 7) {
        for (int i = 0; i < 3; i++) {
            model_random_entry(&m, &r, e);
        }
        uint64_t durable = engine_applied_durable(e);
        struct span_error err = {0};
        fault_set(n, failure, lasting);
        span_status st = engine_flush_now(e, &err);
        reached_end = fault.countdown > 1;
        fault_set(0, 0, false);
        cr_assert(st == SPAN_OK || st == expected, "%ld: %s: %s", n, span_status_name(st),
                  err.text);
        cr_assert(st == SPAN_OK || engine_applied_durable(e) == durable ||
                  engine_applied_durable(e) == m.applied);
        failed += st != SPAN_OK;
        check_all(e, &m, &r);
        if (rng_below(&r, 2) == 0) { /* else the next flush takes two frozen tables */
            must_flush(e);
            cr_assert_eq(engine_applied_durable(e), m.applied);
        }
        if (rng_below(&r, 4) == 0) {
            engine_close(e);
            e = must_open(&opt);
            struct model then = model_at(&m, engine_applied(e));
            check_all(e, &then, &r);
            model_deinit(&then);
            model_replay(&m, e);
            check_all(e, &m, &r);
        }
    }
    cr_assert(failed > 5, "only %ld flushes failed", failed);
    must_flush(e);
    check_all(e, &m, &r);
    engine_close(e);
    model_deinit(&m);
    temp_dir_remove(dir);
}

Test(engine_fault, a_flush_on_a_full_disk_is_taken_up_again, .timeout = 120)
{
    fault_install();
    flush_with_faults(SQLITE_FULL, SPAN_NO_SPACE, false);
    flush_with_faults(SQLITE_FULL, SPAN_NO_SPACE, true);
}

Test(engine_fault, a_flush_with_an_io_error_is_taken_up_again, .timeout = 120)
{
    fault_install();
    flush_with_faults(SQLITE_IOERR_WRITE, SPAN_IO, false);
    flush_with_faults(SQLITE_IOERR_WRITE, SPAN_IO, true);
}

Test(engine_fault, a_failed_sync_never_counts_as_durable, .timeout = 60)
{
    fault_install();
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {
        .dir = dir, .range_id = 7, .generation = 1, .create = true, .vfs = "fault"};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    fault.syncs_only = true;
    for (long n = 1; n <= 8; n++) {
        model_random_entry(&m, &r, e);
        uint64_t durable = engine_applied_durable(e);
        uint64_t bytes = engine_active_bytes(e);
        struct span_error err = {0};
        fault_set(n, SQLITE_IOERR_FSYNC, false);
        span_status st = engine_flush_now(e, &err);
        bool hit = fault.countdown == 0;
        fault_set(0, 0, false);
        cr_assert_eq(st, hit ? SPAN_IO : SPAN_OK, "%ld: %s", n, err.text);
        cr_assert_eq(engine_applied_durable(e), hit ? durable : m.applied);
        if (n <= 2) {
            /* SQLite's WAL (its header, the commit) was not synced: the flush never was, and all is
             * still in memory to be written again (rule H4). */
            cr_assert(hit);
            cr_assert_eq(engine_applied_flushed(e), durable);
            cr_assert(engine_memory_bytes(e) >= bytes);
        }
        check_all(e, &m, &r);
        must_flush(e);
        cr_assert_eq(engine_applied_durable(e), m.applied);
    }
    fault.syncs_only = false;
    engine_close(e);
    model_deinit(&m);
    temp_dir_remove(dir);
}

/* SQLite makes a sync whose result it drops when a new file becomes one with a WAL. The three are
 * the file, its WAL's header and the first commit; the checkpoint behind them may fail (it is made
 * again). */
Test(engine_fault, a_new_file_is_not_opened_over_a_failed_sync, .timeout = 60)
{
    fault_install();
    fault.syncs_only = true;
    for (long n = 1; n <= 3; n++) {
        char *dir = temp_dir();
        struct engine_options opt = {
            .dir = dir, .range_id = 7, .generation = 1, .create = true, .vfs = "fault"};
        struct engine *e = NULL;
        struct span_error err = {0};
        fault_set(n, SQLITE_IOERR_FSYNC, false);
        span_status st = engine_open(&opt, &e, &err);
        cr_assert_eq(fault.countdown, 0, "sync %ld was not made", n);
        fault_set(0, 0, false);
        cr_assert_eq(st, SPAN_IO, "sync %ld: %s %s", n, span_status_name(st), err.text);
        engine_close(e);
        temp_dir_remove(dir);
    }
    fault.syncs_only = false;
}

/* A failing disk during a split or a restore leaves the left side as it was, and no file that looks
 * complete. */
Test(engine_fault, a_split_that_fails_changes_nothing, .timeout = 60)
{
    fault_install();
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {
        .dir = dir, .range_id = 7, .generation = 1, .create = true, .vfs = "fault"};
    struct engine_options right_opt = {.dir = dir, .range_id = 8, .generation = 1, .vfs = "fault"};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    for (int i = 0; i < 200; i++) {
        model_random_entry(&m, &r, e);
        if (i % 50 == 0) {
            must_flush(e);
        }
    }
    char text[32];
    struct engine_split_spec spec = {
        .key = model_key(60, text), .right_range_id = 8, .right_generation = 1, .right_applied = 1};
    span_status st = SPAN_IO;
    long n = 1;
    for (; st != SPAN_OK; n++) {
        struct span_error err = {0};
        fault_set(n, n % 2 == 0 ? SQLITE_FULL : SQLITE_IOERR_WRITE, n % 3 == 0);
        st = engine_split(e, &spec, &err);
        fault_set(0, 0, false);
        enum engine_file_state state = ENGINE_FILE_COMPLETE;
        cr_assert_eq(engine_file_state(&right_opt, &state, &err), SPAN_OK);
        cr_assert(st == SPAN_OK || state != ENGINE_FILE_COMPLETE);
        if (st != SPAN_OK) {
            check_all(e, &m, &r);
        }
    }
    cr_assert(n > 4, "%ld", n);
    struct engine *b = must_open(&right_opt);
    struct model right = model_at(&m, m.applied);
    right.first_key = 60;
    for (unsigned key = 0; key < MODEL_KEYS; key++) {
        check_get(b, &right, key, UINT64_MAX);
        check_get(b, &right, key, right.horizon);
    }
    engine_close(b);
    engine_close(e);
    model_deinit(&m);
    model_deinit(&right);
    temp_dir_remove(dir);
}

/* ---- kill -9 ------------------------------------------------------------------------------------
 */

/* The same entries in every process: drawn from the seed alone. */
static _Noreturn void flush_until_killed(const struct engine_options *opt, uint64_t seed, int out)
{
    struct rng r;
    rng_init(&r, seed);
    struct model m;
    model_init(&m);
    struct engine *e = must_open(opt);
    uint64_t from = engine_applied(e);
    for (;;) {
        model_random_entry(&m, &r, NULL);
        if (m.applied <= from) {
            continue;
        }
        if (m.applied == from + 1) {
            model_replay(&m, e); /* with late versions, order within the log is what counts */
        } else {
            size_t i = m.count - 1;
            while (i > 0 && m.ops[i - 1].kind != OP_END) {
                i--;
            }
            for (; i < m.count; i++) {
                engine_apply_op(e, &m.ops[i]);
            }
        }
        if (m.applied % 3 == 0) {
            must_flush(e);
            cr_assert_eq(write(out, "", 1), 1);
        }
    }
}

Test(engine_fault, a_killed_flush_leaves_one_of_the_flushed_states, .timeout = 120)
{
    struct rng r;
    uint64_t seed = test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 7, .generation = 1, .create = true};
    engine_close(must_open(&opt));
    uint64_t last = 0;
    for (int round = 0; round < 25; round++) {
        int ends[2];
        cr_assert_eq(pipe(ends), 0);
        pid_t child = fork();
        if (child == 0) {
            flush_until_killed(&opt, seed, ends[1]);
        }
        cr_assert(child > 0);
        (void)close(ends[1]);
        for (uint64_t flushes = rng_between(&r, 1, 4); flushes > 0; flushes--) {
            char byte;
            cr_assert_eq(read(ends[0], &byte, 1), 1);
        }
        usleep((useconds_t)rng_below(&r, 8000)); /* where in the next one it dies is a draw */
        cr_assert_eq(kill(child, SIGKILL), 0);
        int status = 0;
        cr_assert_eq(waitpid(child, &status, 0), child);
        cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "it failed by itself");
        (void)close(ends[0]);

        struct engine *e = must_open(&opt);
        uint64_t applied = engine_applied(e);
        cr_assert(applied > last, "flushed work is gone");
        cr_assert_eq(applied % 3, 0, "index %llu is between two flushes",
                     (unsigned long long)applied);
        last = applied;
        struct model m;
        struct rng again;
        rng_init(&again, seed);
        model_init(&m);
        while (m.applied < applied) {
            model_random_entry(&m, &again, NULL);
        }
        check_all(e, &m, &r);
        model_deinit(&m);
        engine_close(e);
    }
    temp_dir_remove(dir);
}

/* ---- damage -------------------------------------------------------------------------------------
 */

struct damage_check {
    const struct model *m;
    uint64_t rows;
};

static bool right_or_nothing(void *ctx, struct slice key, struct slice value, struct tt_ts ts)
{
    struct damage_check *c = ctx;
    for (unsigned i = 0; i < MODEL_KEYS; i++) {
        char text[32];
        if (!slice_eq(key, model_key(i, text))) {
            continue;
        }
        /* Any true version: a flip may hide the newest one from SQLite, not make one up. */
        for (size_t n = 0; n < c->m->count; n++) {
            const struct op *op = &c->m->ops[n];
            if (op->kind != OP_PUT || op->key != i || op->ts != ts.ns) {
                continue;
            }
            struct buf want = {0};
            model_value(op->value, &want);
            bool same = slice_eq(value, buf_slice(&want));
            buf_deinit(&want);
            cr_assert(same, "a value that never was");
            c->rows++;
            return true;
        }
    }
    cr_assert_fail("a row that never was");
    return false;
}

/* Whether a stream of the whole file finds the damage. */
static bool stream_damaged(const struct engine_options *opt)
{
    struct engine_snapshot *s = NULL;
    struct engine_snapshot_info info;
    struct buf chunk = {0};
    struct span_error err = {0};
    bool done = false;
    span_status st = engine_snapshot_open(opt, &s, &info, &err);
    while (st == SPAN_OK && !done) {
        st = engine_snapshot_next(s, 10000, &chunk, &done, &err);
    }
    cr_assert(st == SPAN_OK || st == SPAN_CORRUPT || st == SPAN_UNSUPPORTED, "%s", err.text);
    engine_snapshot_close(s);
    buf_deinit(&chunk);
    return st != SPAN_OK;
}

/* Reads everything there is; whether CORRUPT was said. */
static bool read_damaged(const struct engine_options *opt, const struct model *m)
{
    struct engine *e = NULL;
    struct span_error err = {0};
    span_status st = engine_open(opt, &e, &err);
    if (st != SPAN_OK) {
        cr_assert(st == SPAN_CORRUPT || st == SPAN_UNSUPPORTED, "%s", err.text);
        cr_assert_not_null(strstr(err.text, opt->dir), "%s", err.text);
        return true;
    }
    bool corrupt = false;
    for (unsigned i = 0; i < MODEL_KEYS; i++) {
        char text[32];
        struct engine_value v;
        struct damage_check c = {.m = m};
        st = engine_get(e, model_key(i, text), ENGINE_NEWEST, &v);
        cr_assert(st == SPAN_OK || st == SPAN_CORRUPT, "%s", engine_error(e)->text);
        corrupt = corrupt || st == SPAN_CORRUPT;
        if (st == SPAN_OK && v.found == ENGINE_FOUND) {
            right_or_nothing(&c, model_key(i, text), v.value, v.ts);
        }
    }
    for (uint64_t at = m->max_ts; at + 3 > m->max_ts && at >= m->horizon; at--) {
        struct damage_check c = {.m = m};
        struct engine_scan_spec spec = {.at = tt_ts_of(at), .reverse = at % 2 == 0};
        struct engine_scan_result result;
        st = engine_scan(e, &spec, right_or_nothing, &c, &result);
        cr_assert(st == SPAN_OK || st == SPAN_CORRUPT || st == SPAN_BELOW_HORIZON, "%s",
                  engine_error(e)->text);
        corrupt = corrupt || st == SPAN_CORRUPT;
    }
    engine_close(e);
    return corrupt;
}

Test(engine_fault, a_flipped_byte_never_becomes_a_wrong_row_or_a_crash, .timeout = 120)
{
    struct rng r;
    test_seed(&r);
    char *dir = temp_dir();
    struct engine_options opt = {.dir = dir, .range_id = 7, .generation = 1, .create = true};
    struct engine *e = must_open(&opt);
    struct model m;
    model_init(&m);
    for (int i = 0; i < 100; i++) {
        model_random_entry(&m, &r, e);
    }
    must_flush(e);
    engine_close(e);
    opt.create = false;
    char *path = span_asprintf("%s/r7.g1.db", dir);
    struct stat s;
    cr_assert_eq(stat(path, &s), 0);
    unsigned noticed = 0;
    for (int i = 0; i < 300; i++) {
        int fd = open(path, O_RDWR);
        off_t at = (off_t)rng_below(&r, (uint64_t)s.st_size);
        uint8_t was = 0;
        cr_assert_eq(pread(fd, &was, 1, at), 1);
        uint8_t now = was ^ (uint8_t)(1U << rng_below(&r, 8));
        cr_assert_eq(pwrite(fd, &now, 1, at), 1);
        noticed += read_damaged(&opt, &m) | stream_damaged(&opt);
        cr_assert_eq(pwrite(fd, &was, 1, at), 1);
        (void)close(fd);
    }
    printf("%u of 300 flips were noticed\n", noticed);
    cr_assert(noticed > 30);
    span_free(path);
    model_deinit(&m);
    temp_dir_remove(dir);
}
