/* Lines from a person: libedit with history in $XDG_STATE_HOME/spanlite/history (0600), completion
 * of key words and tables, Ctrl-C that throws the line away. */
#include "base/alloc.h"
#include "sql/shell/shell_impl.h"

#include <editline/readline.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define HISTORY_MAX 2000

static char *history_path;
static struct shell *owner;
static sigjmp_buf typing;
static volatile sig_atomic_t is_typing;

static const char *const key_words[] = {
    "ALTER TABLE",
    "AS OF",
    "BEGIN",
    "BEGIN READ ONLY",
    "COMMIT",
    "CREATE INDEX",
    "CREATE TABLE",
    "DELETE FROM",
    "DROP TABLE",
    "EXPLAIN",
    "FROM",
    "GROUP BY",
    "INSERT INTO",
    "LIMIT",
    "ORDER BY",
    "PRIMARY KEY",
    "RETURNING",
    "ROLLBACK",
    "SELECT",
    "SET",
    "SHOW CLOCKS",
    "SHOW LOCKS",
    "SHOW NODES",
    "SHOW RANGES",
    "SHOW TABLES",
    "SHOW TRANSACTION STATUS",
    "SHOW TRANSACTIONS",
    "SPLIT AT VALUES",
    "UPDATE",
    "VALUES",
    "WHERE",
};

/* Tables are asked for once a completion, and only outside a transaction: a completion may not fail
 * somebody's transaction. */
static PGresult *complete_tables;

static char *next_completion(const char *text, int state)
{
    static size_t word;
    static int row;
    size_t n = strlen(text);
    if (state == 0) {
        word = 0;
        row = 0;
    }
    while (word < sizeof(key_words) / sizeof(key_words[0])) {
        const char *w = key_words[word++];
        if (n != 0 && strncasecmp(w, text, n) == 0) {
            return strdup(w);
        }
    }
    while (complete_tables != NULL && row < PQntuples(complete_tables)) {
        const char *w = PQgetvalue(complete_tables, row++, 0);
        if (strncmp(w, text, n) == 0) {
            return strdup(w);
        }
    }
    return NULL;
}

static char **complete(const char *text, int start, int end)
{
    (void)start;
    (void)end;
    PQclear(complete_tables);
    complete_tables = NULL;
    if (PQtransactionStatus(owner->conn) == PQTRANS_IDLE) {
        complete_tables = PQexec(owner->conn, "SHOW TABLES");
        if (PQresultStatus(complete_tables) != PGRES_TUPLES_OK) {
            PQclear(complete_tables);
            complete_tables = NULL;
        }
    }
    rl_attempted_completion_over = 1;
    return rl_completion_matches(text, next_completion);
}

/* mkdir -p of the folder of `path`, each 0700. */
static void make_folder(const char *path)
{
    char *copy = span_strdup(path);
    for (char *p = strchr(copy + 1, '/'); p != NULL; p = strchr(p + 1, '/')) {
        *p = '\0';
        (void)mkdir(copy, 0700);
        *p = '/';
    }
    span_free(copy);
}

static char *find_history(void)
{
    const char *state = getenv("XDG_STATE_HOME");
    const char *home = getenv("HOME");
    if (state != NULL && state[0] == '/') {
        return span_asprintf("%s/spanlite/history", state);
    }
    if (home != NULL && home[0] == '/') {
        return span_asprintf("%s/.local/state/spanlite/history", home);
    }
    return NULL;
}

void shell_input_open(struct shell *sh)
{
    owner = sh;
    rl_readline_name = "spanlite";
    rl_attempted_completion_function = complete;
    using_history();
    stifle_history(HISTORY_MAX);
    history_path = find_history();
    if (history_path != NULL) {
        make_folder(history_path);
        (void)read_history(history_path);
    }
}

void shell_input_close(void)
{
    if (history_path != NULL) {
        mode_t old = umask(0077);
        (void)write_history(history_path);
        (void)umask(old);
        (void)chmod(history_path, 0600);
        span_free(history_path);
        history_path = NULL;
    }
    PQclear(complete_tables);
    complete_tables = NULL;
    owner = NULL;
}

void shell_input_remember(const char *statement)
{
    static char *last;
    if (statement[0] == ' ' || statement[0] == '\0' || strcasestr(statement, "password") != NULL ||
        (last != NULL && strcmp(last, statement) == 0)) {
        return;
    }
    span_free(last);
    last = span_strdup(statement);
    (void)add_history(statement);
}

/* Only while readline() waits: nothing of ours is half done there, and libedit's line is begun anew
 * (psql does the same). */
static void on_typing_interrupt(int sig)
{
    (void)sig;
    if (is_typing) {
        is_typing = 0;
        siglongjmp(typing, 1);
    }
}

char *shell_input_line(const char *prompt, bool *interrupted)
{
    struct sigaction sa = {.sa_handler = on_typing_interrupt};
    struct sigaction old;
    char *line;
    (void)sigaction(SIGINT, &sa, &old);
    if (sigsetjmp(typing, 1) != 0) {
        (void)sigaction(SIGINT, &old, NULL);
        (void)fputs("^C\n", stdout);
        *interrupted = true;
        return strdup("");
    }
    *interrupted = false;
    is_typing = 1;
    line = readline(prompt);
    is_typing = 0;
    (void)sigaction(SIGINT, &old, NULL);
    return line;
}
