/* The mailbox and the timer thread, as one thread sees them. Threads against each other: see
 * tests/stress/mailbox_stress.c. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/list.h"
#include "shard/mailbox.h"
#include "shard/timer.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <semaphore.h>

struct note {
    struct mailbox_item item;
    int number;
};

static struct note *note_new(int number, size_t bytes)
{
    struct note *n = SPAN_NEW(struct note);
    n->number = number;
    n->item.bytes = bytes;
    return n;
}

static int free_all(struct mailbox_item *it)
{
    int count = 0;
    while (it != NULL) {
        struct mailbox_item *next = it->next;
        span_free(MAILBOX_ENTRY(it, struct note, item));
        it = next;
        count++;
    }
    return count;
}

Test(mailbox, hands_out_everything_at_once_in_order)
{
    struct mailbox *m = mailbox_new(0);
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(mailbox_post(m, &note_new(i, 1)->item), SPAN_OK);
    }
    cr_assert_eq(mailbox_bytes(m), 100);
    struct mailbox_item *all = mailbox_take_all(m, 0);
    int i = 0;
    for (struct mailbox_item *it = all; it != NULL; it = it->next) {
        cr_assert_eq(MAILBOX_ENTRY(it, struct note, item)->number, i++);
    }
    cr_assert_eq(i, 100);
    cr_assert_eq(mailbox_bytes(m), 0);
    cr_assert_null(mailbox_take_all(m, 0));
    (void)free_all(all);
    mailbox_free(m);
}

Test(mailbox, bounds_try_post_but_never_post)
{
    struct mailbox *m = mailbox_new(100);
    struct mailbox_stats stats;
    struct note *refused = note_new(3, 30);
    cr_assert_eq(mailbox_try_post(m, &note_new(0, 500)->item), SPAN_OK, "fits an empty mailbox");
    cr_assert_eq(mailbox_try_post(m, &refused->item), SPAN_OVERLOADED);
    cr_assert_eq(mailbox_post(m, &note_new(1, 30)->item), SPAN_OK, "rule I5");
    cr_assert_eq(free_all(mailbox_take_all(m, 0)), 2);
    cr_assert_eq(mailbox_try_post(m, &note_new(2, 70)->item), SPAN_OK);
    cr_assert_eq(mailbox_try_post(m, &refused->item), SPAN_OK, "exactly full");
    struct note *more = note_new(4, 1);
    cr_assert_eq(mailbox_try_post(m, &more->item), SPAN_OVERLOADED);
    span_free(more);
    mailbox_stats_get(m, &stats);
    cr_assert_eq(stats.refused, 2);
    cr_assert_eq(free_all(mailbox_take_all(m, 0)), 2);
    mailbox_free(m);
}

Test(mailbox, refuses_posts_after_close_but_gives_what_was_left)
{
    struct mailbox *m = mailbox_new(0);
    struct note *late = note_new(1, 1);
    cr_assert_eq(mailbox_post(m, &note_new(0, 1)->item), SPAN_OK);
    mailbox_close(m);
    cr_assert_eq(mailbox_post(m, &late->item), SPAN_CLOSED);
    cr_assert(mailbox_is_closed(m));
    cr_assert_eq(free_all(mailbox_take_all(m, MAILBOX_FOREVER)), 1);
    cr_assert_null(mailbox_take_all(m, MAILBOX_FOREVER), "returns at once");
    span_free(late);
    mailbox_free(m);
}

Test(mailbox, waits_until_the_deadline_and_not_less)
{
    struct mailbox *m = mailbox_new(0);
    for (int i = 0; i < 5; i++) {
        uint64_t until = timer_now_ns() + 2 * MS_NS;
        cr_assert_null(mailbox_take_all(m, until));
        cr_assert_geq(timer_now_ns(), until);
    }
    mailbox_free(m);
}

static void *close_it(void *m)
{
    mailbox_close(m);
    return NULL;
}

static void *post_one(void *m)
{
    cr_assert_eq(mailbox_post(m, &note_new(7, 1)->item), SPAN_OK);
    return NULL;
}

Test(mailbox, wakes_a_sleeping_consumer_for_an_item_and_for_close, .timeout = 20)
{
    struct mailbox *m = mailbox_new(0);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, post_one, m), 0);
    cr_assert_eq(free_all(mailbox_take_all(m, MAILBOX_FOREVER)), 1);
    (void)pthread_join(thread, NULL);
    cr_assert_eq(pthread_create(&thread, NULL, close_it, m), 0);
    cr_assert_null(mailbox_take_all(m, MAILBOX_FOREVER));
    (void)pthread_join(thread, NULL);
    mailbox_free(m);
}

Test(mailbox, wakes_nobody_while_the_consumer_is_busy)
{
    struct mailbox *m = mailbox_new(0);
    struct mailbox_stats stats;
    for (int i = 0; i < 1000; i++) {
        cr_assert_eq(mailbox_post(m, &note_new(i, 1)->item), SPAN_OK);
    }
    mailbox_stats_get(m, &stats);
    cr_assert_eq(stats.posts, 1000);
    cr_assert_eq(stats.items, 1000);
    cr_assert_eq(stats.wakeups, 0);
    cr_assert_eq(free_all(mailbox_take_all(m, 0)), 1000);
    mailbox_free(m);
}

/* --- timer --------------------------------------------------------------------------------------
 */

