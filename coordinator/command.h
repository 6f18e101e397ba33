/* The frame of the one binary: a table of subcommands, `spanlite VERB ...`.
 *
 * main.c fills the table and calls command_run; every verb is a main function of its own whose
 * argv[0] is the verb. Exit codes are the same everywhere: 0 done, 1 it failed, 2 wrong usage or no
 * connection. Help goes to stdout when asked for and to stderr when the usage was wrong. */
#ifndef SPAN_COORDINATOR_COMMAND_H
#define SPAN_COORDINATOR_COMMAND_H

#include "base/buf.h"
#include "coordinator/config.h"

enum command_exit {
    COMMAND_OK = 0,
    COMMAND_FAILED = 1,
    COMMAND_USAGE = 2, /* also: no connection */
};

struct command {
    const char *name;
    const char *summary; /* one line for the list */
    const char *example; /* one line of shell */
    int (*main)(int argc, char **argv);
};

/* Runs argv[1]'s command, or help, version and the answers to wrong usage. Returns the exit code.
 */
int command_run(const struct command *table, size_t count, int argc, char **argv);

/* What a command that is built on coordinator/config.h says about itself. */
struct command_help {
    const char *usage;   /* "spanlite start --id N --data DIR [flags]" */
    const char *about;   /* sentences; wrapped by hand at 79 columns */
    const char *example; /* one or more lines, each "  spanlite ..." */
    const struct config_option *options;
    size_t option_count;
};

void command_help_render(const struct command_help *h, struct buf *out);
/* Parses the flags. Returns -1 to go on, or the exit code: 0 after --help was printed, 2 after a
 * complaint on stderr that names the flag and how to get help. */
int command_parse(const struct command_help *h, struct config *c, int argc, char **argv,
                  size_t args_max);
/* "spanlite start: text" on stderr; returns `code`. */
int command_fail(const char *verb, enum command_exit code, const struct span_error *err);

/* A flag or word that would be without effect: "spanlite demo: --seconds belongs to --no-shell" and
 * where help is, on stderr; returns COMMAND_USAGE. */
int command_misplaced(const char *verb, const char *what, const char *why);

/* The answer to `spanlite verb WORD` when WORD (NULL: missing) is none of the verb's own words. */
int command_fail_verb(const char *verb, const char *word, const char *const *words, size_t count);

/* The commands that live in coordinator/. */
int cmd_start_main(int argc, char **argv);
int cmd_node_main(int argc, char **argv);
int cmd_range_main(int argc, char **argv);
/* The demo ends in the SQL shell and begins with the bank workload, both clients that coordinator/
 * may not include: main.c hands them in. */
int cmd_demo_run(int argc, char **argv, int (*shell)(int argc, char **argv),
                 int (*workload)(int argc, char **argv));

#endif
