/* The connection machine: buffers, start-up, simple query, dispatch and the end of it. The extended
 * protocol is in pg_conn_ext.c, what the session says in pg_conn_sink.c. */
#include "sql/pgwire/pg_conn.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "sql/pgwire/pg_conn_internal.h"

#include <stdio.h>
#include <strings.h>

/* What is received at once at least; what an idle connection keeps at most. */
#define IN_CHUNK   (8u * 1024u)
#define IDLE_BYTES (64u * 1024u)
/* Parse and Query: the statement and, for Parse, a name and up to 65,535 type numbers. */
#define STATEMENT_FRAME_MAX (LIMIT_STATEMENT_BYTES + 320 * KIB)
#define BIND_FRAME_MAX      LIMIT_FRAME_BYTES
#define SMALL_FRAME_MAX     (64 * KIB)
#define STARTUP_PAIRS_MAX   64
#define SETTINGS_MAX        64

struct pg_conn *pg_conn_new(const struct pg_conn_config *cfg)
{
    struct pg_conn *c = SPAN_NEW(struct pg_conn);
    c->cfg = *cfg;
    c->state = CONN_START;
    c->utf8 = true;
    buf_init(&c->in);
    buf_init(&c->out);
    buf_init(&c->scratch);
    mapb_init(&c->stmts);
    mapb_init(&c->portals);
    conn_sink_init(c);
    return c;
}

void pg_conn_free(struct pg_conn *c)
{
    if (c == NULL) {
        return;
    }
    if (c->session.ops != NULL) {
        conn_portals_drop(c);
        conn_stmts_drop(c);
        c->session.ops->free(c->session.impl);
    }
    mapb_deinit(&c->stmts);
    mapb_deinit(&c->portals);
    buf_deinit(&c->in);
    buf_deinit(&c->out);
    buf_deinit(&c->scratch);
    span_free(c);
}

/* Input. */

static void in_compact(struct pg_conn *c)
{
    size_t left = c->in.size - c->in_pos;
    if (left == 0) {
        buf_clear(&c->in);
        if (c->in.cap > IDLE_BYTES) {
            buf_deinit(&c->in);
        }
    } else if (c->in_pos != 0) {
        memmove(c->in.data, c->in.data + c->in_pos, left);
        c->in.size = left;
    }
    c->in_pos = 0;
}

uint8_t *pg_conn_in_space(struct pg_conn *c, size_t *size)
{
    in_compact(c);
    buf_reserve(&c->in, IN_CHUNK);
    *size = c->in.cap - c->in.size;
    return c->in.data + c->in.size;
}

/* An oversized message is thrown away as it arrives, so that it never needs memory. */
static void discard_input(struct pg_conn *c)
{
    size_t here = c->in.size - c->in_pos;
    size_t take = c->discard < here ? (size_t)c->discard : here;
    c->in_pos += take;
    c->discard -= take;
    if (c->discard == 0 && c->discard_ready) {
        c->discard_ready = false;
        pg_put_ready(&c->out, pg_conn_txn_status(c));
        c->wants_flush = true;
    }
}

void pg_conn_in_add(struct pg_conn *c, size_t size)
{
    REQUIRE(size <= c->in.cap - c->in.size);
    c->in.size += size;
    if (c->discard != 0) {
        discard_input(c);
    }
}

void pg_conn_feed(struct pg_conn *c, struct slice bytes)
{
    while (bytes.size != 0) {
        size_t room = 0;
        uint8_t *p = pg_conn_in_space(c, &room);
        size_t n = bytes.size < room ? bytes.size : room;
        memcpy(p, bytes.data, n);
        pg_conn_in_add(c, n);
        bytes = slice_of(bytes.data + n, bytes.size - n);
    }
}

static struct slice in_rest(const struct pg_conn *c)
{
    size_t left = c->in.size - c->in_pos;
    return left == 0 ? slice_of("", 0) : slice_of(c->in.data + c->in_pos, left);
}

/* Output. */

