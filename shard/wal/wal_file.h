/* The file operations the log needs, as a table, so that tests and the simulator can put a disk in
 * memory in its place and a fault layer can stand in front of either. A wal_fs is one directory.
 * The POSIX one uses plain libc calls (open, pread, pwrite, fdatasync, fsync, rename, unlink), so
 * that LD_PRELOAD shims see everything.
 *
 * Errors are mapped here, at the edge: ENOSPC and EDQUOT become NO_SPACE, ENOENT NOT_FOUND, the
 * rest IO; err's text names call, path and reason. A table's functions may be called from two
 * threads at once (writer and preparer), never on the same file. */
#ifndef SPAN_SHARD_WAL_WAL_FILE_H
#define SPAN_SHARD_WAL_WAL_FILE_H

#include "base/status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wal_fs;
struct wal_file; /* an open file; its layout belongs to the implementation */

typedef void wal_list_fn(void *ctx, const char *name);

struct wal_fs_ops {
    /* One owner of the directory at a time, until the fs is freed. UNAVAILABLE: another has it. */
    span_status (*lock)(struct wal_fs *fs, struct span_error *err);
    /* Opens for reading and writing. create: makes it anew, empty (replacing what was there). */
    span_status (*open)(struct wal_fs *fs, const char *name, bool create, struct wal_file **out,
                        struct span_error *err);
    void (*close)(struct wal_fs *fs, struct wal_file *f);
    /* Reads up to n bytes; *got < n only at the end of the file. */
    span_status (*read)(struct wal_fs *fs, struct wal_file *f, uint64_t offset, void *p, size_t n,
                        size_t *got, struct span_error *err);
    span_status (*write)(struct wal_fs *fs, struct wal_file *f, uint64_t offset, const void *p,
                         size_t n, struct span_error *err);
    /* Contents and size durable (fdatasync). The name needs sync_dir. */
    span_status (*sync)(struct wal_fs *fs, struct wal_file *f, struct span_error *err);
    span_status (*size)(struct wal_fs *fs, struct wal_file *f, uint64_t *out,
                        struct span_error *err);
    /* Writes real zeros from offset to end: blocks are allocated and their extents written, so that
     * a later fdatasync has no metadata to commit (notes/probes.md 5: this is a third of its time).
     */
    span_status (*zero_fill)(struct wal_fs *fs, struct wal_file *f, uint64_t offset, uint64_t end,
                             struct span_error *err);
    span_status (*rename)(struct wal_fs *fs, const char *from, const char *to,
                          struct span_error *err);
    span_status (*unlink)(struct wal_fs *fs, const char *name, struct span_error *err);
    span_status (*sync_dir)(struct wal_fs *fs, struct span_error *err);
    /* Bytes that can still be written; asked before filling, so as not to take the last ones. */
    span_status (*space)(struct wal_fs *fs, uint64_t *out, struct span_error *err);
    span_status (*list)(struct wal_fs *fs, wal_list_fn *fn, void *ctx, struct span_error *err);
    void (*free)(struct wal_fs *fs);
};

/* First member of every implementation. */
struct wal_fs {
    const struct wal_fs_ops *ops;
    const char *dir; /* for messages */
};

/* A directory on disk, made if its parent exists. Owned by the caller: fs->ops->free(fs). */
SPAN_CHECKED span_status wal_fs_posix_new(const char *dir, struct wal_fs **out,
                                          struct span_error *err);

/* Faults, settable at any time from any thread. A zeroed one injects nothing. */
struct wal_faults {
    _Atomic uint32_t sync_delay_ms; /* each sync takes this much longer */
    _Atomic uint32_t fail_syncs; /* so many syncs fail with EIO; UINT32_MAX: all, until set to 0 */
    _Atomic bool no_space;       /* creating, filling and writing fail with ENOSPC */
};

/* A layer in front of `inner` (borrowed) that injects `faults` (borrowed). Freeing it leaves inner.
 */
struct wal_fs *wal_fs_faulty_new(struct wal_fs *inner, struct wal_faults *faults);

#endif
