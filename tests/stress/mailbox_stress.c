/* Many producers against one consumer, with closing in the middle, for ThreadSanitizer and ASan.
 * Checks that nothing is lost or doubled, that each producer's items come in order, and that
 * exactly the posts that were refused are missing after a close. Plain main, because Criterion does
 * not run under TSan.
 *
 *     mailbox_stress [items per producer] */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "shard/mailbox.h"
#include "shard/timer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define PRODUCERS 6

struct item {
    struct mailbox_item item;
    unsigned producer;
    uint64_t number;
};

struct producer {
    struct mailbox *m;
    unsigned id;
    uint64_t items;
    uint64_t accepted;
    bool bounded;
};

static void *produce(void *arg)
{
    struct producer *p = arg;
    for (uint64_t i = 0; i < p->items; i++) {
        struct item *it = SPAN_NEW(struct item);
        it->producer = p->id;
        it->number = i;
        it->item.bytes = 10 + i % 90;
        span_status st;
        do {
            st = p->bounded ? mailbox_try_post(p->m, &it->item) : mailbox_post(p->m, &it->item);
        } while (st == SPAN_OVERLOADED && sched_yield() == 0);
        if (st != SPAN_OK) {
            INVARIANT(st == SPAN_CLOSED);
            span_free(it);
            return NULL;
        }
        p->accepted++;
    }
    return NULL;
}

/* Consumes until closed and empty; closes itself after close_after items (0: never). */
static uint64_t consume(struct mailbox *m, uint64_t total, uint64_t close_after)
{
    uint64_t next[PRODUCERS] = {0};
    uint64_t count = 0;
    for (;;) {
        struct mailbox_item *it = mailbox_take_all(m, timer_now_ns() + MS_NS);
        if (it == NULL && mailbox_is_closed(m) && mailbox_bytes(m) == 0) {
            return count;
        }
        while (it != NULL) {
            struct item *mine = MAILBOX_ENTRY(it, struct item, item);
            it = it->next;
            INVARIANT(mine->number == next[mine->producer]);
            next[mine->producer]++;
            count++;
            span_free(mine);
        }
        if (count == total || (close_after != 0 && count >= close_after)) {
            mailbox_close(m);
        }
    }
}

static void run(uint64_t items, uint64_t close_after, size_t bytes_max)
{
    struct mailbox *m = mailbox_new(bytes_max);
    struct producer p[PRODUCERS];
    pthread_t threads[PRODUCERS];
    struct mailbox_stats stats;
    uint64_t accepted = 0;
    uint64_t start = timer_now_ns();
    for (unsigned i = 0; i < PRODUCERS; i++) {
        p[i] = (struct producer){.m = m, .id = i, .items = items, .bounded = (i & 1) != 0};
        INVARIANT(pthread_create(&threads[i], NULL, produce, &p[i]) == 0);
    }
    uint64_t count = consume(m, items * PRODUCERS, close_after);
    for (unsigned i = 0; i < PRODUCERS; i++) {
        (void)pthread_join(threads[i], NULL);
        accepted += p[i].accepted;
    }
    /* A post that was accepted before the close is always taken. */
    INVARIANT(count == accepted);
    mailbox_stats_get(m, &stats);
    (void)printf("%llu items, %llu batches, %llu wake-ups, %llu refused, %.0f ns each\n",
                 (unsigned long long)count, (unsigned long long)stats.batches,
                 (unsigned long long)stats.wakeups, (unsigned long long)stats.refused,
                 (double)(timer_now_ns() - start) / (double)(count + 1));
    mailbox_free(m);
}

int main(int argc, char **argv)
{
    uint64_t items = argc > 1 ? strtoull(argv[1], NULL, 10) : 50000;
    run(items, 0, 0);
    run(items, 0, 4096);
    for (unsigned i = 0; i < 20; i++) {
        run(items / 10 + 1, items / 10, 8192);
    }
    return 0;
}
