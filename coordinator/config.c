/* Settings from flags, environment and file, by one table. The order in which the sources are read
 * does not matter: each value remembers the rank of its source, and only an equal or higher rank
 * replaces it. Numbers are read by hand, not by strtod, because 0.1 s has to be exactly 100,000,000
 * ns and because every way of being wrong (sign, overflow, trailing letters) is one clear answer.
 */
#include "coordinator/config.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define CONFIG_FILE_BYTES_MAX (1 * MIB)

enum rank { RANK_DEFAULT, RANK_FILE, RANK_ENV, RANK_FLAG };

struct value {
    enum rank rank;
    char *origin; /* owned; NULL for a default */
    char *text;   /* owned; TEXT and CHOICE, NULL when unset */
    int64_t number;
};

struct config {
    const struct config_option *options;
    struct value *values;
    size_t count;
    char **args; /* borrowed strings */
    size_t arg_count;
    bool help_wanted;
};

/* ---- one value --------------------------------------------------------------------------------
 */

struct unit {
    const char *name;
    uint64_t factor;
};

__extension__ typedef unsigned __int128
    wide; /* pedantic mode wants the mark, gcc and clang have it */

/* Decimal number with an optional fraction and a unit, exact in units of 1. INT64_MAX is far above
 * any real setting, so that is the bound and no caller needs care about the sign bit. */
static span_status read_scaled(const char *text, const struct unit *units, size_t unit_count,
                               uint64_t *out)
{
    const uint64_t max = INT64_MAX;
    const char *p = text;
    uint64_t whole = 0;
    uint64_t fraction = 0;
    uint64_t fraction_scale = 1;

    if (!isdigit((unsigned char)*p)) {
        return SPAN_INVALID;
    }
    for (; isdigit((unsigned char)*p); p++) {
        uint64_t digit = (uint64_t)(*p - '0');

        if (whole > (max - digit) / 10) {
            return SPAN_TOO_LARGE;
        }
        whole = whole * 10 + digit;
    }
    if (*p == '.') {
        p++;
        if (!isdigit((unsigned char)*p)) {
            return SPAN_INVALID;
        }
        for (; isdigit((unsigned char)*p); p++) {
            if (fraction_scale < 1000000000) { /* more digits than any unit can hold are cut */
                fraction = fraction * 10 + (uint64_t)(*p - '0');
                fraction_scale *= 10;
            }
        }
    }
    for (size_t i = 0; i < unit_count; i++) {
        uint64_t factor = units[i].factor;
        wide sum;

        if (strcmp(p, units[i].name) != 0) {
            continue;
        }
        sum = (wide)whole * factor + (wide)fraction * factor / fraction_scale;
        if (sum > max) {
            return SPAN_TOO_LARGE;
        }
        *out = (uint64_t)sum;
        return SPAN_OK;
    }
    return SPAN_INVALID;
}

span_status config_read_duration(const char *text, int64_t *ns)
{
    static const struct unit units[] = {
        {"ns", 1},          {"us", 1000},         {"ms", MS_NS},        {"s", SEC_NS},
        {"m", 60 * SEC_NS}, {"min", 60 * SEC_NS}, {"h", 3600 * SEC_NS}, {"d", 86400 * SEC_NS},
    };
    bool negative = text[0] == '-';
    uint64_t v = 0;
    span_status st;

    if (negative || text[0] == '+') {
        text++;
    }
    if (strcmp(text, "0") == 0) {
        *ns = 0;
        return SPAN_OK;
    }
    st = read_scaled(text, units, sizeof(units) / sizeof(units[0]), &v);
    if (st == SPAN_OK) {
        *ns = negative ? -(int64_t)v : (int64_t)v;
    }
    return st;
}

span_status config_read_size(const char *text, uint64_t *bytes)
{
    static const struct unit units[] = {
        {"", 1},
        {"B", 1},
        {"KiB", KIB},
        {"MiB", MIB},
        {"GiB", KIB * MIB},
        {"TiB", MIB * MIB},
        {"kB", 1000},
        {"KB", 1000},
        {"MB", 1000000},
        {"GB", 1000000000},
        {"TB", 1000000000000},
    };

    return read_scaled(text, units, sizeof(units) / sizeof(units[0]), bytes);
}

