/* Checks at every step; see sim_check.h. */
#include "tests/sim/sim_check.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "shard/raft/raft_internal.h"
#include "shard/range/store_impl.h"

/* A node's log of one range as it told it: what it wrote, and what it found at a start. */
struct seen_entry {
    uint64_t term;
    uint64_t hash;     /* 0: not known */
    struct tt_ts ts;   /* of the write it makes visible; none for others */
    struct txn_id txn; /* whose fate it is; none for others */
};

struct watched {
    struct seen_entry *log; /* by index */
    size_t size;
    size_t cap;
    uint64_t checked;  /* committed entries up to here were compared */
    uint64_t applied;  /* and up to here looked at as writes */
    struct tt_ts safe; /* largest safe time published in this life */
    bool serving;

    /* What this node has said or may have said about itself, and must keep over a crash. */
    bool born; /* this life was looked at */
    uint64_t kept_term;
    uint32_t kept_vote;
    uint64_t acked;      /* entries up to here were acknowledged ... */
    uint64_t acked_hash; /* ... this one the last */
    uint64_t term;       /* as of the last turn */
    uint32_t vote;
    struct tt_ts promise;     /* runs until here, as of the last turn */
    struct tt_ts old_promise; /* of an earlier life */
};

struct committed {
    uint64_t term;
    uint64_t hash;
};

struct leader {
    node_id node;
};

struct fate {
    struct tt_ts ts; /* none: aborted */
    range_id range;  /* that had it first */
};

struct digest_row {
    range_id range;
    uint64_t applied;
    struct tt_ts horizon;
    node_id node;
    uint64_t digest; /* of the rows */
    uint64_t txns;
    uint64_t prepared;
    uint64_t decided;
};

struct sim_check {
    struct cluster *c;
    struct map64 watched[SIM_NODES_MAX + 1]; /* range -> struct watched */
    struct map64 leaders;                    /* (range, term) -> struct leader */
    struct map64 contents;                   /* (range, index, term) -> hash, kept as uint64_t * */
    struct map64 commits;                    /* (range, index) -> struct committed */
    struct map64 fates;                      /* transaction -> struct fate */
    struct arena arena;
    bool looking; /* bounds are looked at, nothing fails */
    size_t beyond;
};

static uint64_t key3(uint64_t a, uint64_t b, uint64_t d)
{
    return span_mix64(span_mix64(span_mix64(a) ^ b) ^ d);
}

static struct watched *watched_of(struct sim_check *k, node_id node, range_id range)
{
    struct watched *w = map64_get(&k->watched[node], range);
    if (w == NULL) {
        w = SPAN_NEW(struct watched);
        map64_put(&k->watched[node], range, w);
    }
    return w;
}

/* ---- logs ---- */

static struct tt_ts write_ts(uint8_t type, struct slice payload)
{
    if (type == CMD_OUTCOME) {
        struct cmd_outcome o;
        bool commits = cmd_decode_outcome(payload, &o) == SPAN_OK && o.commit;
        return commits ? o.ts : tt_ts_of(0);
    }
    return type == CMD_COMMIT1 ? cmd_peek_ts(type, payload) : tt_ts_of(0);
}

static struct txn_id entry_txn(struct sim_check *k, uint8_t type, struct slice payload)
{
    struct cmd_decision d;
    struct cmd_outcome o;
    struct cmd_commit c;
    arena_clear(&k->arena);
    if (type == CMD_DECISION && cmd_decode_decision(payload, &k->arena, &d) == SPAN_OK) {
        return d.txn;
    }
    if (type == CMD_OUTCOME && cmd_decode_outcome(payload, &o) == SPAN_OK) {
        return o.txn;
    }
    if (type == CMD_COMMIT1 && cmd_decode_commit(payload, &k->arena, &c) == SPAN_OK) {
        return c.txn;
    }
    return (struct txn_id){0};
}

static void check_content(struct sim_check *k, node_id node, range_id range, uint64_t index,
                          uint64_t term, uint64_t hash)
{
    uint64_t key = key3(range, index, term);
    uint64_t *was = map64_get(&k->contents, key);
    if (was == NULL) {
        map64_put(&k->contents, key, span_memdup(&hash, sizeof hash));
    } else if (*was != hash) {
        cluster_fail(k->c,
                     "log matching: node %u range %llu entry %llu of term %llu has other contents "
                     "than elsewhere",
                     node, (unsigned long long)range, (unsigned long long)index,
                     (unsigned long long)term);
    }
}

