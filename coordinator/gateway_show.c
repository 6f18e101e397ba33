/* SHOW over all nodes, and the questions of gateways to nodes. A node's table travels as rows of
 * cells: first the columns' names, then their types as decimal OIDs, then the rows. */
#include "base/alloc.h"
#include "coordinator/gateway_impl.h"

#include <stdio.h>
#include <stdlib.h>

#define SHOW_PATIENCE_NS (2 * SEC_NS) /* for a node that does not answer */
#define SHOW_COLUMNS_MAX 64

/* ---- asking ---- */

void questions_drop(struct job *j)
{
    if (j->question != 0) {
        map64_remove(&j->g->questions, j->question);
        j->question = 0;
    }
}

static void all_answered(struct job *j, const struct tt_now *now)
{
    heap_remove(&j->g->timers, &j->timer);
    j->wake(j, now);
}

void ask_nodes(struct job *j, const struct tt_now *now, uint8_t node_op, uint32_t arg,
               struct slice text, uint64_t patience_ns)
{
    struct gateway *g = j->g;
    j->question = g->next_question++;
    j->asked = 0;
    memset(j->answered, 0, sizeof j->answered);
    map64_put(&g->questions, j->question, j);
    struct node_request m = {
        .op = node_op, .request_id = j->question, .gateway = g->cfg.self, .arg = arg, .text = text};
    for (size_t i = 0; i < g->cfg.node_count; i++) {
        if (g->cfg.nodes[i] != g->cfg.self) {
            msg_encode_node_request(gateway_send(g, g->cfg.nodes[i]), &m);
            j->asked++;
        }
    }
    uint64_t at = now->mono_ns + patience_ns;
    heap_insert(&g->timers, &j->timer,
                j->asked == 0         ? now->mono_ns
                : at < j->deadline_ns ? at
                                      : j->deadline_ns);
}

static void answer_of(struct job *j, const struct tt_now *now, node_id node)
{
    if (node > LIMIT_PEERS || j->answered[node] || j->asked == 0) {
        return;
    }
    j->answered[node] = true;
    if (--j->asked == 0) {
        all_answered(j, now);
    }
}

void show_peer_lost(struct gateway *g, const struct tt_now *now, node_id node)
{
    size_t pos = 0;
    struct job *j;
    while ((j = map64_next(&g->questions, &pos, NULL)) != NULL) {
        if (node <= LIMIT_PEERS && !j->answered[node]) {
            heap_insert(&g->timers, &j->timer,
                        now->mono_ns); /* goes on without it, at the next tick */
        }
    }
}

/* ---- answering ---- */

static void respond(struct gateway *g, const struct node_request *q, struct node_response *r)
{
    r->request_id = q->request_id;
    r->node = g->cfg.self;
    msg_encode_node_response(gateway_send(g, q->gateway), r);
}

static void answer_descriptors(struct gateway *g, const struct node_request *q)
{
    struct node_response r = {.status = SPAN_OK};
    r.descriptors = arena_alloc(&g->arena, (g->dir.count + 1) * sizeof *r.descriptors);
    for (size_t i = 0; i < g->dir.count; i++) {
        const struct dir_range *d = g->dir.ranges[i];
        struct range_descriptor *x = &r.descriptors[r.descriptor_count++];
        *x = (struct range_descriptor){.range = d->range,
                                       .generation = d->generation,
                                       .start = buf_slice(&d->start),
                                       .end = buf_slice(&d->end),
                                       .member_count = d->member_count,
                                       .leader = d->leader};
        memcpy(x->members, d->members, sizeof x->members);
    }
    respond(g, q, &r);
}

static struct slice cell_of(const char *text)
{
    return text == NULL ? slice_of(NULL, 0) : slice_str(text);
}

static void answer_show(struct gateway *g, const struct tt_now *now, const struct node_request *q)
{
    struct node_response r = {.status = SPAN_UNSUPPORTED};
    struct span_error err = {0};
    struct kv_table t = {0};
    if (g->cfg.host.show != NULL) {
        r.status = (uint16_t)g->cfg.host.show(g->cfg.host.ctx, now, (enum kv_show)q->arg, &t, &err);
    }
    r.text = slice_str(err.text);
    if (r.status == SPAN_OK) {
        r.columns = (uint32_t)t.columns;
        r.cells = arena_alloc(&g->arena, (t.rows + 2) * t.columns * sizeof *r.cells);
        for (size_t i = 0; i < t.columns; i++) {
            char *type = arena_alloc(&g->arena, 16);
            (void)snprintf(type, 16, "%u", t.types[i]);
            r.cells[i] = slice_str(t.names[i]);
            r.cells[t.columns + i] = slice_str(type);
        }
        for (size_t i = 0; i < t.rows * t.columns; i++) {
            r.cells[2 * t.columns + i] = cell_of(t.cells[i]);
        }
        r.cell_count = (t.rows + 2) * t.columns;
    }
    respond(g, q, &r);
    kv_table_deinit(&t);
}

