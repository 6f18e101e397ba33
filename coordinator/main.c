/* The table of subcommands of the one binary. This file alone may include anything: it only fills
 * the table. */
#include "coordinator/command.h"
#include "deploy/workload/workload.h"
#include "sql/shell/shell.h"
#include "tests/check/cmd_check.h"
#include "tests/sim/sim.h"

static int demo_main(int argc, char **argv)
{
    return cmd_demo_run(argc, argv, shell_main, workload_main);
}

static const struct command commands[] = {
    {"demo", "a cluster inside this process, and a SQL shell on it", "spanlite demo --nodes 3",
     demo_main},
    {"start", "run one node", "spanlite start --id 1 --data node1 --peers 1=tcp://127.0.0.1:7100",
     cmd_start_main},
    {"sql", "SQL shell", "spanlite sql -c 'SHOW RANGES'", shell_main},
    {"workload", "bank transfers with invariants checked",
     "spanlite workload bank run --seconds 10", workload_main},
    {"check", "is a recorded history strictly serializable?", "spanlite check history.jsonl",
     cmd_check_main},
    {"node", "nodes of a running cluster: status, add, drain, decommission", "spanlite node status",
     cmd_node_main},
    {"range", "ranges of a running cluster: list, split, merge, move, transfer-leader",
     "spanlite range list", cmd_range_main},
    {"sim", "deterministic simulation: whole clusters with faults, on virtual time",
     "spanlite sim --seed 1 --seeds 100", sim_main},
};

int main(int argc, char **argv)
{
    return command_run(commands, sizeof(commands) / sizeof(commands[0]), argc, argv);
}