struct slice pg_conn_out(const struct pg_conn *c)
{
    return c->out.size == 0 ? slice_of("", 0) : buf_slice(&c->out);
}

uint64_t pg_conn_not_before(const struct pg_conn *c)
{
    return c->not_before;
}

bool pg_conn_wants_flush(const struct pg_conn *c)
{
    return c->wants_flush && c->out.size != 0;
}

void pg_conn_flushed(struct pg_conn *c)
{
    buf_clear(&c->out);
    if (c->out.cap > 2 * PG_CONN_FLUSH_BYTES) {
        buf_deinit(&c->out);
    }
    c->not_before = 0;
    c->id_unsent = false;
    c->commit_begun = false;
    c->commit_told = false;
    c->wants_flush = false;
}

void pg_conn_discard(struct pg_conn *c, const struct pg_error *e)
{
    buf_clear(&c->out);
    c->not_before = 0;
    pg_put_error(&c->out, e);
    c->state = CONN_CLOSED;
    c->wants_flush = true;
}

bool pg_conn_commit_begun(const struct pg_conn *c)
{
    return c->commit_begun || c->commit_told;
}

/* Accessors. */

void pg_conn_cancel_target(const struct pg_conn *c, uint32_t *pid, uint32_t *key)
{
    *pid = c->cancel_pid;
    *key = c->cancel_key;
}

const struct pg_session *pg_conn_session(const struct pg_conn *c)
{
    return c->session.ops == NULL ? NULL : &c->session;
}

char pg_conn_txn_status(const struct pg_conn *c)
{
    return c->session.ops == NULL ? '\0' : c->session.ops->txn_status(c->session.impl);
}

bool pg_conn_is_at_rest(const struct pg_conn *c)
{
    return c->state == CONN_READY && !c->in_pipeline && c->discard == 0 &&
           c->in.size == c->in_pos && c->out.size == 0;
}

/* UTF-8 as PostgreSQL checks it: no overlong forms, surrogates or NUL. Returns the place of the
 * first bad byte, or text.size. */
static size_t utf8_bad_at(struct slice text)
{
    size_t i = 0;
    while (i < text.size) {
        uint8_t b = text.data[i];
        if (b >= 0x01 && b < 0x80) {
            i++;
            continue;
        }
        size_t more = b >= 0xc2 && b <= 0xdf   ? 1
                      : b >= 0xe0 && b <= 0xef ? 2
                      : b >= 0xf0 && b <= 0xf4 ? 3
                                               : 0;
        if (more == 0 || text.size - i <= more) {
            return i;
        }
        uint8_t second = text.data[i + 1];
        uint8_t low = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
        uint8_t high = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
        if (second < low || second > high) {
            return i;
        }
        for (size_t k = 2; k <= more; k++) {
            if ((text.data[i + k] & 0xc0) != 0x80) {
                return i;
            }
        }
        i += more + 1;
    }
    return text.size;
}

bool conn_text_check(struct pg_conn *c, struct slice text, const char *what)
{
    if (!c->utf8) {
        return true;
    }
    size_t at = utf8_bad_at(text);
    if (at == text.size) {
        return true;
    }
    char message[128];
    (void)snprintf(message, sizeof(message),
                   "invalid byte sequence for encoding \"UTF8\": 0x%02x at byte %zu of a %s",
                   text.data[at], at + 1, what);
    conn_error(c, "ERROR", "22021", message, NULL, NULL);
    return false;
}

/* Start-up. */

static enum pg_conn_step fatal(struct pg_conn *c, const char *sqlstate, const char *message,
                               const char *hint)
{
    conn_error(c, "FATAL", sqlstate, message, NULL, hint);
    return PG_CONN_CLOSE;
}

struct startup {
    struct pg_startup_pair pairs[STARTUP_PAIRS_MAX];
    size_t pair_count;
    struct pg_startup st;
    const char *options;
    const char *client_encoding;
    const char *names[SETTINGS_MAX];
    const char *values[SETTINGS_MAX];
    const char *unknown[STARTUP_PAIRS_MAX]; /* _pq_. options, all of them unknown to us */
    size_t unknown_count;
    char *words; /* `options` cut into pieces */
};

