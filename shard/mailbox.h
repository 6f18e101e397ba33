/* The only cross-thread queue: many producers, one consumer (a worker's event loop).
 *
 * Items are intrusive: the caller embeds struct mailbox_item in its own event and gets it back with
 * LIST_ENTRY-like arithmetic (MAILBOX_ENTRY). A post is one short lock; the consumer takes the
 * whole list out in one lock, so at saturation the cost per item is a few tens of nanoseconds and
 * nobody is woken: producers signal only when the consumer sleeps, once (a thread hand-off costs 50
 * us, DESIGN section 3). Order: items of one producer come out in the order it posted them, and so
 * do items whose posts are ordered by anything else the producers share.
 *
 * The queue is bounded in bytes, the bytes being what the poster declares in the item. Only
 * mailbox_try_post honours the bound; mailbox_post does not, because work that frees locks, answers
 * and durability notices are never refused (rule I5). */
#ifndef SPAN_SHARD_MAILBOX_H
#define SPAN_SHARD_MAILBOX_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mailbox_item {
    struct mailbox_item *next; /* the mailbox's while posted; then the list mailbox_take_all gave */
    size_t bytes;              /* set by the poster: what the item weighs against the bound */
};

#define MAILBOX_ENTRY(item, type, member) ((type *)(void *)((char *)(item)-offsetof(type, member)))

#define MAILBOX_FOREVER UINT64_MAX

struct mailbox;

struct mailbox_stats {
    uint64_t posts;
    uint64_t wakeups; /* posts that had to wake the consumer */
    uint64_t batches; /* take_all calls that returned items */
    uint64_t refused; /* try_posts beyond the bound */
    uint64_t bytes;   /* queued now */
    uint64_t items;   /* queued now */
};

/* bytes_max: bound for mailbox_try_post; 0: none. Owned by the caller. */
struct mailbox *mailbox_new(size_t bytes_max);
/* No thread may use the mailbox any more, and it must be empty (take what a close left first). */
void mailbox_free(struct mailbox *m);

/* Any thread, never blocks (but for the short lock). On OK the item belongs to the mailbox until it
 * is taken; on CLOSED it stays the caller's. */
SPAN_CHECKED span_status mailbox_post(struct mailbox *m, struct mailbox_item *item);
/* The same within the bound: OVERLOADED (item stays the caller's) when the bytes queued would pass
 * it. An item always fits an empty mailbox. */
SPAN_CHECKED span_status mailbox_try_post(struct mailbox *m, struct mailbox_item *item);

/* The consumer's thread only. Takes everything queued, as a list linked by `next`, first posted
 * first; the items are then the caller's. With nothing queued, waits until something is, the
 * mailbox is closed, or CLOCK_MONOTONIC reaches until_ns (0: does not wait; MAILBOX_FOREVER: no
 * deadline), and returns NULL if nothing came. A woken wait is precise: the thread's timer slack is
 * set to 1 ns by its first call (20 us late instead of 75). After a close it returns what was left,
 * then NULL at once: a NULL answer is when to look at mailbox_is_closed. */
struct mailbox_item *mailbox_take_all(struct mailbox *m, uint64_t until_ns);

/* Any thread. Later posts get CLOSED; the consumer wakes and can still take what was queued. */
void mailbox_close(struct mailbox *m);
bool mailbox_is_closed(struct mailbox *m);

/* Any thread; a moment's value. */
size_t mailbox_bytes(struct mailbox *m);
void mailbox_stats_get(struct mailbox *m, struct mailbox_stats *out);

#endif
