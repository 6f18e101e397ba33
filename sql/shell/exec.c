/* Connecting, running statements, printing results and errors, Ctrl-C. */
#include "base/alloc.h"
#include "sql/shell/shell_impl.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* What the signal handler sees. A statement runs: cancel it; a second Ctrl-C within it drops the
 * connection. Nothing runs: note it. */
static PGcancel *volatile running_cancel;
static volatile int running_fd = -1;
static volatile sig_atomic_t cancels_sent;
static volatile sig_atomic_t interrupts;
static struct sigaction old_action;

static void on_interrupt(int sig)
{
    int saved = errno;
    char why[256];
    (void)sig;
    if (running_cancel == NULL) {
        interrupts = 1;
    } else if (cancels_sent == 0) {
        cancels_sent = 1;
        (void)PQcancel(running_cancel, why, sizeof(why)); /* documented as safe in a handler */
    } else {
        (void)shutdown(running_fd, SHUT_RDWR);
    }
    errno = saved;
}

void shell_signals_on(struct shell *sh)
{
    struct sigaction sa = {.sa_handler = on_interrupt};
    (void)sh;
    interrupts = 0;
    (void)sigaction(SIGINT, &sa, &old_action); /* without SA_RESTART: waits end */
}

void shell_signals_off(void)
{
    (void)sigaction(SIGINT, &old_action, NULL);
}

bool shell_interrupted(void)
{
    bool was = interrupts != 0;
    interrupts = 0;
    return was;
}

static void cancel_arm(PGconn *conn)
{
    cancels_sent = 0;
    running_fd = PQsocket(conn);
    running_cancel = PQgetCancel(conn);
}

static void cancel_disarm(void)
{
    PGcancel *c = running_cancel;
    running_cancel = NULL;
    running_fd = -1;
    PQfreeCancel(c);
}

/* Messages. */

static void put_place(const struct shell *sh)
{
    if (sh->source != NULL && sh->source->name != NULL) {
        (void)fprintf(stderr, "%s:%u: ", sh->source->name, sh->source->line);
    }
}

void shell_error(struct shell *sh, const char *fmt, ...)
{
    va_list ap;
    (void)fflush(sh->out);
    put_place(sh);
    va_start(ap, fmt);
    (void)vfprintf(stderr, fmt, ap);
    va_end(ap);
    (void)fputc('\n', stderr);
}

/* libpq's text has LINE and caret, DETAIL and HINT already; the code is ours to add. */
static void put_error(struct shell *sh, const PGresult *r)
{
    const char *text = r == NULL ? PQerrorMessage(sh->conn) : PQresultErrorMessage(r);
    const char *state = r == NULL ? NULL : PQresultErrorField(r, PG_DIAG_SQLSTATE);
    (void)fflush(sh->out);
    put_place(sh);
    (void)fputs(text, stderr);
    if (text[0] == '\0' || text[strlen(text) - 1] != '\n') {
        (void)fputc('\n', stderr);
    }
    if (state != NULL) {
        (void)fprintf(stderr, "SQLSTATE: %s\n", state);
    }
}

static void on_notice(void *ctx, const char *message)
{
    struct shell *sh = ctx;
    if (!sh->quiet) {
        (void)fflush(sh->out);
        put_place(sh);
        (void)fputs(message, stderr);
    }
}

/* Connecting. */

/* The URL without its password. */
static char *url_to_show(const char *url)
{
    char *copy = span_strdup(url);
    char *user = strstr(copy, "://");
    char *end = user == NULL ? NULL : strchr(user + 3, '@');
    char *colon = end == NULL ? NULL : memchr(user + 3, ':', (size_t)(end - user - 3));
    if (colon != NULL) {
        memmove(colon, end, strlen(end) + 1);
    }
    if (strstr(copy, "password") != NULL) { /* as a parameter */
        copy[0] = '\0';
    }
    return copy;
}

static PGconn *dial(const struct shell *sh)
{
    const char *keys[8] = {"dbname", "fallback_application_name", "connect_timeout"};
    const char *values[8] = {sh->url, "spanlite sql", "5"};
    size_t n = 3;
    if (strstr(sh->url, "connect_timeout") != NULL || getenv("PGCONNECT_TIMEOUT") != NULL) {
        n = 2;
    }
    /* Parameters behind dbname's URL override it, so a user is added only where it names none. */
    char *why = NULL;
    PQconninfoOption *o = PQconninfoParse(sh->url, &why);
    bool has_user = false;
    for (const PQconninfoOption *i = o; i != NULL && i->keyword != NULL; i++) {
        has_user = has_user || (strcmp(i->keyword, "user") == 0 && i->val != NULL);
    }
    PQconninfoFree(o);
    PQfreemem(why);
    if (!has_user && getenv("PGUSER") == NULL) {
        keys[n] = "user";
        values[n++] = "root";
    }
    keys[n] = NULL;
    return PQconnectdbParams(keys, values, 1);
}