static span_status read_drift(const char *text, int64_t *ppb)
{
    static const struct unit units[] = {{"ppb", 1}, {"ppm", 1000}};
    bool negative = text[0] == '-';
    uint64_t v = 0;
    span_status st;

    if (negative || text[0] == '+') {
        text++;
    }
    if (strcmp(text, "0") == 0) {
        *ppb = 0;
        return SPAN_OK;
    }
    st = read_scaled(text, units, sizeof(units) / sizeof(units[0]), &v);
    if (st == SPAN_OK) {
        *ppb = negative ? -(int64_t)v : (int64_t)v;
    }
    return st;
}

static span_status read_count(const char *text, int64_t *out)
{
    static const struct unit units[] = {{"", 1}};
    uint64_t v = 0;
    span_status st;

    if (strchr(text, '.') != NULL) {
        return SPAN_INVALID;
    }
    st = read_scaled(text, units, 1, &v);
    if (st == SPAN_OK) {
        *out = (int64_t)v;
    }
    return st;
}

static span_status read_bool(const char *text, int64_t *out)
{
    static const char *const yes[] = {"on", "true", "yes", "1"};
    static const char *const no[] = {"off", "false", "no", "0"};

    for (size_t i = 0; i < 4; i++) {
        if (strcasecmp(text, yes[i]) == 0) {
            *out = 1;
            return SPAN_OK;
        }
        if (strcasecmp(text, no[i]) == 0) {
            *out = 0;
            return SPAN_OK;
        }
    }
    return SPAN_INVALID;
}

static bool choice_has(const char *choices, const char *text)
{
    size_t n = strlen(text);

    for (const char *p = choices; n > 0 && p != NULL; p = strchr(p, '|')) {
        if (*p == '|') {
            p++;
        }
        if (strncmp(p, text, n) == 0 && (p[n] == '|' || p[n] == '\0')) {
            return true;
        }
    }
    return false;
}

static const char *kind_expects(enum config_kind kind)
{
    switch (kind) {
    case CONFIG_BOOL:
        return "on or off";
    case CONFIG_TEXT:
        return "a text that is not empty";
    case CONFIG_COUNT:
        return "a whole number";
    case CONFIG_SIZE:
        return "a size such as 64MiB";
    case CONFIG_DURATION:
        return "a time such as 4ms or 1.5s";
    case CONFIG_OFFSET:
        return "a time such as 4ms or -250us";
    case CONFIG_DRIFT:
        return "a rate such as 50ppm or -0.5ppm";
    case CONFIG_CHOICE:
        return "one of its choices";
    }
    return "";
}

/* Text into number for every kind that has one; bounds are the caller's. */
static span_status read_number(const struct config_option *o, const char *text, int64_t *number)
{
    uint64_t bytes = 0;
    span_status st = SPAN_OK;

    switch (o->kind) {
    case CONFIG_TEXT:
        return text[0] != '\0' ? SPAN_OK : SPAN_INVALID;
    case CONFIG_CHOICE:
        return choice_has(o->choices, text) ? SPAN_OK : SPAN_INVALID;
    case CONFIG_BOOL:
        return read_bool(text, number);
    case CONFIG_COUNT:
        return read_count(text, number);
    case CONFIG_SIZE:
        st = config_read_size(text, &bytes);
        *number = (int64_t)bytes;
        return st;
    case CONFIG_DURATION:
        return text[0] == '-' ? SPAN_INVALID : config_read_duration(text, number);
    case CONFIG_OFFSET:
        return config_read_duration(text, number);
    case CONFIG_DRIFT:
        return read_drift(text, number);
    }
    return SPAN_INVALID;
}