static void on_entry(void *ctx, node_id node, range_id range, uint64_t index, uint64_t term,
                     uint8_t type, struct slice payload)
{
    struct sim_check *k = ctx;
    struct watched *w = watched_of(k, node, range);
    while (w->cap <= index) {
        w->cap = w->cap == 0 ? 64 : w->cap * 2;
        w->log = span_realloc(w->log, w->cap * sizeof *w->log);
    }
    for (; w->size < index; w->size++) {
        w->log[w->size] = (struct seen_entry){0};
    }
    if (w->born && index <= w->acked) {
        w->acked = 0; /* a new leader replaces what was never committed */
    }
    uint64_t hash =
        key3(term, type, payload.size == 0 ? 1 : span_hash64(payload.data, payload.size));
    w->log[index] =
        (struct seen_entry){term, hash | 1, write_ts(type, payload), entry_txn(k, type, payload)};
    w->size = index + 1; /* an entry at an index replaces all from it on */
    check_content(k, node, range, index, term, hash | 1);
}

static void check_commit(struct sim_check *k, node_id node, range_id range, uint64_t index,
                         const struct seen_entry *e)
{
    uint64_t key = key3(range, index, 0);
    struct committed *was = map64_get(&k->commits, key);
    if (was == NULL) {
        was = SPAN_NEW(struct committed);
        *was = (struct committed){e->term, e->hash};
        map64_put(&k->commits, key, was);
    } else if (was->hash != e->hash || was->term != e->term) {
        cluster_fail(k->c,
                     "state-machine safety: node %u range %llu commits entry %llu of term %llu, "
                     "another committed one of term %llu there",
                     node, (unsigned long long)range, (unsigned long long)index,
                     (unsigned long long)e->term, (unsigned long long)was->term);
    }
}

/* What lies below the log's base was applied from the log, or came with a snapshot. What the node
 * wrote agrees with it up to the base if it agrees there (log matching). If it does not, or if the
 * base lies beyond its end, a snapshot took its place, and what it wrote there was never committed:
 * it had no commit index that high, which is checked, and so is that the snapshot is one of what
 * was committed. */
static void forget_replaced(struct sim_check *k, node_id node, const struct replica *r,
                            struct watched *w)
{
    uint64_t base = r->raft->log.base_index;
    uint64_t term = r->raft->log.base_term;
    bool has = base < w->size && w->log[base].hash != 0;
    const struct committed *c = map64_get(&k->commits, key3(r->id, base, 0));
    bool other = has && w->log[base].term != term;
    if ((c != NULL && c->term != term) || (other && base <= w->checked)) {
        cluster_fail(k->c,
                     "state-machine safety: node %u range %llu has a snapshot of entry %llu of "
                     "term %llu, committed there is one of term %llu",
                     node, (unsigned long long)r->id, (unsigned long long)base,
                     (unsigned long long)term,
                     (unsigned long long)(c != NULL ? c->term : w->log[base].term));
    }
    if ((!has || other) && w->size > 0) {
        uint64_t n = base < w->size ? base + 1 : w->size;
        memset(w->log, 0, n * sizeof *w->log);
    } else if (w->checked == 0 && w->size > 0) {
        /* Read again at a start. A hole is where a snapshot went beyond the end of the log: what
         * stands before it was replaced, though entries that came later agree with the base. */
        uint64_t hole = base;
        while (hole > 0 && w->log[hole].hash != 0) {
            hole--;
        }
        memset(w->log, 0, (hole + 1) * sizeof *w->log);
    }
}

/* Rule C3: no transaction gets two different answers, from whichever range. Read from the replica
 * and not from the entry, which may be void after a split. */