static bool add_setting(struct startup *s, const char *name, const char *value)
{
    if (s->st.setting_count == SETTINGS_MAX) {
        return false;
    }
    s->names[s->st.setting_count] = name;
    s->values[s->st.setting_count] = value;
    s->st.setting_count++;
    return true;
}

/* Next blank-separated word of `options`, unescaped in place; NULL at the end. */
static char *next_word(char **p)
{
    char *in = *p;
    while (*in == ' ' || *in == '\t' || *in == '\n') {
        in++;
    }
    if (*in == '\0') {
        return NULL;
    }
    char *word = in;
    char *to = in;
    while (*in != '\0' && *in != ' ' && *in != '\t' && *in != '\n') {
        if (*in == '\\' && in[1] != '\0') {
            in++;
        }
        *to++ = *in++;
    }
    *p = *in == '\0' ? in : in + 1;
    *to = '\0';
    return word;
}

/* `-c name=value`, `-cname=value`, `--name=value`; anything else is for a server's command line. */
static bool parse_options(struct startup *s)
{
    s->words = span_strdup(s->options);
    char *p = s->words;
    for (char *word; (word = next_word(&p)) != NULL;) {
        char *pair = NULL;
        if (strcmp(word, "-c") == 0) {
            pair = next_word(&p);
        } else if (strncmp(word, "-c", 2) == 0 || strncmp(word, "--", 2) == 0) {
            pair = word + 2;
        }
        char *equal = pair == NULL ? NULL : strchr(pair, '=');
        if (equal == NULL || equal == pair) {
            return false;
        }
        *equal = '\0';
        for (char *n = pair; *n != '\0'; n++) {
            *n = *n == '-' ? '_' : *n;
        }
        if (!add_setting(s, pair, equal + 1)) {
            return false;
        }
    }
    return true;
}

/* Sorts the pairs of the StartupMessage. False: more settings than we take. */
static bool sort_pairs(struct startup *s)
{
    s->st.application_name = "";
    for (size_t i = 0; i < s->pair_count; i++) {
        const char *name = s->pairs[i].name;
        const char *value = s->pairs[i].value;
        if (strcmp(name, "user") == 0) {
            s->st.user = value;
        } else if (strcmp(name, "database") == 0) {
            s->st.database = value;
        } else if (strcmp(name, "options") == 0) {
            s->options = value;
        } else if (strcmp(name, "application_name") == 0) {
            s->st.application_name = value;
        } else if (strcmp(name, "client_encoding") == 0) {
            s->client_encoding = value;
        } else if (strncmp(name, "_pq_.", 5) == 0) {
            s->unknown[s->unknown_count++] = name;
        } else if (!add_setting(s, name, value)) {
            return false;
        }
    }
    return true;
}

/* UTF8, utf-8, unicode in any case and quoting; SQL_ASCII means "bytes as they are". */
static bool take_encoding(struct pg_conn *c, const char *name)
{
    char plain[16];
    size_t n = 0;
    for (; *name != '\0'; name++) {
        if (strchr("-_'\" ", *name) == NULL) {
            if (n == sizeof(plain) - 1) {
                return false;
            }
            plain[n++] = *name;
        }
    }
    plain[n] = '\0';
    if (strcasecmp(plain, "utf8") == 0 || strcasecmp(plain, "unicode") == 0) {
        return true;
    }
    c->utf8 = false;
    return strcasecmp(plain, "sqlascii") == 0;
}

