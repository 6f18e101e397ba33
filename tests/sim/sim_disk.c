/* Disks of a simulated node; see sim_disk.h. */
#include "tests/sim/sim_disk.h"

#include "base/planted.h"
#include "tests/sim/sim_vfs.h"

#define FLIP_SEGMENTS_MIN 4

void sim_disk_init(struct sim_disk *d, unsigned node)
{
    d->log = wal_memfs_new();
    d->files = wal_memfs_new();
    wal_memfs_set_lying(d->log, PLANTED(FSYNC_LIES));
    sim_vfs_mount(node, d->files);
}

void sim_disk_deinit(struct sim_disk *d, unsigned node)
{
    sim_vfs_mount(node, NULL);
    wal_memfs_free(d->log);
    wal_memfs_free(d->files);
}

uint64_t sim_disk_sync_ns(const struct sim_disk *d, struct rng *r, uint64_t now_ns)
{
    uint64_t ns = SIM_DISK_SYNC_NS_MIN + rng_below(r, d->sync_max_ns + 1);
    if (rng_double(r) < d->stall) {
        ns += rng_below(r, d->stall_max_ns + 1);
    }
    return d->stall_until_ns > now_ns ? ns + (d->stall_until_ns - now_ns) : ns;
}

void sim_disk_stop(struct sim_disk *d)
{
    wal_memfs_stop_after(d->log, 0);
    wal_memfs_stop_after(d->files, 0);
}

void sim_disk_crash(struct sim_disk *d, struct rng *r, enum sim_crash how)
{
    if (how == SIM_CRASH_POWER) {
        wal_memfs_power_loss(d->log, r, 101);
        wal_memfs_power_loss(d->files, r, 101);
    } else {
        wal_memfs_kill(d->log);
        wal_memfs_kill(d->files);
    }
}

static uint64_t used_bytes(struct wal_memfs *m)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < wal_memfs_count(m); i++) {
        sum += wal_memfs_size(m, wal_memfs_name(m, i));
    }
    return sum;
}

void sim_disk_set_room(struct sim_disk *d, uint64_t more)
{
    wal_memfs_set_capacity(d->log, more == UINT64_MAX ? more : used_bytes(d->log) + more);
    wal_memfs_set_capacity(d->files, more == UINT64_MAX ? more : used_bytes(d->files) + more);
}

bool sim_disk_flip_log(struct sim_disk *d, struct rng *r)
{
    const char *oldest = NULL;
    size_t segments = 0;
    for (size_t i = 0; i < wal_memfs_count(d->log); i++) {
        const char *name = wal_memfs_name(d->log, i);
        if (strncmp(name, "wal-", 4) == 0) {
            oldest = segments++ == 0 ? name : oldest;
        }
    }
    /* The one being written and its spares come last: with so many the first is none of them. */
    if (segments < FLIP_SEGMENTS_MIN) {
        return false;
    }
    uint64_t at = rng_below(r, wal_memfs_size(d->log, oldest));
    wal_memfs_xor(d->log, oldest, at, (uint8_t)(1U << rng_below(r, 8)));
    return true;
}
