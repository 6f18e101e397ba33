/* Requests, granted and waiting, hang in two kinds of places: those for one key in the bucket of
 * that key (a hash map), those for a span in one list. A point request is checked against its
 * bucket and the spans, a span request against everything. Waiting requests of a place are kept in
 * age order.
 *
 * A request conflicts with another owner's overlapping one, of which at least one is exclusive, if
 * that one is granted, or waits and is older (rule C5: the queue counts). So a younger request
 * never overtakes an older waiter, and an older one passes younger waiters. */
#include "txn/lock_table.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/map.h"

struct request {
    struct list in_place; /* bucket or spans: granted ones first, then waiting ones in age order */
    struct list in_owner;
    struct lock_owner *owner;
    struct bucket *bucket; /* NULL: a span */
    struct buf start;
    struct buf end;
    enum lock_mode mode;
    bool granted;
    uint64_t since_ns;
};

struct bucket {
    struct list requests;
    struct list dirty;
    struct buf key;
};

struct lock_table {
    struct mapb buckets;
    struct list spans;
    struct list dirty;   /* buckets from which something was removed */
    struct list granted; /* owners to report */
    bool spans_dirty;
    size_t count;
    size_t waiting;
    uint64_t epoch;
};

#define REQUEST_OF(it, member) LIST_ENTRY(it, struct request, member)

struct lock_table *lock_table_new(void)
{
    struct lock_table *t = SPAN_NEW(struct lock_table);
    mapb_init(&t->buckets);
    list_init(&t->spans);
    list_init(&t->dirty);
    list_init(&t->granted);
    return t;
}

void lock_table_free(struct lock_table *t)
{
    if (t == NULL) {
        return;
    }
    REQUIRE(t->count == 0);
    mapb_deinit(&t->buckets);
    span_free(t);
}

void lock_owner_init(struct lock_owner *o, const struct txn_id *txn, const struct txn_id *age)
{
    *o = (struct lock_owner){.txn = *txn, .age = *age};
    list_init(&o->locks);
    list_init(&o->granted);
}

/* Ages are equal only for tries of one transaction; its id breaks the tie. */
static bool is_older(const struct lock_owner *a, const struct lock_owner *b)
{
    int c = txn_id_cmp(&a->age, &b->age);
    return c != 0 ? c < 0 : txn_id_cmp(&a->txn, &b->txn) < 0;
}

static struct span span_of(const struct request *r)
{
    return (struct span){buf_slice(&r->start), buf_slice(&r->end), r->bucket != NULL};
}

static bool span_has(const struct span *s, struct slice key)
{
    return slice_cmp(key, s->start) >= 0 && (s->end.size == 0 || slice_cmp(key, s->end) < 0);
}

static bool overlaps(const struct span *a, const struct span *b)
{
    if (a->point && b->point) {
        return slice_eq(a->start, b->start);
    }
    if (a->point) {
        return span_has(b, a->start);
    }
    if (b->point) {
        return span_has(a, b->start);
    }
    return (b->end.size == 0 || slice_cmp(a->start, b->end) < 0) &&
           (a->end.size == 0 || slice_cmp(b->start, a->end) < 0);
}

static bool covers(const struct span *outer, const struct span *inner)
{
    if (outer->point) {
        return inner->point && slice_eq(outer->start, inner->start);
    }
    if (inner->point) {
        return span_has(outer, inner->start);
    }
    return slice_cmp(outer->start, inner->start) <= 0 &&
           (outer->end.size == 0 ||
            (inner->end.size != 0 && slice_cmp(inner->end, outer->end) <= 0));
}

/* What a request is, before or after it has a place. */
struct ask {
    const struct lock_owner *owner;
    struct span span;
    enum lock_mode mode;
};

static bool conflicts(const struct ask *a, const struct request *r)
{
    if (r->owner == a->owner || (a->mode == LOCK_SHARED && r->mode == LOCK_SHARED)) {
        return false;
    }
    if (!r->granted && !is_older(r->owner, a->owner)) {
        return false;
    }
    struct span s = span_of(r);
    return overlaps(&a->span, &s);
}

/* First request in `place` that conflicts. */
static struct request *conflict_in(const struct list *place, const struct ask *a)
{
    LIST_EACH(it, place)
    {
        struct request *r = REQUEST_OF(it, in_place);
        if (conflicts(a, r)) {
            return r;
        }
    }
    return NULL;
}

