/* Output modes: see format.h. csv as RFC 4180 (NULL is an empty field, an empty text is ""), tsv
 * with \t \n \\ escaped and NULL as NULL, json with numbers and booleans bare where the column's
 * type says so. */
#include "sql/shell/format.h"

#include "base/alloc.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>

enum {
    OID_BOOL = 16,
    OID_INT8 = 20,
    OID_INT2 = 21,
    OID_INT4 = 23,
    OID_OID = 26,
    OID_FLOAT4 = 700,
    OID_FLOAT8 = 701,
    OID_NUMERIC = 1700
};

static const struct {
    const char *name;
    enum shell_mode mode;
} mode_names[] = {
    {"table", SHELL_TABLE},      {"expanded", SHELL_EXPANDED}, {"csv", SHELL_CSV},
    {"tsv", SHELL_TSV},          {"json", SHELL_JSON},         {"jsonl", SHELL_JSONL},
    {"aligned", SHELL_TABLE},    {"box", SHELL_TABLE},         {"column", SHELL_TABLE},
    {"tabs", SHELL_TSV},         {"line", SHELL_EXPANDED},     {"vertical", SHELL_EXPANDED},
    {"records", SHELL_EXPANDED}, {"ndjson", SHELL_JSONL},      {"jsonlines", SHELL_JSONL},
};

bool shell_mode_parse(const char *name, enum shell_mode *out)
{
    for (size_t i = 0; i < sizeof(mode_names) / sizeof(mode_names[0]); i++) {
        if (strcmp(name, mode_names[i].name) == 0) {
            *out = mode_names[i].mode;
            return true;
        }
    }
    return false;
}

const char *shell_mode_name(enum shell_mode mode)
{
    return mode_names[mode].name; /* the first six stand in the order of the enum */
}

static bool is_number_type(Oid type)
{
    return type == OID_INT8 || type == OID_INT4 || type == OID_INT2 || type == OID_OID ||
           type == OID_FLOAT4 || type == OID_FLOAT8 || type == OID_NUMERIC;
}

static struct slice cell(const PGresult *r, int row, int column)
{
    return slice_of(PQgetvalue(r, row, column), (size_t)PQgetlength(r, row, column));
}

/* One character of a terminal: how many bytes it has and how wide it is; control characters and
 * bytes that are not UTF-8 are shown as escapes. */
struct glyph {
    size_t bytes;
    size_t width;
    char escape[8]; /* not empty: shown instead */
};

static struct glyph glyph_at(struct slice s)
{
    struct glyph g = {.bytes = 1, .width = 1};
    uint8_t b = s.data[0];
    if (b < 0x20 || b == 0x7f) {
        const char *short_form = b == '\n' ? "\\n" : b == '\t' ? "\\t" : b == '\r' ? "\\r" : NULL;
        if (short_form != NULL) {
            (void)snprintf(g.escape, sizeof(g.escape), "%s", short_form);
        } else {
            (void)snprintf(g.escape, sizeof(g.escape), "\\x%02x", b);
        }
        g.width = strlen(g.escape);
        return g;
    }
    if (b < 0x80) {
        return g;
    }
    size_t n = b >= 0xf0 ? 4 : b >= 0xe0 ? 3 : b >= 0xc0 ? 2 : 0;
    uint32_t code = b & (0x7fU >> n);
    for (size_t i = 1; i < n && i < s.size && (s.data[i] & 0xc0) == 0x80; i++) {
        code = code << 6 | (s.data[i] & 0x3f);
        g.bytes++;
    }
    if (n == 0 || g.bytes != n) {
        g.bytes = 1;
        (void)snprintf(g.escape, sizeof(g.escape), "\\x%02x", b);
        g.width = 4;
        return g;
    }
    int w = wcwidth((wchar_t)code);
    g.width = w < 0 ? 1 : (size_t)w;
    return g;
}

size_t shell_text_width(struct slice s)
{
    size_t width = 0;
    while (s.size != 0) {
        struct glyph g = glyph_at(s);
        width += g.width;
        s = slice_of(s.data + g.bytes, s.size - g.bytes);
    }
    return width;
}

