/* exit.h - exit codes of the programs (docs/operations.md); sysexits where one fits. */
#ifndef DS_WORKER_EXIT_H
#define DS_WORKER_EXIT_H

enum {
    DS_EXIT_OK = 0,        /* drained, or asked for --help */
    DS_EXIT_USAGE = 64,    /* command line or configuration */
    DS_EXIT_MODEL = 65,    /* a checkpoint file is corrupt or of an unsupported kind */
    DS_EXIT_NOTFOUND = 66, /* a model folder or file does not exist */
    DS_EXIT_NOFIT = 69,    /* the memory plan does not fit this machine or device */
    DS_EXIT_BUG = 70,      /* a broken promise inside the program (assert aborts with SIGABRT) */
    DS_EXIT_LOST = 71,     /* the device is lost; start again */
    DS_EXIT_IO = 74,       /* a file or socket failed */
    DS_EXIT_TEMP = 75,     /* stopped before the work was done, or a temporary failure; start again */
};

#endif
