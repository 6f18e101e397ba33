/* A fuzz target: one source file fuzz_<name>.c that defines the two functions below. Built with
 * clang and -fsanitize=fuzzer (preset "fuzz") libFuzzer calls the first; in every other build
 * driver.c does, over the corpus and random changes of it.
 *
 * A target aborts (INVARIANT) when a property does not hold; what a decoder refuses is fine. */
#ifndef SPAN_TESTS_FUZZ_FUZZ_H
#define SPAN_TESTS_FUZZ_FUZZ_H

#include "base/buf.h"
#include "base/invariant.h"

#include <stddef.h>
#include <stdint.h>

/* libFuzzer's names. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* Gives each input of the seed corpus, made by the encoders: `driver --write-seeds DIR`. */
typedef void fuzz_emit(void *ctx, const char *name, struct slice input);
void fuzz_seeds(fuzz_emit *emit, void *ctx);

#endif
