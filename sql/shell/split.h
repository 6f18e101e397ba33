/* Where a statement ends, for input that arrives line by line. Knows SQLite's quotes and comments
 * and that CREATE TRIGGER ends with END; it knows nothing else of SQL. Pure. */
#ifndef SPAN_SQL_SHELL_SPLIT_H
#define SPAN_SQL_SHELL_SPLIT_H

#include "base/buf.h"

enum shell_end {
    SHELL_END_NONE,      /* more is to come */
    SHELL_END_SEMICOLON, /* `size` includes it */
    SHELL_END_BACKSLASH, /* a meta command begins at `size`, outside quotes */
};

struct shell_piece {
    enum shell_end end;
    size_t size; /* of the first statement in the text; all of it when there is no end */
    bool blank;  /* nothing but space, comments and semicolons in it */
    /* What the text stops in, for the prompt: '-' statement, '\'' '"' '`' '[' quotes, '*' comment,
     * '(' parenthesis, '=' nothing begun. */
    char inside;
};

struct shell_piece shell_split(struct slice text);

#endif
