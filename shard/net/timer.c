/* The timer thread: sleeps in read() of a timerfd that is set to the heap's first deadline. Arming
 * an earlier deadline re-sets the timerfd from the caller's thread, which does not wake this one;
 * so a deadline costs one wake-up, and one that is cancelled costs none. */
#include "shard/net/timer.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/list.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct timer {
    pthread_mutex_t lock;
    pthread_cond_t finished; /* a callback returned */
    pthread_t thread;
    int fd;
    struct heap heap;
    uint64_t set_ns;            /* what the timerfd is set to; 0: disarmed */
    struct timer_node *running; /* node whose callback runs now; only an address, it may be freed */
    bool closing;
};

uint64_t timer_now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

/* With the lock held. A deadline that has passed fires at once. */
static void set_fd(struct timer *t, uint64_t at_ns)
{
    t->set_ns = at_ns;
    struct itimerspec spec = {
        .it_value = {.tv_sec = (time_t)(at_ns / SEC_NS), .tv_nsec = (long)(at_ns % SEC_NS)}};
    INVARIANT(timerfd_settime(t->fd, TFD_TIMER_ABSTIME, &spec, NULL) == 0);
}

/* With the lock held: runs everything that is due, then sets the timerfd to what comes next. */
static void run_due(struct timer *t)
{
    while (!t->closing) {
        struct heap_node *min = heap_min(&t->heap);
        if (min == NULL) {
            t->set_ns = 0;
            return;
        }
        if (min->key > timer_now_ns()) {
            set_fd(t, min->key);
            return;
        }
        struct timer_node *n = LIST_ENTRY(min, struct timer_node, heap);
        timer_fn *fn = n->fn;
        heap_remove(&t->heap, min);
        t->running = n;
        (void)pthread_mutex_unlock(&t->lock);
        fn(n);
        (void)pthread_mutex_lock(&t->lock);
        t->running = NULL;
        (void)pthread_cond_broadcast(&t->finished);
    }
}

static void *timer_main(void *arg)
{
    struct timer *t = arg;
    (void)pthread_setname_np(pthread_self(), "span-timer");
    (void)prctl(PR_SET_TIMERSLACK, 1UL);
    (void)pthread_mutex_lock(&t->lock);
    while (!t->closing) {
        (void)pthread_mutex_unlock(&t->lock);
        uint64_t expirations;
        ssize_t n = read(t->fd, &expirations, sizeof(expirations));
        INVARIANT(n == (ssize_t)sizeof(expirations) || errno == EINTR);
        (void)pthread_mutex_lock(&t->lock);
        /* While callbacks run, an arm need not touch the timerfd: run_due looks at the heap last.
         */
        t->set_ns = 1;
        run_due(t);
    }
    (void)pthread_mutex_unlock(&t->lock);
    return NULL;
}

span_status timer_open(struct timer **out, struct span_error *err)
{
    struct timer *t = SPAN_NEW(struct timer);
    int rc;
    (void)pthread_mutex_init(&t->lock, NULL);
    (void)pthread_cond_init(&t->finished, NULL);
    heap_init(&t->heap);
    t->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (t->fd < 0) {
        (void)span_fail(err, SPAN_IO, "cannot create a timerfd: %s", strerror(errno));
        goto err;
    }
    rc = pthread_create(&t->thread, NULL, timer_main, t);
    if (rc != 0) {
        (void)span_fail(err, SPAN_IO, "cannot start the timer thread: %s", strerror(rc));
        (void)close(t->fd);
        goto err;
    }
    *out = t;
    return SPAN_OK;
err:
    (void)pthread_cond_destroy(&t->finished);
    (void)pthread_mutex_destroy(&t->lock);
    span_free(t);
    return SPAN_IO;
}

void timer_close(struct timer *t)
{
    if (t == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&t->lock);
    REQUIRE(!pthread_equal(pthread_self(), t->thread));
    t->closing = true;
    set_fd(t, 1); /* fires at once */
    (void)pthread_mutex_unlock(&t->lock);
    (void)pthread_join(t->thread, NULL);
    struct heap_node *n;
    while ((n = heap_min(&t->heap)) != NULL) {
        heap_remove(&t->heap, n);
    }
    heap_deinit(&t->heap);
    (void)close(t->fd);
    (void)pthread_cond_destroy(&t->finished);
    (void)pthread_mutex_destroy(&t->lock);
    span_free(t);
}

void timer_at(struct timer *t, struct timer_node *n, uint64_t at_ns, timer_fn *fn)
{
    if (at_ns == 0) {
        at_ns = 1; /* 0 would disarm the timerfd */
    }
    (void)pthread_mutex_lock(&t->lock);
    if (n->canceling) {
        (void)pthread_mutex_unlock(&t->lock);
        return;
    }
    n->fn = fn;
    heap_insert(&t->heap, &n->heap, at_ns);
    if (t->set_ns == 0 || at_ns < t->set_ns) {
        set_fd(t, at_ns);
    }
    (void)pthread_mutex_unlock(&t->lock);
}

bool timer_cancel(struct timer *t, struct timer_node *n)
{
    (void)pthread_mutex_lock(&t->lock);
    bool armed = heap_node_in(&n->heap);
    heap_remove(&t->heap, &n->heap);
    if (t->running == n && !pthread_equal(pthread_self(), t->thread)) {
        n->canceling = true; /* or a callback that re-arms itself for now would run for ever */
        while (t->running == n) {
            (void)pthread_cond_wait(&t->finished, &t->lock);
        }
        n->canceling = false;
    }
    (void)pthread_mutex_unlock(&t->lock);
    return armed;
}
