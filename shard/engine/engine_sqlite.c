/* Connections, schema, errors and files: see engine_sqlite.h. */
#include "shard/engine/engine_sqlite.h"

#include "base/alloc.h"
#include "base/codec.h"
#include "base/invariant.h"
#include "base/limits.h"

#include <errno.h>
#include <stdio.h>

#define CACHE_KIB_DEFAULT 8192
#define BUSY_MS           1000

/* ---- names and state ---------------------------------------------------------------------------
 */

void file_name_init(struct file_name *f, const struct engine_options *opt)
{
    *f = (struct file_name){
        .dir = span_strdup(opt->dir),
        .vfs = opt->vfs == NULL ? NULL : span_strdup(opt->vfs),
        .path = span_asprintf("%s/r%llu.g%llu.db", opt->dir, (unsigned long long)opt->range_id,
                              (unsigned long long)opt->generation),
        .range_id = opt->range_id,
        .generation = opt->generation,
        .cache_kib = opt->cache_kib == 0 ? CACHE_KIB_DEFAULT : opt->cache_kib,
    };
}

void file_name_deinit(struct file_name *f)
{
    span_free(f->dir);
    span_free(f->vfs);
    span_free(f->path);
    *f = (struct file_name){0};
}

struct engine_options file_name_options(const struct file_name *f)
{
    return (struct engine_options){.dir = f->dir,
                                   .range_id = f->range_id,
                                   .generation = f->generation,
                                   .vfs = f->vfs,
                                   .cache_kib = f->cache_kib};
}

void file_state_deinit(struct file_state *s)
{
    buf_deinit(&s->start);
    buf_deinit(&s->end);
    *s = (struct file_state){0};
}

void file_state_copy(struct file_state *to, const struct file_state *from)
{
    struct buf start = to->start;
    struct buf end = to->end;
    buf_set(&start, buf_slice(&from->start));
    buf_set(&end, buf_slice(&from->end));
    *to = *from;
    to->start = start;
    to->end = end;
}

bool file_state_has_key(const struct file_state *s, struct slice key)
{
    if (key.size != 0 && key.data[0] == 0) {
        return true;
    }
    return slice_cmp(key, buf_slice(&s->start)) >= 0 &&
           (s->end.size == 0 || slice_cmp(key, buf_slice(&s->end)) < 0);
}

uint32_t row_crc(struct slice key, uint64_t ts, struct slice value)
{
    uint8_t fixed[12];
    for (unsigned i = 0; i < 8; i++) {
        fixed[i] = (uint8_t)(ts >> (8 * i));
    }
    for (unsigned i = 0; i < 4; i++) {
        fixed[8 + i] = (uint8_t)(key.size >> (8 * i));
    }
    uint32_t crc = crc32c(0, fixed, sizeof fixed);
    crc = crc32c(crc, key.data, key.size);
    return crc32c(crc, value.data, value.size);
}

#define FF_16                                                                                      \
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
#define FF_64   FF_16, FF_16, FF_16, FF_16
#define FF_256  FF_64, FF_64, FF_64, FF_64
#define FF_1024 FF_256, FF_256, FF_256, FF_256

struct slice key_space_end(void)
{
    static const uint8_t end[] = {FF_1024, FF_1024, FF_1024, FF_1024, 0xff};
    _Static_assert(sizeof end > ENGINE_KEY_BYTES_MAX, "longer than every key");
    return slice_of(end, sizeof end);
}

struct slice engine_prefix_end(struct slice prefix, struct buf *out)
{
    size_t n = prefix.size;
    while (n > 0 && prefix.data[n - 1] == 0xff) {
        n--;
    }
    if (n == 0) {
        return key_space_end();
    }
    buf_set(out, slice_of(prefix.data, n));
    out->data[n - 1]++;
    return buf_slice(out);
}

/* ---- errors ------------------------------------------------------------------------------------
 */

