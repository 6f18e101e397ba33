/* The data folder's identity and lock. IDENTITY is key=value lines closed by a CRC32C over all that
 * stands before it, so that a flipped bit is noticed rather than believed:
 *
 *     spanlite=2
 *     cluster=demo
 *     node=2
 *     store=8f0c2b61d3a49e57
 *     throwaway=no
 *     members=1,2,3
 *     joined=yes                (only of a node that joined a running cluster)
 *     crc32c=5b1c90aa
 *
 * Format 1 had no members. They are the nodes that the folder was made with; what the set became in
 * a running cluster is in NODES (node_table.h). */
#include "coordinator/data_dir.h"

#include "base/alloc.h"
#include "base/buf.h"
#include "base/codec.h"
#include "base/rng.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define IDENTITY_BYTES_MAX 4096

static span_status fail_io(struct span_error *err, const char *what, const char *path)
{
    int code = errno;

    return span_fail(err, code == ENOSPC ? SPAN_NO_SPACE : SPAN_IO, "cannot %s %s: %s", what, path,
                     strerror(code));
}

/* mkdir -p; the parents get the usual mode, the folder itself 0700. *made: it was not there. */
static span_status make_dir(const char *path, bool *made, struct span_error *err)
{
    char *copy = span_strdup(path);
    span_status st = SPAN_OK;

    for (char *p = copy + 1; st == SPAN_OK && *p != '\0'; p++) {
        if (*p == '/') {
            *p = '\0';
            if (mkdir(copy, 0755) != 0 && errno != EEXIST) {
                st = fail_io(err, "create", copy);
            }
            *p = '/';
        }
    }
    *made = st == SPAN_OK && mkdir(copy, 0700) == 0;
    if (st == SPAN_OK && !*made && errno != EEXIST) {
        st = fail_io(err, "create", path);
    }
    span_free(copy);
    return st;
}

static void read_lock_holder(int fd, char *pid, size_t size)
{
    ssize_t n = pread(fd, pid, size - 1, 0);

    pid[n > 0 ? n : 0] = '\0';
    pid[strcspn(pid, "\n")] = '\0';
}

/* The lock is taken before anything is read: two starts at once must not both create. */
static span_status take_lock(struct data_dir *d, struct span_error *err)
{
    char *path = span_asprintf("%s/LOCK", d->path);
    char pid[32] = "";
    span_status st = SPAN_OK;

    d->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->lock_fd < 0) {
        st = fail_io(err, "open", path);
    } else if (flock(d->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        read_lock_holder(d->lock_fd, pid, sizeof(pid));
        st = span_fail(err, SPAN_EXISTS, "data folder %s is in use by process %s", d->path,
                       pid[0] != '\0' ? pid : "(unknown)");
    } else {
        int n = snprintf(pid, sizeof(pid), "%ld\n", (long)getpid());

        if (ftruncate(d->lock_fd, 0) != 0 || pwrite(d->lock_fd, pid, (size_t)n, 0) != n) {
            st = fail_io(err, "write", path);
        }
    }
    span_free(path);
    return st;
}

/* Only what we make ourselves before IDENTITY exists may lie in a folder that has none. */
static span_status require_empty(const char *path, struct span_error *err)
{
    DIR *dir = opendir(path);
    struct dirent *e;
    span_status st = SPAN_OK;

    if (dir == NULL && errno == ENOENT) {
        return SPAN_OK; /* it is made */
    }
    if (dir == NULL) {
        return fail_io(err, "read folder", path);
    }
    while (st == SPAN_OK && (e = readdir(dir)) != NULL) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
            strcmp(e->d_name, "LOCK") != 0 && strcmp(e->d_name, "IDENTITY.new") != 0) {
            st = span_fail(err, SPAN_INVALID,
                           "%s is not a spanlite data folder: it has no IDENTITY, but holds '%s'",
                           path, e->d_name);
        }
    }
    closedir(dir);
    return st;
}

