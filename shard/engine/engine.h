/* Multi-version storage of one replica: a memory table in front of one SQLite file.
 *
 * Committed entries are applied to the memory table and count as applied at once; a flusher thread
 * is the only writer of the SQLite file and moves whole frozen tables into it, with the applied
 * index, in one SQLite transaction. After a crash the file is at some flushed applied index, never
 * between two, and the caller replays its log from there. shard/range calls this from the worker
 * that owns the replica; the functions marked "flusher" and "any thread" are the exceptions.
 *
 * Keys are 1 .. LIMIT_KEY_BYTES bytes in memcmp order. Keys whose first byte is 0x00 are local to
 * the replica's range (never cut by bounds, copied to both sides by a split). Timestamps are below
 * 2^63.
 *
 * Life of an entry:  engine_put / engine_delete / engine_meta_* ... then engine_set_applied(index).
 * Life of a flush:   job = engine_freeze(e)                            worker, between two entries
 *                    engine_flush_run(job)                             flusher
 *                    job = engine_flush_done(e, job, &result)          worker; not NULL: run it
 * again Reads see everything applied so far, flushed or not.
 *
 * Slices returned by reads are borrowed until the next call on the same engine. */
#ifndef SPAN_SHARD_ENGINE_ENGINE_H
#define SPAN_SHARD_ENGINE_ENGINE_H

#include "base/buf.h"
#include "base/status.h"
#include "truetime/truetime.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;
struct engine_job;
struct engine_snapshot;
struct engine_restore;

/* ---- open and close ---------------------------------------------------------------------------
 */

struct engine_options {
    const char *dir;   /* directory of the files, exists */
    uint64_t range_id; /* file name: r<range_id>.g<generation>.db */
    uint64_t
        generation;     /* rule H5: a snapshot is a new generation, never renamed over an old one */
    const char *vfs;    /* name of a registered SQLite VFS; NULL: the default one */
    uint32_t cache_kib; /* SQLite page cache of a connection; 0: 8 MiB */
    bool create;        /* make an empty file if there is none; else NOT_FOUND */
};

/* Opens (and with `create` makes) the file. The strings of opt are copied. Errors: NOT_FOUND (no
 * file, and not `create`), INVALID (an unfinished restore or split, see engine_file_state), CORRUPT
 * (not a file of ours, other range or generation, damaged), IO, NO_SPACE. */
SPAN_CHECKED span_status engine_open(const struct engine_options *opt, struct engine **out,
                                     struct span_error *err);
/* Closes; what was not flushed is only in the caller's log. No job may be under way: give one that
 * will not be run (any more) to engine_flush_done first. NULL is ignored. */
void engine_close(struct engine *e);
/* engine_close, then removes the files. */
SPAN_CHECKED span_status engine_destroy(struct engine *e, struct span_error *err);

/* What the last call that failed with CORRUPT, IO, NO_SPACE or UNSUPPORTED found, for the operator
 * (it is logged as well); for calls without an err parameter. */
const struct span_error *engine_error(const struct engine *e);
/* The file gave back what was never written (a row's checksum, a page, its state), or cannot be
 * trusted after a failed sync: engine_error says what. A replicated entry that is refused is no
 * such damage. The replica is to be rebuilt from another one's snapshot. */
bool engine_is_damaged(const struct engine *e);

/* ---- files (any thread) -----------------------------------------------------------------------
 */

enum engine_file_state {
    ENGINE_FILE_ABSENT,
    ENGINE_FILE_UNFINISHED, /* a restore or split that did not end: remove it */
    ENGINE_FILE_COMPLETE,
};

SPAN_CHECKED span_status engine_file_state(const struct engine_options *opt,
                                           enum engine_file_state *out, struct span_error *err);
/* Deletes the database, its -wal and -shm and the mark of an unfinished build, durably. Nothing may
 * have it open. Absent files are no error. */
SPAN_CHECKED span_status engine_remove_files(const struct engine_options *opt,
                                             struct span_error *err);
/* Takes a damaged file, with its -wal, out of the way as damaged-r<range>.g<generation>.db, for the
 * operator to look at; of those the newest ENGINE_ASIDE_MAX in the directory are kept. On a VFS
 * that is not the default one the files are removed. Nothing may have it open. Absent files are no
 * error. */
#define ENGINE_ASIDE_MAX 4
SPAN_CHECKED span_status engine_set_aside(const struct engine_options *opt, struct span_error *err);
/* Calls fn for every (range, generation) that has a file in dir, each once, in no particular order
 * (for removing what no WAL record names). Reads the real directory, not a VFS. */
SPAN_CHECKED span_status engine_list_files(const char *dir,
                                           void (*fn)(void *ctx, uint64_t range_id,
                                                      uint64_t generation),
                                           void *ctx, struct span_error *err);

