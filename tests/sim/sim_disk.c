/* Disks of a simulated node; see sim_disk.h. */
#include "tests/sim/sim_disk.h"

#include "base/planted.h"
#include "tests/sim/sim_vfs.h"

#define FLIP_SEGMENTS_MIN 4
/* A row in a page: key, timestamp (in `history` the one it ended at as well), value of 16 bytes or
 * more. So far behind the key lies a byte of the value in either table. */
#define ROW_VALUE_AT 16
#define ROW_BYTES    24

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

uint64_t sim_disk_sync_ns(struct sim_disk *d, struct rng *r, uint64_t now_ns)
{
    uint64_t ns = SIM_DISK_SYNC_NS_MIN + rng_below(r, d->sync_max_ns + 1);
    if (rng_double(r) < d->stall) {
        ns += rng_below(r, d->stall_max_ns + 1);
        d->slow_syncs++;
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

/* NULL: there is none. */
static const char *old_segment(struct sim_disk *d)
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
    return segments < FLIP_SEGMENTS_MIN ? NULL : oldest;
}

bool sim_disk_has_old_log(struct sim_disk *d)
{
    return old_segment(d) != NULL;
}

bool sim_disk_flip_log(struct sim_disk *d, struct rng *r)
{
    const char *oldest = old_segment(d);
    if (oldest == NULL) {
        return false;
    }
    uint64_t at = rng_below(r, wal_memfs_size(d->log, oldest));
    wal_memfs_xor(d->log, oldest, at, (uint8_t)(1U << rng_below(r, 8)));
    return true;
}

/* The simulated clock's timestamps begin so, as SQLite stores them. */
static bool is_row(const uint8_t *p, struct slice prefix, size_t key_size)
{
    return memcmp(p, prefix.data, prefix.size) == 0 && p[key_size] == 0x17 &&
           (p[key_size + 1] & 0xf0) == 0x90;
}

/* The n-th row of all files, or how many there are. */
static size_t find_row(struct sim_disk *d, struct slice prefix, size_t key_size, size_t n,
                       const char **name, uint64_t *at)
{
    size_t found = 0;
    for (size_t i = 0; i < wal_memfs_count(d->files); i++) {
        const char *file = wal_memfs_name(d->files, i);
        size_t len = strlen(file);
        if (file[0] != 'r' || len < 3 || strcmp(file + len - 3, ".db") != 0) {
            continue;
        }
        struct buf b = {0};
        (void)wal_memfs_get(d->files, file, &b);
        for (size_t k = 0; k + key_size + ROW_BYTES <= b.size; k++) {
            if (is_row(b.data + k, prefix, key_size) && found++ == n) {
                *name = file;
                *at = k + key_size + ROW_VALUE_AT;
            }
        }
        buf_deinit(&b);
    }
    return found;
}

bool sim_disk_rot(struct sim_disk *d, struct rng *r, struct slice prefix, size_t key_size)
{
    const char *name = NULL;
    uint64_t at = 0;
    size_t count = find_row(d, prefix, key_size, SIZE_MAX, &name, &at);
    if (count == 0) {
        return false;
    }
    (void)find_row(d, prefix, key_size, rng_below(r, count), &name, &at);
    at += rng_below(r, ROW_BYTES - ROW_VALUE_AT);
    wal_memfs_xor(d->files, name, at, (uint8_t)(1U << rng_below(r, 8)));
    return true;
}
