"""The transport: gRPC, and the one thread that runs it. The only importer of grpc.

All streams of a process live on one loop thread (`grpc.aio` wants no second loop). Other
threads hand work over through a `Mailbox` and touch nothing else. `stream` is the narrow
interface behind which `grpc.aio` is known, `pump` drives one session over one stream,
`dialling` opens streams, `listening` accepts them, `status` says what a failure means.
"""