static span_status status_of(int rc, int system_errno)
{
    switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
        return SPAN_OK;
    case SQLITE_FULL:
        return SPAN_NO_SPACE;
    case SQLITE_NOMEM:
        return SPAN_NOMEM;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_FORMAT:
    case SQLITE_CONSTRAINT: /* two rows of one key and timestamp */
        return SPAN_CORRUPT;
    case SQLITE_TOOBIG:
        return SPAN_TOO_LARGE;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return SPAN_UNAVAILABLE;
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
        return system_errno == ENOSPC ? SPAN_NO_SPACE : SPAN_IO;
    case SQLITE_IOERR:
        if (rc == SQLITE_IOERR_NOMEM) {
            return SPAN_NOMEM;
        }
        if (rc == SQLITE_IOERR_DATA || rc == SQLITE_IOERR_CORRUPTFS) {
            return SPAN_CORRUPT;
        }
        return system_errno == ENOSPC || system_errno == EDQUOT ? SPAN_NO_SPACE : SPAN_IO;
    default:
        return SPAN_INTERNAL;
    }
}

span_status file_injected(const struct file_name *name, struct span_error *err)
{
    return span_fail(err, SPAN_IO, "%s: injected at a failpoint: Input/output error", name->path);
}

span_status file_db_fail(const struct file_db *d, int rc, struct span_error *err, const char *what)
{
    int extended = d->db == NULL ? rc : sqlite3_extended_errcode(d->db);
    int full = (extended & 0xff) == (rc & 0xff) ? extended : rc;
    int system_errno = d->db == NULL ? 0 : sqlite3_system_errno(d->db);
    const char *text = d->db == NULL ? sqlite3_errstr(rc) : sqlite3_errmsg(d->db);
    return span_fail(err, status_of(full, system_errno), "%s: %s: %s (sqlite %d, errno %d)",
                     d->name->path, what, text, full, system_errno);
}

/* ---- connections -------------------------------------------------------------------------------
 */