static void put_shown(struct buf *out, struct slice s)
{
    while (s.size != 0) {
        struct glyph g = glyph_at(s);
        if (g.escape[0] != '\0') {
            buf_append_str(out, g.escape);
        } else {
            buf_append(out, s.data, g.bytes);
        }
        s = slice_of(s.data + g.bytes, s.size - g.bytes);
    }
}

static void put_many(struct buf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        buf_append_str(out, s);
    }
}

static struct slice null_slice(const struct shell_format *f)
{
    return slice_str(f->null_text == NULL ? "NULL" : f->null_text);
}

static void put_padded(const struct shell_format *f, struct slice s, size_t width, bool right,
                       bool is_null, struct buf *out)
{
    size_t pad = width - shell_text_width(s);
    bool dim = is_null && f->color;
    put_many(out, " ", right ? pad : 0);
    buf_append_str(out, dim ? "\x1b[2m" : "");
    put_shown(out, s);
    buf_append_str(out, dim ? "\x1b[0m" : "");
    put_many(out, " ", right ? 0 : pad);
}

struct box {
    const char *line;
    const char *bar;
    const char *top[3];
    const char *middle[3];
    const char *bottom[3];
};

static const struct box box_unicode = {"─", "│", {"┌", "┬", "┐"}, {"├", "┼", "┤"}, {"└", "┴", "┘"}};
static const struct box box_ascii = {"-", "|", {"+", "+", "+"}, {"+", "+", "+"}, {"+", "+", "+"}};

static void put_rule(const struct box *b, const char *const ends[3], const size_t *widths,
                     int columns, struct buf *out)
{
    buf_append_str(out, ends[0]);
    for (int c = 0; c < columns; c++) {
        put_many(out, b->line, widths[c] + 2);
        buf_append_str(out, c + 1 < columns ? ends[1] : ends[2]);
    }
    buf_append_byte(out, '\n');
}

static size_t *column_widths(const struct shell_format *f, const PGresult *r)
{
    int columns = PQnfields(r);
    size_t *widths = span_calloc((size_t)columns + 1, sizeof(size_t));
    for (int c = 0; c < columns; c++) {
        widths[c] = f->header ? shell_text_width(slice_str(PQfname(r, c))) : 0;
        for (int row = 0; row < PQntuples(r); row++) {
            struct slice s = PQgetisnull(r, row, c) ? null_slice(f) : cell(r, row, c);
            size_t w = shell_text_width(s);
            widths[c] = w > widths[c] ? w : widths[c];
        }
    }
    return widths;
}

size_t shell_table_width(const struct shell_format *f, const PGresult *r)
{
    size_t *widths = column_widths(f, r);
    size_t total = 1;
    for (int c = 0; c < PQnfields(r); c++) {
        total += widths[c] + 3;
    }
    span_free(widths);
    return total;
}

static void put_table_row(const struct shell_format *f, const struct box *b, const PGresult *r,
                          int row, const size_t *widths, struct buf *out)
{
    for (int c = 0; c < PQnfields(r); c++) {
        bool is_null = row >= 0 && PQgetisnull(r, row, c);
        struct slice s = row < 0   ? slice_str(PQfname(r, c))
                         : is_null ? null_slice(f)
                                   : cell(r, row, c);
        buf_append_str(out, b->bar);
        buf_append_byte(out, ' ');
        put_padded(f, s, widths[c], is_number_type(PQftype(r, c)), is_null, out);
        buf_append_byte(out, ' ');
    }
    buf_append_str(out, b->bar);
    buf_append_byte(out, '\n');
}

static void put_table(const struct shell_format *f, const PGresult *r, struct buf *out)
{
    const struct box *b = f->unicode ? &box_unicode : &box_ascii;
    int columns = PQnfields(r);
    int rows = PQntuples(r);
    size_t *widths = column_widths(f, r);
    if (columns != 0) {
        put_rule(b, b->top, widths, columns, out);
        if (f->header) {
            put_table_row(f, b, r, -1, widths, out);
            put_rule(b, b->middle, widths, columns, out);
        }
        for (int row = 0; row < rows; row++) {
            put_table_row(f, b, r, row, widths, out);
        }
        put_rule(b, b->bottom, widths, columns, out);
    }
    span_free(widths);
    if (f->footer) {
        buf_printf(out, "(%d row%s)\n", rows, rows == 1 ? "" : "s");
    }
}

