"""Several processes that serve one port, and the one that keeps them: no domain words."""

from guerdon_server.platform.supervision.link import SupervisorLink
from guerdon_server.platform.supervision.merged_metrics import MergedMetrics
from guerdon_server.platform.supervision.supervisor import Backoff, Supervisor
from guerdon_server.platform.supervision.worker import Ready, Worker

__all__ = ["Backoff", "MergedMetrics", "Ready", "Supervisor", "SupervisorLink", "Worker"]