bool shell_connect(struct shell *sh)
{
    PGconn *conn = dial(sh);
    if (PQstatus(conn) != CONNECTION_OK) {
        char *url = url_to_show(sh->url);
        (void)fprintf(stderr, "spanlite sql: no connection%s%s\n%s", url[0] == '\0' ? "" : " to ",
                      url, PQerrorMessage(conn));
        span_free(url);
        (void)fputs(
            "Is a cluster running? \"spanlite demo\" starts one with a shell, \"deploy/local/"
            "cluster up\" one of\nreal processes. Name another one with --url "
            "postgresql://host:port/ or SPANLITE_URL.\n",
            stderr);
        PQfinish(conn);
        return false;
    }
    PQfinish(sh->conn);
    sh->conn = conn;
    (void)PQsetNoticeProcessor(conn, on_notice, sh);
    return true;
}

/* A person's shell dials again, on any node of the URL; a script ends. */
static void connection_lost(struct shell *sh)
{
    if (!sh->interactive) {
        sh->quit = true;
        sh->exit_code = SHELL_NO_CONNECTION;
        return;
    }
    (void)fputs("The connection was lost; trying again ... ", stderr);
    PQreset(sh->conn);
    if (PQstatus(sh->conn) == CONNECTION_OK) {
        (void)fprintf(stderr, "connected to %s:%s.\nAn open transaction was rolled back.\n",
                      PQhost(sh->conn), PQport(sh->conn));
    } else {
        (void)fputs("no node answers. \\c tries again.\n", stderr);
    }
}

/* Running. */

static double now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void put_buf(struct shell *sh, struct buf *b)
{
    if (b->size != 0) {
        (void)fwrite(b->data, 1, b->size, sh->out);
    }
    (void)fflush(sh->out);
}

/* Columns of the terminal that results go to; 0: none, or nobody wants them to fit. */
static size_t terminal_width(const struct shell *sh)
{
    struct winsize size;
    return sh->fit && sh->out == stdout && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0
               ? size.ws_col
               : 0;
}

static void put_result(struct shell *sh, const PGresult *r, const char *title)
{
    struct buf out;
    buf_init(&out);
    sh->format.width = terminal_width(sh);
    shell_format_result(&sh->format, r, title, &out);
    put_buf(sh, &out);
    buf_deinit(&out);
}

static void put_tag(struct shell *sh, PGresult *r)
{
    const char *tag = PQcmdStatus(r);
    struct buf out;
    if (sh->quiet || tag[0] == '\0') {
        return;
    }
    buf_init(&out);
    shell_format_tag(&sh->format, tag, &out);
    put_buf(sh, &out);
    buf_deinit(&out);
}

/* False: it was an error. */
static bool take_result(struct shell *sh, PGresult *r)
{
    switch (PQresultStatus(r)) {
    case PGRES_TUPLES_OK:
        put_result(sh, r, NULL);
        return true;
    case PGRES_COMMAND_OK:
        put_tag(sh, r);
        return true;
    case PGRES_EMPTY_QUERY:
        return true;
    case PGRES_COPY_IN:
        (void)PQputCopyEnd(sh->conn, "COPY is not supported by this shell");
        return true; /* the error comes as the next result */
    case PGRES_COPY_OUT:
    case PGRES_COPY_BOTH:
        shell_error(sh, "COPY is not supported by this shell");
        PQreset(sh->conn);
        return false;
    case PGRES_BAD_RESPONSE:
    case PGRES_NONFATAL_ERROR:
    case PGRES_FATAL_ERROR:
    case PGRES_SINGLE_TUPLE:
    case PGRES_PIPELINE_SYNC:
    case PGRES_PIPELINE_ABORTED:
    default:
        put_error(sh, r);
        return false;
    }
}

static bool is_connected(struct shell *sh)
{
    if (PQstatus(sh->conn) == CONNECTION_OK) {
        return true;
    }
    connection_lost(sh);
    return PQstatus(sh->conn) == CONNECTION_OK;
}

bool shell_run(struct shell *sh, struct slice sql)
{
    if (!is_connected(sh)) {
        return false;
    }
    char *text = span_asprintf("%.*s", (int)sql.size, (const char *)sql.data);
    double start = now_ms();
    bool ok = true;
    buf_set(&sh->last, sql);
    cancel_arm(sh->conn);
    if (PQsendQuery(sh->conn, text) == 0) {
        put_error(sh, NULL);
        ok = false;
    }
    for (PGresult *r; ok && (r = PQgetResult(sh->conn)) != NULL;) {
        ok = take_result(sh, r);
        PQclear(r);
    }
    for (PGresult *r; !ok && (r = PQgetResult(sh->conn)) != NULL;) {
        PQclear(r); /* to ReadyForQuery */
    }
    cancel_disarm();
    span_free(text);
    if (sh->timing) {
        (void)fprintf(sh->out, "Time: %.3f ms\n", now_ms() - start);
        (void)fflush(sh->out);
    }
    if (PQstatus(sh->conn) != CONNECTION_OK) {
        connection_lost(sh);
        ok = false;
    }
    return ok;
}

