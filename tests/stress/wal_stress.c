/* The log under threads, for ThreadSanitizer (Criterion does not run under it): several submitters,
 * releases, queries and run-time faults at once, several lives on one directory. After each life
 * every index acknowledged must be replayed. Usage: wal_stress [SECONDS [SEED]]. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/rng.h"
#include "shard/wal/wal.h"
#include "shard/wal/wal_file.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4U

struct submitter {
    struct wal *w;
    uint64_t range;
    uint64_t seed;
    _Atomic uint64_t acked; /* index */
    _Atomic uint64_t bad;   /* completions in wrong order */
    _Atomic bool failed;
    _Atomic bool *stop;
    uint64_t next;
};

static uint64_t replayed[THREADS + 1];

static void fail(const char *what, uint64_t a, uint64_t b)
{
    fprintf(stderr, "FAILED: %s (%" PRIu64 ", %" PRIu64 ")\n", what, a, b);
    exit(1);
}

static span_status on_replay(void *ctx, const struct wal_record *r, struct span_error *err)
{
    (void)ctx;
    (void)err;
    if (r->kind == WAL_ENTRY) {
        uint64_t v[2];
        memcpy(v, r->payload.data, sizeof v);
        if (v[0] != r->range || v[1] != r->index) {
            fail("a record holds another one's payload", r->range, r->index);
        }
        replayed[r->range] = r->index;
    } else if (r->kind == WAL_STICKY) {
        /* Written after the entries it counts: those may be released and gone. */
        memcpy(&replayed[r->range], r->payload.data, 8);
    }
    return SPAN_OK;
}

static void on_done(void *ctx, uint64_t cookie, span_status st)
{
    struct submitter *s = ctx;
    if (st != SPAN_OK) {
        atomic_store(&s->failed, true);
    } else if (atomic_load(&s->failed) || cookie <= atomic_load(&s->acked)) {
        atomic_fetch_add(&s->bad, 1);
    } else {
        atomic_store(&s->acked, cookie);
    }
}

static void *submitter_main(void *arg)
{
    struct submitter *s = arg;
    struct rng r;
    rng_init(&r, s->seed);
    struct wal_batch b;
    wal_batch_init(&b);
    uint64_t payload[32] = {0};
    while (!atomic_load(s->stop)) {
        uint64_t n = rng_between(&r, 1, 8);
        for (uint64_t i = 0; i < n; i++) {
            payload[0] = s->range;
            payload[1] = ++s->next;
            wal_batch_add_entry(&b, s->range, s->next, 1, 0,
                                slice_of(payload, 16 + (size_t)rng_below(&r, 240)));
        }
        wal_batch_add_sticky(&b, s->range, 1, slice_of(&s->next, 8));
        span_status st = wal_submit(s->w, &b, on_done, s, s->next);
        if (st != SPAN_OK) {
            wal_batch_clear(&b);
            s->next -= n;
            usleep(100);
        }
        if (rng_below(&r, 8) == 0) {
            wal_release(s->w, s->range, atomic_load(&s->acked));
        }
        while (!wal_has_room(s->w) && !atomic_load(s->stop)) {
            usleep(100);
        }
    }
    wal_batch_deinit(&b);
    return NULL;
}

/* Plays with the faults and reads what can be read, for a while. */
static void disturb(struct wal *w, struct wal_faults *faults, struct rng *r, double seconds)
{
    struct timespec pause = {0, 3000000};
    for (int i = 0; i < (int)(seconds * 300); i++) {
        uint64_t dice = rng_below(r, 20);
        atomic_store(&faults->sync_delay_ms, dice == 0 ? 4 : 0);
        atomic_store(&faults->no_space, dice == 1);
        if (dice == 2 && rng_below(r, 4) == 0) {
            atomic_store(&faults->fail_syncs, 1);
        }
        struct wal_pin pins[4];
        struct wal_stats stats;
        struct buf out = {0};
        (void)wal_oldest_pinned(w, pins, 4);
        (void)wal_oldest_unsynced_ns(w);
        (void)wal_sticky_get(w, 1, 1, &out);
        wal_stats_get(w, &stats);
        buf_deinit(&out);
        nanosleep(&pause, NULL);
    }
    atomic_store(&faults->no_space, false);
    atomic_store(&faults->sync_delay_ms, 0);
}

static void life(const char *dir, struct rng *r, double seconds, struct submitter *s)
{
    struct wal_faults faults = {0};
    struct wal_options opt = {
        .segment_bytes = 128 * KIB, .queue_bytes_max = MIB, .faults = &faults};
    struct wal *w;
    struct span_error err;
    memset(replayed, 0, sizeof replayed);
    if (wal_open(dir, 5, &opt, on_replay, NULL, &w, &err) != SPAN_OK) {
        fprintf(stderr, "FAILED: %s\n", err.text);
        exit(1);
    }
    _Atomic bool stop = false;
    pthread_t threads[THREADS];
    for (uint64_t i = 0; i < THREADS; i++) {
        uint64_t acked = atomic_load(&s[i].acked);
        if (replayed[i + 1] < acked) {
            fail("an acknowledged record is not there", replayed[i + 1], acked);
        }
        s[i].w = w;
        s[i].range = i + 1;
        s[i].seed = rng_u64(r);
        s[i].stop = &stop;
        s[i].next = replayed[i + 1];
        atomic_store(&s[i].acked, replayed[i + 1]);
        atomic_store(&s[i].failed, false);
        if (pthread_create(&threads[i], NULL, submitter_main, &s[i]) != 0) {
            fail("pthread_create", i, 0);
        }
    }
    disturb(w, &faults, r, seconds);
    atomic_store(&stop, true);
    for (uint64_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    struct wal_stats stats;
    wal_stats_get(w, &stats);
    printf("batches %" PRIu64 " syncs %" PRIu64 " rotations %" PRIu64 " failures %" PRIu64
           " stalls %" PRIu64 " state %d\n",
           stats.batches, stats.syncs, stats.rotations, stats.sync_failures, stats.stalls,
           (int)wal_state_get(w));
    if (rng_below(r, 2) == 0) {
        (void)wal_close(w);
    } else {
        wal_abandon(w);
    }
    for (uint64_t i = 0; i < THREADS; i++) {
        if (atomic_load(&s[i].bad) != 0) {
            fail("completions out of order", i, atomic_load(&s[i].bad));
        }
    }
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 4.0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : rng_os_u64();
    printf("seed %" PRIu64 "\n", seed);
    char dir[] = "/tmp/wal_stress.XXXXXX";
    if (mkdtemp(dir) == NULL) {
        perror("mkdtemp");
        return 1;
    }
    log_set_level(LOG_ERROR + 1);
    struct rng r;
    rng_init(&r, seed);
    static struct submitter s[THREADS];
    for (int i = 0; i < 8; i++) {
        life(dir, &r, seconds / 8, s);
    }
    char *command = span_asprintf("rm -rf '%s'", dir);
    int rc = system(command); /* NOLINT: our own temporary folder */
    span_free(command);
    printf("ok\n");
    return rc == 0 ? 0 : 1;
}