static void answer_set(struct gateway *g, const struct tt_now *now, const struct node_request *q)
{
    struct node_response r = {.status = SPAN_OK};
    struct span_error err = {0};
    struct buf text = {0};
    buf_set(&text, q->text);
    char *name = (char *)(uintptr_t)buf_cstr(&text);
    char *eq = strchr(name, '=');
    if (eq == NULL || strlen(name) != q->text.size) {
        r.status = (uint16_t)span_fail(&err, SPAN_PROTOCOL, "a setting is name=value");
    } else if (g->cfg.host.set != NULL) {
        *eq = '\0';
        r.status = (uint16_t)g->cfg.host.set(g->cfg.host.ctx, now, name, eq + 1, &err);
    }
    r.text = slice_str(err.text);
    respond(g, q, &r);
    buf_deinit(&text);
}

void show_on_request(struct gateway *g, const struct tt_now *now, node_id from,
                     const struct node_request *m)
{
    if (m->gateway != from) {
        g->bad_messages++;
        return;
    }
    switch ((enum node_op)m->op) {
    case NODE_OP_DESCRIPTORS:
        answer_descriptors(g, m);
        break;
    case NODE_OP_SHOW:
        answer_show(g, now, m);
        break;
    case NODE_OP_SET:
        answer_set(g, now, m);
        break;
    case NODE_OP_TRUE_TIME:
    default: {
        struct node_response r = {.status = SPAN_UNSUPPORTED};
        respond(g, m, &r);
        break;
    }
    }
}

/* ---- merging ---- */

