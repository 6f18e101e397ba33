/* The files of a replica as a whole: is there one, is it finished, remove it, list them. */
#include "base/alloc.h"
#include "base/failpoint.h"
#include "shard/engine/engine_sqlite.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

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
