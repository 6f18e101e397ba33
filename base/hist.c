/* Log-linear histogram. A value below 64 has its own bucket. Above, a power of two [2^k, 2^(k+1))
 * is cut into 64 equal buckets of 2^(k-6), so a bucket's width is at most 1/64 of its values (1.6
 * %). A quantile is answered with the bucket's last value, kept inside [min, max]. */
#include "base/hist.h"

#include <stddef.h>

#define SUB_BITS  6
#define SUB_COUNT 64

static size_t hist_bucket(uint64_t v)
{
    unsigned shift = 0;

    if (v < SUB_COUNT) {
        return (size_t)v;
    }
    shift = 63u - (unsigned)__builtin_clzll(v) - SUB_BITS;
    /* v >> shift is 64 .. 127: 64 of them for each shift. */
    return (size_t)shift * SUB_COUNT + (size_t)(v >> shift);
}

/* The last value that falls into bucket i. */
static uint64_t hist_bucket_last(size_t i)
{
    unsigned shift = 0;

    if (i < 2 * SUB_COUNT) {
        return i;
    }
    shift = (unsigned)(i / SUB_COUNT) - 1;
    return ((uint64_t)(i - (size_t)shift * SUB_COUNT) << shift) + ((1ULL << shift) - 1);
}

void hist_init(struct hist *h)
{
    *h = (struct hist){.min = UINT64_MAX};
}

void hist_add(struct hist *h, uint64_t v)
{
    h->count++;
    h->sum += v;
    if (v < h->min) {
        h->min = v;
    }
    if (v > h->max) {
        h->max = v;
    }
    h->buckets[hist_bucket(v)]++;
}

void hist_merge(struct hist *into, const struct hist *from)
{
    if (from->count == 0) {
        return;
    }
    into->count += from->count;
    into->sum += from->sum;
    if (from->min < into->min) {
        into->min = from->min;
    }
    if (from->max > into->max) {
        into->max = from->max;
    }
    for (size_t i = 0; i < HIST_BUCKETS; i++) {
        into->buckets[i] += from->buckets[i];
    }
}

uint64_t hist_quantile(const struct hist *h, double q)
{
    double exact = 0;
    uint64_t rank = 0;
    uint64_t below = 0;

    if (h->count == 0) {
        return 0;
    }
    if (q <= 0) {
        return h->min;
    }
    if (q >= 1) {
        return h->max;
    }
    /* The smallest value with at least a share q of all at or below it; 0.56 * 5000 is 2800 and a
     * rounding error, which must not make it the 2801st. */
    exact = q * (double)h->count;
    rank = (uint64_t)exact;
    if (exact - (double)rank > 1e-9 * (double)h->count || rank == 0) {
        rank++;
    }
    for (size_t i = 0; i < HIST_BUCKETS; i++) {
        below += h->buckets[i];
        if (below >= rank) {
            const uint64_t last = hist_bucket_last(i);

            return last < h->min ? h->min : last > h->max ? h->max : last;
        }
    }
    return h->max;
}

double hist_mean(const struct hist *h)
{
    return h->count ? (double)h->sum / (double)h->count : 0;
}
