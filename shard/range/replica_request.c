/* Requests of gateways: the checks every one passes, parking those that must wait, running them
 * again, refusing. A parked request keeps its encoded body and runs again from the start: handlers
 * are written so that what they did before (locks they got, the record they proposed) is found and
 * not repeated. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/planted.h"
#include "shard/range/replica.h"

void replica_respond(struct replica *r, const struct range_request *q, struct range_response *resp)
{
    resp->request_id = q->request_id;
    resp->op = q->op;
    resp->range = r->id;
    resp->generation = r->generation;
    resp->term = raft_current_term(r->raft);
    resp->leader = raft_leader(r->raft);
    msg_encode_response(store_out(r->store, q->gateway, STORE_CONTROL), resp);
}

void replica_refuse(struct replica *r, const struct range_request *q, span_status st,
                    const char *text)
{
    struct range_response resp = {.status = (uint16_t)st, .text = slice_str(text)};
    struct range_descriptor d;
    if (st == SPAN_STALE_DESCRIPTOR) {
        /* Rule F4: what is served here, so that the gateway learns the other side from who covers
         * it. */
        struct range_descriptor *all;
        resp.descriptor_count = store_descriptors_of(r->store, &all);
        resp.descriptors = all;
    } else if (st == SPAN_NOT_LEADER) {
        replica_descriptor(r, &d);
        resp.descriptor_count = 1;
        resp.descriptors = &d;
    }
    replica_respond(r, q, &resp);
}

void replica_park(struct replica *r, const struct tt_now *now, struct slice body,
                  const struct range_request *q, enum rpark why, struct rtxn *txn)
{
    struct rparked *p = SPAN_NEW(struct rparked);
    p->why = why;
    p->txn = txn;
    p->deadline_ns = now->mono_ns + q->budget_ns;
    p->gateway = q->gateway;
    buf_set(&p->body, body);
    struct list *l = &r->wait_lease;
    switch (why) {
    case RPARK_LOCKS:
        REQUIRE(txn != NULL);
        l = &txn->parked;
        break;
    case RPARK_FLIGHT:
        l = &r->wait_flight;
        break;
    case RPARK_LEASE:
        break;
    }
    if (why == RPARK_LOCKS) {
        replica_hurry(r); /* outcomes that waited for company may be what it waits for */
    }
    list_push_back(l, &p->node);
    heap_insert(&r->deadlines, &p->timer, p->deadline_ns);
}

static void unpark(struct replica *r, struct rparked *p)
{
    list_remove(&p->node);
    heap_remove(&r->deadlines, &p->timer);
}

static void parked_free(struct rparked *p)
{
    buf_deinit(&p->body);
    span_free(p);
}

/* Runs one parked request again with what is left of its time. */
static void run_again(struct replica *r, const struct tt_now *now, struct rparked *p)
{
    struct arena *a = store_request_arena(r->store);
    struct range_request q;
    arena_clear(a);
    span_status st = msg_decode_request(buf_slice(&p->body), a, &q);
    INVARIANT(st == SPAN_OK);
    if (p->deadline_ns <= now->mono_ns) {
        q.budget_ns = 0;
    } else {
        q.budget_ns = p->deadline_ns - now->mono_ns;
    }
    replica_request(r, now, buf_slice(&p->body), &q);
    parked_free(p);
}

void replica_rerun(struct replica *r, const struct tt_now *now, struct list *waiting)
{
    struct list all;
    list_init(&all);
    LIST_EACH_SAFE(it, tmp, waiting)
    {
        unpark(r, LIST_ENTRY(it, struct rparked, node));
        list_push_back(&all, it);
    }
    while (!list_is_empty(&all)) {
        struct list *it = all.next;
        list_remove(it);
        run_again(r, now, LIST_ENTRY(it, struct rparked, node));
    }
}