span_status file_db_exec(struct file_db *d, const char *sql, struct span_error *err)
{
    int rc = sqlite3_exec(d->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? SPAN_OK : file_db_fail(d, rc, err, sql);
}

span_status file_db_prepare(struct file_db *d, const char *sql, sqlite3_stmt **out,
                            struct span_error *err)
{
    int rc = sqlite3_prepare_v3(d->db, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL);
    if (rc == SQLITE_ERROR) {
        /* Our text is right, so the schema it is read against is not. */
        return span_fail(err, SPAN_CORRUPT, "%s: damaged schema: %s", d->name->path,
                         sqlite3_errmsg(d->db));
    }
    return rc == SQLITE_OK ? SPAN_OK : file_db_fail(d, rc, err, sql);
}

span_status file_db_run(struct file_db *d, sqlite3_stmt *stmt, struct span_error *err)
{
    int rc = sqlite3_step(stmt);
    span_status st = SPAN_OK;
    if (rc != SQLITE_DONE && rc != SQLITE_ROW) {
        st = file_db_fail(d, rc, err, sqlite3_sql(stmt));
    }
    (void)sqlite3_reset(stmt); /* repeats the step's error */
    return st;
}

span_status file_db_open(struct file_db *d, const struct file_name *name, bool create,
                         struct span_error *err)
{
    *d = (struct file_db){.name = name};
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE;
    int rc =
        sqlite3_open_v2(name->path, &d->db, flags | (create ? SQLITE_OPEN_CREATE : 0), name->vfs);
    if (rc != SQLITE_OK) {
        span_status st = file_db_fail(d, rc, err, "open");
        file_db_close(d);
        return st;
    }
    (void)sqlite3_extended_result_codes(d->db, 1);
    (void)sqlite3_busy_timeout(d->db, BUSY_MS);
    char pragmas[256];
    (void)snprintf(pragmas, sizeof pragmas,
                   "PRAGMA page_size=4096;PRAGMA secure_delete=OFF;PRAGMA synchronous=FULL;"
                   "PRAGMA wal_autocheckpoint=0;PRAGMA temp_store=MEMORY;PRAGMA mmap_size=0;"
                   "PRAGMA cache_size=-%u;",
                   name->cache_kib);
    span_status st = file_db_exec(d, pragmas, err);
    if (st != SPAN_OK) {
        file_db_close(d);
    }
    return st;
}

void file_db_close(struct file_db *d)
{
    if (d->db == NULL) {
        return;
    }
    for (sqlite3_stmt *s = sqlite3_next_stmt(d->db, NULL); s != NULL;
         s = sqlite3_next_stmt(d->db, NULL)) {
        (void)sqlite3_finalize(s);
    }
    int rc = sqlite3_close(d->db);
    ENSURE(rc == SQLITE_OK);
    d->db = NULL;
}

span_status file_db_set_wal(struct file_db *d, struct span_error *err)
{
    sqlite3_stmt *q = NULL;
    span_status st = file_db_prepare(d, "PRAGMA journal_mode=WAL", &q, err);
    if (st != SPAN_OK) {
        return st;
    }
    int rc = sqlite3_step(q);
    if (rc != SQLITE_ROW) {
        st = file_db_fail(d, rc, err, "set journal_mode=WAL");
    } else if (!slice_eq(stmt_slice(q, 0), slice_str("wal"))) {
        st = span_fail(err, SPAN_UNSUPPORTED, "%s: the file system or VFS has no shared memory",
                       d->name->path);
    }
    (void)sqlite3_finalize(q);
    return st;
}

static sqlite3_file *file_pointer(struct file_db *d, int op)
{
    sqlite3_file *f = NULL;
    if (sqlite3_file_control(d->db, "main", op, &f) != SQLITE_OK || f == NULL ||
        f->pMethods == NULL) {
        return NULL;
    }
    return f;
}

uint64_t file_db_wal_bytes(struct file_db *d)
{
    sqlite3_file *f = file_pointer(d, SQLITE_FCNTL_JOURNAL_POINTER);
    sqlite3_int64 size = 0;
    if (f == NULL || f->pMethods->xFileSize(f, &size) != SQLITE_OK || size < 0) {
        return 0;
    }
    return (uint64_t)size;
}

span_status file_db_sync(struct file_db *d, struct span_error *err)
{
    sqlite3_file *f = file_pointer(d, SQLITE_FCNTL_FILE_POINTER);
    int rc = f == NULL ? SQLITE_INTERNAL : f->pMethods->xSync(f, SQLITE_SYNC_NORMAL);
    return rc == SQLITE_OK ? SPAN_OK : file_db_fail(d, rc, err, "sync");
}

/* ---- schema ------------------------------------------------------------------------------------
 */

span_status file_db_create_schema(struct file_db *d, struct span_error *err)
{
    return file_db_exec(
        d,
        "CREATE TABLE current(k BLOB PRIMARY KEY, ts INTEGER NOT NULL, v BLOB NOT NULL,"
        " crc INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE history(k BLOB NOT NULL, ts INTEGER NOT NULL, end_ts INTEGER NOT NULL,"
        " v BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY(k, ts DESC)) WITHOUT ROWID;"
        "CREATE TABLE meta(k BLOB PRIMARY KEY, v BLOB NOT NULL, crc INTEGER NOT NULL)"
        " WITHOUT ROWID;"
        "CREATE TABLE file(id INTEGER PRIMARY KEY CHECK(id = 0), format INTEGER NOT NULL,"
        " range INTEGER NOT NULL, generation INTEGER NOT NULL, applied INTEGER NOT NULL,"
        " seq INTEGER NOT NULL, horizon INTEGER NOT NULL, max_ts INTEGER NOT NULL,"
        " \"start\" BLOB NOT NULL, \"end\" BLOB NOT NULL, trim INTEGER NOT NULL,"
        " crc INTEGER NOT NULL);",
        err);
}

static uint32_t state_crc(const struct file_name *name, const struct file_state *s)
{
    struct buf b = {0};
    enc_u64(&b, ENGINE_FORMAT);
    enc_u64(&b, name->range_id);
    enc_u64(&b, name->generation);
    enc_u64(&b, s->applied);
    enc_u64(&b, s->seq);
    enc_u64(&b, s->horizon);
    enc_u64(&b, s->max_ts);
    enc_bytes(&b, buf_slice(&s->start));
    enc_bytes(&b, buf_slice(&s->end));
    enc_bool(&b, s->trim);
    uint32_t crc = crc32c(0, b.data, b.size);
    buf_deinit(&b);
    return crc;
}

static span_status state_of_row(struct file_db *d, sqlite3_stmt *q, struct file_state *out,
                                struct span_error *err)
{
    const struct file_name *name = d->name;
    if (stmt_u64(q, 0) != ENGINE_FORMAT) {
        return span_fail(err, SPAN_UNSUPPORTED, "%s: format %llu, this program knows %d",
                         name->path, (unsigned long long)stmt_u64(q, 0), ENGINE_FORMAT);
    }
    if (stmt_u64(q, 1) != name->range_id || stmt_u64(q, 2) != name->generation) {
        return span_fail(err, SPAN_CORRUPT, "%s: the file is range %llu generation %llu",
                         name->path, (unsigned long long)stmt_u64(q, 1),
                         (unsigned long long)stmt_u64(q, 2));
    }
    out->applied = stmt_u64(q, 3);
    out->seq = stmt_u64(q, 4);
    out->horizon = stmt_u64(q, 5);
    out->max_ts = stmt_u64(q, 6);
    buf_set(&out->start, stmt_slice(q, 7));
    buf_set(&out->end, stmt_slice(q, 8));
    out->trim = stmt_u64(q, 9) != 0;
    if (stmt_u64(q, 10) != state_crc(name, out)) {
        return span_fail(err, SPAN_CORRUPT, "%s: checksum of the file's state does not match",
                         name->path);
    }
    return SPAN_OK;
}

/* A file in which nothing was ever made has no page behind the first; one of which the schema
 * cannot be read is damaged, and must not be taken for the other. */
static bool is_blank(struct file_db *d)
{
    sqlite3_stmt *q = NULL;
    bool blank = sqlite3_prepare_v2(d->db, "PRAGMA page_count", -1, &q, NULL) == SQLITE_OK &&
                 sqlite3_step(q) == SQLITE_ROW && sqlite3_column_int64(q, 0) <= 1;
    (void)sqlite3_finalize(q);
    return blank;
}

span_status file_db_load_state(struct file_db *d, struct file_state *out, struct span_error *err)
{
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(d->db,
                                "SELECT format, range, generation, applied, seq, horizon, max_ts,"
                                " \"start\", \"end\", trim, crc FROM file",
                                -1, &q, NULL);
    if (rc == SQLITE_ERROR) {
        return is_blank(d)
                   ? span_fail(err, SPAN_NOT_FOUND, "%s: no such table: file", d->name->path)
                   : span_fail(err, SPAN_CORRUPT, "%s: damaged schema: %s", d->name->path,
                               sqlite3_errmsg(d->db));
    }
    if (rc != SQLITE_OK) {
        return file_db_fail(d, rc, err, "read state");
    }
    rc = sqlite3_step(q);
    span_status st = SPAN_OK;
    if (rc == SQLITE_ROW) {
        st = state_of_row(d, q, out, err);
    } else if (rc == SQLITE_DONE) {
        st = span_fail(err, SPAN_CORRUPT, "%s: the file's state is missing", d->name->path);
    } else {
        st = file_db_fail(d, rc, err, "read state");
    }
    (void)sqlite3_finalize(q);
    return st;
}

span_status file_db_store_state(struct file_db *d, const struct file_state *s,
                                struct span_error *err)
{
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(
        d->db, "INSERT OR REPLACE INTO file VALUES(0,?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)", -1, &q,
        NULL);
    if (rc != SQLITE_OK) {
        return file_db_fail(d, rc, err, "write state");
    }
    stmt_bind_u64(q, 1, ENGINE_FORMAT);
    stmt_bind_u64(q, 2, d->name->range_id);
    stmt_bind_u64(q, 3, d->name->generation);
    stmt_bind_u64(q, 4, s->applied);
    stmt_bind_u64(q, 5, s->seq);
    stmt_bind_u64(q, 6, s->horizon);
    stmt_bind_u64(q, 7, s->max_ts);
    stmt_bind_slice(q, 8, buf_slice(&s->start));
    stmt_bind_slice(q, 9, buf_slice(&s->end));
    stmt_bind_u64(q, 10, s->trim ? 1 : 0);
    stmt_bind_u64(q, 11, state_crc(d->name, s));
    span_status st = file_db_run(d, q, err);
    (void)sqlite3_finalize(q);
    return st;
}

/* ---- files -------------------------------------------------------------------------------------
 */

static char *part_path(const struct file_name *f, enum file_part part)
{
    static const char *const suffix[FILE_PARTS] = {"", "-wal", "-shm", ".building"};
    return span_asprintf("%s%s", f->path, suffix[part]);
}

static span_status find_vfs(const struct file_name *f, sqlite3_vfs **out, struct span_error *err)
{
    *out = sqlite3_vfs_find(f->vfs);
    if (*out == NULL) {
        return span_fail(err, SPAN_INVALID, "%s: no SQLite VFS named %s", f->path,
                         f->vfs == NULL ? "(default)" : f->vfs);
    }
    return SPAN_OK;
}

static span_status file_fail(struct span_error *err, int rc, const char *path, const char *what)
{
    int saved = errno;
    return span_fail(err, status_of(rc, saved), "%s: %s: %s (sqlite %d, errno %d)", path, what,
                     sqlite3_errstr(rc), rc, saved);
}

span_status file_exists(const struct file_name *f, enum file_part part, bool *out,
                        struct span_error *err)
{
    sqlite3_vfs *vfs = NULL;
    span_status st = find_vfs(f, &vfs, err);
    if (st != SPAN_OK) {
        return st;
    }
    char *path = part_path(f, part);
    int there = 0;
    /* unixAccess's EXISTS takes an empty file for an absent one, READWRITE does not. */
    int rc = vfs->xAccess(vfs, path, SQLITE_ACCESS_READWRITE, &there);
    if (rc != SQLITE_OK) {
        st = file_fail(err, rc, path, "look for");
    }
    *out = there != 0;
    span_free(path);
    return st;
}

static span_status create_empty(sqlite3_vfs *vfs, const char *path, struct span_error *err)
{
    sqlite3_file *file = span_calloc(1, (size_t)vfs->szOsFile);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_SUPER_JOURNAL;
    int out_flags = 0;
    int rc = vfs->xOpen(vfs, path, file, flags, &out_flags);
    span_status st = SPAN_OK;
    if (rc != SQLITE_OK) {
        st = file_fail(err, rc, path, "create");
    }
    if (file->pMethods != NULL) {
        (void)file->pMethods->xClose(file);
    }
    span_free(file);
    return st;
}

span_status file_mark(const struct file_name *f, enum file_part part, struct span_error *err)
{
    sqlite3_vfs *vfs = NULL;
    span_status st = find_vfs(f, &vfs, err);
    if (st != SPAN_OK) {
        return st;
    }
    char *path = part_path(f, part);
    char *other = span_asprintf("%s.sync", path);
    st = create_empty(vfs, path, err);
    /* A VFS syncs a directory only while deleting from it: so make one file more, and delete it. */
    if (st == SPAN_OK) {
        st = create_empty(vfs, other, err);
    }
    if (st == SPAN_OK) {
        int rc = vfs->xDelete(vfs, other, 1);
        if (rc != SQLITE_OK) {
            st = file_fail(err, rc, other, "delete");
        }
    }
    span_free(other);
    span_free(path);
    return st;
}

span_status file_delete(const struct file_name *f, enum file_part part, bool sync,
                        struct span_error *err)
{
    sqlite3_vfs *vfs = NULL;
    span_status st = find_vfs(f, &vfs, err);
    if (st != SPAN_OK) {
        return st;
    }
    char *path = part_path(f, part);
    int rc = vfs->xDelete(vfs, path, sync ? 1 : 0);
    if (rc != SQLITE_OK && rc != SQLITE_IOERR_DELETE_NOENT) {
        st = file_fail(err, rc, path, "delete");
    }
    span_free(path);
    return st;
}
