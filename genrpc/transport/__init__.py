"""The transport: gRPC, and the one thread that runs it. The only importer of grpc.

All streams of a process live on one loop thread (`grpc.aio` wants no second loop). Other
threads hand work over through a `Mailbox` and touch nothing else. `stream` is the narrow
interface behind which `grpc.aio` is known, `pump` drives one session over one stream,
`dialling` opens streams, `listening` accepts them, `status` says what a failure means.
"""

import os

# gRPC's own way with forks restarts its threads in the child, which then crashes: a third of all
# children, also those that never call (grpcio 1.85). Without it none does, and genrpc refuses there
# by itself. gRPC reads this when it is first used, so it must be said before grpc is imported;
# who has set the variable is left in peace.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
