/* `spanlite demo`: a whole cluster inside this process, with the code that runs in production.
 * Nodes talk over inproc:// instead of tcp://, and nothing else differs: they have data folders,
 * sync their logs and listen on SQL and HTTP ports of 127.0.0.1.
 *
 *   start N servers -> wait until all answer -> load the bank -> tour -> shell -> stop -> clean up
 *
 * Signals: SIGINT belongs to the shell while it runs (it cancels a statement). SIGTERM and SIGHUP,
 * and SIGINT while there is no shell, are read by a thread; it ends the process in order. Every
 * other thread has them blocked from the start, before the servers make theirs. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/log.h"
#include "coordinator/command.h"
#include "coordinator/data_dir.h"
#include "coordinator/server.h"
#include "coordinator/sql_client.h"
#include "shard/net/transport.h"

#include <errno.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEMO_NODES_MAX 5
#define DEMO_READY_NS  (30 * SEC_NS)

static const struct config_option demo_options[] = {
    {.name = "nodes",
     .letter = 'n',
     .kind = CONFIG_CHOICE,
     .where = CONFIG_FLAG_ONLY,
     .choices = "1|3|5",
     .preset = "3",
     .help = "how many nodes"},
    {.name = "data",
     .letter = 'd',
     .kind = CONFIG_TEXT,
     .where = CONFIG_FLAG_ONLY,
     .arg = "DIR",
     .help =
         "keep the data in DIR and go on from it next time (default: a temporary folder, removed "
         "at the end)"},
    {.name = "sql-port",
     .kind = CONFIG_COUNT,
     .where = CONFIG_FLAG_ONLY,
     .arg = "PORT",
     .max = 65530,
     .help = "SQL port of node 1, the other nodes' follow (default: free ones)"},
    {.name = "epsilon",
     .kind = CONFIG_DURATION,
     .where = CONFIG_FLAG_ONLY,
     .arg = "TIME",
     .preset = "1ms",
     .max = (int64_t)EPSILON_NS_MAX,
     .help = "clock uncertainty"},
    {.name = "accounts",
     .kind = CONFIG_COUNT,
     .where = CONFIG_FLAG_ONLY,
     .arg = "N",
     .preset = "1000",
     .max = 10000000,
     .help = "bank accounts to load, 0 for no bank"},
    {.name = "no-shell",
     .kind = CONFIG_BOOL,
     .where = CONFIG_FLAG_ONLY,
     .help = "no shell: run until SIGINT or SIGTERM, or for --seconds"},
    {.name = "seconds",
     .kind = CONFIG_COUNT,
     .where = CONFIG_FLAG_ONLY,
     .arg = "N",
     .min = 1,
     .max = 1000000,
     .help = "with --no-shell: how long to run"},
    {.name = "log-level",
     .kind = CONFIG_CHOICE,
     .where = CONFIG_FLAG_ONLY,
     .choices = "debug|info|warn|error",
     .preset = "info",
     .help = "least important line in DIR/demo.log"},
};

static const struct command_help demo_help = {
    .usage = "spanlite demo [flags]",
    .about =
        "Brings up a cluster inside this process, loads a bank and opens a SQL shell on it. When\n"
        "the input is not a terminal, the shell runs what it reads.",
    .example = "  spanlite demo\n"
               "  echo 'SHOW NODES;' | spanlite demo --nodes 5",
    .options = demo_options,
    .option_count = sizeof(demo_options) / sizeof(demo_options[0]),
};

struct demo {
    struct server *servers[DEMO_NODES_MAX];
    struct server_addresses addresses[DEMO_NODES_MAX];
    unsigned node_count;
    char *dir;
    bool dir_is_temporary;
    char *url;
    uint64_t accounts; /* of the bank; 0: there is none */
    FILE *log;
    int signal_fd;
    pthread_mutex_t ending;  /* held by main while it starts the servers, then by whoever ends the
                                demo,  who never gives it back */
    atomic_bool stop_wanted; /* a signal came: do not wait for readiness any longer */
};

