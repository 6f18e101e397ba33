/* The frame of the binary: which command runs, what wrong usage answers, and the options of
 * `start`. */
#include "base/alloc.h"
#include "coordinator/cmd_start.h"
#include "coordinator/command.h"
#include "coordinator/data_dir.h"

#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int ran;
static char ran_args[256];

static int fake_main(int argc, char **argv)
{
    ran++;
    ran_args[0] = '\0';
    for (int i = 0; i < argc; i++) {
        size_t n = strlen(ran_args);

        snprintf(ran_args + n, sizeof(ran_args) - n, "%s ", argv[i]);
    }
    return 7;
}

static const struct command table[] = {
    {"start", "run one node", "spanlite start", fake_main},
    {"workload", "load", "spanlite workload", fake_main},
};

static void redirect(void)
{
    cr_redirect_stdout();
    cr_redirect_stderr();
}

TestSuite(command, .init = redirect);

static int run(const char *words)
{
    static char text[256];
    static char self[] = "spanlite";
    char *argv[16] = {self};
    int argc = 1;

    snprintf(text, sizeof(text), "%s", words);
    for (char *w = strtok(text, " "); w != NULL; w = strtok(NULL, " ")) {
        argv[argc++] = w;
    }
    return command_run(table, 2, argc, argv);
}

static char *all_of(FILE *f)
{
    struct buf b = {0};
    char chunk[512];
    size_t n;

    while ((n = fread(chunk, 1, sizeof(chunk), f)) > 0) {
        buf_append(&b, chunk, n);
    }
    return span_strdup(buf_cstr(&b)); /* leaks with the test's process */
}

static bool said(FILE *f, const char *part)
{
    return strstr(all_of(f), part) != NULL;
}

Test(command, passes_the_rest_to_the_verb_and_returns_its_code)
{
    cr_assert_eq(run("start --id 1"), 7);
    cr_assert_eq(ran, 1);
    cr_assert_str_eq(ran_args, "start --id 1 ");
}

Test(command, an_unknown_verb_gets_the_nearest_one_and_code_2)
{
    cr_assert_eq(run("strat"), COMMAND_USAGE);
    fflush(stderr);
    cr_assert(said(cr_get_redirected_stderr(), "unknown command 'strat': did you mean 'start'?"));
}

Test(command, no_verb_is_wrong_usage_with_the_overview)
{
    cr_assert_eq(run(""), COMMAND_USAGE);
    fflush(stderr);
    cr_assert(said(cr_get_redirected_stderr(), "run one node"));
}

Test(command, help_prints_the_overview_on_stdout)
{
    cr_assert_eq(run("--help"), COMMAND_OK);
    fflush(stdout);
    cr_assert(said(cr_get_redirected_stdout(), "workload   load"));
    cr_assert_eq(run("help workload"), 7);
    cr_assert_str_eq(ran_args, "workload --help ");
}

Test(command, help_is_on_one_command)
{
    cr_assert_eq(run("help start workload"), COMMAND_USAGE);
    cr_assert_eq(run("help --json"), COMMAND_USAGE);
    cr_assert_eq(ran, 0);
    fflush(stderr);
    cr_assert(said(cr_get_redirected_stderr(), "unexpected 'workload'"));
}

Test(command, a_flag_without_effect_is_wrong_usage)
{
    cr_assert_eq(command_misplaced("demo", "--seconds", "belongs to --no-shell"), COMMAND_USAGE);
    fflush(stderr);
    cr_assert(said(cr_get_redirected_stderr(), "spanlite demo: --seconds belongs to --no-shell\n"
                                               "spanlite demo: 'spanlite demo --help'"));
}

Test(command, version_is_also_json)
{
    cr_assert_eq(run("version --json"), COMMAND_OK);
    cr_assert_eq(run("version --jsn"), COMMAND_USAGE);
    fflush(stdout);
    cr_assert(said(cr_get_redirected_stdout(), "\"version\":\"" SPAN_VERSION "\""));
}

Test(command, wrong_flags_say_where_help_is)
{
    char verb[] = "start";
    char flag[] = "--leese=1s";
    char *argv[] = {verb, flag, NULL};
    struct config *c = config_new(cmd_start_help.options, cmd_start_help.option_count);

    cr_assert_eq(command_parse(&cmd_start_help, c, 2, argv, 0), COMMAND_USAGE);
    fflush(stderr);
    cr_assert(said(cr_get_redirected_stderr(),
                   "did you mean '--lease'?\nspanlite start: 'spanlite start --help'"));
    config_free(c);
}

