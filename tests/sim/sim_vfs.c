/* SQLite's view of the simulated disks; see sim_vfs.h. One thread. */
#include "tests/sim/sim_vfs.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/list.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

#define SHM_LOCKS 8

/* A database that is open: locks and shared memory of all its connections. */
struct vnode {
    struct list in_all;
    unsigned node;
    char name[40];
    unsigned refs;
    unsigned shared;      /* connections at SHARED or above */
    struct vfile *writer; /* the one at RESERVED or above */
    void **regions;
    size_t region_count;
    unsigned shm_refs;
    unsigned shm_shared[SHM_LOCKS];
    struct vfile *shm_owner[SHM_LOCKS];
};

struct vfile {
    sqlite3_file base;
    struct vnode *v; /* main databases only */
    struct wal_memfs *disk;
    struct wal_file *f;
    int lock;
    unsigned shm_mask; /* shared locks held */
    bool has_shm;
    bool dir_sync;  /* with the next sync: it may be new */
    bool delete_it; /* when closed */
    char name[40];
};

static struct wal_memfs *disks[SIM_VFS_NODES];
static struct list vnodes;
static struct rng vfs_rng;
static uint64_t vfs_now_ns;

static struct vfile *vfile_of(sqlite3_file *f)
{
    return (struct vfile *)(void *)f;
}

static int rc_of(span_status st, int io_rc)
{
    errno = st == SPAN_NO_SPACE ? ENOSPC : EIO;
    return st == SPAN_OK ? SQLITE_OK : st == SPAN_NO_SPACE ? SQLITE_FULL : io_rc;
}

/* ---- files ---- */

static const struct wal_fs_ops *ops_of(const struct vfile *f)
{
    return wal_memfs_fs(f->disk)->ops;
}

static void vnode_unref(struct vnode *v)
{
    if (--v->refs != 0) {
        return;
    }
    list_remove(&v->in_all);
    for (size_t i = 0; i < v->region_count; i++) {
        span_free(v->regions[i]);
    }
    span_free(v->regions);
    span_free(v);
}

static int file_unlock(sqlite3_file *file, int level);
static int file_shm_unmap(sqlite3_file *file, int delete_it);

static int file_close(sqlite3_file *file)
{
    struct vfile *f = vfile_of(file);
    struct span_error err = {0};
    if (f->v != NULL) {
        (void)file_shm_unmap(file, 0);
        (void)file_unlock(file, SQLITE_LOCK_NONE);
        vnode_unref(f->v);
    }
    if (f->f != NULL) {
        ops_of(f)->close(wal_memfs_fs(f->disk), f->f);
    }
    if (f->delete_it) {
        (void)!ops_of(f)->unlink(wal_memfs_fs(f->disk), f->name, &err);
    }
    f->base.pMethods = NULL;
    return SQLITE_OK;
}

static int file_read(sqlite3_file *file, void *p, int n, sqlite3_int64 at)
{
    struct vfile *f = vfile_of(file);
    struct span_error err = {0};
    size_t got = 0;
    span_status st =
        ops_of(f)->read(wal_memfs_fs(f->disk), f->f, (uint64_t)at, p, (size_t)n, &got, &err);
    if (st != SPAN_OK) {
        return rc_of(st, SQLITE_IOERR_READ);
    }
    if (got < (size_t)n) {
        memset((char *)p + got, 0, (size_t)n - got);
        return SQLITE_IOERR_SHORT_READ;
    }
    return SQLITE_OK;
}

static int file_write(sqlite3_file *file, const void *p, int n, sqlite3_int64 at)
{
    struct vfile *f = vfile_of(file);
    struct span_error err = {0};
    return rc_of(ops_of(f)->write(wal_memfs_fs(f->disk), f->f, (uint64_t)at, p, (size_t)n, &err),
                 SQLITE_IOERR_WRITE);
}

static int file_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    struct vfile *f = vfile_of(file);
    struct span_error err = {0};
    return rc_of(wal_memfs_file_truncate(f->disk, f->f, (uint64_t)size, &err),
                 SQLITE_IOERR_TRUNCATE);
}

