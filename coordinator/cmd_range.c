/* `spanlite range`: ranges of a running cluster, by SHOW RANGES and ALTER over libpq. */
#include "base/alloc.h"
#include "coordinator/sql_client.h"

#include <stdio.h>
#include <string.h>

#define SPLIT_KEYS_MAX 1000

static const struct config_option range_options[] = {SQL_CLIENT_OPTIONS};

static const struct command_help range_help = {
    .usage = "spanlite range list [flags]\n"
             "       spanlite range split TABLE KEY... [flags]\n"
             "       spanlite range merge RANGE NEIGHBOUR [flags]\n"
             "       spanlite range move RANGE FROM TO [flags]\n"
             "       spanlite range transfer-leader RANGE NODE [flags]",
    .about = "list              every range: its keys, replicas and leader\n"
             "split             cut a table's ranges at these primary keys; a key of several\n"
             "                  columns is one argument, \"1,'a'\"\n"
             "merge             make two neighbouring ranges one; both need the same replicas\n"
             "move              move a range's replica from one node to another\n"
             "transfer-leader   ask a range's leader to hand over to another node",
    .example = "  spanlite range split accounts 250 500 750\n"
               "  spanlite range list --json\n"
               "  spanlite range merge 4 5\n"
               "  spanlite range move 4 3 5\n"
               "  spanlite range transfer-leader 4 2",
    .options = range_options,
    .option_count = sizeof(range_options) / sizeof(range_options[0]),
};

static bool is_number(const char *s)
{
    size_t n = strlen(s);

    return n > 0 && n < 20 && strspn(s, "0123456789") == n;
}

/* "a" with quotes as SQL wants them, so that any table name can be given. */
static void append_identifier(struct buf *out, const char *name)
{
    buf_append_byte(out, '"');
    for (; *name != '\0'; name++) {
        if (*name == '"') {
            buf_append_byte(out, '"');
        }
        buf_append_byte(out, (uint8_t)*name);
    }
    buf_append_byte(out, '"');
}

/* True after a complaint: what ALTER answers has no columns to choose from. */
static bool complains_wide(const struct config *c)
{
    return config_bool(c, "wide") &&
           command_misplaced("range", "--wide", "belongs to list") != COMMAND_OK;
}

static int run_list(struct config *c)
{
    if (config_arg_count(c) > 1) {
        return command_misplaced("range", config_arg(c, 1),
                                 "is one word too many: list takes none");
    }
    return sql_client_run("range", c, "SHOW RANGES",
                          "range_id start_key end_key leader replicas state");
}

static int run_split(struct config *c)
{
    size_t count = config_arg_count(c);
    struct buf sql = {0};
    int code;

    if (complains_wide(c)) {
        return COMMAND_USAGE;
    }
    if (count < 3) {
        fputs("spanlite range: split needs a table and at least one key\n", stderr);
        return COMMAND_USAGE;
    }
    buf_append_str(&sql, "ALTER TABLE ");
    append_identifier(&sql, config_arg(c, 1));
    buf_append_str(&sql, " SPLIT AT VALUES ");
    for (size_t i = 2; i < count; i++) {
        buf_printf(&sql, "%s(%s)", i > 2 ? ", " : "", config_arg(c, i));
    }
    code = sql_client_run("range", c, buf_cstr(&sql), NULL);
    buf_deinit(&sql);
    return code;
}

static int run_transfer(struct config *c)
{
    const char *range = config_arg(c, 1);
    const char *node = config_arg(c, 2);
    char *sql;
    int code;

    if (complains_wide(c)) {
        return COMMAND_USAGE;
    }
    if (config_arg_count(c) != 3 || !is_number(range) || !is_number(node)) {
        fputs("spanlite range: transfer-leader needs a range number and a node number\n", stderr);
        return COMMAND_USAGE;
    }
    sql = span_asprintf("ALTER RANGE %s TRANSFER LEADER TO %s", range, node);
    code = sql_client_run("range", c, sql, NULL);
    span_free(sql);
    return code;
}

static int run_merge(struct config *c)
{
    char *sql;
    int code;

    if (complains_wide(c)) {
        return COMMAND_USAGE;
    }
    if (config_arg_count(c) != 3 || !is_number(config_arg(c, 1)) || !is_number(config_arg(c, 2))) {
        fputs("spanlite range: merge needs the numbers of two neighbouring ranges\n", stderr);
        return COMMAND_USAGE;
    }
    sql = span_asprintf("ALTER RANGE %s MERGE WITH %s", config_arg(c, 1), config_arg(c, 2));
    code = sql_client_run("range", c, sql, NULL);
    span_free(sql);
    return code;
}

static int run_move(struct config *c)
{
    char *sql;
    int code;

    if (complains_wide(c)) {
        return COMMAND_USAGE;
    }
    if (config_arg_count(c) != 4 || !is_number(config_arg(c, 1)) || !is_number(config_arg(c, 2)) ||
        !is_number(config_arg(c, 3))) {
        fputs("spanlite range: move needs a range number and two node numbers, from and to\n",
              stderr);
        return COMMAND_USAGE;
    }
    sql = span_asprintf("ALTER RANGE %s MOVE FROM %s TO %s", config_arg(c, 1), config_arg(c, 2),
                        config_arg(c, 3));
    code = sql_client_run("range", c, sql, NULL);
    span_free(sql);
    return code;
}

int cmd_range_main(int argc, char **argv)
{
    static const char *const verbs[] = {"list", "ls", "split", "merge", "move", "transfer-leader"};
    struct config *c = config_new(range_options, range_help.option_count);
    int code = command_parse(&range_help, c, argc, argv, SPLIT_KEYS_MAX);
    const char *verb = config_arg(c, 0);

    if (code >= 0) {
        goto done;
    }
    if (verb != NULL && (strcmp(verb, "list") == 0 || strcmp(verb, "ls") == 0)) {
        code = run_list(c);
    } else if (verb != NULL && strcmp(verb, "split") == 0) {
        code = run_split(c);
    } else if (verb != NULL && strcmp(verb, "transfer-leader") == 0) {
        code = run_transfer(c);
    } else if (verb != NULL && strcmp(verb, "move") == 0) {
        code = run_move(c);
    } else if (verb != NULL && strcmp(verb, "merge") == 0) {
        code = run_merge(c);
    } else {
        code = command_fail_verb("range", verb, verbs, 6);
    }
done:
    config_free(c);
    return code;
}
