/* make_model.h - checkpoint folders with random weights, for timing. */
#ifndef DS_CLI_MAKE_MODEL_H
#define DS_CLI_MAKE_MODEL_H

#include "base/err.h"

#include <stdint.h>

/* ds_make_model: config.json and model.safetensors of shape `name` ("qwen3-0.6b", "tiny", ...) in dir, which
 * is made with the folders above it. Errors: DS_EINVAL unknown shape (all are listed); DS_EIO. */
ds_code ds_make_model(const char *name, const char *dir, uint64_t seed, ds_err *err);

#endif