struct alarm {
    struct timer_node node;
    struct timer *timer;
    sem_t fired;
    uint64_t due_ns;
    uint64_t at_ns;
    int *order;
    int number;
    int repeats;
};

static void alarm_fn(struct timer_node *n)
{
    struct alarm *a = LIST_ENTRY(n, struct alarm, node);
    a->at_ns = timer_now_ns();
    if (a->order != NULL) {
        *a->order = *a->order * 10 + a->number;
    }
    if (a->repeats-- > 0) {
        timer_at(a->timer, n, 0, alarm_fn);
    } else {
        (void)sem_post(&a->fired);
    }
}

static struct timer *timer_start(void)
{
    struct timer *t;
    cr_assert_eq(timer_open(&t, NULL), SPAN_OK);
    return t;
}

static void alarm_init(struct alarm *a, struct timer *t)
{
    *a = (struct alarm){.timer = t};
    (void)sem_init(&a->fired, 0, 0);
}

Test(timer, fires_at_the_deadline_and_never_before, .timeout = 20)
{
    struct timer *t = timer_start();
    struct alarm a;
    alarm_init(&a, t);
    for (unsigned i = 0; i < 20; i++) {
        uint64_t due = timer_now_ns() + i * 200000;
        timer_at(t, &a.node, due, alarm_fn);
        (void)sem_wait(&a.fired);
        cr_assert_geq(a.at_ns, due);
    }
    timer_close(t);
}

Test(timer, fires_in_order_of_deadline_whatever_the_order_of_arming, .timeout = 20)
{
    struct timer *t = timer_start();
    struct alarm a[3];
    int order = 0;
    uint64_t base = timer_now_ns() + 20 * MS_NS;
    for (int i = 0; i < 3; i++) {
        alarm_init(&a[i], t);
        a[i].order = &order;
        a[i].number = i + 1;
    }
    timer_at(t, &a[2].node, base + 3 * MS_NS, alarm_fn);
    timer_at(t, &a[0].node, base + 1 * MS_NS, alarm_fn);
    timer_at(t, &a[1].node, base + 9 * MS_NS, alarm_fn);
    timer_at(t, &a[1].node, base + 2 * MS_NS, alarm_fn); /* re-armed */
    for (int i = 0; i < 3; i++) {
        (void)sem_wait(&a[i].fired);
    }
    cr_assert_eq(order, 123);
    timer_close(t);
}

Test(timer, lets_a_callback_rearm_its_node, .timeout = 20)
{
    struct timer *t = timer_start();
    struct alarm a;
    alarm_init(&a, t);
    a.repeats = 100;
    timer_at(t, &a.node, 0, alarm_fn);
    (void)sem_wait(&a.fired);
    cr_assert_eq(a.repeats, -1);
    timer_close(t);
}

Test(timer, does_not_fire_what_was_cancelled, .timeout = 20)
{
    struct timer *t = timer_start();
    struct alarm a;
    struct alarm later;
    alarm_init(&a, t);
    alarm_init(&later, t);
    uint64_t due = timer_now_ns() + 5 * MS_NS;
    timer_at(t, &a.node, due, alarm_fn);
    timer_at(t, &later.node, due + 1, alarm_fn);
    cr_assert(timer_cancel(t, &a.node));
    cr_assert_not(timer_cancel(t, &a.node));
    (void)sem_wait(&later.fired);
    cr_assert_eq(a.at_ns, 0);
    timer_close(t);
}

static void slow_fn(struct timer_node *n)
{
    struct alarm *a = LIST_ENTRY(n, struct alarm, node);
    (void)sem_post(&a->fired);
    uint64_t end = timer_now_ns() + 3 * MS_NS;
    while (timer_now_ns() < end) {
    }
    timer_at(a->timer, n, 0, slow_fn);
    a->at_ns = timer_now_ns();
}

Test(timer, cancel_waits_for_the_running_callback_and_beats_its_rearming, .timeout = 20)
{
    struct timer *t = timer_start();
    struct alarm a;
    alarm_init(&a, t);
    timer_at(t, &a.node, 0, slow_fn);
    (void)sem_wait(&a.fired);
    (void)timer_cancel(t, &a.node);
    cr_assert_neq(a.at_ns, 0, "the callback had returned");
    cr_assert_not(heap_node_in(&a.node.heap));
    timer_close(t);
}

Test(timer, forgets_armed_nodes_at_close)
{
    struct timer *t = timer_start();
    struct alarm a;
    alarm_init(&a, t);
    timer_at(t, &a.node, timer_now_ns() + 3600 * SEC_NS, alarm_fn);
    timer_close(t);
    cr_assert_eq(a.at_ns, 0);
    cr_assert_not(heap_node_in(&a.node.heap));
}