/* A bound in the option's own notation, for messages. */
static char *show_bound(enum config_kind kind, int64_t v)
{
    static const struct unit times[] = {
        {"h", 3600 * SEC_NS}, {"s", SEC_NS}, {"ms", MS_NS}, {"us", 1000}, {"ns", 1}};
    static const struct unit sizes[] = {{"GiB", KIB * MIB}, {"MiB", MIB}, {"KiB", KIB}, {"B", 1}};
    static const struct unit rates[] = {{"ppm", 1000}, {"ppb", 1}};
    bool is_time = kind == CONFIG_DURATION || kind == CONFIG_OFFSET;
    const struct unit *units = is_time ? times : kind == CONFIG_SIZE ? sizes : rates;
    uint64_t size = v < 0 ? (uint64_t)-v : (uint64_t)v;

    if (kind == CONFIG_COUNT || v == 0) {
        return span_asprintf("%lld", (long long)v);
    }
    while (size % units->factor != 0) { /* ends: the last factor is 1 */
        units++;
    }
    return span_asprintf("%s%llu%s", v < 0 ? "-" : "", (unsigned long long)(size / units->factor),
                         units->name);
}

static span_status check_bounds(const struct config_option *o, const char *origin, const char *text,
                                int64_t number, struct span_error *err)
{
    bool has_bounds = o->min != 0 || o->max != 0;
    char *low;
    char *high;
    span_status st;

    if (!has_bounds || (number >= o->min && number <= o->max)) {
        return SPAN_OK;
    }
    low = show_bound(o->kind, o->min);
    high = show_bound(o->kind, o->max);
    st = span_fail(err, SPAN_INVALID, "%s: '%s' is out of bounds, %s to %s are allowed", origin,
                   text, low, high);
    span_free(low);
    span_free(high);
    return st;
}

static span_status set_value(struct config *c, size_t i, enum rank rank, const char *origin,
                             const char *text, struct span_error *err)
{
    const struct config_option *o = &c->options[i];
    struct value *v = &c->values[i];
    int64_t number = 0;
    span_status st = read_number(o, text, &number);

    if (st == SPAN_TOO_LARGE) {
        return span_fail(err, SPAN_INVALID, "%s: '%.80s' is too large", origin, text);
    }
    if (st != SPAN_OK && o->kind == CONFIG_CHOICE) {
        return span_fail(err, SPAN_INVALID, "%s: '%.80s' is not one of %s", origin, text,
                         o->choices);
    }
    if (st != SPAN_OK) {
        return span_fail(err, SPAN_INVALID, "%s: '%.80s' is not %s", origin, text,
                         kind_expects(o->kind));
    }
    st = check_bounds(o, origin, text, number, err);
    if (st != SPAN_OK || rank < v->rank) {
        return st;
    }
    span_free(v->origin);
    span_free(v->text);
    v->rank = rank;
    v->origin = rank == RANK_DEFAULT ? NULL : span_strdup(origin);
    v->text = span_strdup(text);
    v->number = number;
    return SPAN_OK;
}

/* ---- names ------------------------------------------------------------------------------------
 */

static size_t min3(size_t a, size_t b, size_t c)
{
    size_t m = a < b ? a : b;

    return m < c ? m : c;
}

/* Edit distance with swaps of neighbours (the commonest typing error), words of up to 63 letters.
 */
static size_t distance(const char *a, const char *b)
{
    size_t d[64][64];
    size_t n = strlen(a);
    size_t m = strlen(b);

    if (n > 63 || m > 63) {
        return SIZE_MAX;
    }
    for (size_t i = 0; i <= n; i++) {
        for (size_t j = 0; j <= m; j++) {
            if (i == 0 || j == 0) {
                d[i][j] = i + j;
                continue;
            }
            d[i][j] = min3(d[i - 1][j] + 1, d[i][j - 1] + 1,
                           d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < d[i][j]) {
                d[i][j] = d[i - 2][j - 2] + 1;
            }
        }
    }
    return d[n][m];
}

const char *config_nearest(const char *word, const char *const *names, size_t count)
{
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    size_t length = strlen(word);

    for (size_t i = 0; i < count; i++) {
        size_t d = distance(word, names[i]);

        if (d < best_distance) {
            best = names[i];
            best_distance = d;
        }
        /* "peer" for "peers" and "stat" for "status": what somebody began to type. */
        if (length >= 3 && best_distance > 1 && strncmp(word, names[i], length) == 0) {
            best = names[i];
            best_distance = 1;
        }
    }
    return best_distance <= 1 + length / 4 ? best : NULL;
}

