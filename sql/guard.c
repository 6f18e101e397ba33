/* What one client's SQL may not do to the process (notes/probes.md section 4): the authorizer,
 * limits, the progress handler that ends statements, and a VFS that gives statements their `now`.
 */
#include "base/limits.h"
#include "sql/session_impl.h"

#include <pthread.h>
#include <string.h>
#include <strings.h>

#define PROGRESS_OPS 1000

/* --- the clock of statements (rule G2: repeated runs see the same now) --- */

static _Thread_local const struct sql_session *current;
static sqlite3_vfs session_vfs;
static int (*real_current_time)(sqlite3_vfs *, sqlite3_int64 *);
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int vfs_time64(sqlite3_vfs *vfs, sqlite3_int64 *out)
{
    if (current != NULL && current->now_ms != 0) {
        *out = current->now_ms + 210866760000000LL; /* Julian day number in milliseconds */
        return SQLITE_OK;
    }
    return real_current_time(vfs, out);
}

static int vfs_time(sqlite3_vfs *vfs, double *out)
{
    sqlite3_int64 ms = 0;
    int rc = vfs_time64(vfs, &ms);
    *out = (double)ms / 86400000.0;
    return rc;
}

static void init_once(void)
{
    sqlite3_initialize();
    sqlite3_vfs *base = sqlite3_vfs_find(NULL);
    if (base == NULL) {
        return;
    }
    session_vfs = *base;
    session_vfs.zName = "spanlite-session";
    session_vfs.pNext = NULL;
    real_current_time = base->xCurrentTimeInt64;
    session_vfs.xCurrentTimeInt64 = vfs_time64;
    session_vfs.xCurrentTime = vfs_time;
    sqlite3_vfs_register(&session_vfs, 0);
}

void sql_global_init(void)
{
    pthread_once(&once, init_once);
}

void session_enter(struct sql_session *s)
{
    current = s;
    atomic_store_explicit(&s->canceled, false, memory_order_relaxed);
    s->kv->ops->clear_cancel(s->kv);
    atomic_store_explicit(&s->running, true, memory_order_release);
}

void session_leave(struct sql_session *s)
{
    atomic_store_explicit(&s->running, false, memory_order_release);
    current = NULL;
    s->last_active_ns = session_mono_ns(s);
}

void session_statement_clock(struct sql_session *s)
{
    struct tt_ts now = s->kv->ops->now_latest(s->kv);
    s->now_ms = (int64_t)(now.ns / MS_NS);
    s->seed = span_mix64(s->seed + 0x9e3779b97f4a7c15ULL);
    rng_init(&s->rng, s->seed);
}

static int on_progress(void *ctx)
{
    struct sql_session *s = ctx;
    if (atomic_load_explicit(&s->canceled, memory_order_relaxed)) {
        return 1;
    }
    return s->deadline_ns != 0 && session_mono_ns(s) > s->deadline_ns;
}

/* --- authorizer --- */

static bool is_any(const char *name, const char *const *list)
{
    for (; *list != NULL; list++) {
        if (strcasecmp(name, *list) == 0) {
            return true;
        }
    }
    return false;
}

static bool may_read(const struct sql_session *s, const char *table, const char *column,
                     const char *db)
{
    if (table == NULL) {
        return true;
    }
    if (strncasecmp(table, "sqlite_", 7) == 0) {
        /* declare_vtab looks at sqlite_master.ROWID when a table is connected again */
        return column != NULL && strcasecmp(column, "ROWID") == 0;
    }
    if (strncasecmp(table, "pragma_", 7) == 0 || strcasecmp(table, "dbstat") == 0) {
        return false;
    }
    bool target = s->dml_target != NULL && strcasecmp(table, s->dml_target) == 0;
    if (strncmp(table, UPDATE_PREFIX, strlen(UPDATE_PREFIX)) == 0) {
        return s->dml_target != NULL;
    }
    /* main holds only working sets: outside a statement on one it must not be seen. Subqueries and
     * CTEs name no database or temp. */
    if (db == NULL || strcmp(db, "main") != 0 || target) {
        return true;
    }
    struct buf low = {0};
    schema_lower(table, &low);
    bool shadow = mapb_get(&s->tables, buf_slice(&low)) != NULL;
    buf_deinit(&low);
    return !shadow;
}

static int authorize(void *ctx, int action, const char *a, const char *b, const char *db,
                     const char *trigger)
{
    static const char *const denied[] = {"load_extension",
                                         "fts3_tokenizer",
                                         "sqlite_offset",
                                         "sqlite_compileoption_get",
                                         "sqlite_compileoption_used",
                                         "sqlite_log",
                                         NULL};
    const struct sql_session *s = ctx;
    (void)trigger;
    if (s->internal) {
        return SQLITE_OK;
    }
    switch (action) {
    case SQLITE_SELECT:
    case SQLITE_RECURSIVE:
        return SQLITE_OK;
    case SQLITE_FUNCTION:
        return b != NULL && is_any(b, denied) ? SQLITE_DENY : SQLITE_OK;
    case SQLITE_READ:
        return may_read(s, a, b, db) ? SQLITE_OK : SQLITE_DENY;
    case SQLITE_INSERT:
    case SQLITE_UPDATE:
    case SQLITE_DELETE:
        return s->dml_target != NULL && db != NULL && strcmp(db, "main") == 0 && a != NULL &&
                       strcasecmp(a, s->dml_target) == 0
                   ? SQLITE_OK
                   : SQLITE_DENY;
    default:
        return SQLITE_DENY;
    }
}

void session_guard(struct sql_session *s)
{
    static const int limits[][2] = {
        {SQLITE_LIMIT_ATTACHED, 0},
        {SQLITE_LIMIT_LENGTH, 16 << 20},
        {SQLITE_LIMIT_SQL_LENGTH, 4 << 20},
        {SQLITE_LIMIT_EXPR_DEPTH, 500},
        {SQLITE_LIMIT_COMPOUND_SELECT, 200},
        {SQLITE_LIMIT_VDBE_OP, 1000000},
        {SQLITE_LIMIT_COLUMN, 2 * LIMIT_COLUMNS},
        {SQLITE_LIMIT_VARIABLE_NUMBER, 1000},
        {SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000},
        {SQLITE_LIMIT_TRIGGER_DEPTH, 10},
        {SQLITE_LIMIT_WORKER_THREADS, 0},
    };
    sqlite3 *db = s->db;
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        sqlite3_limit(db, limits[i][0], limits[i][1]);
    }
    sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DQS_DML, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DQS_DDL, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_FKEY, 0, NULL);
    sqlite3_set_authorizer(db, authorize, s);
    sqlite3_progress_handler(db, PROGRESS_OPS, on_progress, s);
}
