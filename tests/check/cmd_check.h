/* `spanlite check HISTORY`: the history checkers for users. argv[0] is the verb. Exit codes: 0 the
 * history holds, 1 it does not, 2 wrong usage or a file that cannot be judged. */
#ifndef SPAN_TESTS_CHECK_CMD_CHECK_H
#define SPAN_TESTS_CHECK_CMD_CHECK_H

int cmd_check_main(int argc, char **argv);

#endif