static bool name_eq(const char *option, const char *name, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char ch = name[i] == '_' ? '-' : name[i];

        if (option[i] == '\0' || option[i] != ch) {
            return false;
        }
    }
    return option[size] == '\0';
}

static size_t find_option(const struct config *c, const char *name, size_t size)
{
    for (size_t i = 0; i < c->count; i++) {
        if (name_eq(c->options[i].name, name, size)) {
            return i;
        }
    }
    return c->count;
}

static const char *nearest_option(const struct config *c, const char *name, bool for_file)
{
    const char **names = span_calloc(c->count + 1, sizeof(names[0]));
    size_t count = 0;
    const char *best;

    for (size_t i = 0; i < c->count; i++) {
        if (!for_file || c->options[i].where == CONFIG_ANYWHERE) {
            names[count++] = c->options[i].name;
        }
    }
    if (!for_file) {
        names[count++] = "help";
    }
    best = config_nearest(name, names, count);
    span_free(names);
    return best;
}

static span_status fail_unknown(const struct config *c, const char *what, const char *name,
                                bool for_file, struct span_error *err)
{
    const char *near = nearest_option(c, name, for_file);
    const char *dashes = for_file ? "" : "--";

    if (near != NULL) {
        return span_fail(err, SPAN_INVALID, "%s '%s%.80s': did you mean '%s%s'?", what, dashes,
                         name, dashes, near);
    }
    return span_fail(err, SPAN_INVALID, "%s '%s%.80s'", what, dashes, name);
}

/* ---- life -------------------------------------------------------------------------------------
 */

struct config *config_new(const struct config_option *options, size_t count)
{
    struct config *c = SPAN_NEW(struct config);

    c->options = options;
    c->count = count;
    c->values = span_calloc(count + 1, sizeof(c->values[0]));
    for (size_t i = 0; i < count; i++) {
        if (options[i].preset != NULL) {
            struct span_error err;
            span_status st =
                set_value(c, i, RANK_DEFAULT, options[i].name, options[i].preset, &err);

            INVARIANT(st == SPAN_OK);
        }
    }
    return c;
}

void config_free(struct config *c)
{
    if (c == NULL) {
        return;
    }
    for (size_t i = 0; i < c->count; i++) {
        span_free(c->values[i].origin);
        span_free(c->values[i].text);
    }
    span_free(c->values);
    span_free(c->args);
    span_free(c);
}

/* ---- flags ------------------------------------------------------------------------------------
 */

/* "--name", "--name=value", "--name value", "--no-name"; *i moves on when the value is the next
 * word. */
static span_status take_long_flag(struct config *c, int argc, char **argv, int *i,
                                  struct span_error *err)
{
    const char *name = argv[*i] + 2;
    const char *equals = strchr(name, '=');
    size_t size = equals != NULL ? (size_t)(equals - name) : strlen(name);
    const char *value = equals != NULL ? equals + 1 : NULL;
    size_t at = find_option(c, name, size);
    char flag[80];

    if (at == c->count && equals == NULL && strncmp(name, "no-", 3) == 0) {
        at = find_option(c, name + 3, size - 3);
        if (at < c->count && c->options[at].kind == CONFIG_BOOL) {
            return set_value(c, at, RANK_FLAG, argv[*i], "off", err);
        }
        at = c->count;
    }
    snprintf(flag, sizeof(flag), "%.*s", (int)(size < 70 ? size : 70), name);
    if (at == c->count) {
        return fail_unknown(c, "unknown flag", flag, false, err);
    }
    snprintf(flag, sizeof(flag), "--%s", c->options[at].name);
    if (c->options[at].kind == CONFIG_BOOL) {
        return set_value(c, at, RANK_FLAG, flag, value != NULL ? value : "on", err);
    }
    if (value == NULL && *i + 1 < argc) {
        value = argv[++*i];
    }
    if (value == NULL) {
        return span_fail(err, SPAN_INVALID, "%s needs a value (%s)", flag,
                         kind_expects(c->options[at].kind));
    }
    return set_value(c, at, RANK_FLAG, flag, value, err);
}