/* Looks at every place that the span meets, until visit says stop: its result is returned. */
typedef struct request *visit_fn(const struct list *place, const struct ask *a, void *ctx);

static struct request *visit_places(const struct lock_table *t, const struct ask *a,
                                    visit_fn *visit, void *ctx)
{
    struct request *r = visit(&t->spans, a, ctx);
    if (r != NULL) {
        return r;
    }
    if (a->span.point) {
        const struct bucket *b = mapb_get(&t->buckets, a->span.start);
        return b == NULL ? NULL : visit(&b->requests, a, ctx);
    }
    size_t pos = 0;
    const struct bucket *b;
    while ((b = mapb_next(&t->buckets, &pos, NULL)) != NULL) {
        if (span_has(&a->span, buf_slice(&b->key)) && (r = visit(&b->requests, a, ctx)) != NULL) {
            return r;
        }
    }
    return NULL;
}

static struct request *visit_conflict(const struct list *place, const struct ask *a, void *ctx)
{
    (void)ctx;
    return conflict_in(place, a);
}

static struct request *find_conflict(const struct lock_table *t, const struct ask *a)
{
    return visit_places(t, a, visit_conflict, NULL);
}

/* What kinds of requests are in the way of an ask. */
struct in_the_way {
    bool any;
    bool older;       /* a holder, or one that waits ahead: only older ones do */
    bool staying;     /* an older one that is not about to leave */
    bool unwoundable; /* a younger holder that will not give way */
};

static struct request *visit_kinds(const struct list *place, const struct ask *a, void *ctx)
{
    struct in_the_way *w = ctx;
    LIST_EACH(it, place)
    {
        const struct request *r = REQUEST_OF(it, in_place);
        if (conflicts(a, r)) {
            bool older = is_older(r->owner, a->owner);
            w->any = true;
            w->older = w->older || older;
            w->staying = w->staying || (older && !(r->granted && r->owner->leaving));
            w->unwoundable = w->unwoundable || (!older && r->owner->unwoundable);
        }
    }
    return NULL;
}

/* A younger holder in the way whose wound was not asked for in this epoch yet. */
static struct request *visit_victim(const struct list *place, const struct ask *a, void *ctx)
{
    const uint64_t *epoch = ctx;
    LIST_EACH(it, place)
    {
        struct request *r = REQUEST_OF(it, in_place);
        if (r->granted && r->owner->asked != *epoch && conflicts(a, r) &&
            !is_older(r->owner, a->owner)) {
            return r;
        }
    }
    return NULL;
}

/* ---- places ---- */

static void place_insert(struct list *place, struct request *r)
{
    struct list *at = place->next;
    while (at != place) {
        const struct request *other = REQUEST_OF(at, in_place);
        if (r->granted ? !other->granted : !other->granted && is_older(r->owner, other->owner)) {
            break;
        }
        at = at->next;
    }
    list_insert_before(at, &r->in_place);
}

static struct request *add(struct lock_table *t, const struct lock_request *q, bool granted)
{
    struct request *r = SPAN_NEW(struct request);
    r->owner = q->owner;
    r->mode = q->mode;
    r->granted = granted;
    r->since_ns = q->now_ns;
    buf_set(&r->start, q->span.start);
    buf_set(&r->end, q->span.end);
    if (q->span.point) {
        struct bucket *b = mapb_get(&t->buckets, q->span.start);
        if (b == NULL) {
            b = SPAN_NEW(struct bucket);
            list_init(&b->requests);
            list_init(&b->dirty);
            buf_set(&b->key, q->span.start);
            mapb_put(&t->buckets, q->span.start, b);
        }
        r->bucket = b;
        place_insert(&b->requests, r);
    } else {
        place_insert(&t->spans, r);
    }
    list_push_back(&q->owner->locks, &r->in_owner);
    if (granted) {
        q->owner->held_count++;
    } else {
        q->owner->waiting_count++;
        t->waiting++;
    }
    t->count++;
    return r;
}

static void remove_request(struct lock_table *t, struct request *r)
{
    list_remove(&r->in_place);
    list_remove(&r->in_owner);
    if (r->granted) {
        r->owner->held_count--;
    } else {
        r->owner->waiting_count--;
        t->waiting--;
    }
    t->count--;
    if (r->bucket != NULL) {
        if (list_is_empty(&r->bucket->dirty)) {
            list_push_back(&t->dirty, &r->bucket->dirty);
        }
    } else {
        t->spans_dirty = true;
    }
    buf_deinit(&r->start);
    buf_deinit(&r->end);
    span_free(r);
}