static struct span_error fail; /* the main thread's message */

/* ---- folder and log ---------------------------------------------------------------------------
 */

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void log_to_file(void *ctx, enum log_level level, const char *line)
{
    (void)level;
    fprintf(ctx, "%s\n", line); /* stdio locks; the file is unbuffered by line */
}

static span_status open_dir(struct demo *d, const struct config *c)
{
    const char *given = config_text(c, "data");
    const char *tmp = getenv("TMPDIR");
    enum log_level level = LOG_INFO;
    char *path;
    span_status st = SPAN_OK;

    if (given != NULL) {
        d->dir = span_strdup(given);
        if (mkdir(d->dir, 0700) != 0 && errno != EEXIST) {
            return span_fail(&fail, SPAN_IO, "cannot create %s: %s", d->dir, strerror(errno));
        }
    } else {
        d->dir =
            span_asprintf("%s/spanlite-demo-XXXXXX", tmp != NULL && *tmp != '\0' ? tmp : "/tmp");
        if (mkdtemp(d->dir) == NULL) {
            return span_fail(&fail, SPAN_IO, "cannot create %s: %s", d->dir, strerror(errno));
        }
        d->dir_is_temporary = true;
    }
    path = span_asprintf("%s/demo.log", d->dir);
    d->log = fopen(path, "ae");
    if (d->log == NULL) {
        st = span_fail(&fail, SPAN_IO, "cannot write %s: %s", path, strerror(errno));
    } else {
        setvbuf(d->log, NULL, _IOLBF, BUFSIZ);
        log_set_sink(log_to_file, d->log);
        if (log_level_parse(config_text(c, "log-level"), &level)) {
            log_set_level(level);
        }
    }
    span_free(path);
    return st;
}

/* ---- cluster ----------------------------------------------------------------------------------
 */

static void fill_peers(struct server_options *o, unsigned node_count)
{
    for (unsigned i = 0; i < node_count; i++) {
        o->peers[i].id = i + 1;
        o->peers[i].url = span_asprintf("inproc://spanlite-demo-%ld-%u", (long)getpid(), i + 1);
    }
    o->peer_count = node_count;
}

static span_status start_node(struct demo *d, const struct config *c, unsigned index)
{
    unsigned port = (unsigned)config_uint(c, "sql-port");
    struct server_options o;
    span_status st;

    server_options_init(&o);
    o.id = index + 1;
    o.cluster = span_strdup("demo");
    o.data_dir = span_asprintf("%s/node%u", d->dir, index + 1);
    o.wal_segment_bytes = 16 * MIB; /* nodes of one machine: 50 MB of disk each instead of 200 */
    o.sql_listen = span_asprintf("127.0.0.1:%u", port != 0 ? port + index : 0);
    o.http_listen = span_strdup("127.0.0.1:0");
    o.epsilon_ns = config_uint(c, "epsilon");
    if (o.lease_ns < 10 * o.epsilon_ns) {
        o.lease_ns = 10 * o.epsilon_ns;
    }
    o.enable_faults = true; /* a demo is for breaking */
    o.throwaway = true;
    fill_peers(&o, d->node_count);
    st = server_options_check(&o, &fail);
    if (st == SPAN_OK) {
        struct span_error why = {0};

        st = server_start(&o, &d->servers[index], &why);
        if (st != SPAN_OK) {
            st = span_fail(&fail, st, "node %u: %s", o.id, why.text);
        }
    }
    if (st == SPAN_OK) {
        server_addresses_get(d->servers[index], &d->addresses[index]);
    }
    server_options_deinit(&o);
    return st;
}

static uint64_t monotonic_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SEC_NS + (uint64_t)t.tv_nsec;
}

