/* Components by Tarjan without recursion; shortest cycles by breadth-first search inside one
 * component, bounded in total work, since a badly broken history is one huge component and any
 * short cycle of it will do. */
#include "tests/check/graph.h"

#include "base/alloc.h"

#include <stdlib.h>
#include <string.h>

#define NONE     UINT32_MAX
#define WORK_MAX 100000000U

void graph_init(struct graph *g, uint32_t node_count)
{
    memset(g, 0, sizeof(*g));
    g->node_count = node_count;
    g->start = span_calloc((size_t)node_count + 1, sizeof(*g->start));
    g->end = span_calloc((size_t)node_count + 1, sizeof(*g->end));
}

void graph_deinit(struct graph *g)
{
    span_free(g->edges);
    span_free(g->head);
    span_free(g->start);
    span_free(g->end);
    span_free(g->component);
    span_free(g->component_size);
    memset(g, 0, sizeof(*g));
}

void graph_set_interval(struct graph *g, uint32_t node, uint64_t start, uint64_t end)
{
    g->start[node] = start;
    g->end[node] = end;
}

uint32_t graph_add_stand_in(struct graph *g)
{
    uint32_t node = g->node_count++;
    g->start = span_realloc(g->start, ((size_t)node + 2) * sizeof(*g->start));
    g->end = span_realloc(g->end, ((size_t)node + 2) * sizeof(*g->end));
    g->start[node] = 0;
    g->end[node] = UINT64_MAX;
    return node;
}

void graph_add(struct graph *g, uint32_t from, uint32_t to, enum edge_kind kind, uint64_t key)
{
    if (from == to) {
        return;
    }
    if (g->edge_count == g->edge_cap) {
        g->edge_cap = g->edge_cap == 0 ? 1024 : 2 * g->edge_cap;
        g->edges = span_realloc(g->edges, g->edge_cap * sizeof(*g->edges));
    }
    g->edges[g->edge_count++] = (struct edge){.from = from, .to = to, .key = key, .kind = kind};
}

static int by_from(const void *a, const void *b)
{
    const struct edge *x = a;
    const struct edge *y = b;
    if (x->from != y->from) {
        return x->from < y->from ? -1 : 1;
    }
    return x->to < y->to ? -1 : x->to > y->to;
}

static void find_components(struct graph *g)
{
    uint32_t n = g->node_count;
    uint32_t *order = span_calloc((size_t)n + 1, sizeof(*order)); /* 0: not seen */
    uint32_t *low = span_calloc((size_t)n + 1, sizeof(*low));
    uint32_t *next = span_calloc((size_t)n + 1, sizeof(*next)); /* edge to look at next */
    uint32_t *open = span_calloc((size_t)n + 1, sizeof(*open)); /* Tarjan's stack */
    uint32_t *path = span_calloc((size_t)n + 1, sizeof(*path)); /* in place of recursion */
    uint32_t open_count = 0;
    uint32_t clock = 0;
    for (uint32_t root = 0; root < n; root++) {
        uint32_t depth = 0;
        if (order[root] == 0) {
            path[depth++] = root;
        }
        while (depth != 0) {
            uint32_t v = path[depth - 1];
            if (order[v] == 0) {
                order[v] = low[v] = ++clock;
                next[v] = g->head[v];
                open[open_count++] = v;
            }
            bool deeper = false;
            for (; next[v] < g->head[v + 1] && !deeper; next[v] += !deeper) {
                uint32_t w = g->edges[next[v]].to;
                if (order[w] == 0) {
                    path[depth++] = w;
                    deeper = true;
                } else if (g->component[w] == NONE && low[w] < low[v]) {
                    low[v] = low[w];
                }
            }
            if (deeper) {
                continue; /* back to this edge when w is done: low[w] is taken over then */
            }
            depth--;
            if (low[v] == order[v]) {
                uint32_t w;
                do {
                    w = open[--open_count];
                    g->component[w] = g->component_count;
                    g->component_size[g->component_count]++;
                } while (w != v);
                g->component_count++;
            }
        }
    }
    span_free(order);
    span_free(low);
    span_free(next);
    span_free(open);
    span_free(path);
}

