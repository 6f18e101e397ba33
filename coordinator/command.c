/* Dispatch over the table of subcommands, and what all of them share: help, complaints, exit codes.
 */
#include "coordinator/command.h"

#include "base/alloc.h"

#include <stdio.h>
#include <string.h>

static void append_overview(struct buf *out, const struct command *table, size_t count)
{
    buf_append_str(out, "spanlite: a small Spanner, a SQL database over replicated ranges\n\n"
                        "Usage: spanlite COMMAND [flags]\n\n"
                        "Example:\n"
                        "  spanlite demo\n\n"
                        "Commands:\n");
    for (size_t i = 0; i < count; i++) {
        buf_printf(out, "  %-10s %s\n", table[i].name, table[i].summary);
    }
    buf_append_str(out,
                   "  version    print the version (--json)\n"
                   "  help       help on a command: spanlite help start\n\n"
                   "Every command has --help with an example. Flags of `start` are also keys of\n"
                   "a file (--config) and variables SPANLITE_NAME. Clients take --url or\n"
                   "SPANLITE_URL. Exit codes: 0 done, 1 failed, 2 wrong usage or no connection.\n");
}

static void print_overview(FILE *to, const struct command *table, size_t count)
{
    struct buf out = {0};

    append_overview(&out, table, count);
    fputs(buf_cstr(&out), to);
    buf_deinit(&out);
}

static const struct command *find_command(const struct command *table, size_t count,
                                          const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(table[i].name, name) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

static int complain_unknown(const struct command *table, size_t count, const char *word)
{
    const char **names = span_calloc(count + 2, sizeof(names[0]));
    const char *near;

    for (size_t i = 0; i < count; i++) {
        names[i] = table[i].name;
    }
    names[count] = "version";
    names[count + 1] = "help";
    near = config_nearest(word, names, count + 2);
    fprintf(stderr, "spanlite: unknown command '%.80s'", word);
    if (near != NULL) {
        fprintf(stderr, ": did you mean '%s'?", near);
    }
    fputs("\nspanlite: 'spanlite help' lists the commands\n", stderr);
    span_free(names);
    return COMMAND_USAGE;
}

static int print_version(int argc, char **argv)
{
    if (argc == 1) {
        puts("spanlite " SPAN_VERSION);
        return COMMAND_OK;
    }
    if (argc == 2 && strcmp(argv[1], "--json") == 0) {
        puts("{\"name\":\"spanlite\",\"version\":\"" SPAN_VERSION "\",\"compiler\":\"" __VERSION__
             "\"}");
        return COMMAND_OK;
    }
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        puts("Usage: spanlite version [--json]\n\nExample:\n  spanlite version --json");
        return COMMAND_OK;
    }
    fprintf(stderr, "spanlite version: unexpected '%.80s'\n",
            argv[argc > 2 && strcmp(argv[1], "--json") == 0 ? 2 : 1]);
    return COMMAND_USAGE;
}

static int print_help(const struct command *table, size_t count, int argc, char **argv)
{
    const struct command *c;
    char help[] = "--help";
    char *sub_argv[3] = {NULL, help, NULL};

    if (argc > 2) {
        fprintf(stderr, "spanlite help: unexpected '%.80s': help is on one command at a time\n",
                argv[2]);
        return COMMAND_USAGE;
    }
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_overview(stdout, table, count);
        return COMMAND_OK;
    }
    if (strcmp(argv[1], "version") == 0) {
        sub_argv[0] = argv[1];
        return print_version(2, sub_argv);
    }
    c = find_command(table, count, argv[1]);
    if (c == NULL) {
        return complain_unknown(table, count, argv[1]);
    }
    sub_argv[0] = argv[1];
    return c->main(2, sub_argv);
}

int command_run(const struct command *table, size_t count, int argc, char **argv)
{
    const struct command *c;
    const char *verb = argc > 1 ? argv[1] : NULL;

    if (verb == NULL) {
        print_overview(stderr, table, count);
        return COMMAND_USAGE;
    }
    if (strcmp(verb, "help") == 0 || strcmp(verb, "--help") == 0 || strcmp(verb, "-h") == 0) {
        return print_help(table, count, argc - 1, argv + 1);
    }
    if (strcmp(verb, "version") == 0 || strcmp(verb, "--version") == 0 || strcmp(verb, "-V") == 0) {
        return print_version(argc - 1, argv + 1);
    }
    c = find_command(table, count, verb);
    if (c == NULL) {
        return complain_unknown(table, count, verb);
    }
    return c->main(argc - 1, argv + 1);
}

void command_help_render(const struct command_help *h, struct buf *out)
{
    buf_printf(out, "Usage: %s\n\n%s\n\nExample:\n%s\n\nOptions:\n", h->usage, h->about,
               h->example);
    config_help_options(h->options, h->option_count, out);
}

int command_fail(const char *verb, enum command_exit code, const struct span_error *err)
{
    fprintf(stderr, "spanlite %s: %s\n", verb, err->text);
    return (int)code;
}

static int say_help(const char *verb)
{
    fprintf(stderr, "spanlite %s: 'spanlite %s --help' shows every flag and an example\n", verb,
            verb);
    return COMMAND_USAGE;
}

int command_misplaced(const char *verb, const char *what, const char *why)
{
    fprintf(stderr, "spanlite %s: %.80s %s\n", verb, what, why);
    return say_help(verb);
}

int command_fail_verb(const char *verb, const char *word, const char *const *words, size_t count)
{
    const char *near = word != NULL ? config_nearest(word, words, count) : NULL;

    if (word == NULL) {
        fprintf(stderr, "spanlite %s: which of", verb);
        for (size_t i = 0; i < count; i++) {
            fprintf(stderr, "%s %s", i > 0 ? "," : "", words[i]);
        }
        fprintf(stderr, "?\n");
    } else if (near != NULL) {
        fprintf(stderr, "spanlite %s: unknown word '%.80s': did you mean '%s'?\n", verb, word,
                near);
    } else {
        fprintf(stderr, "spanlite %s: unknown word '%.80s'\n", verb, word);
    }
    return say_help(verb);
}

int command_parse(const struct command_help *h, struct config *c, int argc, char **argv,
                  size_t args_max)
{
    struct span_error err;

    if (config_parse_args(c, argc, argv, args_max, &err) != SPAN_OK) {
        (void)command_fail(argv[0], COMMAND_USAGE, &err);
        return say_help(argv[0]);
    }
    if (config_help_wanted(c)) {
        struct buf out = {0};

        command_help_render(h, &out);
        fputs(buf_cstr(&out), stdout);
        buf_deinit(&out);
        return COMMAND_OK;
    }
    return -1;
}