static void put_expanded(const struct shell_format *f, const PGresult *r, struct buf *out)
{
    size_t width = 0;
    for (int c = 0; c < PQnfields(r); c++) {
        size_t w = shell_text_width(slice_str(PQfname(r, c)));
        width = w > width ? w : width;
    }
    for (int row = 0; row < PQntuples(r); row++) {
        buf_printf(out, "-[ %d ]", row + 1);
        put_many(out, "-", width > 4 ? width - 4 : 0);
        buf_append_byte(out, '\n');
        for (int c = 0; c < PQnfields(r); c++) {
            bool is_null = PQgetisnull(r, row, c);
            struct slice value = is_null ? null_slice(f) : cell(r, row, c);
            put_padded(f, slice_str(PQfname(r, c)), width, false, false, out);
            buf_append_str(out, f->unicode ? " │ " : " | ");
            put_padded(f, value, shell_text_width(value), false, is_null, out);
            buf_append_byte(out, '\n');
        }
    }
    if (f->footer && PQntuples(r) == 0) {
        buf_append_str(out, "(0 rows)\n");
    }
}

static void put_csv_field(struct slice s, struct buf *out)
{
    bool quote = s.size == 0;
    for (size_t i = 0; i < s.size && !quote; i++) {
        quote = s.data[i] == ',' || s.data[i] == '"' || s.data[i] == '\n' || s.data[i] == '\r';
    }
    if (!quote) {
        buf_append_slice(out, s);
        return;
    }
    buf_append_byte(out, '"');
    for (size_t i = 0; i < s.size; i++) {
        if (s.data[i] == '"') {
            buf_append_byte(out, '"');
        }
        buf_append_byte(out, s.data[i]);
    }
    buf_append_byte(out, '"');
}

static void put_tsv_field(struct slice s, struct buf *out)
{
    for (size_t i = 0; i < s.size; i++) {
        switch (s.data[i]) {
        case '\t':
            buf_append_str(out, "\\t");
            break;
        case '\n':
            buf_append_str(out, "\\n");
            break;
        case '\r':
            buf_append_str(out, "\\r");
            break;
        case '\\':
            buf_append_str(out, "\\\\");
            break;
        default:
            buf_append_byte(out, s.data[i]);
        }
    }
}

static void put_separated(const struct shell_format *f, const PGresult *r, struct buf *out)
{
    bool csv = f->mode == SHELL_CSV;
    for (int row = f->header ? -1 : 0; row < PQntuples(r); row++) {
        for (int c = 0; c < PQnfields(r); c++) {
            if (c != 0) {
                buf_append_byte(out, csv ? ',' : '\t');
            }
            bool is_null = row >= 0 && PQgetisnull(r, row, c);
            struct slice s = row < 0 ? slice_str(PQfname(r, c)) : cell(r, row, c);
            if (is_null) {
                buf_append_str(out, csv ? "" : "NULL");
            } else if (csv) {
                put_csv_field(s, out);
            } else {
                put_tsv_field(s, out);
            }
        }
        buf_append_byte(out, '\n');
    }
}

static void put_json_text(struct slice s, struct buf *out)
{
    buf_append_byte(out, '"');
    while (s.size != 0) {
        struct glyph g = glyph_at(s);
        uint8_t b = s.data[0];
        if (b == '"' || b == '\\') {
            buf_append_byte(out, '\\');
            buf_append_byte(out, b);
        } else if (b == '\n' || b == '\t' || b == '\r') {
            buf_append_str(out, g.escape);
        } else if (b < 0x20) {
            buf_printf(out, "\\u%04x", b);
        } else if (g.escape[0] != '\0' && b != 0x7f) {
            buf_append_str(out, "\xef\xbf\xbd"); /* not UTF-8: JSON has no bytes */
        } else {
            buf_append(out, s.data, g.bytes);
        }
        s = slice_of(s.data + g.bytes, s.size - g.bytes);
    }
    buf_append_byte(out, '"');
}