void replica_wake_granted(struct replica *r, const struct tt_now *now)
{
    struct lock_owner *o;
    while ((o = lock_table_take_granted(r->locks)) != NULL) {
        /* The transaction may end while its requests run: only the copy of its list is used. */
        replica_rerun(r, now, &RTXN_OF_OWNER(o)->parked);
    }
}

void replica_expire_parked(struct replica *r, const struct tt_now *now)
{
    struct heap_node *n;
    while ((n = heap_min(&r->deadlines)) != NULL && n->key <= now->mono_ns) {
        struct rparked *p = (struct rparked *)(void *)((char *)n - offsetof(struct rparked, timer));
        struct arena *a = store_request_arena(r->store);
        struct range_request q;
        unpark(r, p);
        arena_clear(a);
        span_status st = msg_decode_request(buf_slice(&p->body), a, &q);
        INVARIANT(st == SPAN_OK);
        if (p->why == RPARK_LOCKS && p->txn != NULL) {
            /* All its waits go: others of its requests ask for theirs again. */
            struct rtxn *t = p->txn;
            lock_table_cancel_waits(r->locks, &t->owner);
            r->rerun_locks = true;
            rtxn_unpark(r, t);
            if (q.op == OP_COMMIT1 || q.op == OP_PREPARE) { /* rule C12: for good */
                rtxn_forget(r, now, &q.txn, SPAN_DEADLINE);
                rtxn_free(r, now, t);
            }
        }
        if (q.op == OP_COORDINATE && p->why == RPARK_LOCKS) {
            q.budget_ns = 0; /* participants may be prepared: this ends in an abort record */
            replica_op_coordinate(r, now, buf_slice(&p->body), &q);
        } else {
            if (q.op == OP_PREPARE) {
                replica_vote_no(r, &q, SPAN_DEADLINE);
            }
            bool lease = p->why == RPARK_LEASE;
            replica_refuse(r, &q, lease ? SPAN_UNAVAILABLE : SPAN_DEADLINE,
                           lease                   ? "the range has no lease"
                           : p->why == RPARK_LOCKS ? "waited for a lock until the deadline"
                                                   : "waited for a transaction in doubt until "
                                                     "the deadline");
        }
        parked_free(p);
    }
}

span_status replica_check_schema(struct replica *r, const struct range_request *q, struct tt_ts at)
{
    for (size_t i = 0; i < q->schema_count; i++) {
        const struct schema_version *v = map64_get(&r->schema, q->schema[i].table_id);
        uint64_t version = v == NULL ? 0 : v->version;
        if (at.ns != ENGINE_NEWEST.ns && (v == NULL || at.ns < v->since.ns)) {
            /* Another version may have been in force at the read's timestamp (rule E2). */
            uint8_t key[SCHEMA_KEY_BYTES];
            struct engine_value val;
            span_status st =
                engine_get(r->engine, schema_key(key, q->schema[i].table_id), at, &val);
            if (st != SPAN_OK) {
                return st;
            }
            version = 0;
            if (val.found == ENGINE_FOUND) {
                struct cursor c = cursor_of(val.value);
                version = dec_u64(&c);
            }
        }
        if (version != q->schema[i].version) {
            return SPAN_STALE_SCHEMA;
        }
    }
    return SPAN_OK;
}

/* Rule F4: every span, key and anchor of the request lies in this range. */
static bool covered(const struct replica *r, const struct range_request *q)
{
    for (size_t i = 0; i < q->span_count; i++) {
        if (!replica_covers_span(r, &q->spans[i].span)) {
            return false;
        }
    }
    for (size_t i = 0; i < q->write_count; i++) {
        if (!replica_covers(r, q->writes[i].key)) {
            return false;
        }
    }
    return q->anchor.size == 0 || replica_covers(r, q->anchor);
}

/* Work that frees locks is never refused for load (rule I5). */
static bool overloaded(const struct replica *r, const struct range_request *q)
{
    return (q->op == OP_READ || (q->op == OP_COMMIT1 && q->term == 0)) &&
           raft_uncommitted_bytes(r->raft) > 64 * MIB;
}

