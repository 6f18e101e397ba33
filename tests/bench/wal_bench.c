/* Records a second that the log makes durable, event-driven as a worker does it: one submitting
 * thread keeps W records of 256 bytes in flight and hands over one batch a turn; completions come
 * on the log's thread. Usage: wal_bench [DIR [SECONDS]]. Prints records/s, latency and CPU per
 * record. */
#include "base/alloc.h"
#include "base/hist.h"
#include "base/limits.h"
#include "base/log.h"
#include "shard/wal/wal.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define RECORD_BYTES 256U

struct turn {
    uint64_t records;
    uint64_t begin_ns;
};

struct bench {
    pthread_mutex_t mu;
    pthread_cond_t cond;
    uint64_t durable; /* records */
    struct hist latency;
    struct turn turns[1024]; /* by cookie: at most one batch a record in flight */
    bool failed;
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

static void on_done(void *ctx, uint64_t cookie, span_status st)
{
    struct bench *b = ctx;
    uint64_t now = now_ns();
    pthread_mutex_lock(&b->mu);
    const struct turn *t = &b->turns[cookie % 1024];
    b->durable += t->records;
    for (uint64_t i = 0; i < t->records; i++) {
        hist_add(&b->latency, now - t->begin_ns);
    }
    b->failed = b->failed || st != SPAN_OK;
    pthread_cond_signal(&b->cond);
    pthread_mutex_unlock(&b->mu);
}

static uint64_t cpu_ns(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return ((uint64_t)u.ru_utime.tv_sec + (uint64_t)u.ru_stime.tv_sec) * SEC_NS +
           ((uint64_t)u.ru_utime.tv_usec + (uint64_t)u.ru_stime.tv_usec) * 1000U;
}

/* s: of one range, index by index. Returns the last index. */
static uint64_t run(struct wal *w, uint64_t in_flight, double seconds, uint64_t index)
{
    struct bench *b = SPAN_NEW(struct bench);
    pthread_mutex_init(&b->mu, NULL);
    pthread_cond_init(&b->cond, NULL);
    hist_init(&b->latency);
    static const uint8_t payload[RECORD_BYTES] = {1};
    struct wal_batch batch;
    wal_batch_init(&batch);
    struct wal_stats before;
    struct wal_stats after;
    wal_stats_get(w, &before);
    uint64_t sent = 0;
    uint64_t cookie = 0;
    uint64_t cpu = cpu_ns();
    uint64_t begin = now_ns();
    uint64_t end = begin + (uint64_t)(seconds * 1e9);
    while (now_ns() < end && !b->failed) {
        pthread_mutex_lock(&b->mu);
        while (sent - b->durable >= in_flight) {
            pthread_cond_wait(&b->cond, &b->mu);
        }
        uint64_t n = in_flight - (sent - b->durable);
        uint64_t durable = index - (sent - b->durable);
        b->turns[cookie % 1024] = (struct turn){n, now_ns()};
        pthread_mutex_unlock(&b->mu);
        for (uint64_t i = 0; i < n; i++) {
            wal_batch_add_entry(&batch, 1, ++index, 1, 0, slice_of(payload, sizeof payload));
        }
        sent += n;
        if (wal_submit(w, &batch, on_done, b, cookie++) != SPAN_OK) {
            fprintf(stderr, "submit refused\n");
            exit(1);
        }
        wal_release(w, 1, durable);
    }
    pthread_mutex_lock(&b->mu);
    while (b->durable < sent) {
        pthread_cond_wait(&b->cond, &b->mu);
    }
    pthread_mutex_unlock(&b->mu);
    uint64_t took = now_ns() - begin;
    cpu = cpu_ns() - cpu;
    wal_stats_get(w, &after);
    printf("in flight %4" PRIu64 ": %8.0f records/s  p50 %4" PRIu64 " us  p99 %5" PRIu64
           " us  cpu %5.2f us/record  %6.0f syncs/s  created %" PRIu64 " recycled %" PRIu64 "\n",
           in_flight, (double)sent * 1e9 / (double)took, hist_quantile(&b->latency, 0.5) / 1000,
           hist_quantile(&b->latency, 0.99) / 1000, (double)cpu / 1000.0 / (double)sent,
           (double)(after.syncs - before.syncs) * 1e9 / (double)took,
           after.created - before.created, after.recycled - before.recycled);
    wal_batch_deinit(&batch);
    pthread_cond_destroy(&b->cond);
    pthread_mutex_destroy(&b->mu);
    span_free(b);
    return index;
}

int main(int argc, char **argv)
{
    char tmp[] = "/tmp/wal_bench.XXXXXX";
    const char *parent = argc > 1 ? argv[1] : mkdtemp(tmp);
    double seconds = argc > 2 ? strtod(argv[2], NULL) : 2.0;
    if (parent == NULL) {
        perror("mkdtemp");
        return 1;
    }
    char *dir = span_asprintf("%s/wal", parent);
    struct span_error err;
    struct wal *w;
    log_set_level(LOG_WARN);
    if (wal_open(dir, 1, NULL, NULL, NULL, &w, &err) != SPAN_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    sleep(1); /* the spare and the reserve are being filled: not part of what is measured */
    uint64_t index = 0;
    const uint64_t widths[] = {1, 16, 64, 256};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        index = run(w, widths[i], seconds, index);
    }
    uint64_t begin = now_ns();
    span_status st = wal_close(w);
    printf("close %.1f ms (%s)\n", (double)(now_ns() - begin) / 1e6, span_status_text(st));
    begin = now_ns();
    if (wal_open(dir, 1, NULL, NULL, NULL, &w, &err) != SPAN_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    struct wal_stats stats;
    wal_stats_get(w, &stats);
    printf("open %.1f ms, %" PRIu64 " units\n", (double)(now_ns() - begin) / 1e6,
           stats.recovered_units);
    st = wal_close(w);
    char *command = span_asprintf("rm -rf '%s'", argc > 1 ? dir : parent);
    int rc = system(command); /* NOLINT: a bench's own folder */
    span_free(command);
    span_free(dir);
    return rc == 0 && st == SPAN_OK ? 0 : 1;
}