static span_status wait_ready(struct demo *d)
{
    uint64_t end = monotonic_ns() + DEMO_READY_NS;

    for (unsigned i = 0; i < d->node_count;) {
        if (atomic_load(&d->stop_wanted)) {
            return span_fail(&fail, SPAN_CANCELED, "interrupted while starting");
        }
        if (server_is_ready(d->servers[i])) {
            i++;
        } else if (monotonic_ns() > end) {
            return span_fail(&fail, SPAN_UNAVAILABLE,
                             "node %u is not ready after 30 s, see %s/demo.log", i + 1, d->dir);
        } else {
            (void)poll(NULL, 0, 2);
        }
    }
    return SPAN_OK;
}

/* A folder of an earlier demo goes on with as many nodes as it has; said before any folder is made.
 * Each node's own IDENTITY is checked again when it opens (coordinator/data_dir.h). */
static span_status check_node_count(const struct demo *d)
{
    size_t had = 0;

    for (unsigned i = 1; i <= DEMO_NODES_MAX; i++) {
        char *path = span_asprintf("%s/node%u", d->dir, i);
        struct data_dir node;
        struct span_error ignored; /* what is damaged, the node's start says better */

        if (data_dir_peek(path, &node, &ignored) == SPAN_OK) {
            size_t count =
                node.member_count != 0 ? node.member_count : i; /* format 1: at least i */
            bool is_other = node.member_count != 0 ? count != d->node_count : i > d->node_count;

            had = is_other && count > had ? count : had;
        }
        data_dir_close(&node);
        span_free(path);
    }
    return had == 0 ? SPAN_OK
                    : span_fail(&fail, SPAN_INVALID,
                                "--nodes %u: %s holds the data of a demo of %zu node%s; the set of "
                                "nodes is fixed when a cluster is made: --nodes %zu, or another "
                                "--data",
                                d->node_count, d->dir, had, had == 1 ? "" : "s", had);
}

static span_status start_cluster(struct demo *d, const struct config *c)
{
    struct buf url = {0};
    span_status st;

    d->node_count = (unsigned)strtoul(config_text(c, "nodes"), NULL, 10);
    st = check_node_count(d);
    for (unsigned i = 0; st == SPAN_OK && i < d->node_count; i++) {
        st = start_node(d, c, i);
    }
    if (st == SPAN_OK) {
        st = wait_ready(d);
    }
    buf_append_str(&url, "postgresql://spanlite@");
    for (unsigned i = 0; i < d->node_count; i++) {
        buf_printf(&url, "%s%s", i > 0 ? "," : "", d->addresses[i].sql);
    }
    buf_append_str(&url, "/spanlite");
    d->url = span_strdup(buf_cstr(&url));
    buf_deinit(&url);
    return st;
}

static void stop_cluster(struct demo *d)
{
    for (unsigned i = 0; i < d->node_count; i++) {
        if (d->servers[i] != NULL) {
            server_stop(d->servers[i]);
        }
    }
    for (unsigned i = 0; i < d->node_count; i++) {
        struct span_error err;

        if (d->servers[i] != NULL && server_wait(d->servers[i], &err) != SPAN_OK) {
            fprintf(stderr, "spanlite demo: node %u: %s\n", i + 1, err.text);
        }
        server_free(d->servers[i]);
        d->servers[i] = NULL;
    }
}

/* Whoever comes first ends the demo; a second caller waits here until the process is gone. */
static void end_demo(struct demo *d)
{
    pthread_mutex_lock(&d->ending);
    stop_cluster(d);
    transport_library_fini();
    log_set_sink(NULL, NULL);
    if (d->log != NULL) {
        fclose(d->log);
    }
    if (d->dir_is_temporary && nftw(d->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS) != 0) {
        fprintf(stderr, "spanlite demo: cannot remove all of %s: %s\n", d->dir, strerror(errno));
    }
    span_free(d->dir);
    span_free(d->url);
}

/* ---- signals ----------------------------------------------------------------------------------
 */

static void *watch_signals(void *arg)
{
    struct demo *d = arg;
    struct signalfd_siginfo info;

    while (read(d->signal_fd, &info, sizeof(info)) != sizeof(info)) {
    }
    atomic_store(&d->stop_wanted, true);
    end_demo(d);
    _exit(info.ssi_signo == SIGINT ? COMMAND_OK : 128 + (int)info.ssi_signo);
}