/* ---- granting after something went ---- */

static void grant(struct lock_table *t, struct list *place, struct request *r)
{
    list_remove(&r->in_place);
    r->granted = true;
    place_insert(place, r);
    r->owner->held_count++;
    r->owner->waiting_count--;
    t->waiting--;
    if (r->owner->waiting_count == 0) {
        list_remove(&r->owner->granted);
        list_push_back(&t->granted, &r->owner->granted);
    }
}

static void grant_in(struct lock_table *t, struct list *place)
{
    LIST_EACH_SAFE(it, tmp, place)
    {
        struct request *r = REQUEST_OF(it, in_place);
        if (r->granted) {
            continue;
        }
        struct ask a = {r->owner, span_of(r), r->mode};
        if (find_conflict(t, &a) == NULL) {
            grant(t, place, r);
        } else if (r->mode == LOCK_EXCLUSIVE && r->bucket != NULL) {
            break; /* everyone behind it on this key conflicts with it */
        }
    }
}

static void settle(struct lock_table *t)
{
    if (t->spans_dirty) {
        /* A span went: anything may have become free. */
        t->spans_dirty = false;
        size_t pos = 0;
        struct bucket *b;
        while ((b = mapb_next(&t->buckets, &pos, NULL)) != NULL) {
            grant_in(t, &b->requests);
        }
    }
    while (!list_is_empty(&t->dirty)) {
        struct bucket *b = LIST_ENTRY(t->dirty.next, struct bucket, dirty);
        list_remove(&b->dirty);
        grant_in(t, &b->requests);
        if (list_is_empty(&b->requests)) {
            mapb_remove(&t->buckets, buf_slice(&b->key));
            buf_deinit(&b->key);
            span_free(b);
        }
    }
    grant_in(t, &t->spans);
}

/* ---- the interface ---- */

bool lock_table_holds(const struct lock_table *t, const struct lock_owner *o,
                      const struct span *span, enum lock_mode mode)
{
    (void)t;
    LIST_EACH(it, &o->locks)
    {
        const struct request *r = REQUEST_OF(it, in_owner);
        struct span s = span_of(r);
        if (r->granted && r->mode >= mode && covers(&s, span)) {
            return true;
        }
    }
    return false;
}

/* The owner's own request over exactly this span, or NULL. Only its bucket or its spans are looked
 * at, so that a transaction with many locks stays cheap. */
static struct request *own_request(const struct lock_table *t, const struct lock_request *q,
                                   bool *held)
{
    const struct bucket *b = q->span.point ? mapb_get(&t->buckets, q->span.start) : NULL;
    struct request *waiting = NULL;
    *held = false;
    if (b != NULL) {
        LIST_EACH(it, &b->requests)
        {
            struct request *r = REQUEST_OF(it, in_place);
            if (r->owner != q->owner || r->mode < q->mode) {
                continue;
            }
            *held = *held || r->granted;
            waiting = r->granted ? waiting : r;
        }
    }
    LIST_EACH(it, &t->spans)
    {
        struct request *r = REQUEST_OF(it, in_place);
        struct span s = span_of(r);
        if (r->owner == q->owner && r->mode >= q->mode && covers(&s, &q->span)) {
            *held = *held || r->granted;
            waiting = r->granted ? waiting : r;
        }
    }
    return waiting;
}