static void check_fate(struct sim_check *k, node_id node, const struct replica *r,
                       const struct txn_id *txn)
{
    const struct outcome *o = txn_id_is_none(txn) ? NULL : outcome_table_get(r->outcomes, txn);
    if (o == NULL) {
        return;
    }
    uint64_t key = key3(txn->begin_ns, (uint64_t)txn->node << 32 | txn->seq, 2);
    struct fate *was = map64_get(&k->fates, key);
    if (was == NULL) {
        was = SPAN_NEW(struct fate);
        *was = (struct fate){o->ts, r->id};
        map64_put(&k->fates, key, was);
    } else if (was->ts.ns != o->ts.ns) {
        cluster_fail(k->c,
                     "atomic outcome: node %u range %llu has transaction %llx-%u-%u at %llu, range "
                     "%llu has it at %llu (0: aborted)",
                     node, (unsigned long long)r->id, (unsigned long long)txn->begin_ns, txn->node,
                     txn->seq, (unsigned long long)o->ts.ns, (unsigned long long)was->range,
                     (unsigned long long)was->ts.ns);
    }
}

static void check_log(struct sim_check *k, node_id node, const struct replica *r, struct watched *w)
{
    forget_replaced(k, node, r, w);
    uint64_t commit = r->raft->commit;
    for (uint64_t i = w->checked + 1; i <= commit; i++) {
        if (i < w->size && w->log[i].hash != 0) {
            check_commit(k, node, r->id, i, &w->log[i]);
        }
    }
    w->checked = commit > w->checked ? commit : w->checked;
    uint64_t applied = r->raft->applied;
    for (uint64_t i = w->applied + 1; i <= applied; i++) {
        struct tt_ts ts = i < w->size ? w->log[i].ts : tt_ts_of(0);
        if (!tt_is_none(ts) && ts.ns <= w->safe.ns) {
            cluster_fail(k->c,
                         "safe time: node %u range %llu applies a write at %llu (entry %llu), its "
                         "safe time was %llu",
                         node, (unsigned long long)r->id, (unsigned long long)ts.ns,
                         (unsigned long long)i, (unsigned long long)w->safe.ns);
        }
        if (i < w->size) {
            check_fate(k, node, r, &w->log[i].txn);
        }
    }
    w->applied = applied > w->applied ? applied : w->applied;
    w->safe = tt_max(w->safe, replica_safe_time(r));
}

/* ---- leaders and leases ---- */

static void check_leader(struct sim_check *k, node_id node, const struct replica *r)
{
    if (r->raft->role != RAFT_LEADER) {
        return;
    }
    uint64_t key = key3(r->id, r->raft->hs.term, 1);
    struct leader *was = map64_get(&k->leaders, key);
    if (was == NULL) {
        was = SPAN_NEW(struct leader);
        was->node = node;
        map64_put(&k->leaders, key, was);
    } else if (was->node != node) {
        cluster_fail(k->c, "one leader per term: nodes %u and %u lead range %llu in term %llu",
                     was->node, node, (unsigned long long)r->id,
                     (unsigned long long)r->raft->hs.term);
    }
}

/* A node begins to serve: by its own clock nobody else may be able to at this moment, paused or
 * not. */
static void check_lease(struct sim_check *k, node_id node, const struct replica *r,
                        struct watched *w, const struct tt_now *now)
{
    bool serves = replica_may_serve(r, now);
    if (serves && !w->serving && cluster_in_contract(k->c, cluster_now(k->c))) {
        for (node_id o = 1; o <= cluster_node_count(k->c); o++) {
            if (o == node || !cluster_alive(k->c, o)) {
                continue;
            }
            struct replica *other = store_replica(cluster_store(k->c, o), r->id);
            struct tt_now its = cluster_clock(k->c, o);
            if (other != NULL && replica_may_serve(other, &its)) {
                cluster_fail(k->c, "disjoint leases: nodes %u and %u may serve range %llu", node, o,
                             (unsigned long long)r->id);
            }
        }
    }
    w->serving = serves;
}

/* The first look after a start: hard state and entries that were durable are there. */
static void check_kept(struct sim_check *k, node_id node, const struct replica *r,
                       const struct watched *w)
{
    const struct raft_hard_state *hs = &r->raft->hs;
    bool forgot = hs->term == w->kept_term && w->kept_vote != 0 && hs->voted_for != w->kept_vote;
    if (hs->term < w->kept_term || forgot) {
        cluster_fail(k->c,
                     "one vote per term: node %u range %llu voted for %u in term %llu, after a "
                     "restart it is in term %llu with a vote for %u",
                     node, (unsigned long long)r->id, w->kept_vote,
                     (unsigned long long)w->kept_term, (unsigned long long)hs->term, hs->voted_for);
    }
    if (w->acked <= r->raft->applied) {
        return;
    }
    if (w->acked >= w->size || w->acked > raft_last_index(r->raft) ||
        (w->log[w->acked].hash != w->acked_hash)) {
        cluster_fail(k->c,
                     "durability: node %u range %llu acknowledged entry %llu, after a restart it "
                     "is not in its log",
                     node, (unsigned long long)r->id, (unsigned long long)w->acked);
    }
}

