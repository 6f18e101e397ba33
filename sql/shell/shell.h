/* The interactive shell, `spanlite sql`: a libpq client like any other. It knows nothing of the
 * server but its SQL; `spanlite demo` calls it on its own node's address. */
#ifndef SPAN_SQL_SHELL_SHELL_H
#define SPAN_SQL_SHELL_SHELL_H

/* argv[0] is the verb ("sql"). Exit codes are psql's: 0 done; 1 a -c statement failed, or the shell
 * itself (a file that cannot be read); 2 no connection, or wrong usage; 3 a script stopped at an
 * error. Takes SIGINT over while it runs. */
int shell_main(int argc, char **argv);

#endif
