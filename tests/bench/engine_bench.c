/* What the engine's calls cost: apply, point reads in memory and in the file, hits and misses,
 * scans, flushes of 200,000 rows into an empty and into a full file, a snapshot and its restore, a
 * split.
 *
 *   engine_bench [--keys N] [--dir DIR]
 */
#include "base/alloc.h"
#include "base/log.h"
#include "base/rng.h"
#include "shard/engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FLUSH_ROWS 200000

static uint64_t ts_now = 1000;
static uint64_t applied;
static struct rng rng;

static double seconds(clockid_t clock)
{
    struct timespec t;
    (void)clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct timing {
    double wall;
    double cpu;
};

static struct timing begin(void)
{
    return (struct timing){seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID)};
}

static void report(const char *what, struct timing from, uint64_t count)
{
    double wall = seconds(CLOCK_MONOTONIC) - from.wall;
    double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - from.cpu;
    printf("%-44s %9.3f us wall %9.3f us cpu  x %llu\n", what, wall * 1e6 / (double)count,
           cpu * 1e6 / (double)count, (unsigned long long)count);
    (void)fflush(stdout);
}

static void must(span_status st, const char *what, const struct span_error *err)
{
    if (st != SPAN_OK) {
        (void)fprintf(stderr, "engine_bench: %s: %s %s\n", what, span_status_name(st),
                      err == NULL ? "" : err->text);
        exit(1);
    }
}

/* 16 bytes; even numbers exist, odd ones do not. */
static struct slice key_of(uint64_t i, uint8_t out[16])
{
    static const uint8_t table[8] = {0x10, 0, 0, 0, 7, 0, 0, 1};
    memcpy(out, table, 8);
    for (int b = 0; b < 8; b++) {
        out[8 + b] = (uint8_t)(i >> (56 - 8 * b));
    }
    return slice_of(out, 16);
}

static void put(struct engine *e, uint64_t i)
{
    uint8_t key[16];
    uint8_t value[100];
    for (size_t b = 0; b < sizeof value; b += 4) {
        uint32_t word = (uint32_t)rng_u64(&rng);
        memcpy(value + b, &word, 4);
    }
    must(engine_put(e, key_of(2 * i, key), tt_ts_of(++ts_now), slice_of(value, sizeof value)),
         "put", engine_error(e));
}

static void flush(struct engine *e, const char *what, uint64_t rows)
{
    struct span_error err = {0};
    engine_set_applied(e, ++applied);
    struct timing t = begin();
    must(engine_flush_now(e, &err), "flush", &err);
    report(what, t, rows);
}

static void get_many(struct engine *e, const char *what, uint64_t keys, bool present,
                     struct tt_ts at)
{
    const uint64_t count = 500000;
    uint64_t found = 0;
    struct timing t = begin();
    for (uint64_t n = 0; n < count; n++) {
        uint8_t key[16];
        struct engine_value v;
        must(engine_get(e, key_of(2 * rng_below(&rng, keys) + (present ? 0 : 1), key), at, &v),
             "get", engine_error(e));
        found += v.found == ENGINE_FOUND;
    }
    report(what, t, count);
    if (present && at.ns == UINT64_MAX && found != count) {
        must(SPAN_INTERNAL, what, NULL);
    }
}

static bool count_row(void *ctx, struct slice key, struct slice value, struct tt_ts ts)
{
    *(uint64_t *)ctx += key.size + value.size + ts.ns % 2;
    return true;
}

static void scan_some(struct engine *e, const char *what, uint64_t keys, uint64_t rows,
                      uint64_t scans, struct tt_ts at)
{
    uint64_t sum = 0;
    uint64_t total = 0;
    struct timing t = begin();
    for (uint64_t n = 0; n < scans; n++) {
        uint8_t key[16];
        uint64_t from = rows >= keys ? 0 : rng_below(&rng, keys - rows);
        struct engine_scan_spec spec = {
            .start = key_of(2 * from, key), .at = at, .max_rows = rows, .reverse = false};
        struct engine_scan_result result;
        must(engine_scan(e, &spec, count_row, &sum, &result), "scan", engine_error(e));
        total += result.rows;
    }
    report(what, t, total);
}

static void copy_all(const struct engine_options *opt, uint64_t rows)
{
    struct engine_options to = *opt;
    struct engine_snapshot *s = NULL;
    struct engine_snapshot_info info;
    struct engine_restore *in = NULL;
    struct span_error err = {0};
    struct buf chunk = {0};
    to.generation++;
    struct timing t = begin();
    must(engine_snapshot_open(opt, &s, &info, &err), "snapshot", &err);
    must(engine_restore_begin(&to, &in, &err), "restore", &err);
    for (bool done = false; !done;) {
        must(engine_snapshot_next(s, 256 * 1024, &chunk, &done, &err), "snapshot", &err);
        must(engine_restore_feed(in, buf_slice(&chunk), &err), "restore", &err);
    }
    engine_snapshot_close(s);
    must(engine_restore_finish(in, &info, &err), "restore", &err);
    report("snapshot and restore, per row", t, rows);
    buf_deinit(&chunk);
    must(engine_remove_files(&to, &err), "remove", &err);
}

