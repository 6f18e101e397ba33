/* Meta commands: psql's names with a backslash, sqlite3's with a dot, one table for both. What they
 * show they ask with statements of ours (SHOW ...), so anybody else may ask the same. */
#include "base/alloc.h"
#include "sql/shell/shell_impl.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

#define ARGS_MAX 4

struct call {
    struct shell *sh;
    const char *args[ARGS_MAX]; /* NULL behind the last */
    const char *rest;           /* the line behind the command, as typed */
    struct buf *typed;
};

struct meta {
    const char *name;
    const char *args;
    const char *help; /* NULL: an alias, not listed */
    bool (*run)(struct call *c);
};

/* A name as a statement needs it: quoted unless it is plain. */
static char *quote_name(const struct call *c, const char *name)
{
    bool is_plain = isalpha((unsigned char)name[0]) || name[0] == '_';
    for (const char *p = name; *p != '\0' && is_plain; p++) {
        is_plain = isalnum((unsigned char)*p) || *p == '_';
    }
    if (is_plain || name[0] == '"') {
        return span_strdup(name);
    }
    char *quoted = PQescapeIdentifier(c->sh->conn, name, strlen(name));
    char *copy = span_strdup(quoted == NULL ? name : quoted);
    PQfreemem(quoted);
    return copy;
}

/* Runs "words" or "words FROM name"; title and essential as in shell_run_titled. */
static bool show(struct call *c, const char *words, const char *name, const char *title,
                 const char *essential)
{
    char *quoted = name == NULL ? NULL : quote_name(c, name);
    char *sql = name == NULL ? span_strdup(words) : span_asprintf("%s FROM %s", words, quoted);
    bool ok = shell_run_titled(c->sh, sql, title, essential);
    span_free(sql);
    span_free(quoted);
    return ok;
}

static bool do_tables(struct call *c)
{
    return show(c, "SHOW TABLES", NULL, NULL, NULL);
}

static bool do_describe(struct call *c)
{
    if (c->args[0] == NULL) {
        return do_tables(c);
    }
    char *title = span_asprintf("Table \"%s\"", c->args[0]);
    bool ok = show(c, "SHOW COLUMNS", c->args[0], title,
                   "column_name type nullable primary_key has_default") &&
              show(c, "SHOW INDEXES", c->args[0], "Indexes", NULL);
    span_free(title);
    return ok;
}

/* Calls `each` for every table, whose name is the column called table, table_name or name. */
static bool for_tables(struct call *c, bool (*each)(struct call *c, const char *table))
{
    PGresult *r = shell_ask(c->sh, "SHOW TABLES");
    if (r == NULL) {
        return false;
    }
    int column = PQfnumber(r, "table_name");
    column = column >= 0 ? column : PQfnumber(r, "table");
    column = column >= 0 ? column : PQfnumber(r, "name");
    bool ok = true;
    for (int row = 0; row < PQntuples(r) && ok; row++) {
        ok = each(c, PQgetvalue(r, row, column >= 0 ? column : 0));
    }
    PQclear(r);
    return ok;
}

static bool indexes_of(struct call *c, const char *table)
{
    char *title = span_asprintf("Indexes of \"%s\"", table);
    bool ok = show(c, "SHOW INDEXES", table, title, NULL);
    span_free(title);
    return ok;
}

static bool do_indexes(struct call *c)
{
    return c->args[0] != NULL ? indexes_of(c, c->args[0]) : for_tables(c, indexes_of);
}

/* The statement itself, not a table with a statement in it. */
static bool schema_of(struct call *c, const char *table)
{
    char *quoted = quote_name(c, table);
    char *sql = span_asprintf("SHOW CREATE TABLE %s", quoted);
    PGresult *r = shell_ask(c->sh, sql);
    span_free(sql);
    span_free(quoted);
    for (int row = 0; r != NULL && row < PQntuples(r); row++) {
        const char *text = PQgetvalue(r, row, PQnfields(r) - 1);
        size_t n = strlen(text);
        (void)fprintf(c->sh->out, "%s%s\n", text, n != 0 && text[n - 1] == ';' ? "" : ";");
    }
    PQclear(r);
    (void)fflush(c->sh->out);
    return r != NULL;
}

