/* `spanlite sim`: deterministic simulation of whole clusters. See README.md here. */
#ifndef SPAN_TESTS_SIM_SIM_H
#define SPAN_TESTS_SIM_SIM_H

#include "tests/sim/sim_tally.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a seed draws from. */
struct sim_scenario {
    const char *name;
    const char *text;
};

struct sim_options {
    uint64_t seed;
    const char *scenario; /* of sim_scenario_get */
    uint64_t steps;       /* events at most while faults go on; 0: as the seed draws */
    bool trace;           /* an event log on stdout */
    bool quiet;
};

struct sim_result {
    bool ok;
    uint64_t trace; /* hash of all events */
    uint64_t events;
    uint64_t virtual_ns;
    size_t transactions;
    size_t committed;
    uint64_t tally[TALLY_COUNT];
    char why[1300]; /* if not ok */
    char summary[400];
};

const struct sim_scenario *sim_scenario_get(size_t i); /* NULL: no more */
/* One seed from boot to verdict. */
void sim_run_seed(const struct sim_options *opt, struct sim_result *out);

/* The subcommand. */
int sim_main(int argc, char **argv);

#endif
