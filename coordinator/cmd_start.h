/* The settings of `spanlite start` as options of a server. Apart from the command so that the table
 * can be tested, and read by whatever prints a man page. */
#ifndef SPAN_COORDINATOR_CMD_START_H
#define SPAN_COORDINATOR_CMD_START_H

#include "base/log.h"
#include "coordinator/command.h"
#include "coordinator/server.h"

extern const struct command_help cmd_start_help;

/* Reads the file that --config names and the environment into a config that has its flags already,
 * turns it into options (initialised here) and checks them. INVALID or IO with a message that says
 * where the value stood. */
SPAN_CHECKED span_status cmd_start_options(struct config *c, char *const *envp,
                                           struct server_options *o, struct span_error *err);

#endif