enum lock_result lock_table_acquire(struct lock_table *t, const struct lock_request *q,
                                    lock_wound_fn *wound, void *ctx)
{
    bool held;
    struct request *mine = own_request(t, q, &held);
    if (held) {
        return LOCK_GRANTED;
    }
    if (mine != NULL && !q->commit_phase) {
        return LOCK_WAITING;
    }
    struct ask a = {q->owner, q->span, q->mode};
    struct in_the_way way = {0};
    (void)visit_places(t, &a, visit_kinds, &way);
    if (q->commit_phase && way.staying) {
        /* Rule C4: at prepare and commit nobody waits for an older one; one whose record is in the
         * log waits for nobody itself, so no cycle can go through it. */
        return LOCK_REFUSED;
    }
    if (!q->may_wait && (way.older || way.unwoundable)) {
        return LOCK_REFUSED;
    }
    if (!way.any && mine == NULL) {
        (void)add(t, q, true);
        return LOCK_GRANTED;
    }
    /* It has its place in the queue before anybody is wounded (rule C5): else what a victim lets go
     * of would be granted to younger waiters, which would have to be wounded in turn. */
    bool told_later = q->owner->waiting_count > 0 || !list_is_empty(&q->owner->granted);
    bool queued = mine == NULL;
    if (queued) {
        mine = add(t, q, false);
    }
    uint64_t epoch = ++t->epoch;
    const struct request *r;
    while ((r = visit_places(t, &a, visit_victim, &epoch)) != NULL) {
        struct lock_owner *victim = r->owner;
        victim->asked = epoch;
        (void)wound(ctx, victim, q->owner);
    }
    if (mine->granted) {
        if (!told_later) {
            list_remove(&q->owner->granted); /* the caller hears it at once */
        }
        return LOCK_GRANTED;
    }
    if (!q->may_wait) { /* a victim that was expected to give way did not */
        if (queued) {
            remove_request(t, mine);
            settle(t);
        }
        return LOCK_REFUSED;
    }
    return LOCK_WAITING;
}

void lock_table_release(struct lock_table *t, struct lock_owner *o)
{
    LIST_EACH_SAFE(it, tmp, &o->locks)
    {
        remove_request(t, REQUEST_OF(it, in_owner));
    }
    list_remove(&o->granted);
    settle(t);
    ENSURE(o->held_count == 0 && o->waiting_count == 0);
}

void lock_table_cancel_waits(struct lock_table *t, struct lock_owner *o)
{
    LIST_EACH_SAFE(it, tmp, &o->locks)
    {
        struct request *r = REQUEST_OF(it, in_owner);
        if (!r->granted) {
            remove_request(t, r);
        }
    }
    list_remove(&o->granted);
    settle(t);
}

struct lock_owner *lock_table_take_granted(struct lock_table *t)
{
    if (list_is_empty(&t->granted)) {
        return NULL;
    }
    struct lock_owner *o = LIST_ENTRY(t->granted.next, struct lock_owner, granted);
    list_remove(&o->granted);
    return o;
}

void lock_table_each_of(const struct lock_table *t, const struct lock_owner *o, lock_each_fn *fn,
                        void *ctx)
{
    (void)t;
    LIST_EACH(it, &o->locks)
    {
        const struct request *r = REQUEST_OF(it, in_owner);
        struct span s = span_of(r);
        fn(ctx, o, &s, r->mode, r->granted, r->since_ns);
    }
}

static void each_in(const struct list *place, lock_each_fn *fn, void *ctx)
{
    LIST_EACH(it, place)
    {
        const struct request *r = REQUEST_OF(it, in_place);
        struct span s = span_of(r);
        fn(ctx, r->owner, &s, r->mode, r->granted, r->since_ns);
    }
}

void lock_table_each(const struct lock_table *t, lock_each_fn *fn, void *ctx)
{
    size_t pos = 0;
    const struct bucket *b;
    while ((b = mapb_next(&t->buckets, &pos, NULL)) != NULL) {
        each_in(&b->requests, fn, ctx);
    }
    each_in(&t->spans, fn, ctx);
}

const struct lock_owner *lock_table_blocker(const struct lock_table *t, const struct lock_owner *o)
{
    LIST_EACH(it, &o->locks)
    {
        const struct request *r = REQUEST_OF(it, in_owner);
        if (!r->granted) {
            struct ask a = {r->owner, span_of(r), r->mode};
            const struct request *c = find_conflict(t, &a);
            if (c != NULL) {
                return c->owner;
            }
        }
    }
    return NULL;
}

bool lock_owner_reaches(const struct lock_owner *o, struct slice key)
{
    LIST_EACH(it, &o->locks)
    {
        const struct request *r = REQUEST_OF(it, in_owner);
        if (r->bucket != NULL ? slice_cmp(buf_slice(&r->start), key) >= 0
                              : r->end.size == 0 || slice_cmp(buf_slice(&r->end), key) > 0) {
            return true;
        }
    }
    return false;
}

size_t lock_table_waiting(const struct lock_table *t)
{
    return t->waiting;
}

size_t lock_table_count(const struct lock_table *t)
{
    return t->count;
}
