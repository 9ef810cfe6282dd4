"""genrpc: call a Python function on another machine."""