static span_status take_short_flag(struct config *c, int argc, char **argv, int *i,
                                   struct span_error *err)
{
    const char *word = argv[*i];
    const char flag[] = {'-', word[1], '\0'};

    for (size_t at = 0; at < c->count; at++) {
        const struct config_option *o = &c->options[at];

        if (o->letter != word[1]) {
            continue;
        }
        if (o->kind == CONFIG_BOOL && word[2] == '\0') {
            return set_value(c, at, RANK_FLAG, flag, "on", err);
        }
        if (o->kind == CONFIG_BOOL) {
            return span_fail(err, SPAN_INVALID, "unknown flag '%.80s'", word);
        }
        if (word[2] != '\0') {
            return set_value(c, at, RANK_FLAG, flag, word + 2, err);
        }
        if (*i + 1 >= argc) {
            return span_fail(err, SPAN_INVALID, "%s needs a value (%s)", flag,
                             kind_expects(o->kind));
        }
        return set_value(c, at, RANK_FLAG, flag, argv[++*i], err);
    }
    return span_fail(err, SPAN_INVALID, "unknown flag '%.80s'", word);
}

span_status config_parse_args(struct config *c, int argc, char **argv, size_t args_max,
                              struct span_error *err)
{
    bool flags_over = false;
    span_status st = SPAN_OK;

    span_free(c->args);
    c->args = span_calloc((size_t)argc + 1, sizeof(c->args[0]));
    c->arg_count = 0;
    for (int i = 1; i < argc; i++) {
        char *word = argv[i];

        if (flags_over || word[0] != '-' || word[1] == '\0') {
            if (c->arg_count == args_max) {
                return span_fail(err, SPAN_INVALID, "unexpected argument '%.80s'", word);
            }
            c->args[c->arg_count++] = word;
        } else if (strcmp(word, "--") == 0) {
            flags_over = true;
        } else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            c->help_wanted = true;
            return SPAN_OK;
        } else if (word[1] == '-') {
            st = take_long_flag(c, argc, argv, &i, err);
        } else {
            st = take_short_flag(c, argc, argv, &i, err);
        }
        if (st != SPAN_OK) {
            return st;
        }
    }
    return SPAN_OK;
}

/* ---- environment ------------------------------------------------------------------------------
 */

static size_t find_variable(const struct config *c, const char *name, size_t size)
{
    for (size_t i = 0; i < c->count; i++) {
        const char *option = c->options[i].name;
        size_t n = strlen(option);
        size_t k = 0;

        if (c->options[i].where == CONFIG_FLAG_ONLY || n != size) {
            continue;
        }
        while (k < n && (option[k] == '-' ? '_' : toupper((unsigned char)option[k])) == name[k]) {
            k++;
        }
        if (k == n) {
            return i;
        }
    }
    return c->count;
}

span_status config_parse_env(struct config *c, char *const *envp, struct span_error *err)
{
    static const char prefix[] = "SPANLITE_";

    for (; *envp != NULL; envp++) {
        const char *name = *envp;
        const char *equals = strchr(name, '=');
        size_t at;
        char *origin;
        span_status st;

        if (equals == NULL || strncmp(name, prefix, sizeof(prefix) - 1) != 0) {
            continue;
        }
        at = find_variable(c, name + sizeof(prefix) - 1,
                           (size_t)(equals - name) - (sizeof(prefix) - 1));
        if (at == c->count || equals[1] == '\0') { /* an empty variable is an unset one */
            continue;
        }
        origin = span_asprintf("%.*s", (int)(equals - name), name);
        st = set_value(c, at, RANK_ENV, origin, equals + 1, err);
        span_free(origin);
        if (st != SPAN_OK) {
            return st;
        }
    }
    return SPAN_OK;
}

/* ---- file -------------------------------------------------------------------------------------
 */

static struct slice trim(struct slice s)
{
    while (s.size > 0 && isspace(s.data[0])) {
        s.data++;
        s.size--;
    }
    while (s.size > 0 && isspace(s.data[s.size - 1])) {
        s.size--;
    }
    return s;
}

