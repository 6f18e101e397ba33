/* spanlite sql: options, the loop over lines, scripts. Statements go out one by one as they are
 * complete
 * (-c goes out whole, as psql does: one implicit transaction). */
#include "sql/shell/shell.h"

#include "base/alloc.h"
#include "sql/shell/shell_impl.h"
#include "sql/shell/split.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

#define INCLUDE_DEPTH_MAX 16
#define ACTIONS_MAX       256

static const char help_text[] =
    "Usage: spanlite sql [flags] [URL]\n"
    "\n"
    "SQL shell. Without -c or -f it reads statements from the terminal or stdin.\n"
    "\n"
    "Example:\n"
    "  spanlite sql --url postgresql://127.0.0.1:5433,127.0.0.1:5434/\n"
    "  spanlite sql -c 'SHOW RANGES' --json\n"
    "\n"
    "Flags:\n"
    "  --url URL          cluster, postgresql://host:port,host:port/ (SPANLITE_URL; PG*\n"
    "                     variables; default postgresql://spanlite@127.0.0.1:5433/)\n"
    "  -c SQL             run this and exit; may be repeated and mixed with -f\n"
    "  -f FILE            run this file and exit (-: stdin)\n"
    "  --format MODE      table, expanded, csv, tsv, json, jsonl (table on a terminal,\n"
    "                     else tsv without a header)\n"
    "  --json, --csv, --tsv, -x   the same as --format\n"
    "  --header, --no-header      names of columns in table, csv and tsv\n"
    "  --null TEXT        how NULL is shown in table and expanded (NULL)\n"
    "  -o FILE            results into a file\n"
    "  --timing           time of every statement (on by default on a terminal)\n"
    "  -v NAME=VALUE      ON_ERROR_STOP=off: a script goes on after an error\n"
    "  -q, --quiet        results only\n"
    "\n"
    "Inside, \\? lists the meta commands. Exit codes: 0 done, 1 a -c statement failed or\n"
    "a file could not be read, 2 no connection or wrong usage, 3 a script stopped at an\n"
    "error.\n";

struct action {
    bool is_file;
    const char *text;
};

struct options {
    struct action actions[ACTIONS_MAX];
    size_t action_count;
    const char *url;
    const char *format;
    const char *output;
    int header; /* -1: not given */
};

/* Lines. */

/* Or an error's LINE would count lines that nobody meant. */
static struct slice without_leading_space(struct slice s)
{
    while (s.size != 0 && isspace(s.data[0])) {
        s = slice_of(s.data + 1, s.size - 1);
    }
    return s;
}

/* Runs what is complete in `typed`; stops at the first failure if `stop`. `line` counts lines for
 * error messages. False: stopped. */
static bool run_complete(struct shell *sh, struct buf *typed, bool stop)
{
    for (;;) {
        struct shell_piece p = shell_split(buf_slice(typed));
        if (p.end == SHELL_END_NONE) {
            if (p.blank && p.inside == '=') {
                buf_clear(typed);
            }
            return true;
        }
        bool ok = true;
        if (p.end == SHELL_END_BACKSLASH) {
            /* The rest of the line is the meta command; what stood before it is the statement. */
            char *line = span_asprintf("%.*s", (int)(typed->size - p.size),
                                       (const char *)typed->data + p.size);
            typed->size = p.size;
            ok = shell_meta(sh, line, typed);
            span_free(line);
            return (ok || !stop) && !sh->quit;
        }
        if (!p.blank) {
            ok = shell_run(sh, without_leading_space(slice_of(typed->data, p.size)));
        }
        if (sh->source != NULL) {
            sh->source->line = sh->source->now; /* what follows begins on this line */
        }
        memmove(typed->data, typed->data + p.size, typed->size - p.size);
        typed->size -= p.size;
        if ((!ok && stop) || sh->quit) {
            return false;
        }
    }
}

static bool is_blank(const struct buf *b)
{
    for (size_t i = 0; i < b->size; i++) {
        if (!isspace(b->data[i])) {
            return false;
        }
    }
    return true;
}

/* One line of input after what is typed already. False: stopped at an error, or quit. */
static bool take_line(struct shell *sh, const char *line, struct buf *typed, bool stop)
{
    if (is_blank(typed)) {
        buf_clear(typed);
        if (line[0] == '.' && isalpha((unsigned char)line[1])) {
            return (shell_meta(sh, line, typed) || !stop) && !sh->quit;
        }
        if (sh->interactive && (strcasecmp(line, "quit") == 0 || strcasecmp(line, "exit") == 0)) {
            sh->quit = true;
            return false;
        }
        if (sh->interactive && strcasecmp(line, "help") == 0) {
            return shell_meta(sh, "\\?", typed);
        }
    }
    if (typed->size != 0) {
        buf_append_byte(typed, '\n');
    }
    buf_append_str(typed, line);
    return run_complete(sh, typed, stop);
}

