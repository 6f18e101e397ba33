/* Planted bugs: the controls of the simulator (tests/sim/README.md). Each is a rule of the protocol
 * that the product breaks on purpose when, and only when, `spanlite sim --plant NAME` asks for it;
 * a simulator that does not find one is not testing. One word of memory, set before anything runs
 * and only by the simulator: no flag, file, variable or message of a node reaches it. Outside the
 * simulator PLANTED costs one load that predicts well.
 *
 * Adding one is a line below and `if (PLANTED(NAME))` where the rule is kept. Columns: name, seeds
 * within which it must be found, what is broken (with the rule). Seeds are counted from 1 and of
 * the scenario `any`, unless the text begins with another one in brackets. */
#ifndef SPAN_BASE_PLANTED_H
#define SPAN_BASE_PLANTED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PLANTED_TABLE(X)                                                                           \
    X(COMMIT_WAIT_SKIPPED, 5, "D0: an answer leaves before tt_after of what it shows")             \
    X(FSYNC_LIES, 20, "a sync of the log says OK and makes nothing durable")

enum planted_bug {

#define PLANTED_ENUM(name, seeds, text) PLANTED_##name,
    PLANTED_TABLE(PLANTED_ENUM)
#undef PLANTED_ENUM
        PLANTED_COUNT
};

extern uint64_t planted_bits; /* by enum planted_bug; written before any thread starts */

#define PLANTED(name) (__builtin_expect((planted_bits & (1ULL << PLANTED_##name)) != 0, 0))

struct planted_info {
    const char *name; /* as in the table; --plant takes it in lower case with dashes */
    unsigned seeds;
    const char *text;
};

/* NULL from PLANTED_COUNT on. */
const struct planted_info *planted_get(size_t i);
/* False: no such name. Only for the simulator, before it runs. */
bool planted_set(const char *name);

#endif
