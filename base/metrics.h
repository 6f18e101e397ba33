/* Counters, gauges and histograms as relaxed atomics, and their Prometheus text exposition
 * (version 0.0.4). A registry belongs to a node (several nodes may share a process). Metrics are
 * registered at start-up and live as long as the registry. Names by convention: prefix spanlite_,
 * base units, _total on counters, seconds for times. */
#ifndef SPAN_BASE_METRICS_H
#define SPAN_BASE_METRICS_H

#include "base/buf.h"

struct metrics;
struct metric;

struct metrics *metrics_new(void);
void metrics_free(struct metrics *m);
/* labels: "" or `kind="a",x="b"`. Registering the same name and labels again returns the same
 * metric. */
struct metric *metrics_counter(struct metrics *m, const char *name, const char *labels,
                               const char *help);
struct metric *metrics_gauge(struct metrics *m, const char *name, const char *labels,
                             const char *help);
/* Histogram of seconds with exponential buckets x2 from 10 us to 20 s; observe in nanoseconds. */
struct metric *metrics_hist(struct metrics *m, const char *name, const char *labels,
                            const char *help);

void metric_add(struct metric *c, uint64_t n);         /* counters; NULL is ignored */
void metric_set(struct metric *g, double v);           /* gauges; NULL is ignored */
void metric_observe_ns(struct metric *h, uint64_t ns); /* histograms; NULL is ignored */
uint64_t metric_value(const struct metric *c);         /* counter's value, histogram's count */

void metrics_render(struct metrics *m, struct buf *out);

#endif
