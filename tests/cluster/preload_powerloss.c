/* An LD_PRELOAD shim that remembers what a power loss would undo. kill -9 leaves the page cache, so
 * a killed process finds its unsynced writes again; this keeps, outside the process, what has to be
 * put back to undo them. `powerloss_apply` does that after the kill.
 *
 *   POWERLOSS_ROOT   only files under this folder are watched
 *   POWERLOSS_DIR    where the journals go: DIR/PID-NANOSECONDS/, on the same file system as ROOT
 *   POWERLOSS_NAMES  1: names too (create, rename, unlink, mkdir) are undone unless their folder
 * was fsynced; without it names are taken for durable at once, in order
 *
 * For each inode there is a journal "f<inode>.<generation>". Before a write or truncation the old
 * bytes and the old size are appended to it; when that has returned, the write is done. A sync
 * begins a new generation before and removes the older ones after the real one: writes that were
 * made meanwhile stay undoable, and a kill in between undoes a sync that nobody was told of. Names
 * have journals "d<inode of the folder>.<generation>" of text lines; files that a name operation
 * would destroy are kept by a hard link "s<sequence>" until the folder is synced. Records carry one
 * sequence number over all files.
 *
 * All own I/O is by syscall(), so that nothing here depends on what is interposed. Not seen: mmap
 * (SQLite maps only its -shm file, which no crash needs to keep) and what stdio writes inside libc.
 * A failure of the shim itself ends the process with a message: a test must not pass by it. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FDS_MAX   65536
#define INODES    4096
#define PATH_SIZE 4096
#define MAGIC     0x4c575031u /* "1PWL" */

/* As powerloss_apply reads it. */
struct record {
    uint32_t magic;
    uint32_t kind;     /* 1 write, 2 truncation */
    uint64_t sequence; /* order over all files */
    uint64_t offset;   /* where the old bytes were */
    uint64_t kept;     /* so many of them follow */
    uint64_t size;     /* of the file before */
    uint64_t written;  /* bytes written from offset on (1); new size (2) */
};

struct inode {
    struct inode *next;
    ino_t number;
    bool is_dir;
    pthread_mutex_t lock;
    uint64_t generation; /* of the journal being written */
    uint64_t oldest;     /* not yet removed */
    int journal;         /* -1: nothing in this generation yet */
};

static struct {
    pthread_mutex_t lock;
    bool ready;
    bool on;
    bool names;
    bool lie;
    char root[PATH_SIZE];
    size_t root_size;
    char dir[PATH_SIZE];
    uint64_t sequence;
    struct inode *inodes[INODES];
    struct inode *fds[FDS_MAX];
} g = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void die(const char *what, const char *path)
{
    char text[PATH_SIZE + 256];
    int n = snprintf(text, sizeof text, "powerloss shim: %s %s: %s\n", what, path, strerror(errno));
    (void)syscall(SYS_write, 2, text, (size_t)n);
    abort();
}

static void set_up(void)
{
    const char *root = getenv("POWERLOSS_ROOT");
    const char *dir = getenv("POWERLOSS_DIR");
    const char *names = getenv("POWERLOSS_NAMES");
    struct timespec ts;
    g.ready = true;
    if (root == NULL || dir == NULL || strlen(root) >= PATH_SIZE || strlen(dir) >= PATH_SIZE - 64) {
        return;
    }
    const char *lie = getenv("POWERLOSS_LIE");
    g.lie = lie != NULL && strcmp(lie, "1") == 0;
    g.names = names != NULL && strcmp(names, "1") == 0;
    g.root_size = strlen(root);
    memcpy(g.root, root, g.root_size + 1);
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    (void)snprintf(g.dir, sizeof g.dir, "%s/%ld-%lld%09ld", dir, syscall(SYS_getpid),
                   (long long)ts.tv_sec, ts.tv_nsec);
    g.on = true; /* the folder is made by the first journal: a process that writes nothing leaves
                    none */
}

static bool watched(const char *path)
{
    pthread_mutex_lock(&g.lock);
    if (!g.ready) {
        set_up();
    }
    pthread_mutex_unlock(&g.lock);
    if (!g.on || path == NULL) {
        return false;
    }
    return strncmp(path, g.root, g.root_size) == 0 &&
           (path[g.root_size] == '/' || path[g.root_size] == '\0');
}