/* ---- apply ------------------------------------------------------------------------------------
 */

/* One version of a key; the bytes are copied. Versions of one key come in strictly increasing ts,
 * keys and values within limits: else CORRUPT (a replicated bad entry takes the replica out, not
 * the process). Other errors (IO, CORRUPT) come from looking into the file, and change nothing. */
SPAN_CHECKED span_status engine_put(struct engine *e, struct slice key, struct tt_ts ts,
                                    struct slice value);
/* A tombstone. */
SPAN_CHECKED span_status engine_delete(struct engine *e, struct slice key, struct tt_ts ts);

/* Replicated state that is not a row (rule H7): prepared transactions, decisions, outcomes, floor,
 * configuration, descriptor ... One value a key, a name space of its own, flushed with the applied
 * index and part of every snapshot. Too large a key or value: CORRUPT. */
SPAN_CHECKED span_status engine_meta_put(struct engine *e, struct slice key, struct slice value);
SPAN_CHECKED span_status engine_meta_delete(struct engine *e, struct slice key);
/* NOT_FOUND when absent (*value is then empty). */
SPAN_CHECKED span_status engine_meta_get(struct engine *e, struct slice key, struct slice *value);
/* All rows whose key begins with prefix, in key order; fn returns false to stop. fn must not call
 * the engine. */
typedef bool engine_meta_fn(void *ctx, struct slice key, struct slice value);
SPAN_CHECKED span_status engine_meta_scan(struct engine *e, struct slice prefix, engine_meta_fn *fn,
                                          void *ctx);

/* The entry `index` is wholly applied. Not below the index before (the same again is fine: use it
 * after putting the initial rows of a new replica). Every change must be followed by it before the
 * next engine_freeze, which would otherwise cut an entry in two. */
void engine_set_applied(struct engine *e, uint64_t index);
uint64_t engine_applied(const struct engine *e);
/* In the SQLite file, as far as the worker knows; where replay starts after engine_open. */
uint64_t engine_applied_flushed(const struct engine *e);
/* In the file, synced and checkpointed: the log may be cut up to here. */
uint64_t engine_applied_durable(const struct engine *e);

/* Replicated version horizon (rule H8): flushes drop versions that were overwritten at or before
 * it, reads below it are refused. Lower values than the current one are ignored. */
void engine_set_horizon(struct engine *e, struct tt_ts horizon);
struct tt_ts engine_horizon(const struct engine *e);
/* Key bounds [start, end) of the range, an empty end meaning none. Rows outside are invisible at
 * once and deleted by later flushes a chunk at a time; local keys (0x00...) are not bound. Bounds
 * are flushed and only shrink here: widening is UNSUPPORTED (but see engine_merge). */
SPAN_CHECKED span_status engine_set_bounds(struct engine *e, struct slice start, struct slice end);
/* Newest timestamp of any version ever put or restored here; 0 if none (rule A1: a floor). */
struct tt_ts engine_max_ts(const struct engine *e);

/* ---- reads ------------------------------------------------------------------------------------
 */

#define ENGINE_NEWEST ((struct tt_ts){UINT64_MAX})

enum engine_found {
    ENGINE_ABSENT,    /* no version at or below `at` (or one that was deleted and flushed) */
    ENGINE_TOMBSTONE, /* deleted at ts; whether this or ABSENT is said depends on flushing, so
                         replicated decisions must not tell them apart */
    ENGINE_FOUND,
};

struct engine_value {
    enum engine_found found;
    struct slice value; /* borrowed until the next call */
    struct tt_ts ts;    /* of the version found or the tombstone; 0 when absent */
    struct tt_ts seen;  /* rule D0: at or above the newest version at or below `at` that was
                           examined,  tombstones included; never above `at` */
};

/* Newest version at or below `at`. BELOW_HORIZON, IO, CORRUPT. */
SPAN_CHECKED span_status engine_get(struct engine *e, struct slice key, struct tt_ts at,
                                    struct engine_value *out);
/* Timestamp of the newest version of key, tombstones included; 0 when there is none (a tombstone
 * that fell behind the horizon may be forgotten). */
SPAN_CHECKED span_status engine_newest_ts(struct engine *e, struct slice key, struct tt_ts *out);

struct engine_scan_spec {
    struct slice start; /* inclusive; empty: from the beginning */
    struct slice end;   /* exclusive; empty: to the end */
    struct tt_ts at;
    bool reverse;
    uint64_t max_rows;  /* stop after so many; 0: no limit */
    uint64_t max_bytes; /* stop once keys and values have reached it; 0: no limit */
};