void graph_seal(struct graph *g)
{
    if (g->edge_count != 0) {
        qsort(g->edges, g->edge_count, sizeof(*g->edges), by_from);
    }
    g->head = span_calloc((size_t)g->node_count + 2, sizeof(*g->head));
    for (size_t i = 0; i < g->edge_count; i++) {
        g->head[g->edges[i].from + 1]++;
    }
    for (uint32_t i = 0; i < g->node_count; i++) {
        g->head[i + 1] += g->head[i];
    }
    g->component = span_calloc((size_t)g->node_count + 1, sizeof(*g->component));
    g->component_size = span_calloc((size_t)g->node_count + 1, sizeof(*g->component_size));
    memset(g->component, 0xff, ((size_t)g->node_count + 1) * sizeof(*g->component));
    find_components(g);
}

/* ---- searches ---- */

struct search {
    uint32_t *from_edge; /* the edge a node was reached by */
    uint32_t *round;     /* of the search that reached it */
    uint32_t *queue;
    uint32_t *depth;
    uint32_t number;
};

static void search_init(struct search *s, const struct graph *g)
{
    size_t n = (size_t)g->node_count + 1;
    s->from_edge = span_calloc(n, sizeof(uint32_t));
    s->round = span_calloc(n, sizeof(uint32_t));
    s->queue = span_calloc(n, sizeof(uint32_t));
    s->depth = span_calloc(n, sizeof(uint32_t));
    s->number = 0;
}

static void search_deinit(struct search *s)
{
    span_free(s->from_edge);
    span_free(s->round);
    span_free(s->queue);
    span_free(s->depth);
}

struct goal {
    uint32_t node;      /* NONE: any node that ended ... */
    uint64_t before;    /* ... before this */
    uint32_t component; /* stay inside; NONE: anywhere */
    unsigned kinds;     /* of edges that may be used */
    uint32_t depth_max;
};

/* Breadth first from `from`; the goal reached, NONE if there is none within the bounds. */
static uint32_t search_run(struct search *s, struct graph *g, uint32_t from,
                           const struct goal *goal)
{
    size_t first = 0;
    size_t last = 0;
    s->number++;
    s->queue[last++] = from;
    s->round[from] = s->number;
    s->depth[from] = 0;
    while (first < last && g->work < WORK_MAX) {
        uint32_t v = s->queue[first++];
        if (s->depth[v] >= goal->depth_max) {
            break;
        }
        for (uint32_t i = g->head[v]; i < g->head[v + 1]; i++) {
            const struct edge *e = &g->edges[i];
            g->work++;
            if ((e->kind & goal->kinds) == 0 || s->round[e->to] == s->number ||
                (goal->component != NONE && g->component[e->to] != goal->component)) {
                continue;
            }
            s->round[e->to] = s->number;
            s->from_edge[e->to] = i;
            s->depth[e->to] = s->depth[v] + 1;
            s->queue[last++] = e->to;
            if (goal->node == NONE ? g->end[e->to] < goal->before : e->to == goal->node) {
                return e->to;
            }
        }
    }
    return NONE;
}

/* The path from -> to that the last search found, stand-ins left out, appended to c. */
static void take_path(const struct search *s, const struct graph *g, uint32_t from, uint32_t to,
                      struct cycle *c)
{
    struct edge way[CYCLE_MAX];
    size_t n = 0;
    for (uint32_t v = to; v != from && n < CYCLE_MAX; v = g->edges[s->from_edge[v]].from) {
        way[n++] = g->edges[s->from_edge[v]];
    }
    while (n > 0 && c->count < CYCLE_MAX) {
        const struct edge *e = &way[--n];
        if (e->kind != EDGE_VIA) {
            c->step[c->count++] = *e;
        } else if (c->count > 0) {
            c->step[c->count - 1].to = e->to;
            c->lost = true;
        }
    }
}

/* Shortest cycle through any node of the component over edges of these kinds. */
static bool shortest(struct search *s, struct graph *g, uint32_t component, unsigned kinds,
                     struct cycle *out)
{
    uint32_t best = CYCLE_MAX - 1;
    bool found = false;
    for (uint32_t v = 0; v < g->node_count && best > 1; v++) {
        if (g->component[v] != component) {
            continue;
        }
        struct goal goal = {.node = v, .component = component, .kinds = kinds, .depth_max = best};
        /* v itself counts as reached: look for an edge back to it. */
        for (uint32_t i = g->head[v]; i < g->head[v + 1]; i++) {
            struct edge e = g->edges[i];
            goal.depth_max = best - 1;
            if (e.kind == EDGE_VIA || (e.kind & kinds) == 0 || g->component[e.to] != component ||
                search_run(s, g, e.to, &goal) == NONE) {
                continue;
            }
            best = s->depth[v] + 1;
            *out = (struct cycle){.step = {e}, .count = 1};
            take_path(s, g, e.to, v, out);
            found = true;
        }
    }
    return found;
}