/* Is the text a number as JSON writes it? Types promise it, SQLite's values may break the promise.
 */
static bool is_json_number(struct slice s)
{
    size_t i = s.size != 0 && s.data[0] == '-' ? 1 : 0;
    if (i >= s.size || !isdigit(s.data[i]) ||
        (s.data[i] == '0' && i + 1 < s.size && isdigit(s.data[i + 1]))) {
        return false;
    }
    while (i < s.size && isdigit(s.data[i])) {
        i++;
    }
    if (i < s.size && s.data[i] == '.') {
        if (++i >= s.size || !isdigit(s.data[i])) {
            return false;
        }
        while (i < s.size && isdigit(s.data[i])) {
            i++;
        }
    }
    if (i < s.size && (s.data[i] == 'e' || s.data[i] == 'E')) {
        i++;
        i += i < s.size && (s.data[i] == '+' || s.data[i] == '-');
        if (i >= s.size || !isdigit(s.data[i])) {
            return false;
        }
        while (i < s.size && isdigit(s.data[i])) {
            i++;
        }
    }
    return i == s.size;
}

static void put_json_value(const PGresult *r, int row, int c, struct buf *out)
{
    struct slice s = cell(r, row, c);
    if (PQgetisnull(r, row, c)) {
        buf_append_str(out, "null");
    } else if (is_number_type(PQftype(r, c)) && is_json_number(s)) {
        buf_append_slice(out, s);
    } else if (PQftype(r, c) == OID_BOOL && s.size == 1) {
        buf_append_str(out, s.data[0] == 't' ? "true" : "false");
    } else {
        put_json_text(s, out);
    }
}

static void put_json(const struct shell_format *f, const PGresult *r, struct buf *out)
{
    bool lines = f->mode == SHELL_JSONL;
    int rows = PQntuples(r);
    buf_append_str(out, lines ? "" : "[");
    for (int row = 0; row < rows; row++) {
        buf_append_str(out, lines || row == 0 ? "{" : " {");
        for (int c = 0; c < PQnfields(r); c++) {
            buf_append_str(out, c == 0 ? "" : ", ");
            put_json_text(slice_str(PQfname(r, c)), out);
            buf_append_str(out, ": ");
            put_json_value(r, row, c, out);
        }
        buf_append_str(out, lines ? "}\n" : row + 1 < rows ? "},\n" : "}");
    }
    buf_append_str(out, lines ? "" : "]\n");
}

void shell_format_result(const struct shell_format *f, const PGresult *r, const char *title,
                         struct buf *out)
{
    bool for_people = f->mode == SHELL_TABLE || f->mode == SHELL_EXPANDED;
    if (title != NULL && for_people) {
        buf_printf(out, "%s\n", title);
    }
    switch (f->mode) {
    case SHELL_TABLE:
        if (f->width != 0 && PQntuples(r) != 0 && shell_table_width(f, r) > f->width) {
            put_expanded(f, r, out);
        } else {
            put_table(f, r, out);
        }
        break;
    case SHELL_EXPANDED:
        put_expanded(f, r, out);
        break;
    case SHELL_CSV:
    case SHELL_TSV:
        put_separated(f, r, out);
        break;
    case SHELL_JSON:
    case SHELL_JSONL:
        put_json(f, r, out);
        break;
    }
}

void shell_format_tag(const struct shell_format *f, const char *tag, struct buf *out)
{
    switch (f->mode) {
    case SHELL_TABLE:
    case SHELL_EXPANDED:
        buf_printf(out, "%s\n", tag);
        break;
    case SHELL_JSON:
    case SHELL_JSONL:
        buf_append_str(out, "{\"status\": ");
        put_json_text(slice_str(tag), out);
        buf_append_str(out, "}\n");
        break;
    case SHELL_CSV:
    case SHELL_TSV:
        break;
    }
}