static void put_parameters(struct pg_conn *c, const struct startup *s)
{
    char version[64];
    (void)snprintf(version, sizeof(version), "15.0 (spanlite %s)", c->cfg.server_version);
    const char *const list[][2] = {
        {"server_version", version},
        {"server_encoding", "UTF8"},
        {"client_encoding", c->utf8 ? "UTF8" : "SQL_ASCII"},
        {"application_name", s->st.application_name},
        {"default_transaction_read_only", "off"},
        {"in_hot_standby", "off"},
        {"is_superuser", "on"},
        {"session_authorization", s->st.user},
        {"DateStyle", "ISO, MDY"},
        {"IntervalStyle", "postgres"},
        {"TimeZone", "UTC"},
        {"integer_datetimes", "on"},
        {"standard_conforming_strings", "on"},
    };
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        pg_put_parameter_status(&c->out, list[i][0], list[i][1]);
    }
}

/* The client is who it says (trust; SCRAM will stand before this): open its session. */
static enum pg_conn_step open_session(struct pg_conn *c, struct startup *s)
{
    pg_put_auth_ok(&c->out);
    put_parameters(c, s);
    c->call_errors = 0;
    struct pg_session session = {0};
    bool ok = c->cfg.factory.open(c->cfg.factory.ctx, &s->st, &c->sink, &session);
    if (ok) {
        c->session = session;
    }
    if (!ok || c->call_errors != 0) {
        if (c->state != CONN_CLOSED) {
            return fatal(c, "XX000", "session could not be opened", NULL);
        }
        return PG_CONN_CLOSE;
    }
    c->state = CONN_READY;
    if (c->session.ops->told_pid != NULL) {
        c->session.ops->told_pid(c->session.impl, c->cfg.pid);
    }
    pg_put_backend_key(&c->out, c->cfg.pid, c->cfg.key);
    pg_put_ready(&c->out, pg_conn_txn_status(c));
    c->wants_flush = true;
    return PG_CONN_MORE;
}

static enum pg_conn_step startup_checked(struct pg_conn *c, uint32_t version, struct startup *s)
{
    if (version != PG_PROTOCOL_3_0 || s->unknown_count != 0) {
        pg_put_negotiate(&c->out, PG_PROTOCOL_3_0, s->unknown, s->unknown_count);
    }
    if (s->st.user == NULL || s->st.user[0] == '\0') {
        return fatal(c, "28000", "no user name in the startup packet", "Give one: psql -U root.");
    }
    if (s->st.database == NULL || s->st.database[0] == '\0') {
        s->st.database = s->st.user;
    }
    if (s->client_encoding != NULL && !take_encoding(c, s->client_encoding)) {
        return fatal(c, "0A000", "client encoding is not supported",
                     "Set client_encoding (PGCLIENTENCODING) to UTF8.");
    }
    if (c->cfg.refuse != NULL) {
        pg_sink_error(&c->sink, c->cfg.refuse);
        c->state = CONN_CLOSED;
        c->wants_flush = true;
        return PG_CONN_CLOSE;
    }
    if (s->options != NULL && !parse_options(s)) {
        return fatal(c, "42601", "startup parameter \"options\" is not understood",
                     "Write settings as options='-c name=value'.");
    }
    s->st.setting_names = s->names;
    s->st.setting_values = s->values;
    return open_session(c, s);
}

static enum pg_conn_step do_startup(struct pg_conn *c, uint32_t version, struct slice pairs)
{
    if (version >> 16 != 3) {
        char message[96];
        (void)snprintf(message, sizeof(message),
                       "unsupported frontend protocol %u.%u: the server speaks 3.0", version >> 16,
                       version & 0xffff);
        return fatal(c, "0A000", message, NULL);
    }
    struct startup *s = SPAN_NEW(struct startup);
    enum pg_conn_step step;
    if (pg_startup_decode(pairs, s->pairs, STARTUP_PAIRS_MAX, &s->pair_count) != SPAN_OK) {
        step = fatal(c, "08P01", "malformed startup packet", NULL);
    } else if (!sort_pairs(s)) {
        step = fatal(c, "54000", "too many startup parameters", NULL);
    } else {
        step = startup_checked(c, version, s);
    }
    span_free(s->words);
    span_free(s);
    return step;
}

