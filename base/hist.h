/* Log-linear histogram: 64 sub-buckets a power of two (error at most 1.6 %), values 0 .. 2^63-1,
 * mergeable. For latencies in nanoseconds or microseconds. One owner, no atomics. */
#ifndef SPAN_BASE_HIST_H
#define SPAN_BASE_HIST_H

#include <stdint.h>

#define HIST_BUCKETS (58 * 64 + 64)

struct hist {
    uint64_t count;
    uint64_t sum;
    uint64_t min;
    uint64_t max;
    uint64_t buckets[HIST_BUCKETS];
};

void hist_init(struct hist *h);
void hist_add(struct hist *h, uint64_t v);
void hist_merge(struct hist *into, const struct hist *from);
uint64_t hist_quantile(const struct hist *h, double q); /* 0 when empty; q in [0, 1] */
double hist_mean(const struct hist *h);

#endif
