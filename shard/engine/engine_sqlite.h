/* One replica's SQLite file as the engine uses it: its name, opening a connection, the schema, the
 * row that describes the file, errors, checksums. Private to shard/engine.
 *
 *   current(k BLOB PRIMARY KEY, ts, v, crc)              the newest version of each live key
 *   history(k, ts, end_ts, v, crc, PRIMARY KEY(k, ts DESC))  overwritten versions: visible at t
 * when ts <= t < end_ts, garbage when end_ts <= horizon meta(k BLOB PRIMARY KEY, v, crc) replicated
 * state that is not a row file(...)                                            one row: what struct
 * file_state holds
 *
 * A tombstone is not stored: it is the end_ts of the version it ended. SQLite's pages carry no
 * checksums, so each row has a CRC32C of its key, timestamp and value: a flipped bit is found when
 * the row is read and takes the replica out instead of reaching a client. */
#ifndef SPAN_SHARD_ENGINE_ENGINE_SQLITE_H
#define SPAN_SHARD_ENGINE_ENGINE_SQLITE_H

#include "shard/engine/engine.h"

#include <sqlite3.h>

#define ENGINE_FORMAT 1
/* Keys are shorter than this many 0xff bytes, so it ends every span of keys. */
#define ENGINE_KEY_BYTES_MAX   LIMIT_KEY_BYTES
#define ENGINE_VALUE_BYTES_MAX LIMIT_ENTRY_BYTES

/* Names one file: an owned copy of struct engine_options. */
struct file_name {
    char *dir;
    char *vfs; /* NULL: default */
    char *path;
    uint64_t range_id;
    uint64_t generation;
    uint32_t cache_kib;
};

void file_name_init(struct file_name *f, const struct engine_options *opt);
void file_name_deinit(struct file_name *f);
struct engine_options file_name_options(const struct file_name *f);

/* What the file says about itself, written with every flush in the same transaction. */
struct file_state {
    uint64_t applied;
    uint64_t seq; /* of the newest memory generation in it: makes a repeated flush harmless */
    uint64_t horizon;
    uint64_t max_ts;  /* no version in the file is newer */
    struct buf start; /* bounds; an empty end is none */
    struct buf end;
    bool trim; /* rows outside the bounds may be left in the file */
};

void file_state_deinit(struct file_state *s);
void file_state_copy(struct file_state *to, const struct file_state *from);
/* Local keys, and those in [start, end). */
bool file_state_has_key(const struct file_state *s, struct slice key);

/* One connection. */
struct file_db {
    sqlite3 *db;
    const struct file_name *name; /* borrowed */
};

/* Opens with the pragmas of this engine. synchronous is FULL: a flush's commit syncs SQLite's WAL,
 * so that a failed sync rolls the flush back while its memory table is still there (rule H4); with
 * NORMAL the first sync would be the checkpoint's, when the table is gone. It is not an fsync more:
 * the checkpoint then finds the WAL clean. */
SPAN_CHECKED span_status file_db_open(struct file_db *d, const struct file_name *name, bool create,
                                      struct span_error *err);
void file_db_close(struct file_db *d);
SPAN_CHECKED span_status file_db_exec(struct file_db *d, const char *sql, struct span_error *err);
/* A statement that lives as long as the connection; *out is NULL on an error. */
SPAN_CHECKED span_status file_db_prepare(struct file_db *d, const char *sql, sqlite3_stmt **out,
                                         struct span_error *err);
/* Steps a statement that gives no row, and resets it. */
SPAN_CHECKED span_status file_db_run(struct file_db *d, sqlite3_stmt *stmt, struct span_error *err);
/* The status of a result code of SQLite, described in err: file, what was done, SQLite's text. */
span_status file_db_fail(const struct file_db *d, int rc, struct span_error *err, const char *what);
/* IO: what a failpoint makes of a call. */
span_status file_injected(const struct file_name *name, struct span_error *err);

SPAN_CHECKED span_status file_db_set_wal(struct file_db *d, struct span_error *err);
SPAN_CHECKED span_status file_db_create_schema(struct file_db *d, struct span_error *err);
/* NOT_FOUND when there is no schema yet; CORRUPT when the row is damaged or another file's. */
SPAN_CHECKED span_status file_db_load_state(struct file_db *d, struct file_state *out,
                                            struct span_error *err);
SPAN_CHECKED span_status file_db_store_state(struct file_db *d, const struct file_state *s,
                                             struct span_error *err);
/* Size of SQLite's WAL; 0 when unknown. */
uint64_t file_db_wal_bytes(struct file_db *d);
/* fsync of the database file itself. */
SPAN_CHECKED span_status file_db_sync(struct file_db *d, struct span_error *err);

static inline void stmt_bind_slice(sqlite3_stmt *s, int at, struct slice v)
{
    /* Cannot fail for a valid index and a static blob, but for memory, which the step reports. A
     * NULL pointer would bind SQL NULL. */
    (void)sqlite3_bind_blob64(s, at, v.size == 0 ? (const void *)"" : v.data, v.size,
                              SQLITE_STATIC);
}

static inline void stmt_bind_u64(sqlite3_stmt *s, int at, uint64_t v)
{
    (void)sqlite3_bind_int64(s, at, (sqlite3_int64)v);
}

static inline struct slice stmt_slice(sqlite3_stmt *s, int column)
{
    const void *p = sqlite3_column_blob(s, column);
    return slice_of(p, (size_t)sqlite3_column_bytes(s, column));
}

static inline uint64_t stmt_u64(sqlite3_stmt *s, int column)
{
    return (uint64_t)sqlite3_column_int64(s, column);
}

/* A timestamp in SQLite's signed order. */
static inline uint64_t ts_clamp(uint64_t ts)
{
    return ts > INT64_MAX ? INT64_MAX : ts;
}

uint32_t row_crc(struct slice key, uint64_t ts, struct slice value);
/* An upper bound of all keys. */
struct slice key_space_end(void);
/* First key after all that begin with prefix, into out; key_space_end() if there is none. */
struct slice engine_prefix_end(struct slice prefix, struct buf *out);

/* Files, through the VFS. */
enum file_part { FILE_DB, FILE_WAL, FILE_SHM, FILE_BUILDING, FILE_PARTS };

SPAN_CHECKED span_status file_exists(const struct file_name *f, enum file_part part, bool *out,
                                     struct span_error *err);
/* Creates an empty file, durably. */
SPAN_CHECKED span_status file_mark(const struct file_name *f, enum file_part part,
                                   struct span_error *err);
/* Absent is no error. sync: durable with all changes of the directory before it. */
SPAN_CHECKED span_status file_delete(const struct file_name *f, enum file_part part, bool sync,
                                     struct span_error *err);

#endif
