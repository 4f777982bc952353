"""A Hugging Face Hub on two loopback ports, for tests that talk to it with the real client.

Standard library and PyYAML only, on POSIX. It speaks what huggingface_hub 2.4 asks for: see `routes`.
It does not know TLS, gzip, .gitignore, short commit ids, web pages, webhooks, jobs, buckets or quotas,
and it cannot tell what huggingface.co does where the client does not look.

    site, store, wire   what is kept, what goes over the wire
    api, cards, search, tree, push, lfs, storage, xet   the answers, one subject each
    routes              method and path to answer
    faults, listener    misfortunes and the two ports
    server, client      TestHub, and how a client is pointed at it
"""

from hubserver.client import CLIENT_WARNING, connect, hub_environment
from hubserver.listener import Entry
from hubserver.server import TestHub

__all__ = ["CLIENT_WARNING", "Entry", "TestHub", "connect", "hub_environment"]