struct engine_scan_result {
    uint64_t rows;
    uint64_t bytes;
    bool more;           /* stopped by a limit or the callback: there may be more rows */
    struct slice resume; /* if more: `start` of the next forward scan, `end` of the next reverse
                            one; borrowed until the next call on the engine */
    struct tt_ts seen;   /* rule D0, over all that was examined; never above `at` */
};

/* A visible row; false stops after it. Must not call the engine; slices live until it returns. */
typedef bool engine_scan_fn(void *ctx, struct slice key, struct slice value, struct tt_ts ts);

/* Visible rows of [start, end) within the bounds at `at`, in key order or against it. On an error
 * rows may have been delivered already. */
SPAN_CHECKED span_status engine_scan(struct engine *e, const struct engine_scan_spec *spec,
                                     engine_scan_fn *fn, void *ctx, struct engine_scan_result *out);

/* Whether a meta row counts. */
typedef bool engine_key_filter(void *ctx, struct slice key);

/* Hash over the rows visible at `at`, the horizon and the meta rows that pass the filter (NULL:
 * all): equal on all replicas at the same applied index, whatever has been flushed, if the filter
 * leaves out rows that a replica writes by itself (its log position, say). Reads everything. */
SPAN_CHECKED span_status engine_digest(struct engine *e, struct tt_ts at, engine_key_filter *filter,
                                       void *ctx, uint64_t *out);

/* ---- flush ------------------------------------------------------------------------------------
 */

/* Bytes of the table that takes writes now (FLUSH_BYTES: time to freeze), and of all tables. */
uint64_t engine_active_bytes(const struct engine *e);
uint64_t engine_memory_bytes(const struct engine *e);

/* Bytes of the pages in use in the SQLite file, as of the last renewed view; 0 if they can not be
 * told. *trimming: rows outside the bounds are still among them (a flush removes some). */
uint64_t engine_file_bytes(struct engine *e, bool *trimming);

/* Freezes the active table and gives a job that writes it (and those of failed jobs before). NULL
 * when a job is under way or there is nothing to write; an advanced applied index alone is
 * something. */
struct engine_job *engine_freeze(struct engine *e);

/* Flusher. Runs one step of the job: it writes the frozen tables, or checkpoints, or truncates
 * SQLite's WAL. Touches only the job. The status is also kept for engine_flush_done. */
SPAN_CHECKED span_status engine_flush_run(struct engine_job *job, struct span_error *err);

struct engine_flush_result {
    span_status status; /* of the step; CANCELED if it was never run. IO and NO_SPACE: nothing is
                           lost, freeze again later; CORRUPT: the replica must be rebuilt */
    uint64_t flushed;   /* engine_applied_flushed now */
    uint64_t durable;   /* engine_applied_durable now */
    uint64_t rows;      /* versions written by the step */
    uint64_t wal_bytes; /* SQLite's WAL after the step (rule H5b: what bounds a pinned snapshot) */
    bool pause;         /* the next step is one of many, of a long copy: let others go first */
    bool checkpoint_pinned; /* an open snapshot kept the checkpoint from finishing */
    bool work_left; /* garbage is left (rows cut off by a split, old versions): freeze again soon */
};

/* Worker, with every job after it was run or will not be. Renews the read transaction, only then
 * drops the tables it covers (rule H6). Returns the job if it has another step for the flusher,
 * else frees it and returns NULL. A failed step leaves its tables in memory for the next job. */
struct engine_job *engine_flush_done(struct engine *e, struct engine_job *job,
                                     struct engine_flush_result *out);

/* Freezes and runs all steps in the caller's thread: tests, the simulator, a clean stop. */
SPAN_CHECKED span_status engine_flush_now(struct engine *e, struct span_error *err);

/* ---- snapshot out (any one thread at a time) ---------------------------------------------------
 */

struct engine_snapshot_info {
    uint64_t applied; /* rule H5b: the index of the content, not that of the replica */
    struct tt_ts horizon;
    struct tt_ts max_ts;
};

/* Pins the flushed content of the file named by opt (in use by an engine or not) on a connection of
 * its own. A pin keeps SQLite's WAL from being reset, so the caller gives up streams when
 * engine_flush_result.wal_bytes passes its bound. */
SPAN_CHECKED span_status engine_snapshot_open(const struct engine_options *opt,
                                              struct engine_snapshot **out,
                                              struct engine_snapshot_info *info,
                                              struct span_error *err);
/* Replaces chunk by the next one, of about max_bytes (more only by one row); *done with the last
 * one. Chunks are numbered and carry a checksum. */
SPAN_CHECKED span_status engine_snapshot_next(struct engine_snapshot *s, size_t max_bytes,
                                              struct buf *chunk, bool *done,
                                              struct span_error *err);