/* Rule B2: nobody votes, also not for himself, while a promise runs, unless the candidate has the
 * leader's release. */
static void check_vote(struct sim_check *k, node_id node, const struct replica *r,
                       struct watched *w, const struct tt_now *now)
{
    const struct raft_hard_state *hs = &r->raft->hs;
    struct tt_ts promise = tt_max(w->promise, w->old_promise);
    bool votes = hs->voted_for != 0 && (hs->term != w->term || hs->voted_for != w->vote);
    if (votes && w->term != 0 && !tt_after(&now->tt, promise) &&
        cluster_alive(k->c, hs->voted_for)) {
        const struct replica *c = store_replica(cluster_store(k->c, hs->voted_for), r->id);
        if (c != NULL && c->raft != NULL && c->raft->role == RAFT_CANDIDATE &&
            c->raft->hs.term == hs->term && !c->raft->has_release) {
            cluster_fail(k->c,
                         "promises are kept: node %u range %llu votes for %u in term %llu while "
                         "its promise runs for another %llu us",
                         node, (unsigned long long)r->id, hs->voted_for,
                         (unsigned long long)hs->term,
                         (unsigned long long)(promise.ns - now->tt.earliest.ns) / 1000);
        }
    }
    w->term = hs->term;
    w->vote = hs->voted_for;
    w->promise = raft_promise_end(&r->raft->promise);
}

static void check_promises(struct sim_check *k, node_id node, const struct replica *r,
                           struct watched *w, const struct tt_now *now)
{
    if (!w->born) {
        check_kept(k, node, r, w);
        w->born = true;
        w->acked = 0;
    }
    if (raft_hs_is_durable(r->raft)) {
        w->kept_term = r->raft->hs.term;
        w->kept_vote = r->raft->hs.voted_for;
    }
    uint64_t acked = r->raft->role == RAFT_LEADER ? r->raft->stable : r->raft->acked;
    if (acked != 0 && acked < w->size && w->log[acked].hash != 0) {
        w->acked = acked;
        w->acked_hash = w->log[acked].hash;
    }
    check_vote(k, node, r, w, now);
}

/* The replica lives no more, or not yet again: what it has promised it must still keep. */
static void life_ends(struct sim_check *k, node_id node, struct watched *w)
{
    w->serving = false;
    w->born = false;
    w->term = 0;
    if (!cluster_sim_clock(k->c, node)->faulted) {
        /* Else it may be what rule B3 adds, reckoned from a clock that was ahead: said to nobody,
         * and less after a start with the right time. */
        w->old_promise = tt_max(w->old_promise, w->promise);
    }
    w->promise = tt_ts_of(0);
}

static void check_damaged(struct sim_check *k, node_id node, struct store *s)
{
    size_t pos = 0;
    uint64_t id;
    const struct orphan *o;
    while ((o = map64_next(&s->orphans, &pos, &id)) != NULL) {
        if (!store_orphan_damaged(s, id)) {
            continue;
        }
        life_ends(k, node, watched_of(k, node, id));
        if (!cluster_is_rotten(k->c, node)) {
            cluster_fail(k->c, "node %u range %llu: a file is damaged that nobody damaged: %s",
                         node, (unsigned long long)id, o->cause);
        }
    }
}

static void on_turn(void *ctx, node_id node, const struct tt_now *now)
{
    struct sim_check *k = ctx;
    struct store *s = cluster_store(k->c, node);
    size_t pos = 0;
    check_damaged(k, node, s);
    struct replica *r;
    while ((r = map64_next(&s->replicas, &pos, NULL)) != NULL) {
        struct watched *w = watched_of(k, node, r->id);
        if (r->raft == NULL) {
            continue;
        }
        if (r->broken && !(r->damaged && cluster_is_rotten(k->c, node))) {
            cluster_fail(k->c, "node %u: its replica of range %llu is broken", node,
                         (unsigned long long)r->id);
        }
        if (r->broken) {
            continue;
        }
        check_leader(k, node, r);
        check_promises(k, node, r, w, now);
        check_log(k, node, r, w);
        check_lease(k, node, r, w, now);
    }
}

