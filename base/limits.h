/* limits.h - every maximum of the system in one place. A limit has a test at the limit. */
#ifndef DS_BASE_LIMITS_H
#define DS_BASE_LIMITS_H

enum {
    DS_MAX_PROMPT_TOKENS =
        1 << 20, /* tokens of one prompt, on any surface; the model's positions bind first */
    DS_MAX_STOP_STRINGS = 16,
    DS_MAX_STOP_BYTES = 1024, /* bytes of one stop string */
    DS_MAX_STOP_TOKENS = 64,
    DS_MAX_LOGIT_BIAS = 1024, /* entries of logit_bias */
    DS_MAX_TOP_LOGPROBS = 20,
    DS_MAX_N = 64,                         /* choices of one request */
    DS_MAX_PAGE_TOKENS = 16,               /* tokens of one KV page */
    DS_MAX_FRAME_BYTES = 8 << 20,          /* one protobuf frame between processes */
    DS_MAX_FRAME_DECODED_BYTES = 64 << 20, /* memory one decoded frame may take */
    DS_MAX_FRAME_DEPTH = 8,                /* nested messages of one frame */
    DS_MAX_NAME_BYTES = 128,               /* a process name in Hello */
    DS_MAX_MODEL_BYTES = 256,              /* a served model's name */
    DS_MAX_USER_BYTES = 256,               /* user field of a request */
    DS_MAX_DRAFT_TOKENS = 32,              /* draft block size a request may ask for */
    DS_MAX_BIAS_ABS = 100,                 /* absolute value of one logit_bias entry */
    DS_MAX_HTTP_HEADER_BYTES = 32 << 10,
    DS_MAX_HTTP_BODY_BYTES = 8 << 20,
    DS_MAX_JSON_DEPTH = 64,
    DS_MAX_TOKENIZER_BYTES = 64 << 20, /* tokenizer.json, tokenizer_config.json */
    DS_MAX_VOCAB = 1 << 20,            /* token ids */
    DS_MAX_TOKEN_BYTES = 4096,         /* one token's string in the file */
    DS_MAX_ADDED_TOKENS = 1 << 16,
    DS_MAX_TEXT_BYTES = 64 << 20,      /* one text to encode */
    DS_MAX_TOOL_CALL_BYTES = 1 << 20,  /* one <tool_call> of an answer; longer ones are content */
    DS_MAX_CONFIG_BYTES = 4 << 20,     /* config.json, generation_config.json */
    DS_MAX_ST_HEADER_BYTES = 16 << 20, /* safetensors header and shard index: about 130,000 tensors */
    DS_MAX_SHARDS = 1024,              /* files of one checkpoint */
};

#endif
