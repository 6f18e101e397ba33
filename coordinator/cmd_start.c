/* `spanlite start`: one node until it is told to stop.
 *
 * Signals are taken by a thread of their own (signalfd): the first SIGTERM or SIGINT asks the
 * server for a graceful end, the second leaves at once, which is no more than a crash, and crashes
 * are survived. All other threads have both blocked, so no code of ours runs in a signal handler.
 */
#include "coordinator/cmd_start.h"

#include "base/alloc.h"
#include "base/failpoint.h"
#include "coordinator/json.h"
#include "shard/net/transport.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define QUIET_MS 500u /* a node that is ready sooner does not say that it waits */
#define AGAIN_MS 1000u

static const struct config_option start_options[] = {
    {.name = "config",
     .kind = CONFIG_TEXT,
     .where = CONFIG_FLAG_AND_ENV,
     .arg = "FILE",
     .help = "read settings from FILE: key = value lines, keys as these flags without --"},
    {.name = "id",
     .kind = CONFIG_COUNT,
     .arg = "N",
     .min = 1,
     .max = LIMIT_PEERS,
     .help = "number of this node in the cluster, the same for ever"},
    {.name = "data",
     .letter = 'd',
     .kind = CONFIG_TEXT,
     .arg = "DIR",
     .help = "data folder of this node, created when missing"},
    {.name = "cluster",
     .kind = CONFIG_TEXT,
     .arg = "NAME",
     .preset = "spanlite",
     .help = "name of the cluster; nodes and folders of another name are refused"},
    {.name = "peers",
     .kind = CONFIG_TEXT,
     .arg = "ID=URL,...",
     .help = "every node of the cluster with its peer address, this one too; URLs are "
             "tcp://host:port or ipc:///path"},
    {.name = "join",
     .kind = CONFIG_BOOL,
     .help = "a new node of a running cluster, which 'spanlite node add' tells of it: begins "
             "without data and is given its share"},
    {.name = "peer-listen",
     .kind = CONFIG_TEXT,
     .arg = "URL",
     .help = "peer address to listen on (default: this node's own in --peers)"},
    {.name = "sql-listen",
     .kind = CONFIG_TEXT,
     .arg = "HOST:PORT",
     .preset = "127.0.0.1:5433",
     .help = "address for SQL clients; port 0 takes a free one"},
    {.name = "sql-socket",
     .kind = CONFIG_TEXT,
     .arg = "DIR",
     .help = "also listen on a unix socket in this folder, .s.PGSQL.PORT (libpq: host=DIR)"},
    {.name = "http-listen",
     .kind = CONFIG_TEXT,
     .arg = "HOST:PORT",
     .preset = "127.0.0.1:8080",
     .help = "address for /metrics, /healthz and /readyz; 'off' for none"},
    {.name = "bind",
     .kind = CONFIG_TEXT,
     .arg = "ADDR",
     .help = "source address of connections to peers"},
    {.name = "clock",
     .kind = CONFIG_CHOICE,
     .choices = "emulated|system|fixed",
     .preset = "emulated",
     .help = "where the time interval comes from: the system clock with an emulated error, the "
             "kernel's own estimate (adjtimex), or a fixed epsilon"},
    {.name = "epsilon",
     .kind = CONFIG_DURATION,
     .arg = "TIME",
     .preset = "1ms",
     .min = 1, /* as SET CLUSTER has it: no clock is exact */
     .max = (int64_t)EPSILON_NS_MAX,
     .help = "clock uncertainty at start; SET CLUSTER truetime.epsilon changes it later"},
    {.name = "clock-offset",
     .kind = CONFIG_OFFSET,
     .arg = "TIME",
     .preset = "0",
     .help = "emulated clock: how far it is ahead of true time (negative: behind)"},
    {.name = "clock-drift",
     .kind = CONFIG_DRIFT,
     .arg = "RATE",
     .preset = "0",
     .help = "emulated clock: how much too fast it runs, 50ppm"},
    {.name = "lease",
     .kind = CONFIG_DURATION,
     .arg = "TIME",
     .preset = "250ms",
     .min = (int64_t)(2 * LEASE_RENEW_NS),
     .max = (int64_t)LEASE_NS_MAX,
     .help = "length of a leader's lease, at least 10 times epsilon"},
    {.name = "version-window",
     .kind = CONFIG_DURATION,
     .arg = "TIME",
     .preset = "1h",
     .min = (int64_t)SEC_NS,
     .max = 30LL * 86400 * (int64_t)SEC_NS,
     .help = "how far back reads AS OF may go"},
    {.name = "txn-idle-timeout",
     .kind = CONFIG_DURATION,
     .arg = "TIME",
     .preset = "60s",
     .max = 86400 * (int64_t)SEC_NS,
     .help = "roll back an open transaction that sent nothing for so long"},
    {.name = "cache",
     .kind = CONFIG_SIZE,
     .arg = "SIZE",
     .preset = "64MiB",
     .min = (int64_t)MIB,
     .max = (int64_t)(KIB * KIB * MIB),
     .help = "page cache of the whole node"},
    {.name = "flush-size",
     .kind = CONFIG_SIZE,
     .arg = "SIZE",
     .preset = "8MiB",
     .min = (int64_t)(64 * KIB),
     .max = (int64_t)(1024 * MIB),
     .help = "versions in memory, per range, that start a flush to SQLite"},
    {.name = "wal-segment-size",
     .kind = CONFIG_SIZE,
     .arg = "SIZE",
     .preset = "64MiB",
     .min = (int64_t)(16 * MIB),
     .max = (int64_t)(1024 * MIB),
     .help = "size of the log's files; a node keeps three or more"},
    {.name = "max-sessions",
     .kind = CONFIG_COUNT,
     .arg = "N",
     .preset = "1000",
     .min = 1,
     .max = 100000,
     .help = "client connections; more are refused"},
    {.name = "workers",
     .kind = CONFIG_COUNT,
     .arg = "N",
     .preset = "1",
     .min = 1,
     .max = 64,
     .help = "threads that run ranges"},
    {.name = "log-level",
     .kind = CONFIG_CHOICE,
     .choices = "debug|info|warn|error",
     .preset = "info",
     .help = "least important line to log (stderr)"},
    {.name = "enable-faults",
     .kind = CONFIG_BOOL,
     .help = "let faults be set through the HTTP port, for drills and tests"},
    {.name = "failpoints",
     .kind = CONFIG_TEXT,
     .arg = "NAME[:N]=ACTION,...",
     .help = "with --enable-faults: kill, 'stall MS' or error at the Nth passage of a named point"},
    {.name = "list-failpoints",
     .kind = CONFIG_BOOL,
     .where = CONFIG_FLAG_ONLY,
     .help = "print the names of the failpoints and exit"},
    {.name = "throwaway",
     .kind = CONFIG_BOOL,
     .help = "mark a new data folder as throw-away, which unsafe switches ask for"},
    {.name = "unsafe-skip-commit-wait",
     .kind = CONFIG_BOOL,
     .help = "break external consistency on purpose; throw-away folders only"},
    {.name = "json",
     .kind = CONFIG_BOOL,
     .where = CONFIG_FLAG_ONLY,
     .help = "print the waiting and ready lines as JSON"},
    {.name = "dry-run",
     .kind = CONFIG_BOOL,
     .where = CONFIG_FLAG_ONLY,
     .help = "check the settings, print each with where it came from, and exit"},
};

