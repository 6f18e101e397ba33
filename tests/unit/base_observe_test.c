/* What operators look at: histogram, metrics text, log lines. */
#include "base/alloc.h"
#include "base/hist.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/rng.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

static int compare_u64(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a;
    const uint64_t y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

Test(hist, quantiles_are_within_one_part_in_64)
{
    struct rng r;
    struct hist *h = SPAN_NEW(struct hist);
    struct hist *other = SPAN_NEW(struct hist);

    enum { COUNT = 5000 };

    uint64_t *v = span_calloc(COUNT, sizeof *v);
    const uint64_t seed = rng_os_u64();

    cr_log_info("seed %llu", (unsigned long long)seed);
    rng_init(&r, seed);
    for (int round = 0; round < 20; round++) {
        uint64_t sum = 0;

        hist_init(h);
        hist_init(other);
        for (size_t i = 0; i < COUNT; i++) {
            /* Every magnitude, up to 2^63 - 1. */
            v[i] = rng_u64(&r) >> (round == 0 ? 1 + rng_below(&r, 63) : 64 - 3 * (unsigned)round);
            sum += v[i];
            hist_add(i % 2 ? h : other, v[i]);
        }
        hist_merge(h, other);
        qsort(v, COUNT, sizeof *v, compare_u64);
        cr_assert_eq(h->count, COUNT);
        cr_assert_eq(h->sum, sum);
        for (int q = 0; q <= 100; q++) {
            const size_t rank = q == 0 ? 0 : (size_t)(q * COUNT + 99) / 100 - 1;
            const uint64_t got = hist_quantile(h, q / 100.0);

            cr_assert(got >= v[rank], "q %d: %llu < %llu", q, (unsigned long long)got,
                      (unsigned long long)v[rank]);
            cr_assert(got - v[rank] <= v[rank] / 64, "q %d: %llu for %llu", q,
                      (unsigned long long)got, (unsigned long long)v[rank]);
        }
        cr_assert_eq(hist_quantile(h, 0), v[0]);
        cr_assert_eq(hist_quantile(h, 1), v[COUNT - 1]);
    }
    span_free(v);
    span_free(other);
    span_free(h);
}

Test(hist, holds_the_extremes_and_nothing)
{
    struct hist *h = SPAN_NEW(struct hist);

    hist_init(h);
    cr_assert_eq(hist_quantile(h, 0.5), 0);
    cr_assert(hist_mean(h) == 0);
    hist_add(h, 0);
    hist_add(h, UINT64_MAX);
    cr_assert_eq(hist_quantile(h, 0.5), 0);
    cr_assert_eq(hist_quantile(h, 0.51), UINT64_MAX);
    span_free(h);
}

/* Value of the sample line that starts with `line`, or -1. */
static double sample(const char *text, const char *line)
{
    const char *at = strstr(text, line);

    cr_assert(at && (at == text || at[-1] == '\n'), "no line %s in\n%s", line, text);
    return strtod(at + strlen(line), NULL);
}

static size_t occurrences(const char *text, const char *what)
{
    size_t n = 0;

    for (const char *at = strstr(text, what); at; at = strstr(at + 1, what)) {
        n++;
    }
    return n;
}

Test(metrics, text_groups_a_name_under_one_help_and_type)
{
    struct metrics *m = metrics_new();
    struct metric *a =
        metrics_counter(m, "spanlite_tx_total", "kind=\"a\"", "Trans\\actions\nof all");
    struct metric *g = metrics_gauge(m, "spanlite_epsilon_seconds", "", "Half width");
    struct metric *b = metrics_counter(m, "spanlite_tx_total", "kind=\"b\"", "ignored");
    struct buf out = {0};
    const char *text = NULL;

    metric_add(a, 3);
    metric_add(b, 4);
    metric_set(g, 0.001);
    cr_assert_eq(metrics_counter(m, "spanlite_tx_total", "kind=\"a\"", ""), a);
    cr_assert_eq(metric_value(a), 3);
    metrics_render(m, &out);
    text = buf_cstr(&out);
    cr_assert_str_eq(text, "# HELP spanlite_tx_total Trans\\\\actions\\nof all\n"
                           "# TYPE spanlite_tx_total counter\n"
                           "spanlite_tx_total{kind=\"a\"} 3\n"
                           "spanlite_tx_total{kind=\"b\"} 4\n"
                           "# HELP spanlite_epsilon_seconds Half width\n"
                           "# TYPE spanlite_epsilon_seconds gauge\n"
                           "spanlite_epsilon_seconds 0.001\n");
    buf_deinit(&out);
    metrics_free(m);
}

Test(metrics, histogram_is_cumulative_and_ends_with_the_count)
{
    struct metrics *m = metrics_new();
    struct metric *h = metrics_hist(m, "spanlite_commit_seconds", "path=\"one\"", "Commits");
    struct buf out = {0};
    const char *text = NULL;

    metric_observe_ns(h, 0);
    metric_observe_ns(h, 10000); /* a bound belongs to its bucket */
    metric_observe_ns(h, 10001);
    metric_observe_ns(h, 40000);
    metric_observe_ns(h, 40001);
    metric_observe_ns(h, 20971520000); /* the last bound */
    metric_observe_ns(h, 20971520001);
    cr_assert_eq(metric_value(h), 7);
    metrics_render(m, &out);
    text = buf_cstr(&out);
    cr_assert(sample(text, "spanlite_commit_seconds_bucket{path=\"one\",le=\"1e-05\"} ") == 2);
    cr_assert(sample(text, "spanlite_commit_seconds_bucket{path=\"one\",le=\"2e-05\"} ") == 3);
    cr_assert(sample(text, "spanlite_commit_seconds_bucket{path=\"one\",le=\"4e-05\"} ") == 4);
    cr_assert(sample(text, "spanlite_commit_seconds_bucket{path=\"one\",le=\"8e-05\"} ") == 5);
    cr_assert(sample(text, "spanlite_commit_seconds_bucket{path=\"one\",le=\"20.97152\"} ") == 6);
    cr_assert(sample(text, "spanlite_commit_seconds_bucket{path=\"one\",le=\"+Inf\"} ") == 7);
    cr_assert(sample(text, "spanlite_commit_seconds_count{path=\"one\"} ") == 7);
    cr_assert_float_eq(sample(text, "spanlite_commit_seconds_sum{path=\"one\"} "), 41.943140003,
                       1e-9);
    cr_assert_eq(occurrences(text, "# TYPE spanlite_commit_seconds histogram\n"), 1);
    cr_assert_eq(text[out.size - 1], '\n');
    buf_deinit(&out);
    metrics_free(m);
}

Test(metrics, missing_ones_are_ignored)
{
    metric_add(NULL, 1);
    metric_set(NULL, 1);
    metric_observe_ns(NULL, 1);
    cr_assert_eq(metric_value(NULL), 0);
    metrics_free(NULL);
}

struct captured {
    char line[20000];
    enum log_level level;
    unsigned count;
};

static void capture(void *ctx, enum log_level level, const char *line)
{
    struct captured *c = ctx;

    c->level = level;
    c->count++;
    snprintf(c->line, sizeof c->line, "%s", line);
}

/* The line without its time. */
static const char *rest(const struct captured *c)
{
    cr_assert(strncmp(c->line, "ts=2", 4) == 0, "%s", c->line);
    cr_assert_eq(c->line[30], ' ', "%s", c->line);
    return c->line + 31;
}

Test(log, quotes_values_and_separates_fields)
{
    struct captured *c = SPAN_NEW(struct captured);
    char *huge = span_malloc(100001);

    log_set_sink(capture, c);
    log_set_node(3);
    SPAN_LOG(INFO, "opened \"it\"", "path=%s size=%d empty=%s", "/a b/c", 7, "");
    cr_assert_str_eq(
        rest(c), "level=info node=3 msg=\"opened \\\"it\\\"\" path=\"/a b/c\" size=7 empty=\"\"");
    SPAN_LOG(WARN, "m", "err=\"%s: %s\" pct=%d%% pad=[% d] eq=%s", "x y", "z", 5, 1, "a=b");
    cr_assert_str_eq(rest(c),
                     "level=warn node=3 msg=\"m\" err=\"x y: z\" pct=5% pad=\"[ 1]\" eq=\"a=b\"");
    SPAN_LOG(ERROR, "m", "t=%s u=%s", "line\nbreak\t\\", "\xc3\xa9");
    cr_assert_str_eq(rest(c),
                     "level=error node=3 msg=\"m\" t=\"line\\nbreak\\x09\\\\\" u=\xc3\xa9");
    log_set_node(0);
    SPAN_LOG_MSG(INFO, "bare");
    cr_assert_str_eq(rest(c), "level=info msg=\"bare\"");
    memset(huge, 'x', 100000);
    huge[100000] = 0;
    SPAN_LOG(INFO, "m", "v=%s last=1", huge);
    cr_assert(strlen(c->line) < 3000);
    cr_assert_not_null(strstr(c->line, "xxx...\" last=1"));
    span_free(huge);
    log_set_sink(NULL, NULL);
    span_free(c);
}

Test(log, levels_are_parsed_and_filtered)
{
    struct captured *c = SPAN_NEW(struct captured);
    enum log_level level = LOG_ERROR;

    log_set_sink(capture, c);
    SPAN_LOG(DEBUG, "m", "a=%d", 1);
    cr_assert_eq(c->count, 0);
    cr_assert(log_level_parse("debug", &level));
    log_set_level(level);
    SPAN_LOG(DEBUG, "m", "a=%d", 1);
    cr_assert_eq(c->count, 1);
    cr_assert_eq(c->level, LOG_DEBUG);
    cr_assert(!log_level_parse("loud", &level));
    log_set_level(LOG_INFO);
    log_set_sink(NULL, NULL);
    span_free(c);
}
