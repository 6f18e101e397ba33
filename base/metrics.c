/* Metrics and their text exposition (Prometheus format 0.0.4).
 *
 * A registry is a list of families (one name, one HELP, one TYPE), each a list of metrics that
 * differ in their labels; rendering walks families, so that all lines of a name stand together as
 * the format demands. Values are relaxed atomics: any thread may count without a lock. The lock
 * guards only the lists. A histogram's count is rendered as the sum of its buckets, so that one
 * exposition agrees with itself while others go on counting. */
#include "base/metrics.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/list.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>

#define HIST_FIRST_NS 10000ULL /* 10 us, then x2: the last bound is 20.97 s */
#define HIST_BOUNDS   22

enum metric_type { METRIC_COUNTER, METRIC_GAUGE, METRIC_HIST };

struct family {
    struct list link; /* in metrics.families */
    struct list members;
    char *name;
    char *help;
    enum metric_type type;
};

struct metric {
    struct list link; /* in family.members */
    enum metric_type type;
    char *labels;
    _Atomic uint64_t
        value; /* counter's value, bits of a gauge's double, sum of a histogram in ns */
    _Atomic uint64_t buckets[]; /* histogram only: HIST_BOUNDS + 1, not cumulative */
};

struct metrics {
    pthread_mutex_t lock;
    struct list families;
};

struct metrics *metrics_new(void)
{
    struct metrics *m = SPAN_NEW(struct metrics);

    pthread_mutex_init(&m->lock, NULL);
    list_init(&m->families);
    return m;
}

void metrics_free(struct metrics *m)
{
    if (!m) {
        return;
    }
    LIST_EACH_SAFE(fl, fl_next, &m->families)
    {
        struct family *f = LIST_ENTRY(fl, struct family, link);

        LIST_EACH_SAFE(ml, ml_next, &f->members)
        {
            struct metric *x = LIST_ENTRY(ml, struct metric, link);

            span_free(x->labels);
            span_free(x);
        }
        span_free(f->name);
        span_free(f->help);
        span_free(f);
    }
    pthread_mutex_destroy(&m->lock);
    span_free(m);
}

