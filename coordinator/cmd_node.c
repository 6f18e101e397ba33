/* `spanlite node status`: the nodes of a running cluster, by SHOW NODES over libpq. */
#include "coordinator/sql_client.h"

#include <string.h>

static const struct config_option node_options[] = {SQL_CLIENT_OPTIONS};

static const struct command_help node_help = {
    .usage = "spanlite node status|ls [flags]",
    .about =
        "Prints the nodes of a running cluster as the node that answers sees them. `ls` is the\n"
        "same as `status`.",
    .example = "  spanlite node status --url postgresql://127.0.0.1:5433/ --json",
    .options = node_options,
    .option_count = sizeof(node_options) / sizeof(node_options[0]),
};

int cmd_node_main(int argc, char **argv)
{
    static const char *const verbs[] = {"status", "ls"};
    struct config *c = config_new(node_options, node_help.option_count);
    int code = command_parse(&node_help, c, argc, argv, 1);
    const char *verb = config_arg(c, 0);

    if (code < 0 && verb != NULL && (strcmp(verb, "status") == 0 || strcmp(verb, "ls") == 0)) {
        code = sql_client_run("node", c, "SHOW NODES",
                              "node state sql_address http_address ranges leads clock uptime_s");
    } else if (code < 0) {
        code = command_fail_verb("node", verb, verbs, 2);
    }
    config_free(c);
    return code;
}