static void on_down(void *ctx, node_id node)
{
    struct sim_check *k = ctx;
    size_t pos = 0;
    struct watched *w;
    while ((w = map64_next(&k->watched[node], &pos, NULL)) != NULL) {
        /* What was not synced is gone; what is left, the start tells again. */
        w->size = 0;
        w->checked = 0;
        w->applied = 0;
        w->safe = tt_ts_of(0);
        life_ends(k, node, w);
    }
}

/* ---- digests ---- */

/* State that is not rows is written when a replica flushes, each in its own time: compared from
 * memory instead. */
static bool no_meta(void *ctx, struct slice key)
{
    (void)ctx;
    (void)key;
    return false;
}

/* Transactions prepared and decided here. */
static void add_txns(const struct replica *r, struct digest_row *row)
{
    row->txns = key3(r->generation, r->watermark.ns, 0);
    size_t pos = 0;
    const struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        /* One that is aborted before its prepare record was applied finishes without a record. */
        bool prepared =
            t->state == RTXN_PREPARED || (t->state == RTXN_FINISHING && t->record.size > 0);
        bool decided = t->state == RTXN_DECIDED;
        if (prepared || decided) {
            row->txns += key3(t->owner.txn.begin_ns,
                              (uint64_t)t->owner.txn.node << 32 | t->owner.txn.seq, prepared);
        }
        row->prepared += prepared ? 1 : 0;
        row->decided += decided ? 1 : 0;
    }
}

static void compare(struct sim_check *k, const struct digest_row *rows, size_t count, size_t *same)
{
    const struct digest_row *a = &rows[count - 1];
    for (size_t i = 0; i + 1 < count; i++) {
        const struct digest_row *b = &rows[i];
        if (a->range != b->range || a->applied != b->applied || a->horizon.ns != b->horizon.ns) {
            continue;
        }
        ++*same;
        if (a->digest != b->digest || a->txns != b->txns) {
            cluster_fail(k->c,
                         "state-machine safety: range %llu at applied index %llu differs between "
                         "nodes %u and %u: rows %s, transactions %s (prepared %llu and %llu, "
                         "decided %llu and %llu)",
                         (unsigned long long)a->range, (unsigned long long)a->applied, b->node,
                         a->node, a->digest == b->digest ? "equal" : "differ",
                         a->txns == b->txns ? "equal" : "differ", (unsigned long long)b->prepared,
                         (unsigned long long)a->prepared, (unsigned long long)b->decided,
                         (unsigned long long)a->decided);
        }
    }
}

size_t sim_check_digests(struct sim_check *k)
{
    struct digest_row *rows = NULL;
    size_t count = 0;
    size_t same = 0;
    for (node_id n = 1; n <= cluster_node_count(k->c); n++) {
        if (!cluster_alive(k->c, n)) {
            continue;
        }
        size_t pos = 0;
        struct replica *r;
        while ((r = map64_next(&cluster_store(k->c, n)->replicas, &pos, NULL)) != NULL) {
            if (r->engine == NULL || r->broken || r->apply_wait_from != 0) {
                continue;
            }
            uint64_t digest = 0;
            span_status st = engine_digest(r->engine, ENGINE_NEWEST, no_meta, NULL, &digest);
            if (st == SPAN_CORRUPT && cluster_is_rotten(k->c, n)) {
                continue; /* found: it goes at its next event */
            }
            if (st != SPAN_OK) {
                cluster_fail(k->c, "node %u range %llu: digest: %s", n, (unsigned long long)r->id,
                             engine_error(r->engine)->text);
                break;
            }
            rows = span_realloc(rows, (count + 1) * sizeof *rows);
            rows[count] = (struct digest_row){.range = r->id,
                                              .applied = engine_applied(r->engine),
                                              .horizon = engine_horizon(r->engine),
                                              .node = n,
                                              .digest = digest};
            add_txns(r, &rows[count++]);
            compare(k, rows, count, &same);
        }
    }
    span_free(rows);
    return same;
}

