/* xoshiro256** (Blackman and Vigna, public domain algorithm), seeded by splitmix64 so that every
 * seed, also 0, gives a good state. The same seed gives the same numbers on every machine: seeds of
 * failed runs are kept for years. */
#include "base/rng.h"

#include "base/invariant.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

static uint64_t rotl(uint64_t v, unsigned by)
{
    return v << by | v >> (64 - by);
}

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void rng_init(struct rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        r->s[i] = splitmix64(&seed);
    }
}

uint64_t rng_u64(struct rng *r)
{
    const uint64_t out = rotl(r->s[1] * 5, 7) * 9;
    const uint64_t t = r->s[1] << 17;

    r->s[2] ^= r->s[0];
    r->s[3] ^= r->s[1];
    r->s[1] ^= r->s[2];
    r->s[0] ^= r->s[3];
    r->s[2] ^= t;
    r->s[3] = rotl(r->s[3], 45);
    return out;
}

uint64_t rng_below(struct rng *r, uint64_t n)
{
    uint64_t reject_below = 0;
    uint64_t v = 0;

    REQUIRE(n > 0);
    /* The first 2^64 mod n numbers are drawn again, or small results would come more often. */
    reject_below = (UINT64_MAX - n + 1) % n;
    do {
        v = rng_u64(r);
    } while (v < reject_below);
    return v % n;
}

uint64_t rng_between(struct rng *r, uint64_t lo, uint64_t hi)
{
    REQUIRE(lo <= hi);
    if (hi - lo == UINT64_MAX) {
        return rng_u64(r);
    }
    return lo + rng_below(r, hi - lo + 1);
}

double rng_double(struct rng *r)
{
    return (double)(rng_u64(r) >> 11) * 0x1p-53;
}

uint64_t rng_os_u64(void)
{
    uint64_t v = 0;
    ssize_t n = 0;

    do {
        n = getrandom(&v, sizeof v, 0);
    } while (n < 0 && errno == EINTR);
    INVARIANT(n == (ssize_t)sizeof v); /* requests up to 256 bytes are never cut short */
    return v;
}
