/* The gateway core's entry points: operations in, messages in, time, shutdown. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "coordinator/gateway_impl.h"

static struct buf *out_or_nowhere(void *ctx, node_id to, unsigned cls)
{
    struct gateway *g = ctx;
    if (g->closed) { /* the server around it may be gone */
        buf_clear(&g->nowhere);
        return &g->nowhere;
    }
    return g->cfg.out(g->cfg.out_ctx, to, cls);
}

struct buf *gateway_send(struct gateway *g, node_id to)
{
    return out_or_nowhere(g, to, 0);
}

struct gateway *gateway_new(const struct gateway_config *cfg)
{
    REQUIRE(cfg->self != 0 && cfg->incarnation != 0);
    struct gateway *g = SPAN_NEW(struct gateway);
    g->cfg = *cfg;
    directory_init(&g->dir);
    struct router_config rc = {
        .self = cfg->self,
        .incarnation = cfg->incarnation,
        .nodes = g->cfg.nodes,
        .node_count = cfg->node_count,
        .first_id = (cfg->seed | 1) >> 1, /* half of the numbers lie ahead */
        .out_ctx = g,
        .out = out_or_nowhere,
        .metrics = cfg->metrics,
    };
    g->router = router_new(&rc, &g->dir);
    g->clients = txn_clients_new(g->router);
    g->next_seq =
        (uint32_t)(cfg->seed >> 32) | 0x80000000U; /* sessions draw theirs from the lower half */
    g->next_question = 1;
    list_init(&g->ops);
    list_init(&g->jobs);
    heap_init(&g->timers);
    map64_init(&g->counters);
    map64_init(&g->questions);
    return g;
}

void gateway_free(struct gateway *g)
{
    if (g == NULL) {
        return;
    }
    REQUIRE(list_is_empty(&g->ops) && list_is_empty(&g->jobs));
    txn_clients_free(g->clients);
    router_free(g->router);
    directory_deinit(&g->dir);
    counters_free(g);
    heap_deinit(&g->timers);
    map64_deinit(&g->questions);
    arena_deinit(&g->arena);
    buf_deinit(&g->nowhere);
    span_free(g);
}

struct txn_ref gateway_txn(struct gateway *g, const struct tt_now *now)
{
    struct txn_ref ref = {
        .id = {.begin_ns = now->tt.latest.ns, .node = g->cfg.self, .seq = g->next_seq++}};
    g->next_seq |= 0x80000000U;
    ref.age = ref.id;
    return ref;
}

/* ---- operations ---- */

static void op_enter(struct gateway *g, struct gateway_op *op)
{
    list_push_back(&g->ops, &op->in_core);
    g->op_count++;
}

void op_complete(struct gateway *g, struct gateway_op *op, span_status st,
                 const struct span_error *err)
{
    list_remove(&op->in_core);
    g->op_count--;
    op->core = NULL;
    op->status = st;
    if (st != SPAN_OK && err != NULL) {
        if (err != &op->err) {
            op->err = *err;
        }
    } else if (st != SPAN_OK) {
        (void)span_fail(&op->err, st, "%s", span_status_text(st));
    }
    op->done(op);
}

static void read_done(struct txn_read *r, const struct tt_now *now)
{
    (void)now;
    struct gateway_op *op = LIST_ENTRY(r, struct gateway_op, read);
    op_complete(r->owner, op, r->status, &r->err);
}

static void commit_done(struct txn_commit *c, const struct tt_now *now)
{
    (void)now;
    struct gateway_op *op = LIST_ENTRY(c, struct gateway_op, commit);
    op_complete(c->owner, op, c->status, &c->err);
}

static void cancel(struct gateway *g, const struct tt_now *now, struct gateway_op *target)
{
    if (target == NULL || list_is_empty(&target->in_core) || target->kind == GATEWAY_COMMIT) {
        return; /* done already; or a commit, whose outcome has to be known */
    }
    if (target->kind == GATEWAY_READ) {
        txn_read_stop(g->clients, now, &target->read, SPAN_CANCELED);
    } else if (target->core != NULL) {
        job_stop(target->core, now, SPAN_CANCELED);
    }
}