PGresult *shell_ask(struct shell *sh, const char *sql)
{
    if (!is_connected(sh)) {
        return NULL;
    }
    cancel_arm(sh->conn);
    PGresult *r = PQexec(sh->conn, sql);
    cancel_disarm();
    if (PQresultStatus(r) != PGRES_TUPLES_OK) {
        put_error(sh, r);
        PQclear(r);
        return NULL;
    }
    return r;
}

/* The result with the columns `from` only. NULL: no memory. */
static PGresult *picked(const PGresult *r, const int *from, int n)
{
    PGresult *out = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
    PGresAttDesc *columns = span_calloc((size_t)n, sizeof(columns[0]));
    for (int c = 0; c < n; c++) {
        columns[c] = (PGresAttDesc){.name = PQfname(r, from[c]), .typid = PQftype(r, from[c])};
    }
    bool ok = out != NULL && PQsetResultAttrs(out, n, columns) != 0;
    for (int row = 0; row < PQntuples(r); row++) {
        for (int c = 0; ok && c < n; c++) {
            bool is_null = PQgetisnull(r, row, from[c]);
            ok = PQsetvalue(out, row, c, is_null ? NULL : PQgetvalue(r, row, from[c]),
                            is_null ? -1 : PQgetlength(r, row, from[c])) != 0;
        }
    }
    span_free(columns);
    if (!ok) {
        PQclear(out);
        return NULL;
    }
    return out;
}

/* The result with as many of the named columns as fit, at least two. */
static PGresult *narrowed(const struct shell *sh, const PGresult *r, const char *names,
                          size_t width)
{
    int *from = span_calloc((size_t)PQnfields(r), sizeof(from[0]));
    char *words = span_strdup(names);
    char *rest = words;
    int n = 0;
    for (char *name; (name = strsep(&rest, " ")) != NULL && n < PQnfields(r);) {
        int c = PQfnumber(r, name);
        if (c >= 0) {
            from[n++] = c;
        }
    }
    PGresult *out = n == 0 ? NULL : picked(r, from, n);
    while (out != NULL && n > 2 && shell_table_width(&sh->format, out) > width) {
        PQclear(out);
        out = picked(r, from, --n);
    }
    span_free(words);
    span_free(from);
    return out;
}

bool shell_run_titled(struct shell *sh, const char *sql, const char *title, const char *essential)
{
    PGresult *r = shell_ask(sh, sql);
    if (r == NULL) {
        return false;
    }
    size_t width = terminal_width(sh);
    PGresult *less = NULL;
    if (essential != NULL && sh->format.mode == SHELL_TABLE && width != 0 &&
        shell_table_width(&sh->format, r) > width) {
        less = narrowed(sh, r, essential, width);
    }
    put_result(sh, less != NULL ? less : r, title);
    if (less != NULL && sh->format.footer && PQntuples(r) != 0) {
        (void)fprintf(sh->out, "%d more columns on a wider screen, or with \\x on.\n",
                      PQnfields(r) - PQnfields(less));
        (void)fflush(sh->out);
    }
    PQclear(less);
    PQclear(r);
    return true;
}

bool shell_watch(struct shell *sh, struct slice sql, double seconds)
{
    char *text = span_asprintf("%.*s", (int)sql.size, (const char *)sql.data);
    bool ok = true;
    (void)shell_interrupted();
    while (ok && !sh->quit) {
        time_t t = time(NULL);
        struct tm tm;
        char stamp[32];
        (void)localtime_r(&t, &tm);
        (void)strftime(stamp, sizeof(stamp), "%F %T", &tm);
        (void)fprintf(sh->out, "%s (every %gs)\n\n", stamp, seconds);
        ok = shell_run(sh, slice_str(text));
        (void)fputc('\n', sh->out);
        (void)fflush(sh->out);
        if (!ok || cancels_sent != 0) {
            break;
        }
        struct timespec nap = {.tv_sec = (time_t)seconds,
                               .tv_nsec = (long)(fmod(seconds, 1.0) * 1e9)};
        if (nanosleep(&nap, NULL) != 0 || shell_interrupted()) {
            break; /* Ctrl-C: that is how it ends */
        }
    }
    (void)shell_interrupted();
    span_free(text);
    return ok;
}