const struct command_help cmd_start_help = {
    .usage = "spanlite start --id N --data DIR --peers ID=URL,... [flags]",
    .about = "Runs one node of a cluster until SIGTERM or SIGINT, which hand its leaderships over\n"
             "and stop it; a second signal ends it at once. Prints one line when it is ready.\n"
             "A flag wins over its variable (--sql-listen: SPANLITE_SQL_LISTEN), that over the\n"
             "file, that over the default.",
    .example = "  spanlite start --id 1 --data /var/lib/spanlite/node1 --sql-listen :5433 \\\n"
               "    --peers 1=tcp://10.0.0.1:7100,2=tcp://10.0.0.2:7100,3=tcp://10.0.0.3:7100",
    .options = start_options,
    .option_count = sizeof(start_options) / sizeof(start_options[0]),
};

/* ---- options ----------------------------------------------------------------------------------
 */

static enum server_clock clock_of(const char *name)
{
    if (strcmp(name, "system") == 0) {
        return SERVER_CLOCK_SYSTEM;
    }
    return strcmp(name, "fixed") == 0 ? SERVER_CLOCK_FIXED : SERVER_CLOCK_EMULATED;
}

static char *copy_text(const struct config *c, const char *name)
{
    const char *text = config_text(c, name);

    return text != NULL ? span_strdup(text) : NULL;
}

