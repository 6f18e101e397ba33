/* Directed schedules: scenarios of the simulator that are written down instead of drawn, one for
 * each rule whose breach takes a coincidence that random faults hardly meet (PROTOCOL.md gives the
 * story of each). The nodes run the same code as ever; a script waits until they are in some state
 * and then cuts, pauses or asks. What a script waits for may not come (it is the rule that prevents
 * it): then it goes on with the next act. Everything else of a run is as usual, and so are the
 * checks: a script finds nothing by itself, unless its rule is one of liveness. */
#ifndef SPAN_TESTS_SIM_SIM_SCRIPT_H
#define SPAN_TESTS_SIM_SIM_SCRIPT_H

#include "tests/sim/sim_world.h"

struct sim_script {
    const char *name; /* of the scenario */
    const char *text;
    size_t nodes;
    void (*run)(struct sim_world *w); /* after the start, while clients work or not */
    bool quiet;                       /* clients begin only after it */
};

const struct sim_script *sim_script_get(size_t i);              /* NULL: no more */
const struct sim_script *sim_script_find(const char *scenario); /* NULL: none */

#endif
