"""The protocol of the peer stream, without I/O.

Sessions take frames and the time and give frames and events; they know no
event loop, no thread, no clock and no gRPC, so that every test of theirs is
deterministic. A session belongs to the loop thread: nothing here is safe to be
called from two threads.

`frames` is the wire's layout, `chunks` cuts large payloads and puts them
together, `outbox` decides what goes into the next frame, `pending` holds the
calls that wait for an outcome and their deadlines, `events` is what a session
tells, `session` joins them.
"""
