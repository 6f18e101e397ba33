/* The mailbox: a singly linked list under a mutex, and a condition variable that is signalled only
 * when the consumer sleeps.
 *
 * Why a mutex and not a lock-free stack: the critical sections are a handful of instructions, the
 * consumer takes everything in one of them, and closing has to be exact (no item may slip in after
 * the consumer saw the mailbox closed and empty, or it would leak), which costs a lock-free list
 * more than it saves. */
#include "shard/mailbox.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"

#include <pthread.h>
#include <sys/prctl.h>
#include <time.h>

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t filled; /* waited for by the consumer only */
    struct mailbox_item *head;
    struct mailbox_item *tail;
    size_t bytes_max;
    struct mailbox_stats stats;
    bool sleeping; /* the consumer waits and nobody has signalled it yet */
    bool closed;
};

struct mailbox *mailbox_new(size_t bytes_max)
{
    struct mailbox *m = SPAN_NEW(struct mailbox);
    pthread_condattr_t attr;
    INVARIANT(pthread_mutex_init(&m->lock, NULL) == 0);
    INVARIANT(pthread_condattr_init(&attr) == 0);
    INVARIANT(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    INVARIANT(pthread_cond_init(&m->filled, &attr) == 0);
    (void)pthread_condattr_destroy(&attr);
    m->bytes_max = bytes_max;
    return m;
}

void mailbox_free(struct mailbox *m)
{
    if (m == NULL) {
        return;
    }
    REQUIRE(m->head == NULL);
    (void)pthread_cond_destroy(&m->filled);
    (void)pthread_mutex_destroy(&m->lock);
    span_free(m);
}

static span_status post(struct mailbox *m, struct mailbox_item *item, bool bounded)
{
    item->next = NULL;
    (void)pthread_mutex_lock(&m->lock);
    if (m->closed) {
        (void)pthread_mutex_unlock(&m->lock);
        return SPAN_CLOSED;
    }
    if (bounded && m->bytes_max != 0 && m->head != NULL &&
        (item->bytes > m->bytes_max || m->stats.bytes > m->bytes_max - item->bytes)) {
        m->stats.refused++;
        (void)pthread_mutex_unlock(&m->lock);
        return SPAN_OVERLOADED;
    }
    if (m->head == NULL) {
        m->head = item;
    } else {
        m->tail->next = item;
    }
    m->tail = item;
    m->stats.posts++;
    m->stats.items++;
    m->stats.bytes += item->bytes;
    bool wake = m->sleeping;
    if (wake) {
        m->sleeping = false; /* the next producer need not signal again */
        m->stats.wakeups++;
    }
    (void)pthread_mutex_unlock(&m->lock);
    /* After the unlock, so that the consumer does not wake into a held lock. */
    if (wake) {
        (void)pthread_cond_signal(&m->filled);
    }
    return SPAN_OK;
}

span_status mailbox_post(struct mailbox *m, struct mailbox_item *item)
{
    return post(m, item, false);
}

span_status mailbox_try_post(struct mailbox *m, struct mailbox_item *item)
{
    return post(m, item, true);
}

/* With the lock held: waits for an item, the close or the deadline. */
static void wait_filled(struct mailbox *m, uint64_t until_ns)
{
    static _Thread_local bool slack_set;
    if (!slack_set) {
        slack_set = true;
        (void)prctl(PR_SET_TIMERSLACK, 1UL);
    }
    struct timespec until = {.tv_sec = (time_t)(until_ns / SEC_NS),
                             .tv_nsec = (long)(until_ns % SEC_NS)};
    while (m->head == NULL && !m->closed) {
        m->sleeping = true;
        int rc = until_ns == MAILBOX_FOREVER ? pthread_cond_wait(&m->filled, &m->lock)
                                             : pthread_cond_timedwait(&m->filled, &m->lock, &until);
        m->sleeping = false;
        if (rc != 0) {
            return; /* ETIMEDOUT */
        }
    }
}

struct mailbox_item *mailbox_take_all(struct mailbox *m, uint64_t until_ns)
{
    (void)pthread_mutex_lock(&m->lock);
    if (m->head == NULL && !m->closed && until_ns != 0) {
        wait_filled(m, until_ns);
    }
    struct mailbox_item *all = m->head;
    m->head = NULL;
    m->tail = NULL;
    m->stats.items = 0;
    m->stats.bytes = 0;
    if (all != NULL) {
        m->stats.batches++;
    }
    (void)pthread_mutex_unlock(&m->lock);
    return all;
}

void mailbox_close(struct mailbox *m)
{
    (void)pthread_mutex_lock(&m->lock);
    m->closed = true;
    (void)pthread_mutex_unlock(&m->lock);
    (void)pthread_cond_broadcast(&m->filled);
}

bool mailbox_is_closed(struct mailbox *m)
{
    (void)pthread_mutex_lock(&m->lock);
    bool closed = m->closed;
    (void)pthread_mutex_unlock(&m->lock);
    return closed;
}

size_t mailbox_bytes(struct mailbox *m)
{
    (void)pthread_mutex_lock(&m->lock);
    size_t bytes = (size_t)m->stats.bytes;
    (void)pthread_mutex_unlock(&m->lock);
    return bytes;
}

void mailbox_stats_get(struct mailbox *m, struct mailbox_stats *out)
{
    (void)pthread_mutex_lock(&m->lock);
    *out = m->stats;
    (void)pthread_mutex_unlock(&m->lock);
}