static bool do_schema(struct call *c)
{
    return c->args[0] != NULL ? schema_of(c, c->args[0]) : for_tables(c, schema_of);
}

static bool do_ranges(struct call *c)
{
    return show(c, "SHOW RANGES", c->args[0], NULL,
                "range_id start_key end_key leader replicas state");
}

static bool do_nodes(struct call *c)
{
    return show(c, "SHOW NODES", NULL, NULL, "node state sql_address ranges leads clock uptime_s");
}

static bool do_clock(struct call *c)
{
    return show(c, "SHOW CLOCKS", NULL, NULL, "node state epsilon_ms earliest latest");
}

static bool do_txns(struct call *c)
{
    return show(c, "SHOW TRANSACTIONS", NULL, NULL, "txn_id range_id state role age_ms");
}

static bool do_locks(struct call *c)
{
    return show(c, "SHOW LOCKS", NULL, NULL, "start_key mode state txn_id age_ms");
}

/* on, off or nothing (the other one). False after a complaint. */
static bool take_switch(struct call *c, const char *text, bool *value)
{
    if (text == NULL) {
        *value = !*value;
        return true;
    }
    if (strcasecmp(text, "on") == 0 || strcmp(text, "1") == 0 || strcasecmp(text, "true") == 0) {
        *value = true;
        return true;
    }
    if (strcasecmp(text, "off") == 0 || strcmp(text, "0") == 0 || strcasecmp(text, "false") == 0) {
        *value = false;
        return true;
    }
    shell_error(c->sh, "\"%s\" is neither on nor off", text);
    return false;
}

static void say(const struct call *c, const char *what, const char *value)
{
    if (c->sh->interactive && !c->sh->quiet) {
        (void)fprintf(c->sh->out, "%s is %s.\n", what, value);
        (void)fflush(c->sh->out);
    }
}

static bool do_timing(struct call *c)
{
    bool ok = take_switch(c, c->args[0], &c->sh->timing);
    if (ok) {
        say(c, "Timing", c->sh->timing ? "on" : "off");
    }
    return ok;
}

static bool do_expanded(struct call *c)
{
    bool on = c->sh->format.mode == SHELL_EXPANDED;
    if (c->args[0] != NULL && strcasecmp(c->args[0], "auto") == 0) {
        c->sh->format.mode = SHELL_TABLE;
        c->sh->fit = true;
        say(c, "Expanded display", "on for tables wider than the terminal");
        return true;
    }
    if (!take_switch(c, c->args[0], &on)) {
        return false;
    }
    c->sh->fit = c->sh->fit && (on || c->args[0] == NULL);
    if (on && c->sh->format.mode != SHELL_EXPANDED) {
        c->sh->mode_before_x = c->sh->format.mode;
        c->sh->format.mode = SHELL_EXPANDED;
    } else if (!on && c->sh->format.mode == SHELL_EXPANDED) {
        c->sh->format.mode = c->sh->mode_before_x;
    }
    say(c, "Expanded display", on ? "on" : "off");
    return true;
}

static bool set_mode(struct call *c, const char *name)
{
    if (name == NULL) {
        (void)fprintf(c->sh->out, "%s\n", shell_mode_name(c->sh->format.mode));
        (void)fflush(c->sh->out);
        return true;
    }
    if (!shell_mode_parse(name, &c->sh->format.mode)) {
        shell_error(c->sh, "unknown mode \"%s\": table, expanded, csv, tsv, json or jsonl", name);
        return false;
    }
    c->sh->fit = false; /* a table was asked for, whatever its width */
    say(c, "Output mode", shell_mode_name(c->sh->format.mode));
    return true;
}

static bool do_mode(struct call *c)
{
    return set_mode(c, c->args[0]);
}

static bool do_header(struct call *c)
{
    return take_switch(c, c->args[0], &c->sh->format.header);
}