/* Scripts. */

/* Text of a whole stream; NULL with errno. */
static char *read_line(FILE *f, char **line, size_t *cap)
{
    ssize_t n = getline(line, cap, f);
    if (n < 0) {
        return NULL;
    }
    if (n > 0 && (*line)[n - 1] == '\n') {
        (*line)[--n] = '\0';
    }
    if (n > 0 && (*line)[n - 1] == '\r') {
        (*line)[--n] = '\0';
    }
    return *line;
}

static bool run_stream(struct shell *sh, FILE *f, const char *name)
{
    struct shell_source source = {.name = name, .line = 1};
    struct shell_source *outer = sh->source;
    struct buf typed;
    char *line = NULL;
    size_t cap = 0;
    bool going = true;
    bool was_interactive = sh->interactive;
    source.depth = outer == NULL ? 1 : outer->depth + 1;
    sh->source = &source;
    sh->interactive = false;
    buf_init(&typed);
    for (unsigned n = 1; going && read_line(f, &line, &cap) != NULL; n++) {
        source.now = n;
        if (is_blank(&typed)) {
            source.line = n;
        }
        const char *from = line;
        if (n == 1 && strncmp(from, "\xef\xbb\xbf", 3) == 0) {
            from += 3; /* a byte order mark */
        }
        going = take_line(sh, from, &typed, sh->stop_on_error);
        if (shell_interrupted()) {
            going = false;
        }
    }
    /* The last statement may lack its semicolon. */
    if (going && !is_blank(&typed) && !shell_split(buf_slice(&typed)).blank) {
        going = shell_run(sh, without_leading_space(buf_slice(&typed))) || !sh->stop_on_error;
    }
    bool quit = sh->quit && sh->exit_code == 0;
    free(line); /* getline's own */
    buf_deinit(&typed);
    sh->source = outer;
    sh->interactive = was_interactive;
    return going || quit;
}

bool shell_run_file(struct shell *sh, const char *path)
{
    bool is_stdin = strcmp(path, "-") == 0;
    if (sh->source != NULL && sh->source->depth >= INCLUDE_DEPTH_MAX) {
        shell_error(sh, "%s: files include each other more than %d deep", path, INCLUDE_DEPTH_MAX);
        return false;
    }
    FILE *f = is_stdin ? stdin : fopen(path, "re");
    if (f == NULL) {
        shell_error(sh, "%s: %s", path, strerror(errno));
        sh->exit_code = sh->exit_code == 0 && !sh->interactive ? SHELL_FAILED : sh->exit_code;
        return false;
    }
    bool ok = run_stream(sh, f, is_stdin ? "<stdin>" : path);
    if (!is_stdin) {
        (void)fclose(f);
    }
    return ok;
}

/* A person. */

static const char *prompt(const struct shell *sh, const struct buf *typed, char out[64])
{
    PGTransactionStatusType txn = PQtransactionStatus(sh->conn);
    const char *mark = txn == PQTRANS_INTRANS                             ? "*"
                       : txn == PQTRANS_INERROR || txn == PQTRANS_UNKNOWN ? "!"
                                                                          : "";
    char inside = typed->size == 0 ? '=' : shell_split(buf_slice(typed)).inside;
    inside = typed->size != 0 && inside == '=' ? '-' : inside;
    (void)snprintf(out, 64, "spanlite%c%s> ", inside, mark);
    return out;
}

static void greet(const struct shell *sh)
{
    const char *server = PQparameterStatus(sh->conn, "server_version");
    bool same = server != NULL && strstr(server, "spanlite " SPAN_VERSION ")") != NULL;
    (void)printf("spanlite %s%s%s at %s:%s. \\? for help, \\q to quit.\n", SPAN_VERSION,
                 same ? "" : ", server ", same || server == NULL ? "" : server, PQhost(sh->conn),
                 PQport(sh->conn));
}

static void remember(const struct buf *typed, const char *line)
{
    char *whole = typed->size == 0 ? span_strdup(line)
                                   : span_asprintf("%.*s\n%s", (int)typed->size,
                                                   (const char *)typed->data, line);
    shell_input_remember(whole);
    span_free(whole);
}

