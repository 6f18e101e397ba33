/* A node's two disks in memory, the log's and the range files' (tests/lib/wal_memfile.h,
 * sim_vfs.h), and how they behave: how long a sync takes, what a crash leaves. */
#ifndef SPAN_TESTS_SIM_SIM_DISK_H
#define SPAN_TESTS_SIM_SIM_DISK_H

#include "tests/lib/wal_memfile.h"

#define SIM_DISK_SYNC_NS_MIN 50000

struct sim_disk {
    struct wal_memfs *log;
    struct wal_memfs *files;
    uint64_t sync_max_ns;
    double stall; /* share of syncs that take up to stall_max_ns */
    uint64_t stall_max_ns;
    uint64_t stall_until_ns; /* every sync waits so long (true time) */
    uint64_t slow_syncs;
};

enum sim_crash {
    SIM_CRASH_KILL,  /* the process died, the page cache stays */
    SIM_CRASH_POWER, /* of what was not synced any part is lost, sector by sector */
};

/* Both are called with the node number that sim_vfs.h mounts the files under. */
void sim_disk_init(struct sim_disk *d, unsigned node);
void sim_disk_deinit(struct sim_disk *d, unsigned node);
/* How long the sync that begins now takes. */
uint64_t sim_disk_sync_ns(struct sim_disk *d, struct rng *r, uint64_t now_ns);
/* Nothing more reaches the disks until sim_disk_crash. */
void sim_disk_stop(struct sim_disk *d);
/* Nothing uses them any more: what the next start finds. */
void sim_disk_crash(struct sim_disk *d, struct rng *r, enum sim_crash how);
/* No room for more than `more` bytes beyond what is there, on both; UINT64_MAX: room again. */
void sim_disk_set_room(struct sim_disk *d, uint64_t more);
/* The log has a segment that sim_disk_flip_log would take. */
bool sim_disk_has_old_log(struct sim_disk *d);
/* Flips a bit in the log's oldest segment, if there are newer ones: in the last unit it would look
 * like a torn tail (rule H2). False: nothing was flipped. */
bool sim_disk_flip_log(struct sim_disk *d, struct rng *r);
/* Flips a bit in the value of a row with this key prefix, of `key_size` bytes, in some range file,
 * used or not: there the engine's checksums promise to find it. False: there is no such row. */
bool sim_disk_rot(struct sim_disk *d, struct rng *r, struct slice prefix, size_t key_size);

#endif
