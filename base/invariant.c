/* What happens when an invariant fails: one line on stderr that says where, in which build and (in
 * the simulator and the randomized tests) under which seed, then abort. Nothing here allocates,
 * locks or logs through base/log.h, because the broken state may be theirs. */
#include "base/invariant.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef SPAN_GIT_DESCRIBE
#define BUILD_ID SPAN_VERSION " (" SPAN_GIT_DESCRIBE ")"
#else
#define BUILD_ID SPAN_VERSION
#endif

static _Atomic uint64_t invariant_seed;

void span_invariant_set_seed(uint64_t seed)
{
    atomic_store_explicit(&invariant_seed, seed, memory_order_relaxed);
}

_Noreturn void span_invariant_failed(const char *cond, const char *file, int line)
{
    const uint64_t seed = atomic_load_explicit(&invariant_seed, memory_order_relaxed);
    char text[1024];
    int n = snprintf(text, sizeof text, "spanlite: invariant failed: %s at %s:%d, build %s", cond,
                     file, line, BUILD_ID);

    if (n > 0 && (size_t)n < sizeof text && seed != 0) {
        n += snprintf(text + n, sizeof text - (size_t)n, ", seed %" PRIu64, seed);
    }
    if (n > 0) {
        size_t size = (size_t)n < sizeof text - 1 ? (size_t)n : sizeof text - 2;

        text[size++] = '\n';
        if (write(STDERR_FILENO, text, size) < 0) {
            abort(); /* nobody left to tell */
        }
    }
    abort();
}
