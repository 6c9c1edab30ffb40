"""Embedded engines: real PostgreSQL and Valkey as children of this process, their data in one folder."""

from guerdon_server.platform.engines.embedded import Engines, RunningEngines, find_running
from guerdon_server.platform.engines.errors import (
    DataFolderError,
    DataFolderInUseError,
    EngineError,
    EngineNotFoundError,
    EngineStartError,
    EngineStopError,
)
from guerdon_server.platform.engines.postgres import PostgresEngine
from guerdon_server.platform.engines.valkey import ValkeyEngine

__all__ = [
    "DataFolderError",
    "DataFolderInUseError",
    "EngineError",
    "EngineNotFoundError",
    "EngineStartError",
    "EngineStopError",
    "Engines",
    "PostgresEngine",
    "RunningEngines",
    "ValkeyEngine",
    "find_running",
]
