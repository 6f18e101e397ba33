/* Damage to the log of a node that was killed while busy: flips bytes and cuts the file, and opens
 * what is left (rules H1, H2). Either all that the log itself says was durable is there, and of the
 * rest a prefix, or the log is refused and the refusal names a file.
 *
 *   wal_damage DIR [--every N] [--seed S]     DIR: the node's folder wal; every byte, or one in N
 *
 * The empty rest of each segment is cut off first and its header told so, or every try would read
 * megabytes of zeros; all that was written is as the node left it. Works on a copy in memory.
 * Exit codes: 0 held, 1 did not, 2 wrong usage or no such log. */
#include "base/alloc.h"
#include "base/log.h"
#include "base/map.h"
#include "base/rng.h"
#include "shard/wal/wal_file.h"
#include "shard/wal/wal_segment.h"
#include "tests/lib/wal_memfile.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct replayed {
    uint64_t *hash;
    size_t count;
    size_t cap;
};

static uint64_t store_id;
static struct wal_memfs *whole;
static struct replayed base; /* of the undamaged log */
static size_t base_min;      /* so many records lie in units that were certainly durable */
static uint64_t durable_end; /* of the tip: bytes below it were acknowledged */
static char tip[SEG_NAME_BYTES];
static uint64_t refused;
static uint64_t opened;
static uint64_t shorter;

static bool read_file(const char *dir, const char *name, struct buf *out)
{
    char path[1024];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        (void)fprintf(stderr, "wal_damage: %s: %s\n", path, strerror(errno));
        return false;
    }
    for (size_t n = 1; n != 0;) {
        buf_reserve(out, 1 << 20);
        n = fread(out->data + out->size, 1, 1 << 20, f);
        out->size += n;
    }
    (void)fclose(f);
    return true;
}

static void put_file(const char *name, struct slice contents)
{
    struct wal_fs *fs = wal_memfs_fs(whole);
    struct wal_file *f = NULL;
    struct span_error err = {0};
    if (fs->ops->open(fs, name, true, &f, &err) != SPAN_OK ||
        fs->ops->write(fs, f, 0, contents.data, contents.size, &err) != SPAN_OK ||
        fs->ops->sync(fs, f, &err) != SPAN_OK || fs->ops->sync_dir(fs, &err) != SPAN_OK) {
        (void)fprintf(stderr, "wal_damage: %s\n", err.text);
        exit(2);
    }
    fs->ops->close(fs, f);
}

/* Where the units of a segment end; the tip is the last file that has any. */
static uint64_t units_end(const struct buf *b, uint64_t id, const char *name)
{
    uint64_t at = SEG_SECTOR_BYTES;
    uint64_t durable = 0;
    struct unit u;
    while (unit_check(b->data, b->size, at, id, store_id, &u)) {
        durable = u.durable > durable ? u.durable : durable;
        at += u.bytes;
    }
    if (at == SEG_SECTOR_BYTES) {
        return at;
    }
    memcpy(tip, name, SEG_NAME_BYTES);
    durable_end = at;
    base_min = 0;
    uint64_t behind = 0;
    for (uint64_t p = SEG_SECTOR_BYTES; p < at; p += u.bytes) {
        if (!unit_check(b->data, b->size, p, id, store_id, &u)) {
            break;
        }
        if (u.seq > durable && (u.flags & UNIT_HEAD) == 0) {
            durable_end = p < durable_end ? p : durable_end;
            behind += u.record_count;
        }
    }
    base_min = (size_t)behind; /* turned round when the number of all is known */
    return at;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

static bool load(const char *dir)
{
    DIR *d = opendir(dir);
    bool found = false;
    if (d == NULL) {
        (void)fprintf(stderr, "wal_damage: %s: %s\n", dir, strerror(errno));
        return false;
    }
    whole = wal_memfs_new();
    char names[64][SEG_NAME_BYTES];
    size_t count = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        uint64_t id = 0;
        if (seg_name_parse(e->d_name, &id) && count < 64) {
            seg_name(id, names[count++]);
        }
    }
    (void)closedir(d);
    qsort(names, count, SEG_NAME_BYTES, by_name);
    for (size_t i = 0; i < count; i++) {
        struct buf b = {0};
        uint64_t id = 0;
        if (!read_file(dir, names[i], &b) || b.size < SEG_BYTES_MIN ||
            !seg_name_parse(names[i], &id)) {
            return false;
        }
        store_id = le64_get(b.data + 24);
        uint64_t end = units_end(&b, id, names[i]) + 4ULL * SEG_SECTOR_BYTES;
        end = (end < SEG_BYTES_MIN ? SEG_BYTES_MIN : end) + 4095;
        struct seg_header h = {.id = id, .store_id = store_id, .bytes = end & ~4095ULL};
        b.size = h.bytes < b.size ? h.bytes : b.size;
        seg_header_encode(&h, b.data);
        put_file(names[i], buf_slice(&b));
        buf_deinit(&b);
        found = true;
    }
    struct buf identity = {0};
    if (found && read_file(dir, "identity", &identity)) {
        put_file("identity", buf_slice(&identity));
    }
    buf_deinit(&identity);
    return found && tip[0] != '\0';
}