int main(int argc, char **argv)
{
    uint64_t keys = 1000000;
    const char *base = "/tmp";
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--keys") == 0) {
            keys = strtoull(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--dir") == 0) {
            base = argv[i + 1];
        }
    }
    if (argc % 2 == 0 || keys < FLUSH_ROWS) {
        (void)fprintf(stderr, "usage: engine_bench [--keys N (at least %d)] [--dir DIR]\n",
                      FLUSH_ROWS);
        return 2;
    }
    rng_init(&rng, 1);
    char *dir = span_asprintf("%s/engine_bench.XXXXXX", base);
    if (mkdtemp(dir) == NULL) {
        perror(dir);
        return 1;
    }
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 1, .create = true};
    struct engine *e = NULL;
    struct span_error err = {0};
    must(engine_open(&opt, &e, &err), "open", &err);

    get_many(e, "get, empty engine", keys, false, ENGINE_NEWEST);
    struct timing t = begin();
    for (uint64_t i = 0; i < FLUSH_ROWS; i++) {
        put(e, i * (keys / FLUSH_ROWS));
    }
    report("put, new keys in order", t, FLUSH_ROWS);
    flush(e, "flush of 200,000 rows into an empty file", FLUSH_ROWS);
    for (uint64_t done = 0; done < keys; done += FLUSH_ROWS) {
        for (uint64_t i = done; i < done + FLUSH_ROWS && i < keys; i++) {
            put(e, i);
        }
        engine_set_applied(e, ++applied);
        must(engine_flush_now(e, &err), "flush", &err);
    }
    uint64_t loaded = ts_now;
    engine_set_horizon(e, tt_ts_of(loaded));
    get_many(e, "get, file, hit", keys, true, ENGINE_NEWEST);
    get_many(e, "get, file, miss", keys, false, ENGINE_NEWEST);
    scan_some(e, "scan of 10 rows, file, per row", keys, 10, 50000, ENGINE_NEWEST);
    scan_some(e, "scan of all, file, per row", keys, keys, 1, ENGINE_NEWEST);

    t = begin();
    for (uint64_t i = 0; i < FLUSH_ROWS; i++) {
        put(e, rng_below(&rng, keys));
    }
    report("put, random keys", t, FLUSH_ROWS);
    printf("memory: %.1f bytes a version\n", (double)engine_memory_bytes(e) / FLUSH_ROWS);
    t = begin();
    for (uint64_t i = 0; i < FLUSH_ROWS; i++) {
        put(e, i % 1000);
    }
    report("put, 1000 hot keys", t, FLUSH_ROWS);
    get_many(e, "get, memory, hit", 1000, true, ENGINE_NEWEST);
    get_many(e, "get, memory and file", keys, true, ENGINE_NEWEST);
    scan_some(e, "scan of 10 rows, merged, per row", keys, 10, 50000, ENGINE_NEWEST);
    scan_some(e, "scan of all, merged, per row", keys, keys, 1, ENGINE_NEWEST);
    flush(e, "flush of 400,000 random and hot, with history", 2 * (uint64_t)FLUSH_ROWS);
    get_many(e, "get, file, an older version", keys, true, tt_ts_of(loaded + 10));
    scan_some(e, "scan of all, older versions, per row", keys, keys, 1, tt_ts_of(loaded + 10));
    for (uint64_t i = 0; i < FLUSH_ROWS; i++) {
        put(e, rng_below(&rng, keys));
    }
    engine_set_horizon(e, tt_ts_of(ts_now));
    flush(e, "flush of 200,000 random, no history kept, GC", FLUSH_ROWS);

    copy_all(&opt, keys);
    uint8_t key[16];
    struct engine_split_spec split = {
        .key = key_of(keys, key), .right_range_id = 2, .right_generation = 1, .right_applied = 1};
    t = begin();
    must(engine_split(e, &split, &err), "split", &err);
    report("split in the middle, per row of the right", t, keys / 2);
    engine_set_applied(e, ++applied);
    struct engine_options right = {.dir = dir, .range_id = 2, .generation = 1};
    must(engine_remove_files(&right, &err), "remove", &err);
    must(engine_destroy(e, &err), "destroy", &err);
    (void)rmdir(dir);
    span_free(dir);
    return 0;
}
