/* A node's data folder: who it belongs to, and that one process at a time uses it.
 *
 * The folder holds a small text file IDENTITY, written once when the folder is created (temporary
 * file, fdatasync, rename, sync of the folder), with the format's version, the cluster's name, the
 * node's id, a random store id, whether the folder is throw-away and the ids of the cluster's
 * nodes. A folder of another cluster or node is refused: a node that came back with somebody else's
 * log would break promises it does not remember. So is another list of nodes: two nodes that count
 * majorities of different sets could both have one. Only ids are kept; a node may move to another
 * address. The lock (flock on LOCK) goes with the process, so kill -9 needs no cleaning up. */
#ifndef SPAN_COORDINATOR_DATA_DIR_H
#define SPAN_COORDINATOR_DATA_DIR_H

#include "base/limits.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* 1: no list of nodes (still read; such a folder is taken with any list). 2: with it. */
#define DATA_DIR_FORMAT 2

/* Whose folder it is to be. */
struct data_dir_owner {
    const char *cluster;
    unsigned node;
    unsigned members[LIMIT_PEERS]; /* ids of the cluster's nodes, rising, `node` among them */
    size_t member_count;
    bool throwaway; /* matters only when the folder is made */
    bool join;      /* the node is new in a running cluster; matters only when the folder is made */
};

struct data_dir {
    char *path;                    /* as given */
    char *cluster;                 /* name in IDENTITY */
    unsigned node;                 /* id in IDENTITY */
    unsigned members[LIMIT_PEERS]; /* ids in IDENTITY, rising */
    size_t member_count;           /* 0: a folder of format 1, which has no list */
    bool made;                     /* the folder was not there before data_dir_open */
    uint64_t store_id;             /* random at creation: tells a wiped folder from the old one */
    bool throwaway;                /* created with --throwaway */
    bool joined;                   /* created for a node that joined a running cluster */
    bool created;                  /* this open made it */
    int lock_fd;
};

/* Opens the folder of `owner`, making it (mode 0700) and its IDENTITY when it is missing or empty.
 * Errors, each naming the path: IO (cannot create, read or write), EXISTS (another process has it
 * open; its pid is named), INVALID (other cluster, other node, other nodes, not empty and not a
 * data folder, newer format), CORRUPT (IDENTITY is damaged). */
SPAN_CHECKED span_status data_dir_open(const char *path, const struct data_dir_owner *owner,
                                       struct data_dir *out, struct span_error *err);
/* Reads the IDENTITY of a folder without opening it: no lock (lock_fd is -1), nothing is made.
 * NOT_FOUND (err untouched): there is no folder or no IDENTITY in it; else errors as above. The
 * caller ends with data_dir_close, whatever came back. */
SPAN_CHECKED span_status data_dir_peek(const char *path, struct data_dir *out,
                                       struct span_error *err);
/* Unsafe switches are for clusters that were made to be thrown away. INVALID when this folder was
 * not; `flag` is named in the message. */
SPAN_CHECKED span_status data_dir_require_throwaway(const struct data_dir *d, const char *flag,
                                                    struct span_error *err);
/* Takes back what data_dir_open made, and what was put into the folder since: all of it is this
 * process's, for the folder was empty. The lock stays until data_dir_close. Only when nobody has
 * met the store. */
void data_dir_unmake(const struct data_dir *d);
/* Releases the lock. A zeroed struct whose lock_fd is -1 is ignored. */
void data_dir_close(struct data_dir *d);

#endif
