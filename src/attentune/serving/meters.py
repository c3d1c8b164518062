"""Prometheus meters of a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from attentune.serving.bank import Bank
from attentune.serving.batcher import Batcher
from attentune.serving.engine import Ran

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OTHER = "(other)"


class Meters:
    """Counts and times; at most `names` tasks have a count of their own, the others share one."""

    def __init__(self, bank: Bank, names: int = 200) -> None:
        self.registry, self.names = CollectorRegistry(), names
        self._seen: set[str] = set()
        self._bank = bank
        self._hits_told: dict[str, int] = {}
        registry = self.registry
        self.requests = Counter("attentune_requests", "Requests", ["route", "status"], registry=registry)
        self.latency = Histogram(
            "attentune_request_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=registry
        )
        self.running = Gauge("attentune_requests_running", "Requests in work", registry=registry)
        self.answers = Counter("attentune_answers", "Answers", ["task"], registry=registry)
        self.failed = Counter("attentune_failed_answers", "Asks that ended in an error", ["task"], registry=registry)
        self.shadows = Counter("attentune_shadow_answers", "Answers of shadows", ["task", "agrees"], registry=registry)
        self.batch = Histogram("attentune_batch_rows", "Sequences of a batch", buckets=ROWS, registry=registry)
        self.batch_seconds = Histogram("attentune_batch_seconds", "Time of a batch", buckets=SECONDS, registry=registry)
        self.waited = Histogram(
            "attentune_queue_seconds", "Longest wait of a batch", buckets=SECONDS, registry=registry
        )
        self.tokens = Counter("attentune_tokens", "Tokens without padding", registry=registry)
        self.padding = Counter("attentune_padding_tokens", "Tokens of padding", registry=registry)
        self.queue = Gauge("attentune_queue_length", "Sequences that wait", registry=registry)
        self.tasks = Gauge("attentune_tasks", "Tasks served", registry=registry)
        self.bytes = Gauge("attentune_adapter_bytes", "Bytes of adapters", ["tier"], registry=registry)
        self.hits = Counter("attentune_tier_hits", "Adapters found, by tier", ["tier"], registry=registry)

    def ran(self, ran: Ran) -> None:
        """A batch was run."""
        self.batch.observe(ran.rows)
        self.batch_seconds.observe(ran.seconds)
        self.waited.observe(ran.waited)
        self.tokens.inc(ran.tokens)
        self.padding.inc(ran.padded - ran.tokens)

    def label(self, task: str) -> str:
        """The task's name, or "(other)" when there are too many names already."""
        if task not in self._seen:
            if len(self._seen) >= self.names:
                return OTHER
            self._seen.add(task)
        return task

    def page(self, batcher: Batcher) -> bytes:
        """What /metrics says."""
        tiers = self._bank.tiers
        self.queue.set(len(batcher))
        self.tasks.set(len(self._bank))
        self.bytes.labels("warm").set(tiers.warm.bytes)
        if tiers.hot is not tiers.warm:
            self.bytes.labels("hot").set(tiers.hot.bytes)
        for tier, count in dict(tiers.hits).items():
            self.hits.labels(tier).inc(count - self._hits_told.get(tier, 0))
            self._hits_told[tier] = count
        return generate_latest(self.registry)


def merged(pages: Mapping[str, str]) -> bytes:
    """The pages of several servers as one; each line has the name of its server as the label `replica`."""
    registry = CollectorRegistry()
    registry.register(_Pages(pages))
    return generate_latest(registry)


class _Pages(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self.pages = pages

    def collect(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for replica, page in self.pages.items():
            for family in text_string_to_metric_families(page):
                metric = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                metric.samples += [s._replace(labels={**s.labels, "replica": replica}) for s in family.samples]
        return found.values()