static span_status sync_path(const char *path, int flags, struct span_error *err)
{
    int fd = open(path, flags | O_CLOEXEC);
    span_status st = SPAN_OK;

    if (fd < 0 || fsync(fd) != 0) {
        st = fail_io(err, "sync", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    return st;
}

static void append_members(struct buf *out, const unsigned *members, size_t count,
                           const char *between)
{
    for (size_t i = 0; i < count; i++) {
        buf_printf(out, "%s%u", i > 0 ? between : "", members[i]);
    }
}

static span_status write_identity(const struct data_dir *d, const char *path,
                                  struct span_error *err)
{
    char *temporary = span_asprintf("%s.new", path);
    struct buf text = {0};
    FILE *f = NULL;
    span_status st = SPAN_OK;

    buf_printf(&text, "spanlite=%d\ncluster=%s\nnode=%u\nstore=%016llx\nthrowaway=%s\n",
               DATA_DIR_FORMAT, d->cluster, d->node, (unsigned long long)d->store_id,
               d->throwaway ? "yes" : "no");
    buf_append_str(&text, "members=");
    append_members(&text, d->members, d->member_count, ",");
    buf_append_str(&text, d->joined ? "\njoined=yes\n" : "\n");
    buf_printf(&text, "crc32c=%08x\n", crc32c(0, text.data, text.size));
    f = fopen(temporary, "we");
    if (f == NULL) {
        st = fail_io(err, "create", temporary);
        goto done;
    }
    if (fwrite(text.data, 1, text.size, f) != text.size || fflush(f) != 0 ||
        fdatasync(fileno(f)) != 0) {
        st = fail_io(err, "write", temporary);
        fclose(f);
        goto done;
    }
    if (fclose(f) != 0 || rename(temporary, path) != 0) {
        st = fail_io(err, "write", path);
        goto done;
    }
    st = sync_path(d->path, O_RDONLY | O_DIRECTORY, err);
done:
    buf_deinit(&text);
    span_free(temporary);
    return st;
}

/* Value of "key=" at the start of *text, which moves behind its line. NULL when it is another key.
 */
static char *take_field(char **text, const char *key)
{
    size_t n = strlen(key);
    char *value = *text;
    char *end = strchr(value, '\n');

    if (end == NULL || strncmp(value, key, n) != 0 || value[n] != '=') {
        return NULL;
    }
    *end = '\0';
    *text = end + 1;
    return value + n + 1;
}

/* "1,2,3": rising ids of nodes, at least one. */
static bool parse_members(struct data_dir *d, const char *text)
{
    unsigned last = 0;

    d->member_count = 0;
    for (const char *p = text;; p++) {
        char *end = NULL;
        unsigned long id = isdigit((unsigned char)*p) ? strtoul(p, &end, 10) : 0;

        if (id <= last || id > LIMIT_PEERS) {
            return false;
        }
        last = (unsigned)id;
        d->members[d->member_count++] =
            last; /* rising and bounded: never more than there is room */
        p = end;
        if (*p != ',') {
            return *p == '\0';
        }
    }
}

static span_status parse_identity(struct data_dir *d, const char *path, char *text,
                                  struct span_error *err)
{
    char *crc = strstr(text, "crc32c=");
    char *format = take_field(&text, "spanlite");
    char *cluster;
    char *node;
    char *store;
    char *throwaway;
    char *members = NULL;
    long version = format != NULL ? strtol(format, NULL, 10) : 0;

    if (version > DATA_DIR_FORMAT) {
        return span_fail(err, SPAN_INVALID,
                         "%s was written by a newer spanlite (format %s, this one reads up to %d)",
                         path, format, DATA_DIR_FORMAT);
    }
    cluster = format != NULL ? take_field(&text, "cluster") : NULL;
    node = cluster != NULL ? take_field(&text, "node") : NULL;
    store = node != NULL ? take_field(&text, "store") : NULL;
    throwaway = store != NULL ? take_field(&text, "throwaway") : NULL;
    if (version > 1 && throwaway != NULL) {
        members = take_field(&text, "members");
        d->joined = members != NULL && take_field(&text, "joined") != NULL;
    }
    if (throwaway == NULL || (version > 1 && members == NULL) || crc == NULL || text != crc) {
        return span_fail(err, SPAN_CORRUPT, "%s is damaged: a line is missing", path);
    }
    if (members != NULL && !parse_members(d, members)) {
        return span_fail(err, SPAN_CORRUPT, "%s is damaged: '%.80s' is not a list of nodes", path,
                         members);
    }
    d->cluster = span_strdup(cluster);
    d->node = (unsigned)strtoul(node, NULL, 10);
    d->store_id = strtoull(store, NULL, 16);
    d->throwaway = strcmp(throwaway, "yes") == 0;
    return SPAN_OK;
}

static span_status check_crc(const char *path, const char *text, struct span_error *err)
{
    const char *crc = strstr(text, "crc32c=");

    if (crc == NULL || strtoul(crc + 7, NULL, 16) != crc32c(0, text, (size_t)(crc - text))) {
        return span_fail(err, SPAN_CORRUPT, "%s is damaged: its checksum does not match", path);
    }
    return SPAN_OK;
}

/* Reads IDENTITY; NOT_FOUND when there is none. */
static span_status read_identity(struct data_dir *d, const char *path, struct span_error *err)
{
    char text[IDENTITY_BYTES_MAX + 1];
    ssize_t n;
    span_status st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 && errno == ENOENT) {
        return SPAN_NOT_FOUND;
    }
    if (fd < 0) {
        return fail_io(err, "open", path);
    }
    n = read(fd, text, sizeof(text) - 1);
    st = n < 0 ? fail_io(err, "read", path) : SPAN_OK;
    close(fd);
    if (st != SPAN_OK) {
        return st;
    }
    text[n] = '\0';
    st = check_crc(path, text, err);
    return st == SPAN_OK ? parse_identity(d, path, text, err) : st;
}

static span_status check_members(const struct data_dir *d, const struct data_dir_owner *o,
                                 struct span_error *err)
{
    struct buf has = {0};
    struct buf given = {0};
    span_status st = SPAN_OK;

    if (d->member_count == 0 ||
        (d->member_count == o->member_count &&
         memcmp(d->members, o->members, d->member_count * sizeof(d->members[0])) == 0)) {
        return SPAN_OK;
    }
    append_members(&has, d->members, d->member_count, ", ");
    append_members(&given, o->members, o->member_count, ", ");
    st =
        span_fail(err, SPAN_INVALID,
                  "data folder %s belongs to a cluster of the nodes %s, not %s: the set of nodes "
                  "is fixed when a cluster is made; give --peers those nodes, and grow the running "
                  "cluster with 'spanlite node add'",
                  d->path, buf_cstr(&has), buf_cstr(&given));
    buf_deinit(&has);
    buf_deinit(&given);
    return st;
}

static span_status check_owner(const struct data_dir *d, const struct data_dir_owner *o,
                               struct span_error *err)
{
    if (strcmp(d->cluster, o->cluster) != 0) {
        return span_fail(err, SPAN_INVALID,
                         "data folder %s belongs to cluster '%s', not '%s': give --cluster %s, or "
                         "another --data",
                         d->path, d->cluster, o->cluster, d->cluster);
    }
    if (d->node != o->node) {
        return span_fail(err, SPAN_INVALID,
                         "data folder %s belongs to node %u, not node %u: give --id %u, or another "
                         "--data",
                         d->path, d->node, o->node, d->node);
    }
    return check_members(d, o, err);
}

static span_status create_identity(struct data_dir *d, const char *identity,
                                   const struct data_dir_owner *o, struct span_error *err)
{
    span_status st = require_empty(d->path, err);

    if (st != SPAN_OK) {
        return st;
    }
    d->cluster = span_strdup(o->cluster);
    d->node = o->node;
    memcpy(d->members, o->members, o->member_count * sizeof(d->members[0]));
    d->member_count = o->member_count;
    d->throwaway = o->throwaway;
    d->joined = o->join;
    d->store_id = rng_os_u64();
    d->created = true;
    return write_identity(d, identity, err);
}

span_status data_dir_open(const char *path, const struct data_dir_owner *owner,
                          struct data_dir *out, struct span_error *err)
{
    struct data_dir d = {.path = span_strdup(path), .lock_fd = -1};
    char *identity = span_asprintf("%s/IDENTITY", path);
    span_status st = SPAN_OK;

    /* Somebody else's folder does not even get a LOCK. Asked again under the lock. */
    if (access(identity, F_OK) != 0 && errno == ENOENT) {
        st = require_empty(path, err);
    }
    if (st == SPAN_OK) {
        st = make_dir(path, &d.made, err);
    }
    if (st == SPAN_OK) {
        st = take_lock(&d, err);
    }
    if (st == SPAN_OK) {
        st = read_identity(&d, identity, err);
        if (st == SPAN_NOT_FOUND) {
            st = create_identity(&d, identity, owner, err);
        } else if (st == SPAN_OK) {
            st = check_owner(&d, owner, err);
        }
    }
    span_free(identity);
    if (st != SPAN_OK) {
        data_dir_close(&d);
        d = (struct data_dir){.lock_fd = -1};
    }
    *out = d;
    return st;
}

span_status data_dir_peek(const char *path, struct data_dir *out, struct span_error *err)
{
    char *identity = span_asprintf("%s/IDENTITY", path);
    span_status st;

    *out = (struct data_dir){.path = span_strdup(path), .lock_fd = -1};
    st = read_identity(out, identity, err);
    span_free(identity);
    return st;
}

span_status data_dir_require_throwaway(const struct data_dir *d, const char *flag,
                                       struct span_error *err)
{
    if (d->throwaway) {
        return SPAN_OK;
    }
    return span_fail(err, SPAN_INVALID,
                     "%s is refused: data folder %s was not created with --throwaway; start it "
                     "without the flag, or with a new folder and --throwaway",
                     flag, d->path);
}

/* Files right in `path`; folders in it stay, unless they are empty. */
static void remove_files(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *e;

    while (dir != NULL && (e = readdir(dir)) != NULL) {
        char *name = span_asprintf("%s/%s", path, e->d_name);

        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlink(name) != 0) {
            (void)rmdir(name);
        }
        span_free(name);
    }
    if (dir != NULL) {
        closedir(dir);
    }
}

void data_dir_unmake(const struct data_dir *d)
{
    static const char *const folders[] = {"wal", "ranges"};

    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char *path = span_asprintf("%s/%s", d->path, folders[i]);

        remove_files(path);
        span_free(path);
    }
    remove_files(d->path);
    if (d->made) {
        (void)rmdir(d->path);
    }
}

void data_dir_close(struct data_dir *d)
{
    if (d->lock_fd >= 0) {
        close(d->lock_fd);
    }
    span_free(d->path);
    span_free(d->cluster);
    *d = (struct data_dir){.lock_fd = -1};
}
