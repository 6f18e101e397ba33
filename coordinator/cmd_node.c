/* `spanlite node`: the nodes of a running cluster and changes of their set, over libpq.
 *
 * decommission waits until the node holds no replica, as the other nodes see it, and then takes it
 * out of the cluster; broken off, it can be given again and goes on. */
#include "base/alloc.h"
#include "coordinator/sql_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOOK_MS 500

static const struct config_option node_options[] = {
    SQL_CLIENT_OPTIONS,
    {.name = "wait",
     .kind = CONFIG_DURATION,
     .where = CONFIG_FLAG_ONLY,
     .arg = "TIME",
     .preset = "10m",
     .max = 86400LL * 1000000000LL,
     .help = "decommission: how long to wait for the replicas to move"},
};

static const struct command_help node_help = {
    .usage = "spanlite node status|ls [flags]\n"
             "       spanlite node add NODE URL [flags]\n"
             "       spanlite node move-address NODE URL [flags]\n"
             "       spanlite node drain|activate NODE [flags]\n"
             "       spanlite node decommission NODE [flags]",
    .about =
        "status, ls    the nodes as the node that answers sees them\n"
        "add           tell the cluster of a new node and its peer address; start it with\n"
        "              'spanlite start --join' and every node in --peers; it is given replicas\n"
        "move-address  a node that is there is reached at another peer address from now on;\n"
        "              counts from the next start of the others\n"
        "drain         the node leads nothing as long as another can; its replicas stay\n"
        "activate      ends drain or decommission\n"
        "decommission  move the node's replicas to other nodes, then take it out; the node\n"
        "              may be dead. Its number and data folder are not for use again",
    .example = "  spanlite node status --url postgresql://127.0.0.1:5433/ --json\n"
               "  spanlite node add 4 tcp://10.0.0.4:7100\n"
               "  spanlite node decommission 3",
    .options = node_options,
    .option_count = sizeof(node_options) / sizeof(node_options[0]),
};

static bool is_number(const char *s)
{
    size_t n = s == NULL ? 0 : strlen(s);

    return n > 0 && n < 10 && strspn(s, "0123456789") == n;
}

static int usage(const char *text)
{
    fprintf(stderr, "spanlite node: %s\n", text);
    return COMMAND_USAGE;
}

/* SET CLUSTER name = 'value', quoted. */
static char *set_statement(const char *name, const char *value)
{
    struct buf sql = {0};
    char *text;

    buf_printf(&sql, "SET CLUSTER %s = '", name);
    for (; *value != '\0'; value++) {
        if (*value == '\'') {
            buf_append_byte(&sql, '\'');
        }
        buf_append_byte(&sql, (uint8_t)*value);
    }
    buf_append_str(&sql, "'");
    text = span_strdup(buf_cstr(&sql));
    buf_deinit(&sql);
    return text;
}

/* `done` is what a person is told. */
static int run_set(struct config *c, const char *name, const char *value, const char *done)
{
    char *sql = set_statement(name, value);
    int code = sql_client_do("node", c, sql, done);

    span_free(sql);
    return code;
}

static int run_address(struct config *c, const char *setting)
{
    char *value;
    char *done;
    int code;

    if (config_arg_count(c) != 3 || !is_number(config_arg(c, 1))) {
        return usage("add and move-address need a node number and its peer address");
    }
    value = span_asprintf("%s=%s", config_arg(c, 1), config_arg(c, 2));
    done = span_asprintf(strcmp(setting, "node.add") == 0
                             ? "node %s is known; start it with --join and every node in --peers"
                             : "node %s has another address from the next start of the others on",
                         config_arg(c, 1));
    code = run_set(c, setting, value, done);
    span_free(done);
    span_free(value);
    return code;
}

static int run_state(struct config *c, const char *verb)
{
    char *name;
    char *done;
    int code;

    if (config_arg_count(c) != 2 || !is_number(config_arg(c, 1))) {
        return usage("drain and activate need a node number");
    }
    name = span_asprintf("node.%s", verb);
    done = span_asprintf(strcmp(verb, "drain") == 0
                             ? "node %s hands its leaderships over and takes no others"
                             : "node %s takes part again",
                         config_arg(c, 1));
    code = run_set(c, name, config_arg(c, 1), done);
    span_free(done);
    span_free(name);
    return code;
}

/* Is `node` in a list like "1,2,4"? */
static bool is_in_list(const char *list, const char *node)
{
    size_t n = strlen(node);

    for (const char *p = list; *p != '\0'; p += *p == ',' ? 1 : 0) {
        size_t m = strcspn(p, ",");

        if (m == n && strncmp(p, node, n) == 0) {
            return true;
        }
        p += m;
    }
    return false;
}