static int column_of(const struct kv_table *t, const char *name)
{
    for (size_t i = 0; i < t->columns; i++) {
        if (strcmp(t->names[i], name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static bool same_columns(const struct kv_table *a, const struct kv_table *b)
{
    if (a->columns != b->columns) {
        return false;
    }
    for (size_t i = 0; i < a->columns; i++) {
        if (strcmp(a->names[i], b->names[i]) != 0) {
            return false;
        }
    }
    return true;
}

/* A table from the cells of an answer. False: malformed. */
static bool table_of(const struct node_response *m, struct kv_table *out)
{
    size_t n = m->columns;
    if (n == 0 || n > SHOW_COLUMNS_MAX || m->cell_count < 2 * n || m->cell_count % n != 0) {
        return false;
    }
    struct arena a = {0};
    const char **text = arena_alloc(&a, m->cell_count * sizeof(char *));
    for (size_t i = 0; i < m->cell_count; i++) {
        struct slice s = m->cells[i];
        if (s.data != NULL) {
            char *copy = arena_alloc(&a, s.size + 1);
            memcpy(copy, s.data, s.size);
            text[i] = copy;
        } else if (i < 2 * n) {
            text[i] = "";
        }
    }
    unsigned types[SHOW_COLUMNS_MAX];
    for (size_t i = 0; i < n; i++) {
        types[i] = (unsigned)strtoul(text[n + i], NULL, 10);
    }
    kv_table_init(out, n, text, types);
    for (size_t i = 2 * n; i < m->cell_count; i += n) {
        kv_table_add_row(out, &text[i]);
    }
    arena_deinit(&a);
    return true;
}

static void add_rows(struct job *j, const struct kv_table *t)
{
    if (!j->has_table) {
        kv_table_init(&j->table, t->columns, (const char *const *)(uintptr_t)t->names, t->types);
        j->has_table = true;
    }
    if (!same_columns(&j->table, t)) {
        return; /* another version of the program: its rows mean something else */
    }
    for (size_t i = 0; i < t->rows; i++) {
        kv_table_add_row(&j->table, (const char *const *)(uintptr_t)&t->cells[i * t->columns]);
    }
}

void show_on_response(struct gateway *g, const struct tt_now *now, node_id from,
                      const struct node_response *m)
{
    if (m->descriptor_count > 0) {
        router_learn(g->router, now, m->descriptors, m->descriptor_count, false);
    }
    struct job *j = map64_get(&g->questions, m->request_id);
    if (j == NULL || from > LIMIT_PEERS || j->answered[from]) {
        return;
    }
    span_status st = span_status_from_wire(m->status);
    if (st != SPAN_OK && j->err.code == SPAN_OK) {
        (void)span_fail(&j->err, st, "node %u: %.*s", from, (int)m->text.size,
                        m->text.size == 0 ? "" : (const char *)m->text.data);
    }
    struct kv_table t = {0};
    if (j->kind == JOB_SHOW && st == SPAN_OK && table_of(m, &t)) {
        add_rows(j, &t);
        kv_table_deinit(&t);
    }
    answer_of(j, now, from);
}

static bool about_nodes(enum kv_show what)
{
    return what == KV_SHOW_NODES || what == KV_SHOW_CLOCKS;
}

/* Tables that are about nodes get a row for each that did not answer, which says so. */
static void add_missing_row(struct kv_table *t, node_id n)
{
    int node = column_of(t, "node");
    int state = column_of(t, "state") >= 0 ? column_of(t, "state") : column_of(t, "status");
    const char *row[SHOW_COLUMNS_MAX] = {0};
    char id[16];
    if (node < 0) {
        return;
    }
    (void)snprintf(id, sizeof id, "%u", n);
    row[node] = id;
    if (state >= 0) {
        row[state] = "unreachable";
    }
    kv_table_add_row(t, row);
}

/* Nodes that did not answer: into the table, or (other tables) into the list of them. */
static void note_missing(struct job *j, struct buf *list)
{
    const struct gateway_config *cfg = &j->g->cfg;
    enum kv_show what = j->op->u.show.what;
    for (size_t i = 0; i < cfg->node_count; i++) {
        node_id n = cfg->nodes[i];
        if (n == cfg->self || j->answered[n] || what == KV_SHOW_CLUSTER_SETTINGS) {
            continue;
        }
        if (about_nodes(what)) {
            add_missing_row(&j->table, n);
        } else {
            buf_printf(list, "%s%u", list->size == 0 ? "" : ", ", n);
        }
    }
}

static uint64_t number(const char *cell)
{
    return cell == NULL ? 0 : strtoull(cell, NULL, 10);
}

struct order {
    const struct kv_table *t;
    int leader;
    int node;
    int applied;
};

/* By range (or node), then the row to keep first: the leader's own, then the most advanced. */
static int row_order(const void *pa, const void *pb, void *ctx)
{
    const struct order *o = ctx;
    char **a = &o->t->cells[*(const size_t *)pa * o->t->columns];
    char **b = &o->t->cells[*(const size_t *)pb * o->t->columns];
    uint64_t na = number(a[0]);
    uint64_t nb = number(b[0]);
    if (na != nb) {
        return na < nb ? -1 : 1;
    }
    if (o->leader >= 0 && o->node >= 0) {
        bool la =
            a[o->leader] != NULL && a[o->node] != NULL && strcmp(a[o->leader], a[o->node]) == 0;
        bool lb =
            b[o->leader] != NULL && b[o->node] != NULL && strcmp(b[o->leader], b[o->node]) == 0;
        if (la != lb) {
            return la ? -1 : 1;
        }
    }
    if (o->applied >= 0 && number(a[o->applied]) != number(b[o->applied])) {
        return number(a[o->applied]) > number(b[o->applied]) ? -1 : 1;
    }
    return *(const size_t *)pa < *(const size_t *)pb ? -1 : 1;
}

/* Rows in order; of several rows of one range the first. */
static void sort_rows(const struct kv_table *t, bool one_each, struct kv_table *out)
{
    struct order o = {t, column_of(t, "leader"), column_of(t, "node"), column_of(t, "applied")};
    size_t *at = span_calloc(t->rows + 1, sizeof *at);
    for (size_t i = 0; i < t->rows; i++) {
        at[i] = i;
    }
    qsort_r(at, t->rows, sizeof *at, row_order, &o);
    kv_table_init(out, t->columns, (const char *const *)(uintptr_t)t->names, t->types);
    for (size_t i = 0; i < t->rows; i++) {
        char **row = &t->cells[at[i] * t->columns];
        if (!one_each || i == 0 || number(row[0]) != number(t->cells[at[i - 1] * t->columns])) {
            kv_table_add_row(out, (const char *const *)(uintptr_t)row);
        }
    }
    span_free(at);
}

static char *hex_of(struct arena *a, struct slice s)
{
    char *text = arena_alloc(a, s.size * 2 + 1);
    for (size_t i = 0; i < s.size; i++) {
        (void)snprintf(text + 2 * i, 3, "%02x", s.data[i]);
    }
    return text;
}

/* Somebody has a replica of the range, or of one that covers its start by now (the directory is a
 * cache, and a range in it may have become part of another). */
static bool is_reported(const struct kv_table *t, uint64_t range, const char *start)
{
    int from = column_of(t, "start_key");
    int to = column_of(t, "end_key");
    for (size_t i = 0; i < t->rows; i++) {
        char **row = &t->cells[i * t->columns];
        bool covers = from >= 0 && to >= 0 && row[from] != NULL && strcmp(row[from], start) <= 0 &&
                      (row[to] == NULL || strcmp(start, row[to]) < 0);
        if (covers || number(row[0]) == range) {
            return true;
        }
    }
    return false;
}

static void set_cell(const struct kv_table *t, const char **row, const char *name, const char *text)
{
    int at = column_of(t, name);
    if (at >= 0) {
        row[at] = text;
    }
}

/* Ranges of which no node that answered has a replica: from the directory, without a leader. They
 * are the ones that somebody who asks is most in need of. */
static void add_silent_ranges(struct gateway *g, struct kv_table *t)
{
    struct arena a = {0};
    size_t count = column_of(t, "range_id") == 0 ? g->dir.count : 0;
    for (size_t i = 0; i < count; i++) {
        const struct dir_range *d = g->dir.ranges[i];
        const char *row[SHOW_COLUMNS_MAX] = {0};
        const char *start = hex_of(&a, buf_slice(&d->start));
        char id[24];
        char generation[24];
        char members[LIMIT_REPLICAS * 12] = "";
        size_t n = 0;
        if (is_reported(t, d->range, start)) {
            continue;
        }
        for (size_t k = 0; k < d->member_count; k++) {
            n += (size_t)snprintf(members + n, sizeof members - n, k == 0 ? "%u" : ",%u",
                                  d->members[k]);
        }
        (void)snprintf(id, sizeof id, "%llu", (unsigned long long)d->range);
        (void)snprintf(generation, sizeof generation, "%llu", (unsigned long long)d->generation);
        set_cell(t, row, "range_id", id);
        set_cell(t, row, "generation", generation);
        set_cell(t, row, "start_key", start);
        set_cell(t, row, "end_key", d->end.size == 0 ? NULL : hex_of(&a, buf_slice(&d->end)));
        set_cell(t, row, "replicas", members);
        set_cell(t, row, "state", "no leader");
        kv_table_add_row(t, row);
    }
    arena_deinit(&a);
}

static void show_finish(struct job *j, const struct tt_now *now)
{
    enum kv_show what = j->op->u.show.what;
    questions_drop(j);
    if (!j->has_table) {
        job_end(j, now, SPAN_UNAVAILABLE, NULL);
        return;
    }
    struct buf missing = {0};
    note_missing(j, &missing);
    if (what == KV_SHOW_RANGES) {
        add_silent_ranges(j->g, &j->table);
    }
    if (what == KV_SHOW_RANGES || about_nodes(what)) {
        sort_rows(&j->table, what == KV_SHOW_RANGES, &j->op->u.show.table);
    } else {
        j->op->u.show.table = j->table;
        j->has_table = false;
    }
    if (missing.size > 0) {
        j->op->u.show.table.missing = span_strdup(buf_cstr(&missing));
    }
    buf_deinit(&missing);
    job_end(j, now, SPAN_OK, NULL);
}

void show_start(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    struct job *j = job_new(g, JOB_SHOW, op, op->deadline_ns);
    struct kv_table own = {0};
    span_status st = SPAN_UNSUPPORTED;
    memset(&op->u.show.table, 0, sizeof op->u.show.table);
    if (g->cfg.host.show != NULL) {
        st = g->cfg.host.show(g->cfg.host.ctx, now, op->u.show.what, &own, &j->err);
    }
    if (st != SPAN_OK) {
        job_end(j, now, st, j->err.code != SPAN_OK ? &j->err : NULL);
        return;
    }
    add_rows(j, &own);
    kv_table_deinit(&own);
    j->wake = show_finish;
    if (op->u.show.what == KV_SHOW_CLUSTER_SETTINGS) {
        show_finish(j, now); /* the same on every node */
        return;
    }
    ask_nodes(j, now, NODE_OP_SHOW, (uint32_t)op->u.show.what, slice_of(NULL, 0), SHOW_PATIENCE_NS);
}