/* ---- start ------------------------------------------------------------------------------------
 */

static struct server_options options;
static struct span_error err;

static span_status start_with(const char *words, char *const *envp)
{
    static char text[1024];
    static char verb[] = "start";
    char *none[] = {NULL};
    char *argv[32] = {verb};
    int argc = 1;
    struct config *c = config_new(cmd_start_help.options, cmd_start_help.option_count);
    span_status st;

    snprintf(text, sizeof(text), "%s", words);
    for (char *w = strtok(text, " "); w != NULL; w = strtok(NULL, " ")) {
        argv[argc++] = w;
    }
    server_options_deinit(&options);
    st = config_parse_args(c, argc, argv, 0, &err);
    if (st == SPAN_OK) {
        st = cmd_start_options(c, envp != NULL ? envp : none, &options, &err);
    }
    config_free(c);
    return st;
}

static void release_options(void)
{
    server_options_deinit(&options);
}

TestSuite(start, .fini = release_options);

#define PEERS "--peers 2=tcp://127.0.0.1:7300,1=tcp://127.0.0.1:7100,3=tcp://127.0.0.1:7500 "

Test(start, fills_every_option_and_sorts_the_peers)
{
    cr_assert_eq(start_with("--id 2 --data /d " PEERS
                            "--cluster c --sql-listen :0 --http-listen off --bind 127.0.0.2 "
                            "--clock-offset -3ms --clock-drift 20ppm --epsilon 4ms --lease 300ms "
                            "--throwaway --unsafe-skip-commit-wait --version-window 5m "
                            "--cache 32MiB",
                            NULL),
                 SPAN_OK, "%s", err.text);
    cr_assert_eq(options.id, 2);
    cr_assert_str_eq(options.data_dir, "/d");
    cr_assert_eq(options.peer_count, 3);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(options.peers[i].id, i + 1);
    }
    cr_assert_str_eq(options.peers[1].url, "tcp://127.0.0.1:7300");
    cr_assert_null(options.http_listen);
    cr_assert_str_eq(options.bind, "127.0.0.2");
    cr_assert_eq(options.clock_offset_ns, -3 * (int64_t)MS_NS);
    cr_assert_eq(options.clock_drift_ppb, 20000);
    cr_assert_eq(options.epsilon_ns, 4 * MS_NS);
    cr_assert_eq(options.version_window_ns, 300 * SEC_NS);
    cr_assert(options.throwaway && options.unsafe_skip_commit_wait && !options.enable_faults);
    cr_assert_eq(start_with("--id 1 --data /d --enable-faults " PEERS, NULL), SPAN_OK);
    cr_assert(options.enable_faults);
}

Test(start, defaults_of_the_table_are_the_defaults_of_the_options)
{
    struct server_options defaults;

    server_options_init(&defaults);
    cr_assert_eq(start_with("--id 1 --data /d " PEERS, NULL), SPAN_OK, "%s", err.text);
    cr_assert_eq(options.clock, defaults.clock);
    cr_assert_eq(options.epsilon_ns, defaults.epsilon_ns);
    cr_assert_eq(options.lease_ns, defaults.lease_ns);
    cr_assert_eq(options.version_window_ns, defaults.version_window_ns);
    cr_assert_eq(options.txn_idle_ns, defaults.txn_idle_ns);
    cr_assert_eq(options.cache_bytes, defaults.cache_bytes);
    cr_assert_eq(options.flush_bytes, defaults.flush_bytes);
    cr_assert_eq(options.sessions_max, defaults.sessions_max);
    cr_assert_eq(options.workers, defaults.workers);
}