/* Ranges that have a replica on the node; -1: not known now. */
static int replicas_left(PGconn *conn, const char *node)
{
    PGresult *r = NULL;
    struct span_error err;
    int left = 0;
    int column;

    if (sql_client_exec(conn, "SHOW RANGES", &r, &err) != SPAN_OK) {
        return -1;
    }
    column = PQfnumber(r, "replicas");
    for (int i = 0; i < PQntuples(r) && column >= 0; i++) {
        left += is_in_list(PQgetvalue(r, i, column), node) ? 1 : 0;
    }
    left = PQntuples(r) == 0 || column < 0 ? -1 : left;
    PQclear(r);
    return left;
}

static span_status exec_set(PGconn **conn, const char *url, const char *name, const char *value,
                            struct span_error *err)
{
    char *sql = set_statement(name, value);
    PGresult *r = NULL;
    span_status st = SPAN_OK;

    if (*conn == NULL || PQstatus(*conn) != CONNECTION_OK) {
        PQfinish(*conn);
        *conn = NULL;
        st = sql_client_connect(url, conn, err);
    }
    if (st == SPAN_OK) {
        st = sql_client_exec(*conn, sql, &r, err);
    }
    PQclear(r);
    span_free(sql);
    return st;
}

/* Waits until nobody has a replica on the node. */
static span_status wait_empty(PGconn **conn, const char *url, const char *node, int64_t wait_ns,
                              struct span_error *err)
{
    struct timespec pause = {0, LOOK_MS * 1000000L};
    int told = -1;

    for (int64_t waited = 0;; waited += LOOK_MS * 1000000LL) {
        int left = *conn != NULL ? replicas_left(*conn, node) : -1;

        if (left == 0) {
            return SPAN_OK;
        }
        if (left > 0 && left != told) {
            fprintf(stderr, "node %s: %d replica%s to move\n", node, left, left == 1 ? "" : "s");
            told = left;
        }
        if (waited >= wait_ns) {
            return span_fail(err, SPAN_DEADLINE,
                             "node %s still holds replicas; they go on moving, run the command "
                             "again",
                             node);
        }
        nanosleep(&pause, NULL);
        if (*conn == NULL || PQstatus(*conn) != CONNECTION_OK) {
            PQfinish(*conn);
            *conn = NULL;
            (void)!sql_client_connect(url, conn, err);
        }
    }
}

static int run_decommission(struct config *c)
{
    const char *node = config_arg(c, 1);
    PGconn *conn = NULL;
    struct span_error err;
    span_status st;

    if (config_arg_count(c) != 2 || !is_number(node)) {
        return usage("decommission needs a node number");
    }
    st = config_parse_env(c, environ, &err);
    if (st == SPAN_OK) {
        st = exec_set(&conn, config_text(c, "url"), "node.decommission", node, &err);
    }
    if (st == SPAN_OK) {
        st = wait_empty(&conn, config_text(c, "url"), node, (int64_t)config_uint(c, "wait"), &err);
    }
    if (st == SPAN_OK) {
        st = exec_set(&conn, config_text(c, "url"), "node.remove", node, &err);
    }
    PQfinish(conn);
    if (st != SPAN_OK) {
        return command_fail("node", COMMAND_FAILED, &err);
    }
    printf(config_bool(c, "json") ? "{\"status\": \"removed\", \"node\": %s}\n"
                                  : "node %s is out of the cluster\n",
           node);
    return COMMAND_OK;
}

int cmd_node_main(int argc, char **argv)
{
    static const char *const verbs[] = {"status",   "ls",           "add",         "drain",
                                        "activate", "decommission", "move-address"};
    struct config *c = config_new(node_options, node_help.option_count);
    int code = command_parse(&node_help, c, argc, argv, 3);
    const char *verb = config_arg(c, 0);

    if (code >= 0) {
        goto done;
    }
    if (verb != NULL && (strcmp(verb, "status") == 0 || strcmp(verb, "ls") == 0)) {
        code =
            config_arg_count(c) > 1
                ? command_misplaced("node", config_arg(c, 1), "is one word too many")
                : sql_client_run("node", c, "SHOW NODES",
                                 "node state sql_address http_address ranges leads clock uptime_s");
    } else if (verb != NULL && strcmp(verb, "add") == 0) {
        code = run_address(c, "node.add");
    } else if (verb != NULL && strcmp(verb, "move-address") == 0) {
        code = run_address(c, "node.address");
    } else if (verb != NULL && (strcmp(verb, "drain") == 0 || strcmp(verb, "activate") == 0)) {
        code = run_state(c, verb);
    } else if (verb != NULL && strcmp(verb, "decommission") == 0) {
        code = run_decommission(c);
    } else {
        code = command_fail_verb("node", verb, verbs, 7);
    }
done:
    config_free(c);
    return code;
}