static int file_sync(sqlite3_file *file, int flags)
{
    (void)flags;
    struct vfile *f = vfile_of(file);
    struct wal_fs *fs = wal_memfs_fs(f->disk);
    struct span_error err = {0};
    span_status st = fs->ops->sync(fs, f->f, &err);
    if (st == SPAN_OK && f->dir_sync) {
        st = fs->ops->sync_dir(fs, &err);
        f->dir_sync = st != SPAN_OK;
    }
    return rc_of(st, SQLITE_IOERR_FSYNC);
}

static int file_size(sqlite3_file *file, sqlite3_int64 *out)
{
    struct vfile *f = vfile_of(file);
    struct span_error err = {0};
    uint64_t size = 0;
    span_status st = ops_of(f)->size(wal_memfs_fs(f->disk), f->f, &size, &err);
    *out = (sqlite3_int64)size;
    return rc_of(st, SQLITE_IOERR_FSTAT);
}

/* ---- locks of a database (SHARED < RESERVED < PENDING < EXCLUSIVE) ---- */

static int file_lock(sqlite3_file *file, int level)
{
    struct vfile *f = vfile_of(file);
    struct vnode *v = f->v;
    if (v == NULL || f->lock >= level) {
        return SQLITE_OK;
    }
    if (level == SQLITE_LOCK_SHARED) {
        if (v->writer != NULL && v->writer->lock >= SQLITE_LOCK_PENDING) {
            return SQLITE_BUSY;
        }
        v->shared++;
        f->lock = level;
        return SQLITE_OK;
    }
    if (v->writer != NULL && v->writer != f) {
        return SQLITE_BUSY;
    }
    v->writer = f;
    if (level == SQLITE_LOCK_EXCLUSIVE && v->shared > 1) {
        f->lock = SQLITE_LOCK_PENDING;
        return SQLITE_BUSY;
    }
    f->lock = level;
    return SQLITE_OK;
}

static int file_unlock(sqlite3_file *file, int level)
{
    struct vfile *f = vfile_of(file);
    struct vnode *v = f->v;
    if (v == NULL || f->lock <= level) {
        return SQLITE_OK;
    }
    if (v->writer == f) {
        v->writer = NULL;
    }
    if (level == SQLITE_LOCK_NONE) {
        v->shared--;
    }
    f->lock = level;
    return SQLITE_OK;
}

static int file_reserved(sqlite3_file *file, int *out)
{
    const struct vfile *f = vfile_of(file);
    *out = f->v != NULL && f->v->writer != NULL;
    return SQLITE_OK;
}

static int file_control(sqlite3_file *file, int op, void *arg)
{
    (void)file;
    (void)op;
    (void)arg;
    return SQLITE_NOTFOUND;
}

static int file_sector(sqlite3_file *file)
{
    (void)file;
    return 512;
}

