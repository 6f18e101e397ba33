/* Deterministic pseudo-random numbers (xoshiro256**), seeded by splitmix64. Cores get one passed
 * in; nothing in a core calls rand(). */
#ifndef SPAN_BASE_RNG_H
#define SPAN_BASE_RNG_H

#include <stdint.h>

struct rng {
    uint64_t s[4];
};

void rng_init(struct rng *r, uint64_t seed);
uint64_t rng_u64(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t n);                 /* 0 .. n-1, unbiased; n > 0 */
uint64_t rng_between(struct rng *r, uint64_t lo, uint64_t hi); /* both inclusive */
double rng_double(struct rng *r);                              /* [0, 1) */

/* 64 bits from the operating system (getrandom); for seeds, store ids and keys. Not for cores. */
uint64_t rng_os_u64(void);

#endif