static enum pg_conn_step step_start(struct pg_conn *c)
{
    struct pg_frame f;
    if (pg_special_decode(in_rest(c), LIMIT_PG_STARTUP_BYTES, &f) != SPAN_OK) {
        return fatal(c, "08P01", "invalid length of startup packet",
                     "This port speaks the PostgreSQL protocol, without TLS.");
    }
    if (!f.whole) {
        return PG_CONN_NEED_INPUT;
    }
    c->in_pos += f.total;
    uint32_t code = pg_be32(f.body.data);
    struct slice rest = slice_of(f.body.data + 4, f.body.size - 4);
    bool *asked = code == PG_CODE_SSL      ? &c->ssl_asked
                  : code == PG_CODE_GSSENC ? &c->gssenc_asked
                                           : NULL;
    if (asked != NULL) {
        if (*asked || rest.size != 0) {
            return fatal(c, "08P01", "unexpected encryption request", NULL);
        }
        *asked = true;
        buf_append_byte(&c->out, 'N');
        c->wants_flush = true;
        return PG_CONN_MORE;
    }
    if (code == PG_CODE_CANCEL) {
        if (rest.size != 8) {
            return fatal(c, "08P01", "malformed cancel request", NULL);
        }
        c->cancel_pid = pg_be32(rest.data);
        c->cancel_key = pg_be32(rest.data + 4);
        c->state = CONN_CLOSED;
        return PG_CONN_CANCEL;
    }
    return do_startup(c, code, rest);
}

/* After the start-up. */

static uint64_t frame_max(uint8_t type)
{
    switch (type) {
    case PG_FRONT_QUERY:
    case PG_FRONT_PARSE:
        return STATEMENT_FRAME_MAX;
    case PG_FRONT_BIND:
        return BIND_FRAME_MAX;
    default:
        return SMALL_FRAME_MAX;
    }
}

static bool is_extended(uint8_t type)
{
    return strchr("BCDEHPS", type) != NULL;
}

/* CopyData outside COPY is ignored by the protocol, whatever its size. */
static bool is_copy(uint8_t type)
{
    return type == PG_FRONT_COPY_DATA || type == PG_FRONT_COPY_DONE || type == PG_FRONT_COPY_FAIL;
}

static enum pg_conn_step step_oversized(struct pg_conn *c, const struct pg_frame *f)
{
    c->call_errors = 0;
    c->discard = f->total;
    if (!c->skip_to_sync && !is_copy(f->type)) {
        char message[128] = STATEMENT_TOO_LONG; /* the frame's own limit lies above it */
        if (f->type != PG_FRONT_QUERY && f->type != PG_FRONT_PARSE) {
            (void)snprintf(message, sizeof(message),
                           "message is too long: %zu bytes, the limit is %llu", f->total,
                           (unsigned long long)frame_max(f->type));
        }
        conn_error(c, "ERROR", "54000", message, NULL, "Split it into several statements.");
        if (is_extended(f->type)) {
            c->skip_to_sync = true;
            c->in_pipeline = true;
        } else {
            c->discard_ready = true;
        }
    }
    discard_input(c);
    return PG_CONN_MORE;
}

static void do_query(struct pg_conn *c, struct slice body)
{
    struct slice sql;
    c->call_errors = 0;
    c->in_pipeline = false;
    conn_unnamed_drop(c); /* as PostgreSQL: a simple query destroys the unnamed ones */
    if (pg_query_decode(body, &sql) != SPAN_OK) {
        conn_error(c, "ERROR", "08P01", "malformed Query message", NULL, NULL);
    } else if (sql.size > LIMIT_STATEMENT_BYTES) {
        conn_error(c, "ERROR", "54000", STATEMENT_TOO_LONG, NULL,
                   "Split it into several statements.");
    } else if (conn_text_check(c, sql, "statement")) {
        char before = conn_call_begin(c);
        bool ok = c->session.ops->simple(c->session.impl, sql, &c->sink);
        (void)conn_call_end(c, before, ok);
    }
    if (c->state == CONN_READY) {
        pg_put_ready(&c->out, pg_conn_txn_status(c));
    }
    c->wants_flush = true;
}

