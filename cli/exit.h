/* exit.h - exit codes of dsparkctl and dspark-bench; sysexits where one fits (docs/cli.md). */
#ifndef DS_CLI_EXIT_H
#define DS_CLI_EXIT_H

enum {
    DS_CLI_DONE = 0,
    DS_CLI_FAILED = 1,       /* the daemon refused or failed the request; a measurement failed */
    DS_CLI_USAGE = 64,       /* command line or configuration */
    DS_CLI_UNREACHABLE = 74, /* a file or connection failed, or what answered is no daemon */
    DS_CLI_INTERRUPTED = 130,
};

#endif
