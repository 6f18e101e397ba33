/* The node table in range 1: changing it, and reading it when another node's heartbeat says that
 * there is a newer one. One row, one transaction of the gateway's own a change; nothing else of a
 * running cluster waits for it (rule I1). */
#include "base/alloc.h"
#include "base/log.h"
#include "coordinator/gateway_impl.h"

#define READ_AGAIN_NS (500 * MS_NS)

static void table_key(struct job *j)
{
    gateway_system_key(&j->key, GATEWAY_TABLE_NODES, 0);
    buf_append_str(&j->key, "table");
}

/* The row as it was read; the table of version 0 when there is none yet. */
static span_status table_read(struct gateway *g, const struct txn_read *r, struct node_table *out)
{
    if (r->page_count == 1 && r->pages[0].count == 1) {
        return node_table_decode(read_row_value(&r->pages[0], &r->pages[0].rows[0]), out);
    }
    g->cfg.host.nodes_get(g->cfg.host.ctx, out);
    return out->version == 0 ? SPAN_OK : SPAN_CORRUPT; /* a row does not go away */
}

/* ---- changing ---- */

static void change_start(struct job *j, const struct tt_now *now);

static void change_failed(struct job *j, const struct tt_now *now, const struct span_error *err)
{
    if (j->op != NULL && span_status_kind(err->code) == SPAN_KIND_RETRY && !j->g->closed &&
        now->mono_ns < j->deadline_ns) {
        job_again(j, now, change_start);
        return;
    }
    struct span_error copy = *err;
    job_end(j, now, copy.code, &copy);
}

static void change_committed(struct txn_commit *k, const struct tt_now *now)
{
    struct job *j = k->owner;
    struct gateway *g = j->g;
    j->committing = false;
    if (k->status != SPAN_OK) {
        struct span_error err = k->err;
        err.code = k->status;
        change_failed(j, now, &err);
        return;
    }
    struct node_table t;
    struct span_error err = {0};
    /* In force here at once; the others read it when they hear of its version. */
    span_status st = node_table_decode(buf_slice(&j->value), &t);
    if (st == SPAN_OK && g->cfg.host.nodes(g->cfg.host.ctx, now, &t, &err) != SPAN_OK) {
        SPAN_LOG(WARN, "node table can not be applied", "error=\"%s\"", err.text);
    }
    job_end(j, now, SPAN_OK, NULL);
}

static void change_read(struct txn_read *r, const struct tt_now *now)
{
    struct job *j = r->owner;
    struct gateway *g = j->g;
    struct span_error err = r->err;
    span_status st = r->status;
    j->reading = false;
    struct node_table *t = SPAN_NEW(struct node_table);
    if (st == SPAN_OK && j->op == NULL) {
        st = span_fail(&err, SPAN_CANCELED, "canceled");
    }
    if (st == SPAN_OK && table_read(g, r, t) != SPAN_OK) {
        st = span_fail(&err, SPAN_CORRUPT, "the node table is damaged");
    }
    if (st == SPAN_OK) {
        st = node_table_change(t, j->op->u.set.name, j->op->u.set.value, &err);
    }
    if (st == SPAN_OK) {
        buf_clear(&j->value);
        node_table_encode(t, &j->value);
    }
    span_free(t);
    if (st != SPAN_OK) {
        txn_rollback(g->clients, now, &j->txn.id);
        err.code = st;
        change_failed(j, now, &err);
        return;
    }
    job_row_commit(j, now, change_committed);
}

static void change_start(struct job *j, const struct tt_now *now)
{
    table_key(j);
    job_row_read(j, now, change_read);
}

void admin_change_nodes(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    if (g->cfg.host.nodes == NULL) {
        op_complete(g, op, SPAN_UNSUPPORTED, NULL);
        return;
    }
    change_start(job_new(g, JOB_NODES, op, op->deadline_ns), now);
}

/* ---- reading ---- */

void nodes_job_gone(struct job *j)
{
    if (j->g->nodes_read == j) {
        j->g->nodes_read = NULL;
    }
}

static void refresh_read(struct txn_read *r, const struct tt_now *now)
{
    struct job *j = r->owner;
    struct gateway *g = j->g;
    struct span_error err = {0};
    j->reading = false;
    bool found = r->status == SPAN_OK && r->page_count == 1 && r->pages[0].count == 1;
    if (found && !g->closed) {
        struct node_table *t = SPAN_NEW(struct node_table);
        span_status st = table_read(g, r, t);
        if (st == SPAN_OK) {
            st = g->cfg.host.nodes(g->cfg.host.ctx, now, t, &err);
        }
        if (st != SPAN_OK) {
            SPAN_LOG(WARN, "node table can not be applied", "status=%s error=\"%s\"",
                     span_status_name(st), err.text);
        }
        span_free(t);
    }
    job_end(j, now, r->status, NULL);
}

void gateway_refresh_nodes(struct gateway *g, const struct tt_now *now)
{
    if (g->closed || g->cfg.host.nodes == NULL || g->nodes_read != NULL ||
        (g->nodes_read_ns != 0 && now->mono_ns < g->nodes_read_ns + READ_AGAIN_NS)) {
        return;
    }
    g->nodes_read_ns = now->mono_ns;
    struct job *j = job_new(g, JOB_NODES, NULL, now->mono_ns + GATEWAY_OP_NS_DEFAULT);
    g->nodes_read = j;
    table_key(j);
    j->key_slice = buf_slice(&j->key);
    j->read.keys = &j->key_slice;
    j->read.key_count = 1;
    j->read.mode = KV_READ_STRONG;
    j->read.read_ts = tt_ts_of(0);
    j->read.deadline_ns = j->deadline_ns;
    j->read.done = refresh_read;
    j->read.owner = j;
    j->reading = true;
    txn_read_start(g->clients, now, &j->txn, &j->read);
}
