/* A disk in memory for the log: keeps apart what was synced and what was only written, by sectors
 * of 512 bytes, and what directory operations were made durable, so that a power loss can take any
 * subset of what it may take. Thread-safe. Used by the log's tests and by the simulator. */
#ifndef SPAN_TESTS_LIB_WAL_MEMFILE_H
#define SPAN_TESTS_LIB_WAL_MEMFILE_H

#include "base/buf.h"
#include "base/rng.h"
#include "shard/wal/wal_file.h"

#include <stdbool.h>
#include <stdint.h>

struct wal_memfs;

struct wal_memfs *wal_memfs_new(void);
void wal_memfs_free(struct wal_memfs *m);
/* What wal_options.fs takes. Belongs to m. */
struct wal_fs *wal_memfs_fs(struct wal_memfs *m);
/* Same files and contents, all of it synced, nothing open. */
struct wal_memfs *wal_memfs_clone(struct wal_memfs *m);

/* ---- Crashes (nothing may be using the log any more) ---- */

/* Power loss: each unsynced sector survives or not, by r; directory operations since the last
 * sync_dir survive up to some point (a journal). survive: chance of a sector in percent; above 100:
 * drawn. */
void wal_memfs_power_loss(struct wal_memfs *m, struct rng *r, unsigned survive);
/* The process was killed: the page cache stays. */
void wal_memfs_kill(struct wal_memfs *m);

/* ---- Faults ---- */

/* After n more operations that change something, all fail and change nothing, until a crash.
 * UINT64_MAX: never. */
void wal_memfs_stop_after(struct wal_memfs *m, uint64_t n);
/* As wal_memfs_stop_after(m, 0), from the only thread that uses m, also inside an operation. */
void wal_memfs_stop_now(struct wal_memfs *m);
/* Called when an operation fails because of wal_memfs_stop_after, inside that operation. */
void wal_memfs_on_stop(struct wal_memfs *m, void (*fn)(void *ctx), void *ctx);
uint64_t wal_memfs_op_count(struct wal_memfs *m);
/* The sync after `skip` more fails with IO, and so do the `count` - 1 after it; as in Linux the
 * pages are marked clean: they read as written, are lost on power loss, and a second sync says OK.
 */
void wal_memfs_fail_syncs(struct wal_memfs *m, uint64_t skip, uint64_t count);
/* Bytes all files may have together; growing beyond fails with NO_SPACE. */
void wal_memfs_set_capacity(struct wal_memfs *m, uint64_t bytes);
/* A disk that lies: syncs say OK and leave everything unsynced. */
void wal_memfs_set_lying(struct wal_memfs *m, bool on);

/* What of all that happened so far. */
struct wal_memfs_events {
    uint64_t syncs_failed;
    uint64_t no_space;     /* writes that found no room */
    uint64_t sectors_lost; /* written, not synced, gone with the power */
    uint64_t torn;         /* files of whose unsynced sectors some survived and some did not */
    uint64_t dir_ops_lost;
};

void wal_memfs_events_get(struct wal_memfs *m, struct wal_memfs_events *out);

/* ---- What SQLite needs beyond wal_fs ---- */

/* Cuts an open file; like a write it is durable after the next sync of the file. */
SPAN_CHECKED span_status wal_memfs_file_truncate(struct wal_memfs *m, struct wal_file *f,
                                                 uint64_t size, struct span_error *err);
bool wal_memfs_exists(struct wal_memfs *m, const char *name);

/* ---- Looking and damaging ---- */

size_t wal_memfs_count(struct wal_memfs *m);
/* Name of the i-th file (in order of names), valid until the next change. */
const char *wal_memfs_name(struct wal_memfs *m, size_t i);
/* Contents, appended to out; false: no such file. */
bool wal_memfs_get(struct wal_memfs *m, const char *name, struct buf *out);
uint64_t wal_memfs_size(struct wal_memfs *m, const char *name);
void wal_memfs_xor(struct wal_memfs *m, const char *name, uint64_t offset, uint8_t bits);
void wal_memfs_truncate(struct wal_memfs *m, const char *name, uint64_t size);
bool wal_memfs_remove(struct wal_memfs *m, const char *name);

#endif