static bool name_is_valid(const char *name)
{
    for (const char *p = name; *p; p++) {
        const bool letter =
            (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || *p == '_' || *p == ':';

        if (!letter && (p == name || *p < '0' || *p > '9')) {
            return false;
        }
    }
    return *name != 0;
}

static struct family *family_get(struct metrics *m, enum metric_type type, const char *name,
                                 const char *help)
{
    struct family *f = NULL;

    LIST_EACH(it, &m->families)
    {
        f = LIST_ENTRY(it, struct family, link);
        if (strcmp(f->name, name) == 0) {
            REQUIRE(f->type == type);
            return f;
        }
    }
    f = SPAN_NEW(struct family);
    list_init(&f->members);
    f->name = span_strdup(name);
    f->help = span_strdup(help);
    f->type = type;
    list_push_back(&m->families, &f->link);
    return f;
}

static struct metric *metric_get(struct metrics *m, enum metric_type type, const char *name,
                                 const char *labels, const char *help)
{
    const size_t buckets = type == METRIC_HIST ? HIST_BOUNDS + 1 : 0;
    struct family *f = NULL;
    struct metric *x = NULL;

    REQUIRE(name_is_valid(name));
    REQUIRE(strchr(labels, '\n') == NULL);
    pthread_mutex_lock(&m->lock);
    f = family_get(m, type, name, help);
    LIST_EACH(it, &f->members)
    {
        x = LIST_ENTRY(it, struct metric, link);
        if (strcmp(x->labels, labels) == 0) {
            pthread_mutex_unlock(&m->lock);
            return x;
        }
    }
    x = span_calloc(1, sizeof *x + buckets * sizeof x->buckets[0]);
    x->type = type;
    x->labels = span_strdup(labels);
    list_push_back(&f->members, &x->link);
    pthread_mutex_unlock(&m->lock);
    return x;
}

struct metric *metrics_counter(struct metrics *m, const char *name, const char *labels,
                               const char *help)
{
    return metric_get(m, METRIC_COUNTER, name, labels, help);
}

struct metric *metrics_gauge(struct metrics *m, const char *name, const char *labels,
                             const char *help)
{
    return metric_get(m, METRIC_GAUGE, name, labels, help);
}

struct metric *metrics_hist(struct metrics *m, const char *name, const char *labels,
                            const char *help)
{
    return metric_get(m, METRIC_HIST, name, labels, help);
}

void metric_add(struct metric *c, uint64_t n)
{
    if (c) {
        REQUIRE(c->type == METRIC_COUNTER);
        atomic_fetch_add_explicit(&c->value, n, memory_order_relaxed);
    }
}

void metric_set(struct metric *g, double v)
{
    uint64_t bits = 0;

    if (g) {
        REQUIRE(g->type == METRIC_GAUGE);
        memcpy(&bits, &v, sizeof bits);
        atomic_store_explicit(&g->value, bits, memory_order_relaxed);
    }
}

void metric_observe_ns(struct metric *h, uint64_t ns)
{
    size_t i = 0;

    if (!h) {
        return;
    }
    REQUIRE(h->type == METRIC_HIST);
    if (ns > HIST_FIRST_NS) {
        /* The smallest i with first * 2^i >= ns. */
        const uint64_t ratio = (ns - 1) / HIST_FIRST_NS;

        i = 64u - (size_t)__builtin_clzll(ratio);
        if (i > HIST_BOUNDS) {
            i = HIST_BOUNDS;
        }
    }
    atomic_fetch_add_explicit(&h->buckets[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->value, ns, memory_order_relaxed);
}

uint64_t metric_value(const struct metric *c)
{
    uint64_t sum = 0;

    if (!c) {
        return 0;
    }
    if (c->type != METRIC_HIST) {
        return atomic_load_explicit(&c->value, memory_order_relaxed);
    }
    for (size_t i = 0; i <= HIST_BOUNDS; i++) {
        sum += atomic_load_explicit(&c->buckets[i], memory_order_relaxed);
    }
    return sum;
}

static void render_help(const struct family *f, struct buf *out)
{
    static const char *const types[] = {
        [METRIC_COUNTER] = "counter", [METRIC_GAUGE] = "gauge", [METRIC_HIST] = "histogram"};

    buf_printf(out, "# HELP %s ", f->name);
    for (const char *p = f->help; *p; p++) {
        if (*p == '\\') {
            buf_append_str(out, "\\\\");
        } else if (*p == '\n') {
            buf_append_str(out, "\\n");
        } else {
            buf_append_byte(out, (uint8_t)*p);
        }
    }
    buf_printf(out, "\n# TYPE %s %s\n", f->name, types[f->type]);
}

static void render_number(double v, struct buf *out)
{
    if (__builtin_isnan(v)) {
        buf_append_str(out, "NaN\n");
    } else if (__builtin_isinf(v)) {
        buf_append_str(out, v > 0 ? "+Inf\n" : "-Inf\n");
    } else {
        buf_printf(out, "%.15g\n", v);
    }
}

static void render_name(const struct family *f, const char *suffix, const char *labels,
                        struct buf *out)
{
    buf_printf(out, "%s%s", f->name, suffix);
    if (*labels) {
        buf_printf(out, "{%s}", labels);
    }
    buf_append_byte(out, ' ');
}

static void render_hist(const struct family *f, const struct metric *x, struct buf *out)
{
    const char *comma = *x->labels ? "," : "";
    uint64_t below = 0;

    for (size_t i = 0; i < HIST_BOUNDS; i++) {
        below += atomic_load_explicit(&x->buckets[i], memory_order_relaxed);
        buf_printf(out, "%s_bucket{%s%sle=\"%.9g\"} %" PRIu64 "\n", f->name, x->labels, comma,
                   (double)(HIST_FIRST_NS << i) / 1e9, below);
    }
    below += atomic_load_explicit(&x->buckets[HIST_BOUNDS], memory_order_relaxed);
    buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", f->name, x->labels, comma, below);
    render_name(f, "_sum", x->labels, out);
    render_number((double)atomic_load_explicit(&x->value, memory_order_relaxed) / 1e9, out);
    render_name(f, "_count", x->labels, out);
    buf_printf(out, "%" PRIu64 "\n", below);
}

static void render_metric(const struct family *f, const struct metric *x, struct buf *out)
{
    const uint64_t bits = atomic_load_explicit(&x->value, memory_order_relaxed);
    double v = 0;

    switch (f->type) {
    case METRIC_COUNTER:
        render_name(f, "", x->labels, out);
        buf_printf(out, "%" PRIu64 "\n", bits);
        break;
    case METRIC_GAUGE:
        memcpy(&v, &bits, sizeof v);
        render_name(f, "", x->labels, out);
        render_number(v, out);
        break;
    case METRIC_HIST:
        render_hist(f, x, out);
        break;
    }
}

void metrics_render(struct metrics *m, struct buf *out)
{
    pthread_mutex_lock(&m->lock);
    LIST_EACH(fl, &m->families)
    {
        const struct family *f = LIST_ENTRY(fl, struct family, link);

        render_help(f, out);
        LIST_EACH(ml, &f->members)
        {
            render_metric(f, LIST_ENTRY(ml, struct metric, link), out);
        }
    }
    pthread_mutex_unlock(&m->lock);
}
