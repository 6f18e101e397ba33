/* The files of a replica as a whole: is there one, is it finished, remove it, list them. */
#include "base/alloc.h"
#include "base/failpoint.h"
#include "shard/engine/engine_sqlite.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

span_status engine_file_state(const struct engine_options *opt, enum engine_file_state *out,
                              struct span_error *err)
{
    struct file_name f;
    file_name_init(&f, opt);
    bool building = false;
    bool there = false;
    span_status st = file_exists(&f, FILE_BUILDING, &building, err);
    if (st == SPAN_OK && !building) {
        st = file_exists(&f, FILE_DB, &there, err);
    }
    *out = building ? ENGINE_FILE_UNFINISHED : there ? ENGINE_FILE_COMPLETE : ENGINE_FILE_ABSENT;
    file_name_deinit(&f);
    return st;
}

span_status engine_remove_files(const struct engine_options *opt, struct span_error *err)
{
    struct file_name f;
    file_name_init(&f, opt);

    /* The database first: a -wal without one is harmless, because every new file begins by removing
     * it; a database without its -wal would lose commits. The mark goes last. */
    static const enum file_part order[] = {FILE_DB, FILE_WAL, FILE_SHM, FILE_BUILDING};

    span_status st = SPAN_OK;
    bool any = false;
    for (size_t i = 0; st == SPAN_OK && i < sizeof order / sizeof order[0]; i++) {
        bool there = false;
        st = file_exists(&f, order[i], &there, err);
        if (st == SPAN_OK && there) {
            FAILPOINT_MARK(ENGINE_REMOVE);
            st = file_delete(&f, order[i], true, err);
            any = true;
        }
    }
    if (any) {
        FAILPOINT_MARK(ENGINE_REMOVED);
    }
    file_name_deinit(&f);
    return st;
}

/* ---- damaged files, kept for the operator ---- */

static const char aside_prefix[] = "damaged-";

/* The oldest file set aside in dir, and how many there are. */
static size_t oldest_aside(const char *dir, char *out, size_t size)
{
    DIR *d = opendir(dir);
    size_t count = 0;
    struct timespec oldest = {0};
    for (struct dirent *e = d == NULL ? NULL : readdir(d); e != NULL; e = readdir(d)) {
        size_t n = strlen(e->d_name);
        struct stat st;
        if (strncmp(e->d_name, aside_prefix, sizeof aside_prefix - 1) != 0 || n < 3 ||
            strcmp(e->d_name + n - 3, ".db") != 0 || fstatat(dirfd(d), e->d_name, &st, 0) != 0) {
            continue;
        }
        bool older = st.st_ctim.tv_sec < oldest.tv_sec ||
                     (st.st_ctim.tv_sec == oldest.tv_sec && st.st_ctim.tv_nsec < oldest.tv_nsec);
        if (count++ == 0 || older) {
            oldest = st.st_ctim; /* when it was renamed */
            (void)snprintf(out, size, "%s/%s", dir, e->d_name);
        }
    }
    if (d != NULL) {
        (void)closedir(d);
    }
    return count;
}

static void drop_oldest_aside(const char *dir)
{
    char path[512];
    while (oldest_aside(dir, path, sizeof path) > ENGINE_ASIDE_MAX) {
        char *wal = span_asprintf("%s-wal", path);
        (void)unlink(wal);
        span_free(wal);
        if (unlink(path) != 0) {
            return;
        }
    }
}

static span_status sync_dir(const char *dir, struct span_error *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 ? -1 : fsync(fd);
    int saved = errno;
    if (fd >= 0) {
        (void)close(fd);
    }
    return rc == 0 ? SPAN_OK : span_fail(err, SPAN_IO, "%s: %s", dir, strerrordesc_np(saved));
}

span_status engine_set_aside(const struct engine_options *opt, struct span_error *err)
{
    static const char *const suffix[] = {"", "-wal"}; /* in this order: as in engine_remove_files */
    if (opt->vfs != NULL) {
        return engine_remove_files(opt, err);
    }
    span_status st = SPAN_OK;
    bool any = false;
    for (size_t i = 0; st == SPAN_OK && i < sizeof suffix / sizeof suffix[0]; i++) {
        char *from = span_asprintf("%s/r%" PRIu64 ".g%" PRIu64 ".db%s", opt->dir, opt->range_id,
                                   opt->generation, suffix[i]);
        char *to = span_asprintf("%s/%sr%" PRIu64 ".g%" PRIu64 ".db%s", opt->dir, aside_prefix,
                                 opt->range_id, opt->generation, suffix[i]);
        FAILPOINT_MARK(ENGINE_ASIDE);
        if (rename(from, to) == 0) {
            FAILPOINT_MARK(ENGINE_ASIDE_DONE);
            any = true;
        } else if (errno != ENOENT) {
            st = span_fail(err, SPAN_IO, "%s: can not be set aside: %s", from,
                           strerrordesc_np(errno));
        }
        span_free(from);
        span_free(to);
    }
    if (st == SPAN_OK && any) {
        drop_oldest_aside(opt->dir);
        st = sync_dir(opt->dir, err);
    }
    /* What is left: -shm, and the mark of a build. */
    return st == SPAN_OK ? engine_remove_files(opt, err) : st;
}

struct listed {
    uint64_t range_id;
    uint64_t generation;
};

static int listed_cmp(const void *a, const void *b)
{
    const struct listed *x = a;
    const struct listed *y = b;
    if (x->range_id != y->range_id) {
        return x->range_id < y->range_id ? -1 : 1;
    }
    return x->generation < y->generation ? -1 : x->generation > y->generation;
}

/* A name of ours, whatever part it is. */
static bool parse_name(const char *name, struct listed *out)
{
    int used = 0;
    if (sscanf(name, "r%" SCNu64 ".g%" SCNu64 ".db%n", &out->range_id, &out->generation, &used) !=
            2 ||
        used == 0) {
        return false;
    }
    char canonical[64];
    (void)snprintf(canonical, sizeof canonical, "r%" PRIu64 ".g%" PRIu64 ".db", out->range_id,
                   out->generation);
    const char *rest = name + used;
    return strncmp(name, canonical, (size_t)used) == 0 && canonical[used] == 0 &&
           (*rest == 0 || *rest == '-' || *rest == '.');
}

span_status engine_list_files(const char *dir,
                              void (*fn)(void *ctx, uint64_t range_id, uint64_t generation),
                              void *ctx, struct span_error *err)
{
    DIR *d = opendir(dir);
    if (d == NULL) {
        return span_fail(err, errno == ENOENT ? SPAN_NOT_FOUND : SPAN_IO, "%s: %s", dir,
                         strerrordesc_np(errno));
    }
    struct buf found = {0};
    for (struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d)) {
        struct listed one;
        if (parse_name(entry->d_name, &one)) {
            buf_append(&found, &one, sizeof one);
        }
    }
    (void)closedir(d);
    struct listed *all = (struct listed *)(void *)found.data;
    size_t count = found.size / sizeof *all;
    if (count != 0) {
        qsort(all, count, sizeof *all, listed_cmp);
    }
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || listed_cmp(&all[i - 1], &all[i]) != 0) {
            fn(ctx, all[i].range_id, all[i].generation);
        }
    }
    buf_deinit(&found);
    return SPAN_OK;
}
