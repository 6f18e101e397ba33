/* SQLite on disks in memory: a VFS whose files lie on the simulated disk of a node, so that the
 * production engine runs on virtual time, loses what was not synced when the power goes, meets
 * faults, and takes its time and randomness from the seed. Paths are SIM_VFS_ROOT/<node>/<name>.
 *
 * Like SQLite's own for Unix where it matters: a journal's or log's directory entry is synced with
 * its first sync, a deletion syncs the directory if asked; shared memory (the -shm) is memory of
 * the process and gone with its last connection. */
#ifndef SPAN_TESTS_SIM_SIM_VFS_H
#define SPAN_TESTS_SIM_SIM_VFS_H

#include "tests/lib/wal_memfile.h"

#define SIM_VFS_NAME  "spanlite-sim"
#define SIM_VFS_ROOT  "/sim"
#define SIM_VFS_NODES 16

/* Registers the VFS as the default one and seeds SQLite's randomness. Once a run. */
void sim_vfs_start(uint64_t seed);
/* disk is borrowed; NULL: the node is gone. */
void sim_vfs_mount(unsigned node, struct wal_memfs *disk);
/* SQLite's idea of the time, nanoseconds since 1970. */
void sim_vfs_set_time(uint64_t ns);

#endif