void gateway_op(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    list_init(&op->in_core);
    op_enter(g, op);
    op->core = NULL;
    op->err.code = SPAN_OK;
    if (g->closed) {
        op_complete(g, op, SPAN_CLOSED, NULL);
        return;
    }
    if (op->deadline_ns == 0) {
        op->deadline_ns =
            now->mono_ns + (op->kind == GATEWAY_MOVE ? GATEWAY_MOVE_NS : GATEWAY_OP_NS_DEFAULT);
    }
    switch (op->kind) {
    case GATEWAY_READ:
        op->read.deadline_ns = op->deadline_ns;
        op->read.done = read_done;
        op->read.owner = g;
        txn_read_start(g->clients, now, &op->txn, &op->read);
        break;
    case GATEWAY_COMMIT:
        op->commit.deadline_ns = op->deadline_ns;
        op->commit.done = commit_done;
        op->commit.owner = g;
        txn_commit_start(g->clients, now, &op->txn, &op->commit);
        break;
    case GATEWAY_ROLLBACK:
        txn_rollback(g->clients, now, &op->txn.id);
        op_complete(g, op, SPAN_OK, NULL);
        break;
    case GATEWAY_CANCEL:
        cancel(g, now, op->target);
        op_complete(g, op, SPAN_OK, NULL);
        break;
    case GATEWAY_ALLOC:
        admin_alloc(g, now, op);
        break;
    case GATEWAY_SPLIT:
        admin_split(g, now, op);
        break;
    case GATEWAY_TRANSFER:
        admin_transfer(g, now, op);
        break;
    case GATEWAY_SHOW:
        show_start(g, now, op);
        break;
    case GATEWAY_SET:
        admin_set(g, now, op);
        break;
    case GATEWAY_STATUS:
        admin_status(g, now, op);
        break;
    case GATEWAY_MOVE:
        admin_move(g, now, op);
        break;
    case GATEWAY_MERGE:
        admin_merge(g, now, op);
        break;
    }
}

/* ---- jobs ---- */

struct job *job_new(struct gateway *g, enum job_kind kind, struct gateway_op *op,
                    uint64_t deadline_ns)
{
    struct job *j = SPAN_NEW(struct job);
    j->g = g;
    j->kind = kind;
    j->op = op;
    j->deadline_ns = deadline_ns;
    list_init(&j->ids.link);
    txn_read_init(&j->read);
    list_push_back(&g->jobs, &j->link);
    if (op != NULL) {
        op->core = j;
    }
    return j;
}

void job_end(struct job *j, const struct tt_now *now, span_status st, const struct span_error *err)
{
    (void)now;
    struct gateway *g = j->g;
    struct gateway_op *op = j->op;
    struct span_error copy = {0};
    if (err != NULL) {
        copy = *err;
    }
    questions_drop(j);
    nodes_job_gone(j);
    list_remove(&j->link);
    list_remove(&j->ids.link);
    heap_remove(&g->timers, &j->timer);
    if (j->has_table) {
        kv_table_deinit(&j->table);
    }
    txn_read_deinit(&j->read);
    buf_deinit(&j->key);
    buf_deinit(&j->value);
    span_free(j);
    if (op != NULL) {
        op_complete(g, op, st, st != SPAN_OK && err != NULL ? &copy : NULL);
    }
}

void job_stop(struct job *j, const struct tt_now *now, span_status st)
{
    struct gateway *g = j->g;
    route_cancel(g->router, &j->rr);
    route_cancel(g->router, &j->status.rr);
    if (j->reading || j->committing) {
        /* Its transaction has to end first; what it says then goes to nobody. */
        struct gateway_op *op = j->op;
        j->op = NULL;
        if (j->reading) {
            txn_read_stop(g->clients, now, &j->read, st);
        }
        if (op != NULL) {
            op_complete(g, op, st, NULL);
        }
        return;
    }
    job_end(j, now, st, NULL);
}

/* ---- messages and time ---- */