static void fill_options(const struct config *c, struct server_options *o)
{
    const char *http = config_text(c, "http-listen");

    o->id = (unsigned)config_uint(c, "id");
    o->data_dir = copy_text(c, "data");
    o->cluster = copy_text(c, "cluster");
    o->peer_listen = copy_text(c, "peer-listen");
    o->sql_listen = copy_text(c, "sql-listen");
    o->sql_socket = copy_text(c, "sql-socket");
    o->http_listen = strcmp(http, "off") == 0 ? NULL : span_strdup(http);
    o->bind = copy_text(c, "bind");
    o->clock = clock_of(config_text(c, "clock"));
    o->epsilon_ns = config_uint(c, "epsilon");
    o->clock_offset_ns = config_int(c, "clock-offset");
    o->clock_drift_ppb = config_int(c, "clock-drift");
    o->lease_ns = config_uint(c, "lease");
    o->version_window_ns = config_uint(c, "version-window");
    o->txn_idle_ns = config_uint(c, "txn-idle-timeout");
    o->cache_bytes = config_uint(c, "cache");
    o->flush_bytes = config_uint(c, "flush-size");
    o->wal_segment_bytes = config_uint(c, "wal-segment-size") & ~(uint64_t)4095;
    o->sessions_max = (unsigned)config_uint(c, "max-sessions");
    o->workers = (unsigned)config_uint(c, "workers");
    o->join = config_bool(c, "join");
    o->enable_faults = config_bool(c, "enable-faults");
    o->throwaway = config_bool(c, "throwaway");
    o->unsafe_skip_commit_wait = config_bool(c, "unsafe-skip-commit-wait");
}

span_status cmd_start_options(struct config *c, char *const *envp, struct server_options *o,
                              struct span_error *err)
{
    span_status st;

    server_options_init(o);
    st = config_parse_env(c, envp, err); /* may name the file */
    if (st == SPAN_OK && config_text(c, "config") != NULL) {
        st = config_parse_file(c, config_text(c, "config"), err);
    }
    if (st != SPAN_OK) {
        return st;
    }
    fill_options(c, o);
    if (config_text(c, "peers") != NULL) {
        st = server_options_add_peers(o, config_text(c, "peers"), err);
    }
    if (st == SPAN_OK && o->enable_faults && o->http_listen == NULL) {
        return span_fail(
            err, SPAN_INVALID,
            "--enable-faults needs --http-listen: faults are set through the HTTP port");
    }
    if (st == SPAN_OK && config_text(c, "failpoints") != NULL && !o->enable_faults) {
        return span_fail(err, SPAN_INVALID, "--failpoints needs --enable-faults");
    }
    return st == SPAN_OK ? server_options_check(o, err) : st;
}

/* ---- signals ----------------------------------------------------------------------------------
 */

struct signal_watch {
    struct server *server;
    pthread_t thread;
    int signal_fd;
    int done_fd; /* eventfd: the server has stopped, end the thread */
};

static void *watch_signals(void *arg)
{
    struct signal_watch *w = arg;
    struct pollfd fds[2] = {{.fd = w->signal_fd, .events = POLLIN},
                            {.fd = w->done_fd, .events = POLLIN}};
    struct signalfd_siginfo info;
    unsigned seen = 0;

    for (;;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR) {
            return NULL;
        }
        if (fds[1].revents != 0) {
            return NULL;
        }
        if (fds[0].revents == 0 || read(w->signal_fd, &info, sizeof(info)) != sizeof(info)) {
            continue;
        }
        if (seen++ > 0) {
            _exit(COMMAND_FAILED);
        }
        SPAN_LOG(INFO, "stopping", "signal=%u", info.ssi_signo);
        server_stop(w->server);
    }
}

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- run --------------------------------------------------------------------------------------
 */

/* A node that serves (waiting == NULL), or what it waits for. */
static void print_state(const struct server_options *o, const struct server *server, bool json,
                        const char *waiting)
{
    struct server_addresses a;
    struct buf out = {0};

    server_addresses_get(server, &a);
    if (json) {
        buf_printf(&out, "{\"event\":\"%s\",\"id\":%u,\"pid\":%ld,\"sql\":\"%s\",\"http\":\"%s\"",
                   waiting == NULL ? "ready" : "waiting", o->id, (long)getpid(), a.sql, a.http);
        buf_append_str(&out, ",\"cluster\":");
        json_append_string(&out, slice_str(o->cluster));
        buf_append_str(&out, ",\"peer\":");
        json_append_string(&out, slice_str(a.peer));
        buf_append_str(&out, ",\"data\":");
        json_append_string(&out, slice_str(o->data_dir));
        if (waiting != NULL) {
            buf_append_str(&out, ",\"for\":");
            json_append_string(&out, slice_str(waiting));
        }
        buf_append_str(&out, "}");
    } else {
        if (waiting == NULL) {
            buf_printf(&out, "node %u ready: ", o->id);
        } else {
            buf_printf(&out, "node %u waiting for %s; ", o->id, waiting);
        }
        buf_printf(&out, "sql %s, http %s, peers %s, data %s, pid %ld", a.sql,
                   a.http[0] != '\0' ? a.http : "off", a.peer, o->data_dir, (long)getpid());
    }
    puts(buf_cstr(&out));
    fflush(stdout);
    buf_deinit(&out);
}

