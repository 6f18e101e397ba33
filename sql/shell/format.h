/* Results as text: table, expanded, csv, tsv, json, jsonl. Pure but for the locale's character
 * widths; appends to a buffer. */
#ifndef SPAN_SQL_SHELL_FORMAT_H
#define SPAN_SQL_SHELL_FORMAT_H

#include "base/buf.h"

#include <libpq-fe.h>

enum shell_mode {
    SHELL_TABLE,
    SHELL_EXPANDED,
    SHELL_CSV,
    SHELL_TSV,
    SHELL_JSON,
    SHELL_JSONL,
};

struct shell_format {
    enum shell_mode mode;
    bool header;  /* table, csv, tsv: names first */
    bool footer;  /* table: "(2 rows)" */
    bool unicode; /* box characters */
    bool color;   /* NULL dimmed */
    size_t width; /* table: a wider result is shown expanded; 0: as wide as it is */
    const char
        *null_text; /* table, expanded; NULL: "NULL". csv has nothing, tsv and json their own */
};

/* "table", "csv" ...; also aligned, box, tabs, line, vertical, ndjson of other shells. */
bool shell_mode_parse(const char *name, enum shell_mode *out);
const char *shell_mode_name(enum shell_mode mode);
/* A result with columns (PGRES_TUPLES_OK). title may be NULL. */
void shell_format_result(const struct shell_format *f, const PGresult *r, const char *title,
                         struct buf *out);
/* Columns of a terminal that a result takes in table mode. */
size_t shell_table_width(const struct shell_format *f, const PGresult *r);
/* A statement without columns: its command tag. Nothing in csv and tsv. */
void shell_format_tag(const struct shell_format *f, const char *tag, struct buf *out);
/* Columns a text takes on a terminal; control characters count as they are shown. */
size_t shell_text_width(struct slice text);

#endif
