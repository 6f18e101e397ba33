/* Where statements end, and what the prompt says about one that has not. */
#include "base/rng.h"
#include "sql/shell/split.h"

#include <criterion/criterion.h>
#include <stdio.h>

struct split_case {
    const char *text;
    size_t size;
    enum shell_end end;
    char inside;
    bool blank;
};

Test(shell_split, ends_statements_outside_quotes_and_comments_only)
{
    static const struct split_case list[] = {
        {"select 1;", 9, SHELL_END_SEMICOLON, '=', false},
        {"select 1; select 2;", 9, SHELL_END_SEMICOLON, '=', false},
        {"select ';';x", 11, SHELL_END_SEMICOLON, '=', false},
        {"select 'it''s;';", 16, SHELL_END_SEMICOLON, '=', false},
        {"select \";\";", 11, SHELL_END_SEMICOLON, '=', false},
        {"select `;`;", 11, SHELL_END_SEMICOLON, '=', false},
        {"select [a;b];", 13, SHELL_END_SEMICOLON, '=', false},
        {"select a[1;", 11, SHELL_END_SEMICOLON, '=', false}, /* not closed: no quote */
        {"-- a;\nselect 1;", 15, SHELL_END_SEMICOLON, '=', false},
        {"/* ; */ ;", 9, SHELL_END_SEMICOLON, '=', true},
        {"select (;", 9, SHELL_END_SEMICOLON, '=', false},     /* the server complains at once */
        {"select '\\';", 11, SHELL_END_SEMICOLON, '=', false}, /* no backslash escapes */
        {"select 1", 8, SHELL_END_NONE, '-', false},
        {"select 'a;", 10, SHELL_END_NONE, '\'', false},
        {"select \"a;", 10, SHELL_END_NONE, '"', false},
        {"/* a;", 5, SHELL_END_NONE, '*', true},
        {"select (1,", 10, SHELL_END_NONE, '(', false},
        {"-- only", 7, SHELL_END_NONE, '=', true},
        {"", 0, SHELL_END_NONE, '=', true},
        {"select 1 \\g", 9, SHELL_END_BACKSLASH, '=', false},
        {"\\d t", 0, SHELL_END_BACKSLASH, '=', true},
        {"select '\\d'", 11, SHELL_END_NONE, '-', false},
    };
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        struct shell_piece p = shell_split(slice_str(list[i].text));
        cr_assert_eq(p.end, list[i].end, "%s", list[i].text);
        cr_assert_eq(p.size, list[i].size, "%s: %zu", list[i].text, p.size);
        cr_assert_eq(p.inside, list[i].inside, "%s: %c", list[i].text, p.inside);
        cr_assert_eq(p.blank, list[i].blank, "%s", list[i].text);
    }
}

Test(shell_split, ends_create_trigger_at_end)
{
    static const char one[] = "create TEMP trigger t after insert on a begin update b set c = 1; "
                              "delete from d; end;";
    struct shell_piece p = shell_split(slice_str(one));
    cr_assert_eq(p.end, SHELL_END_SEMICOLON);
    cr_assert_eq(p.size, sizeof(one) - 1);
    cr_assert_eq(shell_split(slice_str("create table trigger_(a); x")).size, 25);
    cr_assert_eq(shell_split(slice_str("create trigger t begin x;")).end, SHELL_END_NONE);
}

/* Cutting a text off anywhere never finds an end that the whole text does not have there. */
Test(shell_split, finds_the_same_end_however_much_follows)
{
    static const char alphabet[] = "a;'\"`[]-*/\\(\n ";
    uint64_t seed = rng_os_u64();
    struct rng r;
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    for (int i = 0; i < 50000; i++) {
        char text[33];
        size_t n = (size_t)rng_below(&r, 32);
        for (size_t k = 0; k < n; k++) {
            text[k] = alphabet[rng_below(&r, sizeof(alphabet) - 1)];
        }
        text[n] = '\0';
        struct shell_piece whole = shell_split(slice_of(text, n));
        cr_assert_leq(whole.size, n);
        if (whole.end == SHELL_END_SEMICOLON) {
            cr_assert_eq(text[whole.size - 1], ';');
            struct shell_piece cut = shell_split(slice_of(text, whole.size));
            /* A bracket closed behind the cut is the one thing that looks ahead. */
            if (strchr(text, '[') == NULL) {
                cr_assert_eq(cut.end, SHELL_END_SEMICOLON, "%s", text);
                cr_assert_eq(cut.size, whole.size, "%s", text);
            }
        }
    }
}