static void take_signals(struct demo *d, bool also_interrupt)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    if (also_interrupt) {
        sigaddset(&set, SIGINT);
    }
    d->signal_fd = signalfd(d->signal_fd, &set, SFD_CLOEXEC);
}

static span_status watch_start(struct demo *d)
{
    pthread_t thread;
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    d->signal_fd = -1;
    take_signals(d, true);
    if (d->signal_fd < 0 || pthread_create(&thread, NULL, watch_signals, d) != 0) {
        return span_fail(&fail, SPAN_IO, "cannot watch signals: %s", strerror(errno));
    }
    pthread_detach(thread);
    return SPAN_OK;
}

/* Gives SIGINT to the shell, which runs on this thread. */
static void release_interrupt(struct demo *d)
{
    sigset_t set;

    take_signals(d, false);
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* ---- bank, tour, shell ------------------------------------------------------------------------
 */

/* True when a statement works; its first value, as a number, in *out. */
static bool ask_number(PGconn *conn, const char *sql, uint64_t *out)
{
    struct span_error ignored;
    PGresult *r = NULL;
    bool works = sql_client_exec(conn, sql, &r, &ignored) == SPAN_OK;

    *out = works && PQntuples(r) > 0 ? strtoull(PQgetvalue(r, 0, 0), NULL, 10) : 0;
    PQclear(r);
    return works;
}

/* A data folder of an earlier demo has its bank already; d->accounts says of how many accounts, 0
 * when the tables are somebody's own. */
static bool bank_exists(struct demo *d)
{
    struct span_error err;
    PGconn *conn = NULL;
    uint64_t first;
    bool exists;

    if (sql_client_connect(d->url, &conn, &err) != SPAN_OK) {
        return false;
    }
    exists = ask_number(conn, "SELECT 1 FROM accounts LIMIT 1", &first);
    if (!exists ||
        !ask_number(conn, "SELECT value FROM bank_info WHERE key = 'accounts'", &d->accounts)) {
        d->accounts = 0;
    }
    PQfinish(conn);
    return exists;
}

/* The bank's own words are not part of what a script reads from our output. */
static int run_quietly(int argc, char **argv, int (*run)(int argc, char **argv))
{
    int keep = -1;
    int code;

    fflush(stdout);
    keep = dup(STDOUT_FILENO);
    if (keep >= 0 && dup2(STDERR_FILENO, STDOUT_FILENO) < 0) {
        close(keep);
        keep = -1;
    }
    code = run(argc, argv);
    fflush(stdout);
    if (keep >= 0) {
        if (dup2(keep, STDOUT_FILENO) < 0) {
            code = COMMAND_FAILED;
        }
        close(keep);
    }
    return code;
}

static span_status load_bank(struct demo *d, const struct config *c,
                             int (*workload)(int argc, char **argv))
{
    char *accounts = span_asprintf("%llu", (unsigned long long)config_uint(c, "accounts"));
    const char *words[] = {"workload",   "bank",   "init",     "--url", d->url,
                           "--accounts", accounts, "--ranges", "4",     NULL};
    char *argv[sizeof(words) / sizeof(words[0])] = {NULL};
    int argc = 0;
    int code = 0;
    bool exists = bank_exists(d);

    if (exists && config_is_set(c, "accounts") && d->accounts != config_uint(c, "accounts")) {
        fprintf(stderr, "spanlite demo: --accounts is for a new bank: the one in %s has %llu\n",
                d->dir, (unsigned long long)d->accounts);
    }
    if (!exists && config_uint(c, "accounts") > 0) {
        d->accounts = config_uint(c, "accounts");
        for (; words[argc] != NULL; argc++) {
            argv[argc] = span_strdup(words[argc]);
        }
        code = run_quietly(argc, argv, workload);
        while (argc > 0) {
            span_free(argv[--argc]);
        }
    }
    span_free(accounts);
    return code == 0 ? SPAN_OK
                     : span_fail(&fail, SPAN_INTERNAL, "the bank could not be loaded (see above)");
}

static void print_tour(const struct demo *d, const struct config *c)
{
    unsigned long long accounts = d->accounts;

    printf("\n%u node%s in this process, data in %s%s\n", d->node_count,
           d->node_count == 1 ? "" : "s", d->dir,
           d->dir_is_temporary ? " (removed at the end)" : "");
    for (unsigned i = 0; i < d->node_count; i++) {
        printf("  node %u   sql %s   http://%s/metrics\n", i + 1, d->addresses[i].sql,
               d->addresses[i].http);
    }
    printf("From another terminal: psql postgresql://spanlite@%s/spanlite\n\n",
           d->addresses[0].sql);
    if (accounts >= 2) {
        printf("A bank with %llu accounts, spread over ranges. Try:\n\n"
               "  SELECT count(*), sum(balance) FROM accounts;\n"
               "  \\ranges accounts              which keys each range holds, who leads it\n"
               "  BEGIN;                        a transfer over two ranges: two-phase commit\n"
               "  UPDATE accounts SET balance = balance - 10 WHERE id = 1;\n"
               "  UPDATE accounts SET balance = balance + 10 WHERE id = %llu;\n"
               "  COMMIT;\n"
               "  BEGIN READ ONLY AS OF '-5s';  the bank as it was five seconds ago\n"
               "  SELECT balance FROM accounts WHERE id = 1;\n"
               "  COMMIT;\n"
               "  \\clock                        the interval in which true time lies\n\n",
               accounts, accounts);
    }
    if (config_bool(c, "no-shell")) {
        puts("Ctrl-C ends the demo.");
    }
    fflush(stdout);
}

static int run_shell(struct demo *d, int (*shell)(int argc, char **argv))
{
    char verb[] = "sql";
    char flag[] = "--url";
    char *argv[] = {verb, flag, d->url, NULL};

    release_interrupt(d);
    return shell(3, argv);
}

/* Until a signal ends the process, or for the time asked. */
static int run_without_shell(const struct config *c)
{
    uint64_t seconds = config_uint(c, "seconds");

    do {
        (void)poll(NULL, 0,
                   seconds > 0 ? (int)(seconds < 2000000 ? seconds * 1000 : 2000000000) : -1);
    } while (seconds == 0);
    return COMMAND_OK;
}

int cmd_demo_run(int argc, char **argv, int (*shell)(int argc, char **argv),
                 int (*workload)(int argc, char **argv))
{
    static struct demo d = {.ending = PTHREAD_MUTEX_INITIALIZER}; /* outlives main's frame: the
                                                                     signal thread has it */
    struct config *c = config_new(demo_options, demo_help.option_count);
    int code = command_parse(&demo_help, c, argc, argv, 0);
    span_status st;

    if (code < 0 && config_is_set(c, "seconds") && !config_bool(c, "no-shell")) {
        code = command_misplaced("demo", "--seconds", "belongs to --no-shell");
    } else if (code < 0 && config_uint(c, "accounts") == 1) {
        code =
            command_misplaced("demo", "--accounts 1:", "a bank has at least 2, 0 is for no bank");
    }
    if (code >= 0) {
        config_free(c);
        return code;
    }
    st = watch_start(&d);
    pthread_mutex_lock(&d.ending);
    if (st == SPAN_OK) {
        st = open_dir(&d, c);
    }
    if (st == SPAN_OK) {
        st = start_cluster(&d, c);
    }
    pthread_mutex_unlock(&d.ending);
    if (st == SPAN_OK) {
        st = load_bank(&d, c, workload);
    }
    if (st == SPAN_OK) {
        if (isatty(STDIN_FILENO) || config_bool(c, "no-shell")) {
            print_tour(&d, c);
        }
        code = config_bool(c, "no-shell") ? run_without_shell(c) : run_shell(&d, shell);
    } else {
        code = command_fail("demo", COMMAND_FAILED, &fail);
    }
    end_demo(&d);
    config_free(c);
    return code;
}
