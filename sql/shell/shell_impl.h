/* Private to sql/shell: the shell's state and the seams between its files. One thread; the signal
 * handler touches only what is marked. */
#ifndef SPAN_SQL_SHELL_SHELL_IMPL_H
#define SPAN_SQL_SHELL_SHELL_IMPL_H

#include "base/buf.h"
#include "sql/shell/format.h"

#include <libpq-fe.h>
#include <stdio.h>

#define SHELL_URL_DEFAULT "postgresql://spanlite@127.0.0.1:5433/"

enum shell_exit {
    SHELL_OK = 0,
    SHELL_FAILED = 1,
    SHELL_NO_CONNECTION = 2, /* also wrong usage */
    SHELL_SCRIPT_STOPPED = 3,
};

/* Where lines come from: for error messages and for how errors end it. */
struct shell_source {
    const char *name; /* NULL: typed or -c */
    unsigned line;    /* of the beginning of the statement under way; 1-based */
    unsigned now;     /* line read last */
    unsigned depth;   /* of \i in \i */
};

struct shell {
    PGconn *conn;
    char *url; /* NULL: libpq's environment */
    struct shell_format format;
    enum shell_mode mode_before_x; /* what \x goes back to */
    bool fit;                      /* tables wider than the terminal are shown expanded */
    FILE *out;                     /* stdout or \o's file */
    bool interactive;              /* a person types */
    bool quiet;
    bool timing;
    bool stop_on_error; /* ON_ERROR_STOP, for scripts and -c */
    bool quit;
    int exit_code; /* of \q after a failure, or of a lost connection */
    char *null_text;
    struct buf last; /* the last statement that ran, for \g and \watch */
    struct shell_source *source;
};

/* exec.c */

/* Connects, with a message that says what to do when it fails. */
bool shell_connect(struct shell *sh);
/* Runs a text with one or more statements and prints what comes back. False: it failed (said so).
 */
bool shell_run(struct shell *sh, struct slice sql);
/* Runs a query of the shell's own (\d and so on); title is printed above it. `essential`, if not
 * NULL, names the columns that stay, by spaces, where all of them are too wide for the terminal. */
bool shell_run_titled(struct shell *sh, const char *sql, const char *title, const char *essential);
/* The same without printing; NULL after an error was printed. Owned by the caller. */
PGresult *shell_ask(struct shell *sh, const char *sql);
void shell_error(struct shell *sh, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Runs `sql` again every `seconds` until Ctrl-C. */
bool shell_watch(struct shell *sh, struct slice sql, double seconds);
/* Installs the SIGINT handler: cancels a running statement, else breaks the line being typed. */
void shell_signals_on(struct shell *sh);
void shell_signals_off(void);
/* True once after each Ctrl-C that came while nothing ran. */
bool shell_interrupted(void);

/* meta.c: one meta command, `line` begins with a backslash or a dot. `typed` is the statement typed
 * so far, which \g, \p, \r and \watch work on. False: it failed (said so). */
bool shell_meta(struct shell *sh, const char *line, struct buf *typed);

/* shell.c */

/* Runs a file ("-": stdin). False: it stopped at an error or could not be read. */
bool shell_run_file(struct shell *sh, const char *path);

/* input.c: lines from a person, with editing and history. */

void shell_input_open(struct shell *sh);
void shell_input_close(void);
/* The next line without its newline, owned by the caller (free); NULL: end of input. *interrupted
 * is set when Ctrl-C threw the line away (then "" is returned). */
char *shell_input_line(const char *prompt, bool *interrupted);
/* Remembers a whole statement. */
void shell_input_remember(const char *statement);

#endif