static bool do_null(struct call *c)
{
    span_free(c->sh->null_text);
    c->sh->null_text = span_strdup(c->args[0] == NULL ? "" : c->args[0]);
    c->sh->format.null_text = c->sh->null_text;
    return true;
}

static bool do_pset(struct call *c)
{
    const char *what = c->args[0];
    struct call value = *c;
    value.args[0] = c->args[1];
    if (what != NULL && strcmp(what, "null") == 0) {
        return do_null(&value);
    }
    if (what != NULL && strcmp(what, "format") == 0) {
        return set_mode(c, c->args[1]);
    }
    if (what != NULL && (strcmp(what, "expanded") == 0 || strcmp(what, "x") == 0)) {
        return do_expanded(&value);
    }
    if (what != NULL && strcmp(what, "footer") == 0) {
        return take_switch(c, c->args[1], &c->sh->format.footer);
    }
    if (what != NULL && (strcmp(what, "tuples_only") == 0 || strcmp(what, "header") == 0)) {
        return do_header(&value);
    }
    if (what != NULL && strcmp(what, "pager") == 0) {
        return true; /* there is none */
    }
    shell_error(c->sh, "\\pset knows null, format, expanded, footer and header");
    return false;
}

static bool do_set(struct call *c)
{
    if (c->args[0] == NULL) {
        (void)fprintf(c->sh->out, "ON_ERROR_STOP = '%s'\n", c->sh->stop_on_error ? "on" : "off");
        (void)fflush(c->sh->out);
        return true;
    }
    if (strcasecmp(c->args[0], "ON_ERROR_STOP") != 0) {
        shell_error(c->sh,
                    "\\set knows ON_ERROR_STOP; settings of the server are SET name = value;");
        return false;
    }
    return take_switch(c, c->args[1] == NULL ? "on" : c->args[1], &c->sh->stop_on_error);
}

static bool do_output(struct call *c)
{
    FILE *to = stdout;
    if (c->args[0] != NULL && strcmp(c->args[0], "stdout") != 0) {
        to = fopen(c->args[0], "w");
        if (to == NULL) {
            shell_error(c->sh, "%s: %s", c->args[0], strerror(errno));
            return false;
        }
    }
    if (c->sh->out != stdout) {
        (void)fclose(c->sh->out);
    }
    c->sh->out = to;
    return true;
}

static bool do_include(struct call *c)
{
    if (c->args[0] == NULL) {
        shell_error(c->sh, "\\i needs a file");
        return false;
    }
    return shell_run_file(c->sh, c->args[0]);
}

static bool do_connect(struct call *c)
{
    if (c->args[0] != NULL) {
        span_free(c->sh->url);
        c->sh->url = span_strdup(c->args[0]);
    }
    if (!shell_connect(c->sh)) {
        return false;
    }
    say(c, "The connection", "new");
    return true;
}

static bool do_conninfo(struct call *c)
{
    PGconn *conn = c->sh->conn;
    if (PQstatus(conn) != CONNECTION_OK) {
        (void)fputs("Not connected.\n", c->sh->out);
    } else {
        (void)fprintf(c->sh->out, "Connected as \"%s\" to \"%s\" at %s:%s, server %s.\n",
                      PQuser(conn), PQdb(conn), PQhost(conn), PQport(conn),
                      PQparameterStatus(conn, "server_version"));
    }
    (void)fflush(c->sh->out);
    return true;
}

/* The statement typed so far, or the last one. */
static struct slice statement_of(const struct call *c)
{
    for (size_t i = 0; i < c->typed->size; i++) {
        if (!isspace(c->typed->data[i])) {
            return buf_slice(c->typed);
        }
    }
    return buf_slice(&c->sh->last);
}

static bool do_go(struct call *c)
{
    struct slice sql = statement_of(c);
    char *copy = span_asprintf("%.*s", (int)sql.size, (const char *)sql.data);
    buf_clear(c->typed);
    bool ok = copy[0] == '\0' || shell_run(c->sh, slice_str(copy));
    span_free(copy);
    return ok;
}