/* Says so when it serves, and before, if that takes its time, what for it waits, as often as that
 * changes (not each of several links in one second). */
static void tell_until_ready(const struct server_options *o, struct server *server, bool json)
{
    char waiting[512] = "";
    char now[512];
    span_status st;

    while ((st = server_wait_ready(server, waiting[0] == '\0' ? QUIET_MS : AGAIN_MS)) ==
           SPAN_DEADLINE) {
        server_waiting_for(server, now, sizeof(now));
        if (now[0] != '\0' && strcmp(now, waiting) != 0) {
            memcpy(waiting, now, sizeof(waiting));
            print_state(o, server, json, waiting);
        }
    }
    if (st == SPAN_OK) {
        print_state(o, server, json, NULL);
    }
}

static int run_server(const struct server_options *o, bool json)
{
    struct signal_watch w = {0};
    struct span_error err;
    sigset_t signals;
    uint64_t one = 1;
    span_status st;

    block_signals(&signals);
    if (server_start(o, &w.server, &err) != SPAN_OK) {
        return command_fail("start", COMMAND_FAILED, &err);
    }
    w.signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
    w.done_fd = eventfd(0, EFD_CLOEXEC);
    if (w.signal_fd < 0 || w.done_fd < 0 ||
        pthread_create(&w.thread, NULL, watch_signals, &w) != 0) {
        fprintf(stderr, "spanlite start: cannot watch signals: %s\n", strerror(errno));
        _exit(COMMAND_FAILED); /* no more than a crash */
    }
    tell_until_ready(o, w.server, json);
    st = server_wait(w.server, &err);
    while (write(w.done_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    pthread_join(w.thread, NULL);
    close(w.signal_fd);
    close(w.done_fd);
    server_free(w.server);
    transport_library_fini();
    return st == SPAN_OK ? COMMAND_OK : command_fail("start", COMMAND_FAILED, &err);
}

static void print_failpoints(void)
{
    struct buf out = {0};

    failpoint_list(&out);
    fputs(buf_cstr(&out), stdout);
    buf_deinit(&out);
}

/* Before anything of the node runs: recovery has points, too. */
static span_status arm_failpoints(const struct config *c, struct span_error *err)
{
    const char *list = config_text(c, "failpoints");

    return list == NULL ? SPAN_OK : failpoint_arm(list, err);
}

static void print_settings(const struct config *c)
{
    struct buf out = {0};

    config_dump(c, &out);
    fputs(buf_cstr(&out), stdout);
    buf_deinit(&out);
}

int cmd_start_main(int argc, char **argv)
{
    struct config *c = config_new(start_options, cmd_start_help.option_count);
    struct server_options o = {0};
    enum log_level level = LOG_INFO;
    struct span_error err;
    int code = command_parse(&cmd_start_help, c, argc, argv, 0);

    if (code < 0 && config_bool(c, "list-failpoints")) {
        print_failpoints();
        code = COMMAND_OK;
    } else if (code < 0 && (cmd_start_options(c, environ, &o, &err) != SPAN_OK ||
                            arm_failpoints(c, &err) != SPAN_OK)) {
        code = command_fail("start", COMMAND_USAGE, &err);
    } else if (code < 0 && config_bool(c, "dry-run") && config_bool(c, "json")) {
        code = command_misplaced("start", "--json",
                                 "is the form of the ready line: not with --dry-run");
    } else if (code < 0 && config_bool(c, "dry-run")) {
        print_settings(c);
        code = COMMAND_OK;
    } else if (code < 0) {
        if (log_level_parse(config_text(c, "log-level"), &level)) {
            log_set_level(level);
        }
        code = run_server(&o, config_bool(c, "json"));
    }
    server_options_deinit(&o);
    config_free(c);
    return code;
}
