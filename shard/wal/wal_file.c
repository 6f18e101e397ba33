/* POSIX files for the log, and the layer that injects faults in front of any implementation. */
#include "shard/wal/wal_file.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

/* Zeros are written and synced in pieces, so that filling a segment in the background never puts a
 * long queue in front of the writer's next fdatasync. */
#define FILL_CHUNK_BYTES (256 * KIB)
#define FILL_SYNC_BYTES  (4 * MIB)

struct posix_fs {
    struct wal_fs fs;
    char *dir;
    int dir_fd;
    int lock_fd; /* -1: not locked */
};

struct posix_file {
    int fd;
    char *path; /* for messages: the name it was opened under */
};

/* wal_file is opaque to callers; here it is a posix_file. */
static struct posix_file *posix_file_of(struct wal_file *f)
{
    return (struct posix_file *)(void *)f;
}

static struct posix_fs *posix_fs_of(struct wal_fs *fs)
{
    return (struct posix_fs *)(void *)fs;
}

static span_status posix_fail(struct span_error *err, const char *call, const char *path, int e)
{
    span_status st = SPAN_IO;
    if (e == ENOSPC || e == EDQUOT) {
        st = SPAN_NO_SPACE;
    } else if (e == ENOENT) {
        st = SPAN_NOT_FOUND;
    }
    char reason[128];
    /* GNU strerror_r: may return a static string instead of filling reason. */
    return span_fail(err, st, "%s %s: %s", call, path, strerror_r(e, reason, sizeof reason));
}

static span_status posix_lock(struct wal_fs *fs, struct span_error *err)
{
    struct posix_fs *p = posix_fs_of(fs);
    if (p->lock_fd >= 0) {
        return SPAN_OK;
    }
    char *path = span_asprintf("%s/lock", p->dir);
    span_status st = SPAN_OK;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        st = posix_fail(err, "open", path, errno);
    } else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int e = errno;
        st = e == EWOULDBLOCK
                 ? span_fail(err, SPAN_UNAVAILABLE, "%s is held by another process", path)
                 : posix_fail(err, "flock", path, e);
        close(fd);
    } else {
        p->lock_fd = fd;
    }
    span_free(path);
    return st;
}

static span_status posix_open(struct wal_fs *fs, const char *name, bool create,
                              struct wal_file **out, struct span_error *err)
{
    char *path = span_asprintf("%s/%s", fs->dir, name);
    int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0);
    int fd = open(path, flags, 0600);
    if (fd < 0) {
        span_status st = posix_fail(err, "open", path, errno);
        span_free(path);
        return st;
    }
    struct posix_file *f = SPAN_NEW(struct posix_file);
    f->fd = fd;
    f->path = path;
    *out = (struct wal_file *)(void *)f;
    return SPAN_OK;
}

static void posix_close(struct wal_fs *fs, struct wal_file *file)
{
    (void)fs;
    struct posix_file *f = posix_file_of(file);
    close(f->fd);
    span_free(f->path);
    span_free(f);
}

static span_status posix_read(struct wal_fs *fs, struct wal_file *file, uint64_t offset, void *p,
                              size_t n, size_t *got, struct span_error *err)
{
    (void)fs;
    struct posix_file *f = posix_file_of(file);
    size_t done = 0;
    while (done < n) {
        ssize_t r = pread(f->fd, (char *)p + done, n - done, (off_t)(offset + done));
        if (r < 0 && errno == EINTR) {
            continue;
        }
        if (r < 0) {
            return posix_fail(err, "pread", f->path, errno);
        }
        if (r == 0) {
            break;
        }
        done += (size_t)r;
    }
    *got = done;
    return SPAN_OK;
}

