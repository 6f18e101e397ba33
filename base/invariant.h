/* Invariants: always on, O(1), without side effects. They are for our own bugs; bytes from disk,
 * peers or clients get a span_status. A failure prints the place, the build id and the simulation
 * seed (if one was set) and aborts the process. */
#ifndef SPAN_BASE_INVARIANT_H
#define SPAN_BASE_INVARIANT_H

#include <stdint.h>

#define INVARIANT(cond) ((cond) ? (void)0 : span_invariant_failed(#cond, __FILE__, __LINE__))
#define REQUIRE(cond)   INVARIANT(cond) /* what the caller owes */
#define ENSURE(cond)    INVARIANT(cond) /* what we owe the caller */

#ifdef SPAN_SLOW_INVARIANTS
#define INVARIANT_SLOW(cond) INVARIANT(cond)
#else
#define INVARIANT_SLOW(cond) ((void)0)
#endif

_Noreturn void span_invariant_failed(const char *cond, const char *file, int line);
/* Seed printed by a failing invariant; 0 (the default) prints none. */
void span_invariant_set_seed(uint64_t seed);

#endif