static void do_other(struct pg_conn *c, const struct pg_frame *f)
{
    switch ((enum pg_front)f->type) {
    case PG_FRONT_QUERY:
        do_query(c, f->body);
        break;
    case PG_FRONT_FUNCTION:
        c->call_errors = 0;
        conn_error(c, "ERROR", "0A000", "function calls of the protocol are not supported", NULL,
                   "Call the function with SELECT.");
        pg_put_ready(&c->out, pg_conn_txn_status(c));
        c->wants_flush = true;
        break;
    case PG_FRONT_TERMINATE:
        c->state = CONN_CLOSED;
        break;
    case PG_FRONT_COPY_DATA:
    case PG_FRONT_COPY_DONE:
    case PG_FRONT_COPY_FAIL:
        break; /* left over from a COPY that was refused: ignored, as the protocol says */
    case PG_FRONT_PASSWORD:
        (void)fatal(c, "08P01", "unexpected authentication message", NULL);
        break;
    case PG_FRONT_BIND:
    case PG_FRONT_CLOSE:
    case PG_FRONT_DESCRIBE:
    case PG_FRONT_EXECUTE:
    case PG_FRONT_FLUSH:
    case PG_FRONT_PARSE:
    case PG_FRONT_SYNC:
    default:
        INVARIANT(!"extended-protocol message in do_other");
    }
}

static enum pg_conn_step step_ready(struct pg_conn *c)
{
    struct pg_frame f;
    if (c->discard != 0) {
        return PG_CONN_NEED_INPUT;
    }
    if (pg_frame_decode(in_rest(c), &f) != SPAN_OK) {
        char message[96];
        (void)snprintf(message, sizeof(message),
                       "invalid message: type byte 0x%02x with an impossible length or unknown",
                       f.type);
        return fatal(c, "08P01", message, NULL);
    }
    if (f.total > frame_max(f.type)) {
        return step_oversized(c, &f);
    }
    if (!f.whole) {
        return PG_CONN_NEED_INPUT;
    }
    c->in_pos += f.total;
    if (c->skip_to_sync && f.type != PG_FRONT_SYNC && f.type != PG_FRONT_TERMINATE) {
        return PG_CONN_MORE;
    }
    if (is_extended(f.type)) {
        conn_ext_message(c, &f);
    } else {
        do_other(c, &f);
    }
    return c->dead || c->state == CONN_CLOSED ? PG_CONN_CLOSE : PG_CONN_MORE;
}

enum pg_conn_step pg_conn_step(struct pg_conn *c)
{
    if (c->dead) {
        return PG_CONN_CLOSE;
    }
    switch (c->state) {
    case CONN_START:
        return step_start(c);
    case CONN_READY:
        return step_ready(c);
    case CONN_CLOSED:
        break;
    }
    return PG_CONN_CLOSE;
}

enum pg_conn_step pg_conn_idle_check(struct pg_conn *c, uint64_t mono_ns)
{
    if (c->state != CONN_READY) {
        return PG_CONN_MORE;
    }
    char before = conn_call_begin(c);
    c->in_idle_check = true;
    bool ok = c->session.ops->idle_check(c->session.impl, mono_ns, &c->sink);
    c->in_idle_check = false;
    char status = pg_conn_txn_status(c);
    if (status != before && status != 'T') {
        conn_portals_drop(c);
    }
    if (!ok || c->state == CONN_CLOSED) {
        c->state = CONN_CLOSED;
        return PG_CONN_CLOSE;
    }
    return PG_CONN_MORE;
}

void pg_conn_shutdown(struct pg_conn *c, const struct pg_error *e)
{
    if (c->state == CONN_CLOSED) {
        return;
    }
    pg_sink_error(&c->sink, e);
    c->state = CONN_CLOSED;
    c->wants_flush = true;
}
