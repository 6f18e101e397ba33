/* Settings of a command: flags > SPANLITE_* environment > file > default.
 *
 * Each command has one table of struct config_option. The table is what parses (flags, environment
 * and file alike), what prints --help, and what a man page or completion can be made from. Values
 * are checked as they are set, so that an error can say where the value stood: the flag, the
 * variable, or file:line. Unknown flags and keys are errors with the nearest name as a hint. Sizes
 * are written 64MiB, times 4ms, drift 50ppm.
 *
 * One owner, no threads. */
#ifndef SPAN_COORDINATOR_CONFIG_H
#define SPAN_COORDINATOR_CONFIG_H

#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum config_kind {
    CONFIG_BOOL,     /* --name, --no-name, --name=on|off|true|false|yes|no|1|0 */
    CONFIG_TEXT,     /* anything that is not empty */
    CONFIG_COUNT,    /* whole number */
    CONFIG_SIZE,     /* bytes: 4096, 64KiB, 1GB */
    CONFIG_DURATION, /* nanoseconds: 4ms, 1.5s, 2h; a bare number other than 0 is refused */
    CONFIG_OFFSET,   /* a duration that may be negative */
    CONFIG_DRIFT,    /* parts per billion, may be negative: 50ppm, -0.5ppm, 200ppb */
    CONFIG_CHOICE,   /* one of `choices` */
};

enum config_where {
    CONFIG_ANYWHERE,
    CONFIG_FLAG_ONLY,    /* no variable, no key: --json, --config */
    CONFIG_FLAG_AND_ENV, /* a variable, but no key: where the file is */
};

struct config_option {
    const char *name; /* long flag and file key; the variable is SPANLITE_NAME with _ for - */
    char letter;      /* short flag, or 0 */
    enum config_kind kind;
    enum config_where where;
    const char *arg;     /* name of the value in the help: "URL"; NULL for CONFIG_BOOL */
    const char *preset;  /* default, in the same notation; NULL: unset (bool: off) */
    const char *choices; /* CONFIG_CHOICE: "a|b|c" */
    int64_t min;         /* bounds of numbers, inclusive; both 0: none */
    int64_t max;
    const char *help; /* one sentence without a full stop */
};

struct config;

/* The table must outlive the config. Presets are parsed here; a preset that does not parse is our
 * bug. */
struct config *config_new(const struct config_option *options, size_t count);
void config_free(struct config *c);

/* Flags and positional arguments of argv[1..argc-1]. "--" ends the flags; what follows is kept as
 * arguments. More than `args_max` arguments are INVALID, as is every bad flag or value. The last of
 * two equal flags counts. Sets config_help_wanted on --help or -h and stops there. */
SPAN_CHECKED span_status config_parse_args(struct config *c, int argc, char **argv, size_t args_max,
                                           struct span_error *err);
/* Takes SPANLITE_* of a NULL-terminated environment; variables without an option are not ours. */
SPAN_CHECKED span_status config_parse_env(struct config *c, char *const *envp,
                                          struct span_error *err);
/* key = value lines; # and ; begin a comment line, values may be "quoted". An unknown key, a key
 * given twice or a line without "=" is INVALID with name:line. `name` is for messages. */
SPAN_CHECKED span_status config_parse_text(struct config *c, const char *name, struct slice text,
                                           struct span_error *err);
/* The same from a file. IO when it cannot be read, TOO_LARGE above 1 MiB. */
SPAN_CHECKED span_status config_parse_file(struct config *c, const char *path,
                                           struct span_error *err);

bool config_help_wanted(const struct config *c);
size_t config_arg_count(const struct config *c);
const char *config_arg(const struct config *c, size_t i); /* NULL beyond the last */

/* Values by option name; asking for a name or kind that the table does not have is our bug. */
bool config_is_set(const struct config *c, const char *name); /* by more than its default */
const char *config_origin(const struct config *c,
                          const char *name); /* "default", "--id", "SPANLITE_ID", "f:3" */
bool config_bool(const struct config *c, const char *name);
const char *config_text(const struct config *c,
                        const char *name);                      /* TEXT and CHOICE; NULL: unset */
uint64_t config_uint(const struct config *c, const char *name); /* COUNT, SIZE, DURATION */
int64_t config_int(const struct config *c, const char *name);   /* OFFSET, DRIFT */

/* Every option as "name = value  # origin", in the table's order; unset ones as comments. */
void config_dump(const struct config *c, struct buf *out);

/* The "Options:" part of a help text. */
void config_help_options(const struct config_option *options, size_t count, struct buf *out);

/* One value in the notation of a kind; used by the tables and wherever else a size or time is read.
 */
SPAN_CHECKED span_status config_read_duration(const char *text, int64_t *ns);
SPAN_CHECKED span_status config_read_size(const char *text, uint64_t *bytes);

/* The name nearest to `word` if it is near enough to be meant, else NULL. */
const char *config_nearest(const char *word, const char *const *names, size_t count);

#endif