static bool do_go_expanded(struct call *c)
{
    enum shell_mode mode = c->sh->format.mode;
    c->sh->format.mode = SHELL_EXPANDED;
    bool ok = do_go(c);
    c->sh->format.mode = mode;
    return ok;
}

static bool do_watch(struct call *c)
{
    char *end = NULL;
    double seconds = c->args[0] == NULL ? 2 : strtod(c->args[0], &end);
    struct slice sql = statement_of(c);
    if (c->args[0] != NULL && (*end != '\0' || !(seconds >= 0.01) || !(seconds <= 86400))) {
        shell_error(c->sh, "\\watch %s: give a number of seconds from 0.01 to 86400", c->args[0]);
        return false;
    }
    if (sql.size == 0) {
        shell_error(c->sh, "\\watch repeats a statement, and there is none yet");
        return false;
    }
    char *copy = span_asprintf("%.*s", (int)sql.size, (const char *)sql.data);
    buf_clear(c->typed);
    bool ok = shell_watch(c->sh, slice_str(copy), seconds);
    span_free(copy);
    return ok;
}

static bool do_print(struct call *c)
{
    struct slice sql = statement_of(c);
    (void)fprintf(c->sh->out, "%.*s\n", (int)sql.size, (const char *)sql.data);
    (void)fflush(c->sh->out);
    return true;
}

static bool do_reset(struct call *c)
{
    buf_clear(c->typed);
    return true;
}

static bool do_echo(struct call *c)
{
    (void)fprintf(c->sh->out, "%s\n", c->rest);
    (void)fflush(c->sh->out);
    return true;
}

static bool do_status(struct call *c)
{
    if (c->args[0] == NULL) {
        return shell_run_titled(c->sh, "SHOW TRANSACTION STATUS", NULL, NULL);
    }
    char *quoted = PQescapeLiteral(c->sh->conn, c->args[0], strlen(c->args[0]));
    char *sql = span_asprintf("SHOW TRANSACTION STATUS %s", quoted == NULL ? "''" : quoted);
    bool ok = shell_run_titled(c->sh, sql, NULL, NULL);
    span_free(sql);
    PQfreemem(quoted);
    return ok;
}

static bool do_quit(struct call *c)
{
    c->sh->quit = true;
    return true;
}

static bool do_help(struct call *c);

static const struct meta table[] = {
    {"\\d", "[TABLE]", "columns and indexes of a table; without one, the tables", do_describe},
    {"\\dt", "", "tables", do_tables},
    {"\\di", "[TABLE]", "indexes", do_indexes},
    {".schema", "[TABLE]", "CREATE statements", do_schema},
    {"\\ranges", "[TABLE]", "ranges, their bounds, leaders and replicas", do_ranges},
    {"\\nodes", "", "nodes of the cluster", do_nodes},
    {"\\clock", "", "TrueTime of every node: state and epsilon", do_clock},
    {"\\txns", "", "transactions under way and in doubt", do_txns},
    {"\\locks", "", "locks: holder, waiter, age", do_locks},
    {"\\status", "[ID]", "what became of a transaction; without one, of the last", do_status},
    {"\\conninfo", "", "the connection", do_conninfo},
    {"\\c", "[URL]", "connect again, or to another cluster", do_connect},
    {"\\timing", "[on|off]", "time of every statement", do_timing},
    {"\\mode", "[MODE]", "output: table, expanded, csv, tsv, json, jsonl", do_mode},
    {"\\x", "[on|off|auto]", "expanded output; auto: when wider than the screen", do_expanded},
    {"\\pset", "NAME VALUE", "null, format, expanded, footer, header", do_pset},
    {"\\o", "[FILE]", "results into a file; back to the screen", do_output},
    {"\\i", "FILE", "run a file", do_include},
    {"\\g", "", "run what is typed, or the last statement again", do_go},
    {"\\gx", "", "the same with expanded output", do_go_expanded},
    {"\\watch", "[SECONDS]", "run it again and again until Ctrl-C", do_watch},
    {"\\p", "", "show what is typed", do_print},
    {"\\r", "", "forget what is typed", do_reset},
    {"\\echo", "TEXT", "print a text", do_echo},
    {"\\set", "[NAME VALUE]", "ON_ERROR_STOP on|off, for scripts", do_set},
    {"\\q", "", "quit (also Ctrl-D)", do_quit},
    {"\\?", "", "this list", do_help},
    {"\\quit", NULL, NULL, do_quit},
    {"\\clocks", NULL, NULL, do_clock},
    {"\\format", NULL, NULL, do_mode},
    {"\\help", NULL, NULL, do_help},
    {"\\h", NULL, NULL, do_help},
    {"\\connect", NULL, NULL, do_connect},
    {"\\include", NULL, NULL, do_include},
    {".tables", NULL, NULL, do_tables},
    {".indexes", NULL, NULL, do_indexes},
    {".indices", NULL, NULL, do_indexes},
    {".mode", NULL, NULL, do_mode},
    {".headers", NULL, NULL, do_header},
    {".header", NULL, NULL, do_header},
    {".nullvalue", NULL, NULL, do_null},
    {".timer", NULL, NULL, do_timing},
    {".read", NULL, NULL, do_include},
    {".output", NULL, NULL, do_output},
    {".print", NULL, NULL, do_echo},
    {".help", NULL, NULL, do_help},
    {".quit", NULL, NULL, do_quit},
    {".exit", NULL, NULL, do_quit},
};