static int run_terminal(struct shell *sh)
{
    struct buf typed;
    char text[64];
    buf_init(&typed);
    if (!sh->quiet) {
        greet(sh);
    }
    shell_input_open(sh);
    while (!sh->quit) {
        bool interrupted = false;
        char *line = shell_input_line(prompt(sh, &typed, text), &interrupted);
        if (line == NULL) {
            (void)fputc('\n', stdout);
            break;
        }
        if (interrupted) {
            buf_clear(&typed);
        } else {
            char *before = span_asprintf("%.*s", (int)typed.size, (const char *)typed.data);
            struct buf old = {(uint8_t *)before, strlen(before), 0};
            size_t was = typed.size;
            (void)take_line(sh, line, &typed, false);
            /* Remembered when something was run: the buffer did not simply grow by the line. */
            if (typed.size <= was && line[0] != '\0') {
                remember(&old, line);
            }
            span_free(before);
        }
        free(line); /* libedit's own */
    }
    shell_input_close();
    if (PQtransactionStatus(sh->conn) == PQTRANS_INTRANS) {
        (void)fputs("The open transaction was rolled back.\n", stderr);
    }
    buf_deinit(&typed);
    return sh->exit_code;
}

/* Options. */

static int usage(const char *what, const char *value)
{
    (void)fprintf(stderr, "spanlite sql: %s%s%s\nTry \"spanlite sql --help\".\n", what,
                  value == NULL ? "" : ": ", value == NULL ? "" : value);
    return SHELL_NO_CONNECTION;
}