/* Shortest cycle with exactly one read-write step. */
static bool shortest_single(struct search *s, struct graph *g, uint32_t component,
                            struct cycle *out)
{
    uint32_t best = CYCLE_MAX - 1;
    bool found = false;
    for (size_t i = 0; i < g->edge_count && best > 1; i++) {
        struct edge e = g->edges[i];
        struct goal goal = {.node = e.from,
                            .component = component,
                            .kinds = EDGE_WW | EDGE_WR | EDGE_VIA,
                            .depth_max = best - 1};
        if (e.kind != EDGE_RW || g->component[e.from] != component ||
            g->component[e.to] != component || search_run(s, g, e.to, &goal) == NONE) {
            continue;
        }
        best = s->depth[e.from] + 1;
        *out = (struct cycle){.step = {e}, .count = 1};
        take_path(s, g, e.to, e.from, out);
        found = true;
    }
    return found;
}

bool graph_cycle_in(struct graph *g, uint32_t component, struct cycle *out)
{
    struct search s;
    if (g->component_size[component] < 2) {
        return false;
    }
    search_init(&s, g);
    g->work = 0;
    bool found = shortest(&s, g, component, EDGE_WW | EDGE_VIA, out) ||
                 shortest(&s, g, component, EDGE_WW | EDGE_WR | EDGE_VIA, out) ||
                 shortest_single(&s, g, component, out) ||
                 shortest(&s, g, component, EDGE_WW | EDGE_WR | EDGE_RW | EDGE_VIA, out);
    if (!found) {
        g->work = 0; /* the bound was met by the telling kinds: any cycle, then */
        found = shortest(&s, g, component, EDGE_WW | EDGE_WR | EDGE_RW | EDGE_VIA, out);
    }
    search_deinit(&s);
    return found;
}

uint64_t graph_cycle_in_time(struct graph *g, struct cycle *out)
{
    /* Components are numbered sinks first, so what an edge leads to is done before. */
    uint64_t *earliest = span_calloc((size_t)g->component_count + 1, sizeof(*earliest));
    uint32_t *nodes = span_calloc((size_t)g->node_count + 1, sizeof(*nodes));
    uint32_t *at = span_calloc((size_t)g->component_count + 2, sizeof(*at));
    uint64_t count = 0;
    uint32_t best = CYCLE_MAX - 1;
    struct search s;
    for (uint32_t v = 0; v < g->node_count; v++) {
        at[g->component[v] + 1]++;
    }
    for (uint32_t c = 0; c < g->component_count; c++) {
        at[c + 1] += at[c];
    }
    for (uint32_t v = g->node_count; v-- > 0;) {
        nodes[--at[g->component[v] + 1]] = v; /* at[c + 1] moves down to the start of c */
    }
    for (uint32_t c = 0; c < g->component_count; c++) {
        uint32_t stop = c + 1 < g->component_count ? at[c + 2] : g->node_count;
        uint64_t low = UINT64_MAX;
        for (uint32_t i = at[c + 1]; i < stop; i++) {
            uint32_t v = nodes[i];
            low = g->end[v] < low ? g->end[v] : low;
            for (uint32_t k = g->head[v]; k < g->head[v + 1]; k++) {
                uint32_t to = g->component[g->edges[k].to];
                if (to != c && earliest[to] < low) {
                    low = earliest[to];
                }
            }
        }
        earliest[c] = low;
    }
    search_init(&s, g);
    g->work = 0;
    out->count = 0;
    for (uint32_t v = 0; v < g->node_count; v++) {
        if (earliest[g->component[v]] >= g->start[v]) {
            continue;
        }
        count++;
        struct goal goal = {.node = NONE,
                            .before = g->start[v],
                            .component = NONE,
                            .kinds = EDGE_WW | EDGE_WR | EDGE_RW | EDGE_VIA,
                            .depth_max = best - 1};
        uint32_t to = best > 1 ? search_run(&s, g, v, &goal) : NONE;
        if (to != NONE) {
            best = s.depth[to] + 1;
            *out = (struct cycle){.count = 0};
            take_path(&s, g, v, to, out);
            out->step[out->count++] = (struct edge){.from = to, .to = v, .kind = EDGE_RT};
        }
    }
    search_deinit(&s);
    span_free(earliest);
    span_free(nodes);
    span_free(at);
    return count;
}