static bool do_help(struct call *c)
{
    FILE *f = c->sh->out;
    (void)fputs("Statements end with a semicolon. Meta commands:\n\n", f);
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (table[i].help != NULL) {
            (void)fprintf(f, "  %-9s %-13s %s\n", table[i].name, table[i].args, table[i].help);
        }
    }
    (void)fputs("\nAs in sqlite3: .tables .schema .indexes .mode .headers .nullvalue .timer\n"
                ".read .output .print .help .quit. Ctrl-C cancels the running statement or\n"
                "clears the line.\n",
                f);
    (void)fflush(f);
    return true;
}

/* Cuts the line into words; 'quoted words' may hold spaces, '' is a quote in one. */
static void cut_words(char *line, const char *args[ARGS_MAX])
{
    size_t n = 0;
    char *p = line;
    while (n < ARGS_MAX) {
        while (isspace((unsigned char)*p)) {
            p++;
        }
        if (*p == '\0') {
            break;
        }
        char *to = p;
        args[n++] = to;
        bool quoted = false;
        for (; *p != '\0' && (quoted || !isspace((unsigned char)*p)); p++) {
            if (*p == '\'' && quoted && p[1] == '\'') {
                *to++ = *p++;
            } else if (*p == '\'') {
                quoted = !quoted;
            } else {
                *to++ = *p;
            }
        }
        bool end = *p == '\0';
        *to = '\0';
        if (end) {
            break;
        }
        p++;
    }
}

bool shell_meta(struct shell *sh, const char *line, struct buf *typed)
{
    size_t size = 0;
    while (line[size] != '\0' && !isspace((unsigned char)line[size]) && line[size] != ';') {
        size++;
    }
    const char *rest = line + size;
    while (isspace((unsigned char)*rest)) {
        rest++;
    }
    /* People end everything with a semicolon. */
    char *copy = span_strdup(rest);
    size_t n = strlen(copy);
    while (n > 0 && (isspace((unsigned char)copy[n - 1]) || copy[n - 1] == ';')) {
        copy[--n] = '\0';
    }
    struct call c = {.sh = sh, .typed = typed};
    char *words = span_strdup(copy);
    c.rest = copy;
    cut_words(words, c.args);
    bool ok = false;
    bool found = false;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]) && !found; i++) {
        if (strlen(table[i].name) == size && strncmp(table[i].name, line, size) == 0) {
            found = true;
            ok = table[i].run(&c);
        }
    }
    if (!found) {
        shell_error(sh, "unknown command %.*s: \\? lists them", (int)size, line);
    }
    span_free(words);
    span_free(copy);
    return ok;
}
