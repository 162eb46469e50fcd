"""Alerts to an address on the web, without ever holding up the training."""

import contextlib
import json
import logging
import queue
import threading
import urllib.request
from typing import Any

log = logging.getLogger("trade_agent.alerts")
QUEUED = 100  # alerts that wait to be sent; more are dropped


class WebhookChannel:
    """Posts each alert as JSON from a thread of its own.

    timeout_seconds: for one post, and for all that are waiting when the run ends. What cannot be sent is named in the
    log, without the address, which may hold a token.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self.url, self.timeout_seconds = url, timeout_seconds
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUED)
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def send(self, alert: dict[str, Any]) -> None:
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            log.warning(f"the webhook is too slow: an alert of {alert['rule']} was dropped")

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=self.timeout_seconds)
        self._thread.join(self.timeout_seconds)

    def _work(self) -> None:
        while (alert := self._waiting.get()) is not None:
            request = urllib.request.Request(
                self.url, data=json.dumps(alert).encode(), headers={"Content-Type": "application/json"}, method="POST"
            )
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds):
                    pass
            except (OSError, ValueError) as error:
                log.warning(f"an alert of {alert['rule']} did not reach the webhook: {type(error).__name__}")