static uint64_t next_sequence(void)
{
    return __atomic_add_fetch(&g.sequence, 1, __ATOMIC_SEQ_CST);
}

/* ---- inodes ---- */

static struct inode *inode_get(ino_t number, bool is_dir, bool create)
{
    pthread_mutex_lock(&g.lock);
    struct inode **at = &g.inodes[number % INODES];
    struct inode *i = *at;
    while (i != NULL && i->number != number) {
        i = i->next;
    }
    if (i == NULL && create) {
        i = calloc(1, sizeof *i);
        if (i == NULL) {
            die("memory", "");
        }
        *i = (struct inode){.next = *at, .number = number, .is_dir = is_dir, .journal = -1};
        (void)pthread_mutex_init(&i->lock, NULL);
        *at = i;
    }
    pthread_mutex_unlock(&g.lock);
    return i;
}

static struct inode *inode_of_path(const char *path, bool create)
{
    struct stat st;
    if (syscall(SYS_newfstatat, AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
        !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) {
        return NULL;
    }
    return inode_get(st.st_ino, S_ISDIR(st.st_mode), create);
}

static struct inode *inode_of_parent(const char *path)
{
    char parent[PATH_SIZE];
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        return NULL;
    }
    (void)snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
    return inode_of_path(parent, true);
}

static void journal_path(const struct inode *i, uint64_t generation, char *out, size_t size)
{
    (void)snprintf(out, size, "%s/%c%llu.%llu", g.dir, i->is_dir ? 'd' : 'f',
                   (unsigned long long)i->number, (unsigned long long)generation);
}

/* Removes the hard links that a name journal refers to. */
static void drop_saved(const char *journal)
{
    static const char mark[] = "\tsaved=";
    char text[65536];
    long fd = syscall(SYS_openat, AT_FDCWD, journal, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) {
        return;
    }
    long n = syscall(SYS_read, fd, text, sizeof text - 1);
    (void)syscall(SYS_close, fd);
    if (n == (long)sizeof text - 1) {
        errno = EFBIG;
        die("journal of names", journal);
    }
    text[n > 0 ? n : 0] = '\0';
    for (char *p = text; (p = strstr(p, mark)) != NULL;) {
        char path[PATH_SIZE + 64];
        p += sizeof mark - 1;
        size_t len = strcspn(p, "\n");
        if (len > 0) {
            (void)snprintf(path, sizeof path, "%s/%.*s", g.dir, (int)len, p);
            (void)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
        }
    }
}

/* Removes every generation below `below`. With i->lock held. */
static void drop_generations(struct inode *i, uint64_t below)
{
    char path[PATH_SIZE + 64];
    for (; i->oldest < below; i->oldest++) {
        journal_path(i, i->oldest, path, sizeof path);
        if (i->is_dir) {
            drop_saved(path);
        }
        (void)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    }
}

static void begin_generation(struct inode *i)
{
    if (i->journal >= 0) {
        (void)syscall(SYS_close, i->journal);
        i->journal = -1;
    }
    i->generation++;
}

/* Nothing of a file that is gone can come back: its number may be another file's tomorrow. */
static void inode_gone(struct inode *i)
{
    if (i != NULL) {
        pthread_mutex_lock(&i->lock);
        begin_generation(i);
        drop_generations(i, i->generation);
        pthread_mutex_unlock(&i->lock);
    }
}

static void journal_append(struct inode *i, const struct iovec *v, int parts)
{
    char path[PATH_SIZE + 64];
    size_t want = 0;
    journal_path(i, i->generation, path, sizeof path);
    if (i->journal < 0) {
        (void)syscall(SYS_mkdirat, AT_FDCWD, g.dir, 0700);
        i->journal = (int)syscall(SYS_openat, AT_FDCWD, path,
                                  O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (i->journal < 0) {
            die("cannot create", path);
        }
    }
    for (int k = 0; k < parts; k++) {
        want += v[k].iov_len;
    }
    if (syscall(SYS_writev, i->journal, v, (unsigned long)parts) != (long)want) {
        die("cannot write", path);
    }
}

/* ---- contents ---- */

/* Notes what [offset, offset + length) of the file held, and its size. With i->lock held. */
static void save_range(struct inode *i, int fd, uint32_t kind, uint64_t offset, uint64_t length,
                       uint64_t written)
{
    struct stat st;
    if (syscall(SYS_fstat, fd, &st) != 0) {
        die("fstat", "");
    }
    uint64_t size = (uint64_t)st.st_size;
    uint64_t kept = offset >= size ? 0 : size - offset < length ? size - offset : length;
    unsigned char *old = malloc(kept + 1);
    if (old == NULL) {
        die("memory", "");
    }
    /* The file may have been opened for writing only. */
    char name[64];
    (void)snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    long from = kept == 0 ? -1 : syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC, 0);
    if (kept > 0 && (from < 0 || syscall(SYS_pread64, from, old, kept, offset) != (long)kept)) {
        die("cannot read back", name);
    }
    if (from >= 0) {
        (void)syscall(SYS_close, from);
    }
    struct record r = {MAGIC, kind, next_sequence(), offset, kept, size, written};
    struct iovec v[2] = {{&r, sizeof r}, {old, kept}};
    journal_append(i, v, kept > 0 ? 2 : 1);
    free(old);
}