/* One line that is neither empty nor a comment. */
static span_status take_line(struct config *c, const char *where, struct slice line,
                             struct span_error *err)
{
    const uint8_t *equals = memchr(line.data, '=', line.size);
    struct slice key;
    struct slice value;
    char *key_text;
    char *value_text;
    size_t at;
    span_status st;

    if (equals == NULL) {
        return span_fail(err, SPAN_INVALID, "%s: '%.*s' is not 'key = value'", where,
                         (int)(line.size < 60 ? line.size : 60), (const char *)line.data);
    }
    key = trim(slice_of(line.data, (size_t)(equals - line.data)));
    value = trim(slice_of(equals + 1, line.size - (size_t)(equals + 1 - line.data)));
    if (value.size >= 2 && value.data[0] == '"' && value.data[value.size - 1] == '"') {
        value = slice_of(value.data + 1, value.size - 2);
    }
    key_text = span_asprintf("%.*s", (int)key.size, (const char *)key.data);
    value_text = span_asprintf("%.*s", (int)value.size, (const char *)value.data);
    at = find_option(c, key_text, strlen(key_text));
    if (at == c->count || c->options[at].where != CONFIG_ANYWHERE) {
        char *what = span_asprintf("%s: unknown key", where);

        st = fail_unknown(c, what, key_text, true, err);
        span_free(what);
    } else if (c->values[at].rank == RANK_FILE) {
        st = span_fail(err, SPAN_INVALID, "%s: '%s' was set at %s already", where, key_text,
                       c->values[at].origin);
    } else {
        char *origin = span_asprintf("%s (%s)", where, key_text);

        st = set_value(c, at, RANK_FILE, origin, value_text, err);
        span_free(origin);
    }
    span_free(key_text);
    span_free(value_text);
    return st;
}

span_status config_parse_text(struct config *c, const char *name, struct slice text,
                              struct span_error *err)
{
    size_t at = 0;
    unsigned number = 0;
    const uint8_t *nul = memchr(text.data, 0, text.size);

    if (nul != NULL) {
        return span_fail(err, SPAN_INVALID, "%s: not a text file (a zero byte at offset %zu)", name,
                         (size_t)(nul - text.data));
    }
    while (at < text.size) {
        const uint8_t *start = text.data + at;
        const uint8_t *end = memchr(start, '\n', text.size - at);
        size_t size = end != NULL ? (size_t)(end - start) : text.size - at;
        struct slice line = trim(slice_of(start, size));

        number++;
        at += size + 1;
        if (line.size > 0 && line.data[0] != '#' && line.data[0] != ';') {
            char *where = span_asprintf("%s:%u", name, number);
            span_status st = take_line(c, where, line, err);

            span_free(where);
            if (st != SPAN_OK) {
                return st;
            }
        }
    }
    return SPAN_OK;
}

span_status config_parse_file(struct config *c, const char *path, struct span_error *err)
{
    struct buf text = {0};
    ssize_t n = 1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    span_status st = SPAN_OK;

    if (fd < 0) {
        return span_fail(err, SPAN_IO, "cannot open %s: %s", path, strerror(errno));
    }
    while (n > 0 && text.size <= CONFIG_FILE_BYTES_MAX) {
        buf_reserve(&text, 65536);
        n = read(fd, text.data + text.size, 65536);
        if (n > 0) {
            text.size += (size_t)n;
        }
    }
    if (n < 0) {
        st = span_fail(err, SPAN_IO, "cannot read %s: %s", path, strerror(errno));
    } else if (text.size > CONFIG_FILE_BYTES_MAX) {
        st = span_fail(err, SPAN_TOO_LARGE, "%s is larger than 1 MiB", path);
    } else if (text.size > 0) {
        st = config_parse_text(c, path, buf_slice(&text), err);
    }
    buf_deinit(&text);
    close(fd);
    return st;
}

/* ---- values -----------------------------------------------------------------------------------
 */

bool config_help_wanted(const struct config *c)
{
    return c->help_wanted;
}

size_t config_arg_count(const struct config *c)
{
    return c->arg_count;
}

const char *config_arg(const struct config *c, size_t i)
{
    return i < c->arg_count ? c->args[i] : NULL;
}