static int file_traits(sqlite3_file *file)
{
    (void)file;
    return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

/* ---- shared memory ---- */

static int file_shm_map(sqlite3_file *file, int region, int size, int extend, void volatile **out)
{
    struct vfile *f = vfile_of(file);
    struct vnode *v = f->v;
    *out = NULL;
    if (!f->has_shm) {
        f->has_shm = true;
        v->shm_refs++;
    }
    while (extend != 0 && v->region_count <= (size_t)region) {
        v->regions = span_realloc(v->regions, (v->region_count + 1) * sizeof *v->regions);
        v->regions[v->region_count++] = span_calloc(1, (size_t)size);
    }
    if ((size_t)region < v->region_count) {
        *out = v->regions[region];
    }
    return SQLITE_OK;
}

static int shm_release(struct vfile *f, int i)
{
    struct vnode *v = f->v;
    if (v->shm_owner[i] == f) {
        v->shm_owner[i] = NULL;
    }
    if ((f->shm_mask & (1U << i)) != 0) {
        v->shm_shared[i]--;
        f->shm_mask &= ~(1U << i);
    }
    return SQLITE_OK;
}

static int file_shm_lock(sqlite3_file *file, int offset, int n, int flags)
{
    struct vfile *f = vfile_of(file);
    struct vnode *v = f->v;
    for (int i = offset; i < offset + n; i++) {
        unsigned others = v->shm_shared[i] - ((f->shm_mask & (1U << i)) != 0 ? 1U : 0U);
        bool foreign = v->shm_owner[i] != NULL && v->shm_owner[i] != f;
        if ((flags & SQLITE_SHM_LOCK) != 0 &&
            (foreign || ((flags & SQLITE_SHM_EXCLUSIVE) != 0 && others != 0))) {
            return SQLITE_BUSY;
        }
    }
    for (int i = offset; i < offset + n; i++) {
        if ((flags & SQLITE_SHM_UNLOCK) != 0) {
            (void)shm_release(f, i);
        } else if ((flags & SQLITE_SHM_EXCLUSIVE) != 0) {
            v->shm_owner[i] = f;
        } else if ((f->shm_mask & (1U << i)) == 0) {
            v->shm_shared[i]++;
            f->shm_mask |= 1U << i;
        }
    }
    return SQLITE_OK;
}

static void file_shm_barrier(sqlite3_file *file)
{
    (void)file;
}

static int file_shm_unmap(sqlite3_file *file, int delete_it)
{
    (void)delete_it; /* memory of the process: gone with the last connection in any case */
    struct vfile *f = vfile_of(file);
    struct vnode *v = f->v;
    for (int i = 0; i < SHM_LOCKS; i++) {
        (void)shm_release(f, i);
    }
    if (f->has_shm && --v->shm_refs == 0) {
        for (size_t i = 0; i < v->region_count; i++) {
            span_free(v->regions[i]);
        }
        span_free(v->regions);
        v->regions = NULL;
        v->region_count = 0;
    }
    f->has_shm = false;
    return SQLITE_OK;
}

static const sqlite3_io_methods methods = {
    .iVersion = 2,
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_unlock,
    .xCheckReservedLock = file_reserved,
    .xFileControl = file_control,
    .xSectorSize = file_sector,
    .xDeviceCharacteristics = file_traits,
    .xShmMap = file_shm_map,
    .xShmLock = file_shm_lock,
    .xShmBarrier = file_shm_barrier,
    .xShmUnmap = file_shm_unmap,
};

/* ---- the VFS ---- */

/* SIM_VFS_ROOT/<node>/<name>. */
static struct wal_memfs *find_disk(const char *path, unsigned *node, const char **name)
{
    int used = 0;
    if (path == NULL || sscanf(path, SIM_VFS_ROOT "/%u/%n", node, &used) != 1 || used == 0 ||
        *node >= SIM_VFS_NODES || strlen(path + used) >= sizeof((struct vfile *)0)->name) {
        return NULL;
    }
    *name = path + used;
    return disks[*node];
}

static struct vnode *vnode_ref(unsigned node, const char *name)
{
    LIST_EACH(i, &vnodes)
    {
        struct vnode *v = LIST_ENTRY(i, struct vnode, in_all);
        if (v->node == node && strcmp(v->name, name) == 0) {
            v->refs++;
            return v;
        }
    }
    struct vnode *v = SPAN_NEW(struct vnode);
    v->node = node;
    v->refs = 1;
    strcpy(v->name, name);
    list_push_back(&vnodes, &v->in_all);
    return v;
}

static int vfs_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *file, int flags, int *out)
{
    (void)vfs;
    struct vfile *f = vfile_of(file);
    struct span_error err = {0};
    unsigned node = 0;
    const char *name = NULL;
    memset(f, 0, sizeof *f);
    f->disk = find_disk(path, &node, &name);
    if (f->disk == NULL) {
        return SQLITE_CANTOPEN;
    }
    strcpy(f->name, name);
    struct wal_fs *fs = wal_memfs_fs(f->disk);
    bool create = (flags & SQLITE_OPEN_CREATE) != 0 && !wal_memfs_exists(f->disk, name);
    span_status st = fs->ops->open(fs, name, create, &f->f, &err);
    if (st != SPAN_OK) {
        errno = st == SPAN_NO_SPACE ? ENOSPC : EIO;
        return SQLITE_CANTOPEN;
    }
    /* Every connection that may have made it syncs the directory with its first sync. */
    bool journal =
        (flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL)) != 0;
    f->dir_sync = journal && (flags & SQLITE_OPEN_CREATE) != 0;
    f->delete_it = (flags & SQLITE_OPEN_DELETEONCLOSE) != 0;
    f->v = (flags & SQLITE_OPEN_MAIN_DB) != 0 ? vnode_ref(node, name) : NULL;
    f->base.pMethods = &methods;
    if (out != NULL) {
        *out = flags;
    }
    return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *path, int sync_dir)
{
    (void)vfs;
    struct span_error err = {0};
    unsigned node = 0;
    const char *name = NULL;
    struct wal_memfs *disk = find_disk(path, &node, &name);
    if (disk == NULL || !wal_memfs_exists(disk, name)) {
        return SQLITE_IOERR_DELETE_NOENT;
    }
    struct wal_fs *fs = wal_memfs_fs(disk);
    span_status st = fs->ops->unlink(fs, name, &err);
    if (st == SPAN_OK && sync_dir != 0) {
        st = fs->ops->sync_dir(fs, &err);
    }
    return rc_of(st, SQLITE_IOERR_DELETE);
}