static span_status posix_write(struct wal_fs *fs, struct wal_file *file, uint64_t offset,
                               const void *p, size_t n, struct span_error *err)
{
    (void)fs;
    struct posix_file *f = posix_file_of(file);
    size_t done = 0;
    while (done < n) {
        ssize_t r = pwrite(f->fd, (const char *)p + done, n - done, (off_t)(offset + done));
        if (r < 0 && errno == EINTR) {
            continue;
        }
        if (r < 0) {
            return posix_fail(err, "pwrite", f->path, errno);
        }
        if (r == 0) {
            return posix_fail(err, "pwrite", f->path, EIO);
        }
        done += (size_t)r;
    }
    return SPAN_OK;
}

static span_status posix_sync(struct wal_fs *fs, struct wal_file *file, struct span_error *err)
{
    (void)fs;
    struct posix_file *f = posix_file_of(file);
    /* EINTR is not retried: after a failed sync nothing is known about the pages (rule H4). */
    return fdatasync(f->fd) == 0 ? SPAN_OK : posix_fail(err, "fdatasync", f->path, errno);
}

static span_status posix_size(struct wal_fs *fs, struct wal_file *file, uint64_t *out,
                              struct span_error *err)
{
    (void)fs;
    struct posix_file *f = posix_file_of(file);
    struct stat sb;
    if (fstat(f->fd, &sb) != 0) {
        return posix_fail(err, "fstat", f->path, errno);
    }
    *out = (uint64_t)sb.st_size;
    return SPAN_OK;
}

static span_status posix_zero_fill(struct wal_fs *fs, struct wal_file *file, uint64_t offset,
                                   uint64_t end, struct span_error *err)
{
    void *zeros = span_calloc(1, FILL_CHUNK_BYTES);
    span_status st = SPAN_OK;
    uint64_t unsynced = 0;
    while (st == SPAN_OK && offset < end) {
        size_t n = end - offset < FILL_CHUNK_BYTES ? (size_t)(end - offset) : FILL_CHUNK_BYTES;
        st = posix_write(fs, file, offset, zeros, n, err);
        offset += n;
        unsynced += n;
        if (st == SPAN_OK && (unsynced >= FILL_SYNC_BYTES || offset == end)) {
            st = posix_sync(fs, file, err);
            unsynced = 0;
        }
    }
    span_free(zeros);
    return st;
}

static span_status posix_rename(struct wal_fs *fs, const char *from, const char *to,
                                struct span_error *err)
{
    char *a = span_asprintf("%s/%s", fs->dir, from);
    char *b = span_asprintf("%s/%s", fs->dir, to);
    span_status st = rename(a, b) == 0 ? SPAN_OK : posix_fail(err, "rename", a, errno);
    span_free(a);
    span_free(b);
    return st;
}

static span_status posix_unlink(struct wal_fs *fs, const char *name, struct span_error *err)
{
    char *path = span_asprintf("%s/%s", fs->dir, name);
    span_status st = unlink(path) == 0 ? SPAN_OK : posix_fail(err, "unlink", path, errno);
    span_free(path);
    return st;
}

static span_status posix_sync_dir(struct wal_fs *fs, struct span_error *err)
{
    struct posix_fs *p = posix_fs_of(fs);
    return fsync(p->dir_fd) == 0 ? SPAN_OK : posix_fail(err, "fsync", p->dir, errno);
}

static span_status posix_space(struct wal_fs *fs, uint64_t *out, struct span_error *err)
{
    struct statvfs v;
    if (fstatvfs(posix_fs_of(fs)->dir_fd, &v) != 0) {
        return posix_fail(err, "fstatvfs", fs->dir, errno);
    }
    *out = (uint64_t)v.f_bavail * (uint64_t)v.f_frsize;
    return SPAN_OK;
}

