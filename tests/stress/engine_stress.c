/* A worker that applies and reads while a flusher thread writes, checkpoints and truncates, and a
 * third thread streams snapshots: for ThreadSanitizer, and for rule H6 under real timing. Every
 * read is compared with what was applied. Exits 0 if all agreed.
 *
 *   engine_stress [--seconds N]
 */
#include "base/alloc.h"
#include "base/rng.h"
#include "shard/engine/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define KEYS         500
#define VERSIONS_MAX 100000

/* One slot between worker and flusher. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct engine_job *to_run;
    struct engine_job *ran;
    bool stop;
} slot = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static struct engine_options options;
static atomic_bool stop_streams;
static atomic_ulong streams;

static void fail(const char *what)
{
    (void)fprintf(stderr, "engine_stress: %s\n", what);
    exit(1);
}

static void *flusher(void *arg)
{
    (void)arg;
    (void)pthread_mutex_lock(&slot.lock);
    while (!slot.stop) {
        struct engine_job *job = slot.to_run;
        if (job == NULL) {
            (void)pthread_cond_wait(&slot.changed, &slot.lock);
            continue;
        }
        slot.to_run = NULL;
        (void)pthread_mutex_unlock(&slot.lock);
        struct span_error err = {0};
        if (engine_flush_run(job, &err) != SPAN_OK) {
            fail(err.text);
        }
        (void)pthread_mutex_lock(&slot.lock);
        slot.ran = job;
    }
    (void)pthread_mutex_unlock(&slot.lock);
    return NULL;
}

static void *streamer(void *arg)
{
    (void)arg;
    struct buf chunk = {0};
    while (!atomic_load(&stop_streams)) {
        struct engine_snapshot *s = NULL;
        struct engine_snapshot_info info;
        struct span_error err = {0};
        if (engine_snapshot_open(&options, &s, &info, &err) != SPAN_OK) {
            fail(err.text);
        }
        for (bool done = false; !done;) {
            if (engine_snapshot_next(s, 4096, &chunk, &done, &err) != SPAN_OK) {
                fail(err.text);
            }
        }
        engine_snapshot_close(s);
        (void)atomic_fetch_add(&streams, 1);
    }
    buf_deinit(&chunk);
    return NULL;
}

struct version {
    uint64_t ts;
    bool tombstone;
};

static struct key_log {
    struct version *versions;
    size_t count;
} logs[KEYS];

static struct slice key_of(unsigned i, char out[16])
{
    return slice_of(out, (size_t)snprintf(out, 16, "key%05u", i));
}

static struct slice value_of(unsigned i, uint64_t ts, char out[48])
{
    return slice_of(out, (size_t)snprintf(out, 48, "%u at %llu", i, (unsigned long long)ts));
}

static void check(struct engine *e, unsigned i, uint64_t at)
{
    char key[16];
    char value[48];
    struct engine_value v;
    if (engine_get(e, key_of(i, key), tt_ts_of(at), &v) != SPAN_OK) {
        fail(engine_error(e)->text);
    }
    const struct version *want = NULL;
    for (size_t n = logs[i].count; n-- > 0 && want == NULL;) {
        if (logs[i].versions[n].ts <= at) {
            want = &logs[i].versions[n];
        }
    }
    bool present = want != NULL && !want->tombstone;
    if (present != (v.found == ENGINE_FOUND) ||
        (present && (v.ts.ns != want->ts || !slice_eq(v.value, value_of(i, want->ts, value))))) {
        fail("a read does not agree with what was applied");
    }
}

static void apply(struct engine *e, struct rng *r, uint64_t *ts)
{
    unsigned i = (unsigned)rng_below(r, KEYS);
    char key[16];
    char value[48];
    bool tombstone = rng_below(r, 4) == 0;
    struct key_log *l = &logs[i];
    if (l->count == VERSIONS_MAX) {
        return;
    }
    ++*ts;
    span_status st = tombstone
                         ? engine_delete(e, key_of(i, key), tt_ts_of(*ts))
                         : engine_put(e, key_of(i, key), tt_ts_of(*ts), value_of(i, *ts, value));
    if (st != SPAN_OK) {
        fail(engine_error(e)->text);
    }
    l->versions = span_realloc(l->versions, (l->count + 1) * sizeof *l->versions);
    l->versions[l->count++] = (struct version){*ts, tombstone};
    engine_set_applied(e, engine_applied(e) + 1);
}

/* Hands jobs back and forth; the number of jobs finished. */
static unsigned poll_flusher(struct engine *e, bool *busy)
{
    unsigned finished = 0;
    (void)pthread_mutex_lock(&slot.lock);
    struct engine_job *next = NULL;
    if (slot.ran != NULL) {
        struct engine_flush_result result;
        next = engine_flush_done(e, slot.ran, &result);
        slot.ran = NULL;
        *busy = next != NULL;
        finished = next == NULL;
        if (result.status != SPAN_OK) {
            fail("a flush failed");
        }
    } else if (!*busy && engine_active_bytes(e) > 30000) {
        next = engine_freeze(e);
        *busy = next != NULL;
    }
    if (next != NULL) {
        slot.to_run = next;
        (void)pthread_cond_signal(&slot.changed);
    }
    (void)pthread_mutex_unlock(&slot.lock);
    return finished;
}

int main(int argc, char **argv)
{
    long seconds = argc == 3 ? strtol(argv[2], NULL, 10) : 3;
    uint64_t seed = rng_os_u64();
    printf("seed %llu\n", (unsigned long long)seed);
    struct rng r;
    rng_init(&r, seed);
    char dir[] = "/tmp/engine_stress.XXXXXX";
    if (mkdtemp(dir) == NULL) {
        fail("mkdtemp");
    }
    options = (struct engine_options){.dir = dir, .range_id = 1, .generation = 1, .create = true};
    struct engine *e = NULL;
    struct span_error err = {0};
    if (engine_open(&options, &e, &err) != SPAN_OK) {
        fail(err.text);
    }
    pthread_t threads[2];
    (void)pthread_create(&threads[0], NULL, flusher, NULL);
    (void)pthread_create(&threads[1], NULL, streamer, NULL);
    uint64_t ts = 0;
    uint64_t reads = 0;
    unsigned flushes = 0;
    bool busy = false;
    time_t end = time(NULL) + seconds;
    while (time(NULL) < end) {
        for (int n = 0; n < 50; n++) {
            apply(e, &r, &ts);
            check(e, (unsigned)rng_below(&r, KEYS), rng_between(&r, 1, ts));
            check(e, (unsigned)rng_below(&r, KEYS), UINT64_MAX);
            reads += 2;
        }
        flushes += poll_flusher(e, &busy);
    }
    atomic_store(&stop_streams, true);
    (void)pthread_join(threads[1], NULL);
    while (busy) {
        flushes += poll_flusher(e, &busy);
    }
    (void)pthread_mutex_lock(&slot.lock);
    slot.stop = true;
    (void)pthread_cond_signal(&slot.changed);
    (void)pthread_mutex_unlock(&slot.lock);
    (void)pthread_join(threads[0], NULL);
    printf("%llu versions, %llu reads, %u flushes, %lu streams: all agreed\n",
           (unsigned long long)ts, (unsigned long long)reads, flushes, atomic_load(&streams));
    if (engine_destroy(e, &err) != SPAN_OK || rmdir(dir) != 0) {
        fail("clean-up");
    }
    for (unsigned i = 0; i < KEYS; i++) {
        span_free(logs[i].versions);
    }
    return flushes == 0;
}