static int vfs_access(sqlite3_vfs *vfs, const char *path, int flags, int *out)
{
    (void)vfs;
    unsigned node = 0;
    const char *name = NULL;
    struct wal_memfs *disk = find_disk(path, &node, &name);
    bool there = disk != NULL && wal_memfs_exists(disk, name);
    /* As SQLite's for Unix: an empty file does not "exist". */
    *out = there && (flags != SQLITE_ACCESS_EXISTS || wal_memfs_size(disk, name) > 0);
    return SQLITE_OK;
}

static int vfs_full_path(sqlite3_vfs *vfs, const char *path, int size, char *out)
{
    (void)vfs;
    return snprintf(out, (size_t)size, "%s", path) < size ? SQLITE_OK : SQLITE_CANTOPEN;
}

static int vfs_random(sqlite3_vfs *vfs, int n, char *out)
{
    (void)vfs;
    for (int i = 0; i < n; i++) {
        out[i] = (char)rng_u64(&vfs_rng);
    }
    return n;
}

static int vfs_sleep(sqlite3_vfs *vfs, int us)
{
    (void)vfs;
    return us; /* nobody else runs meanwhile */
}

static int vfs_time64(sqlite3_vfs *vfs, sqlite3_int64 *out)
{
    (void)vfs;
    *out = 210866760000000LL + (sqlite3_int64)(vfs_now_ns / 1000000);
    return SQLITE_OK;
}

static int vfs_time(sqlite3_vfs *vfs, double *out)
{
    sqlite3_int64 ms;
    int rc = vfs_time64(vfs, &ms);
    *out = (double)ms / 86400000.0;
    return rc;
}

static int vfs_last_error(sqlite3_vfs *vfs, int n, char *out)
{
    (void)vfs;
    (void)n;
    (void)out;
    return errno;
}

void sim_vfs_start(uint64_t seed)
{
    static sqlite3_vfs vfs = {
        .iVersion = 2,
        .szOsFile = sizeof(struct vfile),
        .mxPathname = 256,
        .zName = SIM_VFS_NAME,
        .xOpen = vfs_open,
        .xDelete = vfs_delete,
        .xAccess = vfs_access,
        .xFullPathname = vfs_full_path,
        .xRandomness = vfs_random,
        .xSleep = vfs_sleep,
        .xCurrentTime = vfs_time,
        .xGetLastError = vfs_last_error,
        .xCurrentTimeInt64 = vfs_time64,
    };
    if (sqlite3_vfs_find(SIM_VFS_NAME) == NULL) {
        list_init(&vnodes);
        int rc = sqlite3_vfs_register(&vfs, 1);
        REQUIRE(rc == SQLITE_OK);
    }
    rng_init(&vfs_rng, seed);
    sqlite3_randomness(0, NULL); /* forgets its state: seeded by us at the next use */
}

void sim_vfs_mount(unsigned node, struct wal_memfs *disk)
{
    REQUIRE(node < SIM_VFS_NODES);
    disks[node] = disk;
}

void sim_vfs_set_time(uint64_t ns)
{
    vfs_now_ns = ns;
}