static struct inode *of_fd(int fd)
{
    return fd >= 0 && fd < FDS_MAX ? __atomic_load_n(&g.fds[fd], __ATOMIC_ACQUIRE) : NULL;
}

static void truncating(struct inode *i, int fd, uint64_t size)
{
    save_range(i, fd, 2, size, UINT64_MAX - size, size);
}

/* ---- names ---- */

/* "SEQUENCE\tOPERATION\tPATH\tTO\tsaved=NAME": what was done in the folder of `path`. */
static void note_name(const char *operation, const char *path, const char *to, const char *saved,
                      uint64_t sequence)
{
    char line[3 * PATH_SIZE];
    struct inode *d = inode_of_parent(to[0] != '\0' ? to : path);
    if (d == NULL) {
        die("no folder of", path);
    }
    int n = snprintf(line, sizeof line, "%llu\t%s\t%s\t%s\tsaved=%s\n",
                     (unsigned long long)sequence, operation, path, to, saved);
    struct iovec v = {line, (size_t)n};
    pthread_mutex_lock(&d->lock);
    journal_append(d, &v, 1);
    pthread_mutex_unlock(&d->lock);
}

/* Keeps a file that is about to lose its name; "" when there is none. */
static void save_file(const char *path, uint64_t sequence, char *name, size_t size)
{
    char to[PATH_SIZE + 64];
    struct stat st;
    name[0] = '\0';
    if (syscall(SYS_newfstatat, AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISREG(st.st_mode)) {
        return;
    }
    (void)snprintf(name, size, "s%llu", (unsigned long long)sequence);
    (void)snprintf(to, sizeof to, "%s/%s", g.dir, name);
    (void)syscall(SYS_mkdirat, AT_FDCWD, g.dir, 0700);
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, to, 0) != 0) {
        die("cannot keep", path);
    }
}