void engine_snapshot_close(struct engine_snapshot *s); /* NULL is ignored */

/* ---- snapshot in (any one thread) --------------------------------------------------------------
 */

/* Starts building the file of opt->generation, which nothing uses yet; an unfinished one there is
 * removed, a complete one is EXISTS. */
SPAN_CHECKED span_status engine_restore_begin(const struct engine_options *opt,
                                              struct engine_restore **out, struct span_error *err);
/* Chunks in order. CORRUPT: a damaged, missing or repeated chunk; abort then. */
SPAN_CHECKED span_status engine_restore_feed(struct engine_restore *r, struct slice chunk,
                                             struct span_error *err);
/* After the last chunk: syncs file and directory, closes and frees r, also on error (the file is
 * then unfinished). The caller's WAL record then switches to the generation (rule H5). */
SPAN_CHECKED span_status engine_restore_finish(struct engine_restore *r,
                                               struct engine_snapshot_info *info,
                                               struct span_error *err);
void engine_restore_abort(
    struct engine_restore *r); /* closes, removes the files; NULL is ignored */

/* ---- split -------------------------------------------------------------------------------------
 */

struct engine_meta_row {
    struct slice key;
    struct slice value;
};

struct engine_split_spec {
    struct slice key;        /* first key of the right side, inside the bounds */
    uint64_t right_range_id; /* file: same directory, VFS and cache as the left */
    uint64_t right_generation;
    uint64_t right_applied;             /* the right side's applied index */
    const struct engine_meta_row *meta; /* the right side's replicated state, borrowed */
    size_t meta_count;
};

/* A split that is to come: its right file is built ahead of it, because the copy takes the longer
 * the larger the right side is, and nothing can be served meanwhile. The next job (freeze soon)
 * writes what is in memory and then copies the right side on the flusher's thread; engine_split
 * adds what came since. Until then, or engine_split_forget, nothing is flushed: what came since
 * must stay in memory. Fails before anything is applied when there is no room. One at a time:
 * another key or range forgets the one before; so does a change of bounds. */
void engine_split_ahead(struct engine *e, struct slice key, uint64_t right_range_id,
                        uint64_t right_generation);

enum engine_ahead {
    ENGINE_AHEAD_NONE, /* for this key and range */
    ENGINE_AHEAD_BUILDING,
    ENGINE_AHEAD_READY,
    ENGINE_AHEAD_FAILED, /* see engine_split_ahead_status */
};

enum engine_ahead engine_split_ahead_state(const struct engine *e, struct slice key,
                                           uint64_t right_range_id);
/* For whatever split: it is ready. */
bool engine_split_ahead_is_ready(const struct engine *e);
/* Why it failed; OK otherwise. */
span_status engine_split_ahead_status(const struct engine *e);
/* Which range is being built ahead, 0: none; *running: by a flusher just now, so that nobody else
 * may touch the file even after engine_split_forget. */
uint64_t engine_split_ahead_range(const struct engine *e, bool *running);
/* It will not come, or not soon: removes the file, flushes go on. */
void engine_split_forget(struct engine *e);

/* Applies a split: everything at or above spec->key, every version, flushed or not, and a copy of
 * the local rows (0x00...) goes into a new file with horizon, bounds [key, old end) and the given
 * state, which is synced before this returns; then the left's bounds end at spec->key. A complete
 * right file (replay after a crash) is kept as it is, an unfinished one is built anew. On an error
 * the left is unchanged. Open the right side with engine_open. A flush may be under way. What
 * engine_split_ahead made ready is used if it was for this split; else all of it is copied now.
 * WOULD_WAIT: the flusher is building it. */
SPAN_CHECKED span_status engine_split(struct engine *e, const struct engine_split_spec *spec,
                                      struct span_error *err);

/* ---- merge -------------------------------------------------------------------------------------
 */

/* Whether rows outside the bounds may still lie in the file or in memory: engine_merge would make
 * them visible. Flushes end that. */
bool engine_is_trimming(const struct engine *e);
/* About what engine_merge would have to copy out of this engine. */
uint64_t engine_content_bytes(struct engine *e);
/* Takes over all that `right` holds: versions of its keys, newer versions of local ones, not its
 * meta rows. Its bounds begin where e's end, and e's end where right's did, afterwards. The rows go
 * to memory, so that the next flush writes them with the applied index: `right` and its file must
 * be kept until engine_applied_durable has reached it. Flushes of both may be under way. INVALID:
 * not neighbours, or e is trimming. On an error e shows nothing new, and is trimming. */
SPAN_CHECKED span_status engine_merge(struct engine *e, struct engine *right,
                                      struct span_error *err);

#endif