Test(start, what_is_wrong_is_named)
{
    static const struct {
        const char *words;
        const char *part;
    } cases[] = {
        {"--data /d " PEERS, "--id is missing"},
        {"--id 1 " PEERS, "--data is missing"},
        {"--id 1 --data /d", "--peers is missing"},
        {"--id 4 --data /d " PEERS, "own id 4 is not among them"},
        {"--id 1 --data /d --peers 1=tcp://a:1,1=tcp://b:1", "node 1 is given twice"},
        {"--id 1 --data /d --peers 1=tcp://a:1,2=tcp://a:1", "the same address"},
        {"--id 1 --data /d --peers 1=tcp://a:23900,2=tcp://a:23901",
         "nodes 1 and 2 would both listen on port 23904 of a"},
        {"--id 1 --data /d --peers 1=tcp://a:23900,2=tcp://b:23900,3=tcp://a:23904",
         "Leave 130 between nodes of one machine: 1=tcp://a:23900, 3=tcp://a:24030"},
        {"--id 1 --data /d --epsilon 0 " PEERS, "--epsilon: '0' is out of bounds"},
        {"--id 1 --data /d --peers 1=http://a:1", "does not begin with tcp://"},
        {"--id 1 --data /d --peers 1=tcp://a", "is not tcp://host:port"},
        {"--id 1 --data /d --peers 1=tcp://a:99999", "is not tcp://host:port"},
        {"--id 1 --data /d --peers a:1", "is not ID=URL"},
        {"--id 1 --data /d --peers 1=tcp://a:1,", "is not ID=URL"},
        {"--id 1 --data /d --peers 99=tcp://a:1", "node ids go from 1 to"},
        {"--id 1 --data /d --sql-listen 5433 " PEERS, "--sql-listen: '5433' is not host:port"},
        {"--id 1 --data /d --sql-listen ::1:5433 " PEERS, "is not host:port"},
        {"--id 1 --data /d --epsilon 26ms " PEERS, "--epsilon: '26ms' is out of bounds"},
        {"--id 1 --data /d --epsilon 20ms --lease 150ms " PEERS, "less than 10 times --epsilon"},
        {"--id 1 --data /d --clock system --clock-offset 1ms " PEERS, "need --clock emulated"},
        {"--id 1 --data /d --cluster a=b " PEERS, "is not a name"},
        {"--id 1 --data /d --enable-faults --http-listen off " PEERS, "needs --http-listen"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        span_status st = start_with(cases[i].words, NULL);

        cr_assert_eq(st, SPAN_INVALID, "%s", cases[i].words);
        cr_assert(strstr(err.text, cases[i].part) != NULL, "'%s' does not say '%s'", err.text,
                  cases[i].part);
    }
}

Test(start, a_variable_may_name_the_file_and_flags_win)
{
    char path[] = "/tmp/spanlite-start-XXXXXX";
    int fd = mkstemp(path);
    FILE *f = fdopen(fd, "w");
    char *config_variable = span_asprintf("SPANLITE_CONFIG=%s", path);
    char *envp[] = {config_variable, NULL};

    fputs("id = 3\ndata = /from-file\ncluster = file\n", f);
    fclose(f);
    cr_assert_eq(start_with("--data /flag " PEERS, envp), SPAN_OK, "%s", err.text);
    unlink(path);
    span_free(config_variable);
    cr_assert_eq(options.id, 3);
    cr_assert_str_eq(options.data_dir, "/flag");
    cr_assert_str_eq(options.cluster, "file");
}

Test(start, a_copy_of_the_options_owns_its_strings)
{
    struct server_options copy;

    cr_assert_eq(start_with("--id 1 --data /d " PEERS, NULL), SPAN_OK);
    server_options_copy(&copy, &options);
    cr_assert_neq(copy.data_dir, options.data_dir);
    cr_assert_neq(copy.peers[2].url, options.peers[2].url);
    server_options_deinit(&options);
    cr_assert_str_eq(copy.peers[2].url, "tcp://127.0.0.1:7500");
    server_options_deinit(&copy);
}

Test(start, addresses_split_in_host_and_port)
{
    char host[64];
    unsigned port = 1;

    cr_assert_eq(server_address_split("127.0.0.1:80", host, sizeof(host), &port), SPAN_OK);
    cr_assert_str_eq(host, "127.0.0.1");
    cr_assert_eq(port, 80);
    cr_assert_eq(server_address_split("[::1]:5433", host, sizeof(host), &port), SPAN_OK);
    cr_assert_str_eq(host, "::1");
    cr_assert_eq(server_address_split(":0", host, sizeof(host), &port), SPAN_OK);
    cr_assert_str_eq(host, "");
    cr_assert_eq(port, 0);
    cr_assert_eq(server_address_split("localhost", host, sizeof(host), &port), SPAN_INVALID);
    cr_assert_eq(server_address_split("a:1x", host, sizeof(host), &port), SPAN_INVALID);
    cr_assert_eq(server_address_split("a:", host, sizeof(host), &port), SPAN_INVALID);
    cr_assert_eq(server_address_split("[::1:5", host, sizeof(host), &port), SPAN_INVALID);
    cr_assert_eq(server_address_split("123456:1", host, 4, &port), SPAN_INVALID);
}
