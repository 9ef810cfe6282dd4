"""The codes with which commands end."""

OK = 0
RAISED = 1  # the function raised
CANNOT_SERVE = 1
USAGE = 2  # a wrong setting too
BADRPC = 3
BADTCP = 4
UNAUTHORIZED = 5  # a wrong cookie too
SOME_FAILED = 6
TRY_LATER = 75  # EX_TEMPFAIL of sysexits.h: overload or draining
UNSAFE = 78  # EX_CONFIG of sysexits.h
TIMEOUT = 124  # as timeout(1)
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
NOBODY_READS = 141  # 128 + SIGPIPE