/* Counted in k->beyond while that is looked for only. */
static void bound(struct sim_check *k, node_id node, range_id range, const char *what,
                  uint64_t value, uint64_t most)
{
    if (value > most && k->looking) {
        k->beyond++;
    } else if (value > most) {
        cluster_fail(
            k->c, "bounds: node %u range %llu (0: the node): %llu %s, at most %llu are due", node,
            (unsigned long long)range, (unsigned long long)value, what, (unsigned long long)most);
    }
}

/* Several times what is usual, so that a leak shows and a busy moment does not. */
static void check_replica_bounds(struct sim_check *k, node_id n, const struct replica *r,
                                 const struct cluster_options *o, bool rest)
{
    /* What is not in the file: the table being written, those being flushed, and while a disk is
     * full or stalls, what comes meanwhile. The log keeps as much, and its tail. */
    uint64_t memory = 6 * o->flush_bytes + MIB / 2;
    bound(k, n, r->id, "bytes of versions in memory", engine_memory_bytes(r->engine), memory);
    bound(k, n, r->id, "bytes of log entries in memory", r->raft->log.bytes, 2 * memory);
    bound(k, n, r->id, "transactions", r->txns.count, rest ? 32 : 1000);
    bound(k, n, r->id, "requests parked", r->deadlines.count, rest ? 0 : 500);
    bound(k, n, r->id, "transaction timers", r->timers.count, rest ? 0 : 500);
    bound(k, n, r->id, "transactions remembered as gone", r->gone_by_id.count, 10000);
}

void sim_check_bounds(struct sim_check *k, const struct cluster_options *o, bool rest)
{
    for (node_id n = 1; n <= cluster_node_count(k->c); n++) {
        struct store *s = cluster_store(k->c, n);
        if (!cluster_lost(k->c, n)) {
            bound(k, n, 0, "bytes of log files", cluster_log_bytes(k->c, n),
                  (rest ? 12 : 64) * o->segment_bytes + MIB);
        }
        if (s == NULL) {
            continue;
        }
        struct gateway_stats g;
        gateway_stats_get(cluster_gateway(k->c, n), &g);
        bound(k, n, 0, "segments of the log needed", cluster_log_segments(k->c, n), rest ? 4 : 60);
        bound(k, n, 0, "bytes of outboxes", cluster_outbox_bytes(k->c, n), 4 * MIB);
        bound(k, n, 0, "turns waiting for a sync", s->pending_count, rest ? 20 : 4000);
        bound(k, n, 0, "transactions at the gateway", g.txns, rest ? 0 : 500);
        bound(k, n, 0, "requests of the gateway", g.requests, rest ? 0 : 2000);
        bound(k, n, 0, "operations of the gateway", g.ops, rest ? 0 : 500);
        size_t pos = 0;
        struct replica *r;
        while ((r = map64_next(&s->replicas, &pos, NULL)) != NULL) {
            if (r->engine != NULL && r->raft != NULL) {
                check_replica_bounds(k, n, r, o, rest);
            }
        }
    }
}

bool sim_check_rests(struct sim_check *k, const struct cluster_options *o)
{
    k->looking = true;
    k->beyond = 0;
    sim_check_bounds(k, o, true);
    k->looking = false;
    return k->beyond == 0;
}

/* ---- life ---- */

struct sim_check *sim_check_new(struct cluster *c)
{
    struct sim_check *k = SPAN_NEW(struct sim_check);
    k->c = c;
    struct cluster_watch w = {.ctx = k, .entry = on_entry, .turn = on_turn, .down = on_down};
    cluster_watch(c, &w);
    return k;
}

static void map_free(struct map64 *m)
{
    size_t pos = 0;
    void *v;
    while ((v = map64_next(m, &pos, NULL)) != NULL) {
        span_free(v);
    }
    map64_deinit(m);
}

void sim_check_free(struct sim_check *k)
{
    for (node_id n = 0; n <= SIM_NODES_MAX; n++) {
        size_t pos = 0;
        struct watched *w;
        while ((w = map64_next(&k->watched[n], &pos, NULL)) != NULL) {
            span_free(w->log);
        }
        map_free(&k->watched[n]);
    }
    map_free(&k->leaders);
    map_free(&k->contents);
    map_free(&k->commits);
    map_free(&k->fates);
    arena_deinit(&k->arena);
    span_free(k);
}