static span_status on_replay(void *ctx, const struct wal_record *r, struct span_error *err)
{
    struct replayed *to = ctx;
    uint64_t fields[5] = {r->kind, r->type, r->range, r->index, r->term};
    (void)err;
    if (to->count == to->cap) {
        to->cap = to->cap == 0 ? 1024 : 2 * to->cap;
        to->hash = span_realloc(to->hash, to->cap * sizeof(*to->hash));
    }
    to->hash[to->count++] = span_mix64(span_hash64(fields, sizeof(fields)) ^
                                       span_hash64(r->payload.data, r->payload.size));
    return SPAN_OK;
}

static uint64_t no_clock(void *ctx)
{
    (void)ctx;
    return 1000000000;
}

static span_status try_open(struct wal_memfs *m, struct replayed *to, struct span_error *err)
{
    struct wal_options opt = {.segment_bytes = SEG_BYTES_MIN,
                              .no_reserve = true,
                              .manual = true,
                              .fs = wal_memfs_fs(m),
                              .now_ns = no_clock};
    struct wal *w = NULL;
    to->count = 0;
    span_status st = wal_open("mem", store_id, &opt, on_replay, to, &w, err);
    if (st == SPAN_OK) {
        wal_abandon(w);
    }
    return st;
}

/* Opens the damaged copy (and frees it). False after a complaint. */
static bool holds(struct wal_memfs *damaged, const char *what, const char *name, uint64_t at)
{
    static struct replayed got;
    struct span_error err = {0};
    span_status st = try_open(damaged, &got, &err);
    const char *bad = NULL;
    if (st != SPAN_OK) {
        bool names = strstr(err.text, "wal-") != NULL || strstr(err.text, "identity") != NULL;
        refused++;
        bad =
            !names ? "refused without the name of a file"
            : span_status_kind(st) != SPAN_KIND_CORRUPT && span_status_kind(st) != SPAN_KIND_CALLER
                ? "refused with a status of another kind"
                : NULL;
    } else {
        opened++;
        shorter += got.count < base.count;
        bad = got.count < base_min     ? "records that were durable are gone"
              : got.count > base.count ? "records that were never there"
              : memcmp(got.hash, base.hash, got.count * sizeof(*got.hash)) != 0
                  ? "a record is another one"
                  : NULL;
    }
    wal_memfs_free(damaged);
    if (bad != NULL) {
        (void)printf("FAIL %s of %s at %" PRIu64 ": %s (%zu of %zu records, at least %zu; %s)\n",
                     what, name, at, bad, got.count, base.count, base_min, err.text);
    }
    return bad == NULL;
}

static bool damage_file(const char *name, uint64_t every, struct rng *r)
{
    uint64_t size = wal_memfs_size(whole, name);
    uint64_t failures = 0;
    for (uint64_t at = rng_below(r, every); at < size && failures < 5; at += every) {
        struct wal_memfs *copy = wal_memfs_clone(whole);
        wal_memfs_xor(copy, name, at, (uint8_t)(1 + rng_below(r, 255)));
        failures += !holds(copy, "a flipped byte", name, at);
    }
    for (uint64_t at = rng_below(r, every); at < size && failures < 5; at += every) {
        struct wal_memfs *copy = wal_memfs_clone(whole);
        wal_memfs_truncate(copy, name, at);
        failures += !holds(copy, "truncation", name, at);
    }
    return failures == 0;
}

int main(int argc, char **argv)
{
    const char *dir = NULL;
    uint64_t every = 1;
    uint64_t seed = rng_os_u64() >> 1;
    struct span_error err = {0};
    struct rng r;
    bool good = true;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--every") == 0 && i + 1 < argc) {
            every = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            seed = strtoull(argv[++i], NULL, 10);
        } else {
            dir = argv[i];
        }
    }
    log_set_level(LOG_ERROR + 1);
    if (dir == NULL || every == 0 || !load(dir)) {
        (void)fprintf(stderr, "wal_damage: no log in %s\n", dir == NULL ? "(nothing)" : dir);
        return 2;
    }
    struct wal_memfs *copy = wal_memfs_clone(whole);
    if (try_open(copy, &base, &err) != SPAN_OK) {
        (void)fprintf(stderr, "wal_damage: undamaged it is refused: %s\n", err.text);
        return 2;
    }
    wal_memfs_free(copy);
    base_min = base.count - base_min;
    (void)printf("seed %" PRIu64 "\n%zu records, %zu of them durable (up to offset %" PRIu64
                 " of %s, of %" PRIu64 ")\n",
                 seed, base.count, base_min, durable_end, tip, wal_memfs_size(whole, tip));
    rng_init(&r, seed);
    for (size_t i = 0; i < wal_memfs_count(whole); i++) {
        char name[64];
        (void)snprintf(name, sizeof(name), "%s", wal_memfs_name(whole, i));
        good = damage_file(name, every, &r) && good;
    }
    (void)printf("%" PRIu64 " refused, %" PRIu64 " opened, %" PRIu64 " of them without the tail\n",
                 refused, opened, shorter);
    wal_memfs_free(whole);
    span_free(base.hash);
    return good && refused != 0 && opened != 0 ? 0 : 1;
}