static span_status posix_list(struct wal_fs *fs, wal_list_fn *fn, void *ctx, struct span_error *err)
{
    DIR *d = opendir(fs->dir);
    if (d == NULL) {
        return posix_fail(err, "opendir", fs->dir, errno);
    }
    span_status st = SPAN_OK;
    for (;;) {
        errno = 0;
        /* The stream is ours alone. */
        const struct dirent *e = readdir(d); /* NOLINT(concurrency-mt-unsafe) */
        if (e == NULL) {
            st = errno == 0 ? SPAN_OK : posix_fail(err, "readdir", fs->dir, errno);
            break;
        }
        fn(ctx, e->d_name);
    }
    closedir(d);
    return st;
}

static void posix_free(struct wal_fs *fs)
{
    struct posix_fs *p = posix_fs_of(fs);
    if (p->lock_fd >= 0) {
        close(p->lock_fd);
    }
    close(p->dir_fd);
    span_free(p->dir);
    span_free(p);
}

static const struct wal_fs_ops posix_ops = {
    .lock = posix_lock,
    .open = posix_open,
    .close = posix_close,
    .read = posix_read,
    .write = posix_write,
    .sync = posix_sync,
    .size = posix_size,
    .zero_fill = posix_zero_fill,
    .rename = posix_rename,
    .unlink = posix_unlink,
    .sync_dir = posix_sync_dir,
    .space = posix_space,
    .list = posix_list,
    .free = posix_free,
};

span_status wal_fs_posix_new(const char *dir, struct wal_fs **out, struct span_error *err)
{
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        return posix_fail(err, "mkdir", dir, errno);
    }
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return posix_fail(err, "open", dir, errno);
    }
    struct posix_fs *p = SPAN_NEW(struct posix_fs);
    p->dir = span_strdup(dir);
    p->fs.ops = &posix_ops;
    p->fs.dir = p->dir;
    p->dir_fd = fd;
    p->lock_fd = -1;
    *out = &p->fs;
    return SPAN_OK;
}

/* ---- Faults ---- */

struct faulty_fs {
    struct wal_fs fs;
    struct wal_fs *inner;
    struct wal_faults *faults;
};

static struct faulty_fs *faulty_of(struct wal_fs *fs)
{
    return (struct faulty_fs *)(void *)fs;
}

static span_status faulty_space(const struct faulty_fs *p, const char *call, struct span_error *err)
{
    if (!atomic_load_explicit(&p->faults->no_space, memory_order_relaxed)) {
        return SPAN_OK;
    }
    return span_fail(err, SPAN_NO_SPACE, "%s in %s: injected: %s", call, p->fs.dir,
                     "No space left on device");
}

/* Takes one of the syncs that are to fail, if any is left. */
static bool faulty_take_failure(struct wal_faults *faults)
{
    uint32_t n = atomic_load(&faults->fail_syncs);
    while (n != 0) {
        uint32_t next = n == UINT32_MAX ? n : n - 1;
        if (atomic_compare_exchange_weak(&faults->fail_syncs, &n, next)) {
            return true;
        }
    }
    return false;
}

static span_status faulty_lock(struct wal_fs *fs, struct span_error *err)
{
    struct wal_fs *in = faulty_of(fs)->inner;
    return in->ops->lock(in, err);
}

static span_status faulty_open(struct wal_fs *fs, const char *name, bool create,
                               struct wal_file **out, struct span_error *err)
{
    struct faulty_fs *p = faulty_of(fs);
    span_status st = create ? faulty_space(p, "open", err) : SPAN_OK;
    return st != SPAN_OK ? st : p->inner->ops->open(p->inner, name, create, out, err);
}

static void faulty_close(struct wal_fs *fs, struct wal_file *f)
{
    struct wal_fs *in = faulty_of(fs)->inner;
    in->ops->close(in, f);
}

static span_status faulty_read(struct wal_fs *fs, struct wal_file *f, uint64_t offset, void *p,
                               size_t n, size_t *got, struct span_error *err)
{
    struct wal_fs *in = faulty_of(fs)->inner;
    return in->ops->read(in, f, offset, p, n, got, err);
}

