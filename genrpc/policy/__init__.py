"""What callers may run on this node, and what their pickles may reach.

`targets` decides about calls, `pickles` decodes what comes to a node with a whitelist: a list
that a pickle can walk around would be decoration.
"""

from genrpc.policy.pickles import Builders, unpickle
from genrpc.policy.targets import Policy

__all__ = ["Builders", "Policy", "unpickle"]
