/* A node's data folder: who it belongs to, and that one process at a time uses it.
 *
 * The folder holds a small text file IDENTITY, written once when the folder is created (temporary
 * file, fdatasync, rename, sync of the folder), with the format's version, the cluster's name, the
 * node's id, a random store id and whether the folder is throw-away. A folder of another cluster or
 * node is refused: a node that came back with somebody else's log would break promises it does not
 * remember. The lock (flock on LOCK) goes with the process, so kill -9 needs no cleaning up. */
#ifndef SPAN_COORDINATOR_DATA_DIR_H
#define SPAN_COORDINATOR_DATA_DIR_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

#define DATA_DIR_FORMAT 1

struct data_dir {
    char *path;        /* as given */
    char *cluster;     /* name in IDENTITY */
    unsigned node;     /* id in IDENTITY */
    uint64_t store_id; /* random at creation: tells a wiped folder from the old one */
    bool throwaway;    /* created with --throwaway */
    bool created;      /* this open made it */
    int lock_fd;
};

/* Opens the folder of node `node` of `cluster`, making it (mode 0700) and its IDENTITY when it is
 * missing or empty; `throwaway` matters only then. Errors, each naming the path: IO (cannot create,
 * read or write), EXISTS (another process has it open; its pid is named), INVALID (other cluster,
 * other node, not empty and not a data folder, newer format), CORRUPT (IDENTITY is damaged). */
SPAN_CHECKED span_status data_dir_open(const char *path, const char *cluster, unsigned node,
                                       bool throwaway, struct data_dir *out,
                                       struct span_error *err);
/* Unsafe switches are for clusters that were made to be thrown away. INVALID when this folder was
 * not; `flag` is named in the message. */
SPAN_CHECKED span_status data_dir_require_throwaway(const struct data_dir *d, const char *flag,
                                                    struct span_error *err);
/* Releases the lock. A zeroed struct whose lock_fd is -1 is ignored. */
void data_dir_close(struct data_dir *d);

#endif
