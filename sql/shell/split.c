/* Statement boundaries: see split.h. One pass over the text that keeps the last two words, which is
 * all that CREATE TRIGGER needs. */
#include "sql/shell/split.h"

#include <ctype.h>
#include <strings.h>

struct scan {
    const char *p;
    size_t size;
    size_t at;
    unsigned words;    /* seen so far, up to 3 */
    char first[3][12]; /* the first three words, cut to length */
    char last[12];     /* the word before this place; "" after anything but space */
    int depth;         /* open parentheses */
    bool blank;
};

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_' || (unsigned char)c >= 0x80;
}

/* Past the closing quote, or size if it is not there. Doubled quotes stand for themselves; they
 * come out right as two quoted pieces side by side. */
static size_t skip_quoted(const struct scan *s, char close)
{
    size_t i = s->at + 1;
    while (i < s->size && s->p[i] != close) {
        i++;
    }
    return i < s->size ? i + 1 : s->size + 1; /* size + 1: still open */
}

static void take_word(struct scan *s)
{
    size_t start = s->at;
    while (s->at < s->size && is_word(s->p[s->at])) {
        s->at++;
    }
    size_t n = s->at - start;
    n = n < sizeof(s->last) ? n : sizeof(s->last) - 1;
    memcpy(s->last, s->p + start, n);
    s->last[n] = '\0';
    if (s->words < 3) {
        memcpy(s->first[s->words], s->last, sizeof(s->last));
        s->words++;
    }
    s->blank = false;
}

/* CREATE [TEMP|TEMPORARY] TRIGGER: its body's statements end with semicolons of their own. */
static bool in_trigger(const struct scan *s)
{
    if (s->words < 2 || strcasecmp(s->first[0], "create") != 0) {
        return false;
    }
    bool temp = strcasecmp(s->first[1], "temp") == 0 || strcasecmp(s->first[1], "temporary") == 0;
    const char *word = temp ? s->words > 2 ? s->first[2] : "" : s->first[1];
    return strcasecmp(word, "trigger") == 0 && strcasecmp(s->last, "end") != 0;
}

/* Past a comment that begins here; 0: none does; size + 1: it is still open. */
static size_t skip_comment(const struct scan *s)
{
    if (s->at + 1 >= s->size) {
        return 0;
    }
    const char *p = s->p + s->at;
    if (p[0] == '-' && p[1] == '-') {
        const char *nl = memchr(p, '\n', s->size - s->at);
        return nl == NULL ? s->size : (size_t)(nl - s->p) + 1;
    }
    if (p[0] == '/' && p[1] == '*') {
        const char *end = memmem(p + 2, s->size - s->at - 2, "*/", 2);
        return end == NULL ? s->size + 1 : (size_t)(end - s->p) + 2;
    }
    return 0;
}

static struct shell_piece piece(const struct scan *s, enum shell_end end, size_t size, char inside)
{
    return (struct shell_piece){.end = end, .size = size, .blank = s->blank, .inside = inside};
}

/* The quote that closes what `c` opens; '\0': it opens nothing. A bracket quotes a name only if it
 * is closed on its line. */
static char closing(const struct scan *s, char c)
{
    if (c == '\'' || c == '"' || c == '`') {
        return c;
    }
    if (c != '[') {
        return '\0';
    }
    for (size_t i = s->at; i < s->size && s->p[i] != '\n'; i++) {
        if (s->p[i] == ']') {
            return ']';
        }
    }
    return '\0';
}

struct shell_piece shell_split(struct slice text)
{
    struct scan s = {.p = (const char *)text.data, .size = text.size, .blank = true};
    while (s.at < s.size) {
        char c = s.p[s.at];
        size_t comment = skip_comment(&s);
        char close = closing(&s, c);
        if (comment > s.size) {
            return piece(&s, SHELL_END_NONE, s.size, '*');
        }
        if (comment != 0) {
            s.at = comment;
        } else if (is_word(c)) {
            take_word(&s);
        } else if (close != '\0') {
            size_t end = skip_quoted(&s, close);
            s.blank = false;
            s.last[0] = '\0';
            if (end > s.size) {
                return piece(&s, SHELL_END_NONE, s.size, c);
            }
            s.at = end;
        } else if (c == ';' && !in_trigger(&s)) {
            return piece(&s, SHELL_END_SEMICOLON, s.at + 1, '=');
        } else if (c == '\\') {
            return piece(&s, SHELL_END_BACKSLASH, s.at, '=');
        } else {
            if (!isspace((unsigned char)c)) {
                s.last[0] = '\0';
                s.blank = s.blank && c == ';';
                s.depth += (c == '(') - (c == ')');
            }
            s.at++;
        }
    }
    return piece(&s, SHELL_END_NONE, s.size, s.blank ? '=' : s.depth > 0 ? '(' : '-');
}