/* A name of `path` goes away: kept in the journal, or forgotten with its last name. */
static struct inode *losing(const char *path)
{
    struct stat st;
    if (g.names || syscall(SYS_newfstatat, AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISREG(st.st_mode) || st.st_nlink != 1) {
        return NULL;
    }
    return inode_get(st.st_ino, false, false);
}

/* ---- what is interposed ---- */

#define EXPORT __attribute__((visibility("default")))

EXPORT int open(const char *path, int flags, ...);
EXPORT int open64(const char *path, int flags, ...);
EXPORT int openat(int dir, const char *path, int flags, ...);
EXPORT int openat64(int dir, const char *path, int flags, ...);
EXPORT int __open_2(const char *path, int flags);
EXPORT int __open64_2(const char *path, int flags);
EXPORT int __openat_2(int dir, const char *path, int flags);
EXPORT int __openat64_2(int dir, const char *path, int flags);
EXPORT int creat(const char *path, mode_t mode);

static int do_open(int dir, const char *path, int flags, mode_t mode)
{
    if (!watched(path)) {
        return (int)syscall(SYS_openat, dir, path, flags, mode);
    }
    struct stat st;
    bool existed = syscall(SYS_newfstatat, AT_FDCWD, path, &st, 0) == 0;
    bool truncate_it = existed && (flags & O_TRUNC) != 0 && S_ISREG(st.st_mode) && st.st_size > 0;
    int fd = (int)syscall(SYS_openat, dir, path, flags & ~(truncate_it ? O_TRUNC : 0), mode);
    if (fd < 0 || fd >= FDS_MAX) {
        return fd;
    }
    struct inode *i = inode_of_path(path, true);
    __atomic_store_n(&g.fds[fd], i, __ATOMIC_RELEASE);
    if (truncate_it && i != NULL) {
        pthread_mutex_lock(&i->lock);
        truncating(i, fd, 0);
        if (syscall(SYS_ftruncate, fd, 0L) != 0) {
            die("truncate", path);
        }
        pthread_mutex_unlock(&i->lock);
    }
    if (!existed && (flags & O_CREAT) != 0 && g.names) {
        note_name("create", path, "", "", next_sequence());
    }
    return fd;
}

#define MODE_OF(flags, mode)                                                                       \
    do {                                                                                           \
        va_list ap;                                                                                \
        va_start(ap, flags);                                                                       \
        (mode) = ((flags) & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(ap, mode_t) : 0;                \
        va_end(ap);                                                                                \
    } while (0)

int open(const char *path, int flags, ...)
{
    mode_t mode;
    MODE_OF(flags, mode);
    return do_open(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode;
    MODE_OF(flags, mode);
    return do_open(AT_FDCWD, path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
    mode_t mode;
    MODE_OF(flags, mode);
    return do_open(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...)
{
    mode_t mode;
    MODE_OF(flags, mode);
    return do_open(dir, path, flags, mode);
}

int __open_2(const char *path, int flags)
{
    return do_open(AT_FDCWD, path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
    return do_open(AT_FDCWD, path, flags, 0);
}

int __openat_2(int dir, const char *path, int flags)
{
    return do_open(dir, path, flags, 0);
}

int __openat64_2(int dir, const char *path, int flags)
{
    return do_open(dir, path, flags, 0);
}

int creat(const char *path, mode_t mode)
{
    return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

EXPORT int close(int fd)
{
    if (fd >= 0 && fd < FDS_MAX) {
        __atomic_store_n(&g.fds[fd], NULL, __ATOMIC_RELEASE);
    }
    return (int)syscall(SYS_close, fd);
}

EXPORT ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset)
{
    struct inode *i = of_fd(fd);
    if (i == NULL) {
        return syscall(SYS_pwrite64, fd, data, n, offset);
    }
    pthread_mutex_lock(&i->lock);
    save_range(i, fd, 1, (uint64_t)offset, n, n);
    ssize_t r = syscall(SYS_pwrite64, fd, data, n, offset);
    pthread_mutex_unlock(&i->lock);
    return r;
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
    return pwrite64(fd, data, n, offset);
}

/* Where a write at the file's own position goes. */
static uint64_t position(int fd)
{
    struct stat st;
    long flags = syscall(SYS_fcntl, fd, F_GETFL, 0L);
    if (flags >= 0 && (flags & O_APPEND) != 0 && syscall(SYS_fstat, fd, &st) == 0) {
        return (uint64_t)st.st_size;
    }
    return (uint64_t)syscall(SYS_lseek, fd, 0L, SEEK_CUR);
}

EXPORT ssize_t write(int fd, const void *data, size_t n)
{
    struct inode *i = of_fd(fd);
    if (i == NULL) {
        return syscall(SYS_write, fd, data, n);
    }
    pthread_mutex_lock(&i->lock);
    save_range(i, fd, 1, position(fd), n, n);
    ssize_t r = syscall(SYS_write, fd, data, n);
    pthread_mutex_unlock(&i->lock);
    return r;
}

static size_t total(const struct iovec *v, int parts)
{
    size_t n = 0;
    for (int k = 0; k < parts; k++) {
        n += v[k].iov_len;
    }
    return n;
}

EXPORT ssize_t writev(int fd, const struct iovec *v, int parts)
{
    struct inode *i = of_fd(fd);
    if (i == NULL) {
        return syscall(SYS_writev, fd, v, (unsigned long)parts);
    }
    pthread_mutex_lock(&i->lock);
    save_range(i, fd, 1, position(fd), total(v, parts), total(v, parts));
    ssize_t r = syscall(SYS_writev, fd, v, (unsigned long)parts);
    pthread_mutex_unlock(&i->lock);
    return r;
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *v, int parts, off64_t offset)
{
    struct inode *i = of_fd(fd);
    if (i == NULL) {
        return syscall(SYS_pwritev, fd, v, (unsigned long)parts, offset, 0L);
    }
    pthread_mutex_lock(&i->lock);
    save_range(i, fd, 1, (uint64_t)offset, total(v, parts), total(v, parts));
    ssize_t r = syscall(SYS_pwritev, fd, v, (unsigned long)parts, offset, 0L);
    pthread_mutex_unlock(&i->lock);
    return r;
}

EXPORT ssize_t pwritev(int fd, const struct iovec *v, int parts, off_t offset)
{
    return pwritev64(fd, v, parts, offset);
}

EXPORT int ftruncate64(int fd, off64_t size)
{
    struct inode *i = of_fd(fd);
    if (i == NULL) {
        return (int)syscall(SYS_ftruncate, fd, size);
    }
    pthread_mutex_lock(&i->lock);
    truncating(i, fd, (uint64_t)size);
    int r = (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_unlock(&i->lock);
    return r;
}

EXPORT int ftruncate(int fd, off_t size)
{
    return ftruncate64(fd, size);
}

/* Space without contents: the size is all that can be lost. */
static int allocate(int fd, int mode, off64_t offset, off64_t n)
{
    struct inode *i = of_fd(fd);
    if (i == NULL) {
        return (int)syscall(SYS_fallocate, fd, mode, offset, n);
    }
    pthread_mutex_lock(&i->lock);
    save_range(i, fd, 1, (uint64_t)offset, (uint64_t)n, (uint64_t)n);
    int r = (int)syscall(SYS_fallocate, fd, mode, offset, n);
    pthread_mutex_unlock(&i->lock);
    return r;
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t n)
{
    return allocate(fd, mode, offset, n);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t n)
{
    return allocate(fd, mode, offset, n);
}

EXPORT int posix_fallocate64(int fd, off64_t offset, off64_t n)
{
    return allocate(fd, 0, offset, n) == 0 ? 0 : errno;
}

EXPORT int posix_fallocate(int fd, off_t offset, off_t n)
{
    return allocate(fd, 0, offset, n) == 0 ? 0 : errno;
}

static int do_sync(long number, int fd)
{
    struct inode *i = of_fd(fd);
    if (i == NULL) {
        return (int)syscall(number, fd);
    }
    if (g.lie) {
        return 0;
    }
    pthread_mutex_lock(&i->lock);
    begin_generation(i);
    uint64_t covered = i->generation;
    pthread_mutex_unlock(&i->lock);
    int r = (int)syscall(number, fd);
    int saved = errno;
    if (r == 0) {
        pthread_mutex_lock(&i->lock);
        drop_generations(i, covered);
        pthread_mutex_unlock(&i->lock);
    }
    errno = saved;
    return r;
}

EXPORT int fsync(int fd)
{
    return do_sync(SYS_fsync, fd);
}

EXPORT int fdatasync(int fd)
{
    return do_sync(SYS_fdatasync, fd);
}

EXPORT int rename(const char *from, const char *to)
{
    if (!watched(from) || !watched(to)) {
        return (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
    }
    struct inode *gone = losing(to);
    char saved[64] = "";
    uint64_t sequence = next_sequence();
    if (g.names) {
        save_file(to, sequence, saved, sizeof saved);
        note_name("rename", from, to, saved, sequence);
    }
    int r = (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
    if (r == 0) {
        inode_gone(gone);
    }
    return r;
}

static int do_unlink(const char *path)
{
    struct inode *gone = losing(path);
    char saved[64] = "";
    uint64_t sequence = next_sequence();
    if (g.names) {
        save_file(path, sequence, saved, sizeof saved);
        if (saved[0] != '\0') {
            note_name("unlink", path, "", saved, sequence);
        }
    }
    int r = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (r == 0) {
        inode_gone(gone);
    }
    return r;
}

EXPORT int unlink(const char *path)
{
    return watched(path) ? do_unlink(path) : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

EXPORT int unlinkat(int dir, const char *path, int flags)
{
    return flags == 0 && watched(path) ? do_unlink(path)
                                       : (int)syscall(SYS_unlinkat, dir, path, flags);
}

EXPORT int remove(const char *path)
{
    int r = unlink(path);
    return r != 0 && errno == EISDIR ? (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR) : r;
}

EXPORT int mkdir(const char *path, mode_t mode)
{
    int r = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (r == 0 && watched(path) && g.names) {
        note_name("mkdir", path, "", "", next_sequence());
    }
    return r;
}