static span_status faulty_write(struct wal_fs *fs, struct wal_file *f, uint64_t offset,
                                const void *p, size_t n, struct span_error *err)
{
    struct faulty_fs *x = faulty_of(fs);
    span_status st = faulty_space(x, "pwrite", err);
    return st != SPAN_OK ? st : x->inner->ops->write(x->inner, f, offset, p, n, err);
}

static span_status faulty_sync(struct wal_fs *fs, struct wal_file *f, struct span_error *err)
{
    struct faulty_fs *p = faulty_of(fs);
    uint32_t ms = atomic_load_explicit(&p->faults->sync_delay_ms, memory_order_relaxed);
    if (ms != 0) {
        struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L};
        while (nanosleep(&ts, &ts) != 0 && errno == EINTR) {
        }
    }
    if (faulty_take_failure(p->faults)) {
        return span_fail(err, SPAN_IO, "fdatasync in %s: injected: Input/output error", fs->dir);
    }
    return p->inner->ops->sync(p->inner, f, err);
}

static span_status faulty_size(struct wal_fs *fs, struct wal_file *f, uint64_t *out,
                               struct span_error *err)
{
    struct wal_fs *in = faulty_of(fs)->inner;
    return in->ops->size(in, f, out, err);
}

static span_status faulty_zero_fill(struct wal_fs *fs, struct wal_file *f, uint64_t offset,
                                    uint64_t end, struct span_error *err)
{
    struct faulty_fs *p = faulty_of(fs);
    span_status st = faulty_space(p, "fill", err);
    return st != SPAN_OK ? st : p->inner->ops->zero_fill(p->inner, f, offset, end, err);
}

static span_status faulty_rename(struct wal_fs *fs, const char *from, const char *to,
                                 struct span_error *err)
{
    struct wal_fs *in = faulty_of(fs)->inner;
    return in->ops->rename(in, from, to, err);
}

static span_status faulty_unlink(struct wal_fs *fs, const char *name, struct span_error *err)
{
    struct wal_fs *in = faulty_of(fs)->inner;
    return in->ops->unlink(in, name, err);
}

static span_status faulty_sync_dir(struct wal_fs *fs, struct span_error *err)
{
    struct wal_fs *in = faulty_of(fs)->inner;
    return in->ops->sync_dir(in, err);
}

static span_status faulty_space_left(struct wal_fs *fs, uint64_t *out, struct span_error *err)
{
    struct faulty_fs *p = faulty_of(fs);
    *out = 0;
    return atomic_load_explicit(&p->faults->no_space, memory_order_relaxed)
               ? SPAN_OK
               : p->inner->ops->space(p->inner, out, err);
}

static span_status faulty_list(struct wal_fs *fs, wal_list_fn *fn, void *ctx,
                               struct span_error *err)
{
    struct wal_fs *in = faulty_of(fs)->inner;
    return in->ops->list(in, fn, ctx, err);
}

static void faulty_free(struct wal_fs *fs)
{
    span_free(faulty_of(fs));
}

static const struct wal_fs_ops faulty_ops = {
    .lock = faulty_lock,
    .open = faulty_open,
    .close = faulty_close,
    .read = faulty_read,
    .write = faulty_write,
    .sync = faulty_sync,
    .size = faulty_size,
    .zero_fill = faulty_zero_fill,
    .rename = faulty_rename,
    .unlink = faulty_unlink,
    .sync_dir = faulty_sync_dir,
    .space = faulty_space_left,
    .list = faulty_list,
    .free = faulty_free,
};

struct wal_fs *wal_fs_faulty_new(struct wal_fs *inner, struct wal_faults *faults)
{
    REQUIRE(inner != NULL && faults != NULL);
    struct faulty_fs *p = SPAN_NEW(struct faulty_fs);
    p->fs.ops = &faulty_ops;
    p->fs.dir = inner->dir;
    p->inner = inner;
    p->faults = faults;
    return &p->fs;
}