static void op_transfer(struct replica *r, const struct range_request *q)
{
    node_id to = (node_id)q->new_range;
    bool member = false;
    for (size_t i = 0; i < r->member_count; i++) {
        member = member || r->members[i] == to;
    }
    if (!member) {
        replica_refuse(r, q, SPAN_INVALID, "the node is no member of the range");
        return;
    }
    struct range_response resp = {.status = SPAN_OK};
    if (to != store_cfg(r->store)->self) {
        r->transfer_to = to;
    }
    replica_respond(r, q, &resp);
}

void replica_request(struct replica *r, const struct tt_now *now, struct slice body,
                     const struct range_request *q)
{
    if (r->broken) {
        replica_refuse(r, q, SPAN_NOT_LEADER, "this replica is out");
        return;
    }
    if (!covered(r, q)) {
        replica_refuse(r, q, SPAN_STALE_DESCRIPTOR, "");
        return;
    }
    bool snapshot_read = q->op == OP_READ && !tt_is_none(q->read_ts) && q->follower_ok;
    if (snapshot_read && !replica_may_serve(r, now)) {
        replica_op_read(r, now, body, q);
        return;
    }
    if (!r->leading || raft_has_released(r->raft)) {
        replica_refuse(r, q, SPAN_NOT_LEADER, "");
        return;
    }
    if (q->budget_ns == 0 && q->op != OP_RELEASE && q->op != OP_COORDINATE) {
        if (q->op == OP_PREPARE) {
            replica_vote_no(r, q, SPAN_DEADLINE);
        }
        replica_refuse(r, q, SPAN_DEADLINE, "it came after its deadline");
        return;
    }
    if (now->state >= CLOCK_STALE_READS_ONLY && !PLANTED(FENCED_CLOCK_SERVES)) {
        replica_refuse(r, q, SPAN_CLOCK, "the leader's clock is outside its bound");
        return;
    }
    bool anyway = (PLANTED(READ_ABOVE_LEASE) && q->op == OP_READ && r->serving) ||
                  (PLANTED(MEMBERS_TOO_EARLY) && q->op == OP_MEMBERS);
    if (!replica_may_serve(r, now) && q->op != OP_RELEASE && !anyway) {
        replica_park(r, now, body, q, RPARK_LEASE, NULL);
        return;
    }
    if (overloaded(r, q)) {
        replica_refuse(r, q, SPAN_OVERLOADED, "");
        return;
    }
    bool commits = q->op == OP_COMMIT1 || q->op == OP_PREPARE || q->op == OP_COORDINATE;
    bool split = r->split_key.size > 0 && !r->split_ahead;
    if (commits && (split || replica_merge_holds_back(r, q))) {
        /* Rule C2: new records are held back while a split or a merge waits for those in flight. */
        replica_park(r, now, body, q, RPARK_LEASE, NULL);
        return;
    }
    switch ((enum range_op)q->op) {
    case OP_READ:
        replica_op_read(r, now, body, q);
        break;
    case OP_COMMIT1:
        replica_op_commit1(r, now, body, q);
        break;
    case OP_COORDINATE:
        replica_op_coordinate(r, now, body, q);
        break;
    case OP_PREPARE:
        replica_op_prepare(r, now, body, q);
        break;
    case OP_VALIDATE:
        replica_op_validate(r, now, body, q);
        break;
    case OP_RELEASE:
        replica_op_release(r, now, q);
        break;
    case OP_STATUS:
        replica_op_status(r, now, q);
        break;
    case OP_SPLIT:
        replica_op_split(r, now, body, q);
        break;
    case OP_TRANSFER:
        op_transfer(r, q);
        break;
    case OP_MEMBERS:
        replica_op_members(r, now, body, q);
        break;
    case OP_MERGE:
        replica_op_merge(r, now, body, q);
        break;
    default:
        replica_refuse(r, q, SPAN_INVALID, "unknown operation");
        break;
    }
}