static size_t must_find(const struct config *c, const char *name)
{
    size_t at = find_option(c, name, strlen(name));

    INVARIANT(at < c->count);
    return at;
}

bool config_is_set(const struct config *c, const char *name)
{
    return c->values[must_find(c, name)].rank != RANK_DEFAULT;
}

const char *config_origin(const struct config *c, const char *name)
{
    const struct value *v = &c->values[must_find(c, name)];

    return v->origin != NULL ? v->origin : "default";
}

bool config_bool(const struct config *c, const char *name)
{
    size_t at = must_find(c, name);

    REQUIRE(c->options[at].kind == CONFIG_BOOL);
    return c->values[at].number != 0;
}

const char *config_text(const struct config *c, const char *name)
{
    size_t at = must_find(c, name);

    REQUIRE(c->options[at].kind == CONFIG_TEXT || c->options[at].kind == CONFIG_CHOICE);
    return c->values[at].text;
}

uint64_t config_uint(const struct config *c, const char *name)
{
    size_t at = must_find(c, name);
    enum config_kind kind = c->options[at].kind;

    REQUIRE(kind == CONFIG_COUNT || kind == CONFIG_SIZE || kind == CONFIG_DURATION);
    return (uint64_t)c->values[at].number;
}

int64_t config_int(const struct config *c, const char *name)
{
    size_t at = must_find(c, name);

    REQUIRE(c->options[at].kind == CONFIG_OFFSET || c->options[at].kind == CONFIG_DRIFT);
    return c->values[at].number;
}

void config_dump(const struct config *c, struct buf *out)
{
    for (size_t i = 0; i < c->count; i++) {
        const struct value *v = &c->values[i];
        const char *name = c->options[i].name;

        if (c->options[i].where != CONFIG_ANYWHERE) {
            continue;
        }
        if (v->text == NULL) {
            buf_printf(out, "# %s is not set\n", name);
        } else {
            buf_printf(out, "%s = %s  # %s\n", name, v->text,
                       v->origin != NULL ? v->origin : "default");
        }
    }
}

/* ---- help -------------------------------------------------------------------------------------
 */

/* Appends `text` from column `from` on, wrapped at 79 columns, continuation lines indented to
 * `from`. */
static void append_wrapped(struct buf *out, const char *text, int from)
{
    int column = from;

    while (*text != '\0') {
        int word = (int)strcspn(text, " ");

        if (column > from && column + 1 + word > 79) {
            buf_printf(out, "\n%*s", from, "");
            column = from;
        } else if (column > from) {
            buf_append_str(out, " ");
            column++;
        }
        buf_append(out, text, (size_t)word);
        column += word;
        text += word;
        while (*text == ' ') {
            text++;
        }
    }
    buf_append_str(out, "\n");
}

void config_help_options(const struct config_option *options, size_t count, struct buf *out)
{
    const int help_column = 30;

    for (size_t i = 0; i < count; i++) {
        const struct config_option *o = &options[i];
        const char *arg = o->kind == CONFIG_CHOICE ? o->choices : o->arg;
        bool shows_preset = o->preset != NULL && o->kind != CONFIG_BOOL;
        char left[160];
        char letter[8] = "    ";
        char *help;

        if (o->letter != 0) {
            snprintf(letter, sizeof(letter), "-%c, ", o->letter);
        }
        snprintf(left, sizeof(left), "  %s--%s%s%s", letter, o->name, arg != NULL ? " " : "",
                 arg != NULL ? arg : "");
        buf_append_str(out, left);
        if ((int)strlen(left) + 2 > help_column) {
            buf_printf(out, "\n%*s", help_column, "");
        } else {
            buf_printf(out, "%*s", help_column - (int)strlen(left), "");
        }
        help = span_asprintf("%s%s%s%s", o->help, shows_preset ? " (default " : "",
                             shows_preset ? o->preset : "", shows_preset ? ")" : "");
        append_wrapped(out, help, help_column);
        span_free(help);
    }
    buf_printf(out, "  -h, --help%*s%s\n", help_column - 12, "", "print this help");
}