static void bad_message(struct gateway *g, node_id from, uint8_t kind)
{
    g->bad_messages++;
    SPAN_LOG(WARN, "gateway dropped a malformed message", "from=%u kind=%u", from, kind);
}

void gateway_message(struct gateway *g, const struct tt_now *now, node_id from, uint8_t kind,
                     struct slice body)
{
    if (g->closed) {
        return;
    }
    arena_clear(&g->arena);

    union {
        struct range_response response;
        struct txn_wounded wounded;
        struct node_request request;
        struct node_response answer;
    } m;

    switch (kind) {
    case MSG_RESPONSE:
        if (msg_decode_response(body, &g->arena, &m.response) != SPAN_OK) {
            break;
        }
        router_response(g->router, now, from, &m.response);
        return;
    case MSG_WOUNDED:
        if (msg_decode_wounded(body, &m.wounded) != SPAN_OK) {
            break;
        }
        txn_on_wounded(g->clients, now, &m.wounded);
        return;
    case MSG_NODE_REQUEST:
        if (msg_decode_node_request(body, &m.request) != SPAN_OK) {
            break;
        }
        show_on_request(g, now, from, &m.request);
        return;
    case MSG_NODE_RESPONSE:
        if (msg_decode_node_response(body, &g->arena, &m.answer) != SPAN_OK) {
            break;
        }
        show_on_response(g, now, from, &m.answer);
        return;
    default:
        break;
    }
    bad_message(g, from, kind);
}

void gateway_tick(struct gateway *g, const struct tt_now *now)
{
    router_tick(g->router, now);
    txn_clients_tick(g->clients, now);
    struct heap_node *n;
    while ((n = heap_min(&g->timers)) != NULL && n->key <= now->mono_ns) {
        struct job *j = LIST_ENTRY(n, struct job, timer);
        heap_remove(&g->timers, n);
        j->wake(j, now);
    }
}

uint64_t gateway_deadline_ns(const struct gateway *g)
{
    uint64_t at = router_deadline_ns(g->router);
    uint64_t clients = txn_clients_deadline_ns(g->clients);
    const struct heap_node *n = heap_min(&g->timers);
    at = clients < at ? clients : at;
    return n != NULL && n->key < at ? n->key : at;
}

void gateway_peer_lost(struct gateway *g, const struct tt_now *now, node_id node)
{
    router_peer_lost(g->router, now, node);
    show_peer_lost(g, now, node);
}

void gateway_peer_up(struct gateway *g, const struct tt_now *now, node_id node)
{
    router_peer_up(g->router, now, node);
}

void gateway_learn(struct gateway *g, const struct tt_now *now, const struct range_descriptor *all,
                   size_t count)
{
    router_learn(g->router, now, all, count, true);
    if (!g->settings_asked && !g->closed && g->cfg.host.set != NULL) {
        g->settings_asked = true;
        admin_load_settings(g, now);
        gateway_refresh_nodes(g, now);
    }
}

void gateway_set_nodes(struct gateway *g, const node_id *nodes, size_t count)
{
    REQUIRE(count <= LIMIT_PEERS);
    memcpy(g->cfg.nodes, nodes, count * sizeof *nodes);
    g->cfg.node_count = count;
    router_set_node_count(g->router, count);
}

void gateway_close(struct gateway *g, const struct tt_now *now)
{
    if (g->closed) {
        return;
    }
    g->closed = true;
    while (!list_is_empty(&g->jobs)) {
        struct job *j = LIST_ENTRY(g->jobs.next, struct job, link);
        if (j->committing) { /* ends with the transactions below */
            list_remove(&j->link);
            continue;
        }
        job_stop(j, now, SPAN_CLOSED);
    }
    txn_clients_close(g->clients, now);
    router_close(g->router, now);
    ENSURE(list_is_empty(&g->ops));
}

void gateway_stats_get(const struct gateway *g, struct gateway_stats *out)
{
    out->txns = txn_clients_count(g->clients);
    out->requests = router_count(g->router);
    out->ops = g->op_count;
}
