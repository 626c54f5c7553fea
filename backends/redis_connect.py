"""From what a URL names to a client of it."""

from __future__ import annotations

from dgents.backends.redis_client import Client
from dgents.backends.redis_cluster import ClusterClient
from dgents.backends.redis_node import ServerClient
from dgents.backends.redis_url import RedisPlace


def connect(place: RedisPlace) -> Client:
    """Return a client, on the running asyncio loop; it connects when it is first used."""
    return ClusterClient(place) if place.kind == "cluster" else ServerClient(place)
