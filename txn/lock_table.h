/* Lock table of one range's leader: S and X locks on points and spans, wait queues in age order,
 * wound-wait. Called by shard/range/replica.c only; in the leader's memory only (losing the leader
 * drops unprepared locks).
 *
 * Rules. Conflicts count holders and the queued requests ahead (C5). The queue is in age order; an
 * upgrade S -> X goes first among equals; a compatible request passes a waiter only if it is older.
 * A request that meets younger holders wounds them (they are returned, the caller decides what that
 * means: an unprepared one loses its locks at once, a prepared one is waited for and its
 * coordinator gets the wound, C4); one that meets older holders waits. In the commit phase
 * (`commit_phase`) nobody waits for an older holder, unless that is leaving: the request is refused
 * instead (C4, second model). A transaction never conflicts with itself; holding X covers S; a span
 * lock covers the points in it. */
#ifndef SPAN_TXN_LOCK_TABLE_H
#define SPAN_TXN_LOCK_TABLE_H

#include "base/list.h"
#include "base/status.h"
#include "txn/txn_types.h"

struct lock_table;

/* One per transaction at this range, embedded in the caller's record. */
struct lock_owner {
    struct txn_id txn;
    struct txn_id age;
    bool unwoundable; /* prepared, or its record has been proposed: it is waited for */
    bool leaving;     /* its record is in the log and it waits for nobody: its locks go soon */
    uint32_t held_count;
    uint32_t waiting_count; /* requests not granted yet */
    /* internal */
    struct list locks;   /* its locks, held and wanted */
    struct list granted; /* in the table's list while its last wait was granted and not taken */
    uint64_t asked;      /* the acquire call in which its wound was asked for */
};

enum lock_result {
    LOCK_GRANTED,
    LOCK_WAITING, /* queued; lock_table_take_granted tells when all of the owner's requests are
                     granted */
    LOCK_REFUSED, /* commit phase and an older holder or waiter is in the way, or !may_wait */
};

struct lock_table *lock_table_new(void);
void lock_table_free(struct lock_table *t); /* owners must have been released */

void lock_owner_init(struct lock_owner *o, const struct txn_id *txn, const struct txn_id *age);

struct lock_request {
    struct lock_owner *owner;
    struct span span; /* copied */
    enum lock_mode mode;
    bool commit_phase;
    bool may_wait;
    uint64_t now_ns; /* monotonic, for SHOW LOCKS */
};

/* Called once for each younger holder in the way of a request, also an unwoundable one: returns
 * true if the victim's locks are gone when it returns (the caller released it), false if it must be
 * waited for (prepared). It may release any owner but `by`, and must not acquire. */
typedef bool lock_wound_fn(void *ctx, struct lock_owner *victim, const struct lock_owner *by);

enum lock_result lock_table_acquire(struct lock_table *t, const struct lock_request *req,
                                    lock_wound_fn *wound, void *ctx);

/* Releases everything the owner holds or waits for, and forgets the owner. Requests of others that
 * become grantable are granted; owners whose last waiting request was granted are reported by
 * take_granted. */
void lock_table_release(struct lock_table *t, struct lock_owner *o);
/* Drops only the owner's waiting requests (deadline, wound). */
void lock_table_cancel_waits(struct lock_table *t, struct lock_owner *o);

/* Next owner whose waiting_count fell to 0 since the last call; NULL when none is left. */
struct lock_owner *lock_table_take_granted(struct lock_table *t);

/* The owner has a granted lock of at least that mode over the whole span. */
bool lock_table_holds(const struct lock_table *t, const struct lock_owner *o,
                      const struct span *span, enum lock_mode mode);

/* Each held lock of an owner, in key order: for the prepare record (C10) and SHOW LOCKS. */
typedef void lock_each_fn(void *ctx, const struct lock_owner *o, const struct span *span,
                          enum lock_mode mode, bool held, uint64_t since_ns);
void lock_table_each_of(const struct lock_table *t, const struct lock_owner *o, lock_each_fn *fn,
                        void *ctx);
void lock_table_each(const struct lock_table *t, lock_each_fn *fn, void *ctx);

/* One holder that conflicts with a waiting request of o; NULL if it waits for nothing. For SHOW
 * LOCKS. */
const struct lock_owner *lock_table_blocker(const struct lock_table *t, const struct lock_owner *o);

/* Any lock of any owner (except `except`, may be NULL) at or beyond key / below key: for splits. */
bool lock_owner_reaches(const struct lock_owner *o, struct slice key);
size_t lock_table_count(const struct lock_table *t);
size_t lock_table_waiting(const struct lock_table *t); /* requests not granted yet */

#endif
