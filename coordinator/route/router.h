/* Carries one request to the leader of a range and its answer back, over leader changes, splits,
 * lost messages and broken links.
 *
 *              build                        answer
 *   owner --route_send--> [queued] --out--> [sent] --OK, or a final refusal--> done
 *                            ^                |
 *                            |  NOT_LEADER, UNAVAILABLE, CLOCK, unknown range: next node, after 1,
 * 2, 4 .. 50 ms |  STALE_DESCRIPTOR: learned; sent to the new range if one covers the whole
 * request, else done |  no answer in 500 ms, link lost: sent again (every operation is idempotent
 * by transaction id)
 *                            `----------------'
 *   deadline: done(UNAVAILABLE): nobody who leads the range answered; route_explain has the words
 *
 * Pure; the time is in the arguments. A route_request is embedded by its owner and lives until done
 * was called or route_cancel. */
#ifndef SPAN_COORDINATOR_ROUTE_ROUTER_H
#define SPAN_COORDINATOR_ROUTE_ROUTER_H

#include "base/heap.h"
#include "base/list.h"
#include "base/metrics.h"
#include "coordinator/route/directory.h"
#include "truetime/truetime.h"
#include "txn/txn_codec.h"

struct router;
struct route_request;

/* Fills the operation's own fields of q (op, txn, spans, writes ...; q->range is set: the term
 * token depends on it). What it points to must live until it returns to the router, which encodes
 * at once. */
typedef void route_build_fn(struct route_request *rr, struct range_request *q);
/* OK or the refusal with resp (borrowed), or a status without resp (NULL): UNAVAILABLE, CLOSED, or
 * STALE_DESCRIPTOR when no single range covers the request any more. The request is out of the
 * router; it may be sent again or freed. */
typedef void route_done_fn(struct route_request *rr, const struct tt_now *now, span_status st,
                           const struct range_response *resp);

struct route_request {
    /* the owner's; not changed while in the router */
    struct slice key; /* goes to the range that covers it; with range != 0 it may be empty */
    struct slice lo;  /* the range must cover [lo, hi) too when `box` (hi empty: to the end of the
                         key space) */
    struct slice hi;
    bool box;
    bool hi_point;          /* hi itself must be covered, too */
    range_id range;         /* not 0: to this range whatever it covers (administration) */
    bool follower_ok;       /* the own replica may answer: asked first */
    bool silent;            /* success is not answered (OP_PREPARE): sent again until cancelled */
    bool steady;            /* resend every ROUTE_RESEND_NS; else the interval doubles */
    uint64_t deadline_ns;   /* monotonic */
    uint64_t budget_end_ns; /* monotonic deadline told to the range (C8); 0: deadline_ns */
    uint64_t budget_max_ns; /* of one sending; 0: no less than until then */
    route_build_fn *build;
    route_done_fn *done;

    /* to read for the owner */
    range_id target; /* range it was last sent to */
    node_id node;    /* node it was last sent to; 0: never sent */
    unsigned
        unanswered; /* sends that nobody has answered: they may still have an effect (rule C11) */

    /* the router's */
    struct list link; /* router->waiting or router->sent */
    struct heap_node timer;
    uint64_t id;
    uint64_t resend_ns;
    uint64_t backoff_ns;
    uint64_t unknown_ns; /* since when no node knows its range; 0: it is known */
    unsigned hops;       /* immediate redirections since the last wait */
    unsigned turn;       /* round robin over members */
    node_id tried;       /* last node that refused */
    bool in;
    bool waiting;               /* for its timer to be sent; else sent and waiting for an answer */
    span_status refused;        /* by the range's leader, as it could not serve then; OK: never */
    uint64_t follower_until_ns; /* WOULD_WAIT at the own replica: patience */
    bool follower_off;
    bool suspect;       /* it did not answer in time: another one is asked who leads */
    span_status failed; /* how it is to end at the next tick */
};

#define ROUTE_RESEND_NS      (500 * MS_NS)
#define ROUTE_BACKOFF_MAX_NS (50 * MS_NS)

struct router_config {
    node_id self;
    uint64_t incarnation;
    const node_id *nodes; /* borrowed */
    size_t node_count;
    uint64_t first_id; /* of requests */
    void *out_ctx;
    struct buf *(*out)(void *ctx, node_id to, unsigned cls);
    struct metrics *metrics; /* may be NULL */
};

struct router *router_new(const struct router_config *cfg, struct directory *dir);
void router_free(struct router *r); /* empty */

/* Takes rr; `done` is never called from inside this call, at the earliest by the next router_tick.
 */
void route_send(struct router *r, const struct tt_now *now, struct route_request *rr);
/* For people: what kept a request that ended with UNAVAILABLE from being answered. The range that
 * it was for; 0: not known. */
range_id route_explain(const struct router *r, const struct route_request *rr, char *out,
                       size_t size);
/* Takes it out without done. Harmless when it is not in. */
void route_cancel(struct router *r, struct route_request *rr);

void router_response(struct router *r, const struct tt_now *now, node_id from,
                     const struct range_response *resp);
void router_tick(struct router *r, const struct tt_now *now);
uint64_t router_deadline_ns(const struct router *r);
void router_peer_lost(struct router *r, const struct tt_now *now, node_id node);
void router_peer_up(struct router *r, const struct tt_now *now, node_id node);
/* Descriptors of the own store (`own`: their leader hints are taken when they changed) or of
 * another node: learned, and what waited goes at once. */
void router_learn(struct router *r, const struct tt_now *now, const struct range_descriptor *all,
                  size_t count, bool own);
/* Every request ends with done(CLOSED). */
void router_close(struct router *r, const struct tt_now *now);

/* Nobody here knows who covers a key: every node is asked what it hosts (at most every 50 ms); the
 * answers are for router_learn. */
void router_ask_ranges(struct router *r, const struct tt_now *now);

/* config.nodes, which is the owner's array, has so many now. */
void router_set_node_count(struct router *r, size_t count);
size_t router_count(const struct router *r);
/* The node to ask for the range, as the router would choose it; 0: range not known. */
node_id router_leader_of(const struct router *r, struct slice key);
struct directory *router_directory(struct router *r);
const struct router_config *router_cfg(const struct router *r);

#endif