static const struct option flags[] = {
    {"url", required_argument, NULL, 'U'},     {"command", required_argument, NULL, 'c'},
    {"execute", required_argument, NULL, 'c'}, {"file", required_argument, NULL, 'f'},
    {"format", required_argument, NULL, 'F'},  {"json", no_argument, NULL, 'J'},
    {"csv", no_argument, NULL, 'C'},           {"tsv", no_argument, NULL, 'T'},
    {"expanded", no_argument, NULL, 'x'},      {"header", no_argument, NULL, 'H'},
    {"no-header", no_argument, NULL, 'N'},     {"null", required_argument, NULL, 'n'},
    {"output", required_argument, NULL, 'o'},  {"timing", no_argument, NULL, 't'},
    {"set", required_argument, NULL, 'v'},     {"quiet", no_argument, NULL, 'q'},
    {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
};

static bool take_variable(struct shell *sh, const char *text)
{
    if (strncasecmp(text, "ON_ERROR_STOP=", 14) != 0) {
        return false;
    }
    const char *v = text + 14;
    sh->stop_on_error =
        strcmp(v, "0") != 0 && strcasecmp(v, "off") != 0 && strcasecmp(v, "false") != 0;
    return true;
}

/* `word`: as typed, for complaints. -1: go on; else the exit code. */
static int take_flag(struct shell *sh, struct options *o, int flag, const char *word)
{
    switch (flag) {
    case 'U':
        o->url = optarg;
        break;
    case 'c':
    case 'f':
        if (o->action_count == ACTIONS_MAX) {
            return usage("too many -c and -f", NULL);
        }
        o->actions[o->action_count++] = (struct action){flag == 'f', optarg};
        break;
    case 'F':
        o->format = optarg;
        break;
    case 'J':
        o->format = "json";
        break;
    case 'C':
        o->format = "csv";
        break;
    case 'T':
        o->format = "tsv";
        break;
    case 'x':
        o->format = "expanded";
        break;
    case 'H':
    case 'N':
        o->header = flag == 'H';
        break;
    case 'n':
        span_free(sh->null_text);
        sh->null_text = span_strdup(optarg);
        break;
    case 'o':
        o->output = optarg;
        break;
    case 't':
        sh->timing = true;
        break;
    case 'v':
        if (!take_variable(sh, optarg)) {
            return usage("-v knows ON_ERROR_STOP=on|off, not", optarg);
        }
        break;
    case 'q':
        sh->quiet = true;
        break;
    case 'h':
        (void)fputs(help_text, stdout);
        return SHELL_OK;
    case ':':
        return usage("this flag needs a value", word);
    default:
        return usage("unknown flag", word);
    }
    return -1;
}

static int take_options(struct shell *sh, struct options *o, int argc, char **argv)
{
    optind = 0; /* glibc: start anew, this may not be the first getopt of the process */
    for (int flag; (flag = getopt_long(argc, argv, ":c:e:f:o:v:xqh", flags, NULL)) != -1;) {
        int code = take_flag(sh, o, flag == 'e' ? 'c' : flag, argv[optind - 1]);
        if (code >= 0) {
            return code;
        }
    }
    if (optind < argc && o->url == NULL) {
        o->url = argv[optind++];
    }
    return optind < argc ? usage("unexpected word", argv[optind]) : -1;
}

static int apply_options(struct shell *sh, const struct options *o)
{
    bool out_tty = isatty(STDOUT_FILENO) && o->output == NULL;
    sh->interactive = o->action_count == 0 && isatty(STDIN_FILENO);
    sh->timing = sh->timing || (sh->interactive && out_tty);
    sh->format.mode = out_tty || sh->interactive ? SHELL_TABLE : SHELL_TSV;
    if (o->format != NULL && !shell_mode_parse(o->format, &sh->format.mode)) {
        return usage("--format is table, expanded, csv, tsv, json or jsonl, not", o->format);
    }
    sh->fit = out_tty && o->format == NULL;
    sh->mode_before_x = sh->format.mode == SHELL_EXPANDED ? SHELL_TABLE : sh->format.mode;
    sh->format.header = o->header >= 0 ? o->header != 0 : sh->format.mode != SHELL_TSV;
    sh->format.footer = true;
    sh->format.null_text = sh->null_text;
    const char *term = getenv("TERM");
    sh->format.color =
        out_tty && getenv("NO_COLOR") == NULL && term != NULL && strcmp(term, "dumb") != 0;
    sh->format.unicode = out_tty && strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    if (o->output != NULL) {
        sh->out = fopen(o->output, "we");
        if (sh->out == NULL) {
            (void)fprintf(stderr, "spanlite sql: %s: %s\n", o->output, strerror(errno));
            sh->out = stdout;
            return SHELL_FAILED;
        }
    }
    const char *url = o->url != NULL ? o->url : getenv("SPANLITE_URL");
    if (url == NULL || url[0] == '\0') {
        url = getenv("PGHOST") != NULL || getenv("PGSERVICE") != NULL ? "postgresql://"
                                                                      : SHELL_URL_DEFAULT;
    }
    sh->url = span_strdup(url);
    return -1;
}

static int run_actions(struct shell *sh, const struct options *o)
{
    for (size_t i = 0; i < o->action_count && !sh->quit; i++) {
        const struct action *a = &o->actions[i];
        struct buf none;
        bool ok;
        buf_init(&none);
        if (a->is_file) {
            ok = shell_run_file(sh, a->text);
        } else if (a->text[0] == '\\' ||
                   (a->text[0] == '.' && isalpha((unsigned char)a->text[1]))) {
            ok = shell_meta(sh, a->text, &none);
        } else {
            ok = shell_run(sh, slice_str(a->text));
        }
        buf_deinit(&none);
        if (!ok && sh->exit_code == SHELL_OK && (sh->stop_on_error || !a->is_file)) {
            sh->exit_code = a->is_file ? SHELL_SCRIPT_STOPPED : SHELL_FAILED;
        }
        if (!ok && sh->stop_on_error) {
            break;
        }
    }
    return sh->exit_code;
}

static int run(struct shell *sh, const struct options *o)
{
    if (!shell_connect(sh)) {
        return SHELL_NO_CONNECTION;
    }
    if (o->action_count != 0) {
        return run_actions(sh, o);
    }
    if (sh->interactive) {
        return run_terminal(sh);
    }
    if (!run_stream(sh, stdin, "<stdin>") && sh->exit_code == SHELL_OK) {
        sh->exit_code = SHELL_SCRIPT_STOPPED;
    }
    return sh->exit_code;
}

int shell_main(int argc, char **argv)
{
    struct shell sh = {.out = stdout, .stop_on_error = true};
    struct options *o = SPAN_NEW(struct options);
    o->header = -1;
    /* Widths of characters, nothing else: numbers keep their C form for the rest of the process. */
    (void)setlocale(LC_CTYPE, "");
    int code = take_options(&sh, o, argc, argv);
    if (code < 0) {
        code = apply_options(&sh, o);
    }
    if (code < 0) {
        shell_signals_on(&sh);
        code = run(&sh, o);
        shell_signals_off();
    }
    if (sh.out != stdout) {
        (void)fclose(sh.out);
    }
    if (fflush(stdout) != 0 && code == SHELL_OK) {
        code = SHELL_FAILED;
    }
    PQfinish(sh.conn);
    buf_deinit(&sh.last);
    span_free(sh.url);
    span_free(sh.null_text);
    span_free(o);
    return code;
}
